"""A cone-beam scan in the image domain: what the numbers look like, without any projection.

For training in bulk and where itk-rtk is not installed; `rtk.py` does it by physics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from contourcast.imaging.grid import Grid
from contourcast.simulation.lesion import Layer
from contourcast.simulation.recipe import Recipe
from contourcast.simulation.sampling import smooth_noise

PADDING_HU: Final = -1000.0
HIGHEST_HU: Final = 3000.0
STREAK_WIDTH_MM: Final = 1.3
BODY_RADIUS_MM: Final = 170.0  # cupping is full at the axis and none so far out


def degraded(
    clean_hu: Layer,
    grid: Grid,
    field: np.ndarray,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    dense: np.ndarray,
    field_diameter_mm: float,
) -> Layer:
    """Gain, offset, shading, cupping, streaks, correlated noise; padding outside the field.

    Args:
        clean_hu: Average over the breathing phases.
        field: Voxels that the scanner reconstructs.
        grid: Of the scan.
        recipe: Sizes of the errors.
        rng: Draws them.
        dense: Bone, where streaks start.
        field_diameter_mm: Of the cylinder.
    """
    z, y, x = grid.spacing_zyx_mm
    hu = gaussian_filter(
        clean_hu, (0.6 * recipe.blur_mm / z, recipe.blur_mm / y, recipe.blur_mm / x)
    )
    attenuation = np.clip((hu + 1000) / 1000, 0, 1.3)
    ny, nx = grid.shape_zyx[1:]
    from_axis = np.hypot(
        ((np.arange(ny) - (ny - 1) / 2) * y)[:, None], ((np.arange(nx) - (nx - 1) / 2) * x)[None, :]
    ).astype(np.float32)
    central = np.clip(1 - (from_axis / BODY_RADIUS_MM) ** 2, 0, 1)

    hu = rng.uniform(*recipe.gain_range) * (hu + 1000) - 1000 + rng.uniform(*recipe.offset_hu_range)
    hu += (recipe.shading_hu / 2) * smooth_noise(rng, hu.shape, grid.spacing_zyx_mm, 160.0)
    hu -= rng.uniform(*recipe.cupping_hu_range) * central * attenuation
    rim = np.exp(-np.clip(field_diameter_mm / 2 - from_axis, 0, None) / recipe.rim_mm)
    hu += recipe.rim_hu * rim * (attenuation > 0.3)
    hu += recipe.streak_hu * streaks(dense, grid, recipe.streak_count, rng)
    noise = reconstruction_noise(rng, hu.shape, grid)
    hu += recipe.noise_hu * noise * (0.45 + 0.55 * attenuation) * (0.7 + 0.45 * central)
    return within_field(hu, field)


def within_field(hu: Layer, field: np.ndarray) -> Layer:
    """Values that a scanner can write, and its padding outside the field."""
    result: Layer = np.where(field, np.clip(hu, PADDING_HU, HIGHEST_HU), PADDING_HU)
    return result.astype(np.float32)


def phase_average(phases: Iterable[Layer]) -> Layer:
    """The mean of still anatomies: what a one-minute scan shows of a breathing chest."""
    first, *others = phases
    total: Layer = first.copy()
    for image in others:
        total += image
    return total / np.float32(1 + len(others))


def reconstruction_noise(rng: np.random.Generator, shape_zyx: tuple[int, ...], grid: Grid) -> Layer:
    """White noise with its low frequencies taken away (ramp filter) and its highest (Hann)."""
    z, y, x = grid.spacing_zyx_mm
    white = rng.standard_normal(shape_zyx, dtype=np.float32)
    fine = gaussian_filter(white, (0.8 / z, 0.8 / y, 0.8 / x), truncate=3)
    coarse = gaussian_filter(fine, (0, 3.0 / y, 3.0 / x), truncate=3)
    noise = fine - 0.85 * coarse
    result: Layer = noise / float(noise.std())
    return result


def streaks(dense: np.ndarray, grid: Grid, count: int, rng: np.random.Generator) -> Layer:
    """Lines through bones, each over a few centimetres along the patient."""
    nz, ny, nx = grid.shape_zyx
    z, y, x = grid.spacing_zyx_mm
    streaks = np.zeros(grid.shape_zyx, np.float32)
    through = np.argwhere(dense)
    if not len(through):
        return streaks
    yy = (np.arange(ny) * y)[:, None]
    xx = (np.arange(nx) * x)[None, :]
    for _ in range(count):
        k, j, i = through[rng.integers(len(through))]
        angle = rng.uniform(0, np.pi)
        away = (xx - i * x) * np.sin(angle) - (yy - j * y) * np.cos(angle)
        line = np.exp(-0.5 * (away / STREAK_WIDTH_MM) ** 2) - 0.5 * np.exp(
            -0.5 * (away / (2 * STREAK_WIDTH_MM)) ** 2
        )
        reach = round(12 / z)
        first, last = max(0, k - reach), min(nz, k + reach + 1)
        along = gaussian_filter1d(rng.standard_normal(last - first), 2.0 / z * 2)
        along *= 2 / max(float(np.abs(along).max()), 1e-6)
        streaks[first:last] += (along[:, None, None] * line).astype(np.float32)
    return streaks
