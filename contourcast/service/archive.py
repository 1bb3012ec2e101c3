"""What came in: every instance byte for byte in the store, and what the index says of it.

A file is in the store, whole and flushed, before a row of the index speaks of it; so a row never
points to half a file, whatever is switched off when. The first content of a SOP Instance UID
stays; another one under the same UID is set aside and told.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select, update

from contourcast.imaging.dicom.instance import Header
from contourcast.imaging.source import Patient
from contourcast.service.index.database import Index
from contourcast.service.index.tables import arrival, instance, series
from contourcast.service.intake.conflicts import dispute
from contourcast.service.intake.rematching import turn_of
from contourcast.service.problems import ConflictError
from contourcast.service.store.blobs import Dated, fetch_all
from contourcast.service.store.disk import require_space

Outcome = Literal["stored", "already", "conflict", "refused"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An instance that is here."""

    sop_uid: str
    sop_class_uid: str
    modality: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    file_digest: str
    size_bytes: int
    plane: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A file on its way in: read, judged, not yet in the store."""

    path: Path
    file_digest: str
    size_bytes: int
    header: Header
    modality: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How something came.

    Attributes:
        door: By which way in; ``ours`` is what a person signed here.
        ae_title: Of the DICOM node that sent it, the id of the cohort that it belongs to; empty by
            the other doors.
    """

    door: Literal["rest", "stow", "dimse", "pull", "cohort", "ours"]
    ae_title: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What is kept of a series; nothing of the patient."""

    series_uid: str
    study_uid: str
    modality: str
    frames_of_reference: tuple[str, ...]
    instances: int
    size_bytes: int
    conflicts: int
    last_arrival_at: str
    state: str
    reason: str
    revision: str | None


class Archive:
    """Instances: bytes in a store, rows in an index. Any number of processes may use it at once.

    Args:
        index: Says what there is.
        blobs: Holds the files.
        incoming: A folder on this machine for files on their way in.
        disk_reserve_bytes: Free space below which nothing more is taken in.
    """

    def __init__(
        self, index: Index, blobs: Dated, *, incoming: Path, disk_reserve_bytes: int = 0
    ) -> None:
        self.index = index
        self.blobs = blobs
        self._incoming = incoming
        self._reserve_bytes = disk_reserve_bytes
        incoming.mkdir(parents=True, exist_ok=True)

    # Coming in

    @property
    def disks(self) -> tuple[Path, ...]:
        """Folders on the disks that may fill up: of what is coming in, and of the store."""
        return (self._incoming, *([self.blobs.disk] if self.blobs.disk is not None else []))

    def require_space(self) -> None:
        """Refuses to take anything in when a disk is below its reserve.

        Raises:
            DiskFullError: One is.
            StoreError: One cannot be reached.
        """
        for folder in self.disks:
            require_space(folder, self._reserve_bytes)

    def incoming(self) -> Path:
        """A name for a file on its way in."""
        return self._incoming / f"{uuid.uuid4().hex}.part"

    def discard_incoming(self) -> int:
        """Deletes what a process that was killed left on its way in; how many."""
        left = list(self._incoming.iterdir())
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return len(left)

    def admit(
        self, staged: Sequence[Staged], compare: Callable[[Path, Path], bool], *, sent: Sent
    ) -> list[Outcome]:
        """Takes files in, all in one transaction.

        Args:
            staged: On our disk.
            compare: Whether two files, the kept one and the new one, say the same.
            sent: How they came.

        Returns:
            For each: stored; already (same bytes, or other bytes that say the same); conflict
            (the first stays, this one is set aside: other content under its UID, or another
            patient's in a series that is here).
        """
        if not staged:
            return []
        known = self.known({file.header.sop_instance_uid for file in staged})
        owners = self._owners({file.header.series_instance_uid for file in staged})
        while True:
            outcomes = self._judge(staged, known, owners, compare)
            self.blobs.put(
                {
                    _key(file, outcome): self._where(file)
                    for file, outcome in zip(staged, outcomes, strict=True)
                    if outcome != "already" or self._is_lost(file, known)
                }
            )
            overtaken = self._record(staged, outcomes, known, sent)
            if not overtaken:
                return outcomes
            known |= self.known(overtaken)  # another process was first with these: judge again

    def bring(self, file: Staged) -> None:
        """Puts the bytes of a file where `admit_within` may speak of them."""
        self.blobs.put({_key(file, "stored"): file.path})

    def admit_within(self, at: Connection, file: Staged, *, sent: Sent) -> None:
        """Takes a new file in, in a transaction of the caller's; its bytes are there (`bring`).

        Raises:
            ConflictError: Its SOP Instance UID is here already.
        """
        if not self._insert(at, file):
            raise ConflictError(
                "a file of this SOP Instance UID is here already", uid=file.header.sop_instance_uid
            )
        self._note(at, [(file, "stored", file.header.series_instance_uid)], sent)

    def _judge(
        self,
        staged: Sequence[Staged],
        known: dict[str, Kept],
        owners: dict[str, str],
        compare: Callable[[Path, Path], bool],
    ) -> list[Outcome]:
        first: dict[str, Staged] = {}
        owners = dict(owners)
        outcomes: list[Outcome] = []
        for file in staged:
            uid = file.header.sop_instance_uid
            here, earlier = known.get(uid), first.setdefault(uid, file)
            if here is None and earlier is file:
                whose = patient_key(file.header.patient)
                owner = owners.setdefault(file.header.series_instance_uid, whose)
                outcomes.append("conflict" if whose and owner and whose != owner else "stored")
            elif here is None:
                same = _same(
                    earlier.file_digest, earlier.header.series_instance_uid, file
                ) or compare(self._where(earlier), self._where(file))
                outcomes.append("already" if same else "conflict")
            else:
                same = here.file_digest == file.file_digest or (
                    here.series_uid == file.header.series_instance_uid
                    and compare(self.path(here), self._where(file))
                )
                outcomes.append("already" if same else "conflict")
        return outcomes

    def _owners(self, series_uids: Collection[str]) -> dict[str, str]:
        """Whose the series are that are here."""
        with self.index.read() as at:
            return {
                row.uid: row.patient_key
                for batch in _batches(sorted(series_uids))
                for row in at.execute(
                    select(series.c.uid, series.c.patient_key).where(series.c.uid.in_(batch))
                )
            }

    def _is_lost(self, file: Staged, known: dict[str, Kept]) -> bool:
        """Whether the store lost the very bytes that come again: damaged ones are set aside."""
        kept = known.get(file.header.sop_instance_uid)
        return (
            kept is not None
            and kept.file_digest == file.file_digest
            and not self.blobs.has(instance_key(kept.series_uid, kept.file_digest))
        )

    def _where(self, file: Staged) -> Path:
        """Where the bytes lie: still on their way in, or, when judged anew, in the store."""
        if file.path.exists():
            return file.path
        for outcome in ("stored", "conflict"):
            if self.blobs.has(key := _key(file, outcome)):
                return self.blobs.get(key)
        raise FileNotFoundError(file.path.name)

    def _record(
        self,
        staged: Sequence[Staged],
        outcomes: Sequence[Outcome],
        known: dict[str, Kept],
        sent: Sent,
    ) -> set[str]:
        """Writes the rows; instead, and nothing of them, the UIDs that somebody else took first."""
        belongs = {f.header.sop_instance_uid: f.header.series_instance_uid for f in staged[::-1]}
        belongs |= {uid: kept.series_uid for uid, kept in known.items()}
        try:
            with self.index.write() as index:
                overtaken = {
                    file.header.sop_instance_uid
                    for file, outcome in zip(staged, outcomes, strict=True)
                    if outcome == "stored" and not self._insert(index, file)
                }
                if overtaken:
                    raise _OvertakenError(overtaken)
                series_uids = [belongs[file.header.sop_instance_uid] for file in staged]
                self._note(index, list(zip(staged, outcomes, series_uids, strict=True)), sent)
        except _OvertakenError as race:
            return race.sop_uids
        return set()

    def _note(
        self, index: Connection, judged: Sequence[tuple[Staged, Outcome, str]], sent: Sent
    ) -> None:
        """What came, how it was judged, and the series that it belongs to."""
        disputed = {f.header.sop_instance_uid: uid for f, o, uid in judged if o == "conflict"}
        if disputed:  # in one order, so that no two wait for each other
            for key in sorted(_patients(index, set(disputed.values()))):
                self.index.in_turn(index, turn_of(key))
        at = self.index.now(index).isoformat()
        index.execute(
            arrival.insert(),
            [
                {
                    "sop_uid": file.header.sop_instance_uid,
                    "series_uid": series_uid,
                    "file_digest": file.file_digest,
                    "outcome": outcome,
                    "door": sent.door,
                    "sender": sent.ae_title,
                    "at": at,
                }
                for file, outcome, series_uid in judged
            ],
        )
        if disputed:
            dispute(index, series_uids=set(disputed.values()), sop_uids=set(disputed))
        self._note_series(index, [f for f, o, _ in judged if o == "stored"], sent, at)

    def _insert(self, index: Connection, file: Staged) -> bool:
        head = file.header
        row = {
            "sop_uid": head.sop_instance_uid,
            "sop_class_uid": head.sop_class_uid,
            "modality": file.modality,
            "series_uid": head.series_instance_uid,
            "study_uid": head.study_instance_uid,
            "frame_of_reference": head.frame_of_reference,
            "file_digest": file.file_digest,
            "bytes": file.size_bytes,
            "plane_json": _plane(head),
        }
        return index.execute(self.index.insert_new(instance, row)).rowcount == 1

    def _note_series(self, index: Connection, new: Sequence[Staged], sent: Sent, at: str) -> None:
        for uid, file in {f.header.series_instance_uid: f for f in new}.items():
            head = file.header
            key = patient_key(head.patient)
            index.execute(
                self.index.insert_new(
                    series,
                    {
                        "uid": uid,
                        "study_uid": head.study_instance_uid,
                        "modality": file.modality,
                        "patient_key": key,
                        "facts_json": facts_of(head),
                        "door": sent.door,
                        "sender": sent.ae_title,
                        "counted_json": [],
                        "last_arrival_at": at,
                        "state": _fresh(file.modality),
                        "reason": "",
                    },
                )
            )
            index.execute(
                update(series)
                .where(series.c.uid == uid)
                .values(last_arrival_at=at, state=_fresh(file.modality), released_at=None)
            )

    # What there is

    def instance(self, sop_uid: str) -> Kept | None:
        """The instance of that SOP Instance UID; None when there is none."""
        return self.known({sop_uid}).get(sop_uid)

    def known(self, sop_uids: Collection[str]) -> dict[str, Kept]:
        """Those of these SOP Instance UIDs that are here."""
        with self.index.read() as index:
            return {
                row.sop_uid: _kept(row)
                for batch in _batches(sorted(sop_uids))
                for row in index.execute(select(instance).where(instance.c.sop_uid.in_(batch)))
            }

    def instances_of(self, series_uid: str) -> list[Kept]:
        """The instances of a series, in the order of their UIDs."""
        return self._select(instance.c.series_uid == series_uid)

    def of_patient(self, patient_key: str, modality: str) -> list[Kept]:
        """Those of a patient that are of a modality, in the order of their UIDs."""
        its = select(series.c.uid).where(
            series.c.patient_key == patient_key, series.c.modality == modality
        )
        return self._select(instance.c.series_uid.in_(its))

    def _select(self, condition: Any) -> list[Kept]:
        query = select(instance).where(condition).order_by(instance.c.sop_uid)
        with self.index.read() as index:
            return [_kept(row) for row in index.execute(query)]

    def series(self, *, after: str = "", limit: int | None = None) -> list[Series]:
        """Series in the order of their UIDs.

        Args:
            after: Only those whose UID comes after this one.
            limit: At most so many.
        """
        chosen = select(series).where(series.c.uid > after).order_by(series.c.uid).limit(limit)
        with self.index.read() as index:
            rows = index.execute(chosen).all()
            uids = [row.uid for row in rows]
            counts = _counts(index, uids)
            conflicts = _conflicts(index, uids)
        return [
            Series(
                series_uid=row.uid,
                study_uid=row.study_uid,
                modality=row.modality,
                frames_of_reference=tuple(sorted(f for f in counts[row.uid][2] if f)),
                instances=counts[row.uid][0],
                size_bytes=counts[row.uid][1],
                conflicts=conflicts.get(row.uid, 0),
                last_arrival_at=row.last_arrival_at,
                state=row.state,
                reason=row.reason,
                revision=row.revision,
            )
            for row in rows
        ]

    def patient_of(self, series_uid: str) -> str:
        """The key of a series' patient; empty when its files name none."""
        row = self._row_of(series_uid)
        return "" if row is None else str(row.patient_key)

    def acquired_at(self, series_uid: str) -> str:
        """When a series was taken, as its files say: ISO 8601, no zone; empty if they do not."""
        row = self._row_of(series_uid)
        return "" if row is None else taken_at(row.facts_json)

    def _row_of(self, series_uid: str) -> Row[Any] | None:
        with self.index.read() as index:
            return index.execute(select(series).where(series.c.uid == series_uid)).first()

    def set_aside(self, sop_uid: str, series_uid: str) -> list[str]:
        """File digests of other contents that came under a UID, in the order of coming."""
        query = (
            select(arrival.c.file_digest)
            .where(
                arrival.c.series_uid == series_uid,
                arrival.c.sop_uid == sop_uid,
                arrival.c.outcome == "conflict",
            )
            .order_by(arrival.c.number)
        )
        with self.index.read() as at:
            return list(dict.fromkeys(at.execute(query).scalars()))

    def file_set_aside(self, file_digest: str) -> Path:
        """A file on this machine with one of these contents."""
        return self.blobs.get(f"quarantine/{file_digest}.dcm")

    def first_arrival(self, series_uid: str) -> datetime | None:
        """When the first file of a series came; None: none did."""
        with self.index.read() as at:
            first = at.execute(
                select(func.min(arrival.c.at)).where(arrival.c.series_uid == series_uid)
            ).scalar()
        return datetime.fromisoformat(first) if first else None

    def path(self, kept: Kept) -> Path:
        """A file on this machine with the bytes of an instance."""
        return self.file_of(kept.series_uid, kept.file_digest)

    def files_of(self, series_uid: str, file_digests: Sequence[str]) -> list[Path]:
        """`file_of` of many, several at a time where they lie on another machine."""
        return fetch_all(self.blobs, [instance_key(series_uid, each) for each in file_digests])

    def file_of(self, series_uid: str, file_digest: str) -> Path:
        """A file on this machine with the bytes of that digest."""
        return self.blobs.get(instance_key(series_uid, file_digest))


class _OvertakenError(Exception):
    """Rows that another process wrote first."""

    def __init__(self, sop_uids: set[str]) -> None:
        self.sop_uids = sop_uids
        super().__init__("overtaken")


def patient_key(who: Patient) -> str:
    """A patient ID as a key that says nothing to a reader; empty when the file names none.

    Two patients of different issuers may share one: what belongs to whom, matching decides.
    """
    patient_id = who.patient_id.strip(" \0")
    return hashlib.sha256(patient_id.encode()).hexdigest()[:32] if patient_id else ""


def facts_of(head: Header) -> dict[str, Any]:
    """What a series' header says that matching asks for."""
    return {
        "patient": _identity(head.patient),
        "study_date": head.study.date,
        "study_time": head.study.time,
        "series_date": head.series_date,
        "series_time": head.series_time,
        "series_number": head.series_number,
        "series_description": head.series_description,
        "image_type": list(head.image_type),
        "manufacturer": head.manufacturer,
        "model": head.model,
        "patient_position": head.patient_position,
        "frame_of_reference": head.frame_of_reference,
    }


def taken_at(facts: Mapping[str, Any]) -> str:
    """When a series was taken, by `facts_of` it: ISO 8601, no zone; empty if it does not say."""
    whose = "series" if facts.get("series_date") else "study"
    day, time = facts.get(f"{whose}_date", ""), facts.get(f"{whose}_time", "")
    with contextlib.suppress(ValueError):
        return datetime.strptime(f"{day}{time[:6]:0<6}", "%Y%m%d%H%M%S").isoformat()
    return ""


def instance_key(series_uid: str, file_digest: str) -> str:
    """Where an instance lies in the store."""
    folder = hashlib.sha256(series_uid.encode()).hexdigest()[:32]
    return f"instances/{folder}/{file_digest}.dcm"


def _fresh(modality: str) -> str:
    """The state of a series of which something came: of images there may be more to come."""
    return "arriving" if modality == "CT" else "whole"


def _key(file: Staged, outcome: str) -> str:
    if outcome == "conflict":
        return f"quarantine/{file.file_digest}.dcm"
    return instance_key(file.header.series_instance_uid, file.file_digest)


def _same(digest: str, series_uid: str, file: Staged) -> bool:
    return (digest, series_uid) == (file.file_digest, file.header.series_instance_uid)


def _identity(who: Patient) -> dict[str, str]:
    return {
        "patient_id": who.patient_id,
        "issuer": who.issuer,
        "name": who.name,
        "birth_date": who.birth_date,
    }


def _plane(head: Header) -> dict[str, Any]:
    plane = head.plane
    if plane.position_xyz_mm is None or plane.orientation is None:
        return {}
    return {
        "position_xyz_mm": list(plane.position_xyz_mm),
        "orientation": list(plane.orientation),
    }


def _kept(row: Row[Any]) -> Kept:
    return Kept(
        sop_uid=row.sop_uid,
        sop_class_uid=row.sop_class_uid,
        modality=row.modality,
        series_uid=row.series_uid,
        study_uid=row.study_uid,
        frame_of_reference=row.frame_of_reference,
        file_digest=row.file_digest,
        size_bytes=row.bytes,
        plane=row.plane_json,
    )


def _counts(index: Connection, uids: Sequence[str]) -> dict[str, tuple[int, int, set[str]]]:
    """Of each series: instances, bytes, frames of reference."""
    query = (
        select(
            instance.c.series_uid,
            instance.c.frame_of_reference,
            func.count().label("instances"),
            func.sum(instance.c.bytes).label("bytes"),
        )
        .where(instance.c.series_uid.in_(uids))
        .group_by(instance.c.series_uid, instance.c.frame_of_reference)
    )
    found: dict[str, tuple[int, int, set[str]]] = {uid: (0, 0, set()) for uid in uids}
    for row in index.execute(query):
        number, size, frames = found[row.series_uid]
        found[row.series_uid] = (
            number + row.instances,
            size + int(row.bytes),
            frames | {row.frame_of_reference},
        )
    return found


def _patients(index: Connection, uids: Collection[str]) -> set[str]:
    """The keys of those whose series these are."""
    return set(index.execute(select(series.c.patient_key).where(series.c.uid.in_(uids))).scalars())


def _conflicts(index: Connection, uids: Sequence[str]) -> dict[str, int]:
    query = (
        select(arrival.c.series_uid, func.count().label("conflicts"))
        .where(arrival.c.series_uid.in_(uids), arrival.c.outcome == "conflict")
        .group_by(arrival.c.series_uid)
    )
    return {row.series_uid: row.conflicts for row in index.execute(query)}


def _batches(items: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
