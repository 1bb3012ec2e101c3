"""A worker with a GPU ends itself, and is begun anew: when the GPU is lost, and now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contourcast.service.children import child
from contourcast.service.intake.states import State
from contourcast.service.jobs.queues import GPU
from contourcast.service.jobs.workflow import RECOVERIES
from contourcast.service.settings import ServiceSettings
from support.data import REPOSITORY
from support.gpu_worker import LOG, POISON
from support.records import looking_into
from support.sleeping_worker import marks

NETWORK = "diff-umamba"
LIMIT_S = 240.0


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))
    monkeypatch.setenv(LOG, str(tmp_path / "marks"))
    return tmp_path / "marks"


def until(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def drawn(log: Path, job: str, what: str) -> int:
    wanted = (job, f"draw-{NETWORK}", what)
    return sum((mark.job, mark.step, mark.what) == wanted for mark in marks(log))


def test_a_job_that_loses_the_gpu_again_and_again_is_set_aside_and_its_neighbours_are_drawn(
    tmp_path: Path, log: Path
) -> None:
    settings = ServiceSettings(data_folder=tmp_path / "data", disk_reserve_mib=0, jobs_at_once=1)
    neighbours = [f"neighbour-{number}" for number in range(3)]
    with looking_into(settings.data_folder) as records:
        records.workers.seen("worker-1", GPU)
        for one in (POISON, *neighbours):
            order: dict[str, Any] = {"cbct": {"series": one}, "methods": [NETWORK]}
            records.propagations.open(one, order)
        with child("support.gpu_worker", settings):
            until(lambda: not records.propagations.unfinished())
        poison = records.propagations.job(POISON)
        others = {records.propagations.job(one).state for one in neighbours}
    assert poison.state is State.FAILED
    assert "set aside" in poison.problem["cause"]
    assert drawn(log, POISON, "begun") == 1 + RECOVERIES
    assert others == {State.AWAITING_REVIEW}


def test_after_so_many_networks_a_worker_begins_anew_and_what_is_drawn_stays_so(
    tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ServiceSettings(
        data_folder=tmp_path / "data", disk_reserve_mib=0, jobs_at_once=1, gpu_draws=2
    )
    names = [f"job-{number}" for number in range(3)]
    with looking_into(settings.data_folder) as records:
        records.workers.seen("worker-1", GPU)
        for one in names:
            order: dict[str, Any] = {"cbct": {"series": one}, "methods": ["rigid", NETWORK]}
            records.propagations.open(one, order)
        with child("support.gpu_worker", settings):
            until(lambda: not records.propagations.unfinished())
        states = {records.propagations.job(one).state for one in names}
    assert "".join(capfd.readouterr()).count("worker_renewed") == 1
    assert states == {State.AWAITING_REVIEW}
    assert {one: drawn(log, one, "ended") for one in names} == dict.fromkeys(names, 1)
