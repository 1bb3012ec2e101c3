"""What is done with what is kept: thrown away in time, rebuilt, given out without names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contourcast.service.keeping.retention import Holder
    from contourcast.service.records import Records
    from contourcast.service.settings import ServiceSettings

Data = Annotated[Path | None, typer.Option(help="Folder for all that is kept.")]


def rebuild(data: Data = None) -> None:
    """Fill an empty index from the store alone, after the database was lost."""
    from contourcast.service.keeping.rebuild import rebuild as bring_back
    from contourcast.service.keeping.rebuild import send_again
    from contourcast.service.pacs.deliveries import Deliveries

    with _records(data, role="rebuild") as (records, settings):
        deliveries = Deliveries(records, settings.destinations)
        found = bring_back(records.archive)
        send_again(deliveries)
        _record(records, "update", "rebuild")
    typer.echo(f"{found.instances} instances, {found.conflicts} set aside as before")
    typer.echo(", ".join(f"{name} {number}" for name, number in found.rows.items()))
    for key, why in found.unread:
        typer.echo(f"not read: {key}: {why}", err=True)
    for key in found.unsigned:
        typer.echo(f"left out: {key}: written to be signed, and no decision tells of it", err=True)
    for propagation in found.orphans:
        typer.echo(f"results without their order: {propagation}; ask for it again", err=True)


def retention(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
    archive: Annotated[
        str,
        typer.Option(
            help="The destination that is asked whether it holds what goes; none: images stay."
        ),
    ] = "",
    images_days: Annotated[
        int, typer.Option(min=1, help="Days that images stay after the last fraction.")
    ] = 30,
    derived_days: Annotated[int, typer.Option(min=1, help="Days that results of steps stay.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data: Data = None,
) -> None:
    """Delete images that the archive holds and nobody needs here, and old results of steps."""
    from datetime import timedelta

    from contourcast.service.index.database import now
    from contourcast.service.keeping.retention import Deletion, Retention, carry_out, make_plan
    from contourcast.service.store.blobs import Dated

    with (
        _records(data, role="retention") as (records, settings),
        _holder(settings, archive) as holder,
    ):
        blobs = records.archive.blobs
        assert isinstance(blobs, Dated), "every store of ours knows how old things are"
        rules = Retention(images=timedelta(days=images_days), derived=timedelta(days=derived_days))
        plan = make_plan(records.index, blobs, at=now(), retention=rules)
        if dry_run:
            if as_json:
                typer.echo(json.dumps([asdict(item) for item in plan.items], indent=1))
                return
            for item in plan.items:
                what = "would go" if item.due else "stays"
                typer.echo(
                    f"{what:<8}  {item.kind}  {item.subject or '-'}  {len(item.keys)} files  "
                    f"{item.size_bytes / 1e6:.1f} MB  {item.why}"
                )
            typer.echo(
                f"{plan.due_bytes / 1e6:.1f} MB would go, images only if the archive has them"
            )
            return

        def told(deletion: Deletion) -> None:
            _record(records, "delete", "retention", deletion.subject or deletion.kind)

        done = carry_out(plan, records.index, blobs, holder=holder, told=told)
    if as_json:
        kept = [asdict(item) | {"kept": why} for item, why in done.kept]
        typer.echo(
            json.dumps({"deleted": [asdict(d) for d in done.deleted], "kept": kept}, indent=1)
        )
        return
    for deletion in done.deleted:
        typer.echo(
            f"deleted  {deletion.kind}  {deletion.subject or '-'}  {deletion.files} files  "
            f"{deletion.size_bytes / 1e6:.1f} MB  {deletion.why}"
        )
    for item, why in done.kept:
        typer.echo(f"kept     {item.kind}  {item.subject}  {why}")


def export(
    out: Annotated[Path, typer.Option(help="Folder for the copies.")],
    key: Annotated[
        Path, typer.Option(help="File of the site's key for pseudonyms, 32 bytes or more.")
    ],
    deidentified: Annotated[
        bool, typer.Option("--deidentified", help="Say so: nothing leaves otherwise.")
    ] = False,
    course: Annotated[list[str] | None, typer.Option(help="Id of a course; may repeat.")] = None,
    series: Annotated[
        list[str] | None, typer.Option(help="Series Instance UID; may repeat.")
    ] = None,
    data: Data = None,
) -> None:
    """Write copies of courses or series that do not say whose they are."""
    from contourcast.imaging.errors import InputError
    from contourcast.service.keeping.export import Pseudonyms
    from contourcast.service.keeping.export import export as give_out
    from contourcast.service.keeping.selection import files_of

    if not deidentified:
        raise InputError(
            "with names nothing is exported: that is what the archive of the department is for",
            remedy="add --deidentified",
        )
    if not course and not series:
        raise InputError(
            "nothing is named that should be exported", remedy="add --course or --series"
        )
    try:
        pseudonyms = Pseudonyms(key=key.read_bytes())
    except OSError as error:
        raise InputError(
            "the key for pseudonyms cannot be read", file=key.name, remedy="name its file: --key"
        ) from error
    with _records(data, role="export") as (records, _):
        files = files_of(records.archive, courses=course or (), series=series or ())
        _record(records, "export", "export --deidentified", *(course or ()), *(series or ()))
        done = give_out(files, out, pseudonyms=pseudonyms)
    typer.echo(f"{len(done.paths)} files of {done.patients} patients in {out}")
    for uid, why in done.refused:
        typer.echo(f"stays: {uid or '(no UID)'}: {why}", err=True)


@contextmanager
def _records(data: Path | None, *, role: str) -> Iterator[tuple[Records, ServiceSettings]]:
    from contourcast.service.access.audit import guard
    from contourcast.service.records import open_records
    from contourcast.service.settings import ServiceSettings

    settings = ServiceSettings() if data is None else ServiceSettings(data_folder=data)
    records = open_records(settings, role=role)
    try:
        guard(records.index)
        yield records, settings
    finally:
        records.close()


@contextmanager
def _holder(settings: ServiceSettings, name: str) -> Iterator[Holder | None]:
    """The archive of that name, as it is asked; None for no name."""
    from contourcast.service.pacs.destinations import (
        DicomWebDestination,
        OrthancDestination,
        by_name,
    )
    from contourcast.service.pacs.dicomweb import DicomWeb
    from contourcast.service.pacs.orthanc import Orthanc
    from contourcast.service.pacs.ways import http_peer
    from contourcast.service.problems import SettingsError

    if not name:
        yield None
        return
    found = by_name(settings.destinations).get(name)
    if isinstance(found, OrthancDestination):
        with Orthanc(http_peer(found)) as orthanc:
            yield orthanc
    elif isinstance(found, DicomWebDestination):
        with DicomWeb(http_peer(found)) as web:
            yield web
    else:
        raise SettingsError(
            "no destination of that name gives images back",
            remedy="name one of the kinds orthanc or dicomweb: --archive",
        )


def _record(records: Records, what: str, action: str, *objects: str) -> None:
    from dataclasses import replace

    from contourcast.cli.access import happened
    from contourcast.service.access.audit import record
    from contourcast.service.access.roles import What

    record(records.index, replace(happened(action, *objects), what=What(what)))
