"""Airless lung beside a tumour: a wedge that widens to the pleura, with open bronchi in it.

Lobes and segments are cones with their tip at the hilum, so what stays without air is one too; a
fissure cuts it straight, the rest of its border is uneven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from contourcast.imaging.grid import Grid
from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.lesion import Layer, depth_of, tissue
from contourcast.simulation.recipe import Recipe
from contourcast.simulation.sampling import smooth_noise
from contourcast.simulation.tumour import Tumour, lay_bead

TIP_WIDTH: Final = 0.30  # of the wedge's width at the pleura
CUT_SHARE: Final = 0.8  # of a free ball's volume that the lung's border leaves
BRONCHUS_STEP_MM: Final = 1.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Consolidation:
    """Its layers on the tumour's box."""

    depth_mm: Layer
    hu: Layer
    bronchograms: Layer


def none_of(tumour: Tumour) -> Consolidation:
    """A patient without one. Its depth is far away, not minus infinity: borders may move."""
    nothing = np.full(tumour.depth_mm.shape, -1e3, np.float32)
    return Consolidation(depth_mm=nothing, hu=nothing, bronchograms=np.zeros_like(nothing))


def grow(
    anatomy: Anatomy, tumour: Tumour, recipe: Recipe, rng: np.random.Generator
) -> Consolidation:
    """A wedge beside the tumour, touching it, from the side of the hilum to the pleura."""
    box = tumour.box
    grid = anatomy.grid.crop([s.start for s in box], [s.stop for s in box])
    side = anatomy.lungs[box]
    at = tuple(round(v) for v in grid.index(tumour.center_xyz_mm[None])[0][::-1])
    here = side[at] if side[at] else np.bincount(side[side > 0], minlength=3)[1:].argmax() + 1
    lung = side == here
    hilum = _hilum(anatomy, int(here))
    radius = rng.uniform(*recipe.consolidation_radius_mm_range)
    tumour_radius = (
        0.75 / np.pi * (tumour.depth_mm > 0).sum() * float(grid.voxel_cc.mean()) * 1e3
    ) ** (1 / 3)
    axis_point = _beside(tumour.center_xyz_mm, hilum, 0.55 * (tumour_radius + radius), rng)
    along = axis_point - hilum
    reach = float(np.linalg.norm(along))
    along /= reach
    local = grid.centers() - hilum
    t = local @ along
    across = np.linalg.norm(local - t[:, None] * along, axis=1)
    width = TIP_WIDTH + (1 - TIP_WIDTH) * np.clip(t / (1.3 * reach), 0, 1.5)
    score = (across / width).reshape(grid.shape_zyx)
    begin = t.reshape(grid.shape_zyx) - (reach - 1.1 * radius)
    fissure = (grid.centers() - axis_point) @ _normal_to(along, rng)
    fissure = fissure.reshape(grid.shape_zyx) + 1.1 * radius
    noise = smooth_noise(
        rng, grid.shape_zyx, grid.spacing_zyx_mm, recipe.consolidation_noise_length_mm
    )
    usable = np.where(
        lung & (begin > 0) & (fissure > 0),
        score - 0.6 * recipe.consolidation_noise_mm * noise,
        np.inf,
    )
    volume_mm3 = CUT_SHARE * 4 / 3 * np.pi * radius**3
    wanted = round(volume_mm3 / 1000 / float(grid.voxel_cc.mean()))
    wanted = min(wanted, int(0.8 * np.isfinite(usable).sum()))
    if wanted < 30:
        return none_of(tumour)
    level = np.partition(usable.ravel(), wanted)[wanted]
    hu = tissue(recipe, recipe.consolidation_hu, grid.shape_zyx, grid.spacing_zyx_mm, rng)
    return Consolidation(
        depth_mm=_depth_within(usable < level, lung, grid),
        hu=hu.astype(np.float32),
        bronchograms=_bronchi(grid, hilum, along, reach, radius, recipe, rng),
    )


def _depth_within(mask: np.ndarray, lung: np.ndarray, grid: Grid) -> Layer:
    """Depth that the lung's own border does not count for: only the border within lung moves."""
    return depth_of(mask | (~lung & _touching(mask, grid)), grid.spacing_zyx_mm)


def _touching(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """What lies within a few millimetres of the mask."""
    return depth_of(mask, grid.spacing_zyx_mm) > -8.0


def _hilum(anatomy: Anatomy, side: int) -> np.ndarray:
    """Where the bronchus of that lung enters: the medial side, half way up."""
    points = np.argwhere(anatomy.lungs[::2, ::4, ::4] == side) * [2, 4, 4]
    z_middle = np.quantile(points[:, 0], 0.5)
    level = points[np.abs(points[:, 0] - z_middle) < 8]
    middle_x = np.argwhere(anatomy.lungs[::2, ::4, ::4] > 0)[:, 2].mean() * 4
    medial = level[np.argsort(np.abs(level[:, 2] - middle_x))[: max(5, len(level) // 12)]]
    k, j, i = medial.mean(axis=0)
    place: np.ndarray = anatomy.grid.world([[i, j, k]])[0]
    return place


def _normal_to(along: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A unit vector at random across another."""
    way = rng.normal(size=3)
    way -= way @ along * along
    unit: np.ndarray = way / np.linalg.norm(way)
    return unit


def _beside(
    center: np.ndarray, hilum: np.ndarray, distance_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """A point next to the tumour, not further from the hilum than it is."""
    along = center - hilum
    along = along / max(float(np.linalg.norm(along)), 1e-6)
    point: np.ndarray = center + distance_mm * _normal_to(along, rng)
    return point


def _bronchi(
    grid: Grid,
    hilum: np.ndarray,
    along: np.ndarray,
    reach: float,
    radius: float,
    recipe: Recipe,
    rng: np.random.Generator,
) -> Layer:
    """Air-filled tubes fanning out from the hilum through the wedge."""
    cover = np.zeros(grid.shape_zyx, np.float32)
    low, high = recipe.bronchogram_count_range
    for _ in range(int(rng.integers(int(low), int(high) + 1))):
        way = along * reach + _normal_to(along, rng) * rng.uniform(0, 0.7 * radius)
        bend = _normal_to(along, rng) * rng.uniform(0, 8)
        width = rng.uniform(*recipe.bronchogram_radius_mm_range)
        length = float(np.linalg.norm(way))
        for t in np.arange(max(0.0, 1 - 1.6 * radius / length), 1.15, BRONCHUS_STEP_MM / length):
            lay_bead(cover, grid, hilum + t * way + bend * t**2, width * (1.15 - 0.5 * t))
    return cover
