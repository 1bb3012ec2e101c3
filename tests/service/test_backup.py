"""deploy/backup: what a dump points to is in the copy, and both come back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contourcast.service.access.keys import list_keys
from contourcast.service.index.database import Index
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.data import REPOSITORY, peer
from support.http import served
from support.postgres import Cluster, postgres
from support.server import form_files

pytestmark = pytest.mark.peer
SCRIPTS = REPOSITORY / "deploy" / "backup"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with postgres() as running:
        yield running


def run(script: str, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    peer("pg_dump")
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def back_up(url: str, store: Path, to: Path) -> str:
    ran = run("backup.sh", BACKUP_DATABASE=url, BACKUP_STORE=store, BACKUP_TO=to)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def files(folder: Path) -> dict[str, bytes]:
    """Relative paths and contents, but for drafts."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".drafts" not in path.parts
    }


def taken_in(settings: ServiceSettings, course: CourseFiles) -> None:
    """A service that has the course."""
    from contourcast.service.api.app import create_app

    with served(create_app(settings)) as http:
        answer = http.post("/v1/instances", files=form_files(course.paths))
        assert answer.status_code == 200, answer.text


def opened(settings: ServiceSettings) -> Records:
    return open_records(settings, role="test")


def test_a_backup_comes_back_whole_and_the_next_copies_only_what_is_new(
    tmp_path: Path, cluster: Cluster, course: CourseFiles
) -> None:
    here = ServiceSettings(data_folder=tmp_path / "here", database_url=cluster.database("here"))
    taken_in(here, course)
    store, backup = tmp_path / "here" / "store", tmp_path / "backup"
    told = back_up(here.database_url, store, backup)
    assert f"copied {len(files(store))} files" in told
    assert "copied 0 files" in back_up(here.database_url, store, backup)
    assert files(backup / "store") == files(store)
    assert not [p for p in backup.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]

    there = ServiceSettings(data_folder=tmp_path / "there", database_url=cluster.database("there"))
    dump = sorted((backup / "database").glob("*.dump"))[-1]
    ran = run(
        "restore.sh", str(dump), RESTORE_DATABASE=there.database_url,
        RESTORE_STORE=tmp_path / "there" / "store", BACKUP_TO=backup,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    before, after = opened(here), opened(there)
    try:
        for uid in (course.planning_ct.series_uid, course.cbct.series_uid):
            kept = before.archive.instances_of(uid)
            assert len(kept) > 1
            assert after.archive.instances_of(uid) == kept
    finally:
        before.close()
        after.close()
    assert files(tmp_path / "there" / "store") == files(store)


def test_a_store_that_is_not_mounted_is_no_empty_one(tmp_path: Path, cluster: Cluster) -> None:
    url = cluster.database("unmounted")
    (tmp_path / "store").mkdir()
    ran = run(
        "backup.sh", BACKUP_DATABASE=url, BACKUP_STORE=tmp_path / "store", BACKUP_TO=tmp_path / "to"
    )
    assert ran.returncode == 1
    assert "no store" in ran.stderr
    assert not (tmp_path / "to").exists()


def test_a_database_that_is_away_leaves_no_dump(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".contourcast-store").touch()
    url = cluster.database("away").replace("/away", "/nowhere")
    ran = run(
        "backup.sh", BACKUP_DATABASE=url, BACKUP_STORE=tmp_path / "store", BACKUP_TO=tmp_path / "to"
    )
    assert ran.returncode != 0
    assert not list((tmp_path / "to").rglob("*.dump"))


def test_a_restore_touches_no_database_that_holds_something(
    tmp_path: Path, cluster: Cluster
) -> None:
    url = cluster.database("full")
    index = Index(url)
    try:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / ".contourcast-store").touch()
        back_up(url, tmp_path / "store", tmp_path / "to")
        (dump,) = (tmp_path / "to" / "database").iterdir()
        ran = run(
            "restore.sh", str(dump), RESTORE_DATABASE=url,
            RESTORE_STORE=tmp_path / "store", BACKUP_TO=tmp_path / "to",
        )  # fmt: skip
        assert ran.returncode != 0
        assert list_keys(index) == []
    finally:
        index.close()
    shutil.rmtree(tmp_path / "to")
