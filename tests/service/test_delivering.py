"""Deliveries on a real worker's queue: killed in the middle, held meanwhile, or beyond reading."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.intake.states import State
from contourcast.service.pacs.destinations import DicomWebDestination
from contourcast.service.pacs.outbox import DeliveryState
from support.course import make_course
from support.outgoing import House, KeepsWhatItGets, make_results, outgoing
from support.records import looking_into
from support.server import serving
from support.stub import Asked, Says, stub

LIMIT_S = 240.0
# A worker as `contourcast worker --queues deliver` is one, without a server that watches it.
WORKER = """
import threading
from contourcast.service.jobs.work import work
from contourcast.service.settings import ServiceSettings
work(ServiceSettings(), threading.Event())
"""


class Slow:
    """Takes, and does not answer until it is let go."""

    def __init__(self) -> None:
        self.keeps = KeepsWhatItGets()
        self.came = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, asked: Asked) -> Says:
        says = self.keeps(asked)
        self.came.set()
        self.go_on.wait(LIMIT_S)
        return says


@contextmanager
def worker(
    folder: Path, destinations: list[DicomWebDestination]
) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "CONTOURCAST_DATA_FOLDER": str(folder),
        "CONTOURCAST_DISK_RESERVE_MIB": "0",
        "CONTOURCAST_DEVICE": "cpu",
        "CONTOURCAST_QUEUES": "deliver",
        "CONTOURCAST_INTAKE": "on_request",
        "CONTOURCAST_DESTINATIONS": json.dumps([d.model_dump(mode="json") for d in destinations]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[1][-4000:])
        time.sleep(0.05)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return make_results(tmp_path / "results")


def test_a_job_of_the_service_ends_once_its_results_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = make_course(tmp_path / "course")
    keeps = KeepsWhatItGets()
    with stub(keeps) as running:
        to = [{"kind": "dicomweb", "name": "pacs", "url": running.url}]
        monkeypatch.setenv("CONTOURCAST_DESTINATIONS", json.dumps(to))
        monkeypatch.setenv("CONTOURCAST_INTAKE", "on_request")
        with serving(tmp_path / "data") as server:
            server.send(course)
            asked = server.ask(course)
            server.until(asked, lambda _: False)
            deadline = time.monotonic() + LIMIT_S
            while server.job(asked)["state"] == "delivering":
                assert time.monotonic() < deadline, "".join(server.lines)
                time.sleep(0.05)
            assert server.job(asked)["state"] == "awaiting_review"
        with looking_into(tmp_path / "data") as records:
            told = [event.state.value for event in records.propagations.events(asked)]
            assert told[-2:] == ["delivering", "awaiting_review"]
            assert [one.kind.value for one in records.notices.list()] == ["propagation.done"]
            results = {
                read_header(records.derived.result(asked, name)).sop_instance_uid
                for name in ("RS.dcm", "REG.dcm")
            }
        assert keeps.kept.keys() == results
        assert "ZZQQ" not in "".join(server.lines)


def test_killed_in_mid_delivery_it_is_one_delivery(tmp_path: Path, results: Path) -> None:
    archive = Slow()
    with stub(archive) as running:
        pacs = DicomWebDestination(name="pacs", url=running.url, confirm=False)
        with outgoing(tmp_path / "data", [pacs]) as house:
            house.finish(results=results)
            with worker(tmp_path / "data", [pacs]) as process:
                until(process, archive.came.is_set)
                process.send_signal(signal.SIGKILL)
                process.wait()
            assert house.one("pacs").attempts == 0
            assert house.state() is State.DELIVERING
            archive.go_on.set()
            with worker(tmp_path / "data", [pacs]) as process:
                until(process, lambda: house.one("pacs").state is DeliveryState.DELIVERED)
            one = house.one("pacs")
            assert (one.attempts, one.problem) == (1, {})
            assert archive.keeps.stored == 2, "the archive heard of it twice"
            assert len(archive.keeps.kept) == 2, "and has each instance once"
            assert house.state() is State.AWAITING_REVIEW
            assert house.told() == ["propagation.done"]


def test_what_nobody_can_deliver_fails_alone_and_the_queue_goes_on(
    tmp_path: Path, results: Path
) -> None:
    keeps = KeepsWhatItGets()
    with stub(keeps) as running:
        pacs = DicomWebDestination(name="pacs", url=running.url, confirm=False)
        with outgoing(tmp_path / "data", [pacs]) as house:
            broken = unreadable(house)
            house.finish(results=results)
            with worker(tmp_path / "data", [pacs]) as process:

                def both_ended() -> bool:
                    return all(one.attempts for one in house.deliveries.list())

                until(process, both_ended)
            failed = house.deliveries.outbox.get(broken)
            assert (failed.state, failed.attempts) == (DeliveryState.WAITING, 1)
            assert "did not foresee" in failed.problem["cause"]
            assert house.state() is State.AWAITING_REVIEW
            assert len(keeps.kept) == 2


def test_held_and_sent_again_while_it_goes_out_it_is_not_forgotten(
    tmp_path: Path, results: Path
) -> None:
    """The attempt that is under way ends, and nobody believes it; the row is tried anew."""
    archive = Slow()
    with stub(archive) as running:
        pacs = DicomWebDestination(name="pacs", url=running.url, confirm=False)
        with outgoing(tmp_path / "data", [pacs]) as house:
            house.finish(results=results)
            with worker(tmp_path / "data", [pacs]) as process:
                until(process, archive.came.is_set)
                house.clock.turn(1)
                house.deliveries.resend(house.deliveries.hold(house.one("pacs").id).id)
                archive.go_on.set()
                until(process, lambda: house.one("pacs").attempts == 1)
                assert "set aside" in house.one("pacs").problem["cause"]
                until(process, lambda: house.one("pacs").state is DeliveryState.DELIVERED)
            assert len(archive.keeps.kept) == 2


def unreadable(house: House) -> str:
    """A row of another program's making."""
    with house.records.index.write() as at:
        return house.deliveries.outbox.put(at, destination="pacs", objects=[{"role": "signed"}])
