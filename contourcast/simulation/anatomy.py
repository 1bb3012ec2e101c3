"""A thorax with its organs known: what a virtual patient is grown from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_closing, binary_dilation, distance_transform_edt, zoom

from contourcast.imaging.grid import Grid, frozen_array
from contourcast.imaging.volume import Volume

RIGHT: Final = 1
LEFT: Final = 2

# Distances to organs are computed this coarsely: they place things, they do not shape them.
PLACING_MM: Final = 3.0
# Vessels, bronchi and a tumour within the lung are closed over by this much.
LUNG_CLOSING_MM: Final = 9.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """A planning CT without (or with its own) tumour, and where its organs are.

    Array axes run along +left, +posterior, +superior as nearly as the scan's own axes allow.

    Attributes:
        name: Which CT it is; two patients of one name share a background.
        digest: SHA-256 (hex) of what it was found on; empty where the name says it all.
        ct: On an even grid.
        lungs: 0, RIGHT or LEFT; vessels and a drawn tumour within them count as lung.
        bone: Cortical bone, roughly.
        drawn: A tumour that a person drew on this CT; None without.
        graft_sides: Lungs that are free of disease, so that a tumour may be grafted into them.
    """

    name: str
    ct: Volume
    lungs: UInt8[np.ndarray, "z y x"]
    body: Bool[np.ndarray, "z y x"]
    bone: Bool[np.ndarray, "z y x"]
    drawn: Bool[np.ndarray, "z y x"] | None = None
    graft_sides: tuple[int, ...] = (RIGHT, LEFT)
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lungs", frozen_array(self.lungs, np.uint8))
        for name in ("body", "bone", "drawn"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, frozen_array(getattr(self, name), bool))

    @property
    def grid(self) -> Grid:
        """The CT's."""
        return self.ct.grid

    @cached_property
    def mobile(self) -> Bool[np.ndarray, "z y x"]:
        """What breathing moves: the lungs and all that lies beneath them, bones apart."""
        shadow: np.ndarray = np.logical_or.accumulate((self.lungs > 0)[::-1], axis=0)[::-1]
        moves: np.ndarray = shadow & ~dilated(self.bone, 4.0, self.grid)
        return moves

    @cached_property
    def between_lungs(self) -> Bool[np.ndarray, "z y x"]:
        """The mediastinum: right lung on one side, left lung on the other, no spine."""
        right = np.logical_or.accumulate(self.lungs == RIGHT, axis=2)
        left = np.logical_or.accumulate((self.lungs == LEFT)[:, :, ::-1], axis=2)[:, :, ::-1]
        between: np.ndarray = right & left & (self.lungs == 0)
        between &= ~dilated(self.bone, 8.0, self.grid)
        return between

    @cached_property
    def below_lungs(self) -> Bool[np.ndarray, "z y x"]:
        """Liver, stomach, spleen: what lies in the lungs' shadow."""
        shadow: np.ndarray = np.logical_or.accumulate((self.lungs > 0)[::-1], axis=0)[::-1]
        below: np.ndarray = shadow & (self.lungs == 0) & ~self.between_lungs
        return below

    @cached_property
    def distances(self) -> Distances:
        """How far each place is from each kind of border of the lung."""
        steps = placing_steps(self.grid)
        lungs = self.lungs[:: steps[0], :: steps[1], :: steps[2]] > 0
        spacing = tuple(s * n for s, n in zip(self.grid.spacing_zyx_mm, steps, strict=True))
        between, below = (
            mask[:: steps[0], :: steps[1], :: steps[2]]
            for mask in (self.between_lungs, self.below_lungs)
        )
        wall = ~lungs & ~between & ~below

        def to(mask: np.ndarray) -> np.ndarray:
            if not mask.any():
                return np.full(mask.shape, 1e3, np.float32)
            found: np.ndarray = distance_transform_edt(~mask, sampling=spacing).astype(np.float32)
            return found

        return Distances(
            steps_zyx=steps, lungs=lungs, wall=to(wall), mediastinum=to(between), below=to(below)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Distances:
    """Distances in mm to organs on every ``steps_zyx``-th voxel of the anatomy's grid."""

    steps_zyx: tuple[int, int, int]
    lungs: Bool[np.ndarray, "z y x"]
    wall: Float[np.ndarray, "z y x"]
    mediastinum: Float[np.ndarray, "z y x"]
    below: Float[np.ndarray, "z y x"]


def placing_steps(grid: Grid) -> tuple[int, int, int]:
    """How many voxels one placing step is, along each array axis."""
    z, y, x = (max(1, round(PLACING_MM / s)) for s in grid.spacing_zyx_mm)
    return z, y, x


def ball(radius_mm: float, spacing_zyx_mm: tuple[float, float, float]) -> np.ndarray:
    """A ball as a structuring element."""
    reach = [int(radius_mm / s) for s in spacing_zyx_mm]
    axes = [np.arange(-r, r + 1) * s for r, s in zip(reach, spacing_zyx_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    result: np.ndarray = z**2 + y**2 + x**2 <= radius_mm**2 + 1e-6
    return result


def dilated(mask: np.ndarray, radius_mm: float, grid: Grid) -> np.ndarray:
    """The mask grown by a few millimetres."""
    result: np.ndarray = binary_dilation(mask, ball(radius_mm, grid.spacing_zyx_mm))
    return result


def closed_coarsely(mask: np.ndarray, radius_mm: float, grid: Grid) -> np.ndarray:
    """The mask with gaps narrower than twice the radius filled, computed at PLACING_MM."""
    steps = placing_steps(grid)
    spacing = (
        grid.spacing_zyx_mm[0] * steps[0],
        grid.spacing_zyx_mm[1] * steps[1],
        grid.spacing_zyx_mm[2] * steps[2],
    )
    element = ball(radius_mm, spacing)
    pad = [(n, n) for n in element.shape]
    small = np.pad(mask[:: steps[0], :: steps[1], :: steps[2]], pad)
    small = binary_closing(small, element)[tuple(slice(p, -p) for p, _ in pad)]
    large = np.zeros(mask.shape, bool)
    grown = zoom(small.astype(np.uint8), steps, order=0, grid_mode=True, mode="nearest")
    part = tuple(slice(0, min(a, b)) for a, b in zip(mask.shape, grown.shape, strict=True))
    large[part] = grown[part]
    large |= mask
    return large
