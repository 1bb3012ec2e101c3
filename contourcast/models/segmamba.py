"""SegMamba: scans in three directions at four scales, between residual convolutions.

Xing, Ye, Yang, Liu & Zhu, MICCAI 2024, arXiv 2401.13560, figures 1 and 2; ge-xing/SegMamba, commit
cff3597. Where article and code differ there is a switch; docs/design/NETWORKS.md §8 says why each
default is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import UnetrBlock, UnetrUp
from contourcast.models.config import NetworkConfig, Supervision
from contourcast.models.mamba import Mamba, MambaConfig, full_precision, scan_together

# The stem and three steps down halve the image.
REDUCTION: Final = 16
# Kernel of the stem (figure 1), and how much wider the MLP on the skips is inside.
STEM_KERNEL: Final = 7
MLP_RATIO: Final = 2
AXES: Final = 3


@dataclass(frozen=True, kw_only=True)
class SegMambaConfig(NetworkConfig):
    """Sizes of the network, and what its two descriptions disagree about.

    Attributes:
        features: Width of each of the four scales.
        hidden: Width of the deepest convolutions.
        depths: Layers of Mamba at each scale.
        gsc: How the gated convolution joins its branches: ``sum`` (code), ``product`` (article).
        mlp: ``code``: norm, MLP, on the skips alone. ``paper``: x + MLP(LayerNorm(x)) after each
            layer of Mamba, and nothing on the skips.
        slices: ``tensor``: slices of the inter-slice scan are those of the feature map. Or their
            number at each scale, which must divide its tokens (code: 64, 32, 16, 8).
        mamba: Sizes of the Mamba layers.
    """

    features: tuple[int, ...] = (48, 96, 192, 384)
    hidden: int = 768
    depths: tuple[int, ...] = (2, 2, 2, 2)
    gsc: Literal["sum", "product"] = "sum"
    mlp: Literal["code", "paper"] = "code"
    slices: Literal["tensor"] | tuple[int, ...] = "tensor"
    mamba: MambaConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        scales = int(math.log2(REDUCTION))
        slices = (1,) * scales if self.slices == "tensor" else self.slices
        if not len(self.features) == len(self.depths) == len(slices) == scales:
            raise InputError(f"features, depths and slices need {scales} entries, one a scale")
        if min(*self.features, *self.depths, *slices, self.hidden) < 1:
            raise InputError("features, depths, slices and the hidden width are at least one")

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Multiples of 16 that leave two voxels at the deepest scale."""
        self._require_multiple(shape, REDUCTION)
        if math.prod(shape) // REDUCTION**AXES < 2:
            raise InputError(
                f"a patch of {shape} shrinks to a single voxel at the deepest scale",
                remedy=f"use {(*shape[:-1], 2 * REDUCTION)}",
            )
        for scale, slices in enumerate(() if self.slices == "tensor" else self.slices):
            tokens = math.prod(n // 2 ** (scale + 1) for n in shape)
            if tokens % slices:
                raise InputError(
                    f"{tokens} tokens of a patch of {shape} cannot be read as {slices} slices",
                    remedy="use slices 'tensor', or the patch that they were chosen for",
                )


class GatedConvolution(nn.Module):
    """GSC, figure 2b: two branches, 3³ twice and 1³, joined; each is conv, norm, ReLU; plus x."""

    def __init__(self, channels: int, join: Literal["sum", "product"]) -> None:
        super().__init__()
        self.join = join
        self.wide1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.wide2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.gate = nn.Conv3d(channels, channels, 1)
        kernel = {"sum": 1, "product": 3}[join]
        self.out = nn.Conv3d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Same shape."""
        wide = _norm_relu(self.wide2(_norm_relu(self.wide1(x))))
        gate = _norm_relu(self.gate(x))
        joined = wide * gate if self.join == "product" else wide + gate
        return x + _norm_relu(self.out(joined))


def _norm_relu(x: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x), inplace=True)


class TriMamba(nn.Module):
    """Three cores on one projection: forward, from the end, and slice by slice (figure 2c)."""

    def __init__(self, channels: int, config: MambaConfig) -> None:
        super().__init__()
        inner = config.expand * channels
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.forth = Mamba(channels, config, in_proj=False, out_proj=False)
        self.back = Mamba(channels, config, in_proj=False, out_proj=False)
        self.across = Mamba(channels, config, in_proj=False, out_proj=False)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, h: Float[Tensor, "b l c"], slices: int) -> Float[Tensor, "b l c"]:
        """Tokens come slice after slice, all slices of one size."""
        xz = self.in_proj(h)
        forth, back, across = scan_together(
            [self.forth, self.back, self.across], [xz, xz.flip(1), between_slices(xz, slices)]
        )
        out: Tensor = self.out_proj(forth + back.flip(1) + along_slices(across, slices))
        return out


def between_slices(tokens: Float[Tensor, "b l c"], slices: int) -> Float[Tensor, "b l c"]:
    """The token at position p of slice s moves to p · slices + s."""
    return rearrange(tokens, "b (s p) c -> b (p s) c", s=slices)


def along_slices(tokens: Float[Tensor, "b l c"], slices: int) -> Float[Tensor, "b l c"]:
    """Undoes `between_slices`."""
    return rearrange(tokens, "b (p s) c -> b (s p) c", s=slices)


class TomLayer(nn.Module):
    """x + TriMamba(LayerNorm(x)); in the article then x + MLP(LayerNorm(x)) (figure 2a)."""

    def __init__(self, channels: int, config: SegMambaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = TriMamba(channels, config.mamba)
        self.mlp = (
            nn.Sequential(
                nn.LayerNorm(channels),
                nn.Linear(channels, MLP_RATIO * channels),
                nn.GELU(),
                nn.Linear(MLP_RATIO * channels, channels),
            )
            if config.mlp == "paper"
            else None
        )

    def forward(
        self, x: Float[Tensor, "b c z y x"], slices: int | None
    ) -> Float[Tensor, "b c z y x"]:
        """Same shape, in float32 unless float64 came in; without a number, slices are planes."""
        with full_precision(x) as wide:
            tokens = rearrange(wide, "b c z y x -> b (z y x) c")
            tokens = tokens + self.mamba(self.norm(tokens), slices or x.shape[2])
            if self.mlp is not None:
                tokens = tokens + self.mlp(tokens)
            out: Tensor = tokens.transpose(1, 2).reshape(x.shape)
            return out


class SkipMlp(nn.Module):
    """The code's MLP: norm, 1³ to twice the width, GELU, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv3d(channels, MLP_RATIO * channels, 1)
        self.narrow = nn.Conv3d(MLP_RATIO * channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Same shape."""
        out: Tensor = self.narrow(F.gelu(self.widen(F.instance_norm(x))))
        return out


class Encoder(nn.Module):
    """At each scale: halve, gated convolution, layers of Mamba; a copy goes out through an MLP."""

    def __init__(self, config: SegMambaConfig) -> None:
        super().__init__()
        self.slices = config.slices
        widths = config.features
        stem = nn.Conv3d(config.channels_in, widths[0], STEM_KERNEL, 2, STEM_KERNEL // 2)
        steps = (
            nn.Sequential(nn.InstanceNorm3d(a), nn.Conv3d(a, b, 2, 2)) for a, b in pairwise(widths)
        )
        self.downs = nn.ModuleList((stem, *steps))
        self.gates = nn.ModuleList(GatedConvolution(c, config.gsc) for c in widths)
        self.layers = nn.ModuleList(
            nn.ModuleList(TomLayer(c, config) for _ in range(depth))
            for c, depth in zip(widths, config.depths, strict=True)
        )
        self.mlps = nn.ModuleList(
            SkipMlp(c) if config.mlp == "code" else nn.Identity() for c in widths
        )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Four scales, from a half to a sixteenth of the size."""
        outgoing = []
        slices: Sequence[int | None] = (
            (None,) * len(self.downs) if self.slices == "tensor" else self.slices
        )
        scales = zip(self.downs, self.gates, self.layers, self.mlps, slices, strict=True)
        for down, gate, layers, mlp, number in scales:
            x = gate(down(x))
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, number)
            outgoing.append(mlp(x))
        return outgoing


class SegMamba(nn.Module):
    """Encoder; a residual block on the image and on each scale; up, beside it, residual block."""

    def __init__(self, config: SegMambaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SegMambaConfig()
        widths = (*config.features, config.hidden)
        self.encoder = Encoder(config)
        self.skips = nn.ModuleList(
            UnetrBlock(a, b, axes=AXES)
            for a, b in zip((config.channels_in, *config.features), widths, strict=True)
        )
        self.ups = nn.ModuleList(UnetrUp(a, b, axes=AXES) for a, b in pairwise(widths[::-1]))
        self.last = UnetrBlock(widths[0], widths[0], axes=AXES)
        self.head = nn.Conv3d(widths[0], config.channels_out, 1)
        self.decoder = Supervision()

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, z, y, x); with deep supervision a list of these."""
        self.config.require_patch(tuple(x.shape[2:]))
        scales = (x, *self.encoder(x))
        features = [block(each) for block, each in zip(self.skips, scales, strict=True)]
        y = features.pop()
        for up, skip in zip(self.ups, features[::-1], strict=True):
            y = up(y, skip)
        logits: Tensor = self.head(self.last(y))
        return [logits] if self.decoder.deep_supervision else logits
