"""An RT Plan without beams: which structure set is in use, and for how many fractions.

Simulated courses need no more of one (PS3.3 A.20, C.8.8.9, C.8.8.13): a department's plans come
from its planning system.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTPlanStorage, RTStructureSetStorage

from contourcast.imaging.dicom.modules import (
    add_our_series,
    add_patient,
    add_study,
    as_it_came,
    date_text,
    new_object,
    reference,
    save,
    time_text,
)
from contourcast.imaging.dicom.rtstruct_out import Approval
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.source import SeriesSource


def write_plan(
    path: Path,
    *,
    source: SeriesSource,
    frame_of_reference: str,
    structure_set_uid: str,
    fractions: int,
    label: str,
    digest: str,
    planned_at: datetime,
    approval: Approval,
) -> str:
    """Writes a plan.

    Args:
        path: Where.
        source: The planning CT.
        frame_of_reference: Its UID.
        structure_set_uid: SOP Instance UID of the set that was planned on.
        fractions: How many are planned.
        label: (300A,0002).
        digest: What the UIDs follow from.
        planned_at: Also of the series.
        approval: Whose, and when.

    Returns:
        The SOP Instance UID.
    """
    dataset = new_object(RTPlanStorage, derived_uid(digest, "plan"), ImplicitVRLittleEndian)
    add_patient(dataset, source.patient)
    add_study(dataset, source.study)
    add_our_series(
        dataset,
        modality="RTPLAN",
        series_uid=derived_uid(digest, "plan series"),
        number=1,
        description="Plan",
        at=planned_at,
    )
    dataset.FrameOfReferenceUID = frame_of_reference
    dataset.PositionReferenceIndicator = ""
    dataset.RTPlanLabel = label
    dataset.RTPlanDate, dataset.RTPlanTime = date_text(planned_at), time_text(planned_at)
    dataset.PlanIntent = "CURATIVE"
    dataset.RTPlanGeometry = "PATIENT"
    dataset.ReferencedStructureSetSequence = [reference(RTStructureSetStorage, structure_set_uid)]
    group = Dataset()
    group.FractionGroupNumber = 1
    group.NumberOfFractionsPlanned = fractions
    group.NumberOfBeams = group.NumberOfBrachyApplicationSetups = 0
    dataset.FractionGroupSequence = [group]
    dataset.ApprovalStatus = approval.status
    if approval.at is not None:
        dataset.ReviewDate, dataset.ReviewTime = date_text(approval.at), time_text(approval.at)
        as_it_came(dataset, "ReviewerName", approval.reviewer)
    save(path, dataset)
    return str(dataset.SOPInstanceUID)
