"""The service, and what this machine has."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contourcast.service.settings import ServiceSettings

# Supervisors give a worker a minute (compose.yaml, the units of systemd, Kubernetes).
WORKER_ENDS_S = 45.0


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has: device, codecs, elastix, weights, database, encryption."""
    from contourcast.service.doctor import examine

    findings = examine(_settings())
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
        return
    width = max(len(name) for name in findings)
    for name, finding in findings.items():
        typer.echo(f"{name:<{width}}  {finding}")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The DICOM node too, beside API and worker.")
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="The API alone; workers run elsewhere.")
    ] = False,
) -> None:
    """Serve the HTTP API (OpenAPI at /docs), with a worker on this machine."""
    from contourcast.service.server import NODE, WORKER
    from contourcast.service.server import serve as run_server

    settings = _settings(data_folder=data, host=host, port=port)
    children = () if alone else (WORKER, NODE) if everything else (WORKER,)
    run_server(host=settings.host, port=settings.port, settings=settings, children=children)


def worker(
    queues: Annotated[
        str | None, typer.Option(help="cpu, gpu, course, cohort, deliver, joined by commas.")
    ] = None,
    slot: Annotated[str | None, typer.Option(help="Its name; one live worker for each.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
) -> None:
    """Run jobs of a service whose database is shared (CONTOURCAST_DATABASE_URL)."""
    from contourcast.service.jobs.worker import run

    settings = _settings(data_folder=data, queues=queues, worker_slot=slot)
    _until_told(run, settings, within_s=WORKER_ENDS_S)
    _leave()  # the engine's threads may wait for hours for another worker's part


def dicom_node(
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
) -> None:
    """Take in what other DICOM nodes send."""
    from contourcast.service.dicom_node import run

    _until_told(run, _settings(data_folder=data, dicom_port=port))


def settings(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every setting of the service, with what it means."""
    now = _settings()
    if as_json:
        typer.echo(now.model_dump_json(indent=1))
        return
    for name, field in type(now).model_fields.items():
        typer.echo(f"{name} = {getattr(now, name)!s}")
        typer.echo(f"    {field.description or ''} [CONTOURCAST_{name.upper()}]")


def _settings(**given: object) -> ServiceSettings:
    """The settings, with what the command line says above all."""
    from contourcast.service.settings import ServiceSettings

    return ServiceSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _until_told(
    run: Callable[[ServiceSettings, threading.Event], None],
    settings: ServiceSettings,
    *,
    within_s: float | None = None,
) -> None:
    """Runs until the process is told to end: SIGTERM or SIGINT, once.

    Args:
        run: Returns soon after its event is set.
        settings: Of the service.
        within_s: After which the process ends whether it returned or not; None: that is not known.
    """
    from contourcast.service.logs import configure_logging

    configure_logging(settings.log_level)
    stop = threading.Event()

    def end(*_: object) -> None:
        if within_s is not None and not stop.is_set():
            last = threading.Timer(within_s, _leave)
            last.daemon = True
            last.start()
        stop.set()

    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, end)
    run(settings, stop)


def _leave() -> None:
    sys.stderr.flush()
    os._exit(0)
