"""An Encapsulated PDF (PS3.3 A.45.1): a report for departments that file paper."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from contourcast.imaging.dicom.modules import (
    SERIES_NUMBER,
    ST_BYTES,
    add_our_series,
    add_patient,
    add_study,
    contributing_equipment,
    cut,
    date_text,
    new_object,
    reference,
    save,
    time_text,
)
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import InputError
from contourcast.imaging.source import Patient, Study

PDF_BEGINS: Final = b"%PDF-"


def write_pdf(
    path: Path,
    *,
    document: bytes,
    title: str,
    patient: Patient,
    study: Study,
    made_of: Sequence[tuple[str, str]],
    digest: str,
    made_at: datetime,
    series_number: int = SERIES_NUMBER,
) -> str:
    """Writes a PDF into the study of the scan that it is about.

    The same input gives the same bytes.

    Args:
        path: The file.
        document: The PDF.
        title: Of the document.
        patient: As the scan has it.
        study: As the scan has it.
        made_of: SOP class and instance of the objects that it reports on.
        digest: Of all that the report was made of; the UIDs follow from it.
        made_at: When.
        series_number: Of the site's structure sets.

    Returns:
        The SOP Instance UID.

    Raises:
        InputError: The document is no PDF.
    """
    if not document.startswith(PDF_BEGINS):
        raise InputError("what shall be filed as a PDF is none")
    dataset = new_object(
        EncapsulatedPDFStorage, derived_uid(digest, "report"), ExplicitVRLittleEndian
    )
    add_patient(dataset, patient)
    add_study(dataset, study)
    add_our_series(
        dataset,
        modality="DOC",
        series_uid=derived_uid(digest, "report series"),
        number=series_number + 3,  # beside structure set, registration and picture
        description="Contourcast report",
        at=made_at,
    )
    del dataset.OperatorsName  # no attribute of a series of documents (PS3.3 C.24.1)
    dataset.ConversionType = "WSD"
    dataset.ContributingEquipmentSequence = [contributing_equipment()]
    # Encapsulated Document module (PS3.3 C.24.2)
    dataset.InstanceNumber = 1
    dataset.ContentDate, dataset.ContentTime = date_text(made_at), time_text(made_at)
    dataset.AcquisitionDateTime = ""  # of the scan, not of its report
    dataset.BurnedInAnnotation = "YES"
    dataset.SourceInstanceSequence = [reference(*one) for one in made_of]
    dataset.DocumentTitle = cut(title, ST_BYTES)
    dataset.ConceptNameCodeSequence = []
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    dataset.EncapsulatedDocumentLength = len(document)
    save(path, dataset)
    return str(dataset.SOPInstanceUID)
