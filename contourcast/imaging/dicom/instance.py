"""What one file says of itself: identity, image plane, pixels' format, patient and study.

``read_header`` is the front door: it never decodes pixels and its memory is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from contourcast.imaging.dicom.elements import (
    LIMITS,
    Attributes,
    Limits,
    Parsed,
    Source,
    read_elements,
    tag_name,
)
from contourcast.imaging.errors import DicomError
from contourcast.imaging.source import Patient, Study

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"
SPATIAL_REGISTRATION: Final = "1.2.840.10008.5.1.4.1.1.66.1"
DEFORMABLE_REGISTRATION: Final = "1.2.840.10008.5.1.4.1.1.66.3"
RAW_DATA: Final = "1.2.840.10008.5.1.4.1.1.66"

# Attributes that images of one patient or study have in common, so that what we write of them
# must have them, too (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2).
FURTHER_OF_PATIENT: Final = {
    "PatientBirthTime": 0x00100032,
    "OtherPatientIDs": 0x00101000,
    "EthnicGroup": 0x00102160,
    "PatientComments": 0x00104000,
    "PatientIdentityRemoved": 0x00120062,
    "DeidentificationMethod": 0x00120063,
}
FURTHER_OF_STUDY: Final = {
    "PhysiciansOfRecord": 0x00081048,
    "NameOfPhysiciansReadingStudy": 0x00081060,
    "AdmittingDiagnosesDescription": 0x00081080,
    "PatientAge": 0x00101010,
    "PatientSize": 0x00101020,
    "PatientWeight": 0x00101030,
    "Occupation": 0x00102180,
    "AdditionalPatientHistory": 0x001021B0,
}

XYZ = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """Image Pixel module: how samples are stored, and where.

    Attributes:
        start: Where the value of the pixel data begins in the (inflated) file.
        length: Its bytes; None when encapsulated.
        deflated_from: Where the deflated data set begins in the file; None when it is not.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    start: int
    length: int | None
    deflated_from: int | None

    @property
    def native_bytes(self) -> int:
        """Size of the decoded pixels."""
        return (
            self.rows * self.columns * self.samples * self.frames * ((self.bits_allocated + 7) // 8)
        )


@dataclass(frozen=True, kw_only=True)
class ImagePlane:
    """Image Plane and rescale: where the samples lie and what they mean, as the file states it.

    Attributes:
        position_xyz_mm: Centre of the first pixel, (0020,0032).
        orientation: Row axis, then column axis, (0020,0037); six numbers.
        spacing_yx_mm: Between rows, then between columns, (0028,0030).
        slope, intercept: (0028,1053) and (0028,1052); None when absent.
        padding: Lowest and highest stored value that means "no sample", (0028,0120), (0028,0121).
    """

    position_xyz_mm: XYZ | None
    orientation: tuple[float, ...] | None
    spacing_yx_mm: tuple[float, float] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    padding: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Header:
    """One instance without its pixels.

    Attributes:
        file: The file's name, never its path.
        frame_of_reference: Empty when the file states none.
        image_type: (0008,0008), such as ``("ORIGINAL", "PRIMARY", "AXIAL")``.
        pixels: None for an object that is no image.
        notes: What was odd about the file itself.
    """

    file: str
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference: str
    modality: str
    image_type: tuple[str, ...]
    acquisition_number: str
    instance_number: str
    series_number: str
    series_description: str = field(repr=False)
    series_date: str
    series_time: str
    manufacturer: str
    model: str
    patient_position: str
    body_part: str
    patient: Patient
    study: Study
    plane: ImagePlane
    pixels: PixelFormat | None
    notes: tuple[str, ...]

    @property
    def is_localizer(self) -> bool:
        """Whether it is a scout view, which no volume contains."""
        return "LOCALIZER" in self.image_type


def read_header(source: Source, *, file: str = "", limits: Limits = LIMITS) -> Header:
    """Reads one file up to its pixels, within limits.

    Native pixels are known to be all there; compressed ones are checked when they are decoded.

    Args:
        source: A path, bytes, or a seekable binary stream.
        file: The name for errors where the source has none.
        limits: What it may cost.

    Raises:
        NotDicomError: It is not DICOM at all.
        DicomError: It is broken, beyond the limits, or lacks the UIDs that identify it.
    """
    parsed = read_elements(source, file=file, limits=limits)
    a = parsed.attributes
    sop_class = a.uid(0x00080016, required=True)
    pixels = None
    if parsed.pixel_start is not None:
        pixels = _pixel_format(parsed, parsed.pixel_start, limits)
    elif sop_class in (CT_IMAGE, ENHANCED_CT) or 0x00280010 in a:
        raise DicomError(
            "the image has no pixels: the file is cut short",
            tag=tag_name(0x7FE00010),
            uid=a.uid(0x00080018),
            file=a.file,
            remedy="send the file again",
        )
    return Header(
        file=a.file,
        transfer_syntax=parsed.transfer_syntax,
        sop_class_uid=sop_class,
        sop_instance_uid=a.uid(0x00080018, required=True),
        series_instance_uid=a.uid(0x0020000E, required=True),
        study_instance_uid=a.uid(0x0020000D, required=True),
        frame_of_reference=a.uid(0x00200052),
        modality=a.word(0x00080060),
        image_type=a.words(0x00080008),
        acquisition_number=a.word(0x00200012),
        instance_number=a.word(0x00200013),
        series_number=a.word(0x00200011),
        series_description=a.text(0x0008103E),
        series_date=a.word(0x00080021),
        series_time=a.word(0x00080031),
        manufacturer=a.text(0x00080070),
        model=a.text(0x00081090),
        patient_position=a.word(0x00185100),
        body_part=a.word(0x00180015),
        patient=read_patient(a),
        study=read_study(a),
        plane=_image_plane(a, signed=pixels is not None and pixels.signed),
        pixels=pixels,
        notes=parsed.notes,
    )


def read_patient(a: Attributes) -> Patient:
    """Patient module (PS3.3 C.7.1.1), in Unicode."""
    return Patient(
        name=a.person(0x00100010),
        patient_id=a.text(0x00100020),
        issuer=a.text(0x00100021),
        birth_date=a.word(0x00100030),
        sex=a.word(0x00100040),
        further=_further(a, FURTHER_OF_PATIENT),
        deidentified_by=tuple(
            (code.text(0x00080100), code.text(0x00080102), code.text(0x00080104))
            for code in a.items(0x00120064)
        ),
    )


def read_study(a: Attributes) -> Study:
    """General Study module (PS3.3 C.7.2.1)."""
    return Study(
        instance_uid=a.uid(0x0020000D, required=True),
        date=a.word(0x00080020),
        time=a.word(0x00080030),
        study_id=a.text(0x00200010),
        accession_number=a.text(0x00080050),
        description=a.text(0x00081030),
        referring_physician=a.person(0x00080090),
        further=_further(a, FURTHER_OF_STUDY),
    )


def _further(a: Attributes, tags: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    return tuple((keyword, a.text(tag)) for keyword, tag in tags.items() if tag in a)


def _pixel_format(parsed: Parsed, start: int, limits: Limits) -> PixelFormat:
    a = parsed.attributes
    rows, columns = a.binary(0x00280010), a.binary(0x00280011)
    bits = a.binary(0x00280100)
    if not rows or not columns or not bits:
        raise DicomError(
            "the image has pixels but does not say how many",
            tag=f"{tag_name(0x00280010)}, {tag_name(0x00280011)}, {tag_name(0x00280100)}",
            file=a.file,
            remedy="export the image again",
        )
    stored = a.binary(0x00280101) or bits
    high_bit = a.binary(0x00280102)
    image = PixelFormat(
        rows=rows,
        columns=columns,
        frames=a.integer(0x00280008) or 1,
        samples=a.binary(0x00280002) or 1,
        photometric=a.word(0x00280004),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=a.binary(0x00280103) == 1,
        start=start,
        length=parsed.pixel_length,
        deflated_from=parsed.deflated_from,
    )
    if max(rows, columns) > limits.rows_columns:
        raise DicomError(
            f"the image is {columns} x {rows} pixels, more than {limits.rows_columns} a side",
            tag=f"{tag_name(0x00280010)}, {tag_name(0x00280011)}",
            file=a.file,
        )
    if bits not in (1, 8, 16, 32, 64) or not image.high_bit < bits or stored > image.high_bit + 1:
        raise DicomError(
            f"{stored} bits up to bit {image.high_bit} do not fit {bits} allocated bits",
            tag=tag_name(0x00280101),
            file=a.file,
        )
    if image.frames < 1 or image.native_bytes > limits.pixel_bytes:
        raise DicomError(
            f"{image.frames} frames of {columns} x {rows} are more than "
            f"{limits.pixel_bytes >> 20} MiB",
            tag=tag_name(0x00280008),
            file=a.file,
        )
    return image


def _image_plane(a: Attributes, *, signed: bool) -> ImagePlane:
    position = a.numbers(0x00200032, count=3)
    spacing = a.numbers(0x00280030, count=2)
    first = a.binary(0x00280120, signed=signed)
    last = a.binary(0x00280121, signed=signed)
    padding = None
    if first is not None:
        padding = (first, first) if last is None else (min(first, last), max(first, last))
    return ImagePlane(
        position_xyz_mm=None if position is None else (position[0], position[1], position[2]),
        orientation=a.numbers(0x00200037, count=6),
        spacing_yx_mm=None if spacing is None else (spacing[0], spacing[1]),
        slope=a.number(0x00281053),
        intercept=a.number(0x00281052),
        rescale_type=a.word(0x00281054),
        padding=padding,
    )
