"""A Segmentation (PS3.3 A.51): regions as masks on a scan's slices, for who reads no contours.

Binary, a segment for each region, a frame for each slice on which it has a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from contourcast.imaging.dicom.modules import (
    LO_BYTES,
    SERIES_NUMBER,
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
    required_source,
    save,
    series_reference,
    time_text,
)
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.source import SeriesSource
from contourcast.imaging.volume import Mask, Volume

# Category and type of what is drawn (PS3.16 CID 7150 and 7191, SNOMED CT).
TUMOUR: Final = (
    ("49755003", "SCT", "Morphologically Abnormal Structure"),
    ("108369006", "SCT", "Neoplasm"),
)
ORGAN: Final = (("123037004", "SCT", "Anatomical Structure"), ("113343008", "SCT", "Organ"))
# (3006,00A4) of ROIs that hold a tumour, all or part of it.
TUMOURS: Final = frozenset({"GTV", "CTV", "ITV"})
SEGMENT_NUMBER, SLICE_POSITION = 0x0062000B, 0x00200032


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A region, on the grid of the scan.

    Attributes:
        name: What people call it.
        method: What drew it.
        color_rgb: 0 to 255.
        interpreted_type: As in (3006,00A4), such as ``GTV``.
    """

    mask: Mask
    name: str
    method: str
    color_rgb: tuple[int, int, int]
    interpreted_type: str = ""


def write_segmentation(
    path: Path,
    *,
    segments: Sequence[Segment],
    reference_scan: Volume,
    digest: str,
    made_at: datetime,
    description: str = "",
    series_number: int = SERIES_NUMBER,
) -> str:
    """Writes regions as segments, in the order given.

    The same input gives the same bytes. A region without a voxel is a segment without frames;
    where none has one, the first slice is there, empty, because an image has a frame.

    Args:
        path: The file.
        segments: On the grid of ``reference_scan``.
        reference_scan: The CBCT, with its source.
        digest: Of all that the masks were made of; the UIDs follow from it.
        made_at: When.
        description: (0008,103E).
        series_number: Of the site's structure sets; a segmentation has the fifth from there.

    Returns:
        The SOP Instance UID.

    Raises:
        DicomError: The scan has no source.
        GridMismatchError, FrameMismatchError: A mask lies elsewhere.
        InputError: There is no segment.
    """
    source = required_source(reference_scan.source, "scan")
    if not segments:
        raise InputError("a segmentation without a segment says nothing")
    for segment in segments:
        reference_scan.require_same_place(segment.mask)
    dataset = new_object(
        SegmentationStorage, derived_uid(digest, "segmentation"), ExplicitVRLittleEndian
    )
    add_patient(dataset, source.patient)
    add_study(dataset, source.study)
    add_our_series(
        dataset,
        modality="SEG",
        series_uid=derived_uid(digest, "segmentation series"),
        number=series_number + 4,
        description=description,
        at=made_at,
    )
    dataset.DeviceSerialNumber = VERSION  # of a program, of which there are no two
    if source.body_part:  # no laterality else: of segments, each has its own
        as_it_came(dataset, "BodyPartExamined", source.body_part)
    dataset.FrameOfReferenceUID = reference_scan.frame_of_reference
    dataset.PositionReferenceIndicator = ""
    dataset.ContributingEquipmentSequence = [contributing_equipment()]
    frames = _frames(segments)
    _add_image(dataset, made_at)
    _add_dimensions(dataset, digest)
    dataset.SegmentSequence = [_segment_item(n, one) for n, one in enumerate(segments, 1)]
    dataset.SharedFunctionalGroupsSequence = [_shared(reference_scan.grid)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_item(*f, source) for f in frames]
    dataset.ReferencedSeriesSequence = [series_reference(source)]
    _add_pixels(dataset, [segments[n - 1].mask.values[k] for n, k in frames])
    save(path, dataset)
    return str(dataset.SOPInstanceUID)


def _frames(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Number of the segment, and the slice, of each frame."""
    found = [
        (number, int(k))
        for number, segment in enumerate(segments, 1)
        for k in np.flatnonzero(segment.mask.values.any(axis=(1, 2)))
    ]
    return found or [(1, 0)]


def _add_image(dataset: Dataset, made_at: datetime) -> None:
    """General Image and Segmentation Image modules (PS3.3 C.7.6.1, C.8.20.2)."""
    dataset.InstanceNumber = 1
    dataset.ContentDate, dataset.ContentTime = date_text(made_at), time_text(made_at)
    dataset.ContentLabel = "PROPOSALS"
    dataset.ContentDescription = "proposals of a machine, not reviewed"
    dataset.ContentCreatorName = ""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.LossyImageCompression = "00"
    dataset.SegmentationType = "BINARY"


def _add_dimensions(dataset: Dataset, digest: str) -> None:
    """Multi-frame Dimension module (PS3.3 C.7.6.17): by segment, then by slice."""
    organization = Dataset()
    organization.DimensionOrganizationUID = derived_uid(digest, "segmentation dimensions")
    dataset.DimensionOrganizationSequence = [organization]
    items = []
    for pointer, group, label in (
        (SEGMENT_NUMBER, 0x0062000A, "segment"),
        (SLICE_POSITION, 0x00209113, "slice"),
    ):
        item = Dataset()
        item.DimensionOrganizationUID = organization.DimensionOrganizationUID
        item.DimensionIndexPointer = pointer
        item.FunctionalGroupPointer = group
        item.DimensionDescriptionLabel = label
        items.append(item)
    dataset.DimensionIndexSequence = items


def _segment_item(number: int, segment: Segment) -> Dataset:
    category, kind = TUMOUR if segment.interpreted_type in TUMOURS else ORGAN
    item = Dataset()
    item.SegmentNumber = number
    item.SegmentLabel = cut(segment.name, LO_BYTES) or f"segment {number}"
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = cut(segment.method, LO_BYTES)
    item.SegmentedPropertyCategoryCodeSequence = [code(*category)]
    item.SegmentedPropertyTypeCodeSequence = [code(*kind)]
    item.RecommendedDisplayCIELabValue = _cielab(segment.color_rgb)
    return item


def _cielab(color_rgb: tuple[int, int, int]) -> list[int]:
    """Lab of an sRGB colour under D65, as unsigned numbers of 16 bits (PS3.3 C.10.7.1.1)."""
    srgb = np.array(color_rgb) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    ) @ linear / (0.95047, 1.0, 1.08883)  # fmt: skip
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    scaled = np.add(lab, (0, 128, 128)) / (100, 255, 255) * 65535
    return [int(value) for value in scaled.round().clip(0, 65535)]


def _shared(grid: Grid) -> Dataset:
    """What is one for all frames: the size of a pixel, and which way the slices lie."""
    measures = Dataset()
    measures.PixelSpacing = [ds_text(mm) for mm in reversed(grid.spacing_xy_mm)]  # rows, columns
    gaps = np.diff(grid.offsets_z_mm)
    measures.SliceThickness = ds_text(float(np.median(gaps)) if len(gaps) else 1.0)
    orientation = Dataset()
    orientation.ImageOrientationPatient = [ds_text(v) for v in grid.direction[:, :2].T.ravel()]
    item = Dataset()
    item.PixelMeasuresSequence = [measures]
    item.PlaneOrientationSequence = [orientation]
    return item


def _frame_item(number: int, k: int, source: SeriesSource) -> Dataset:
    """The functional groups of the frame of one segment on one slice (PS3.3 C.7.6.16)."""
    content = Dataset()
    content.DimensionIndexValues = [number, k + 1]
    position = Dataset()
    position.ImagePositionPatient = [ds_text(v) for v in source.slices[k].position_xyz_mm]
    segment = Dataset()
    segment.ReferencedSegmentNumber = number
    image = reference(source.sop_class_uid, source.slices[k].sop_instance_uid)
    image.PurposeOfReferenceCodeSequence = [
        code("121322", "DCM", "Source image for image processing operation")
    ]
    derivation = Dataset()
    derivation.DerivationCodeSequence = [code("113076", "DCM", "Segmentation")]
    derivation.SourceImageSequence = [image]
    item = Dataset()
    item.FrameContentSequence = [content]
    item.PlanePositionSequence = [position]
    item.SegmentIdentificationSequence = [segment]
    item.DerivationImageSequence = [derivation]
    return item


def _add_pixels(dataset: Dataset, frames: Sequence[Bool[np.ndarray, "y x"]]) -> None:
    """Image Pixel module (PS3.3 C.7.6.3): a bit a pixel, frames without a gap (PS3.5 8.1.1)."""
    stack = np.stack(frames).astype(bool)
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = stack.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelRepresentation = 0
    content = np.packbits(stack.ravel(), bitorder="little").tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
