"""Rows of the index that cannot be concluded from files, kept beside the files.

What came in can be read again from its headers. What was decided, by a person or by the rules of
that day, and what was promised cannot: so the rows of series, revisions, courses, fractions,
propagations and reviews are written into the store a short while after they changed. From there
`contourcast rebuild` brings them back when the database is lost.

Rows are read a page at a time, the large ones only when something small of them has changed, and
all of them once an hour; what lies in the store is listed once, and again only when somebody else
has written there since.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Table, func, select

from contourcast.service.index import cursors
from contourcast.service.index.database import Index, as_json
from contourcast.service.index.tables import (
    course,
    event,
    fraction,
    propagation,
    review,
    revision,
    series,
)
from contourcast.service.store.blobs import Blobs

RECORDS: Final = "records/"
WRITER: Final = "records"  # a cursor: who wrote last
AT_ONCE: Final = 500
# In this order they come back, so that what is pointed to is there first.
RECORDED: Final[tuple[Table, ...]] = (series, revision, course, fraction, propagation, review)
# Of the tables with large rows: what is another whenever a row is. All that happens to a
# propagation is an event.
_LAST_EVENT: Final = (
    select(func.max(event.c.number))
    .where(event.c.propagation == propagation.c.id)
    .scalar_subquery()
    .label("last_event")
)
MARKS: Final[dict[str, tuple[Any, ...]]] = {
    revision.name: (revision.c.number, revision.c.matched),
    propagation.name: (
        propagation.c.attempt,
        propagation.c.state,
        propagation.c.ended,
        propagation.c.verdict,
        propagation.c.superseded_by,
        _LAST_EVENT,
    ),
}
# How often all are read whatever their marks say.
WHOLE_EVERY_S: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row as it once was, with what happened to it if it is a propagation."""

    table: Table
    row: dict[str, Any]
    events: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class _Version:
    number: int
    digest: str


class Recorder:
    """Writes rows that changed since it last looked. One at a time: see `Index.alone`.

    Args:
        index: Where the rows are.
        blobs: Where they are kept.
        draft: A name for a file on its way in, such as `Archive.incoming`.
        clock: Seconds, of which differences count.
    """

    def __init__(
        self,
        index: Index,
        blobs: Blobs,
        draft: Callable[[], Path],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._blobs = blobs
        self._draft = draft
        self._token = uuid.uuid4().hex
        self._known: dict[str, _Version] = {}
        self._marks: dict[tuple[str, Any], tuple[Any, ...]] = {}
        self._clock = clock
        self._whole_at_s = clock()

    def keep(self) -> int:
        """Writes what changed; how many rows.

        Raises:
            BusyError, StoreError: Index or store cannot be reached; the next time goes on.
        """
        if not self._was_last():
            self._known = dict(_versions(self._blobs))
            self._marks.clear()
            self._be_last()
        if self._clock() - self._whole_at_s >= WHOLE_EVERY_S:
            self._marks.clear()
            self._whole_at_s = self._clock()
        return sum(self._written(table, row) for table in RECORDED for row in self._rows(table))

    def _written(self, table: Table, row: dict[str, Any]) -> bool:
        """Keeps a row, unless it is as it was."""
        where = f"{RECORDS}{table.name}/{_name(table, row['row'])}/"
        content = as_json(row).encode()
        digest = hashlib.sha256(content).hexdigest()
        former = self._known.get(where)
        if former and former.digest == digest:
            return False
        number = former.number + 1 if former else 1
        draft = self._draft()
        try:
            draft.write_bytes(content)
            self._blobs.put({_key(where, number, digest): draft})
        finally:
            draft.unlink(missing_ok=True)
        self._known[where] = _Version(number=number, digest=digest)
        if former:
            self._blobs.delete(_key(where, former.number, former.digest))
        return True

    def _was_last(self) -> bool:
        """Whether nobody else has written since we did."""
        with self._index.read() as at:
            said = cursors.note(at, WRITER)
        return said == {"by": self._token}

    def _be_last(self) -> None:
        with self._index.write() as at:
            cursors.write(self._index, at, WRITER, {"by": self._token})

    def _rows(self, table: Table) -> Iterator[dict[str, Any]]:
        """Those that may have changed since they were last handed out, by their keys."""
        (key,) = table.primary_key.columns
        marks = MARKS.get(table.name)
        last: Any = None
        while True:
            page = select(key, *(marks or ())).order_by(key).limit(AT_ONCE)
            if last is not None:
                page = page.where(key > last)
            with self._index.read() as at:
                found = {row[0]: tuple(row[1:]) for row in at.execute(page)}
                ids = [
                    one
                    for one, mark in found.items()
                    if marks is None or self._marks.get((table.name, one)) != mark
                ]
                query = select(table).where(key.in_(ids)).order_by(key)
                rows = at.execute(query).mappings().all() if ids else []
                happened = _events(at, ids) if table is propagation and ids else {}
            for row in rows:
                one = row[key.name]
                yield {"row": dict(row), "events": happened.get(one, [])}
                if marks is not None:  # it was kept: the caller came back for the next
                    self._marks[table.name, one] = found[one]
            if len(found) < AT_ONCE:
                return
            last = next(reversed(found))


def _events(at: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What happened to each of some propagations, in its order."""
    query = select(event).where(event.c.propagation.in_(ids)).order_by(event.c.number)
    happened: dict[str, list[dict[str, Any]]] = {}
    for one in at.execute(query).mappings():
        happened.setdefault(one["propagation"], []).append(dict(one))
    return happened


def read_records(blobs: Blobs, tables: Sequence[Table] = RECORDED) -> Iterator[Record]:
    """The newest version of every row that was kept, in the order in which they can come back.

    Args:
        blobs: Where they are kept.
        tables: Of these alone.

    Raises:
        DamagedError, StoreError: One cannot be read.
    """
    newest = dict(_versions(blobs))
    for table in tables:
        begins = f"{RECORDS}{table.name}/"
        for where, version in newest.items():
            if where.startswith(begins):
                key = _key(where, version.number, version.digest)
                said = json.loads(blobs.get(key).read_bytes())
                yield Record(table=table, row=said["row"], events=tuple(said["events"]))


def _versions(blobs: Blobs) -> Iterator[tuple[str, _Version]]:
    """Each place with each of its versions, older ones first."""
    for key in blobs.list(RECORDS):
        where, _, name = key.rpartition("/")
        where, _, number = where.rpartition("/")
        yield f"{where}/", _Version(number=int(number), digest=name.removesuffix(".json"))


def _name(table: Table, row: dict[str, Any]) -> str:
    """The primary key as part of a key of the store."""
    (column,) = table.primary_key.columns
    return str(row[column.name])


def _key(where: str, number: int, digest: str) -> str:
    return f"{where}{number:08d}/{digest}.json"
