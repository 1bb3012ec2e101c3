"""Deciding on a propagation: a person approves or rejects what was seen, and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from contourcast.imaging.errors import InputError
from contourcast.service.access.caller import Caller
from contourcast.service.access.sessions import require_proof, spend_proof
from contourcast.service.api.conditional import MustMatch, digest_in_tag, etag
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.routes.propagations import shown
from contourcast.service.index.database import Index
from contourcast.service.index.tables import delivery, instance
from contourcast.service.jobs.propagations import Job
from contourcast.service.problems import ChangedError, ConflictError, ForbiddenError, document_for
from contourcast.service.review.decisions import Review, Spend
from contourcast.service.review.drafts import Drafts


class ReviewRequest(BaseModel):
    """What a person decides."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approved", "edited", "rejected"]
    method: str = Field(
        default="", description="Whose contour is approved, or was edited.", max_length=64
    )
    draft_etag: str = Field(
        default="", description="Of an edit: the ETag of the draft that was seen.", max_length=96
    )
    reason: str = Field(
        default="", description="Of a rejection: one of the list; see docs.", max_length=64
    )
    text: str = Field(default="", description="In words.", max_length=1024)
    reviewer: str = Field(
        default="",
        description="Who is meant to decide, as /v1/session names them; empty: whoever is here.",
        max_length=256,
    )


class FiguresItem(BaseModel):
    """How far a signed contour lies from the machine's."""

    surface_dice_1mm: float | None = None
    mean_surface_mm: float | None = None
    edited_slices: int | None = None
    seconds: float | None = Field(default=None, description="Of editing.")
    volume_cc: float | None = None
    machine_volume_cc: float | None = None


class ReviewAnswer(BaseModel):
    """A decision that was made."""

    number: int
    propagation: str
    decision: str
    method: str
    reason: str
    reviewer: str
    at: str
    structures_uid: str = Field(description="SOP Instance UID of the signed structure set.")
    figures: FiguresItem
    deliveries: list[str] = Field(description="Where the signed structure set goes.")


class ReviewsAnswer(BaseModel):
    """Every decision on a propagation."""

    reviews: list[ReviewAnswer]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["review"])
    records = context.records
    reviews = context.reviews

    @router.get("/v1/propagations/{propagation}/reviews", responses=document_for(404))
    async def get_reviews(propagation: str) -> ReviewsAnswer:
        """Every decision, the first first."""
        await in_thread(records.propagations.job, propagation)
        found = await in_thread(reviews.of, propagation)
        return await in_thread(
            lambda: ReviewsAnswer(reviews=[_answer(records.index, each) for each in found])
        )

    @router.post(
        "/v1/propagations/{propagation}/reviews",
        status_code=201,
        responses=document_for(403, 404, 409, 412),
    )
    async def post_review(
        propagation: str,
        decision: ReviewRequest,
        request: Request,
        if_match: MustMatch,
    ) -> ReviewAnswer:
        """Sign, or reject. Refused when anything changed since it was looked at."""
        caller: Caller = request.state.caller
        seen = len(await in_thread(reviews.of, propagation))  # before what the ETag is of
        job = await in_thread(records.propagations.job, propagation)
        if etag(await in_thread(shown, job, records)) != if_match:
            raise ChangedError(
                "the propagation changed since it was looked at", remedy="look again, then decide"
            )
        if caller.session is None:
            raise ForbiddenError(
                "a signature needs a person who has signed in", remedy="sign in on the page"
            )
        if decision.reviewer not in ("", caller.name):
            raise ConflictError(
                "somebody else has signed in meanwhile", remedy="look who you are, then decide"
            )
        require_proof(caller.session, minutes=context.settings.access.sign_proof_minutes)
        spend = partial(spend_proof, found=caller.session)

        def decide() -> ReviewAnswer:
            with context.trail.span(job.id, decision.decision):
                found = _decide(context, job, decision, caller.shown_name, seen, spend)
            return _answer(records.index, found)

        return await in_thread(decide)

    return router


def _decide(
    context: Context,
    job: Job,
    decision: ReviewRequest,
    reviewer: str,
    seen: int,
    spend: Spend,
) -> Review:
    reviews = context.reviews.spending(spend)
    if decision.decision == "rejected":
        return reviews.reject(
            job, reviewer=reviewer, seen=seen, why=decision.reason, text=decision.text
        )
    if not decision.method:
        raise InputError("no method is named", remedy="say whose contour is approved: method")
    if decision.decision == "approved":
        return reviews.approve(
            job, method=decision.method, reviewer=reviewer, seen=seen, reason=decision.text
        )
    draft = Drafts(context.records.index).of(job.id)
    if draft.digest != digest_in_tag(decision.draft_etag):
        raise ChangedError(
            f"the draft is not the one that was seen: {draft.reviewer} saved it at"
            f" {draft.saved_at[11:19]} UTC",
            remedy="look at it again, then sign",
        )
    return reviews.approve_edited(
        job,
        draft=draft,
        method=decision.method,
        reviewer=reviewer,
        seen=seen,
        reason=decision.text,
    )


def _answer(index: Index, found: Review) -> ReviewAnswer:
    return ReviewAnswer(**asdict(found), deliveries=_destinations(index, found))


def _destinations(index: Index, found: Review) -> list[str]:
    """Where a signed set goes: deliveries name their files by what these hold."""
    kept = select(instance.c.file_digest).where(instance.c.sop_uid == found.structures_uid)
    sent = select(delivery.c.destination, delivery.c.objects_json).where(
        delivery.c.propagation == found.propagation
    )
    with index.read() as at:
        digest = at.execute(kept).scalar()
        return sorted(
            row.destination
            for row in at.execute(sent)
            if any(digest in each["files"].values() for each in row.objects_json)
        )
