"""``kill -9`` at any moment, then a restart: the job ends once, with the same UIDs and bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from support.course import CourseFiles
from support.records import looking_into
from support.server import Server

Moment = Callable[[Path, str], bool]


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A data folder in which a job was asked for and nothing of it was done."""

    folder: Path
    id: str
    results: dict[str, bytes]


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory, course: CourseFiles) -> Seed:
    """The first kill: right after the job was promised. And how it ends when nothing is killed."""
    folder = tmp_path_factory.mktemp("seed") / "data"
    server = Server(folder).start()
    server.send(course)
    propagation = server.ask(course)
    server.kill()
    assert states(folder, propagation) == ["matched"]
    whole = shutil.copytree(folder, folder.with_name("whole"))
    server = Server(whole).start()
    server.done(propagation)
    server.stop()
    return Seed(folder=folder, id=propagation, results=results(whole, propagation))


def results(folder: Path, propagation: str) -> dict[str, bytes]:
    """The files of a propagation; of the report what does not depend on the clock."""
    with looking_into(folder) as records:
        found = {
            name: records.derived.result(propagation, name).read_bytes()
            for name in records.derived.results(propagation)
        }
    del found["report.html"]
    report = json.loads(found["report.json"])
    del report["registration"]["seconds"]
    for method in report["methods"]:
        del method["seconds"]
    found["report.json"] = json.dumps(report).encode()
    return found


def when_told(sentence: str) -> Moment:
    """As soon as this has been written down."""

    def reached(folder: Path, propagation: str) -> bool:
        return any(sentence in told for told in sentences(folder, propagation))

    return reached


def when_half_written(folder: Path, propagation: str) -> bool:
    """While the results lie in a draft and some of them are there."""
    drafts = [p for p in (folder / "incoming" / "worker-1").glob("*") if p.is_dir()]
    return any(list(draft.rglob("*.*")) for draft in drafts)


def when_half_kept(folder: Path, propagation: str) -> bool:
    """When some are in the store and the engine has not yet heard of any."""
    return any((folder / "store" / "results" / propagation).glob("*"))


def sentences(folder: Path, propagation: str) -> list[str]:
    """What was told of a job from first to last."""
    with looking_into(folder) as records:
        return [event.sentence for event in records.propagations.events(propagation)]


def states(folder: Path, propagation: str) -> list[str]:
    with looking_into(folder) as records:
        return [event.state.value for event in records.propagations.events(propagation)]


def kill_at(folder: Path, propagation: str, moment: Moment) -> None:
    """Runs a server on the folder until the moment has come, then kills it."""
    server = Server(folder).start()
    deadline = time.monotonic() + 300
    while not moment(folder, propagation):
        assert time.monotonic() < deadline, "\n".join(server.lines)
        time.sleep(0.002)
    server.kill()


def end(folder: Path, propagation: str) -> list[str]:
    """Lets a new server finish the job; what was told of it from first to last."""
    server = Server(folder).start()
    server.done(propagation)
    server.stop()
    strays = [p for p in (folder / "store" / "results").iterdir() if p.name != propagation]
    assert not strays
    assert not on_its_way(folder)
    return sentences(folder, propagation)


def test_killed_between_steps_and_in_mid_write_the_job_ends_once_with_the_same_bytes(
    seed: Seed, tmp_path: Path
) -> None:
    folder = shutil.copytree(seed.folder, tmp_path / "data")
    kill_at(folder, seed.id, when_told("drawing: rigid"))
    kill_at(folder, seed.id, when_half_written)
    told = end(folder, seed.id)
    assert told.count("registering the planning CT to the CBCT") == 1, "what was done stays done"
    assert told.count("done") == 1, "it ends once"
    assert results(folder, seed.id) == seed.results


MOMENTS: dict[str, Moment] = {
    "reading": when_told("reading the series"),
    "registering": when_told("registering the planning CT"),
    "registered": when_told("registered:"),
    "drawing translation": when_told("drawing: translation"),
    "drawn translation": when_told("drawn: translation"),
    "drawing rigid": when_told("drawing: rigid"),
    "drawn rigid": when_told("drawn: rigid"),
    "comparing": when_told("comparing"),
    "compared": when_told("verdict:"),
    "writing": when_told("writing"),
    "half written": when_half_written,
    "half kept": when_half_kept,
    "done": when_told("done"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_every_moment_of_a_job(seed: Seed, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(seed.folder, tmp_path / "data")
    kill_at(folder, seed.id, MOMENTS[name])
    told = end(folder, seed.id)
    assert told.count("done") == 1
    assert results(folder, seed.id) == seed.results


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_any_moment_at_all(seed: Seed, tmp_path: Path, number: int) -> None:
    folder = shutil.copytree(seed.folder, tmp_path / "data")
    delay_s = random.Random(number).uniform(0.0, 8.0)
    server = Server(folder).start()
    time.sleep(delay_s)
    server.kill()
    told = end(folder, seed.id)
    assert told.count("done") == 1
    assert results(folder, seed.id) == seed.results


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(seed: Seed, tmp_path: Path) -> None:
    folder = shutil.copytree(seed.folder, tmp_path / "data")
    server = Server(folder).start()
    server.until(seed.id, lambda job: job["state"] == "drawing")
    os.kill(server.worker_pid(), signal.SIGKILL)
    server.done(seed.id)
    server.stop()
    assert any('"child_died"' in line for line in server.lines)
    assert results(folder, seed.id) == seed.results


@pytest.mark.slow
def test_a_job_that_takes_its_worker_down_again_and_again_is_set_aside(
    seed: Seed, tmp_path: Path
) -> None:
    folder = shutil.copytree(seed.folder, tmp_path / "data")
    server = Server(folder).start()
    runs = 0
    while runs < 6:
        job = server.until(seed.id, lambda _, runs=runs: begun(folder, seed.id) > runs)  # type: ignore[misc]
        if job["state"] == "failed":
            break
        runs += 1
        os.kill(server.worker_pid(), signal.SIGKILL)
    job = server.until(seed.id, lambda _: False)
    server.stop()
    assert job["state"] == "failed"
    assert "set aside" in job["problem"]["cause"]
    assert begun(folder, seed.id) == 4, "the first run and three recoveries"


def begun(folder: Path, propagation: str) -> int:
    """How often a worker began with the job."""
    return sentences(folder, propagation).count("reading the series")


def on_its_way(folder: Path) -> list[Path]:
    """Files that were not taken in yet, of any process."""
    return [p for p in (folder / "incoming").rglob("*") if p.is_file()]


@pytest.mark.slow
def test_an_upload_that_is_cut_off_leaves_nothing_half_stored(
    tmp_path: Path, course: CourseFiles
) -> None:
    """Killed in the middle of it: each file is there whole, or not at all."""
    folder = tmp_path / "data"
    server = Server(folder).start()

    def send() -> None:
        with contextlib.suppress(httpx.HTTPError):
            server.send(course)

    sender = threading.Thread(target=send)
    sender.start()
    while not on_its_way(folder):
        time.sleep(0.0005)
    server.kill()
    sender.join()
    again = Server(folder).start()
    with looking_into(folder) as records:
        archive = records.archive
        for series in archive.series():
            for kept in archive.instances_of(series.series_uid):
                assert archive.path(kept).stat().st_size == kept.size_bytes
        again.send(course)
        again.stop()
        assert not on_its_way(folder)
        assert sum(s.instances for s in archive.series()) == len(course.paths)
