"""The selective scans: on a CPU thread against the plain loop, on a GPU against its memory.

    python -m benchmarks.scan [--lengths 216 1728 4096] [--channels 1024] [--peer] [--json FILE]

CPU seconds of forward and of forward with backward (the sides take turns, the least disturbed
repetition counts), and how much the resident memory of a fresh process grows meanwhile; each also
as a share of the loop's. The C kernel appears with every instruction set that this processor has.

On a GPU: milliseconds, and how many times the floor that is, the time in which the arrays that must
be read and written pass once at the speed of a plain copy in the same run. mamba-ssm's kernel takes
part where it is built.
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
from contourcast.models.kernels import cpu_scan
from contourcast.models.kernels.build import FOLDER
from contourcast.models.kernels.cpu_scan import Kernel, load_kernel
from contourcast.models.selective_scan import SCANS, Scan, mamba_ssm_works, triton_works


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
        cpu_scan.cpu_kernel = lambda: kernel  # type: ignore[assignment]
        return SCANS["cpu_kernel"](*inputs)

    return scan


def run(name: str, length: int, channels: int, backward: bool) -> None:
    """One pass; importable, so that a fresh process can be measured."""
    torch.set_num_threads(1)
    scan = scan_named(name)
    one_pass(scan, coefficients(length, channels), backward)


def inputs_alone(length: int, channels: int) -> None:
    """What every side holds before it begins."""
    torch.set_num_threads(1)
    coefficients(length, channels)


def one_pass(scan: Scan, inputs: list[Tensor], backward: bool) -> None:
    """Forward without a thought of gradients, or forward and backward."""
    if backward:
        torch.autograd.grad(scan(*inputs).sum(), inputs)
    else:
        with torch.no_grad():
            scan(*inputs)


def cpu_seconds(scan: Scan, inputs: list[Tensor], backward: bool) -> float:
    """Of this process; other load on the machine hardly enters."""
    start = time.process_time()
    one_pass(scan, inputs, backward)
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


def floor_bytes(length: int, channels: int, states: int, backward: bool) -> int:
    """What any scan in float32 must move: x, Δ, B, C, y; backward again, and their adjoints."""
    forward = 3 * channels * length + 2 * states * length
    return 4 * (forward + (5 * channels * length + 4 * states * length if backward else 0))


def cuda_milliseconds(call: Callable[[], object], times: int) -> float:
    """The least disturbed repetition, by the device's own clock, after two to warm up."""
    best = float("inf")
    for repetition in range(times + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if repetition >= 2:
            best = min(best, start.elapsed_time(end))
    return best


def cuda_table(length: int, channels: int, times: int) -> list[dict[str, object]]:
    """One row a side."""
    block = torch.empty(2**28, device="cuda")
    copied = 2 * block.numel() * block.element_size()
    bytes_per_ms = copied / cuda_milliseconds(block.clone, times)
    inputs = [v.detach().cuda().requires_grad_() for v in coefficients(length, channels)]
    works = {"triton": triton_works(), "mamba_ssm": mamba_ssm_works()}
    rows = []
    for name in ("chunked", *(name for name, here in works.items() if here)):
        scan = SCANS[name]
        row: dict[str, object] = {"scan": name}
        for backward, word in ((False, "fwd"), (True, "both")):
            ms = cuda_milliseconds(lambda: one_pass(scan, inputs, backward), times)  # noqa: B023
            floor_ms = floor_bytes(length, channels, inputs[2].shape[1], backward) / bytes_per_ms
            row |= {f"{word} ms": round(ms, 3), f"{word} over floor": round(ms / floor_ms, 2)}
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
    parser.add_argument("--gpu-lengths", type=int, nargs="+", default=[64, 512, 4096, 16384, 65536])
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
    on_gpu = {}
    if not torch.cuda.is_available():
        print("no CUDA device here")
    for length in a.gpu_lengths if torch.cuda.is_available() else ():
        on_gpu[length] = cuda_table(length, a.channels, a.times)
        print(f"length {length}, {a.channels} channels, {torch.cuda.get_device_name()}")
        print_table(on_gpu[length])
    if a.json:
        figures = {"channels": a.channels, "cpu": tables, "gpu": on_gpu}
        a.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
