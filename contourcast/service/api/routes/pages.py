"""What the review page shows of a propagation: figures, pictures slice by slice, contours."""

from __future__ import annotations

import gzip
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from contourcast.imaging.errors import InputError
from contourcast.service.access.guard import note
from contourcast.service.access.roles import Role
from contourcast.service.api.asked import caller_of, remember
from contourcast.service.api.conditional import etag, takes_gzip
from contourcast.service.api.context import Context, also, in_thread
from contourcast.service.api.routes.propagations import shown
from contourcast.service.problems import document_for
from contourcast.service.review.again import begin_again
from contourcast.service.review.drafts import Drafts
from contourcast.service.review.numbering import numbers_of
from contourcast.service.review.pages import Adjusted, Page
from contourcast.service.review.presence import look_at
from contourcast.service.review.signed import Signed, last_signed
from contourcast.service.review.view import ImageItem, View, build_view, named_contours

# What has its digest in its address never changes.
FOR_EVER: Final = "private, max-age=31536000, immutable"
# Asked again each time, and sent again only when it changed: a signature adds to it.
ASK_AGAIN: Final = "private, no-cache"
SLICES_AT_ONCE: Final = 64
FARTHEST_MM: Final = 500.0
# Voxels are noisy: more work saves little.
COMPRESSION: Final = 1
EDITORS: Final = frozenset({Role.REVIEWER, Role.INTERNAL})

Digest = Annotated[str, Path(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")]


class LoopItem(BaseModel):
    """A closed contour on one slice; its first point is not repeated."""

    slice: int
    points_xy_mm: list[tuple[float, float]] = Field(
        description="From the centre of the slice's first pixel, along its rows and columns."
    )


class ContoursAnswer(BaseModel):
    """Loops by the names of the view; holes are loops of their own (even-odd)."""

    frame_of_reference: str
    contours: dict[str, list[LoopItem]]


Millimetres = Annotated[FiniteFloat, Field(ge=-FARTHEST_MM, le=FARTHEST_MM)]
Degrees = Annotated[FiniteFloat, Field(ge=-180, le=180)]


class MotionRequest(BaseModel):
    """What is to be done to the planning CT as it is seen on the CBCT."""

    model_config = ConfigDict(extra="forbid")

    translation_xyz_mm: tuple[Millimetres, Millimetres, Millimetres] = (0.0, 0.0, 0.0)
    rotation_xyz_deg: tuple[Degrees, Degrees, Degrees] = Field(
        default=(0.0, 0.0, 0.0), description="R = Rz Ry Rx about the centre of the prior."
    )


class AdjustedAnswer(BaseModel):
    """A changed registration, to be looked at; nothing follows from it yet."""

    image: ImageItem
    contours: dict[str, list[LoopItem]] = Field(description="The prior, as `rigid` would carry it.")
    planning_from_cbct: list[list[float]]


class AgainAnswer(BaseModel):
    """What was begun."""

    propagation: str


class PresenceRequest(BaseModel):
    """Nothing has to be said."""

    model_config = ConfigDict(extra="forbid")


class PresenceAnswer(BaseModel):
    """Who else looks."""

    others: list[str]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["page"])
    records, pages = context.records, context.pages

    @router.get("/v1/propagations/{propagation}/view", responses=document_for(404))
    async def get_view(propagation: str, request: Request, response: Response) -> View:
        """Everything about a propagation but voxels and loops; its ETag is the propagation's."""
        caller = caller_of(request)

        def build() -> tuple[View, str]:
            job = records.propagations.job(propagation)
            tag = etag(shown(job, records))
            reviews = context.reviews.of(job.id)
            page = pages.of(job)
            taken, planned = None, None
            if course := job.origin.course_id:
                repeat_minutes = context.fractions.rules.repeat_minutes
                with records.index.read() as at:
                    numbers = numbers_of(at, {course}, repeat_minutes=repeat_minutes)
                taken = numbers.get((course, job.order["cbct"]["series"]))
                planned = context.fractions.evidence.fractions_planned(course)
            view = build_view(
                records,
                job,
                page,
                pages.report(job),
                signed=last_signed(records, page, reviews),
                reviews=reviews,
                draft=Drafts(records.index).begun(job.id),
                taken=taken,
                planned=planned,
                reviewer=bool(caller.roles & EDITORS),
                person=caller.session is not None,
            )
            if not context.settings.access.shows_names(caller.roles):
                view.patient = view.patient and view.patient.without_name()
            return view, tag

        view, response.headers["ETag"] = await in_thread(build)
        return view

    @router.get(
        "/v1/propagations/{propagation}/contours",
        response_model=ContoursAnswer,
        responses=document_for(404),
    )
    async def get_contours(propagation: str, response: Response) -> Any:
        """Every contour of a view, in the CBCT's frame of reference and in no other."""

        def find() -> tuple[Page, Signed | None]:
            page = pages.of(records.propagations.job(propagation))
            return page, last_signed(records, page, context.reviews.of(propagation))

        page, signed = await in_thread(find)
        response.headers["Cache-Control"] = ASK_AGAIN
        return {
            "frame_of_reference": page.cbct["frame_of_reference"],
            "contours": named_contours(page, signed),
        }

    @router.post(
        "/v1/propagations/{propagation}/adjusted",
        response_model=AdjustedAnswer,
        responses=document_for(404, 409),
    )
    async def post_adjusted(propagation: str, motion: MotionRequest) -> Any:
        """The planning CT and the prior, moved by hand from where registration put them."""

        def adjust() -> Adjusted:
            job = records.propagations.job(propagation)
            return pages.adjusted(job, **motion.model_dump())

        made = await in_thread(adjust)
        return {
            "image": made.image,
            "contours": {"rigid": made.contours},
            "planning_from_cbct": made.planning_from_cbct.matrix.tolist(),
        }

    @router.post(
        "/v1/propagations/{propagation}/again",
        status_code=202,
        responses=document_for(404, 409),
    )
    async def post_again(
        propagation: str, motion: MotionRequest, request: Request, response: Response
    ) -> AgainAnswer:
        """Register and draw again from there; takes the place of this propagation."""
        by = caller_of(request).name

        def begin() -> str:
            job = records.propagations.job(propagation)
            start = pages.changed(job, **motion.model_dump())
            newer = begin_again(records, job, start)
            remember(records.index, newer, by)
            return newer

        newer = await in_thread(begin)
        response.headers["Location"] = f"/v1/propagations/{newer}"
        note(request, objects=[newer])
        return AgainAnswer(propagation=newer)

    @router.post("/v1/propagations/{propagation}/presence", responses=document_for(404))
    async def post_presence(
        propagation: str, request: Request, _: PresenceRequest | None = None
    ) -> PresenceAnswer:
        """I have it open now; who else has? Said again every few seconds, kept for a minute."""
        await in_thread(records.propagations.job, propagation)
        who = caller_of(request).shown_name
        return PresenceAnswer(others=await in_thread(look_at, records.index, propagation, who))

    @router.get(
        "/v1/volumes/{digest}/slices",
        response_class=Response,
        responses=also(
            200,
            {
                "description": "int16, little endian, slice by slice, row by row; HU.",
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            },
        )
        | document_for(404),
    )
    async def get_slices(
        digest: Digest,
        request: Request,
        first: Annotated[int, Query(alias="from", ge=0, le=100_000)],
        last: Annotated[int, Query(alias="to", ge=0, le=100_000)],
        accept_encoding: Annotated[str, Header()] = "",
    ) -> Response:
        """Voxels of an image that a view names: slices from one to another, both included."""
        if last - first >= SLICES_AT_ONCE:
            raise InputError(
                f"{last - first + 1} slices are too many for one answer",
                remedy=f"ask for {SLICES_AT_ONCE} at most",
            )
        compressed = takes_gzip(accept_encoding)

        def read() -> tuple[bytes, str]:
            patient = pages.handed_out(digest).patient_key
            voxels, _ = pages.voxels(digest, first=first, last=last)
            if compressed:
                voxels = gzip.compress(voxels, COMPRESSION, mtime=0)
            return voxels, patient

        voxels, patient = await in_thread(read)
        note(request, patient=patient, objects=[digest])
        headers = {
            "Cache-Control": FOR_EVER,
            "ETag": f'"{digest}-{first}-{last}{"-gzip" if compressed else ""}"',
            "Vary": "Accept-Encoding",
        }
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return Response(voxels, media_type="application/octet-stream", headers=headers)

    return router
