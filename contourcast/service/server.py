"""The server process: HTTP here, jobs in a child process that is started again when it dies.

Heavy work never shares an interpreter with the event loop. The child holds the other end of a
pipe: when the server goes, however it goes, the pipe closes and the child goes at once, so that
two workers never live under one name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import structlog

from contourcast.service.problems import SettingsError, log_fault
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import exclusive

RESTART_S = 1.0

log = structlog.get_logger()


def serve(*, host: str, port: int, settings: ServiceSettings) -> None:
    """Serves until it is stopped.

    Raises:
        SettingsError: The address is not loopback, or another service has the data folder or port.
    """
    import uvicorn

    from contourcast.service.api.app import create_app

    require_loopback(host)
    configure_logging(settings.log_level)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with (
        exclusive(settings.data_folder / "server.lock", wait=False),
        _listening(host, port) as listening,
        _worker(settings),
    ):
        bound = listening.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(settings),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=3,
            )
        )
        log.info("serving", url=f"http://{_in_url(host)}:{bound}", docs="/docs")
        server.run(sockets=[listening])


def require_loopback(host: str) -> None:
    """Refuses to be reached from other machines while nobody has to say who they are.

    Raises:
        SettingsError: The address is not one of this machine alone.
    """
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost":
        return
    raise SettingsError(
        f"the service does not listen on '{host}': it has no credentials yet, so whoever reached it"
        " would see patients' data",
        remedy="listen on 127.0.0.1 and reach it through ssh or a proxy that asks for credentials",
    )


def configure_logging(level: str) -> None:
    """JSON lines on stderr; other libraries' lines without the errors that they quote."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Quiet())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dbos").addHandler(handler)  # else it adds one that prints what it is told
    logging.captureWarnings(True)
    threading.excepthook = lambda failed: log_fault(
        "thread_failed", failed.exc_value or failed.exc_type(), trace=""
    )


class _Quiet(logging.Formatter):
    """Lines of foreign libraries: who and how bad; text of theirs may quote patients' data."""

    def format(self, record: logging.LogRecord) -> str:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        return json.dumps(
            {
                "event": "library",
                "level": record.levelname.lower(),
                "logger": record.name,
                "place": f"{record.filename}:{record.lineno}",
                "kind": kind,
            }
        )


def work_until_abandoned() -> None:
    """The child's main: settings come on stdin, and its end says that the server is gone."""
    settings = ServiceSettings.model_validate_json(sys.stdin.readline())
    configure_logging(settings.log_level)
    threading.Thread(target=_leave_with_the_server, daemon=True).start()
    with exclusive(settings.data_folder / f"{settings.worker_slot}.lock", wait=True):
        from contourcast.service.jobs.work import work

        try:
            work(settings, threading.Event())
        except Exception as error:
            log_fault("worker_failed", error, trace="")
            os._exit(1)


def _leave_with_the_server() -> None:
    sys.stdin.read()
    os._exit(0)  # nothing to tidy: every step may be interrupted anywhere


@contextlib.contextmanager
def _worker(settings: ServiceSettings) -> Iterator[None]:
    """A worker process, started again whenever it dies, gone when the block ends."""
    stop = threading.Event()
    current: list[subprocess.Popen[str]] = []

    def watch() -> None:
        while not stop.is_set():
            child = subprocess.Popen(
                [sys.executable, "-m", "contourcast.service.jobs.worker"],
                stdin=subprocess.PIPE,
                text=True,
            )
            current[:] = [child]
            if stop.is_set():
                child.kill()
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(settings.model_dump_json() + "\n")
                child.stdin.flush()
            code = child.wait()
            if not stop.is_set():
                log.error("worker_died", code=code)
                stop.wait(RESTART_S)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        for child in current:
            child.kill()
        watcher.join()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(
            f"port {port} of {host} cannot be had ({os.strerror(error.errno or 0).lower()})",
            remedy="stop what listens there, or choose another port: --port",
        ) from error
    with listening:
        # asyncio only does this for sockets that it made itself; without it, 40 ms an answer.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
