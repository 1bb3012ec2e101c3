"""What no validator looks at: whether a file that we wrote fits the images it is about.

Read as another program would read it, from the file alone; a finding is a sentence. Attributes
that are missing or of the wrong form are the business of dciodvfy, too, in our tests; here are
those that are fatal at import, or that dciodvfy does not see (CLINICAL_SERVICE §2.7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SpatialRegistrationStorage,
)

from contourcast.imaging import polygon
from contourcast.imaging.dicom.elements import without_null_groups
from contourcast.imaging.dicom.modules import (
    DETACHED_STUDY_CLASS_UID,
    DS_BYTES,
    LO_BYTES,
    SH_BYTES,
    required_source,
)
from contourcast.imaging.dicom.rtstruct_out import NAME_BYTES
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import coverage
from contourcast.imaging.source import SeriesSource
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.volume import Volume

# Coordinates are written with four decimals; three of them make at most this (sqrt(3) / 2 * 1e-4).
OFF_PLANE_MM: Final = 1e-4
BEYOND_IMAGE_VOXELS: Final = 1.0  # CLINICAL_SERVICE §2.7
VOLUME_FRACTION: Final = 0.02  # CLINICAL_SERVICE §2.7
# Edges that cross by less do so by rounding: ten times the last digit that is written.
CROSSING_MM: Final = 1e-3
NOT_RIGID: Final = 1e-6  # what ten significant digits leave of orthonormality
PERSON_NAMES: Final = frozenset({"PatientName", "ReferringPhysicianName"})


def check_structure_set(path: Path, reference: Volume) -> tuple[str, ...]:
    """What is wrong with a structure set that we wrote on a scan; empty when nothing is.

    Raises:
        DicomError: The scan has no source.
    """
    source = required_source(reference.source, "reference")
    dataset = dcmread(path)
    return (
        *_check_object(dataset, source, RTStructureSetStorage, "RTSTRUCT"),
        *_check_encoding(dataset),
        *_check_label(dataset),
        *_check_references(dataset, reference, source),
        *_check_rois(dataset, reference),
        *_check_approval(dataset),
        *_check_contours(dataset, reference, source),
    )


def check_registration(path: Path, cbct: Volume, planning_ct: Volume) -> tuple[str, ...]:
    """What is wrong with a registration that we wrote of two scans; empty when nothing is.

    Raises:
        DicomError: One of the scans has no source.
    """
    cbct_source = required_source(cbct.source, "CBCT")
    planning_source = required_source(planning_ct.source, "planning CT")
    dataset = dcmread(path)
    return (
        *_check_object(dataset, cbct_source, SpatialRegistrationStorage, "REG"),
        *_check_content(dataset),
        *_check_registered_frame(dataset, cbct, planning_ct),
        *_check_items(dataset, cbct, planning_ct),
        *_check_common_references(dataset, cbct_source, planning_source),
    )


# ------------------------------------------------------------------------- both kinds of object


def _check_object(
    dataset: Dataset, source: SeriesSource, sop_class_uid: str, modality: str
) -> Iterator[str]:
    if _text(dataset, "SOPClassUID") != sop_class_uid or _text(dataset, "Modality") != modality:
        yield f"it is no {modality}; (0008,0016) SOP Class UID, (0008,0060) Modality"
    for keyword, value in (
        ("PatientName", source.patient.name),
        ("PatientID", source.patient.patient_id),
        ("PatientBirthDate", source.patient.birth_date),
        ("PatientSex", source.patient.sex),
        ("StudyInstanceUID", source.study.instance_uid),
        ("StudyDate", source.study.date),
        ("StudyTime", source.study.time),
        ("StudyID", source.study.study_id),
        ("AccessionNumber", source.study.accession_number),
        ("ReferringPhysicianName", source.study.referring_physician),
    ):
        if keyword not in dataset:
            yield f"{keyword} is missing"
        elif _compared(keyword, _text(dataset, keyword)) != _compared(keyword, value):
            yield f"{keyword} is not that of the images"
    if not _text(dataset, "SeriesInstanceUID"):
        yield "SeriesInstanceUID is missing"
    elif _text(dataset, "SeriesInstanceUID") == source.series_instance_uid:
        yield "it claims to be in the series of the images; (0020,000E) Series Instance UID"
    for keyword in ("OperatorsName", "Manufacturer", "PositionReferenceIndicator", "SeriesNumber"):
        if keyword == "OperatorsName" and modality == "REG":
            continue
        if keyword not in dataset:
            yield f"{keyword} is missing"
    if _text(dataset, "SpecificCharacterSet") != "ISO_IR 192":
        yield "its text is not declared as UTF-8; (0008,0005) Specific Character Set"


def _compared(keyword: str, text: str) -> str:
    """Without what may be lost in writing and means nothing."""
    return without_null_groups(text.strip()) if keyword in PERSON_NAMES else text.strip()


def _check_images(items: Sequence[Dataset], source: SeriesSource, where: str) -> Iterator[str]:
    """Whether items name every slice of a series, each once, and nothing else."""
    named = [_text(item, "ReferencedSOPInstanceUID") for item in items]
    slices = [s.sop_instance_uid for s in source.slices]
    if missing := len(set(slices) - set(named)):
        yield f"{missing} slices of the series are not named in {where}"
    if foreign := len(set(named) - set(slices)):
        yield f"{foreign} images named in {where} are not in the series"
    if len(set(named)) != len(named):
        yield f"an image is named twice in {where}"
    if {_text(item, "ReferencedSOPClassUID") for item in items} - {source.sop_class_uid}:
        yield f"images are named with another SOP class in {where}"


# ---------------------------------------------------------------------------------- structure set


def _check_encoding(dataset: Dataset) -> Iterator[str]:
    """In explicit VR a long ContourData cannot be DS, and readers get UN without a word."""
    if dataset.file_meta.TransferSyntaxUID != ImplicitVRLittleEndian:
        yield "it is not in Implicit VR Little Endian; (0002,0010) Transfer Syntax UID"
    for item in _items(dataset, "ROIContourSequence"):
        for contour in _items(item, "ContourSequence"):
            if _raw(contour, "ContourData")[0] not in (None, "DS"):
                yield "a ContourData is no Decimal String; (3006,0050) Contour Data"
                return


def _check_label(dataset: Dataset) -> Iterator[str]:
    label = _text(dataset, "StructureSetLabel")
    if not label or len(label.encode()) > SH_BYTES:
        yield "StructureSetLabel is empty or longer than 16 bytes"
    if len(_text(dataset, "StructureSetName")) > LO_BYTES:
        yield "StructureSetName is longer than 64 characters"
    for keyword in ("StructureSetDate", "StructureSetTime"):
        if not _text(dataset, keyword):
            yield f"{keyword} is missing"


def _check_references(dataset: Dataset, reference: Volume, source: SeriesSource) -> Iterator[str]:
    frame = reference.frame_of_reference
    if _text(dataset, "FrameOfReferenceUID") != frame:
        yield "its frame of reference is not that of the images; (0020,0052)"
    frames = _items(dataset, "ReferencedFrameOfReferenceSequence")
    if [_text(item, "FrameOfReferenceUID") for item in frames] != [frame]:
        yield "ReferencedFrameOfReferenceSequence does not name the images' frame, alone"
    studies = [s for item in frames for s in _items(item, "RTReferencedStudySequence")]
    if [
        (_text(s, "ReferencedSOPClassUID"), _text(s, "ReferencedSOPInstanceUID")) for s in studies
    ] != [(DETACHED_STUDY_CLASS_UID, source.study.instance_uid)]:
        yield "RTReferencedStudySequence does not name the images' study, alone"
    series = [s for item in studies for s in _items(item, "RTReferencedSeriesSequence")]
    if [_text(s, "SeriesInstanceUID") for s in series] != [source.series_instance_uid]:
        yield "RTReferencedSeriesSequence does not name the images' series, alone"
    images = [i for item in series for i in _items(item, "ContourImageSequence")]
    yield from _check_images(images, source, "the referenced series")


def _check_rois(dataset: Dataset, reference: Volume) -> Iterator[str]:
    rois = _items(dataset, "StructureSetROISequence")
    numbers = [_text(roi, "ROINumber") for roi in rois]
    if not numbers:
        yield "it holds no ROI; (3006,0020) Structure Set ROI Sequence"
    if len(set(numbers)) != len(numbers):
        yield "two ROIs have one number; (3006,0022) ROI Number"
    for sequence in ("ROIContourSequence", "RTROIObservationsSequence"):
        if [_text(i, "ReferencedROINumber") for i in _items(dataset, sequence)] != numbers:
            yield f"the ROI numbers of {sequence} are not those of StructureSetROISequence"
    names = [_text(roi, "ROIName") for roi in rois]
    if any(not name or len(name.encode()) > NAME_BYTES for name in names):
        yield "a ROI's name is empty or longer than 16 bytes; (3006,0026) ROI Name"
    if len({name.casefold() for name in names}) != len(names):
        yield "two ROIs have one name, letter case aside; (3006,0026) ROI Name"
    for roi in rois:
        if _text(roi, "ReferencedFrameOfReferenceUID") != reference.frame_of_reference:
            yield "a ROI's frame of reference is not that of the images; (3006,0024)"
        if _text(roi, "ROIGenerationAlgorithm") not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"):
            yield "a ROI does not say how it was drawn; (3006,0036) ROI Generation Algorithm"
        if len(_text(roi, "ROIGenerationDescription")) > LO_BYTES:
            yield "ROIGenerationDescription is longer than 64 characters"
    for item in _items(dataset, "RTROIObservationsSequence"):
        if "RTROIInterpretedType" not in item or "ROIInterpreter" not in item:
            yield "an observation lacks its type or interpreter; (3006,00A4), (3006,00A6)"
        if len(_text(item, "ROIObservationLabel")) > SH_BYTES:
            yield "ROIObservationLabel is longer than 16 characters"


def _check_approval(dataset: Dataset) -> Iterator[str]:
    status = _text(dataset, "ApprovalStatus")
    review = [_text(dataset, k) for k in ("ReviewDate", "ReviewTime", "ReviewerName")]
    if status not in ("UNAPPROVED", "APPROVED", "REJECTED"):
        yield "it does not say whether it is approved; (300E,0002) Approval Status"
    elif status == "UNAPPROVED" and any(review):
        yield "it is unapproved and names a review; (300E,0008) Reviewer Name"
    elif status != "UNAPPROVED" and not all(review):
        yield "it was decided on without reviewer, date and time; (300E,0008) Reviewer Name"
    by_roi = zip(
        _items(dataset, "StructureSetROISequence"),
        _items(dataset, "RTROIObservationsSequence"),
        strict=False,
    )
    for roi, observation in by_roi:
        machine = _text(roi, "ROIGenerationAlgorithm") == "AUTOMATIC"
        if machine and status == "UNAPPROVED" and _text(observation, "ROIInterpreter"):
            yield "a machine's contour that nobody approved names an interpreter; (3006,00A6)"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Written:
    """A ROI's contours as the file gives them."""

    number: str
    stated_cc: float | None
    points_xyz_mm: list[np.ndarray] = field(default_factory=list)


def _check_contours(dataset: Dataset, reference: Volume, source: SeriesSource) -> Iterator[str]:
    stated_cc = {
        _text(roi, "ROINumber"): _number(_text(roi, "ROIVolume"))
        for roi in _items(dataset, "StructureSetROISequence")
    }
    slices = {s.sop_instance_uid: k for k, s in enumerate(source.slices)}
    for item in _items(dataset, "ROIContourSequence"):
        number = _text(item, "ReferencedROINumber")
        written = _Written(number=number, stated_cc=stated_cc.get(number))
        findings: dict[str, int] = {}
        for contour in _items(item, "ContourSequence"):
            points = _points(contour)
            for finding in _check_contour(contour, points, reference.grid, source, slices):
                findings[finding] = findings.get(finding, 0) + 1
            if points is not None and len(points) >= 3:
                written.points_xyz_mm.append(points)
        for finding, times in findings.items():
            yield f"ROI #{number}: {finding} ({times} of its contours)"
        yield from _check_volume(written, reference)


def _check_contour(
    contour: Dataset,
    points: np.ndarray | None,
    grid: Grid,
    source: SeriesSource,
    slices: dict[str, int],
) -> Iterator[str]:
    if _text(contour, "ContourGeometricType") != "CLOSED_PLANAR":
        yield "it is not closed; (3006,0042) Contour Geometric Type"
    if any(len(value) > DS_BYTES for value in _raw(contour, "ContourData")[1].split(b"\\")):
        yield "a coordinate has more than 16 bytes; (3006,0050) Contour Data"
    if points is None:
        yield "its coordinates are no numbers in threes; (3006,0050) Contour Data"
        return
    if _text(contour, "NumberOfContourPoints") != str(len(points)):
        yield "it has another number of points than it says; (3006,0046)"
    if len(points) < 3:
        yield "it has fewer than three points; (3006,0046) Number of Contour Points"
        return
    if (points == np.roll(points, 1, axis=0)).all(axis=1).any():
        yield "a point is repeated at once; (3006,0050) Contour Data"
    yield from _check_shape(points, grid)
    images = [_text(i, "ReferencedSOPInstanceUID") for i in _items(contour, "ContourImageSequence")]
    if len(images) != 1 or images[0] not in slices:
        yield "it does not name one image of the series; (3006,0016) Contour Image Sequence"
    else:
        yield from _check_plane(points, grid, source, slices[images[0]])


def _check_shape(points: np.ndarray, grid: Grid) -> Iterator[str]:
    index = grid.index(points)[:, :2]
    beyond = np.maximum(-index, index - (np.array(grid.shape_zyx[:0:-1]) - 1)).max()
    if beyond > BEYOND_IMAGE_VOXELS:
        yield "it reaches out of the image; (3006,0050) Contour Data"
    loop = index * grid.spacing_xy_mm
    if polygon.signed_area(loop) == 0:
        yield "it encloses no area; (3006,0050) Contour Data"
    if polygon.crosses_itself(loop, deeper_than=CROSSING_MM):
        yield "it crosses itself; (3006,0050) Contour Data"


def _check_plane(
    points: np.ndarray, grid: Grid, source: SeriesSource, slice_number: int
) -> Iterator[str]:
    """The very number where the plane has one coordinate, within rounding where it is oblique."""
    position = source.slices[slice_number].position_xyz_mm
    off_mm = np.abs((points - position) @ grid.normal).max()
    if off_mm > OFF_PLANE_MM:
        yield "it does not lie on the image that it names; (3006,0050) Contour Data"
    axis = int(np.abs(grid.normal).argmax())
    if np.abs(grid.normal[axis]) == 1 and (points[:, axis] != position[axis]).any():
        yield "its plane is not written as the image's own number; (3006,0050) Contour Data"


def _check_volume(written: _Written, reference: Volume) -> Iterator[str]:
    """The volume that is stated, against that of the contours on the images' own pixels."""
    if reference.grid.shape_zyx[0] == 1:
        return
    roi = Roi(
        number=0,
        name="",
        contours=tuple(Contour(points_xyz_mm=points) for points in written.points_xyz_mm),
        frame_of_reference=reference.frame_of_reference,
    )
    drawn_cc = float((coverage(roi, reference.grid).values * reference.grid.voxel_cc).sum())
    if abs((written.stated_cc or 0.0) - drawn_cc) > VOLUME_FRACTION * drawn_cc + 1e-4:
        yield f"ROI #{written.number}: its volume is not that of its contours; (3006,002C)"


# ----------------------------------------------------------------------------------- registration


def _check_content(dataset: Dataset) -> Iterator[str]:
    for keyword in ("ContentDate", "ContentTime", "InstanceNumber"):
        if not _text(dataset, keyword):
            yield f"{keyword} is missing"
    label = _text(dataset, "ContentLabel")
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ")
    if not label or len(label) > SH_BYTES or set(label) - allowed:
        yield "ContentLabel is no code string; (0070,0080)"


def _check_registered_frame(dataset: Dataset, cbct: Volume, planning_ct: Volume) -> Iterator[str]:
    frame = _text(dataset, "FrameOfReferenceUID")
    shared = cbct.frame_of_reference == planning_ct.frame_of_reference
    if shared and frame in ("", cbct.frame_of_reference):
        yield "the images share a frame, so the registered one must be another; (0020,0052)"
    if not shared and frame != cbct.frame_of_reference:
        yield "the registered frame is not the CBCT's; (0020,0052) Frame of Reference UID"


def _check_items(dataset: Dataset, cbct: Volume, planning_ct: Volume) -> Iterator[str]:
    items = _items(dataset, "RegistrationSequence")
    if len(items) != 2:
        yield "it does not hold one item for each of two images; (0070,0308)"
        return
    shared = cbct.frame_of_reference == planning_ct.frame_of_reference
    for item, volume, who in zip(items, (cbct, planning_ct), ("CBCT", "planning CT"), strict=True):
        frame = _text(item, "FrameOfReferenceUID")
        if frame != ("" if shared else volume.frame_of_reference):
            yield f"the item of the {who} does not name its frame; (0020,0052)"
        source = required_source(volume.source, who)
        images = _items(item, "ReferencedImageSequence")
        yield from _check_images(images, source, f"the item of the {who}")
        yield from _check_matrix(item, who)
    matrix = _matrix(items[0])
    if matrix is not None and (matrix != np.eye(4)).any():
        yield "the CBCT's matrix is not the identity; (3006,00C6)"


def _check_matrix(item: Dataset, who: str) -> Iterator[str]:
    registrations = _items(item, "MatrixRegistrationSequence")
    ones = [one for r in registrations for one in _items(r, "MatrixSequence")]
    if len(registrations) != 1 or len(ones) != 1:
        yield f"the {who} has not one matrix; (0070,030A) Matrix Sequence"
        return
    if "RegistrationTypeCodeSequence" not in registrations[0]:
        yield f"the {who}'s item does not say how it was registered; (0070,030D)"
    if _text(ones[0], "FrameOfReferenceTransformationMatrixType") != "RIGID":
        yield f"the {who}'s matrix is not said to be rigid; (0070,030C)"
    values = _raw(ones[0], "FrameOfReferenceTransformationMatrix")[1].split(b"\\")
    if any(len(value) > DS_BYTES for value in values):
        yield f"a number of the {who}'s matrix has more than 16 bytes; (3006,00C6)"
    matrix = _matrix(item)
    if matrix is None:
        yield f"the {who}'s matrix has not sixteen numbers; (3006,00C6)"
        return
    rotation = matrix[:3, :3]
    not_rigid = np.abs(rotation.T @ rotation - np.eye(3)).max() > NOT_RIGID
    if not_rigid or np.linalg.det(rotation) < 0 or (matrix[3] != [0, 0, 0, 1]).any():
        yield f"the {who}'s matrix is not a rigid motion; (3006,00C6)"


def _check_common_references(
    dataset: Dataset, cbct: SeriesSource, planning_ct: SeriesSource
) -> Iterator[str]:
    here = _items(dataset, "ReferencedSeriesSequence")
    named = {_text(s, "SeriesInstanceUID"): (_text(dataset, "StudyInstanceUID"), s) for s in here}
    for study in _items(dataset, "StudiesContainingOtherReferencedInstancesSequence"):
        for series in _items(study, "ReferencedSeriesSequence"):
            uid = _text(series, "SeriesInstanceUID")
            named[uid] = (_text(study, "StudyInstanceUID"), series)
    for source, who in ((cbct, "CBCT"), (planning_ct, "planning CT")):
        study_uid, item = named.get(source.series_instance_uid, ("", Dataset()))
        if study_uid != source.study.instance_uid:
            yield f"the series of the {who} is not referenced in its study; (0008,1115)"
        else:
            instances = _items(item, "ReferencedInstanceSequence")
            yield from _check_images(instances, source, f"the referenced series of the {who}")


def _matrix(item: Dataset) -> np.ndarray | None:
    for registration in _items(item, "MatrixRegistrationSequence"):
        for one in _items(registration, "MatrixSequence"):
            values = _numbers(_raw(one, "FrameOfReferenceTransformationMatrix")[1])
            return values.reshape(4, 4) if values is not None and len(values) == 16 else None
    return None


# ------------------------------------------------------------- reading without believing anything


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    return list(dataset.get(keyword) or [])


def _text(dataset: Dataset, keyword: str) -> str:
    return _raw(dataset, keyword)[1].decode(errors="replace").strip(" \0")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _raw(dataset: Dataset, keyword: str) -> tuple[str | None, bytes]:
    """The VR and the bytes of an attribute as they lie in the file, without padding."""
    tag = tag_for_keyword(keyword)
    element = dataset.get_item(tag) if tag is not None and tag in dataset else None
    if isinstance(element, RawDataElement):
        return element.VR, (element.value or b"").removesuffix(b" ")
    if element is None or element.value is None:
        return None, b""
    return element.VR, str(element.value).encode()


def _numbers(text: bytes) -> np.ndarray | None:
    try:
        return np.array([float(value) for value in text.split(b"\\")])
    except ValueError:
        return None


def _points(contour: Dataset) -> np.ndarray | None:
    values = _numbers(_raw(contour, "ContourData")[1])
    if values is None or len(values) % 3 or not np.isfinite(values).all():
        return None
    return values.reshape(-1, 3)
