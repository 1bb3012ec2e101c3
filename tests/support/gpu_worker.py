"""A worker that a parent watches over, with a GPU that one job breaks: nothing is computed.

    python -m support.gpu_worker

Settings come on stdin, as a child's do; steps leave marks as those of `sleeping_worker`. What a
network drew is written down late, when the methods of the CPU have ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from contourcast.propagate import computing_on, is_network
from contourcast.service.children import until_abandoned
from contourcast.service.jobs import work
from contourcast.service.records import open_records
from contourcast.service.settings import ServiceSettings
from contourcast.service.traces import Trail
from support.sleeping_worker import SleepingSteps

LOG: Final = "SUPPORT_GPU_WORKER_LOG"
POISON: Final = "poison"
CPU_S: Final = 0.2
LATE_S: Final = 0.5


class GpuSteps(SleepingSteps):
    """Steps of which one job's draws end with the error of a lost context."""

    def draw(self, propagation: str, method: str, registrations: str, r_ct: str) -> dict[str, Any]:
        if propagation == POISON:
            with self._slept(propagation, f"draw-{method}"), computing_on(self.device):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if not is_network(method):
            time.sleep(CPU_S)
        return super().draw(propagation, method, registrations, r_ct)


class LateTrail(Trail):
    """Holds a network's step up once it is done."""

    @contextmanager
    def span(self, propagation: str, name: str, **told: str) -> Iterator[None]:
        """Something that is done."""
        with super().span(propagation, name, **told):
            yield
        if name == "draw" and is_network(told["method"]):
            time.sleep(LATE_S)


def run(settings: ServiceSettings, stop: threading.Event) -> None:
    """Works until it ends itself, or is abandoned."""
    records = open_records(settings, role=settings.worker_slot)
    log = Path(os.environ[LOG])
    steps = GpuSteps(records, slot=settings.worker_slot, log=log, seconds=0.05)
    steps.device = "cuda"
    work.Trail = LateTrail  # type: ignore[attr-defined]
    work.at_work(settings, records, steps, stop)


if __name__ == "__main__":
    until_abandoned(run)
