"""What the review page shows of a propagation: figures, pictures slice by slice, contours."""

from __future__ import annotations

import gzip
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

from contourcast.imaging.errors import InputError
from contourcast.service.access.guard import note
from contourcast.service.access.roles import Role
from contourcast.service.api.asked import caller_of
from contourcast.service.api.conditional import etag, takes_gzip
from contourcast.service.api.context import Context, also, in_thread
from contourcast.service.api.routes.courses import fraction_numbers
from contourcast.service.api.routes.propagations import shown
from contourcast.service.problems import document_for
from contourcast.service.review.pages import Page
from contourcast.service.review.signed import Signed, last_signed
from contourcast.service.review.view import View, build_view, named_contours

# What has its digest in its address never changes.
FOR_EVER: Final = "private, max-age=31536000, immutable"
# Asked again each time, and sent again only when it changed: a signature adds to it.
ASK_AGAIN: Final = "private, no-cache"
SLICES_AT_ONCE: Final = 64
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
            with records.index.read() as at:
                course = job.origin.course_id
                numbers = fraction_numbers(at, {course}) if course else {}
            view = build_view(
                records,
                job,
                page,
                pages.report(job),
                signed=last_signed(records, page, reviews),
                reviews=reviews,
                numbers=numbers,
                reviewer=bool(caller.roles & EDITORS),
                person=caller.session is not None,
            )
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
