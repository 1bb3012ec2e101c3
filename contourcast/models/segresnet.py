"""SegResNet, MONAI's; with the noise reduction module as a plug-in.

Myronenko 2018, arXiv 1810.11654, without its autoencoder branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from monai.networks.nets.segresnet import SegResNet as Host
from torch import Tensor

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig, Supervision
from contourcast.models.mamba import MambaConfig
from contourcast.models.noise_reduction import NrmConfig, clean, plugged


@dataclass(frozen=True, kw_only=True)
class SegResNetConfig(NetworkConfig):
    """Sizes; the defaults are those of the U-Mamba comparison.

    Attributes:
        filters: Width of the finest level, a multiple of eight; each further level doubles it.
        blocks_down: Residual blocks of each level of the encoder.
        blocks_up: Of each level of the decoder, deepest first.
        nrm: Switches of the noise reduction module before the decoder; None: MONAI's network.
        mamba: Sizes of the module's Mamba layer.
    """

    filters: int = 32
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)
    nrm: NrmConfig | None = None
    mamba: MambaConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        levels = len(self.blocks_down)
        if not 2 <= levels <= 7 or len(self.blocks_up) != levels - 1:
            raise InputError("blocks_down needs one entry for each level, blocks_up one fewer")
        if not 0 < min(*self.blocks_down, *self.blocks_up) <= max(self.blocks_down) <= 64:
            raise InputError("blocks_down and blocks_up are of a size that no network has")
        if self.filters % 8 or not 8 <= self.filters <= 256:
            raise InputError(f"filters is {self.filters}, needed is a multiple of 8 up to 256")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of each level, finest first."""
        return tuple(self.filters * 2**level for level in range(len(self.blocks_down)))

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Sides that can be halved once for each level below the finest."""
        self._require_multiple(shape, 2 ** (len(self.blocks_down) - 1))


class SegResNet(Host):
    """MONAI's encoder, the bottleneck cleaned if asked, MONAI's decoder."""

    def __init__(self, config: SegResNetConfig | None = None) -> None:
        config = config or SegResNetConfig()
        super().__init__(
            init_filters=config.filters,
            in_channels=config.channels_in,
            out_channels=config.channels_out,
            blocks_down=config.blocks_down,
            blocks_up=config.blocks_up,
        )
        self.config = config
        self.decoder = Supervision()
        *taps, deepest = config.widths
        self.nrm = plugged(config.nrm, taps, deepest, mamba=config.mamba)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b c *space"]
    ) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space)."""
        self.config.require_patch(tuple(x.shape[2:]))
        deepest, features = self.encode(x)
        cleaned = clean(self.nrm, features[:-1], deepest)
        logits: Tensor = self.decode(cleaned, features[::-1])
        return [logits] if self.decoder.deep_supervision else logits
