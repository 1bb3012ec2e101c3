"""Small notes in the database that outlive whoever wrote them: how far somebody has come."""

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
