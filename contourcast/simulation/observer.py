"""How people draw: generous, uneven, and within the window they look through."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

from contourcast.imaging.grid import Grid
from contourcast.simulation.lesion import Layer
from contourcast.simulation.recipe import Recipe
from contourcast.simulation.sampling import smooth_noise


def generosity_mm(recipe: Recipe, rng: np.random.Generator) -> float:
    """How far outside the tumour this patient's planner draws."""
    return float(np.clip(rng.normal(*recipe.generosity_mm_normal), *recipe.generosity_mm_limits))


def hand_drawn(
    depth_mm: Layer, grid: Grid, recipe: Recipe, rng: np.random.Generator, *, generosity_mm: float
) -> Layer:
    """The depth of the contour that is drawn for a true one (mm, inside positive)."""
    drawn: Layer = depth_mm + np.float32(generosity_mm)
    if recipe.observer_noise_mm > 0:
        noise = smooth_noise(
            rng, depth_mm.shape, grid.spacing_zyx_mm, recipe.observer_noise_length_mm
        )
        drawn = drawn + np.float32(recipe.observer_noise_mm) * noise
    return drawn


def label_of_the_day(
    anatomical_depth_mm: Layer,
    clean_hu: Layer,
    grid: Grid,
    recipe: Recipe,
    rng: np.random.Generator,
) -> np.ndarray:
    """What a physician draws on the CBCT: hand-drawn, cut by the window, crumbs dropped.

    Args:
        anatomical_depth_mm: Of the tumour at its time-mean place.
        grid: Of the CBCT.
        recipe: Unevenness of the hand, the window, what counts as a crumb.
        rng: Draws the unevenness.
        clean_hu: The CBCT without noise and artefacts, same grid.
    """
    depth = hand_drawn(anatomical_depth_mm, grid, recipe, rng, generosity_mm=0.0)
    drawn: np.ndarray = depth > 0
    if recipe.label_window_hu is not None:
        low, high = recipe.label_window_hu
        drawn = drawn & (clean_hu >= low) & (clean_hu <= high)
    return without_crumbs(drawn, recipe.label_least_piece)


def without_crumbs(mask: np.ndarray, least_piece: float) -> np.ndarray:
    """Pieces that are at least so large, as a fraction of the largest."""
    parts, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept: np.ndarray = np.isin(parts, np.flatnonzero(sizes >= least_piece * sizes.max())) & mask
    return kept
