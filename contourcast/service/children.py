"""Processes of one machine: a child each for what computes or listens, started again when it dies.

Heavy work never shares an interpreter with the event loop. A child holds the other end of a pipe:
when its parent goes, however it goes, the pipe closes and the child goes at once, so that two
never live under one name.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from contourcast.service.logs import configure_logging
from contourcast.service.problems import log_fault
from contourcast.service.settings import ServiceSettings

RESTART_S: Final = 1.0

log = structlog.get_logger()


@contextlib.contextmanager
def child(module: str, settings: ServiceSettings) -> Iterator[None]:
    """A process that runs a module, started again whenever it dies, gone when the block ends."""
    stop = threading.Event()
    current: list[subprocess.Popen[str]] = []

    def watch() -> None:
        while not stop.is_set():
            process = subprocess.Popen(
                [sys.executable, "-m", module], stdin=subprocess.PIPE, text=True
            )
            current[:] = [process]
            if stop.is_set():
                process.kill()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(settings.model_dump_json() + "\n")
                process.stdin.flush()
            code = process.wait()
            process.stdin.close()
            if not stop.is_set():
                log.error("child_died", module=module, code=code)
                stop.wait(RESTART_S)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        for process in current:
            process.kill()
        watcher.join()


def until_abandoned(run: Callable[[ServiceSettings, threading.Event], None]) -> None:
    """A child's main: settings come on stdin, and its end says that the parent is gone."""
    settings = ServiceSettings.model_validate_json(sys.stdin.readline())
    configure_logging(settings.log_level)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    try:
        run(settings, threading.Event())
    except Exception as error:
        log_fault("child_failed", error, trace="")
        os._exit(1)


def _leave_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(0)  # nothing to tidy: every step may be interrupted anywhere
