"""What whoever runs the service asks for: its settings, its rules, the record of who did what."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from contourcast.service.access.audit import Row, rows
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.paging import LARGEST, USUAL, Limit
from contourcast.service.settings import ServiceSettings

_IN_ADDRESS: Final = re.compile(r"(://[^/:@\s]*):[^/@\s]*@")
_IN_QUERY: Final = re.compile(r"([?&](?:password|secret|token)=)[^&\s]*", re.IGNORECASE)


class AuditItem(BaseModel):
    """A row of the log, as it lies there."""

    number: int
    at: str
    happening: dict[str, Any]
    previous: str
    digest: str


class AuditAnswer(BaseModel):
    """Rows of the log in their order."""

    rows: list[AuditItem]


class SettingItem(BaseModel):
    """One setting."""

    name: str
    value: Any
    description: str
    variable: str = Field(description="The environment variable that sets it.")


class SettingsAnswer(BaseModel):
    """Every setting, without secrets."""

    settings: list[SettingItem]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["site"])

    @router.get("/v1/audit")
    async def get_audit(
        request: Request,
        response: Response,
        after: Annotated[int, Query(ge=0, lt=LARGEST, description="The last number known.")] = 0,
        limit: Limit = USUAL,
    ) -> AuditAnswer:
        """Who did what; `contourcast audit verify` says whether it is as it was written."""
        index = context.records.index
        found: list[Row] = await in_thread(lambda: list(islice(rows(index, after=after), limit)))
        if len(found) == limit:
            url = request.url.include_query_params(after=found[-1].number)
            response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return AuditAnswer(rows=[AuditItem.model_validate(asdict(row)) for row in found])

    @router.get("/v1/settings")
    async def get_settings() -> SettingsAnswer:
        """How the service is set up; secrets are not among it."""
        return SettingsAnswer(settings=_settings(context.settings))

    @router.get("/v1/rules")
    async def get_rules() -> dict[str, Any]:
        """By which rules a scan finds its plan (docs/rules.md)."""
        return context.fractions.rules.model_dump(mode="json")

    return router


def _settings(settings: ServiceSettings) -> list[SettingItem]:
    plain = settings.model_dump(mode="json")
    return [
        SettingItem(
            name=name,
            value=_without_password(plain[name]),
            description=field.description or "",
            variable=f"CONTOURCAST_{name.upper()}",
        )
        for name, field in type(settings).model_fields.items()
    ]


def _without_password(value: Any) -> Any:
    """An address may hold the password of who is to log in there."""
    if isinstance(value, dict):
        return {name: _without_password(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_password(each) for each in value]
    if isinstance(value, str):
        return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", value))
    return value
