"""Scans, and regions on the grid of a scan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Bool, Float

from contourcast.imaging.errors import FrameMismatchError, GridMismatchError
from contourcast.imaging.grid import Grid, frozen_array
from contourcast.imaging.source import SeriesSource


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sampled:
    """Values on a grid, in a frame of reference."""

    values: np.ndarray
    grid: Grid
    frame_of_reference: str

    _dtype: ClassVar[type] = np.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", frozen_array(self.values, self._dtype))
        if self.values.shape != self.grid.shape_zyx:
            raise GridMismatchError(
                f"values of shape {self.values.shape} do not fit a grid of {self.grid.shape_zyx}"
            )

    def require_same_place(self, other: _Sampled) -> None:
        """Refuses to combine what does not lie on one grid in one frame.

        Raises:
            FrameMismatchError: The frames of reference differ.
            GridMismatchError: The grids differ.
        """
        require_same_frame(self.frame_of_reference, other.frame_of_reference)
        if not self.grid.same_as(other.grid):
            raise GridMismatchError(
                f"grids {self.grid.shape_zyx} and {other.grid.shape_zyx} are not the same",
                remedy="resample one onto the grid of the other first",
            )

    def with_values(self, values: np.ndarray) -> Self:
        """The same place, other values."""
        return replace(self, values=values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume(_Sampled):
    """A scan.

    Attributes:
        values: ``[z, y, x]``, float32, Hounsfield units as far as the scanner calibrates them.
        frame_of_reference: Frame of Reference UID; empty when the files state none, and then
            nothing can be drawn on it.
        observed: ``[z, y, x]``; false where the files declare padding. None: nothing declared.
            A cone beam's round field is *not* in here: it is found from the values.
        source: What DICOM says of it; None for a volume made in memory.
    """

    values: Float[np.ndarray, "z y x"]
    observed: Bool[np.ndarray, "z y x"] | None = None
    source: SeriesSource | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.observed is not None:
            object.__setattr__(self, "observed", frozen_array(self.observed, bool))
            if self.observed.shape != self.grid.shape_zyx:
                raise GridMismatchError(
                    f"observed, of shape {self.observed.shape}, does not fit a grid of "
                    f"{self.grid.shape_zyx}"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask(_Sampled):
    """A region as voxels that are in or out."""

    values: Bool[np.ndarray, "z y x"]
    name: str = ""

    _dtype: ClassVar[type] = np.bool_

    @property
    def volume_cc(self) -> float:
        """Sum of the voxels' volumes."""
        counts = np.array([np.count_nonzero(plane) for plane in self.values])
        return float(counts @ self.grid.voxel_cc.ravel())

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is in."""
        return not self.values.any()

    def centroid_xyz_mm(self) -> Float[np.ndarray, " 3"] | None:
        """Centre of mass in LPS mm; None when empty."""
        k, j, i = np.nonzero(self.values)
        if not len(k):
            return None
        weights = self.grid.thickness_z_mm[k] if self.grid.shape_zyx[0] > 1 else np.ones(len(k))
        points = self.grid.world(np.column_stack((i, j, k)))
        centroid: np.ndarray = np.average(points, axis=0, weights=weights)
        return centroid


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability(_Sampled):
    """A region as how surely each voxel's centre is in it; its surface is the 0.5 level."""

    values: Float[np.ndarray, "z y x"]
    name: str = ""

    def mask(self) -> Mask:
        """Voxels whose centre is in."""
        return Mask(
            values=self.values >= 0.5,
            grid=self.grid,
            frame_of_reference=self.frame_of_reference,
            name=self.name,
        )


def require_same_frame(first: str, second: str) -> None:
    """Refuses two frames of reference that are not one.

    Raises:
        FrameMismatchError: They differ, or one of them is unknown (empty).
    """
    if not first or first != second:
        raise FrameMismatchError(
            "two things of different frames of reference cannot be combined",
            tag="(0020,0052) Frame of Reference UID",
            uid=f"{first or 'none'} and {second or 'none'}",
            remedy="register the two images first",
        )
