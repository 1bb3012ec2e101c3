"""What a run leaves behind, read by others."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import jsonschema
import numpy as np
import pytest
import torch
from pydicom import dcmread

from contourcast.imaging.dicom.modules import VERSION
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import ContourcastError
from contourcast.models.selective_scan import explain_scan
from contourcast.propagate import Propagation, Settings, propagate
from contourcast.service.jobs.inputs import read_case
from contourcast.service.outputs.report import FILES, NOTICE, write_results
from support.course import CourseFiles, make_course
from support.data import REPOSITORY
from support.validators import dciodvfy

MADE_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> CourseFiles:
    return make_course(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="module")
def result(course: CourseFiles) -> Propagation:
    case = read_case(
        planning_ct=course.planning_ct.folder,
        structures=course.structures,
        cbct=course.cbct.folder,
        roi="GTV",
    )
    settings = Settings(methods=("translation", "rigid"))
    return propagate(case, settings=settings, network=None, clock=lambda: 0.0)


@pytest.fixture(scope="module")
def run(result: Propagation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "run"
    write_results(result, out, made_at=MADE_AT)
    return out


def test_all_files_are_there_and_nothing_else(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == sorted(FILES)
    assert sorted(p.name for p in run.parent.iterdir()) == ["run"]


def test_the_report_keeps_its_schema(run: Path) -> None:
    schema = json.loads((REPOSITORY / "docs" / "report.schema.json").read_text())
    report = json.loads((run / "report.json").read_text())
    jsonschema.validate(report, schema)
    assert report["notice"] == NOTICE
    assert [m["state"] for m in report["methods"]] == ["drawn", "drawn"]


def test_the_verdict_is_the_worst_of_the_figures_and_each_reason_is_one_of_them(
    run: Path, result: Propagation
) -> None:
    report = json.loads((run / "report.json").read_text())
    figures = report["figures"]
    assert [each["name"] for each in figures] == [each.name for each in result.quality.figures]
    assert {"rigid_volume_over_prior", "body_target_apart_mm"} <= {f["name"] for f in figures}
    order = ["accept", "look", "reject"]
    assert report["verdict"] == max((f["verdict"] for f in figures), key=order.index)
    assert set(report["reasons"]) == {f["reason"] for f in figures if f["verdict"] != "accept"}


def test_the_report_says_which_scan_a_network_would_take(run: Path) -> None:
    provenance = json.loads((run / "report.json").read_text())["provenance"]
    scan = explain_scan(torch.device("cpu"))
    assert scan.name in provenance["versions"]["selective scan"]
    assert scan.why in provenance["versions"]["selective scan"]


def test_the_matrices_of_the_report_are_inverse_and_say_which_way_they_go(run: Path) -> None:
    registration = json.loads((run / "report.json").read_text())["registration"]
    there, back = registration["cbct_from_planning"], registration["planning_from_cbct"]
    np.testing.assert_allclose(np.array(there["rows"]) @ back["rows"], np.eye(4), atol=1e-8)
    assert there["direction"].startswith("takes a point of the planning CT")
    assert back["direction"].startswith("takes a point of today's CBCT")


def test_the_shift_at_the_gtv_is_the_patient_s(run: Path, course: CourseFiles) -> None:
    at = json.loads((run / "report.json").read_text())["registration"]["at_gtv"]
    error_mm = np.linalg.norm(np.array(at["translation_xyz_mm"]) - course.shift_xyz_mm)
    assert error_mm < 1.5


def test_the_registration_object_says_what_the_report_says(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    written = read_registration(run / "REG.dcm").between(
        target_frame=report["cbct"]["frame_of_reference_uid"],
        source_frame=report["planning_ct"]["frame_of_reference_uid"],
    )
    expected = report["registration"]["cbct_from_planning"]["rows"]
    np.testing.assert_allclose(written.matrix, expected, atol=1e-6)


def test_the_structure_set_names_source_and_method(run: Path) -> None:
    structures = read_structure_set(run / "RS.dcm")
    assert {roi.name for roi in structures.rois} == {"GTV translation", "GTV rigid"}
    dataset = dcmread(run / "RS.dcm")
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert dataset.StructureSetName == "GTV"
    said = dataset.StructureSetDescription
    assert said.startswith("verdict ")
    assert NOTICE in said
    assert said.endswith(f"Contourcast {VERSION} rigid; Contourcast {VERSION} translation")


def test_the_recommended_contour_comes_first_and_each_has_its_method_s_number(run: Path) -> None:
    structures = read_structure_set(run / "RS.dcm")
    assert structures.rois[0].name == "GTV rigid"
    assert structures.roi("#1").name == "GTV translation"
    assert structures.roi("#2").name == "GTV rigid"


def test_the_label_has_the_day_of_the_scan_whenever_it_was_asked_for(
    result: Propagation, tmp_path: Path
) -> None:
    cbct = result.case.cbct
    assert cbct.source is not None
    scanned = replace(cbct, source=replace(cbct.source, series_date="2025.12.31"))
    of_that_day = replace(result, case=replace(result.case, cbct=scanned))
    write_results(of_that_day, tmp_path / "out", made_at=MADE_AT)
    assert dcmread(tmp_path / "out" / "RS.dcm").StructureSetLabel == "CC 20251231"


@pytest.mark.peer
def test_objects_go_by_the_clock_that_is_given_and_the_report_by_utc(
    result: Propagation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    local = MADE_AT.astimezone(ZoneInfo("America/New_York"))
    write_results(result, out, made_at=local, series_number=300)
    structures, registration = dcmread(out / "RS.dcm"), dcmread(out / "REG.dcm")
    assert (structures.StructureSetDate, structures.StructureSetTime) == ("20260101", "220405")
    assert (registration.ContentDate, registration.ContentTime) == ("20260101", "220405")
    assert (structures.SeriesNumber, registration.SeriesNumber) == (300, 301)
    for dataset in (structures, registration):
        assert dataset.TimezoneOffsetFromUTC == "-0500"
        assert dataset.InstanceCreationDate == "20260101"
    report = json.loads((out / "report.json").read_text())
    assert report["provenance"]["made_at"] == "2026-01-02T03:04:05Z"
    for name in ("RS.dcm", "REG.dcm"):
        assert dciodvfy(out / name) == []


def test_the_same_run_at_the_same_time_gives_the_same_bytes(
    result: Propagation, run: Path, tmp_path: Path
) -> None:
    write_results(result, tmp_path / "again", made_at=MADE_AT)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_a_run_may_be_written_over_itself_but_not_over_other_files(
    result: Propagation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_results(result, out, made_at=MADE_AT)
    write_results(result, out, made_at=MADE_AT)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ContourcastError, match=r"thesis\.txt"):
        write_results(result, out, made_at=MADE_AT)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_failure_in_mid_write_leaves_nothing(
    result: Propagation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("contourcast.service.outputs.report.overlay_png", full)
    with pytest.raises(OSError, match="No space"):
        write_results(result, tmp_path / "out", made_at=MADE_AT)
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_one_file_without_script_and_escapes_names(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert NOTICE in page
    assert "prefers-color-scheme: dark" in page
