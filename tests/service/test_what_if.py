"""Rows of the table of docs/reliability.md that no other module of tests is about."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import NamedTuple, Self

import pydicom
import pytest
from httpx import Client, Response
from pydicom import dcmwrite
from pydicom.uid import RLELossless
from sqlalchemy import select

from contourcast.service.api.app import create_app
from contourcast.service.index import database
from contourcast.service.index.tables import arrival, fraction, notice
from contourcast.service.intake.outcomes import Answer
from contourcast.service.intake.states import State
from contourcast.service.problems import DamagedError, DiskFullError
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.data import require
from support.department import Department
from support.http import served
from support.records import looking_into, stored_files
from support.server import form_files, request_for
from support.treatment import Treatment, make_treatment

QUIET = timedelta(seconds=20)
A_GAP_S_TIME = timedelta(minutes=11)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Treatment:
    return make_treatment(tmp_path_factory.mktemp("patient"), fractions=1, seed=1)


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    with looking_into(tmp_path / "data") as records:
        yield Department(records)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 16 MiB."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], capture_output=True)
    mounted = made.returncode == 0 and (
        subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True).returncode == 0
    )
    require("peer", mounted, "no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(path: Path) -> None:
    """All but some KiB of a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
        file.truncate(max(0, file.tell() - 2**16))


@contextmanager
def clock_off_by(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> Iterator[None]:
    """This machine's clock is wrong; the database's is not."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp((datetime.now(tz) + by).timestamp(), tz)

    with monkeypatch.context() as patch:
        patch.setattr(database, "datetime", Wrong)
        yield


def told(department: Department) -> list[str]:
    with department.records.index.read() as at:
        return list(at.execute(select(notice.c.kind).order_by(notice.c.number)).scalars())


# Archives that change what they keep


def test_what_a_pacs_compressed_and_renamed_is_what_was_here_and_both_are_written_down(
    department: Department, patient: Treatment, tmp_path: Path
) -> None:
    """Same UID, same pixels, another transfer syntax and another header."""
    first = patient.fractions[0].paths[0]
    department.send([first])
    dataset = pydicom.dcmread(first)
    dataset.PatientName = "COERCED^BY^ARCHIVE"
    dataset.compress(RLELossless, generate_instance_uid=False)
    changed = tmp_path / "changed.dcm"
    dcmwrite(changed, dataset, enforce_file_format=True)
    department.send([changed])
    with department.records.index.read() as at:
        rows = at.execute(select(arrival).order_by(arrival.c.number)).all()
    assert [row.outcome for row in rows] == ["stored", "already"]
    assert len({row.file_digest for row in rows}) == 2
    assert len(department.records.archive.instances_of(patient.fractions[0].series_uid)) == 1


def test_of_two_contents_of_one_uid_the_first_is_drawn_on(
    department: Department, patient: Treatment, tmp_path: Path
) -> None:
    cbct = patient.fractions[0]
    department.send(patient.paths)
    dataset = pydicom.dcmread(cbct.paths[3])
    dataset.PixelData = bytes(len(dataset.PixelData))
    other = tmp_path / "other.dcm"
    dataset.save_as(other)
    department.send([other])
    department.wait()
    (series,) = (s for s in department.records.archive.series() if s.series_uid == cbct.series_uid)
    assert (series.conflicts, series.instances) == (1, len(cbct.paths))
    assert cbct.series_uid not in department.jobs(), "a person says which is right"
    with department.records.index.read() as at:
        (asked,) = at.execute(select(fraction).where(fraction.c.state == "needs_person"))
    first = Answer(question="conflict", choice=(asked.question_json["choices"][0]["value"],))
    department.fractions.answer(asked.revision_id, first, by="somebody")
    order = department.jobs()[cbct.series_uid].order
    kept = department.records.archive.instances_of(cbct.series_uid)
    assert order["cbct"]["files"] == sorted(one.file_digest for one in kept)


# Series that never end


def test_a_series_with_a_gap_waits_is_told_of_once_and_goes_on_when_the_slice_comes(
    department: Department, patient: Treatment
) -> None:
    cbct = patient.fractions[0]
    department.send([*patient.plan_paths, *cbct.paths[:5], *cbct.paths[6:]])
    department.wait()
    assert cbct.series_uid not in department.jobs()
    late = department.records.index.now() + A_GAP_S_TIME
    for _ in range(3):
        department.arriving.look(late)
    assert told(department).count("series.incomplete") == 1
    department.send([cbct.paths[5]])
    department.wait()
    assert department.jobs()[cbct.series_uid].state is State.MATCHED


# Power that goes, disks that fill


def test_a_file_that_was_cut_short_behind_our_back_is_never_read(
    department: Department, patient: Treatment
) -> None:
    """A rename reached the disk and the content did not: what a power cut leaves at its worst."""
    cbct = patient.fractions[0]
    department.send(patient.paths)
    department.wait()
    job = department.jobs()[cbct.series_uid]
    (kept, *_) = department.records.archive.instances_of(cbct.series_uid)
    path = department.records.archive.path(kept)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError):
        department.drawn(job)
    (lost,) = (p for p in cbct.paths if pydicom.dcmread(p).SOPInstanceUID == kept.sop_uid)
    department.send([lost])
    assert department.records.archive.path(kept).stat().st_size == kept.size_bytes


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_below_the_reserve_nothing_comes_in_and_what_was_promised_is_finished(
    patient: Treatment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looking_into(tmp_path / "data") as records:
        department = Department(records)
        department.send(patient.paths)
        department.wait()
        (job,) = department.jobs().values()
    free = {"bytes": 10 * 2**20}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 0, free["bytes"]))
    settings = ServiceSettings(data_folder=tmp_path / "data", disk_reserve_mib=10)
    with served(create_app(settings)) as http:
        files = form_files(list(patient.fractions[0].paths[:1]))
        assert http.post("/v1/instances", files=files).status_code == 200, "on the line"
        free["bytes"] -= 1
        before = stored_files(tmp_path / "data")
        refused = http.post("/v1/instances", files=files)
        assert (refused.status_code, refused.json()["status"]) == (507, 507)
        assert http.get("/health/ready").status_code == 503
        assert stored_files(tmp_path / "data") == before
    with looking_into(tmp_path / "data") as records:
        department = Department(records)
        ended = department.steps.end(job.id, department.finish(job.id, department.drawn(job)))
        assert ended == {}
        assert records.propagations.job(job.id).state is State.AWAITING_REVIEW


def test_the_disk_of_the_store_is_watched_where_it_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "elsewhere"

    def usage(folder: Path) -> Usage:
        return Usage(2**30, 0, 0 if store in (folder, *folder.parents) else 2**29)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    settings = ServiceSettings(
        data_folder=tmp_path / "data", store=f"file://{store}", disk_reserve_mib=10
    )
    with served(create_app(settings)) as http:
        ready = http.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["checks"]["store"] == "free space is below the reserve"
        assert "contourcast_disk_free_bytes 0.0" in http.get("/metrics").text


@pytest.mark.peer
def test_a_disk_that_fills_in_the_middle_leaves_nothing_half_there(
    patient: Treatment, small_disk: Path
) -> None:
    """A real file system of a few MiB."""
    with looking_into(small_disk / "data") as records:
        small = Department(records)
        fill(small_disk / "ballast")
        with pytest.raises(DiskFullError):
            small.send(patient.fractions[0].paths)
        (small_disk / "ballast").unlink()
        small.send(patient.fractions[0].paths)
        kept = records.archive.instances_of(patient.fractions[0].series_uid)
        assert len(kept) == len(patient.fractions[0].paths)
        for one in kept:
            assert records.archive.path(one).stat().st_size == one.size_bytes


# Clocks that are wrong


@pytest.mark.parametrize("by", [-HOUR, HOUR], ids=["an hour late", "an hour early"])
def test_the_clock_of_whoever_takes_files_in_decides_nothing(
    department: Department, patient: Treatment, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    cbct = patient.fractions[0]
    with clock_off_by(monkeypatch, by):
        department.send(patient.paths)
    shown = department.records.index.now()
    assert department.arriving.look(shown) == 0, "not at once, however old it looks"
    assert department.arriving.look(shown + QUIET) == 2, "nor an hour later"
    department.fractions.look()
    assert cbct.series_uid in department.jobs()


@pytest.mark.parametrize("by", [-HOUR, HOUR], ids=["an hour late", "an hour early"])
def test_the_clock_of_whoever_watches_decides_nothing(
    department: Department, patient: Treatment, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    workers = department.records.workers
    department.send(patient.fractions[0].paths)
    with clock_off_by(monkeypatch, by):
        assert department.arriving.look() == 0
        workers.seen("elsewhere", "cpu")
        assert workers.listening("cpu", within_s=5.0)
    assert workers.silent_s()["elsewhere"] < 5.0


# More than one front door


def test_two_front_doors_over_one_database_are_one_service(
    tmp_path: Path, course: CourseFiles
) -> None:
    settings = ServiceSettings(data_folder=tmp_path / "data", disk_reserve_mib=0)
    with served(create_app(settings)) as one, served(create_app(settings)) as two:
        half = len(course.paths) // 2
        first = one.post("/v1/instances", files=form_files(course.paths[:half]))
        second = two.post("/v1/instances", files=form_files(course.paths))
        outcomes = [item["outcome"] for item in second.json()["instances"]]
        assert first.status_code == second.status_code == 200
        assert outcomes == ["already"] * half + ["stored"] * (len(course.paths) - half)
        asked = one.post("/v1/propagations", json=request_for(course))
        again = two.post("/v1/propagations", json=request_for(course))
        assert (asked.status_code, again.status_code) == (202, 200)
        assert asked.json()["id"] == again.json()["id"]
        cancelled = two.delete(f"/v1/propagations/{again.json()['id']}")
        assert cancelled.status_code < 300
        seen = one.get(f"/v1/propagations/{asked.json()['id']}").json()
        assert seen["state"] == State.CANCELLED


def test_whoever_is_told_to_come_back_is_told_when(tmp_path: Path, course: CourseFiles) -> None:
    """More uploads at once than are taken: 503, with a time."""
    settings = ServiceSettings(
        data_folder=tmp_path / "data", disk_reserve_mib=0, uploads_at_once=1, upload_idle_s=5.0
    )

    said: list[Response] = []

    def slowly() -> Iterator[bytes]:
        yield b"PK"
        said.append(http.post("/v1/instances", files=form_files(course.paths[:1])))
        yield b"no zip"

    headers = {"Content-Type": "application/zip"}
    with served(create_app(settings)) as http, Client(base_url=http.base_url) as slow:
        # whichever of the two comes first is taken; again, until it was the slow one
        tries = (slow.post("/v1/instances", content=slowly(), headers=headers) for _ in range(20))
        refused = next(answer for answer in tries if said[-1].status_code != 200)
        assert refused.status_code == 422
        assert (said[-1].status_code, said[-1].headers["Retry-After"]) == (503, "10")
