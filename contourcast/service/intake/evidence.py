"""What is here of a patient, as facts that matching is asked with.

Facts are read from the files themselves, once for each state of a series, and kept in memory:
there is nothing to bring up to date when a rule or a reader changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Connection, Row, select

from contourcast.imaging.dicom.instance import (
    CT_IMAGE,
    SPATIAL_REGISTRATION,
    STRUCTURE_SET,
    read_header,
)
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtplan_in import RT_PLAN, read_plan
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import ContourcastError
from contourcast.service.archive import Archive, Kept
from contourcast.service.index.tables import course, fraction, propagation, review, series
from contourcast.service.ingest import later_approval
from contourcast.service.intake.facts import (
    CourseFacts,
    PlanFacts,
    PriorFacts,
    RegistrationFacts,
    SeriesFacts,
    StructureSetFacts,
    moment,
    plan_facts,
    registration_facts,
    series_facts,
    structure_set_facts,
)
from contourcast.service.intake.outcomes import Known
from contourcast.service.intake.withdrawn import WITHDRAWN
from contourcast.service.problems import DamagedError, NotFoundError

# One file is not in the store, or not what was put there; of a store that is away it is neither.
LOST: Final = (NotFoundError, DamagedError)
# Objects and series whose facts are kept in memory: those of a busy day.
REMEMBERED = 4096

log = structlog.get_logger()
T = TypeVar("T")


class Evidence:
    """Reads facts from the archive."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._series = lru_cache(maxsize=REMEMBERED)(self._read_series)
        self._object = lru_cache(maxsize=REMEMBERED)(self._read_object)
        self._later = lru_cache(maxsize=REMEMBERED)(self._read_later)

    def of_series(self, series_uid: str, sender: str = "") -> SeriesFacts | None:
        """The facts of a series of images; None when none of it can be read."""
        kept = self.archive.instances_of(series_uid)
        files = tuple(k.file_digest for k in kept if k.sop_class_uid == CT_IMAGE)
        try:
            return self._series(series_uid, files, sender) if files else None
        except LOST:  # not kept in memory: what is lost may be sent again
            left = tuple(f for f in files if self._is_left(series_uid, f))
            return self._read_series(series_uid, left, sender) if left else None

    def of_patient(self, patient_key: str) -> Known:
        """Everything under a patient ID.

        One object that cannot be read is left out, and told in the log; it does not hide the rest.
        One that the store lost is named, for it may have said something else than what is left.
        """
        with self.archive.index.read() as at:
            rows = at.execute(select(series).where(series.c.patient_key == patient_key)).all()
            courses, priors = _courses(at, patient_key), priors_of(at, patient_key)
        scans = [row for row in rows if row.modality == "CT"]
        objects, lost = self._objects([row.uid for row in rows if row.modality != "CT"])
        return Known(
            series=tuple(
                _found(
                    self.of_series(row.uid, row.sender if row.door == "dimse" else "")
                    for row in scans
                )
            ),
            structure_sets=tuple(o for o in objects if isinstance(o, StructureSetFacts)),
            plans=tuple(o for o in objects if isinstance(o, PlanFacts)),
            registrations=tuple(o for o in objects if isinstance(o, RegistrationFacts)),
            courses=courses,
            priors=priors,
            lost=lost,
        )

    def fractions_planned(self, course_id: str) -> int | None:
        """How many fractions a course has by its plans; None: they do not say, or disagree."""
        with self.archive.index.read() as at:
            treated = at.execute(select(course).where(course.c.id == course_id)).one()
            its = (series.c.patient_key == treated.patient_key) & (series.c.modality == "RTPLAN")
            uids = list(at.execute(select(series.c.uid).where(its)).scalars())
        plans = [
            plan
            for plan in self._objects(uids)[0]
            if isinstance(plan, PlanFacts)
            and plan.structure_set_uid == treated.structures_uid
            and plan.treats
        ]
        in_use = [plan for plan in plans if plan.approved] or plans
        said = {plan.fractions for plan in in_use}
        return said.pop() if len(said) == 1 else None

    def _objects(
        self, series_uids: Iterable[str]
    ) -> tuple[list[StructureSetFacts | PlanFacts | RegistrationFacts | None], tuple[str, ...]]:
        """What is in these series; and the SOP Instance UIDs of sets and plans that are lost."""
        found, lost = [], []
        for kept in (kept for uid in series_uids for kept in self.archive.instances_of(uid)):
            try:
                facts = self._object(kept.series_uid, kept.file_digest, kept.sop_class_uid)
                if isinstance(facts, StructureSetFacts | PlanFacts):
                    status, _ = self._approval(kept, facts.approval_status)
                    facts = replace(facts, approval_status=status)
                found.append(facts)
            except LOST as error:  # as of series
                log.warning("evidence_lost", kind=error.code, series=kept.series_uid)
                if kept.sop_class_uid in (STRUCTURE_SET, RT_PLAN):
                    lost.append(kept.sop_uid)
        return found, tuple(lost)

    def approvals(self, contents: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which other contents under a UID say no more than a later word of approval.

        Args:
            contents: SOP Instance UID and file digest of each.
        """
        asked = set(contents)
        kept = self.archive.known({sop_uid for sop_uid, _ in asked})
        said = set()
        for each in kept.values():
            if each.sop_class_uid not in (STRUCTURE_SET, RT_PLAN):
                continue
            try:
                facts = self._object(each.series_uid, each.file_digest, each.sop_class_uid)
                if isinstance(facts, StructureSetFacts | PlanFacts):
                    _, digests = self._approval(each, facts.approval_status)
                    said |= {(each.sop_uid, digest) for digest in digests}
            except LOST:  # told where it is looked for as evidence
                continue
        return asked & said

    def _approval(self, kept: Kept, status: str) -> tuple[str, frozenset[str]]:
        """The last word of approval of an object, and the contents that said no more than that."""
        said = set()
        for other in self.archive.set_aside(kept.sop_uid, kept.series_uid):
            if later := self._later(kept.series_uid, kept.file_digest, other, status):
                status = later
                said.add(other)
        return status, frozenset(said)

    def _read_later(self, series_uid: str, file_digest: str, other: str, status: str) -> str:
        here = self.archive.file_of(series_uid, file_digest)
        return later_approval(here, self.archive.file_set_aside(other), status=status)

    def _is_left(self, series_uid: str, file_digest: str) -> bool:
        try:
            self.archive.file_of(series_uid, file_digest)
        except LOST as error:
            log.warning("evidence_lost", kind=error.code, series=series_uid)
            return False
        return True

    def _read_series(
        self, series_uid: str, files: tuple[str, ...], sender: str
    ) -> SeriesFacts | None:
        headers = _found(
            _readable(partial(read_header, self.archive.file_of(series_uid, digest)))
            for digest in files
        )
        return series_facts(headers, sender=sender) if headers else None

    def _read_object(
        self, series_uid: str, file_digest: str, sop_class_uid: str
    ) -> StructureSetFacts | PlanFacts | RegistrationFacts | None:
        path = self.archive.file_of(series_uid, file_digest)
        if sop_class_uid == STRUCTURE_SET:
            return _readable(partial(_structure_set, path))
        if sop_class_uid == RT_PLAN:
            return _readable(lambda: plan_facts(read_plan(path)))
        if sop_class_uid == SPATIAL_REGISTRATION:
            return _readable(lambda: registration_facts(read_registration(path), read_header(path)))
        return None


def _readable(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except ContourcastError as error:
        log.warning("evidence_unreadable", kind=error.code, uid=error.uid)
        return None


def _structure_set(path: Path) -> StructureSetFacts:
    found = read_structure_set(path)
    return structure_set_facts(found, read_header(path), drawn_at=moment(found.date, found.time))


def _found(things: Iterable[T | None]) -> list[T]:
    return [thing for thing in things if thing is not None]


def _courses(at: Connection, patient_key: str) -> tuple[CourseFacts, ...]:
    rows = at.execute(select(course).where(course.c.patient_key == patient_key)).all()
    return tuple(
        CourseFacts(
            planning_ct_uid=row.planning_series_uid,
            structure_set_uid=row.structures_uid,
            last_fraction_at=max(
                (
                    when
                    for found in at.execute(
                        select(fraction.c.acquired_at).where(fraction.c.course_id == row.id)
                    )
                    if (when := _moment(found.acquired_at)) is not None
                ),
                default=None,
            ),
        )
        for row in rows
    )


def priors_of(at: Connection, patient_key: str) -> tuple[PriorFacts, ...]:
    """What was signed here and still stands: each with the course and the ROI it belongs to."""
    query = (
        select(review, propagation.c.order_json, propagation.c.cbct_series_uid)
        .join(propagation, propagation.c.id == review.c.propagation)
        .where(propagation.c.patient_key == patient_key, review.c.structures_uid.is_not(None))
        .order_by(review.c.number)
    )
    its = select(propagation.c.id).where(propagation.c.patient_key == patient_key)
    withdrawn = set(at.execute(WITHDRAWN.where(review.c.propagation.in_(its))).scalars())
    return tuple(_prior(row) for row in at.execute(query) if row.structures_uid not in withdrawn)


def _prior(row: Row[Any]) -> PriorFacts:
    order = row.order_json
    return PriorFacts(
        planning_ct_uid=order["planning_ct"]["series"],
        planning_structure_set_uid=order["structures"]["sop_uid"],
        roi_number=order["roi_number"],
        structure_set_uid=row.structures_uid,
        cbct_uid=row.cbct_series_uid,
        cbct_acquired_at=_moment(row.acquired_at),
        decision=row.number,
    )


def _moment(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
