"""Swin-UMamba-D: the decoder, too, is made of VSS blocks.

Liu et al. 2024, arXiv 2402.03302; JiarunLiu/Swin-UMamba, ``SwinUMambaD``. For images of two axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from contourcast.models.blocks import initialise_he
from contourcast.models.config import NetworkConfig
from contourcast.models.mamba import MambaConfig
from contourcast.models.swin_umamba import require_stages
from contourcast.models.vssm import VssmEncoder, VssStage, ss2d_config

# Patches of the image, and by how much the last expansion enlarges.
PATCH: Final = 4
DECODER_BLOCKS: Final = 2


@dataclass(frozen=True, kw_only=True)
class SwinUMambaDConfig(NetworkConfig):
    """Sizes of the network; the defaults are the authors', and those that VMamba-T's weights fit.

    Attributes:
        dims: Width of each stage of the encoder; the first works at a quarter of the size.
        depths: Blocks of each stage; each level of the decoder has two.
        drop_path: Largest share of samples that skip a block in training; it grows with depth.
        mamba: Sizes of the scans.
        pretrained: SHA-256 of the file that the encoder began with; empty: none.
    """

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
        self._require_multiple(shape, PATCH * 2 ** (len(self.dims) - 1))


class PatchExpansion(nn.Module):
    """A token becomes several, side by side, each of the given width (Cao et al. 2021)."""

    def __init__(self, width: int, width_out: int, *, times: int) -> None:
        super().__init__()
        self.times = times
        self.expand = nn.Linear(width, times * times * width_out, bias=False)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y2 x2 c2"]:
        """Both sides grow."""
        tokens = rearrange(
            self.expand(x), "b y x (p q c) -> b (y p) (x q) c", p=self.times, q=self.times
        )
        y: Tensor = self.norm(tokens)
        return y


class Level(nn.Module):
    """Expansion, beside the skip, a Linear back to the width, VSS blocks."""

    def __init__(
        self, below: int, width: int, *, drop_paths: list[float], config: MambaConfig
    ) -> None:
        super().__init__()
        self.up = PatchExpansion(below, width, times=2)
        self.join = nn.Linear(2 * width, width)
        self.blocks = VssStage(width, drop_paths=drop_paths, config=config)

    def forward(
        self, x: Float[Tensor, "b y x c"], skip: Float[Tensor, "b y2 x2 c2"]
    ) -> Float[Tensor, "b y2 x2 c2"]:
        """Of the skip's size, which is twice that of ``x``."""
        y: Tensor = self.blocks(self.join(torch.cat((self.up(x), skip), -1)))
        return y


class Decoder(nn.Module):
    """Levels from the deepest up, the last expansion to full size, a head at each."""

    def __init__(self, config: SwinUMambaDConfig) -> None:
        super().__init__()
        widths = config.dims[::-1]
        levels = len(widths) - 1
        shares = torch.linspace(config.drop_path, 0, DECODER_BLOCKS * levels, device="cpu")
        self.levels = nn.ModuleList(
            Level(below, width, drop_paths=each.tolist(), config=config.mamba)
            for (below, width), each in zip(pairwise(widths), shares.chunk(levels), strict=True)
        )
        self.last = PatchExpansion(widths[-1], widths[-1], times=PATCH)
        self.heads = nn.ModuleList(
            nn.Conv2d(width, config.channels_out, 1) for width in (*widths[1:], widths[-1])
        )
        self.deep_supervision = False

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits at full size; with deep supervision also at 1/4, 1/8, 1/16, in this order."""
        *skips, x = (rearrange(f, "b c y x -> b y x c") for f in features)
        outputs = []
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(x, skip)
            outputs.append(x)
        outputs.append(self.last(x))
        answers = list(zip(self.heads, outputs, strict=True))[::-1]
        if not self.deep_supervision:
            del answers[1:]
        logits = [head(rearrange(y, "b y x c -> b c y x")) for head, y in answers]
        return logits if self.deep_supervision else logits[0]


class SwinUMambaD(nn.Module):
    """VMamba encoder over patches of the image, VSS decoder."""

    def __init__(self, config: SwinUMambaDConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SwinUMambaDConfig()
        self.vssm_encoder = VssmEncoder(
            config.channels_in,
            patch=PATCH,
            dims=config.dims,
            depths=config.depths,
            drop_path=config.drop_path,
            mamba=config.mamba,
        )
        self.decoder = Decoder(config)
        self.apply(initialise_he)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, y, x)."""
        self.config.require_patch(tuple(x.shape[2:]))
        logits: Tensor | list[Tensor] = self.decoder(self.vssm_encoder(x))
        return logits
