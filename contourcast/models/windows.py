"""Windows of a network: where they lie, which of them tell at a place, and what they say together.

nnU-Net v2's sliding window: windows of the size that the network was trained on overlap by half,
and their logits are averaged with Gaussian weights. Its own lie half a voxel off the middle of
patches of an even size; where windows contradict each other that half voxel is seen (DSC 0.977), so
whoever wants its contour takes its weights. Ours lie in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

# nnU-Net v2: windows overlap by half and weigh by a Gaussian of an eighth of the patch.
OVERLAP: Final = 0.5
SIGMA: Final = 1 / 8
# The least weight of a voxel whose largest is 1; nnU-Net's is the least of half precision, of 10.
LEAST: Final = 1e-4
NNUNETS_LEAST: Final = 2.0**-24 / 10
# Logits beyond say nothing more of where the surface is, and would bend it between samples.
LOGIT_LIMIT: Final = 8.0
# A window whose share of the average is smaller than this everywhere in a box tells nothing there.
TELLING: Final = 0.01

Box = tuple[slice, slice, slice]
"""Places of an array ``[z, y, x]``."""
Draw = Callable[[Tensor], Tensor | list[Tensor]]
"""Logits (b, 2, z, y, x) of channels (b, c, z, y, x), alone or the first of a list."""


@dataclass(frozen=True)
class Windows:
    """Windows on an array: every corner along z with every one along y and along x.

    Attributes:
        shape: Of the array.
        patch: Of each window.
        corners: Their first indices, along each axis.
        as_nnunet: Weighed as nnU-Net does, half a voxel off the middle.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    corners: tuple[tuple[int, ...], ...]
    as_nnunet: bool = False

    @classmethod
    def over(
        cls, shape: Sequence[int], patch: Sequence[int], *, as_nnunet: bool = False
    ) -> Windows:
        """Evenly spread, overlapping by at least `OVERLAP`, the last ones at the end."""
        sides = zip(shape, patch, strict=True)
        corners = tuple(_corners(n, p) for n, p in sides)
        return cls(tuple(shape), tuple(patch), corners, as_nnunet)

    def telling(self, box: Box) -> Windows:
        """Those whose share of the average reaches `TELLING` somewhere in a box."""
        share = [per[:, along].max(1) for per, along in zip(self._shares, box, strict=True)]
        # a product is as large as can be where the others' shares are as large as can be
        keep = [
            each * np.prod([other.max() for other in share if other is not each]) >= TELLING
            for each in share
        ]
        kept = zip(self.corners, keep, strict=True)
        return replace(
            self,
            corners=tuple(
                tuple(c for c, k in zip(all_, some, strict=True) if k) for all_, some in kept
            ),
        )

    @property
    def box(self) -> Box:
        """What they cover."""
        z, y, x = (
            slice(along[0], along[-1] + side)
            for along, side in zip(self.corners, self.patch, strict=True)
        )
        return z, y, x

    def within(self, box: Box) -> Windows:
        """The same windows on the part of the array that a box cuts out."""
        corners = zip(self.corners, box, strict=True)
        return replace(
            self,
            shape=tuple(along.stop - along.start for along in box),
            corners=tuple(tuple(c - along.start for c in some) for some, along in corners),
        )

    @property
    def weight(self) -> Float[np.ndarray, "z y x"]:
        """Gaussian weights of a window, never zero."""
        z, y, x = (_gaussian(side, as_nnunet=self.as_nnunet) for side in self.patch)
        weight: np.ndarray = z[:, None, None] * y[None, :, None] * x[None, None, :]
        return weight.astype(np.float32).clip(NNUNETS_LEAST if self.as_nnunet else LEAST)

    @cached_property
    def _shares(self) -> list[Float[np.ndarray, "windows length"]]:
        """Along each axis, each window's share of the weights at each index."""
        found = []
        for length, side, corners in zip(self.shape, self.patch, self.corners, strict=True):
            weights = np.zeros((len(corners), length))
            for row, corner in zip(weights, corners, strict=True):
                row[corner : corner + side] = _gaussian(side, as_nnunet=self.as_nnunet)
            found.append(weights / weights.sum(0).clip(min=1e-30))
        return found


@torch.inference_mode()
def in_windows(
    draw: Draw,
    channels: Float[np.ndarray, "c z y x"],
    windows: Windows,
    *,
    device: str,
    first: Box | None = None,
) -> Float[np.ndarray, "z y x"]:
    """The target's logit where the windows tell, `-LOGIT_LIMIT` elsewhere.

    Args:
        draw: The network.
        channels: What it is shown.
        windows: On those.
        device: Where the network is.
        first: Only windows that tell in this box are drawn, and those that tell where what they
            show there reaches to; None: all of them.
    """
    weight = windows.weight
    total = np.zeros(windows.shape, np.float32)
    weights = np.zeros_like(total)
    done: set[tuple[int, ...]] = set()
    box = first
    while True:
        wanted = windows if box is None else windows.telling(box)
        todo = [corner for corner in product(*wanted.corners) if corner not in done]
        for corner in todo:
            place = tuple(slice(a, a + p) for a, p in zip(corner, windows.patch, strict=True))
            x = torch.from_numpy(channels[(slice(None), *place)][None].copy()).to(device)
            background, target = draw(x)[0].float().cpu().numpy()
            total[place] += weight * (target - background)
            weights[place] += weight
        done.update(todo)
        seen = weights > 0
        logits = np.full_like(total, -LOGIT_LIMIT)
        logits[seen] = (total[seen] / weights[seen]).clip(-LOGIT_LIMIT, LOGIT_LIMIT)
        if box is None:
            return logits
        if not todo:
            rest = np.ones(logits.shape, bool)
            rest[box] = False
            logits[rest] = -LOGIT_LIMIT
            return logits
        box = _reached(logits > 0, box)


def _reached(drawn: Bool[np.ndarray, "z y x"], box: Box) -> Box:
    """A box, and all of the pieces that lie in it, with a voxel of what is round them."""
    pieces, _ = ndimage.label(drawn, np.ones((3, 3, 3)))
    within = np.unique(pieces[box])
    inside = np.argwhere(np.isin(pieces, within[within > 0]))
    if not len(inside):
        return box
    low = np.minimum([along.start for along in box], inside.min(0) - 1).clip(0)
    high = np.maximum([along.stop for along in box], inside.max(0) + 2)
    z, y, x = (
        slice(int(a), int(min(b, n))) for a, b, n in zip(low, high, drawn.shape, strict=True)
    )
    return z, y, x


def _corners(length: int, patch: int) -> tuple[int, ...]:
    windows = 1 + int(np.ceil((length - patch) / (patch * (1 - OVERLAP))))
    return tuple(int(n) for n in np.linspace(0, length - patch, windows).round())


def _gaussian(side: int, *, as_nnunet: bool) -> Float[np.ndarray, " side"]:
    middle = side // 2 if as_nnunet else (side - 1) / 2
    weights: np.ndarray = np.exp(-0.5 * ((np.arange(side) - middle) / (SIGMA * side)) ** 2)
    return weights
