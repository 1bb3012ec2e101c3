"""Cohorts: what was asked for of many scans at once, how far it is, and what came of it.

They are begun on the command line (`contourcast cohort`), beside the files that they are made of.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from contourcast.service.access.guard import note
from contourcast.service.api.context import PRIVATE, Context, also, in_thread
from contourcast.service.api.paging import USUAL, Cursor, Limit, after, lead_on
from contourcast.service.cohort import Cohorts, Known
from contourcast.service.problems import document_for


class CohortItem(BaseModel):
    """A cohort as it was asked for."""

    id: str
    link: str
    made_at: str
    kind: Literal["folder", "query"] = Field(description="Taken in for it, or here already.")
    since: str = Field(description="Day of acquisition; empty: any.")
    until: str = Field(description="Not included; empty: any.")
    methods: list[str] = Field(description="None: what the service draws by.")


class CohortsAnswer(BaseModel):
    """Cohorts, newest first."""

    cohorts: list[CohortItem]


class CohortDetail(CohortItem):
    """A cohort, and how far it is."""

    series: int = Field(description="Series of images that were taken in for it.")
    waiting: int = Field(description="Of these, not looked at yet.")
    open_questions: int = Field(description="Of these, a person has to say something of.")
    propagations: dict[str, int] = Field(description="By state.")
    verdicts: dict[str, int] = Field(description="By verdict, of those that have one.")
    ended: bool = Field(description="Whether nothing more happens by itself.")
    links: dict[str, str]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["cohorts"])
    cohorts = Cohorts(context.records, context.settings)

    @router.get("/v1/cohorts")
    async def get_cohorts(
        request: Request, response: Response, limit: Limit = USUAL, cursor: Cursor = ""
    ) -> CohortsAnswer:
        """What was asked for, newest first."""
        last = after(cursor, str, str)
        before = None if last is None else (str(last[0]), str(last[1]))
        found = await in_thread(lambda: cohorts.known(before=before, limit=limit + 1))
        if len(found) > limit:
            lead_on(request, response, found[limit - 1].made_at, found[limit - 1].id)
        note(request, objects=[each.id for each in found[:limit]])
        return CohortsAnswer(cohorts=[CohortItem(**_shown(each)) for each in found[:limit]])

    @router.get("/v1/cohorts/{cohort}", responses=document_for(404))
    async def get_cohort(cohort: str) -> CohortDetail:
        """How far it is; its propagations are `/v1/propagations?cohort=`."""
        known = await in_thread(cohorts.one, cohort)
        progress = await in_thread(cohorts.progress, cohort)
        here = f"/v1/cohorts/{known.id}"
        return CohortDetail(
            **_shown(known),
            series=progress.series,
            waiting=progress.waiting,
            open_questions=progress.open_questions,
            propagations=progress.propagations,
            verdicts=progress.verdicts,
            ended=progress.ended,
            links={
                "self": here,
                "report": f"{here}/report",
                "propagations": f"/v1/propagations?cohort={known.id}",
            },
        )

    @router.get(
        "/v1/cohorts/{cohort}/report",
        response_class=Response,
        responses=also(
            200,
            {
                "content": {"text/csv": {"schema": {"type": "string"}}},
                "description": "A row for each method of each propagation, as of now.",
            },
        )
        | document_for(404),
    )
    async def get_report(cohort: str) -> Response:
        """`cohort.csv`, as the command line writes it."""
        await in_thread(cohorts.one, cohort)
        return StreamingResponse(
            cohorts.lines(cohort),
            media_type="text/csv; charset=utf-8",
            headers=PRIVATE | {"Content-Disposition": 'attachment; filename="cohort.csv"'},
        )

    return router


def _shown(known: Known) -> dict[str, Any]:
    return {
        "id": known.id,
        "link": f"/v1/cohorts/{known.id}",
        "made_at": known.made_at,
        "kind": known.kind,
        "since": known.since,
        "until": known.until,
        "methods": list(known.methods),
    }
