"""The audit log: whether it holds, and a copy of it elsewhere."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from contourcast.cli.access import Database, happened, opened
from contourcast.cli.terminal import OneLineErrors

audit = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, help="Check, export and forward the audit log."
)


class Form(StrEnum):
    """How rows are written out."""

    JSON = "json"
    DICOM = "dicom"


Source = Annotated[str, typer.Option(help="What this service is called in DICOM messages.")]


@audit.command()
def verify(
    against: Annotated[
        Path | None, typer.Option(help="An earlier export, to hold the log against.")
    ] = None,
    database: Database = "",
) -> None:
    """Say whether every row is as it was written; the exit code is 1 if not."""
    from contourcast.service.access.audit import read_export
    from contourcast.service.access.audit import verify as verify_log

    known = None
    if against is not None:
        with against.open(encoding="utf-8") as lines:
            known = read_export(lines)
    with opened(database) as index:
        broken = verify_log(index, against=known)
    if broken is not None:
        typer.echo(f"contourcast: row {broken.number} of the audit log: {broken.why}", err=True)
        raise typer.Exit(1)
    typer.echo("the audit log holds")


@audit.command()
def export(
    form: Annotated[Form, typer.Option(help="JSON lines, or DICOM Audit Messages.")] = Form.JSON,
    after: Annotated[int, typer.Option(min=0, help="Only rows after this number.")] = 0,
    source: Source = "contourcast",
    database: Database = "",
) -> None:
    """Print the audit log, one line a row."""
    from contourcast.service.access.atna import message
    from contourcast.service.access.audit import record, rows
    from contourcast.service.access.roles import What

    with opened(database) as index:
        record(index, replace(happened("audit export"), what=What.AUDIT))
        for row in rows(index, after=after):
            typer.echo(row.line() if form is Form.JSON else message(row, source=source))


@audit.command()
def forward(
    host: Annotated[str, typer.Argument(help="Syslog server, by the name in its certificate.")],
    port: Annotated[int, typer.Option(help="Its port.")] = 6514,
    authority: Annotated[
        Path | None, typer.Option(help="Certificates that vouch for it; none: the system's.")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(help="Our certificate and key, if it asks for one.")
    ] = None,
    source: Source = "contourcast",
    database: Database = "",
) -> None:
    """Send the rows that were not sent yet to a syslog server over TLS (DICOM PS3.15 A.6)."""
    from contourcast.service.access import atna

    with (
        opened(database) as index,
        atna.collector(host, port=port, authority=authority, identity=identity) as connection,
    ):
        sent = atna.forward(index, connection, source=source)
    typer.echo(f"{sent} rows sent")


@audit.command("role")
def role(
    name: Annotated[str, typer.Argument(help="Name of the role that the service connects as.")],
    database_name: Annotated[str, typer.Option(help="Name of the database.")] = "contourcast",
) -> None:
    """Print SQL for a Postgres role that can add to the audit log, and not change it."""
    from contourcast.service.access.audit import adding_role

    for statement in adding_role(name, database=database_name):
        typer.echo(f"{statement};")
