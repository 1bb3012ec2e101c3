"""Small DICOM files for tests, written with pydicom alone (none of our own writers).

    ct = make_ct_series(tmp_path / "ct")                       # 5 slices of 8 x 10, 3 mm apart
    ct = make_ct_series(folder, hu_zyx, spacing_xyz_mm=(1, 1, 2), frame_of_reference=uid("cbct"))
    rs = make_structure_set(path, {"GTV": [loop, loop]}, reference=ct)
    reg = make_registration(path, registered=ct.frame_of_reference, moved={uid("b"): matrix})

Everything is deterministic: ``uid("any words")`` is the same UID in every run. Each maker takes
``change``, called with the dataset (and, for slices, its number) before it is written, so a test
breaks exactly what it wants to break.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RTPlanStorage,
    RTStructureSetStorage,
    SpatialRegistrationStorage,
)

AXIAL = np.eye(3)


def uid(words: str) -> str:
    """A valid UID that depends on the words alone."""
    return f"2.25.{int.from_bytes(hashlib.sha256(words.encode()).digest()[:15], 'big')}"


def disc(center_xyz_mm: Sequence[float], radius_mm: float, *, points: int = 48) -> np.ndarray:
    """An axial circle as a loop of points, shape (points, 3)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y, z = center_xyz_mm
    return np.column_stack(
        (x + radius_mm * np.cos(angle), y + radius_mm * np.sin(angle), np.full(points, z))
    )


@dataclass(frozen=True, kw_only=True)
class CtFiles:
    """A CT series on disk and what was put into it.

    Attributes:
        paths: In the order of slices along the normal (``paths[k]`` is slice k).
        hu_zyx: The values that a reader must give back, ``[z, y, x]``.
    """

    folder: Path
    paths: tuple[Path, ...]
    sop_uids: tuple[str, ...]
    series_uid: str
    study_uid: str
    frame_of_reference: str
    hu_zyx: np.ndarray
    positions_xyz_mm: np.ndarray


# Where the beams of plans aim.
ISOCENTRE_XYZ_MM = (12.5, -34.25, -101.0)


def make_ct_series(
    folder: Path,
    hu_zyx: np.ndarray | None = None,
    *,
    spacing_xyz_mm: Sequence[float] = (2.0, 1.5, 3.0),
    origin_xyz_mm: Sequence[float] = (-10.0, -20.0, -30.0),
    direction: np.ndarray = AXIAL,
    positions_z_mm: Sequence[float] | None = None,
    name: str = "ct",
    frame_of_reference: str | None = None,
    study_uid: str | None = None,
    description: str = "",
    transfer_syntax: str = ExplicitVRLittleEndian,
    change: Callable[[FileDataset, int], None] = lambda dataset, k: None,
) -> CtFiles:
    """Writes a CT series, one file a slice.

    Args:
        hu_zyx: Whole numbers of HU, ``[z, y, x]``; default: 5 slices of 8 rows and 10 columns, all
            values different.
        direction: Columns are the row axis, the column axis and the normal.
        positions_z_mm: Of each slice along the normal, relative to the origin; default: even.
        name: Seed of the UIDs; two series need two names.
        frame_of_reference: Default: one of its own, from ``name``.
        transfer_syntax: Any that pydicom writes or compresses to (JPEG 2000 wants 32 x 32 pixels).
    """
    if hu_zyx is None:
        hu_zyx = np.arange(5 * 8 * 10).reshape(5, 8, 10) * 3 - 1000
    offsets = (
        np.arange(len(hu_zyx)) * spacing_xyz_mm[2] if positions_z_mm is None else positions_z_mm
    )
    positions = np.asarray(origin_xyz_mm, float) + np.outer(offsets, np.asarray(direction)[:, 2])
    folder.mkdir(parents=True, exist_ok=True)
    paths, sops = [], []
    for k, (values, position) in enumerate(zip(hu_zyx, positions, strict=True)):
        dataset = _blank(CTImageStorage, f"{name} slice {k}", transfer_syntax, "CT")
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.StudyInstanceUID = study_uid or uid(f"{name} study")
        dataset.SeriesInstanceUID = uid(f"{name} series")
        dataset.SeriesDescription = description
        dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 1, k + 1, 1
        dataset.FrameOfReferenceUID = frame_of_reference or uid(f"{name} frame")
        dataset.PositionReferenceIndicator = ""
        dataset.PatientPosition = "HFS"
        dataset.ImagePositionPatient = [_ds(v) for v in position]
        dataset.ImageOrientationPatient = [_ds(v) for v in np.asarray(direction)[:, :2].T.ravel()]
        dataset.PixelSpacing = [_ds(spacing_xyz_mm[1]), _ds(spacing_xyz_mm[0])]
        dataset.SliceThickness = _ds(spacing_xyz_mm[2])
        dataset.KVP = "120"
        dataset.Rows, dataset.Columns = values.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
        big = transfer_syntax == ExplicitVRBigEndian
        dataset.PixelData = np.asarray(values).astype(">i2" if big else "<i2").tobytes()
        dataset["PixelData"].VR = "OW"
        change(dataset, k)
        path = folder / f"{name}-{k:03d}.dcm"
        _save(dataset, path, transfer_syntax)
        paths.append(path)
        sops.append(str(dataset.get("SOPInstanceUID", "")))
    return CtFiles(
        folder=folder,
        paths=tuple(paths),
        sop_uids=tuple(sops),
        series_uid=uid(f"{name} series"),
        study_uid=study_uid or uid(f"{name} study"),
        frame_of_reference=frame_of_reference or uid(f"{name} frame"),
        hu_zyx=np.asarray(hu_zyx, np.float32),
        positions_xyz_mm=positions,
    )


def make_structure_set(
    path: Path,
    rois: Mapping[str, Sequence[np.ndarray]],
    *,
    reference: CtFiles,
    name: str = "rs",
    label: str = "PLAN",
    interpreted_type: str = "GTV",
    approval: str = "APPROVED",
    change: Callable[[FileDataset], None] = lambda dataset: None,
) -> Path:
    """Writes a structure set drawn on a series; ROI numbers run from 1.

    Args:
        rois: Name to closed loops, each (n, 3) in LPS mm. A loop names the slice nearest to its
            mean point. No loops: a ROI without ContourSequence.
    """
    dataset = _blank(RTStructureSetStorage, name, ExplicitVRLittleEndian, "RTSTRUCT")
    dataset.StudyInstanceUID = reference.study_uid
    dataset.SeriesInstanceUID = uid(f"{name} series")
    dataset.StructureSetLabel, dataset.ApprovalStatus = label, approval
    dataset.StructureSetDate, dataset.StructureSetTime = "20260103", "101500"
    dataset.FrameOfReferenceUID = reference.frame_of_reference
    dataset.PositionReferenceIndicator = ""

    series = _item(SeriesInstanceUID=reference.series_uid)
    series.ContourImageSequence = [_image(s) for s in reference.sop_uids]
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=reference.study_uid,
        RTReferencedSeriesSequence=[series],
    )
    dataset.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=reference.frame_of_reference, RTReferencedStudySequence=[study])
    ]
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    dataset.RTROIObservationsSequence = []
    for number, (roi_name, loops) in enumerate(rois.items(), start=1):
        dataset.StructureSetROISequence.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=reference.frame_of_reference,
                ROIName=roi_name,
                ROIGenerationAlgorithm="MANUAL",
            )
        )
        drawn = _item(ReferencedROINumber=number, ROIDisplayColor=[255, 0, 0])
        if loops:
            drawn.ContourSequence = [_contour(np.asarray(loop, float), reference) for loop in loops]
        dataset.ROIContourSequence.append(drawn)
        dataset.RTROIObservationsSequence.append(
            _item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType=interpreted_type,
                ROIInterpreter="",
            )
        )
    change(dataset)
    _save(dataset, path, ExplicitVRLittleEndian)
    return path


def make_registration(
    path: Path,
    *,
    registered: str,
    moved: Mapping[str, np.ndarray],
    name: str = "reg",
    matrix_type: str = "RIGID",
    with_identity: bool = True,
    change: Callable[[FileDataset], None] = lambda dataset: None,
) -> Path:
    """Writes a Spatial Registration into the frame ``registered``.

    Args:
        moved: Frame of reference to the matrix (4, 4) that takes its points to ``registered``.
        with_identity: Whether the registered frame has an item of its own, first.
    """
    dataset = _blank(SpatialRegistrationStorage, name, ExplicitVRLittleEndian, "REG")
    dataset.StudyInstanceUID = uid(f"{name} study")
    dataset.SeriesInstanceUID = uid(f"{name} series")
    dataset.FrameOfReferenceUID = registered
    dataset.PositionReferenceIndicator = ""
    dataset.ContentDate, dataset.ContentTime = "20260103", "101500"
    dataset.ContentLabel, dataset.InstanceNumber = "REGISTRATION", 1
    dataset.ContentDescription, dataset.ContentCreatorName = "", ""
    items = ({registered: np.eye(4)} if with_identity else {}) | dict(moved)
    dataset.RegistrationSequence = [
        _item(
            FrameOfReferenceUID=frame,
            MatrixRegistrationSequence=[
                _item(
                    FrameOfReferenceTransformationComment="",
                    RegistrationTypeCodeSequence=[],
                    MatrixSequence=[matrix_item(matrix, matrix_type)],
                )
            ],
        )
        for frame, matrix in items.items()
    ]
    change(dataset)
    _save(dataset, path, ExplicitVRLittleEndian)
    return path


def matrix_item(matrix: np.ndarray, matrix_type: str = "RIGID") -> Dataset:
    """An item of MatrixSequence, row major."""
    return _item(
        FrameOfReferenceTransformationMatrixType=matrix_type,
        FrameOfReferenceTransformationMatrix=[_ds(v) for v in np.asarray(matrix, float).ravel()],
    )


def _contour(points_xyz_mm: np.ndarray, reference: CtFiles) -> Dataset:
    positions = reference.positions_xyz_mm
    away = (positions - points_xyz_mm.mean(axis=0)) @ (positions[-1] - positions[0])
    nearest = int(np.argmin(np.abs(away)))
    return _item(
        ContourImageSequence=[_image(reference.sop_uids[nearest])],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points_xyz_mm),
        ContourData=[_ds(v) for v in points_xyz_mm.ravel()],
    )


def _image(sop_uid: str) -> Dataset:
    return _item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=sop_uid)


def _blank(sop_class: str, name: str, transfer_syntax: str, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(uid(f"{name} instance"))
    meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = uid(f"{name} instance")
    dataset.StudyDate, dataset.StudyTime = "20260103", "100000"
    dataset.SeriesDate, dataset.SeriesTime = "20260103", "100100"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = ""
    dataset.Modality, dataset.Manufacturer = modality, "Factory"
    dataset.PatientName, dataset.PatientID = "Phantom^Test", "P-1"
    dataset.PatientBirthDate, dataset.PatientSex = "", ""
    return dataset


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _ds(value: float) -> str:
    return f"{float(value):.10g}"[:16]


def _save(dataset: FileDataset, path: Path, transfer_syntax: str) -> None:
    syntax = UID(transfer_syntax)
    if syntax.is_compressed and not syntax.is_deflated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax == ExplicitVRBigEndian:
        dcmwrite(path, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    else:
        dataset.save_as(path, enforce_file_format=True)


def dicom_item(**elements: object) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def beam(number: int, *places: Sequence[float] | None) -> Dataset:
    """A beam whose control points name these isocentres, or none."""
    points = []
    for k, place in enumerate(places):
        point = dicom_item(ControlPointIndex=k)
        if place is not None:
            point.IsocenterPosition = [f"{v:.4f}" for v in place]
        points.append(point)
    return dicom_item(BeamNumber=number, ControlPointSequence=points)


def make_plan(
    path: Path,
    beams: Sequence[Dataset] = (),
    *,
    name: str = "plan",
    structures_uid: str = "",
    change: Callable[[FileDataset], None] = lambda dataset: None,
) -> Path:
    """Writes an approved plan of thirty fractions.

    Args:
        beams: As `beam` makes them; default: two, at one isocentre.
        name: Seed of its UIDs.
        structures_uid: On which it was planned.
        change: Of the data set, before it is written.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTPlanStorage
    meta.MediaStorageSOPInstanceUID = UID(uid(name))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTPlanStorage, uid(name)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid(f"{name} series")
    dataset.Modality, dataset.Manufacturer = "RTPLAN", "Factory"
    dataset.PatientName, dataset.PatientID = "Phantom^Test", "P-1"
    dataset.FrameOfReferenceUID = uid("frame")
    dataset.RTPlanLabel, dataset.RTPlanGeometry = "LUNG", "PATIENT"
    dataset.PlanIntent = "CURATIVE"
    dataset.RTPlanDate, dataset.RTPlanTime = "20260105", "083000"
    dataset.BeamSequence = list(beams or (beam(n, ISOCENTRE_XYZ_MM, None) for n in (1, 2)))
    dataset.ReferencedStructureSetSequence = [
        dicom_item(
            ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
            ReferencedSOPInstanceUID=structures_uid or uid("rs"),
        )
    ]
    dataset.FractionGroupSequence = [
        dicom_item(FractionGroupNumber=1, NumberOfFractionsPlanned=30, NumberOfBeams=len(beams))
    ]
    dataset.ApprovalStatus = "APPROVED"
    change(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path
