"""What matching is asked with and what it answers: evidence, questions, matches.

Reasons and doubts are told in UIDs, numbers and dates of scans; texts of DICOM elements stand
only in the labels of choices, for the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from contourcast.imaging.plan import XYZ
from contourcast.service.intake.facts import (
    CourseFacts,
    PlanFacts,
    PriorFacts,
    RegistrationFacts,
    RoiFacts,
    SeriesFacts,
    StructureSetFacts,
)

Question = Literal["patient", "planning_ct", "structure_set", "roi", "conflict"]
Topic = Literal[
    "cbct", "patient", "planning_ct", "structure_set", "roi", "prior", "start", "conflict"
]
NONE_OF_THESE: Final = "none"


@dataclass(frozen=True, kw_only=True)
class Known:
    """All that is here under the patient ID of a CBCT, and may be asked as evidence.

    Attributes:
        lost: SOP Instance UIDs of structure sets and plans that came, and that the store lost: what
            they said, nobody knows.
    """

    series: tuple[SeriesFacts, ...] = ()
    structure_sets: tuple[StructureSetFacts, ...] = ()
    plans: tuple[PlanFacts, ...] = ()
    registrations: tuple[RegistrationFacts, ...] = ()
    courses: tuple[CourseFacts, ...] = ()
    priors: tuple[PriorFacts, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a person said to a question, one choice or (of ROIs) several."""

    question: Question
    choice: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why one question was answered as it was."""

    question: Topic
    rule: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One possible answer.

    Attributes:
        value: What an `Answer` holds: a UID, or the number of a ROI, or ``none``.
        label: What the page shows.
    """

    value: str
    label: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One ROI to carry.

    Attributes:
        prior: The signed contour to carry it from; None: the planning contour.
    """

    roi: RoiFacts
    prior: PriorFacts | None


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where registration starts.

    Attributes:
        registration_uid: SOP Instance UID, where one is used.
        cbct_from_planning_mm: A shift, where the isocentre is known.
    """

    kind: Literal["registration", "identity", "isocentre", "centre"]
    registration_uid: str = ""
    cbct_from_planning_mm: XYZ | None = None


@dataclass(frozen=True, kw_only=True)
class Match:
    """To what the CBCT belongs.

    Attributes:
        items: One for each ROI, at least one.
        doubts: What is so and need not be; a person should see them, and no verdict should be
            better than ``look``.
    """

    cbct_uid: str
    planning_ct_uid: str
    structure_set_uid: str
    items: tuple[Item, ...]
    start: Start
    reasons: tuple[Reason, ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NeedsPerson:
    """A question that evidence does not answer.

    Attributes:
        why: In a sentence.
        choices: What may be answered; none where something has to come first.
        several: Whether more than one may be chosen.
        missing: UIDs of series or objects that are referred to and not here, to be fetched.
        reasons: How the questions before it were answered.
    """

    question: Question
    why: str
    choices: tuple[Choice, ...] = ()
    several: bool = False
    missing: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NotOurs:
    """Kept, and nothing is done with it."""

    reason: str
