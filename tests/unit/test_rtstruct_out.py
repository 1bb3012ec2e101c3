from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian

from contourcast.imaging import polygon
from contourcast.imaging.dicom.check import check_structure_set
from contourcast.imaging.dicom.ct_series_out import write_ct_series
from contourcast.imaging.dicom.elements import Attributes, Element
from contourcast.imaging.dicom.rtstruct_out import (
    Approval,
    Generation,
    Holes,
    proposal_name,
    write_structure_set,
    written_names,
)
from contourcast.imaging.errors import (
    ContourcastError,
    DicomError,
    FrameMismatchError,
    GeometryError,
    InputError,
)
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume
from support.scans import DRAWN_AT, GRIDS, PHANTOM, circle, make_scan, ring
from support.validators import dcentvfy, dciodvfy, dcmdump, plastimatch_masks

NETWORK = Generation(
    method="diff-umamba", version="0.3.1", weights_digest="1a2b3c4d" * 8, is_network=True
)


def write(path: Path, scan: Volume, *rois: Roi, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "rois": rois,
        "reference": scan,
        "label": "CC 20260103 F07",
        "series_description": "Contourcast proposals",
        "digest": "inputs",
        "drawn_at": DRAWN_AT,
    } | changes
    write_structure_set(path / "RS.dcm", **arguments)
    return path / "RS.dcm"


def loops_of(file: Path, number: int = 0) -> list[Contour]:
    """A ROI's contours as pydicom reads them."""
    contours = dcmread(file).ROIContourSequence[number].get("ContourSequence", [])
    return [Contour(points_xyz_mm=np.array(c.ContourData, float).reshape(-1, 3)) for c in contours]


def mask_of(file: Path, scan: Volume, number: int = 0) -> Mask:
    return rasterise(
        Roi(
            number=1,
            name="read",
            contours=tuple(loops_of(file, number)),
            frame_of_reference=scan.frame_of_reference,
        ),
        scan.grid,
    )


def each_contour(file: Path) -> list[Dataset]:
    return [c for r in dcmread(file).ROIContourSequence for c in r.get("ContourSequence", [])]


# ------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("holes", ["keyhole", "xor"])
@pytest.mark.parametrize("case", GRIDS)
def test_a_ring_with_an_island_comes_back(tmp_path: Path, case: str, holes: Holes) -> None:
    scan = make_scan(GRIDS[case])
    roi = ring(scan, 30.0, 20.0, 10.0)
    file = write(tmp_path, scan, roi, holes=holes)
    assert len(loops_of(file)) == 3 * {"keyhole": 2, "xor": 3}[holes]
    assert dice(mask_of(file, scan), rasterise(roi, scan.grid)) >= 0.999
    assert check_structure_set(file, scan) == ()
    stated_cc = float(dcmread(file).StructureSetROISequence[0].ROIVolume)
    area_mm2 = 60 * np.sin(2 * np.pi / 120) * (30**2 - 20**2 + 10**2)
    expected_cc = area_mm2 * scan.grid.thickness_z_mm[1:4].sum() / 1000
    assert stated_cc == pytest.approx(expected_cc, abs=1e-4)


@pytest.mark.parametrize("case", GRIDS)
def test_a_traced_mask_comes_back(tmp_path: Path, case: str) -> None:
    scan = make_scan(GRIDS[case])
    mask = rasterise(ring(scan, 30.0, 12.0), scan.grid)
    roi = replace(ring(scan), contours=trace(mask))
    file = write(tmp_path, scan, roi)
    assert dice(mask_of(file, scan), mask) >= 0.999
    assert check_structure_set(file, scan) == ()


@pytest.mark.parametrize("case", GRIDS)
def test_the_plane_of_a_contour_is_the_very_number_of_its_slice(tmp_path: Path, case: str) -> None:
    scan = make_scan(GRIDS[case])
    write_ct_series(tmp_path / "ct", scan)
    images = {f.SOPInstanceUID: f for f in map(dcmread, (tmp_path / "ct").iterdir())}
    axis = int(np.abs(scan.grid.normal).argmax())
    for contour in each_contour(write(tmp_path, scan, ring(scan, 30.0))):
        (image,) = contour.ContourImageSequence
        assert image.ReferencedSOPClassUID == images[image.ReferencedSOPInstanceUID].SOPClassUID
        position = images[image.ReferencedSOPInstanceUID].ImagePositionPatient
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        if case.startswith("oblique"):
            off_mm = (points - np.array(position, float)) @ scan.grid.normal
            assert np.abs(off_mm).max() < 1e-4
            assert (np.ptp(points, axis=0) > 0.01).all()
        else:
            assert {float(p) for p in points[:, axis]} == {float(position[axis])}
            assert set(contour.ContourData[axis::3]) == {position[axis]}


def test_a_contour_of_a_real_set_a_little_off_its_plane_is_put_onto_it(tmp_path: Path) -> None:
    scan = make_scan()
    off = circle(scan.grid, 2, 20.0).points_xyz_mm + np.array([0, 0, 0.002])
    file = write(tmp_path, scan, replace(ring(scan), contours=(Contour(points_xyz_mm=off),)))
    assert check_structure_set(file, scan) == ()


@pytest.mark.parametrize("case", ["plain", "feet first", "prone", "oblique 20 degrees"])
def test_seen_from_the_head_loops_turn_counter_clockwise_and_holes_clockwise(
    tmp_path: Path, case: str
) -> None:
    scan = make_scan(GRIDS[case])
    roi = ring(scan, 30.0, 20.0, slices=[2])
    backwards = tuple(Contour(points_xyz_mm=c.points_xyz_mm[::-1]) for c in roi.contours)
    for contours in (roi.contours, backwards):
        file = write(tmp_path, scan, replace(roi, contours=contours), holes="xor")
        senses = [np.sign(polygon.signed_area(c.points_xyz_mm[:, :2])) for c in loops_of(file)]
        assert senses == [1, -1]


def test_loops_that_vanish_in_rounding_are_left_out(tmp_path: Path) -> None:
    scan = make_scan()
    speck = circle(scan.grid, 2, 0.001, at_mm=(50, 0))
    roi = replace(ring(scan), contours=(circle(scan.grid, 2, 20.0), speck))
    file = write(tmp_path, scan, roi)
    assert len(loops_of(file)) == 1
    assert check_structure_set(file, scan) == ()


def test_numbers_are_short_and_many_points_stay_decimal_strings(tmp_path: Path) -> None:
    scan = make_scan()
    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    many = circle(scan.grid, 2, 0.0).points_xyz_mm[:1] + 40 * np.column_stack(
        (np.cos(angle), np.sin(angle), np.zeros(4000))
    )
    file = write(tmp_path, scan, replace(ring(scan), contours=(Contour(points_xyz_mm=many),)))
    dataset = dcmread(file)
    assert dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    (contour,) = dataset.ROIContourSequence[0].ContourSequence
    raw = contour.get_item(0x30060050).value
    assert len(raw) > 65534
    assert len(raw) % 2 == 0
    assert max(len(text) for text in raw.split(b"\\")) <= 16
    assert contour["ContourData"].VR == "DS"
    assert contour.NumberOfContourPoints == 4000
    assert np.abs(loops_of(file)[0].points_xyz_mm - many).max() < 5.1e-5


# --------------------------------------------------------------------- what the file says of itself


def test_it_refers_to_every_slice_of_the_scan_and_is_filed_with_it(tmp_path: Path) -> None:
    scan = make_scan()
    assert scan.source is not None
    file = dcmread(write(tmp_path, scan, ring(scan, 30.0, slices=[2])))
    (frame,) = file.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    named = [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence]
    assert named == [s.sop_instance_uid for s in scan.source.slices]
    assert series.SeriesInstanceUID == scan.source.series_instance_uid
    assert study.ReferencedSOPInstanceUID == file.StudyInstanceUID
    assert study.ReferencedSOPClassUID == "1.2.840.10008.3.1.2.3.1"
    assert {
        file.FrameOfReferenceUID,
        frame.FrameOfReferenceUID,
        file.StructureSetROISequence[0].ReferencedFrameOfReferenceUID,
    } == {scan.frame_of_reference}
    assert file.StudyInstanceUID == scan.source.study.instance_uid
    assert file.SeriesInstanceUID != scan.source.series_instance_uid
    assert str(file.PatientName) == PHANTOM.name
    assert "BodyPartExamined" not in file


@pytest.mark.parametrize("name", ["Yamada^Tarou==", "Doe^John=", "A^B=\\C^D==", "A^B= ="])
def test_null_component_groups_of_a_name_may_be_left_out(tmp_path: Path, name: str) -> None:
    scan = make_scan()
    assert scan.source is not None
    came = replace(
        scan.source,
        patient=replace(scan.source.patient, name=name),
        study=replace(scan.source.study, referring_physician=name),
    )
    file = write(tmp_path, replace(scan, source=came), ring(scan, 30.0))
    assert check_structure_set(file, replace(scan, source=came)) == ()
    assert check_structure_set(file, scan) == (
        "PatientName is not that of the images",
        "ReferringPhysicianName is not that of the images",
    )


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (b"Yamada^Tarou== ", "Yamada^Tarou"),
        (b"A^B=\\C^D=x=", "A^B\\C^D=x"),
        (b"==", ""),
        (b"=Yamada^Tarou", "=Yamada^Tarou"),
        ("Müller^Jörg==".encode("latin-1"), "Müller^Jörg"),
    ],
)
def test_null_component_groups_of_a_name_are_not_read(stored: bytes, name: str) -> None:
    header = Attributes(elements={0x00100010: Element("PN", stored)}, file="ct.dcm")
    assert header.person(0x00100010) == name


def test_a_machines_contour_says_what_drew_it(tmp_path: Path) -> None:
    scan = make_scan()
    rois = [
        ring(scan, 30.0, name="GTV rigid"),
        ring(scan, 20.0, name="GTV diff-umamba", number=2),
    ]
    file = dcmread(
        write(
            tmp_path,
            scan,
            *rois,
            generations=[Generation(method="rigid", version="0.3.1"), NETWORK],
            predecessor_uid="2.25.77",
            description="verdict look",
        )
    )
    rigid, network = file.StructureSetROISequence
    assert rigid.ROIGenerationAlgorithm == network.ROIGenerationAlgorithm == "AUTOMATIC"
    assert rigid.ROIGenerationDescription == "Contourcast 0.3.1 rigid"
    assert "ROIDerivationAlgorithmIdentificationSequence" not in rigid
    assert network.ROIGenerationDescription == "Contourcast 0.3.1 diff-umamba w:1a2b3c4d"
    (algorithm,) = network.ROIDerivationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert algorithm.AlgorithmName == "diff-umamba"
    assert "1a2b3c4d" * 8 in algorithm.AlgorithmParameters
    assert file.ApprovalStatus == "UNAPPROVED"
    assert "ReviewerName" not in file
    assert [o.ROIInterpreter for o in file.RTROIObservationsSequence] == ["", ""]
    assert [o.RTROIInterpretedType for o in file.RTROIObservationsSequence] == ["GTV", "GTV"]
    assert file.PredecessorStructureSetSequence[0].ReferencedSOPInstanceUID == "2.25.77"
    assert file.ContributingEquipmentSequence[0].Manufacturer == "Contourcast"
    assert file.TimezoneOffsetFromUTC == "+0000"


def test_a_planning_set_is_drawn_by_hand_and_approved(tmp_path: Path) -> None:
    scan = make_scan()
    by_hand = replace(ring(scan, 30.0), generation_algorithm="", interpreted_type="ORGAN")
    approval = Approval(status="APPROVED", reviewer="Contourcast^Physician", at=DRAWN_AT)
    path = write(tmp_path, scan, by_hand, approval=approval, drawn_at=DRAWN_AT.replace(tzinfo=None))
    file = dcmread(path)
    assert file.StructureSetROISequence[0].ROIGenerationAlgorithm == "MANUAL"
    assert "ROIGenerationDescription" not in file.StructureSetROISequence[0]
    assert file.ApprovalStatus == "APPROVED"
    assert (file.ReviewDate, file.ReviewTime) == ("20260103", "101500")
    assert file.ReviewerName == file.RTROIObservationsSequence[0].ROIInterpreter
    assert "TimezoneOffsetFromUTC" not in file
    assert check_structure_set(path, scan) == ()


@pytest.mark.parametrize("missing", [{"reviewer": ""}, {"at": None}])
def test_nothing_is_approved_by_nobody(missing: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"status": "APPROVED", "reviewer": "A", "at": DRAWN_AT}
    with pytest.raises(InputError, match="without reviewer"):
        Approval(**(arguments | missing))


def test_an_empty_roi_is_written_as_one(tmp_path: Path) -> None:
    scan = make_scan()
    empty = replace(ring(scan), name="GTV dir-t", number=2)
    path = write(tmp_path, scan, ring(scan, 30.0), empty)
    file = dcmread(path)
    assert "ContourSequence" not in file.ROIContourSequence[1]
    assert "ROIVolume" not in file.StructureSetROISequence[1]
    assert [o.ReferencedROINumber for o in file.RTROIObservationsSequence] == [1, 2]
    assert check_structure_set(path, scan) == ()


def test_text_is_cut_between_characters_and_names_stay_apart(tmp_path: Path) -> None:
    scan = make_scan()
    long = "Größenmaßstab der Läsion im rechten Oberlappen"
    rois = [ring(scan, 30.0, name=long), ring(scan, 20.0, name=long.upper(), number=2)]
    path = write(tmp_path, scan, *rois, label="ÄÖÜ" * 9, description="ß\\" * 2000)
    file = dcmread(path)
    names = [roi.ROIName for roi in file.StructureSetROISequence]
    assert names == ["Größenmaßsta", "GRÖSSENMASSTA~2"] or len(set(map(str.casefold, names))) == 2
    assert all(len(name.encode()) <= 16 for name in names)
    assert file.StructureSetROISequence[0].ROIDescription.startswith(long)
    assert len(file.StructureSetLabel.encode()) <= 16
    assert file.StructureSetLabel.startswith("ÄÖÜ")
    assert len(file.StructureSetDescription.encode()) <= 1024
    assert check_structure_set(path, scan) == ()


def test_names_are_unique_for_those_who_ignore_case_and_never_longer_than_16_bytes() -> None:
    names = ["GTV", "gtv", "Gtv", "", "X" * 40, "x" * 17, "é" * 30, "É" * 30]
    written = written_names(names)
    assert written[:5] == ["GTV", "gtv~2", "Gtv~3", "ROI", "XXXXXXXX~XXXXXXX"]
    assert len({name.casefold() for name in written}) == len(names)
    assert all(0 < len(name.encode()) <= 16 for name in written)


def test_a_proposals_name_holds_source_and_method() -> None:
    assert proposal_name("GTV", "translation") == "GTV translation"
    assert proposal_name("Stomach_duo_planCT", "rigid") == "Stoma~anCT rigid"
    assert proposal_name("Tumor_c40", "diff-umamba") == "Tumor_c40 diff-u"
    for one, other in (("GTV_L", "GTV_R"), ("GTVp1", "GTVp2"), ("Lung_tumour_L", "Lung_tumour_R")):
        for method in ("translation", "rigid", "dir-t", "diff-umamba"):
            assert proposal_name(one, method) != proposal_name(other, method)
            assert written_names([one]) != written_names([other])
    methods = ["translation", "rigid", "dir-t", "dir-l", "diff-umamba", "a-network-of-long-name"]
    names = [proposal_name("Läsion rechts", method) for method in methods]
    assert written_names(names) == names


def test_the_same_input_gives_the_same_bytes_and_another_digest_another_uid(
    tmp_path: Path,
) -> None:
    scan = make_scan()
    one = write(tmp_path / "1", scan, ring(scan, 30.0, 20.0), generations=[NETWORK])
    two = write(tmp_path / "2", scan, ring(scan, 30.0, 20.0), generations=[NETWORK])
    other = write(tmp_path / "3", scan, ring(scan, 30.0, 20.0), digest="other inputs")
    assert one.read_bytes() == two.read_bytes()
    assert dcmread(one).SOPInstanceUID != dcmread(other).SOPInstanceUID
    assert dcmread(one).SeriesInstanceUID != dcmread(other).SeriesInstanceUID


def test_local_time_is_stated_with_its_zone(tmp_path: Path) -> None:
    scan = make_scan()
    local = DRAWN_AT.astimezone(timezone(timedelta(hours=-5)))
    file = dcmread(write(tmp_path, scan, ring(scan, 30.0), drawn_at=local))
    assert (file.StructureSetTime, file.TimezoneOffsetFromUTC) == ("051500", "-0500")


# -------------------------------------------------------------------------------------- refusals


def open_line(scan: Volume) -> Roi:
    points = circle(scan.grid, 2, 20.0).points_xyz_mm
    line = Contour(points_xyz_mm=points, geometric_type="OPEN_PLANAR")
    return replace(ring(scan), contours=(line,))


def between_slices(scan: Volume) -> Roi:
    points = circle(scan.grid, 2, 20.0).points_xyz_mm + np.array([0, 0, 0.5])
    return replace(ring(scan), contours=(Contour(points_xyz_mm=points),))


def far_away(scan: Volume) -> Roi:
    points = circle(scan.grid, 2, 20.0).points_xyz_mm + np.array([1e11, 0, 0])
    return replace(ring(scan), contours=(Contour(points_xyz_mm=points),))


def of_another_frame(scan: Volume) -> Roi:
    return replace(ring(scan, 20.0), frame_of_reference="2.25.1")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (open_line, GeometryError, "OPEN_PLANAR"),
        (between_slices, GeometryError, "0.500 mm off"),
        (far_away, GeometryError, "far away"),
        (of_another_frame, FrameMismatchError, "different frames"),
    ],
)
def test_a_roi_that_does_not_lie_on_the_scan_is_refused(
    tmp_path: Path, make: Callable[[Volume], Roi], error: type[ContourcastError], says: str
) -> None:
    scan = make_scan()
    with pytest.raises(error, match=says):
        write(tmp_path, scan, make(scan))
    assert list(tmp_path.iterdir()) == []


def test_rois_of_one_number_and_generations_of_other_rois_are_refused(tmp_path: Path) -> None:
    scan = make_scan()
    with pytest.raises(InputError, match="one number"):
        write(tmp_path, scan, ring(scan, 30.0), ring(scan, 20.0))
    with pytest.raises(InputError, match="1 generations were given for 2"):
        write(tmp_path, scan, ring(scan, 30.0), ring(scan, 2.0, number=2), generations=[NETWORK])
    with pytest.raises(DicomError, match="no DICOM identity"):
        write(tmp_path, replace(scan, source=None), ring(scan, 30.0))


# ----------------------------------------------------------------------------------------- peers


@pytest.mark.peer
@pytest.mark.parametrize("case", ["plain", "oblique 20 degrees"])
def test_validators_find_nothing(tmp_path: Path, case: str) -> None:
    from contourcast.imaging.dicom.registration_out import write_registration

    scan, planning = make_scan(GRIDS[case]), make_scan(name="planning CT", study="plan")
    write_ct_series(tmp_path / "ct", scan)
    approval = Approval(status="APPROVED", reviewer="Contourcast^Physician", at=DRAWN_AT)
    proposals = write(
        tmp_path,
        scan,
        ring(scan, 30.0, 20.0),
        ring(scan, name="nothing", number=2),
        generations=[NETWORK, Generation(method="rigid")],
        predecessor_uid="2.25.77",
        name="Contourcast",
        description="five methods",
    )
    signed = write(tmp_path / "signed", scan, ring(scan, 30.0), approval=approval, digest="signed")
    registration = tmp_path / "REG.dcm"
    write_registration(
        registration,
        cbct_from_planning=RigidTransform.identity(
            source_frame=planning.frame_of_reference, target_frame=scan.frame_of_reference
        ),
        cbct=scan,
        planning_ct=planning,
        digest="inputs",
        made_at=DRAWN_AT,
    )
    assert dciodvfy(proposals) == dciodvfy(signed) == dciodvfy(registration) == []
    assert dcentvfy([proposals, signed, registration, *(tmp_path / "ct").iterdir()]) == []
    assert "[GTV]" in dcmdump(proposals)


@pytest.mark.peer
@pytest.mark.parametrize("case", ["plain", "non-square pixels"])
def test_plastimatch_reads_a_ring_with_its_hole(tmp_path: Path, case: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    scan = make_scan(GRIDS[case])
    write_ct_series(tmp_path / "ct", scan)
    roi = ring(scan, 30.0, 20.0)
    masks = plastimatch_masks(write(tmp_path, scan, roi), tmp_path / "ct", tmp_path / "masks")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(masks["GTV"]))) > 0
    ours = rasterise(roi, scan.grid)
    assert dice(ours.with_values(theirs), ours) >= 0.99
