"""The encoder of VMamba: features of an image, read in four orders at four scales.

Liu et al. 2024, arXiv 2401.10166, its first release; names and shapes of parameters are that
release's, so that its weights are ours, key for key. Channels come last, as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.models.mamba import (
    MambaConfig,
    delta_bias_at_birth,
    full_precision,
    scan_calls,
)

# Rows, columns, and both from their ends.
DIRECTIONS: Final = 4


def ss2d_config() -> MambaConfig:
    """Mamba's sizes, with a convolution of 3 x 3 instead of 4 taps."""
    return MambaConfig(d_conv=3)


class SS2D(nn.Module):
    """Four selective scans over an image, each with parameters of its own; their sum, gated.

    x, z = W_in h; x = SiLU(conv(x)); y = Σ_k undo_k(scan_k(order_k(x))); W_out(LN(y) ⊙ SiLU(z)).
    Runs in float32 whatever comes in, as `MambaLayer` does.
    """

    def __init__(self, width: int, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.dt_rank = config.dt_rank or math.ceil(width / 16)
        inner, states = config.expand * width, config.d_state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(
            inner, inner, config.d_conv, groups=inner, padding=(config.d_conv - 1) // 2
        )
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, self.dt_rank + 2 * states, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(
            delta_bias_at_birth(torch.empty(DIRECTIONS, inner), config)
        )
        self.A_logs = nn.Parameter(
            torch.log(torch.arange(1, states + 1).float()).repeat(DIRECTIONS * inner, 1)
        )
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)  # as nn.Linear's
        nn.init.uniform_(self.dt_projs_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)

    def forward(self, h: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y x c"]:
        """Same shape; float32 unless float64 came in."""
        with full_precision(h) as wide:
            x, z = self.in_proj(wide).chunk(2, -1)
            x = F.silu(self.conv2d(rearrange(x, "b y x d -> b d y x")))
            y = rearrange(self.scan(x), "b d y x -> b y x d")
            out: Tensor = self.out_proj(self.out_norm(y) * F.silu(z))
            return out

    def scan(self, x: Float[Tensor, "b d y x"]) -> Float[Tensor, "b d y x"]:
        """The four scans, each answer back in its place, added."""
        sequences = in_four_orders(x)  # (b k d l)
        sizes = [self.dt_rank, self.config.d_state, self.config.d_state]
        projected = torch.einsum("bkdl,kcd->bkcl", sequences, self.x_proj_weight)
        delta, B, C = torch.split(projected, sizes, 2)
        dt = torch.einsum("bkrl,kdr->bkdl", delta, self.dt_projs_weight)
        dt = F.softplus(dt + self.dt_projs_bias[..., None])
        A, D = (v.chunk(DIRECTIONS) for v in (-torch.exp(self.A_logs), self.Ds))
        ys = scan_calls(
            self.config.backend,
            [(sequences[:, k], dt[:, k], A[k], B[:, k], C[:, k], D[k]) for k in range(DIRECTIONS)],
        )
        return back_in_place(torch.stack(ys, 1), height=x.shape[2])


def in_four_orders(x: Float[Tensor, "b d y x"]) -> Float[Tensor, "b 4 d l"]:
    """Row by row, column by column, and both from their ends."""
    rows, columns = rearrange(x, "b d y x -> b d (y x)"), rearrange(x, "b d y x -> b d (x y)")
    forth = torch.stack((rows, columns), 1)
    return torch.cat((forth, forth.flip(-1)), 1)


def back_in_place(y: Float[Tensor, "b 4 d l"], *, height: int) -> Float[Tensor, "b d y x"]:
    """Undoes `in_four_orders` and adds."""
    rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
    return rearrange(rows, "b d (y x) -> b d y x", y=height) + rearrange(
        columns, "b d (x y) -> b d y x", y=height
    )


class DropPath(nn.Module):
    """In training, a sample in so many loses the branch (Huang et al. 2016); else nothing."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What is kept is scaled up, so that the mean stays."""
        if not self.training or not self.share:
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.dim() - 1), device=x.device) >= self.share
        return x * kept / (1 - self.share)


class VssBlock(nn.Module):
    """x + DropPath(SS2D(LayerNorm(x)))."""

    def __init__(self, width: int, *, drop_path: float, config: MambaConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.self_attention = SS2D(width, config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y x c"]:
        """Same shape."""
        y: Tensor = x + self.drop_path(self.self_attention(self.ln_1(x)))
        return y


class VssStage(nn.Module):
    """Blocks of one width."""

    def __init__(self, width: int, *, drop_paths: Sequence[float], config: MambaConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(VssBlock(width, drop_path=share, config=config) for share in drop_paths)
        )

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y x c"]:
        """Same shape."""
        y: Tensor = self.blocks(x)
        return y


class PatchEmbedding(nn.Module):
    """One token for each patch of the image."""

    def __init__(self, channels_in: int, width: int, *, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels_in, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b y2 x2 c2"]:
        """Both sides shrink by the patch."""
        y: Tensor = self.norm(rearrange(self.proj(x), "b c y x -> b y x c"))
        return y


class PatchMerging(nn.Module):
    """Four neighbours become one token of another width, through LayerNorm and a Linear."""

    def __init__(self, width: int, width_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, width_out, bias=bias)

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y2 x2 c2"]:
        """Both sides halve."""
        neighbours = rearrange(x, "b (y p) (x q) c -> b y x (q p c)", p=2, q=2)
        y: Tensor = self.reduction(self.norm(neighbours))
        return y


class VssmEncoder(nn.Module):
    """Patches, then stages with a merging between two."""

    def __init__(
        self,
        channels_in: int,
        *,
        patch: int,
        dims: Sequence[int],
        depths: Sequence[int],
        drop_path: float,
        mamba: MambaConfig,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(channels_in, dims[0], patch=patch)
        shares = torch.split(torch.linspace(0, drop_path, sum(depths), device="cpu"), list(depths))
        self.layers = nn.ModuleList(
            VssStage(width, drop_paths=each.tolist(), config=mamba)
            for width, each in zip(dims, shares, strict=True)
        )
        self.downsamples = nn.ModuleList(
            PatchMerging(width, wider) for width, wider in pairwise(dims)
        )
        self.apply(initialise_linear)

    def forward(self, x: Float[Tensor, "b c y x"]) -> list[Tensor]:
        """Features (b c y x) of each stage, finest first."""
        tokens = self.patch_embed(x)
        features = []
        for stage, merge in zip(self.layers, [*self.downsamples, None], strict=True):
            tokens = stage(tokens)
            features.append(rearrange(tokens, "b y x c -> b c y x"))
            tokens = merge(tokens) if merge is not None else tokens
        return features


def initialise_linear(module: nn.Module) -> None:
    """VMamba's start: Linear normal with a deviation of 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
