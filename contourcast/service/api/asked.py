"""What an uploader may see: what came of the scans that it sent, and what it asked for.

One order is one propagation, whoever asks: the first to do so stands in its row, all of them here.
Whoever sent a series that was here already has it, and so may see what was drawn on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from sqlalchemy import ColumnElement, select

from contourcast.service.access.caller import Caller
from contourcast.service.access.roles import own_only
from contourcast.service.index.database import Index
from contourcast.service.index.tables import asked, propagation, sent
from contourcast.service.ingest import Answer
from contourcast.service.problems import NotFoundError


def remember(index: Index, propagation_id: str, caller: str) -> None:
    """Somebody asked for it."""
    with index.write() as at:
        at.execute(index.insert_new(asked, {"propagation": propagation_id, "caller": caller}))


def remember_sent(index: Index, answers: Sequence[Answer], caller: str) -> list[str]:
    """Somebody sent these; the UIDs of the series that are here."""
    uids = sorted({a.series_instance_uid for a in answers if a.problem is None} - {""})
    if uids:
        with index.write() as at:
            for uid in uids:
                at.execute(index.insert_new(sent, {"series_uid": uid, "caller": caller}))
    return uids


def caller_of(request: Request) -> Caller:
    """Who calls a route that is not public."""
    caller: Caller = request.state.caller
    return caller


def only_own(request: Request) -> ColumnElement[bool] | None:
    """What limits a list of propagations to what the caller may see; None: nothing does."""
    caller = caller_of(request)
    if not own_only(caller, request.method, _template(request)):
        return None
    wanted = select(asked.c.propagation).where(asked.c.caller == caller.name)
    scans = select(sent.c.series_uid).where(sent.c.caller == caller.name)
    return propagation.c.id.in_(wanted) | propagation.c.cbct_series_uid.in_(scans)


def require_seen(request: Request, index: Index, propagation_id: str) -> None:
    """Refuses what is not the caller's to see, as if it were not there.

    Raises:
        NotFoundError: There is none of that id, or none that the caller may see.
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
