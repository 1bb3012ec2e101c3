"""The hint of an Orthanc that a series became stable there.

Nothing depends on it: whoever reads the archive's diary would find the series a little later.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from contourcast.service.api.context import Context, in_thread
from contourcast.service.pacs.watching import hint, watched


class Hint(BaseModel):
    """What the rule in Orthanc says of a series; more may be said, and is not heard."""

    model_config = ConfigDict(extra="ignore")

    event: Annotated[str, Field(max_length=40)] = "stable-series"
    orthanc_id: Annotated[str, Field(max_length=64)] = ""
    series_instance_uid: Annotated[str, Field(max_length=64)] = ""


class HintAnswer(BaseModel):
    """Who looks sooner now."""

    looking_at: list[str] = Field(description="Archives of the settings that are watched.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["archives"])
    archives = [archive.name for archive in watched(context.settings.destinations)]

    @router.post("/v1/orthanc/events", status_code=202)
    async def post_event(_: Hint) -> HintAnswer:
        """Hear that an archive has something new: it is looked at now, and asked itself."""
        for archive in archives:
            await in_thread(hint, context.records.index, archive)
        return HintAnswer(looking_at=archives)

    return router
