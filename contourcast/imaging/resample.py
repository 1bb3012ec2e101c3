"""A scan on another grid, through any map of points: linear, slab by slab."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.ndimage import map_coordinates

from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import PointMap
from contourcast.imaging.volume import Volume, require_same_frame

# Points carried at a time: bounds the memory beside the result to about 100 MB, whatever the grid.
POINTS_AT_A_TIME: Final = 500_000
# What lies outside of a scan is taken to be air.
AIR_HU: Final = -1000.0


def resample(
    volume: Volume, moving_from_fixed: PointMap, *, onto: Grid, outside: float = AIR_HU
) -> Volume:
    """The moving scan's values at the places of the fixed grid.

    A place counts as inside the scan up to half a voxel beyond its outermost centres, and takes
    their value there.

    Args:
        volume: The moving scan.
        moving_from_fixed: Takes points of the fixed frame to the moving scan's frame.
        onto: The fixed grid.
        outside: What places outside of the scan become (HU).

    Returns:
        A scan in the fixed frame, of no DICOM series. ``observed`` is true where the place is
        inside the moving scan and the nearest voxel there is observed.

    Raises:
        FrameMismatchError: The map does not lead to the scan's frame of reference.
    """
    require_same_frame(volume.frame_of_reference, moving_from_fixed.target_frame)
    values = np.empty(onto.shape_zyx, np.float32)
    observed = np.empty(onto.shape_zyx, bool)
    slices, rows, columns = onto.shape_zyx
    rows_at_a_time = max(1, min(rows, POINTS_AT_A_TIME // columns))
    slices_at_a_time = max(1, POINTS_AT_A_TIME // (rows * columns))
    for k in range(0, slices, slices_at_a_time):
        for j in range(0, rows, rows_at_a_time):
            start = (k, j, 0)
            stop = (min(k + slices_at_a_time, slices), min(j + rows_at_a_time, rows), columns)
            where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            points = moving_from_fixed.apply(onto.crop(start, stop).centers())
            sampled, seen = _sampled(volume, points, outside)
            values[where] = sampled.reshape(values[where].shape)
            observed[where] = seen.reshape(values[where].shape)
    return Volume(
        values=values,
        grid=onto,
        frame_of_reference=moving_from_fixed.source_frame,
        observed=observed,
    )


def _sampled(
    volume: Volume, points_xyz_mm: np.ndarray, outside: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values and whether they are observed, at points in the volume's own frame."""
    zyx = volume.grid.index(points_xyz_mm)[:, ::-1].T
    last = np.array(volume.grid.shape_zyx)[:, None] - 1
    within = (zyx >= -0.5) & (zyx <= last + 0.5)
    inside: np.ndarray = np.logical_and.reduce(within)
    held = np.clip(zyx, 0, last)
    values: np.ndarray = map_coordinates(volume.values, held, order=1, mode="nearest")
    values[~inside] = outside
    if volume.observed is None:
        return values, inside
    k, j, i = np.rint(held).astype(int)
    inside &= volume.observed[k, j, i]
    return values, inside
