"""A tumour in a thorax that has none: where it may sit, its shape, its inside, its spicules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float
from scipy.ndimage import binary_dilation, gaussian_filter, label
from scipy.spatial.transform import Rotation

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.simulation.anatomy import Anatomy, Distances, ball
from contourcast.simulation.lesion import Box, Layer, box_round, depth_of, tissue
from contourcast.simulation.recipe import Recipe
from contourcast.simulation.sampling import logistic, smooth_noise

Place = Literal["wall", "mediastinum", "free"]
PLACES: Final[tuple[Place, ...]] = ("wall", "mediastinum", "free")

# A scan of usual length round the tumour has to lie within the CT.
FROM_CT_END_MM: Final = 62.0
SMOOTHED_MM: Final = 1.2  # sd; where lung ends, the tumour's border is no staircase
# Tumours sit in lung, so the middle of the lung along the body, not its tips.
FROM_DIAPHRAGM: Final = 1.1  # of the radius


@dataclass(frozen=True, kw_only=True, eq=False)
class Tumour:
    """The layers of a tumour on a box of the planning grid (see Lesion)."""

    box: Box
    center_xyz_mm: Float[np.ndarray, " 3"]
    depth_mm: Layer
    hu: Layer
    spicules: Layer
    lung_hu: Layer
    place: str


def graft(anatomy: Anatomy, recipe: Recipe, rng: np.random.Generator) -> Tumour:
    """Grows a tumour at a place where one may sit.

    Raises:
        InputError: The CT has no place for one.
    """
    low, high = np.log(recipe.tumour_volume_cc_range)
    volume_cc = float(np.exp(rng.uniform(low, high)))
    weights = np.asarray(recipe.place_weights) / sum(recipe.place_weights)
    wish = PLACES[rng.choice(3, p=weights)]
    center, volume_cc, place = _place(anatomy, wish, volume_cc, rng)
    box = box_round(center, anatomy.grid)
    depth = _shape(anatomy, recipe, box, center, volume_cc, rng)
    hu = _inside(anatomy, recipe, depth, volume_cc, rng)
    return Tumour(
        box=box,
        center_xyz_mm=center,
        depth_mm=depth,
        hu=hu,
        spicules=_spicules(anatomy, recipe, box, center, depth, rng),
        lung_hu=anatomy.ct.values[box].copy(),
        place=place,
    )


def drawn(anatomy: Anatomy, recipe: Recipe, rng: np.random.Generator) -> Tumour:
    """The tumour that a person drew, over lung as it may have been before it.

    Raises:
        InputError: Nothing is drawn on this CT.
    """
    if anatomy.drawn is None or not anatomy.drawn.any():
        raise InputError("no tumour is drawn on this CT", remedy="graft one, or name a ROI")
    k, j, i = np.nonzero(anatomy.drawn)
    center = anatomy.grid.world(np.column_stack((i, j, k))).mean(axis=0)
    box = box_round(center, anatomy.grid)
    depth = depth_of(anatomy.drawn[box], anatomy.grid.spacing_zyx_mm)
    ct = anatomy.ct.values[box]
    lung = (anatomy.lungs[box] > 0) & (ct < -500) & (depth < -4)
    # what lies behind: lung of the neighbourhood, with its texture
    weight = gaussian_filter(
        lung.astype(np.float32), [14.0 / s for s in anatomy.grid.spacing_zyx_mm]
    )
    sums = gaussian_filter(np.where(lung, ct, 0.0), [14.0 / s for s in anatomy.grid.spacing_zyx_mm])
    mean = np.where(weight > 1e-3, sums / np.maximum(weight, 1e-3), -780.0)
    texture = 45 * smooth_noise(rng, depth.shape, anatomy.grid.spacing_zyx_mm, 5.0)
    behind = (
        mean
        + texture
        + 60 * np.maximum(smooth_noise(rng, depth.shape, anatomy.grid.spacing_zyx_mm, 8.0) - 1.5, 0)
    )
    cover = logistic((depth + 3.0) / 0.8) * (anatomy.lungs[box] > 0)
    return Tumour(
        box=box,
        center_xyz_mm=center,
        depth_mm=depth,
        hu=ct.copy(),
        spicules=np.zeros_like(depth),
        lung_hu=(ct + cover * (behind - ct)).astype(np.float32),
        place="drawn",
    )


def _radius_mm(volume_cc: float) -> float:
    return float((volume_cc * 1000 * 3 / (4 * np.pi)) ** (1 / 3))


def _place(
    anatomy: Anatomy, wish: Place, volume_cc: float, rng: np.random.Generator
) -> tuple[np.ndarray, float, Place]:
    """A centre for the kind of place wished for; smaller, then another kind, when none fits."""
    distances = anatomy.distances
    for kind in (wish, *(p for p in PLACES if p != wish)):
        for shrink in (1.0, 0.6, 0.35):
            radius = _radius_mm(volume_cc * shrink)
            allowed = _allowed(anatomy, distances, kind, radius)
            if (count := int(allowed.sum())) > 0:
                k, j, i = np.argwhere(allowed)[rng.integers(count)]
                step = distances.steps_zyx
                ijk = [[i * step[2], j * step[1], k * step[0]]]
                jitter = rng.uniform(-1, 1, 3)
                return anatomy.grid.world(ijk)[0] + jitter, volume_cc * shrink, kind
    raise InputError(
        "the CT has no place for a tumour",
        remedy="simulate on a CT that holds more of the lungs along the body",
    )


def _allowed(anatomy: Anatomy, d: Distances, kind: Place, radius: float) -> np.ndarray:
    """Where a centre may lie, on the placing grid."""
    step = d.steps_zyx
    side = anatomy.lungs[:: step[0], :: step[1], :: step[2]]
    allowed = np.isin(side, anatomy.graft_sides) & (d.below > FROM_DIAPHRAGM * radius + 4)
    z = anatomy.grid.offsets_z_mm[:: step[0]]
    ends = (z > FROM_CT_END_MM) & (z < anatomy.grid.offsets_z_mm[-1] - FROM_CT_END_MM)
    allowed &= ends[:, None, None]
    near, off = (0.40 * radius, 0.80 * radius), 1.3 * radius
    if kind == "wall":
        return allowed & (d.wall > near[0]) & (d.wall < near[1]) & (d.mediastinum > off)
    if kind == "mediastinum":
        return allowed & (d.mediastinum > near[0]) & (d.mediastinum < near[1]) & (d.wall > off)
    return allowed & (d.wall > off) & (d.mediastinum > off)


def _shape(
    anatomy: Anatomy,
    recipe: Recipe,
    box: Box,
    center_xyz_mm: np.ndarray,
    volume_cc: float,
    rng: np.random.Generator,
) -> Layer:
    """Depth of a bumpy ellipsoid of the volume asked for, within lung and a little beyond."""
    grid = anatomy.grid.crop([s.start for s in box], [s.stop for s in box])
    radius = _radius_mm(volume_cc)
    axes = rng.uniform(*recipe.axis_ratio_range, 3)
    turn = Rotation.random(random_state=rng).as_matrix()
    local = (grid.centers() - center_xyz_mm) @ turn / axes
    distance = np.linalg.norm(local, axis=1).reshape(grid.shape_zyx)
    length = max(recipe.radius_noise_least_mm, radius)
    noise = smooth_noise(rng, grid.shape_zyx, grid.spacing_zyx_mm, length)
    bumpy = distance - recipe.radius_noise_fraction * radius * noise
    lung = anatomy.lungs[box] > 0
    reach = binary_dilation(lung, ball(recipe.tissue_invasion_mm, grid.spacing_zyx_mm))
    usable = np.where(reach, bumpy, np.inf)
    voxels = round(volume_cc / float(grid.voxel_cc.mean()))
    level = np.partition(usable.ravel(), voxels)[voxels]
    parts, count = label(usable < level)
    if count > 1:
        parts = np.where(parts == np.bincount(parts.ravel())[1:].argmax() + 1, 1, 0)
    smoothing = [SMOOTHED_MM / s for s in grid.spacing_zyx_mm]
    depth: Layer = gaussian_filter(depth_of(parts > 0, grid.spacing_zyx_mm), smoothing)
    return depth


def _inside(
    anatomy: Anatomy, recipe: Recipe, depth: Layer, volume_cc: float, rng: np.random.Generator
) -> Layer:
    """Tissue, and in larger tumours a necrotic heart."""
    spacing = anatomy.grid.spacing_zyx_mm
    hu = tissue(recipe, rng.normal(*recipe.tumour_hu_normal), depth.shape, spacing, rng)
    if volume_cc >= recipe.necrosis_least_cc and rng.uniform() < recipe.necrosis_share:
        begins = rng.uniform(*recipe.necrosis_depth_fraction_range) * float(depth.max())
        uneven = 0.25 * depth.max() * smooth_noise(rng, depth.shape, spacing, 12.0)
        hu -= rng.uniform(*recipe.necrosis_drop_hu_range) * logistic(
            (depth - begins + uneven) / 1.5
        )
    return hu.astype(np.float32)


def _spicules(
    anatomy: Anatomy,
    recipe: Recipe,
    box: Box,
    center_xyz_mm: np.ndarray,
    depth: Layer,
    rng: np.random.Generator,
) -> Layer:
    """Thin tapering strands from the tumour's surface outwards."""
    grid = anatomy.grid.crop([s.start for s in box], [s.stop for s in box])
    cover = np.zeros(depth.shape, np.float32)
    surface = np.argwhere(np.abs(depth) < 1.0)
    if not len(surface):
        return cover
    low, high = recipe.spicule_count_range
    for _ in range(int(rng.integers(int(low), int(high) + 1))):
        k, j, i = surface[rng.integers(len(surface))]
        start = grid.world([[i, j, k]])[0]
        way = start - center_xyz_mm + rng.normal(size=3) * 4
        way /= np.linalg.norm(way)
        length = rng.uniform(*recipe.spicule_length_mm_range)
        radius = rng.uniform(*recipe.spicule_radius_mm_range)
        for t in np.arange(-2.0, length, 1.0):
            lay_bead(cover, grid, start + t * way, radius * (1 - 0.7 * max(t, 0) / length))
    return np.where(anatomy.lungs[box] > 0, cover, 0).astype(np.float32)


def lay_bead(cover: Layer, grid: Grid, at_xyz_mm: np.ndarray, radius_mm: float) -> None:
    """Adds a soft ball to a cover (0 to 1), in place."""
    i, j, k = grid.index(at_xyz_mm[None])[0]
    reach = [int(np.ceil((radius_mm + 1.5) / s)) for s in grid.spacing_zyx_mm]
    part = tuple(
        slice(max(0, round(c) - r), min(n, round(c) + r + 1))
        for c, r, n in zip((k, j, i), reach, cover.shape, strict=True)
    )
    view = cover[part]
    if 0 in view.shape:
        return
    offsets = np.meshgrid(
        *(
            (np.arange(p.start, p.stop) - c) * s
            for p, c, s in zip(part, (k, j, i), grid.spacing_zyx_mm, strict=True)
        ),
        indexing="ij",
    )
    distance = np.sqrt(sum(o**2 for o in offsets))
    np.maximum(view, logistic((radius_mm - distance) / 0.5), out=view)
