"""Where we are with an archive: small notes in the database that outlive whoever wrote them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from contourcast.service.index.database import Index
from contourcast.service.index.tables import cursor


def note(at: Connection, name: str) -> dict[str, Any] | None:
    """What was written under a name; None: nothing was."""
    found = at.execute(select(cursor.c.value_json).where(cursor.c.name == name)).scalar()
    return None if found is None else dict(found)


def write(index: Index, at: Connection, name: str, value: dict[str, Any]) -> None:
    """Writes under a name what replaces what was there."""
    at.execute(index.insert_new(cursor, {"name": name, "value_json": value}))
    at.execute(update(cursor).where(cursor.c.name == name).values(value_json=value))


def add_hint(index: Index, archive: str) -> None:
    """Counts that an archive told of something.

    Hints are counted: whoever gives one and whoever follows it need no common clock.
    """
    with index.write() as at:
        index.in_turn(at, _hint_of(archive))
        write(index, at, _hint_of(archive), {"number": hints(at, archive) + 1})


def hints(at: Connection, archive: str) -> int:
    """How often an archive told of something."""
    return int((note(at, _hint_of(archive)) or {}).get("number", 0))


def _hint_of(archive: str) -> str:
    return f"hint:{archive}"
