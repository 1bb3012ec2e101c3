"""An issuer of identities that really answers over HTTP, and lies when it is told to."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from contourcast.service.access.oidc import Issuer
from contourcast.service.access.roles import Role
from contourcast.service.access.settings import OidcSettings
from support.http import served

CLIENT = "contourcast-page"
AUDIENCE = "contourcast-api"


class FakeIssuer:
    """Its keys, its people, and what it does wrong.

    Attributes:
        asked: Paths that were asked for, in order.
        description: Goes over what its description says.
        answers: Instead of an answer, by path.
        token_claims: Goes over the claims of the next ID token.
    """

    def __init__(self) -> None:
        self.url = ""
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.keys: list[dict[str, Any]] = [
            RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True) | {"kid": "r1", "use": "sig"},
            ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True) | {"kid": "e1"},
        ]
        self.asked: list[str] = []
        self.description: dict[str, Any] = {}
        self.answers: dict[str, Response] = {}
        self.token_claims: dict[str, Any] = {}
        self.secret = ""
        self.codes: dict[str, dict[str, str]] = {}
        self.app = FastAPI()
        self.app.add_api_route("/.well-known/openid-configuration", self._describe)
        self.app.add_api_route("/keys", self._keys)
        self.app.add_api_route("/authorize", self._page)
        self.app.add_api_route("/token", self._token, methods=["POST"])

    def claims(self, **more: Any) -> dict[str, Any]:
        """Of an access token as it should be; a claim of None is left out."""
        now = int(time.time())
        good = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "0042",
            "preferred_username": "dr.ann",
            "groups": ["Radiotherapy", "Coffee"],
            "iat": now,
            "exp": now + 300,
        }
        return {name: value for name, value in (good | more).items() if value is not None}

    def token(
        self, claims: dict[str, Any] | None = None, *, algorithm: str = "RS256", kid: str = ""
    ) -> str:
        """A signed token."""
        key: Any = self.rsa if algorithm == "RS256" else self.ec
        kid = kid or {"RS256": "r1", "ES256": "e1"}[algorithm]
        return jwt.encode(
            self.claims() if claims is None else claims, key, algorithm, headers={"kid": kid}
        )

    def log_in(self, address: str) -> tuple[str, str]:
        """What a browser brings back from the issuer's page: code and state."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        self.codes["code-1"] = query
        return "code-1", query["state"]

    def _answer(self, path: str, said: dict[str, Any]) -> Response:
        self.asked.append(path)
        return self.answers.get(path) or JSONResponse(said)

    def _describe(self) -> Response:
        said = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
        }
        return self._answer("description", said | self.description)

    def _page(self, request: Request) -> Response:
        """Where a browser is sent to; whoever sits there is let in by one click."""
        code, state = self.log_in(str(request.url))
        back = f"{self.codes[code]['redirect_uri']}?{urlencode({'code': code, 'state': state})}"
        return HTMLResponse(f'<!doctype html><title>Issuer</title><a href="{escape(back)}">In</a>')

    def _keys(self) -> Response:
        return self._answer("keys", {"keys": self.keys})

    async def _token(self, request: Request) -> Response:
        form = {
            name: values[0] for name, values in parse_qs((await request.body()).decode()).items()
        }
        asked = self.codes.pop(form.get("code", ""), None)
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        shown = base64.urlsafe_b64encode(challenge).rstrip(b"=").decode()
        if (
            asked is None
            or shown != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
        ):
            self.asked.append("token")
            return JSONResponse({"error": "invalid_grant"}, status_code=400)
        claims = self.claims(aud=CLIENT, nonce=asked["nonce"])
        if "max_age" in asked:
            claims["auth_time"] = int(time.time())
        claims = {k: v for k, v in (claims | self.token_claims).items() if v is not None}
        self.secret = form.get("client_secret", "")
        return self._answer("token", {"id_token": self.token(claims)})


def redirect(to: str) -> Response:
    """An answer that leads elsewhere."""
    return RedirectResponse(to)


def says(body: Any, *, status: int = 200) -> Response:
    """Some other answer."""
    text = body if isinstance(body, str) else json.dumps(body)
    return Response(text, status_code=status, media_type="application/json")


@contextmanager
def issuing(
    clock: Callable[[], float] = time.monotonic,
    *,
    redirect_url: str = "https://rt.example/v1/session/oidc/callback",
    **settings: Any,
) -> Iterator[tuple[FakeIssuer, Issuer]]:
    """An issuer that answers, and ours that trusts it; to browsers it is another site."""
    fake = FakeIssuer()
    with served(fake.app) as client:
        fake.url = f"http://localhost:{client.base_url.port}"
        ours = Issuer(
            OidcSettings(
                issuer=fake.url,
                client_id=CLIENT,
                audience=AUDIENCE,
                redirect_url=redirect_url,
                roles={"Radiotherapy": Role.REVIEWER, "Physics": Role.ADMIN},
                **settings,
            ),
            clock=clock,
        )
        try:
            yield fake, ours
        finally:
            ours.close()
