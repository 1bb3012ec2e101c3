"""The Mamba layer, with mamba_ssm's parameter names, shapes and values at birth.

Gu & Dao 2023, arXiv 2312.00752; parameters as in state-spaces/mamba 2.3.2, ``Mamba``, so that
state dicts move both ways, key for key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.models.config import STRICT
from contourcast.models.selective_scan import choose_scan, scan_many


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Sizes of a Mamba layer; the defaults are the paper's and every network's here.

    Attributes:
        d_state: N, states per channel.
        d_conv: k, taps of the causal convolution.
        expand: E, inner width over outer.
        dt_rank: R, rank of Δ; None: a sixteenth of the width, rounded up.
        backend: A name of `contourcast.models.selective_scan.SCANS`, or ``auto``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    backend: str = "auto"

    # Range of Δ at birth, and its floor (state-spaces/mamba, modules/mamba_simple.py).
    dt_min: ClassVar[float] = 1e-3
    dt_max: ClassVar[float] = 0.1
    dt_floor: ClassVar[float] = 1e-4


class Mamba(nn.Module):
    """x, z = W_in h; x = SiLU(conv(x)); (δ, B, C) = W_x x; Δ = softplus(W_Δ δ + b); scan; gate; W.

    Args:
        d_model: Width.
        config: Sizes inside.
        in_proj: Whether W_in belongs to the layer; without it the tokens are (x, z) already.
        out_proj: Whether W_out does; without it the answer has the inner width.
    """

    def __init__(
        self,
        d_model: int,
        config: MambaConfig | None = None,
        *,
        in_proj: bool = True,
        out_proj: bool = True,
    ) -> None:
        super().__init__()
        self.config = config = config or MambaConfig()
        d_inner = config.expand * d_model
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False) if in_proj else nn.Identity()
        self.conv1d = nn.Conv1d(
            d_inner, d_inner, config.d_conv, groups=d_inner, padding=config.d_conv - 1
        )
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(
            torch.log(torch.arange(1, config.d_state + 1).float()).repeat(d_inner, 1)
        )
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False) if out_proj else nn.Identity()
        self._initialise_dt()

    @torch.no_grad()
    def _initialise_dt(self) -> None:
        config = self.config
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        self.dt_proj.bias.copy_(delta_bias_at_birth(self.dt_proj.bias, config))

    def forward(self, h: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c2"]:
        """Causal: token t of the answer depends on tokens up to t."""
        return scan_together([self], [h])[0]

    def operands(self, x: Float[Tensor, "b d l"]) -> tuple[Tensor, ...]:
        """x, Δ, A, B, C, D of the scan."""
        x = F.silu(self.conv1d(x)[..., : x.shape[-1]])
        sizes = [self.dt_rank, self.config.d_state, self.config.d_state]
        delta, B, C = self.x_proj(rearrange(x, "b d l -> b l d")).split(sizes, -1)
        dt = F.softplus(rearrange(self.dt_proj(delta), "b l d -> b d l"))
        B, C = (rearrange(v, "b l n -> b n l") for v in (B, C))
        return x, dt, -torch.exp(self.A_log), B, C, self.D


def scan_together(mambas: Sequence[Mamba], tokens: Sequence[Tensor]) -> list[Tensor]:
    """What each layer makes of its tokens (b l c): the directions of one layer, in one launch."""
    operands, gates = [], []
    for mamba, h in zip(mambas, tokens, strict=True):
        x, z = rearrange(mamba.in_proj(h), "b l (two d) -> two b d l", two=2)
        operands.append(mamba.operands(x))
        gates.append(F.silu(z))
    ys = scan_calls(mambas[0].config.backend, operands)
    return [
        mamba.out_proj(rearrange(y * gate, "b d l -> b l d"))
        for mamba, y, gate in zip(mambas, ys, gates, strict=True)
    ]


def scan_calls(backend: str, calls: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Several scans, folded into one launch where that pays."""
    x = calls[0][0]
    return scan_many(choose_scan(backend, x.device, x.dtype), calls)


@torch.no_grad()
def delta_bias_at_birth(like: Tensor, config: MambaConfig) -> Tensor:
    """softplus⁻¹ of Δ, which is log-uniform in [dt_min, dt_max], in the shape of ``like``."""
    low, high = math.log(config.dt_min), math.log(config.dt_max)
    dt = torch.exp(torch.rand_like(like) * (high - low) + low).clamp(min=config.dt_floor)
    return dt + torch.log(-torch.expm1(-dt))


@contextmanager
def full_precision(x: Tensor) -> Iterator[Tensor]:
    """Autocast off, and x in float32 (float64 stays): long states do not fit less."""
    with torch.autocast(x.device.type, enabled=False):
        yield x if x.dtype == torch.float64 else x.float()


class MambaLayer(nn.Module):
    """Mamba over the voxels of a feature map, x fastest; no residual (U-Mamba, figure 1).

    Runs in float32 whatever comes in.
    """

    def __init__(self, channels: int, config: MambaConfig | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, config)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape; float32 unless float64 came in."""
        with full_precision(x) as wide:
            tokens = wide.flatten(2).transpose(1, 2)  # (b l c)
            out: Tensor = self.mamba(self.norm(tokens)).transpose(1, 2)
            return out.reshape(x.shape)
