"""nnMamba: a residual U-Net in which Mamba, read in four ways, runs beside the convolutions.

Gong et al., ISBI 2025, arXiv 2402.03526; lhaof/nnMamba, ``nnMamba.py`` and ``nnMamba4cls.py``.
Three heads: segmentation, landmarks (the same network, one heat map each) and classification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import NORM_EPS, initialise_he
from contourcast.models.config import NetworkConfig
from contourcast.models.mamba import Mamba, MambaConfig, full_precision

Norm = Literal["instance", "batch"]
# The stem and three stages halve the size.
STRIDE: Final = 16
# Channel attention has a hidden width of so many less (Hu et al. 2018).
REDUCTION: Final = 16


@dataclass(frozen=True, kw_only=True)
class NnMambaConfig(NetworkConfig):
    """Sizes of the network; the widths are the authors'.

    Attributes:
        width: After the stem; each of the three stages doubles it.
        blocks: Residual blocks of each stage; all but the first have Mamba beside them.
        norm: ``instance`` for batches of two; ``batch`` is the authors'.
        mamba: Sizes of the scans.
        head: ``linear`` ends in a 1 x 1 x 1 convolution, at full size and at the three levels
            below. ``code`` is the authors': convolution, norm and ReLU, so that no logit is
            negative, at full size alone.
    """

    width: int = 32
    blocks: int = 3
    norm: Norm = "instance"
    mamba: MambaConfig = field(default_factory=MambaConfig)
    head: Literal["linear", "code"] = "linear"

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.blocks)

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Multiples of 16, and two voxels at the deepest stage."""
        self._require_multiple(shape, STRIDE)
        _require_two_voxels(shape)


@dataclass(frozen=True, kw_only=True)
class NnMambaClassifierConfig(NetworkConfig):
    """Sizes of the classifier; ``channels_out`` counts its outputs.

    Attributes:
        width: After the stem; each of the three stages doubles it.
        blocks: Residual blocks of each stage.
        norm: ``instance`` for batches of two; ``batch`` is the authors'.
        mamba: Sizes of the scans in the stages and of that over the sequence.
        cls: ``sequence`` is the article's: the maximum of each stage is a token, Mamba reads the
            three. ``code`` is the authors': their means side by side, two Linears, and no Mamba
            but one in the stem, which reads in one way.
        dropout: Before the last Linear of ``code``.
    """

    width: int = 32
    blocks: int = 3
    norm: Norm = "instance"
    mamba: MambaConfig = field(default_factory=MambaConfig)
    cls: Literal["sequence", "code"] = "sequence"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.blocks)

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Multiples of 16, and two voxels at the deepest stage."""
        self._require_multiple(shape, STRIDE)
        _require_two_voxels(shape)


def _require_sizes(width: int, blocks: int) -> None:
    if not (1 <= width <= 512 and 1 <= blocks <= 64):
        raise InputError("width and blocks are of a size that no network has")


def _require_two_voxels(shape: tuple[int, ...]) -> None:
    """No norm can train on a single voxel."""
    if math.prod(shape) < 2 * STRIDE ** len(shape):
        raise InputError(
            f"a patch of {shape} shrinks to a single voxel at the deepest stage",
            remedy=f"use {(*shape[:-1], 2 * STRIDE)} or larger",
        )


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels, eps=NORM_EPS)
    return nn.InstanceNorm3d(channels, eps=NORM_EPS, affine=True)


def _normed(
    channels_in: int, channels_out: int, kernel: int, *, norm: Norm, stride: int = 1, bias: bool
) -> list[nn.Module]:
    """Convolution and norm."""
    return [
        nn.Conv3d(channels_in, channels_out, kernel, stride, kernel // 2, bias=bias),
        _norm(norm, channels_out),
    ]


class DoubleConvolution(nn.Sequential):
    """Twice 3 x 3 x 3, norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, norm: Norm, stride: int = 1) -> None:
        super().__init__(
            *_normed(channels_in, channels_out, 3, norm=norm, stride=stride, bias=True),
            nn.ReLU(inplace=True),
            *_normed(channels_out, channels_out, 3, norm=norm, bias=True),
            nn.ReLU(inplace=True),
        )


class SiameseMamba(nn.Module):
    """Channel-spatial siamese learning (CSS): one Mamba reads the tokens as they are and flipped.

    ¼ Σ_f f(Mamba(f(tokens))), f of: nothing, the order of the tokens, that of the channels, both.
    Runs in float32 whatever comes in.
    """

    FLIPS: ClassVar[tuple[tuple[int, ...], ...]] = ((), (1,), (2,), (1, 2))

    def __init__(self, channels: int, config: MambaConfig) -> None:
        super().__init__()
        self.mamba = Mamba(channels, config)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape; float32 unless float64 came in."""
        with full_precision(x) as wide:
            tokens = wide.flatten(2).transpose(1, 2)  # (b l c)
            read = self.mamba(torch.cat([tokens.flip(f) for f in self.FLIPS])).chunk(4)
            mean = torch.stack([y.flip(f) for y, f in zip(read, self.FLIPS, strict=True)]).mean(0)
            return mean.transpose(1, 2).reshape(x.shape)


class ForwardMamba(nn.Module):
    """Mamba over the voxels in one way, without norm, in float32."""

    def __init__(self, channels: int, config: MambaConfig) -> None:
        super().__init__()
        self.mamba = Mamba(channels, config)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape; float32 unless float64 came in."""
        with full_precision(x) as wide:
            y: Tensor = self.mamba(wide.flatten(2).transpose(1, 2))
            return y.transpose(1, 2).reshape(x.shape)


class MambaInConvolution(nn.Module):
    """MIC: u = ReLU(norm(1³ x)); ReLU(norm(1³(scan(u) + u))). With CSS inside it is MICCSS."""

    def __init__(self, channels: int, scan: nn.Module, *, norm: Norm) -> None:
        super().__init__()
        self.before = nn.Sequential(
            *_normed(channels, channels, 1, norm=norm, bias=False), nn.ReLU(inplace=True)
        )
        self.scan = scan
        self.after = nn.Sequential(
            *_normed(channels, channels, 1, norm=norm, bias=False), nn.ReLU(inplace=True)
        )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Same shape."""
        u = self.before(x)
        y: Tensor = self.after(self.scan(u) + u)
        return y


class Block(nn.Module):
    """3³, norm, ReLU, 3³, norm; plus what Mamba says, plus the input; ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_normed(channels_in, channels_out, 3, norm=norm, stride=stride, bias=False),
            nn.ReLU(inplace=True),
            *_normed(channels_out, channels_out, 3, norm=norm, bias=False),
        )
        self.shortcut = (
            nn.Sequential(
                *_normed(channels_in, channels_out, 1, norm=norm, stride=stride, bias=False)
            )
            if stride > 1
            else nn.Identity()
        )

    def forward(
        self, x: Float[Tensor, "b c z y x"], beside: nn.Module | None = None
    ) -> Float[Tensor, "b c2 z2 y2 x2"]:
        """Half the size where it strides; ``beside`` runs on the same input."""
        y = self.convolutions(x) + self.shortcut(x)
        return F.relu(y if beside is None else y + beside(x))


class Stage(nn.Module):
    """Blocks, the first with stride 2; the others share one MICCSS beside them, if there is one."""

    def __init__(
        self, channels: int, *, blocks: int, norm: Norm, mamba: MambaConfig | None
    ) -> None:
        super().__init__()
        self.first = Block(channels, 2 * channels, norm=norm, stride=2)
        self.others = nn.ModuleList(
            Block(2 * channels, 2 * channels, norm=norm) for _ in range(blocks - 1)
        )
        self.miccss = (
            MambaInConvolution(2 * channels, SiameseMamba(2 * channels, mamba), norm=norm)
            if mamba is not None and blocks > 1
            else None
        )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c2 z2 y2 x2"]:
        """Half the size, twice the channels."""
        x = self.first(x)
        for block in self.others:
            x = block(x, self.miccss)
        return x


class ChannelScale(nn.Module):
    """Each channel times a share of its own, from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Same shape."""
        share = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3, 4))))))
        return x * share[..., None, None, None]


class Encoder(nn.Module):
    """Stem at half size, three stages; each one's output is kept."""

    def __init__(
        self, config: NnMambaConfig | NnMambaClassifierConfig, *, mamba: MambaConfig | None
    ) -> None:
        super().__init__()
        self.stem = DoubleConvolution(config.channels_in, config.width, norm=config.norm, stride=2)
        self.after_stem: nn.Module = nn.Identity()
        self.stages = nn.ModuleList(
            Stage(config.width * 2**i, blocks=config.blocks, norm=config.norm, mamba=mamba)
            for i in range(3)
        )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Widths w, 2 w, 4 w, 8 w at 1/2, 1/4, 1/8, 1/16."""
        features = [self.after_stem(self.stem(x))]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class Decoder(nn.Module):
    """Twice as large, beside the scaled skip, two convolutions; then full size and the head."""

    def __init__(self, config: NnMambaConfig) -> None:
        super().__init__()
        w, norm = config.width, config.norm
        widths = (4 * w, 2 * w, w)  # of the levels, deepest first
        self.scales = nn.ModuleList(ChannelScale(width) for width in widths)
        self.levels = nn.ModuleList(
            DoubleConvolution(3 * width, width, norm=norm) for width in widths
        )
        self.linear = config.head == "linear"
        if self.linear:
            self.last = nn.Sequential(
                *_normed(w, w, 3, norm=norm, bias=True),
                nn.ReLU(inplace=True),
                nn.Conv3d(w, config.channels_out, 1),
            )
            self.heads = nn.ModuleList(nn.Conv3d(v, config.channels_out, 1) for v in widths)
        else:
            self.last = DoubleConvolution(w, config.channels_out, norm=norm)
        self.deep_supervision = False

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits at full size; with deep supervision of all levels that have heads."""
        *skips, x = features
        logits = []
        for number, (scale, level) in enumerate(zip(self.scales, self.levels, strict=True)):
            x = level(torch.cat((_doubled(x), scale(skips[-1 - number])), 1))
            if self.linear and self.deep_supervision:
                logits.append(self.heads[number](x))
        logits.append(self.last(_doubled(x)))
        return logits[::-1] if self.deep_supervision else logits[-1]


def _doubled(x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z2 y2 x2"]:
    up: Tensor = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    return up


class NnMamba(nn.Module):
    """Encoder with MICCSS, decoder: segmentation."""

    def __init__(self, config: NnMambaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NnMambaConfig()
        self.encoder = Encoder(config, mamba=config.mamba)
        self.decoder = Decoder(config)
        self.apply(initialise_he)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, z, y, x)."""
        self.config.require_patch(tuple(x.shape[2:]))
        logits: Tensor | list[Tensor] = self.decoder(self.encoder(x))
        return logits


class NnMambaLandmarks(NnMamba):
    """The same network: each of its ``channels_out`` maps is high at one landmark.

    `contourcast.training.nn_mamba_tasks` has the maps, the loss, and how a position is read.
    """


class NnMambaClassifier(nn.Module):
    """Encoder and what reads its stages: one answer for the whole image."""

    def __init__(self, config: NnMambaClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NnMambaClassifierConfig()
        w, outputs = config.width, config.channels_out
        if config.cls == "sequence":
            self.encoder = Encoder(config, mamba=config.mamba)
            self.reader: nn.Module = SequenceReader((2 * w, 4 * w, 8 * w), outputs, config.mamba)
        else:
            self.encoder = Encoder(config, mamba=None)
            self.encoder.after_stem = StemMamba(w, norm=config.norm)
            self.reader = MeanReader(14 * w, w, outputs, dropout=config.dropout)
        self.apply(initialise_he)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b outputs"]:
        """Logits of the image's classes; of one output, the logit of yes."""
        self.config.require_patch(tuple(x.shape[2:]))
        logits: Tensor = self.reader(self.encoder(x)[1:])
        return logits


class StemMamba(nn.Module):
    """x + MIC(x), with eight states and one way of reading (``nnMamba4cls.py``)."""

    def __init__(self, channels: int, *, norm: Norm) -> None:
        super().__init__()
        scan = ForwardMamba(channels, MambaConfig(d_state=8))
        self.mic = MambaInConvolution(channels, scan, norm=norm)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Same shape."""
        y: Tensor = x + self.mic(x)
        return y


class SequenceReader(nn.Module):
    """The maximum of each stage, brought to one width, is a token; Mamba over them; their mean.

    The article gives no width; it is that of the middle stage here.
    """

    def __init__(self, widths: tuple[int, ...], outputs: int, config: MambaConfig) -> None:
        super().__init__()
        width = widths[len(widths) // 2]
        self.proj = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.mamba = Mamba(width, config)
        self.out = nn.Linear(width, outputs)

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b outputs"]:
        """Of the stages, finest first."""
        tokens = [p(f.amax((2, 3, 4))) for p, f in zip(self.proj, features, strict=True)]
        with full_precision(torch.stack(tokens, 1)) as wide:  # (b stages width)
            logits: Tensor = self.out(self.mamba(wide).mean(1))
            return logits


class MeanReader(nn.Module):
    """The means of all stages side by side, Linear, ReLU, dropout, Linear."""

    def __init__(self, channels: int, hidden: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
        )

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b outputs"]:
        """Of the stages, finest first."""
        logits: Tensor = self.mlp(torch.cat([f.mean((2, 3, 4)) for f in features], 1))
        return logits
