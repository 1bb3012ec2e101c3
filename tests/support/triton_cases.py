"""Runs the Triton kernels in Triton's interpreter on the CPU; a process of its own.

    TRITON_INTERPRET=1 python triton_cases.py

Triton decides between compiler and interpreter when it is first imported, so the tests cannot do
this in their own process. Prints, as JSON, for each case the largest difference from the plain loop
in float64 over the largest value, for y and six gradients.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from contourcast.models.selective_scan import Scan, scan_many, scan_reference, scan_triton

NAMES = ("y", "x", "dt", "A", "B", "C", "D")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# name: batch, channels, states, length, dtype; three states and 35 channels fill no block
CASES = {
    "one step": (1, 1, 1, 1, "float32"),
    "two steps": (2, 3, 3, 2, "float32"),
    "a chunk less one": (1, 2, 3, 63, "float32"),
    "a chunk": (1, 2, 1, 64, "float32"),
    "a chunk and one": (2, 2, 3, 65, "float32"),
    "sixteen states": (1, 35, 16, 20, "float32"),
    "bfloat16": (1, 4, 4, 30, "bfloat16"),
    "float16": (1, 4, 4, 30, "float16"),
}


def coefficients(
    batch: int, channels: int, states: int, length: int, dtype: str, seed: int = 0
) -> list[Tensor]:
    """x, Δ, B, C in the dtype; A and D in float32, as a layer keeps them."""
    g = torch.Generator().manual_seed(seed)
    sizes = ((batch, channels, length), (batch, states, length))
    x, dt, B, C = (torch.randn(sizes[k], generator=g) for k in (0, 0, 1, 1))
    A = -torch.exp(torch.randn(channels, states, generator=g))
    D = torch.randn(channels, generator=g)
    low = [v.to(DTYPES[dtype]) for v in (x, torch.nn.functional.softplus(dt), B, C)]
    return [v.requires_grad_() for v in (low[0], low[1], A, low[2], low[3], D)]


def errors(calls: list[list[Tensor]], scan: Scan | None = None) -> dict[str, float]:
    """The worst over all calls; several calls are folded."""
    wide = [[v.detach().double().requires_grad_() for v in call] for call in calls]
    wanted = [scan_reference(*call) for call in wide]
    found = [scan(*call) for call in calls] if scan else scan_many("triton", calls)
    worst = dict.fromkeys(NAMES, 0.0)
    g = torch.Generator().manual_seed(1)
    y_bars = [torch.randn(y.shape, generator=g).to(y.dtype) for y in found]
    flat = [v for call in calls for v in call]
    made = torch.autograd.grad(found, flat, y_bars)
    right = torch.autograd.grad(wanted, [v for c in wide for v in c], [v.double() for v in y_bars])
    pairs = [("y", a, b) for a, b in zip(found, wanted, strict=True)]
    names = NAMES[1:] * len(calls)
    pairs += list(zip(names, made, right, strict=True))
    for name, a, b in pairs:
        assert a.shape == b.shape, name
        largest = float(b.detach().abs().max())
        difference = float((a.detach().double() - b.detach()).abs().max())
        worst[name] = max(worst[name], difference / largest if largest else difference)
    return worst


def strong_decay() -> dict[str, bool]:
    """Δ = 20, A = -16."""
    inputs = coefficients(1, 2, 2, 130, "float32")
    with torch.no_grad():
        inputs[1].fill_(20.0)
        inputs[2].fill_(-16.0)
    y = scan_triton(*inputs)
    bars = torch.autograd.grad(y.sum(), inputs)
    return {n: bool(v.isfinite().all()) for n, v in zip(NAMES, (y, *bars), strict=True)}


def views_differ() -> float:
    """Flipped and strided inputs against their copies; 0 when equal to the bit."""
    inputs = [v.detach() for v in coefficients(1, 3, 2, 9, "float32")]
    x, dt, A, B, C, D = inputs
    views = [x.flip(-1), dt.transpose(1, 2).contiguous().transpose(1, 2), A, B.flip(1), C, D]
    return float((scan_triton(*views) - scan_triton(*(v.clone() for v in views))).abs().max())


def main() -> None:
    """One object on stdout."""
    torch.set_num_threads(1)
    found: dict[str, object] = {
        name: errors([coefficients(*sizes)], scan_triton) for name, sizes in CASES.items()
    }
    own = [coefficients(1, 3, 2, 9, "float32", seed) for seed in range(4)]
    found["four directions with parameters of their own"] = errors(own)
    found["strong decay stays finite"] = strong_decay()
    found["views"] = views_differ()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
