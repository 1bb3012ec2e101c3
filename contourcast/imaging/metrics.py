"""How far two regions on one grid agree, with the definitions that the literature disagrees about.

A region that is empty on one side has no distance: the figure is None, never a number and never
NaN, and the failure is to be counted, not dropped from a mean.

Grids with uneven slices: overlap weighs voxels by the length each slice stands for; surfaces are
taken from the masks repeated onto even planes, as far apart as the smallest gap.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Mask

# Added path length counts contour further away than this (REGISTRATION §10).
PATH_TOLERANCE_MM: Final = 1.0
# Far above what coordinates in mm are rounded to: five slices of 0.4 mm are 2 mm wherever they lie.
ROUNDING_MM: Final = 1e-6
# An even copy of an uneven grid has at most this many planes for each slice.
MOST_PLANES_A_SLICE: Final = 8

# Surface between eight voxel centres, of which some are inside: Lorensen and Cline's (1987)
# triangles, as triangulated by DeepMind's surface-distance 0.1 (lookup_tables.py, Apache-2.0).
# Corners (z, y, x) that are inside, then the triangles' normals in eighths of a cell's faces as
# (z, y, x), parallel ones added. All other cases are these 13 turned, mirrored or inverted.
_CORNER_CASES: Final[tuple[tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]], ...]] = (
    (("111",), ((1, 1, 1),)),
    (("111", "110"), ((4, 4, 0),)),
    (("110", "101"), ((2, 2, 2),)),
    (("111", "110", "101"), ((3, 3, 3), (4, 0, 0))),
    (("111", "110", "101", "100"), ((8, 0, 0),)),
    (("110", "101", "011"), ((3, 3, 3),)),
    (("111", "110", "101", "011"), ((6, 6, 6),)),
    (("100", "011"), ((2, 2, 2),)),
    (("111", "100", "011"), ((0, 4, 4), (1, 1, 1))),
    (("111", "110", "100", "011"), ((4, 4, 4), (0, 2, 2), (2, 0, 2))),
    (("110", "101", "100", "011"), ((4, 4, 4), (4, 0, 0))),
    (("101", "100", "011", "010"), ((8, 8, 0),)),
    (("111", "100", "010", "001"), ((4, 4, 4),)),
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a proposal agrees with a reference. None: undefined, since a region is empty.

    Attributes:
        dice: 2 |A and B| / (|A| + |B|); 1 when both are empty.
        iou: |A and B| / |A or B|; 1 when both are empty.
        hd95_mm: The larger of the two directed 95th percentiles of distances between surface
            voxels (mask without its 6-connected erosion).
        hd95_pooled_mm: The 95th percentile of both directions together, for comparison with
            programs that report this.
        msd_mm: Mean of the two directed mean surface distances.
        surface_dice_1mm: Share of both surfaces, by area of surface elements, that lies within
            1 mm of the other.
        surface_dice_2mm: As above, 2 mm.
        surface_dice_3mm: As above, 3 mm.
        added_path_length_mm: Length of the reference's contours, slice by slice, that lies more
            than 1 mm in its plane from the proposal's: what would have to be redrawn.
        added_path_length_fraction: The same as a share of the reference's contours.
        proposal_cc: Volume of the proposal.
        reference_cc: Volume of the reference.
        empty: Which of the two regions has no voxel; "" when both have some.
    """

    dice: float
    iou: float
    hd95_mm: float | None
    hd95_pooled_mm: float | None
    msd_mm: float | None
    surface_dice_1mm: float
    surface_dice_2mm: float
    surface_dice_3mm: float
    added_path_length_mm: float
    added_path_length_fraction: float | None
    proposal_cc: float
    reference_cc: float
    empty: Literal["", "both", "proposal", "reference"] = ""

    def as_dict(self) -> dict[str, float | str | None]:
        """For JSON and tables."""
        return asdict(self)


def dice(proposal: Mask, reference: Mask) -> float:
    """Overlap of two masks on one grid: 1 is identical, 0 is disjoint; both empty: 1.

    Raises:
        FrameMismatchError: The masks live in different frames of reference.
        GridMismatchError: The masks live on different grids.
    """
    return _dice(*_overlap(proposal, reference))


def iou(proposal: Mask, reference: Mask) -> float:
    """What two masks share of what they cover together; both empty: 1.

    Raises:
        FrameMismatchError: The masks live in different frames of reference.
        GridMismatchError: The masks live on different grids.
    """
    return _iou(*_overlap(proposal, reference))


def agreement(proposal: Mask, reference: Mask) -> Agreement:
    """All figures of two masks on one grid.

    Raises:
        FrameMismatchError: The masks live in different frames of reference.
        GridMismatchError: The masks live on different grids.
        GeometryError: The grid has one slice alone, so that there is no surface.
    """
    overlap = _overlap(proposal, reference)
    empty = _which_is_empty(proposal, reference)
    distances = (
        _no_distances(both_empty=empty == "both") if empty else _distances(proposal, reference)
    )
    added, path = _added_path(proposal, reference)
    return Agreement(
        dice=_dice(*overlap),
        iou=_iou(*overlap),
        hd95_mm=distances.hd95_mm,
        hd95_pooled_mm=distances.hd95_pooled_mm,
        msd_mm=distances.msd_mm,
        surface_dice_1mm=distances.surface_dice[0],
        surface_dice_2mm=distances.surface_dice[1],
        surface_dice_3mm=distances.surface_dice[2],
        added_path_length_mm=added,
        added_path_length_fraction=added / path if path else (0.0 if empty == "both" else None),
        proposal_cc=proposal.volume_cc,
        reference_cc=reference.volume_cc,
        empty=empty,
    )


def _dice(both: float, one: float, other: float) -> float:
    return 2 * both / (one + other) if one + other else 1.0


def _iou(both: float, one: float, other: float) -> float:
    return both / (one + other - both) if one + other else 1.0


def _overlap(proposal: Mask, reference: Mask) -> tuple[float, float, float]:
    """Voxels in both, in the first, in the second: counted, or weighed on uneven slices."""
    proposal.require_same_place(reference)
    grid = proposal.grid
    weights = np.ones(grid.shape_zyx[0]) if grid.is_even else grid.thickness_z_mm
    counts = np.array(
        [
            (np.count_nonzero(a & b), np.count_nonzero(a), np.count_nonzero(b))
            for a, b in zip(proposal.values, reference.values, strict=True)
        ]
    )
    both, one, other = (float(v) for v in weights @ counts)
    return both, one, other


def _which_is_empty(
    proposal: Mask, reference: Mask
) -> Literal["", "both", "proposal", "reference"]:
    if proposal.is_empty:
        return "both" if reference.is_empty else "proposal"
    return "reference" if reference.is_empty else ""


@dataclass(frozen=True, kw_only=True)
class _Distances:
    hd95_mm: float | None
    hd95_pooled_mm: float | None
    msd_mm: float | None
    surface_dice: tuple[float, float, float]


def _no_distances(*, both_empty: bool) -> _Distances:
    none, share = (0.0, 1.0) if both_empty else (None, 0.0)
    return _Distances(hd95_mm=none, hd95_pooled_mm=none, msd_mm=none, surface_dice=(share,) * 3)


def _distances(proposal: Mask, reference: Mask) -> _Distances:
    """Of two masks with voxels, on one grid."""
    spacing = _even_spacing_zyx_mm(proposal)
    a, b = (_boxed(_even_planes(mask)) for mask in (proposal, reference))
    from_a, from_b = _directed(_surface_voxels(*a) * spacing, _surface_voxels(*b) * spacing)
    elements_a, areas_a = _surface_elements(*a, spacing)
    elements_b, areas_b = _surface_elements(*b, spacing)
    near_a, near_b = _directed(elements_a, elements_b)
    within = [
        float(areas_a[near_a <= mm + ROUNDING_MM].sum() + areas_b[near_b <= mm + ROUNDING_MM].sum())
        / float(areas_a.sum() + areas_b.sum())
        for mm in (1.0, 2.0, 3.0)
    ]
    return _Distances(
        hd95_mm=float(max(np.percentile(from_a, 95), np.percentile(from_b, 95))),
        hd95_pooled_mm=float(np.percentile(np.concatenate((from_a, from_b)), 95)),
        msd_mm=float((from_a.mean() + from_b.mean()) / 2),
        surface_dice=(within[0], within[1], within[2]),
    )


def _directed(
    a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """From each point of one set to the nearest of the other, both ways."""
    return cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]


def _even_spacing_zyx_mm(mask: Mask) -> np.ndarray:
    """Between the planes of `_even_planes`."""
    grid = mask.grid
    if grid.shape_zyx[0] == 1:
        raise GeometryError(
            "one slice alone has no surface to measure", remedy="compare whole series"
        )
    z, y, x = grid.spacing_zyx_mm
    return np.array([z if grid.is_even else grid.thickness_z_mm.sum() / _planes(grid), y, x])


def _planes(grid: Grid) -> int:
    """How many even planes stand for an uneven grid: about the smallest gap apart."""
    wanted = round(float(grid.thickness_z_mm.sum() / grid.gaps_mm.min()))
    return min(wanted, MOST_PLANES_A_SLICE * grid.shape_zyx[0])


def _even_planes(mask: Mask) -> Bool[np.ndarray, "z y x"]:
    """The mask itself, or on an uneven grid each slice as often as even planes fall onto it."""
    grid = mask.grid
    if grid.is_even:
        return mask.values
    edges = np.cumsum(grid.thickness_z_mm)
    planes = (np.arange(_planes(grid)) + 0.5) * (edges[-1] / _planes(grid))
    repeated: np.ndarray = mask.values[np.searchsorted(edges[:-1], planes)]
    return repeated


def _boxed(values: Bool[np.ndarray, "z y x"]) -> tuple[Bool[np.ndarray, "_ _ _"], np.ndarray]:
    """The part that holds the region, with an empty voxel on every side; index of its first."""
    box, first = values, []
    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
        along = np.flatnonzero(box.any(axis=others))
        first.append(int(along[0]) - 1)
        box = box[(slice(None),) * axis + (slice(int(along[0]), int(along[-1]) + 1),)]
    return np.pad(box, 1), np.array(first)


def _surface_voxels(box: Bool[np.ndarray, "z y x"], first: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Index (z, y, x) of voxels of the region that touch the outside with a face."""
    core = box[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for shift in (slice(None, -2), slice(2, None)):
            window = [slice(1, -1)] * 3
            window[axis] = shift
            core &= box[tuple(window)]
    surface = box[1:-1, 1:-1, 1:-1] & ~core
    return np.argwhere(surface) + (first + 1.0)


def _surface_elements(
    box: Bool[np.ndarray, "z y x"], first: np.ndarray, spacing_zyx_mm: np.ndarray
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Places in mm (z, y, x) between eight voxels where the surface passes, and its area there."""
    codes = _codes([box[window] for window in _windows(box.shape)])
    where = np.nonzero((codes != 0) & (codes != 255))
    areas = _element_areas(tuple(spacing_zyx_mm.tolist()))[codes[where]]
    return (np.column_stack(where) + (first + 0.5)) * spacing_zyx_mm, areas


def _windows(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The neighbours of each place between voxels: corners (z, y, x) = 000, 001, … 111."""
    return list(itertools.product(*((slice(0, size - 1), slice(1, size)) for size in shape)))


def _codes(corners: list[np.ndarray]) -> np.ndarray:
    """Which corners are inside, one bit for each."""
    codes = np.zeros(corners[0].shape, np.uint8)
    for bit, inside in enumerate(corners):
        codes |= inside.astype(np.uint8) << bit
    return codes


@cache
def _element_areas(spacing_zyx_mm: tuple[float, float, float]) -> Float[np.ndarray, " 256"]:
    """Area in mm² for each of the 256 ways in which eight voxels are in or out."""
    z, y, x = spacing_zyx_mm
    faces_mm2 = np.array([y * x, z * x, z * y]) / 8
    areas = np.zeros(256)
    turns = itertools.product(itertools.permutations(range(3)), itertools.product((0, 1), repeat=3))
    for (order, mirrored), (corners, normals) in itertools.product(turns, _CORNER_CASES):
        inside = np.zeros((2, 2, 2), bool)
        for corner in corners:
            inside[tuple(int(corner[order[a]]) ^ mirrored[a] for a in range(3))] = True
        turned = np.array(normals)[:, order]
        code = int(inside.ravel() @ (1 << np.arange(8)))
        areas[[code, 255 - code]] = np.linalg.norm(turned * faces_mm2, axis=1).sum()
    areas.setflags(write=False)
    return areas


def _added_path(proposal: Mask, reference: Mask) -> tuple[float, float]:
    """Length of the reference's contours beyond the tolerance, and their whole length (mm)."""
    if reference.is_empty:
        return 0.0, 0.0
    points, lengths = _contour_elements(reference)
    if proposal.is_empty:
        return float(lengths.sum()), float(lengths.sum())
    # Slices are set further apart than any contour is long, so that only their own counts.
    apart = np.array([1e6, 1.0, 1.0])
    away, _ = cKDTree(_contour_elements(proposal)[0] * apart).query(points * apart)
    return float(lengths[away > PATH_TOLERANCE_MM + ROUNDING_MM].sum()), float(lengths.sum())


def _contour_elements(mask: Mask) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Places (slice, y mm, x mm) between four pixels where the outline passes, and its length."""
    box, first = _boxed(mask.values)
    _, y, x = mask.grid.spacing_zyx_mm
    codes = _codes([box[(slice(1, -1), *window)] for window in _windows(box.shape[1:])])
    corner = float(np.hypot(x, y)) / 2
    # Corners (y, x) 00, 01, 10, 11 are bits 0 to 3; one corner cut off, two side by side, …
    half = [0.0, corner, corner, x, corner, y, 2 * corner, corner]
    length = np.array([*half, *half[::-1]])
    where = np.nonzero((codes != 0) & (codes != 15))
    places = np.column_stack(where) + first + np.array([1.0, 0.5, 0.5])
    return places * np.array([1.0, y, x]), length[codes[where]]
