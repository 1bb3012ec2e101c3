"""Who asks: a key, a person, or, while there is no credential yet, this machine alone."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from starlette.requests import cookie_parser

from contourcast.service.access.accounts import LOCAL
from contourcast.service.access.keys import PREFIX, any_key, find_key
from contourcast.service.access.oidc import Issuer
from contourcast.service.access.roles import Role
from contourcast.service.access.sessions import (
    CSRF_HEADER,
    SAFE_METHODS,
    Session,
    cookie_name,
    find_session,
    require_csrf,
)
from contourcast.service.access.settings import AccessSettings
from contourcast.service.index.database import Index
from contourcast.service.problems import ForbiddenError, SettingsError, UnauthorizedError

OIDC: Final = "oidc:"
FORWARDED: Final = "x-forwarded-for"
# What a proxy adds; its presence says that somebody farther away asks.
_PROXIED: Final = frozenset({FORWARDED, "forwarded", "x-real-ip", "via"})
_ONCE: Final = frozenset({"authorization", "host", CSRF_HEADER, "origin", "cookie"})


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, what for, and from where.

    Attributes:
        name: ``key:ID``, ``certificate:NAME``, ``local:NAME``, ``oidc:NAME`` or ``loopback``.
        kind: Only a person may sign.
        roles: What it is here for.
        address: Where it comes from, as far as that can be believed.
        session: A person's sign-in; none for a person whose program sends a token.
    """

    name: str
    kind: Literal["key", "person", "loopback"]
    roles: frozenset[Role]
    address: str
    session: Session | None = None

    @property
    def shown_name(self) -> str:
        """The name without where it comes from, for a signature."""
        return self.name.partition(":")[2] or self.name


class Gate:
    """Everything that says who somebody is.

    Args:
        index: Keys, accounts and sign-ins.
        settings: What the site decided.
        host: The address that the service listens on.
        issuer: The issuer of the settings, where there is one.
    """

    def __init__(
        self, index: Index, settings: AccessSettings, *, host: str, issuer: Issuer | None = None
    ) -> None:
        self.index, self.settings, self.issuer = index, settings, issuer
        self.on_loopback = is_loopback(host)
        self._proxies = [ipaddress.ip_network(a) for a in settings.proxy_addresses]

    def identify(
        self,
        headers: Iterable[tuple[str, str]],
        *,
        method: str,
        address: str,
        at: datetime | None = None,
    ) -> Caller:
        """Who asks.

        Args:
            headers: All of the request's, as they came.
            method: Such as ``GET``: what changes something needs more than a cookie.
            address: The other end of the connection.
            at: The time; none: now.

        Raises:
            UnauthorizedError: It is not known, or what was shown does not hold.
            ForbiddenError: It is known, and may not come this way.
            PeerError: Only the issuer could say, and it does not answer.
        """
        headers = list(headers)
        said = self._read(headers)
        proxy = self._is_proxy(address)
        place = self.seen_from(headers, address=address)
        authorization = said.get("authorization")
        if authorization is not None:
            return self._by_token(authorization, place, at)
        identity = said.get(self.settings.identity_header.lower() or " ")
        if identity is not None:
            return self._by_proxy(identity, place, proxy=proxy)
        cookie = cookie_parser(said.get("cookie", "")).get(
            cookie_name(secure=self.settings.secure_cookies)
        )
        if cookie is not None:
            return self._by_cookie(cookie, said, method, place, at)
        return self._by_place(said, address)

    def seen_from(self, headers: Iterable[tuple[str, str]], *, address: str) -> str:
        """Where a request comes from, as far as that can be believed.

        That is the other end of the connection; behind a named proxy, whom the proxy itself saw.
        """
        if not self._is_proxy(address):
            return address
        hops = [value for name, value in headers if name.lower() == FORWARDED]
        return _last_hop(hops[-1] if hops else "", address)

    def _read(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        read: dict[str, str] = {}
        once = _ONCE | {self.settings.identity_header.lower()}
        for name, value in headers:
            key = name.lower()
            if key in read and key == "cookie":
                read[key] += f"; {value}"  # HTTP/2 may send several (RFC 9113 §8.2.3)
            elif key in read and key in once:
                raise UnauthorizedError(
                    f"the header {key} came twice", remedy="send it once, or not at all"
                )
            elif key in read:
                read[key] += f", {value}"
            else:
                read[key] = value
        return read

    def _is_proxy(self, address: str) -> bool:
        try:
            here = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(here in network for network in self._proxies)

    def _by_token(self, authorization: str, place: str, at: datetime | None) -> Caller:
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() == "bearer" and token.startswith(PREFIX):
            key = find_key(self.index, token, at=at)
            if key is not None:
                return Caller(name=f"key:{key.id}", kind="key", roles=key.roles, address=place)
        elif scheme.lower() == "bearer" and self.issuer is not None:
            # a token that lies in a program proves no person; what signs is a sign-in
            person = self.issuer.bearer(token)
            return Caller(name=OIDC + person.name, kind="key", roles=person.roles, address=place)
        raise UnauthorizedError(
            "what was sent as Authorization opens nothing here",
            remedy="send a key that has not expired, as Authorization: Bearer",
        )

    def _by_proxy(self, identity: str, place: str, *, proxy: bool) -> Caller:
        if not proxy:
            raise ForbiddenError(
                "only the site's proxy may say who somebody is",
                remedy="leave the header away, or name the proxy: access.proxy_addresses",
            )
        roles = self.settings.identities.get(identity)
        if not roles:
            raise ForbiddenError(
                "the name in the certificate has no role here",
                remedy="give it one: access.identities",
            )
        return Caller(name=f"certificate:{identity}", kind="key", roles=roles, address=place)

    def _by_cookie(
        self, cookie: str, said: dict[str, str], method: str, place: str, at: datetime | None
    ) -> Caller:
        found = find_session(self.index, cookie, at=at)
        if found is None or not self._still_taken(found.account):
            raise UnauthorizedError("the sign-in has ended", remedy="sign in again")
        if method.upper() not in SAFE_METHODS:
            require_csrf(found, said.get(CSRF_HEADER, ""))
        return Caller(
            name=found.account, kind="person", roles=found.roles, address=place, session=found
        )

    def _still_taken(self, account: str) -> bool:
        """A way in that the settings closed is closed to those who came by it, too."""
        return self.settings.local_accounts if account.startswith(LOCAL) else bool(self.issuer)

    def _by_place(self, said: dict[str, str], address: str) -> Caller:
        if not (
            self.settings.loopback_trial
            and self.on_loopback
            and is_loopback(address)
            and not has_credentials(self.index, self.settings)
        ):
            raise UnauthorizedError(
                "it is not known who asks", remedy="send a key as Authorization: Bearer, or sign in"
            )
        if _PROXIED & said.keys():
            raise UnauthorizedError(
                "a proxy sends others here, and nobody has to say who they are",
                remedy="make a key: contourcast keys make",
            )
        host, origin = said.get("host", ""), said.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if foreign or not is_loopback(_without_port(host)):
            raise ForbiddenError(
                "the request comes from another site, or names another machine",
                remedy="call the service by its loopback address",
            )
        return Caller(
            name="loopback", kind="loopback", roles=frozenset({Role.INTERNAL}), address=address
        )


def has_credentials(index: Index, settings: AccessSettings) -> bool:
    """Whether anybody has to say who they are; once a key was made, that stays so."""
    return bool(settings.oidc or settings.local_accounts or settings.identities or any_key(index))


def require_credentials_or_loopback(host: str, index: Index, settings: AccessSettings) -> None:
    """Refuses to be reached from other machines while nobody has to say who they are.

    Raises:
        SettingsError: The address is not of this machine alone, and there is no credential.
    """
    if not is_loopback(host) and not has_credentials(index, settings):
        raise SettingsError(
            f"the service does not listen on '{host}': it has no credentials yet, so whoever"
            " reached it would see patients' data",
            remedy="make a key (contourcast keys make) or set access.oidc or access.local_accounts",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _last_hop(forwarded: str, address: str) -> str:
    """Whom the proxy itself saw: what stands before came from outside and proves nothing."""
    last = forwarded.rpartition(",")[2].strip()
    try:
        return str(ipaddress.ip_address(last))
    except ValueError:
        return address


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
