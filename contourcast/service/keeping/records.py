"""Rows of the index that cannot be concluded from files, kept beside the files.

What came in can be read again from its headers. What was decided, by a person or by the rules of
that day, and what was promised cannot: so the rows of series, revisions, courses, fractions,
propagations and reviews are written into the store a short while after they changed. From there
`contourcast rebuild` brings them back when the database is lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Table, select

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

    def keep(self) -> int:
        """Writes what changed; how many rows.

        Raises:
            BusyError, StoreError: Index or store cannot be reached; the next time goes on.
        """
        known = dict(_versions(self._blobs))
        written = 0
        for table in RECORDED:
            for row in self._rows(table):
                where = f"{RECORDS}{table.name}/{_name(table, row['row'])}/"
                content = as_json(row).encode()
                digest = hashlib.sha256(content).hexdigest()
                former = known.get(where)
                if former and former.digest == digest:
                    continue
                number = former.number + 1 if former else 1
                draft = self._draft()
                try:
                    draft.write_bytes(content)
                    self._blobs.put({_key(where, number, digest): draft})
                finally:
                    draft.unlink(missing_ok=True)
                if former:
                    self._blobs.delete(_key(where, former.number, former.digest))
                written += 1
        return written

    def _rows(self, table: Table) -> Iterator[dict[str, Any]]:
        with self._index.read() as at:
            happened: dict[str, list[dict[str, Any]]] = {}
            if table is propagation:
                query = select(event).order_by(event.c.propagation, event.c.number)
                for one in at.execute(query).mappings():
                    happened.setdefault(one["propagation"], []).append(dict(one))
            for row in at.execute(select(table)).mappings():
                yield {"row": dict(row), "events": happened.get(row.get("id", ""), [])}


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
