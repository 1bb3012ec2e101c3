"""A client of DICOMweb (PS3.18): QIDO-RS to find, WADO-RS to fetch, STOW-RS to store.

Of an answer only UIDs, counts and reasons are read; the URLs in it are never followed.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from xml.etree import ElementTree

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.errors import ContourcastError, DicomError
from contourcast.service.pacs.connection import (
    MIB,
    PIECE,
    Connection,
    Peer,
    in_parallel,
    new_file,
)
from contourcast.service.pacs.door import Outcome, Receipt, Same, same_data_set

SOP_CLASS: Final = "00080016"
SOP_INSTANCE: Final = "00080018"
MODALITY: Final = "00080060"
PATIENT_ID: Final = "00100020"
STUDY: Final = "0020000D"
SERIES: Final = "0020000E"
SERIES_COUNT: Final = "00201209"  # Number of Series Related Instances
ISSUER: Final = "00100021"
STUDY_DATE: Final = "00080020"
STUDY_TIME: Final = "00080030"
SERIES_DATE: Final = "00080021"
SERIES_TIME: Final = "00080031"
MANUFACTURER: Final = "00080070"
MODEL: Final = "00081090"
DESCRIPTION: Final = "0008103E"
# What a question for a patient's series asks beside UIDs: enough to choose among them.
OF_A_PATIENT: Final = (
    *(PATIENT_ID, ISSUER, STUDY_DATE, STUDY_TIME, SERIES_DATE, SERIES_TIME),
    *(MANUFACTURER, MODEL, DESCRIPTION),
)
REFERENCED_UID: Final = "00081155"
WARNING_REASON: Final = "00081196"
FAILURE_REASON: Final = "00081197"
FAILED: Final = "00081198"
REFERENCED: Final = "00081199"

# PS3.18 table I.2-2, PS3.7 C: what a store may fail of.
REASONS: Final = {
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0213: "resource limitation",
    0xA700: "out of resources",
    0xA900: "data set does not match SOP class",
    0xC000: "cannot understand",
    0xC122: "transfer syntax not supported",
    0xC409: "data set is of another study",
}
DUPLICATE: Final = 0x0111
JSON: Final = "application/dicom+json"
UID_FORM: Final = re.compile(r"[0-9][0-9.]{0,63}")
WILDCARDS: Final = frozenset("*?\\")
PAGE: Final = 500
PAGES_AT_MOST: Final = 200
# Of one question: more than a department's archive has series of one week, and their bytes.
MATCHES_AT_MOST: Final = 20_000
ANSWER_BYTES: Final = 64 * MIB
TEXT_CHARACTERS: Final = 1024  # more than any text has that we ask for (PS3.5 table 6.2-1)

DataSet = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """A series that an archive has; nothing of the patient but who issued the ID.

    Attributes:
        count: Number of Series Related Instances; None where the archive does not say.
        issuer: Of the patient ID; this and what follows is empty where the archive does not say,
            or was not asked for a patient's series.
        date: DA of the series, else of its study.
        time: TM that goes with it.
    """

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    count: int | None
    issuer: str = field(default="", repr=False)
    date: str = ""
    time: str = ""
    manufacturer: str = ""
    model: str = ""
    description: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class FoundInstance:
    """An instance that an archive has."""

    sop_instance_uid: str
    sop_class_uid: str


class DicomWeb:
    """A client of one DICOMweb archive that the settings name; threads may share it.

    Every method raises `PeerError` when the archive does something else than it was asked for,
    `PeerUnreachableError` when it does not answer, and `DicomError` when it is asked for what is no
    UID.
    """

    def __init__(self, peer: Peer) -> None:
        self._connection = Connection(peer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its sockets."""
        self._connection.close()

    # QIDO-RS

    def series(
        self,
        *,
        study_instance_uid: str = "",
        series_instance_uid: str = "",
        patient_id: str = "",
        modality: str = "",
        since: date | None = None,
    ) -> list[FoundSeries]:
        """The series that match all that is given.

        Args:
            study_instance_uid: All series of one study.
            series_instance_uid: One series.
            patient_id: Exact; an archive that answers without it, or with others, finds nothing.
            modality: Such as ``CT``.
            since: The first Study Date.

        Raises:
            DicomError: What is given would match more than itself.
        """
        query: list[tuple[str, str]] = [("includefield", SERIES_COUNT)]
        if series_instance_uid:
            query.append((SERIES, _uid(series_instance_uid)))
        if patient_id:
            query.append((PATIENT_ID, _literal(patient_id)))
            query += [("includefield", tag) for tag in OF_A_PATIENT]
        elif study_instance_uid:
            query += [("includefield", tag) for tag in (SERIES_DATE, SERIES_TIME)]
        if modality:
            query.append((MODALITY, _literal(modality)))
        if since is not None:
            query.append(("StudyDate", f"{since:%Y%m%d}-"))
        path = f"studies/{_uid(study_instance_uid)}/series" if study_instance_uid else "series"

        def read(uid: str, one: DataSet) -> FoundSeries | None:
            if patient_id and not _is_of(one, patient_id):
                return None
            return FoundSeries(
                series_instance_uid=uid,
                study_instance_uid=self._uid_in(one, STUDY) or study_instance_uid,
                modality=_text(one, MODALITY),
                count=_count(_first(one, SERIES_COUNT)),
                issuer=_text(one, ISSUER),
                date=_text(one, SERIES_DATE) or _text(one, STUDY_DATE),
                time=_text(one, SERIES_TIME if _text(one, SERIES_DATE) else STUDY_TIME),
                manufacturer=_text(one, MANUFACTURER),
                model=_text(one, MODEL),
                description=_text(one, DESCRIPTION),
            )

        return [one for one in self._query(path, query, SERIES, read) if one is not None]

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> list[FoundInstance]:
        """The instances of one series."""
        path = f"studies/{_uid(study_instance_uid)}/series/{_uid(series_instance_uid)}/instances"

        def read(uid: str, one: DataSet) -> FoundInstance:
            return FoundInstance(sop_instance_uid=uid, sop_class_uid=self._uid_in(one, SOP_CLASS))

        return self._query(path, [], SOP_INSTANCE, read)

    def _query(
        self,
        path: str,
        query: Sequence[tuple[str, str]],
        key: str,
        read: Callable[[str, DataSet], T],
    ) -> list[T]:
        """All pages of an answer: an archive may cut its answers, or ignore the cuts.

        Of each data set nothing is kept but what is read of it, for what else an archive says may
        be as long as it likes.
        """
        found: dict[str, T] = {}
        came = 0
        for _ in range(PAGES_AT_MOST):
            status, body = self._connection.request(
                "GET",
                path,
                params=[*query, ("limit", str(PAGE)), ("offset", str(len(found)))],
                headers={"Accept": JSON},
                expect=(200, 204),
            )
            came += len(body)
            if came > ANSWER_BYTES:
                break
            page = self._data_sets(body) if status == 200 else []
            fresh = {self._uid_in(one, key): one for one in page}
            if "" in fresh:
                raise self._connection.error("answered a query without UIDs")
            if fresh.keys() <= found.keys():
                return list(found.values())
            found |= {uid: read(uid, one) for uid, one in fresh.items()}
            if len(found) > MATCHES_AT_MOST:
                break
        raise self._connection.error(
            "answers a query without end", remedy="ask for less: one patient, fewer days"
        )

    # WADO-RS

    def fetch(self, study: str, series: str, instance: str, into: Path) -> Path:
        """Writes one instance, in the transfer syntax in which it is held, to a new path.

        Args:
            study: Its Study Instance UID.
            series: Its Series Instance UID.
            instance: Its SOP Instance UID.
            into: A file that is not there yet; nothing is left of one that failed.

        Raises:
            PeerError: It is gone, too large, cut short, or another instance.
        """
        path = f"studies/{_uid(study)}/series/{_uid(series)}/instances/{_uid(instance)}"
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._connection.stream("GET", path, headers={"Accept": accept}) as answer:
            kind, options = parse_options_header(answer.headers.get("Content-Type", ""))
            pieces = self._connection.pieces(answer)
            with new_file(into) as write:
                if kind == b"application/dicom":  # some archives answer with the file itself
                    for piece in pieces:
                        write(piece)
                elif not write_part(pieces, options.get(b"boundary", b""), write):
                    raise self._connection.error("sent no whole instance", uid=instance)
        self._require(instance, into)
        return into

    def fetch_all(
        self, study: str, series: str, instances: Collection[str], folder: Path
    ) -> list[Path]:
        """Writes instances of one series to a folder, several at a time; in the order given."""
        return in_parallel(
            lambda uid: self.fetch(study, series, uid, folder / f"{_uid(uid)}.dcm"), instances
        )

    def _require(self, instance: str, path: Path) -> None:
        try:
            sent = read_header(path).sop_instance_uid
        except ContourcastError:
            sent = ""
        if sent != instance:
            path.unlink()
            raise self._connection.error(
                "sent something else than the instance that was asked for", uid=instance
            )

    # STOW-RS

    def store(
        self, paths: Sequence[Path], *, study: str = "", same: Same = same_data_set
    ) -> list[Receipt]:
        """Stores files in one request; what became of each, in the order given.

        Args:
            paths: DICOM files of ours.
            study: The Study Instance UID that all must be of; empty: any.
            same: Whether another file says what ours says.

        Raises:
            DicomError: A file of ours is no DICOM; nothing was sent.
        """
        headers = [read_header(path) for path in paths]
        boundary = uuid.uuid4().hex
        body = _Body(paths, boundary)
        _, answer = self._connection.request(
            "POST",
            f"studies/{_uid(study)}" if study else "studies",
            content=iter(body),
            headers={
                "Accept": JSON,
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Content-Length": str(body.size_bytes),
            },
            # Orthanc 1.10.1 answers 400 where one of many failed, with the same data set.
            expect=(200, 202, 400, 409),
        )
        told = self._data_sets(answer)
        if len(told) != 1:
            raise self._connection.error("did not say what became of what was stored")
        stored, failed = self._told(told[0], REFERENCED), self._told(told[0], FAILED)
        receipts = [_receipt(header.sop_instance_uid, stored, failed) for header in headers]
        return [
            self._judged(receipt, path, same) if receipt.outcome == "already" else receipt
            for receipt, path in zip(receipts, paths, strict=True)
        ]

    def _judged(self, duplicate: Receipt, path: Path, same: Same) -> Receipt:
        """Whether what the archive has already is what it was sent."""
        held = self.confirm([path], same=same)[0]
        return duplicate if held.outcome == "stored" else replace(held, outcome="conflict")

    def confirm(self, paths: Sequence[Path], *, same: Same = same_data_set) -> list[Receipt]:
        """Fetches what was sent and compares: ``stored``, ``conflict``, or ``refused`` when absent.

        An archive may answer success and keep another instance that it had under the UID.
        """
        with tempfile.TemporaryDirectory() as folder:
            return in_parallel(
                lambda one: self._confirmed(one[1], Path(folder) / f"{one[0]}.dcm", same),
                list(enumerate(paths)),
            )

    def _confirmed(self, path: Path, into: Path, same: Same) -> Receipt:
        header = read_header(path)
        uid, series = header.sop_instance_uid, header.series_instance_uid
        there = {one.sop_instance_uid for one in self.instances(header.study_instance_uid, series)}
        if uid not in there:
            return Receipt(sop_instance_uid=uid, outcome="refused", reason="it is not there")
        if same(path, self.fetch(header.study_instance_uid, series, uid, into)):
            return Receipt(sop_instance_uid=uid, outcome="stored")
        return Receipt(
            sop_instance_uid=uid,
            outcome="conflict",
            reason="it holds something else under this UID",
        )

    # Reading answers

    def _told(self, answer: DataSet, sequence: str) -> dict[str, DataSet]:
        items = _values(answer, sequence)
        return {self._uid_in(one, REFERENCED_UID): one for one in items if isinstance(one, dict)}

    def _uid_in(self, data_set: DataSet, tag: str) -> str:
        """A UID; empty where there is none."""
        value = _first(data_set, tag)
        if value is None:
            return ""
        if not isinstance(value, str) or not UID_FORM.fullmatch(value.strip("\0 ")):
            raise self._connection.error("answered with a UID that is none")
        return value.strip("\0 ")

    def _data_sets(self, body: bytes) -> list[DataSet]:
        """The data sets of an answer in the JSON model (PS3.18 F) or the XML one (PS3.19 A.1)."""
        try:
            if body.lstrip()[:1] == b"<":
                target = ElementTree.XMLParser(target=_NoDoctype())
                return [_from_xml(ElementTree.fromstring(body, target))]
            told = json.loads(body)
        except (ValueError, ElementTree.ParseError, RecursionError):
            raise self._connection.error("answered neither JSON nor XML") from None
        sets = told if isinstance(told, list) else [told]
        if not all(isinstance(one, dict) for one in sets):
            raise self._connection.error("answered JSON that is no data set")
        return sets


class _Body:
    """Files as a multipart/related body of a length that is known before it is sent."""

    def __init__(self, paths: Sequence[Path], boundary: str) -> None:
        self._paths = paths
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._end = f"--{boundary}--\r\n".encode()

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        each = len(self._head) + len(b"\r\n")
        return sum(path.stat().st_size + each for path in self._paths) + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        for path in self._paths:
            yield self._head
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
            yield b"\r\n"
        yield self._end


class _NoDoctype(ElementTree.TreeBuilder):
    """A document type may define entities that unfold to gigabytes; DICOM has none."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("a document type")


def write_part(pieces: Iterable[bytes], boundary: bytes, write: Callable[[bytes], object]) -> bool:
    """Writes the first part of a multipart body; whether it was the only one, and whole."""
    parts, ended = 0, False

    def begin() -> None:
        nonlocal parts
        parts += 1

    def data(piece: bytes, start: int, end: int) -> None:
        if parts == 1:
            write(piece[start:end])

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary, {"on_part_begin": begin, "on_part_data": data, "on_end": end}
        )
        for piece in pieces:
            parser.write(piece)
    except FormParserError:
        return False
    return ended and parts == 1


def _receipt(uid: str, stored: Mapping[str, DataSet], failed: Mapping[str, DataSet]) -> Receipt:
    """What the answer says of one instance; what it does not mention was not stored."""
    if uid in failed:
        reason = _count(_first(failed[uid], FAILURE_REASON))
        outcome: Outcome = "already" if reason == DUPLICATE else "refused"
        return Receipt(sop_instance_uid=uid, outcome=outcome, reason=_words(reason))
    if uid in stored:
        warning = _count(_first(stored[uid], WARNING_REASON))
        return Receipt(
            sop_instance_uid=uid,
            outcome="stored",
            reason="" if warning is None else f"warning {_words(warning)}",
        )
    return Receipt(sop_instance_uid=uid, outcome="refused", reason="not mentioned in the answer")


def _words(reason: int | None) -> str:
    if reason is None:
        return "without a reason"
    # The lower digits of these two say what was wrong, in words of the archive's own.
    known = REASONS.get(reason) or REASONS.get(reason & 0xFF00) or REASONS.get(reason & 0xF000)
    return f"0x{reason:04X}" + (f" {known}" if known else "")


def _from_xml(dataset: ElementTree.Element) -> DataSet:
    """The Native DICOM Model as the JSON model, as far as we read it."""
    return {
        attribute.get("tag", "").upper(): {
            "vr": attribute.get("vr", ""),
            "Value": [
                _from_xml(value) if _name(value) == "Item" else (value.text or "").strip()
                for value in attribute
                if _name(value) in ("Item", "Value")
            ],
        }
        for attribute in dataset
        if _name(attribute) == "DicomAttribute"
    }


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _values(data_set: DataSet, tag: str) -> list[object]:
    element = data_set.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _first(data_set: DataSet, tag: str) -> object:
    return next(iter(_values(data_set, tag)), None)


def _text(data_set: DataSet, tag: str) -> str:
    value = _first(data_set, tag)
    return value.strip("\0 ")[:TEXT_CHARACTERS] if isinstance(value, str) else ""


def _is_of(data_set: DataSet, patient_id: str) -> bool:
    told = _first(data_set, PATIENT_ID)
    return isinstance(told, str) and told.strip() == patient_id.strip()


def _count(value: object) -> int | None:
    """A whole number, which JSON may give as a number or as words."""
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _uid(value: str) -> str:
    """A UID for an address, where anything else could lead elsewhere."""
    if not UID_FORM.fullmatch(value):
        raise DicomError(
            "what an archive was to be asked for is no UID",
            remedy="look at the object that names it",
        )
    return value


def _literal(value: str) -> str:
    """A value to match exactly."""
    if not value.strip() or WILDCARDS & set(value):
        raise DicomError(
            "what an archive was to be asked for would match other values, too",
            remedy="ask by UID",
        )
    return value
