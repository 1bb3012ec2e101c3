"""Where a scan really shows the patient: a cone beam's field is found from its pixels.

A full-fan cone beam fills a cylinder narrower than the body and leaves the rest of the grid at
one value, declared or not (REGISTRATION §3). Nothing outside may enter a similarity.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from contourcast.registration.pyramid import average
from contourcast.registration.sampling import Image
from contourcast.registration.settings import FieldOfViewSettings


def padding_value(values: Float[Tensor, "z y x"], *, border_share: float) -> float | None:
    """The value that the outermost voxels of the slices repeat; None when they do not."""
    border = torch.cat(
        [values[:, row, :].flatten() for row in (0, -1)]
        + [values[:, 1:-1, column].flatten() for column in (0, -1)]
    )
    border = border[torch.isfinite(border)]
    if not len(border):
        return None
    found, counts = torch.unique(border, return_counts=True)
    most = int(counts.argmax())
    return float(found[most]) if int(counts[most]) >= border_share * len(border) else None


def depth_in_view(full: Image, settings: FieldOfViewSettings) -> Image:
    """How deep within the field of view each place lies, in mm; 0 outside it.

    What is neither padding nor unobserved, closed, without holes; on blocks of about
    ``spacing_mm``, cut to the field.
    """
    seen = torch.isfinite(full.values)
    padding = padding_value(full.values, border_share=settings.border_share)
    if padding is not None:
        seen &= full.values != padding
    share = average(full.with_values(seen.float()), spacing_mm=settings.spacing_mm)
    content = _closed(share.values.cpu().numpy() >= 0.5, share.spacing_xyz_mm, settings.closing_mm)
    if not content.any():
        return share.with_values(torch.zeros_like(share.values))
    box = ndimage.find_objects(content.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(
        np.pad(content[box], 1), sampling=share.spacing_xyz_mm[::-1]
    )[1:-1, 1:-1, 1:-1]
    matrix = share.world_from_index.copy()
    matrix[:3, 3] += matrix[:3, :3] @ [side.start for side in box[::-1]]
    return Image(
        values=torch.as_tensor(depth, dtype=torch.float32, device=full.values.device),
        world_from_index=matrix,
    )


def _closed(
    content: Bool[np.ndarray, "z y x"], spacing_xyz_mm: np.ndarray, closing_mm: float
) -> Bool[np.ndarray, "z y x"]:
    """Closed by a box and filled; all of a scan without padding stays all of it."""
    if content.all() or not content.any():
        return content
    reach = np.maximum(np.round(closing_mm / spacing_xyz_mm[::-1]), 1).astype(int)
    padded = np.pad(content, [(r, r) for r in reach])
    for grow in (True, False):
        for axis, r in enumerate(reach):
            rank = ndimage.maximum_filter1d if grow else ndimage.minimum_filter1d
            padded = rank(padded.view(np.uint8), 2 * r + 1, axis=axis).view(bool)
    closed = padded[tuple(slice(r, -r) for r in reach)]
    filled: np.ndarray = ndimage.binary_fill_holes(closed)
    return filled


def depth_at(depth: Image, like: Image) -> Float[Tensor, "z y x"]:
    """The depth at every voxel of an image of the same scan, by the nearest sample."""
    origin = depth.index_from_world @ like.world_from_index
    axes = []
    for axis, size in enumerate(like.values.shape[::-1]):
        place = np.round(origin[axis, axis] * np.arange(size) + origin[axis, 3]).astype(int)
        axes.append(place)
    x, y, z = axes
    nz, ny, nx = depth.values.shape
    device = depth.values.device
    outside = [
        torch.as_tensor((place < 0) | (place >= n), device=device)
        for place, n in zip((z, y, x), (nz, ny, nx), strict=True)
    ]
    k, j, i = (
        torch.as_tensor(place.clip(0, n - 1), device=device)
        for place, n in zip((z, y, x), (nz, ny, nx), strict=True)
    )
    values = depth.values[k][:, j][:, :, i]
    values[outside[0]] = 0
    values[:, outside[1]] = 0
    values[:, :, outside[2]] = 0
    return values
