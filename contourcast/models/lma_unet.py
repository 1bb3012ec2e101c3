"""LMa-UNet variant: a small U-Net whose encoder joins large depthwise kernels with Mamba.

Our reading of an article without code; docs/design/NETWORKS.md §10 holds the definition, and which
of the article's claims must not be repeated. Not the network that became LKM-UNet (`lkm_unet`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import (
    CONV,
    NORM,
    NORM_EPS,
    SLOPE,
    UpConvolution,
    convolution,
    initialise_he,
)
from contourcast.models.config import NetworkConfig, Supervision
from contourcast.models.mamba import MambaConfig, MambaLayer

POOL: Final = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
SMOOTH: Final = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, kw_only=True)
class LmaUnetConfig(NetworkConfig):
    """Sizes of the network.

    Attributes:
        dimensions: 2 or 3: axes of the image.
        kernel: Edge of the depthwise convolutions.
        features: Width at full size, then after each halving; from the second on with Mamba.
        bins: Into how many cells along each axis the pyramid pools the deepest features.
        pool_width: Channels of each level of the pyramid.
        mamba: Sizes of the Mamba layers.
    """

    dimensions: Literal[2, 3] = 3
    kernel: Literal[5, 7, 9] = 7
    features: tuple[int, ...] = (64, 128, 192, 256, 256)
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pool_width: int = 64
    mamba: MambaConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        if len(self.features) < 2 or not self.bins:
            raise InputError("the network needs two widths and one bin of the pyramid at least")
        if min(*self.features, *self.bins, self.pool_width) < 1:
            raise InputError("features, bins and the pyramid's width are at least one")

    @property
    def axes(self) -> int:
        """Two or three."""
        return self.dimensions

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Any size: odd ones are rounded up on the way down and cut on the way up.

        Raises:
            InputError: The image has another number of axes, or is one voxel.
        """
        if len(shape) != self.axes:
            raise InputError(f"a patch of {shape} has {len(shape)} axes, needed are {self.axes}")
        if math.prod(shape) < 2:
            raise InputError("a patch of one voxel cannot be normalised", remedy="use a larger one")


class LargeKernelMamba(nn.Module):
    """t = depthwise(x); t + Mamba(t): the residual starts after the convolution."""

    def __init__(self, channels: int, config: LmaUnetConfig) -> None:
        super().__init__()
        self.depthwise = CONV[config.axes](
            channels, channels, config.kernel, padding=config.kernel // 2, groups=channels
        )
        self.mamba = MambaLayer(channels, config.mamba)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape."""
        t = self.depthwise(x)
        out: Tensor = t + self.mamba(t)
        return out


class PyramidPooling(nn.Module):
    """Means over cells of several sizes, each through 1 x 1, beside the features, through 1 x 1."""

    def __init__(self, channels: int, config: LmaUnetConfig) -> None:
        super().__init__()
        ones, width = (1,) * config.axes, config.pool_width
        self.bins = config.bins
        self.levels = nn.ModuleList(convolution(channels, width, ones) for _ in config.bins)
        self.join = convolution(channels + width * len(config.bins), channels, ones)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape."""
        size = tuple(x.shape[2:])
        axes = len(size)
        parts = [x]
        for cells, level in zip(self.bins, self.levels, strict=True):
            mean = level(POOL[axes](x, (cells,) * axes))  # type: ignore[arg-type]
            parts.append(F.interpolate(mean, size=size, mode=SMOOTH[axes], align_corners=False))
        out: Tensor = self.join(torch.cat(parts, 1))
        return out


def double_convolution(channels_in: int, channels_out: int, *, axes: int) -> nn.Sequential:
    """conv, norm, LReLU, twice."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            convolution(channels, channels_out, (3,) * axes),
            NORM[axes](channels_out, eps=NORM_EPS, affine=True),
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)


class LmaUnet(nn.Module):
    """Two convolutions; four times halve and `LargeKernelMamba`; pyramid; a plain decoder."""

    def __init__(self, config: LmaUnetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LmaUnetConfig()
        axes, widths = config.axes, config.features
        steps = list(pairwise(widths))
        self.first = double_convolution(config.channels_in, widths[0], axes=axes)
        self.downs = nn.ModuleList(convolution(a, b, (3,) * axes, 2) for a, b in steps)
        self.blocks = nn.ModuleList(LargeKernelMamba(b, config) for _, b in steps)
        self.pyramid = PyramidPooling(widths[-1], config)
        self.ups = nn.ModuleList(UpConvolution(b, a, stride=(2,) * axes) for a, b in steps[::-1])
        self.joins = nn.ModuleList(double_convolution(2 * a, a, axes=axes) for a, _ in steps[::-1])
        self.head = convolution(widths[0], config.channels_out, (1,) * axes)
        self.decoder = Supervision()
        self.apply(initialise_he)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space); with deep supervision a list of these."""
        self.config.require_patch(tuple(x.shape[2:]))
        features = [self.first(x)]
        for down, block in zip(self.downs, self.blocks, strict=True):
            features.append(block(down(features[-1])))
        y = self.pyramid(features.pop())
        for up, join, skip in zip(self.ups, self.joins, features[::-1], strict=True):
            y = join(torch.cat((up(y, skip.shape[2:]), skip), 1))
        logits: Tensor = self.head(y)
        return [logits] if self.decoder.deep_supervision else logits
