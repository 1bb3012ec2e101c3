"""Sending a folder to a service, and fetching what it drew."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from contourcast.cli.terminal import progress
from contourcast.imaging.errors import InputError

REJECTED = 4
UNDONE = 1


def send(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, searched to its bottom.")],
    server: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    key_file: Annotated[
        Path | None, typer.Option(help="File that holds a key of the service.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until contours are drawn on what was sent.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; needs --wait.")] = None,
    roi: Annotated[
        str, typer.Option(help="ROI to carry. Left out: the service finds all by itself.")
    ] = "",
    cbct: Annotated[
        str, typer.Option(help="Series Instance UID of today's CBCT, with --roi.")
    ] = "",
    structures: Annotated[
        str, typer.Option(help="SOP Instance UID of the structure set, with --roi.")
    ] = "",
    method: Annotated[list[str] | None, typer.Option(help="A method, with --roi; repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Send a folder to a service; with --wait, fetch what it drew. May be repeated at any time."""
    from contourcast.client import Client, Result, SentFile

    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not files:
        raise InputError("the folder holds no file", file=folder.name, remedy="name another")
    if (wait and out is None) or (out is not None and not wait):
        raise InputError("--wait and --out go together", remedy="name both, or none")
    if bool(roi) != bool(cbct):
        raise InputError("--roi and --cbct go together", remedy="name both, or none")
    if (structures or method) and not roi:
        raise InputError(
            "--structures and --method are asked of one ROI, and none is named",
            remedy="name --roi and --cbct too",
        )
    request: dict[str, Any] | None = None
    if roi:
        given = {"roi": roi, "cbct": cbct, "structures": structures, "methods": method}
        request = {name: value for name, value in given.items() if value}
    key = key_file.read_text("utf-8").strip() if key_file else ""
    outcomes: dict[str, int] = {}
    results: list[Result] = []
    with Client(server, key=key, on_wait=_said_aloud) as client, progress() as tell:

        def on_file(file: SentFile) -> None:
            outcomes[file.outcome] = outcomes.get(file.outcome, 0) + 1
            tell(
                f"sent {sum(outcomes.values())} of {len(files)}",
                sum(outcomes.values()) / len(files),
            )
            if file.problem:
                typer.echo(f"{Path(file.path).name}: {file.problem}", err=True)

        if out is None:
            sent = client.send(files, on_file=on_file)
            client.complete(sent)
            if request:
                client.ask(**request)
        else:
            results = client.run(files, out=out, request=request, on_file=on_file, on_step=tell)
    if as_json:
        plain = [asdict(result) for result in results]
        json.dump({"files": outcomes, "results": plain}, sys.stdout, default=str, indent=1)
        typer.echo()
    else:
        typer.echo(", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())))
        for result in results:
            said = result.verdict or result.problem
            typer.echo(f"{result.id or result.cbct}  {result.state}  {said}")
    if any(result.verdict == "" for result in results):
        raise typer.Exit(UNDONE)
    if any(result.verdict == "reject" for result in results):
        raise typer.Exit(REJECTED)


def _said_aloud(sentence: str) -> None:
    """On stderr: a script that waits for minutes should know for whom."""
    typer.echo(f"contourcast: {sentence}", err=True)
