"""Whether a propagation is still the newest word on its scan."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field
from sqlalchemy import Connection, select

from contourcast.service.index.tables import fraction, revision
from contourcast.service.intake.states import State
from contourcast.service.intake.withdrawn import is_withdrawn
from contourcast.service.jobs.propagations import Job
from contourcast.service.problems import ChangedError

NOT_ITS_MATCH: Final = (
    "to what this CBCT belongs is in question, or was decided otherwise since it was drawn"
)


class StaleItem(BaseModel):
    """Why what is shown is not to be signed any more."""

    why: str
    propagation: str | None = Field(description="What came after it, where that is known.")


def stale_of(at: Connection, job: Job) -> StaleItem | None:
    """Why a propagation is not the newest word on its scan, if it is not."""
    if job.state is State.SUPERSEDED:
        if job.superseded_by is None:
            return StaleItem(why=NOT_ITS_MATCH, propagation=None)
        return StaleItem(
            why="a newer propagation has taken the place of this one",
            propagation=job.superseded_by,
        )
    newest = (
        select(revision.c.members_json)
        .where(revision.c.series_uid == job.order["cbct"]["series"])
        .order_by(revision.c.number.desc())
        .limit(1)
    )
    # by what was drawn on: an order may name a scan and no revision of it
    members = {digest for _, digest in at.execute(newest).scalar() or []}
    if members - set(job.order["cbct"]["files"]):
        return StaleItem(
            why="more slices of this CBCT have come since it was drawn on", propagation=None
        )
    # of what is signed: it stays, yet nobody signs it once more
    if not _is_matched(at, job):
        return StaleItem(why=NOT_ITS_MATCH, propagation=None)
    # matching draws its own anew with another prior; what a person asked for stays as it was asked
    prior = job.order.get("prior")
    if prior is not None and is_withdrawn(at, prior["sop_uid"]):
        return StaleItem(
            why="the signed contour that it was carried from was rejected later", propagation=None
        )
    return None


def _is_matched(at: Connection, job: Job) -> bool:
    """Whether its scan is matched to its course; what no match asked for stands by itself."""
    if job.origin.revision_id is None:
        return True
    its = select(fraction.c.state, fraction.c.course_id).where(
        fraction.c.revision_id == job.origin.revision_id
    )
    return at.execute(its).first() in (None, ("matched", job.origin.course_id))


def require_current(at: Connection, job: Job) -> None:
    """Nobody signs what was overtaken, taken back, or led to by a withdrawn contour.

    Raises:
        ChangedError: It is so.
    """
    stale = stale_of(at, job)
    if stale is not None:
        raise ChangedError(
            stale.why,
            remedy="open the worklist again, and decide on the newer one; if there is none, ask "
            "for one",
        )
