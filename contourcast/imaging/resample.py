"""A scan on another grid, through any map of points: linear, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.ndimage import map_coordinates

from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import PointMap, RigidTransform
from contourcast.imaging.volume import Volume, require_same_frame

# Points carried at a time: bounds the memory beside the result to about 100 MB, whatever the grid.
POINTS_AT_A_TIME: Final = 500_000
# Slices this close to even steps are taken as even: below the digits of written positions.
EVEN_MM: Final = 0.001
# What lies outside of a scan is taken to be air.
AIR_HU: Final = -1000.0

Index = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved:
    """A scan as it is seen from another frame of reference; nothing is resampled yet.

    Raises:
        FrameMismatchError: The map does not lead to the scan's frame of reference.
    """

    volume: Volume
    moving_from_fixed: PointMap

    def __post_init__(self) -> None:
        require_same_frame(self.volume.frame_of_reference, self.moving_from_fixed.target_frame)


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
    sampled = _affinely if _is_affine(volume.grid, moving_from_fixed) else _anywhere
    values = np.empty(onto.shape_zyx, np.float32)
    observed = np.empty(onto.shape_zyx, bool)
    for start, stop in _slabs(onto):
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        values[where], observed[where] = sampled(
            volume, moving_from_fixed, onto.crop(start, stop), outside
        )
    values.setflags(write=False)  # so that they are not copied
    observed.setflags(write=False)
    return Volume(
        values=values,
        grid=onto,
        frame_of_reference=moving_from_fixed.source_frame,
        observed=observed,
    )


def _slabs(grid: Grid) -> Iterator[tuple[Index, Index]]:
    """Boxes ``[start, stop)`` that make up the grid: slices, or rows of a slice that is large."""
    slices, rows, columns = grid.shape_zyx
    rows_at_a_time = max(1, min(rows, POINTS_AT_A_TIME // columns))
    slices_at_a_time = max(1, POINTS_AT_A_TIME // (rows * columns))
    for k in range(0, slices, slices_at_a_time):
        for j in range(0, rows, rows_at_a_time):
            yield (
                (k, j, 0),
                (min(k + slices_at_a_time, slices), min(j + rows_at_a_time, rows), columns),
            )


def _is_affine(moving: Grid, moving_from_fixed: PointMap) -> bool:
    """Whether indices of the moving scan are linear in world points of the fixed one."""
    even = np.linspace(0, moving.offsets_z_mm[-1], moving.shape_zyx[0])
    return isinstance(moving_from_fixed, RigidTransform) and bool(
        np.abs(moving.offsets_z_mm - even).max() < EVEN_MM
    )


def _affinely(
    volume: Volume, moving_from_fixed: PointMap, part: Grid, outside: float
) -> tuple[np.ndarray, np.ndarray]:
    """As `_anywhere`, for indices that are sums of a term for each axis of the fixed grid."""
    slices, rows, columns = part.shape_zyx
    axes = np.zeros((slices + rows + columns, 3))
    axes[:slices, 2] = np.arange(slices)
    axes[slices : slices + rows, 1] = np.arange(rows)
    axes[slices + rows :, 0] = np.arange(columns)
    zyx = volume.grid.index(moving_from_fixed.apply(part.world(axes)))[:, ::-1]
    k, j, i = np.split(zyx - zyx[0], [slices, slices + rows])
    places = np.empty((3, slices, rows, columns))
    for axis, place in enumerate(places):
        np.add(
            (zyx[0, axis] + k[:, axis])[:, None, None] + j[:, axis][:, None],
            i[:, axis],
            out=place,
        )
    return _sampled(volume, places, outside)


def _anywhere(
    volume: Volume, moving_from_fixed: PointMap, part: Grid, outside: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values, and whether they are observed, on a part of the fixed grid."""
    index = volume.grid.index(moving_from_fixed.apply(part.centers()))
    return _sampled(volume, index[:, ::-1].T.reshape(3, *part.shape_zyx), outside)


def _sampled(volume: Volume, zyx: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """Values and whether they are observed, at indices of the volume, shape (3, z, y, x)."""
    inside = np.ones(zyx.shape[1:], bool)
    for index, size in zip(zyx, volume.grid.shape_zyx, strict=True):
        inside &= (index >= -0.5) & (index <= size - 0.5)
    values: np.ndarray = map_coordinates(
        volume.values, zyx, order=1, mode="nearest", output=np.float32
    )
    values[~inside] = outside
    if volume.observed is not None:
        last = np.array(volume.grid.shape_zyx)[:, None, None, None] - 1
        k, j, i = np.clip(np.rint(zyx), 0, last).astype(int)
        inside &= volume.observed[k, j, i]
    return values, inside
