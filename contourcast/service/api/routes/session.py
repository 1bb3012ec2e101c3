"""Signing in and out, and showing the credential again before a signature."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from contourcast.service.access.accounts import LOCAL, sign_in
from contourcast.service.access.caller import OIDC
from contourcast.service.access.guard import note
from contourcast.service.access.oidc import STATE_COOKIE, Attempt, Issuer
from contourcast.service.access.roles import Role
from contourcast.service.access.sessions import (
    close_session,
    drop_cookie,
    open_session,
    prove,
    renew_csrf,
    set_cookie,
)
from contourcast.service.api.asked import caller_of
from contourcast.service.api.context import Context, also, in_thread
from contourcast.service.problems import (
    ForbiddenError,
    ForeignPageError,
    NotFoundError,
    UnauthorizedError,
    document_for,
)

# A cookie that is Strict does not come with a request that the issuer's page led to, so a page of
# ours leads on.
SIGNED_IN = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Signed in</title>'
    '<meta http-equiv="refresh" content="0;url=/"><p><a href="/">Signed in</a></p></html>'
)


class SignIn(BaseModel):
    """A name and its password."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(max_length=128)
    password: str = Field(max_length=1024, repr=False)


class Proof(BaseModel):
    """The password once more."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    password: str = Field(max_length=1024, repr=False)


class SessionAnswer(BaseModel):
    """Who is here."""

    name: str
    kind: Literal["key", "person", "loopback"]
    roles: list[Role]
    expires_at: str | None = Field(default=None, description="Of a sign-in.")
    proven_at: str | None = Field(
        default=None,
        description="When the credential was shown for a signature; null until then and after one.",
    )
    csrf: str | None = Field(
        default=None, description="To be sent as X-CSRF-Token with whatever changes something."
    )


class WaysAnswer(BaseModel):
    """How somebody may sign in."""

    local: bool = Field(description="With a name and a password that are kept here.")
    oidc: bool = Field(description="At the site's issuer.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["session"])
    index, access = context.records.index, context.settings.access
    secure = access.secure_cookies

    @router.get("/v1/session")
    async def get_session(
        request: Request,
        renew: Annotated[
            bool, Query(description="Another CSRF token; the former is void.")
        ] = False,
    ) -> SessionAnswer:
        """Who I am, and what for."""
        caller = caller_of(request)
        session = caller.session
        answer = SessionAnswer(name=caller.name, kind=caller.kind, roles=sorted(caller.roles))
        if session is not None:
            answer.expires_at, answer.proven_at = session.expires_at, session.proven_at or None
            if renew:
                answer.csrf = await in_thread(renew_csrf, index, session)
        return answer

    @router.post("/v1/session", status_code=201, responses=document_for(401, 403, 404))
    async def post_session(given: SignIn, request: Request, response: Response) -> SessionAnswer:
        """Sign in with a name and a password."""
        _require_own_page(request)
        if not access.local_accounts:
            raise NotFoundError(
                "no passwords are kept here", remedy="see /v1/session/ways for how to sign in"
            )
        account = await in_thread(sign_in, index, given.name, given.password)
        answer, cookie = await in_thread(_open, LOCAL + account.name, account.roles)
        response.headers.append("Set-Cookie", cookie)
        note(request, who=answer.name)
        return answer

    @router.delete("/v1/session", status_code=204)
    async def delete_session(request: Request, response: Response) -> None:
        """Sign out."""
        session = caller_of(request).session
        if session is not None:
            await in_thread(close_session, index, session)
        response.headers.append("Set-Cookie", drop_cookie(secure=secure))
        # voxels may be kept for long, but not for whoever comes to this workstation next
        response.headers["Clear-Site-Data"] = '"cache"'

    @router.post("/v1/session/proof", status_code=204, responses=document_for(401))
    async def post_proof(given: Proof, request: Request) -> None:
        """Show the password again: each signature needs it, shown lately."""
        session = caller_of(request).session
        if session is None or not session.account.startswith(LOCAL):
            raise ForbiddenError(
                "the password of this sign-in is not kept here",
                remedy="sign in at the issuer again: GET /v1/session/oidc?again=true",
            )
        await in_thread(sign_in, index, session.account.removeprefix(LOCAL), given.password)
        await in_thread(prove, index, session)

    @router.get("/v1/session/ways")
    async def get_ways() -> WaysAnswer:
        """How to sign in here."""
        return WaysAnswer(local=access.local_accounts, oidc=context.issuer is not None)

    @router.get(
        "/v1/session/oidc",
        status_code=302,
        response_class=RedirectResponse,
        responses=document_for(404, 502),
    )
    async def get_oidc(again: bool = False) -> RedirectResponse:
        """To the issuer's page; `again` asks for the credential even of those signed in there."""
        url, attempt = await in_thread(lambda: issuer().sign_in_url(again=again))
        answer = RedirectResponse(url, status_code=302)
        answer.headers.append("Set-Cookie", attempt.cookie(secure=secure))
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @router.get(
        "/v1/session/oidc/callback",
        response_class=Response,
        responses=also(200, {"content": {"text/html": {}}}) | document_for(401, 403, 404, 502),
    )
    async def get_callback(
        request: Request,
        state: Annotated[str, Query(max_length=512)] = "",
        code: Annotated[str, Query(max_length=4096)] = "",
    ) -> Response:
        """Where the issuer's page leads back to."""
        vouching = issuer()
        attempt = Attempt.from_cookie(request.cookies.get(STATE_COOKIE, ""))
        if not code:
            raise UnauthorizedError(
                "the issuer did not let this person in", remedy="begin the sign-in again"
            )
        person = await in_thread(lambda: vouching.sign_in(code=code, state=state, attempt=attempt))
        answer, cookie = await in_thread(
            lambda: _open(OIDC + person.name, person.roles, proven=attempt.again)
        )
        note(request, who=answer.name)
        page = Response(SIGNED_IN, media_type="text/html")
        page.headers.append("Set-Cookie", cookie)
        page.delete_cookie(STATE_COOKIE, path="/v1/session", secure=secure, httponly=True)
        page.headers["Cache-Control"] = "no-store"
        page.headers["Content-Security-Policy"] = "default-src 'none'"
        return page

    def issuer() -> Issuer:
        if context.issuer is None:
            raise NotFoundError(
                "this site has no issuer", remedy="see /v1/session/ways for how to sign in"
            )
        return context.issuer

    def _open(
        account: str, roles: frozenset[Role], *, proven: bool = False
    ) -> tuple[SessionAnswer, str]:
        new = open_session(
            index, account=account, roles=roles, hours=access.session_hours, proven=proven
        )
        answer = SessionAnswer(
            name=account,
            kind="person",
            roles=sorted(roles),
            expires_at=new.expires_at,
            csrf=new.csrf,
        )
        return answer, set_cookie(new, secure=secure)

    return router


def _require_own_page(request: Request) -> None:
    """Else another site's page could sign a browser in under a name of its own."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host", ""):
        raise ForeignPageError(
            "the request comes from another site", remedy="sign in on a page of this service"
        )
