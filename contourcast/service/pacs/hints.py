"""That an archive told of something: whoever watches it looks at once."""

from __future__ import annotations

from sqlalchemy import Connection

from contourcast.service.index import cursors
from contourcast.service.index.database import Index


def add(index: Index, archive: str) -> None:
    """Counts a hint.

    Hints are counted: whoever gives one and whoever follows it need no common clock.
    """
    with index.write() as at:
        index.in_turn(at, _of(archive))
        cursors.write(index, at, _of(archive), {"number": count(at, archive) + 1})


def count(at: Connection, archive: str) -> int:
    """How often an archive told of something."""
    return int((cursors.note(at, _of(archive)) or {}).get("number", 0))


def _of(archive: str) -> str:
    return f"hint:{archive}"
