"""Networks of stages: an encoder that halves and widens, a bottleneck, a decoder with skips."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class StagesConfig(NetworkConfig):
    """Sizes of the stages. The defaults are nnU-Net's six for a large 3-D patch.

    Attributes:
        features: Width of each stage.
        kernels: Of each stage, z y x.
        strides: With which each stage begins, z y x.
        blocks: Asked for in each stage (plain networks: convolutions).
        decoder_blocks_asked: The same for the decoder, deepest first.
    """

    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3),) * 6
    strides: tuple[tuple[int, ...], ...] = ((1, 1, 1),) + ((2, 2, 2),) * 5
    blocks: tuple[int, ...] = (2,) * 6
    decoder_blocks_asked: tuple[int, ...] = (2,) * 5

    def __post_init__(self) -> None:
        stages = len(self.features)
        lengths = (len(self.kernels), len(self.strides), len(self.blocks))
        axes = {len(v) for v in (*self.kernels, *self.strides)}
        if stages < 2 or set(lengths) != {stages} or len(self.decoder_blocks_asked) != stages - 1:
            raise InputError("features, kernels, strides and blocks need one entry for each stage")
        sizes = (*self.features, *self.blocks, *self.decoder_blocks_asked)
        if stages > 12 or min(sizes) < 1 or max(self.features) > 4096 or max(self.blocks) > 64:
            raise InputError("features, stages and blocks are of a size that no network has")
        if axes not in ({2}, {3}):
            raise InputError("kernels and strides need two or three axes, the same in all stages")

    @property
    def axes(self) -> int:
        """Two or three."""
        return len(self.kernels[0])

    @property
    def stages(self) -> int:
        """S of the papers."""
        return len(self.features)

    @property
    def reduction(self) -> tuple[int, ...]:
        """How many voxels along each axis become one at the deepest stage."""
        return tuple(math.prod(along) for along in zip(*self.strides, strict=True))

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Any size that leaves two voxels at the bottleneck."""
        self.bottleneck_shape(shape)

    def stage_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The size that an image has at each stage; odd sizes are rounded up."""
        shapes = []
        for stride in self.strides:
            shape = tuple(-(-n // s) for n, s in zip(shape, stride, strict=True))
            shapes.append(shape)
        return shapes

    def bottleneck_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The size that an image has at the deepest stage.

        Raises:
            InputError: It is one voxel, which no InstanceNorm can train on, or the image has
                another number of axes.
        """
        if len(shape) != self.axes:
            raise InputError(f"a patch of {shape} has {len(shape)} axes, needed are {self.axes}")
        deepest = self.stage_shapes(shape)[-1]
        if math.prod(deepest) < 2:
            raise InputError(
                f"a patch of {shape} shrinks to a single voxel at stage {self.stages}",
                remedy="use a larger patch or fewer stages",
            )
        return deepest


class UShaped(nn.Module):
    """Any network of an encoder, a bottleneck and a decoder with skips.

    A subclass builds ``encoder`` (an image to features, finest first) and ``decoder`` (features to
    logits), and says what happens between them.
    """

    config: NetworkConfig
    encoder: Any
    decoder: Any

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space); with deep supervision of all levels, finest first."""
        self.config.require_patch(tuple(x.shape[2:]))
        features = list(self.encoder(x))
        features[-1] = self.bottleneck(features)
        logits: Tensor | list[Tensor] = self.decoder(features)
        return logits

    def bottleneck(self, features: list[Tensor]) -> Tensor:
        """What goes to the decoder instead of the deepest features F_S."""
        return features[-1]


def decode(
    features: list[Tensor], levels: Iterable[tuple[nn.Module, ...]], *, all_heads: bool
) -> Tensor | list[Tensor]:
    """From the deepest features up: made larger, beside the skip, through blocks, to a head.

    Args:
        features: Finest first.
        levels: Deepest first: what makes larger (features, size), blocks, head.
        all_heads: Whether logits are asked for at all levels.

    Returns:
        Logits of the finest level; with ``all_heads`` of all levels, finest first.
    """
    x, logits = features[-1], []
    for (up, blocks, head), skip in zip(levels, features[-2::-1], strict=True):
        x = blocks(torch.cat((up(x, skip.shape[2:]), skip), 1))
        if all_heads or skip is features[0]:
            logits.append(head(x))
    return logits[::-1] if all_heads else logits[0]
