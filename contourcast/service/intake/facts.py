"""What is known of what came in, as far as deciding needs it, and nothing that must be read again.

Facts are plain and immutable; whoever keeps them may keep them anywhere. Times that DICOM states
are without zone, as the machines of one department write them, and are compared with each other
alone. What is said of the patient never shows in a repr.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np

from contourcast.imaging.dicom.instance import CT_IMAGE, Header
from contourcast.imaging.dicom.registration_in import SpatialRegistration
from contourcast.imaging.plan import XYZ, Plan
from contourcast.imaging.source import Patient
from contourcast.imaging.structures import StructureSet

# (300A,000A) Plan Intent, the defined terms that mean no patient (PS3.3 C.8.8.9).
NO_TREATMENT: Final = frozenset({"VERIFICATION", "MACHINE_QA", "RESEARCH", "SERVICE"})
OURS: Final = "contourcast"  # (0008,0070) Manufacturer of what we write, letter case aside


@dataclass(frozen=True, kw_only=True)
class PatientKey:
    """Who, by number: two keys are equal when number and issuer are.

    Attributes:
        patient_id: (0010,0020), trimmed.
        issuer: (0010,0021), trimmed; empty when the file does not say.
        name: To contradict with, never to find by.
        birth_date: DA text, likewise.
    """

    patient_id: str = field(repr=False)
    issuer: str = field(default="", repr=False)
    name: str = field(default="", repr=False, compare=False)
    birth_date: str = field(default="", repr=False, compare=False)

    @classmethod
    def of(cls, patient: Patient) -> PatientKey:
        """The key of what a reader found."""
        return cls(
            patient_id=patient.patient_id.strip(" \0"),
            issuer=patient.issuer.strip(" \0"),
            name=patient.name.strip(" \0"),
            birth_date=patient.birth_date.strip(" \0"),
        )

    def contradicts(self, other: PatientKey) -> str:
        """In what two keys cannot be one person: ``name``, ``birth date``, both, or nothing.

        What one of them leaves empty contradicts nothing; nor does a name that is the beginning
        of the other, in whatever letters, accents and punctuation.
        """
        found = []
        if not _names_agree(self.name, other.name):
            found.append("name")
        if self.birth_date and other.birth_date and self.birth_date != other.birth_date:
            found.append("birth date")
        return " and ".join(found)

    def confirms(self, other: PatientKey) -> bool:
        """Whether name and birth date are stated by both, and agree."""
        stated = all((self.name, other.name, self.birth_date, other.birth_date))
        return stated and not self.contradicts(other)


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """A CT series, whole or not.

    Attributes:
        acquired_at: When it was taken, as the series says, else the study; None: neither.
        image_type: (0008,0008) of a slice that is no scout.
        sender: AE title that sent it; empty when it came by another door.
        positions_mm: Of its slices along their normal, ascending, scouts aside.
        box_xyz_mm: Lowest and highest corner of the outermost pixel centres, LPS mm; None where
            the files do not say where they lie.
    """

    series_uid: str
    study_uid: str
    patient: PatientKey
    modality: str
    sop_class_uid: str
    frame_of_reference: str
    acquired_at: datetime | None = None
    manufacturer: str = ""
    model: str = ""
    description: str = field(default="", repr=False)
    image_type: tuple[str, ...] = ()
    sender: str = ""
    sop_uids: frozenset[str] = field(default=frozenset(), repr=False)
    positions_mm: tuple[float, ...] = field(default=(), repr=False)
    box_xyz_mm: tuple[XYZ, XYZ] | None = None

    @property
    def is_ct(self) -> bool:
        """Whether it is single-frame CT, the only kind that is carried to or from."""
        return self.sop_class_uid == CT_IMAGE and self.modality == "CT"

    def holds(self, point_xyz_mm: XYZ) -> bool | None:
        """Whether a point of its frame lies within its box; None when nobody knows."""
        if self.box_xyz_mm is None:
            return None
        low, high = self.box_xyz_mm
        return all(a <= v <= b for a, v, b in zip(low, point_xyz_mm, high, strict=True))


@dataclass(frozen=True, kw_only=True)
class RoiFacts:
    """A ROI of a structure set.

    Attributes:
        loops: Contours that enclose an area; none: nothing to carry.
    """

    number: int
    name: str
    interpreted_type: str = ""
    loops: int = 0


@dataclass(frozen=True, kw_only=True)
class StructureSetFacts:
    """An RT Structure Set.

    Attributes:
        drawn_at: As the set says; None: it does not.
        ours: Whether this service wrote it.
    """

    sop_uid: str
    series_uid: str
    patient: PatientKey
    frame_of_reference: str
    rois: tuple[RoiFacts, ...]
    drawn_at: datetime | None = None
    approval_status: str = ""
    ours: bool = False
    referenced_series_uids: tuple[str, ...] = ()
    referenced_sop_uids: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def approved(self) -> bool:
        """Whether a person stands for it."""
        return self.approval_status == "APPROVED"

    @property
    def usable(self) -> bool:
        """Whether it may serve as planning structures: not rejected, no unsigned proposal of ours.

        A set that says nothing of its approval may: most planning systems leave that to the plan.
        """
        return self.approval_status != "REJECTED" and (self.approved or not self.ours)

    def drawn_on(self, series: SeriesFacts) -> bool:
        """Whether it was drawn on that scan: it names slices, or the series, or no image at all.

        The frames of reference must be the same in each case.
        """
        if not series.frame_of_reference or self.frame_of_reference != series.frame_of_reference:
            return False
        if self.referenced_sop_uids & series.sop_uids:
            return True
        if self.referenced_series_uids:
            return series.series_uid in self.referenced_series_uids
        return not self.referenced_sop_uids


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """An RT Plan.

    Attributes:
        intent: (300A,000A), as the file says it.
        fractions: Planned; None when the file does not say.
    """

    sop_uid: str
    patient: PatientKey
    structure_set_uid: str
    frame_of_reference: str = ""
    isocentres_xyz_mm: tuple[XYZ, ...] = ()
    planned_at: datetime | None = None
    intent: str = ""
    fractions: int | None = None
    approval_status: str = ""

    @property
    def approved(self) -> bool:
        """Whether a person stands for it."""
        return self.approval_status == "APPROVED"

    @property
    def treats(self) -> bool:
        """Whether a patient may be treated by it: not rejected, not for a phantom or a machine."""
        return self.approval_status != "REJECTED" and self.intent not in NO_TREATMENT


@dataclass(frozen=True, kw_only=True)
class RegistrationFacts:
    """A Spatial Registration: which frames of reference it ties.

    Attributes:
        made_at: As its series says; None: it does not.
        single: Whether each frame has one result, so that nobody has to choose.
    """

    sop_uid: str
    patient: PatientKey
    frames: tuple[str, ...]
    made_at: datetime | None = None
    single: bool = True

    def ties(self, one: str, other: str) -> bool:
        """Whether it relates two frames that are not the same."""
        return bool(one and other) and one != other and {one, other} <= set(self.frames)


@dataclass(frozen=True, kw_only=True)
class CourseFacts:
    """What earlier fractions were matched to.

    Attributes:
        last_fraction_at: When the newest of its CBCTs was acquired.
    """

    planning_ct_uid: str
    structure_set_uid: str
    last_fraction_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class PriorFacts:
    """A contour that a person signed on an earlier CBCT.

    Attributes:
        planning_ct_uid: Series of the planning CT whose course it belongs to.
        planning_structure_set_uid: The set from which the ROI was first carried.
        roi_number: Of the ROI in that planning set.
        structure_set_uid: SOP Instance UID of the signed set.
        cbct_uid: Series that it was drawn on.
        cbct_acquired_at: When that was taken.
        decision: Counts signatures of the service; of one CBCT, the highest stands.
    """

    planning_ct_uid: str
    planning_structure_set_uid: str
    roi_number: int
    structure_set_uid: str
    cbct_uid: str
    cbct_acquired_at: datetime | None
    decision: int


def series_facts(headers: Sequence[Header], *, sender: str = "") -> SeriesFacts:
    """The facts of one series, from the headers of its instances in any order."""
    pictures = [h for h in headers if not h.is_localizer] or list(headers)
    first = min(pictures, key=lambda h: h.sop_instance_uid)
    positions = [p for h in pictures if (p := position_along_normal_mm(h)) is not None]
    return SeriesFacts(
        series_uid=first.series_instance_uid,
        study_uid=first.study_instance_uid,
        patient=PatientKey.of(first.patient),
        modality=first.modality,
        sop_class_uid=first.sop_class_uid,
        frame_of_reference=first.frame_of_reference,
        acquired_at=moment(first.series_date, first.series_time)
        or moment(first.study.date, first.study.time),
        manufacturer=first.manufacturer,
        model=first.model,
        description=first.series_description,
        image_type=first.image_type,
        sender=sender.strip(),
        sop_uids=frozenset(h.sop_instance_uid for h in headers),
        positions_mm=tuple(sorted(positions)),
        box_xyz_mm=_box(pictures),
    )


def structure_set_facts(
    structure_set: StructureSet, header: Header, *, drawn_at: datetime | None = None
) -> StructureSetFacts:
    """The facts of a structure set.

    Args:
        structure_set: What the reader found.
        header: Of the same file; it says who wrote it.
        drawn_at: Structure Set Date and Time; None: those of its series stand for them.
    """
    return StructureSetFacts(
        sop_uid=structure_set.sop_instance_uid,
        series_uid=structure_set.series_instance_uid,
        patient=PatientKey.of(structure_set.patient),
        frame_of_reference=structure_set.frame_of_reference,
        rois=tuple(
            RoiFacts(
                number=roi.number,
                name=roi.name.strip(),
                interpreted_type=roi.interpreted_type,
                loops=len(roi.loops),
            )
            for roi in structure_set.rois
        ),
        drawn_at=drawn_at or moment(header.series_date, header.series_time),
        approval_status=structure_set.approval_status,
        ours=header.manufacturer.strip().casefold() == OURS,
        referenced_series_uids=structure_set.referenced_series_uids,
        referenced_sop_uids=structure_set.referenced_sop_uids,
    )


def plan_facts(plan: Plan) -> PlanFacts:
    """The facts of a plan."""
    return PlanFacts(
        sop_uid=plan.sop_instance_uid,
        patient=PatientKey.of(plan.patient),
        structure_set_uid=plan.structure_set_uid,
        frame_of_reference=plan.frame_of_reference,
        isocentres_xyz_mm=plan.isocentres_xyz_mm,
        planned_at=moment(plan.date, plan.time),
        intent=plan.intent,
        fractions=plan.fractions,
        approval_status=plan.approval_status,
    )


def registration_facts(registration: SpatialRegistration, header: Header) -> RegistrationFacts:
    """The facts of a registration, with the header of the same file, which says when."""
    sources = [r.transform.source_frame for r in registration.results]
    return RegistrationFacts(
        sop_uid=registration.sop_instance_uid,
        patient=PatientKey.of(registration.patient),
        frames=registration.frames,
        made_at=moment(header.series_date, header.series_time),
        single=len(set(sources)) == len(sources),
    )


def moment(date: str, time: str) -> datetime | None:
    """A DICOM date and time (DA and TM, also the older ``2026.01.03``); None when there is none.

    A date that is none says nothing; a time that is none leaves midnight.
    """
    day = date.strip(" \0").replace(".", "")
    clock = time.strip(" \0").replace(":", "").partition(".")[0]
    if not re.fullmatch(r"[0-9]{8}", day):
        return None
    if not re.fullmatch(r"([0-9]{2}){1,3}", clock):
        clock = ""
    for text in (day + clock.ljust(6, "0"), day + "000000"):
        try:
            return datetime.strptime(text, "%Y%m%d%H%M%S")
        except ValueError:
            continue
    return None


def position_along_normal_mm(header: Header) -> float | None:
    """Where an image lies along its own normal; None when it does not say where it lies."""
    plane = header.plane
    if plane.position_xyz_mm is None or plane.orientation is None:
        return None
    row, column = np.reshape(plane.orientation, (2, 3))
    with np.errstate(all="ignore"):  # a hostile file's numbers may be too large to multiply
        along = float(np.cross(row, column) @ np.array(plane.position_xyz_mm))
    return along if math.isfinite(along) else None


def _box(headers: Sequence[Header]) -> tuple[XYZ, XYZ] | None:
    corners: list[np.ndarray] = []
    for header in headers:
        plane, pixels = header.plane, header.pixels
        if plane.position_xyz_mm is None or plane.orientation is None:
            return None
        if plane.spacing_yx_mm is None or pixels is None:
            return None
        row, column = np.reshape(plane.orientation, (2, 3))
        with np.errstate(all="ignore"):
            along = row * plane.spacing_yx_mm[1] * (pixels.columns - 1)
            down = column * plane.spacing_yx_mm[0] * (pixels.rows - 1)
            first = np.array(plane.position_xyz_mm)
            corners += [first, first + along, first + down, first + along + down]
    if not np.isfinite(corners).all():
        return None
    low, high = np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _names_agree(one: str, other: str) -> bool:
    """Whether two names, each the beginning of the other or less, may be one person's.

    Component groups (alphabetic, ideographic, phonetic) are compared each with its like, PS3.5
    §6.2.1.
    """
    for mine, theirs in zip(one.split("="), other.split("="), strict=False):
        first, second = _words(mine), _words(theirs)
        shorter = min(len(first), len(second))
        if first[:shorter] != second[:shorter]:
            return False
    return True


def _words(name: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", name).casefold()
    letters = "".join(c for c in plain if not unicodedata.combining(c))
    return re.findall(r"\w+", letters)
