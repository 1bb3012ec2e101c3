"""A worker that is told to end: it does, and what it had begun is the others'."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from contourcast.cli.service import WORKER_ENDS_S
from contourcast.service.api.app import create_app
from contourcast.service.intake.states import State
from contourcast.service.jobs.take_over import SILENCE_S
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.http import served
from support.records import looking_into
from support.server import form_files, request_for
from support.topology import Process

LIMIT_S = 240.0
STUBBORN = """
import threading
from contourcast.cli.service import _until_told
from contourcast.service.settings import ServiceSettings

def run(settings, stop):
    print("working", flush=True)
    threading.Event().wait()

_until_told(run, ServiceSettings(), within_s=0.2)
"""


def until(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(folder: Path, slot: str, *options: str) -> Process:
    environment = {
        "CONTOURCAST_DATA_FOLDER": str(folder),
        "CONTOURCAST_DISK_RESERVE_MIB": "0",
        "CONTOURCAST_INTAKE": "on_request",  # else it draws the course first
    }
    command = ["worker", "--slot", slot, *options]
    return Process(slot, command, environment, started='"worker_started"')


def parts_of(folder: Path) -> set[str]:
    """What the engine was given to do."""
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as jobs:
        return {name for (name,) in jobs.execute("SELECT workflow_uuid FROM workflow_status")}


def test_a_worker_that_waits_for_anothers_part_ends_and_gives_its_job_away(
    folder: Path, course: CourseFiles
) -> None:
    with served(create_app(ServiceSettings(data_folder=folder, disk_reserve_mib=0))) as http:
        http.post("/v1/instances", files=form_files(course.paths))
        asked = request_for(course) | {"methods": ["translation"]}
        job = http.post("/v1/propagations", json=asked).json()["id"]
    first = worker(folder, "first", "--queues", "course").start()
    second = worker(folder, "second")
    try:
        # its workflow runs, and waits for a part that no worker computes
        until(lambda: f"{job}-1-register" in parts_of(folder))
        begun_s = time.monotonic()
        assert first.end() == 0, "not killed"
        assert time.monotonic() - begun_s < WORKER_ENDS_S
        with looking_into(folder) as records:
            assert records.workers.silent_s()["first"] > SILENCE_S, "nobody waits for it"
            second.start()
            until(lambda: records.propagations.job(job).ended)
            assert records.propagations.job(job).state is State.AWAITING_REVIEW
            told = [event.sentence for event in records.propagations.events(job)]
            assert told.count("done") == 1
        assert any('"taken_over"' in line for line in second.lines)
    finally:
        for one in (first, second):
            if one.runs:
                one.kill()


def test_one_that_does_not_come_to_an_end_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"working\n"
        process.terminate()
        process.terminate()  # a second time changes nothing
        assert process.wait(LIMIT_S) == 0
