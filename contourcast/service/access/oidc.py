"""People and programs that the site's own issuer vouches for (OpenID Connect Core 1.0).

Keys and tokens are fetched from the issuer's own address and nowhere else, without redirects.
Only RS256 and ES256 are believed; a token says who, its groups say what for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from contourcast.service.access.roles import Role
from contourcast.service.access.settings import OidcSettings
from contourcast.service.problems import (
    ForbiddenError,
    PeerError,
    PeerUnreachableError,
    SettingsError,
    UnauthorizedError,
)

ALGORITHMS: Final = ("RS256", "ES256")
SMALLEST_RSA_BITS: Final = 2048  # RFC 7518 §3.3
LEEWAY_S: Final = 30  # between two machines' clocks
LARGEST_TOKEN: Final = 16 * 1024
LARGEST_ANSWER: Final = 1024 * 1024
TIMEOUT_S: Final = 5.0
KEYS_AGE_S: Final = 3600.0
# An unknown key id may be a new key; who makes ids up must not make us ask each time.
KEYS_AGAIN_S: Final = 60.0
FRESH_PROOF_S: Final = 120
STATE_COOKIE: Final = "contourcast-sign-in"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whom a token is about."""

    name: str
    roles: frozenset[Role]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A sign-in that has gone to the issuer; the browser keeps it until it is back.

    Attributes:
        state: Comes back in the address; ties the answer to this browser.
        nonce: Comes back in the token; ties the token to this attempt.
        verifier: Goes with the code; whoever has only the code gets nothing (RFC 7636).
        again: The credential itself has to be shown, not an older sign-in at the issuer.
        begun_at_s: When it began, in seconds of Unix.
    """

    state: str
    nonce: str
    verifier: str
    again: bool
    begun_at_s: int

    def cookie(self, *, secure: bool) -> str:
        """The ``Set-Cookie`` that keeps it: Lax, since the issuer's page leads back to us."""
        told = (self.state, self.nonce, self.verifier, f"{self.again:d}", str(self.begun_at_s))
        value = ".".join(told)
        return f"{STATE_COOKIE}={value}; Path=/v1/session; HttpOnly; SameSite=Lax; Max-Age=600" + (
            "; Secure" if secure else ""
        )

    @classmethod
    def from_cookie(cls, value: str) -> Attempt:
        """What `cookie` kept.

        Raises:
            UnauthorizedError: That is none.
        """
        parts = value.split(".")
        if len(parts) != 5 or not all(parts) or not re.fullmatch("[0-9]{1,12}", parts[4]):
            raise UnauthorizedError(
                "no sign-in is under way in this browser", remedy="begin the sign-in again"
            )
        state, nonce, verifier, again, begun = parts
        return cls(
            state=state, nonce=nonce, verifier=verifier, again=again == "1", begun_at_s=int(begun)
        )


class Issuer:
    """The site's issuer, with its keys in memory.

    Args:
        settings: Which one, and what its groups mean here.
        http: A client to reach it with.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        settings: OidcSettings,
        http: httpx.Client | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(settings.issuer)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise SettingsError(
                "the issuer's address is not https", remedy="set access.oidc.issuer to its https"
            )
        self.settings = settings
        self._http = http or httpx.Client(follow_redirects=False, timeout=TIMEOUT_S)
        self._clock = clock
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s = clock() - KEYS_AGE_S

    def close(self) -> None:
        """Lets go of its connections."""
        self._http.close()

    def bearer(self, token: str) -> Person:
        """Whom an access token is about.

        Raises:
            UnauthorizedError: It is not for us, not valid now, or not of the issuer.
            ForbiddenError: The issuer gives that person nothing to do here.
            PeerError: The issuer cannot be asked for its keys.
        """
        if not self.settings.audience:
            raise _not_valid()
        return self._person(self._claims(token, audience=self.settings.audience))

    def sign_in_url(self, *, again: bool = False) -> tuple[str, Attempt]:
        """Where to send a browser, and what it has to bring back."""
        attempt = Attempt(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            again=again,
            begun_at_s=int(time.time()),
        )
        challenge = hashlib.sha256(attempt.verifier.encode("ascii")).digest()
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self.settings.redirect_url,
            "scope": "openid profile",
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode("ascii"),
            "code_challenge_method": "S256",
        }
        if again:
            query |= {"prompt": "login", "max_age": "0"}
        place = self._place("authorization_endpoint")
        return f"{place}{'&' if '?' in place else '?'}{urlencode(query)}", attempt

    def sign_in(self, *, code: str, state: str, attempt: Attempt) -> Person:
        """Who came back from the issuer.

        Raises:
            UnauthorizedError: The answer is not of this attempt, or the issuer does not confirm it.
            ForbiddenError: The issuer gives that person nothing to do here.
            PeerError: The issuer does not do what the standard says.
        """
        if not hmac.compare_digest(state.encode(), attempt.state.encode()):
            raise _other_attempt()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.settings.redirect_url,
            "client_id": self.settings.client_id,
            "code_verifier": attempt.verifier,
        }
        if self.settings.client_secret_file is not None:
            form["client_secret"] = self.settings.client_secret_file.read_text("utf-8").strip()
        token = self._ask("POST", self._place("token_endpoint"), form=form).get("id_token")
        if not isinstance(token, str):
            raise PeerError("the issuer sent no ID token", remedy="look at the client's settings")
        claims = self._claims(token, audience=self.settings.client_id)
        nonce = claims.get("nonce")
        if not isinstance(nonce, str) or not hmac.compare_digest(
            nonce.encode("utf-8", "surrogatepass"), attempt.nonce.encode()
        ):
            raise _other_attempt()
        if claims.get("azp", self.settings.client_id) != self.settings.client_id:
            raise _not_valid()
        shown_at = claims.get("auth_time")
        if attempt.again and not (
            isinstance(shown_at, int)
            and shown_at >= attempt.begun_at_s - LEEWAY_S
            and time.time() - shown_at <= FRESH_PROOF_S
        ):
            raise UnauthorizedError(
                "the issuer did not ask for the credential again",
                remedy="let it honour prompt=login and send auth_time",
            )
        return self._person(claims)

    # Tokens

    def _claims(self, token: str, *, audience: str) -> dict[str, Any]:
        try:
            if len(token) > LARGEST_TOKEN:
                raise _not_valid()
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS or "crit" in header:
                raise _not_valid()
            return jwt.decode(
                token,
                self._key(header.get("kid")),
                algorithms=ALGORITHMS,
                audience=audience,
                issuer=self.settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _not_valid() from error

    def _person(self, claims: Mapping[str, Any]) -> Person:
        named = claims.get(self.settings.name_claim)
        name = named if isinstance(named, str) and named else str(claims["sub"])
        if not (name.isprintable() and len(name) <= 128):
            raise _not_valid()
        groups = _claim(claims, self.settings.roles_claim)
        groups = [groups] if isinstance(groups, str) else groups
        known = self.settings.roles
        roles = frozenset(
            known[group]
            for group in (groups if isinstance(groups, list) else [])
            if isinstance(group, str) and group in known
        )
        if not roles:
            raise ForbiddenError(
                "the issuer gives this person nothing to do here",
                remedy="ask whoever runs the issuer for a group that has a role here",
            )
        return Person(name=name, roles=roles)

    # Keys and places

    def _key(self, kid: object) -> jwt.PyJWK:
        if not isinstance(kid, str):
            raise _not_valid()
        with self._lock:
            age_s = self._clock() - self._fetched_s
            if age_s >= KEYS_AGE_S or (kid not in self._keys and age_s >= KEYS_AGAIN_S):
                self._keys = _usable(self._ask("GET", self._place("jwks_uri")))
                self._fetched_s = self._clock()
            found = self._keys.get(kid)
        if found is None:
            raise _not_valid()
        return found

    def _place(self, name: str) -> str:
        """One of the issuer's addresses, from its own description (OpenID Connect Discovery §4)."""
        if not self._places:
            issuer = self.settings.issuer
            said = self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if said.get("issuer") != issuer:
                raise PeerError(
                    "the issuer calls itself by another name than the settings",
                    remedy="set access.oidc.issuer to exactly what it calls itself",
                )
            self._places = {k: v for k, v in said.items() if isinstance(v, str)}
        place = self._places.get(name, "")
        if _origin(place) != _origin(self.settings.issuer):
            raise PeerError(
                f"the issuer's {name} is at another address than the issuer",
                remedy="only an issuer with all its parts at one address can be used",
            )
        return place

    def _ask(self, method: str, url: str, *, form: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            with self._http.stream(method, url, data=form, follow_redirects=False) as answer:
                body = b""
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > LARGEST_ANSWER:
                        raise PeerError("the issuer's answer is too long", remedy=_LOOK)
        except httpx.HTTPError as error:
            raise PeerUnreachableError("the issuer does not answer", remedy=_LOOK) from error
        if form is not None and answer.status_code in (400, 401):
            raise UnauthorizedError(
                "the issuer does not confirm this sign-in", remedy="begin the sign-in again"
            )
        if answer.status_code != 200:
            raise PeerError(f"the issuer answers {answer.status_code}", remedy=_LOOK)
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise PeerError("the issuer's answer is not JSON", remedy=_LOOK) from error
        if not isinstance(said, dict):
            raise PeerError("the issuer's answer is not JSON", remedy=_LOOK)
        return said


_LOOK: Final = "look at the issuer, and at access.oidc in the settings"


def _usable(said: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """The signing keys of the two algorithms; others in the set are passed over (RFC 7517 §5)."""
    found = {}
    keys = said.get("keys")
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, dict) or not isinstance(key.get("kid"), str):
            continue
        algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(key.get("kty")))
        if key.get("use", "sig") != "sig" or key.get("alg", algorithm) != algorithm:
            continue
        try:
            read = jwt.PyJWK.from_dict(key, algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if _is_strong(read.key):
            found[key["kid"]] = read
    return found


def _is_strong(key: object) -> bool:
    if isinstance(key, RSAPublicKey):
        return key.key_size >= SMALLEST_RSA_BITS
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or by dots through objects: ``realm_access.roles``."""
    if path in claims:
        return claims[path]
    here: Any = claims
    for step in path.split("."):
        here = here.get(step) if isinstance(here, Mapping) else None
    return here


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _not_valid() -> UnauthorizedError:
    return UnauthorizedError(
        "the token is not one that opens this service now", remedy="fetch a new one and send that"
    )


def _other_attempt() -> UnauthorizedError:
    return UnauthorizedError(
        "the issuer's answer belongs to another sign-in", remedy="begin the sign-in again"
    )
