"""Which fractions are matched once more, when something that they were matched to has changed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, select, update

from contourcast.service.index.tables import course, fraction, propagation, revision
from contourcast.service.intake.states import SIGNED


def match_again(at: Connection, *conditions: ColumnElement[bool]) -> None:
    """Fractions of these courses that nobody has signed are matched anew."""
    signed = select(propagation.c.revision_id).where(
        propagation.c.revision_id.is_not(None),
        propagation.c.state.in_([state.value for state in SIGNED]),
    )
    mine = (
        select(fraction.c.revision_id)
        .join(course, course.c.id == fraction.c.course_id)
        .where(fraction.c.state == "matched", fraction.c.revision_id.not_in(signed), *conditions)
    )
    at.execute(update(revision).where(revision.c.id.in_(mine)).values(matched=0))
