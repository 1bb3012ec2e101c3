from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_in import (
    read_structure_set,
    reference_notes,
    require_drawn_on,
)
from contourcast.imaging.errors import ContourcastError, DicomError, FrameMismatchError
from contourcast.imaging.volume import Volume
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set, uid

LOOPS = [disc((0, -10, -30), 5), disc((1, -11, -27), 5)]


@pytest.fixture
def ct(tmp_path: Path) -> CtFiles:
    return make_ct_series(tmp_path / "ct")


def written(
    ct: CtFiles,
    change: Callable[[FileDataset], None] = lambda dataset: None,
    **rois: list[np.ndarray],
) -> Path:
    path = ct.folder.parent / "rs.dcm"
    return make_structure_set(path, rois or {"GTV": LOOPS}, reference=ct, change=change)


def first_contour(dataset: Dataset) -> Dataset:
    contour: Dataset = dataset.ROIContourSequence[0].ContourSequence[0]
    return contour


def contour_data(vr: str, text: str | bytes) -> Callable[[FileDataset], None]:
    """Writes the first contour's data under any VR, unchecked."""

    def change(dataset: FileDataset) -> None:
        contour = first_contour(dataset)
        del contour.ContourData
        contour.add_new(Tag(0x3006, 0x0050), vr, text)

    return change


def test_a_structure_set_is_read_as_it_stands(ct: CtFiles) -> None:
    path = written(ct, GTV=LOOPS, Heart=[LOOPS[0]])
    found = read_structure_set(path)
    assert found.frame_of_reference == ct.frame_of_reference
    assert found.referenced_series_uids == (ct.series_uid,)
    assert found.referenced_sop_uids == set(ct.sop_uids)
    assert found.approval_status == "APPROVED"
    assert found.label == "PLAN"
    assert found.patient.patient_id == "P-1"
    assert found.notes == ()
    gtv, heart = found.rois
    assert (gtv.number, gtv.name, gtv.interpreted_type) == (1, "GTV", "GTV")
    assert (gtv.generation_algorithm, gtv.color_rgb) == ("MANUAL", (255, 0, 0))
    assert heart.name == "Heart"
    for loop, contour in zip(LOOPS, gtv.contours, strict=True):
        assert np.abs(contour.points_xyz_mm - loop).max() < 1e-6
        assert contour.geometric_type == "CLOSED_PLANAR"
    assert [c.sop_instance_uid for c in gtv.contours] == list(ct.sop_uids[:2])


def test_the_digest_is_that_of_the_file(ct: CtFiles) -> None:
    first = read_structure_set(written(ct)).digest
    assert first == read_structure_set(written(ct)).digest
    assert first != read_structure_set(written(ct, GTV=LOOPS[:1])).digest


def test_a_repeated_first_point_is_dropped_from_closed_contours_alone(ct: CtFiles) -> None:
    closed = np.vstack((LOOPS[0], LOOPS[0][:1]))

    def change(dataset: FileDataset) -> None:
        dataset.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = "OPEN_PLANAR"

    contours = read_structure_set(written(ct, change, GTV=[closed, closed])).rois[0].contours
    assert [len(c.points_xyz_mm) for c in contours] == [len(LOOPS[0]), len(closed)]


def no_sequence(dataset: FileDataset) -> None:
    del dataset.ROIContourSequence[1].ContourSequence


def empty_sequence(dataset: FileDataset) -> None:
    dataset.ROIContourSequence[1].ContourSequence = []


def no_item(dataset: FileDataset) -> None:
    del dataset.ROIContourSequence[1]


@pytest.mark.parametrize("empty", [no_sequence, empty_sequence, no_item])
def test_an_empty_roi_is_legal_in_all_three_ways(
    ct: CtFiles, empty: Callable[[FileDataset], None]
) -> None:
    found = read_structure_set(written(ct, empty, GTV=LOOPS, Empty=LOOPS))
    assert [len(r.contours) for r in found.rois] == [2, 0]


def test_missing_observations_are_legal(ct: CtFiles) -> None:
    path = written(ct, lambda dataset: delattr(dataset, "RTROIObservationsSequence"))
    assert read_structure_set(path).rois[0].interpreted_type == ""


@pytest.mark.parametrize("name", ["StructureSetROISequence", "ROIContourSequence"])
def test_a_file_without_its_lists_is_refused_and_not_taken_as_empty(ct: CtFiles, name: str) -> None:
    with pytest.raises(DicomError, match="cut short") as refused:
        read_structure_set(written(ct, lambda dataset: delattr(dataset, name)))
    assert refused.value.tag.startswith("(3006,00")


@pytest.mark.parametrize(
    ("vr", "text", "expected"),
    [
        ("LT", "1\\2", "2 numbers are no points"),
        ("LT", "1\\2\\3\\4", "4 numbers are no points"),
        ("LT", "1\\2\\nan", "no number"),
        ("LT", "1\\2\\inf", "no number"),
        ("LT", "1\\2\\1e309", "no number"),
        ("LT", "1\\2\\", "no number"),
        ("LT", "1\\2\\3,5", "no number"),
        ("LT", "1\\2\\1_0", "no number"),
        ("LT", "1\\2\\1e308", "beyond any patient"),
        ("LT", "", "no points"),
        ("FD", [1.0, 2.0, 3.0], "written as FD"),
    ],
)
def test_contour_data_that_is_none_is_refused_with_the_number_of_its_roi(
    ct: CtFiles, vr: str, text: str, expected: str
) -> None:
    with pytest.raises(DicomError, match=expected) as refused:
        read_structure_set(written(ct, contour_data(vr, text), SECRET=LOOPS))
    assert "contour 1 of ROI number 1" in refused.value.cause
    assert refused.value.tag == "(3006,0050) Contour Data"
    assert refused.value.file == "rs.dcm"
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("vr", ["LT", "UT", "UN"])
def test_contour_data_of_a_wrong_text_vr_is_read_and_noted(ct: CtFiles, vr: str) -> None:
    text = "\\".join(f"{v:.4f}" for v in LOOPS[0].ravel())
    path = written(ct, contour_data(vr, text if vr != "UN" else text.encode()))
    if vr == "UN":  # pydicom writes a UN that it knows as what it is
        data = path.read_bytes()
        place = data.index(b"\x06\x30\x50\x00DS") + 4
        length = int.from_bytes(data[place + 2 : place + 4], "little")
        rest = data[place + 4 :]
        path.write_bytes(data[:place] + b"LO" + length.to_bytes(2, "little") + rest)
    found = read_structure_set(path)
    assert np.abs(found.rois[0].contours[0].points_xyz_mm - LOOPS[0]).max() < 1e-3
    assert "instead of DS" in found.notes[0]


def test_a_stated_number_of_points_must_be_theirs(ct: CtFiles) -> None:
    path = written(ct, lambda dataset: setattr(first_contour(dataset), "NumberOfContourPoints", 7))
    with pytest.raises(DicomError, match="7 points are stated, 48 are there"):
        read_structure_set(path)


def test_an_unknown_geometric_type_is_refused(ct: CtFiles) -> None:
    path = written(
        ct, lambda dataset: setattr(first_contour(dataset), "ContourGeometricType", "ROUND")
    )
    with pytest.raises(DicomError, match="geometric type is unknown"):
        read_structure_set(path)


def test_an_impossible_colour_is_worth_no_refusal(ct: CtFiles) -> None:
    path = written(
        ct, lambda dataset: setattr(dataset.ROIContourSequence[0], "ROIDisplayColor", [1, 2])
    )
    assert read_structure_set(path).rois[0].color_rgb is None


def test_roi_numbers_need_not_run_from_one(ct: CtFiles) -> None:
    def change(dataset: FileDataset) -> None:
        dataset.StructureSetROISequence[0].ROINumber = 17
        dataset.ROIContourSequence[0].ReferencedROINumber = 17
        dataset.RTROIObservationsSequence[0].ReferencedROINumber = 17

    found = read_structure_set(written(ct, change)).rois[0]
    assert (found.number, len(found.contours), found.interpreted_type) == (17, 2, "GTV")


def test_a_roi_number_that_stands_twice_is_refused(ct: CtFiles) -> None:
    path = written(
        ct,
        lambda dataset: setattr(dataset.StructureSetROISequence[1], "ROINumber", 1),
        A=LOOPS,
        B=LOOPS,
    )
    with pytest.raises(DicomError, match="stands twice with the value 1"):
        read_structure_set(path)


def test_contours_that_stand_twice_for_one_roi_are_refused(ct: CtFiles) -> None:
    path = written(
        ct,
        lambda dataset: setattr(dataset.ROIContourSequence[1], "ReferencedROINumber", 1),
        A=LOOPS,
        B=LOOPS,
    )
    with pytest.raises(DicomError, match="stands twice with the value 1"):
        read_structure_set(path)


def test_contours_of_an_unlisted_roi_are_noted(ct: CtFiles) -> None:
    path = written(
        ct, lambda dataset: setattr(dataset.ROIContourSequence[0], "ReferencedROINumber", 9)
    )
    assert "left out: [9]" in read_structure_set(path).notes[0]


def test_names_are_unicode_and_may_repeat(ct: CtFiles) -> None:
    def change(dataset: FileDataset) -> None:
        for item in dataset.StructureSetROISequence:
            item.ROIName = "Tumeur_résiduelle_腫瘍"

    found = read_structure_set(written(ct, change, A=LOOPS, B=LOOPS))
    assert [r.name for r in found.rois] == ["Tumeur_résiduelle_腫瘍"] * 2


def test_another_object_is_refused(ct: CtFiles) -> None:
    with pytest.raises(DicomError, match="not an RT Structure Set"):
        read_structure_set(ct.paths[0])


# Which scan it was drawn on


def test_a_structure_set_belongs_to_its_planning_ct(ct: CtFiles) -> None:
    require_drawn_on(read_structure_set(written(ct)), read_ct_series(ct.folder))


def test_slices_that_are_not_here_do_not_matter(ct: CtFiles) -> None:
    """The list of images is never complete in either way: here slices are lost on both sides."""

    def change(dataset: FileDataset) -> None:
        study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        series = study.RTReferencedSeriesSequence[0]
        series.SeriesInstanceUID = "1.2.3"  # only the slices tell
        del series.ContourImageSequence[0], series.ContourImageSequence[-1]

    path = written(ct, change)
    ct.paths[0].unlink()
    require_drawn_on(read_structure_set(path), read_ct_series(ct.folder))


def without_references(dataset: FileDataset) -> None:
    del dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        del contour.ContourImageSequence


def test_lost_slices_and_other_series_are_said(ct: CtFiles) -> None:
    def change(dataset: FileDataset) -> None:
        study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"

    path = written(ct, change)
    ct.paths[0].unlink()
    assert reference_notes(read_structure_set(path), read_ct_series(ct.folder)) == (
        "it names another series than that of its slices",
        "1 of the 5 slices that it names are not in the scan",
    )


def test_without_references_the_frame_alone_decides_and_that_is_noted(ct: CtFiles) -> None:
    found = read_structure_set(written(ct, without_references))
    assert "by frame of reference alone" in found.notes[0]
    require_drawn_on(found, read_ct_series(ct.folder))


@pytest.fixture
def other(tmp_path: Path, ct: CtFiles) -> Callable[..., Volume]:
    def make(**about: str) -> Volume:
        return read_ct_series(make_ct_series(tmp_path / "other", name="other", **about).folder)  # type: ignore[arg-type]

    return make


def test_another_frame_is_refused_with_both_uids(ct: CtFiles, other: Callable[..., Volume]) -> None:
    with pytest.raises(FrameMismatchError, match="not drawn in the planning CT's frame") as refused:
        require_drawn_on(read_structure_set(written(ct)), other())
    assert ct.frame_of_reference in refused.value.uid
    assert uid("other frame") in refused.value.uid


def test_another_series_of_the_same_frame_is_refused(
    ct: CtFiles, other: Callable[..., Volume]
) -> None:
    """Phases of a 4DCT share their frame; the tumour lies elsewhere in each."""
    phase = other(frame_of_reference=ct.frame_of_reference)
    with pytest.raises(FrameMismatchError, match="other images of the same frame") as refused:
        require_drawn_on(read_structure_set(written(ct)), phase)
    assert ct.series_uid in refused.value.uid
    assert uid("other series") in refused.value.uid


def no_frames(dataset: FileDataset) -> None:
    del dataset.FrameOfReferenceUID, dataset.ReferencedFrameOfReferenceSequence
    for item in dataset.StructureSetROISequence:
        del item.ReferencedFrameOfReferenceUID


def test_no_frame_on_either_side_is_refused(ct: CtFiles, tmp_path: Path) -> None:
    found = read_structure_set(written(ct, no_frames))
    assert "no frame of reference is stated" in found.notes
    with pytest.raises(FrameMismatchError, match="not drawn in"):
        require_drawn_on(found, read_ct_series(ct.folder))
    bare = make_ct_series(
        tmp_path / "bare", change=lambda dataset, k: delattr(dataset, "FrameOfReferenceUID")
    )
    with pytest.raises(FrameMismatchError, match="not drawn in"):
        require_drawn_on(read_structure_set(written(ct)), read_ct_series(bare.folder))
    with pytest.raises(FrameMismatchError, match="not drawn in"):
        require_drawn_on(found, read_ct_series(bare.folder))


# Damaged files


def test_a_structure_set_cut_anywhere_never_loses_contours_unsaid(ct: CtFiles) -> None:
    """At element borders after the contours a cut file is whole in all that matters."""
    data = written(ct, GTV=[disc((0, 0, -30), 5, points=4)]).read_bytes()
    path = ct.folder.parent / "cut.dcm"
    read = 0
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        try:
            found = read_structure_set(path)
        except ContourcastError:
            continue
        read += 1
        assert len(found.rois[0].contours) == 1
    assert read <= 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_never_escape_the_family_of_errors(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "rs.dcm"
    if not path.exists():
        make_structure_set(
            path,
            {"GTV": [disc((0, 0, -30), 5, points=6)]},
            reference=make_ct_series(tmp_path / "ct", np.zeros((2, 2, 2), int)),
        )
        (tmp_path / "original").write_bytes(path.read_bytes())
    original = bytearray((tmp_path / "original").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(original) - 1))
        original[position] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(original))
    said = ""
    try:
        read_structure_set(path)
    except ContourcastError as refused:
        said = str(refused)
    assert "Phantom" not in said
    assert str(tmp_path) not in said


def test_pydicom_reads_the_same_contours(ct: CtFiles) -> None:
    path = written(ct)
    ours = read_structure_set(path).rois[0].contours
    for contour, item in zip(
        ours, dcmread(path).ROIContourSequence[0].ContourSequence, strict=True
    ):
        theirs = np.array(item.ContourData, float).reshape(-1, 3)
        assert (contour.points_xyz_mm == theirs).all()
