"""UMamba-Enc: a residual U-Net with a Mamba layer after every stage of its encoder.

Ma, Li & Wang 2024, arXiv 2401.04722; bowang-lab/U-Mamba, ``UMambaEnc``. Where a stage has no more
voxels than channels, the authors scan over channels, and the layer is as wide as the stage has
voxels: such a network belongs to one patch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import initialise_he
from contourcast.models.mamba import MambaLayer
from contourcast.models.stages import UShaped
from contourcast.models.umamba_bot import Decoder, Encoder, UMambaConfig


@dataclass(frozen=True, kw_only=True)
class UMambaEncConfig(UMambaConfig):
    """UMamba-Bot's sizes; ``bottleneck`` ``identity`` leaves all Mamba layers out.

    Attributes:
        patch_zyx: The one patch that the weights belong to where channels are tokens.
        tokens: ``auto_channel``: channels where there are no more voxels than channels, as
            published. ``spatial``: voxels in every stage; any patch fits.
    """

    patch_zyx: tuple[int, ...] = (128, 128, 128)
    tokens: Literal["auto_channel", "spatial"] = "auto_channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens == "auto_channel":
            self.bottleneck_shape(self.patch_zyx)

    @property
    def channel_widths(self) -> tuple[int | None, ...]:
        """Voxels of each stage whose tokens are channels; None: its tokens are voxels."""
        if self.tokens == "spatial" or self.bottleneck == "identity":
            return (None,) * self.stages
        voxels = [math.prod(shape) for shape in self.stage_shapes(self.patch_zyx)]
        return tuple(
            n if n <= width else None for n, width in zip(voxels, self.features, strict=True)
        )

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Its own patch where channels are tokens, else any with two voxels at the bottleneck."""
        super().require_patch(shape)
        if shape != self.patch_zyx and any(self.channel_widths):
            raise InputError(
                f"these weights belong to a patch of {self.patch_zyx}, and this one is {shape}",
                remedy=f"cut patches of {self.patch_zyx}, or train with tokens: spatial",
            )


class ChannelMambaLayer(MambaLayer):
    """Mamba over the channels of a feature map; its width is the number of voxels."""

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape; float32."""
        tokens = x.flatten(2).transpose(1, 2)  # (b voxels c): channels take the voxels' place
        return super().forward(tokens).transpose(1, 2).reshape(x.shape)


class MambaEncoder(Encoder):
    """Each stage is followed by a Mamba layer; what that gives is the skip and goes on."""

    def __init__(self, config: UMambaEncConfig) -> None:
        super().__init__(config)
        self.mamba_layers = nn.ModuleList(_layer(config, stage) for stage in range(config.stages))

    def forward(self, x: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """F_1 … F_S, finest first."""
        x = self.stem(x)
        features = []
        for stage, mamba in zip(self.stages, self.mamba_layers, strict=True):
            x = mamba(stage(x))
            features.append(x)
        return features


class UMambaEnc(UShaped):
    """Encoder with Mamba, and UMamba-Bot's decoder."""

    config: UMambaEncConfig

    def __init__(self, config: UMambaEncConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UMambaEncConfig()
        self.encoder = MambaEncoder(config)
        self.decoder = Decoder(config)
        self.apply(initialise_he)


def _layer(config: UMambaEncConfig, stage: int) -> nn.Module:
    if config.bottleneck == "identity":
        return nn.Identity()
    voxels = config.channel_widths[stage]
    if voxels is not None:
        return ChannelMambaLayer(voxels, config.mamba)
    return MambaLayer(config.features[stage], config.mamba)
