"""The HTTP API: validate, start, answer. Long work is a job of the worker's, never a request's."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import anyio.to_thread
from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.propagate import NETWORK
from contourcast.registration.methods import METHODS
from contourcast.service import problems
from contourcast.service.ingest import MIB, Answer, take_files, take_zip
from contourcast.service.jobs.orders import (
    PropagationRequest,
    make_order,
    order_id,
    settings_of,
    wants_network,
)
from contourcast.service.problems import (
    BusyError,
    ForeignPageError,
    NotFoundError,
    NotReadyError,
    Problem,
    SlowUploadError,
    TooLargeError,
    UnsupportedMediaError,
    document_for,
    problem_of,
    respond,
)
from contourcast.service.settings import ServiceSettings
from contourcast.service.store import Job, Outcome, State, Store, writing

EVENT_POLL_S: Final = 0.2
EVENT_SILENCE_S: Final = 15.0  # proxies close what is silent for longer
WORKER_SILENCE_S: Final = 60.0  # CLINICAL_SERVICE §8.2
PRIVATE: Final = {"Cache-Control": "private, no-store"}
PICTURES: Final = ("overlay.png",)

Result = TypeVar("Result")
Responses = dict[int | str, dict[str, Any]]


class InstanceAnswer(BaseModel):
    """What became of one file."""

    name: str = Field(description="As the sender called it.")
    outcome: Outcome
    sop_instance_uid: str = ""
    series_instance_uid: str = ""
    problem: Problem | None = None


class InstancesAnswer(BaseModel):
    """What became of each file, in the order sent."""

    instances: list[InstanceAnswer]


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


class SeriesAnswer(BaseModel):
    """Every series that is here."""

    series: list[SeriesItem]


class PropagationAnswer(BaseModel):
    """How far a propagation is, and what came out of it."""

    id: str
    state: State
    done: float = Field(description="Share of the work that is done, 0 to 1.")
    doing: str = Field(description="What is going on, in a sentence.")
    made_at: str = Field(description="When it was first asked for, UTC.")
    attempt: int
    cbct: str
    planning_ct: str
    roi: str
    methods: list[str]
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


class ReadyAnswer(BaseModel):
    """Whether work can be taken, and why not."""

    ready: bool
    checks: dict[str, str]


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application over the data folder of the settings."""
    store = Store(settings.data_folder, disk_reserve_bytes=settings.disk_reserve_mib * MIB)
    uploads: set[Request] = set()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await _in_thread(store.discard_incoming)
        yield

    app = FastAPI(
        title="Contourcast",
        summary="Carries a tumour's contour from the planning CT to each day's cone-beam CT.",
        description="Not a medical device. Every contour is a proposal that a person must check.",
        version="1",
        lifespan=lifespan,
        responses=document_for(422, 500),
    )
    app.add_middleware(_OwnPagesOnly)
    problems.install(app)

    @functools.lru_cache(maxsize=1)
    def served_network() -> tuple[str, str]:
        """Name and digest."""
        from contourcast.models.predictor import load_network

        network = load_network(settings.weights, device="cpu")
        return network.name, network.digest

    @app.post(
        "/v1/instances",
        openapi_extra=_upload_document(),
        responses=document_for(408, 409, 413, 415, 503, 507),
    )
    async def post_instances(request: Request) -> InstancesAnswer:
        """Send DICOM files: one as it is, many in one multipart, or a zip of them."""
        if len(uploads) >= settings.uploads_at_once:
            raise BusyError("as many uploads as may be are under way", remedy="send again later")
        uploads.add(request)
        try:
            in_memory = settings.upload_memory_mib // len(uploads)
            taken = await _take(request, store, settings, in_memory=in_memory)
        finally:
            uploads.remove(request)
        answer: InstancesAnswer = _judged(taken)
        return answer

    @app.get("/v1/series")
    async def get_series() -> SeriesAnswer:
        """What is here."""
        found = await _in_thread(store.series)
        return SeriesAnswer(series=[SeriesItem.model_validate(asdict(s)) for s in found])

    @app.post(
        "/v1/propagations",
        status_code=202,
        response_model=PropagationAnswer,
        responses=_also(200, {"model": PropagationAnswer}) | document_for(404, 507),
    )
    async def post_propagation(request: PropagationRequest, response: Response) -> Any:
        """Ask for today's contours. The same request again is the same propagation."""
        job, new = await _in_thread(_open, request, store, served_network)
        response.status_code = 202 if new else 200
        response.headers["Location"] = f"/v1/propagations/{job.id}"
        return await _in_thread(_shown, job, store)

    @app.get("/v1/propagations/{propagation}", responses=document_for(404))
    async def get_propagation(
        propagation: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> PropagationAnswer:
        """State, progress and figures."""
        job = await _in_thread(store.job, propagation)
        shown = await _in_thread(_shown, job, store)
        tag = f'"{hashlib.sha256(shown.model_dump_json().encode()).hexdigest()}"'
        if if_none_match == tag:
            return Response(status_code=304, headers={"ETag": tag})  # type: ignore[return-value]
        return JSONResponse(  # type: ignore[return-value]
            shown.model_dump(mode="json"), headers={"ETag": tag, **PRIVATE}
        )

    @app.get(
        "/v1/propagations/{propagation}/events",
        response_class=StreamingResponse,
        responses=_also(200, {"content": {"text/event-stream": {}}}) | document_for(404),
    )
    async def get_events(
        propagation: str, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """Progress as Server-Sent Events; ends with the job; `Last-Event-ID` resumes."""
        await _in_thread(store.job, propagation)
        after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
        return StreamingResponse(
            _events(store, propagation, after), media_type="text/event-stream", headers=PRIVATE
        )

    @app.get("/v1/propagations/{propagation}/structure-set", **_file("application/dicom"))
    async def get_structure_set(
        propagation: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Today's contours as an RT Structure Set."""
        return await _result(store, propagation, "RS.dcm", "application/dicom", if_none_match)

    @app.get("/v1/propagations/{propagation}/registration", **_file("application/dicom"))
    async def get_registration(
        propagation: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Where the planning CT is today, as a Spatial Registration; none when it was rejected."""
        return await _result(store, propagation, "REG.dcm", "application/dicom", if_none_match)

    @app.get("/v1/propagations/{propagation}/report", **_file("application/json", "text/html"))
    async def get_report(
        propagation: str,
        accept: Annotated[str, Header()] = "*/*",
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """The report: JSON, or a page where `Accept` prefers `text/html`."""
        html = accept.split(",")[0].strip().startswith("text/html")
        name, kind = ("report.html", "text/html") if html else ("report.json", "application/json")
        response = await _result(store, propagation, name, kind, if_none_match)
        response.headers["Vary"] = "Accept"
        if html:
            response.headers["Content-Security-Policy"] = (
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
            )
        return response

    @app.get("/v1/propagations/{propagation}/pictures/{name}", **_file("image/png"))
    async def get_picture(
        propagation: str, name: str, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """A picture: `overlay.png`."""
        if name not in PICTURES:
            raise NotFoundError("no picture has that name", remedy=", ".join(PICTURES))
        return await _result(store, propagation, name, "image/png", if_none_match)

    @app.get("/v1/methods")
    async def get_methods() -> MethodsAnswer:
        """What a propagation may ask for."""
        name, digest, reason = NETWORK, "", ""
        try:
            name, digest = await _in_thread(served_network)
        except ContourcastError as error:
            reason = str(error)
        network = MethodItem(name=name, kind="network", weights_digest=digest, unavailable=reason)
        carried = [MethodItem(name=method, kind="registration") for method in METHODS]
        return MethodsAnswer(methods=[*carried, network])

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: {"model": ReadyAnswer}})
    async def ready(response: Response) -> ReadyAnswer:
        """Whether work can be taken."""
        answer = await _in_thread(_ready, store)
        response.status_code = 200 if answer.ready else 503
        return answer

    @app.get("/problems/{code}", include_in_schema=False)
    async def get_problem_kind(code: str) -> dict[str, str]:
        """What a kind of problem is, by the last part of its `type`."""
        found = problems.kinds().get(code)
        if found is None:
            raise NotFoundError("no kind of problem has that name")
        return {"code": code, "meaning": (found.__doc__ or "").strip()}

    return app


class _OwnPagesOnly:
    """Other sites' pages may not make a browser on this machine act here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for those who mean this machine."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin, host = headers.get("origin"), headers.get("host", "")
            foreign = origin is not None and origin.split("://")[-1] != host
            if foreign or not _is_this_machine(host):
                error = ForeignPageError(
                    "the request comes from another site, or names another machine",
                    remedy="call the service by its loopback address",
                )
                await respond(problem_of(error, instance=scope["path"]))(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _take(
    request: Request, store: Store, settings: ServiceSettings, *, in_memory: int
) -> list[Answer]:
    """Receives a body of any kind that we take, and takes its files in."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = _limited(request, settings)
    if kind == "multipart/form-data":
        parser = _Parts(
            request.headers,
            body,
            max_files=settings.files_limit,
            max_fields=settings.files_limit,
        )
        parser.in_memory = in_memory
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise InputError(
                f"the multipart body cannot be read: {error.message.rstrip('.').lower()}",
                remedy=f"send at most {settings.files_limit} files, each as a form file",
            ) from error
        try:
            files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            if not files:
                raise InputError("the multipart body holds no file", remedy="send form files")
            named = ((f.filename or "", f.file) for f in files)
            return await _in_thread(take_files, named, store, settings)
        finally:
            await form.close()
    if kind in ("application/zip", "application/dicom"):
        path = store.incoming()
        try:
            await _save(body, path)
            if kind == "application/zip":
                return await _in_thread(take_zip, path, store, settings)
            with path.open("rb") as file:
                return await _in_thread(take_files, [("", file)], store, settings)
        finally:
            path.unlink(missing_ok=True)
    raise UnsupportedMediaError(
        f"a body of type '{kind}' is not taken",
        remedy="send application/dicom, multipart/form-data or application/zip",
    )


async def _save(body: AsyncIterator[bytes], path: Path) -> None:
    """Writes a body to disk, beside the event loop, in pieces that are worth the way there."""
    waiting = bytearray()
    with writing(), path.open("xb") as file:
        async for piece in body:
            waiting += piece
            if len(waiting) >= MIB:
                await _in_thread(file.write, bytes(waiting))
                waiting.clear()
        await _in_thread(file.write, bytes(waiting))


class _Parts(MultiPartParser):
    """Form files: so many wait in memory, if none is larger than a slice; the others on disk."""

    in_memory = 0

    def on_part_begin(self) -> None:
        """Decides where the next file waits."""
        super().on_part_begin()
        self.in_memory -= 1
        self.spool_max_size = MIB if self.in_memory >= 0 else 1


async def _limited(request: Request, settings: ServiceSettings) -> AsyncGenerator[bytes, None]:
    """The body in pieces, as long as it comes and is not too large."""
    limit = settings.request_limit_mib * MIB
    error = TooLargeError(
        f"a request has more than {settings.request_limit_mib} MiB",
        remedy="send the files in several requests",
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise error
    received, pieces = 0, request.stream()
    while True:
        try:
            async with asyncio.timeout(settings.upload_idle_s):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise SlowUploadError(
                f"nothing came for {settings.upload_idle_s:g} s", remedy="send it again"
            ) from None
        except ClientDisconnect:
            raise SlowUploadError("the sender went away", remedy="send it again") from None
        received += len(piece)
        if received > limit:
            raise error
        yield piece


def _judged(answers: list[Answer]) -> Any:
    """200 when anything is here now; else the first fault decides, with every answer beside it."""
    shown = InstancesAnswer.model_validate({"instances": [_plain(a) for a in answers]})
    bad = [a for a in answers if a.problem is not None]
    if len(bad) < len(answers) or not bad:
        return shown
    worst = next((a for a in bad if a.outcome == "conflict"), bad[0])
    assert worst.problem is not None
    problem = worst.problem.model_copy(update=shown.model_dump(mode="json"))
    return respond(problem)


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        name: getattr(answer, name)
        for name in ("name", "outcome", "sop_instance_uid", "series_instance_uid", "problem")
    }


def _open(
    request: PropagationRequest, store: Store, served_network: Callable[[], tuple[str, str]]
) -> tuple[Job, bool]:
    settings_of(request.methods, request.focus)  # refuses a wrong name before anything is read
    network = served_network() if wants_network(request) else ("", "")
    order = make_order(request, store, network=network)
    return store.open_job(order_id(order), order)


def _shown(job: Job, store: Store) -> PropagationAnswer:
    here = f"/v1/propagations/{job.id}"
    last = store.events(job.id)[-1]
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
        made_at=job.made_at.isoformat(),
        attempt=job.attempt,
        cbct=job.order["cbct"]["series"],
        planning_ct=job.order["planning_ct"]["series"],
        roi=job.order["roi"],
        methods=job.order["methods"],
        figures=job.figures,
        problem=Problem.model_validate(job.problem) if job.problem else None,
        links=links,
    )


async def _events(store: Store, propagation: str, after: int) -> AsyncIterator[str]:
    silent_s = 0.0
    while True:
        ended = (
            await _in_thread(store.job, propagation)
        ).ended  # before the events, or one is lost
        events = await _in_thread(functools.partial(store.events, propagation, after=after))
        for event in events:
            data = json.dumps(
                {
                    "at": event.at,
                    "state": event.state,
                    "sentence": event.sentence,
                    "done": event.done,
                }
            )
            yield f"id: {event.number}\nevent: {event.state}\ndata: {data}\n\n"
            after = event.number
        if ended:
            return
        silent_s = 0.0 if events else silent_s + EVENT_POLL_S
        if silent_s >= EVENT_SILENCE_S:
            yield ": still at it\n\n"
            silent_s = 0.0
        await asyncio.sleep(EVENT_POLL_S)


async def _result(
    store: Store, propagation: str, name: str, media_type: str, if_none_match: str | None
) -> Response:
    job = await _in_thread(store.job, propagation)
    if job.state != "done":
        raise NotReadyError(
            "the propagation failed: it has no results"
            if job.ended
            else "the propagation is not done yet",
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
    path: Path = store.result_folder(propagation) / name
    return FileResponse(path, media_type=media_type, headers={"ETag": tag, **PRIVATE})


def _ready(store: Store) -> ReadyAnswer:
    checks = {"index": "reachable"}
    try:
        store.require_space()
        store.incoming().parent.stat()
        checks["store"] = "above its reserve"
    except ContourcastError as error:
        checks["store"] = error.cause
    seen = store.worker_seen_s_ago()
    alive = seen is not None and seen < WORKER_SILENCE_S
    checks["worker"] = "alive" if alive else "not seen lately"
    return ReadyAnswer(ready=alive and checks["store"] == "above its reserve", checks=checks)


def _is_this_machine(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name in ("localhost", "[::1]") or name.startswith("127.")


def _also(status: int, answer: dict[str, Any]) -> Responses:
    return {status: answer}


def _file(*media_types: str) -> dict[str, Any]:
    """How the OpenAPI document describes a route that gives a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {
        "response_class": Response,
        "responses": _also(
            200, {"content": content, "description": "The file; ETag is its digest."}
        )
        | document_for(404, 409),
    }


def _upload_document() -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {"files": {"type": "array", "items": binary}},
        "required": ["files"],
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/zip": {"schema": binary},
                "application/dicom": {"schema": binary},
            },
        }
    }


async def _in_thread(function: Callable[..., Result], *args: object) -> Result:
    """Runs what touches a disk beside the event loop."""
    return await anyio.to_thread.run_sync(function, *args)


def main() -> None:
    """Writes the OpenAPI document, as it stands in docs/openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        document = create_app(ServiceSettings(data_folder=Path(folder))).openapi()
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
