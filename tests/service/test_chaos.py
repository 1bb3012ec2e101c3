"""A course that runs while something is killed: nothing is lost, nothing comes twice.

Two patients' fractions come in by every door, interleaved and in scrambled order, while one of the
processes is killed with ``kill -9`` at random moments and started again. In the end it must be as
if nothing had been: the same propagations, the same bytes, one delivery of each.
"""

from __future__ import annotations

import difflib
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import pydicom
import pytest
import torch
from pydicom.errors import InvalidDicomError
from sqlalchemy import func, select, update

from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.errors import ContourcastError
from contourcast.service.index.tables import arrival, cursor, delivery, event, propagation
from contourcast.service.ingest import say_the_same
from contourcast.service.intake.states import State
from contourcast.service.jobs.derived import result_key
from contourcast.service.jobs.propagations import Job
from contourcast.service.pacs.scu import Peer
from contourcast.service.problems import BusyError
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.department import Department, Parts
from support.records import looking_into
from support.server import form_files
from support.topology import Topology, topology
from support.treatment import Treatment, make_treatment

pytestmark = pytest.mark.peer

LIMIT_S: Final = 300.0
AWAY_S: Final = 2.0  # at most, between a kill and the new start
METHODS: Final = {"CONTOURCAST_METHODS": '["translation"]'}
TARGETS: Final = ("api", "dicom-node", "worker", "Orthanc", "Postgres")
# Signs of life of a course, each of which goes from 0 to 1 (see `Watch.progress`).
STAGES: Final = 3.0
# What a propagation tells from being promised to being sent.
EVENTS: Final = 14


class Killable(Protocol):
    """A process of ours, Orthanc, or Postgres."""

    def kill(self) -> None: ...

    def start(self) -> object: ...


class Undisturbed:
    """What comes out when nothing is killed: the same files, through the same functions, here.

    The files are those that the first course was left with, since a DICOM node writes the head of
    a file anew; that they say what was sent is asked each time. They judge later courses, too.
    """

    def __init__(self, folder: Path, *, fractions: int) -> None:
        self.patients = tuple(
            make_treatment(folder / name, patient=name, fractions=fractions, seed=seed)
            for name, seed in (("A", 1), ("B", 7))
        )
        self.orders: dict[str, dict[str, Any]] = {}
        self._closing = ExitStack()
        self._department = Department(self._closing.enter_context(looking_into(folder / "data")))
        self._drawn: dict[str, Parts] = {}

    @property
    def paths(self) -> list[Path]:
        """What is sent."""
        return [path for patient in self.patients for path in patient.paths]

    @property
    def fractions(self) -> int:
        """How many scans are drawn on."""
        return sum(len(patient.fractions) for patient in self.patients)

    def run_on(self, records: Records) -> None:
        """Draws on the files of a service, once."""
        for path in self.paths:
            kept = records.archive.instance(read_header(path).sop_instance_uid)
            assert kept is not None, "nothing lost"
            assert say_the_same(path, records.archive.path(kept))
        if self.orders:
            return
        series = records.archive.series()
        kept_of_all = [k for one in series for k in records.archive.instances_of(one.series_uid)]
        self._department.send([records.archive.path(kept) for kept in kept_of_all])
        self._department.wait()
        jobs = self._department.jobs()
        with one_thread():  # as the processes have; sums in another order differ by 1e-6 mm
            self._drawn = {job.id: self._department.drawn(job) for job in jobs.values()}
        self.orders = {uid: job.order for uid, job in jobs.items()}

    def files(self, propagation_id: str, made_at: datetime) -> dict[str, bytes]:
        """The results of a propagation that was promised at a time."""
        mine = self._department.records
        with mine.index.write() as at:
            at.execute(
                update(propagation)
                .where(propagation.c.id == propagation_id)
                .values(made_at=made_at.isoformat())
            )
        for name in mine.derived.results(propagation_id):
            mine.archive.blobs.delete(result_key(propagation_id, name))
        self._department.finish(propagation_id, self._drawn[propagation_id])
        return results(mine, propagation_id)

    def close(self) -> None:
        """Lets go of its records."""
        self._closing.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread for a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def results(records: Records, propagation_id: str) -> dict[str, bytes]:
    """A propagation's files, less what tells of the clock and of how things came."""
    found = {
        name: records.derived.result(propagation_id, name).read_bytes()
        for name in records.derived.results(propagation_id)
    }
    del found["report.html"]
    report = json.loads(found["report.json"])
    del report["registration"]["seconds"]
    for method in report["methods"]:
        del method["seconds"]
    found["report.json"] = json.dumps(report).encode()
    return found


class Pushing(threading.Thread):
    """Senders that keep what they have until it was taken, as modalities do.

    Attributes:
        paths: Of all files, so that each goes once to somebody who says that he has it.
        errors: What ended it other than being done.
    """

    def __init__(self, service: Topology, patients: Sequence[Treatment], seed: int) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._http = httpx.Client(
            base_url=service.http.base_url, headers=service.http.headers, timeout=30.0
        )
        self._random = random.Random(seed)
        self._ways: list[Callable[[list[Path]], bool]] = [
            self._rest_to_orthanc,
            self._dimse_to_orthanc,
            self._dimse_to_node,
            self._api,
        ]
        self._chunks = self._interleaved(patients)
        self.stopped = threading.Event()

    def _interleaved(
        self, patients: Sequence[Treatment]
    ) -> list[tuple[Callable[[list[Path]], bool], list[Path]]]:
        """Each series by one way, its slices in any order, all series at the same time."""
        waiting = []
        groups = [
            list(group)
            for patient in patients
            for group in (
                patient.planning_ct.paths,
                [patient.structures],
                *(cbct.paths for cbct in patient.fractions),
            )
        ]
        for number, group in enumerate(groups):
            self._random.shuffle(group)
            way = self._ways[number % len(self._ways)]
            waiting += [(way, group[start : start + 8]) for start in range(0, len(group), 8)]
        self._random.shuffle(waiting)
        return waiting

    def run(self) -> None:
        for way, paths in self._chunks:
            while not self.stopped.is_set():
                with suppress(httpx.HTTPError, ContourcastError):
                    if way(paths):
                        break
                self.stopped.wait(0.1)
        self._http.close()

    def _rest_to_orthanc(self, paths: list[Path]) -> bool:
        self._service.orthanc.upload(paths)
        return True

    def _dimse_to_orthanc(self, paths: list[Path]) -> bool:
        peer = Peer(
            host="127.0.0.1",
            port=self._service.orthanc.dicom_port,
            aet="ORTHANC",
            our_aet="CONTOURCAST",
        )
        return all(receipt.stored for receipt in peer.store(paths))

    def _dimse_to_node(self, paths: list[Path]) -> bool:
        peer = Peer(
            host="127.0.0.1", port=self._service.dicom_port, aet="CONTOURCAST", our_aet="ORTHANC"
        )
        return all(receipt.stored for receipt in peer.store(paths))

    def _api(self, paths: list[Path]) -> bool:
        return self._http.post("/v1/instances", files=form_files(paths)).status_code == 200


@dataclass(kw_only=True)
class Watch:
    """What can be seen of a course from outside, while the database may be away."""

    service: Topology
    records: Records
    files: int
    fractions: int
    last: float = 0.0
    ended: bool = False
    seen: dict[str, Any] = field(default_factory=dict)

    def look(self) -> None:
        """Looks again, unless the database is away."""
        with suppress(BusyError), self.records.index.read() as at:
            came = at.execute(
                select(func.count(func.distinct(arrival.c.sop_uid))).select_from(arrival)
            ).scalar_one()
            told = at.execute(select(func.count()).select_from(event)).scalar_one()
            states = Counter(at.execute(select(propagation.c.state)).scalars())
            sent = at.execute(
                select(func.count()).where(delivery.c.state == "delivered")
            ).scalar_one()
            self.seen = {"came": came, "told": told, "states": dict(states), "sent": sent}
            self.last = sum(
                min(1.0, share)
                for share in (
                    came / self.files,
                    told / (EVENTS * self.fractions),
                    sent / self.fractions,
                )
            )
            # One that Orthanc was not there to take is sent again later; nobody waits for it.
            self.ended = min(states[State.AWAITING_REVIEW], sent) >= self.fractions

    def until(self, reached: Callable[[], bool], *, limit_s: float = LIMIT_S) -> bool:
        """Looks until something is so, or the course has ended; which."""
        deadline = time.monotonic() + limit_s
        while True:
            self.look()
            if reached():
                return True
            if self.ended:
                return False
            assert time.monotonic() < deadline, f"{self.seen}\n{self.story()}"
            time.sleep(0.05)

    def story(self) -> str:
        """The last lines of everybody, to find out what it waits for."""
        return "\n".join(
            f"--- {one.name} {'runs' if one.runs else 'is gone'}\n" + "".join(one.lines[-25:])
            for one in self.service.processes
        )


def victim(service: Topology, name: str) -> Killable:
    """Whoever is killed and started again."""
    victims: dict[str, Killable] = {
        "api": service.api,
        "dicom-node": service.node,
        "worker": service.workers[0],
        "Orthanc": service.orthanc,
        "Postgres": service.postgres,
    }
    return victims[name]


def disturbed(
    folder: Path, truth: Undisturbed, targets: Sequence[str], *, seed: int
) -> list[float]:
    """Runs a course in which each of these is killed once; how far it was each time."""
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0.0, STAGES) for _ in targets)
    order = chance.sample(list(targets), len(targets))
    killed_at: list[float] = []
    with topology(folder, workers=1, settings=METHODS) as service, _records(service) as records:
        watch = Watch(
            service=service,
            records=records,
            files=len(truth.paths),
            fractions=truth.fractions,
        )
        pushing = Pushing(service, truth.patients, seed)
        pushing.start()
        try:
            for moment, name in zip(moments, order, strict=True):
                watch.until(lambda moment=moment: watch.last >= moment)  # type: ignore[misc]
                pushing.stopped.wait(chance.uniform(0.0, 1.0))
                victim(service, name).kill()
                killed_at.append(watch.last)
                pushing.stopped.wait(chance.uniform(0.0, AWAY_S))
                victim(service, name).start()
            watch.until(lambda: watch.ended)
            pushing.join(LIMIT_S)
            assert not pushing.is_alive(), watch.story()
            _look_once_more(service, watch)
            as_if_nothing_had_been(service, records, truth)
            assert all(one.runs for one in service.processes), watch.story()
        finally:
            pushing.stopped.set()
            pushing.join(LIMIT_S)
    return killed_at


def as_if_nothing_had_been(service: Topology, records: Records, truth: Undisturbed) -> None:
    """The invariant: each fraction once, with the bytes that it has when nothing happens."""
    truth.run_on(records)
    jobs = current(records)
    assert jobs.keys() == truth.orders.keys(), "nothing lost"
    for uid, job in jobs.items():
        other = {
            name: (job.order[name], value)
            for name, value in truth.orders[uid].items()
            if job.order[name] != value
        }
        assert not other, "the same was asked for"
    assert {job.state for job in jobs.values()} == {State.AWAITING_REVIEW}
    with records.index.read() as at:
        sent = at.execute(select(delivery.c.propagation, delivery.c.state)).all()
        done = Counter(at.execute(select(event.c.propagation).where(event.c.done == 1.0)).scalars())
    assert sorted(sent) == sorted((job.id, "delivered") for job in jobs.values()), "one each"
    assert set(done) == {job.id for job in jobs.values()}
    held = in_orthanc(service)
    expected = {}
    for job in jobs.values():
        mine = results(records, job.id)
        meant = truth.files(job.id, job.made_at)
        assert mine.keys() == meant.keys()
        for name, content in mine.items():
            assert content == meant[name], f"{name}: {differing(content, meant[name])}"
        for name in ("RS.dcm", "REG.dcm"):
            path = records.derived.result(job.id, name)
            expected[read_header(path).sop_instance_uid] = path.read_bytes()
    assert held == expected, "one structure set and one registration of each, as we keep them"


def differing(one: bytes, other: bytes) -> list[str]:
    """The lines of two texts, or the elements of two DICOM files, that differ."""
    try:
        texts = [str(pydicom.dcmread(io.BytesIO(each))) for each in (one, other)]
    except InvalidDicomError:
        texts = [each.decode(errors="replace") for each in (one, other)]
    left, right = (text.splitlines() for text in texts)
    return [line for line in difflib.ndiff(left, right) if line[0] in "+-"][:20]


def current(records: Records) -> dict[str, Job]:
    """By CBCT: the one propagation that counts."""
    jobs = [j for j in records.propagations.jobs(limit=1000) if j.state is not State.SUPERSEDED]
    found = {job.order["cbct"]["series"]: job for job in jobs}
    assert len(found) == len(jobs), "one of each"
    return found


def in_orthanc(service: Topology) -> dict[str, bytes]:
    """What we sent there, by SOP Instance UID; none of it may be there twice."""
    http = service.orthanc.http
    found: dict[str, bytes] = {}
    for modality in ("RTSTRUCT", "REG"):
        query = {"Level": "Instance", "Query": {"Modality": modality}, "Expand": True}
        for one in http.post("/tools/find", json=query).raise_for_status().json():
            file = http.get(f"/instances/{one['ID']}/file").raise_for_status().content
            if b"Contourcast" in file[:4096]:
                uid = one["MainDicomTags"]["SOPInstanceUID"]
                assert uid not in found
                found[uid] = file
    return found


def _look_once_more(service: Topology, watch: Watch) -> None:
    """Whatever Orthanc still has to tell is heard before anything is judged."""

    def looked_at() -> str:
        with watch.records.index.read() as at:
            value = at.execute(
                select(cursor.c.value_json).where(cursor.c.name == "diary:orthanc")
            ).scalar()
        return "" if value is None else str(value["looked_at"])

    before = looked_at()
    service.http.post("/v1/orthanc/events", json={}).raise_for_status()
    deadline = time.monotonic() + LIMIT_S
    while looked_at() == before:
        assert time.monotonic() < deadline, watch.story()
        time.sleep(0.05)


@contextmanager
def _records(service: Topology) -> Iterator[Records]:
    settings = ServiceSettings(
        data_folder=service.data,
        database_url=service.api.environment["CONTOURCAST_DATABASE_URL"],
        disk_reserve_mib=0,
    )
    records = open_records(settings, role="test")
    try:
        yield records
    finally:
        records.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    with closing(Undisturbed(tmp_path_factory.mktemp("small"), fractions=1)) as truth:
        yield truth


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    with closing(Undisturbed(tmp_path_factory.mktemp("whole"), fractions=3)) as truth:
        yield truth


@pytest.mark.slow
def test_each_of_them_killed_once_it_is_as_if_nothing_had_been(
    tmp_path: Path, small: Undisturbed
) -> None:
    assert len(disturbed(tmp_path, small, TARGETS, seed=0)) == len(TARGETS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", TARGETS)
def test_killed_at_twenty_moments_of_a_course_it_is_as_if_nothing_had_been(
    tmp_path: Path,
    whole: Undisturbed,
    target: str,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    moments = disturbed(tmp_path, whole, [target] * 5, seed=seed)
    record_property("moments", [round(moment, 2) for moment in moments])
    assert len(moments) == 5
