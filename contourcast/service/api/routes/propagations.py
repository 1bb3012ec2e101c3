"""Asking for today's contours, watching them being drawn, fetching them."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection, func, select, tuple_

from contourcast.service.access.guard import note
from contourcast.service.api.asked import caller_of, only_own, remember, require_seen
from contourcast.service.api.conditional import IfMatch, etag, require_unchanged
from contourcast.service.api.context import PRIVATE, Context, a_file, also, in_thread
from contourcast.service.api.paging import USUAL, Cursor, Limit, after, lead_on
from contourcast.service.index.tables import event, propagation
from contourcast.service.intake.asking import ask, is_matched
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import (
    PropagationRequest,
    make_order,
    order_id,
    settings_of,
    wants_network,
)
from contourcast.service.jobs.propagations import (
    BEGUN_AGAIN,
    EVALUATION,
    TODAY,
    Event,
    Job,
    Origin,
)
from contourcast.service.problems import (
    ForbiddenTransitionError,
    NotFoundError,
    NotReadyError,
    Problem,
    document_for,
)
from contourcast.service.records import Records
from contourcast.service.review.stale import StaleItem, stale_of

POLL_S: Final = 0.2
EVENT_SILENCE_S: Final = 15.0  # proxies close what is silent for longer
LONGEST_WAIT_S: Final = 60.0
RETRY_AFTER: Final = {"Retry-After": "2"}  # of what was accepted and is not done
PICTURES: Final = ("overlay.png",)
PREFERRED: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})(?=$|[,;\s])")  # RFC 7240 §4.3
PRIORITIES: Final = {"today": TODAY, "evaluation": EVALUATION}

Wait = Annotated[
    float,
    Query(ge=0, le=LONGEST_WAIT_S, description="Answers when it has ended, or after so long, s."),
]


class PropagationOrder(PropagationRequest):
    """What to draw, and how soon."""

    priority: Literal["today", "evaluation"] = Field(
        default="today", description="What is waited for comes before what is evaluated."
    )


class PropagationAnswer(BaseModel):
    """How far a propagation is, and what came out of it."""

    id: str
    state: State
    done: float = Field(description="Share of the work that is done, 0 to 1.")
    doing: str = Field(description="What is going on, in a sentence.")
    ended: bool = Field(description="Whether the machine is through with it.")
    made_at: str = Field(description="When it was first asked for, UTC.")
    attempt: int
    cbct: str
    planning_ct: str
    roi: str
    methods: list[str]
    verdict: str = Field(description="accept, look or reject; empty until it is known.")
    course: str | None
    superseded_by: str | None
    event: int = Field(description="Number of what happened to it last; a decision is one.")
    stale: str = Field(description="Why it is not to be signed any more; empty: it may be.")
    figures: dict[str, Any]
    problem: Problem | None
    links: dict[str, str]


class PropagationsAnswer(BaseModel):
    """Propagations, newest first."""

    propagations: list[PropagationAnswer]


class EventItem(BaseModel):
    """One step of a job."""

    number: int
    at: str
    state: State
    sentence: str
    done: float


class EventsAnswer(BaseModel):
    """What happened since."""

    events: list[EventItem]
    ended: bool


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["propagations"])
    records = context.records
    index = records.index

    @router.post(
        "/v1/propagations",
        status_code=202,
        response_model=PropagationAnswer,
        responses=also(200, {"model": PropagationAnswer}) | document_for(404, 409, 503, 507),
    )
    async def post_propagation(
        order: PropagationOrder,
        request: Request,
        response: Response,
        prefer: Annotated[
            str, Header(description="`wait=20`: 200 with the result if it is done in time.")
        ] = "",
    ) -> Any:
        """Ask for today's contours. The same request again is the same propagation.

        Of a scan alone, matching says to what it belongs; what it has to ask a person is 409.
        """
        by = caller_of(request).name
        job, new = await in_thread(functools.partial(_open, context, order, by=by))
        wanted = PREFERRED.search(prefer)
        if wanted is not None:
            wait_s = min(float(wanted[1]), LONGEST_WAIT_S)
            job = await _until_ended(records, job.id, wait_s)
            response.headers["Preference-Applied"] = f"wait={wait_s:.0f}"
        response.status_code = 202 if new and not job.ended else 200
        if not job.ended:
            response.headers.update(RETRY_AFTER)
        response.headers["Location"] = f"/v1/propagations/{job.id}"
        note(request, patient=job.origin.patient_key, objects=[job.id])
        return await in_thread(shown, job, records)

    @router.get("/v1/propagations")
    async def get_propagations(
        request: Request,
        response: Response,
        state: State | None = None,
        verdict: Literal["accept", "look", "reject"] | None = None,
        cbct: Annotated[str | None, Query(max_length=64)] = None,
        course: Annotated[str | None, Query(max_length=64)] = None,
        cohort: Annotated[str | None, Query(max_length=64)] = None,
        limit: Limit = USUAL,
        cursor: Cursor = "",
    ) -> PropagationsAnswer:
        """What was asked for, newest first; an uploader sees its own."""
        equal = {
            propagation.c.state: state,
            propagation.c.verdict: verdict,
            propagation.c.cbct_series_uid: cbct,
            propagation.c.course_id: course,
            propagation.c.cohort_id: cohort,
        }
        wanted = [column == value for column, value in equal.items() if value is not None]
        last, own = after(cursor, int), only_own(request)
        if last is not None:
            wanted.append(propagation.c.number < last[0])
        if own is not None:
            wanted.append(own)
        query = select(propagation).where(*wanted).order_by(propagation.c.number.desc())

        def find() -> tuple[list[Job], list[PropagationAnswer]]:
            jobs = records.propagations.select(query.limit(limit + 1))
            return jobs, _all_shown(jobs[:limit], records)

        jobs, answers = await in_thread(find)
        if len(jobs) > limit:
            lead_on(request, response, jobs[limit - 1].number)
        note(request, objects=[job.id for job in jobs[:limit]])
        return PropagationsAnswer(propagations=answers)

    @router.get("/v1/propagations/{propagation}", responses=document_for(404))
    async def get_propagation(
        propagation: str, request: Request, response: Response, wait: Wait = 0.0
    ) -> PropagationAnswer:
        """State, progress and figures."""
        await in_thread(require_seen, request, index, propagation)
        job = await _until_ended(records, propagation, wait)
        answer = await in_thread(shown, job, records)
        response.headers["ETag"] = etag(answer)
        if not job.ended:
            response.headers.update(RETRY_AFTER)
        return answer

    @router.delete("/v1/propagations/{propagation}", responses=document_for(404, 409, 412))
    async def cancel_propagation(
        propagation: str,
        request: Request,
        if_match: IfMatch = None,
    ) -> PropagationAnswer:
        """Stop it. What was written stays; asked for again, or retried, it is taken up again."""
        await in_thread(_require_as_seen, records, request, propagation, if_match)
        cancel = functools.partial(
            records.propagations.cancel, propagation, by=caller_of(request).name
        )
        return await in_thread(shown, await in_thread(cancel), records)

    @router.post(
        "/v1/propagations/{propagation}/retry",
        status_code=202,
        responses=document_for(404, 409, 412, 503),
    )
    async def retry_propagation(
        propagation: str,
        request: Request,
        response: Response,
        if_match: IfMatch = None,
    ) -> PropagationAnswer:
        """Try again what failed or was cancelled; what was superseded while nothing replaced it."""
        await in_thread(_require_as_seen, records, request, propagation, if_match)
        retry = functools.partial(
            records.propagations.retry,
            propagation,
            most=context.settings.waiting_limit,
            require=_require_stopped,
        )
        job = await in_thread(retry)
        await in_thread(remember, index, propagation, caller_of(request).name)
        response.headers.update(RETRY_AFTER)
        response.headers["Location"] = f"/v1/propagations/{propagation}"
        return await in_thread(shown, job, records)

    @router.get(
        "/v1/propagations/{propagation}/events",
        response_class=Response,
        responses=also(
            200,
            {
                "description": "A stream that ends with the job; with `wait`, a page of JSON.",
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}},
                    "application/json": {"schema": EventsAnswer.model_json_schema()},
                },
            },
        )
        | document_for(404),
    )
    async def get_events(
        propagation: str,
        request: Request,
        last_event_id: Annotated[str | None, Header()] = None,
        wait: Annotated[
            float | None,
            Query(ge=0, le=LONGEST_WAIT_S, description="JSON, once there are any, s at most."),
        ] = None,
    ) -> Response:
        """Progress as Server-Sent Events; ends with the job; `Last-Event-ID` resumes."""
        await in_thread(require_seen, request, index, propagation)
        known = _number(last_event_id or "")
        if wait is not None:
            answer = await _news(records, propagation, known, wait)
            return Response(answer.model_dump_json(), media_type="application/json")
        return StreamingResponse(
            _events(records, propagation, known), media_type="text/event-stream", headers=PRIVATE
        )

    @router.get("/v1/propagations/{propagation}/structure-set", **a_file("application/dicom"))
    async def get_structure_set(propagation: str, request: Request) -> Response:
        """Today's contours as an RT Structure Set."""
        return await _result(records, request, propagation, "RS.dcm", "application/dicom")

    @router.get("/v1/propagations/{propagation}/registration", **a_file("application/dicom"))
    async def get_registration(propagation: str, request: Request) -> Response:
        """Where the planning CT is today, as a Spatial Registration; none when it was rejected."""
        return await _result(records, request, propagation, "REG.dcm", "application/dicom")

    @router.get("/v1/propagations/{propagation}/report", **a_file("application/json", "text/html"))
    async def get_report(
        propagation: str, request: Request, accept: Annotated[str, Header()] = "*/*"
    ) -> Response:
        """The report: JSON, or a page where `Accept` prefers `text/html`."""
        html = accept.split(",")[0].strip().startswith("text/html")
        name, kind = ("report.html", "text/html") if html else ("report.json", "application/json")
        response = await _result(records, request, propagation, name, kind)
        response.headers["Vary"] = "Accept"
        if html:
            response.headers["Content-Security-Policy"] = (
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
            )
        return response

    @router.get("/v1/propagations/{propagation}/pictures/{name}", **a_file("image/png"))
    async def get_picture(propagation: str, name: str, request: Request) -> Response:
        """A picture: `overlay.png`."""
        if name not in PICTURES:
            raise NotFoundError("no picture has that name", remedy=", ".join(PICTURES))
        return await _result(records, request, propagation, name, "image/png")

    return router


def _require_as_seen(
    records: Records, request: Request, propagation: str, if_match: str | None
) -> None:
    """It may be seen by the caller, and is what the caller looked at.

    Raises:
        NotFoundError: There is none, for this caller.
        ChangedError: It is another by now.
    """
    require_seen(request, records.index, propagation)
    require_unchanged(if_match, shown(records.propagations.job(propagation), records))


def shown(job: Job, records: Records) -> PropagationAnswer:
    """A propagation as the API shows it."""
    last = records.propagations.events(job.id)[-1]
    with records.index.read() as at:
        return _shown(job, last, stale_of(at, job))


def _all_shown(jobs: Sequence[Job], records: Records) -> list[PropagationAnswer]:
    last = (
        select(event.c.propagation, func.max(event.c.number))
        .where(event.c.propagation.in_([job.id for job in jobs]))
        .group_by(event.c.propagation)
    )
    query = select(event).where(tuple_(event.c.propagation, event.c.number).in_(last))
    with records.index.read() as at:
        events = {
            row.propagation: Event(
                number=row.number,
                at=row.at,
                state=State(row.state),
                sentence=row.sentence,
                done=row.done,
            )
            for row in at.execute(query)
        }
        return [_shown(job, events[job.id], stale_of(at, job)) for job in jobs]


def _shown(job: Job, last: Event, stale: StaleItem | None) -> PropagationAnswer:
    here = f"/v1/propagations/{job.id}"
    links = {"self": here, "events": f"{here}/events"}
    for file, part in (
        ("RS.dcm", "structure-set"),
        ("REG.dcm", "registration"),
        ("report.json", "report"),
        ("overlay.png", "pictures/overlay.png"),
    ):
        if file in job.files:
            links[part.split("/")[0]] = f"{here}/{part}"
    return PropagationAnswer(
        id=job.id,
        state=job.state,
        done=last.done,
        doing=last.sentence,
        ended=job.ended,
        made_at=job.made_at.isoformat(),
        attempt=job.attempt,
        cbct=job.order["cbct"]["series"],
        planning_ct=job.order["planning_ct"]["series"],
        roi=job.order["roi"],
        methods=job.order["methods"],
        verdict=job.verdict,
        course=job.origin.course_id,
        superseded_by=job.superseded_by,
        event=last.number,
        stale="" if stale is None else stale.why,
        figures=job.figures,
        problem=Problem.model_validate(job.problem) if job.problem else None,
        links=links,
    )


def _open(context: Context, order: PropagationOrder, *, by: str) -> tuple[Job, bool]:
    settings_of(order.methods, order.focus)  # refuses a wrong name before anything is read
    if is_matched(order):
        job, new = ask(
            context.fractions,
            order,
            by=by,
            priority=PRIORITIES[order.priority],
            automatic=context.settings.intake == "automatic",
            most=context.settings.waiting_limit,
        )
        remember(context.records.index, job.id, by)
        return job, new
    network = context.served_network() if wants_network(order) else ("", "")
    archive = context.records.archive
    asked_for = make_order(order, archive, network=network)
    origin = Origin(
        patient_key=archive.patient_of(order.cbct),
        acquired_at=archive.acquired_at(order.cbct),
        asked_by=by,
        priority=PRIORITIES[order.priority],
    )
    job, new = context.records.propagations.open(
        order_id(asked_for), asked_for, origin, most=context.settings.waiting_limit
    )
    remember(context.records.index, job.id, by)
    return job, new


def _require_stopped(at: Connection, job: Job) -> None:
    """Refuses to begin again what runs or is done, and what something newer replaces.

    Raises:
        ForbiddenTransitionError: It is so.
    """
    if job.state not in BEGUN_AGAIN:
        raise ForbiddenTransitionError(
            f"a propagation that is {job.state.value} cannot be tried again",
            remedy="only what failed, was cancelled or was superseded by nothing can",
        )
    if job.state is State.SUPERSEDED:
        # with nothing in its place: would it be the newest word on its scan?
        stale = stale_of(at, job if job.superseded_by else replace(job, state=State.MATCHED))
        if stale is not None:
            raise ForbiddenTransitionError(
                stale.why, remedy="open the worklist again, and go on with the newer one"
            )


def _number(last_event_id: str) -> int:
    """The number of the last event that is known; what is no number is none."""
    told = re.fullmatch(r"[0-9]{1,15}", last_event_id, re.ASCII)
    return int(told[0]) if told else 0


async def _until_ended(records: Records, propagation: str, wait_s: float) -> Job:
    """The job once it has ended, or as it is after so long."""
    until_s = time.monotonic() + wait_s
    while True:
        job = await in_thread(records.propagations.job, propagation)
        if job.ended or time.monotonic() >= until_s:
            return job
        await asyncio.sleep(POLL_S)


async def _news(records: Records, propagation: str, known: int, wait_s: float) -> EventsAnswer:
    """The events after one, once there are any, or after so long."""
    until_s = time.monotonic() + wait_s
    news = functools.partial(records.propagations.events, propagation, after=known)
    while True:
        ended = (await in_thread(records.propagations.job, propagation)).ended
        events = await in_thread(news)
        if events or ended or time.monotonic() >= until_s:
            items = [EventItem(number=e.number, **_told(e)) for e in events]
            return EventsAnswer(events=items, ended=ended)
        await asyncio.sleep(POLL_S)


async def _events(records: Records, propagation: str, known: int) -> AsyncIterator[str]:
    silent_s = 0.0
    while True:
        # whether it ended is asked before the events are, or one is lost
        ended = (await in_thread(records.propagations.job, propagation)).ended
        events = await in_thread(
            functools.partial(records.propagations.events, propagation, after=known)
        )
        for told in events:
            data = json.dumps(_told(told))
            yield f"id: {told.number}\nevent: {told.state.value}\ndata: {data}\n\n"
            known = told.number
        if ended:
            return
        silent_s = 0.0 if events else silent_s + POLL_S
        if silent_s >= EVENT_SILENCE_S:
            yield ": still at it\n\n"
            silent_s = 0.0
        await asyncio.sleep(POLL_S)


def _told(told: Event) -> Mapping[str, Any]:
    return {
        "at": told.at,
        "state": told.state.value,
        "sentence": told.sentence,
        "done": told.done,
    }


async def _result(
    records: Records, request: Request, propagation: str, name: str, media_type: str
) -> Response:
    await in_thread(require_seen, request, records.index, propagation)
    job = await in_thread(records.propagations.job, propagation)
    if not job.files:
        raise NotReadyError(
            f"the propagation {'is ' + job.state.value + ': it has' if job.ended else 'has'}"
            f" no results{'' if job.ended else ' yet'}",
            remedy=f"see /v1/propagations/{propagation}",
        )
    if name not in job.files:
        raise NotFoundError(
            "this propagation has no such result",
            remedy="a rejected registration is in the report, and nowhere else",
        )
    path = await in_thread(records.derived.result, propagation, name)
    tag = f'"{job.files[name]}"'
    return FileResponse(path, media_type=media_type, headers={"ETag": tag, **PRIVATE})
