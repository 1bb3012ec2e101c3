"""Spoil one attribute after the other: each must be found, and a sound file has no finding."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, config, dcmread, dcmwrite
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian

from contourcast.imaging.dicom.check import check_registration, check_structure_set
from contourcast.imaging.dicom.registration_out import write_registration
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.errors import DicomError
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from support.scans import DRAWN_AT, GRIDS, make_scan, ring

CONTOUR_DATA = Tag("ContourData")
Spoil = Callable[[Dataset], object]


def first_roi(d: Dataset) -> Any:
    return d.StructureSetROISequence[0]


def first_contour(d: Dataset) -> Any:
    return d.ROIContourSequence[0].ContourSequence[0]


def named_slices(d: Dataset) -> Any:
    return referenced_series(d).ContourImageSequence


def referenced_series(d: Dataset) -> Any:
    return referenced_study(d).RTReferencedSeriesSequence[0]


def referenced_study(d: Dataset) -> Any:
    return d.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]


def set_data(item: Dataset, tag: BaseTag, text: bytes) -> None:
    """Puts bytes into a file that pydicom would not write by itself."""
    text += b" " * (len(text) % 2)
    item[tag] = RawDataElement(tag, "DS", len(text), text, 0, True, True)


def points(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """Changes the points of the first contour, and what depends on their number."""

    def spoil(d: Dataset) -> None:
        contour = first_contour(d)
        old = np.array(contour.ContourData, float).reshape(-1, 3)
        z = str(contour.ContourData[2])
        new = change(old)
        numbers = [z if v == old[0, 2] else f"{v:.4f}" for v in new.ravel().tolist()]
        set_data(contour, CONTOUR_DATA, "\\".join(numbers).encode())
        contour.NumberOfContourPoints = len(new)

    return spoil


def write_text(keyword: str, value: object, of: Callable[[Dataset], Any]) -> Spoil:
    return lambda d: setattr(of(d), keyword, value)


def remove(keyword: str, of: Callable[[Dataset], Any]) -> Spoil:
    return lambda d: delattr(of(d), keyword)


def whole(d: Dataset) -> Dataset:
    return d


def second_roi(d: Dataset) -> Any:
    return d.StructureSetROISequence[1]


def first_observation(d: Dataset) -> Any:
    return d.RTROIObservationsSequence[0]


def first_image(d: Dataset) -> Any:
    return first_contour(d).ContourImageSequence[0]


def forced(keyword: str, value: str) -> Spoil:
    """What pydicom would not let be."""

    def spoil(d: Dataset) -> None:
        vr = d[keyword].VR
        d[keyword] = DataElement(keyword, vr, value, validation_mode=config.IGNORE)

    return spoil


def no_rois(d: Dataset) -> None:
    for sequence in ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"):
        setattr(d, sequence, [])


def another_person(d: Dataset) -> None:
    d.PatientName, d.PatientID = "Other^One", "other"


def many_digits(d: Dataset) -> None:
    text = "\\".join(f"{v:.17f}" for v in np.array(first_contour(d).ContourData, float))
    set_data(first_contour(d), CONTOUR_DATA, text.encode())


def explicit(d: Dataset) -> None:
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def unknown(d: Dataset) -> None:
    """What pydicom silently makes of a long ContourData in explicit VR."""
    explicit(d)
    many = first_contour(d).get_item(CONTOUR_DATA).value.strip()
    set_data(first_contour(d), CONTOUR_DATA, b"\\".join([many] * 30))


def in_two_words(d: Dataset) -> None:
    set_data(first_contour(d), CONTOUR_DATA, b"1\\2\\three")


def rounded_plane(d: Dataset) -> None:
    contour = first_contour(d)
    values = [str(v) for v in contour.ContourData]
    values[2::3] = [f"{float(v):.4f}" for v in values[2::3]]
    set_data(contour, CONTOUR_DATA, "\\".join(values).encode())


def shift(vector: list[float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda p: p + np.array(vector)


def bow_tie(p: np.ndarray) -> np.ndarray:
    crossed: np.ndarray = np.concatenate((p[:30], p[60:29:-1], p[61:]))
    return crossed


STRUCTURE_SET: dict[str, tuple[Spoil, str]] = {
    "another kind of object": (write_text("Modality", "RTPLAN", whole), "no RTSTRUCT"),
    "another patient": (write_text("PatientName", "Contourcast^Other", whole), "PatientName is"),
    "another patient's number": (write_text("PatientID", "2", whole), "PatientID is"),
    "no accession number": (remove("AccessionNumber", whole), "AccessionNumber is missing"),
    "another study": (write_text("StudyInstanceUID", "2.25.1", whole), "StudyInstanceUID is"),
    "another study date": (write_text("StudyDate", "20200101", whole), "StudyDate is"),
    "no referring physician": (remove("ReferringPhysicianName", whole), "ReferringPhysicianName"),
    "no operator": (remove("OperatorsName", whole), "OperatorsName is missing"),
    "the images' series": (
        lambda d: setattr(d, "SeriesInstanceUID", referenced_series(d).SeriesInstanceUID),
        "series of the images",
    ),
    "no series": (remove("SeriesInstanceUID", whole), "SeriesInstanceUID is missing"),
    "no position reference": (remove("PositionReferenceIndicator", whole), "PositionReference"),
    "another character set": (write_text("SpecificCharacterSet", "ISO_IR 100", whole), "UTF-8"),
    "explicit VR": (explicit, "Implicit VR"),
    "coordinates of unknown VR": (unknown, "no Decimal String"),
    "a long label": (forced("StructureSetLabel", "x" * 17), "StructureSetLabel"),
    "no label": (write_text("StructureSetLabel", "", whole), "StructureSetLabel"),
    "a long name of the set": (forced("StructureSetName", "x" * 65), "StructureSetName"),
    "no date": (remove("StructureSetDate", whole), "StructureSetDate is missing"),
    "header of another frame": (write_text("FrameOfReferenceUID", "2.25.1", whole), "(0020,0052)"),
    "no header frame": (remove("FrameOfReferenceUID", whole), "(0020,0052)"),
    "references to another frame": (
        write_text(
            "FrameOfReferenceUID", "2.25.1", lambda d: d.ReferencedFrameOfReferenceSequence[0]
        ),
        "ReferencedFrameOfReferenceSequence",
    ),
    "a ROI of another frame": (
        write_text("ReferencedFrameOfReferenceUID", "2.25.1", first_roi),
        "(3006,0024)",
    ),
    "no references at all": (
        remove("ReferencedFrameOfReferenceSequence", whole),
        "ReferencedFrameOfReferenceSequence",
    ),
    "references to another study": (
        write_text("ReferencedSOPInstanceUID", "2.25.1", referenced_study),
        "RTReferencedStudySequence",
    ),
    "references to another series": (
        write_text("SeriesInstanceUID", "2.25.1", referenced_series),
        "RTReferencedSeriesSequence",
    ),
    "a slice not named": (lambda d: named_slices(d).pop(), "1 slices of the series are not named"),
    "a slice named twice": (
        lambda d: named_slices(d).append(named_slices(d)[0]),
        "an image is named twice",
    ),
    "a foreign slice named": (
        lambda d: setattr(named_slices(d)[0], "ReferencedSOPInstanceUID", "2.25.1"),
        "1 images named",
    ),
    "slices of another class": (
        lambda d: setattr(named_slices(d)[0], "ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.4"),
        "another SOP class",
    ),
    "no ROI": (
        no_rois,
        "holds no ROI",
    ),
    "a number twice": (write_text("ROINumber", 2, first_roi), "one number"),
    "a contour of no ROI": (
        lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 9),
        "ROIContourSequence",
    ),
    "an observation of no ROI": (
        write_text("ReferencedROINumber", 9, first_observation),
        "RTROIObservationsSequence",
    ),
    "no observations": (
        lambda d: setattr(d, "RTROIObservationsSequence", []),
        "RTROIObservationsSequence",
    ),
    "a long name": (write_text("ROIName", "x" * 17, first_roi), "longer than 16 bytes"),
    "no name": (write_text("ROIName", "", first_roi), "name is empty"),
    "a name twice": (write_text("ROIName", "ctv", first_roi), "letter case aside"),
    "no algorithm": (remove("ROIGenerationAlgorithm", first_roi), "(3006,0036)"),
    "an observation without type": (
        remove("RTROIInterpretedType", first_observation),
        "(3006,00A4)",
    ),
    "an interpreter of an unapproved machine's contour": (
        write_text("ROIInterpreter", "Contourcast^Nobody", first_observation),
        "(3006,00A6)",
    ),
    "another approval": (write_text("ApprovalStatus", "FINE", whole), "(300E,0002)"),
    "no approval": (remove("ApprovalStatus", whole), "(300E,0002)"),
    "approved by nobody": (write_text("ApprovalStatus", "APPROVED", whole), "(300E,0008)"),
    "unapproved with reviewer": (
        write_text("ReviewerName", "Contourcast^Nobody", whole),
        "(300E,0008)",
    ),
    "an open contour": (
        write_text("ContourGeometricType", "OPEN_PLANAR", first_contour),
        "(3006,0042)",
    ),
    "another number of points": (
        write_text("NumberOfContourPoints", 7, first_contour),
        "another number of points",
    ),
    "two points": (points(lambda p: p[:2]), "fewer than three"),
    "a point repeated": (points(lambda p: np.concatenate((p[:1], p))), "repeated"),
    "closed by its first point": (points(lambda p: np.concatenate((p, p[:1]))), "repeated"),
    "no numbers": (in_two_words, "no numbers"),
    "numbers of many digits": (many_digits, "more than 16 bytes"),
    "no image": (remove("ContourImageSequence", first_contour), "(3006,0016)"),
    "a foreign image": (
        write_text("ReferencedSOPInstanceUID", "2.25.1", first_image),
        "(3006,0016)",
    ),
    "another slice's image": (
        lambda d: setattr(
            first_image(d),
            "ReferencedSOPInstanceUID",
            named_slices(d)[0].ReferencedSOPInstanceUID,
        ),
        "does not lie on the image",
    ),
    "a plane not as the image has it": (rounded_plane, "own number"),
    "off its plane": (points(shift([0, 0, 0.002])), "does not lie on the image"),
    "out of the image": (points(shift([60, 0, 0])), "out of the image"),
    "a bow-tie": (points(bow_tie), "crosses itself"),
    "no area": (
        points(lambda p: np.column_stack((p[:, 0], 0 * p[:, 0] + p[0, 1], p[:, 2]))),
        "no area",
    ),
    "another volume": (write_text("ROIVolume", "17.3", first_roi), "(3006,002C)"),
    "no volume": (remove("ROIVolume", first_roi), "(3006,002C)"),
}


def spoilt(path: Path, spoil: Spoil) -> Path:
    dataset = dcmread(path)
    spoil(dataset)
    implicit = dataset.file_meta.TransferSyntaxUID != ExplicitVRLittleEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says what it spoils
        dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True, force_encoding=True)
    return path


def structure_set(folder: Path, scan: Volume) -> Path:
    write_structure_set(
        folder / "RS.dcm",
        rois=[ring(scan, 40.0, 20.0), ring(scan, 10.0, number=2, name="CTV")],
        reference=scan,
        label="CC 20260103",
        name="proposals",
        series_description="Contourcast proposals",
        digest="inputs",
        drawn_at=DRAWN_AT,
    )
    return folder / "RS.dcm"


@pytest.mark.parametrize("case", GRIDS)
def test_a_sound_structure_set_has_no_finding(tmp_path: Path, case: str) -> None:
    scan = make_scan(GRIDS[case])
    assert check_structure_set(structure_set(tmp_path, scan), scan) == ()


@pytest.mark.parametrize("case", STRUCTURE_SET)
def test_what_is_spoilt_in_a_structure_set_is_found(tmp_path: Path, case: str) -> None:
    spoil, says = STRUCTURE_SET[case]
    scan = make_scan()
    findings = check_structure_set(spoilt(structure_set(tmp_path, scan), spoil), scan)
    assert any(says in finding for finding in findings), findings


def test_no_finding_holds_a_patients_data(tmp_path: Path) -> None:
    scan = make_scan()
    path = spoilt(structure_set(tmp_path, scan), another_person)
    text = " ".join(check_structure_set(path, scan))
    assert not any(word in text for word in ("Phantom", "Other", "CONTOURCAST-001", "other"))


def first_item(d: Dataset) -> Any:
    return d.RegistrationSequence[0]


def second_item(d: Dataset) -> Any:
    return d.RegistrationSequence[1]


def matrix_item(d: Dataset, n: int = 1) -> Any:
    return d.RegistrationSequence[n].MatrixRegistrationSequence[0].MatrixSequence[0]


def matrix(values: np.ndarray, n: int = 1, form: str = "%.10g") -> Spoil:
    text = "\\".join(form % v for v in values.ravel()).encode()
    return lambda d: set_data(matrix_item(d, n), Tag("FrameOfReferenceTransformationMatrix"), text)


MOVED = np.array([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
REGISTRATION: dict[str, tuple[Spoil, str]] = {
    "another kind of object": (write_text("Modality", "RTSTRUCT", whole), "no REG"),
    "another patient": (write_text("PatientID", "2", whole), "PatientID is"),
    "no content date": (remove("ContentDate", whole), "ContentDate is missing"),
    "no instance number": (remove("InstanceNumber", whole), "InstanceNumber is missing"),
    "a label in small letters": (forced("ContentLabel", "registration"), "(0070,0080)"),
    "the planning CT's frame as registered one": (
        lambda d: setattr(d, "FrameOfReferenceUID", second_item(d).FrameOfReferenceUID),
        "registered frame is not the CBCT's",
    ),
    "one item": (lambda d: d.RegistrationSequence.pop(), "(0070,0308)"),
    "items exchanged": (lambda d: d.RegistrationSequence.reverse(), "name its frame"),
    "no matrix": (
        lambda d: setattr(second_item(d).MatrixRegistrationSequence[0], "MatrixSequence", []),
        "not one matrix",
    ),
    "two matrices": (
        lambda d: (
            second_item(d).MatrixRegistrationSequence[0].MatrixSequence.append(matrix_item(d))
        ),
        "not one matrix",
    ),
    "scaled": (matrix(np.diag([1.03, 1.03, 1.03, 1])), "not a rigid motion"),
    "mirrored": (matrix(np.diag([-1.0, 1, 1, 1])), "not a rigid motion"),
    "another bottom row": (matrix(MOVED.T), "not a rigid motion"),
    "twelve numbers": (matrix(MOVED[:3]), "sixteen numbers"),
    "numbers of many digits": (matrix(MOVED / 3, form="%.17f"), "more than 16 bytes"),
    "not said to be rigid": (
        lambda d: setattr(matrix_item(d), "FrameOfReferenceTransformationMatrixType", "AFFINE"),
        "said to be rigid",
    ),
    "the CBCT moved": (matrix(MOVED, n=0), "not the identity"),
    "no type": (
        lambda d: delattr(
            first_item(d).MatrixRegistrationSequence[0], "RegistrationTypeCodeSequence"
        ),
        "(0070,030D)",
    ),
    "an image missing": (lambda d: second_item(d).ReferencedImageSequence.pop(), "not named"),
    "the CBCT's series not referenced": (
        lambda d: setattr(d, "ReferencedSeriesSequence", []),
        "series of the CBCT is not referenced",
    ),
    "the planning CT's series not referenced": (
        remove("StudiesContainingOtherReferencedInstancesSequence", whole),
        "series of the planning CT is not referenced",
    ),
    "the planning CT's series in another study": (
        lambda d: setattr(
            d.StudiesContainingOtherReferencedInstancesSequence[0], "StudyInstanceUID", "2.25.1"
        ),
        "series of the planning CT is not referenced",
    ),
}


@pytest.mark.parametrize("case", ["nothing", *REGISTRATION])
def test_what_is_spoilt_in_a_registration_is_found(tmp_path: Path, case: str) -> None:
    cbct, planning = make_scan(), make_scan(name="planning CT", study="plan")
    path = tmp_path / "REG.dcm"
    write_registration(
        path,
        cbct_from_planning=RigidTransform(
            matrix=MOVED,
            source_frame=planning.frame_of_reference,
            target_frame=cbct.frame_of_reference,
        ),
        cbct=cbct,
        planning_ct=planning,
        digest="inputs",
        made_at=DRAWN_AT,
    )
    if case == "nothing":
        assert check_registration(path, cbct, planning) == ()
        return
    spoil, says = REGISTRATION[case]
    dataset = dcmread(path)
    spoil(dataset)
    dcmwrite(path, dataset)
    findings = check_registration(path, cbct, planning)
    assert any(says in finding for finding in findings), findings


def test_a_registered_frame_that_both_images_state_is_found(tmp_path: Path) -> None:
    cbct, planning = make_scan(), make_scan(name="planning CT", study="plan")
    planning = replace(planning, frame_of_reference=cbct.frame_of_reference)
    path = tmp_path / "REG.dcm"
    frame = cbct.frame_of_reference
    write_registration(
        path,
        cbct_from_planning=RigidTransform(matrix=MOVED, source_frame=frame, target_frame=frame),
        cbct=cbct,
        planning_ct=planning,
        digest="inputs",
        made_at=DRAWN_AT,
    )
    dataset = dcmread(path)
    dataset.FrameOfReferenceUID = frame
    dcmwrite(path, dataset)
    assert any("share a frame" in f for f in check_registration(path, cbct, planning))


def test_a_scan_without_dicom_cannot_be_checked_against(tmp_path: Path) -> None:
    scan = make_scan()
    path = structure_set(tmp_path, scan)
    with pytest.raises(DicomError, match="no DICOM identity"):
        check_structure_set(path, replace(scan, source=None))
