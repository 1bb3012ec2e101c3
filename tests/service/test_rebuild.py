"""The database is lost: the store alone gives back what it said."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import UID
from sqlalchemy import Table, select

from contourcast.service.archive import Archive, Sent
from contourcast.service.index.database import Index
from contourcast.service.index.tables import (
    arrival,
    course,
    event,
    fraction,
    instance,
    propagation,
    review,
    revision,
    series,
)
from contourcast.service.ingest import take_files
from contourcast.service.intake.states import State
from contourcast.service.jobs.derived import Derived
from contourcast.service.jobs.propagations import Propagations
from contourcast.service.keeping.rebuild import rebuild, send_again
from contourcast.service.keeping.records import Recorder, read_records
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.destinations import DicomWebDestination
from contourcast.service.pacs.notices import Notices
from contourcast.service.pacs.outbox import DeliveryState
from contourcast.service.problems import ConflictError
from contourcast.service.records import Records
from contourcast.service.review.decisions import Reviews
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.files import FolderStore
from support.department import METHOD, Department
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set, uid
from support.outgoing import make_results, outgoing
from support.postgres import postgres
from support.records import looking_into
from support.rows import add
from support.treatment import make_treatment

SAME = (instance, series, revision, course, fraction, propagation, event, review)


def archive_on(index: Index, folder: Path) -> Archive:
    return Archive(index, FolderStore(folder / "store"), incoming=folder / "incoming")


def rows_of(index: Index, table: Table) -> list[dict[str, Any]]:
    with index.read() as at:
        rows = [dict(row) for row in at.execute(select(table)).mappings()]
    for row in rows:
        if table is fraction:
            del row["looked_at"]  # counts arrivals
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])


def take(archive: Archive, paths: list[Path], folder: Path) -> list[str]:
    answers = take_files(
        ((path.name, path.open("rb")) for path in paths), archive,
        ServiceSettings(data_folder=folder), sent=Sent(door="dimse", ae_title="LINAC"),
    )  # fmt: skip
    return [answer.outcome for answer in answers]


@pytest.fixture
def ct(tmp_path: Path) -> CtFiles:
    return make_ct_series(tmp_path / "ct")


@pytest.fixture
def before(tmp_path: Path) -> Iterator[Index]:
    with closing(Index(f"sqlite:///{tmp_path / 'before.sqlite3'}")) as index:
        yield index


def lived(index: Index, folder: Path, ct: CtFiles) -> Archive:
    """A service that took in, matched, drew, was asked and signed."""
    archive = archive_on(index, folder)
    structures = make_structure_set(
        folder / "rs.dcm", {"GTV": [disc((0, -10, -24), 4)]}, reference=ct
    )
    other = pydicom.dcmread(ct.paths[0])
    other.PixelData = b"\1" * 160
    other.save_as(folder / "other.dcm")
    outcomes = take(archive, [*ct.paths, structures, folder / "other.dcm"], folder)
    assert outcomes == ["stored"] * 6 + ["conflict"]
    with index.write() as at:
        at.execute(series.update().values(state="whole", reason="counted", revision="r1"))
    add(index, revision, id="r1", series_uid=ct.series_uid, number=1, members_json=[["a", "b"]])
    add(index, course, id="c1", planning_series_uid=ct.series_uid, structures_uid=uid("rs"))
    add(
        index, fraction, revision_id="r1", series_uid=ct.series_uid, course_id="c1",
        answers_json=[{"question": "roi", "choice": ["1"], "by": "somebody"}], looked_at=7,
    )  # fmt: skip
    for number, (state, ended) in enumerate((("awaiting_review", 1), ("drawing", 0)), start=1):
        add(
            index, propagation, id=f"p{number}", number=number, order_json={"cbct": "…"},
            state=state, ended=ended, figures_json={"verdict": "look"}, verdict="look",
        )  # fmt: skip
        for step in (1, 2):
            add(index, event, propagation=f"p{number}", number=step, state=state, done=0.5)
    for number in (1, 2):
        add(index, review, number=number, propagation="p1", decision="approved", reviewer="who")
    result = Path(shutil.copy(ct.paths[0], folder / "result"))
    archive.blobs.put({"results/p1/RS.dcm": result})
    return archive


def test_the_index_says_the_same_as_before(before: Index, ct: CtFiles, tmp_path: Path) -> None:
    archive = lived(before, tmp_path, ct)
    recorder = Recorder(before, archive.blobs, archive.incoming)
    assert recorder.keep() == 9
    assert recorder.keep() == 0
    with closing(Index(f"sqlite:///{tmp_path / 'after.sqlite3'}")) as after:
        read: list[int] = []
        found = rebuild(archive_on(after, tmp_path), on_step=read.append)
        for table in SAME:
            assert rows_of(after, table) == rows_of(before, table), table.name
        assert (found.instances, found.conflicts, found.unread, found.orphans) == (6, 1, (), ())
        assert found.rows == {
            "series": 2, "revision": 1, "course": 1, "fraction": 1, "propagation": 2, "review": 2,
        }  # fmt: skip
        assert read[-1] == 7
        assert take(archive_on(after, tmp_path), list(ct.paths), tmp_path) == ["already"] * 5


@pytest.mark.peer
def test_on_postgres_numbers_go_on_behind_those_that_came_back(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = lived(before, tmp_path, ct)
    Recorder(before, archive.blobs, archive.incoming).keep()
    with postgres() as cluster, closing(Index(cluster.database("after"))) as after:
        rebuild(archive_on(after, tmp_path))
        for table in SAME:
            assert rows_of(after, table) == rows_of(before, table), table.name
        add(after, review, propagation="p2", decision="rejected")
        assert [row["number"] for row in rows_of(after, review)] == [1, 2, 3]


def test_only_the_newest_version_of_a_row_is_kept(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = lived(before, tmp_path, ct)
    recorder = Recorder(before, archive.blobs, archive.incoming)
    recorder.keep()
    kept = len(list(archive.blobs.list("records/")))
    for state in ("delivering", "approved"):
        with before.write() as at:
            at.execute(propagation.update().where(propagation.c.id == "p1").values(state=state))
        assert Recorder(before, archive.blobs, archive.incoming).keep() == 1
    assert len(list(archive.blobs.list("records/"))) == kept
    states = [r.row["state"] for r in read_records(archive.blobs) if r.row.get("id") == "p1"]
    assert states == ["approved"]
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_did_not_change_is_not_read_again_but_for_once_an_hour(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive, clock = lived(before, tmp_path, ct), [0.0]
    recorder = Recorder(before, archive.blobs, archive.incoming, clock=lambda: clock[0])
    assert recorder.keep() == 9
    with before.write() as at:  # as nothing of ours does
        at.execute(propagation.update().where(propagation.c.id == "p2").values(asked_by="x"))
    assert recorder.keep() == 0
    add(before, event, propagation="p1", number=3, state="drawing", done=0.6)
    assert recorder.keep() == 1
    clock[0] += 3600.0
    assert recorder.keep() == 1


def test_a_version_that_a_killed_process_left_does_not_win(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = lived(before, tmp_path, ct)
    recorder = Recorder(before, archive.blobs, archive.incoming)
    recorder.keep()
    (old,) = (key for key in archive.blobs.list("records/propagation/p1/"))
    again = tmp_path / "again"
    shutil.copy(archive.blobs.get(old), again)
    with before.write() as at:
        at.execute(propagation.update().where(propagation.c.id == "p1").values(state="approved"))
    recorder.keep()
    archive.blobs.put({old: again})  # killed before it was deleted
    states = [r.row["state"] for r in read_records(archive.blobs) if r.row.get("id") == "p1"]
    assert states == ["approved"]
    assert recorder.keep() == 0


class Counting(FolderStore):
    """A store that counts how often it is listed."""

    listed = 0

    def list(self, prefix: str) -> Iterator[str]:
        self.listed += 1
        return super().list(prefix)


def test_the_store_is_listed_again_only_when_somebody_else_wrote(
    before: Index, ct: CtFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contourcast.service.keeping.records.AT_ONCE", 1)  # each row is a page
    archive = lived(before, tmp_path, ct)
    store = Counting(tmp_path / "store")
    here = Recorder(before, store, archive.incoming)
    assert [here.keep(), here.keep(), store.listed] == [9, 0, 1]
    for state, kept_by in (("delivering", here), ("approved", None), ("rejected", here)):
        with before.write() as at:
            at.execute(propagation.update().where(propagation.c.id == "p1").values(state=state))
        recorder = kept_by or Recorder(before, archive.blobs, archive.incoming)
        assert recorder.keep() == 1
    assert store.listed == 2
    (newest,) = (r for r in read_records(archive.blobs) if r.row.get("id") == "p1")
    assert newest.row["state"] == "rejected"
    assert [one["number"] for one in newest.events] == [1, 2]


def test_an_index_that_is_not_empty_is_left_alone(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = lived(before, tmp_path, ct)
    with pytest.raises(ConflictError, match="not empty"):
        rebuild(archive)


def test_files_that_cannot_be_read_are_told_and_the_rest_comes_back(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = lived(before, tmp_path, ct)
    first, second, *_ = archive.blobs.list("instances/")
    (tmp_path / "store" / first).write_bytes(b"damaged")
    half = archive.blobs.get(second).read_bytes()[:200]
    cut = f"{second.rpartition('/')[0]}/{hashlib.sha256(half).hexdigest()}.dcm"
    (tmp_path / "store" / cut).write_bytes(half)
    with closing(Index(f"sqlite:///{tmp_path / 'after.sqlite3'}")) as after:
        found = rebuild(archive_on(after, tmp_path))
    assert {key for key, _ in found.unread} == {first, cut}
    assert found.instances >= 5
    assert found.orphans == ("p1",)  # nobody wrote its row down


def test_of_signed_sets_those_come_back_that_somebody_signed(tmp_path: Path) -> None:
    def stop(at: object) -> None:
        raise ConflictError("stopped on the way")

    treatment = make_treatment(tmp_path / "treatment", fractions=1, seed=1)
    with looking_into(tmp_path / "data") as records:
        department = Department(records)
        department.send(treatment.paths)
        department.wait()
        (job,) = department.jobs().values()
        department.steps.end(job.id, department.finish(job.id, department.drawn(job)))
        job, reviews = records.propagations.job(job.id), Reviews(records)
        with pytest.raises(ConflictError, match="stopped"):
            reviews.spending(stop).approve(job, method=METHOD, reviewer="bob", seen=0)
        signed = reviews.approve(job, method=METHOD, reviewer="ann", seen=0)
        kept = records.archive.instance(signed.structures_uid)
        assert kept is not None
        elsewhere = pydicom.dcmread(records.archive.path(kept))
        elsewhere.SeriesInstanceUID = uid("series of another Contourcast")
        elsewhere.SOPInstanceUID = UID(uid("theirs"))
        elsewhere.file_meta.MediaStorageSOPInstanceUID = elsewhere.SOPInstanceUID
        elsewhere.save_as(tmp_path / "theirs.dcm")
        department.send([tmp_path / "theirs.dcm"])
        Recorder(records.index, records.archive.blobs, records.archive.incoming).keep()
        with closing(Index(f"sqlite:///{tmp_path / 'after.sqlite3'}")) as after:
            found = rebuild(Archive(after, records.archive.blobs, incoming=tmp_path / "incoming"))
            for table in (instance, series, review):
                assert rows_of(after, table) == rows_of(records.index, table), table.name
        (key,) = found.unsigned
        assert pydicom.dcmread(records.archive.blobs.get(key)).ReviewerName == "bob"
        sets = {row["sop_uid"] for row in rows_of(records.index, instance)}
        assert {signed.structures_uid, uid("theirs")} <= sets


def test_what_was_set_aside_stays_so_when_retention_took_what_it_contradicted(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = archive_on(before, tmp_path)
    other, stranger = (pydicom.dcmread(path) for path in ct.paths[:2])
    other.PixelData = b"\1" * 160
    other.save_as(tmp_path / "other.dcm")
    stranger.PatientID, stranger.SOPInstanceUID = "SOMEBODY ELSE", UID(uid("stranger"))
    stranger.file_meta.MediaStorageSOPInstanceUID = stranger.SOPInstanceUID
    stranger.save_as(tmp_path / "stranger.dcm")
    sent = [*ct.paths, tmp_path / "other.dcm", tmp_path / "stranger.dcm"]
    assert take(archive, sent, tmp_path)[-2:] == ["conflict", "conflict"]
    Recorder(before, archive.blobs, archive.incoming).keep()
    for key in list(archive.blobs.list("instances/")):
        archive.blobs.delete(key)
    with closing(Index(f"sqlite:///{tmp_path / 'after.sqlite3'}")) as after:
        rebuilt = archive_on(after, tmp_path)
        found = rebuild(rebuilt)
        assert (found.instances, found.conflicts) == (0, 2)
        assert rows_of(after, instance) == []
        assert rows_of(after, series) == rows_of(before, series)
        aside = {(row["sop_uid"], row["outcome"]) for row in rows_of(after, arrival)}
        contradicted = str(other.SOPInstanceUID)
        assert aside == {(contradicted, "conflict"), (uid("stranger"), "conflict")}
        back = take(rebuilt, [*ct.paths, tmp_path / "stranger.dcm"], tmp_path)
        assert back == ["stored"] * 5 + ["conflict"]


def test_a_contradiction_counts_for_the_series_of_what_it_contradicts(
    before: Index, ct: CtFiles, tmp_path: Path
) -> None:
    archive = archive_on(before, tmp_path)
    moved = pydicom.dcmread(ct.paths[0])
    moved.SeriesInstanceUID, moved.PixelData = uid("another series"), b"\1" * 160
    moved.save_as(tmp_path / "moved.dcm")
    take(archive, [*ct.paths, tmp_path / "moved.dcm"], tmp_path)
    with closing(Index(f"sqlite:///{tmp_path / 'after.sqlite3'}")) as after:
        rebuild(archive_on(after, tmp_path))
        (aside,) = (row for row in rows_of(after, arrival) if row["outcome"] == "conflict")
        assert aside["series_uid"] == ct.series_uid


ARCHIVES = [
    DicomWebDestination(name="all", url="http://127.0.0.1:9"),
    DicomWebDestination(name="good", url="http://127.0.0.1:9", verdicts=("accept",)),
]


@contextmanager
def lost(records: Records, folder: Path) -> Iterator[Records]:
    """The index is lost; what comes back over the same store."""
    Recorder(records.index, records.archive.blobs, records.archive.incoming).keep()
    with closing(Index(f"sqlite:///{folder / 'after.sqlite3'}")) as index:
        archive = Archive(index, records.archive.blobs, incoming=folder / "incoming")
        rebuild(archive)
        yield replace(
            records,
            index=index,
            archive=archive,
            propagations=Propagations(index),
            derived=Derived(archive),
            notices=Notices(index),
        )


def test_what_goes_out_is_promised_once_more(tmp_path: Path) -> None:
    results = make_results(tmp_path / "made" / "results")
    with outgoing(tmp_path / "data", ARCHIVES) as house:
        house.finish("p1", results=results)
        house.finish("p2", results=results)
        house.records.propagations.cancel("p2", by="somebody")
        house.finish("p3", results=results)
        house.begin("p4", results=results)
        with house.records.index.write() as at:
            house.records.propagations.move(at, "p3", State.AWAITING_REVIEW, "sent")
        planned = {(one.id, one.propagation) for one in house.deliveries.list()}
        with lost(house.records, tmp_path) as records:
            deliveries = Deliveries(records, ARCHIVES)
            send_again(deliveries)
            again = list(deliveries.list())
            states = {job.id: job.state for job in records.propagations.jobs()}
    assert {(one.id, one.propagation) for one in again} == {
        one for one in planned if one[1] in ("p1", "p3")
    }
    assert {one.state for one in again} == {DeliveryState.WAITING}
    assert states == {
        "p1": State.DELIVERING,
        "p2": State.CANCELLED,
        "p3": State.AWAITING_REVIEW,
        "p4": State.WRITING,
    }


def test_what_goes_nowhere_any_more_waits_for_a_person(tmp_path: Path) -> None:
    results = make_results(tmp_path / "made" / "results")
    with outgoing(tmp_path / "data", ARCHIVES) as house:
        house.finish(results=results)
        assert house.state() is State.DELIVERING
        with lost(house.records, tmp_path) as records:
            send_again(Deliveries(records, ARCHIVES[1:]))
            assert records.propagations.job("p1").state is State.AWAITING_REVIEW


def test_of_signed_sets_those_go_out_again_that_stand(tmp_path: Path) -> None:
    treatment = make_treatment(tmp_path / "treatment", fractions=1, seed=1)
    with looking_into(tmp_path / "data") as records:
        department = Department(records)
        department.send(treatment.paths)
        department.wait()
        (job,) = department.jobs().values()
        department.steps.end(job.id, department.finish(job.id, department.drawn(job)))
        planned = Deliveries(records, ARCHIVES[:1])
        reviews, job = Reviews(records, planned.plan_signed), records.propagations.job(job.id)
        reviews.approve(job, method=METHOD, reviewer="ann", seen=0)
        (withdrawn,) = planned.list()
        reviews.reject(job, reviewer="ann", seen=1, why="target wrong")
        reviews.approve(job, method=METHOD, reviewer="ann", seen=2)
        (stands,) = (one for one in planned.list() if one.id != withdrawn.id)
        with lost(records, tmp_path) as after:
            deliveries = Deliveries(after, ARCHIVES[:1])
            send_again(deliveries)
            signed = [one for one in deliveries.list() if one.is_signed]
            machine = [one for one in deliveries.list() if not one.is_signed]
            assert after.propagations.job(job.id).state is State.APPROVED
    assert [one.id for one in signed] == [stands.id]
    assert [one.objects for one in signed] == [stands.objects]
    assert len(machine) == 1
