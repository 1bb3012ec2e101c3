"""Values between the samples of an even grid: the one place of ``grid_sample``.

Its normalised, reversed coordinates never leave this file. What a scan did not observe is NaN,
and stays NaN in every sample that would touch it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from contourcast.imaging.grid import Grid, frozen_array


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """Values on an even grid, as a tensor on the device that computes.

    Attributes:
        values: ``[z, y, x]``, float32, NaN where nothing was observed.
        world_from_index: Takes (column, row, slice) to LPS mm, shape (4, 4), float64.
    """

    values: Float[Tensor, "z y x"]
    world_from_index: Float[np.ndarray, "4 4"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "world_from_index", frozen_array(self.world_from_index))

    @property
    def index_from_world(self) -> Float[np.ndarray, "4 4"]:
        """Takes LPS mm to (column, row, slice)."""
        inverse: np.ndarray = np.linalg.inv(self.world_from_index)
        return inverse

    @property
    def spacing_xyz_mm(self) -> Float[np.ndarray, " 3"]:
        """Distance of neighbours along columns, rows, slices."""
        lengths: np.ndarray = np.linalg.norm(self.world_from_index[:3, :3], axis=0)
        return lengths

    @property
    def size_xyz(self) -> Float[np.ndarray, " 3"]:
        """Columns, rows, slices."""
        return np.array(self.values.shape[::-1], float)

    def world(self, index_ijk: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Index points to LPS mm."""
        points: np.ndarray = index_ijk @ self.world_from_index[:3, :3].T
        points += self.world_from_index[:3, 3]
        return points

    def centers(self, flat: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
        """World positions of voxels given by their place in the flattened values."""
        k, j, i = np.unravel_index(flat, tuple(self.values.shape))
        return self.world(np.column_stack((i, j, k)).astype(float))

    def with_values(self, values: Float[Tensor, "z y x"]) -> Image:
        """The same place, other values."""
        return replace(self, values=values)

    def crop(self, points_xyz_mm: Float[np.ndarray, "n 3"], *, margin_mm: float) -> Image:
        """The box round these points and a margin, as far as there are values (at least one)."""
        inverse = self.index_from_world
        index = points_xyz_mm @ inverse[:3, :3].T + inverse[:3, 3]
        margin = margin_mm / self.spacing_xyz_mm
        last = self.size_xyz - 1
        low = np.clip(np.floor(index.min(axis=0) - margin), 0, last).astype(int)
        high = np.clip(np.ceil(index.max(axis=0) + margin), low, last).astype(int) + 1
        moved = self.world_from_index.copy()
        moved[:3, 3] += moved[:3, :3] @ low
        (x0, y0, z0), (x1, y1, z1) = low, high
        return Image(values=self.values[z0:z1, y0:y1, x0:x1], world_from_index=moved)


def affine(grid: Grid) -> Float[np.ndarray, "4 4"]:
    """World from index of a grid whose slices are evenly spaced (one slice alone: 1 mm)."""
    matrix = np.eye(4)
    matrix[:3, :3] = grid.direction * np.where(
        np.array(grid.spacing_xyz_mm) > 0, grid.spacing_xyz_mm, 1.0
    )
    matrix[:3, 3] = grid.origin_xyz_mm
    return matrix


def sample(
    image: Image, points_xyz: Float[Tensor, "n 3"], world_from_points: Float[np.ndarray, "4 4"]
) -> Float[Tensor, " n"]:
    """Trilinear values at points; NaN outside the image and where it was not observed.

    Args:
        image: Where to look.
        points_xyz: In any coordinates; small numbers keep float32 exact.
        world_from_points: Takes these coordinates to LPS mm, float64.
    """
    coordinates, inside = _normalised(image, points_xyz, world_from_points)
    return _at(image, coordinates).where(inside, torch.nan)


def sample_with_gradient(
    image: Image, points_xyz: Float[Tensor, "n 3"], world_from_points: Float[np.ndarray, "4 4"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """As `sample`, and the gradient of the interpolated values per mm along world x, y, z."""
    coordinates, inside = _normalised(image, points_xyz, world_from_points)
    with torch.enable_grad():
        coordinates.requires_grad_(True)
        values = _at(image, coordinates)
        (slope,) = torch.autograd.grad(values.sum(), coordinates)
    per_world = (image.index_from_world[:3, :3].T * (2.0 / _steps(image))).T
    gradient = slope @ torch.as_tensor(per_world, dtype=slope.dtype, device=slope.device)
    return values.detach().where(inside, torch.nan), gradient


def _normalised(
    image: Image, points_xyz: Float[Tensor, "n 3"], world_from_points: Float[np.ndarray, "4 4"]
) -> tuple[Float[Tensor, "n 3"], Bool[Tensor, " n"]]:
    """Coordinates from -1 to 1 between the centres of the first and last voxels."""
    scale = 2.0 / _steps(image)
    matrix = image.index_from_world @ world_from_points
    linear = torch.as_tensor(
        (matrix[:3, :3].T * scale), dtype=points_xyz.dtype, device=points_xyz.device
    )
    shift = torch.as_tensor(
        matrix[:3, 3] * scale - 1.0, dtype=points_xyz.dtype, device=points_xyz.device
    )
    coordinates = points_xyz @ linear + shift
    return coordinates, (coordinates.abs() <= 1.0).all(dim=1)


def _steps(image: Image) -> Float[np.ndarray, " 3"]:
    steps: np.ndarray = np.maximum(image.size_xyz - 1, 1)
    return steps


def _at(image: Image, coordinates: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    values = functional.grid_sample(
        image.values.to(coordinates.dtype)[None, None],
        coordinates[None, None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return values.reshape(-1)
