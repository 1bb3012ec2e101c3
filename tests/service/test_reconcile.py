"""What an Orthanc has is found and taken, whatever is killed, late, restored, or down."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.pacs import reconcile
from contourcast.service.pacs.connection import Peer
from contourcast.service.pacs.door import Taken
from contourcast.service.pacs.orthanc import Change, Changes, HeldInstance, HeldSeries, Orthanc
from contourcast.service.pacs.reconcile import (
    BACK_EVERY,
    SETTLED_AFTER,
    Count,
    Look,
    Memory,
    Position,
    Reconciler,
    counted,
    is_due,
    missing,
    position_at,
    read_page,
    watch,
)
from contourcast.service.problems import DiskFullError, PeerError, PeerUnreachableError
from support.dicom_factory import CtFiles, make_ct_series, make_structure_set, uid
from support.orthanc import RealOrthanc, orthanc
from support.stub import Asked, Says, stub

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)  # two days after the studies of the factory

# ------------------------------------------------------------------------------------- decisions


def line(seq: int, kind: str = "NewInstance", resource: str = "a", at: str = "t") -> Change:
    return Change(seq=seq, kind=kind, resource=resource, at=at)


def page(*lines: Change, last: int | None = None, done: bool = True) -> Changes:
    return Changes(lines=lines, last=lines[-1].seq if last is None else last or 0, done=done)


def test_a_diary_that_goes_on_yields_what_follows_the_line_at_which_we_stopped() -> None:
    stopped = position_at(page(line(7, resource="old")))
    assert stopped.since == 6
    reading = read_page(
        stopped,
        page(
            line(7, resource="old"),
            line(8, resource="i1"),
            line(9, "NewSeries", "s1"),
            line(10, "NewStudy", "x"),
            line(11, resource="i2"),
            line(13, "StableSeries", "s1"),
            line(14, "StableSeries", "s2"),
            done=False,
        ),
    )
    assert reading.diary == "goes on"
    assert reading.series == ("s1", "s2")
    assert reading.instances == ("i1", "i2")
    assert reading.position == position_at(page(line(14, "StableSeries", "s2")))
    assert not reading.done


def test_a_diary_without_news_leaves_the_position() -> None:
    stopped = position_at(page(line(7)))
    reading = read_page(stopped, page(line(7)))
    assert (reading.diary, reading.series, reading.instances) == ("goes on", (), ())
    assert reading.position == stopped


def test_an_empty_diary_that_fills_goes_on() -> None:
    empty = position_at(page(last=0))
    assert (empty.since, empty.seq) == (0, 0)
    assert read_page(empty, page(last=0)).position == empty
    filled = read_page(empty, page(line(1, "NewSeries", "s")))
    assert (filled.diary, filled.series) == ("goes on", ("s",))


@pytest.mark.parametrize(
    ("stopped", "answer"),
    [
        (position_at(page(line(7))), page(last=3)),
        (position_at(page(line(7))), page(line(7, resource="of another database"))),
        (position_at(page(line(7))), page(line(7, at="another time"), line(8))),
        (Position(seq=7, mark=""), page(last=3)),
    ],
    ids=["shorter", "another line", "the same on another day", "shorter, without a line"],
)
def test_a_restored_database_is_another_diary(stopped: Position, answer: Changes) -> None:
    assert read_page(stopped, answer).diary == "is another"


@pytest.mark.parametrize(
    ("stopped", "answer", "instances"),
    [
        (position_at(page(line(7))), page(line(9, resource="i")), ("i",)),
        (position_at(page(line(7))), page(last=12), ()),
        (Position(seq=7, mark=""), page(last=12), ()),
    ],
    ids=["the line is gone with its series", "all lines are gone", "again"],
)
def test_lines_that_are_gone_are_a_gap_that_holds_nothing_up(
    stopped: Position, answer: Changes, instances: tuple[str, ...]
) -> None:
    reading = read_page(stopped, answer)
    assert reading.diary == "has a gap"
    assert reading.instances == instances
    assert reading.position == position_at(answer)
    again = read_page(reading.position, page(*answer.lines, last=answer.last))
    assert again.diary == "goes on"
    assert again.instances == ()


@given(
    kinds=st.lists(st.sampled_from(["NewInstance", "NewSeries", "StableSeries", "NewStudy"])),
    size=st.integers(2, 7),
)
def test_no_line_is_lost_or_read_twice_however_the_pages_are_cut(
    kinds: list[str], size: int
) -> None:
    diary = [line(seq, kind, f"r{seq}") for seq, kind in enumerate(kinds, start=1)]
    position = Position(seq=0, mark="")
    series: list[str] = []
    instances: list[str] = []
    for _ in range(len(diary) + 1):
        rest = [one for one in diary if one.seq > position.since]
        cut = rest[:size]
        last = cut[-1].seq if cut else len(diary)
        reading = read_page(position, page(*cut, last=last, done=len(rest) <= size))
        assert reading.diary == "goes on"
        position = reading.position
        series += reading.series
        instances += reading.instances
        if reading.done:
            break
    assert series == [one.resource for one in diary if "Series" in one.kind]
    assert instances == [one.resource for one in diary if one.kind == "NewInstance"]


def test_looking_back_is_due_at_the_start_and_each_hour() -> None:
    assert is_due(None, NOW) == "start"
    assert is_due(NOW, NOW + BACK_EVERY - timedelta(seconds=1)) is None
    assert is_due(NOW, NOW + BACK_EVERY) == "hour"


def listed(count: int) -> HeldSeries:
    return HeldSeries(
        id="series",
        series_instance_uid="1.2",
        study_instance_uid="1",
        modality="CT",
        instances=tuple(
            HeldInstance(id=f"i{k}", sop_instance_uid=f"1.2.{k}", size_bytes=1)
            for k in range(count)
        ),
        is_stable=False,
    )


def test_missing_is_what_the_archive_has_and_we_have_not() -> None:
    assert [one.id for one in missing(listed(3), {"1.2.1", "9.9"})] == ["i0", "i2"]
    assert missing(listed(3), ["1.2.0", "1.2.1", "1.2.2"]) == ()


def test_a_count_settles_when_two_looks_far_enough_apart_agree() -> None:
    first = counted(None, listed(5), NOW)
    assert (first.instances, first.settled) == (5, False)
    soon = counted(first, listed(5), NOW + SETTLED_AFTER - timedelta(seconds=1))
    assert not soon.settled
    assert counted(soon, listed(5), NOW + SETTLED_AFTER).settled


def test_a_count_that_changes_begins_anew() -> None:
    settled = counted(counted(None, listed(5), NOW), listed(5), NOW + SETTLED_AFTER)
    late = counted(settled, listed(6), NOW + 2 * SETTLED_AFTER)
    assert (late.instances, late.settled) == (6, False)


def test_a_clock_that_was_put_back_settles_nothing() -> None:
    first = counted(None, listed(5), NOW)
    back = counted(first, listed(5), NOW - timedelta(hours=1))
    assert not back.settled
    assert not counted(back, listed(5), NOW - timedelta(hours=1) + timedelta(seconds=5)).settled


# --------------------------------------------------------------------- what we have, for the test


@dataclass
class Shelf:
    """Door, holdings and cursor over a folder: a small service that only keeps files.

    What `set` is told is kept at once, as in one transaction.
    """

    folder: Path
    full: bool = False
    refuses: frozenset[str] = frozenset()
    memory: Memory = field(default_factory=lambda: Memory(position=None))
    files: dict[str, Path] = field(default_factory=dict)
    series: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    conflicts: list[str] = field(default_factory=list)
    brought: list[str] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)

    def take(self, files: Sequence[Path], *, source: str) -> Sequence[Taken]:
        if self.full:
            raise DiskFullError("free space is below the reserve")
        assert source == "orthanc"
        return [self._take(path) for path in files]

    def _take(self, path: Path) -> Taken:
        header = read_header(path)
        sop = header.sop_instance_uid
        self.brought.append(sop)
        if sop in self.refuses:
            return Taken(outcome="refused", sop_instance_uid=sop, code="dicom")
        if sop not in self.files:
            self.files[sop] = self.folder / f"{sop}.dcm"
            shutil.copy(path, self.files[sop])
            self.series[sop] = header.series_instance_uid
            return Taken(outcome="stored", sop_instance_uid=sop)
        if path.read_bytes() == self.files[sop].read_bytes():
            return Taken(outcome="already", sop_instance_uid=sop)
        self.conflicts.append(sop)
        return Taken(outcome="conflict", sop_instance_uid=sop)

    def known(self, series_instance_uid: str) -> Collection[str]:
        held = {sop for sop, series in self.series.items() if series == series_instance_uid}
        return held | self.refused

    def md5(self, sop_instance_uid: str) -> str:
        if sop_instance_uid not in self.files:
            return ""
        return hashlib.md5(self.files[sop_instance_uid].read_bytes()).hexdigest()

    def get(self) -> Memory:
        return self.memory

    def set(self, look: Look) -> None:
        self.counts |= {count.orthanc_id: count for count in look.counts}
        waiting = tuple(count for count in self.counts.values() if not count.settled)
        self.memory = Memory(position=look.position, waiting=waiting, failed=look.failed)
        self.refused |= set(look.refused)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    (tmp_path / "shelf").mkdir()
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[RealOrthanc]:
    with orthanc(tmp_path / "orthanc", stable_age_s=60) as running:
        yield running


@pytest.fixture
def client(archive: RealOrthanc) -> Iterator[Orthanc]:
    with Orthanc(archive.peer) as client:
        yield client


@pytest.fixture
def reconciler(client: Orthanc, shelf: Shelf, tmp_path: Path) -> Reconciler:
    return started(client, shelf, tmp_path)


def started(client: Orthanc, shelf: Shelf, tmp_path: Path) -> Reconciler:
    """A reconciler that knows nothing but what the cursor kept."""
    staging = tmp_path / "staging"
    staging.mkdir(exist_ok=True)
    return Reconciler(client, shelf, shelf, shelf, folder=staging)


def look_until_done(reconciler: Reconciler, at: datetime = NOW) -> list[Look]:
    looks = [reconciler.look(at)]
    while not looks[-1].done:
        looks.append(reconciler.look(at))
    return looks


# --------------------------------------------------------------------------------------- effects


@pytest.mark.peer
def test_what_was_there_before_us_and_what_comes_later_is_taken_once(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    before = make_ct_series(tmp_path / "before", name="before")
    archive.upload(before.paths)
    first = reconciler.look(NOW)
    assert (first.back, first.done, first.outcomes) == ("start", True, {"stored": 5})
    after = make_ct_series(tmp_path / "after", name="after")
    archive.upload(after.paths)
    second = reconciler.look(NOW)
    assert (second.back, second.outcomes) == (None, {"stored": 5})
    assert reconciler.look(NOW).outcomes == {}
    assert len(shelf.brought) == 10
    for path, sop in zip(
        (*before.paths, *after.paths), (*before.sop_uids, *after.sop_uids), strict=True
    ):
        assert shelf.files[sop].read_bytes() == path.read_bytes()
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.peer
def test_an_event_that_a_kill_swallowed_is_found_by_the_next_look(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    reconciler.look(NOW)
    series = make_ct_series(tmp_path / "ct")
    archive.upload(series.paths)
    archive.kill()  # long before StableAge: that series never becomes "stable" in its diary
    archive.start()
    assert reconciler.look(NOW).outcomes == {"stored": 5}
    kinds = {change["ChangeType"] for change in archive.http.get("/changes").json()["Changes"]}
    assert "StableSeries" not in kinds
    assert set(shelf.files) == set(series.sop_uids)


@pytest.mark.peer
def test_late_slices_are_taken_and_the_count_begins_anew(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    series = make_ct_series(tmp_path / "ct")
    archive.upload(series.paths[:3])
    reconciler.look(NOW)
    (settled,) = reconciler.look(NOW + SETTLED_AFTER).counts
    assert (settled.instances, settled.settled) == (3, True)
    assert reconciler.look(NOW + 2 * SETTLED_AFTER).counts == (), "it waits no more"
    archive.upload(series.paths[3:])
    late = reconciler.look(NOW + 3 * SETTLED_AFTER)
    assert late.outcomes == {"stored": 2}
    assert [(count.instances, count.settled) for count in late.counts] == [(5, False)]
    assert set(shelf.files) == set(series.sop_uids)


@pytest.mark.peer
def test_a_restored_database_is_noticed_even_when_it_has_grown_past_us(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    reconciler.look(NOW)
    backup = tmp_path / "backup"
    archive.kill()
    shutil.copytree(archive.folder / "db", backup)
    archive.start()
    lost = make_ct_series(tmp_path / "lost", name="lost")
    archive.upload(lost.paths)
    reconciler.look(NOW)

    archive.kill()
    shutil.rmtree(archive.folder / "db")
    shutil.copytree(backup, archive.folder / "db")
    archive.start()
    assert reconciler.look(NOW).back == "is another"
    assert reconciler.look(NOW).back is None

    found = make_ct_series(tmp_path / "found", name="found")
    archive.upload(found.paths)
    assert reconciler.look(NOW).outcomes == {"stored": 5}
    archive.kill()
    shutil.rmtree(archive.folder / "db")
    shutil.copytree(backup, archive.folder / "db")
    archive.start()
    others = [make_ct_series(tmp_path / str(k), name=f"other {k}") for k in range(2)]
    for other in others:
        archive.upload(other.paths)
    looks = look_until_done(reconciler)
    assert looks[0].back == "is another"
    assert {sop for other in others for sop in other.sop_uids} <= set(shelf.files)


@pytest.mark.peer
def test_a_diary_that_was_deleted_loses_nothing(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    reconciler.look(NOW)
    series = make_ct_series(tmp_path / "ct")
    archive.upload(series.paths)
    archive.http.delete("/changes").raise_for_status()
    look = reconciler.look(NOW)
    assert (look.back, look.outcomes) == ("has a gap", {"stored": 5})
    assert reconciler.look(NOW).back is None


@pytest.mark.peer
def test_a_series_that_was_deleted_there_holds_up_no_other(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    reconciler.look(NOW)
    gone = make_ct_series(tmp_path / "gone", name="gone")
    archive.upload(gone.paths)
    (series,) = archive.http.get("/series").json()
    archive.http.delete(f"/series/{series}").raise_for_status()
    kept = make_ct_series(tmp_path / "kept", name="kept")
    archive.upload(kept.paths)
    look_until_done(reconciler)
    assert set(shelf.files) == set(kept.sop_uids)


@pytest.mark.peer
def test_an_archive_that_is_down_is_caught_up_with_when_it_is_back(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    reconciler.look(NOW)
    position = shelf.memory.position
    series = make_ct_series(tmp_path / "ct")
    archive.upload(series.paths)
    archive.kill()
    with pytest.raises(PeerUnreachableError):
        reconciler.look(NOW)
    assert shelf.memory.position == position
    archive.start()
    assert reconciler.look(NOW).outcomes == {"stored": 5}


@pytest.mark.peer
def test_a_door_that_is_closed_is_tried_again(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    archive.upload(make_ct_series(tmp_path / "ct").paths)
    shelf.full = True
    with pytest.raises(DiskFullError):
        reconciler.look(NOW)
    assert shelf.memory.position is None
    assert list((tmp_path / "staging").iterdir()) == []
    shelf.full = False
    assert reconciler.look(NOW).outcomes == {"stored": 5}


@pytest.mark.peer
def test_whoever_starts_anew_goes_on_from_the_cursor(
    archive: RealOrthanc, client: Orthanc, shelf: Shelf, tmp_path: Path
) -> None:
    archive.upload(make_ct_series(tmp_path / "one", name="one").paths)
    started(client, shelf, tmp_path).look(NOW)
    archive.upload(make_ct_series(tmp_path / "two", name="two").paths)
    # Beyond the last days, so that only the diary can tell of it.
    look = started(client, shelf, tmp_path).look(NOW + timedelta(days=30))
    assert (look.back, look.outcomes) == ("start", {"stored": 5})
    assert len(shelf.brought) == 10


@pytest.mark.peer
def test_what_the_door_refuses_is_not_pulled_for_ever(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    series = make_ct_series(tmp_path / "ct")
    shelf.refuses = frozenset(series.sop_uids[:1])
    archive.upload(series.paths)
    look = reconciler.look(NOW)
    assert (look.outcomes, look.refused) == ({"stored": 4, "refused": 1}, series.sop_uids[:1])
    assert reconciler.look(NOW + BACK_EVERY).outcomes == {}


@pytest.mark.peer
def test_a_conflict_that_orthanc_hid_reaches_the_door_once(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    ours = make_ct_series(tmp_path / "ours")
    theirs = make_ct_series(tmp_path / "theirs", ours.hu_zyx.astype(int) + 1)
    assert ours.sop_uids == theirs.sop_uids
    reconciler.look(NOW)
    shelf.take(ours.paths, source="orthanc")
    archive.upload(theirs.paths)
    assert reconciler.look(NOW).outcomes == {"conflict": 5}
    assert sorted(shelf.conflicts) == sorted(ours.sop_uids)
    late = make_ct_series(
        tmp_path / "late", name="late", change=lambda dataset, k: join(dataset, ours)
    )
    archive.upload(late.paths[:1])
    assert reconciler.look(NOW).outcomes == {"stored": 1}, "judged once is enough"


def join(dataset: FileDataset, series: CtFiles) -> None:
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = series.study_uid, series.series_uid


@pytest.mark.peer
def test_other_modalities_are_left_where_they_are(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    def as_mr(dataset: FileDataset, k: int) -> None:
        dataset.Modality = "MR"

    series = make_ct_series(tmp_path / "ct")
    structures = make_structure_set(tmp_path / "rs.dcm", {"GTV": []}, reference=series)
    archive.upload([structures, *make_ct_series(tmp_path / "mr", name="mr", change=as_mr).paths])
    assert reconciler.look(NOW).outcomes == {"stored": 1}
    assert set(shelf.files) == {uid("rs instance")}


@pytest.mark.peer
def test_a_look_back_is_done_in_portions_and_what_is_new_comes_first(
    archive: RealOrthanc,
    reconciler: Reconciler,
    shelf: Shelf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "SERIES_AT_ONCE", 2)
    for k in range(5):
        archive.upload(make_ct_series(tmp_path / str(k), name=f"old {k}").paths[:1])
    first = reconciler.look(NOW)
    assert (first.done, first.outcomes) == (False, {"stored": 2})
    new = make_ct_series(tmp_path / "new", name="new")
    archive.upload(new.paths[:1])
    reconciler.look(NOW)
    assert new.sop_uids[0] in shelf.brought[2:5]
    look_until_done(reconciler)
    assert len(shelf.brought) == 6


@pytest.mark.peer
def test_a_file_that_the_archive_cannot_give_holds_up_no_other_and_is_tried_again(
    archive: RealOrthanc, reconciler: Reconciler, shelf: Shelf, tmp_path: Path
) -> None:
    series = make_ct_series(tmp_path / "ct")
    archive.upload(series.paths)
    archive.stop()
    stored = next(p for p in archive.folder.glob("db/*/*/*") if p.read_bytes()[128:132] == b"DICM")
    whole = stored.read_bytes()
    stored.unlink()
    archive.start()
    look = reconciler.look(NOW)
    assert look.outcomes == {"stored": 4}
    assert len(look.failed) == 1
    stored.write_bytes(whole)
    shelf.memory = replace(shelf.memory, waiting=())  # however whole the series is thought to be
    again = reconciler.look(NOW)
    assert (again.outcomes, again.failed) == ({"stored": 1}, ())
    assert set(shelf.files) == set(series.sop_uids)


@pytest.mark.peer
def test_a_hint_is_followed_at_once_and_errors_end_nothing(
    archive: RealOrthanc, client: Orthanc, tmp_path: Path
) -> None:
    arrived = threading.Event()

    class Watched(Shelf):
        def set(self, look: Look) -> None:
            super().set(look)
            if look.outcomes:
                arrived.set()

    (tmp_path / "watched").mkdir()
    beginning = Memory(position=Position(seq=0, mark=""))  # the studies are older than "now"
    watched = Watched(tmp_path / "watched", full=True, memory=beginning)
    stop, hint = threading.Event(), threading.Event()
    archive.upload(make_ct_series(tmp_path / "ct").paths)
    thread = threading.Thread(
        target=watch,
        args=(started(client, watched, tmp_path),),
        kwargs={"stop": stop, "hint": hint, "every_s": 0.05},
    )
    thread.start()
    try:
        assert not arrived.wait(0.3), "the door is closed"
        watched.full = False
        hint.set()
        assert arrived.wait(10)
    finally:
        stop.set()
        hint.set()
        thread.join()


def test_a_series_that_cannot_be_listed_holds_up_no_other(shelf: Shelf, tmp_path: Path) -> None:
    series = "-".join(["0" * 8] * 5)
    lines = f'{{"Seq": 1, "ChangeType": "NewSeries", "Date": "t", "ID": "{series}"}}'.encode()

    def answer(asked: Asked) -> Says:
        if asked.path.startswith("/changes"):
            return Says(body=b'{"Changes": [' + lines + b'], "Last": 1, "Done": true}')
        if asked.path == "/tools/find":
            return Says(body=b"[]")
        return Says(status=500)

    shelf.memory = Memory(position=Position(seq=0, mark=""))
    with stub(answer) as server, Orthanc(Peer(name="orthanc", url=server.url)) as client:
        look = started(client, shelf, tmp_path).look(NOW)
    assert (look.failed, look.counts) == ((series,), ())
    assert shelf.memory.failed == (series,)


def test_an_instance_that_cannot_be_placed_makes_it_look_back(shelf: Shelf, tmp_path: Path) -> None:
    instance = "-".join(["0" * 8] * 5)
    line = f'{{"Seq": 1, "ChangeType": "NewInstance", "Date": "t", "ID": "{instance}"}}'.encode()

    def answer(asked: Asked) -> Says:
        if asked.path.startswith("/changes"):
            return Says(body=b'{"Changes": [' + line + b'], "Last": 1, "Done": true}')
        if asked.path == "/tools/find":
            return Says(body=b"[]")
        return Says(status=500)

    shelf.memory = Memory(position=Position(seq=0, mark=""))
    with (
        stub(answer) as server,
        Orthanc(Peer(name="orthanc", url=server.url)) as client,
    ):
        reconciler = started(client, shelf, tmp_path)
        assert reconciler.look(NOW).position.seq == 1, "it holds nothing up"
        assert [reconciler.look(NOW).back for _ in range(2)] == ["start", None]


def test_a_diary_that_cannot_be_read_is_told(shelf: Shelf, tmp_path: Path) -> None:
    with (
        stub(lambda asked: Says(status=500)) as server,
        Orthanc(Peer(name="orthanc", url=server.url)) as client,
        pytest.raises(PeerError, match="status 500"),
    ):
        started(client, shelf, tmp_path).look(NOW)
    assert shelf.memory.position is None
