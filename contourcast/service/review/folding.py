"""Which scans stand under the last one of their fraction, by which the patient was treated."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from contourcast.service.index.tables import propagation
from contourcast.service.intake.states import SIGNED, THROUGH
from contourcast.service.review.numbering import Taken


def earlier_scans(
    at: Connection, numbers: Mapping[tuple[str, str], Taken], listed: ColumnElement[bool]
) -> dict[str, list[str]]:
    """Under the last scan of each fraction and ROI, listed or signed: what is listed before it.

    Args:
        at: Of the index.
        numbers: Of each course and CBCT series that the list speaks of.
        listed: What a propagation has to be to stand in the list.

    Returns:
        Ids of propagations under that of the last one, the latest first. Under one that is signed
        and not listed they stand nowhere: nobody waits for them.
    """
    again = [key for key, taken in numbers.items() if taken.scans > 1]
    if not again:
        return {}
    rows = at.execute(
        select(
            propagation.c.id,
            propagation.c.course_id,
            propagation.c.cbct_series_uid,
            propagation.c.order_json["roi_number"].as_integer().label("roi_number"),
            propagation.c.state,
            listed.label("listed"),
        )
        .where(
            propagation.c.course_id.in_({course_id for course_id, _ in again}),
            propagation.c.cbct_series_uid.in_({scan for _, scan in again}),
            listed | propagation.c.state.in_(SIGNED),
        )
        .order_by(propagation.c.number.desc())
    ).all()
    fractions: dict[tuple[Any, ...], list[tuple[int, Row[Any]]]] = {}
    for row in rows:
        taken = numbers[row.course_id, row.cbct_series_uid]
        key = (row.course_id, row.roi_number, taken.fraction)
        fractions.setdefault(key, []).append((taken.scan, row))
    found: dict[str, list[str]] = {}
    for together in fractions.values():
        together.sort(key=itemgetter(0), reverse=True)  # newest propagation first inside each
        number, last = together[0]
        # what is decided is folded under what is decided too, and under nothing else
        found[last.id] = [
            row.id
            for scan, row in together[1:]
            if scan < number and row.listed and (last.listed or row.state not in THROUGH)
        ]
    return found
