"""No body without a limit: whatever is not an upload is small, and comes without long pauses."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES: Final = 2**20
# Loops of an edit: some hundred kilobytes for a large target.
MOST_DRAFT_BYTES: Final = 16 * 2**20
UPLOADS: Final = ("/v1/instances", "/dicom-web/studies")  # which have limits of their own


class SmallBodies:
    """Refuses bodies of more than a MiB wherever no files are sent.

    Args:
        app: The application.
        idle_s: Seconds without a byte after which a body is given up.
    """

    def __init__(self, app: ASGIApp, *, idle_s: float) -> None:
        self.app, self._idle_s = app, idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application over a body that is counted."""
        if scope["type"] != "http" or scope["path"].startswith(UPLOADS):
            await self.app(scope, receive, send)
            return
        received, whole = 0, False
        most = MOST_DRAFT_BYTES if scope["path"].endswith("/draft") else MOST_BYTES

        async def counted() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(self._idle_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > most:
                raise HTTPException(413)
            return message

        await self.app(scope, counted, send)
