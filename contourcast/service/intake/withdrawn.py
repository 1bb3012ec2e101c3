"""Whether a signature still stands: whoever rejects a propagation withdraws what was signed on it.

A signature that comes after a rejection is a new one, and brings back none of those before it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Select, exists, select

from contourcast.service.index.tables import review

_later = review.alias("later")
# The SOP Instance UIDs of all of them, to be narrowed by conditions on `review`.
WITHDRAWN: Final[Select[Any]] = select(review.c.structures_uid).where(
    review.c.structures_uid.is_not(None),
    exists().where(
        _later.c.propagation == review.c.propagation,
        _later.c.number > review.c.number,
        _later.c.decision == "rejected",
    ),
)


def is_withdrawn(at: Connection, structures_uid: str) -> bool:
    """Whether a structure set was signed here and rejected later."""
    query = WITHDRAWN.where(review.c.structures_uid == structures_uid)
    return at.execute(query).first() is not None
