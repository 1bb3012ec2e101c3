"""Two contents under one UID: the first is kept, and a person says whether it is the right one.

Nothing in DICOM tells which of two images of one UID is the patient of today. So whatever uses
such an instance, as CBCT, planning CT or structure set, waits for an answer, and so does every
fraction of a patient with two contents of one plan: plans decide which structures count. Yet
another content after the answer is a new question. A later approval alone is none: it counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, or_, select

from contourcast.service.index.tables import arrival, course, fraction, instance, series
from contourcast.service.intake.outcomes import (
    NONE_OF_THESE,
    Answer,
    Choice,
    Match,
    NeedsPerson,
    NotOurs,
    Reason,
)
from contourcast.service.intake.rematching import match_again


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A second content that came, however often."""

    sop_uid: str
    file_digest: str


def conflicts_of(at: Connection, found: Match) -> list[Conflict]:
    """Those of what a match uses, and of the plans of its patient, used or not."""
    scans = [found.cbct_uid, found.planning_ct_uid]
    sets = select(instance.c.series_uid).where(instance.c.sop_uid == found.structure_set_uid)
    whose = select(series.c.patient_key).where(series.c.uid == found.cbct_uid)
    plans = select(series.c.uid).where(
        series.c.modality == "RTPLAN", series.c.patient_key.in_(whose)
    )
    query = (
        select(arrival.c.sop_uid, arrival.c.file_digest)
        .distinct()
        .where(
            arrival.c.outcome == "conflict",
            or_(
                arrival.c.series_uid.in_(scans),
                arrival.c.series_uid.in_(plans),
                # by its series, of which there is an index
                arrival.c.series_uid.in_(sets) & (arrival.c.sop_uid == found.structure_set_uid),
            ),
        )
        .order_by(arrival.c.sop_uid, arrival.c.file_digest)
    )
    return [Conflict(sop_uid=sop, file_digest=digest) for sop, digest in at.execute(query)]


def settled(
    found: Match, conflicts: Sequence[Conflict], answers: Sequence[Answer]
) -> Match | NeedsPerson | NotOurs:
    """The match as it was, where nothing is disputed; else what a person said, or the question."""
    if not conflicts:
        return found
    uids = list(dict.fromkeys(each.sop_uid for each in conflicts))
    many = f"{len(uids)} instances that it rests on came again with other content; "
    first = Choice(value=f"first-{_digest(conflicts)}", label="what came first is right")
    said = next((a.choice for a in reversed(answers) if a.question == "conflict"), ())
    if said == (NONE_OF_THESE,):
        return NotOurs(reason=f"{many}a person said that none is right")
    if said != (first.value,):
        return NeedsPerson(
            question="conflict",
            why=f"{many}one of them is {uids[0]}; which content is right?",
            choices=(first, Choice(value=NONE_OF_THESE, label="none of them is right")),
            reasons=found.reasons,
        )
    answered = Reason(
        question="conflict", rule="answered", sentence="a person chose what came first"
    )
    return replace(
        found,
        reasons=(*found.reasons, answered),
        doubts=(*found.doubts, f"{many}the first is used"),
    )


def _digest(conflicts: Sequence[Conflict]) -> str:
    """Of what a person has in view: an answer holds for that and no more."""
    known = "\n".join(f"{each.sop_uid} {each.file_digest}" for each in conflicts)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def dispute(at: Connection, *, series_uids: Collection[str], sop_uids: Collection[str]) -> None:
    """A second content came of these: what was matched to them is matched anew.

    The caller is in the turn of each patient whom it concerns (`turn_of`).
    """
    planned = select(series.c.patient_key).where(
        series.c.uid.in_(series_uids), series.c.modality == "RTPLAN"
    )
    match_again(
        at,
        or_(
            fraction.c.patient_key.in_(planned),
            fraction.c.series_uid.in_(series_uids),
            course.c.planning_series_uid.in_(series_uids),
            course.c.structures_uid.in_(sop_uids),
        ),
        disputed=True,
    )
