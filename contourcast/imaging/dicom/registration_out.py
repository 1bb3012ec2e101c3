"""A Spatial Registration (PS3.3 A.39.1): where the planning CT is on the day of a CBCT."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SpatialRegistrationStorage

from contourcast.imaging.dicom.modules import (
    LO_BYTES,
    SERIES_NUMBER,
    add_body_part,
    add_our_series,
    add_patient,
    add_study,
    code,
    contributing_equipment,
    cut,
    date_text,
    new_object,
    references,
    required_source,
    save,
    series_reference,
    time_text,
)
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.source import SeriesSource
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume, require_same_frame

SIGNIFICANT_DIGITS: Final = 10  # < 1e-6 mm at 500 mm, and at most 16 bytes (CLINICAL_SERVICE §2.3)


def write_registration(
    path: Path,
    *,
    cbct_from_planning: RigidTransform,
    cbct: Volume,
    planning_ct: Volume,
    digest: str,
    made_at: datetime,
    comment: str = "",
    series_number: int = SERIES_NUMBER,
) -> str:
    """Writes a rigid registration with the CBCT's frame of reference as the registered one.

    Two items: the CBCT with the identity, the planning CT with ``cbct_from_planning``.

    Both items name their frame and their images. Where both images state *one* frame of reference
    although the patient moved between them, a frame cannot say whose points a matrix takes: then
    the items name their images alone (PS3.3 table C.20.2-1: either identifies an item), and the
    registered frame is a new one that is the CBCT's by the identity. So no reader can take the
    matrix for a motion of the shared frame within itself.

    ``series_number`` is that of the site's structure sets; a registration has the next.

    Returns:
        The SOP Instance UID.

    Raises:
        DicomError: One of the images has no source.
        FrameMismatchError: The transform does not lead from the planning CT to the CBCT.
    """
    cbct_source = required_source(cbct.source, "CBCT")
    planning_source = required_source(planning_ct.source, "planning CT")
    require_same_frame(cbct_from_planning.target_frame, cbct.frame_of_reference)
    require_same_frame(cbct_from_planning.source_frame, planning_ct.frame_of_reference)
    shared_frame = cbct.frame_of_reference == planning_ct.frame_of_reference

    dataset = new_object(
        SpatialRegistrationStorage, derived_uid(digest, "registration"), ExplicitVRLittleEndian
    )
    add_patient(dataset, cbct_source.patient)
    add_study(dataset, cbct_source.study)
    add_our_series(
        dataset,
        modality="REG",
        series_uid=derived_uid(digest, "registration series"),
        number=series_number + 1,  # beside the structure set's
        description="Contourcast registration",
        at=made_at,
    )
    add_body_part(dataset, cbct_source)
    dataset.FrameOfReferenceUID = (
        derived_uid(digest, "registered frame") if shared_frame else cbct.frame_of_reference
    )
    dataset.PositionReferenceIndicator = ""
    dataset.ContributingEquipmentSequence = [contributing_equipment()]
    _add_content(dataset, made_at)
    dataset.RegistrationSequence = [
        _registration_item(cbct, cbct_source, np.eye(4), by_images=shared_frame),
        _registration_item(
            planning_ct,
            planning_source,
            cbct_from_planning.matrix,
            by_images=shared_frame,
            found_from_images=True,
            comment=comment,
        ),
    ]
    _add_references(dataset, cbct_source, planning_source)
    save(path, dataset)
    return str(dataset.SOPInstanceUID)


def matrix_text(matrix: np.ndarray) -> list[str]:
    """The sixteen numbers of (3006,00C6), row by row."""
    return [f"{value:.{SIGNIFICANT_DIGITS}g}" for value in (matrix + 0.0).ravel()]


def _add_content(dataset: Dataset, made_at: datetime) -> None:
    """Content Identification macro and date (PS3.3 C.20.2, table 10-12)."""
    dataset.ContentDate, dataset.ContentTime = date_text(made_at), time_text(made_at)
    dataset.InstanceNumber = 1
    dataset.ContentLabel = "PLANNING_TO_CBCT"
    dataset.ContentDescription = "planning CT to the CBCT's frame of reference, rigid"
    dataset.ContentCreatorName = ""


def _registration_item(
    volume: Volume,
    source: SeriesSource,
    matrix: np.ndarray,
    *,
    by_images: bool,
    found_from_images: bool = False,
    comment: str = "",
) -> Dataset:
    """An item of Registration Sequence: takes this image's points to the registered frame."""
    one = Dataset()
    one.FrameOfReferenceTransformationMatrixType = "RIGID"
    one.FrameOfReferenceTransformationMatrix = matrix_text(matrix)
    registration = Dataset()
    if comment:
        registration.FrameOfReferenceTransformationComment = cut(comment, LO_BYTES)
    registration.RegistrationTypeCodeSequence = (
        [code("125024", "DCM", "Image Content-based Alignment")] if found_from_images else []
    )
    registration.MatrixSequence = [one]
    item = Dataset()
    if not by_images:
        item.FrameOfReferenceUID = volume.frame_of_reference
    item.ReferencedImageSequence = references(source)
    item.MatrixRegistrationSequence = [registration]
    return item


def _add_references(dataset: Dataset, cbct: SeriesSource, planning_ct: SeriesSource) -> None:
    """Common Instance Reference module (PS3.3 C.12.2): both series, by study."""
    here, elsewhere = [series_reference(cbct)], list[Dataset]()
    same_study = planning_ct.study.instance_uid == cbct.study.instance_uid
    (here if same_study else elsewhere).append(series_reference(planning_ct))
    dataset.ReferencedSeriesSequence = here
    if elsewhere:
        study = Dataset()
        study.StudyInstanceUID = planning_ct.study.instance_uid
        study.ReferencedSeriesSequence = elsewhere
        dataset.StudiesContainingOtherReferencedInstancesSequence = [study]
