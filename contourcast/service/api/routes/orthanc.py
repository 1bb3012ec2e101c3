"""The hint of an Orthanc that a series became stable there.

Nothing depends on it: whoever reads the archive's diary would find the series a little later.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import update

from contourcast.service.api.context import Context, in_thread
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import cursor

HINT = "orthanc-hint"  # in the table of cursors; who reads the diary looks at it


class Hint(BaseModel):
    """What the rule in Orthanc says of a series."""

    model_config = ConfigDict(extra="ignore")

    event: Annotated[str, Field(max_length=40)] = "stable-series"
    orthanc_id: Annotated[str, Field(max_length=64)] = ""
    series_instance_uid: Annotated[str, Field(max_length=64)] = ""


class HintAnswer(BaseModel):
    """That it was heard."""

    heard: bool = True


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["archives"])

    @router.post("/v1/orthanc/events", status_code=202)
    async def post_event(hint: Hint, response: Response) -> HintAnswer:
        """Hear that an archive has something new; it is looked at soon, and asked itself."""
        await in_thread(leave_hint, context.records.index)
        response.headers["Retry-After"] = "10"
        return HintAnswer()

    return router


def leave_hint(index: Index) -> None:
    """Writes down that the archives should be looked at sooner."""
    value = {"at": now().isoformat()}
    with index.write() as at:
        at.execute(index.insert_new(cursor, {"name": HINT, "value_json": value}))
        at.execute(update(cursor).where(cursor.c.name == HINT).values(value_json=value))
