"""LKM-UNet: a residual U-Net whose encoder reads large windows, then whole maps of window means.

Wang, Chen, Chen & Wu, MICCAI 2024, arXiv 2403.07332, figures 1 and 2; wjh892521292/LKM-UNet, commit
6615775. Where article and code differ there is a switch; docs/design/NETWORKS.md §7 says why each
default is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import (
    CONV,
    NORM,
    NORM_EPS,
    SLOPE,
    ResidualBlock,
    UpConvolution,
    convolution,
    initialise_he,
)
from contourcast.models.mamba import Mamba, MambaConfig, full_precision, scan_together
from contourcast.models.stages import StagesConfig, UShaped, decode

# Width of the article's stem, which halves the image (arXiv 2403.07332, §2).
PAPER_STEM_WIDTH: Final = 48
POOL: Final = {2: F.avg_pool2d, 3: F.avg_pool3d}
SMOOTH: Final = {2: "bilinear", 3: "trilinear"}
WINDOWS: Final = {
    2: "(a m) (b n) -> (a b) (m n)",
    3: "(a m) (b n) (c q) -> (a b c) (m n q)",
}


@dataclass(frozen=True, kw_only=True)
class LkmUnetConfig(StagesConfig):
    """Sizes of the network, and what its two descriptions disagree about.

    Attributes:
        pim_partition: ``window``: a sequence is the voxels of a window (article). ``grid``: one
            voxel of every window (code).
        pam_pool: ``window``: PaM averages PiM's windows (article). ``code``: cubes of edge 4, 4, 2,
            2, 1, 1.
        windows: Of each stage, z y x; ``auto``: the bottleneck's size times 4, 4, 2, 2, 1, 1.
        stem: ``code``: a convolution of full size, as wide as the first stage. ``paper``: a
            depthwise one of half the size, 48 wide; the finest logits are then made twice as large.
        mamba: Sizes of the Mamba layers.
    """

    pim_partition: Literal["window", "grid"] = "window"
    pam_pool: Literal["window", "code"] = "window"
    windows: Literal["auto"] | tuple[tuple[int, ...], ...] = "auto"
    stem: Literal["code", "paper"] = "code"
    mamba: MambaConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem == "paper" and PAPER_STEM_WIDTH % self.channels_in:
            raise InputError(
                f"a depthwise stem cannot make {PAPER_STEM_WIDTH} maps of {self.channels_in}",
                remedy="use stem 'code', or a number of channels that divides it",
            )
        if self.windows != "auto" and (
            len(self.windows) != self.stages
            or any(len(w) != self.axes or min(w) < 1 for w in self.windows)
        ):
            raise InputError("windows need one size for each stage, with one entry for each axis")

    @property
    def stem_stride(self) -> int:
        """Voxels of the image along each axis that become one of the stem."""
        return 2 if self.stem == "paper" else 1

    @property
    def reduction(self) -> tuple[int, ...]:
        """How many voxels along each axis become one at the deepest stage."""
        return tuple(self.stem_stride * r for r in super().reduction)

    def stage_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The size that an image has at each stage; odd sizes are rounded up."""
        return super().stage_shapes(tuple(-(-n // self.stem_stride) for n in shape))

    def stage_scale(self, stage: int) -> int:
        """The code's p: 4, 4, 2, 2, 1, 1 with six stages."""
        return int(2 ** ((self.stages - stage + 1) // 2 - 1))

    def pixel_windows(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """PiM's window at each stage, never larger than the stage is."""
        shapes = self.stage_shapes(shape)
        wanted = (
            [tuple(n * self.stage_scale(s) for n in shapes[-1]) for s in range(self.stages)]
            if self.windows == "auto"
            else self.windows
        )
        return [_within(w, n) for w, n in zip(wanted, shapes, strict=True)]

    def patch_windows(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What PaM averages at each stage, never larger than the stage is."""
        if self.pam_pool == "window":
            return self.pixel_windows(shape)
        shapes = self.stage_shapes(shape)
        return [_within((self.stage_scale(s),) * self.axes, n) for s, n in enumerate(shapes)]


def _within(window: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(w, n) for w, n in zip(window, shape, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """Sequences of equal length that together visit every voxel once.

    Attributes:
        visits: The voxel (flat index, x fastest) of each step. Shorter sequences end in steps that
            visit nothing, marked by the number of voxels: nothing that is causal feels them.
        voxels: How many there are.
    """

    visits: Int[Tensor, "sequences steps"]
    voxels: int

    def there(self, tokens: Float[Tensor, "b l c"]) -> Float[Tensor, "bs steps c"]:
        """The voxels as sequences, those of the first image first."""
        visits = self.visits.clamp(max=self.voxels - 1)
        along = tokens.index_select(1, visits.flatten())  # (b (s t) c)
        return rearrange(along, "b (s t) c -> (b s) t c", s=len(visits))

    def back(self, sequences: Float[Tensor, "bs steps c"]) -> Float[Tensor, "b l c"]:
        """The sequences as voxels; steps that visited nothing are dropped."""
        visits = self.visits.flatten()
        steps = torch.arange(visits.numel(), device=visits.device)
        place = visits.new_empty(self.voxels + 1).scatter_(0, visits, steps)[:-1]
        along = rearrange(sequences, "(b s) t c -> b (s t) c", s=len(self.visits))
        return along.index_select(1, place)

    def reverse(self) -> Route:
        """Every sequence from its end."""
        return Route(visits=_nothing_last(self.visits.flip(1), self.voxels), voxels=self.voxels)


def whole(shape: Sequence[int], device: torch.device) -> Route:
    """One sequence through all voxels, x fastest."""
    voxels = math.prod(shape)
    return Route(visits=torch.arange(voxels, device=device)[None], voxels=voxels)


def windows(
    shape: Sequence[int],
    window: Sequence[int],
    *,
    partition: Literal["window", "grid"],
    device: torch.device,
) -> Route:
    """A sequence for each window, or for each place in a window; those at the end may be shorter.

    >>> route = windows((8, 8), (4, 4), partition="window", device=torch.device("cpu"))
    >>> route.visits[0, :6].tolist()
    [0, 1, 2, 3, 8, 9]
    """
    voxels = math.prod(shape)
    table = torch.arange(voxels, device=device).reshape(*shape)
    missing = [-n % w for n, w in zip(shape, window, strict=True)]
    table = F.pad(table, [v for m in reversed(missing) for v in (0, m)], value=voxels)
    edges = dict(zip("mnq", window, strict=False))
    visits = rearrange(table, WINDOWS[len(shape)], **edges)
    if partition == "grid":
        visits = visits.T.contiguous()
    return Route(visits=_nothing_last(visits, voxels), voxels=voxels)


def _nothing_last(visits: Int[Tensor, "s t"], voxels: int) -> Int[Tensor, "s t"]:
    if visits.numel() == voxels:
        return visits
    order = (visits == voxels).to(torch.uint8).argsort(dim=1, stable=True)
    return visits.gather(1, order)


class BiM(nn.Module):
    """u = LayerNorm(tokens); W_out(M_f(u) + M_b(u from its end)), figure 2c."""

    def __init__(self, channels: int, config: MambaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.forth = Mamba(channels, config, out_proj=False)
        self.back = Mamba(channels, config, out_proj=False)
        self.out_proj = nn.Linear(config.expand * channels, channels, bias=False)

    def forward(self, tokens: Float[Tensor, "b l c"], route: Route) -> Float[Tensor, "b l c"]:
        """Each token hears of those before and after it in its own sequence."""
        u, reverse = self.norm(tokens), route.reverse()
        forth, back = scan_together([self.forth, self.back], [route.there(u), reverse.there(u)])
        out: Tensor = self.out_proj(route.back(forth) + reverse.back(back))
        return out


class PiM(nn.Module):
    """x + BiM over the voxels of each window (pixel level, figure 2a)."""

    def __init__(self, channels: int, config: LkmUnetConfig) -> None:
        super().__init__()
        self.partition = config.pim_partition
        self.bim = BiM(channels, config.mamba)

    def forward(
        self, x: Float[Tensor, "b c *space"], window: Sequence[int]
    ) -> Float[Tensor, "b c *space"]:
        """Same shape; float32 unless float64 came in."""
        with full_precision(x) as wide:
            route = windows(x.shape[2:], window, partition=self.partition, device=x.device)
            out: Tensor = self.bim(_tokens(wide), route)
            return wide + _maps(out, x.shape[2:])


class PaM(nn.Module):
    """x + BiM over the means of all windows, given to each of their voxels (figure 2b).

    Automatic windows leave one token at the deepest stage: its state has no past, so A rests there.
    """

    def __init__(self, channels: int, config: LkmUnetConfig) -> None:
        super().__init__()
        self.bim = BiM(channels, config.mamba)

    def forward(
        self, x: Float[Tensor, "b c *space"], window: Sequence[int]
    ) -> Float[Tensor, "b c *space"]:
        """Same shape; float32 unless float64 came in. Windows at the border may be smaller."""
        space = x.shape[2:]
        with full_precision(x) as wide:
            means = POOL[len(window)](wide, tuple(window), ceil_mode=True)
            route = whole(means.shape[2:], x.device)
            out = _maps(self.bim(_tokens(means), route), means.shape[2:])
            for axis, (edge, size) in enumerate(zip(window, space, strict=True), start=2):
                out = out.repeat_interleave(edge, axis).narrow(axis, 0, size)
            return wide + out


def _tokens(x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b l c"]:
    return x.flatten(2).transpose(1, 2)


def _maps(tokens: Float[Tensor, "b l c"], space: Sequence[int]) -> Float[Tensor, "b c *space"]:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *space)


class PooledBlock(nn.Module):
    """nnU-Net's BasicBlockD that changes channels or size: its shortcut is pooled, 1 x 1, norm."""

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        axes = len(kernel)
        self.stride = tuple(stride)
        self.conv1 = convolution(channels_in, channels_out, kernel, stride)
        self.norm1 = NORM[axes](channels_out, eps=NORM_EPS, affine=True)
        self.conv2 = convolution(channels_out, channels_out, kernel)
        self.norm2 = NORM[axes](channels_out, eps=NORM_EPS, affine=True)
        self.shortcut = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Sequential(
                CONV[axes](channels_in, channels_out, 1, bias=False),
                NORM[axes](channels_out, eps=NORM_EPS, affine=True),
            )
        )

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c2 *space2"]:
        """Strides shrink the space, rounding up."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        y = self.norm2(self.conv2(y))
        if max(self.stride) > 1:
            x = POOL[len(self.stride)](x, self.stride, ceil_mode=True)
        return F.leaky_relu(y + self.shortcut(x), SLOPE, inplace=True)


def stage(
    channels_in: int,
    channels_out: int,
    *,
    blocks: int,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
) -> nn.Sequential:
    """A block that may change channels and size, and further ones that do not."""
    stride = stride or (1,) * len(kernel)
    return nn.Sequential(
        PooledBlock(channels_in, channels_out, kernel=kernel, stride=stride),
        *(
            ResidualBlock(channels_out, channels_out, kernel=kernel, shortcut=False)
            for _ in range(blocks - 1)
        ),
    )


class Encoder(nn.Module):
    """Stem; then at each stage residual blocks, PiM and PaM; each stage's output is kept."""

    def __init__(self, config: LkmUnetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.features
        paper, axes = config.stem == "paper", config.axes
        width = PAPER_STEM_WIDTH if paper else widths[0]
        conv = CONV[axes](
            config.channels_in,
            width,
            config.kernels[0],  # type: ignore[arg-type]
            config.stem_stride,
            tuple(k // 2 for k in config.kernels[0]),  # type: ignore[arg-type]
            groups=config.channels_in if paper else 1,
        )
        self.stem = nn.Sequential(
            conv, NORM[axes](width, eps=NORM_EPS, affine=True), nn.LeakyReLU(SLOPE, inplace=True)
        )
        self.stages = nn.ModuleList(
            stage(
                below,
                widths[s],
                blocks=config.blocks[s],
                kernel=config.kernels[s],
                stride=config.strides[s],
            )
            for s, below in enumerate((width, *widths[:-1]))
        )
        self.pixel_layers = nn.ModuleList(PiM(c, config) for c in widths)
        self.patch_layers = nn.ModuleList(PaM(c, config) for c in widths)

    def forward(self, x: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """F_1 … F_S, finest first."""
        shape = tuple(x.shape[2:])
        pixels, patches = self.config.pixel_windows(shape), self.config.patch_windows(shape)
        x = self.stem(x)
        features = []
        for s, blocks in enumerate(self.stages):
            x = self.pixel_layers[s](blocks(x), pixels[s])
            x = self.patch_layers[s](x, patches[s])
            features.append(x)
        return features


class Decoder(nn.Module):
    """Transposed convolution, beside the skip, residual blocks, a head at every level."""

    def __init__(self, config: LkmUnetConfig) -> None:
        super().__init__()
        widths, strides = config.features[::-1], config.strides[::-1]
        kernels, blocks = config.kernels[::-1], config.decoder_blocks_asked
        levels = range(config.stages - 1)
        self.ups = nn.ModuleList(
            UpConvolution(widths[s], widths[s + 1], stride=strides[s]) for s in levels
        )
        self.stages = nn.ModuleList(
            stage(2 * widths[s + 1], widths[s + 1], blocks=blocks[s], kernel=kernels[s + 1])
            for s in levels
        )
        self.heads = nn.ModuleList(
            convolution(widths[s + 1], config.channels_out, (1,) * config.axes) for s in levels
        )
        self.deep_supervision = False

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits of the finest level; with deep supervision of all levels, finest first."""
        levels = zip(self.ups, self.stages, self.heads, strict=True)
        return decode(features, levels, all_heads=self.deep_supervision)


class LkmUnet(UShaped):
    """Encoder with PiM and PaM at every stage, and a residual decoder."""

    def __init__(self, config: LkmUnetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LkmUnetConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.apply(initialise_he)
        self.apply(_start_residuals_at_zero)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space); with deep supervision of all levels, finest first."""
        logits = super().forward(x)
        if isinstance(logits, list):
            return [self._full_size(logits[0], x), *logits[1:]]
        return self._full_size(logits, x)

    def _full_size(self, logits: Tensor, x: Tensor) -> Tensor:
        """The article does not say how its half-size decoder gets back: smoothly, here."""
        if logits.shape[2:] == x.shape[2:]:
            return logits
        size = tuple(x.shape[2:])
        up: Tensor = F.interpolate(logits, size=size, mode=SMOOTH[len(size)], align_corners=False)
        return up


def _start_residuals_at_zero(module: nn.Module) -> None:
    """The last norm before each addition: at birth a block passes its shortcut on."""
    if isinstance(module, PooledBlock | ResidualBlock):
        nn.init.zeros_(module.norm2.weight)
        nn.init.zeros_(module.norm2.bias)
