from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.modules import references
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.errors import ContourcastError, DicomError, FrameMismatchError
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Volume
from support.dicom_factory import make_ct_series, make_registration, matrix_item, uid
from support.scans import make_scan

CBCT, PLANNING = uid("cbct"), uid("planning")


def motion(*angles_deg: float, shift: tuple[float, float, float] = (5.0, -4.0, 7.0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


CBCT_FROM_PLANNING = motion(1.0, -0.6, 1.8)
POINT = np.array([[12.0, -30.0, 55.0]])


def moved(matrix: np.ndarray) -> np.ndarray:
    result: np.ndarray = (np.append(POINT[0], 1) @ matrix.T)[None, :3]
    return result


def registration(
    tmp_path: Path,
    matrix: np.ndarray = CBCT_FROM_PLANNING,
    change: Callable[[FileDataset], None] = lambda dataset: None,
    *,
    with_identity: bool = True,
) -> Path:
    return make_registration(
        tmp_path / "reg.dcm",
        registered=CBCT,
        moved={PLANNING: matrix},
        with_identity=with_identity,
        change=change,
    )


@pytest.mark.parametrize("with_identity", [True, False])
def test_a_point_of_the_planning_ct_lands_in_the_cbct(tmp_path: Path, with_identity: bool) -> None:
    found = read_registration(registration(tmp_path, with_identity=with_identity))
    cbct_from_planning = found.between(target_frame=CBCT, source_frame=PLANNING)
    assert cbct_from_planning.source_frame == PLANNING
    assert cbct_from_planning.target_frame == CBCT
    assert np.allclose(cbct_from_planning.apply(POINT), moved(CBCT_FROM_PLANNING), atol=1e-6)
    back = found.between(target_frame=PLANNING, source_frame=CBCT)
    assert np.allclose(back.apply(cbct_from_planning.apply(POINT)), POINT, atol=1e-9)
    assert found.patient.patient_id == "P-1"


def test_the_cbct_may_be_the_one_that_was_moved(tmp_path: Path) -> None:
    path = make_registration(
        tmp_path / "reg.dcm",
        registered=PLANNING,
        moved={CBCT: np.linalg.inv(CBCT_FROM_PLANNING)},
    )
    between = read_registration(path).between(target_frame=CBCT, source_frame=PLANNING)
    assert np.allclose(between.apply(POINT), moved(CBCT_FROM_PLANNING), atol=1e-6)


def test_both_may_be_moved_to_a_third_frame(tmp_path: Path) -> None:
    to_third = motion(10, 20, -30)
    path = make_registration(
        tmp_path / "reg.dcm",
        registered=uid("third"),
        moved={CBCT: to_third, PLANNING: to_third @ CBCT_FROM_PLANNING},
        with_identity=False,
    )
    found = read_registration(path)
    between = found.between(target_frame=CBCT, source_frame=PLANNING)
    assert np.allclose(between.apply(POINT), moved(CBCT_FROM_PLANNING), atol=1e-5)


def test_the_first_of_several_matrices_is_applied_first_and_noted(tmp_path: Path) -> None:
    first, second = motion(30, 0, 0), motion(0, 0, 40, shift=(1, 2, 3))

    def change(dataset: FileDataset) -> None:
        item = dataset.RegistrationSequence[1].MatrixRegistrationSequence[0]
        item.MatrixSequence = [matrix_item(first), matrix_item(second)]

    found = read_registration(registration(tmp_path, change=change))
    between = found.between(target_frame=CBCT, source_frame=PLANNING)
    assert np.allclose(between.apply(POINT), moved(second @ first), atol=1e-6)
    assert not np.allclose(between.apply(POINT), moved(first @ second), atol=1)
    assert "first item applied first" in found.notes[0]


def test_a_frame_that_it_does_not_name_is_refused(tmp_path: Path) -> None:
    found = read_registration(registration(tmp_path))
    with pytest.raises(FrameMismatchError, match="says nothing") as refused:
        found.between(target_frame=CBCT, source_frame=uid("other"))
    assert refused.value.uid == uid("other")
    assert PLANNING in refused.value.remedy


CORRECTION, CLIPBOX = motion(1, 2, 3), motion(3, 2, 1)


def several(dataset: FileDataset) -> None:
    item = dataset.RegistrationSequence[1]
    item.MatrixRegistrationSequence = []
    for comment, matrix in (("Correction", CORRECTION), ("Clipbox", CLIPBOX)):
        result = Dataset()
        result.FrameOfReferenceTransformationComment = comment
        result.RegistrationTypeCodeSequence = []
        result.MatrixSequence = [matrix_item(matrix)]
        item.MatrixRegistrationSequence.append(result)


def test_several_results_are_listed_and_never_multiplied(tmp_path: Path) -> None:
    found = read_registration(registration(tmp_path, change=several))
    with pytest.raises(DicomError, match="2 results for one frame") as refused:
        found.between(target_frame=CBCT, source_frame=PLANNING)
    assert refused.value.remedy == "choose one: #2 'Correction', #3 'Clipbox'"


@pytest.mark.parametrize(
    ("choice", "matrix"), [("Correction", CORRECTION), ("Clipbox", CLIPBOX), ("#3", CLIPBOX)]
)
def test_a_result_is_chosen_by_comment_or_number(
    tmp_path: Path, choice: str, matrix: np.ndarray
) -> None:
    found = read_registration(registration(tmp_path, change=several))
    between = found.between(target_frame=CBCT, source_frame=PLANNING, result=choice)
    assert np.allclose(between.apply(POINT), moved(matrix), atol=1e-6)


def test_a_choice_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = read_registration(registration(tmp_path, change=several))
    with pytest.raises(DicomError, match="results for one frame"):
        found.between(target_frame=CBCT, source_frame=PLANNING, result="Mask")


def sheared() -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 1] = 0.01
    return matrix


def bottom_row() -> np.ndarray:
    matrix = np.eye(4)
    matrix[3, 0] = 0.01
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([1.03, 1.03, 1.03, 1]),
        np.diag([1.0001, 1.0001, 1.0001, 1]),
        np.diag([-1, 1, 1, 1]),
        np.zeros((4, 4)),
        sheared(),
        bottom_row(),
    ],
)
def test_a_matrix_that_is_not_rigid_is_refused_whatever_it_is_called(
    tmp_path: Path, matrix: np.ndarray
) -> None:
    with pytest.raises(DicomError, match="not a rigid motion") as refused:
        read_registration(registration(tmp_path, matrix))
    assert refused.value.uid == PLANNING
    assert "(3006,00C6)" in refused.value.tag


def test_a_rotation_with_four_decimals_is_set_right_and_noted(tmp_path: Path) -> None:
    matrix = motion(5, -7, 9)
    found = read_registration(registration(tmp_path, matrix.round(4)))
    between = found.between(target_frame=CBCT, source_frame=PLANNING)
    assert np.allclose(between.matrix[:3, :3] @ between.matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.allclose(between.matrix, matrix, atol=1e-4)
    assert "few digits" in found.notes[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1"] * 15, "15 numbers instead of 16"),
        (["1"] * 15 + ["x"], "no number"),
        (["nan"] * 16, "no number"),
        (["1e400"] * 16, "no number"),
    ],
)
def test_a_matrix_that_is_none_is_refused(tmp_path: Path, values: list[str], expected: str) -> None:
    def change(dataset: FileDataset) -> None:
        result = dataset.RegistrationSequence[1].MatrixRegistrationSequence[0]
        item = result.MatrixSequence[0]
        del item.FrameOfReferenceTransformationMatrix
        item.add_new(0x300600C6, "LT", "\\".join(values))  # no VR that pydicom checks

    with pytest.raises(DicomError, match=expected):
        read_registration(registration(tmp_path, change=change))


def test_a_shift_beyond_any_patient_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DicomError, match="beyond any patient"):
        read_registration(registration(tmp_path, motion(0, 0, 0, shift=(1e5, 0, 0))))


def no_matrix_sequence(dataset: FileDataset) -> None:
    dataset.RegistrationSequence[1].MatrixRegistrationSequence[0].MatrixSequence = []


def no_matrix(dataset: FileDataset) -> None:
    result = dataset.RegistrationSequence[1].MatrixRegistrationSequence[0]
    del result.MatrixSequence[0].FrameOfReferenceTransformationMatrix


@pytest.mark.parametrize("change", [no_matrix_sequence, no_matrix])
def test_a_missing_matrix_is_refused(tmp_path: Path, change: Callable[[FileDataset], None]) -> None:
    with pytest.raises(DicomError, match="is missing"):
        read_registration(registration(tmp_path, change=change))


def test_a_registration_of_nothing_is_refused(tmp_path: Path) -> None:
    path = registration(
        tmp_path, change=lambda dataset: setattr(dataset, "RegistrationSequence", [])
    )
    with pytest.raises(DicomError, match="holds no matrix"):
        read_registration(path)


def test_an_item_without_frame_is_left_out_and_noted(tmp_path: Path) -> None:
    path = registration(
        tmp_path,
        change=lambda dataset: delattr(dataset.RegistrationSequence[0], "FrameOfReferenceUID"),
    )
    found = read_registration(path)
    assert "neither a frame of reference nor images was left out" in found.notes[0]
    between = found.between(target_frame=CBCT, source_frame=PLANNING)
    assert np.allclose(between.apply(POINT), moved(CBCT_FROM_PLANNING), atol=1e-6)


SLICES = Grid.even(shape_zyx=(3, 4, 5), spacing_xyz_mm=(2, 2, 3), origin_xyz_mm=(0, 0, 0))


def scan_of(name: str, frame: str) -> Volume:
    return replace(make_scan(SLICES, name=name), frame_of_reference=frame)


def by_images(*names: str) -> Callable[[FileDataset], None]:
    """The items name the images of these scans; a name left empty: the item keeps its frame."""

    def change(dataset: FileDataset) -> None:
        for item, name in zip(dataset.RegistrationSequence, names, strict=True):
            if not name:
                continue
            source = scan_of(name, CBCT).source
            assert source is not None
            del item.FrameOfReferenceUID
            item.ReferencedImageSequence = references(source)

    return change


@pytest.mark.parametrize("names", [("cbct", "planning"), ("", "planning"), ("cbct", ""), ("", "")])
def test_items_may_name_images_instead_of_frames(tmp_path: Path, names: tuple[str, str]) -> None:
    found = read_registration(registration(tmp_path, change=by_images(*names)))
    between = found.between_scans(
        target=scan_of("cbct", CBCT), source=scan_of("planning", PLANNING)
    )
    assert (between.source_frame, between.target_frame) == (PLANNING, CBCT)
    assert np.allclose(between.apply(POINT), moved(CBCT_FROM_PLANNING), atol=1e-6)


def test_of_scans_that_share_a_frame_an_item_must_name_the_images_of_each(tmp_path: Path) -> None:
    cbct, planning = scan_of("cbct", CBCT), scan_of("planning", CBCT)
    both = read_registration(registration(tmp_path, change=by_images("cbct", "planning")))
    between = both.between_scans(target=cbct, source=planning)
    assert np.allclose(between.apply(POINT), moved(CBCT_FROM_PLANNING), atol=1e-6)
    for names in (("", "planning"), ("cbct", ""), ("", "")):
        one = read_registration(registration(tmp_path, change=by_images(*names)))
        with pytest.raises(FrameMismatchError, match="does not name the images of each"):
            one.between_scans(target=cbct, source=planning)


def test_several_results_for_the_same_images_are_refused_until_one_is_chosen(
    tmp_path: Path,
) -> None:
    def change(dataset: FileDataset) -> None:
        several(dataset)
        by_images("cbct", "planning")(dataset)

    found = read_registration(registration(tmp_path, change=change))
    cbct, planning = scan_of("cbct", CBCT), scan_of("planning", CBCT)
    with pytest.raises(DicomError, match="2 results for one scan") as refused:
        found.between_scans(target=cbct, source=planning)
    assert refused.value.remedy == "choose one: #2 'Correction', #3 'Clipbox'"
    between = found.between_scans(target=cbct, source=planning, result="Clipbox")
    assert np.allclose(between.apply(POINT), moved(CLIPBOX), atol=1e-6)


def test_an_item_that_names_images_must_hold_a_rigid_motion_too(tmp_path: Path) -> None:
    path = registration(tmp_path, sheared(), by_images("cbct", "planning"))
    with pytest.raises(DicomError, match="not a rigid motion") as refused:
        read_registration(path)
    source = scan_of("planning", CBCT).source
    assert source is not None
    assert refused.value.uid == source.slices[0].sop_instance_uid


def test_other_objects_are_refused_with_their_reason(tmp_path: Path) -> None:
    for sop_class, expected in (
        ("1.2.840.10008.5.1.4.1.1.66", "raw data of the linac"),
        ("1.2.840.10008.5.1.4.1.1.66.3", "Deformable"),
    ):

        def change(dataset: FileDataset, sop_class: str = sop_class) -> None:
            dataset.SOPClassUID = sop_class

        with pytest.raises(DicomError, match=expected):
            read_registration(registration(tmp_path, change=change))
    with pytest.raises(DicomError, match="not a Spatial Registration"):
        read_registration(make_ct_series(tmp_path / "ct").paths[0])


def test_a_registration_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = registration(tmp_path)
    data = path.read_bytes()
    for length in range(0, len(data), 2):  # Registration Sequence is its last element
        path.write_bytes(data[:length])
        with pytest.raises(DicomError):
            read_registration(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_never_escape_the_family_of_errors(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = registration(tmp_path)
    original = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(original) - 1))
        original[position] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(original))
    said = ""
    try:
        read_registration(path)
    except ContourcastError as refused:
        said = str(refused)
    assert "Phantom" not in said
    assert str(tmp_path) not in said
