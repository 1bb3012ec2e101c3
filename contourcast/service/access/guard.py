"""The one door of HTTP: who asks, whether they may, and a row of the audit log before an answer.

It stands before the application and knows the routes by the table alone. What the table does not
have never reaches the application; nothing of a patient leaves before its row is safe.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import anyio.to_thread
import structlog
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contourcast.imaging.errors import ContourcastError
from contourcast.service.access.audit import Happening, Outcome, record
from contourcast.service.access.caller import Caller, Gate
from contourcast.service.access.pace import Pace
from contourcast.service.access.roles import What, allowed, methods_of, rule_of, template_of
from contourcast.service.access.seldom import STRANGERS_EVERY_S, Seldom
from contourcast.service.index.database import Index
from contourcast.service.index.tables import course, propagation, series
from contourcast.service.problems import (
    NotFoundError,
    Problem,
    TooOftenError,
    problem_of,
    respond,
)

log = structlog.get_logger()

# All that there is on the internal port: nothing of it is of a patient.
INSIDE: Final = frozenset({"/health/live", "/health/ready", "/metrics"})

# A path may hold whatever somebody typed; only what can be no name goes into the log.
_ID: Final = re.compile(r"[0-2](\.[0-9]{1,39}){2,31}|[0-9a-f]{16,64}")
_KEYED: Final = {
    "series": (series.c.uid, series.c.patient_key),
    "courses": (course.c.id, course.c.patient_key),
    "propagations": (propagation.c.id, propagation.c.patient_key),
}


@dataclass(kw_only=True)
class Noted:
    """What a route adds to its row: whom and what it was about."""

    who: str = ""
    patient: str = ""
    objects: list[str] = field(default_factory=list)


class Guard:
    """Lets in who may, and writes down what they did.

    A handler finds the caller as ``request.state.caller`` (none on a public route) and adds to the
    row through `note`.

    Args:
        app: The application.
        gate: Who is who.
        each_minute: Requests of one key, see `Pace`.
        internal_port: What comes in there needs no credential and reaches `INSIDE` alone.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        each_minute: int = 0,
        internal_port: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.gate = app, gate
        self._pace = Pace(each_minute, clock)
        self._internal_port = internal_port
        self._strangers = Seldom(STRANGERS_EVERY_S, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for whoever may call the route."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no WebSockets here
        method, path = scope["method"], scope["path"]
        template = template_of(method, path)
        if self._internal_port is not None and _came_to(scope) == self._internal_port:
            await self._inside(template, scope, receive, send)
            return
        caller: Caller | None = None
        try:
            caller = await self._identified(scope, template)
            if template is None:
                await self._nowhere(scope, receive, send)
                return
            allowed(caller, method, template)
        except ContourcastError as error:
            await self._refuse(error, caller, template, scope, receive, send)
            return
        if caller is not None and caller.kind == "key":
            wait_s = self._pace.wait_s(caller.name)
            if wait_s:  # without a row: nothing is touched, and a flood shall not fill the log
                await _slower(wait_s, scope)(scope, receive, send)
                return
        noted = Noted()
        scope.setdefault("state", {}).update(caller=caller, noted=noted)
        rule = rule_of(method, template)
        if rule is None or rule.what is None:
            await self.app(scope, receive, send)
            return
        await self._audited(rule.what, caller, template, noted, scope, receive, send)

    async def _inside(
        self, template: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if template not in INSIDE:
            error = NotFoundError("there is no such resource", remedy="ask the service's own port")
            await respond(_problem(error, scope))(scope, receive, send)
            return
        scope.setdefault("state", {}).update(caller=None, noted=Noted())
        await self.app(scope, receive, send)

    async def _identified(self, scope: Scope, template: str | None) -> Caller | None:
        rule = rule_of(scope["method"], template) if template is not None else None
        if rule is not None and rule.public:
            return None
        return await anyio.to_thread.run_sync(
            lambda: self.gate.identify(
                _headers(scope), method=scope["method"], address=_address(scope)
            )
        )

    def _seen_from(self, scope: Scope) -> str:
        return self.gate.seen_from(_headers(scope), address=_address(scope))

    async def _audited(
        self,
        what: What,
        caller: Caller | None,
        template: str,
        noted: Noted,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        stopped = False

        def write(status: int) -> None:
            happening = self._happening(what, caller, template, noted, scope, status)
            record(self.gate.index, happening)

        async def watched(message: Message) -> None:
            nonlocal stopped
            if message["type"] == "http.response.start":
                try:
                    await anyio.to_thread.run_sync(write, message["status"])
                except ContourcastError as error:
                    stopped = True
                    await respond(_problem(error, scope))(scope, receive, send)
            if not stopped:
                await send(message)

        await self.app(scope, receive, watched)

    def _happening(
        self,
        what: What,
        caller: Caller | None,
        template: str,
        noted: Noted,
        scope: Scope,
        status: int,
    ) -> Happening:
        named = _ids(template, scope["path"])
        outcome: Outcome = "success" if status < 400 else "failed"
        if status in (401, 403):
            what = what if what is What.LOGIN else What.REFUSAL
            outcome = "refused"
        known = {"who": noted.who} if noted.who else {}
        return Happening.by(
            caller,
            what,
            **({} if caller else {"address": self._seen_from(scope)}),
            **known,
            action=f"{scope['method']} {template}",
            patient=noted.patient or _patient_of(self.gate.index, template, named),
            objects=tuple(dict.fromkeys([*named, *noted.objects])),
            outcome=outcome,
            detail=str(status),
        )

    async def _refuse(
        self,
        error: ContourcastError,
        caller: Caller | None,
        template: str | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        address = self._seen_from(scope)
        times = 1 if caller else self._strangers.came(address)
        if times is not None:
            happening = Happening.by(
                caller,
                What.REFUSAL,
                action=f"{scope['method']} {template or 'elsewhere'}",
                objects=tuple(_ids(template or "", scope["path"])),
                outcome="refused",
                detail=error.code if times == 1 else f"{error.code}, the last of {times}",
                **({} if caller else {"address": address}),
            )
            try:
                await anyio.to_thread.run_sync(record, self.gate.index, happening)
            except ContourcastError as worse:
                error = worse
        await respond(_problem(error, scope))(scope, receive, send)

    async def _nowhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        """404, or 405 where the table has the path under other verbs (RFC 9110 §15.5.6)."""
        others = methods_of(scope["path"])
        if not others:
            error = NotFoundError("there is no such resource", remedy="see /docs for what there is")
            await respond(_problem(error, scope))(scope, receive, send)
            return
        problem = Problem(
            type="about:blank",
            title="Method Not Allowed",
            status=405,
            detail="method not allowed",
            instance=scope["path"],
            cause="method not allowed",
            remedy="see /docs for the methods that there are",
        )
        await respond(problem, headers={"Allow": ", ".join(others)})(scope, receive, send)


def note(
    request: Request, *, who: str = "", patient: str = "", objects: Iterable[str] = ()
) -> None:
    """Adds to the audit row of a request.

    Args:
        request: The request of a handler behind the guard.
        who: Who has just signed in, as `Caller.name`.
        patient: A patient's key.
        objects: UIDs and ids; never a name.
    """
    noted: Noted | None = getattr(request.state, "noted", None)
    if noted is not None:
        noted.who = who or noted.who
        noted.patient = patient or noted.patient
        noted.objects += objects


def _ids(template: str, path: str) -> list[str]:
    """What a path fills in, as far as it cannot be anybody's name."""
    pattern = "([^/]+)".join(re.escape(part) for part in re.split(r"\{[^{}]*\}", template))
    found = re.fullmatch(pattern, path)
    return [v for v in (found.groups() if found else ()) if _ID.fullmatch(v)]


def _patient_of(index: Index, template: str, named: list[str]) -> str:
    """The key of the patient whom the first id of a path belongs to."""
    columns = _KEYED.get(template.removeprefix("/v1/").partition("/")[0])
    if columns is None or not named:
        return ""
    key, patient = columns
    with index.read() as connection:
        found = connection.execute(select(patient).where(key == named[0])).scalar_one_or_none()
    return str(found or "")


def _slower(wait_s: float, scope: Scope) -> Response:
    error = TooOftenError("this key asks too often", remedy="ask again when Retry-After says")
    headers = {"Retry-After": str(math.ceil(wait_s))}
    return respond(_problem(error, scope), headers=headers)


def _problem(error: ContourcastError, scope: Scope) -> Problem:
    trace = uuid.uuid4().hex
    log.info("refused", trace=trace, code=error.code)
    return problem_of(error, instance=scope["path"], trace=trace)


def _came_to(scope: Scope) -> int | None:
    """The port of ours that the connection was made to; no header says it."""
    server = scope.get("server")
    return server[1] if server else None


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _headers(scope: Scope) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
