"""What a fraction was drawn from, and why that and nothing else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import Connection, select

from contourcast.service.archive import taken_at
from contourcast.service.index.tables import fraction, propagation, review
from contourcast.service.jobs.propagations import Job
from contourcast.service.review.patient import facts_of


class ReasonItem(BaseModel):
    """Why one question of matching was answered as it was."""

    question: str
    rule: str
    sentence: str


class SourceItem(BaseModel):
    """A series that something was taken from."""

    series: str
    taken_at: str = Field(description="As its header says it; no zone.")
    description: str = Field(description="Of the series; sites write what they like.")


class BasisItem(BaseModel):
    """Where the carried contour comes from."""

    planning_ct: SourceItem
    structures: SourceItem
    signed_on: str | None = Field(
        description="When the CBCT was taken whose signed contour is the prior; null: the plan's."
    )
    vouched: str = Field(description="What a person vouched for, in their words.")
    reasons: list[ReasonItem] = Field(description="Of matching; none where a person asked for it.")


def basis_of(at: Connection, job: Job) -> BasisItem:
    """What a propagation was drawn from."""
    planning, structures = job.order["planning_ct"]["series"], job.order["structures"]["series"]
    facts = facts_of(at, {planning, structures})
    reasons = at.execute(
        select(fraction.c.reasons_json).where(fraction.c.revision_id == job.origin.revision_id)
    ).scalar()
    return BasisItem(
        planning_ct=_source(planning, facts.get(planning, {})),
        structures=_source(structures, facts.get(structures, {})),
        signed_on=_signed_on(at, job.order["prior"]),
        vouched=job.order["vouched"],
        reasons=[ReasonItem.model_validate(each) for each in reasons or []],
    )


def _source(series_uid: str, facts: dict[str, Any]) -> SourceItem:
    return SourceItem(
        series=series_uid,
        taken_at=taken_at(facts),
        description=facts.get("series_description", ""),
    )


def _signed_on(at: Connection, prior: dict[str, Any] | None) -> str | None:
    if prior is None:
        return None
    taken = (
        select(propagation.c.acquired_at)
        .join(review, review.c.propagation == propagation.c.id)
        .where(review.c.structures_uid == prior["sop_uid"])
    )
    return str(at.execute(taken).scalar() or "")
