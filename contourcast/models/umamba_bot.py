"""UMamba-Bot: a residual U-Net with a Mamba layer at its bottleneck.

Ma, Li & Wang 2024, arXiv 2401.04722, figure 1; bowang-lab/U-Mamba, ``UMambaBot``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from contourcast.models.blocks import Up, convolution, initialise_he, stage
from contourcast.models.mamba import MambaConfig, MambaLayer
from contourcast.models.stages import StagesConfig, UShaped, decode


@dataclass(frozen=True, kw_only=True)
class UMambaConfig(StagesConfig):
    """Sizes of the network; `encoder_blocks` and `decoder_blocks` are those built.

    Attributes:
        bottleneck: ``identity`` leaves Mamba out: the control for all claims about it.
        mamba: Sizes of the Mamba layers.
    """

    bottleneck: Literal["mamba", "identity"] = "mamba"
    mamba: MambaConfig = field(default_factory=MambaConfig)

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
        levels = zip(self.upsample_layers, self.stages, self.seg_layers, strict=True)
        return decode(features, levels, all_heads=self.deep_supervision)


class UMambaBot(UShaped):
    """Encoder, Mamba over the deepest features, decoder."""

    config: UMambaConfig

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

    def bottleneck(self, features: list[Tensor]) -> Tensor:
        """m₁ = M₁(F_S)."""
        m1: Tensor = self.mamba_layer(features[-1])
        return m1
