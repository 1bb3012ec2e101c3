"""The noise reduction module (NRM): what the shallow features say, taken from the bottleneck.

Diff-UMamba, Biomedical Signal Processing and Control 120 (2026) 110163, equations 6 to 8:

    e_i = AdaptiveAvgPool(ReLU(Conv1x1_i(F_i))),   ê = Σ λ_i e_i,   m̂ = m₁ - M₂(ê)

It knows nothing of its host: features in, bottleneck in, bottleneck out. It computes in float32:
its sums run over thousands of voxels.

M₂ begins with a LayerNorm, so a common factor on all λ changes nothing: λ's size says nothing of
how much is subtracted. That is what `NrmConfig.gate` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import convolution, initialise_he
from contourcast.models.config import STRICT
from contourcast.models.mamba import MambaConfig, MambaLayer
from contourcast.models.stages import UShaped

POOL: Final[dict[int, Callable[..., Tensor]]] = {
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@dataclass(frozen=True, kw_only=True)
class NrmConfig:
    """Switches of the module; the defaults are the paper's, where its code settles them.

    Attributes:
        levels: Which features feed it, 1 = finest; None: all but the deepest.
        detach: Whether its gradient stops before the encoder (the authors' code does; the paper
            does not say).
        lambda_init: λ at birth (the paper found 0.5 best).
        lambda_trainable: Whether λ is learned.
        second_mamba: ``identity``: m̂ = m₁ - ê. ``none``: nothing is subtracted and nothing built.
        gate: g in m̂ = m₁ - g m₂, born 1: ``scalar``, ``channel``, or ``none`` as in the paper.
        slabs: Whether projections are made row by row of the bottleneck's cells and made again
            in the backward: the same numbers without a wide feature map at full resolution.
        pool: How features come to the bottleneck's size.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    levels: tuple[int, ...] | None = None
    detach: bool = True
    lambda_init: float = 0.5
    lambda_trainable: bool = True
    second_mamba: Literal["mamba", "identity", "none"] = "mamba"
    gate: Literal["none", "scalar", "channel"] = "none"
    slabs: bool = True
    pool: Literal["adaptive_avg"] = "adaptive_avg"


class NoiseReduction(nn.Module):
    """Subtracts M₂(Σ λ_i e_i) from a bottleneck.

    Args:
        channels_in: Width of each feature map that can feed it, finest first.
        channels: Width of the bottleneck.
        axes: Two or three.
        config: The switches.
        mamba: Sizes of M₂.

    Raises:
        InputError: ``config.levels`` names a level that there is not, or one twice.
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        channels: int,
        *,
        axes: int = 3,
        config: NrmConfig | None = None,
        mamba: MambaConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or NrmConfig()
        self.levels = tuple(range(1, len(channels_in) + 1))
        if config.levels is not None:
            if not set(config.levels) <= set(self.levels) or len(set(config.levels)) != len(
                config.levels
            ):
                raise InputError(
                    f"nrm.levels {config.levels} are not distinct levels of 1 to {len(channels_in)}"
                )
            self.levels = config.levels
        if config.second_mamba == "none":
            self.levels = ()
            return
        self.proj = nn.ModuleList(
            convolution(channels_in[level - 1], channels, (1,) * axes) for level in self.levels
        )
        self.lambdas = nn.Parameter(
            torch.full((len(self.levels),), config.lambda_init),
            requires_grad=config.lambda_trainable,
        )
        self.mamba: nn.Module = (
            MambaLayer(channels, mamba) if config.second_mamba == "mamba" else nn.Identity()
        )
        if config.gate != "none":
            width = 1 if config.gate == "scalar" else channels
            self.gate = nn.Parameter(torch.ones(1, width, *(1,) * axes))

    def forward(
        self, features: Sequence[Tensor], bottleneck: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, "b c *space"]:
        """m̂, from F_1 … F_l (finest first) and m₁."""
        if not self.levels:
            return bottleneck
        with torch.autocast(bottleneck.device.type, enabled=False):
            m2 = self.mamba(self.summary(features, tuple(bottleneck.shape[2:])))
            if self.config.gate != "none":
                m2 = self.gate * m2
            cleaned: Tensor = bottleneck - m2
            return cleaned

    def summary(self, features: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
        """ê = Σ λ_i e_i at the bottleneck's size."""
        terms = [
            weight * self.project(projection, features[level - 1], size)
            for weight, projection, level in zip(self.lambdas, self.proj, self.levels, strict=True)
        ]
        return torch.stack(terms).sum(0)

    def project(self, projection: nn.Module, feature: Tensor, size: tuple[int, ...]) -> Tensor:
        """e_i: convolution, *then* ReLU, *then* pooling; in another order it is another thing."""
        if self.config.detach:
            feature = feature.detach()
        if feature.dtype in (torch.float16, torch.bfloat16):  # casting the wide e_i costs more
            feature = feature.float()
        if not self.config.slabs:
            return _pooled(projection, feature, size)
        one = (1, 1, *size[2:])
        rows = [
            torch.cat([self._row(projection, row, one) for row in _cut(slab, 3, size[1])], 3)
            for slab in _cut(feature, 2, size[0])
        ]
        return torch.cat(rows, 2)

    def _row(self, projection: nn.Module, part: Tensor, size: tuple[int, ...]) -> Tensor:
        """One row of cells; what is wide is made again in the backward.

        Single cells would need less still, but their sums round otherwise.
        """
        if not torch.is_grad_enabled():
            return _pooled(projection, part, size)
        pooled: Tensor = checkpoint(_pooled, projection, part, size, use_reentrant=False)
        return pooled


def _cut(feature: Tensor, axis: int, cells: int) -> list[Tensor]:
    """The parts of an axis that adaptive pooling makes one cell of each; its own borders."""
    length = feature.shape[axis]
    borders = ((i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells))
    return [feature.narrow(axis, low, high - low) for low, high in borders]


class Cleaned(UShaped):
    """Algorithm 1 on any U-shaped network: its bottleneck is cleaned before it is decoded.

    ``nrm`` is what `plugged` answers; it stands before the host in the bases.
    """

    nrm: NoiseReduction | None

    def bottleneck(self, features: list[Tensor]) -> Tensor:
        """Equation 8: m̂ = m₁ - m₂, with m₁ the host's own bottleneck."""
        m1 = super().bottleneck(features)
        return clean(self.nrm, features[:-1], m1)


def plugged(
    nrm: NrmConfig | None,
    channels_in: Sequence[int],
    channels: int,
    *,
    axes: int = 3,
    mamba: MambaConfig | None = None,
) -> NoiseReduction | None:
    """The module that a host's switches ask for, at birth; None: none is asked for."""
    if nrm is None:
        return None
    module = NoiseReduction(channels_in, channels, axes=axes, config=nrm, mamba=mamba)
    return module.apply(initialise_he)


def clean(
    nrm: NoiseReduction | None, features: Sequence[Tensor], bottleneck: Float[Tensor, "b c *space"]
) -> Float[Tensor, "b c *space"]:
    """m̂, or the bottleneck as it is where the host has no such module."""
    if nrm is None:
        return bottleneck
    cleaned: Tensor = nrm(features, bottleneck)
    return cleaned


def _pooled(projection: nn.Module, feature: Tensor, size: tuple[int, ...]) -> Tensor:
    return POOL[len(size)](F.relu(projection(feature), inplace=True), size)
