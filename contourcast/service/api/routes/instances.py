"""What comes in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from contourcast.service.access.guard import note
from contourcast.service.api.asked import caller_of, remember_sent
from contourcast.service.api.bodies import take_body
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.related import RELATED, take_related
from contourcast.service.archive import Outcome, Sent
from contourcast.service.ingest import Answer
from contourcast.service.problems import Problem, document_for, respond


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


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["instances"])
    archive, settings = context.records.archive, context.settings

    @router.post(
        "/v1/instances",
        openapi_extra=_upload_document(),
        responses=document_for(408, 409, 413, 415, 503, 507),
    )
    async def post_instances(request: Request) -> InstancesAnswer:
        """Send DICOM files: one as it is, many in one multipart, or a zip of them."""
        with context.uploads.one() as under_way:
            taken = await _take(request, in_memory=settings.upload_memory_mib // under_way)
        by = caller_of(request).name
        uids = await in_thread(remember_sent, archive.index, taken, by)
        patient = await in_thread(archive.patient_of, uids[0]) if uids else ""
        note(request, patient=patient, objects=uids)
        answer: InstancesAnswer = _judged(taken)
        return answer

    async def _take(request: Request, *, in_memory: int) -> list[Answer]:
        sent = Sent(door="rest")
        if request.headers.get("content-type", "").lower().startswith(RELATED):
            return await take_related(request, archive, settings, sent=sent)
        return await take_body(request, archive, settings, in_memory=in_memory, sent=sent)

    return router


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
                "multipart/related": {"schema": binary},
                "application/zip": {"schema": binary},
                "application/dicom": {"schema": binary},
            },
        }
    }
