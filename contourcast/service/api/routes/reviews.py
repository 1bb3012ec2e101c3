"""Deciding on a propagation: a person approves or rejects what was seen, and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from contourcast.imaging.errors import InputError
from contourcast.service.access.caller import Caller
from contourcast.service.access.sessions import require_proof
from contourcast.service.api.conditional import etag
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.routes.propagations import shown
from contourcast.service.jobs.propagations import Job
from contourcast.service.problems import ChangedError, ForbiddenError, document_for
from contourcast.service.review.decisions import Review, Reviews


class ReviewRequest(BaseModel):
    """What a person decides."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approved", "rejected"]
    method: str = Field(
        default="", description="Whose contour is approved, unchanged.", max_length=64
    )
    reason: str = Field(
        default="", description="Of a rejection: one of the list; see docs.", max_length=64
    )
    text: str = Field(default="", description="In words.", max_length=1024)


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
        return ReviewsAnswer(reviews=[_answer(each) for each in found])

    @router.post(
        "/v1/propagations/{propagation}/reviews",
        status_code=201,
        responses=document_for(403, 404, 409, 412),
    )
    async def post_review(
        propagation: str,
        decision: ReviewRequest,
        request: Request,
        if_match: Annotated[str, Header(description="The ETag of what was looked at.")],
    ) -> ReviewAnswer:
        """Sign, or reject. Refused when anything changed since it was looked at."""
        caller: Caller = request.state.caller
        job = await in_thread(records.propagations.job, propagation)
        if etag(await in_thread(shown, job, records)) != if_match:
            raise ChangedError(
                "the propagation changed since it was looked at", remedy="look again, then decide"
            )
        if caller.session is None:
            raise ForbiddenError(
                "a signature needs a person who has signed in", remedy="sign in on the page"
            )
        require_proof(caller.session, minutes=context.settings.access.sign_proof_minutes)
        return _answer(await in_thread(_decide, reviews, job, decision, caller.shown_name))

    return router


def _decide(reviews: Reviews, job: Job, decision: ReviewRequest, reviewer: str) -> Review:
    if decision.decision == "rejected":
        return reviews.reject(job, reviewer=reviewer, why=decision.reason, text=decision.text)
    if not decision.method:
        raise InputError("no method is named", remedy="say whose contour is approved: method")
    return reviews.approve(job, method=decision.method, reviewer=reviewer, reason=decision.text)


def _answer(found: Review) -> ReviewAnswer:
    return ReviewAnswer.model_validate(asdict(found))
