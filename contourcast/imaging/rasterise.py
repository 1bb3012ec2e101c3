"""From contours in millimetres to voxels: whose centre is inside, or how much of each is.

Which slice a contour belongs to is one rule for everything: a slice takes the loops of the
nearest contoured plane within half a gap of it (exactly half way belongs to the lower slice), all
of them combined by even-odd; one that stands there twice counts once. Nothing is filled in
between, nothing is moved to an image border; what a physicist has to know of it is said by
`raster_notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from contourcast.imaging import polygon
from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Roi
from contourcast.imaging.volume import Mask, Probability

# In slices. CLINICAL_SERVICE §2.4: up to here a contour counts as drawn on the slice, and loops
# this close to each other as drawn on one plane.
ON_SLICE: Final = 0.1
# In slices: loops that spread further along the normal were not drawn on this grid's planes.
FLAT: Final = 0.5
# In steps: a stack of contours ends where the next plane is further away than so many usual ones.
GAP_IN_STEPS: Final = 1.5
# A gap of so many planes was hardly meant; a wider one parts a ROI of two lesions.
FORGOTTEN_PLANES: Final = 2
# In mm. Loops that run no further apart are one, written with two decimals or more.
SAME_LOOP_MM: Final = 0.02
# In mm. Loops that reach no deeper into each other touch, written with one decimal or more.
TOUCHING_MM: Final = 0.1
# In mm, on average. Nobody draws a wall as thin as this: it is what two copies leave of each other.
THINNEST_MM: Final = 0.5
# Squares along a loop in which a rim that thin can be measured.
THIN_SQUARES: Final = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """The loops of one contoured plane, in index coordinates of a grid.

    Attributes:
        k: Where it lies between the slices, fractional.
        loops: Points (column, row), each of shape (n, 2).
    """

    k: float
    loops: tuple[polygon.Loop, ...]


def planes_of(roi: Roi, grid: Grid) -> tuple[Plane, ...]:
    """The contoured planes of a ROI from the first slice to the last, also those off the grid.

    Raises:
        GeometryError: Loops that do not lie parallel to the grid's slices, or are not finite.
    """
    if not roi.loops:
        return ()
    lengths = [len(loop.points_xyz_mm) for loop in roi.loops]
    ijk = grid.index(np.concatenate([loop.points_xyz_mm for loop in roi.loops]))
    if not np.isfinite(ijk).all():
        raise GeometryError(
            f"ROI #{roi.number} has points that are not numbers", tag="(3006,0050) Contour Data"
        )
    loops = np.split(ijk, np.cumsum(lengths)[:-1])
    if any(np.ptp(loop[:, 2]) > FLAT for loop in loops):
        raise GeometryError(
            f"ROI #{roi.number} is not drawn on planes parallel to the slices of this grid",
            tag="(3006,0050) Contour Data",
            remedy="rasterise it on the series that it was drawn on, then carry it",
        )
    loops.sort(key=lambda loop: float(loop[:, 2].mean()))
    ks = np.array([loop[:, 2].mean() for loop in loops])
    first = [0, *(np.flatnonzero(np.diff(ks) > ON_SLICE) + 1).tolist(), len(ks)]
    flat = [loop[:, :2] for loop in loops]
    return tuple(
        Plane(k=float(np.mean(ks[a:b])), loops=_once(flat[a:b], grid.spacing_xy_mm))
        for a, b in pairwise(first)
    )


def _once(
    loops: Sequence[polygon.Loop], spacing_xy_mm: tuple[float, float]
) -> tuple[polygon.Loop, ...]:
    """Without those that stand there already: even-odd would make nothing of the two."""
    in_mm = [loop * spacing_xy_mm for loop in loops]
    boxes = np.array([(loop.min(axis=0), loop.max(axis=0)) for loop in in_mm])
    kept = []
    for n, loop in enumerate(loops):
        alike = (np.abs(boxes[:n] - boxes[n]) <= SAME_LOOP_MM).all(axis=(1, 2))
        if not any(
            polygon.same(in_mm[n], in_mm[m], apart=SAME_LOOP_MM) for m in np.flatnonzero(alike)
        ):
            kept.append(loop)
    return tuple(kept)


def parted(
    planes: Sequence[Plane], heights: Float[np.ndarray, " planes"]
) -> Bool[np.ndarray, " steps"]:
    """Between which neighbouring planes the stack ends, and nothing is filled in.

    Where the step is wider than the usual one, and two lesions are beside each other; not where
    every second slice was drawn for a while, nor before a plane that lies alone over the others
    and is no lesion of its own.

    Args:
        planes: The stack.
        heights: Of the planes, in any unit.
    """
    steps, usual, wide = _wide_steps(heights)
    alone = np.append(True, wide) & np.append(wide, True)
    excused = steps <= GAP_IN_STEPS * _beside(steps)
    excused |= (alone[:-1] | alone[1:]) & _hardly_meant(steps, usual)
    for n in np.flatnonzero(wide & excused).tolist():
        wide[n] = not _share(planes[n].loops, planes[n + 1].loops)
    return wide


def _wide_steps(
    heights: Float[np.ndarray, " planes"],
) -> tuple[Float[np.ndarray, " steps"], float, Bool[np.ndarray, " steps"]]:
    """The steps of a stack, the usual one, and which are wider than that."""
    steps = np.diff(heights)
    usual = float(np.median(steps)) if len(steps) else np.inf
    return steps, usual, steps > GAP_IN_STEPS * usual


def _beside(steps: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """The wider of the two steps beside each."""
    padded = np.pad(steps, 1)
    wider: np.ndarray = np.maximum(padded[:-2], padded[2:])
    return wider


def _hardly_meant(steps: Float[np.ndarray, " steps"], usual: float) -> Bool[np.ndarray, " steps"]:
    """Steps too narrow to lie between two lesions."""
    narrow: np.ndarray = steps < (FORGOTTEN_PLANES + 1.5) * usual
    return narrow


def _share(one: polygon.Loops, other: polygon.Loops) -> bool:
    """Whether two planes enclose some of the same place."""
    areas = polygon.area(one), polygon.area(other)
    shared = (sum(areas) - polygon.area([*one, *other])) / 2  # even-odd leaves out what both have
    return shared > 0.01 * min(areas)


def plane_of_each_slice(planes: Sequence[Plane], slices: int) -> dict[int, Plane]:
    """The plane that each slice takes; slices without one are left out."""
    taken: dict[int, Plane] = {}
    for plane in planes:
        n = int(np.ceil(round(plane.k, polygon.SAME_PIXEL_PLACE) - 0.5))
        if 0 <= n < slices and (n not in taken or abs(plane.k - n) < abs(taken[n].k - n)):
            taken[n] = plane
    return taken


def rasterise(roi: Roi, grid: Grid) -> Mask:
    """Voxels whose centre is inside the ROI by even-odd counting, half-open on edges.

    Raises:
        GeometryError: The ROI is not drawn on planes parallel to the grid's slices.
    """
    values = np.zeros(grid.shape_zyx, bool)
    for n, plane in plane_of_each_slice(planes_of(roi, grid), grid.shape_zyx[0]).items():
        values[n] = polygon.inside(plane.loops, grid.shape_zyx[1:])
    values.setflags(write=False)  # so that it is not copied
    return Mask(values=values, grid=grid, frame_of_reference=roi.frame_of_reference, name=roi.name)


def coverage(roi: Roi, grid: Grid) -> Probability:
    """The share of each pixel's area that is inside the ROI, on the slices that `rasterise` takes.

    Raises:
        GeometryError: The ROI is not drawn on planes parallel to the grid's slices.
    """
    values = np.zeros(grid.shape_zyx, np.float32)
    for n, plane in plane_of_each_slice(planes_of(roi, grid), grid.shape_zyx[0]).items():
        values[n] = polygon.coverage(plane.loops, grid.shape_zyx[1:])
    values.setflags(write=False)  # so that it is not copied
    return Probability(
        values=values, grid=grid, frame_of_reference=roi.frame_of_reference, name=roi.name
    )


@dataclass(frozen=True)
class Note:
    """What rasterising leaves out or cannot show.

    Attributes:
        text: A sentence; slices are counted from 0, as in the arrays.
        lost: Whether some of what was drawn is lost, or seems to have been forgotten.
    """

    text: str
    lost: bool = False


def raster_notes(roi: Roi, grid: Grid) -> tuple[Note, ...]:
    """What rasterising this ROI on this grid leaves out or cannot show."""
    planes = planes_of(roi, grid)
    taken = plane_of_each_slice(planes, grid.shape_zyx[0])
    notes = [*_notes_on_contours(roi, planes), *_notes_on_planes(planes, taken, grid.shape_zyx[0])]
    notes += [*_notes_on_loops(taken, grid), *_notes_on_what_is_shared(planes, grid)]
    return tuple(notes)


def skips_slices(roi: Roi, grid: Grid) -> bool:
    """Whether contours lie further apart than slices, so that `rasterise` makes a comb of the ROI.

    What parts two lesions does not count. `distance.filled` gives the whole.
    """
    planes = planes_of(roi, grid)
    ks = np.array([plane.k for plane in planes])
    missing = _missing(plane_of_each_slice(planes, grid.shape_zyx[0]))
    return bool(len(missing)) and not parted(planes, ks)[np.searchsorted(ks, missing) - 1].all()


def _notes_on_contours(roi: Roi, planes: Sequence[Plane]) -> list[Note]:
    closed = [c for c in roi.contours if c.geometric_type.startswith("CLOSED")]
    open_or_point = len(roi.contours) - len(closed)
    degenerate = sum(not c.encloses for c in closed)
    notes = []
    if not roi.contours:
        notes.append(Note("the ROI has no contour"))
    if open_or_point:
        sentence = f"points and open lines enclose no volume: {open_or_point} contours left out"
        notes.append(Note(sentence))
    if degenerate:
        sentence = f"fewer than three points enclose no area: {degenerate} contours left out"
        notes.append(Note(sentence))
    twice = len(roi.loops) - sum(len(plane.loops) for plane in planes)
    if twice:
        notes.append(Note(f"{twice} of the contours stand there twice, and count once"))
    return notes


def _notes_on_planes(planes: Sequence[Plane], taken: dict[int, Plane], slices: int) -> list[Note]:
    notes = []
    off = {n: abs(p.k - n) for n, p in taken.items() if abs(p.k - n) > ON_SLICE}
    if off:
        sentence = (
            f"contours lie up to {max(off.values()):.2f} slices off the slices that take them: "
            f"{_listed(off)}"
        )
        notes.append(Note(sentence))
    beyond = sum(not -0.5 < p.k <= slices - 0.5 for p in planes)
    if beyond:
        sentence = f"beyond the first or last slice of the image: {beyond} contoured planes"
        notes.append(Note(sentence, lost=True))
    crowded = len(planes) - beyond - len(taken)
    if crowded:
        notes.append(Note(f"planes closer than the slices: {crowded} left out for a nearer one"))
    missing = _missing(taken)
    if missing:
        sentence = f"no contour within the stack, left empty: {_listed(missing)}"
        notes.append(Note(sentence, lost=_forgotten(planes)))
    return notes


def _missing(taken: dict[int, Plane]) -> list[int]:
    """The slices without a plane from the first that has one to the last."""
    return sorted(set(range(min(taken), max(taken) + 1)) - set(taken)) if taken else []


def _forgotten(planes: Sequence[Plane]) -> bool:
    """Whether a few planes are missing in a stack, whatever the usual step of it is."""
    steps, usual, wide = _wide_steps(np.array([plane.k for plane in planes]))
    odd = wide & _hardly_meant(steps, usual) & (steps > GAP_IN_STEPS * _beside(steps))
    return bool(odd.any())


def _notes_on_loops(taken: dict[int, Plane], grid: Grid) -> list[Note]:
    _, rows, columns = grid.shape_zyx
    outside = partly = crossing = 0
    tiny = []
    for n, plane in taken.items():
        corners = [(loop.min(axis=0), loop.max(axis=0)) for loop in plane.loops]
        gone = [
            (high < -0.5).any() or (low > (columns - 0.5, rows - 0.5)).any()
            for low, high in corners
        ]
        cut = [
            (low < -0.5).any() or (high > (columns - 0.5, rows - 0.5)).any()
            for low, high in corners
        ]
        outside += sum(gone)
        partly += sum(c and not g for c, g in zip(cut, gone, strict=True))
        crossing += sum(polygon.crosses_itself(loop) for loop in plane.loops)
        if not all(gone) and (
            polygon.area(plane.loops) < 1 or not polygon.inside(plane.loops, (rows, columns)).any()
        ):
            tiny.append(n)
    notes = []
    if outside:
        notes.append(Note(f"wholly outside the image: {outside} contours left out", lost=True))
    if partly:
        sentence = f"partly outside the image: {partly} contours cut at its border"
        notes.append(Note(sentence, lost=True))
    if crossing:
        sentence = f"{crossing} contours cross themselves (even-odd decides what is inside)"
        notes.append(Note(sentence))
    if tiny:
        sentence = f"smaller than a voxel, so that its centre alone decides: {_listed(tiny)}"
        notes.append(Note(sentence))
    return notes


def _notes_on_what_is_shared(planes: Sequence[Plane], grid: Grid) -> list[Note]:
    """Of loops that take from each other: by even-odd what two of them enclose is outside."""
    overlapping, undone = [], []
    for plane in planes:
        loops = [loop * grid.spacing_xy_mm for loop in plane.loops]
        if _overlap(loops):
            overlapping.append(round(plane.k))
        elif _undo_each_other(loops):
            undone.append(round(plane.k))
    notes = []
    if overlapping:
        sentence = "contours of one slice overlap: what they share is left out"
        notes.append(Note(f"{sentence} ({_listed(overlapping)})", lost=True))
    if undone:
        sentence = "contours of one slice leave next to nothing of each other"
        notes.append(Note(f"{sentence} ({_listed(undone)})", lost=True))
    return notes


def _overlap(loops_mm: Sequence[polygon.Loop]) -> bool:
    """Whether two loops of a plane share some of what they enclose, and neither is a hole."""
    if len(loops_mm) == 1:
        return False
    low, high = (np.array([end(loop, axis=0) for loop in loops_mm]) for end in (np.min, np.max))
    meet = (low[:, None] <= high + TOUCHING_MM).all(axis=2)
    pairs = np.argwhere(np.triu(meet & meet.T, 1))
    return any(polygon.overlap(loops_mm[a], loops_mm[b], deeper_than=TOUCHING_MM) for a, b in pairs)


def _undo_each_other(loops_mm: Sequence[polygon.Loop]) -> bool:
    """Whether the plane has a large loop, and of all that it encloses but a thin rim is inside."""
    largest = max(abs(polygon.signed_area(loop)) for loop in loops_mm)
    start, stop = polygon.edges(loops_mm)
    rim_mm2 = THINNEST_MM / 2 * float(np.linalg.norm(stop - start, axis=1).sum())
    return (
        largest / 2 > max(rim_mm2, polygon.area(loops_mm))
        and polygon.area(loops_mm, squares=THIN_SQUARES) < rim_mm2
    )


def _listed(slices: Sequence[int] | dict[int, float]) -> str:
    """``slice 4`` or ``slices 4, 6-9``."""
    numbers = sorted(slices)
    breaks = [0, *(np.flatnonzero(np.diff(numbers) > 1) + 1).tolist(), len(numbers)]
    runs = [numbers[a:b] for a, b in pairwise(breaks)]
    words = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
    return f"{'slice' if len(numbers) == 1 else 'slices'} {words}"
