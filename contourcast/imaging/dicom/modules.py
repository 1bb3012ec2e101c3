"""The modules of PS3.3 annex C that everything we write has in common, and how text is written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import Dataset, config, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID

from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import DicomError
from contourcast.imaging.files import write_atomically
from contourcast.imaging.source import Patient, SeriesSource, Study

MANUFACTURER: Final = "Contourcast"
VERSION: Final = version("contourcast")
IMPLEMENTATION_CLASS_UID: Final = derived_uid(MANUFACTURER, "implementation class")
# Lengths of values, PS3.5 table 6.2-1 (of text in characters; never more bytes, to be sure).
CS_BYTES: Final = 16
DS_BYTES: Final = 16
SH_BYTES: Final = 16
LO_BYTES: Final = 64
ST_BYTES: Final = 1024
SERIES_NUMBER: Final = 9001  # of structure sets, above those of scanners (CLINICAL_SERVICE §2.2)
DETACHED_STUDY_CLASS_UID: Final = "1.2.840.10008.3.1.2.3.1"  # of a referenced study (PS3.6)


def ds_text(number: float) -> str:
    """A number as Decimal String: the shortest that parses to it again, in at most 16 bytes.

    A number that came from a Decimal String goes back as one that parses to the very same. One
    that needs more digits than fit is rounded to those that do.

    >>> ds_text(484.910003662109), ds_text(-1.0), ds_text(1 / 3), ds_text(-1 / 3)
    ('484.910003662109', '-1', '.333333333333333', '-.33333333333333')
    """
    text = _without_ornament(repr(float(number)))
    digits = DS_BYTES
    while len(text) > DS_BYTES:
        text = _without_ornament(f"{number:.{digits}g}")
        digits -= 1
    return text


def _without_ornament(text: str) -> str:
    """``-0.5`` as ``-.5``, ``3.0`` as ``3``, ``1e-05`` as ``1e-5``."""
    mantissa, e, exponent = text.partition("e")
    mantissa = mantissa.removesuffix(".0")
    if len(mantissa) > DS_BYTES - 1:
        mantissa = (
            mantissa.replace("0.", ".", 1) if mantissa.lstrip("-").startswith("0.") else mantissa
        )
    return f"{mantissa}e{int(exponent)}" if e else "0" if mantissa == "-0" else mantissa


def cut(text: str, bytes_at_most: int) -> str:
    """The beginning of a text that fits, no character cut in two (UTF-8), no blank at the end.

    A backslash would make two values of one, and control characters are no text: both become
    blanks.
    """
    plain = "".join(" " if c == "\\" or ord(c) < 32 else c for c in text)
    return plain.encode()[:bytes_at_most].decode(errors="ignore").strip()


def date_text(moment: datetime) -> str:
    """A date as DA."""
    return moment.strftime("%Y%m%d")


def time_text(moment: datetime) -> str:
    """A time of day as TM."""
    return moment.strftime("%H%M%S")


def new_object(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Dataset:
    """An object with File Meta Information and SOP Common module, its text in UTF-8."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = cut(f"CCAST_{VERSION}", SH_BYTES)
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = sop_instance_uid
    return dataset


def add_patient(dataset: Dataset, patient: Patient) -> None:
    """Patient module (PS3.3 C.7.1.1), as it came: an archive files by it."""
    as_it_came(dataset, "PatientName", patient.name)
    as_it_came(dataset, "PatientID", patient.patient_id)
    if patient.issuer:
        as_it_came(dataset, "IssuerOfPatientID", patient.issuer)
    as_it_came(dataset, "PatientBirthDate", patient.birth_date)
    as_it_came(dataset, "PatientSex", patient.sex)
    for keyword, text in patient.further:
        as_it_came(dataset, keyword, text)
    if patient.deidentified_by:
        dataset.DeidentificationMethodCodeSequence = [code(*c) for c in patient.deidentified_by]


def add_study(dataset: Dataset, study: Study) -> None:
    """General Study module (PS3.3 C.7.2.1), as it came."""
    dataset.StudyInstanceUID = study.instance_uid
    as_it_came(dataset, "StudyDate", study.date)
    as_it_came(dataset, "StudyTime", study.time)
    as_it_came(dataset, "StudyID", study.study_id)
    as_it_came(dataset, "AccessionNumber", study.accession_number)
    as_it_came(dataset, "ReferringPhysicianName", study.referring_physician)
    if study.description:
        as_it_came(dataset, "StudyDescription", study.description)
    for keyword, text in study.further:
        as_it_came(dataset, keyword, text)


def add_our_series(
    dataset: Dataset, *, modality: str, series_uid: str, number: int, description: str, at: datetime
) -> None:
    """Series and equipment modules (PS3.3 C.7.3.1, C.8.8.1, C.7.5.1) of what we made."""
    dataset.Modality = modality
    dataset.SeriesInstanceUID = series_uid
    dataset.SeriesNumber = number
    dataset.SeriesDate, dataset.SeriesTime = date_text(at), time_text(at)
    if description:
        dataset.SeriesDescription = cut(description, LO_BYTES)
    dataset.OperatorsName = ""
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date_text(at), time_text(at)
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MANUFACTURER
    dataset.SoftwareVersions = VERSION
    if at.tzinfo is not None:
        # It is said of the times that we write. Those of the study are the scanner's own, letter by
        # letter, since archives compare them: where the images state another offset, they are in
        # that one.
        dataset.TimezoneOffsetFromUTC = at.strftime("%z")


def add_body_part(dataset: Dataset, source: SeriesSource) -> None:
    """The body part as the images state it; else a laterality that is known to be unknown.

    One of the two is asked for (General Series module, type 2C); most body parts are not paired.
    """
    if source.body_part:
        as_it_came(dataset, "BodyPartExamined", source.body_part)
    else:
        dataset.Laterality = ""


def as_it_came(dataset: Dataset, keyword: str, value: str) -> None:
    """Sets an attribute to text of another's, without judging its form.

    Rules broken at the source (a Study ID of 20 characters) are kept, for else the object would
    not be filed where the images are. Text where a number belongs is written empty.
    """
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = dictionary_VR(tag)
    try:
        dataset[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)
    except ValueError:
        dataset[tag] = DataElement(tag, vr, "")


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3 table 8.8-1)."""
    item = Dataset()
    as_it_came(item, "CodeValue", value)
    as_it_came(item, "CodingSchemeDesignator", scheme)
    as_it_came(item, "CodeMeaning", meaning)
    return item


def reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """An item that names an instance (PS3.3 table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def references(series: SeriesSource) -> Sequence[Dataset]:
    """An item for every slice of a series."""
    return [reference(series.sop_class_uid, s.sop_instance_uid) for s in series.slices]


def series_reference(series: SeriesSource) -> Dataset:
    """An item that names a series and every slice of it (Common Instance Reference, C.12.2)."""
    item = Dataset()
    item.SeriesInstanceUID = series.series_instance_uid
    item.ReferencedInstanceSequence = references(series)
    return item


def contributing_equipment() -> Dataset:
    """The item that says that a program worked on this (PS3.3 C.12.1.1.5)."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = MANUFACTURER
    item.SoftwareVersions = VERSION
    return item


def required_source(source: SeriesSource | None, what: str) -> SeriesSource:
    """The DICOM side of a volume, without which nothing can refer to it.

    Raises:
        DicomError: The volume was made in memory.
    """
    if source is None:
        raise DicomError(
            f"the {what} has no DICOM identity, so nothing can refer to it",
            remedy="read it from DICOM, or give it one with series_source",
        )
    return source


def save(path: Path, dataset: Dataset) -> None:
    """Writes the file, whole or not at all; the same data set gives the same bytes."""
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    write_atomically(path, buffer.getvalue())
