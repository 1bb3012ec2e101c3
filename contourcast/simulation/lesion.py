"""Tumour and airless lung as layers over healthy lung: what the changes of a course act on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt

from contourcast.imaging.grid import Grid
from contourcast.simulation.recipe import Recipe
from contourcast.simulation.sampling import logistic, smooth_noise

Box = tuple[slice, slice, slice]
Layer = Float[np.ndarray, "z y x"]

BOX_REACH_MM = 82.0  # [O] from the tumour's centre: holds the largest consolidation


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesion:
    """What is ill, on a box of the planning grid. Depths are mm, positive inside.

    Attributes:
        lung_hu: The lung as it would be without any of it (elsewhere: the CT as it is).
        seen: Where the image may change: lung. A tumour may reach a little further, unseen.
        tumour_depth_mm: The true GTV's.
        spicules: Cover, 0 to 1.
        airless_depth_mm: The consolidation's; far negative without one.
        bronchograms: Cover of open bronchi within the consolidation, 0 to 1.
    """

    box: Box
    center_xyz_mm: Float[np.ndarray, " 3"]
    lung_hu: Layer
    seen: Bool[np.ndarray, "z y x"]
    tumour_depth_mm: Layer
    tumour_hu: Layer
    spicules: Layer
    airless_depth_mm: Layer
    airless_hu: Layer
    bronchograms: Layer
    place: str

    def image(
        self,
        recipe: Recipe,
        *,
        tumour_depth_mm: Layer | None = None,
        airless_depth_mm: Layer | None = None,
        ghost: Layer | float = 0.0,
    ) -> Layer:
        """HU on the box, as planned or with changed depths.

        Args:
            recipe: Softness of the borders, density of spicules.
            tumour_depth_mm: Of what is left of the tumour.
            airless_depth_mm: Of the consolidation by now.
            ghost: Share of the tumour's density left where tumour was and is no more.
        """
        depth = self.tumour_depth_mm if tumour_depth_mm is None else tumour_depth_mm
        airless = self.airless_depth_mm if airless_depth_mm is None else airless_depth_mm
        hu = self.lung_hu.copy()
        cover = logistic(airless / recipe.consolidation_edge_mm)
        hu += cover * (1 - 0.9 * self.bronchograms) * np.maximum(self.airless_hu - hu, 0)
        solid = logistic(depth / recipe.tumour_edge_mm)
        gone = np.clip(logistic(self.tumour_depth_mm / recipe.tumour_edge_mm) - solid, 0, 1)
        haze = np.maximum(recipe.spicule_density * self.spicules, gone * ghost)
        hu += np.clip(np.maximum(solid, haze), 0, 1) * (self.tumour_hu - hu)
        result: Layer = np.where(self.seen, hu, self.lung_hu)
        return result


def box_round(center_xyz_mm: np.ndarray, grid: Grid) -> Box:
    """The part of the grid that a lesion's layers live on."""
    i, j, k = grid.index(center_xyz_mm[None])[0]
    parts = []
    for at, step, n in zip((k, j, i), grid.spacing_zyx_mm, grid.shape_zyx, strict=True):
        reach = BOX_REACH_MM / step
        parts.append(slice(max(0, int(at - reach)), min(n, int(at + reach) + 2)))
    return parts[0], parts[1], parts[2]


def depth_of(mask: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> Layer:
    """Signed distance in mm to the mask's border, inside positive, zero half way between voxels.

    An empty mask is far away everywhere.
    """
    if not mask.any():
        return np.full(mask.shape, -1e3, np.float32)
    inside = distance_transform_edt(mask, sampling=spacing_zyx_mm)
    outside = distance_transform_edt(~mask, sampling=spacing_zyx_mm)
    half = 0.5 * min(spacing_zyx_mm)
    result: Layer = np.where(mask, inside - half, half - outside).astype(np.float32)
    return result


def tissue(
    recipe: Recipe,
    mean_hu: float,
    shape_zyx: tuple[int, ...],
    spacing_zyx_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Layer:
    """Soft tissue with fine and coarse texture."""
    fine = smooth_noise(rng, shape_zyx, spacing_zyx_mm, 2.0)
    coarse = smooth_noise(rng, shape_zyx, spacing_zyx_mm, 12.0)
    return mean_hu + recipe.fine_texture_hu * fine + recipe.coarse_texture_hu * coarse
