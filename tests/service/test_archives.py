"""The real programs that other tests lean on come up, die and come back with what they held."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.data import peer
from support.dicom_factory import make_ct_series
from support.orthanc import orthanc
from support.postgres import postgres

pytestmark = pytest.mark.peer


def test_orthanc_holds_what_it_answered_for_after_a_kill(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct")
    with orthanc(tmp_path / "orthanc") as archive:
        assert archive.upload(series.paths) == ["Success"] * len(series.paths)
        archive.kill()
        archive.start()
        assert archive.upload(series.paths) == ["AlreadyStored"] * len(series.paths)
        assert archive.series() == [series.series_uid]


def test_postgres_holds_what_it_committed_after_a_kill() -> None:
    with postgres() as cluster:
        url = cluster.database("held")
        _psql(url, "create table held (n int); insert into held values (42)")
        cluster.kill()
        cluster.start()
        assert _psql(url, "select n from held") == "42"
        cluster.stop()
        cluster.start()
        assert _psql(url, "select n from held") == "42"
        assert _psql(cluster.database("held"), "select to_regclass('held') is null") == "t"


def test_a_cluster_leaves_nothing_behind() -> None:
    with postgres() as cluster:
        folder = cluster.folder
    assert not folder.exists()


def _psql(url: str, sql: str) -> str:
    ran = subprocess.run(
        [peer("psql"), url, "-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql],
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()
