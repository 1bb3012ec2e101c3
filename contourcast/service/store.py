"""What the service keeps: every instance byte for byte, an index of them, and what is derived.

One folder::

    index.sqlite3     what there is: instances, arrivals, propagations, their events
    jobs.sqlite3      the job engine's own tables
    instances/        <digest of the series UID>/<SHA-256 of the file>.dcm
    quarantine/       files that came under a UID whose first file says something else
    derived/          <SHA-256>.npz: results of steps; may be thrown away, is made again
    results/          <propagation>/: RS.dcm, REG.dcm, report.json, report.html, overlay.png
    incoming/         files on their way in; emptied at every start

A file is written under another name, flushed, renamed, its folder flushed, and only then does a
row of the index speak of it; so a row never points to half a file, whatever is switched off when.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from contourcast.imaging.dicom.instance import Header
from contourcast.imaging.files import write_atomically
from contourcast.service.problems import (
    BusyError,
    DiskFullError,
    NotFoundError,
    SettingsError,
)

Outcome = Literal["stored", "already", "conflict", "refused"]

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS instance (
    sop_uid TEXT PRIMARY KEY,
    sop_class_uid TEXT NOT NULL,
    modality TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    frame_of_reference TEXT NOT NULL,
    file_digest TEXT NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS instance_by_series ON instance (series_uid);
CREATE TABLE IF NOT EXISTS arrival (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sop_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    file_digest TEXT NOT NULL,
    outcome TEXT NOT NULL,
    at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS arrival_by_series ON arrival (series_uid);
CREATE TABLE IF NOT EXISTS propagation (
    id TEXT PRIMARY KEY,
    order_json TEXT NOT NULL,
    made_at TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    figures_json TEXT NOT NULL,
    problem_json TEXT NOT NULL,
    files_json TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS propagation_unfinished ON propagation (made_at, id)
    WHERE state NOT IN ('done', 'failed');
CREATE TABLE IF NOT EXISTS event (
    propagation TEXT NOT NULL,
    number INTEGER NOT NULL,
    at TEXT NOT NULL,
    state TEXT NOT NULL,
    sentence TEXT NOT NULL,
    done REAL NOT NULL,
    PRIMARY KEY (propagation, number)
);
CREATE TABLE IF NOT EXISTS worker (slot TEXT PRIMARY KEY, seen_at TEXT NOT NULL);
"""

State = Literal[
    "received", "registering", "carrying", "drawing", "comparing", "writing", "done", "failed"
]
ENDED: Final[frozenset[str]] = frozenset({"done", "failed"})


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file that is in the store."""

    sop_uid: str
    sop_class_uid: str
    modality: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    file_digest: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A file on its way in: read, judged, not yet in the store."""

    path: Path
    file_digest: str
    size_bytes: int
    header: Header
    modality: str


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


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of a job, as told to those who wait for it."""

    number: int
    at: str
    state: State
    sentence: str
    done: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A propagation, as the store knows it.

    Attributes:
        order: All that the result depends on, and nothing else (see `orders.Order`).
        made_at: When it was first asked for; the time that its DICOM objects bear.
        attempt: 1, and one more each time that a failed one was asked for again.
        files: Name to SHA-256 of each result, once it is done.
    """

    id: str
    order: dict[str, Any]
    made_at: datetime
    attempt: int
    state: State
    figures: dict[str, Any]
    problem: dict[str, Any]
    files: dict[str, str]

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED


class Store:
    """The folder and its index. Any number of threads and processes may read; see `Store.admit`."""

    def __init__(self, folder: Path, *, disk_reserve_bytes: int = 0) -> None:
        self.folder = folder
        self.disk_reserve_bytes = disk_reserve_bytes
        self._admitting = threading.Lock()
        for name in ("instances", "quarantine", "derived", "results", "incoming"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with self._index() as index:
            index.execute("PRAGMA journal_mode=WAL")
            index.executescript(SCHEMA)

    @contextmanager
    def _index(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each use: safe across threads; one transaction if writing.

        Raises:
            BusyError: The index cannot be reached, or was held by others for too long.
            DiskFullError: It cannot grow.
        """
        try:
            with self._connected(write=write) as connection:
                yield connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFullError(
                    "the disk filled up while this was written",
                    remedy="free space on the disk of the data folder, then send again",
                ) from error
            raise BusyError(
                "the index cannot be reached",
                remedy="send again later; if it stays so, look at the disk of the data folder",
            ) from error

    @contextmanager
    def _connected(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(
            self.folder / "index.sqlite3", timeout=30, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA synchronous=FULL")
            if write:
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            if write:
                connection.execute("COMMIT")
        finally:
            connection.close()  # rolls back what was not committed

    # Coming in

    def require_space(self) -> None:
        """Refuses to take anything in when the disk is below its reserve.

        Raises:
            DiskFullError: It is.
        """
        if shutil.disk_usage(self.folder).free < self.disk_reserve_bytes:
            raise DiskFullError(
                "free space is below the reserve",
                remedy="free space on the disk of the data folder, then send again",
            )

    def incoming(self) -> Path:
        """A name for a file on its way in."""
        return self.folder / "incoming" / f"{uuid.uuid4().hex}.part"

    def discard_incoming(self) -> int:
        """Deletes what a server that was killed left on its way in; how many."""
        left = list((self.folder / "incoming").iterdir())
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def admit(
        self, staged: Sequence[Staged], compare: Callable[[Path, Path], bool]
    ) -> list[Outcome]:
        """Takes files in, all in one transaction; of one process at a time.

        Args:
            staged: Flushed to the disk already.
            compare: Whether two files, the kept one and the new one, say the same.

        Returns:
            For each: stored; already (same bytes, or other bytes that say the same); conflict
            (the first stays, this one is in quarantine).
        """
        with self._admitting:
            first = self._known({file.header.sop_instance_uid for file in staged})
            outcomes: list[Outcome] = []
            for file in staged:
                kept = first.get(file.header.sop_instance_uid)
                if kept is None:
                    kept = self._kept_as(file)
                    outcomes.append("stored")
                elif kept.file_digest == file.file_digest or (
                    kept.series_uid == file.header.series_instance_uid
                    and compare(kept.path, file.path)
                ):
                    outcomes.append("already")
                else:
                    outcomes.append("conflict")
                first.setdefault(kept.sop_uid, kept)
            self._place(staged, outcomes)
            self._record(staged, outcomes, first)
            return outcomes

    def _place(self, staged: Sequence[Staged], outcomes: Sequence[Outcome]) -> None:
        """Moves files to where they stay, flushing each folder once."""
        folders = set()
        for file, outcome in zip(staged, outcomes, strict=True):
            if outcome == "already":
                continue
            if outcome == "stored":
                to = self._instance_path(file.header.series_instance_uid, file.file_digest)
            else:
                to = self.folder / "quarantine" / f"{file.file_digest}.dcm"
            if not to.parent.exists():
                to.parent.mkdir(parents=True)
                folders.add(to.parent.parent)
            file.path.replace(to)
            folders.add(to.parent)
        for folder in folders:
            flush_folder(folder)

    def _record(
        self, staged: Sequence[Staged], outcomes: Sequence[Outcome], first: dict[str, Kept]
    ) -> None:
        at = now().isoformat()
        with self._index(write=True) as index:
            for file, outcome in zip(staged, outcomes, strict=True):
                kept = first[file.header.sop_instance_uid]
                if outcome == "stored":
                    index.execute(
                        "INSERT INTO instance VALUES (?,?,?,?,?,?,?,?)",
                        (
                            kept.sop_uid,
                            kept.sop_class_uid,
                            kept.modality,
                            kept.series_uid,
                            kept.study_uid,
                            kept.frame_of_reference,
                            kept.file_digest,
                            kept.size_bytes,
                        ),
                    )
                index.execute(
                    "INSERT INTO arrival (sop_uid, series_uid, file_digest, outcome, at)"
                    " VALUES (?,?,?,?,?)",
                    (kept.sop_uid, kept.series_uid, file.file_digest, outcome, at),
                )

    def _kept_as(self, file: Staged) -> Kept:
        """What a file that is still on its way in will be once it is kept (but for its path)."""
        head = file.header
        return Kept(
            sop_uid=head.sop_instance_uid,
            sop_class_uid=head.sop_class_uid,
            modality=file.modality,
            series_uid=head.series_instance_uid,
            study_uid=head.study_instance_uid,
            frame_of_reference=head.frame_of_reference,
            file_digest=file.file_digest,
            path=file.path,
            size_bytes=file.size_bytes,
        )

    # What there is

    def instance(self, sop_uid: str) -> Kept | None:
        """The file of that SOP Instance UID; None when there is none."""
        return self._known({sop_uid}).get(sop_uid)

    def _known(self, sop_uids: set[str]) -> dict[str, Kept]:
        with self._index() as index:
            found = [
                index.execute("SELECT * FROM instance WHERE sop_uid = ?", (uid,)).fetchone()
                for uid in sorted(sop_uids)
            ]
        return {row["sop_uid"]: self._kept(row) for row in found if row is not None}

    def instances_of(self, series_uid: str) -> list[Kept]:
        """The files of a series, in the order of their UIDs."""
        with self._index() as index:
            rows = index.execute(
                "SELECT * FROM instance WHERE series_uid = ? ORDER BY sop_uid", (series_uid,)
            ).fetchall()
        return [self._kept(row) for row in rows]

    def of_modality(self, modality: str) -> list[Kept]:
        """Every file of a modality, such as ``RTSTRUCT``, in the order of their UIDs."""
        with self._index() as index:
            rows = index.execute(
                "SELECT * FROM instance WHERE modality = ? ORDER BY sop_uid", (modality,)
            ).fetchall()
        return [self._kept(row) for row in rows]

    def series(self) -> list[Series]:
        """All series, in the order of their UIDs."""
        with self._index() as index:
            rows = index.execute(
                "SELECT series_uid, study_uid, modality, COUNT(*) AS instances,"
                " SUM(bytes) AS size_bytes, GROUP_CONCAT(DISTINCT frame_of_reference) AS frames"
                " FROM instance GROUP BY series_uid ORDER BY series_uid"
            ).fetchall()
            arrivals = {
                row["series_uid"]: row
                for row in index.execute(
                    "SELECT series_uid, MAX(at) AS last, SUM(outcome = 'conflict') AS conflicts"
                    " FROM arrival GROUP BY series_uid"
                ).fetchall()
            }
        return [
            Series(
                series_uid=row["series_uid"],
                study_uid=row["study_uid"],
                modality=row["modality"],
                frames_of_reference=tuple(sorted(f for f in row["frames"].split(",") if f)),
                instances=row["instances"],
                size_bytes=row["size_bytes"],
                conflicts=arrivals[row["series_uid"]]["conflicts"],
                last_arrival_at=arrivals[row["series_uid"]]["last"],
            )
            for row in rows
        ]

    def file_of(self, series_uid: str, file_digest: str) -> Path:
        """Where the file of that digest lies."""
        return self._instance_path(series_uid, file_digest)

    # Results of steps

    def put(self, content: bytes) -> str:
        """Keeps the result of a step; the digest it is found by."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / "derived" / f"{digest}.npz"
        if not path.exists():
            write_atomically(path, content)
            flush_folder(path.parent)
        return digest

    def get(self, digest: str) -> bytes:
        """The result of a step.

        Raises:
            NotFoundError: It is gone, or its bytes are not what they were.
        """
        path = self.folder / "derived" / f"{digest}.npz"
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise NotFoundError(
                "an intermediate result is gone or damaged",
                remedy="send the request again: it is made anew",
            )
        return content

    def result_folder(self, propagation: str) -> Path:
        """Where the files of a propagation lie once it is done."""
        return self.folder / "results" / propagation

    # Propagations

    def open_job(self, propagation: str, order: dict[str, Any]) -> tuple[Job, bool]:
        """The job of that order, made if there is none, made again if it failed; is it new work?"""
        with self._index(write=True) as index:
            row = index.execute("SELECT * FROM propagation WHERE id = ?", (propagation,)).fetchone()
            if row is None:
                index.execute(
                    "INSERT INTO propagation VALUES (?,?,?,1,'received','{}','{}','{}')",
                    (
                        propagation,
                        json.dumps(order, sort_keys=True),
                        now().replace(microsecond=0).isoformat(),
                    ),
                )
            elif row["state"] == "failed":
                index.execute(
                    "UPDATE propagation SET attempt = attempt + 1, state = 'received',"
                    " figures_json = '{}', problem_json = '{}' WHERE id = ?",
                    (propagation,),
                )
            new = row is None or row["state"] == "failed"
            if new:
                self._tell(index, propagation, "received", "waiting for a worker", 0.0)
        return self.job(propagation), new

    def job(self, propagation: str) -> Job:
        """What is known of a propagation.

        Raises:
            NotFoundError: There is none of that id.
        """
        with self._index() as index:
            row = index.execute("SELECT * FROM propagation WHERE id = ?", (propagation,)).fetchone()
        if row is None:
            raise NotFoundError("no propagation has that id", remedy="post one to /v1/propagations")
        return _job(row)

    def unfinished(self) -> list[Job]:
        """Propagations that have not ended, the oldest first."""
        with self._index() as index:
            rows = index.execute(
                "SELECT * FROM propagation WHERE state NOT IN ('done', 'failed')"
                " ORDER BY made_at, id"
            ).fetchall()
        return [_job(row) for row in rows]

    def tell(
        self,
        propagation: str,
        state: State,
        sentence: str,
        done: float,
        *,
        figures: dict[str, Any] | None = None,
    ) -> None:
        """Writes down how far a job is, for those who wait for it."""
        with self._index(write=True) as index:
            index.execute(
                "UPDATE propagation SET state = ? WHERE id = ? AND state NOT IN ('done', 'failed')",
                (state, propagation),
            )
            if figures is not None:
                index.execute(
                    "UPDATE propagation SET figures_json = ? WHERE id = ?",
                    (json.dumps(figures, sort_keys=True), propagation),
                )
            self._tell(index, propagation, state, sentence, done)

    def end_job(
        self,
        propagation: str,
        *,
        files: dict[str, str] | None = None,
        problem: dict[str, Any] | None = None,
    ) -> None:
        """Done, with files, or failed, with a problem; a job ends once."""
        with self._index(write=True) as index:
            changed = index.execute(
                "UPDATE propagation SET state = ?, files_json = ?, problem_json = ?"
                " WHERE id = ? AND state NOT IN ('done', 'failed')",
                (
                    "failed" if problem else "done",
                    json.dumps(files or {}, sort_keys=True),
                    json.dumps(problem or {}, sort_keys=True),
                    propagation,
                ),
            ).rowcount
            if changed:
                state: State = "failed" if problem else "done"
                self._tell(index, propagation, state, problem["detail"] if problem else "done", 1.0)

    def events(self, propagation: str, *, after: int = 0) -> list[Event]:
        """What was told of a job since event number ``after``."""
        with self._index() as index:
            rows = index.execute(
                "SELECT * FROM event WHERE propagation = ? AND number > ? ORDER BY number",
                (propagation, after),
            ).fetchall()
        return [
            Event(
                number=row["number"],
                at=row["at"],
                state=row["state"],
                sentence=row["sentence"],
                done=row["done"],
            )
            for row in rows
        ]

    @staticmethod
    def _tell(
        index: sqlite3.Connection, propagation: str, state: State, sentence: str, done: float
    ) -> None:
        index.execute(
            "INSERT INTO event SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ?, ?"
            " FROM event WHERE propagation = ?",
            (propagation, now().isoformat(), state, sentence, done, propagation),
        )

    # Workers

    def seen(self, slot: str) -> None:
        """A worker says that it lives."""
        with self._index(write=True) as index:
            index.execute("INSERT OR REPLACE INTO worker VALUES (?, ?)", (slot, now().isoformat()))

    def worker_seen_s_ago(self) -> float | None:
        """Seconds since any worker said so; None when none ever did."""
        with self._index() as index:
            row = index.execute("SELECT MAX(seen_at) AS last FROM worker").fetchone()
        if row["last"] is None:
            return None
        return (now() - datetime.fromisoformat(row["last"])).total_seconds()

    def _kept(self, row: sqlite3.Row) -> Kept:
        return Kept(
            sop_uid=row["sop_uid"],
            sop_class_uid=row["sop_class_uid"],
            modality=row["modality"],
            series_uid=row["series_uid"],
            study_uid=row["study_uid"],
            frame_of_reference=row["frame_of_reference"],
            file_digest=row["file_digest"],
            path=self._instance_path(row["series_uid"], row["file_digest"]),
            size_bytes=row["bytes"],
        )

    def _instance_path(self, series_uid: str, file_digest: str) -> Path:
        series = hashlib.sha256(series_uid.encode()).hexdigest()[:32]
        return self.folder / "instances" / series / f"{file_digest}.dcm"


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def flush_folder(folder: Path) -> None:
    """Makes sure that renames in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing() -> Iterator[None]:
    """A disk that fills up in the middle of a write is told as what it is.

    Raises:
        DiskFullError: It did.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            "the disk filled up while this was written",
            remedy="free space on the disk of the data folder, then send again",
        ) from error


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock that the system releases when the process dies, however it dies.

    Raises:
        SettingsError: Another process holds it, and we do not wait.
    """
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise SettingsError(
                "another service runs on the same data folder",
                remedy="stop it, or name another folder: CONTOURCAST_DATA_FOLDER",
            ) from error
        yield


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        order=json.loads(row["order_json"]),
        made_at=datetime.fromisoformat(row["made_at"]),
        attempt=row["attempt"],
        state=row["state"],
        figures=json.loads(row["figures_json"]),
        problem=json.loads(row["problem_json"]),
        files=json.loads(row["files_json"]),
    )
