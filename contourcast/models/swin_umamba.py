"""Swin-UMamba: VMamba's encoder, which can start from its pretrained weights, in a residual U-Net.

Liu et al. 2024, arXiv 2402.03302; JiarunLiu/Swin-UMamba, ``SwinUMamba``. For images of two axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import NORM_EPS, UnetrBlock, UnetrUp
from contourcast.models.config import NetworkConfig
from contourcast.models.mamba import MambaConfig
from contourcast.models.vssm import VssmEncoder, ss2d_config


@dataclass(frozen=True, kw_only=True)
class SwinUMambaConfig(NetworkConfig):
    """Sizes of the network; the defaults are the authors', and those that VMamba-T's weights fit.

    Attributes:
        stem: Width at half size.
        dims: Width of each stage of the encoder; the first works at a quarter of the size.
        depths: Blocks of each stage.
        drop_path: Largest share of samples that skip a block in training; it grows with depth.
        mamba: Sizes of the scans.
        pretrained: SHA-256 of the file that the encoder began with; empty: none.
    """

    stem: int = 48
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 9, 2)
    drop_path: float = 0.2
    mamba: MambaConfig = field(default_factory=ss2d_config)
    pretrained: str = ""

    def __post_init__(self) -> None:
        require_stages(self.dims, self.depths)

    @property
    def axes(self) -> int:
        """Two."""
        return 2

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Multiples of the deepest stage's stride: 32 with four stages."""
        self._require_multiple(shape, 2 ** (len(self.dims) + 1))


def require_stages(dims: tuple[int, ...], depths: tuple[int, ...]) -> None:
    """Of an encoder.

    Raises:
        InputError: Widths and depths do not fit each other, or are of no network.
    """
    if not 2 <= len(dims) <= 6 or len(dims) != len(depths):
        raise InputError("dims and depths need one entry for each of two to six stages")
    if min(*dims, *depths) < 1 or max(dims) > 4096 or max(depths) > 64:
        raise InputError("dims and depths are of a size that no network has")


class Decoder(nn.Module):
    """Residual blocks over the skips, steps up between them, a head at each level but two."""

    def __init__(self, config: SwinUMambaConfig) -> None:
        super().__init__()
        widths = (config.channels_in, config.stem, *config.dims)
        # Level i has size 1 / 2^i; its skip (image, stem, stages) is widened to the next level's.
        skips = (*widths[1:-1], widths[-1])
        self.skips = nn.ModuleList(
            UnetrBlock(inner, outer, axes=2) for inner, outer in zip(widths, skips, strict=False)
        )
        self.steps = nn.ModuleList(
            UnetrUp(below, here, axes=2)
            for below, here in zip((*skips[1:], widths[-1]), skips, strict=True)
        )
        self.last = UnetrBlock(config.stem, config.stem, axes=2)
        self.heads = nn.ModuleList(nn.Conv2d(w, config.channels_out, 1) for w in skips[:-1])
        self.deep_supervision = False

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits of the finest level; with deep supervision of all levels, finest first."""
        x = features[-1]
        logits = []
        for level in reversed(range(len(self.steps))):
            x = self.steps[level](x, self.skips[level](features[level]))
            if level == 0:
                x = self.last(x)
            if level == 0 or (self.deep_supervision and level < len(self.heads)):
                logits.append(self.heads[level](x))
        return logits[::-1] if self.deep_supervision else logits[0]


class SwinUMamba(nn.Module):
    """Stem, VMamba encoder, decoder."""

    def __init__(self, config: SwinUMambaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SwinUMambaConfig()
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels_in, config.stem, 7, 2, 3),
            nn.InstanceNorm2d(config.stem, eps=NORM_EPS, affine=True),
        )
        self.vssm_encoder = VssmEncoder(
            config.stem,
            patch=2,
            dims=config.dims,
            depths=config.depths,
            drop_path=config.drop_path,
            mamba=config.mamba,
        )
        self.decoder = Decoder(config)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, y, x)."""
        self.config.require_patch(tuple(x.shape[2:]))
        stem = self.stem(x)
        logits: Tensor | list[Tensor] = self.decoder([x, stem, *self.vssm_encoder(stem)])
        return logits
