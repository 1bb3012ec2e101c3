"""Every form of the selective scan against the plain loop, on one CPU thread, in one run.

    python -m benchmarks.scan [--lengths 216 1728 4096] [--channels 1024] [--peer] [--json FILE]

CPU seconds of forward and of forward with backward (the sides take turns, the least disturbed
repetition counts), and how much the resident memory of a fresh process grows meanwhile; each also
as a share of the loop's. The C kernel appears with every instruction set that this processor has.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import peak_mib
from contourcast.models.kernels import cpu_scan
from contourcast.models.kernels.build import FOLDER
from contourcast.models.kernels.cpu_scan import Kernel, load_kernel
from contourcast.models.selective_scan import SCANS, Scan


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


def scan_named(name: str) -> Scan:
    """A scan of the house, mambapy's, or the C kernel forced to an instruction set (``c/avx2``)."""
    if name == "mambapy":
        return scan_mambapy
    if not name.startswith("c/"):
        return SCANS[name]
    kernel = load_kernel(FOLDER, name.removeprefix("c/"))

    def scan(*inputs: Tensor) -> Tensor:
        cpu_scan.cpu_kernel = lambda: kernel
        return SCANS["cpu_kernel"](*inputs)  # type: ignore[call-arg]

    return scan


def run(name: str, length: int, channels: int, backward: bool) -> None:
    """One pass; importable, so that a fresh process can be measured."""
    torch.set_num_threads(1)
    scan = scan_named(name)
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


def cpu_seconds(scan: Scan, inputs: list[Tensor], backward: bool) -> float:
    """Of this process; other load on the machine hardly enters."""
    start = time.process_time()
    if backward:
        torch.autograd.grad(scan(*inputs).sum(), inputs)
    else:
        with torch.no_grad():
            scan(*inputs)
    return time.process_time() - start


def cpu_table(sides: list[str], length: int, channels: int, times: int) -> list[dict[str, object]]:
    """One row a side; the plain loop comes first and is the measure."""
    inputs = coefficients(length, channels)
    scans = {name: scan_named(name) for name in sides}
    with torch.no_grad():  # warm up, and agree
        answers = {name: scan(*inputs) for name, scan in scans.items()}
    for name in sides[1:]:
        assert torch.allclose(answers["reference"], answers[name], rtol=1e-3, atol=1e-4), name
    del answers
    best: dict[tuple[str, bool], float] = {}
    for _ in range(times):
        for name, scan in scans.items():
            for backward in (False, True):
                seconds = cpu_seconds(scan, inputs, backward)
                best[name, backward] = min(seconds, best.get((name, backward), seconds))
    held = peak_mib(inputs_alone, length, channels)
    rows = []
    loop_mib: dict[bool, float] = {}
    for name in sides:
        row: dict[str, object] = {"scan": name}
        for backward, word in ((False, "fwd"), (True, "both")):
            grown = peak_mib(run, name, length, channels, backward) - held
            loop_mib.setdefault(backward, grown)
            row[f"{word} s"] = round(best[name, backward], 4)
            row[f"{word} of loop"] = round(best[name, backward] / best["reference", backward], 3)
            row[f"{word} MiB"] = round(grown)
            row[f"{word} MiB of loop"] = round(grown / loop_mib[backward], 3)
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """Columns as wide as they need."""
    lines = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    """Prints a table for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--lengths", type=int, nargs="+", default=[216, 1728, 4096])
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="mambapy's parallel scan too (slow)")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    sets = [f"c/{name}" for name in cpu_scan.BITS]
    forced = [name for name in sets if isinstance(load_kernel(FOLDER, name[2:]), Kernel)]
    sides = ["reference", "chunked", *forced, *(["mambapy"] if a.peer else [])]
    tables = {}
    for length in a.lengths:
        tables[length] = cpu_table(sides, length, a.channels, a.times)
        print(f"length {length}, {a.channels} channels, 16 states, float32, one thread")
        print_table(tables[length])
    if a.json:
        a.json.write_text(json.dumps({"channels": a.channels, "tables": tables}))


if __name__ == "__main__":
    main()
