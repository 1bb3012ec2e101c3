"""``Idempotency-Key``: a POST that was answered is answered again, and not done again, for a day.

A convenience: propagations, instances and deliveries are the same when they are asked for again.
What was refused is not kept, so the same key may try once more. An answer that holds a secret is
not kept either, only that it was given.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import anyio.to_thread
from python_multipart.multipart import parse_options_header
from sqlalchemy import delete, select
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.service.access.caller import Caller
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import idempotency
from contourcast.service.problems import ConflictError, problem_of, respond

HEADER: Final = "idempotency-key"
KEY: Final = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
KEPT_FOR: Final = timedelta(hours=24)
LARGEST_ANSWER: Final = 2**20
SECRET: Final = "/v1/keys"  # whose answer holds one
# Whose requests hold a password: no digest of one is kept. A name is made once anyway, and who
# signs in or proves again does so anew.
WITHOUT: Final = frozenset({"/v1/accounts", "/v1/session", "/v1/session/proof"})
FILES: Final = "/v1/instances"  # whose answer repeats how the sender called its files
HELD_HEADERS: Final = frozenset({"content-type", "location", "retry-after", "etag"})


class Idempotent:
    """Stands behind the guard, which says who asks: each caller has keys of its own."""

    def __init__(self, app: ASGIApp, *, index: Index) -> None:
        self.app, self._index = app, index

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application, or answers as it did before."""
        caller: Caller | None = scope.get("state", {}).get("caller")
        key = Headers(scope=scope).get(HEADER) if scope["type"] == "http" else None
        if key is None or caller is None or scope["method"] != "POST" or scope["path"] in WITHOUT:
            await self.app(scope, receive, send)
            return
        try:
            if not KEY.fullmatch(key):
                raise InputError(
                    "an Idempotency-Key has 1 to 128 printable characters and no blank",
                    remedy="send a UUID",
                )
            known = await anyio.to_thread.run_sync(self._known, key, caller.name)
            if known is None:
                await self._first(key, caller.name, scope, receive, send)
                return
            body = _Digested(scope, receive)
            await body.drain()
            await self._again(known, body.digest(), send)
        except ContourcastError as error:
            await respond(problem_of(error, instance=scope["path"]))(scope, receive, send)

    def _known(self, key: str, caller: str) -> Any:
        with self._index.read() as at:
            return at.execute(
                select(idempotency).where(
                    idempotency.c.key == key,
                    idempotency.c.caller == caller,
                    idempotency.c.at > (now() - KEPT_FOR).isoformat(),
                )
            ).first()

    async def _first(
        self, key: str, caller: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        body, answer = _Digested(scope, receive), _Held()
        await self.app(scope, body.receive, answer.take)
        if answer.messages and 200 <= answer.status < 300 and answer.size <= LARGEST_ANSWER:
            await body.drain()
            row = {
                "key": key,
                "caller": caller,
                "request_digest": body.digest(),
                "answer_json": answer.kept(scope["path"]),
                "at": now().isoformat(),
            }
            await anyio.to_thread.run_sync(self._keep, row)
        for message in answer.messages:
            await send(message)

    def _keep(self, row: dict[str, Any]) -> None:
        past = (now() - KEPT_FOR).isoformat()
        with self._index.write() as at:
            at.execute(delete(idempotency).where(idempotency.c.at <= past))
            at.execute(self._index.insert_new(idempotency, row))

    async def _again(self, known: Any, digest: str, send: Send) -> None:
        if known.request_digest != digest:
            raise InputError(
                "another request was sent under this Idempotency-Key",
                remedy="send each request under a key of its own",
            )
        kept = known.answer_json
        if kept["body"] is None:
            raise ConflictError(
                "that was done; its answer held a secret, which nobody is told twice",
                remedy="look into the list; revoke what you do not know, and make another",
            )
        headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in kept["headers"]
        ]
        headers.append((b"idempotency-replayed", b"true"))
        content = kept["body"].encode()
        headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": kept["status"], "headers": headers})
        await send({"type": "http.response.body", "body": content})


@dataclass(kw_only=True)
class _Held:
    """An answer that waits until it is kept: whoever hears of it can ask for it again."""

    messages: list[Message] = field(default_factory=list)
    status: int = 0
    size: int = 0

    async def take(self, message: Message) -> None:
        """The next message of the application."""
        self.messages.append(message)
        self.status = message.get("status", self.status)
        self.size += len(message.get("body", b""))

    def kept(self, path: str) -> dict[str, Any]:
        """What of it is written down."""
        start, *bodies = self.messages
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in start["headers"]]
        body: str | None = b"".join(m.get("body", b"") for m in bodies).decode()
        if path == SECRET:
            body = None
        elif path == FILES and body:
            body = _nameless(body)
        return {
            "status": self.status,
            "headers": [each for each in headers if each[0] in HELD_HEADERS],
            "body": body,
        }


class _Digested:
    """A body on its way in, with the digest of what it says whatever its boundaries are."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        kind, options = parse_options_header(Headers(scope=scope).get("content-type", ""))
        self._boundary = options.get(b"boundary", b"") if kind.startswith(b"multipart/") else b""
        self._receive = receive
        self._digest = hashlib.sha256(b"\0".join((scope["raw_path"], scope["query_string"], kind)))
        self._tail = b""
        self._whole = False

    async def receive(self) -> Message:
        """The next message for the application."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._take(message.get("body", b""))
            self._whole = not message.get("more_body", False)
        else:
            self._whole = True
        return message

    async def drain(self) -> None:
        """Reads what the application did not."""
        while not self._whole:
            await self.receive()

    def _take(self, piece: bytes) -> None:
        if not self._boundary:
            self._digest.update(piece)
            return
        held = (self._tail + piece).replace(self._boundary, b"")
        keep = len(self._boundary) - 1
        cut = max(0, len(held) - keep)
        self._digest.update(held[:cut])
        self._tail = held[cut:]

    def digest(self) -> str:
        """Of all that came."""
        whole = self._digest.copy()
        whole.update(self._tail)
        return whole.hexdigest()


def _nameless(body: str) -> str:
    """How the sender called its files may be a patient's name; only the order is kept."""
    answer = json.loads(body)
    for each in answer["instances"]:
        each["name"] = ""
    return json.dumps(answer, separators=(",", ":"))
