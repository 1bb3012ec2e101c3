"""Where samples lie: the one place in which index and millimetre meet.

World coordinates are DICOM patient LPS in millimetres, float64, points as rows ``(x, y, z)``.
Arrays are ``[z, y, x]``; an index point is a row ``(i, j, k)`` = (column, row, slice), and
``(0, 0, 0)`` is the *centre* of the first voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from jaxtyping import Float, Real

from contourcast.imaging.errors import GeometryError

# Half of the last digit of positions written with two decimals: closer grids are the same grid.
SAME_PLACE_MM: Final = 0.005
# A gap may differ by this much from the median before the slices count as uneven
# (CLINICAL_SERVICE §2.6: positions written with few digits).
EVEN_GAP_MM: Final = 0.01
EVEN_GAP_FRACTION: Final = 0.01
# And no slice may lie further than this from where even steps would put it: gaps that are all a
# little off in one direction add up to millimetres.
EVEN_DRIFT_MM: Final = 0.1

Points = Float[np.ndarray, "n 3"]


def frozen_array(values: object, dtype: type | str = np.float64) -> np.ndarray:
    """A read-only array for the inside of frozen objects: a copy, unless it is one already.

    An array that is read-only and owns its memory (nobody holds a writable view's base) is taken
    as it is, so a volume of 200 MB is not copied each time it passes a constructor.
    """
    if (
        isinstance(values, np.ndarray)
        and values.dtype == np.dtype(dtype)
        and values.flags.owndata
        and values.flags.c_contiguous
        and not values.flags.writeable
    ):
        return values
    array = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Sample positions of a volume: even within a slice, slices anywhere along the normal.

    Attributes:
        shape_zyx: Slices, rows, columns.
        spacing_xy_mm: Distance between columns (x) and between rows (y).
        origin_xyz_mm: Centre of the first voxel, shape (3,).
        direction: Columns are the unit vectors of the i, j and k axes, shape (3, 3).
        offsets_z_mm: Position of each slice along the k axis relative to the first, strictly
            increasing, shape (slices,). They are the scanner's own, never rounded to a mean.

    Raises:
        GeometryError: Sizes or spacings that are not positive, axes that are not orthonormal,
            slices that do not increase.
    """

    shape_zyx: tuple[int, int, int]
    spacing_xy_mm: tuple[float, float]
    origin_xyz_mm: Float[np.ndarray, " 3"]
    direction: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    offsets_z_mm: Float[np.ndarray, " slices"]

    def __post_init__(self) -> None:
        for name in ("origin_xyz_mm", "direction", "offsets_z_mm"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))
        numbers = (*self.spacing_xy_mm, *self.origin_xyz_mm, *self.offsets_z_mm)
        if (
            min(self.shape_zyx) < 1
            or not np.isfinite(numbers).all()
            or min(self.spacing_xy_mm) <= 0
        ):
            raise GeometryError(
                f"no grid has shape {self.shape_zyx} and spacing {self.spacing_xy_mm} mm",
                remedy="check rows, columns, Pixel Spacing and positions of the series",
            )
        if not np.allclose(self.direction.T @ self.direction, np.eye(3), atol=1e-6):
            raise GeometryError("the axes of a grid must be orthonormal")
        if self.offsets_z_mm.shape != self.shape_zyx[:1] or (np.diff(self.offsets_z_mm) <= 0).any():
            raise GeometryError("slice offsets must increase, one for each slice")

    @classmethod
    def even(
        cls,
        *,
        shape_zyx: tuple[int, int, int],
        spacing_xyz_mm: Sequence[float],
        origin_xyz_mm: Sequence[float] | np.ndarray,
        direction: np.ndarray | None = None,
    ) -> Self:
        """A grid whose slices are all the same distance apart."""
        x, y, z = (float(s) for s in spacing_xyz_mm)
        return cls(
            shape_zyx=(int(shape_zyx[0]), int(shape_zyx[1]), int(shape_zyx[2])),
            spacing_xy_mm=(x, y),
            origin_xyz_mm=np.asarray(origin_xyz_mm, float),
            direction=np.eye(3) if direction is None else direction,
            offsets_z_mm=np.arange(shape_zyx[0]) * z,
        )

    @property
    def spacing_xyz_mm(self) -> tuple[float, float, float]:
        """Column, row and slice distance; one slice alone has no third (0.0).

        Of even slices the mean distance, for with any other the last would not lie where it is;
        of uneven ones, where no single distance fits, the *median*.
        """
        if self.shape_zyx[0] == 1:
            return (*self.spacing_xy_mm, 0.0)
        if self.is_even:
            return (*self.spacing_xy_mm, float(self.offsets_z_mm[-1]) / (self.shape_zyx[0] - 1))
        return (*self.spacing_xy_mm, float(np.median(self.gaps_mm)))

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """The same in array order."""
        x, y, z = self.spacing_xyz_mm
        return z, y, x

    @property
    def gaps_mm(self) -> Float[np.ndarray, " gaps"]:
        """Distance of each slice from the one before it."""
        gaps: np.ndarray = np.diff(self.offsets_z_mm)
        return gaps

    @property
    def is_even(self) -> bool:
        """Whether all gaps are the median one, within what few digits can say, and none adds up."""
        if self.shape_zyx[0] < 3:
            return True
        step = float(np.median(self.gaps_mm))
        off = np.abs(self.gaps_mm - step).max()
        drift = np.abs(
            self.offsets_z_mm - np.linspace(0, self.offsets_z_mm[-1], self.shape_zyx[0])
        ).max()
        return bool(off <= EVEN_GAP_MM + EVEN_GAP_FRACTION * step and drift <= EVEN_DRIFT_MM)

    @property
    def normal(self) -> Float[np.ndarray, " 3"]:
        """Unit vector from slice to slice."""
        k: np.ndarray = self.direction[:, 2]
        return k

    @property
    def thickness_z_mm(self) -> Float[np.ndarray, " slices"]:
        """The length along the normal that each slice stands for (half way to its neighbours)."""
        if self.shape_zyx[0] == 1:
            return np.zeros(1)
        edges = np.convolve(self.offsets_z_mm, [0.5, 0.5], mode="valid")
        first = 2 * self.offsets_z_mm[0] - edges[0]
        last = 2 * self.offsets_z_mm[-1] - edges[-1]
        lengths: np.ndarray = np.diff([first, *edges, last])
        return lengths

    @property
    def voxel_cc(self) -> Float[np.ndarray, "slices 1 1"]:
        """Volume of a voxel of each slice, shaped to multiply an array ``[z, y, x]``."""
        area = self.spacing_xy_mm[0] * self.spacing_xy_mm[1]
        volumes: np.ndarray = (self.thickness_z_mm * area / 1000.0)[:, None, None]
        return volumes

    @property
    def center_xyz_mm(self) -> Float[np.ndarray, " 3"]:
        """The middle of the box of voxel centres."""
        nz, ny, nx = self.shape_zyx
        middle: np.ndarray = self.world([[(nx - 1) / 2, (ny - 1) / 2, (nz - 1) / 2]])[0]
        return middle

    @property
    def corners_xyz_mm(self) -> Float[np.ndarray, "8 3"]:
        """Centres of the eight outermost voxels."""
        nz, ny, nx = self.shape_zyx
        return self.world(
            [[i, j, k] for k in (0, nz - 1) for j in (0, ny - 1) for i in (0, nx - 1)]
        )

    def world(self, index_ijk: Real[np.ndarray, "n 3"] | Sequence[Sequence[float]]) -> Points:
        """Index points (column, row, slice), fractional allowed, to LPS millimetres."""
        ijk = np.asarray(index_ijk, float)
        local = np.column_stack(
            (
                ijk[:, 0] * self.spacing_xy_mm[0],
                ijk[:, 1] * self.spacing_xy_mm[1],
                _piecewise(ijk[:, 2], np.arange(self.shape_zyx[0], dtype=float), self.offsets_z_mm),
            )
        )
        world: Points = local @ self.direction.T + self.origin_xyz_mm
        return world

    def index(self, points_xyz_mm: Points | Sequence[Sequence[float]]) -> Points:
        """LPS millimetres to fractional index points (column, row, slice)."""
        local = (np.asarray(points_xyz_mm, float) - self.origin_xyz_mm) @ self.direction
        return np.column_stack(
            (
                local[:, 0] / self.spacing_xy_mm[0],
                local[:, 1] / self.spacing_xy_mm[1],
                _piecewise(
                    local[:, 2], self.offsets_z_mm, np.arange(self.shape_zyx[0], dtype=float)
                ),
            )
        )

    def centers(self) -> Points:
        """World position of every voxel, in array order (x runs fastest)."""
        nz, ny, nx = self.shape_zyx
        k, j, i = np.meshgrid(np.arange(nz), np.arange(ny), np.arange(nx), indexing="ij")
        return self.world(np.column_stack((i.ravel(), j.ravel(), k.ravel())))

    def crop(self, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Grid:
        """The part between two array indices, ``[start, stop)``."""
        (z0, y0, x0), (z1, y1, x1) = start_zyx, stop_zyx
        return Grid(
            shape_zyx=(z1 - z0, y1 - y0, x1 - x0),
            spacing_xy_mm=self.spacing_xy_mm,
            origin_xyz_mm=self.world([[x0, y0, z0]])[0],
            direction=self.direction,
            offsets_z_mm=self.offsets_z_mm[z0:z1] - self.offsets_z_mm[z0],
        )

    def same_as(self, other: Grid) -> bool:
        """Whether samples lie at the same places (within rounding of written positions)."""
        return (
            self.shape_zyx == other.shape_zyx
            and np.allclose(self.corners_xyz_mm, other.corners_xyz_mm, atol=SAME_PLACE_MM, rtol=0)
            and np.allclose(self.offsets_z_mm, other.offsets_z_mm, atol=SAME_PLACE_MM, rtol=0)
        )


def _piecewise(values: np.ndarray, along: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Linear between knots, and on with the end slopes outside (one knot: slope one)."""
    if len(along) == 1:
        moved: np.ndarray = values - along[0] + to[0]
        return moved
    inside = np.interp(values, along, to)
    below = to[0] + (values - along[0]) * (to[1] - to[0]) / (along[1] - along[0])
    above = to[-1] + (values - along[-1]) * (to[-1] - to[-2]) / (along[-1] - along[-2])
    result: np.ndarray = np.where(
        values < along[0], below, np.where(values > along[-1], above, inside)
    )
    return result
