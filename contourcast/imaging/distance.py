"""A ROI as a signed distance, and carrying it to another scan.

A contour stack is drawn every few millimetres, and a region that is carried must keep its volume,
its holes and its place to a fraction of a pixel. So the distance is made from the polygons
themselves, on a grid of its own, finer than the slices:

1. on each contoured plane the distance to the polygon, in the plane (exact);
2. between neighbouring planes a linear blend of the two (shape-based interpolation: Raya and
   Udupa 1990), and beyond the first and the last plane a dome, half a slice high on average;
3. the blend divided by its slope near its zero, and further away the distance to those voxels:
   a distance in millimetres in three dimensions;
4. a small constant added, so that the volume inside is that of the polygons
   (area times slice thickness), which is what planning systems report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.special import expit

from contourcast.imaging import polygon
from contourcast.imaging.errors import GeometryError, InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import Plane, parted, planes_of
from contourcast.imaging.structures import Roi
from contourcast.imaging.transform import PointMap, RigidTransform
from contourcast.imaging.volume import Mask, Probability, require_same_frame

# REGISTRATION §7: a probability channel is sigmoid(distance / 1 mm).
SOFTNESS_MM: Final = 1.0
# sigmoid(-10) is 5e-5: what lies further out is nothing.
MARGIN_MM: Final = 10.0
# Pixels of the distance's own grid: small regions need fine ones, large ones can do with 1 mm
# (REGISTRATION §7), and a whole lung must not take gigabytes.
COARSEST_MM: Final = 1.0
FINEST_MM: Final = 0.25
PIXELS_ACROSS: Final = 24
MOST_VOXELS: Final = 4_000_000
# Step of the lattice on which the part of the target grid that matters is looked for.
LATTICE_MM: Final = 8.0


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceMap:
    """How deep inside a region each point is.

    Attributes:
        values_mm: ``[z, y, x]``, float32, positive inside, zero on the surface; further out than
            the margin it was made with it only says "far".
        grid: The region's bounding box and the margin, in the axes of the scan it was drawn on.
    """

    values_mm: Float[np.ndarray, "z y x"]
    grid: Grid
    frame_of_reference: str
    name: str = ""


def distance_map(roi: Roi, *, grid: Grid, margin_mm: float = MARGIN_MM) -> DistanceMap:
    """The signed distance of a ROI, on a fine grid about it.

    Args:
        roi: The region.
        grid: Of the scan that the ROI was drawn on: its axes and its slice thickness.
        margin_mm: How far beyond the region the distance is known.

    Raises:
        InputError: The ROI encloses nothing.
        GeometryError: The ROI is not drawn on planes parallel to the grid's slices.
    """
    planes = planes_of(roi, grid)
    if not planes:
        raise InputError(
            f"ROI #{roi.number} encloses no volume",
            tag="(3006,0050) Contour Data",
            remedy="choose a ROI with closed contours",
        )
    runs = _runs(planes, grid)
    fine = _fine_grid(runs, grid, margin_mm)
    blended = np.maximum.reduce([_blend(run, fine, grid) for run in runs])
    distance = _redistanced(blended, fine.spacing_zyx_mm)
    distance += _offset_for_volume(distance, fine, sum(run.volume_mm3 for run in runs))
    return DistanceMap(
        values_mm=distance.astype(np.float32),
        grid=fine,
        frame_of_reference=roi.frame_of_reference,
        name=roi.name,
    )


def own_grid(roi: Roi) -> Grid:
    """A grid with a slice on each plane of a ROI, for one whose scan is not at hand.

    Raises:
        InputError: The ROI is not drawn on at least two axial planes.
    """
    loops = [loop.points_xyz_mm for loop in roi.loops]
    heights = np.unique(np.round([z for loop in loops for z in loop[:, 2]], 2))
    if len(heights) < 2 or len(heights) > len(loops):
        raise InputError(
            f"ROI '{roi.name}' is not a stack of axial contours",
            remedy="give one that was drawn on axial slices",
        )
    low = np.concatenate(loops).min(axis=0)[:2]
    size = np.ceil(np.concatenate(loops).max(axis=0)[:2] - low).astype(int) + 1
    return Grid(
        shape_zyx=(len(heights), int(size[1]), int(size[0])),
        spacing_xy_mm=(1.0, 1.0),
        origin_xyz_mm=np.array([*low, heights[0]]),
        offsets_z_mm=heights - heights[0],
    )


def carry(distance: DistanceMap, planning_from_cbct: PointMap, *, onto: Grid) -> Probability:
    """The region on another scan's grid, as sigmoid(distance / 1 mm); its mask is distance >= 0.

    Only the part of the grid in which the region may lie is computed; the rest is zero.

    Args:
        distance: The region, as it was drawn.
        planning_from_cbct: Takes points of the grid's frame to the frame of the distance.
        onto: The grid to carry it to.

    Raises:
        FrameMismatchError: The map does not lead to the frame that the region was drawn in.
    """
    require_same_frame(distance.frame_of_reference, planning_from_cbct.target_frame)
    values = np.zeros(onto.shape_zyx, np.float32)
    box = _box_that_matters(distance, planning_from_cbct, onto)
    if box is not None:
        start, stop = box
        part = onto.crop(start, stop)
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        depth = _depth_at(distance, planning_from_cbct.apply(part.centers()))
        values[where] = expit(depth / SOFTNESS_MM).reshape(part.shape_zyx)
    values.setflags(write=False)  # so that it is not copied
    return Probability(
        values=values,
        grid=onto,
        frame_of_reference=planning_from_cbct.source_frame,
        name=distance.name,
    )


def filled(roi: Roi, *, grid: Grid, onto: Grid) -> Mask:
    """A ROI where it was drawn, made as it is carried: whole between contours far apart.

    Args:
        roi: The region.
        grid: Of the scan that it was drawn on.
        onto: The grid that it is wanted on, in the same frame of reference.

    Raises:
        InputError: The ROI encloses nothing.
        GeometryError: The ROI is not drawn on planes parallel to the grid's slices.
    """
    frame = roi.frame_of_reference
    here = RigidTransform.identity(source_frame=frame, target_frame=frame)
    return carry(distance_map(roi, grid=grid), here, onto=onto).mask()


def drawn_volume_cc(roi: Roi, *, grid: Grid) -> float:
    """The volume of a ROI by its polygons: area times thickness, gaps between lesions left out.

    Args:
        roi: The region.
        grid: Of the scan that it was drawn on.

    Raises:
        GeometryError: The ROI is not drawn on planes parallel to the grid's slices.
    """
    planes = planes_of(roi, grid)
    return sum(run.volume_mm3 for run in _runs(planes, grid)) / 1000.0 if planes else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """Planes without a gap between them, in mm along the axes of the scan's grid.

    Attributes:
        heights_mm: Of the planes along the normal, increasing.
        beyond_mm: Heights of the empty planes that would come before the first and after the
            last; the region ends half way to them on average.
    """

    heights_mm: np.ndarray
    loops: tuple[tuple[polygon.Loop, ...], ...]
    beyond_mm: tuple[float, float]

    @property
    def volume_mm3(self) -> float:
        """Area times thickness, over the planes."""
        before, after = self.beyond_mm
        heights = np.array([before, *self.heights_mm, after])
        thickness = np.diff((heights[1:] + heights[:-1]) / 2)
        return float(sum(polygon.area(p) * t for p, t in zip(self.loops, thickness, strict=True)))


def _runs(planes: Sequence[Plane], grid: Grid) -> list[_Run]:
    """The stack, split where planes are missing."""
    ks = np.array([plane.k for plane in planes])
    heights = (grid.world(np.column_stack((ks * 0, ks * 0, ks))) - grid.origin_xyz_mm) @ grid.normal
    first = [0, *(np.flatnonzero(parted(planes, heights)) + 1).tolist(), len(planes)]
    runs = []
    for a, b in pairwise(first):
        own = heights[a:b]
        below, above = (
            (own[1] - own[0], own[-1] - own[-2]) if b - a > 1 else (_thickness(grid, ks[a]),) * 2
        )
        runs.append(
            _Run(
                heights_mm=own,
                loops=tuple(
                    tuple(loop * grid.spacing_xy_mm for loop in p.loops) for p in planes[a:b]
                ),
                beyond_mm=(float(own[0] - below), float(own[-1] + above)),
            )
        )
    return runs


def _thickness(grid: Grid, k: float) -> float:
    if grid.shape_zyx[0] == 1:
        raise GeometryError(
            "a contour on the only slice of a series has no thickness",
            remedy="send the whole series",
        )
    return float(grid.thickness_z_mm[int(np.clip(np.rint(k), 0, grid.shape_zyx[0] - 1))])


def _fine_grid(runs: Sequence[_Run], grid: Grid, margin_mm: float) -> Grid:
    """A grid about the region in the scan's axes, with the first plane on one of its slices."""
    corners = np.concatenate([loop for run in runs for plane in run.loops for loop in plane])
    bottom, top = runs[0].beyond_mm[0], runs[-1].beyond_mm[1]
    low = np.array([*corners.min(axis=0), bottom]) - margin_mm
    high = np.array([*corners.max(axis=0), top]) + margin_mm
    pixel = float(
        np.clip((high - low - 2 * margin_mm).min() / PIXELS_ACROSS, FINEST_MM, COARSEST_MM)
    )
    pixel = max(pixel, float((np.prod(high - low) / MOST_VOXELS) ** (1 / 3)))
    steps = np.concatenate([np.diff(run.heights_mm) for run in runs])
    usual = float(np.median(steps)) if len(steps) else (top - bottom) / 2
    step = usual / np.ceil(usual / pixel)
    first = runs[0].heights_mm[0]
    low[2] = first - np.ceil((first - low[2]) / step) * step
    columns, rows, slices = (
        int(np.ceil(extent / size)) + 1
        for extent, size in zip(high - low, (pixel, pixel, step), strict=True)
    )
    return Grid.even(
        shape_zyx=(slices, rows, columns),
        spacing_xyz_mm=(pixel, pixel, step),
        origin_xyz_mm=grid.origin_xyz_mm + grid.direction @ low,
        direction=grid.direction,
    )


def _blend(run: _Run, fine: Grid, grid: Grid) -> Float[np.ndarray, "z y x"]:
    """Step 1 and 2: zero on the surface, positive inside, of no particular slope."""
    low = grid.direction.T @ (fine.origin_xyz_mm - grid.origin_xyz_mm)
    gaps = np.diff(run.heights_mm)
    # How deep a plane may reach into the blend: a branch that ends between two planes then ends
    # about half way, however wide it is.
    reach = np.maximum(gaps, 2 * fine.spacing_xy_mm[0])
    widest = float(np.ptp(np.concatenate(run.loops[0] + run.loops[-1]), axis=0).max())
    limits = [widest, *np.maximum(reach[1:], reach[:-1]), widest][: len(run.loops)]
    planes = [
        _in_plane(loops, low[:2], fine, limit)
        for loops, limit in zip(run.loops, limits, strict=True)
    ]
    first, last = (np.full_like(planes[0], -_falloff(planes[end])) for end in (0, -1))
    planes = [first, *planes, last]
    heights = np.array([run.beyond_mm[0], *run.heights_mm, run.beyond_mm[1]])
    reach = np.array([np.inf, *reach, np.inf])
    result = np.empty(fine.shape_zyx, np.float32)
    for n, height in enumerate(low[2] + fine.offsets_z_mm):
        m = int(np.clip(np.searchsorted(heights, height, side="right") - 1, 0, len(reach) - 1))
        share = float(np.clip((height - heights[m]) / (heights[m + 1] - heights[m]), 0, 1))
        lower, upper = (np.clip(plane, -reach[m], reach[m]) for plane in planes[m : m + 2])
        result[n] = (1 - share) * lower + share * upper
    return result


def _falloff(plane: Float[np.ndarray, "y x"]) -> float:
    """How far outside everything is on the empty plane next to this one.

    Chosen so that the dome between the two is half a step high on average: a point of depth d
    lies under it up to d / (d + falloff) of the step.
    """
    depth = plane[plane > 0]
    if not depth.size:  # a sliver between the pixels has no dome to speak of
        return 1.0
    low, high = 0.0, float(depth.max(initial=1.0))
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if (depth / (depth + middle)).mean() > 0.5 else (low, middle)
    return high


def _in_plane(
    loops: tuple[polygon.Loop, ...], low_xy: np.ndarray, fine: Grid, limit_mm: float
) -> Float[np.ndarray, "y x"]:
    """Distance to the polygon in its plane, positive inside, at most the limit."""
    pixel, shape = fine.spacing_xy_mm[0], (fine.shape_zyx[1], fine.shape_zyx[2])
    in_pixels = [(loop - low_xy) / pixel for loop in loops]
    flat: np.ndarray = polygon.signed_distance(in_pixels, shape, limit=limit_mm / pixel) * pixel
    return flat


def _redistanced(
    blended: Float[np.ndarray, "z y x"], spacing_zyx_mm: tuple[float, float, float]
) -> Float[np.ndarray, "z y x"]:
    """Step 3: the same zero, and a distance in mm round it.

    Beside the surface the blend is divided by its slope. Any other voxel is measured against the
    plane that the surface forms at the nearest of those, and in that plane from where it ends.
    """
    spacing = np.array(spacing_zyx_mm, np.float32)
    normal = np.stack(np.gradient(blended, *spacing_zyx_mm)).astype(np.float32)
    slope = np.maximum(np.sqrt((normal**2).sum(axis=0)), np.float32(1e-6))
    normal /= slope
    beside, farthest = _beside_the_surface(blended, spacing_zyx_mm)
    sign = np.where(blended > 0, np.float32(1), np.float32(-1))
    result: np.ndarray = sign * np.minimum(np.abs(blended) / slope, farthest)
    nearest = distance_transform_edt(
        ~beside, sampling=spacing_zyx_mm, return_distances=False, return_indices=True
    )
    far = ~beside
    to = tuple(nearest[:, far])
    apart = (np.argwhere(far).T - np.stack(to)) * spacing[:, None]
    along = (apart * normal[(slice(None), *to)]).sum(axis=0)
    beyond = np.sqrt(np.maximum((apart**2).sum(axis=0) - along**2, 0)) - np.linalg.norm(spacing)
    # All six neighbours are on its side, so it cannot be closer than this.
    away = np.maximum(sign[far] * (result[to] + along), spacing.min() / 2)
    result[far] = sign[far] * np.hypot(away, np.maximum(beyond, 0))
    return result


def _beside_the_surface(
    blended: Float[np.ndarray, "z y x"], spacing_zyx_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels with a face neighbour on the other side, and how far the surface is at most (mm)."""
    inside = blended > 0
    beside = np.zeros(blended.shape, bool)
    farthest = np.full(blended.shape, np.inf, np.float32)
    for axis, spacing in enumerate(spacing_zyx_mm):
        windows = [[slice(None)] * 3, [slice(None)] * 3]
        windows[0][axis], windows[1][axis] = slice(None, -1), slice(1, None)
        one, two = (tuple(window) for window in windows)
        change = np.nonzero(inside[one] != inside[two])
        first, second = blended[one][change], blended[two][change]
        share = first / (first - second)
        for side, part in ((one, share), (two, 1 - share)):
            beside[side][change] = True
            farthest[side][change] = np.minimum(farthest[side][change], part * spacing)
    return beside, farthest


def _offset_for_volume(
    distance: Float[np.ndarray, "z y x"], fine: Grid, wanted_mm3: float
) -> float:
    """Step 4: the constant that gives the wanted volume, at most half a pixel.

    Counted as the distance will be used, interpolated between voxels: at eight points in each.
    """
    pixel = fine.spacing_xy_mm[0]
    near = np.abs(distance) < 2 * pixel
    deep = int((distance[~near] > 0).sum())
    eighths = np.array(np.meshgrid(*[[-0.25, 0.25]] * 3)).reshape(3, 8, 1)
    points = (np.argwhere(near).T[:, None, :] + eighths).reshape(3, -1)
    depths = map_coordinates(distance, points, order=1, mode="nearest")

    def volume_mm3(offset: float) -> float:
        shares = np.clip(0.5 + (depths + offset) / (pixel / 2), 0, 1)
        return (deep + float(shares.sum()) / 8) * float(np.prod(fine.spacing_zyx_mm))

    low, high = -pixel / 2, pixel / 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if volume_mm3(middle) > wanted_mm3 else (middle, high)
    return (low + high) / 2


def _box_that_matters(
    distance: DistanceMap, planning_from_cbct: PointMap, onto: Grid
) -> tuple[list[int], list[int]] | None:
    """The array box ``[start, stop)`` outside of which the region cannot be."""
    steps = [
        max(1, int(LATTICE_MM // spacing)) if spacing else 1 for spacing in onto.spacing_zyx_mm
    ]
    ticks = [
        np.unique([*range(0, size, step), size - 1])
        for size, step in zip(onto.shape_zyx, steps, strict=True)
    ]
    k, j, i = np.meshgrid(*ticks, indexing="ij")
    lattice = onto.world(np.column_stack((i.ravel(), j.ravel(), k.ravel())))
    index = distance.grid.index(planning_from_cbct.apply(lattice))
    # A point of the region is at most half a lattice cell from a lattice point; the map may
    # stretch it twofold.
    reach = LATTICE_MM / np.array(distance.grid.spacing_xyz_mm)
    top = np.array(distance.grid.shape_zyx[::-1]) - 1 + reach
    hit = ((index >= -reach) & (index <= top)).all(axis=1)
    if not hit.any():
        return None
    zyx = np.column_stack((k.ravel(), j.ravel(), i.ravel()))[hit]
    start = np.maximum(zyx.min(axis=0) - steps, 0)
    stop = np.minimum(zyx.max(axis=0) + steps + 1, onto.shape_zyx)
    return start.tolist(), stop.tolist()


def _depth_at(distance: DistanceMap, points_xyz_mm: np.ndarray) -> np.ndarray:
    zyx = distance.grid.index(points_xyz_mm)[:, ::-1].T
    depth: np.ndarray = map_coordinates(
        distance.values_mm, zyx, order=1, mode="constant", cval=-np.inf
    )
    return depth
