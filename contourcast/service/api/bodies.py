"""How a body is received: within limits, in bounded memory, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from contourcast.imaging.errors import InputError
from contourcast.service.api.context import in_thread
from contourcast.service.archive import Archive, Sent
from contourcast.service.ingest import MIB, Answer, take_files, take_zip
from contourcast.service.problems import SlowUploadError, TooLargeError, UnsupportedMediaError
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import writing


async def take_body(
    request: Request, archive: Archive, settings: ServiceSettings, *, in_memory: int, sent: Sent
) -> list[Answer]:
    """Receives a body of any kind that we take, and takes its files in.

    Args:
        request: The body is multipart, a zip, or one DICOM file.
        archive: Where they go.
        settings: The limits.
        in_memory: Files of at most a slice's size that may wait in memory.
        sent: How it came.

    Raises:
        UnsupportedMediaError: It is of another kind.
        InputError: It cannot be read.
        TooLargeError: It is larger than the limits.
        SlowUploadError: It stopped coming.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = limited(request, settings)
    if kind == "multipart/form-data":
        return await _take_form(request, body, archive, settings, in_memory, sent)
    if kind in ("application/zip", "application/dicom"):
        path = archive.incoming()
        try:
            await save(body, path)
            if kind == "application/zip":
                return await in_thread(_zip, path, archive, settings, sent)
            with path.open("rb") as file:
                return await in_thread(_files, [("", file)], archive, settings, sent)
        finally:
            path.unlink(missing_ok=True)
    raise UnsupportedMediaError(
        "a body of that type is not taken",
        remedy="send application/dicom, multipart/form-data, multipart/related or application/zip",
    )


async def _take_form(
    request: Request,
    body: AsyncGenerator[bytes, None],
    archive: Archive,
    settings: ServiceSettings,
    in_memory: int,
    sent: Sent,
) -> list[Answer]:
    parser = _Parts(
        request.headers, body, max_files=settings.files_limit, max_fields=settings.files_limit
    )
    parser.in_memory = in_memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InputError(
            f"the multipart body cannot be read: {error.message.rstrip('.').lower()}",
            remedy=f"send at most {settings.files_limit} files, each as a form file",
        ) from error
    try:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise InputError("the multipart body holds no file", remedy="send form files")
        named = ((f.filename or "", f.file) for f in files)
        return await in_thread(_files, named, archive, settings, sent)
    finally:
        await form.close()


def _files(files: object, archive: Archive, settings: ServiceSettings, sent: Sent) -> list[Answer]:
    return take_files(files, archive, settings, sent=sent)  # type: ignore[arg-type]


def _zip(path: Path, archive: Archive, settings: ServiceSettings, sent: Sent) -> list[Answer]:
    return take_zip(path, archive, settings, sent=sent)


async def save(body: AsyncIterator[bytes], path: Path) -> None:
    """Writes a body to disk, beside the event loop, in pieces that are worth the way there."""
    waiting = bytearray()
    with writing(), path.open("xb") as file:
        async for piece in body:
            waiting += piece
            if len(waiting) >= MIB:
                await in_thread(file.write, bytes(waiting))
                waiting.clear()
        await in_thread(file.write, bytes(waiting))


class _Parts(MultiPartParser):
    """Form files: so many wait in memory, if none is larger than a slice; the others on disk."""

    in_memory = 0

    def on_part_begin(self) -> None:
        """Decides where the next file waits."""
        super().on_part_begin()
        self.in_memory -= 1
        self.spool_max_size = MIB if self.in_memory >= 0 else 1


async def limited(request: Request, settings: ServiceSettings) -> AsyncGenerator[bytes, None]:
    """The body in pieces, as long as it comes and is not too large.

    Raises:
        TooLargeError: More came, or was announced, than one request may have.
        SlowUploadError: Nothing came for too long, or the sender went away.
    """
    limit = settings.request_limit_mib * MIB
    error = TooLargeError(
        f"a request has more than {settings.request_limit_mib} MiB",
        remedy="send the files in several requests",
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise error
    received, pieces = 0, request.stream()
    while True:
        try:
            async with asyncio.timeout(settings.upload_idle_s):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise SlowUploadError(
                f"nothing came for {settings.upload_idle_s:g} s", remedy="send it again"
            ) from None
        except ClientDisconnect:
            raise SlowUploadError("the sender went away", remedy="send it again") from None
        received += len(piece)
        if received > limit:
            raise error
        yield piece
