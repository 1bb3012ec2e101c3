"""From files in any order to what is promised on them; from a signature to the next prior."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pydicom
import pytest
from pydicom import dcmread
from sqlalchemy import select, text, update

from contourcast.imaging.dicom.instance import CT_IMAGE
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.service.archive import Sent
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import course, fraction, instance, notice, revision, series
from contourcast.service.ingest import take_files
from contourcast.service.intake import fractions
from contourcast.service.intake.arriving import AT_A_LOOK, Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.outcomes import Answer, Known
from contourcast.service.intake.rematching import match_again
from contourcast.service.intake.rules import SiteRules
from contourcast.service.intake.states import State
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.steps import Steps
from contourcast.service.pacs.notices import Notices
from contourcast.service.problems import (
    ChangedError,
    ConflictError,
    ForbiddenTransitionError,
    StoreError,
)
from contourcast.service.records import Records, open_records
from contourcast.service.review.decisions import Reviews
from contourcast.service.review.stale import stale_of
from contourcast.service.settings import ServiceSettings
from support.dicom_factory import make_plan
from support.postgres import postgres
from support.records import looking_into
from support.rows import add
from support.treatment import Treatment, make_replan, make_treatment

LATER = timedelta(seconds=20)
SETTINGS = ServiceSettings(disk_reserve_mib=0)


class Department:
    """The intake of a service, its clock in our hands."""

    def __init__(self, records: Records, *, waiting_limit: int | None = None) -> None:
        self.records = records
        notices = Notices(records.index)
        self.arriving = Arriving(records.index, notices)
        self.fractions = Fractions(
            Evidence(records.archive),
            records.propagations,
            notices,
            SiteRules(),
            served_network=lambda: ("", ""),
            methods=["translation"],
            waiting_limit=waiting_limit,
        )
        self.reviews = Reviews(records)

    def send(self, paths: Sequence[Path], *, door: Literal["rest", "cohort"] = "rest") -> None:
        take_files(
            ((p.name, p.open("rb")) for p in paths),
            self.records.archive,
            SETTINGS,
            sent=Sent(door=door),
        )

    def wait(self) -> None:
        """Long enough for what arrived to be whole."""
        self.arriving.look(now() + LATER)
        self.fractions.look()

    def draw(self, job: Job) -> Job:
        """What a worker does, here and now."""
        steps = Steps(self.records, device="cpu", weights=None)
        registered = steps.register(job.id)
        drawn = steps.draw(job.id, "translation", registered["registrations"], registered["r_ct"])
        steps.end(job.id, steps.finish(job.id, registered, [drawn["drawn"]]))
        return self.records.propagations.job(job.id)

    def jobs(self) -> dict[str, Job]:
        """By the series of its CBCT: the propagation that counts."""
        found = self.records.propagations.jobs()
        return {j.order["cbct"]["series"]: j for j in found if j.state is not State.SUPERSEDED}

    def rows(self, table: Any) -> list[Any]:
        with self.records.index.read() as at:
            return list(at.execute(select(table)))

    def told(self) -> list[str]:
        return [row.kind for row in self.rows(notice)]


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    with looking_into(tmp_path / "data") as records:
        yield Department(records)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> tuple[Treatment, Treatment]:
    folder = tmp_path_factory.mktemp("patients")
    return (
        make_treatment(folder / "a", patient="A", fractions=2, seed=1),
        make_treatment(folder / "b", patient="B", fractions=2, seed=7),
    )


def test_two_patients_in_scrambled_order_each_find_their_own_plan(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    paths = [p for patient in patients for p in patient.paths]
    random.Random(3).shuffle(paths)
    for start in range(0, len(paths), 17):
        department.send(paths[start : start + 17])
        department.fractions.look()
    department.wait()
    jobs = department.jobs()
    assert len(jobs) == 4
    for patient in patients:
        for cbct in patient.fractions:
            order = jobs[cbct.series_uid].order
            assert order["planning_ct"]["series"] == patient.planning_ct.series_uid
            assert order["structures"]["sop_uid"] == patient.structures_uid
            assert len(order["cbct"]["files"]) == len(cbct.paths)
    assert len(department.rows(course)) == 2
    states = {row.state for row in department.rows(fraction)}
    assert states == {"matched", "not_ours"}, "planning CTs are looked at and left alone"


def test_while_too_many_wait_cohorts_do_and_todays_fractions_do_not(
    tmp_path: Path, patients: tuple[Treatment, Treatment]
) -> None:
    first, second = patients
    with looking_into(tmp_path / "data") as records:
        department = Department(records, waiting_limit=1)
        department.send([*first.plan_paths, *second.plan_paths])
        department.wait()
        department.send(first.fractions[0].paths, door="cohort")
        department.wait()
        assert len(department.jobs()) == 1
        department.send(first.fractions[1].paths, door="cohort")
        department.send(second.fractions[0].paths)
        department.wait()
        assert set(department.jobs()) == {
            first.fractions[0].series_uid,
            second.fractions[0].series_uid,
        }
        for job in department.jobs().values():
            records.propagations.cancel(job.id, by="test")
        department.fractions.look()
        assert first.fractions[1].series_uid in department.jobs()


def test_a_late_slice_makes_a_revision_and_another_propagation(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    department.send([*patient.plan_paths, *cbct.paths[:-1]])
    department.wait()
    first = department.jobs()[cbct.series_uid]
    department.send(cbct.paths[-1:])
    department.wait()
    second = department.jobs()[cbct.series_uid]
    assert second.id != first.id
    old = department.records.propagations.job(first.id)
    assert (old.state, old.superseded_by, old.ended) == (State.SUPERSEDED, second.id, True)
    numbers = [r.number for r in department.rows(revision) if r.series_uid == cbct.series_uid]
    assert numbers == [1, 2]
    assert "revision" in department.told()
    department.send(cbct.paths)
    department.wait()
    assert department.jobs()[cbct.series_uid].id == second.id, "the same again changes nothing"


def test_a_cbct_that_comes_before_its_plan_is_matched_when_that_comes(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    department.send(cbct.paths)
    department.wait()
    assert not department.jobs()
    (asked,) = department.rows(fraction)
    assert (asked.state, asked.question_json["question"]) == ("needs_person", "planning_ct")
    assert department.told().count("needs_person") == 1
    department.fractions.look()
    assert department.told().count("needs_person") == 1, "one question, told once"
    department.send(patient.plan_paths)
    department.wait()
    assert set(department.jobs()) == {cbct.series_uid}


def test_a_planning_ct_that_still_arrives_is_waited_for_and_a_late_slice_of_it_counts(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    cbct, plan = patient.fractions[0], patient.planning_ct
    hole = [p for k, p in enumerate(plan.paths) if k not in (5, 6)]
    department.send([*cbct.paths, patient.structures, *hole])
    department.wait()
    assert not department.jobs(), "two slices are missing in the middle: it still arrives"
    assert not [row for row in department.rows(fraction) if row.state == "matched"]
    department.send(plan.paths[5:7])
    department.wait()
    (first,) = department.jobs().values()
    assert len(first.order["planning_ct"]["files"]) == len(plan.paths)


def test_a_slice_that_the_planning_ct_gets_later_makes_other_propagations(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    department.send([*patient.fractions[0].paths, patient.structures])
    department.send(patient.planning_ct.paths[:-1])
    department.wait()
    (first,) = department.jobs().values()
    department.send(patient.planning_ct.paths[-1:])
    department.wait()
    department.fractions.look()
    (second,) = department.jobs().values()
    assert first.id != second.id
    assert len(second.order["planning_ct"]["files"]) == len(patient.planning_ct.paths)


def test_a_planning_ct_that_stays_incomplete_is_a_question(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    hole = [p for k, p in enumerate(patient.planning_ct.paths) if k not in (5, 6)]
    department.send([*patient.fractions[0].paths, patient.structures, *hole])
    department.arriving.look(now() + timedelta(minutes=11))
    department.fractions.look()
    (asked,) = [row for row in department.rows(fraction) if row.state == "needs_person"]
    assert "not whole" in asked.question_json["why"]
    assert asked.question_json["missing"] == [patient.planning_ct.series_uid]


def test_a_structure_set_that_cannot_be_read_is_a_question_and_holds_up_nobody(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    first, second = patients
    department.send([*first.plan_paths, *first.fractions[0].paths])
    kept = department.records.archive.instance(first.structures_uid)
    assert kept is not None
    department.arriving.look(now() + LATER)
    department.fractions.evidence.of_patient(department.records.archive.patient_of(kept.series_uid))
    department.records.archive.path(kept).write_bytes(b"damaged")
    department.send([*second.plan_paths, *second.fractions[0].paths])
    department.wait()
    assert set(department.jobs()) == {second.fractions[0].series_uid}
    asked = [row for row in department.rows(fraction) if row.state == "needs_person"]
    assert [row.series_uid for row in asked] == [first.fractions[0].series_uid]


def other_content(path: Path, to: Path, *, value: int) -> Path:
    """The same UID with other pixels, or other contours."""
    dataset = pydicom.dcmread(path)
    if "PixelData" in dataset:
        dataset.PixelData = bytes([value]) * len(dataset.PixelData)
    else:
        points = dataset.ROIContourSequence[0].ContourSequence[0]
        points.ContourData = [float(v) + value for v in points.ContourData]
    dataset.save_as(to)
    return to


def job_of(department: Department, job: Job) -> Job:
    return department.records.propagations.job(job.id)


def open_questions(department: Department) -> dict[str, dict[str, Any]]:
    rows = department.rows(fraction)
    return {row.series_uid: row.question_json for row in rows if row.state == "needs_person"}


def test_two_contents_under_one_uid_are_a_question_and_its_answer_a_doubt(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    department.send([*patient.plan_paths, *cbct.paths])
    again = other_content(cbct.paths[3], tmp_path / "again.dcm", value=1)
    department.send([again])
    department.wait()
    assert not department.jobs()
    question = open_questions(department)[cbct.series_uid]
    assert question["question"] == "conflict"
    assert "came again with other content" in question["why"]
    first, none = (choice["value"] for choice in question["choices"])
    (asked,) = (r for r in department.rows(fraction) if r.series_uid == cbct.series_uid)

    department.fractions.answer(
        asked.revision_id, Answer(question="conflict", choice=(first,)), by="somebody"
    )
    (job,) = department.jobs().values()
    assert "came again with other content" in job.order["doubts"][-1], "no better than a look"
    assert "a person chose what came first" in job.order["vouched"]
    department.send([again])
    department.wait()
    assert not open_questions(department), "the same second content again is nothing new"

    department.send([other_content(cbct.paths[4], tmp_path / "third.dcm", value=2)])
    department.wait()
    question = open_questions(department)[cbct.series_uid]
    assert question["choices"][0]["value"] != first, "an answer holds for what was known to it"
    department.fractions.answer(
        asked.revision_id, Answer(question="conflict", choice=(none,)), by="somebody"
    )
    (settled,) = (r for r in department.rows(fraction) if r.series_uid == cbct.series_uid)
    assert settled.state == "not_ours"


@pytest.mark.parametrize("used", ["planning_ct", "structures"])
def test_a_second_content_of_the_plan_is_a_question_of_what_nobody_has_signed(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path, used: str
) -> None:
    patient, other = patients
    first, second = patient.fractions
    department.send([*patient.paths, *other.paths])
    department.wait()
    drawn = department.draw(department.jobs()[first.series_uid])
    department.reviews.approve(drawn, method="translation", reviewer="Someone Signing", seen=0)
    department.wait()
    path = patient.structures if used == "structures" else patient.planning_ct.paths[2]
    department.send([other_content(path, tmp_path / "again.dcm", value=1)])
    department.wait()
    asked = open_questions(department)
    assert set(asked) == {second.series_uid}, "what was signed stays; the other patient's stays"
    assert asked[second.series_uid]["question"] == "conflict"


def test_of_two_targets_the_one_that_is_signed_does_not_shield_the_other(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    structures = with_second_target(patient.structures, tmp_path / "two.dcm")
    department.send([*patient.planning_ct.paths, structures, *cbct.paths])
    department.wait()
    one, other = (department.draw(job) for job in department.records.propagations.jobs())
    department.reviews.approve(one, method="translation", reviewer="Someone Signing", seen=0)
    department.wait()
    assert not open_questions(department)

    department.send([other_content(structures, tmp_path / "again.dcm", value=1)])
    department.wait()
    assert open_questions(department)[cbct.series_uid]["question"] == "conflict"
    assert job_of(department, one).state is State.APPROVED, "a person stands for it"
    assert department.told().count("signed.overtaken") == 1
    with pytest.raises(ChangedError, match="is in question"):
        department.reviews.approve(other, method="translation", reviewer="Someone", seen=0)


def with_second_target(structures: Path, path: Path) -> Path:
    """The same set with its first ROI twice, under a second name."""
    dataset = dcmread(structures)
    for keyword in ("StructureSetROI", "ROIContour", "RTROIObservations"):
        items = dataset[f"{keyword}Sequence"].value
        twin = deepcopy(items[0])
        if keyword == "StructureSetROI":
            twin.ROINumber, twin.ROIName = 2, "GTV_2"
        else:
            twin.ReferencedROINumber = 2
        items.append(twin)
    dataset.save_as(path)
    return path


# A match that was taken back


def test_a_question_about_what_was_drawn_takes_it_off_the_worklist_until_it_is_answered(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    department.send([*patient.plan_paths, *patient.fractions[0].paths])
    department.wait()
    (job,) = department.jobs().values()
    drawn = department.draw(job)
    department.send([other_content(patient.structures, tmp_path / "again.dcm", value=3)])
    department.wait()
    (question,) = open_questions(department).values()
    taken_back = job_of(department, job)
    assert (taken_back.state, taken_back.superseded_by) == (State.SUPERSEDED, None)
    with department.records.index.read() as at:
        stale = stale_of(at, taken_back)
    assert stale is not None
    assert "is in question" in stale.why
    with pytest.raises(ChangedError, match="is in question"):
        department.reviews.approve(drawn, method="translation", reviewer="Someone", seen=0)

    (asked,) = (row for row in department.rows(fraction) if row.state == "needs_person")
    first = question["choices"][0]["value"]
    department.fractions.answer(
        asked.revision_id, Answer(question="conflict", choice=(first,)), by="somebody"
    )
    (vouched,) = department.jobs().values()
    taken_back = job_of(department, job)
    assert taken_back.superseded_by == vouched.id, "whoever has it open is led to the new one"
    assert department.told().count("signed.overtaken") == 0


def test_what_a_person_says_is_not_ours_is_not_signed(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    department.send([*patient.plan_paths, *patient.fractions[0].paths])
    department.wait()
    (job,) = department.jobs().values()
    drawn = department.draw(job)
    department.send([other_content(patient.structures, tmp_path / "again.dcm", value=3)])
    department.wait()
    (asked,) = (row for row in department.rows(fraction) if row.state == "needs_person")
    none = Answer(question="conflict", choice=("none",))
    department.fractions.answer(asked.revision_id, none, by="physicist")
    assert not department.jobs()
    with pytest.raises(ChangedError, match="is in question, or"):
        department.reviews.approve(drawn, method="translation", reviewer="Someone", seen=0)


def test_a_replan_that_a_person_chooses_takes_the_place_of_what_was_drawn_on_the_former(
    department: Department, tmp_path: Path
) -> None:
    patient = make_treatment(tmp_path / "a", patient="A", fractions=2, seed=1)
    planning, structures = make_replan(
        tmp_path / "replan", patient="A", ct_day="20260104", day="20260104", seed=5, name="A2"
    )
    first, second = patient.fractions
    department.send(patient.paths)
    department.wait()
    before = {uid: department.draw(job) for uid, job in department.jobs().items()}
    department.send([*planning.paths, structures])
    department.wait()
    department.reviews.approve(
        before[first.series_uid], method="translation", reviewer="Someone Signing", seen=0
    )
    department.fractions.look()
    assert open_questions(department)[second.series_uid]["question"] == "planning_ct"
    (asked,) = (row for row in department.rows(fraction) if row.state == "needs_person")
    chosen = Answer(question="planning_ct", choice=(planning.series_uid,))
    department.fractions.answer(asked.revision_id, chosen, by="physicist")
    newer = department.jobs()[second.series_uid]
    assert newer.order["planning_ct"]["series"] == planning.series_uid
    former = department.records.propagations.job(before[second.series_uid].id)
    assert (former.state, former.superseded_by) == (State.SUPERSEDED, newer.id), "the same ROI"


def test_a_question_that_settles_by_itself_brings_back_what_was_drawn(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    department.send([*patient.plan_paths, *patient.fractions[0].paths])
    department.wait()
    (job,) = department.jobs().values()
    department.draw(job)
    kept = department.records.archive.instance(patient.structures_uid)
    assert kept is not None
    department.records.archive.path(kept).unlink()
    with department.records.index.write() as at:
        match_again(at)
    department.fractions.look()
    assert open_questions(department)
    assert not department.jobs()
    department.send([patient.structures])
    department.fractions.look()
    (again,) = department.jobs().values()
    assert (again.id, again.attempt, again.ended) == (job.id, 2, False)
    drawn = department.draw(again)
    assert drawn.state is State.AWAITING_REVIEW
    department.reviews.approve(drawn, method="translation", reviewer="Someone", seen=0)


def test_a_signed_contour_whose_match_is_in_question_stays_and_that_is_told_once(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    department.send([*patient.plan_paths, *patient.fractions[0].paths])
    department.wait()
    (job,) = department.jobs().values()
    department.draw(job)
    department.send([other_content(patient.structures, tmp_path / "again.dcm", value=3)])
    department.reviews.approve(job_of(department, job), method="translation", reviewer="S", seen=0)
    department.wait()
    assert job_of(department, job).state is State.APPROVED, "a person stands for it"
    assert department.told().count("signed.overtaken") == 1
    with pytest.raises(ChangedError, match="is in question"):
        department.reviews.approve(
            job_of(department, job), method="translation", reviewer="S", seen=1
        )
    department.send(patient.fractions[1].paths[:1])
    department.fractions.look()
    assert department.told().count("signed.overtaken") == 1, "the same question is no news"
    department.reviews.reject(
        job_of(department, job), reviewer="S", seen=1, why="wrong patient or plan"
    )


def test_a_revision_whose_turn_comes_late_takes_nothing_from_a_newer_one(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    department.send([*patient.plan_paths, *cbct.paths[:-1]])
    department.arriving.look(now() + LATER)
    (late,) = (r for r in department.rows(revision) if r.series_uid == cbct.series_uid)
    department.send(cbct.paths[-1:])
    department.arriving.look(now() + LATER)
    newest = next(r for r in department.rows(revision) if r.number == 2)
    assert department.fractions.match(newest.id)
    newer = department.jobs()[cbct.series_uid]
    assert not department.fractions.match(late.id)
    assert department.records.propagations.jobs() == [newer]


def planned(
    path: Path, patient: Treatment, status: str, *, structures_uid: str = "", day: str = "20251217"
) -> Path:
    """A plan of a patient, approved or not; of one name and one UID."""

    def change(dataset: Any) -> None:
        dataset.PatientName, dataset.PatientID = "Phantom^A", f"ID-{patient.patient}"
        dataset.RTPlanDate, dataset.ApprovalStatus = day, status
        dataset.FrameOfReferenceUID = patient.planning_ct.frame_of_reference

    return make_plan(
        path,
        name=f"{patient.patient}-plan-{day}",
        structures_uid=structures_uid or patient.structures_uid,
        change=change,
    )


def test_a_structure_set_that_comes_again_as_rejected_is_used_no_more(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    dataset = pydicom.dcmread(patient.structures)
    dataset.ApprovalStatus = "REJECTED"
    dataset.save_as(rejected := tmp_path / "rejected.dcm")
    department.send([*patient.plan_paths, *cbct.paths])
    department.wait()
    assert department.jobs()
    department.send([rejected])
    department.fractions.look()
    question = open_questions(department)[cbct.series_uid]
    assert question["question"] == "planning_ct", "no set on it is in use; nothing is disputed"
    assert not department.jobs()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_plan_that_is_approved_later_under_its_own_uid_counts(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path, when: str
) -> None:
    patient, other = patients
    cbct = patient.fractions[0]
    dataset = pydicom.dcmread(patient.structures)
    newer = pydicom.uid.UID(f"{dataset.SOPInstanceUID}.9")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = newer
    dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID}.9"
    dataset.save_as(drawn := tmp_path / "newer.dcm")
    former = planned(tmp_path / "former.dcm", patient, "APPROVED")
    drafted, approved = (
        planned(tmp_path / f"{status}.dcm", patient, status, structures_uid=newer, day="20251229")
        for status in ("UNAPPROVED", "APPROVED")
    )
    department.send([*patient.plan_paths, drawn, former, drafted])
    department.send([*other.plan_paths, *other.fractions[0].paths])
    if when == "before":
        department.send([approved])
    department.send(cbct.paths)
    department.wait()
    if when == "after":
        assert department.jobs()[cbct.series_uid].order["structures"]["sop_uid"] != newer
        department.send([approved])
        department.fractions.look()
    assert not open_questions(department)
    jobs = department.jobs()
    assert jobs[cbct.series_uid].order["structures"]["sop_uid"] == newer
    assert set(jobs) == {cbct.series_uid, other.fractions[0].series_uid}
    # an older copy that comes again says nothing new
    department.send([drafted])
    department.fractions.look()
    assert department.jobs()[cbct.series_uid].order["structures"]["sop_uid"] == newer


def test_a_person_answers_from_the_choices_alone(
    department: Department, tmp_path: Path, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    department.send(cbct.paths)
    department.wait()
    (asked,) = department.rows(fraction)
    answer = Answer(question="planning_ct", choice=("1.2.3",))
    with pytest.raises(InputError, match="none of the choices"):
        department.fractions.answer(asked.revision_id, answer, by="somebody")
    wrong = Answer(question="roi", choice=("1",))
    with pytest.raises(ConflictError, match="not open"):
        department.fractions.answer(asked.revision_id, wrong, by="somebody")
    none = Answer(question="planning_ct", choice=("none",))
    department.fractions.answer(asked.revision_id, none, by="somebody")
    (settled,) = department.rows(fraction)
    assert settled.state == "not_ours"
    assert settled.answers_json[0]["by"] == "somebody"


def test_a_signed_contour_is_the_prior_of_later_fractions_and_of_no_earlier_one(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = make_treatment(tmp_path / "three", patient="C", fractions=3, seed=4)
    early, middle, late = patient.fractions
    department.send([*patient.plan_paths, *middle.paths])
    department.wait()
    drawn = department.draw(department.jobs()[middle.series_uid])
    assert drawn.state is State.AWAITING_REVIEW
    signed = department.reviews.approve(
        drawn, method="translation", reviewer="Someone Signing", seen=0
    )
    assert department.records.propagations.job(drawn.id).state is State.APPROVED
    kept = department.records.archive.instance(signed.structures_uid)
    assert kept is not None
    found = read_structure_set(department.records.archive.path(kept))
    assert found.approval_status == "APPROVED"
    assert [roi.name for roi in found.rois] == ["GTV"]

    department.send([*early.paths, *late.paths])
    department.wait()
    jobs = department.jobs()
    assert jobs[early.series_uid].order["prior"] is None, "an older fraction keeps the plan's"
    prior = jobs[late.series_uid].order["prior"]
    assert prior["sop_uid"] == signed.structures_uid
    assert len(jobs[late.series_uid].order["registrations"]) == 1, "the way home is known"
    again = department.draw(jobs[late.series_uid])
    assert again.state is State.AWAITING_REVIEW, again.problem
    volumes = [j.figures["methods"]["translation"]["volume_cc"] for j in (drawn, again)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.05), "carried, not grown"


def test_a_signature_draws_later_fractions_anew_unless_somebody_signed_them(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    first, second = patient.fractions
    department.send(patient.paths)
    department.wait()
    before = department.jobs()
    for job in before.values():
        department.draw(job)
    jobs = department.jobs()
    department.reviews.approve(
        jobs[first.series_uid], method="translation", reviewer="Someone Signing", seen=0
    )
    department.fractions.look()
    after = department.jobs()[second.series_uid]
    assert after.id != before[second.series_uid].id
    assert after.order["prior"] is not None
    assert after.state is State.MATCHED, "waits for a worker"


def test_what_was_decided_stays_and_another_decision_is_another_object(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[1]
    department.send([*patient.plan_paths, *patient.fractions[0].paths])
    department.wait()
    (job,) = department.jobs().values()
    with pytest.raises(ConflictError, match="nothing to sign yet"):
        department.reviews.approve(job, method="translation", reviewer="Someone", seen=0)
    with pytest.raises(ForbiddenTransitionError):
        department.reviews.reject(job, reviewer="Someone", seen=0, why="target wrong")
    drawn = department.draw(job)
    with pytest.raises(InputError, match="no contour is of 'rigid'"):
        department.reviews.approve(drawn, method="rigid", reviewer="Someone", seen=0)
    with pytest.raises(InputError, match="no reason to reject"):
        department.reviews.reject(drawn, reviewer="Someone", seen=0, why="bored")
    with pytest.raises(InputError, match="not told"):
        department.reviews.reject(drawn, reviewer="Someone", seen=0, why="other")
    rejected = department.reviews.reject(drawn, reviewer="Someone", seen=0, why="target wrong")
    signed = department.reviews.approve(drawn, method="translation", reviewer="Someone", seen=1)
    twice = department.reviews.approve(drawn, method="translation", reviewer="Someone", seen=2)
    found = department.reviews.of(job.id)
    assert [r.number for r in found] == [rejected.number, signed.number, twice.number]
    assert signed.structures_uid != twice.structures_uid
    assert rejected.structures_uid == ""


# What goes wrong with one holds up nobody


def put_series(department: Department, count: int, *, state: str, at: datetime) -> None:
    """Series of one image each, which never make a run."""
    with department.records.index.write() as index:
        for number in range(count):
            uid = f"1.2.3.{number:04d}"
            index.execute(
                series.insert().values(
                    uid=uid,
                    study_uid="1.2",
                    modality="CT",
                    patient_key="scouts",
                    facts_json={},
                    door="pull",
                    sender="",
                    counted_json=[],
                    last_arrival_at=at.isoformat(),
                    state=state,
                    reason="fewer than two slices make no run",
                )
            )
            index.execute(
                instance.insert().values(
                    sop_uid=f"{uid}.1",
                    sop_class_uid=CT_IMAGE,
                    modality="CT",
                    series_uid=uid,
                    study_uid="1.2",
                    frame_of_reference="1.2.1",
                    file_digest="0" * 64,
                    bytes=1,
                    plane_json={},
                )
            )


@pytest.mark.parametrize("state", ["incomplete", "arriving"])
def test_many_series_that_never_become_whole_hold_up_no_other(
    department: Department, patients: tuple[Treatment, Treatment], state: str
) -> None:
    cbct = patients[0].fractions[0]
    put_series(department, 2 * AT_A_LOOK, state=state, at=now() - timedelta(minutes=5))
    department.send(cbct.paths)
    found = sum(department.arriving.look(now() + LATER) for _ in range(3))
    assert found == 1, "each look goes on where the last one stopped"
    department.arriving.look(now() + timedelta(hours=1))
    for _ in range(3):
        department.arriving.look(now() + timedelta(hours=1))
    waiting = [row for row in department.rows(series) if row.state == "arriving"]
    assert not waiting, "in the end each is whole, or incomplete"


def test_a_gap_is_told_once_and_judged_again_only_for_something_new(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    cbct = patients[0].fractions[0]
    department.send([*cbct.paths[:5], *cbct.paths[6:]])
    late = now() + timedelta(minutes=11)
    for seconds in range(0, 3600, 300):
        department.arriving.look(late + timedelta(seconds=seconds))
    assert department.told() == ["series.incomplete"]

    here = len(cbct.paths) - 1
    for _ in range(3):  # as whoever watches the archive says every 20 s
        department.arriving.counted(cbct.series_uid, here)
        department.arriving.look(late + timedelta(hours=1))
    assert department.told() == ["series.incomplete"], "which says nothing new"
    department.arriving.counted(cbct.series_uid, here + 1)
    department.arriving.look(late + timedelta(hours=1))
    assert department.told() == ["series.incomplete"] * 2, "the archive has the slice"
    department.send(cbct.paths)
    assert department.arriving.look(now() + LATER) == 1


def test_what_waits_for_an_archive_that_then_has_less_is_whole(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    cbct = patients[0].fractions[0]
    department.send(cbct.paths)
    department.arriving.counted(cbct.series_uid, len(cbct.paths) + 1)
    late = now() + timedelta(minutes=11)
    assert department.arriving.look(late) == 0
    (row,) = department.rows(series)
    assert row.state == "incomplete"
    department.arriving.counted(cbct.series_uid, len(cbct.paths))
    assert department.arriving.look(late) == 1


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_a_file_that_the_store_lost_is_left_out_until_it_comes_again(
    department: Department, patients: tuple[Treatment, Treatment], how: str
) -> None:
    first, second = patients
    department.send([*first.plan_paths, *first.fractions[0].paths])
    kept = department.records.archive.instance(first.structures_uid)
    assert kept is not None
    path = department.records.archive.path(kept)
    slices = department.records.archive.instances_of(first.planning_ct.series_uid)
    for lost in (path, department.records.archive.path(slices[3])):
        if how == "damaged":
            lost.write_bytes(b"damaged")
        else:
            lost.unlink()
    department.send([*second.plan_paths, *second.fractions[0].paths])
    department.wait()
    assert set(department.jobs()) == {second.fractions[0].series_uid}
    assert set(open_questions(department)) == {first.fractions[0].series_uid}
    department.send(first.plan_paths)
    department.wait()
    assert first.fractions[0].series_uid in department.jobs(), "nothing was remembered as lost"


def test_a_structure_set_that_was_lost_is_no_reason_to_take_an_older_one(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient, (cbct, *_) = patients[0], patients[0].fractions
    dataset = pydicom.dcmread(patient.structures)
    newer = pydicom.uid.UID(f"{dataset.SOPInstanceUID}.9")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = newer
    dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID}.9"
    dataset.StructureSetDate = dataset.ReviewDate = "20251220"
    dataset.ReviewTime, dataset.ReviewerName = "100000", "Someone"
    dataset.ApprovalStatus = "APPROVED"
    dataset.save_as(drawn := tmp_path / "newer.dcm")
    department.send([*patient.plan_paths, drawn])
    kept = department.records.archive.instance(newer)
    assert kept is not None
    department.records.archive.path(kept).write_bytes(b"damaged")
    department.send(cbct.paths)
    department.wait()
    assert not department.jobs()
    question = open_questions(department)[cbct.series_uid]
    assert (question["question"], question["missing"]) == ("structure_set", [newer])
    assert "were lost" in question["why"]
    department.send([drawn])
    department.wait()
    assert department.jobs()[cbct.series_uid].order["structures"]["sop_uid"] == newer


def test_a_fault_in_matching_one_series_is_no_fault_of_the_next(
    department: Department,
    patients: tuple[Treatment, Treatment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = patients
    department.send([*first.plan_paths, *first.fractions[0].paths])
    department.send([*second.plan_paths, *second.fractions[0].paths])
    department.arriving.look(now() + LATER)
    evidence = department.fractions.evidence
    of_patient, its = evidence.of_patient, department.records.archive.patient_of
    bad = its(first.fractions[0].series_uid)
    faults: list[Exception] = [ZeroDivisionError(), StoreError("the store's server answered 500")]

    def faulty(patient_key: str) -> Known:
        if patient_key == bad:
            raise faults.pop()
        return of_patient(patient_key)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "of_patient", faulty)
        department.fractions.look()
        assert set(department.jobs()) == {second.fractions[0].series_uid}
    department.fractions.look()
    assert first.fractions[0].series_uid not in department.jobs(), "it is left alone for a while"
    monkeypatch.setattr(fractions, "time", SimpleNamespace(monotonic=lambda: math.inf))
    department.fractions.look()
    assert first.fractions[0].series_uid in department.jobs()


def test_many_that_cannot_be_matched_yet_hold_up_no_other(
    department: Department, patients: tuple[Treatment, Treatment], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = patients[0]

    def its_plan(state: str) -> None:
        its = series.c.uid == patients[1].planning_ct.series_uid
        with department.records.index.write() as at:
            at.execute(update(series).where(its).values(state=state, reason="as the test says"))

    monkeypatch.setattr(fractions, "AT_A_LOOK", 2)
    monkeypatch.setattr(fractions, "AGAIN_AT_A_LOOK", 1)
    department.send(patients[1].paths)
    department.arriving.look(now() + LATER)
    its_plan("arriving")  # its fractions wait before ours
    department.send([*patient.plan_paths, *patient.fractions[0].paths])
    department.arriving.look(now())
    department.arriving.look(now() + timedelta(seconds=16))
    its_plan("arriving")
    for _ in range(6):
        department.fractions.look()
    assert set(department.jobs()) == {patient.fractions[0].series_uid}
    its_plan("whole")
    for _ in range(3):
        department.fractions.look()
    assert len(department.jobs()) == 3


def test_what_is_put_off_does_not_grow_without_end(
    department: Department, patients: tuple[Treatment, Treatment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fractions, "AT_A_LOOK", 2)
    monkeypatch.setattr(fractions, "PUT_OFF_AT_MOST", 3)
    index = department.records.index
    for number in range(9):  # of series whose times cannot be read
        uid = f"1.9.{number}"
        add(index, series, uid=uid, modality="CT", state="whole", patient_key="another")
        add(index, revision, id=uid, series_uid=uid, number=1, made_at=str(number))
    department.send([*patients[0].plan_paths, *patients[0].fractions[0].paths])
    department.arriving.look(now() + LATER)
    evidence = department.fractions.evidence
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "of_series", lambda *_: 1 / 0)
        for _ in range(9):
            department.fractions.look()
        assert len(department.fractions._put_off) == 4
    monkeypatch.setattr(fractions, "time", SimpleNamespace(monotonic=lambda: math.inf))
    for _ in range(9):
        department.fractions.look()
    assert not department.fractions._put_off
    assert set(department.jobs()) == {patients[0].fractions[0].series_uid}


def test_arrivals_are_looked_for_by_an_index_that_old_tables_get(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'index.sqlite3'}"
    with contextlib.closing(Index(url)) as old, old.write() as at:
        at.execute(text("DROP INDEX arrival_by_series"))
    with contextlib.closing(Index(url)) as index, index.read() as at:
        query = Fractions._open_again(lambda one: one.not_in(()))
        told = query.compile(index.engine, compile_kwargs={"literal_binds": True})
        plan = [row.detail for row in at.execute(text(f"EXPLAIN QUERY PLAN {told}"))]
    (looked,) = (step for step in plan if "arrival" in step)
    assert "INDEX arrival_by_series (series_uid=?)" in looked, plan


def test_many_older_open_questions_keep_none_from_settling_by_itself(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    with department.records.index.write() as at:
        for number in range(fractions.AT_A_LOOK):
            at.execute(
                fraction.insert().values(
                    revision_id=f"r{number}",
                    series_uid=f"1.9.{number}",
                    patient_key="another",
                    course_id=None,
                    acquired_at="",
                    state="needs_person",
                    reasons_json=[],
                    question_json={"question": "planning_ct"},
                    answers_json=[],
                    looked_at=0,
                    made_at=now().isoformat(),
                )
            )
    department.send(patient.fractions[0].paths)
    department.wait()
    department.send(patient.plan_paths)
    department.wait()
    assert set(department.jobs()) == {patient.fractions[0].series_uid}


# Two at one fraction


def test_an_answer_is_not_erased_by_a_worker_that_looked_before_it(
    department: Department, patients: tuple[Treatment, Treatment], tmp_path: Path
) -> None:
    patient = patients[0]
    cbct = patient.fractions[0]
    dataset = pydicom.dcmread(patient.structures)
    for roi in dataset.StructureSetROISequence:
        roi.ROIName = "X"
    for observation in dataset.RTROIObservationsSequence:
        observation.RTROIInterpretedType = "ORGAN"
    dataset.save_as(drawn := tmp_path / "drawn.dcm")
    department.send([*patient.planning_ct.paths, drawn, *cbct.paths])
    department.wait()
    (asked,) = (row for row in department.rows(fraction) if row.state == "needs_person")
    choice = asked.question_json["choices"][0]["value"]
    department.send(patient.fractions[1].paths[:1])
    front_door = Department(department.records)
    evidence = department.fractions.evidence
    of_patient = evidence.of_patient

    def slow(patient_key: str) -> Known:
        found = of_patient(patient_key)
        if not department.jobs():
            answer = Answer(question=asked.question_json["question"], choice=(choice,))
            front_door.fractions.answer(asked.revision_id, answer, by="somebody")
        return found

    evidence.of_patient = slow  # type: ignore[method-assign]
    for _ in range(2):
        department.fractions.look()
        (row,) = (r for r in department.rows(fraction) if r.revision_id == asked.revision_id)
        assert row.state == "matched"
        assert [given["by"] for given in row.answers_json] == ["somebody"]
        assert set(department.jobs()) == {cbct.series_uid}


def test_of_two_answers_to_one_question_the_second_is_told(
    department: Department, patients: tuple[Treatment, Treatment], monkeypatch: pytest.MonkeyPatch
) -> None:
    department.send(patients[0].fractions[0].paths)
    department.wait()
    (asked,) = department.rows(fraction)
    none = Answer(question="planning_ct", choice=("none",))
    first, second = Department(department.records), Department(department.records)
    monkeypatch.setattr(first.fractions, "match", lambda revision_id: False)  # it still reads
    first.fractions.answer(asked.revision_id, none, by="first")
    with pytest.raises(ConflictError, match="just now"):
        second.fractions.answer(asked.revision_id, none, by="second")
    (row,) = department.rows(fraction)
    assert [given["by"] for given in row.answers_json] == ["first"]


def test_an_answer_is_followed_though_whoever_took_it_died(
    department: Department, patients: tuple[Treatment, Treatment], monkeypatch: pytest.MonkeyPatch
) -> None:
    cbct = patients[0].fractions[0]
    department.send(cbct.paths)
    department.wait()
    (asked,) = department.rows(fraction)
    none = Answer(question="planning_ct", choice=("none",))
    front_door = Department(department.records)
    monkeypatch.setattr(front_door.fractions, "match", lambda revision_id: False)
    front_door.fractions.answer(asked.revision_id, none, by="somebody")
    department.fractions.look()
    (settled,) = department.rows(fraction)
    assert settled.state == "not_ours"


# A contour that was withdrawn


def test_a_contour_that_was_withdrawn_is_the_prior_of_nobody(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    first, second = patient.fractions
    department.send(patient.paths)
    department.wait()
    before = department.jobs()[second.series_uid]
    job = department.draw(department.jobs()[first.series_uid])
    department.reviews.approve(job, method="translation", reviewer="Someone Signing", seen=0)
    department.fractions.look()
    assert department.jobs()[second.series_uid].order["prior"] is not None
    department.reviews.reject(job, reviewer="Another", seen=1, why="target wrong")
    department.fractions.look()
    again = department.jobs()[second.series_uid]
    assert again.order["prior"] is None
    assert (again.id, again.state) == (before.id, State.MATCHED), "drawn as if never signed"
    signed = department.reviews.approve(
        job, method="translation", reviewer="Someone Signing", seen=2
    )
    department.fractions.look()
    prior = department.jobs()[second.series_uid].order["prior"]
    assert prior["sop_uid"] == signed.structures_uid, "what was signed last stands"


def test_a_contour_that_is_withdrawn_while_it_is_matched_is_no_prior(
    department: Department, patients: tuple[Treatment, Treatment]
) -> None:
    patient = patients[0]
    first, second = patient.fractions
    department.send([*patient.plan_paths, *first.paths])
    department.wait()
    job = department.draw(department.jobs()[first.series_uid])
    department.reviews.approve(job, method="translation", reviewer="Someone Signing", seen=0)
    department.send(second.paths)
    department.arriving.look(now() + LATER)
    evidence = department.fractions.evidence
    of_patient = evidence.of_patient

    def slow(patient_key: str) -> Known:
        found = of_patient(patient_key)
        if len(department.reviews.of(job.id)) == 1:
            department.reviews.reject(job, reviewer="Another", seen=1, why="target wrong")
        return found

    evidence.of_patient = slow  # type: ignore[method-assign]
    department.fractions.look()
    assert second.series_uid not in department.jobs()
    department.fractions.look()
    assert department.jobs()[second.series_uid].order["prior"] is None


@pytest.mark.peer
@pytest.mark.parametrize("what", ["withdrawn", "disputed"])
def test_what_happens_while_a_match_is_written_is_seen_by_it_or_sees_it(
    tmp_path: Path, patients: tuple[Treatment, Treatment], what: str
) -> None:
    patient = patients[0]
    first, second = patient.fractions
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres()).database("index")
        settings = ServiceSettings(
            data_folder=tmp_path / "data", disk_reserve_mib=0, database_url=url
        )
        records = stack.enter_context(contextlib.closing(open_records(settings, role="test")))
        department = Department(records)
        department.send([*patient.plan_paths, *first.paths])
        department.wait()
        job = department.draw(department.jobs()[first.series_uid])
        department.reviews.approve(job, method="translation", reviewer="Someone Signing", seen=0)
        department.send(second.paths)
        department.arriving.look(now() + LATER)
        again = other_content(second.paths[3], tmp_path / "again.dcm", value=1)

        def happen() -> None:
            if what == "withdrawn":
                department.reviews.reject(job, reviewer="Another", seen=1, why="target wrong")
            else:
                department.send([again])

        write = department.fractions._write
        meanwhile = threading.Thread(target=happen)

        def slow(*args: Any) -> dict[str, Any]:
            meanwhile.start()
            meanwhile.join(2.0)
            return write(*args)

        department.fractions._write = slow  # type: ignore[method-assign, assignment]
        department.fractions.look()
        meanwhile.join()
        department.fractions._write = write  # type: ignore[method-assign]
        department.fractions.look()
        if what == "withdrawn":
            assert department.jobs()[second.series_uid].order["prior"] is None
        else:
            assert open_questions(department)[second.series_uid]["question"] == "conflict"
