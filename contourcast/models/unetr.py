"""UNETR, MONAI's; with the noise reduction module as a plug-in.

Hatamizadeh et al. 2022, arXiv 2103.10504. A table of positions, one for each token, is learned:
the weights belong to one patch size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from jaxtyping import Float
from monai.networks.nets.unetr import UNETR as Host  # noqa: N811
from torch import Tensor

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig, Supervision
from contourcast.models.mamba import MambaConfig
from contourcast.models.noise_reduction import NrmConfig, clean, plugged

# A token is a cube of 16 voxels; these of the transformer's twelve states become skips.
TOKEN_SIDE: Final = 16
TAPPED_STATES: Final = (3, 6, 9)


@dataclass(frozen=True, kw_only=True)
class UnetrConfig(NetworkConfig):
    """Sizes; the defaults are the paper's base transformer.

    Attributes:
        patch_zyx: The one patch that the table of positions belongs to; multiples of 16.
        feature: Width of the finest skip; it doubles with each level.
        hidden: Width of a token.
        mlp: Inner width of the transformer's blocks.
        heads: Of its attention.
        nrm: Switches of the noise reduction module before the decoder; None: MONAI's network.
        taps: What feeds the module: the four convolutional skips, or the three states of the
            transformer that they are made of (the paper does not say).
        mamba: Sizes of the module's Mamba layer.
    """

    patch_zyx: tuple[int, int, int] = (96, 96, 96)
    feature: int = 16
    hidden: int = 768
    mlp: int = 3072
    heads: int = 12
    nrm: NrmConfig | None = None
    taps: Literal["skips", "vit_states"] = "skips"
    mamba: MambaConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        self._require_multiple(self.patch_zyx, TOKEN_SIDE)
        sizes = (self.feature, self.hidden, self.mlp, self.heads)
        if min(sizes) < 1 or max(sizes) > 8192 or max(self.patch_zyx) > 512:
            raise InputError("widths and patch are of a size that no network has")
        if self.hidden % self.heads:
            raise InputError(f"{self.hidden} numbers of a token do not fall to {self.heads} heads")

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Its own patch, and no other."""
        if shape != self.patch_zyx:
            raise InputError(
                f"these weights belong to a patch of {self.patch_zyx}, and this one is {shape}",
                remedy=f"cut patches of {self.patch_zyx}",
            )


class Unetr(Host):
    """Transformer, convolutional skips, the bottleneck cleaned if asked, decoder."""

    def __init__(self, config: UnetrConfig | None = None) -> None:
        config = config or UnetrConfig()
        super().__init__(
            in_channels=config.channels_in,
            out_channels=config.channels_out,
            img_size=config.patch_zyx,
            feature_size=config.feature,
            hidden_size=config.hidden,
            mlp_dim=config.mlp,
            num_heads=config.heads,
        )
        self.config = config
        self.decoder = Supervision()
        widths = (
            [config.feature * 2**level for level in range(4)]
            if config.taps == "skips"
            else [config.hidden] * len(TAPPED_STATES)
        )
        self.nrm = plugged(config.nrm, widths, config.hidden, mamba=config.mamba)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space)."""
        self.config.require_patch(tuple(x.shape[2:]))
        last, all_states = self.vit(x)
        last, *states = (  # (b hidden *tokens)
            self.proj_feat(state)  # type: ignore[no-untyped-call]
            for state in (last, *(all_states[i] for i in TAPPED_STATES))
        )
        encoders = (self.encoder2, self.encoder3, self.encoder4)
        skips = [
            self.encoder1(x),
            *(encoder(state) for encoder, state in zip(encoders, states, strict=True)),
        ]
        taps = skips if self.config.taps == "skips" else states
        y = clean(self.nrm, taps, last)
        decoders = (self.decoder5, self.decoder4, self.decoder3, self.decoder2)
        for decoder, skip in zip(decoders, skips[::-1], strict=True):
            y = decoder(y, skip)
        logits: Tensor = self.out(y)
        return [logits] if self.decoder.deep_supervision else logits
