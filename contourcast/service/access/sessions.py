"""Sign-ins of people: a cookie that scripts cannot read, and a token that only scripts have.

The cookie is sent by the browser alone and only from our own pages (SameSite=Strict); whatever
changes something needs the CSRF token beside it. The database has the digests of both.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, select

from contourcast.service.access.keys import digest_of
from contourcast.service.access.roles import Role
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import session
from contourcast.service.problems import ForbiddenError

TOKEN_BYTES: Final = 32
CSRF_HEADER: Final = "x-csrf-token"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110 §9.2.1


@dataclass(frozen=True, kw_only=True)
class NewSession:
    """What the browser is told, once."""

    cookie: str
    csrf: str
    expires_at: str


@dataclass(frozen=True, kw_only=True)
class Session:
    """Who is signed in.

    Attributes:
        account: ``local:NAME`` or ``oidc:NAME``.
        proven_at: When the credential itself was shown for a signature; empty until then, and
            after each signature.
    """

    digest: str
    account: str
    roles: frozenset[Role]
    csrf_digest: str
    expires_at: str
    proven_at: str


def open_session(
    index: Index,
    *,
    account: str,
    roles: Collection[Role],
    hours: float,
    proven: bool = False,
    at: datetime | None = None,
) -> NewSession:
    """Signs somebody in, and sweeps out those whose time has ended.

    Args:
        index: Where sign-ins are kept.
        account: ``local:NAME`` or ``oidc:NAME``.
        roles: What for.
        hours: For how long.
        proven: The credential was shown for a signature.
        at: The time; none: now.
    """
    at = at or now()
    new = NewSession(
        cookie=secrets.token_urlsafe(TOKEN_BYTES),
        csrf=secrets.token_urlsafe(TOKEN_BYTES),
        expires_at=(at + timedelta(hours=hours)).isoformat(),
    )
    row = {
        "digest": digest_of(new.cookie),
        "account": account,
        "roles_json": sorted(set(roles)),
        "csrf_digest": digest_of(new.csrf),
        "made_at": at.isoformat(),
        "expires_at": new.expires_at,
        "proven_at": at.isoformat() if proven else "",
    }
    with index.write() as connection:
        connection.execute(session.delete().where(session.c.expires_at <= at.isoformat()))
        connection.execute(session.insert().values(**row))
    return new


def find_session(index: Index, cookie: str, *, at: datetime | None = None) -> Session | None:
    """Whose cookie that is, if it still holds."""
    with index.read() as connection:
        row = connection.execute(
            select(session).where(session.c.digest == digest_of(cookie))
        ).one_or_none()
    if row is None or datetime.fromisoformat(row.expires_at) <= (at or now()):
        return None
    return Session(
        digest=row.digest,
        account=row.account,
        roles=frozenset(map(Role, row.roles_json)),
        csrf_digest=row.csrf_digest,
        expires_at=row.expires_at,
        proven_at=row.proven_at,
    )


def require_csrf(found: Session, token: str) -> None:
    """Whatever changes something comes from our own page.

    Raises:
        ForbiddenError: The token is not the one of this sign-in.
    """
    if not hmac.compare_digest(digest_of(token), found.csrf_digest):
        raise ForbiddenError(
            "the request does not come from a page of ours",
            remedy=f"send the CSRF token of the sign-in as {CSRF_HEADER}",
        )


def renew_csrf(index: Index, found: Session) -> str:
    """Another token for the same sign-in, for a page that was loaded anew; the former is void."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with index.write() as connection:
        connection.execute(
            session.update()
            .where(session.c.digest == found.digest)
            .values(csrf_digest=digest_of(token))
        )
    return token


def prove(index: Index, found: Session, *, at: datetime | None = None) -> None:
    """The credential of this sign-in was shown again just now, for one signature."""
    with index.write() as connection:
        connection.execute(
            session.update()
            .where(session.c.digest == found.digest)
            .values(proven_at=(at or now()).isoformat())
        )


def spend_proof(at: Connection, found: Session) -> None:
    """In the transaction of a signature: the next one asks for the credential again.

    Raises:
        ForbiddenError: Another signature spent this proof meanwhile.
    """
    spent = at.execute(
        session.update()
        .where(session.c.digest == found.digest, session.c.proven_at == found.proven_at)
        .values(proven_at="")
    )
    if not found.proven_at or spent.rowcount != 1:
        raise _not_proven()


def require_proof(found: Session, *, minutes: float, at: datetime | None = None) -> None:
    """A signature needs a credential that was shown lately, and for it.

    Raises:
        ForbiddenError: It was not; the sign-in itself still holds.
    """
    latest = (at or now()) - timedelta(minutes=minutes)
    if not found.proven_at or datetime.fromisoformat(found.proven_at) < latest:
        raise _not_proven()


def _not_proven() -> ForbiddenError:
    return ForbiddenError(
        "a signature needs your password or second factor again",
        remedy="show it: POST /v1/session/proof, or sign in at the issuer again",
    )


def close_session(index: Index, found: Session) -> None:
    """Signs out."""
    with index.write() as connection:
        connection.execute(session.delete().where(session.c.digest == found.digest))


def cookie_name(*, secure: bool) -> str:
    """With the prefix that keeps other hosts and paths from setting it (RFC 6265bis §4.1.3)."""
    return "__Host-contourcast" if secure else "contourcast"


def set_cookie(new: NewSession, *, secure: bool) -> str:
    """The ``Set-Cookie`` of a sign-in; it ends with the browser, or here, whichever is first."""
    return _cookie(cookie_name(secure=secure), new.cookie, secure=secure)


def drop_cookie(*, secure: bool) -> str:
    """The ``Set-Cookie`` that forgets it."""
    return _cookie(cookie_name(secure=secure), "", secure=secure) + "; Max-Age=0"


def _cookie(name: str, value: str, *, secure: bool) -> str:
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
