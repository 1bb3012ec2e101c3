"""Times and peak memory of callables, ours beside a peer's, in one run.

Machines differ and are shared, so seconds alone say little: what we claim is the ratio of two
things that took turns on the same machine.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall seconds of each repetition, and the processor seconds of all threads."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The least disturbed repetition."""
        return min(self.seconds)

    @property
    def typical(self) -> float:
        """The median repetition."""
        return median(self.seconds)

    @property
    def cpu(self) -> float:
        """Processor seconds of the least disturbed repetition; says more on a busy machine."""
        return min(self.cpu_seconds)

    def __str__(self) -> str:
        return f"{_ms(self.best)} (median {_ms(self.typical)}, cpu {_ms(self.cpu)})"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours and a peer's, taking turns."""

    name: str
    ours: Timing
    peer: Timing

    def __str__(self) -> str:
        return (
            f"{self.name}: ours {self.ours}, peer {self.peer}, "
            f"ratio {self.ours.best / self.peer.best:.3f} "
            f"(median {self.ours.typical / self.peer.typical:.3f}, "
            f"cpu {self.ours.cpu / self.peer.cpu:.3f})"
        )


def timed(call: Callable[[], object], *, times: int = 5) -> Timing:
    """Runs once to warm up, then that many times."""
    call()
    return _timing([_seconds(call) for _ in range(times)])


def compared(
    name: str, ours: Callable[[], object], peer: Callable[[], object], *, times: int = 5
) -> Comparison:
    """Runs both once to warm up, then in turns, so that other load falls on both alike."""
    ours()
    peer()
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(times)]
    mine, theirs = zip(*pairs, strict=True)
    return Comparison(name=name, ours=_timing(mine), peer=_timing(theirs))


def peak_mib(call: Callable[..., object], *arguments: Any) -> float:
    """How much the resident memory of a fresh process grows at most while it runs the call (MiB).

    Callable and arguments must be importable and picklable: the child imports the call's module
    and receives the arguments before it starts to count.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_grow, args=(sender, call, arguments))
    child.start()
    sender.close()
    try:
        grown: float = receiver.recv()
    except EOFError as error:
        raise RuntimeError("the measured call failed in its child process") from error
    finally:
        child.join()
    return grown


def _grow(sender: Any, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    before = _peak_rss_mib()
    call(*arguments)
    sender.send(_peak_rss_mib() - before)


def _peak_rss_mib() -> float:
    """Of this program alone: on Linux ru_maxrss also remembers the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def _timing(runs: Sequence[tuple[float, float]]) -> Timing:
    wall, cpu = zip(*runs, strict=True)
    return Timing(seconds=wall, cpu_seconds=cpu)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
