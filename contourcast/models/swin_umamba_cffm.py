"""Swin-UMamba with gated fusion: window attention and SS2D side by side, a gate between them.

Our reading of an article without code (NETWORKS §11): stem, stages, block and gate are as it writes
them. What it leaves open is decided here: heads of 32 channels, a LayerNorm over each scale's
features, Swin-UMamba's decoder. For images of two axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import UnetrBlock, UnetrUp
from contourcast.models.config import NetworkConfig
from contourcast.models.mamba import MambaConfig
from contourcast.models.swin_umamba import require_stages
from contourcast.models.vssm import SS2D, PatchMerging, ss2d_config

# The stem's patches.
PATCH: Final = 4
HEAD_CHANNELS: Final = 32
MLP_TIMES: Final = 4


@dataclass(frozen=True, kw_only=True)
class SwinUMambaCffmConfig(NetworkConfig):
    """Sizes of the network; the defaults are the article's words (its 48 million need wider ones).

    Attributes:
        dims: Width of the stem, which works at a quarter of the size, and of each stage below it.
        blocks: Of each stage; in every second one the windows are shifted by half.
        window: Side of the windows of attention, in tokens.
        fusion: Width at which the two branches are weighed against each other.
        mamba: Sizes of the scans.
    """

    dims: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    window: int = 7
    fusion: int = 256
    mamba: MambaConfig = field(default_factory=ss2d_config)

    def __post_init__(self) -> None:
        require_stages(self.dims, (self.blocks,) * len(self.dims))
        if self.dims[0] % 2 or not (1 <= self.window <= 64 and 1 <= self.fusion <= 4096):
            raise InputError("window and fusion are of no network, or the first of dims is odd")

    @property
    def axes(self) -> int:
        """Two."""
        return 2

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Multiples of the deepest stage's stride, 32 with four widths; windows need not fit."""
        self._require_multiple(shape, PATCH * 2 ** (len(self.dims) - 1))


class WindowAttention(nn.Module):
    """Tokens attend to those of their window, with a bias by relative place (Liu et al. 2021).

    Images that windows do not divide are filled up; no token sees what was filled in, nor, across
    the border, what a shift brought round.
    """

    def __init__(self, width: int, *, window: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.heads = max(1, width // HEAD_CHANNELS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, self.heads))
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y x c"]:
        """Same shape."""
        height, breadth = x.shape[1:3]
        w, s = self.window, self.shift
        filled = F.pad(x, (0, 0, 0, -breadth % w, 0, -height % w))
        rows, columns = (n // w for n in filled.shape[1:3])
        windows = rearrange(
            filled.roll((-s, -s), (1, 2)), "b (n p) (m q) c -> b (n m) (p q) c", p=w, q=w
        )
        q, k, v = rearrange(
            self.qkv(windows), "b n t (three h c) -> three b n h t c", three=3, h=self.heads
        )
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self._bias()
        scores = scores.masked_fill(~self._together(height, breadth, x.device), -torch.inf)
        mixed = rearrange(scores.softmax(-1) @ v, "b n h t c -> b n t (h c)")
        image = rearrange(
            self.proj(mixed),
            "b (n m) (p q) c -> b (n p) (m q) c",
            n=rows, m=columns, p=w, q=w,
        )  # fmt: skip
        back: Tensor = image.roll((s, s), (1, 2))[:, :height, :breadth]
        return back

    def _bias(self) -> Float[Tensor, "h t t"]:
        """Of each pair of tokens of a window."""
        places = torch.arange(self.window, device=self.bias.device)
        y, x = (v.flatten() for v in torch.meshgrid(places, places, indexing="ij"))
        apart = [v[:, None] - v[None] + self.window - 1 for v in (y, x)]
        index: Int[Tensor, "t t"] = apart[0] * (2 * self.window - 1) + apart[1]
        return rearrange(self.bias[index], "t u h -> h t u")

    def _together(
        self, height: int, breadth: int, device: torch.device
    ) -> Bool[Tensor, "windows 1 t t"]:
        """Which tokens of a window are neighbours in the image too.

        Both are real or filled in, and both or neither were brought round by the shift.
        """
        along = [self._regions(n, device) for n in (height, breadth)]
        region = 4 * along[0][:, None] + along[1]  # (y x)
        of_window = rearrange(region, "(n p) (m q) -> (n m) (p q)", p=self.window, q=self.window)
        return (of_window[:, :, None] == of_window[:, None])[:, None]

    def _regions(self, length: int, device: torch.device) -> Int[Tensor, " n"]:
        places = torch.arange(length + -length % self.window, device=device)
        region = 2 * (places >= length).int() + (places < self.shift).int()
        return region.roll(-self.shift)


class GatedFusion(nn.Module):
    """G = σ(W [d; s] + b); f = G ⊙ d + (1 - G) ⊙ s, at one width, and back (CFFM)."""

    def __init__(self, width: int, fusion: int) -> None:
        super().__init__()
        self.dynamic = nn.Linear(width, fusion)
        self.window = nn.Linear(width, fusion)
        self.gate = nn.Linear(2 * fusion, fusion)
        self.back = nn.Linear(fusion, width)

    def forward(
        self, dynamic: Float[Tensor, "b y x c"], window: Float[Tensor, "b y x c"]
    ) -> Float[Tensor, "b y x c"]:
        """Where the gate is open the scans speak, elsewhere the attention."""
        d, s = self.dynamic(dynamic), self.window(window)
        gate = torch.sigmoid(self.gate(torch.cat((d, s), -1)))
        y: Tensor = self.back(gate * d + (1 - gate) * s)
        return y


class FusionBlock(nn.Module):
    """x + fusion(SS2D(n), attention(n)), n = LayerNorm(x); then x + MLP(LayerNorm(x))."""

    def __init__(self, width: int, config: SwinUMambaCffmConfig, *, shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, window=config.window, shifted=shifted)
        self.ss2d = SS2D(width, config.mamba)
        self.fusion = GatedFusion(width, config.fusion)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_TIMES * width), nn.GELU(), nn.Linear(MLP_TIMES * width, width)
        )

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y x c"]:
        """Same shape."""
        n = self.norm1(x)
        x = x + self.fusion(self.ss2d(n), self.attention(n))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Encoder(nn.Module):
    """Stem, and stages that begin with a merging."""

    def __init__(self, config: SwinUMambaCffmConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(config.channels_in, config.dims[0], PATCH, PATCH)
        self.stages = nn.ModuleList(
            nn.Sequential(
                PatchMerging(finer, width, bias=True),
                *(FusionBlock(width, config, shifted=bool(i % 2)) for i in range(config.blocks)),
            )
            for finer, width in pairwise(config.dims)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in config.dims)

    def forward(self, x: Float[Tensor, "b c y x"]) -> list[Tensor]:
        """Features (b c y x) at a quarter of the size and of each stage, finest first."""
        tokens = [rearrange(self.stem(x), "b c y x -> b y x c")]
        for stage in self.stages:
            tokens.append(stage(tokens[-1]))
        return [
            rearrange(norm(t), "b y x c -> b c y x")
            for norm, t in zip(self.norms, tokens, strict=True)
        ]


class Decoder(nn.Module):
    """Residual blocks over image and skips, steps up between them, one head."""

    def __init__(self, config: SwinUMambaCffmConfig) -> None:
        super().__init__()
        widths = (config.dims[0] // 2, *config.dims)
        self.skips = nn.ModuleList(
            UnetrBlock(inner, outer, axes=2)
            for inner, outer in zip(
                (config.channels_in, *config.dims[:-1]), widths[:-1], strict=True
            )
        )
        self.steps = nn.ModuleList(
            UnetrUp(below, here, axes=2, times=2 if level else PATCH)
            for level, (here, below) in enumerate(pairwise(widths))
        )
        self.head = nn.Conv2d(widths[0], config.channels_out, 1)
        self.deep_supervision = False

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits of full size, of the image and the encoder's features, finest first."""
        x = features[-1]
        for step, skip, feature in zip(
            reversed(self.steps), reversed(self.skips), features[-2::-1], strict=True
        ):
            x = step(x, skip(feature))
        logits: Tensor = self.head(x)
        return [logits] if self.deep_supervision else logits


class SwinUMambaCffm(nn.Module):
    """Encoder of fusion blocks, Swin-UMamba's decoder."""

    def __init__(self, config: SwinUMambaCffmConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SwinUMambaCffmConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, y, x)."""
        self.config.require_patch(tuple(x.shape[2:]))
        logits: Tensor | list[Tensor] = self.decoder([x, *self.encoder(x)])
        return logits
