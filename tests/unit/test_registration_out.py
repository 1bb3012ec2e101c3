from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.check import check_registration
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.registration_out import matrix_text, write_registration
from contourcast.imaging.errors import DicomError, FrameMismatchError
from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from support.scans import DRAWN_AT, make_scan
from support.validators import dcentvfy, dciodvfy, dcmdump

SMALL = Grid.even(shape_zyx=(3, 4, 5), spacing_xyz_mm=(2, 2, 3), origin_xyz_mm=(0, 0, 0))


def motion(planning_ct: Volume, cbct: Volume, seed: int = 0) -> RigidTransform:
    rng = np.random.default_rng(seed)
    return RigidTransform.about(
        rng.normal(0, 500, 3),
        rotation=Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix(),
        translation_xyz_mm=rng.normal(0, 30, 3),
        source_frame=planning_ct.frame_of_reference,
        target_frame=cbct.frame_of_reference,
    )


def write(path: Path, cbct: Volume, planning_ct: Volume, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "cbct_from_planning": motion(planning_ct, cbct),
        "cbct": cbct,
        "planning_ct": planning_ct,
        "digest": "inputs",
        "made_at": DRAWN_AT,
    } | changes
    write_registration(path / "REG.dcm", **arguments)
    return path / "REG.dcm"


def pair(*, shared_frame: bool = False, shared_study: bool = False) -> tuple[Volume, Volume]:
    cbct = make_scan(SMALL)
    planning = make_scan(SMALL, name="planning CT", study="study" if shared_study else "plan")
    if shared_frame:
        planning = replace(planning, frame_of_reference=cbct.frame_of_reference)
    return cbct, planning


def test_the_cbcts_frame_is_the_registered_one_and_the_matrix_leads_to_it(tmp_path: Path) -> None:
    cbct, planning = pair()
    given = motion(planning, cbct)
    file = dcmread(write(tmp_path, cbct, planning))
    fixed, moved = file.RegistrationSequence
    assert file.FrameOfReferenceUID == fixed.FrameOfReferenceUID == cbct.frame_of_reference
    assert moved.FrameOfReferenceUID == planning.frame_of_reference
    (of_fixed,), (of_moved,) = fixed.MatrixRegistrationSequence, moved.MatrixRegistrationSequence
    (one,), (other,) = of_fixed.MatrixSequence, of_moved.MatrixSequence
    matrices = [
        np.array(m.FrameOfReferenceTransformationMatrix, float).reshape(4, 4) for m in (one, other)
    ]
    assert (matrices[0] == np.eye(4)).all()
    corners = planning.grid.corners_xyz_mm + 500
    moved_by_file = corners @ matrices[1][:3, :3].T + matrices[1][:3, 3]
    assert np.abs(moved_by_file - given.apply(corners)).max() < 1e-6
    assert one.FrameOfReferenceTransformationMatrixType == "RIGID"
    assert len(of_fixed.RegistrationTypeCodeSequence) == 0
    assert of_moved.RegistrationTypeCodeSequence[0].CodeValue == "125024"


def test_matrix_numbers_have_ten_digits_and_fit() -> None:
    rng = np.random.default_rng(1)
    numbers = rng.normal(0, 1, 4000) * 10.0 ** rng.integers(-12, 5, 4000)
    texts = matrix_text(numbers)
    assert max(map(len, texts)) <= 16
    assert np.allclose([float(t) for t in texts], numbers, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shared_study", [False, True])
def test_both_series_are_referenced_each_in_its_study(tmp_path: Path, shared_study: bool) -> None:
    cbct, planning = pair(shared_study=shared_study)
    assert cbct.source is not None
    assert planning.source is not None
    file = dcmread(write(tmp_path, cbct, planning))
    here = [s.SeriesInstanceUID for s in file.ReferencedSeriesSequence]
    assert here[0] == cbct.source.series_instance_uid
    if shared_study:
        assert here[1] == planning.source.series_instance_uid
        assert "StudiesContainingOtherReferencedInstancesSequence" not in file
    else:
        (other,) = file.StudiesContainingOtherReferencedInstancesSequence
        assert other.StudyInstanceUID == planning.source.study.instance_uid
        (series,) = other.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == planning.source.series_instance_uid


def test_images_of_one_frame_are_told_apart_by_their_instances(tmp_path: Path) -> None:
    cbct, planning = pair(shared_frame=True)
    assert cbct.source is not None
    assert planning.source is not None
    path = write(tmp_path, cbct, planning)
    file = dcmread(path)
    assert file.FrameOfReferenceUID not in ("", cbct.frame_of_reference)
    for item, source in zip(file.RegistrationSequence, (cbct.source, planning.source), strict=True):
        assert "FrameOfReferenceUID" not in item
        named = [image.ReferencedSOPInstanceUID for image in item.ReferencedImageSequence]
        assert named == [s.sop_instance_uid for s in source.slices]
    assert check_registration(path, cbct, planning) == ()


@pytest.mark.parametrize("shared_frame", [False, True])
def test_what_was_written_is_read_again_both_ways(tmp_path: Path, shared_frame: bool) -> None:
    cbct, planning = pair(shared_frame=shared_frame)
    given = motion(planning, cbct)
    found = read_registration(write(tmp_path, cbct, planning))
    assert found.notes == ()
    there = found.between_scans(target=cbct, source=planning)
    back = found.between_scans(target=planning, source=cbct)
    assert (there.source_frame, there.target_frame) == (given.source_frame, given.target_frame)
    corners = planning.grid.corners_xyz_mm + 500
    assert np.abs(there.apply(corners) - given.apply(corners)).max() < 1e-6
    assert np.abs(back.apply(given.apply(corners)) - corners).max() < 1e-6


def test_one_shared_frame_never_stands_for_a_scan(tmp_path: Path) -> None:
    cbct, planning = pair(shared_frame=True)
    shared = cbct.frame_of_reference
    found = read_registration(write(tmp_path, cbct, planning))
    assert found.frames == (found.frame_of_reference,)
    with pytest.raises(FrameMismatchError, match="says nothing of this frame"):
        found.between(target_frame=shared, source_frame=shared)
    other = replace(make_scan(SMALL, name="another day"), frame_of_reference=shared)
    for stranger in (other, replace(planning, source=None)):
        with pytest.raises(FrameMismatchError, match="does not name the images"):
            found.between_scans(target=cbct, source=stranger)


def test_the_same_registration_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1", *pair()), write(tmp_path / "2", *pair())
    assert one.read_bytes() == two.read_bytes()
    other = write(tmp_path / "3", *pair(), digest="other inputs")
    assert dcmread(one).SOPInstanceUID != dcmread(other).SOPInstanceUID


def test_a_transform_of_other_frames_is_refused(tmp_path: Path) -> None:
    cbct, planning = pair()
    backwards = motion(planning, cbct).inverse()
    with pytest.raises(FrameMismatchError, match="different frames"):
        write(tmp_path, cbct, planning, cbct_from_planning=backwards)
    with pytest.raises(DicomError, match="planning CT has no DICOM identity"):
        write(tmp_path, cbct, replace(planning, source=None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.peer
@pytest.mark.parametrize("shared_frame", [False, True])
@pytest.mark.parametrize("shared_study", [False, True])
@pytest.mark.parametrize("body_part", ["CHEST", ""])
def test_validators_find_nothing(
    tmp_path: Path, shared_frame: bool, shared_study: bool, body_part: str
) -> None:
    cbct, planning = pair(shared_frame=shared_frame, shared_study=shared_study)
    assert cbct.source is not None
    cbct = replace(cbct, source=replace(cbct.source, body_part=body_part))
    path = write(tmp_path, cbct, planning, comment="bones, accepted")
    assert dciodvfy(path) == []
    assert dcentvfy([path]) == []
    assert "bones, accepted" in dcmdump(path)
    assert check_registration(path, cbct, planning) == ()
