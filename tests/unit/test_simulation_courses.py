from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from contourcast.imaging.dicom.rtplan_in import read_plan
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.simulation import rtk
from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.courses import simulate_course
from contourcast.simulation.fraction import Physics, fraction, fraction_digest
from contourcast.simulation.recipe import CLINIC_1
from contourcast.simulation.truth import load_truth, save_truth
from support.validators import dciodvfy
from support.virtual import TINY, tiny_patient, tiny_thorax


def _course(
    out: Path, *, weeks: Sequence[float] = (2.0, 5.0), anatomy: Anatomy | None = None
) -> Path:
    simulate_course(
        out,
        recipe=CLINIC_1,
        anatomy=anatomy or tiny_thorax(),
        fractions=weeks,
        seed=7,
        patient_number=1,
        sampling=TINY,
        physics="image",
    )
    return out / "patient-001"


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _course(tmp_path_factory.mktemp("course"))


def test_a_course_lies_as_it_is_documented(course: Path) -> None:
    assert {p.name for p in course.iterdir()} == {
        "planning-ct",
        "structures.dcm",
        "plan.dcm",
        "fraction-01",
        "fraction-02",
        "truth",
    }
    assert {p.name for p in (course / "truth").iterdir()} == {
        "patient.json",
        "fraction-01.json",
        "fraction-01.npz",
        "fraction-02.json",
        "fraction-02.npz",
    }


def test_the_same_seed_writes_the_same_bytes(course: Path, tmp_path: Path) -> None:
    again = _course(tmp_path)
    for path in sorted(p for p in course.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again / path.relative_to(course)).read_bytes(), path.name


def test_a_course_that_is_there_is_left_alone(course: Path) -> None:
    before = (course / "structures.dcm").stat().st_mtime_ns
    _course(course.parent)
    assert (course / "structures.dcm").stat().st_mtime_ns == before


def test_a_course_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="itk-rtk"):
        simulate_course(
            tmp_path,
            recipe=CLINIC_1,
            anatomy=tiny_thorax(),
            fractions=[2.0],
            seed=7,
            patient_number=1,
            sampling=TINY,
            physics="rtk",
        )
    assert not list(tmp_path.iterdir())


def test_the_structure_set_is_approved_and_holds_more_than_the_tumour(course: Path) -> None:
    dataset = pydicom.dcmread(course / "structures.dcm")
    assert dataset.ApprovalStatus == "APPROVED"
    assert dataset.ReviewerName
    names = {item.ROIName for item in dataset.StructureSetROISequence}
    assert {"GTV", "Lung_L", "Lung_R", "BODY"} < names


def test_the_plan_says_which_set_is_in_use_and_for_how_many_fractions(course: Path) -> None:
    structures = read_structure_set(course / "structures.dcm")
    plan = read_plan(course / "plan.dcm")
    assert plan.structure_set_uid == structures.sop_instance_uid
    assert (plan.fractions, plan.approval_status, plan.intent) == (30, "APPROVED", "CURATIVE")
    assert plan.frame_of_reference == structures.frame_of_reference
    assert plan.notes == ("it names no isocentre",)


@pytest.mark.peer
def test_every_object_of_a_plan_is_valid(course: Path) -> None:
    assert [dciodvfy(course / f"{name}.dcm") for name in ("structures", "plan")] == [[], []]


def test_each_scan_has_study_series_and_frame_of_its_own(course: Path) -> None:
    headers = [
        pydicom.dcmread(course / folder / "0001.dcm", stop_before_pixels=True)
        for folder in ("planning-ct", "fraction-01", "fraction-02")
    ]
    for tag in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesDate"):
        assert len({str(h[tag].value) for h in headers}) == 3, tag
    assert len({str(h.PatientID) for h in headers}) == 1


UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")


def _uids(course: Path, scan: str) -> set[str]:
    header = pydicom.dcmread(course / scan / "0001.dcm", stop_before_pixels=True)
    return {str(header[keyword].value) for keyword in UIDS}


def test_a_scan_of_another_week_has_other_uids(course: Path, tmp_path: Path) -> None:
    other = _course(tmp_path, weeks=(2.0, 3.0))
    assert _uids(other, "planning-ct") == _uids(course, "planning-ct")
    assert _uids(other, "fraction-01") == _uids(course, "fraction-01")
    assert not _uids(other, "fraction-02") & _uids(course, "fraction-02")


def test_a_patient_of_another_ct_is_another_patient(course: Path, tmp_path: Path) -> None:
    other = _course(tmp_path, anatomy=replace(tiny_thorax(), digest="another CT"))
    assert not _uids(other, "planning-ct") & _uids(course, "planning-ct")
    assert not _uids(other, "fraction-01") & _uids(course, "fraction-01")
    ids = {pydicom.dcmread(c / "structures.dcm").PatientID for c in (course, other)}
    assert len(ids) == 2


def test_uids_of_a_fraction_follow_from_its_physics(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(physics: Physics) -> str:
        return fraction_digest(tiny_patient(), week=2, number=1, physics=physics)

    monkeypatch.setattr(rtk, "is_installed", lambda: True)
    assert digest("rtk") == digest("auto") != digest("image")
    monkeypatch.setattr(rtk, "is_installed", lambda: False)
    assert digest("auto") == digest("image")


def test_truth_says_which_series_it_is_of_and_what_made_it(course: Path) -> None:
    truth = load_truth(course / "truth" / "fraction-02.json")
    header = pydicom.dcmread(course / "fraction-02" / "0001.dcm", stop_before_pixels=True)
    assert truth.cbct_series_uid == header.SeriesInstanceUID
    assert truth.label.frame_of_reference == header.FrameOfReferenceUID
    document = json.loads((course / "truth" / "patient.json").read_text())
    assert document["recipe"]["melt"] == CLINIC_1.melt
    assert document["ct"] == "phantom-3"
    assert document["seed"] == 7


def test_truth_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    truth = fraction(tiny_patient(), week=5.0, series_uid="1.2.3").truth
    save_truth(truth, tmp_path, "fraction-01")
    back = load_truth(tmp_path / "fraction-01.json")
    truth.label.require_same_place(back.label)
    assert np.array_equal(back.label.values, truth.label.values)
    assert np.array_equal(back.anatomical.values, truth.anatomical.values)
    points = truth.label.grid.centers()[::97]
    assert np.abs(back.motion.apply(points) - truth.motion.apply(points)).max() < 0.02
    assert back.visible_share == truth.visible_share
    assert back.facts == truth.facts


def test_the_kept_displacement_is_the_motion_within_a_millimetre(tmp_path: Path) -> None:
    patient = tiny_patient()
    day = fraction(patient, week=6.0)
    inside = np.argwhere(day.truth.anatomical.values)[:, ::-1].astype(float)
    points = day.cbct.grid.world(inside)
    back = patient.grid.index(day.truth.motion.apply(points)).round().astype(int)
    depth = patient.gtv.values[tuple(np.clip(back, 0, None)[:, ::-1].T)]
    assert depth.mean() > 0.8  # today's tumour was tumour


def test_missing_truth_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fraction-09"):
        load_truth(tmp_path / "fraction-09.json")


def test_truth_of_another_version_is_refused(tmp_path: Path) -> None:
    save_truth(fraction(tiny_patient(), week=5.0).truth, tmp_path, "f")
    path = tmp_path / "f.json"
    path.write_text(path.read_text().replace('"truth_version": 1', '"truth_version": 99'))
    with pytest.raises(InputError, match="version 99"):
        load_truth(path)
