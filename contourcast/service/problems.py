"""Refusals as `application/problem+json` (RFC 9457), with the same text as the command line's."""

from __future__ import annotations

import http
import uuid
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contourcast.imaging.errors import ContourcastError, WeightsError

MEDIA_TYPE: Final = "application/problem+json"
CHALLENGE: Final = 'Bearer realm="contourcast"'  # RFC 6750 §3
log = structlog.get_logger()


class NotFoundError(ContourcastError):
    """There is no such thing here."""


class NotReadyError(ContourcastError):
    """The job has not come to this result yet, or never will."""


class ConflictError(ContourcastError):
    """Other content than what is kept came under the same identifier."""


class ForbiddenTransitionError(ContourcastError):
    """What it is now does not allow that."""


class ChangedError(ContourcastError):
    """What was looked at is not what is here now."""


class TooLargeError(ContourcastError):
    """More bytes or files than the service takes in one go."""


class UnsupportedMediaError(ContourcastError):
    """A body of a kind that this resource does not take."""


class ForeignPageError(ContourcastError):
    """A page of another site, or a name that is not this machine's, asked."""


class UnauthorizedError(ContourcastError):
    """Nobody that we know asked."""


class ForbiddenError(ContourcastError):
    """Whoever asked may not do that."""


class SlowUploadError(ContourcastError):
    """Nothing came for too long."""


class BusyError(ContourcastError):
    """More work than may be taken now; later it may."""


class TooOftenError(ContourcastError):
    """One credential asks more often than it may."""


class DiskFullError(ContourcastError):
    """Free space is below the reserve."""


class StoreError(ContourcastError):
    """The store of files cannot be reached."""


class DamagedError(StoreError):
    """What lies in the store is not what was put there."""


class PeerError(ContourcastError):
    """Another system did not do what it was asked for."""


class PeerGoneError(PeerError):
    """Another system has no such thing, or no longer (RFC 9110 §15.5.5, §15.5.11)."""


class PeerUnreachableError(PeerError):
    """Another system does not answer at all, or not in time."""


class SettingsError(ContourcastError):
    """The service cannot run as it is told to."""


# The nearest ancestor of an error decides; a refusal of data is 422 (RFC 9110 §15.5.21).
STATUS: Final[dict[type[ContourcastError], int]] = {
    ContourcastError: 422,
    NotFoundError: 404,
    NotReadyError: 409,
    ConflictError: 409,
    ForbiddenTransitionError: 409,
    ChangedError: 412,
    TooLargeError: 413,
    UnsupportedMediaError: 415,
    ForeignPageError: 403,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    SlowUploadError: 408,
    BusyError: 503,
    TooOftenError: 429,
    DiskFullError: 507,
    StoreError: 503,
    DamagedError: 500,
    PeerError: 502,
    SettingsError: 500,
    WeightsError: 500,
}


class Problem(BaseModel):
    """What went wrong, where, and what to do."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A page that says what this kind of problem is.")
    title: str = Field(description="The kind in a few words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="Cause, where and remedy in one line.")
    instance: str = Field(default="", description="The resource that was asked for.")
    cause: str = Field(default="", description="What is wrong.")
    where: str = Field(default="", description="File, DICOM attribute and UID, where known.")
    remedy: str = Field(default="", description="What the caller can do.")
    trace: str = Field(default="", description="Quote this to find the matching log lines.")


def status_of(error: ContourcastError) -> int:
    """The HTTP status of a refusal."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem_of(error: ContourcastError, *, instance: str = "", trace: str = "") -> Problem:
    """A refusal as a document."""
    return Problem(
        type=f"/problems/{error.code}",
        title=_title(type(error)),
        status=status_of(error),
        detail=str(error),
        instance=instance,
        cause=error.cause,
        where=error.where,
        remedy=error.remedy,
        trace=trace,
    )


def unexpected(trace: str, *, instance: str = "") -> Problem:
    """A fault of ours: nothing of the data goes out, the log has the place under `trace`."""
    return Problem(
        type="/problems/internal",
        title="A fault of the service",
        status=500,
        detail="the service failed in a way that it did not foresee",
        instance=instance,
        cause="the service failed in a way that it did not foresee",
        remedy=f"tell whoever runs the service to look for {trace} in its log",
        trace=trace,
    )


def kinds() -> dict[str, type[ContourcastError]]:
    """Every kind of refusal by its code, as in the ``type`` of a problem."""
    found: dict[str, type[ContourcastError]] = {}
    waiting: list[type[ContourcastError]] = [ContourcastError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        found[kind("").code or "contourcast"] = kind
    return found


def log_fault(event: str, error: BaseException, *, trace: str, **fields: object) -> None:
    """Writes down where the program failed: kinds and lines, never a message.

    Messages of foreign libraries quote what they choked on, and that may be a patient's name.
    """
    places, here = [], error.__traceback__
    while here is not None:
        code = here.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{here.tb_lineno} {code.co_name}")
        here = here.tb_next
    log.error(event, trace=trace, kind=type(error).__name__, places=places, **fields)


def install(app: FastAPI) -> None:
    """Makes every error of the application a problem document."""

    @app.exception_handler(ContourcastError)
    async def refused(request: Request, error: ContourcastError) -> JSONResponse:
        trace = uuid.uuid4().hex
        log.info("refused", trace=trace, code=error.code, path=_route(request))
        return respond(problem_of(error, instance=request.url.path, trace=trace))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        said = [(".".join(map(str, e["loc"])), str(e["msg"])) for e in error.errors()]
        problem = Problem(
            type="/problems/request",
            title="The request is not as it has to be",
            status=422,
            detail="; ".join(f"{where}: {what}" for where, what in said),
            instance=request.url.path,
            cause="; ".join(what for _, what in said),
            where="; ".join(where for where, _ in said),
            remedy="see /docs for what this resource takes",
        )
        return respond(problem)

    @app.exception_handler(HTTPException)
    async def declined(request: Request, error: HTTPException) -> JSONResponse:
        title = http.HTTPStatus(error.status_code).phrase
        problem = Problem(
            type="about:blank",
            title=title,
            status=error.status_code,
            detail=title.lower(),
            instance=request.url.path,
            cause=title.lower(),
            remedy="see /docs for the resources that there are",
        )
        return respond(problem, headers=dict(error.headers or {}))

    app.add_middleware(_Faults)


class _Faults:
    """Answers what nothing else caught; a server that sees the error would print its message."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            trace = uuid.uuid4().hex
            log_fault("request_failed", error, trace=trace)
            if not started:
                problem = unexpected(trace, instance=scope["path"])
                await respond(problem)(scope, receive, send)


def respond(problem: Problem, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response that carries a problem."""
    extra = {
        401: {"WWW-Authenticate": CHALLENGE},
        429: {"Retry-After": "1"},
        503: {"Retry-After": "10"},
    }.get(problem.status, {})
    return JSONResponse(
        problem.model_dump(),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=extra | (headers or {}),
    )


def document_for(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead of its result, for the OpenAPI document."""
    return {
        status: {
            "description": http.HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def _title(kind: type[ContourcastError]) -> str:
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")


def _route(request: Request) -> str:
    """The pattern of the route, without what the caller filled in."""
    route = request.scope.get("route")
    return str(getattr(route, "path", "unknown"))
