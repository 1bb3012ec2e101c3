"""Values between voxels, fast: trilinear sampling along affine paths, and smooth random fields.

``grid_sample`` is called here alone in this folder; its reversed, normalised coordinates stay here.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch.nn.functional import grid_sample, interpolate

from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import Grid

Field = Float[np.ndarray, "z y x"]
IndexPoints = Float[np.ndarray, "*lead 3"]


def index_from_world(grid: Grid) -> Float[np.ndarray, "4 4"]:
    """The affine that takes LPS millimetres to (column, row, slice) of an even grid.

    Raises:
        GeometryError: The slices are not even.
    """
    inverse: np.ndarray = np.linalg.inv(world_from_index(grid))
    return inverse


def world_from_index(grid: Grid) -> Float[np.ndarray, "4 4"]:
    """The affine that takes (column, row, slice) of an even grid to LPS millimetres.

    Raises:
        GeometryError: The slices are not even.
    """
    if not grid.is_even:
        raise GeometryError(
            "a grid with uneven slices has no affine",
            remedy="resample the series to even slices first",
        )
    affine = np.eye(4)
    affine[:3, :3] = grid.direction * np.asarray(grid.spacing_xyz_mm)
    affine[:3, 3] = grid.origin_xyz_mm
    return affine


def affine_points(affine: np.ndarray, shape_zyx: tuple[int, int, int]) -> IndexPoints:
    """The images of all voxels of a grid under an affine of (i, j, k), float32, (z, y, x, 3)."""
    nz, ny, nx = shape_zyx
    points = np.empty((nz, ny, nx, 3), np.float32)
    for axis in range(3):
        row = affine[axis]
        points[..., axis] = (
            (row[0] * np.arange(nx) + row[3])[None, None, :]
            + (row[1] * np.arange(ny))[None, :, None]
            + (row[2] * np.arange(nz))[:, None, None]
        )
    return points


def sample(values: np.ndarray, index_ijk: IndexPoints, *, outside: float) -> np.ndarray:
    """Trilinear values at fractional (column, row, slice) points; ``outside`` beyond the grid.

    Args:
        values: ``[z, y, x]``.
        index_ijk: Any leading shape, last axis (i, j, k).
        outside: What lies beyond the grid.
    """
    nz, ny, nx = values.shape
    scale = np.array([2 / max(nx - 1, 1), 2 / max(ny - 1, 1), 2 / max(nz - 1, 1)], np.float32)
    lead = index_ijk.shape[:-1]
    points = torch.from_numpy(np.ascontiguousarray(index_ijk.reshape(1, 1, 1, -1, 3) * scale - 1))
    image = torch.from_numpy(np.array(values, np.float32) - np.float32(outside))
    found = grid_sample(
        image[None, None], points.float(), mode="bilinear", padding_mode="zeros", align_corners=True
    )
    result: np.ndarray = found.numpy().reshape(lead) + np.float32(outside)
    return result


def smooth_noise(
    rng: np.random.Generator,
    shape_zyx: tuple[int, ...],
    spacing_zyx_mm: tuple[float, ...],
    length_mm: float,
) -> Field:
    """A Gaussian random field of mean 0 and sd 1.

    Args:
        rng: Draws it.
        shape_zyx: Of the result.
        spacing_zyx_mm: Between its samples.
        length_mm: Width over which values resemble each other: twice the kernel's sd.
    """
    kernel_mm = length_mm / 2
    # computed no finer than the kernel needs, then enlarged
    steps = [max(1.0, kernel_mm / (2.0 * s)) for s in spacing_zyx_mm]
    pad = [
        int(np.ceil(3 * kernel_mm / (s * st))) for s, st in zip(spacing_zyx_mm, steps, strict=True)
    ]
    small = [
        int(np.ceil(n / st)) + 2 * p + 2 for n, st, p in zip(shape_zyx, steps, pad, strict=True)
    ]
    white = rng.standard_normal(small, dtype=np.float32)
    sigma = [kernel_mm / (s * st) for s, st in zip(spacing_zyx_mm, steps, strict=True)]
    field = gaussian_filter(white, sigma, mode="wrap")
    field /= max(float(field.std()), 1e-6)
    inner = field[tuple(slice(p, n - p) for p, n in zip(pad, small, strict=True))]
    if any(st > 1 for st in steps):
        larger = [
            max(n, round(k * st)) for n, k, st in zip(shape_zyx, inner.shape, steps, strict=True)
        ]
        image = torch.from_numpy(np.ascontiguousarray(inner))[None, None]
        inner = interpolate(image, size=larger, mode="trilinear", align_corners=False)[0, 0].numpy()
    cut: np.ndarray = inner[tuple(slice(0, n) for n in shape_zyx)]
    return cut.astype(np.float32)


def logistic(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-v)), float32, without overflow."""
    result: np.ndarray = 0.5 * (1.0 + np.tanh(0.5 * np.clip(values, -60, 60)))
    return result.astype(np.float32)
