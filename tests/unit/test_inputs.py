"""What belongs together, and what does not, before any work begins."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import pytest

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.ct_series_out import series_source, write_ct_series
from contourcast.imaging.dicom.registration_out import write_registration
from contourcast.imaging.dicom.rtstruct_out import Approval, write_structure_set
from contourcast.imaging.errors import FrameMismatchError, InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from contourcast.propagate import Case
from contourcast.service.jobs.inputs import read_case
from support.course import TUMOUR_XYZ_MM, CourseFiles, make_course
from support.dicom_factory import disc, make_registration, make_structure_set, uid

NOW: Final = datetime(2026, 1, 3, tzinfo=UTC)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> CourseFiles:
    return make_course(tmp_path_factory.mktemp("course"))


def case_of(course: CourseFiles, structures: Path | None = None, **more: object) -> Case:
    return read_case(
        planning_ct=course.planning_ct.folder,
        structures=structures or course.structures,
        cbct=course.cbct.folder,
        roi="GTV",
        **more,  # type: ignore[arg-type]
    )


def yesterdays(course: CourseFiles, folder: Path) -> tuple[Path, np.ndarray]:
    """The GTV as somebody drew it on the CBCT, and where the CBCT lies from the planning CT."""
    cbct_from_planning = np.eye(4)
    cbct_from_planning[:3, 3] = course.shift_xyz_mm
    middle = TUMOUR_XYZ_MM + course.shift_xyz_mm
    heights = course.cbct.positions_xyz_mm[:, 2] - middle[2]
    loops = [
        disc((*middle[:2], middle[2] + z), float(np.sqrt(400 - z**2)))
        for z in heights[np.abs(heights) < 19]
    ]
    path = make_structure_set(
        folder / "yesterday.dcm",
        {"GTV": loops},
        reference=course.cbct,
        name="yesterday",
        change=_of_the_same_patient,
    )
    return path, cbct_from_planning


def _of_the_same_patient(dataset: object) -> None:
    dataset.PatientID = "ZZQQ-LEAK-ID"  # type: ignore[attr-defined]


def test_a_prior_of_yesterday_is_brought_home_by_its_registration(
    course: CourseFiles, tmp_path: Path
) -> None:
    prior, cbct_from_planning = yesterdays(course, tmp_path)
    tie = make_registration(
        tmp_path / "reg.dcm",
        registered=course.cbct.frame_of_reference,
        moved={course.planning_ct.frame_of_reference: cbct_from_planning},
        change=_of_the_same_patient,
    )
    case = case_of(course, prior_structures=prior, registrations=[tie])
    assert case.prior.frame_of_reference == course.planning_ct.frame_of_reference
    at = rasterise(case.prior, case.planning_ct.grid).centroid_xyz_mm()
    assert at is not None
    assert np.linalg.norm(at - TUMOUR_XYZ_MM) < 1.0
    assert case.start is not None


@pytest.mark.parametrize(("down_mm", "percent"), [(0.0, None), (38.0, None), (50.0, 16), (55, 29)])
def test_a_prior_that_is_cut_on_its_way_home_is_a_doubt(
    course: CourseFiles, tmp_path: Path, down_mm: float, percent: int | None
) -> None:
    prior, cbct_from_planning = yesterdays(course, tmp_path)
    cbct_from_planning[2, 3] += down_mm
    tie = make_registration(
        tmp_path / "reg.dcm",
        registered=course.cbct.frame_of_reference,
        moved={course.planning_ct.frame_of_reference: cbct_from_planning},
        change=_of_the_same_patient,
    )
    doubts = case_of(course, prior_structures=prior, registrations=[tie]).doubts
    if percent is None:
        assert doubts == ()
        return
    (doubt,) = doubts
    told = re.fullmatch(
        r"of the prior: (\d+) % of it lies beyond the edge of the planning CT, and is cut off",
        doubt,
    )
    assert told is not None, doubt
    assert abs(int(told[1]) - percent) <= 4


def test_what_a_prior_lost_before_it_came_home_is_a_doubt(
    course: CourseFiles, tmp_path: Path
) -> None:
    prior, cbct_from_planning = yesterdays(course, tmp_path)
    dataset = pydicom.dcmread(prior)
    contours = dataset.ROIContourSequence[0].ContourSequence
    for contour in list(contours):
        beside = copy.deepcopy(contour)
        points = np.array(contour.ContourData, float).reshape(-1, 3) + np.array((6.0, 0, 0))
        beside.ContourData = [f"{v:.3f}" for v in points.ravel()]
        contours.append(beside)
    dataset.save_as(prior)
    tie = make_registration(
        tmp_path / "reg.dcm",
        registered=course.cbct.frame_of_reference,
        moved={course.planning_ct.frame_of_reference: cbct_from_planning},
        change=_of_the_same_patient,
    )
    (doubt,) = case_of(course, prior_structures=prior, registrations=[tie]).doubts
    assert doubt.startswith("of the prior: contours of one slice overlap")


def test_nobody_can_vouch_for_the_place_of_a_prior_in_another_frame(
    course: CourseFiles, tmp_path: Path
) -> None:
    prior, _ = yesterdays(course, tmp_path)
    with pytest.raises(FrameMismatchError, match="another frame of reference"):
        case_of(course, prior_structures=prior, vouched="it will be fine")


def test_registrations_that_contradict_each_other_are_refused_in_any_order(
    course: CourseFiles, tmp_path: Path
) -> None:
    prior, cbct_from_planning = yesterdays(course, tmp_path)

    def tie(name: str, away_mm: float) -> Path:
        moved = cbct_from_planning.copy()
        moved[0, 3] += away_mm
        return make_registration(
            tmp_path / f"{name}.dcm",
            registered=course.cbct.frame_of_reference,
            moved={course.planning_ct.frame_of_reference: moved},
            name=name,
            change=_of_the_same_patient,
        )

    one, same, other = tie("one", 0.0), tie("same", 0.05), tie("other", 15.0)
    for given in ([one, other], [other, one]):
        with pytest.raises(InputError, match=r"contradict each other by up to 15\.0 mm"):
            case_of(course, prior_structures=prior, registrations=given)
        with pytest.raises(InputError, match="contradict each other"):
            case_of(course, registrations=given)
    first, second = (
        case_of(course, prior_structures=prior, registrations=given).prior.loops[0].points_xyz_mm
        for given in ([one, same], [same, one])
    )
    assert np.array_equal(first, second), "the order says nothing"


def test_the_planning_ct_is_not_todays_scan(course: CourseFiles) -> None:
    with pytest.raises(InputError, match="the CBCT given is the planning CT"):
        read_case(
            planning_ct=course.planning_ct.folder,
            structures=course.structures,
            cbct=course.planning_ct.folder,
            roi="GTV",
        )


def test_what_a_person_vouched_against_is_a_doubt(course: CourseFiles, tmp_path: Path) -> None:
    structures = tmp_path / "another.dcm"
    dataset = pydicom.dcmread(course.structures)
    dataset.PatientID = "ANOTHER"
    dataset.save_as(structures)
    with pytest.raises(InputError, match="state different patients"):
        case_of(course, structures)
    case = case_of(course, structures, vouched="an alias")
    told = [doubt.partition(": ")[0] for doubt in case.doubts]
    assert told == ["a person vouched against this"] * len(told)
    assert "different patients" in case.doubts[0]
    assert case_of(course, vouched="to be safe").doubts == ()


def test_a_frame_that_an_archive_rewrote_can_be_vouched_for_where_the_images_tell(
    course: CourseFiles, tmp_path: Path
) -> None:
    structures = tmp_path / "rewritten.dcm"
    dataset = pydicom.dcmread(course.structures)
    for item in (
        dataset,
        *dataset.ReferencedFrameOfReferenceSequence,
    ):
        item.FrameOfReferenceUID = uid("rewritten")
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = uid("rewritten")
    dataset.save_as(structures)
    with pytest.raises(FrameMismatchError):
        case_of(course, structures)
    case = case_of(course, structures, vouched="frame of reference rewritten by our archive")
    assert case.doubts
    assert case.prior.frame_of_reference == course.planning_ct.frame_of_reference
    assert np.array_equal(
        case.prior.loops[0].points_xyz_mm, case_of(course).prior.loops[0].points_xyz_mm
    )


def test_a_registration_that_ties_nothing_here_is_refused(
    course: CourseFiles, tmp_path: Path
) -> None:
    foreign = make_registration(
        tmp_path / "reg.dcm",
        registered=uid("elsewhere"),
        moved={uid("nowhere"): np.eye(4)},
        change=_of_the_same_patient,
    )
    with pytest.raises(FrameMismatchError, match="ties nothing"):
        case_of(course, registrations=[foreign])


def test_the_images_tell_where_a_prior_was_drawn_when_all_scans_state_one_frame(
    tmp_path: Path,
) -> None:
    """Some machines give their CBCTs the plan's frame of reference; nobody has to vouch."""
    grid = Grid.even(
        shape_zyx=(20, 60, 60), spacing_xyz_mm=(2, 2, 3), origin_xyz_mm=(-60, -60, -30)
    )
    scans = {}
    for n, name in enumerate(("plan", "yesterday", "today")):
        noise = np.random.default_rng(n).normal(0, 100, grid.shape_zyx)
        scan = Volume(values=noise, grid=grid, frame_of_reference="2.25.1")
        source = series_source(
            scan,
            digest=name,
            patient=Patient(name="A^B", patient_id="1"),
            study=Study(instance_uid=f"2.25.1{n}"),
        )
        write_ct_series(tmp_path / name, replace(scan, source=source))
        scans[name] = read_ct_series(tmp_path / name)
    made: dict[str, Any] = {"drawn_at": NOW, "label": "P", "series_description": ""}
    for name, x_mm in (("plan", 0.0), ("yesterday", 12.0)):
        loops = tuple(
            Contour(points_xyz_mm=disc((x_mm, 0.0, -30 + 3.0 * k), 15.0)) for k in range(7, 13)
        )
        write_structure_set(
            tmp_path / f"{name}.dcm",
            rois=[Roi(number=1, name="GTV", frame_of_reference="2.25.1", contours=loops)],
            reference=scans[name],
            digest=name,
            approval=Approval(status="APPROVED", reviewer="X", at=NOW),
            **made,
        )
    matrix = np.eye(4)
    matrix[0, 3] = 12.0
    write_registration(
        tmp_path / "reg.dcm",
        cbct_from_planning=RigidTransform(
            matrix=matrix, source_frame="2.25.1", target_frame="2.25.1"
        ),
        cbct=scans["yesterday"],
        planning_ct=scans["plan"],
        digest="r",
        made_at=NOW,
    )
    given: dict[str, Any] = {
        "planning_ct": tmp_path / "plan",
        "structures": tmp_path / "plan.dcm",
        "cbct": tmp_path / "today",
        "roi": "GTV",
        "prior_structures": tmp_path / "yesterday.dcm",
    }
    case = read_case(**given, registrations=[tmp_path / "reg.dcm"])
    at = rasterise(case.prior, case.planning_ct.grid).centroid_xyz_mm()
    assert at is not None
    assert abs(at[0]) < 0.2
    assert case.start is None, "yesterday's registration says nothing of today's images"
    with pytest.raises(FrameMismatchError, match="drawn on other images"):
        read_case(**given)


def test_what_of_the_prior_is_lost_is_a_doubt_and_the_rest_a_note(
    course: CourseFiles, tmp_path: Path
) -> None:
    from pydicom import dcmread

    dataset = dcmread(course.structures)
    loops = dataset.ROIContourSequence[0].ContourSequence
    del loops[len(loops) // 2]  # forgotten
    loops.append(loops[0])  # and one exported twice
    dataset.save_as(tmp_path / "rs.dcm")
    case = case_of(course, tmp_path / "rs.dcm")
    (doubt,) = case.doubts
    assert doubt.startswith("of the prior: no contour within the stack, left empty: slice ")
    assert "1 of the contours stand there twice, and count once" in case.notes


def test_planning_ct_and_cbct_are_compared_where_the_structure_set_names_no_patient(
    course: CourseFiles, tmp_path: Path
) -> None:
    from pydicom import dcmread

    nameless = dcmread(course.structures)
    nameless.PatientID = ""
    nameless.save_as(tmp_path / "rs.dcm")
    other = tmp_path / "cbct"
    other.mkdir()
    for path in course.cbct.paths:
        dataset = dcmread(path)
        dataset.PatientID = "ZZQQ-LEAK-OTHER"
        dataset.save_as(other / path.name)
    with pytest.raises(InputError, match="planning CT and CBCT state different patients"):
        read_case(
            planning_ct=course.planning_ct.folder,
            structures=tmp_path / "rs.dcm",
            cbct=other,
            roi="GTV",
        )
