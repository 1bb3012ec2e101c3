"""Many workers on one Postgres: each step once, and nobody's death or sleep loses a job."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import update

from contourcast.service.index.tables import worker as worker_table
from contourcast.service.intake.states import State
from contourcast.service.jobs.take_over import SILENCE_S
from contourcast.service.pacs.scu import Peer
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.data import REPOSITORY
from support.postgres import Cluster, postgres
from support.server import form_files, request_for
from support.sleeping_worker import Mark, marks
from support.topology import Process, topology

pytestmark = [pytest.mark.peer, pytest.mark.slow]

PROGRAM: Final = "support.sleeping_worker"
LIMIT_S: Final = 240.0
STEPS: Final = ("register", "draw-translation", "finish")


class House:
    """Workers whose steps sleep, one Postgres, and the jobs that they were given."""

    def __init__(self, folder: Path, cluster: Cluster, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.log = folder / "steps.log"
        self.settings = ServiceSettings(
            data_folder=folder / "data", database_url=cluster.database("jobs"), disk_reserve_mib=0
        )
        self.records: Records = open_records(self.settings, role="test")
        self.workers: dict[str, Process] = {}

    def worker(self, slot: str, *, queues: str = "") -> Process:
        """A worker that is not started yet."""
        environment = {
            "CONTOURCAST_DATA_FOLDER": str(self.settings.data_folder),
            "CONTOURCAST_DATABASE_URL": self.settings.database_url,
            "CONTOURCAST_DISK_RESERVE_MIB": "0",
            "CONTOURCAST_WORKER_SLOT": slot,
            "CONTOURCAST_JOBS_AT_ONCE": "1",
            "CONTOURCAST_QUEUES": queues,
        }
        made = Process(slot, [], environment, started='"worker_started"')
        made.command = [sys.executable, "-m", PROGRAM, str(self.log), str(self.seconds)]
        made.environment["PYTHONPATH"] = str(REPOSITORY / "tests")
        self.workers[slot] = made
        return made

    def start(self, *slots: str) -> None:
        """Starts workers side by side and waits until each works."""
        for slot in slots:
            self.worker(slot).start(wait=False)
        for slot in slots:
            self.workers[slot].wait_for(self.workers[slot].started)

    def ask(self, count: int, *, methods: Sequence[str] = ("translation",)) -> list[str]:
        """Promises jobs, each of a course of its own."""
        ids = [f"job-{number:04d}" for number in range(count)]
        for one in ids:
            order: dict[str, Any] = {"cbct": {"series": one}, "methods": list(methods)}
            self.records.propagations.open(one, order)
        return ids

    def until(self, reached: Callable[[], Any], *, limit_s: float = LIMIT_S) -> Any:
        """Waits for something that is not false; what it was."""
        deadline = time.monotonic() + limit_s
        while not (found := reached()):
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.02)
        return found

    def done(self, *, limit_s: float = LIMIT_S) -> None:
        """Waits until every job ended, and each must have ended well."""
        self.until(lambda: not self.records.propagations.unfinished(), limit_s=limit_s)
        jobs = self.records.propagations.jobs(limit=1000)
        assert {job.state for job in jobs} == {State.AWAITING_REVIEW}, self.story()
        for job in jobs:
            told = [e.sentence for e in self.records.propagations.events(job.id)]
            assert told.count("done") == 1, "one outcome"

    def in_mid_step(self, slot: str) -> Mark:
        """Waits until a worker is in a step; which."""

        def found() -> Mark | None:
            mine = [mark for mark in marks(self.log) if mark.slot == slot]
            return mine[-1] if mine and mine[-1].what == "begun" else None

        mark: Mark = self.until(found)
        return mark

    def silent(self, slot: str) -> None:
        """Turns the time back at which a worker was last seen, by all that is waited for."""
        with self.records.index.write() as at:
            at.execute(
                update(worker_table)
                .where(worker_table.c.executor == slot)
                .values(seen_s=worker_table.c.seen_s - SILENCE_S)
            )

    def story(self) -> str:
        lines = [line for one in self.workers.values() for line in one.lines[-15:]]
        left = [job.id for job in self.records.propagations.unfinished()]
        return f"unfinished: {left[:10]} ({len(left)})\n" + "".join(lines)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with postgres() as running:
        yield running


@contextmanager
def house(folder: Path, cluster: Cluster, *, seconds: float) -> Iterator[House]:
    made = House(folder, cluster, seconds)
    try:
        yield made
    finally:
        for one in made.workers.values():
            if one.runs:
                one.kill()
        made.records.close()


def counted(log: Path, what: str) -> Counter[tuple[str, str]]:
    """How often each step of each job did that."""
    return Counter((mark.job, mark.step) for mark in marks(log) if mark.what == what)


def jobs_per_s(log: Path, jobs: int) -> float:
    """From the first begin to the last end, so that the start of the processes is left out."""
    times = [mark.at_s for mark in marks(log)]
    return jobs / (max(times) - min(times))


def test_three_workers_share_the_jobs_and_each_step_is_done_once(
    tmp_path: Path, cluster: Cluster
) -> None:
    with house(tmp_path, cluster, seconds=0.1) as work:
        ids = work.ask(12)
        work.start("cpu-1", "cpu-2", "cpu-3")
        work.done()
        once = Counter({(job, step): 1 for job in ids for step in STEPS})
        assert counted(work.log, "begun") == once
        assert counted(work.log, "ended") == once
        assert len({mark.slot for mark in marks(work.log)}) == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_workers_do_three_hundred_jobs_at_least_two_and_a_half_times_as_fast_as_one(
    tmp_path: Path, cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    rates = {}
    for slots, count in ((("cpu-1",), 60), (("cpu-1", "cpu-2", "cpu-3"), 300)):
        (folder := tmp_path / str(len(slots))).mkdir()
        with house(folder, cluster, seconds=0.5) as work:
            work.start(*slots)
            ids = work.ask(count)
            work.done(limit_s=900)
            assert counted(work.log, "begun") == {(j, s): 1 for j in ids for s in STEPS}
            rates[len(slots)] = jobs_per_s(work.log, count)
    record_property("jobs_per_s", rates)
    assert rates[3] >= 2.5 * rates[1], rates


def test_a_worker_that_is_killed_in_mid_step_and_comes_back_goes_on_where_it_was(
    tmp_path: Path, cluster: Cluster
) -> None:
    with house(tmp_path, cluster, seconds=1.0) as work:
        work.start("cpu-1", "cpu-2")
        work.ask(4)
        broken = work.in_mid_step("cpu-1")
        work.workers["cpu-1"].kill()
        work.workers["cpu-1"].start()
        work.done()
        assert set(counted(work.log, "ended").values()) == {1}, "what was done stays done"
        again = {step for step, times in counted(work.log, "begun").items() if times > 1}
        assert again == {(broken.job, broken.step)}


def test_what_a_dead_worker_left_is_done_by_another_one(tmp_path: Path, cluster: Cluster) -> None:
    with house(tmp_path, cluster, seconds=0.5) as work:
        work.start("cpu-1", "cpu-2")
        work.ask(4)
        broken = work.in_mid_step("cpu-1")
        work.workers["cpu-1"].kill()
        work.silent("cpu-1")
        work.done()
        assert set(counted(work.log, "ended").values()) == {1}
        by = [mark.slot for mark in marks(work.log) if (mark.job, mark.step) == _of(broken)]
        assert by == ["cpu-1", "cpu-2", "cpu-2"]


@pytest.mark.slow
def test_a_worker_that_stays_dead_is_taken_over_within_ninety_seconds(
    tmp_path: Path, cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    with house(tmp_path, cluster, seconds=0.5) as work:
        work.start("cpu-1", "cpu-2")
        work.ask(6)
        broken = work.in_mid_step("cpu-1")
        work.workers["cpu-1"].kill()
        died_s = time.monotonic()
        work.done()
        (again,) = (
            mark.at_s
            for mark in marks(work.log)
            if (mark.job, mark.step, mark.what, mark.slot) == (*_of(broken), "begun", "cpu-2")
        )
        record_property("taken_over_after_s", again - died_s)
        assert again - died_s <= 90.0


def test_a_worker_that_slept_past_its_time_and_wakes_up_changes_nothing(
    tmp_path: Path, cluster: Cluster
) -> None:
    with house(tmp_path, cluster, seconds=1.5) as work:
        work.start("cpu-1", "cpu-2")
        work.ask(2)
        broken = work.in_mid_step("cpu-1")
        work.workers["cpu-1"].stop()
        work.silent("cpu-1")

        def taken() -> bool:
            return _of(broken) in counted(work.log, "ended")

        work.until(taken)
        work.workers["cpu-1"].cont()
        work.done()
        ended = [mark.slot for mark in marks(work.log) if mark.what == "ended"]
        assert "cpu-2" in ended
        assert work.workers["cpu-1"].runs


def test_what_waits_for_a_gpu_that_is_gone_is_drawn_on_a_processor(
    tmp_path: Path, cluster: Cluster
) -> None:
    with house(tmp_path, cluster, seconds=0.5) as work:
        work.worker("gpu-1", queues="gpu").start()
        work.worker("cpu-1", queues="cpu,course,cohort").start()
        work.ask(2, methods=["translation", "diff-umamba"])
        work.in_mid_step("gpu-1")
        work.workers["gpu-1"].kill()
        work.silent("gpu-1")
        work.done()
        ended = {
            (mark.job, mark.slot)
            for mark in marks(work.log)
            if (mark.step, mark.what) == ("draw-diff-umamba", "ended")
        }
        assert ended == {("job-0000", "cpu-1"), ("job-0001", "cpu-1")}


def test_a_new_version_finishes_what_the_old_one_began(tmp_path: Path, cluster: Cluster) -> None:
    with house(tmp_path, cluster, seconds=1.0) as work:
        old = work.worker("cpu-1")
        old.command.append("1")
        old.start()
        work.ask(3)
        broken = work.in_mid_step("cpu-1")
        old.kill()
        work.start("cpu-1")
        work.done()
        jobs = work.records.propagations.jobs()
        assert {job.attempt for job in jobs if job.id == broken.job} == {2}
        ended = counted(work.log, "ended")
        assert {(job.id, step) for job in jobs for step in STEPS} == set(ended)


def test_of_two_workers_of_one_name_the_second_waits_until_the_first_is_gone(
    tmp_path: Path, cluster: Cluster
) -> None:
    environment = {
        "CONTOURCAST_DATA_FOLDER": str(tmp_path / "data"),
        "CONTOURCAST_DATABASE_URL": cluster.database("slots"),
        "CONTOURCAST_DISK_RESERVE_MIB": "0",
        "CONTOURCAST_WORKER_SLOT": "cpu-1",
    }
    first, second = (
        Process(name, ["worker"], environment, started='"worker_started"') for name in "ab"
    )
    first.start()
    second.start(wait=False)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not _waits_for_a_lock(second.pid):
            assert time.monotonic() < deadline, second.lines
            time.sleep(0.02)
        assert not any(second.started in line for line in second.lines)
        first.kill()
        second.wait_for(second.started)
    finally:
        for one in (first, second):
            if one.runs:
                one.kill()


def _waits_for_a_lock(pid: int) -> bool:
    """As Linux tells it: ``1: -> FLOCK ADVISORY WRITE PID …`` is one that waits."""
    waiting = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in waiting)


@pytest.mark.slow
def test_a_worker_that_sleeps_in_a_real_step_and_wakes_up_writes_one_structure_set(
    tmp_path: Path, course: CourseFiles, record_property: Callable[[str, object], None]
) -> None:
    """SIGSTOP until another one has taken over by itself, then SIGCONT."""
    with topology(tmp_path, workers=2, settings={"CONTOURCAST_INTAKE": "on_request"}) as service:
        service.http.post("/v1/instances", files=form_files(course.paths)).raise_for_status()
        request = request_for(course) | {"methods": ["translation"]}
        asked = service.http.post("/v1/propagations", json=request).raise_for_status().json()["id"]
        steps = [
            (worker, '"registering the planning CT to the CBCT"') for worker in service.workers
        ]
        sleeper = _first(steps)
        sleeper.stop()
        slept_s = time.monotonic()
        (other,) = (worker for worker in service.workers if worker is not sleeper)
        other.wait_for('"taken_over"')
        other.wait_for('"registering the planning CT to the CBCT"')
        record_property("taken_over_after_s", time.monotonic() - slept_s)
        sleeper.cont()
        deadline = time.monotonic() + LIMIT_S
        while (job := service.http.get(f"/v1/propagations/{asked}").json())["state"] not in (
            "awaiting_review",
            "failed",
        ):
            assert time.monotonic() < deadline, "".join(service.lines[-60:])
            time.sleep(0.05)
        assert job["state"] == "awaiting_review", job
        written = service.http.get(f"/v1/propagations/{asked}/structure-set").content
        sleeper.end()
        again = service.http.get(f"/v1/propagations/{asked}/structure-set").content
        assert again == written
        query = {"Level": "Instance", "Query": {"Modality": "RTSTRUCT"}}
        found = service.orthanc.http.post("/tools/find", json=query).raise_for_status().json()
        assert len(found) == 1, "one structure set went out"


def _first(said: Sequence[tuple[Process, str]]) -> Process:
    """The first of these processes that says its text."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        for process, text in said:
            if any(text in line for line in process.lines):
                return process
        assert time.monotonic() < deadline, [process.lines[-10:] for process, _ in said]
        time.sleep(0.01)


@pytest.mark.slow
def test_while_the_database_is_away_everybody_is_told_later_and_then_all_goes_on(
    tmp_path: Path, course: CourseFiles
) -> None:
    with topology(tmp_path, settings={"CONTOURCAST_INTAKE": "on_request"}) as service:
        service.http.post("/v1/instances", files=form_files(course.paths)).raise_for_status()
        request = request_for(course) | {"methods": ["translation"]}
        asked = service.http.post("/v1/propagations", json=request).raise_for_status().json()["id"]
        service.workers[0].wait_for('"registering the planning CT to the CBCT"')
        service.postgres.stop()
        gone_s = time.monotonic()
        node = Peer(host="127.0.0.1", port=service.dicom_port, aet="CONTOURCAST", our_aet="ORTHANC")
        while time.monotonic() < gone_s + 10.0:
            answer = service.http.get("/v1/propagations")
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            (receipt,) = node.store(course.paths[:1])
            assert receipt.status.value == 0xA700
        service.postgres.start()
        deadline = time.monotonic() + LIMIT_S
        while True:
            answer = service.http.get(f"/v1/propagations/{asked}")
            if answer.status_code == 200 and answer.json()["state"] == "awaiting_review":
                break
            assert time.monotonic() < deadline, answer.text + "".join(service.lines[-60:])
            time.sleep(0.1)
        (receipt,) = node.store(course.paths[:1])
        assert receipt.stored
        assert all(process.runs for process in service.processes)


def _of(mark: Mark) -> tuple[str, str]:
    return mark.job, mark.step
