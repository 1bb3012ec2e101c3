"""UMamba-Bot: a residual U-Net with a Mamba layer at its bottleneck.

Ma, Li & Wang 2024, arXiv 2401.04722, figure 1; bowang-lab/U-Mamba, ``UMambaBot``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import Up, convolution, initialise_he, stage
from contourcast.models.config import NetworkConfig
from contourcast.models.mamba import MambaConfig, MambaLayer


@dataclass(frozen=True, kw_only=True)
class UMambaConfig(NetworkConfig):
    """Sizes of the network. The defaults are nnU-Net's six stages for a large 3-D patch.

    Attributes:
        features: Width of each stage.
        kernels: Of each stage, z y x.
        strides: With which each stage begins, z y x.
        blocks: Asked for in each stage; `encoder_blocks` are those built.
        decoder_blocks_asked: The same for the decoder, deepest first.
        bottleneck: ``identity`` leaves the Mamba layer out: the control for all claims about it.
    """

    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3),) * 6
    strides: tuple[tuple[int, ...], ...] = ((1, 1, 1),) + ((2, 2, 2),) * 5
    blocks: tuple[int, ...] = (2,) * 6
    decoder_blocks_asked: tuple[int, ...] = (2,) * 5
    bottleneck: Literal["mamba", "identity"] = "mamba"
    mamba: MambaConfig = field(default_factory=MambaConfig)

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
        """S of the paper."""
        return len(self.features)

    @property
    def encoder_blocks(self) -> tuple[int, ...]:
        """As built: the deeper half has one block a stage."""
        half = math.ceil(self.stages / 2)
        return (*self.blocks[:half], *(1 for _ in self.blocks[half:]))

    @property
    def decoder_blocks(self) -> tuple[int, ...]:
        """As built, deepest first: from position ⌈(S - 1)/2 + ½⌉ on there is one block."""
        half = math.ceil((self.stages - 1) / 2 + 0.5)
        asked = self.decoder_blocks_asked
        return (*asked[:half], *(1 for _ in asked[half:]))

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Any size that leaves two voxels at the bottleneck."""
        self.bottleneck_shape(shape)

    def bottleneck_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The size that an image has at the deepest stage.

        Raises:
            InputError: It is one voxel, which no InstanceNorm can train on.
        """
        deepest = shape
        for stride in self.strides:
            deepest = tuple(-(-n // s) for n, s in zip(deepest, stride, strict=True))
        if math.prod(deepest) < 2:
            raise InputError(
                f"a patch of {shape} shrinks to a single voxel at stage {self.stages}",
                remedy="use a larger patch or fewer stages",
            )
        return deepest


class Encoder(nn.Module):
    """Stem and stages; each stage's output is kept."""

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        blocks, widths = config.encoder_blocks, config.features
        self.stem = stage(config.channels_in, widths[0], blocks=blocks[0], kernel=config.kernels[0])
        self.stages = nn.Sequential(
            *(
                stage(
                    widths[max(s - 1, 0)],
                    widths[s],
                    blocks=blocks[s],
                    kernel=config.kernels[s],
                    stride=config.strides[s],
                )
                for s in range(config.stages)
            )
        )

    def forward(self, x: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """F_1 … F_S, finest first."""
        x = self.stem(x)
        features = []
        for each in self.stages:
            x = each(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Up, beside the skip, residual blocks, a head at every level."""

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        widths, kernels = config.features[::-1], config.kernels[::-1]
        levels = range(config.stages - 1)
        self.upsample_layers = nn.ModuleList(
            Up(widths[s], widths[s + 1], axes=config.axes) for s in levels
        )
        self.stages = nn.ModuleList(
            stage(
                2 * widths[s + 1],
                widths[s + 1],
                blocks=config.decoder_blocks[s],
                kernel=kernels[s + 1],
            )
            for s in levels
        )
        self.seg_layers = nn.ModuleList(
            convolution(widths[s + 1], config.channels_out, (1,) * config.axes) for s in levels
        )
        self.deep_supervision = False

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits of the finest level; with deep supervision of all levels, finest first."""
        x = features[-1]
        logits = []
        skips = features[-2::-1]
        levels = zip(self.upsample_layers, self.stages, self.seg_layers, skips, strict=True)
        for up, blocks, head, skip in levels:
            x = blocks(torch.cat((up(x, skip.shape[2:]), skip), 1))
            if self.deep_supervision or skip is features[0]:
                logits.append(head(x))
        return logits[::-1] if self.deep_supervision else logits[0]


class UMambaBot(nn.Module):
    """Encoder, Mamba over the deepest features, decoder."""

    def __init__(self, config: UMambaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UMambaConfig()
        self.encoder = Encoder(config)
        self.mamba_layer: nn.Module = (
            MambaLayer(config.features[-1], config.mamba)
            if config.bottleneck == "mamba"
            else nn.Identity()
        )
        self.decoder = Decoder(config)
        self.apply(initialise_he)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space) of any size that leaves two voxels at the bottleneck."""
        self.config.require_patch(tuple(x.shape[2:]))
        features = self.encoder(x)
        features[-1] = self.bottleneck(features)
        logits: Tensor | list[Tensor] = self.decoder(features)
        return logits

    def bottleneck(self, features: list[Tensor]) -> Tensor:
        """What goes to the decoder instead of the deepest features F_S."""
        m1: Tensor = self.mamba_layer(features[-1])
        return m1
