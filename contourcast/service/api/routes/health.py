"""Whether the service is alive, whether it can take work, and what it measures."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from contourcast.imaging.errors import ContourcastError
from contourcast.service import problems
from contourcast.service.api.context import Context, also, in_thread
from contourcast.service.api.measures import Measures
from contourcast.service.jobs.queues import GPU
from contourcast.service.problems import NotFoundError, document_for

WORKER_SILENCE_S: Final = 60.0  # CLINICAL_SERVICE §8.2
PROBE: Final = "instances/probe"  # under which nothing lies; whether the store says so is the test


class ReadyAnswer(BaseModel):
    """Whether work can be taken, and why not."""

    ready: bool
    checks: dict[str, str] = Field(description="Of store, index and worker.")
    degraded: list[str] = Field(description="What works, and worse than it could.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["health"])
    measures = Measures(context.records, context.settings)

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @router.get("/health/ready", responses={503: {"model": ReadyAnswer}})
    async def ready(response: Response) -> ReadyAnswer:
        """Whether work can be taken."""
        answer = await in_thread(_ready, context)
        response.status_code = 200 if answer.ready else 503
        return answer

    @router.get(
        "/metrics",
        response_class=Response,
        responses=also(200, {"content": {"text/plain": {"schema": {"type": "string"}}}})
        | document_for(503),
    )
    async def metrics() -> Response:
        """What is measured, as Prometheus reads it."""
        text = await in_thread(measures.text)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get("/problems/{code}", responses=document_for(404))
    async def get_problem_kind(code: str) -> dict[str, str]:
        """What a kind of problem is, by the last part of its `type`."""
        found = problems.kinds().get(code)
        if found is None:
            raise NotFoundError("no kind of problem has that name")
        return {"code": code, "meaning": (found.__doc__ or "").strip()}

    return router


def _ready(context: Context) -> ReadyAnswer:
    records = context.records
    checks: dict[str, str] = {}
    degraded: list[str] = []
    ready = True
    try:
        records.archive.require_space()
        records.archive.blobs.has(PROBE)
        checks["store"] = "above its reserve"
    except ContourcastError as error:
        checks["store"], ready = error.cause, False
    try:
        silent = records.workers.silent_s().values()
        checks["index"] = "reachable"  # its tables were brought up to date at the start
        alive = any(silent_s < WORKER_SILENCE_S for silent_s in silent)
        checks["worker"] = "alive" if alive else "not seen lately"
        ready = ready and alive
        if not records.workers.listening(GPU, within_s=WORKER_SILENCE_S):
            degraded.append("no worker serves the gpu queue: networks are drawn slower")
    except ContourcastError as error:
        checks["index"], ready = error.cause, False
    return ReadyAnswer(ready=ready, checks=checks, degraded=degraded)
