"""Notices as signed HTTP requests.

The body is JSON; ``Contourcast-Signature: t=SECONDS,v1=HEX`` holds the HMAC-SHA256 (RFC 2104), by a
secret that both sides know, over the seconds, a dot and the body. `verify` is what a receiver does.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

import httpx

from contourcast.service.index.database import as_json
from contourcast.service.pacs.connection import Connection, Peer
from contourcast.service.pacs.destinations import WebhookDestination, secret
from contourcast.service.pacs.notices import Notice

SIGNATURE: Final = "Contourcast-Signature"
EVENT: Final = "Contourcast-Event"
# A signature that is older was seen by somebody on the way, or the clocks are wrong.
TOLERANCE_S: Final = 300.0


def post(hook: WebhookDestination, notice: Notice, *, event: str, at_s: float) -> int:
    """Sends a notice; the status, which is one of success.

    Args:
        hook: Where to.
        notice: What happened.
        event: The same each time that this notice goes to this webhook.
        at_s: Seconds since 1970, as they are signed.

    Raises:
        PeerError: It does not answer, or with something else than a success; a redirect is that.
        SettingsError: Its address or secret is none.
    """
    body = body_of(notice, event)
    secrets = secret(hook, hook.secret_env).split()
    peer = Peer(
        name=hook.name,
        url=hook.url,
        user=hook.user,
        password=secret(hook, hook.password_env),
        token=secret(hook, hook.token_env),
        ca_file=hook.ca_file,
        timeout_s=hook.timeout_s,
    )
    headers = {
        "Content-Type": "application/json",
        SIGNATURE: sign(secrets, body, at_s=int(at_s)),
        EVENT: event,
    }
    with (
        Connection(peer) as connection,
        connection.stream(
            "POST", str(httpx.URL(hook.url)), expect=range(200, 300), content=body, headers=headers
        ) as answer,
    ):
        return answer.status_code  # its body is nothing to us


def body_of(notice: Notice, event: str) -> bytes:
    """What a webhook gets."""
    return as_json(
        {
            "event": event,
            "number": notice.number,
            "at": notice.at,
            "kind": notice.kind,
            "subject": notice.subject,
            "body": notice.body,
        }
    ).encode()


def sign(secrets: Sequence[str], body: bytes, *, at_s: int) -> str:
    """The value of the header: one signature for each secret.

    >>> sign(["secret"], b"{}", at_s=1700000000)[:40]
    't=1700000000,v1=b8569b78799ff9e3cbff0fc2'
    """
    return ",".join([f"t={at_s}", *(f"v1={_digest(one, body, at_s)}" for one in secrets)])


def verify(
    secret: str, header: str, body: bytes, *, now_s: float, tolerance_s: float = TOLERANCE_S
) -> bool:
    """Whether a body was signed with a secret, and lately.

    A header may bear several signatures while a secret is exchanged: one that fits is enough.
    """
    parts = [part.partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name.strip() == "t"]
    if len(times) != 1 or not times[0].isascii() or not times[0].isdigit():
        return False
    at_s = int(times[0])
    if abs(now_s - at_s) > tolerance_s:
        return False
    expected = _digest(secret, body, at_s)
    given = [value for name, _, value in parts if name.strip() == "v1"]
    return any(hmac.compare_digest(expected.encode(), one.encode()) for one in given)


def _digest(secret: str, body: bytes, at_s: int) -> str:
    return hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256).hexdigest()
