"""A contour that is asked for by its scan alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import select

from contourcast.imaging.errors import InputError
from contourcast.service.index.database import now
from contourcast.service.index.tables import fraction
from contourcast.service.intake.asking import ask, is_matched
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.outcomes import Answer
from contourcast.service.intake.rules import SiteRules
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import PropagationRequest
from contourcast.service.jobs.propagations import EVALUATION, TODAY, Job
from contourcast.service.problems import BusyError, NotFoundError, NotReadyError
from support.department import LATER, Department
from support.dicom_factory import disc, make_structure_set
from support.records import looking_into
from support.treatment import Treatment, make_treatment


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Treatment:
    return make_treatment(tmp_path_factory.mktemp("a"), patient="A", fractions=2)


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    """Nothing is matched before somebody asks."""
    with looking_into(tmp_path / "data") as records:
        yield Department(records)


def asked(
    department: Department,
    cbct: str,
    *,
    automatic: bool = False,
    priority: int = TODAY,
    most: int = 8,
    **more: Any,
) -> tuple[Job, bool]:
    request = PropagationRequest(cbct=cbct, **more)
    assert is_matched(request)
    return ask(
        department.fractions,
        request,
        by="somebody",
        priority=priority,
        automatic=automatic,
        most=most,
    )


def arrive(department: Department, *paths: Path) -> None:
    department.send(paths)
    department.arriving.look(now() + LATER)


def two_targets(patient: Treatment, to: Path) -> Path:
    """The structure set of a patient with another one beside the first."""
    z_mm = float(patient.planning_ct.positions_xyz_mm[2, 2])
    former = pydicom.dcmread(patient.structures)

    def change(dataset: Any) -> None:
        for name in ("PatientName", "PatientID", "PatientBirthDate"):
            dataset[name] = former[name]

    return make_structure_set(
        to,
        {name: [disc((0.0, 0.0, z_mm), 9.0)] for name in ("GTV-1", "GTV-2")},
        reference=patient.planning_ct,
        name="two",
        change=change,
    )


def test_a_scan_finds_its_plan_when_somebody_asks(
    department: Department, patient: Treatment
) -> None:
    cbct = patient.fractions[0].series_uid
    arrive(department, *patient.paths)
    job, new = asked(department, cbct, priority=EVALUATION)
    assert new
    assert job.order["planning_ct"]["series"] == patient.planning_ct.series_uid
    assert job.order["structures"]["sop_uid"] == patient.structures_uid
    assert (job.origin.asked_by, job.origin.priority) == ("somebody", EVALUATION)
    assert job.origin.course_id
    assert set(department.jobs()) == {cbct}, "nobody asked for the other"

    again, new = asked(department, cbct)
    assert (again.id, new) == (job.id, False)
    by_name, new = asked(department, cbct, roi="GTV")
    assert (by_name.id, new) == (job.id, False)
    other, new = asked(department, cbct, methods=["rigid"])
    assert (other.order["methods"], new) == (["rigid"], True)
    assert department.records.propagations.job(job.id).state is State.MATCHED, "beside the first"
    department.records.propagations.cancel(job.id, by="test")
    again, new = asked(department, cbct)
    assert (again.id, new) == (job.id, True)


def test_of_several_targets_one_has_to_be_named(
    department: Department, patient: Treatment, tmp_path: Path
) -> None:
    cbct = patient.fractions[0]
    drawn = two_targets(patient, tmp_path / "two.dcm")
    arrive(department, *patient.planning_ct.paths, drawn, *cbct.paths)
    with pytest.raises(InputError, match=r"2 ROIs .*'GTV-1' \(#1\), 'GTV-2' \(#2\).*: roi"):
        asked(department, cbct.series_uid)
    with pytest.raises(InputError, match="'Lung' is none of the ROIs"):
        asked(department, cbct.series_uid, roi="Lung")
    assert not department.jobs(), "and nothing is begun"
    first, _ = asked(department, cbct.series_uid, roi="GTV-1")
    second, _ = asked(department, cbct.series_uid, roi="#2")
    assert (first.order["roi_number"], second.order["roi_number"]) == (1, 2)
    assert {job.state for job in department.records.propagations.jobs()} == {State.MATCHED}


@pytest.mark.parametrize("first", ["new", "in question"])
def test_where_all_is_matched_by_itself_no_target_is_left_out(
    department: Department, patient: Treatment, tmp_path: Path, first: str
) -> None:
    cbct = patient.fractions[0]
    drawn = two_targets(patient, tmp_path / "two.dcm")
    arrive(department, *cbct.paths)
    if first == "in question":
        department.fractions.look()
    arrive(department, *patient.planning_ct.paths, drawn)
    job, _ = asked(department, cbct.series_uid, roi="GTV-1", automatic=True)
    department.fractions.look()
    found = department.records.propagations.jobs()
    assert {one.order["roi_number"] for one in found} == {1, 2}
    assert job.id in {one.id for one in found}


def test_what_a_person_has_to_say_first_is_told(department: Department, patient: Treatment) -> None:
    cbct = patient.fractions[0]
    arrive(department, *cbct.paths)
    with pytest.raises(NotReadyError, match="planning_ct: no planning CT") as told:
        asked(department, cbct.series_uid)
    with department.records.index.read() as at:
        (row,) = at.execute(select(fraction)).all()
    assert f"/v1/courses/{row.revision_id}" in told.value.remedy
    arrive(department, *patient.plan_paths)
    assert asked(department, cbct.series_uid)[1]


def test_a_scan_that_belongs_to_nothing_is_told(department: Department, patient: Treatment) -> None:
    arrive(department, *patient.plan_paths)
    with pytest.raises(InputError, match="it belongs to nothing here: it is no CBCT"):
        asked(department, patient.planning_ct.series_uid)


def test_what_is_not_whole_is_not_matched(department: Department, patient: Treatment) -> None:
    cbct = patient.fractions[0]
    with pytest.raises(NotFoundError):
        asked(department, cbct.series_uid)
    department.send(cbct.paths)
    with pytest.raises(NotReadyError, match="not whole"):
        asked(department, cbct.series_uid)
    department.arriving.look(now() + LATER)
    department.send(patient.plan_paths)
    with pytest.raises(NotReadyError, match="still arriving"):
        asked(department, cbct.series_uid)


def test_no_more_is_asked_for_than_may_wait(department: Department, patient: Treatment) -> None:
    arrive(department, *patient.paths)
    first, second = (each.series_uid for each in patient.fractions)
    job, _ = asked(department, first, most=1)
    assert asked(department, first, most=1) == (job, False)
    with pytest.raises(BusyError):
        asked(department, second, most=1)


@pytest.mark.parametrize(
    "more",
    [{"prior": "1.2"}, {"registration": "1.2"}, {"vouch": "I know"}, {"focus": "target"}],
)
def test_what_ties_scans_together_is_given_with_the_scans(
    department: Department, patient: Treatment, more: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="structures, planning_ct"):
        asked(department, patient.fractions[0].series_uid, **more)


def test_what_was_asked_for_is_taken_back_with_its_match(
    department: Department, patient: Treatment, tmp_path: Path
) -> None:
    cbct = patient.fractions[0]
    records = department.records
    arrive(department, *patient.paths)
    job, _ = asked(department, cbct.series_uid)
    dataset = pydicom.dcmread(patient.structures)
    dataset.StructureSetROISequence[0].ROIName = "another"
    dataset.save_as(tmp_path / "other.dcm")
    department.send([tmp_path / "other.dcm"])
    watch = Fractions(
        Evidence(records.archive),
        records.propagations,
        records.notices,
        SiteRules(),
        served_network=lambda: ("", ""),
        methods=["translation"],
        asked_alone=True,
    )
    watch.look()
    assert records.propagations.job(job.id).state is State.SUPERSEDED
    with pytest.raises(NotReadyError, match="conflict") as told:
        asked(department, cbct.series_uid)
    with records.index.read() as at:
        (row,) = at.execute(select(fraction)).all()
    assert row.revision_id in told.value.remedy, "nobody asked for the others, they are not matched"
    first = row.question_json["choices"][0]["value"]
    answer = Answer(question="conflict", choice=(first,))
    department.fractions.answer(row.revision_id, answer, by="somebody")
    (vouched,) = department.jobs().values()
    assert asked(department, cbct.series_uid) == (vouched, False)
