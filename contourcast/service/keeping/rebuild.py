"""The index from the store alone, when the database is lost.

Every instance is read and admitted anew; the rows that no header tells come from `records`. What
is not brought back: when and by which door an instance came, receipts of deliveries (`send_again`
promises all that goes out once more, and archives answer that they have it), sign-ins and API keys
(they are made anew), edits that nobody has signed, structure sets that somebody began to sign and
did not, and the chain of the audit log (its exports stay what they are; a new chain begins). What
the review page shows is made anew at the first look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Table, select, update

from contourcast.imaging.dicom.instance import STRUCTURE_SET, read_header
from contourcast.imaging.dicom.modules import MANUFACTURER
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import GeometryError, InputError
from contourcast.service.archive import Archive, Outcome, Sent, Staged
from contourcast.service.index.database import Index
from contourcast.service.index.tables import (
    arrival,
    event,
    fraction,
    instance,
    propagation,
    review,
    series,
)
from contourcast.service.ingest import TAKEN, say_the_same
from contourcast.service.intake.states import State
from contourcast.service.intake.withdrawn import WITHDRAWN
from contourcast.service.jobs.propagations import Job
from contourcast.service.keeping.records import Record, read_records
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.problems import ConflictError, DamagedError
from contourcast.service.review.decisions import OURS, SIGNED_FILE, SIGNED_SERIES
from contourcast.service.store.blobs import Blobs, digest_in

INSTANCES: Final = "instances/"
QUARANTINE: Final = "quarantine/"
RESULTS: Final = "results/"
BATCH: Final = 64
# How what comes from the store is said to have come.
PULLED: Final = Sent(door="pull")
# Of these, nothing goes out.
STOPPED: Final = (State.CANCELLED, State.SUPERSEDED, State.FAILED)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What came back, and what did not.

    Attributes:
        instances: Read and admitted.
        conflicts: Set aside, as before.
        rows: By table.
        unread: Keys of files that cannot be read, each with the reason.
        unsigned: Keys of structure sets that we wrote as signed and of which no decision tells;
            they were left out.
        orphans: Propagations whose results are here and whose order is not; asked for again, they
            get the same UIDs.
    """

    instances: int
    conflicts: int
    rows: dict[str, int]
    unread: tuple[tuple[str, str], ...]
    unsigned: tuple[str, ...]
    orphans: tuple[str, ...]


def rebuild(archive: Archive, *, on_step: Callable[[int], object] = lambda _: None) -> Rebuilt:
    """Fills an index that is empty. Nobody else may use it meanwhile.

    Args:
        archive: Over the store that is left, and a new index.
        on_step: Is told how many files were read so far.

    Raises:
        ConflictError: The index is not empty; nothing was done.
        BusyError, StoreError: Index or store cannot be reached; begin again with an empty index.
    """
    _require_empty(archive.index)
    for record in read_records(archive.blobs, (series,)):
        _restore(archive.index, record)  # so that it is known whose each is before it fills
    outcomes: list[Outcome] = []
    unread: list[tuple[str, str]] = []
    unsigned: list[str] = []
    vouched = _vouched_for(archive.blobs)
    for place, taken in ((INSTANCES, _admit), (QUARANTINE, _set_aside)):
        for keys in _batches(archive.blobs.list(place)):
            staged = []
            for key in keys:
                try:
                    file = _staged(key, archive.blobs.get(key))
                    if vouched.isdisjoint(_uids(file)) and _is_signed_by_us(file):
                        unsigned.append(key)
                    else:
                        staged.append(file)
                except (DamagedError, InputError, GeometryError) as error:
                    unread.append((key, error.cause))
            outcomes += taken(archive, staged)
            on_step(len(outcomes))
    rows: dict[str, int] = {}
    for record in read_records(archive.blobs):
        _restore(archive.index, record)
        rows[record.table.name] = rows.get(record.table.name, 0) + 1
    return Rebuilt(
        instances=outcomes.count("stored"),
        conflicts=outcomes.count("conflict"),
        rows=rows,
        unread=tuple(unread),
        unsigned=tuple(unsigned),
        orphans=_orphans(archive),
    )


def send_again(deliveries: Deliveries) -> None:
    """Promises once more all that goes out, after `rebuild`; to archives alone, no notices.

    What was on its way to its first try then, and goes nowhere by the settings of today, waits for
    a person at once.

    Raises:
        BusyError: The index cannot be reached; begin again with an empty one.
    """
    index, propagations = deliveries.records.index, deliveries.records.propagations
    query = select(propagation.c.id).where(
        propagation.c.ended == 1, propagation.c.state.not_in(STOPPED)
    )
    with index.read() as at:
        ended = list(at.execute(query.order_by(propagation.c.number)).scalars())
    for job in map(propagations.job, ended):
        with index.write() as at:
            if job.files:
                deliveries.plan(at, job, job.files)
            for name, digest in _standing(at, job):
                deliveries.plan_signed(at, job.id, name, digest)
            if job.state is State.DELIVERING and not deliveries.outbox.untried(at, job.id):
                propagations.move(at, job.id, State.AWAITING_REVIEW, "nothing goes anywhere")


def _standing(at: Connection, job: Job) -> list[tuple[str, str]]:
    """Names and digests of what is signed on a propagation and was not withdrawn."""
    decided = (
        select(review.c.structures_uid, instance.c.file_digest)
        .outerjoin(instance, instance.c.sop_uid == review.c.structures_uid)
        .where(review.c.propagation == job.id)
        .order_by(review.c.number)
    )
    withdrawn = set(at.execute(WITHDRAWN.where(review.c.propagation == job.id)).scalars())
    return [
        (SIGNED_FILE.format(number=number, digest=digest), digest)
        for number, (uid, digest) in enumerate(at.execute(decided), start=1)
        if digest is not None and uid not in withdrawn
    ]


def _admit(archive: Archive, files: Sequence[Staged]) -> list[Outcome]:
    return archive.admit(files, say_the_same, sent=PULLED)


def _set_aside(archive: Archive, files: Sequence[Staged]) -> list[Outcome]:
    """Contradictions stay such, also where what they contradicted is not here any more."""
    known = archive.known({file.header.sop_instance_uid for file in files})
    with archive.index.write() as at:
        moment = archive.index.now(at).isoformat()
        for file in files:
            uid, series_uid = _uids(file)
            at.execute(
                arrival.insert().values(
                    sop_uid=uid,
                    series_uid=known[uid].series_uid if uid in known else series_uid,
                    file_digest=file.file_digest,
                    outcome="conflict",
                    door=PULLED.door,
                    sender=PULLED.ae_title,
                    at=moment,
                )
            )
    return ["conflict"] * len(files)


def _staged(key: str, path: Path) -> Staged:
    header = read_header(path)
    digest = digest_in(key)
    assert digest is not None, "the keys of instances hold their digests"
    return Staged(
        path=path,
        file_digest=digest,
        size_bytes=path.stat().st_size,
        header=header,
        modality=TAKEN[header.sop_class_uid],
    )


def _vouched_for(blobs: Blobs) -> frozenset[str]:
    """The UIDs of the sets that decisions name, and of the series that came from elsewhere.

    The bytes of a signed set are here before its decision is, and stay when that comes to nothing;
    one that another Contourcast signed has no decision here, and came in by a door.
    """
    return frozenset(
        record.row["structures_uid"] if record.table is review else record.row["uid"]
        for record in read_records(blobs, (series, review))
        if record.table is review or record.row["door"] != OURS.door
    )


def _is_signed_by_us(file: Staged) -> bool:
    """Whether this service, or its like, wrote it as signed."""
    head = file.header
    return (
        head.sop_class_uid == STRUCTURE_SET
        and head.manufacturer.strip() == MANUFACTURER
        and head.series_description.strip() == SIGNED_SERIES
        and read_structure_set(file.path).approval_status == "APPROVED"
    )


def _uids(file: Staged) -> tuple[str, str]:
    return file.header.sop_instance_uid, file.header.series_instance_uid


def _require_empty(index: Index) -> None:
    with index.read() as at:
        for table in (instance, propagation):
            if at.execute(select(table).limit(1)).first() is not None:
                raise ConflictError(
                    "the index is not empty",
                    remedy="name a new database: CONTOURCAST_DATABASE_URL; the old one stays",
                )


def _restore(index: Index, record: Record) -> None:
    """Writes a row, over the one that admission made of the headers."""
    row = dict(record.row)
    if record.table is fraction:
        row["looked_at"] = 0  # counted arrivals, which begin anew
    (column,) = record.table.primary_key.columns
    with index.write() as at:
        if at.execute(index.insert_new(record.table, row)).rowcount != 1:
            changes = {name: value for name, value in row.items() if name != column.name}
            at.execute(update(record.table).where(column == row[column.name]).values(**changes))
        for one in record.events:
            at.execute(index.insert_new(event, dict(one)))
        _count_on(index, at, record.table)


def _count_on(index: Index, at: Any, table: Table) -> None:
    """Lets Postgres give numbers after those that came back; SQLite does so by itself."""
    column = next((c for c in table.primary_key.columns if c.autoincrement is True), None)
    if column is None or index.is_sqlite:
        return
    at.exec_driver_sql(
        f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'), "
        f"(SELECT max({column.name}) FROM {table.name}))"
    )


def _orphans(archive: Archive) -> tuple[str, ...]:
    there = sorted({key.split("/")[1] for key in archive.blobs.list(RESULTS)})
    with archive.index.read() as at:
        known = set(at.execute(select(propagation.c.id)).scalars())
    return tuple(one for one in there if one not in known)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(islice(source, BATCH)):
        yield batch
