"""Series: what is here, whether it is whole, and why that is thought."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select

from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.paging import USUAL, Cursor, Limit, after, lead_on
from contourcast.service.archive import Archive
from contourcast.service.index.tables import arrival, fraction, instance, revision, series
from contourcast.service.intake.arriving import Arriving
from contourcast.service.problems import NotFoundError, document_for

MOST_INSTANCES = 5000  # what one request may hold


class SeriesItem(BaseModel):
    """A series that is here; nothing of the patient."""

    series_uid: str
    study_uid: str
    modality: str
    frames_of_reference: list[str]
    instances: int
    size_bytes: int
    conflicts: int = Field(description="Instances that came with other content than the first.")
    last_arrival_at: str
    state: str = Field(
        description="arriving, whole, incomplete; or dismissed, by whoever knows of the gap."
    )
    reason: str = Field(description="Why it is thought so.")
    revision: str | None = Field(description="The newest set of slices that was whole.")


class SeriesAnswer(BaseModel):
    """Series that are here, in the order of their UIDs."""

    series: list[SeriesItem]


class RevisionItem(BaseModel):
    """A set of slices that was whole; never changed, only followed by another."""

    id: str
    number: int
    instances: int
    reason: str
    made_at: str
    match: str | None = Field(
        description="matched, needs_person, not_ours or superseded; null: not yet looked at."
    )
    course: str | None


class SeriesDetail(SeriesItem):
    """A series, and how it came to be whole."""

    door: str = Field(description="rest, stow, dimse, pull or ours.")
    expected_instances: int | None = Field(description="What the sender said is all of it.")
    acquired_at: str = Field(description="As its machine wrote it: no zone.")
    revisions: list[RevisionItem]


class Completion(BaseModel):
    """The sender's word of how many instances are all."""

    model_config = ConfigDict(extra="forbid")

    instances: int = Field(ge=1, le=MOST_INSTANCES)


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["series"])
    archive = context.records.archive
    arriving = Arriving(context.records.index, context.records.notices)

    @router.get("/v1/series")
    async def get_series(
        request: Request, response: Response, limit: Limit = USUAL, cursor: Cursor = ""
    ) -> SeriesAnswer:
        """What is here."""
        (uid,) = after(cursor, str) or ("",)
        found = await in_thread(lambda: archive.series(after=uid, limit=limit + 1))
        if len(found) > limit:
            lead_on(request, response, found[limit - 1].series_uid)
        return SeriesAnswer(series=[SeriesItem.model_validate(asdict(s)) for s in found[:limit]])

    @router.get("/v1/series/{series_uid}", responses=document_for(404))
    async def get_one_series(series_uid: str) -> SeriesDetail:
        """One series: its revisions, and whether it is whole."""
        return await in_thread(_detail, archive, series_uid)

    @router.put("/v1/series/{series_uid}/completion", responses=document_for(404))
    async def put_completion(series_uid: str, completion: Completion) -> SeriesDetail:
        """Say how many instances are all: so it is whole as soon as they are here."""
        await in_thread(arriving.expect, series_uid, completion.instances)
        return await in_thread(_detail, archive, series_uid)

    @router.put("/v1/series/{series_uid}/dismissal", responses=document_for(404, 409))
    async def put_dismissal(series_uid: str) -> SeriesDetail:
        """Put an incomplete series away: it leaves the worklist, until more of it comes."""
        await in_thread(arriving.dismiss, series_uid)
        return await in_thread(_detail, archive, series_uid)

    return router


def _detail(archive: Archive, uid: str) -> SeriesDetail:
    counted = select(instance.c.frame_of_reference, func.count(), func.sum(instance.c.bytes)).where(
        instance.c.series_uid == uid
    )
    with archive.index.read() as at:
        row = at.execute(select(series).where(series.c.uid == uid)).first()
        if row is None:
            raise NotFoundError(
                "no series of that UID is here", uid=uid, remedy="send it to /v1/instances first"
            )
        counts = at.execute(counted.group_by(instance.c.frame_of_reference)).all()
        conflicts = at.execute(
            select(func.count()).where(arrival.c.series_uid == uid, arrival.c.outcome == "conflict")
        ).scalar_one()
        revisions = at.execute(
            select(revision, fraction.c.state, fraction.c.course_id)
            .outerjoin(fraction, fraction.c.revision_id == revision.c.id)
            .where(revision.c.series_uid == uid)
            .order_by(revision.c.number)
        ).all()
    plain: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("study_uid", "modality", "last_arrival_at", "state", "reason", "revision")
    }
    return SeriesDetail(
        **plain,
        series_uid=uid,
        frames_of_reference=sorted(frame for frame, _, _ in counts if frame),
        instances=sum(number for _, number, _ in counts),
        size_bytes=sum(int(size) for _, _, size in counts),
        conflicts=conflicts,
        door=row.door,
        expected_instances=row.expected_instances,
        acquired_at=archive.acquired_at(uid),
        revisions=[
            RevisionItem(
                id=each.id,
                number=each.number,
                instances=len(each.members_json),
                reason=each.reason,
                made_at=each.made_at,
                match=each.state,
                course=each.course_id,
            )
            for each in revisions
        ],
    )
