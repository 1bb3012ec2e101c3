"""The selective scan on one CPU thread: chunked against the plain loop and mambapy, in one run.

    python -m benchmarks.scan [--length 4096] [--channels 1024] [--json FILE]

CPU seconds of forward and of forward with backward (the sides take turns), and how much the
resident memory of a fresh process grows meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import peak_mib
from contourcast.models.selective_scan import SCANS


def coefficients(length: int, channels: int, states: int = 16) -> list[Tensor]:
    """x, Δ, A, B, C, D of a layer, seeded."""
    g = torch.Generator().manual_seed(0)
    d, n = channels, states
    values = [
        torch.randn(1, d, length, generator=g),
        0.1 * torch.rand(1, d, length, generator=g),
        -torch.arange(1.0, n + 1).repeat(d, 1),
        torch.randn(1, n, length, generator=g),
        torch.randn(1, n, length, generator=g),
        torch.ones(d),
    ]
    return [v.requires_grad_() for v in values]


def scan_mambapy(  # the letters are the papers'
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
) -> Tensor:
    """The parallel scan of mambapy 1.2 behind our arguments."""
    from mambapy.pscan import pscan

    decay = torch.exp(dt.transpose(1, 2)[..., None] * A)  # (b l d n)
    u = (dt * x).transpose(1, 2)[..., None] * B.transpose(1, 2)[:, :, None]
    h = pscan(decay, u)
    y: Tensor = (h @ C.transpose(1, 2)[..., None])[..., 0].transpose(1, 2) + D[:, None] * x
    return y


def run(name: str, length: int, channels: int, backward: bool) -> None:
    """One pass; importable, so that a fresh process can be measured."""
    torch.set_num_threads(1)
    scan = scan_mambapy if name == "mambapy" else SCANS[name]
    inputs = coefficients(length, channels)
    if backward:
        torch.autograd.backward(scan(*inputs).sum())
    else:
        with torch.no_grad():
            scan(*inputs)


def inputs_alone(length: int, channels: int) -> None:
    """What every side holds before it begins."""
    torch.set_num_threads(1)
    coefficients(length, channels)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of this process; other load on the machine hardly enters."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Prints a table, one line for each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    sides = ("chunked", "reference", "mambapy")
    inputs = coefficients(a.length, a.channels)
    answers = {}
    for name in sides:  # warm up, and agree
        with torch.no_grad():
            answers[name] = (scan_mambapy if name == "mambapy" else SCANS[name])(*inputs)
    for name in sides[1:]:
        assert torch.allclose(answers["chunked"], answers[name], rtol=1e-3, atol=1e-4), name
    del answers
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(a.times):
        for name in sides:
            for backward in (False, True):
                one = cpu_seconds(lambda: run(name, a.length, a.channels, backward))  # noqa: B023
                seconds.setdefault((name, backward), []).append(one)
    held = peak_mib(inputs_alone, a.length, a.channels)
    rows = []
    for name in sides:
        row: dict[str, object] = {"scan": name}
        for backward, word in ((False, "forward"), (True, "both")):
            best = min(seconds[name, backward])
            row[f"{word}_s"] = round(best, 3)
            row[f"{word}_of_loop"] = round(best / min(seconds["reference", backward]), 3)
            grown = peak_mib(run, name, a.length, a.channels, backward) - held
            row[f"{word}_mib"] = round(grown)
        rows.append(row)
    print(f"length {a.length}, {a.channels} channels, 16 states, float32, one thread")
    print("  ".join(f"{key:>15}" for key in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>15}" for value in row.values()))
    if a.json:
        a.json.write_text(json.dumps({"length": a.length, "channels": a.channels, "rows": rows}))


if __name__ == "__main__":
    main()
