"""Edits in progress: saved each second by the page, so that a crash costs a second of work."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from contourcast.imaging.errors import InputError
from contourcast.service.api.asked import caller_of
from contourcast.service.api.conditional import digest_in_tag
from contourcast.service.api.context import Context, in_thread
from contourcast.service.problems import document_for
from contourcast.service.review.drafts import NEW, Draft, Drafts

Loop = Annotated[list[tuple[FiniteFloat, FiniteFloat]], Field(min_length=3, max_length=100_000)]
SliceNumber = Annotated[int, Field(ge=0, le=100_000)]


class DraftBody(BaseModel):
    """What was edited so far."""

    model_config = ConfigDict(extra="forbid")

    method: str = Field(max_length=64, description="Whose contour it began from.")
    slices: dict[SliceNumber, list[Loop]] = Field(
        description="Closed loops of edited slices alone; no loop: the slice was emptied."
    )
    edited_slices: list[SliceNumber] = Field(
        default=[], description="The keys of `slices`; may be left out.", max_length=100_000
    )
    seconds: FiniteFloat = Field(default=0.0, ge=0, description="Of editing so far.")


class DraftAnswer(DraftBody):
    """An edit in progress."""

    saved_at: str
    by: str


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["review"])
    records, pages = context.records, context.pages
    drafts = Drafts(records.index)

    @router.get("/v1/propagations/{propagation}/draft", responses=document_for(404))
    async def get_draft(propagation: str, response: Response) -> DraftAnswer:
        """The edit in progress, whoever began it."""
        found = await in_thread(drafts.of, propagation)
        return _answer(found, response)

    @router.put("/v1/propagations/{propagation}/draft", responses=document_for(404, 409, 412))
    async def put_draft(
        propagation: str,
        body: DraftBody,
        request: Request,
        response: Response,
        if_match: Annotated[
            str | None, Header(description="The ETag of the draft that this one goes on from.")
        ] = None,
        if_none_match: Annotated[str | None, Header(description="`*`: there is none yet.")] = None,
    ) -> DraftAnswer:
        """Save an edit. Refused when somebody else saved meanwhile; says who."""
        if if_none_match == "*" and if_match is None:
            expected = NEW
        elif if_match is not None and if_none_match is None:
            expected = digest_in_tag(if_match)
        else:
            raise InputError(
                "it is not said what this edit goes on from",
                remedy="send If-Match with the ETag of the draft, or If-None-Match: * for a first",
            )
        if body.edited_slices and set(body.edited_slices) != set(body.slices):
            raise InputError(
                "edited_slices are not the slices that are sent", remedy="send those, or neither"
            )
        by = caller_of(request).shown_name

        def save() -> Draft:
            job = records.propagations.job(propagation)
            return drafts.save(
                job,
                method=body.method,
                loops=body.slices,
                slices=pages.grid(job).shape_zyx[0],
                seconds=body.seconds,
                reviewer=by,
                expected=expected,
            )

        return _answer(await in_thread(save), response)

    @router.delete(
        "/v1/propagations/{propagation}/draft",
        status_code=204,
        responses=document_for(404, 412),
    )
    async def delete_draft(
        propagation: str,
        if_match: Annotated[
            str | None, Header(description="The ETag of the draft that was seen.")
        ] = None,
    ) -> None:
        """Throw the edit away; what the machine drew is there as before."""
        expected = None if if_match is None else digest_in_tag(if_match)
        await in_thread(lambda: drafts.discard(propagation, expected=expected))

    return router


def _answer(found: Draft, response: Response) -> DraftAnswer:
    response.headers["ETag"] = f'"{found.digest}"'
    return DraftAnswer(
        method=found.method,
        slices=dict(found.loops),
        edited_slices=sorted(found.loops),
        seconds=found.seconds,
        saved_at=found.saved_at,
        by=found.reviewer,
    )
