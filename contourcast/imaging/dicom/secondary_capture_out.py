"""A Secondary Capture Image (PS3.3 A.8.1): one picture for viewers that show no contours."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from contourcast.imaging.dicom.modules import (
    SERIES_NUMBER,
    ST_BYTES,
    add_our_series,
    add_patient,
    add_study,
    as_it_came,
    contributing_equipment,
    cut,
    date_text,
    new_object,
    save,
    time_text,
)
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import InputError
from contourcast.imaging.source import Patient, Study

WORKSTATION: Final = "WSD"  # how the picture came about (PS3.3 C.8.6.1)
SIDE_AT_MOST: Final = 65535  # Rows and Columns are US


def write_secondary_capture(
    path: Path,
    *,
    picture_rgb: UInt8[np.ndarray, "rows columns 3"],
    patient: Patient,
    study: Study,
    body_part: str,
    digest: str,
    made_at: datetime,
    description: str = "",
    series_number: int = SERIES_NUMBER,
) -> str:
    """Writes a picture, uncompressed RGB of 8 bits, into the study of the scan that it shows.

    It says that text is burned in, for a verdict is; who draws it leaves out who the patient is.
    The same input gives the same bytes.

    Args:
        path: The file.
        picture_rgb: Row by row from the top.
        patient: As the scan has it.
        study: As the scan has it.
        body_part: As the scan has it; empty: unknown.
        digest: Of all that the picture was made of; the UIDs follow from it.
        made_at: When.
        description: How it came about (0008,2111).
        series_number: Of the site's structure sets.

    Returns:
        The SOP Instance UID.

    Raises:
        InputError: The picture has no pixels, or more than an image can have.
    """
    rows, columns, _ = picture_rgb.shape
    if not 0 < min(rows, columns) <= max(rows, columns) <= SIDE_AT_MOST:
        raise InputError(f"a picture of {columns} x {rows} pixels is no image")
    dataset = new_object(
        SecondaryCaptureImageStorage,
        derived_uid(digest, "secondary capture"),
        ExplicitVRLittleEndian,
    )
    add_patient(dataset, patient)
    add_study(dataset, study)
    add_our_series(
        dataset,
        modality="OT",
        series_uid=derived_uid(digest, "secondary capture series"),
        number=series_number + 2,  # beside structure set and registration
        description="Contourcast picture",
        at=made_at,
    )
    if body_part:
        as_it_came(dataset, "BodyPartExamined", body_part)
    else:
        dataset.Laterality = ""
    dataset.ConversionType = WORKSTATION
    dataset.ContributingEquipmentSequence = [contributing_equipment()]
    _add_image(dataset, made_at, description)
    _add_pixels(dataset, picture_rgb)
    save(path, dataset)
    return str(dataset.SOPInstanceUID)


def _add_image(dataset: Dataset, made_at: datetime, description: str) -> None:
    """General Image and SC Image modules (PS3.3 C.7.6.1, C.8.6.2)."""
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = None  # several planes in one picture
    dataset.ContentDate, dataset.ContentTime = date_text(made_at), time_text(made_at)
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "YES"
    dataset.LossyImageCompression = "00"
    if description:
        dataset.DerivationDescription = cut(description, ST_BYTES)


def _add_pixels(dataset: Dataset, picture_rgb: UInt8[np.ndarray, "rows columns 3"]) -> None:
    """Image Pixel module (PS3.3 C.7.6.3)."""
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns, _ = picture_rgb.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    content = np.ascontiguousarray(picture_rgb).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
