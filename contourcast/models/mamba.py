"""The Mamba layer, with mamba_ssm's parameter names, shapes and values at birth.

Gu & Dao 2023, arXiv 2312.00752; parameters as in state-spaces/mamba 2.3.2, ``Mamba``, so that
state dicts move both ways, key for key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.models.config import STRICT
from contourcast.models.selective_scan import SCANS, choose_scan


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
    """x, z = W_in h; x = SiLU(conv(x)); (δ, B, C) = W_x x; Δ = softplus(W_Δ δ + b); scan; gate."""

    def __init__(self, d_model: int, config: MambaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MambaConfig()
        d_inner = config.expand * d_model
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(
            d_inner, d_inner, config.d_conv, groups=d_inner, padding=config.d_conv - 1
        )
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(
            torch.log(torch.arange(1, config.d_state + 1).float()).repeat(d_inner, 1)
        )
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._initialise_dt()

    @torch.no_grad()
    def _initialise_dt(self) -> None:
        """Δ at birth is log-uniform in [dt_min, dt_max]."""
        config = self.config
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.exp(torch.rand_like(self.dt_proj.bias) * (high - low) + low)
        dt = dt.clamp(min=config.dt_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹

    def forward(self, h: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        """Causal: token t of the answer depends on tokens up to t."""
        length = h.shape[1]
        x, z = rearrange(self.in_proj(h), "b l (two d) -> two b d l", two=2)
        x = F.silu(self.conv1d(x)[..., :length])  # (b d l)
        sizes = [self.dt_rank, self.config.d_state, self.config.d_state]
        delta, B, C = self.x_proj(rearrange(x, "b d l -> b l d")).split(sizes, -1)
        dt = F.softplus(rearrange(self.dt_proj(delta), "b l d -> b d l"))
        scan = SCANS[choose_scan(self.config.backend, x.device)]
        y = scan(
            x,
            dt,
            -torch.exp(self.A_log),
            rearrange(B, "b l n -> b n l"),
            rearrange(C, "b l n -> b n l"),
            self.D,
        )
        out: Tensor = self.out_proj(rearrange(y * F.silu(z), "b d l -> b l d"))
        return out


class MambaLayer(nn.Module):
    """Mamba over the voxels of a feature map, x fastest; no residual (U-Mamba, figure 1).

    Runs in float32 whatever comes in: the state of a long scan does not fit float16.
    """

    def __init__(self, channels: int, config: MambaConfig | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, config)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Same shape; float32 unless float64 came in."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            tokens = wide.flatten(2).transpose(1, 2)  # (b l c)
            out: Tensor = self.mamba(self.norm(tokens)).transpose(1, 2)
            return out.reshape(x.shape)
