"""Which fraction of its course a scan is of, and the how-manieth scan of that fraction.

A patient who was shifted is often scanned again before the beam (CLINICAL_SERVICE §2.6). Such
scans follow one another within the site's `repeat_minutes`; two fractions of one day lie at least
six hours apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy import Connection, func, select

from contourcast.service.index.tables import fraction


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A scan's place in its course.

    Attributes:
        fraction: 1, 2 … in the order of being taken.
        scan: 1, 2 … of that fraction; the last one is what the patient was treated by.
        scans: How many that fraction has.
    """

    fraction: int
    scan: int
    scans: int


def numbers_of(
    at: Connection, courses: Iterable[str], *, repeat_minutes: float
) -> dict[tuple[str, str], Taken]:
    """Of each course and series of these courses; later revisions of a series are the same scan."""
    rows = at.execute(
        select(fraction.c.course_id, func.min(fraction.c.acquired_at), fraction.c.series_uid)
        .where(fraction.c.course_id.in_(courses))
        .group_by(fraction.c.course_id, fraction.c.series_uid)
    ).all()
    scans: dict[str, list[tuple[str, str]]] = {}
    for course_id, acquired_at, series_uid in rows:
        scans.setdefault(course_id, []).append((acquired_at, series_uid))
    return {
        (course_id, series_uid): Taken(fraction=number, scan=scan, scans=len(together))
        for course_id, taken in scans.items()
        for number, together in enumerate(_fractions(sorted(taken), repeat_minutes), start=1)
        for scan, series_uid in enumerate(together, start=1)
    }


def _fractions(scans: Sequence[tuple[str, str]], repeat_minutes: float) -> list[list[str]]:
    """Series UIDs in fractions; ``scans`` are (when acquired, series UID), in order."""
    found = [[series_uid] for _, series_uid in scans[:1]]
    for (before, _), (then, series_uid) in pairwise(scans):
        if _is_repeat(before, then, repeat_minutes):
            found[-1].append(series_uid)
        else:
            found.append([series_uid])
    return found


def _is_repeat(before: str, then: str, repeat_minutes: float) -> bool:
    """Nobody is scanned twice at one moment: times that say so, or nothing, tell nothing."""
    if not before or not then:
        return False
    apart = datetime.fromisoformat(then) - datetime.fromisoformat(before)
    return timedelta() < apart <= timedelta(minutes=repeat_minutes)
