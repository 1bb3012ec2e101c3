"""A worker whose steps sleep: engine, queues and duties of a real one, and nothing computed.

    PYTHONPATH=tests python -m support.sleeping_worker LOG SECONDS [VERSION]

Settings come from the environment, as a worker's do. Each step appends a line when it begins and
one when it ends: which, of which job, by whom, when.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dbos import DBOS, Queue

from contourcast.service.jobs import engine, take_over
from contourcast.service.jobs.queues import limits
from contourcast.service.jobs.steps import Steps
from contourcast.service.jobs.work import at_work
from contourcast.service.logs import configure_logging
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings

LATE_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A line of the log.

    Attributes:
        what: ``begun`` or ``ended``.
        at_s: By the machine's clock that only goes forward.
    """

    what: str
    job: str
    step: str
    slot: str
    at_s: float


def marks(log: Path) -> list[Mark]:
    """What the workers wrote, in its order; a line that is not whole yet is left out."""
    if not log.exists():
        return []
    lines = log.read_text("ascii").splitlines(keepends=True)
    fields = [line.split() for line in lines if line.endswith("\n")]
    return [
        Mark(what=what, job=job, step=step, slot=slot, at_s=float(at_s))
        for what, job, step, slot, at_s in fields
    ]


class SleepingSteps(Steps):
    """Steps that take their time."""

    def __init__(self, records: Records, *, slot: str, log: Path, seconds: float) -> None:
        super().__init__(records, device="cpu", weights=None)
        self._slot = slot
        self._log = log
        self._seconds = seconds

    def register(self, propagation: str) -> dict[str, Any]:
        with self._slept(propagation, "register"):
            return {"registrations": "", "r_ct": ""}

    def draw(self, propagation: str, method: str, registrations: str, r_ct: str) -> dict[str, Any]:
        del registrations, r_ct
        with self._slept(propagation, f"draw-{method}"):
            return {"drawn": ""}

    def finish(
        self, propagation: str, registered: Mapping[str, str], drawn: Sequence[str]
    ) -> dict[str, Any]:
        del registered, drawn
        with self._slept(propagation, "finish"):
            return {"files": {}}

    @contextmanager
    def _slept(self, propagation: str, step: str) -> Iterator[None]:
        self._mark("begun", propagation, step)
        time.sleep(self._seconds)
        yield
        self._mark("ended", propagation, step)

    def _mark(self, what: str, propagation: str, step: str) -> None:
        line = f"{what} {propagation} {step} {self._slot} {time.monotonic()}\n"
        handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, line.encode("ascii"))  # one call, so that lines never mix
        finally:
            os.close(handle)


def work(settings: ServiceSettings, log: Path, seconds: float, stop: threading.Event) -> None:
    """As `contourcast.service.jobs.work.work`, less intake and deliveries."""
    records = open_records(settings, role=settings.worker_slot)
    try:
        steps = SleepingSteps(records, slot=settings.worker_slot, log=log, seconds=seconds)
        at_work(settings, records, steps, stop)
    finally:
        records.close()


def register_late() -> None:
    """As on a busy machine: what was left is taken up by the time that its queues are known."""
    register = DBOS.register_queue
    each_s = LATE_S / len(limits(0))

    def late(name: str, **limit: Any) -> Queue:
        time.sleep(each_s)
        return register(name, **limit)

    DBOS.register_queue = late  # type: ignore[method-assign]


def main() -> None:
    """Works until it is told to end."""
    if len(sys.argv) > 3:  # as the release before, or after, this one
        engine.WORKFLOW_VERSION = take_over.WORKFLOW_VERSION = sys.argv[3]  # type: ignore[attr-defined, misc]
    settings = ServiceSettings()
    configure_logging(settings.log_level)
    register_late()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    work(settings, Path(sys.argv[1]), float(sys.argv[2]), stop)


if __name__ == "__main__":
    main()
