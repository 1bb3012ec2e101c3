"""Conditional requests (RFC 9110 §13): what a client has is not sent again, what changed is safe.

Every JSON answer to a GET has a strong entity tag, the SHA-256 of its bytes; a compressed one is
another representation, so its tag is another one.
"""

from __future__ import annotations

import gzip
import hashlib
from typing import Annotated, Final

from fastapi import Header
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contourcast.service.problems import ChangedError

COMPRESSED: Final = "-gzip"  # ends the tag of a compressed answer
SMALLEST: Final = 1024  # bytes that compression gains something on
JSON: Final = ("application/json", "application/dicom+json", "application/problem+json")
PRIVATE: Final = "private, no-store"

SEEN: Final = Header(description="The ETag of what was looked at.")
IfMatch = Annotated[str | None, SEEN]
"""Of a request that changes something: what was not looked at is changed all the same."""
MustMatch = Annotated[str, SEEN]
"""Of one that may change nothing but what was looked at."""


def etag(answer: BaseModel) -> str:
    """A strong entity tag (RFC 9110 §8.8.3) of an answer."""
    return f'"{hashlib.sha256(answer.model_dump_json().encode()).hexdigest()}"'


def digest_in_tag(tag: str) -> str:
    """What stands in a strong entity tag, be it of a compressed answer."""
    return tag.strip().strip('"').removesuffix(COMPRESSED)


def require_unchanged(if_match: str | None, answer: BaseModel) -> None:
    """What is to be changed is still what the caller looked at; without If-Match, it is not asked.

    Raises:
        ChangedError: It is another by now.
    """
    if if_match is not None and not _matches(if_match, etag(answer)):
        raise ChangedError("it changed since it was looked at", remedy="look again, then decide")


class Conditional:
    """Tags answers, spares those that the client has, compresses what text it sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await self.app(_uncompressed(scope), receive, send)
            return
        answer = _Answer(Headers(scope=scope), send)
        # the server leaves the body of an answer to HEAD away
        await self.app(dict(scope, method="GET"), receive, answer.take)


class _Answer:
    """One answer on its way out; JSON is held until it is whole, everything else passes."""

    def __init__(self, request: Headers, send: Send) -> None:
        self._send = send
        self._known = request.get("if-none-match", "").replace(f'{COMPRESSED}"', '"')
        self._gzip = takes_gzip(request.get("accept-encoding", ""))
        self._start: Message = {}
        self._body = bytearray()
        self._held = self._done = False

    async def take(self, message: Message) -> None:
        """The next message of the application."""
        if self._done:
            return
        if message["type"] == "http.response.start":
            self._start = message
            headers = MutableHeaders(raw=message["headers"])
            kind = headers.get("content-type", "").partition(";")[0]
            if kind in JSON:
                headers.setdefault("cache-control", PRIVATE)
            tag = headers.get("etag")
            bare = (tag or "").replace(f'{COMPRESSED}"', '"')
            if message["status"] == 200 and tag and _matches(self._known, bare):
                await self._spare(headers)
                return
            # a file goes out as it lies there: its tag is its digest, and parts of it may be asked
            a_file = "accept-ranges" in headers
            self._held = kind in JSON and message["status"] == 200 and not a_file
            if not self._held:
                await self._send(message)
            return
        if not self._held:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body"):
            await self._finish()

    async def _finish(self) -> None:
        headers = MutableHeaders(raw=self._start["headers"])
        body = bytes(self._body)
        headers.setdefault("etag", f'"{hashlib.sha256(body).hexdigest()}"')
        tag = headers["etag"]
        if _matches(self._known, tag):
            await self._spare(headers)
            return
        headers.add_vary_header("Accept-Encoding")
        if self._gzip and len(body) >= SMALLEST and "content-encoding" not in headers:
            body = gzip.compress(body, 5, mtime=0)
            headers["content-encoding"] = "gzip"
            headers["content-length"] = str(len(body))
            headers["etag"] = f'{tag[:-1]}{COMPRESSED}"'
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})

    async def _spare(self, headers: MutableHeaders) -> None:
        kept = ("etag", "cache-control", "vary", "link", "content-location")
        raw = [(k, v) for k, v in headers.raw if k.decode("latin-1") in kept]
        self._done = True
        await self._send({"type": "http.response.start", "status": 304, "headers": raw})
        await self._send({"type": "http.response.body", "body": b""})


def _uncompressed(scope: Scope) -> Scope:
    """A tag that a client had from a compressed answer names the same state (If-Match)."""
    headers = [
        (k, v.replace(f'{COMPRESSED}"'.encode(), b'"') if k == b"if-match" else v)
        for k, v in scope["headers"]
    ]
    return dict(scope, headers=headers)


def _matches(said: str, tag: str) -> bool:
    """Whether a list of entity tags has that one; weak ones compare as well (§13.1.2)."""
    if said.strip() == "*":
        return True
    return tag in {each.strip().removeprefix("W/") for each in said.split(",")}


def takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding takes it."""
    for each in accepted.lower().split(","):
        coding, _, parameters = each.partition(";")
        if coding.strip() in ("gzip", "*"):
            quality = parameters.replace(" ", "").removeprefix("q=")
            return quality.rstrip("0.") != "" if quality else True
    return False
