"""An RT Structure Set (PS3.3 A.19), as importing systems read it without a word.

Read `write_structure_set` first; what goes into which sequence follows from top to bottom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from contourcast.imaging.dicom.modules import (
    CS_BYTES,
    DETACHED_STUDY_CLASS_UID,
    DS_BYTES,
    LO_BYTES,
    MANUFACTURER,
    SERIES_NUMBER,
    SH_BYTES,
    ST_BYTES,
    VERSION,
    add_our_series,
    add_patient,
    add_study,
    as_it_came,
    code,
    contributing_equipment,
    cut,
    date_text,
    ds_text,
    new_object,
    reference,
    references,
    required_source,
    save,
    time_text,
)
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import GeometryError, InputError
from contourcast.imaging.grid import EVEN_GAP_MM, Grid
from contourcast.imaging.keyhole import Ring, keyhole, rings
from contourcast.imaging.polygon import Loop, signed_area
from contourcast.imaging.source import SeriesSource
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.volume import Volume, require_same_frame

NAME_BYTES: Final = 16  # of ROI names: the shortest limit met (CLINICAL_SERVICE §2.8, Eclipse)
METHOD_BYTES: Final = 5  # of a method in a ROI's name at least: enough to tell them apart
DECIMALS: Final = 4  # of coordinates in mm (CLINICAL_SERVICE §2.4)
ON_PLANE_MM: Final = EVEN_GAP_MM  # real sets lie off by up to 0.002 mm (4D-Lung 113, Pinnacle)
LEAST_AREA_MM2: Final = 10.0 ** (-DECIMALS)  # smaller loops vanish in the rounding of coordinates
PALETTE_RGB: Final = ((255, 70, 120), (86, 180, 233), (230, 159, 0), (0, 200, 140), (240, 228, 66))

CONTOUR_DATA: Final = Tag(0x3006, 0x0050)

Holes = Literal["keyhole", "xor"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What drew a ROI.

    Attributes:
        method: Such as ``rigid`` or ``diff-umamba``.
        version: Of the program or the network.
        weights_digest: SHA-256 (hex) of a network's weights; empty for the others.
        is_network: Whether it is told to be artificial intelligence (CID 7162, 123110).
        source: Who makes the method.
    """

    method: str
    version: str = VERSION
    weights_digest: str = ""
    is_network: bool = False
    source: str = MANUFACTURER

    @property
    def description(self) -> str:
        """One line for (3006,0038) ROI Generation Description."""
        weights = f" w:{self.weights_digest[:8]}" if self.weights_digest else ""
        return f"{self.source} {self.version} {self.method}{weights}"


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A person's decision on the whole set (PS3.3 C.8.8.16).

    Raises:
        InputError: A decision without reviewer or time.
    """

    status: Literal["UNAPPROVED", "APPROVED", "REJECTED"] = "UNAPPROVED"
    reviewer: str = ""
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.status != "UNAPPROVED" and not (self.reviewer and self.at):
            raise InputError(
                f"a set cannot be {self.status} without reviewer and time",
                tag="(300E,0008) Reviewer Name",
                remedy="say who decided, and when",
            )


def write_structure_set(
    path: Path,
    *,
    rois: Sequence[Roi],
    reference: Volume,
    label: str,
    series_description: str,
    digest: str,
    drawn_at: datetime,
    generations: Sequence[Generation | None] = (),
    name: str = "",
    description: str = "",
    predecessor_uid: str = "",
    approval: Approval | None = None,
    holes: Holes = "keyhole",
    series_number: int = SERIES_NUMBER,
) -> str:
    """Writes ROIs as a structure set on the slices of a scan.

    A ROI without contours is written as such. Loops smaller than ``LEAST_AREA_MM2`` are left out.
    The same input gives the same bytes; the file is there whole or not at all.

    Args:
        path: The file.
        rois: Drawn in the frame of reference of ``reference``, their loops on its slices.
        reference: The scan that was drawn on, with its source.
        label: (3006,0002), cut to 16 bytes.
        series_description: (0008,103E).
        digest: Of all that the set was made of; the UIDs follow from it.
        drawn_at: When; with a time zone, it is stated as (0008,0201).
        generations: What drew each ROI, in the order of ``rois``; none for those drawn by hand.
        name: (3006,0004).
        description: (3006,0006).
        predecessor_uid: The structure set that this one follows from; empty: none.
        approval: None: unapproved.
        holes: As a cut from the outside, or as a loop of their own.
        series_number: (0020,0011).

    Returns:
        The SOP Instance UID.

    Raises:
        DicomError: The reference has no source.
        FrameMismatchError: A ROI was drawn in another frame of reference.
        GeometryError: A contour lies on no slice, or encloses nothing.
        InputError: ROI numbers repeat, or generations are not one for each ROI.
    """
    source = required_source(reference.source, "reference")
    _require_writable(rois, reference, generations)
    dataset = new_object(
        RTStructureSetStorage, derived_uid(digest, "structure set"), ImplicitVRLittleEndian
    )
    add_patient(dataset, source.patient)
    add_study(dataset, source.study)
    add_our_series(
        dataset,
        modality="RTSTRUCT",
        series_uid=derived_uid(digest, "structure set series"),
        number=series_number,
        description=series_description,
        at=drawn_at,
    )
    dataset.FrameOfReferenceUID = reference.frame_of_reference
    dataset.PositionReferenceIndicator = ""
    dataset.ContributingEquipmentSequence = [contributing_equipment()]
    _add_structure_set(dataset, label, name, description, drawn_at, predecessor_uid)
    dataset.ReferencedFrameOfReferenceSequence = [_reference_item(reference, source)]
    names = written_names([roi.name for roi in rois])
    by_roi = list(generations) or [None] * len(rois)
    drawn = [list(_slices(roi, reference, source)) for roi in rois]
    dataset.StructureSetROISequence = [
        _roi_item(*parts) for parts in zip(rois, names, drawn, by_roi, strict=True)
    ]
    dataset.ROIContourSequence = [
        _contours_item(roi, number, on_slices, source, holes)
        for number, (roi, on_slices) in enumerate(zip(rois, drawn, strict=True))
    ]
    approval = approval or Approval()
    dataset.RTROIObservationsSequence = [
        _observation_item(*parts, approval) for parts in zip(rois, names, strict=True)
    ]
    _add_approval(dataset, approval)
    save(path, dataset)
    return str(dataset.SOPInstanceUID)


def day_label(source: SeriesSource, ending: str = "") -> str:
    """A set's label: whose it is, and the day of the scan that it was drawn on, as the scan says.

    Two sets of a day may have one label: what they are of is their names' to say.
    """
    day = "".join(c for c in source.series_date or source.study.date if c.isdigit())
    return " ".join(part for part in ("CC", day[:8], ending) if part)


def proposal_name(source_name: str, method: str) -> str:
    """The name of a contour that a method drew of a ROI: source and method, in 16 bytes.

    The source stays whole as far as it can, and keeps its end: there stand side and number.

    >>> proposal_name("GTV", "diff-umamba"), proposal_name("GTV_L", "diff-umamba")
    ('GTV diff-umamba', 'GTV_L diff-umamb')
    >>> proposal_name("Stomach_duo_planCT", "dir-t"), proposal_name("Lung_tumour_R", "rigid")
    ('Stoma~anCT dir-t', 'Lung_~ur_R rigid')
    """
    source_name = shortened(source_name, NAME_BYTES - 1 - METHOD_BYTES)
    return f"{source_name} {cut(method, NAME_BYTES - 1 - len(source_name.encode()))}".strip()


def shortened(name: str, bytes_at_most: int) -> str:
    """A name that fits: its beginning and its end, for many differ in their last letter alone.

    >>> shortened("GTV_primary_L", 10), shortened("GTVp1", 10)
    ('GTV_p~ry_L', 'GTVp1')
    """
    name = cut(name, len(name.encode()))
    if len(name.encode()) <= bytes_at_most:
        return name
    end = name
    while len(end.encode()) > (bytes_at_most - 1) // 2:
        end = end[1:]
    return f"{cut(name, bytes_at_most - 1 - len(end.encode()))}~{end}"


def written_names(names: Sequence[str], *, bytes_at_most: int = NAME_BYTES) -> list[str]:
    """Names that fit, unique also for those who ignore letter case.

    >>> written_names(["GTV", "gtv", "A name that is far too long"])
    ['GTV', 'gtv~2', 'A name t~oo long']
    """
    written: list[str] = []
    taken: set[str] = set()
    for name in names:
        fitting, count = shortened(name, bytes_at_most) or "ROI", 1
        while fitting.casefold() in taken:
            count += 1
            ending = f"~{count}"
            fitting = (shortened(name, bytes_at_most - len(ending)) or "ROI") + ending
        taken.add(fitting.casefold())
        written.append(fitting)
    return written


def _require_writable(
    rois: Sequence[Roi], reference: Volume, generations: Sequence[Generation | None]
) -> None:
    for roi in rois:
        require_same_frame(roi.frame_of_reference, reference.frame_of_reference)
    if len({roi.number for roi in rois}) != len(rois):
        raise InputError(
            "two ROIs have one number",
            tag="(3006,0022) ROI Number",
            remedy="number the ROIs of a set from 1",
        )
    if generations and len(generations) != len(rois):
        raise InputError(f"{len(generations)} generations were given for {len(rois)} ROIs")


def _add_structure_set(
    dataset: Dataset,
    label: str,
    name: str,
    description: str,
    drawn_at: datetime,
    predecessor_uid: str,
) -> None:
    """Structure Set module (PS3.3 C.8.8.5), its sequences of ROIs aside."""
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel = cut(label, SH_BYTES)
    if name:
        dataset.StructureSetName = cut(name, LO_BYTES)
    if description:
        dataset.StructureSetDescription = cut(description, ST_BYTES)
    dataset.StructureSetDate, dataset.StructureSetTime = date_text(drawn_at), time_text(drawn_at)
    if predecessor_uid:
        dataset.PredecessorStructureSetSequence = [
            reference(RTStructureSetStorage, predecessor_uid)
        ]


def _reference_item(reference: Volume, source: SeriesSource) -> Dataset:
    """An item of Referenced Frame of Reference Sequence that names every slice."""
    series = Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ContourImageSequence = references(source)
    study = Dataset()
    study.ReferencedSOPClassUID = DETACHED_STUDY_CLASS_UID
    study.ReferencedSOPInstanceUID = source.study.instance_uid
    study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = reference.frame_of_reference
    item.RTReferencedStudySequence = [study]
    return item


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slice:
    """What a ROI has on one slice.

    Attributes:
        origin_xyz_mm: Where the slice's file says that its first pixel is.
        axes: Unit vectors of in-plane coordinates as columns, shape (3, 2); seen from the head,
            or from the grid's far side when the plane runs from head to feet, they turn
            counter-clockwise.
        fixed: World coordinates that are one number all over the slice, shape (3,).
        thickness_mm: What the slice stands for.
    """

    index: int
    origin_xyz_mm: np.ndarray
    axes: np.ndarray
    fixed: np.ndarray
    thickness_mm: float
    rings: tuple[Ring, ...]

    @property
    def volume_cc(self) -> float:
        """Of the ROI on this slice."""
        return sum(ring.area for ring in self.rings) * self.thickness_mm / 1000.0


def _slices(roi: Roi, reference: Volume, source: SeriesSource) -> Iterator[_Slice]:
    """The ROI's loops by slice, from the first slice to the last."""
    grid = reference.grid
    by_slice: dict[int, list[Contour]] = {}
    for contour in roi.contours:
        by_slice.setdefault(_slice_of(contour, grid), []).append(contour)
    i, j, k = grid.direction.T
    seen_from_head = k[2] if abs(k[2]) > 1e-6 else 1.0
    handedness = float(np.cross(i, j) @ k) * seen_from_head
    axes = np.column_stack((i, j if handedness > 0 else -j))
    extent_mm = np.array(grid.shape_zyx[:0:-1]) * grid.spacing_xy_mm
    fixed = np.abs(grid.direction[:, :2]) @ extent_mm < 0.5 * 10.0 ** (-DECIMALS)
    for index in sorted(by_slice):
        origin = source.slices[index].position_xyz_mm
        loops = [(c.points_xyz_mm - origin) @ axes for c in by_slice[index]]
        loops = [loop for loop in loops if abs(signed_area(loop)) >= LEAST_AREA_MM2]
        if loops:
            yield _Slice(
                index=index,
                origin_xyz_mm=origin,
                axes=axes,
                fixed=fixed,
                thickness_mm=float(grid.thickness_z_mm[index]),
                rings=tuple(rings(loops)),
            )


def _slice_of(contour: Contour, grid: Grid) -> int:
    """The slice that a loop lies on.

    Raises:
        GeometryError: It encloses nothing, or lies between slices.
    """
    if not contour.encloses:
        raise GeometryError(
            f"a {contour.geometric_type} contour of {len(contour.points_xyz_mm)} points "
            "encloses nothing, so it is not written",
            tag="(3006,0042) Contour Geometric Type",
            uid=contour.sop_instance_uid,
        )
    depth_mm = (contour.points_xyz_mm - grid.origin_xyz_mm) @ grid.normal
    index = int(np.abs(grid.offsets_z_mm - depth_mm[0]).argmin())
    off_mm = float(np.abs(depth_mm - grid.offsets_z_mm[index]).max())
    if off_mm > ON_PLANE_MM:
        raise GeometryError(
            f"a contour lies {off_mm:.3f} mm off the nearest slice",
            tag="(3006,0050) Contour Data",
            remedy="bring the ROI onto the slices of the scan first (carry and trace)",
        )
    return index


def _roi_item(
    roi: Roi, name: str, drawn: Sequence[_Slice], generation: Generation | None
) -> Dataset:
    """An item of Structure Set ROI Sequence."""
    item = Dataset()
    item.ROINumber = roi.number
    item.ReferencedFrameOfReferenceUID = roi.frame_of_reference
    item.ROIName = name
    full = roi.name if name != roi.name else ""
    text = "; ".join(part for part in (full, roi.description) if part)
    if text:
        item.ROIDescription = cut(text, ST_BYTES)
    volume_cc = sum(on_slice.volume_cc for on_slice in drawn)
    if volume_cc > 0:
        item.ROIVolume = ds_text(round(volume_cc, 4))
    by_hand = "MANUAL" if generation is None else "AUTOMATIC"
    item.ROIGenerationAlgorithm = roi.generation_algorithm or by_hand
    if generation is not None:
        item.ROIGenerationDescription = cut(generation.description, LO_BYTES)
        if generation.is_network:
            item.ROIDerivationAlgorithmIdentificationSequence = [_algorithm_item(generation)]
    return item


def _algorithm_item(generation: Generation) -> Dataset:
    """An item of the Algorithm Identification macro (PS3.3 table 10-19)."""
    item = Dataset()
    item.AlgorithmFamilyCodeSequence = [code("123110", "DCM", "Artificial Intelligence")]
    item.AlgorithmName = cut(generation.method, LO_BYTES)
    item.AlgorithmVersion = cut(generation.version, LO_BYTES)
    item.AlgorithmSource = cut(generation.source, LO_BYTES)
    if generation.weights_digest:
        item.AlgorithmParameters = f"weights sha256 {generation.weights_digest}"
    return item


def _contours_item(
    roi: Roi, number: int, drawn: Sequence[_Slice], source: SeriesSource, holes: Holes
) -> Dataset:
    """An item of ROI Contour Sequence; without Contour Sequence when the ROI is empty."""
    item = Dataset()
    item.ROIDisplayColor = list(roi.color_rgb or PALETTE_RGB[number % len(PALETTE_RGB)])
    item.ReferencedROINumber = roi.number
    contours: list[Dataset] = []
    for on_slice in drawn:
        image = reference(source.sop_class_uid, source.slices[on_slice.index].sop_instance_uid)
        for ring in on_slice.rings:
            for loop in [keyhole(ring)] if holes == "keyhole" else [ring.outer, *ring.holes]:
                contours.append(_contour_item(loop, on_slice, image, len(contours) + 1))
    if contours:
        item.ContourSequence = contours
    return item


def _contour_item(loop: Loop, on_slice: _Slice, image: Dataset, number: int) -> Dataset:
    """An item of Contour Sequence; its numbers go in as bytes, not one by one."""
    points = _distinct(np.round(on_slice.origin_xyz_mm + loop @ on_slice.axes.T, DECIMALS))
    content = _contour_data(points, on_slice)
    item = Dataset()
    item.ContourImageSequence = [image]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    item.ContourNumber = number
    item[CONTOUR_DATA] = RawDataElement(
        CONTOUR_DATA, "DS", len(content), content, 0, is_implicit_VR=True, is_little_endian=True
    )
    # Told that these bytes are as they will be written, pydicom does not parse them to write them.
    item.set_original_encoding(True, True, default_encoding)
    return item


def _distinct(points: np.ndarray) -> np.ndarray:
    """Without points that repeat the one before them, the first included."""
    kept: np.ndarray = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    return kept


def _contour_data(points_xyz_mm: np.ndarray, on_slice: _Slice) -> bytes:
    """Decimal Strings; a coordinate that is one number all over the slice is the slice's own.

    An odd length is made even by a digit, not by a blank: a blank after a last value of 16 bytes
    is one byte too many for readers that count it.

    Raises:
        GeometryError: The numbers are too large for four decimals in 16 bytes.
    """
    free = ~on_slice.fixed
    if np.abs(points_xyz_mm).max() >= 10.0 ** (DS_BYTES - DECIMALS - 3):
        raise GeometryError("a contour lies so far away that its coordinates do not fit")
    form = "\\".join(
        f"%.{DECIMALS}f" if free[axis] else ds_text(on_slice.origin_xyz_mm[axis])
        for axis in range(3)
    )
    text = "\\".join([form] * len(points_xyz_mm)) % tuple(points_xyz_mm[:, free].ravel().tolist())
    if len(text) % 2:
        first_free = int(free.argmax())
        values = text.split("\\", first_free + 1)
        values[first_free] += "0"
        text = "\\".join(values)
    return text.encode()


def _observation_item(roi: Roi, name: str, approval: Approval) -> Dataset:
    """An item of RT ROI Observations Sequence (PS3.3 C.8.8.8)."""
    item = Dataset()
    item.ObservationNumber = roi.number
    item.ReferencedROINumber = roi.number
    item.ROIObservationLabel = cut(name, SH_BYTES)
    as_it_came(item, "RTROIInterpretedType", cut(roi.interpreted_type, CS_BYTES))
    as_it_came(item, "ROIInterpreter", approval.reviewer)
    return item


def _add_approval(dataset: Dataset, approval: Approval) -> None:
    """Approval module (PS3.3 C.8.8.16)."""
    dataset.ApprovalStatus = approval.status
    if approval.at is not None:
        dataset.ReviewDate, dataset.ReviewTime = date_text(approval.at), time_text(approval.at)
        as_it_came(dataset, "ReviewerName", approval.reviewer)
