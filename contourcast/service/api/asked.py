"""Who asked for which propagation: what an uploader may see is what it asked for.

One order is one propagation, whoever asks: the first to do so stands in its row, all of them here.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from sqlalchemy import Column, ColumnElement, String, Table, select

from contourcast.service.access.caller import Caller
from contourcast.service.access.roles import own_only
from contourcast.service.index.database import Index
from contourcast.service.index.tables import metadata, propagation
from contourcast.service.problems import NotFoundError

asked = Table(
    "asked",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("caller", String, primary_key=True),  # as `Caller.name`
)


def remember(index: Index, propagation_id: str, caller: str) -> None:
    """Somebody asked for it."""
    with index.write() as at:
        at.execute(index.insert_new(asked, {"propagation": propagation_id, "caller": caller}))


def caller_of(request: Request) -> Caller:
    """Who calls a route that is not public."""
    caller: Caller = request.state.caller
    return caller


def only_own(request: Request) -> ColumnElement[bool] | None:
    """What limits a list of propagations to what the caller may see; None: nothing does."""
    caller = caller_of(request)
    if not own_only(caller, request.method, _template(request)):
        return None
    mine = select(asked.c.propagation).where(asked.c.caller == caller.name)
    return propagation.c.id.in_(mine)


def require_seen(request: Request, index: Index, propagation_id: str) -> None:
    """Refuses what is not the caller's to see, as if it were not there.

    Raises:
        NotFoundError: There is none of that id, or none that the caller asked for.
    """
    wanted: list[Any] = [propagation.c.id == propagation_id]
    limit = only_own(request)
    if limit is not None:
        wanted.append(limit)
    with index.read() as at:
        found = at.execute(select(propagation.c.id).where(*wanted)).first()
    if found is None:
        raise NotFoundError("no propagation has that id", remedy="post one to /v1/propagations")


def _template(request: Request) -> str:
    return str(request.scope["route"].path)
