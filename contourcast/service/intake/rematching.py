"""Which fractions are matched once more, when something that they were matched to has changed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, select, update

from contourcast.service.index.tables import course, fraction, propagation, revision
from contourcast.service.intake.states import SIGNED


def turn_of(patient_key: str) -> str:
    """The name under which what concerns one patient is decided one by one (`Index.in_turn`).

    It is taken first in a transaction: a match that is being written is seen by nobody else yet, so
    `match_again` could not reach it.
    """
    return f"patient-{patient_key}"


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
