"""The record of who did what: a chain in which each row has the digest of the one before.

A row that is changed, taken out, put in or moved breaks the chain, and a row taken from its end
contradicts the head, which is kept beside it and which the next row continues. Whoever can write
everything in the database can also write a new chain; against that stand what was exported
(`verify(against=…)`), a syslog server elsewhere, and a database role that may only add.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, select, text

from contourcast.imaging.errors import InputError
from contourcast.service.access.caller import Caller
from contourcast.service.access.roles import What
from contourcast.service.index.database import Index, as_json, now
from contourcast.service.index.tables import audit, cursor
from contourcast.service.problems import StoreError

HEAD: Final = "audit-head"  # in the table of cursors
TURN: Final = "audit"
START: Final = "0" * 64  # what the first row has for a former
BATCH: Final = 1000
LONGEST_FIELD: Final = 200
MOST_OBJECTS: Final = 100  # of one row: a line of the export, a message to a syslog server

Outcome = Literal["success", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class Happening:
    """Something that somebody did, or tried.

    Attributes:
        what: Which kind of thing.
        who: As `Caller.name`; empty where nobody was known.
        roles: What they were here for.
        address: Where from.
        action: The route as verb and template, a DIMSE service, or a command.
        patient: Key of the patient, which says nothing to a reader; empty where there is none.
        objects: UIDs and ids of what it was about.
        outcome: How it ended.
        detail: A word or number more, such as an HTTP status; never what somebody wrote.
    """

    what: What
    who: str = ""
    roles: frozenset[str] = frozenset()
    address: str = ""
    action: str = ""
    patient: str = ""
    objects: tuple[str, ...] = ()
    outcome: Outcome = "success"
    detail: str = ""

    @classmethod
    def by(cls, caller: Caller | None, what: What, **fields: Any) -> Happening:
        """What a caller did."""
        if caller is None:
            return cls(what=what, **fields)
        known = {"who": caller.name, "roles": caller.roles, "address": caller.address}
        return cls(what=what, **(known | fields))

    def in_rows(self) -> list[Happening]:
        """The same in as many rows as its objects need: whatever was touched is in one of them."""
        parts = [
            replace(self, objects=self.objects[first : first + MOST_OBJECTS])
            for first in range(0, len(self.objects), MOST_OBJECTS)
        ]
        return parts or [self]

    def fields(self) -> dict[str, Any]:
        """As it is kept, in one row."""
        return {
            "what": self.what.value,
            "who": _plain(self.who),
            "roles": sorted(str(role) for role in self.roles),
            "address": _plain(self.address),
            "action": _plain(self.action),
            "patient": _plain(self.patient),
            "objects": [_plain(o) for o in self.objects],
            "outcome": self.outcome,
            "detail": _plain(self.detail),
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the log, as it lies there."""

    number: int
    at: str
    happening: dict[str, Any]
    previous: str
    digest: str

    def line(self) -> str:
        """As one line of JSON."""
        fields = {
            "number": self.number,
            "at": self.at,
            "happening": self.happening,
            "previous": self.previous,
            "digest": self.digest,
        }
        return as_json(fields)


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The first row that is not as it was written."""

    number: int
    why: str


def guard(index: Index) -> None:
    """Makes the database itself refuse to change or delete a row; to be called at each start."""
    with index.write() as connection:
        if index.is_sqlite:
            for verb in ("UPDATE", "DELETE"):
                connection.execute(text(_SQLITE_TRIGGER.format(verb=verb)))
            return
        index.in_turn(connection, TURN)
        there = "SELECT 1 FROM pg_trigger WHERE tgname = 'audit_only_grows'"
        if connection.execute(text(there)).first() is None:
            for statement in _POSTGRES_TRIGGER:
                connection.execute(text(statement))


def append(index: Index, connection: Connection, happening: Happening) -> int:
    """Adds a happening in a transaction of the caller's: the deed and its record, or neither.

    Args:
        index: The database.
        connection: Of `Index.write`.
        happening: What to add.

    Returns:
        The number of its row, the last where it needs several.

    Raises:
        StoreError: The log has rows that we did not write, and cannot be continued.
    """
    index.in_turn(connection, TURN)
    number, digest = _head(connection) or _last(connection) or (0, START)
    at = now().isoformat()
    for part in happening.in_rows():
        number, previous, fields = number + 1, digest, part.fields()
        digest = digest_of(number=number, at=at, happening=fields, previous=previous)
        row = {
            "number": number,
            "at": at,
            "row_json": fields,
            "previous_digest": previous,
            "digest": digest,
        }
        new = index.insert_new(audit, row).returning(audit.c.number)
        if connection.execute(new).first() is None:
            raise StoreError(
                "the audit log holds a row that was put in from outside",
                remedy="nothing is done until somebody has looked: contourcast audit verify",
            )
    head = {"number": number, "digest": digest}
    moved = connection.execute(cursor.update().where(cursor.c.name == HEAD).values(value_json=head))
    if moved.rowcount == 0:
        connection.execute(cursor.insert().values(name=HEAD, value_json=head))
    return number


def record(index: Index, happening: Happening) -> int:
    """Adds a happening; the number of its row, the last where it needs several.

    Raises:
        BusyError: The database cannot be reached; then what it was about must not happen either.
    """
    with index.write() as connection:
        return append(index, connection, happening)


def rows(index: Index, *, after: int = 0) -> Iterator[Row]:
    """The rows in order, a thousand at a time."""
    while True:
        with index.read() as connection:
            found = connection.execute(
                select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(BATCH)
            ).all()
        for row in found:
            yield Row(
                number=row.number,
                at=row.at,
                happening=row.row_json,
                previous=row.previous_digest,
                digest=row.digest,
            )
        if len(found) < BATCH:
            return
        after = found[-1].number


def verify(index: Index, *, against: Mapping[int, str] | None = None) -> Broken | None:
    """The first row that is not as it was written, or none.

    Args:
        index: The database.
        against: Digests by number that were exported earlier; without them, a chain that was
            written anew as a whole cannot be told from the first one.
    """
    with index.read() as connection:
        first_head = _head(connection)
    known = dict(against or {})
    number, digest = 0, START
    for row in rows(index):
        number += 1
        why = _what_is_wrong(row, number=number, previous=digest)
        if not why and known.pop(number, row.digest) != row.digest:
            why = "it is not the row that was exported"
        if not why and first_head is not None and first_head[0] == number:
            why = "" if first_head[1] == row.digest else "it is not the row that was last written"
        if why:
            return Broken(number=number, why=why)
        digest = row.digest
    with index.read() as connection:
        head = _head(connection)
    if known or (first_head is not None and first_head[0] > number):
        return Broken(number=number + 1, why="rows are missing at the end")
    if number and (head is None or head[0] < number):
        return Broken(number=1 + (head[0] if head else 0), why="it was put in from outside")
    return None


def read_export(lines: Iterable[str]) -> dict[int, str]:
    """The digests in an export as JSON lines, by number, for `verify`.

    Raises:
        InputError: A line is not one of an export.
    """
    digests: dict[int, str] = {}
    for at, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            digests[int(row["number"])] = str(row["digest"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"line {at} is not of an export of the audit log",
                remedy="name a file that `contourcast audit export` wrote",
            ) from error
    return digests


def digest_of(*, number: int, at: str, happening: dict[str, Any], previous: str) -> str:
    """SHA-256 over a row and the digest of the former one."""
    fields = {"number": number, "at": at, "happening": happening, "previous": previous}
    return hashlib.sha256(as_json(fields).encode("utf-8", "surrogatepass")).hexdigest()


def adding_role(name: str, *, database: str) -> list[str]:
    """SQL that makes a Postgres role for the service: all but changing and deleting the log.

    The owner of the tables runs it once, and after each new version that brought tables. That it
    may create in the database is for the job engine, which makes a schema of its own. Its
    password is set apart, and belongs into no file of ours.

    Raises:
        InputError: The name is none that needs no quotes.
    """
    for word in (name, database):
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", word):
            raise InputError(
                "a role and a database have small letters, digits and underscores",
                remedy="choose another name",
            )
    return [
        f"DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{name}')"
        f" THEN CREATE ROLE {name} LOGIN; END IF; END $$",
        f"GRANT CONNECT, CREATE ON DATABASE {database} TO {name}",
        f"GRANT USAGE ON SCHEMA public TO {name}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {name}",
        f"REVOKE UPDATE, DELETE, TRUNCATE ON TABLE audit FROM {name}",
    ]


def _what_is_wrong(row: Row, *, number: int, previous: str) -> str:
    if row.number != number:
        return f"row {number} is missing"
    if row.previous != previous:
        return "it does not continue the row before it"
    digest = digest_of(number=row.number, at=row.at, happening=row.happening, previous=row.previous)
    return "" if digest == row.digest else "it was changed after it was written"


def _head(connection: Connection) -> tuple[int, str] | None:
    said = connection.execute(
        select(cursor.c.value_json).where(cursor.c.name == HEAD)
    ).scalar_one_or_none()
    return None if said is None else (int(said["number"]), str(said["digest"]))


def _last(connection: Connection) -> tuple[int, str] | None:
    row = connection.execute(
        select(audit.c.number, audit.c.digest).order_by(audit.c.number.desc()).limit(1)
    ).one_or_none()
    return None if row is None else (int(row.number), str(row.digest))


def _plain(said: str) -> str:
    """Printable and of bounded length: nothing that breaks a line, an XML text or a database."""
    return "".join(c if c.isprintable() else "?" for c in said[:LONGEST_FIELD])


_SQLITE_TRIGGER: Final = """
CREATE TRIGGER IF NOT EXISTS audit_no_{verb} BEFORE {verb} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END
"""
_POSTGRES_TRIGGER: Final = (
    """
    CREATE OR REPLACE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit log only grows'; END $$
    """,
    """
    CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()
    """,
)
