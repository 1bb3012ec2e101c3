"""A worker that a parent watches over, with a GPU that one job breaks: nothing is computed.

    python -m support.gpu_worker

Settings come on stdin, as a child's do; steps leave marks as those of `sleeping_worker`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Final

from contourcast.propagate import computing_on
from contourcast.service.children import until_abandoned
from contourcast.service.jobs.work import at_work
from contourcast.service.records import open_records
from contourcast.service.settings import ServiceSettings
from support.sleeping_worker import SleepingSteps

LOG: Final = "SUPPORT_GPU_WORKER_LOG"
POISON: Final = "poison"


class GpuSteps(SleepingSteps):
    """Steps of which one job's draws end with the error of a lost context."""

    def draw(self, propagation: str, method: str, registrations: str, r_ct: str) -> dict[str, Any]:
        if propagation == POISON:
            with self._slept(propagation, f"draw-{method}"), computing_on(self.device):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().draw(propagation, method, registrations, r_ct)


def run(settings: ServiceSettings, stop: threading.Event) -> None:
    """Works until it ends itself, or is abandoned."""
    records = open_records(settings, role=settings.worker_slot)
    log = Path(os.environ[LOG])
    steps = GpuSteps(records, slot=settings.worker_slot, log=log, seconds=0.05)
    steps.device = "cuda"
    at_work(settings, records, steps, stop)


if __name__ == "__main__":
    until_abandoned(run)
