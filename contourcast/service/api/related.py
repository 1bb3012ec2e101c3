"""``multipart/related`` (RFC 2387), part by part straight to disk, as STOW-RS sends it (PS3.18)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.errors import ContourcastError, DicomError, InputError
from contourcast.service.api.bodies import limited
from contourcast.service.api.context import in_thread
from contourcast.service.archive import Archive, Sent
from contourcast.service.ingest import MIB, Answer, take_files
from contourcast.service.problems import TooLargeError, UnsupportedMediaError, problem_of
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import writing

RELATED: Final = "multipart/related"
DICOM: Final = "application/dicom"
MOST_HEADERS: Final = 16
LONGEST_HEADER: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part, on our disk; one of another kind than DICOM was not kept."""

    kind: str
    path: Path | None


async def take_related(
    request: Request,
    archive: Archive,
    settings: ServiceSettings,
    *,
    sent: Sent,
    study_uid: str | None = None,
) -> list[Answer]:
    """Receives the parts and takes them in.

    Args:
        request: Its body is ``multipart/related; type="application/dicom"``.
        archive: Where they go.
        settings: The limits.
        sent: How it came.
        study_uid: The one that all must be of; None: any.

    Raises:
        UnsupportedMediaError: The parts are of another kind.
        InputError: The body cannot be read.
        TooLargeError: It is larger than the limits.
        SlowUploadError: It stopped coming.
    """
    archive.require_space()
    collected = _Collected(archive=archive, limit=settings.files_limit)
    try:
        parser = _parser(request, collected)
        waiting = bytearray()
        async for piece in limited(request, settings):
            waiting += piece
            if len(waiting) >= MIB:
                await in_thread(_feed, parser, bytes(waiting))
                waiting.clear()
        await in_thread(_feed, parser, bytes(waiting))
        if not collected.ended:
            raise InputError(
                "the multipart body ends before its last boundary", remedy="send it again"
            )
        return await in_thread(lambda: _take(collected.parts, archive, settings, sent, study_uid))
    finally:
        collected.close()


def _parser(request: Request, collected: _Collected) -> MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    of = options.get(b"type", DICOM.encode()).decode("latin-1").lower()
    if kind != RELATED.encode() or of != DICOM:
        raise UnsupportedMediaError(
            "only DICOM files are taken", remedy=f'send {RELATED}; type="{DICOM}"; boundary=…'
        )
    boundary = options.get(b"boundary", b"")
    try:
        if not boundary:
            raise FormParserError("no boundary")
        return MultipartParser(
            boundary,
            {
                "on_part_begin": collected.begin,
                "on_header_field": collected.header_field,
                "on_header_value": collected.header_value,
                "on_header_end": collected.header_end,
                "on_headers_finished": collected.headers_finished,
                "on_part_data": collected.data,
                "on_part_end": collected.end,
                "on_end": collected.finish,
            },
            max_header_count=MOST_HEADERS,
            max_header_size=LONGEST_HEADER,
        )
    except FormParserError as error:
        raise InputError(
            "the multipart body has no boundary that can be used",
            remedy="name it in Content-Type: boundary=…, of at most 70 characters",
        ) from error


def _feed(parser: MultipartParser, piece: bytes) -> None:
    try:
        with writing():
            parser.write(piece)
    except FormParserError as error:
        raise InputError(
            "the multipart body cannot be read", remedy="send it as RFC 2387 says"
        ) from error


@dataclass(kw_only=True)
class _Collected:
    """The parts as they come; what was begun is deleted whatever happens."""

    archive: Archive
    limit: int
    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    _name: bytes = b""
    _value: bytes = b""
    _kind: str = ""
    _file: IO[bytes] | None = None

    def begin(self) -> None:
        if len(self.parts) >= self.limit:
            raise TooLargeError(
                f"a request has more than {self.limit} files",
                remedy="send the files in several requests",
            )
        self._kind = DICOM

    def header_field(self, piece: bytes, start: int, end: int) -> None:
        self._name += piece[start:end]

    def header_value(self, piece: bytes, start: int, end: int) -> None:
        self._value += piece[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-type":
            self._kind = self._value.decode("latin-1").partition(";")[0].strip().lower()
        self._name = self._value = b""

    def headers_finished(self) -> None:
        path = self.archive.incoming() if self._kind == DICOM else None
        self.parts.append(Part(kind=self._kind, path=path))
        if path is not None:
            self._file = path.open("xb")

    def data(self, piece: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(piece)[start:end])

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Deletes what is still there."""
        with contextlib.suppress(OSError):  # what could not be written out is not wanted
            self.end()
        for part in self.parts:
            if part.path is not None:
                part.path.unlink(missing_ok=True)


def _take(
    parts: list[Part],
    archive: Archive,
    settings: ServiceSettings,
    sent: Sent,
    study_uid: str | None,
) -> list[Answer]:
    """Takes in what may be; answers in the order of the parts."""
    refused = {number: _refusal(part, study_uid) for number, part in enumerate(parts)}
    paths = [part.path for n, part in enumerate(parts) if refused[n] is None]
    taken = iter(
        take_files(
            (("", path.open("rb")) for path in paths if path is not None),
            archive,
            settings,
            sent=sent,
        )
    )
    return [answer if answer is not None else next(taken) for answer in refused.values()]


def _refusal(part: Part, study_uid: str | None) -> Answer | None:
    """Why a part is not even looked at, if so."""
    if part.path is None:
        error: ContourcastError = UnsupportedMediaError(
            "a part is not of type application/dicom", remedy="send DICOM files alone"
        )
        return Answer(name="", outcome="refused", problem=problem_of(error))
    if study_uid is None:
        return None
    try:
        header = read_header(part.path, file="")
    except ContourcastError:
        return None  # said in full when it is taken
    if header.study_instance_uid == study_uid:
        return None
    error = DicomError(
        "the instance is of another study than it was sent to",
        tag="(0020,000D) Study Instance UID",
        uid=header.sop_instance_uid,
        remedy="send it to its own study, or to /dicom-web/studies",
    )
    return Answer(
        name="",
        outcome="refused",
        sop_instance_uid=header.sop_instance_uid,
        series_instance_uid=header.series_instance_uid,
        problem=problem_of(error),
    )
