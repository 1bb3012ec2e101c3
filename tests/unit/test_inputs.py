"""What belongs together, and what does not, before any work begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contourcast.imaging.errors import FrameMismatchError, InputError
from contourcast.imaging.rasterise import rasterise
from contourcast.propagate import Case
from contourcast.service.jobs.inputs import read_case
from support.course import TUMOUR_XYZ_MM, CourseFiles, make_course
from support.dicom_factory import disc, make_registration, make_structure_set, uid


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


def test_nobody_can_vouch_for_the_place_of_a_prior_in_another_frame(
    course: CourseFiles, tmp_path: Path
) -> None:
    prior, _ = yesterdays(course, tmp_path)
    with pytest.raises(FrameMismatchError, match="another frame of reference"):
        case_of(course, prior_structures=prior, vouched="it will be fine")


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
