"""Whether the service is alive, and whether it can take work."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Response
from pydantic import BaseModel

from contourcast.imaging.errors import ContourcastError
from contourcast.service import problems
from contourcast.service.api.context import Context, in_thread
from contourcast.service.problems import NotFoundError

WORKER_SILENCE_S: Final = 60.0  # CLINICAL_SERVICE §8.2


class ReadyAnswer(BaseModel):
    """Whether work can be taken, and why not."""

    ready: bool
    checks: dict[str, str]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["health"])

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

    @router.get("/problems/{code}", include_in_schema=False)
    async def get_problem_kind(code: str) -> dict[str, str]:
        """What a kind of problem is, by the last part of its `type`."""
        found = problems.kinds().get(code)
        if found is None:
            raise NotFoundError("no kind of problem has that name")
        return {"code": code, "meaning": (found.__doc__ or "").strip()}

    return router


def _ready(context: Context) -> ReadyAnswer:
    checks, ready = {}, True
    try:
        context.records.archive.require_space()
        checks["store"] = "above its reserve"
    except ContourcastError as error:
        checks["store"], ready = error.cause, False
    try:
        silent = context.records.workers.silent_s().values()
        checks["index"] = "reachable"
        alive = any(silent_s < WORKER_SILENCE_S for silent_s in silent)
        checks["worker"] = "alive" if alive else "not seen lately"
        ready = ready and alive
    except ContourcastError as error:
        checks["index"], ready = error.cause, False
    return ReadyAnswer(ready=ready, checks=checks)
