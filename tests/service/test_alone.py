"""Who does something alone, and what becomes of the lock of somebody who sleeps or is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from contourcast.service.index import database
from contourcast.service.index.database import Index
from contourcast.service.problems import BusyError
from support.postgres import Cluster, postgres

HOLDER = """
import sys
from contourcast.service.index import database
database.SILENT_S, database.AWAKE_S = 2, 0.3
from contourcast.service.problems import BusyError
index = database.Index(sys.argv[1])
try:
    with index.alone("watch") as mine:
        print("mine" if mine else "another's", flush=True)
        sys.stdin.readline()
    print("given back", flush=True)
except BusyError:
    print("taken away", flush=True)
index.close()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with postgres() as running:
        yield running


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.database("alone")


@pytest.fixture
def index(url: str) -> Iterator[Index]:
    made = Index(url)
    yield made
    made.close()


@pytest.fixture
def holder(url: str, index: Index) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def is_free(index: Index) -> bool:
    with index.alone("watch") as mine:
        return mine


def within(limit_s: float, reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + limit_s
    while not (found := reached()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.peer
def test_whoever_works_for_long_keeps_the_name(index: Index, holder: subprocess.Popen[str]) -> None:
    assert not within(5.0, lambda: is_free(index)), "more than twice the silence that is allowed"
    told, _ = holder.communicate("\n")
    assert told == "given back\n"
    assert is_free(index)


@pytest.mark.peer
def test_whoever_is_frozen_loses_the_name_and_is_told_on_waking(
    index: Index, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGSTOP)
    assert within(20.0, lambda: is_free(index))
    holder.send_signal(signal.SIGCONT)
    told, _ = holder.communicate("\n")
    assert told == "taken away\n"


@pytest.mark.peer
def test_whoever_is_killed_loses_the_name_at_once(
    index: Index, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    assert within(5.0, lambda: is_free(index))


def sleep_in_a_transaction(sleeping: Index, looking: Index) -> None:
    with sleeping.write() as at:
        at.execute(text("SELECT 1"))
        assert within(20.0, lambda: not in_transactions(looking))


def in_transactions(index: Index) -> int:
    """Sessions that began a transaction and do nothing in it."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    with index.read() as at:
        return int(at.execute(text(query)).scalar_one())


@pytest.mark.peer
def test_a_session_that_sleeps_in_a_transaction_is_ended(
    url: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SILENT_S", 1)
    sleeping = Index(url)
    with pytest.raises(BusyError):
        sleep_in_a_transaction(sleeping, index)
    sleeping.close()


def test_the_same_on_sqlite(tmp_path: Path) -> None:
    index = Index(f"sqlite:///{tmp_path / 'index.sqlite3'}")
    with index.alone("watch") as first, index.alone("watch") as second:
        assert (first, second) == (True, False)
    assert is_free(index)
    index.close()
