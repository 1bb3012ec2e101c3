"""De-identified copies for research: PS3.15 Annex E, basic profile, by a list of what may stay.

The profile is a list of what must go; a vendor's next attribute is on no list. So here everything
goes but what is known to be harmless: numbers, codes, UIDs and dates of the groups that say what
was scanned, drawn, planned and registered, and a few words. Options, as each file says in
(0012,0064): dates are shifted by whole weeks, one number for each patient, so that intervals and
weekdays stay; ROI names are cleaned. UIDs are replaced, the same everywhere, by digests with the
site's key. Pixels are decoded and written anew, so that nothing rides along in unused bits or in
comments of a codec. Secondary Captures, reports and whatever else may show a name never leave.

Faces can be drawn from the pixels of a head; nothing is done about that (no option 113102).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.config import disable_value_validation
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from contourcast.imaging.dicom.instance import (
    CT_IMAGE,
    SPATIAL_REGISTRATION,
    STRUCTURE_SET,
    Header,
    read_header,
)
from contourcast.imaging.dicom.pixels import read_stored
from contourcast.imaging.errors import ContourcastError, DicomError
from contourcast.service.problems import SettingsError

RT_PLAN: Final = "1.2.840.10008.5.1.4.1.1.481.5"
LEAVES: Final = {
    CT_IMAGE: "CT",
    STRUCTURE_SET: "RTSTRUCT",
    RT_PLAN: "RTPLAN",
    SPATIAL_REGISTRATION: "REG",
}
KEY_BYTES: Final = 32
PIXEL_DATA: Final = 0x7FE00010

# PS3.16 CID 7050
METHODS: Final = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113105", "Clean Descriptors Option"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)
METHOD: Final = "Contourcast: all but listed attributes removed"

# Groups in which every number, code, UID, date and sequence stays: acquisition, relationship, image
# presentation, registration, structure set, plan, approval.
GROUPS: Final = frozenset({0x0018, 0x0020, 0x0028, 0x0064, 0x0070, 0x3006, 0x300A, 0x300C, 0x300E})
VALUES: Final = frozenset(
    {
        "US",
        "SS",
        "UL",
        "SL",
        "UV",
        "SV",
        "FL",
        "FD",
        "DS",
        "IS",
        "AT",
        "CS",
        "UI",
        "SQ",
        "DA",
        "DT",
        "TM",
    }
)
# Of the other groups, and words that stay as they are.
KEPT: Final = frozenset(
    {
        "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "SeriesDate", "AcquisitionDate",
        "ContentDate", "StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime", "Modality",
        "Manufacturer", "ManufacturerModelName", "ReferencedSOPClassUID",
        "ReferencedSOPInstanceUID", "ReferencedImageSequence", "ReferencedSeriesSequence",
        "ReferencedInstanceSequence", "StudiesContainingOtherReferencedInstancesSequence",
        "ConvolutionKernel", "RescaleType",
    }
)  # fmt: skip
# Codes stay where the whole world knows them.
CODES: Final = frozenset({"CodeValue", "CodingSchemeDesignator", "CodeMeaning"})
SCHEMES: Final = frozenset({"DCM", "SCT", "SRT", "SNM3", "UCUM", "99SDM"})
# Type 2: there, and empty.
EMPTIED: Final = frozenset(
    {
        "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName",
        "PositionReferenceIndicator", "OperatorsName", "ROIInterpreter", "ReviewerName",
        "ContentDescription", "ContentCreatorName", "TreatmentMachineName",
    }
)  # fmt: skip
# Type 1 words that say nothing.
REPLACED: Final = {"StructureSetLabel": "EXPORT", "RTPlanLabel": "EXPORT"}
# Numbers and codes of those groups that tell of a person, an order or a machine all the same
# (PS3.15 Table E.1-1).
DROPPED: Final = frozenset(
    {
        "IssueDateOfImagingServiceRequest", "PatientSexNeutered", "DateOfLastCalibration",
        "TimeOfLastCalibration", "PatientBreedCodeSequence", "RequestAttributesSequence",
        "OperatorIdentificationSequence", "ModifyingDeviceID",
    }
)  # fmt: skip
WORDS: Final = frozenset({"LO", "SH", "PN", "LT", "ST", "UT", "UC", "UR", "AE", "AS"})
PLAIN_CODE: Final = re.compile(r"[A-Za-z0-9_ .-]{0,16}")
PLAIN_TIME: Final = re.compile(r"[0-9.:]{0,16}")
# Of which ROI names may be made; a word that is not here may be somebody's name.
ROI_WORDS: Final = frozenset(
    {
        "gtv", "igtv", "ctv", "ictv", "ptv", "itv", "prv", "oar", "t", "p", "n", "m", "l", "r",
        "lt", "rt", "left", "right", "both", "upper", "lower", "total", "all", "avg", "ave",
        "mip", "phase", "body", "external", "skin", "couch", "lung", "lungs", "heart", "aorta",
        "oesophagus", "esophagus", "trachea", "bronchus", "bronchial", "tree", "cord", "spinal",
        "canal", "brachial", "plexus", "rib", "ribs", "chest", "wall", "liver", "stomach",
        "kidney", "kidneys", "spleen", "bowel", "bladder", "rectum", "prostate", "femur", "head",
        "brain", "brainstem", "parotid", "larynx", "mandible", "thyroid", "breast", "tumor",
        "tumour", "node", "nodes", "nodal", "primary", "boost", "opt", "ring", "low", "high",
        "dose", "ev", "iso", "isocenter", "isocentre", "marker", "fiducial", "prior", "planning",
        "today", "cbct", "ct", "proposal", "contourcast", "translation", "rigid", "dir",
        "umamba", "diff", "approved", "edited", "mm", "cm",
    }
)  # fmt: skip
ROI_PARTS: Final = re.compile(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class Pseudonyms:
    """What stands for what, by the site's key; without the key nobody can tell, or try.

    Args:
        key: A secret of the site of 32 bytes or more. The same key gives the same pseudonyms, so
            that what is exported later fits to what was exported before.

    Raises:
        SettingsError: It is too short to be one.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) < KEY_BYTES:
            raise SettingsError(
                f"the key for pseudonyms has fewer than {KEY_BYTES} bytes",
                remedy="make one: head -c 32 /dev/urandom > FILE, and keep it as long as the data",
            )

    def uid(self, uid: str) -> str:
        """Another UID for one that is of an object; one that the standard gave a meaning stays."""
        if not uid or UID(uid).name != uid:
            return uid
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def patient(self, header: Header) -> str:
        """What the patient of an object is called."""
        return f"CC-{self._digest('patient', _identity(header)).hex()[:12].upper()}"

    def shift(self, header: Header) -> timedelta:
        """How far the patient's dates are moved back: 1 to 520 whole weeks."""
        number = int.from_bytes(self._digest("dates", _identity(header))[:4], "big")
        return timedelta(weeks=1 + number % 520)

    def _digest(self, kind: str, what: str) -> bytes:
        return hmac.new(self.key, f"{kind}\0{what}".encode(), hashlib.sha256).digest()


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export gave out.

    Attributes:
        paths: New files, in the order of the old ones.
        patients: How many.
        refused: What stayed: its UID (ours, of the original) and why.
    """

    paths: tuple[Path, ...]
    patients: int
    refused: tuple[tuple[str, str], ...]


def export(files: Iterable[Path], into: Path, *, pseudonyms: Pseudonyms) -> Exported:
    """Writes de-identified copies as ``PATIENT/SERIES/INSTANCE.dcm``; one that may not leave stays.

    Args:
        files: DICOM files as they came in.
        into: A folder; files of an earlier export with the same key are written again, the same.
        pseudonyms: Of the site.
    """
    paths, refused, patients = [], [], set()
    for path in files:
        try:
            dataset = deidentify(path, pseudonyms=pseudonyms)
        except ContourcastError as error:
            refused.append((_uid_of(path), error.cause))
            continue
        folder = into / str(dataset.PatientID) / str(dataset.SeriesInstanceUID)
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{dataset.SOPInstanceUID}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
        patients.add(str(dataset.PatientID))
    return Exported(paths=tuple(paths), patients=len(patients), refused=tuple(refused))


def deidentify(path: Path, *, pseudonyms: Pseudonyms) -> Dataset:
    """One object without anything that says whose it is.

    Not for several threads: pydicom would warn of odd values and quote them, so its warnings are
    off meanwhile.

    Raises:
        DicomError: It is of a kind that never leaves, says that text is burned into its pixels, or
            cannot be read.
        ContourcastError: A word of the patient's identity is still in it (a bug, which must not
            leave the house).
    """
    with disable_value_validation():
        return _deidentified(path, pseudonyms)


def _deidentified(path: Path, pseudonyms: Pseudonyms) -> Dataset:
    header = read_header(path)
    if header.sop_class_uid not in LEAVES:
        raise DicomError(
            "objects of this kind are never given out: pictures and texts may show a name",
            tag="(0008,0016) SOP Class UID",
            uid=header.sop_class_uid,
            remedy="export CT images, RT Structure Sets, RT Plans and Spatial Registrations",
        )
    original = pydicom.dcmread(path)
    if str(original.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise DicomError(
            "text is burned into the pixels of this image",
            tag="(0028,0301) Burned In Annotation",
            uid=header.sop_instance_uid,
        )
    name = pseudonyms.patient(header)
    try:
        correct_ambiguous_vr(original, original.original_encoding[1] is not False)
        rules = _Rules(pseudonyms=pseudonyms, shift=pseudonyms.shift(header))
        clean = _cleaned(original, rules)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise DicomError(
            "an attribute of the file cannot be read",
            uid=header.sop_instance_uid,
            remedy="export the original again from where it came",
        ) from error
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.Modality = LEAVES[header.sop_class_uid]
    clean.PatientName = clean.PatientID = name
    for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        setattr(clean, keyword, "")
    clean.ReferringPhysicianName = ""
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = METHOD
    clean.DeidentificationMethodCodeSequence = [_code(*method) for method in METHODS]
    clean.LongitudinalTemporalInformationModified = "MODIFIED"
    if header.pixels is not None:
        stored = read_stored(path, header)
        clean.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes() + (
            b"\0" if stored.nbytes % 2 else b""
        )
        clean["PixelData"].VR = "OW" if stored.itemsize > 1 else "OB"
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = UID(clean.SOPClassUID)
    clean.file_meta.MediaStorageSOPInstanceUID = UID(clean.SOPInstanceUID)
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _require_clean(clean, original)
    return clean


@dataclass(frozen=True, kw_only=True)
class _Rules:
    pseudonyms: Pseudonyms
    shift: timedelta


def _cleaned(dataset: Dataset, rules: _Rules) -> Dataset:
    """Those elements that may stay, cleaned; the same for the items of its sequences."""
    clean = Dataset()
    for element in dataset:
        value = _value(element, rules, dataset)
        if value is not None:
            clean.add(DataElement(element.tag, element.VR, value))
    return clean


def _value(element: DataElement, rules: _Rules, dataset: Dataset) -> Any:
    """The new value of an element; None when it goes."""
    keyword, vr = keyword_for_tag(element.tag), str(element.VR)
    if element.tag.is_private or not keyword or keyword in DROPPED or element.tag == PIXEL_DATA:
        return None
    if keyword in EMPTIED:
        return ""
    if keyword in REPLACED:
        return REPLACED[keyword]
    if keyword == "ROIName":
        return clean_roi_name(str(element.value or ""), number=dataset.get("ROINumber"))
    if keyword in CODES:
        known = str(dataset.get("CodingSchemeDesignator", "")) in SCHEMES
        return element.value if known else None
    if keyword not in KEPT and not (element.tag.group in GROUPS and vr in VALUES):
        return None
    if vr == "SQ":
        return Sequence([_cleaned(item, rules) for item in element.value])
    if vr == "UI":
        return _each(element.value, lambda uid: rules.pseudonyms.uid(str(uid)))
    if vr == "TM":
        return _each(element.value, lambda time: time if PLAIN_TIME.fullmatch(str(time)) else "")
    if vr in ("DA", "DT"):
        return _each(element.value, lambda date: _shifted(str(date), rules.shift))
    if vr == "CS":
        return _each(element.value, lambda code: code if PLAIN_CODE.fullmatch(code) else "")
    return element.value


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, str) or value is None:
        return change(value or "")
    return [change(one) for one in value]


def _shifted(date: str, shift: timedelta) -> str:
    """A DA or DT text on an earlier day; what is no date says nothing."""
    day, rest = date[:8], date[8:]
    try:
        moved = datetime.strptime(day, "%Y%m%d") - shift
    except (ValueError, OverflowError):
        return ""
    return f"{moved:%Y%m%d}{rest}" if re.fullmatch(r"[0-9.+-]*", rest) else f"{moved:%Y%m%d}"


def clean_roi_name(name: str, *, number: object) -> str:
    """The name if it is made of words for targets and organs, else ``ROI`` and its number."""
    for part in ROI_PARTS.findall(name):
        known = part.casefold() in ROI_WORDS if part.isalpha() else not part[3:]
        if not known or not part.isascii():
            return f"ROI {number}"
    return name if name.strip() else f"ROI {number}"


def _require_clean(clean: Dataset, original: Dataset) -> None:
    """A second look by other means: no word of the identity is in any word that leaves.

    Raises:
        ContourcastError: One is.
    """
    forbidden = {
        word
        for keyword in ("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber")
        for word in _split(str(original.get(keyword, "") or ""))
        if len(word) > 2
    }
    for said in _words(clean):
        if forbidden & set(_split(said)):
            raise ContourcastError(
                "a word of the patient's identity is still in what would leave",
                uid=str(original.get("SOPInstanceUID", "")),
                remedy="this file stays; tell whoever looks after the software",
            )


def _words(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _words(item)
        elif element.VR in WORDS and not element.keyword.startswith(("Deidentification", "Code")):
            yield str(element.value)


def _split(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _identity(header: Header) -> str:
    """By the ID alone, for objects of one patient often leave out its issuer; else by the study."""
    return header.patient.patient_id.strip(" \0") or f"\0{header.study_instance_uid}"


def _uid_of(path: Path) -> str:
    try:
        return read_header(path).sop_instance_uid
    except ContourcastError:
        return ""
