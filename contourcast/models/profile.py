"""What a network costs: parameters, arithmetic, memory, time."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from contourcast.models.noise_reduction import NoiseReduction
from contourcast.models.selective_scan import SCANS

MB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One forward pass in a process of its own, one thread.

    Attributes:
        seconds: Of CPU, the best of the repetitions.
        peak_mb: Largest resident memory beyond network and input, MiB.
    """

    seconds: float
    peak_mb: float


def parameters(network: nn.Module) -> int:
    """Trainable ones, each tensor once."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def gigaflops(network: nn.Module, shape: Sequence[int]) -> float:
    """2 x multiply-adds of convolutions and matrix products, in units of 10⁹ (NETWORKS §1).

    Nothing is computed or allocated, so the network may lie on the meta device. The scan's own
    arithmetic is not counted: it depends on who runs it.

    Args:
        network: Its training flags are left alone.
        shape: Of the input: (batch, channels, *space).
    """
    with torch.no_grad(), idle_scans(), _whole_maps(network), FakeTensorMode():
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        with FlopCounterMode(display=False) as counter:
            functional_call(network, state, (torch.empty(tuple(shape)),))
    return float(counter.get_total_flops()) / 1e9


def measured(network: nn.Module, shape: Sequence[int], *, repeats: int = 2) -> Measured:
    """Time and memory of a forward pass on the CPU, in a fresh process.

    Args:
        network: On the CPU.
        shape: Of the input: (batch, channels, *space).
        repeats: Passes, of which the fastest counts.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(there, network, tuple(shape), repeats))
    child.start()
    there.close()
    try:
        return Measured(**here.recv())
    except EOFError:
        raise MemoryError(f"a forward pass over {tuple(shape)} ended its process") from None
    finally:
        child.join()
        here.close()


def _measure(answer: Any, network: nn.Module, shape: tuple[int, ...], repeats: int) -> None:
    torch.set_num_threads(1)
    x = torch.zeros(shape)
    network.eval()
    before = _peak_bytes(now=True)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            start = time.process_time()
            network(x)
            seconds.append(time.process_time() - start)
    peak_mb = max(0, _peak_bytes() - before) / MB
    answer.send({"seconds": min(seconds), "peak_mb": peak_mb})


def _peak_bytes(*, now: bool = False) -> int:
    """Most resident memory of this process so far; or, where that can be told, at this moment."""
    status = Path("/proc/self/status")
    if status.exists():
        entry = "VmRSS:" if now else "VmHWM:"
        line = next(line for line in status.read_text().splitlines() if line.startswith(entry))
        return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


@contextmanager
def idle_scans() -> Iterator[None]:
    """All scans answer with the right shape and do nothing: a loop over two million steps waits."""
    kept = dict(SCANS)
    SCANS.update(dict.fromkeys(kept, _shape_alone))
    try:
        yield
    finally:
        SCANS.update(kept)


@contextmanager
def _whole_maps(network: nn.Module) -> Iterator[None]:
    """Noise reduction projects each map at once: one step a level to count, not one a cell.

    As much arithmetic where the sizes divide; elsewhere cells overlap, and slabs do a little more.
    """
    slabbed = [m for m in network.modules() if isinstance(m, NoiseReduction) and m.config.slabs]
    for module in slabbed:
        module.config = replace(module.config, slabs=False)
    try:
        yield
    finally:
        for module in slabbed:
            module.config = replace(module.config, slabs=True)


def _shape_alone(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return torch.empty_like(x)
