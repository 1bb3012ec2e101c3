"""Asking for today's contours, watching them being drawn, fetching them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from contourcast.imaging.errors import ContourcastError
from contourcast.propagate import NETWORK
from contourcast.registration.methods import METHODS
from contourcast.service.api.context import PRIVATE, Context, a_file, also, in_thread
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import (
    PropagationRequest,
    make_order,
    order_id,
    settings_of,
    wants_network,
)
from contourcast.service.jobs.propagations import Job, Origin
from contourcast.service.problems import (
    NotFoundError,
    NotReadyError,
    Problem,
    document_for,
)
from contourcast.service.records import Records

EVENT_POLL_S: Final = 0.2
EVENT_SILENCE_S: Final = 15.0  # proxies close what is silent for longer
PICTURES: Final = ("overlay.png",)
ASKED_HERE: Final = "request"


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
    figures: dict[str, Any]
    problem: Problem | None
    links: dict[str, str]


class MethodItem(BaseModel):
    """A way to draw today's contour."""

    name: str
    kind: Literal["registration", "network"]
    weights_digest: str = ""
    unavailable: str = Field(default="", description="Why it cannot be asked for, if so.")


class MethodsAnswer(BaseModel):
    """Every method that a propagation may ask for."""

    methods: list[MethodItem]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["propagations"])
    records = context.records

    @router.post(
        "/v1/propagations",
        status_code=202,
        response_model=PropagationAnswer,
        responses=also(200, {"model": PropagationAnswer}) | document_for(404, 507),
    )
    async def post_propagation(request: PropagationRequest, response: Response) -> Any:
        """Ask for today's contours. The same request again is the same propagation."""
        job, new = await in_thread(_open, context, request)
        response.status_code = 202 if new else 200
        response.headers["Location"] = f"/v1/propagations/{job.id}"
        return await in_thread(shown, job, records)

    @router.get("/v1/propagations/{propagation}", responses=document_for(404))
    async def get_propagation(
        propagation: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> PropagationAnswer:
        """State, progress and figures."""
        job = await in_thread(records.propagations.job, propagation)
        answer = await in_thread(shown, job, records)
        tag = etag(answer)
        if if_none_match == tag:
            return Response(status_code=304, headers={"ETag": tag})  # type: ignore[return-value]
        return JSONResponse(  # type: ignore[return-value]
            answer.model_dump(mode="json"), headers={"ETag": tag, **PRIVATE}
        )

    @router.delete("/v1/propagations/{propagation}", responses=document_for(404, 409))
    async def cancel_propagation(propagation: str) -> PropagationAnswer:
        """Stop it. What was written stays; asked for again, it is taken up again."""
        job = await in_thread(
            functools.partial(records.propagations.cancel, propagation, by="request")
        )
        return await in_thread(shown, job, records)

    @router.get(
        "/v1/propagations/{propagation}/events",
        response_class=StreamingResponse,
        responses=also(200, {"content": {"text/event-stream": {}}}) | document_for(404),
    )
    async def get_events(
        propagation: str, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """Progress as Server-Sent Events; ends with the job; `Last-Event-ID` resumes."""
        await in_thread(records.propagations.job, propagation)
        after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
        return StreamingResponse(
            _events(records, propagation, after), media_type="text/event-stream", headers=PRIVATE
        )

    @router.get("/v1/propagations/{propagation}/structure-set", **a_file("application/dicom"))
    async def get_structure_set(
        propagation: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Today's contours as an RT Structure Set."""
        return await _result(records, propagation, "RS.dcm", "application/dicom", if_none_match)

    @router.get("/v1/propagations/{propagation}/registration", **a_file("application/dicom"))
    async def get_registration(
        propagation: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Where the planning CT is today, as a Spatial Registration; none when it was rejected."""
        return await _result(records, propagation, "REG.dcm", "application/dicom", if_none_match)

    @router.get("/v1/propagations/{propagation}/report", **a_file("application/json", "text/html"))
    async def get_report(
        propagation: str,
        accept: Annotated[str, Header()] = "*/*",
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """The report: JSON, or a page where `Accept` prefers `text/html`."""
        html = accept.split(",")[0].strip().startswith("text/html")
        name, kind = ("report.html", "text/html") if html else ("report.json", "application/json")
        response = await _result(records, propagation, name, kind, if_none_match)
        response.headers["Vary"] = "Accept"
        if html:
            response.headers["Content-Security-Policy"] = (
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
            )
        return response

    @router.get("/v1/propagations/{propagation}/pictures/{name}", **a_file("image/png"))
    async def get_picture(
        propagation: str, name: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """A picture: `overlay.png`."""
        if name not in PICTURES:
            raise NotFoundError("no picture has that name", remedy=", ".join(PICTURES))
        return await _result(records, propagation, name, "image/png", if_none_match)

    @router.get("/v1/methods")
    async def get_methods() -> MethodsAnswer:
        """What a propagation may ask for."""
        name, digest, reason = NETWORK, "", ""
        try:
            name, digest = await in_thread(context.served_network)
        except ContourcastError as error:
            reason = str(error)
        network = MethodItem(name=name, kind="network", weights_digest=digest, unavailable=reason)
        carried = [MethodItem(name=method, kind="registration") for method in METHODS]
        return MethodsAnswer(methods=[*carried, network])

    return router


def etag(answer: BaseModel) -> str:
    """A strong entity tag (RFC 9110 §8.8.3) of an answer."""
    return f'"{hashlib.sha256(answer.model_dump_json().encode()).hexdigest()}"'


def shown(job: Job, records: Records) -> PropagationAnswer:
    """A propagation as the API shows it."""
    here = f"/v1/propagations/{job.id}"
    last = records.propagations.events(job.id)[-1]
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
        figures=job.figures,
        problem=Problem.model_validate(job.problem) if job.problem else None,
        links=links,
    )


def _open(context: Context, request: PropagationRequest) -> tuple[Job, bool]:
    settings_of(request.methods, request.focus)  # refuses a wrong name before anything is read
    network = context.served_network() if wants_network(request) else ("", "")
    archive = context.records.archive
    order = make_order(request, archive, network=network)
    origin = Origin(
        patient_key=archive.patient_of(request.cbct),
        acquired_at=archive.acquired_at(request.cbct),
        asked_by=ASKED_HERE,
    )
    return context.records.propagations.open(order_id(order), order, origin)


async def _events(records: Records, propagation: str, after: int) -> AsyncIterator[str]:
    silent_s = 0.0
    while True:
        # whether it ended is asked before the events are, or one is lost
        ended = (await in_thread(records.propagations.job, propagation)).ended
        events = await in_thread(
            functools.partial(records.propagations.events, propagation, after=after)
        )
        for event in events:
            data = json.dumps(
                {
                    "at": event.at,
                    "state": event.state.value,
                    "sentence": event.sentence,
                    "done": event.done,
                }
            )
            yield f"id: {event.number}\nevent: {event.state.value}\ndata: {data}\n\n"
            after = event.number
        if ended:
            return
        silent_s = 0.0 if events else silent_s + EVENT_POLL_S
        if silent_s >= EVENT_SILENCE_S:
            yield ": still at it\n\n"
            silent_s = 0.0
        await asyncio.sleep(EVENT_POLL_S)


async def _result(
    records: Records, propagation: str, name: str, media_type: str, if_none_match: str | None
) -> Response:
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
    tag = f'"{job.files[name]}"'
    if if_none_match == tag:
        return Response(status_code=304, headers={"ETag": tag})
    path = await in_thread(records.derived.result, propagation, name)
    return FileResponse(path, media_type=media_type, headers={"ETag": tag, **PRIVATE})
