"""What goes in time, and what stays, each with its reason."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.archive import instance_key
from contourcast.service.index.database import Index
from contourcast.service.index.tables import course, fraction, instance, propagation, series
from contourcast.service.keeping.retention import (
    Deletion,
    Item,
    Plan,
    Retention,
    carry_out,
    make_plan,
)
from contourcast.service.pacs.door import Receipt
from contourcast.service.problems import PeerUnreachableError
from contourcast.service.store.cache import LruCache
from contourcast.service.store.files import FolderStore
from contourcast.service.store.wado import PacsStore
from support.dicom_factory import CtFiles, make_ct_series
from support.rows import add

LAST_FRACTION = "2026-03-02T10:00:00"
DAY_31 = datetime(2026, 4, 2, 12, tzinfo=UTC)


class Department:
    """An archive that is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away = False
        folder.mkdir()

    def take(self, path: Path) -> None:
        shutil.copy(path, self.folder / read_header(path).sop_instance_uid)

    def confirm(
        self, paths: Sequence[Path], *, same: Callable[[Path, Path], bool]
    ) -> list[Receipt]:
        if self.away:
            raise PeerUnreachableError("'pacs' does not answer")
        receipts = []
        for path in paths:
            uid = read_header(path).sop_instance_uid
            there = (self.folder / uid).exists() and same(path, self.folder / uid)
            receipts.append(
                Receipt(sop_instance_uid=uid, outcome="stored" if there else "conflict")
            )
        return receipts

    def fetch(self, study: str, series: str, instance: str, into: Path) -> Path:
        if self.away or not (self.folder / instance).exists():
            raise PeerUnreachableError("'pacs' does not answer")
        return Path(shutil.copy(self.folder / instance, into))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(f"sqlite:///{tmp_path / 'index.sqlite3'}")
    yield index
    index.close()


@pytest.fixture
def blobs(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def department(tmp_path: Path) -> Department:
    return Department(tmp_path / "department")


def take_in(index: Index, blobs: FolderStore | PacsStore, scan: CtFiles, folder: Path) -> None:
    """A series, as the archive would have it."""
    add(index, series, uid=scan.series_uid, modality="CT")
    for path in scan.paths:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        copy = Path(shutil.copy(path, folder / "copy"))
        blobs.put({instance_key(scan.series_uid, digest): copy})
        add(
            index, instance, sop_uid=read_header(path).sop_instance_uid, modality="CT",
            series_uid=scan.series_uid, file_digest=digest, bytes=len(content),
        )  # fmt: skip


def treat(index: Index, planning: CtFiles, fractions: Sequence[tuple[CtFiles, str]]) -> None:
    """A course, all of it decided."""
    add(
        index, course, id="c1", planning_series_uid=planning.series_uid,
        made_at="2026-01-05T08:00:00+00:00",
    )  # fmt: skip
    for number, (scan, at) in enumerate(fractions, start=1):
        add(
            index, fraction, revision_id=f"r{number}", series_uid=scan.series_uid, course_id="c1",
            acquired_at=at, state="matched", made_at="2026-01-05T08:00:00+00:00",
        )  # fmt: skip
        add(
            index, propagation, id=f"p{number}", number=number, course_id="c1", state="approved",
            made_at="2026-01-05T08:00:00+00:00", ended=1,
        )  # fmt: skip


@pytest.fixture
def scans(tmp_path: Path) -> list[CtFiles]:
    return [make_ct_series(tmp_path / name, name=name) for name in ("planning", "day1", "day2")]


@pytest.fixture
def treated(
    index: Index, blobs: FolderStore, scans: list[CtFiles], tmp_path: Path
) -> list[CtFiles]:
    for scan in scans:
        take_in(index, blobs, scan, tmp_path)
    treat(index, scans[0], [(scans[1], "2026-01-06T10:00:00"), (scans[2], LAST_FRACTION)])
    return scans


def never(deletion: Deletion) -> None:
    pytest.fail(f"{deletion.kind} would be deleted")


def due(plan: Plan) -> set[str]:
    return {item.subject for item in plan.items if item.due}


def plan_at(index: Index, blobs: FolderStore | PacsStore, at: datetime) -> Plan:
    return make_plan(index, blobs, at=at, retention=Retention())


def rows_of(index: Index) -> int:
    with index.read() as at:
        return len(at.execute(instance.select()).all())


def test_images_are_due_thirty_days_after_the_last_fraction(
    index: Index, blobs: FolderStore, treated: list[CtFiles]
) -> None:
    last = datetime(2026, 3, 2, 10, tzinfo=UTC)
    assert due(plan_at(index, blobs, last + timedelta(days=29, hours=23))) == set()
    plan = plan_at(index, blobs, last + timedelta(days=30))
    assert due(plan) == {scan.series_uid for scan in treated}
    assert plan.due_bytes == sum(p.stat().st_size for s in treated for p in s.paths)
    assert "last fraction of its course was on 2026-03-02" in plan.items[0].why


def test_a_plan_alone_deletes_nothing(
    index: Index, blobs: FolderStore, treated: list[CtFiles]
) -> None:
    before = list(blobs.list(""))
    plan_at(index, blobs, DAY_31)
    assert list(blobs.list("")) == before
    assert rows_of(index) == 15


def test_what_the_archive_holds_is_told_and_then_deleted(
    index: Index, blobs: FolderStore, treated: list[CtFiles], department: Department
) -> None:
    for scan in treated:
        for path in scan.paths:
            department.take(path)
    blobs.put(
        {"results/p1/RS.dcm": Path(shutil.copy(treated[0].paths[0], blobs.folder.parent / "rs"))}
    )
    told: list[tuple[Deletion, int]] = []
    done = carry_out(
        plan_at(index, blobs, DAY_31), index, blobs, holder=department,
        told=lambda deletion: told.append((deletion, len(list(blobs.list("instances/"))))),
    )  # fmt: skip
    assert [deletion for deletion, _ in told] == list(done.deleted)
    assert [left for _, left in told] == [15, 10, 5]  # told before
    assert {deletion.subject for deletion in done.deleted} == {s.series_uid for s in treated}
    assert done.kept == ()
    assert list(blobs.list("")) == ["results/p1/RS.dcm"]
    assert rows_of(index) == 0
    assert plan_at(index, blobs, DAY_31).items == ()


def test_without_an_archive_nothing_is_deleted_and_it_is_said(
    index: Index, blobs: FolderStore, treated: list[CtFiles]
) -> None:
    done = carry_out(plan_at(index, blobs, DAY_31), index, blobs, holder=None, told=never)
    assert [why for _, why in done.kept] == ["no archive is named that could hold them"] * 3
    assert len(list(blobs.list(""))) == 15


def test_what_the_archive_lacks_holds_otherwise_or_cannot_say_stays(
    index: Index, blobs: FolderStore, treated: list[CtFiles], department: Department
) -> None:
    for path in treated[0].paths[1:]:  # one is missing
        department.take(path)
    for path in treated[1].paths:  # one differs
        department.take(path)
    other = department.folder / treated[1].sop_uids[2]
    dataset = pydicom.dcmread(other)
    dataset.PixelData = b"\1" * 160
    dataset.save_as(other)
    for path in treated[2].paths:  # a name was corrected
        department.take(path)
    renamed = department.folder / treated[2].sop_uids[0]
    dataset = pydicom.dcmread(renamed)
    dataset.PatientName = "Another^Name"
    dataset.save_as(renamed)
    plan = plan_at(index, blobs, DAY_31)
    done = carry_out(plan, index, blobs, holder=department, told=lambda _: None)
    assert {deletion.subject for deletion in done.deleted} == {treated[2].series_uid}
    assert {item.subject for item, _ in done.kept} == {s.series_uid for s in treated[:2]}
    assert all("does not hold the same of 1" in why for _, why in done.kept)
    department.away = True
    plan = plan_at(index, blobs, DAY_31)
    done = carry_out(plan, index, blobs, holder=department, told=never)
    assert {why for _, why in done.kept} == {"'pacs' does not answer"}
    assert len(list(blobs.list("instances/"))) == 10


@pytest.mark.parametrize("state", ["awaiting_review", "drawing", "needs_person", "delivering"])
def test_images_stay_while_a_person_or_the_machine_is_not_done(
    index: Index, blobs: FolderStore, treated: list[CtFiles], state: str
) -> None:
    with index.write() as at:
        at.execute(propagation.update().where(propagation.c.id == "p2").values(state=state))
    plan = plan_at(index, blobs, DAY_31)
    assert due(plan) == set()
    assert {item.why for item in plan.items} == {"a propagation of its course is not decided"}


def test_a_question_to_a_person_keeps_the_images(
    index: Index, blobs: FolderStore, treated: list[CtFiles]
) -> None:
    with index.write() as at:
        at.execute(fraction.update().values(state="needs_person"))
    assert due(plan_at(index, blobs, DAY_31)) == set()


def test_a_scan_of_two_courses_stays_as_long_as_the_later_one(
    index: Index, blobs: FolderStore, treated: list[CtFiles]
) -> None:
    add(
        index, course, id="c2", planning_series_uid=treated[0].series_uid,
        made_at="2026-03-30T08:00:00+00:00",
    )  # fmt: skip
    assert due(plan_at(index, blobs, DAY_31)) == {s.series_uid for s in treated[1:]}


def test_what_belongs_to_no_course_stays(
    index: Index, blobs: FolderStore, scans: list[CtFiles], tmp_path: Path
) -> None:
    take_in(index, blobs, scans[0], tmp_path)
    plan = plan_at(index, blobs, DAY_31)
    assert [(item.due, item.why) for item in plan.items] == [(False, "it belongs to no course")]


def test_a_slice_that_came_meanwhile_stays(
    index: Index, blobs: FolderStore, treated: list[CtFiles], department: Department
) -> None:
    for scan in treated:
        for path in scan.paths:
            department.take(path)
    plan = plan_at(index, blobs, DAY_31)
    add(
        index, instance, sop_uid="1.2.3", series_uid=treated[0].series_uid, file_digest="f" * 64,
    )  # fmt: skip
    carry_out(plan, index, blobs, holder=department, told=lambda _: None)
    assert rows_of(index) == 1


def test_a_run_that_was_killed_is_finished_by_the_next(
    index: Index, blobs: FolderStore, treated: list[CtFiles], department: Department
) -> None:
    for scan in treated:
        for path in scan.paths:
            department.take(path)
    for key in plan_at(index, blobs, DAY_31).items[0].keys[:3]:
        blobs.delete(key)
    done = carry_out(
        plan_at(index, blobs, DAY_31), index, blobs, holder=department, told=lambda _: None
    )
    assert len(done.deleted) == 3
    assert rows_of(index) == 0


def test_what_cannot_be_told_is_not_done(
    index: Index, blobs: FolderStore, treated: list[CtFiles], department: Department
) -> None:
    for scan in treated:
        for path in scan.paths:
            department.take(path)

    def full(_: Deletion) -> None:
        raise OSError("the log is full")

    with pytest.raises(OSError, match="full"):
        carry_out(plan_at(index, blobs, DAY_31), index, blobs, holder=department, told=full)
    assert len(list(blobs.list("instances/"))) == 15


def test_before_a_pacs_images_are_left_to_it_and_their_rows_stay(
    index: Index, scans: list[CtFiles], department: Department, tmp_path: Path
) -> None:
    blobs = PacsStore(
        FolderStore(tmp_path / "own"), department,
        cache=LruCache(tmp_path / "cache", limit_bytes=10**9),
    )  # fmt: skip
    for scan in scans:
        take_in(index, blobs, scan, tmp_path)
    treat(index, scans[0], [(scans[1], LAST_FRACTION), (scans[2], LAST_FRACTION)])
    for scan in scans[:2]:
        for path in scan.paths:
            department.take(path)
    plan = plan_at(index, blobs, DAY_31)
    done = carry_out(plan, index, blobs, holder=None, told=lambda _: None)
    assert {deletion.subject for deletion in done.deleted} == {s.series_uid for s in scans[:2]}
    assert [item.subject for item, _ in done.kept] == [scans[2].series_uid]
    assert rows_of(index) == 15
    assert len(list(blobs.own.list("instances/"))) == 5
    assert len(list(blobs.list("instances/"))) == 15
    department.take(scans[2].paths[0])
    changed = department.folder / scans[2].sop_uids[0]
    dataset = pydicom.dcmread(changed)
    dataset.PixelData = b"\1" * 160
    dataset.save_as(changed)
    for path in scans[2].paths[1:]:
        department.take(path)
    done = carry_out(plan, index, blobs, holder=None, told=lambda _: None)
    assert [why for _, why in done.kept] == ["the PACS does not hold the same of 1 of them"]


def put_derived(blobs: FolderStore, folder: Path, at: datetime, words: str) -> str:
    path = folder / "made"
    path.write_text(words)
    os.utime(path, (at.timestamp(), at.timestamp()))
    key = f"derived/{hashlib.sha256(words.encode()).hexdigest()}.npz"
    blobs.put({key: path})
    return key


def test_results_of_steps_go_after_a_week_unless_older_work_still_goes_on(
    index: Index, blobs: FolderStore, tmp_path: Path
) -> None:
    at = datetime(2026, 4, 2, 12, tzinfo=UTC)
    old = put_derived(blobs, tmp_path, at - timedelta(days=8), "old")
    young = put_derived(blobs, tmp_path, at - timedelta(days=6), "young")
    plan = plan_at(index, blobs, at)
    assert [(item.kind, item.keys, item.due) for item in plan.items] == [("derived", (old,), True)]
    add(
        index, propagation, id="p1", number=1, state="drawing", ended=0,
        made_at=(at - timedelta(days=9)).isoformat(),
    )  # fmt: skip
    assert plan_at(index, blobs, at).items == ()
    with index.write() as rows:
        rows.execute(propagation.update().values(ended=1))
    told: list[Deletion] = []
    done = carry_out(plan_at(index, blobs, at), index, blobs, holder=None, told=told.append)
    assert list(blobs.list("")) == [young]
    assert (
        [(d.files, d.size_bytes) for d in told]
        == [(1, 3)]
        == [(d.files, d.size_bytes) for d in done.deleted]
    )


def test_items_that_are_not_due_are_passed_over(index: Index, blobs: FolderStore) -> None:
    item = Item(kind="images", subject="1.2", due=False, why="", keys=(), size_bytes=0)
    done = carry_out(Plan(at=DAY_31, items=(item,)), index, blobs, holder=None, told=never)
    assert (done.deleted, done.kept) == ((), ())
