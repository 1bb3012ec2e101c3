"""Signing in, by password or at the issuer, and showing the credential again before a signature."""

from __future__ import annotations

from datetime import datetime

from contourcast.service.access.accounts import LOCAL, sign_in
from contourcast.service.access.caller import OIDC, Caller, Gate
from contourcast.service.access.oidc import Attempt, Issuer
from contourcast.service.access.sessions import NewSession, open_session, prove
from contourcast.service.problems import ForbiddenError, UnauthorizedError


def ways(gate: Gate) -> list[str]:
    """How people may sign in here: ``password``, ``issuer``, both or neither."""
    known = {"password": gate.settings.local_accounts, "issuer": gate.issuer is not None}
    return [way for way, there in known.items() if there]


def enter_by_password(
    gate: Gate, *, name: str, password: str, at: datetime | None = None
) -> NewSession:
    """Signs a person in whom this service knows itself.

    Raises:
        ForbiddenError: This site has no accounts of its own.
        UnauthorizedError: Name and password open none now.
    """
    if not gate.settings.local_accounts:
        raise ForbiddenError(
            "nobody signs in by password here", remedy="sign in at the site's issuer"
        )
    account = sign_in(gate.index, name, password, at=at)
    return open_session(
        gate.index,
        account=LOCAL + account.name,
        roles=account.roles,
        hours=gate.settings.session_hours,
        at=at,
    )


def leave_for_issuer(gate: Gate, *, again: bool = False) -> tuple[str, Attempt]:
    """Where to send a browser, and what it keeps until it is back (`Attempt.cookie`).

    Args:
        gate: With its issuer.
        again: The credential itself is to be shown there, as before a signature.

    Raises:
        ForbiddenError: This site has no issuer.
        PeerError: The issuer does not describe itself.
    """
    return _issuer(gate).sign_in_url(again=again)


def enter_from_issuer(
    gate: Gate, *, code: str, state: str, kept: str, at: datetime | None = None
) -> tuple[str, NewSession]:
    """Signs in who comes back from the issuer.

    The browser comes from another site, so it sends no strict cookie with what it is sent to next:
    answer with a page of ours that goes on by itself, not with a redirect.

    Args:
        gate: With its issuer.
        code: Of the address that the browser came back with.
        state: Of the same.
        kept: The value of the cookie that it kept.
        at: The time; none: now.

    Returns:
        Who, as in `Caller.name`, and the sign-in.

    Raises:
        ForbiddenError: There is no issuer, or it gives that person nothing to do here.
        UnauthorizedError: That is no answer to this browser's attempt.
        PeerError: The issuer does not do what the standard says.
    """
    issuer = _issuer(gate)
    person = issuer.sign_in(code=code, state=state, attempt=Attempt.from_cookie(kept))
    account = OIDC + person.name
    hours = gate.settings.session_hours
    return account, open_session(
        gate.index, account=account, roles=person.roles, hours=hours, at=at
    )


def prove_by_password(
    gate: Gate, caller: Caller, *, password: str, at: datetime | None = None
) -> None:
    """The password again, before a signature.

    Raises:
        UnauthorizedError: It is the wrong one, or this person's credential is the issuer's.
    """
    if caller.session is None or not caller.name.startswith(LOCAL):
        raise UnauthorizedError(
            "this credential is shown at the issuer", remedy="GET /v1/session/oidc?again=true"
        )
    sign_in(gate.index, caller.shown_name, password, at=at)
    prove(gate.index, caller.session, at=at)


def _issuer(gate: Gate) -> Issuer:
    if gate.issuer is None:
        raise ForbiddenError("this site has no issuer", remedy="sign in by password")
    return gate.issuer
