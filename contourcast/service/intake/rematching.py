"""Which fractions are matched once more, when something that they were matched to has changed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, select, update

from contourcast.service.index.tables import course, fraction, propagation, revision
from contourcast.service.intake.states import SIGNED, THROUGH


def turn_of(patient_key: str) -> str:
    """The name under which what concerns one patient is decided one by one (`Index.in_turn`).

    It is taken first in a transaction: a match that is being written is seen by nobody else yet, so
    `match_again` could not reach it.
    """
    return f"patient-{patient_key}"


def match_again(at: Connection, *conditions: ColumnElement[bool], disputed: bool = False) -> None:
    """Fractions of these courses that nobody has signed are matched anew.

    Args:
        at: The transaction.
        conditions: On the fraction and its course.
        disputed: What they were matched to is in doubt, so that nothing more may be signed: a
            fraction of several ROIs of which one is signed is matched anew for the others.
    """
    of_matches = propagation.c.revision_id.is_not(None)
    signed = propagation.c.state.in_([state.value for state in SIGNED])
    decided = select(propagation.c.revision_id).where(of_matches, signed)
    if disputed:
        through = propagation.c.state.in_([state.value for state in THROUGH])
        left = select(propagation.c.revision_id).where(of_matches, ~through)
        decided = decided.where(propagation.c.revision_id.not_in(left))
    mine = (
        select(fraction.c.revision_id)
        .join(course, course.c.id == fraction.c.course_id)
        .where(fraction.c.state == "matched", fraction.c.revision_id.not_in(decided), *conditions)
    )
    at.execute(update(revision).where(revision.c.id.in_(mine)).values(matched=0))
