"""What somebody has to do all the time, on one machine at a time: every worker offers itself.

Each duty runs in a thread of its own, again and again, under a lock that the database frees when
the holder dies. So with one worker it is that worker's, and with many nobody is special.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from contourcast.imaging.errors import ContourcastError
from contourcast.service.index.database import Index
from contourcast.service.problems import log_fault

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Duty:
    """Something that is done again and again.

    Attributes:
        every_s: Seconds from the end of one time to the begin of the next.
        alone: Whether only one worker of all may do it at a time.
    """

    name: str
    every_s: float
    run: Callable[[], object]
    alone: bool = True


def on_duty(index: Index, duties: Sequence[Duty], stop: threading.Event) -> list[threading.Thread]:
    """Starts all duties; they end soon after `stop` is set."""
    threads = [
        threading.Thread(target=_again, args=(index, duty, stop), name=duty.name, daemon=True)
        for duty in duties
    ]
    for thread in threads:
        thread.start()
    return threads


def _again(index: Index, duty: Duty, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            if not duty.alone:
                duty.run()
            else:
                with index.alone(duty.name) as mine:
                    if mine:
                        duty.run()
        except ContourcastError as error:  # a database or an archive that is away: next time
            log.warning("duty_put_off", duty=duty.name, cause=error.cause)
        except Exception as error:
            log_fault("duty_failed", error, trace="", duty=duty.name)
        stop.wait(duty.every_s)
