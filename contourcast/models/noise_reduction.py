"""The noise reduction module (NRM): what the shallow features say, taken from the bottleneck.

Diff-UMamba, Biomedical Signal Processing and Control 120 (2026) 110163, equations 6 to 8:

    e_i = AdaptiveAvgPool(ReLU(Conv1x1_i(F_i))),   ê = Σ λ_i e_i,   m̂ = m₁ - M₂(ê)

It knows nothing of its host: features in, bottleneck in, bottleneck out. It computes in float32:
its sums run over thousands of voxels.

M₂ begins with a LayerNorm, so a common factor on all λ changes nothing: λ's size says nothing of
how much is subtracted. That is what `NrmConfig.gate` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, ClassVar, Final, Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import convolution, initialise_he
from contourcast.models.config import STRICT
from contourcast.models.mamba import MambaConfig, MambaLayer
from contourcast.models.stages import UShaped

POOL: Final[dict[int, Callable[..., Tensor]]] = {
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
BLOCK_VALUES: Final = 2**19  # 2 MiB of float32: what a core's second-level cache holds


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
        slabs: Whether projections are made a block of voxels at a time and made again in the
            backward: the same answer without a wide feature map at full resolution.
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
        if not self.config.slabs:
            if feature.dtype in (torch.float16, torch.bfloat16):  # casting the wide e_i costs more
                feature = feature.float()
            return _pooled(projection, feature, size)
        arguments = feature, projection.weight, projection.bias, size
        e: Tensor = _CellMeans.apply(*arguments)  # type: ignore[no-untyped-call]
        return e


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


class _CellMeans(torch.autograd.Function):
    """`_pooled`, a block of voxels at a time: no map as wide as the bottleneck at full size.

    From features (b, c, *space), weight (d, c, 1, …) and bias (d), to means (b, d, *size) in the
    weight's precision. The projections are made again in the backward, where only their signs are
    needed.
    """

    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(feature, weight, bias)
        means = weight.new_zeros(len(feature), len(weight), *size)
        matrix = weight.flatten(1)
        for cell, window, voxels in _cells(feature.shape, size):
            for block in _blocks(feature[window], weight):
                projected = torch.addmm(bias[:, None], matrix, block)
                means[cell] += projected.relu_().sum(1)
            means[cell] /= voxels
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_means: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        feature, weight, bias = ctx.saved_tensors
        by_feature = weight.new_zeros(feature.shape) if ctx.needs_input_grad[0] else None
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        matrix = weight.flatten(1)
        for cell, window, voxels in _cells(feature.shape, by_means.shape[2:]):
            by_value = by_means[cell][:, None] / voxels  # the same for every voxel of the cell
            by_window = []
            for block in _blocks(feature[window], weight):
                on = torch.addmm(bias[:, None], matrix, block).relu_().sign_()
                by_weight.flatten(1).addcmul_(by_value, on @ block.T)
                by_bias.add_(by_value[:, 0] * on.sum(1))
                if by_feature is not None:
                    by_window.append((matrix * by_value).T @ on)
            if by_feature is not None:
                by_feature[window] += torch.cat(by_window, 1).view_as(feature[window])
        if by_feature is not None:
            by_feature = by_feature.to(feature.dtype)
        return by_feature, by_weight, by_bias, None


def _cells(
    shape: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], int]]:
    """Each cell's index, its window of the feature, and how many voxels that holds.

    The borders are adaptive pooling's own: windows overlap where the sizes do not divide.
    """
    borders = [
        [slice(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]
        for length, cells in zip(shape[2:], size, strict=True)
    ]
    for item in range(shape[0]):
        for at in product(*(range(cells) for cells in size)):
            window = tuple(axis[i] for axis, i in zip(borders, at, strict=True))
            voxels = prod(each.stop - each.start for each in window)
            yield (item, slice(None), *at), (item, slice(None), *window), voxels


def _blocks(window: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """(channels, voxels) in pieces whose projection is small: on a CPU it stays in the cache."""
    values = BLOCK_VALUES if window.device.type == "cpu" else 64 * BLOCK_VALUES
    return torch.split(window.flatten(1).to(weight.dtype), max(values // len(weight), 1), 1)
