"""A propagation that is done, destinations for its results, and a clock that a test turns.

with outgoing(tmp_path, [destination]) as house:
    house.finish()
    house.run_due()
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.registration_out import write_registration
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.transform import RigidTransform
from contourcast.service.archive import Sent
from contourcast.service.ingest import take_files
from contourcast.service.intake.states import State
from contourcast.service.jobs.propagations import Job, Origin, Propagations
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.destinations import Destination, WebhookDestination
from contourcast.service.pacs.notices import Notices
from contourcast.service.pacs.outbox import Delivery, DeliveryState
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.scans import DRAWN_AT, make_scan, ring
from support.stub import Asked, Says

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
ORDER = {"cbct": {"series": "2.25.77", "files": []}, "methods": ["rigid"]}


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment

    def turn(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class House:
    """Records with deliveries over them."""

    settings: ServiceSettings
    records: Records
    deliveries: Deliveries
    clock: Clock

    def begin(
        self,
        name: str = "p1",
        *,
        verdict: str = "look",
        results: Path,
        cohort: str | None = None,
        cbct: Sequence[Path] = (),
    ) -> tuple[Job, dict[str, str]]:
        """A propagation whose results are written and that has not ended; with their digests.

        Where the files of a CBCT are given, it was drawn on that.
        """
        propagations = self.records.propagations
        propagations.open(name, self._order(cbct) if cbct else ORDER, Origin(cohort=cohort))
        for state in (State.REGISTERING, State.COMPARING, State.WRITING):
            propagations.tell(name, state, state.value, 0.5, verdict=verdict)
        files: dict[str, Path] = {}
        for path in results.iterdir():
            draft = self.records.archive.incoming()
            shutil.copyfile(path, draft)
            files[path.name] = draft
        digests = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
        self.records.derived.put_results(name, files)
        return propagations.job(name), digests

    def _order(self, cbct: Sequence[Path]) -> dict[str, Any]:
        files = ((path.name, path.open("rb")) for path in cbct)
        take_files(files, self.records.archive, self.settings, sent=Sent(door="rest"))
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in cbct]
        series = read_header(cbct[0]).series_instance_uid
        return ORDER | {"cbct": {"series": series, "files": digests}}

    def end(self, job: Job, files: dict[str, str]) -> None:
        """As the last step of a job does."""
        with self.records.index.write() as at:
            sending = self.deliveries.plan(at, job, files)
            self.records.propagations.end_within(at, job.id, files=files, delivering=sending)

    def finish(self, name: str = "p1", **how: Any) -> None:
        self.end(*self.begin(name, **how))

    def run_due(self) -> int:
        """Does what the engine would do now; how much that was."""
        done = 0
        for destination in self.deliveries.outbox.busy():
            for one in self.deliveries.outbox.due(destination, limit=100):
                done += 1
                if one.state is DeliveryState.DELIVERED:
                    self.deliveries.confirm(one.id, one.attempts, one.looks)
                else:
                    self.deliveries.attempt(one.id, one.attempts)
        return done

    def one(self, destination: str) -> Delivery:
        """The only delivery to a destination."""
        (found,) = self.deliveries.list(destination=destination)
        return found

    def state(self, name: str = "p1") -> State:
        return self.records.propagations.job(name).state

    def told(self) -> list[str]:
        """The kinds of all notices."""
        return [one.kind.value for one in self.records.notices.list()]


@contextmanager
def outgoing(
    folder: Path, destinations: Sequence[Destination], *, database_url: str = ""
) -> Iterator[House]:
    """Records in a folder, for a block."""
    clock = Clock()
    settings = ServiceSettings(
        data_folder=folder,
        disk_reserve_mib=0,
        destinations=tuple(destinations),
        database_url=database_url,
    )
    records = open_records(settings, role="test")
    hooks = [one for one in destinations if isinstance(one, WebhookDestination)]
    notices = Notices(records.index, hooks, clock=clock)
    records = replace(
        records,
        notices=notices,
        propagations=Propagations(records.index, told=notices.of_state),
    )
    try:
        yield House(
            settings=settings,
            records=records,
            deliveries=Deliveries(records, destinations, clock=clock),
            clock=clock,
        )
    finally:
        records.close()


def make_results(folder: Path, *, name: str = "cbct") -> Path:
    """A structure set with a hole, and a registration, of one scan."""
    folder.mkdir(parents=True)
    cbct, planning = make_scan(name=name), make_scan(name="planning CT", study="plan")
    write_structure_set(
        folder / "RS.dcm",
        rois=[ring(cbct, 20.0, 8.0, name="GTVlung rigid")],
        reference=cbct,
        label="CC 20260103",
        series_description="Contourcast proposals",
        digest=name,
        drawn_at=DRAWN_AT,
    )
    write_registration(
        folder / "REG.dcm",
        cbct_from_planning=RigidTransform.about(
            np.zeros(3),
            rotation=np.eye(3),
            translation_xyz_mm=np.array([1.0, 2.0, 3.0]),
            source_frame=planning.frame_of_reference,
            target_frame=cbct.frame_of_reference,
        ),
        cbct=cbct,
        planning_ct=planning,
        digest=name,
        made_at=DRAWN_AT,
    )
    return folder


class KeepsWhatItGets:
    """DICOMweb of a stub: STOW, QIDO and WADO over a dictionary.

    Attributes:
        kept: File by SOP Instance UID.
        stored: How often something was stored.
        loses: How many of the next requests it answers well and forgets.
        status: What it answers to STOW instead, if anything.
    """

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.stored = 0
        self.loses = 0
        self.status = 0

    def __call__(self, asked: Asked) -> Says:
        if asked.method == "POST":
            return self._stow(asked)
        uid = asked.path.rpartition("/")[2]
        if asked.path.partition("?")[0].endswith("/instances"):
            found = (
                [{"00080018": _ui(one)} for one in self.kept] if "offset=0" in asked.path else []
            )
            return Says(body=json.dumps(found).encode())
        if uid in self.kept:
            return Says(body=self.kept[uid], headers={"Content-Type": "application/dicom"})
        return Says(status=404)

    def _stow(self, asked: Asked) -> Says:
        if self.status:
            return Says(status=self.status)
        files = stowed(asked)
        self.stored += 1
        if self.loses:
            self.loses -= 1
        else:
            self.kept |= files
        told = {"00081199": {"vr": "SQ", "Value": [{"00081155": _ui(one)} for one in files]}}
        return Says(body=json.dumps(told).encode())


def stowed(asked: Asked) -> dict[str, bytes]:
    """The files of a STOW request by SOP Instance UID."""
    boundary = asked.headers["content-type"].rpartition("boundary=")[2].strip('"')
    files: dict[str, bytes] = {}
    for part in asked.body.split(b"--" + boundary.encode())[1:-1]:
        content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        files[str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID)] = content
    return files


def _ui(uid: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}
