"""A scan at several resolutions, by averages over whole blocks: anti-aliased in one pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from contourcast.imaging.volume import Volume
from contourcast.registration.sampling import Image, affine

IMPOSSIBLE_HU = -1500.0  # neither tissue nor air: what scanners write where they did not look
# How much finer than its usual and its mean gap an uneven series is sampled at most: a slice taken
# twice, a hair apart, says nothing of what lies between the others, and would ask for gigabytes.
FINER_THAN_USUAL = 4
FINER_THAN_MEAN = 8


def full_resolution(volume: Volume, *, device: str) -> Image:
    """All samples, with evenly spaced slices; NaN where the scan declares or shows padding."""
    values = torch.tensor(volume.values, device=device)
    hidden = values < IMPOSSIBLE_HU
    if volume.observed is not None:
        hidden |= ~torch.tensor(volume.observed, device=device)
    if bool(hidden.any()):
        values[hidden] = torch.nan
    matrix = affine(volume.grid)
    if volume.grid.is_even:
        return Image(values=values, world_from_index=matrix)
    return _evenly_sliced(values, matrix, volume.grid.offsets_z_mm)


def _evenly_sliced(
    values: Float[Tensor, "z y x"],
    matrix: Float[np.ndarray, "4 4"],
    offsets_z_mm: Float[np.ndarray, " slices"],
) -> Image:
    """Linear between slices, at the smallest gap there is, within bounds.

    No more than `FINER_THAN_MEAN` slices are made of each.
    """
    gaps = np.diff(offsets_z_mm)
    least = max(np.median(gaps) / FINER_THAN_USUAL, gaps.mean() / FINER_THAN_MEAN)
    step = float(max(gaps.min(), least))
    wanted = np.arange(0.0, offsets_z_mm[-1] + 1e-6, step)
    place = np.interp(wanted, offsets_z_mm, np.arange(len(offsets_z_mm)))
    below = np.minimum(place.astype(int), len(offsets_z_mm) - 2)
    share = torch.as_tensor(place - below, dtype=values.dtype, device=values.device)[:, None, None]
    even = values[below] * (1 - share) + values[below + 1] * share
    moved = matrix.copy()
    moved[:3, 2] *= step / np.linalg.norm(matrix[:3, 2])
    return Image(values=even, world_from_index=moved)


def average(image: Image, *, spacing_mm: float) -> Image:
    """Means over blocks of whole voxels, about ``spacing_mm`` wide along each axis.

    An axis that is coarser already stays as it is. A block with anything unobserved is
    unobserved.
    """
    wanted = np.round(spacing_mm / image.spacing_xyz_mm)
    factors = np.clip(wanted, 1, image.size_xyz).astype(int)
    pooled = functional.avg_pool3d(image.values[None], tuple(int(f) for f in factors[::-1]))[0]
    matrix = image.world_from_index.copy()
    matrix[:3, 3] += matrix[:3, :3] @ ((factors - 1) / 2)
    matrix[:3, :3] *= factors
    return Image(values=pooled, world_from_index=matrix)


def pyramid(full: Image, *, spacings_mm: tuple[float, ...]) -> dict[float, Image]:
    """One image for each spacing; a level whose blocks are made of another's is made from it."""
    levels: dict[float, Image] = {}
    for spacing in sorted(spacings_mm):
        source = full
        for finer, image in levels.items():
            if (spacing / finer).is_integer():
                source = image
        levels[spacing] = average(source, spacing_mm=spacing)
    return levels
