"""Who has a propagation open: a soft lock. It stops nobody; a banner says who else looks."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, select, update

from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import presence

# The page says so every few seconds while it is open.
KEPT: Final = timedelta(seconds=60)


def look_at(
    index: Index, propagation_id: str, who: str, *, at: datetime | None = None
) -> list[str]:
    """Somebody has it open now; the others who have, by name."""
    moment = at or now()
    row = {"propagation": propagation_id, "who": who, "seen_at": moment.isoformat()}
    with index.write() as connection:
        connection.execute(delete(presence).where(presence.c.seen_at < (moment - KEPT).isoformat()))
        if not connection.execute(index.insert_new(presence, row)).rowcount:
            connection.execute(
                update(presence)
                .where(presence.c.propagation == propagation_id, presence.c.who == who)
                .values(seen_at=row["seen_at"])
            )
        found = open_by(connection, [propagation_id], at=moment)[propagation_id]
    return [name for name in found if name != who]


def open_by(
    connection: Connection, propagation_ids: Collection[str], *, at: datetime | None = None
) -> dict[str, list[str]]:
    """Of each propagation: who has it open, by name."""
    query = (
        select(presence.c.propagation, presence.c.who)
        .where(
            presence.c.propagation.in_(propagation_ids),
            presence.c.seen_at >= ((at or now()) - KEPT).isoformat(),
        )
        .order_by(presence.c.who)
    )
    found: dict[str, list[str]] = {each: [] for each in propagation_ids}
    for row in connection.execute(query):
        found[row.propagation].append(row.who)
    return found
