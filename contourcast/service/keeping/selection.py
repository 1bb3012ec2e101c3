"""Which files belong to a course or a series, for giving them out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import select

from contourcast.service.archive import Archive
from contourcast.service.index.tables import course, fraction, propagation, review
from contourcast.service.intake.withdrawn import WITHDRAWN
from contourcast.service.jobs.derived import result_key
from contourcast.service.problems import NotFoundError
from contourcast.service.store.blobs import fetch_all

# Of the results of a propagation, those that are DICOM and no picture.
OBJECTS: Final = ("RS.dcm", "REG.dcm")


def files_of(archive: Archive, *, courses: Collection[str], series: Collection[str]) -> list[Path]:
    """Files on this machine, each once; of what was signed, nothing that was rejected after all.

    Args:
        archive: Where they are.
        courses: Of each its scans, its structure set, and what was drawn, registered and signed.
        series: Of each its instances.

    Raises:
        NotFoundError: One of them is not here, or nothing of it may be given out.
        StoreError: The store cannot be reached.
    """
    found: dict[Path, None] = {}
    with archive.index.read() as at:
        withdrawn = set(at.execute(WITHDRAWN).scalars())
    for course_id in courses:
        found |= dict.fromkeys(_of_course(archive, course_id, withdrawn))
    for uid in series:
        members = [kept for kept in archive.instances_of(uid) if kept.sop_uid not in withdrawn]
        if not members:
            raise NotFoundError("no series of that UID is here", uid=uid, remedy="see /v1/series")
        found |= dict.fromkeys(archive.path(kept) for kept in members)
    return list(found)


def _of_course(archive: Archive, course_id: str, withdrawn: set[str]) -> Iterator[Path]:
    with archive.index.read() as at:
        planned = at.execute(select(course).where(course.c.id == course_id)).first()
        if planned is None:
            raise NotFoundError("no course has that id", remedy="see /v1/courses")
        scans = at.execute(
            select(fraction.c.series_uid).where(fraction.c.course_id == course_id)
        ).scalars()
        series = dict.fromkeys((planned.planning_series_uid, *scans))
        drawn = at.execute(
            select(propagation.c.id).where(propagation.c.course_id == course_id)
        ).scalars()
        keys = [result_key(one, name) for one in drawn for name in OBJECTS]
        signed = at.execute(
            select(review.c.structures_uid).where(
                review.c.course_id == course_id, review.c.structures_uid.is_not(None)
            )
        ).scalars()
        sets = {planned.structures_uid, *signed} - withdrawn
    for uid in series:
        yield from (archive.path(kept) for kept in archive.instances_of(uid))
    yield from (archive.path(kept) for kept in archive.known(sets).values())
    yield from fetch_all(archive.blobs, [key for key in keys if archive.blobs.has(key)])
