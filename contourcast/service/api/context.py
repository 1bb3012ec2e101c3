"""What every route needs, and how it reaches a disk without holding up the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import anyio.to_thread
from fastapi import Response

from contourcast.service.access.oidc import Issuer
from contourcast.service.intake.fractions import Fractions
from contourcast.service.problems import BusyError, document_for
from contourcast.service.records import Records
from contourcast.service.review.decisions import Reviews
from contourcast.service.review.pages import Pages
from contourcast.service.settings import ServiceSettings
from contourcast.service.traces import Trail

# Of everything that speaks of a patient; voxels under their digest alone may be kept.
PRIVATE: Final = {"Cache-Control": "private, no-store"}

Result = TypeVar("Result")
Responses = dict[int | str, dict[str, Any]]


class Uploads:
    """How many are under way, by whichever route."""

    def __init__(self, at_once: int) -> None:
        self._at_once, self._now = at_once, 0

    @contextmanager
    def one(self) -> Iterator[int]:
        """Counts one for a block; gives how many there are.

        Raises:
            BusyError: There are as many as may be.
        """
        if self._now >= self._at_once:
            raise BusyError("as many uploads as may be are under way", remedy="send again later")
        self._now += 1
        try:
            yield self._now
        finally:
            self._now -= 1


@dataclass(frozen=True, kw_only=True)
class Context:
    """One application's settings and records.

    Attributes:
        served_network: Name and digest of the network that is served.
        reviews: What people decide.
        pages: What they see of it.
        fractions: What belongs to what, and what people answer to that.
        issuer: Who vouches for people, where there is one.
        uploads: Those under way.
        trail: Where what is done for a propagation is told.
    """

    settings: ServiceSettings
    records: Records
    served_network: Callable[[], tuple[str, str]]
    reviews: Reviews
    pages: Pages
    fractions: Fractions
    issuer: Issuer | None
    uploads: Uploads
    trail: Trail


async def in_thread(function: Callable[..., Result], *args: object) -> Result:
    """Runs what touches a disk or a database beside the event loop."""
    return await anyio.to_thread.run_sync(function, *args)


def also(status: int, answer: dict[str, Any]) -> Responses:
    """One more answer for the OpenAPI document."""
    return {status: answer}


def a_file(*media_types: str) -> dict[str, Any]:
    """How the OpenAPI document describes a route that gives a file."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {
        "response_class": Response,
        "responses": also(200, {"content": content, "description": "The file; ETag is its digest."})
        | document_for(404, 409),
    }
