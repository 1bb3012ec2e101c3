"""What is waited for and how long, what takes workers down, and who needs a password."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dbos import DBOS, SetWorkflowID

from contourcast.service.intake.states import State
from contourcast.service.jobs import take_over, work, workflow
from contourcast.service.jobs.engine import running
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.steps import Steps
from contourcast.service.pacs.destinations import OrthancDestination
from contourcast.service.problems import (
    BusyError,
    DamagedError,
    DiskFullError,
    NotFoundError,
    SettingsError,
    StoreError,
)
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings
from support.records import looking_into

HOUR_S = 3600.0
PASSWORD_ENV = "CONTOURCAST_TEST_ABSENT_PASSWORD"

# Outages


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait, none of which is waited."""
    waits: list[float] = []
    monkeypatch.setattr(workflow, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.mark.parametrize("fault", [BusyError, DiskFullError, StoreError])
def test_an_outage_of_hours_is_waited_out(slept: list[float], fault: Callable[[str], Any]) -> None:
    def away() -> dict[str, Any]:
        if sum(slept) < 8 * HOUR_S:
            raise fault("away")
        return {"done": True}

    assert workflow.waited_out(away) == {"done": True}
    assert slept[:3] == [2.0, 4.0, 8.0]
    assert max(slept) == 60.0, "and soon after it is over"


def test_what_does_not_pass_in_a_day_and_what_cannot_pass_are_told(slept: list[float]) -> None:
    def away() -> dict[str, Any]:
        raise StoreError("away")

    with pytest.raises(StoreError):
        workflow.waited_out(away)
    assert 24 * HOUR_S <= sum(slept) < 25 * HOUR_S
    slept.clear()

    def gone() -> dict[str, Any]:
        raise NotFoundError("gone")

    def damaged() -> dict[str, Any]:
        raise DamagedError("damaged")

    for fault, fails in ((NotFoundError, gone), (DamagedError, damaged)):
        with pytest.raises(fault):
            workflow.waited_out(fails)
        assert not slept


# Jobs that take their workers down


@DBOS.workflow(name="part_of_test_waiting_out", max_recovery_attempts=workflow.RECOVERIES)
def part() -> str:
    return "done"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ServiceSettings]:
    settings = ServiceSettings(data_folder=tmp_path, worker_slot="alive", disk_reserve_mib=0)
    with running(settings, []):
        yield settings


def died_in(settings: ServiceSettings, records: Records, slot: str) -> None:
    """As if a worker had begun the part, and was never heard of again."""
    with closing(sqlite3.connect(settings.data_folder / "jobs.sqlite3")) as jobs, jobs:
        jobs.execute(
            "UPDATE workflow_status SET status = 'PENDING', executor_id = ?, queue_name = 'cpu',"
            " completed_at = NULL, recovery_attempts = recovery_attempts + 1",
            (slot,),
        )
    records.workers.seen(slot, "cpu")
    records.workers.left(slot)


def test_a_job_that_takes_one_worker_down_after_the_other_is_set_aside(
    engine: ServiceSettings,
) -> None:
    with looking_into(engine.data_folder) as records, SetWorkflowID("poison"):
        DBOS.start_workflow(part).get_result()
        with closing(sqlite3.connect(engine.data_folder / "jobs.sqlite3")) as jobs, jobs:
            jobs.execute("UPDATE workflow_status SET recovery_attempts = 0")
        heart = take_over.Heartbeat(records.workers, "alive", "cpu")
        states = []
        for number in range(workflow.RECOVERIES + 1):
            died_in(engine, records, f"cpu-{number}")
            take_over.take_over(heart)
            (found,) = DBOS.list_workflows(workflow_ids=["poison"])
            states.append(found.status)
    assert states == ["ENQUEUED"] * workflow.RECOVERIES + ["CANCELLED"]
    assert states[-1] in take_over.GIVEN_UP, "and told of"


def test_who_was_cut_off_itself_lets_the_others_speak_first(
    engine: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_s = 0.0
    monkeypatch.setattr(take_over, "time", SimpleNamespace(monotonic=lambda: at_s))
    with looking_into(engine.data_folder) as records, SetWorkflowID("healthy"):
        DBOS.start_workflow(part).get_result()
        heart = take_over.Heartbeat(records.workers, "alive", "cpu")

        def state() -> str:
            take_over.take_over(heart)
            (found,) = DBOS.list_workflows(workflow_ids=["healthy"])
            return str(found.status)

        died_in(engine, records, "alive")
        assert state() == "PENDING", "our own is ours, and goes on"
        died_in(engine, records, "other")
        at_s += take_over.SILENCE_S + 1.0  # the index was away
        assert state() == "PENDING"
        while at_s < 2.0 * take_over.SILENCE_S:
            assert state() == "PENDING", "the other has not had its time"
            at_s += take_over.EVERY_S
        at_s += take_over.EVERY_S
        assert state() == "ENQUEUED", "it is dead after all"


# Attempts that are over


def test_an_upgrade_does_not_end_what_it_has_just_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looking_into(tmp_path) as records:
        records.propagations.open("p1", {"cbct": {"series": "1.2"}, "methods": ["rigid"]})

        def cancelled(ids: list[str]) -> list[tuple[str, str]]:
            records.propagations.begin_again(records.propagations.job("p1"))
            return [("CANCELLED", name) for name in ids]

        monkeypatch.setattr(take_over, "_ended", cancelled)
        take_over.end_given_up(records.propagations)
        job = records.propagations.job("p1")
        assert (job.attempt, job.state, job.ended) == (2, State.MATCHED, False)
        monkeypatch.setattr(take_over, "_ended", lambda ids: [("CANCELLED", one) for one in ids])
        take_over.end_given_up(records.propagations)
        assert records.propagations.job("p1").state is State.FAILED


def test_what_a_former_attempt_comes_to_changes_nothing(tmp_path: Path) -> None:
    sent: list[str] = []

    def send(at: object, job: Job, files: object) -> bool:
        sent.append(job.id)
        return False

    with looking_into(tmp_path) as records:
        records.propagations.open("p1", {"cbct": {"series": "1.2"}, "methods": ["rigid"]})
        records.propagations.begin_again(records.propagations.job("p1"))
        steps = Steps(records, device="cpu", weights=None, send=send)
        for outcome in ({"files": {"RS.dcm": "ab"}}, {"problem": {"detail": "late"}}):
            steps.end("p1", outcome, 1)
            assert not records.propagations.job("p1").ended
        assert sent == []
        steps.end("p1", {"files": {"RS.dcm": "ab"}}, 2)
        assert (records.propagations.job("p1").files, sent) == ({"RS.dcm": "ab"}, ["p1"])


# Who needs a password


@pytest.mark.parametrize(
    ("queues", "duties"),
    [("gpu", set()), ("cpu,course,cohort", set()), ("deliver", {"watch-pacs", "fetch-pacs"})],
)
def test_only_whoever_delivers_watches_and_asks_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queues: str, duties: set[str]
) -> None:
    archive = OrthancDestination(
        kind="orthanc",
        name="pacs",
        url="http://127.0.0.1:9",
        user="somebody",
        password_env=PASSWORD_ENV,
        watch=True,
        fetch=True,
    )
    settings = ServiceSettings(
        data_folder=tmp_path, destinations=(archive,), queues=queues, disk_reserve_mib=0
    )
    found: set[str] = set()

    def at_work(*_: Any, also: Callable[[Any], list[Any]]) -> None:
        found.update(duty.name for duty in also(dict))

    monkeypatch.setattr(work, "at_work", at_work)
    monkeypatch.delenv(PASSWORD_ENV, raising=False)
    if duties:
        with pytest.raises(SettingsError, match=PASSWORD_ENV):
            work.work(settings, threading.Event())
        monkeypatch.setenv(PASSWORD_ENV, "secret")
    work.work(settings, threading.Event())
    assert {name for name in found if name.startswith(("watch-", "fetch-"))} == duties
    assert {"arriving", "matching", "deliver", "records"} <= found
