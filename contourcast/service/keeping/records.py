"""Rows of the index that cannot be concluded from files, kept beside the files.

What came in can be read again from its headers. What was decided, by a person or by the rules of
that day, and what was promised cannot: so the rows of series, revisions, courses, fractions,
propagations and reviews are written into the store a short while after they changed. From there
`contourcast rebuild` brings them back when the database is lost.

Rows are read a page at a time; what lies in the store is listed once, and again only when somebody
else has written there since.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Table, select, update

from contourcast.service.index.database import Index, as_json
from contourcast.service.index.tables import (
    course,
    cursor,
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
    """

    def __init__(self, index: Index, blobs: Blobs, draft: Callable[[], Path]) -> None:
        self._index = index
        self._blobs = blobs
        self._draft = draft
        self._token = uuid.uuid4().hex
        self._known: dict[str, _Version] = {}

    def keep(self) -> int:
        """Writes what changed; how many rows.

        Raises:
            BusyError, StoreError: Index or store cannot be reached; the next time goes on.
        """
        if not self._was_last():
            self._known = dict(_versions(self._blobs))
            self._be_last()
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
            said = at.execute(select(cursor.c.value_json).where(cursor.c.name == WRITER)).scalar()
        return said == {"by": self._token}

    def _be_last(self) -> None:
        row = {"name": WRITER, "value_json": {"by": self._token}}
        with self._index.write() as at:
            at.execute(self._index.insert_new(cursor, row))
            at.execute(update(cursor).where(cursor.c.name == WRITER).values(**row))

    def _rows(self, table: Table) -> Iterator[dict[str, Any]]:
        (key,) = table.primary_key.columns
        last: Any = None
        while True:
            page = select(table).order_by(key).limit(AT_ONCE)
            if last is not None:
                page = page.where(key > last)
            with self._index.read() as at:
                rows = at.execute(page).mappings().all()
                ids = [row[key.name] for row in rows]
                happened = _events(at, ids) if table is propagation else {}
            for row in rows:
                yield {"row": dict(row), "events": happened.get(row[key.name], [])}
            if len(rows) < AT_ONCE:
                return
            last = rows[-1][key.name]


def _events(at: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What happened to each of some propagations, in its order."""
    query = select(event).where(event.c.propagation.in_(ids)).order_by(event.c.number)
    happened: dict[str, list[dict[str, Any]]] = {}
    for one in at.execute(query).mappings():
        happened.setdefault(one["propagation"], []).append(dict(one))
    return happened


def read_records(blobs: Blobs) -> Iterator[Record]:
    """The newest version of every row that was kept, in the order in which they can come back.

    Raises:
        DamagedError, StoreError: One cannot be read.
    """
    newest = dict(_versions(blobs))
    for table in RECORDED:
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
