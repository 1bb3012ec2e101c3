"""Reference answers that other people's modules gave once, kept as small arrays in tests/golden.

Weights are not kept: `fill` makes the same ones again from the names of a network's parameters.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Weights that depend on nothing but names and shapes; no norm, gate or branch is at rest."""
    for name, parameter in network.named_parameters():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        noise = torch.from_numpy(generator.standard_normal(tuple(parameter.shape)))
        if name.endswith("A_log"):
            states = torch.arange(1, parameter.shape[1] + 1).double()
            value = states.log() + 0.1 * noise
        elif name.endswith("dt_proj.bias"):
            value = 0.5 * noise - 3
        elif name.endswith(".D") or ("norm" in name and name.endswith("weight")):
            value = 1 + 0.2 * noise
        elif parameter.ndim == 1:
            value = 0.1 * noise
        else:
            value = noise / parameter[0].numel() ** 0.5
        parameter.copy_(value)


def image(channels: int, *shape: int, seed: int = 0) -> Tensor:
    """Noise in a batch of one."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((1, channels, *shape))).float()


def read(name: str) -> dict[str, Tensor]:
    """The arrays of one file; those that are text are left out."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {k: torch.from_numpy(v) for k, v in stored.items() if v.dtype.kind == "f"}
