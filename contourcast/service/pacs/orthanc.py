"""Orthanc over its REST API: what is new, what it has, its files, and ours to it.

Orthanc keeps the first of two instances of one UID and answers success for the second, whatever it
holds: so each "already stored" is compared with what was sent, and each file that is pulled with
the digest that Orthanc took of it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_pascal

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.pacs.connection import Connection, Peer, in_parallel
from contourcast.service.pacs.door import Receipt, Same, same_data_set

PAGE: Final = 1000
# UIDs in one query; more would be a statement that its database does not take.
UIDS_AT_ONCE: Final = 100
BAD_FILE: Final = 400

OrthancId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{8}){4}$")]
Uid = Annotated[str, Field(pattern=r"^[0-9][0-9.]{0,63}$")]
T = TypeVar("T")
A = TypeVar("A", bound="_Answer")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One line of Orthanc's diary.

    Attributes:
        seq: Grows; a number is never given twice within one database.
        kind: Such as ``NewInstance``, ``NewSeries``, ``StableSeries``.
        resource: Orthanc's id of what changed.
        at: Orthanc's clock, which we only compare with itself.
    """

    seq: int
    kind: str
    resource: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """One page of the diary.

    Attributes:
        last: The last number of the page; of the whole diary where the page is empty.
        done: Whether nothing follows.
    """

    lines: tuple[Change, ...]
    last: int
    done: bool


@dataclass(frozen=True, kw_only=True)
class HeldInstance:
    """One instance that Orthanc holds."""

    id: str
    sop_instance_uid: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class HeldSeries:
    """One series that Orthanc holds; nothing of the patient."""

    id: str
    series_instance_uid: str
    study_instance_uid: str
    modality: str
    instances: tuple[HeldInstance, ...]
    is_stable: bool

    @property
    def count(self) -> int:
        """How many instances it holds of it at present."""
        return len(self.instances)


@dataclass(frozen=True, kw_only=True)
class PatientSeries:
    """A series of a patient that was asked for; texts are empty where Orthanc knows none.

    Attributes:
        date: DA of the series.
        time: TM of the series.
    """

    series_instance_uid: str
    modality: str
    date: str = ""
    time: str = ""
    manufacturer: str = ""
    description: str = field(default="", repr=False)


# What Orthanc answers, as far as we read it


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_pascal)


class _Change(_Answer):
    seq: int
    change_type: str
    resource: OrthancId = Field(alias="ID")
    date: str


class _Changes(_Answer):
    changes: list[_Change]
    last: int
    done: bool


class _InstanceTags(_Answer):
    sop_instance_uid: Uid = Field(alias="SOPInstanceUID")


class _Instance(_Answer):
    id: OrthancId = Field(alias="ID")
    parent_series: OrthancId
    file_size: int
    main_dicom_tags: _InstanceTags


class _SeriesTags(_Answer):
    series_instance_uid: Uid = Field(alias="SeriesInstanceUID")
    modality: str = ""


class _TagsOfSeries(_SeriesTags):
    series_date: str = ""
    series_time: str = ""
    manufacturer: str = ""
    series_description: str = ""


class _SeriesOfPatient(_Answer):
    main_dicom_tags: _TagsOfSeries


class _Series(_Answer):
    parent_study: OrthancId
    is_stable: bool
    main_dicom_tags: _SeriesTags


class _StudyTags(_Answer):
    study_instance_uid: Uid = Field(alias="StudyInstanceUID")


class _Study(_Answer):
    main_dicom_tags: _StudyTags


class _Stored(_Answer):
    id: OrthancId = Field(default="", alias="ID")
    status: Literal["Success", "AlreadyStored", "FilteredOut"]


class _Refusal(_Answer):
    orthanc_status: int


_IDS: Final = TypeAdapter(list[OrthancId])
_INSTANCES: Final = TypeAdapter(list[_Instance])
_OF_PATIENT: Final = TypeAdapter(list[_SeriesOfPatient])


class Orthanc:
    """A client of one Orthanc; threads may share it.

    Every method raises `PeerError` when Orthanc does something else than it was asked for, and
    `PeerUnreachableError` when it does not answer.
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

    @property
    def name(self) -> str:
        """What the settings call it."""
        return self._connection.peer.name

    # What is new

    def changes(self, *, since: int, limit: int = PAGE) -> Changes:
        """The page of the diary that follows a number."""
        return self._changes({"since": since, "limit": limit})

    def last_change(self) -> Changes:
        """The end of the diary: one line, or none where there is none."""
        return self._changes({"last": ""})

    def _changes(self, params: dict[str, int | str]) -> Changes:
        _, body = self._connection.request("GET", "changes", params=params)
        page = self._parse(TypeAdapter(_Changes), body)
        return Changes(
            lines=tuple(
                Change(seq=one.seq, kind=one.change_type, resource=one.resource, at=one.date)
                for one in page.changes
            ),
            last=page.last,
            done=page.done,
        )

    # What it has

    def find_series(self, *, since: date, modalities: Collection[str] = ("CT",)) -> list[str]:
        """The ids of series that bear a day or a later one, or whose study does.

        A study may be older than today's series in it; what bears no date at all is not found.
        """
        modality = "\\".join(modalities)
        found: dict[str, None] = {}
        for dated in ("StudyDate", "SeriesDate"):
            query = {"Modality": modality, dated: f"{since:%Y%m%d}-"}
            _, body = self._connection.request(
                "POST", "tools/find", json={"Level": "Series", "Query": query}
            )
            found.update((one, None) for one in self._parse(_IDS, body))
        return list(found)

    def series(self, series: str) -> HeldSeries | None:
        """What it holds of a series; None when the series is gone."""
        told = self._find(_Series, f"series/{series}")
        if told is None:
            return None
        study = self._find(_Study, f"studies/{told.parent_study}")
        status, body = self._connection.request(
            "GET", f"series/{series}/instances", expect=(200, 404)
        )
        if study is None or status != 200:
            return None
        return HeldSeries(
            id=series,
            series_instance_uid=told.main_dicom_tags.series_instance_uid,
            study_instance_uid=study.main_dicom_tags.study_instance_uid,
            modality=told.main_dicom_tags.modality,
            instances=tuple(_held(one) for one in self._parse(_INSTANCES, body)),
            is_stable=told.is_stable,
        )

    def series_of_patient(
        self, patient_id: str, modalities: Collection[str]
    ) -> list[PatientSeries]:
        """The series under a patient ID, letter for letter; whose they are, their files say.

        Args:
            patient_id: Without wildcards; goes to Orthanc and nowhere else.
            modalities: Such as ``CT``.
        """
        query = {"PatientID": patient_id, "Modality": "\\".join(modalities)}
        asked = {"Level": "Series", "Query": query, "Expand": True, "CaseSensitive": True}
        _, body = self._connection.request("POST", "tools/find", json=asked)
        tags = [one.main_dicom_tags for one in self._parse(_OF_PATIENT, body)]
        return [
            PatientSeries(
                series_instance_uid=one.series_instance_uid,
                modality=one.modality,
                date=one.series_date,
                time=one.series_time,
                manufacturer=one.manufacturer,
                description=one.series_description,
            )
            for one in tags
        ]

    def instances_of(self, series_instance_uid: str) -> list[HeldInstance]:
        """What it holds of a series, by its UID; empty when it has none of it."""
        query = {"SeriesInstanceUID": series_instance_uid}
        asked = {"Level": "Instance", "Query": query, "Expand": True}
        _, body = self._connection.request("POST", "tools/find", json=asked)
        return [_held(one) for one in self._parse(_INSTANCES, body)]

    def series_of(self, instance: str) -> str | None:
        """The id of the series that an instance is in; None when it is gone."""
        told = self._find(_Instance, f"instances/{instance}")
        return None if told is None else told.parent_series

    def instances(self, sop_instance_uids: Collection[str]) -> dict[str, HeldInstance]:
        """What it holds of some instances, by SOP Instance UID."""
        wanted = sorted(set(sop_instance_uids))
        found: dict[str, HeldInstance] = {}
        for start in range(0, len(wanted), UIDS_AT_ONCE):
            query = {"SOPInstanceUID": "\\".join(wanted[start : start + UIDS_AT_ONCE])}
            asked = {"Level": "Instance", "Query": query, "Expand": True}
            _, body = self._connection.request("POST", "tools/find", json=asked)
            for one in self._parse(_INSTANCES, body):
                found[one.main_dicom_tags.sop_instance_uid] = _held(one)
        return found

    def has(self, sop_instance_uids: Collection[str]) -> frozenset[str]:
        """Which of some SOP Instance UIDs it holds."""
        return frozenset(self.instances(sop_instance_uids)) & frozenset(sop_instance_uids)

    def md5(self, instance: str) -> str:
        """The digest that it took of the file when it came; empty where it takes none."""
        status, body = self._connection.request(
            "GET", f"instances/{instance}/attachments/dicom/md5", expect=(200, 404)
        )
        return body.decode("ascii", errors="replace").strip() if status == 200 else ""

    # Its files

    def fetch(self, instance: str, into: Path) -> Path:
        """Writes one file, byte for byte as Orthanc received it, to a new path.

        Raises:
            PeerError: It is gone, too large, or has another digest than Orthanc took of it.
        """
        digest = hashlib.md5(usedforsecurity=False)
        self._connection.download(f"instances/{instance}/file", into, watch=digest.update)
        if self.md5(instance) not in ("", digest.hexdigest()):
            into.unlink()
            raise self._connection.error(
                "sent a file that differs from what it once received",
                remedy="look at the disk of the archive and send the instance to it again",
            )
        return into

    def fetch_all(self, instances: Sequence[HeldInstance], folder: Path) -> list[Path]:
        """Writes files to a folder, several at a time; in the order given."""
        return in_parallel(lambda one: self.fetch(one.id, folder / f"{one.id}.dcm"), instances)

    # Ours to it

    def send(self, paths: Sequence[Path], *, same: Same = same_data_set) -> list[Receipt]:
        """Stores files; what became of each, in the order given.

        A repetition is harmless: what Orthanc holds already is compared with what was sent.

        Args:
            paths: DICOM files of ours.
            same: Whether another file says what ours says.

        Raises:
            DicomError: A file of ours is no DICOM; nothing was sent.
            PeerError: It failed in the middle; some may have been stored.
        """
        sent = [(read_header(path).sop_instance_uid, path) for path in paths]
        return in_parallel(lambda one: self._send(*one, same), sent)

    def confirm(self, paths: Sequence[Path], *, same: Same = same_data_set) -> list[Receipt]:
        """Whether what was sent is there: ``stored``, ``conflict``, or ``refused`` when absent."""
        sent = [(read_header(path).sop_instance_uid, path) for path in paths]
        held = self.instances([sop_instance_uid for sop_instance_uid, _ in sent])

        def confirmed(one: tuple[str, Path]) -> Receipt:
            uid, path = one
            if uid not in held:
                return Receipt(sop_instance_uid=uid, outcome="refused", reason="it is not there")
            return self._compared(uid, held[uid].id, path, same, "stored")

        return in_parallel(confirmed, sent)

    def _send(self, uid: str, path: Path, same: Same) -> Receipt:
        with path.open("rb") as file:
            status, body = self._connection.request(
                "POST",
                "instances",
                content=file,
                headers={
                    "Content-Type": "application/dicom",
                    "Content-Length": str(path.stat().st_size),
                },
                expect=(200, BAD_FILE),
            )
        if status == BAD_FILE:
            code = self._parse(TypeAdapter(_Refusal), body).orthanc_status
            reason = f"Orthanc status {code}"
            return Receipt(sop_instance_uid=uid, outcome="refused", reason=reason)
        stored = self._parse(TypeAdapter(_Stored), body)
        if stored.status == "Success":
            return Receipt(sop_instance_uid=uid, outcome="stored")
        if stored.status != "AlreadyStored":
            return Receipt(sop_instance_uid=uid, outcome="refused", reason=stored.status)
        return self._compared(uid, stored.id, path, same, "already")

    def _compared(
        self, uid: str, instance: str, path: Path, same: Same, well: Literal["stored", "already"]
    ) -> Receipt:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if self.md5(instance) == digest or self._says_the_same(instance, path, same):
            return Receipt(sop_instance_uid=uid, outcome=well)
        return Receipt(
            sop_instance_uid=uid,
            outcome="conflict",
            reason="it holds something else under this UID",
        )

    def _says_the_same(self, instance: str, path: Path, same: Same) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            return same(path, self.fetch(instance, Path(folder) / "held.dcm"))

    # Reading answers

    def _find(self, kind: type[A], path: str) -> A | None:
        status, body = self._connection.request("GET", path, expect=(200, 404))
        return self._parse(TypeAdapter(kind), body) if status == 200 else None

    def _parse(self, kind: TypeAdapter[T], body: bytes) -> T:
        try:
            return kind.validate_json(body)
        except ValidationError:
            raise self._connection.error(
                "answered what no Orthanc answers",
                remedy="look whether its URL in the settings is that of an Orthanc",
            ) from None  # the original quotes the answer


def _held(one: _Instance) -> HeldInstance:
    return HeldInstance(
        id=one.id,
        sop_instance_uid=one.main_dicom_tags.sop_instance_uid,
        size_bytes=one.file_size,
    )
