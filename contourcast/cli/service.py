"""The service, and what this machine has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has: device, scan backend, codecs, elastix, weights."""
    from contourcast.service.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
        return
    width = max(len(name) for name in findings)
    for name, finding in findings.items():
        typer.echo(f"{name:<{width}}  {finding}")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    data: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
) -> None:
    """Serve the HTTP API (OpenAPI at /docs) with durable jobs on this machine."""
    from contourcast.service.server import serve as run_server
    from contourcast.service.settings import ServiceSettings

    settings = ServiceSettings() if data is None else ServiceSettings(data_folder=data)
    run_server(host=host, port=port, settings=settings)
