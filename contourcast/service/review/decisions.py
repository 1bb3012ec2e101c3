"""What a person decided of a propagation, and the signed structure set that follows from it.

A signature makes a new object: an APPROVED structure set with one ROI, whose predecessor is the
machine's set. The machine's contour stays beside it for ever. The signed set is taken into the
archive like anything that came in, with the registration that brings it home to the planning CT;
so it is the prior of the fractions that come after.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from sqlalchemy import Connection, Row, select

from contourcast.imaging.dicom.check import check_structure_set
from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.modules import required_source
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.rtstruct_out import Approval, day_label, write_structure_set
from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.structures import Contour, Roi, StructureSet
from contourcast.imaging.volume import Volume, require_same_frame
from contourcast.service.archive import Sent, Staged
from contourcast.service.index.database import now
from contourcast.service.index.tables import course, fraction, review
from contourcast.service.ingest import TAKEN, say_the_same
from contourcast.service.intake.rematching import match_again, turn_of
from contourcast.service.intake.rules import SiteRules
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import SIGNED_ROI
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.scans import cbct_of
from contourcast.service.outputs.report import RESEARCH, Report, generation_of
from contourcast.service.pacs.outbox import signed_and_taken
from contourcast.service.problems import ConflictError
from contourcast.service.records import Records
from contourcast.service.review.drafts import Draft, take_within
from contourcast.service.review.edited import distance_of, edited
from contourcast.service.review.numbering import numbers_of
from contourcast.service.review.stale import require_current

Decision = Literal["approved", "edited", "rejected"]
# The short list of CLINICAL_SERVICE §1.6.
Why = Literal[
    "registration wrong",
    "target wrong",
    "image artefact",
    "wrong patient or plan",
    "anatomy changed: physician needed",
    "other",
]
# The how-manieth decision on its propagation, and the beginning of its SHA-256: what somebody
# began to sign and did not, never lies under the name of what was signed.
SIGNED_FILE: Final = "RS-signed-{number}-{digest:.16}.dcm"
SIGNED_SERIES: Final = "Contourcast, signed"
OURS: Final = Sent(door="ours")

# Propagation, name of the signed file, SHA-256 of it.
Announce = Callable[[Connection, str, str, str], object]
Spend = Callable[[Connection], None]


@dataclass(frozen=True, kw_only=True)
class Review:
    """One decision; they are counted, and none is ever changed.

    Attributes:
        structures_uid: SOP Instance UID of the signed set; empty when it was rejected.
        figures: How far the signed contour lies from the machine's; see `edited.distance_of`.
    """

    number: int
    propagation: str
    decision: str
    method: str
    reason: str
    reviewer: str
    at: str
    structures_uid: str
    figures: dict[str, Any]


def to_nobody(at: Connection, propagation: str, name: str, digest: str) -> None:
    """Where there is no destination, nothing is sent."""
    del at, propagation, name, digest


def nothing_to_spend(at: Connection) -> None:
    """Where whoever decides has shown nothing that is used up by it."""
    del at


class Reviews:
    """Decisions over one index and store.

    Args:
        records: Index and store.
        announce: Called in the transaction of a signature, with the name of the signed file:
            notes what goes to which archive.
        spend: Called first in the transaction of a decision: uses up what the reviewer has shown
            for it, or raises, and then nothing is decided.
        rules: Of the site, by which its fractions are counted; None: ours.
    """

    def __init__(
        self,
        records: Records,
        announce: Announce = to_nobody,
        spend: Spend = nothing_to_spend,
        rules: SiteRules | None = None,
    ) -> None:
        self.records = records
        self._announce = announce
        self._spend = spend
        self._rules = rules or SiteRules()

    def spending(self, spend: Spend) -> Reviews:
        """The same, for somebody who has shown something that a decision uses up."""
        return Reviews(self.records, self._announce, spend, self._rules)

    def of(self, propagation_id: str) -> list[Review]:
        """Every decision on a propagation, the first first."""
        query = (
            select(review).where(review.c.propagation == propagation_id).order_by(review.c.number)
        )
        with self.records.index.read() as at:
            return [_review(row) for row in at.execute(query)]

    def reject(self, job: Job, *, reviewer: str, seen: int, why: str, text: str = "") -> Review:
        """None of the contours may be used, what was signed neither.

        What is signed and waits to be sent is not sent any more; where an archive has it, that is
        told.

        Raises:
            InputError: The reason is none of the list, or ``other`` without words.
            ConflictError: There are other decisions than the reviewer saw.
            ForbiddenTransitionError: It cannot be decided in its state.
        """
        if why not in get_args(Why):
            raise InputError(
                f"'{why}' is no reason to reject", remedy=f"choose: {', '.join(get_args(Why))}"
            )
        if why == "other" and not text.strip():
            raise InputError("the reason is other, and not told", remedy="say it in words: text")
        reason = f"{why}: {text.strip()}" if text.strip() else why
        with self._deciding(job, "rejected", seen) as at:
            number = self._write(at, job, "rejected", "", reason, reviewer, "", "", {})
            signed = select(review.c.number).where(
                review.c.propagation == job.id, review.c.structures_uid.is_not(None)
            )
            if at.execute(signed).first() is not None:
                _match_later_again(at, job)  # what was withdrawn is the prior of nobody any more
                for there in signed_and_taken(at, job.id):
                    self.records.notices.tell_withdrawn(
                        at, job.id, destination=there.destination, delivery=there.id
                    )
        return self._one(number)

    def approve(
        self, job: Job, *, method: str, reviewer: str, seen: int, reason: str = ""
    ) -> Review:
        """One method's contour, unchanged, is the contour of the day.

        Args:
            job: As it was shown to the reviewer.
            method: Whose contour.
            reviewer: Who signs, as written into the structure set.
            seen: How many decisions there were when the reviewer looked.
            reason: In words, if any.

        Raises:
            InputError: The method drew nothing.
            ConflictError: There are other decisions than the reviewer saw.
            ChangedError: More of the scan is here than was drawn on.
            ForbiddenTransitionError: It cannot be decided in its state.
        """
        return self._sign(job, method, reviewer, seen, reason, draft=None)

    def approve_edited(
        self,
        job: Job,
        *,
        draft: Draft,
        method: str,
        reviewer: str,
        seen: int,
        reason: str = "",
    ) -> Review:
        """A method's contour, with the slices of a draft drawn anew, is the contour of the day.

        Args:
            job: As it was shown to the reviewer.
            draft: As it was shown to the reviewer; it is gone afterwards.
            method: Whose contour the reviewer saw being edited.
            reviewer: Who signs.
            seen: How many decisions there were when the reviewer looked.
            reason: In words, if any.

        Raises:
            InputError: The draft is of another method, or cannot be a contour; names the slice.
            ChangedError: The draft is another by now, or more of the scan is here.
            ConflictError, ForbiddenTransitionError: As `approve`.
        """
        if draft.method != method:
            raise InputError(
                f"the draft began from {draft.method}, not from '{method}'",
                remedy=f"sign it as {draft.method}",
            )
        return self._sign(job, method, reviewer, seen, reason, draft=draft)

    def _sign(
        self,
        job: Job,
        method: str,
        reviewer: str,
        seen: int,
        reason: str,
        *,
        draft: Draft | None,
    ) -> Review:
        with self.records.index.read() as at:
            require_current(at, job)
            which = self._fraction(at, job)
        made = self._machine_set(job)
        machine = _contour_of(job, made, method)
        if draft is None and not machine.loops:
            raise InputError(
                f"{method} drew nothing", remedy="draw it, choose another method, or reject"
            )
        scan = cbct_of(self.records.archive, job)
        require_same_frame(machine.frame_of_reference, scan.frame_of_reference)
        contours = machine.loops if draft is None else edited(machine, draft, scan.grid)
        signed_roi = _signed_roi(job, machine, contours, draft)
        figures = distance_of(machine, signed_roi, scan.grid, draft=draft)
        at_time = self.records.site.clock(now().replace(microsecond=0))
        folder = self.records.archive.incoming().with_suffix("")
        folder.mkdir()
        try:
            signed = folder / "signed.dcm"
            parts = [job.files["RS.dcm"], method, reviewer, str(seen), at_time.isoformat()]
            parts += ["signed", *([] if draft is None else [draft.digest])]
            uid = write_structure_set(
                signed,
                rois=[signed_roi],
                reference=scan,
                label=day_label(required_source(scan.source, "CBCT"), f"{which}S"),
                name=signed_roi.name,
                series_description=SIGNED_SERIES,
                series_number=self.records.site.series_number,
                description=self._description(job, method, draft),
                digest=hashlib.sha256("\0".join(parts).encode()).hexdigest(),
                drawn_at=at_time,
                predecessor_uid=made.sop_instance_uid,
                approval=Approval(status="APPROVED", reviewer=reviewer, at=at_time),
            )
            _require_sound(signed, scan, uid)
            kept = _staged(signed)
            name = SIGNED_FILE.format(number=seen + 1, digest=kept.file_digest)
            result = Path(shutil.copyfile(signed, folder / "result.dcm"))
            self.records.derived.put_results(job.id, {name: result})
            self.records.archive.bring(kept)
            tie = self._tie(job, folder / "tie.dcm")
            decision: Decision = "approved" if draft is None else "edited"
            with self._deciding(job, decision, seen) as at:
                require_current(at, job)
                if draft is not None:
                    take_within(at, draft)
                self.records.archive.admit_within(at, kept, sent=OURS)
                number = self._write(at, job, decision, method, reason, reviewer, uid, tie, figures)
                self._announce(at, job.id, name, kept.file_digest)
                _match_later_again(at, job)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return self._one(number)

    @contextlib.contextmanager
    def _deciding(self, job: Job, decision: Decision, seen: int) -> Iterator[Connection]:
        """The transaction of one decision, that nobody else is in on the same propagation."""
        with self.records.index.write() as at:
            # As matching does, which reads what is signed and writes orders with it as prior:
            # a decision between the two would leave it a prior that nobody looks for again.
            self.records.index.in_turn(at, turn_of(job.origin.patient_key))
            self._spend(at)
            # it holds the propagation's row, so whoever comes at the same moment counts afterwards
            self.records.propagations.move(at, job.id, State(decision), f"{decision} by a reviewer")
            if len(_numbers(at, job.id)) != seen:
                raise ConflictError(
                    "somebody else decided on this propagation meanwhile",
                    remedy="read it again, then decide",
                )
            yield at

    def _machine_set(self, job: Job) -> StructureSet:
        if "RS.dcm" not in job.files:
            raise ConflictError(
                "there is nothing to sign yet", remedy="wait until the propagation is done"
            )
        return read_structure_set(self.records.derived.result(job.id, "RS.dcm"))

    def _fraction(self, at: Connection, job: Job) -> str:
        """Such as ``F07``; empty for a scan of no course.

        A scan that comes late may give the later ones other numbers. This one is written at the
        signature and stays; the machine's set, which may be written again, has none.
        """
        course_id = job.origin.course_id
        if course_id is None:
            return ""
        numbers = numbers_of(at, {course_id}, repeat_minutes=self._rules.repeat_minutes)
        taken = numbers.get((course_id, job.order["cbct"]["series"]))
        return f"F{taken.fraction:02}" if taken else ""

    def _description(self, job: Job, method: str, draft: Draft | None) -> str:
        how = "unchanged" if draft is None else f"after {_edits(draft)}"
        made = self.records.derived.result(job.id, "report.json").read_bytes()
        drawn_by = generation_of(method, Report.model_validate_json(made))
        return f"{method}, signed {how}; {drawn_by.description}; {RESEARCH}"

    def _tie(self, job: Job, copy: Path) -> str:
        """Takes the way home into the archive; the registration's UID, empty without one."""
        if "REG.dcm" not in job.files:
            return ""
        shutil.copyfile(self.records.derived.result(job.id, "REG.dcm"), copy)
        tie = _staged(copy)
        self.records.archive.admit([tie], say_the_same, sent=OURS)
        return tie.header.sop_instance_uid

    def _write(
        self,
        at: Connection,
        job: Job,
        decision: Decision,
        method: str,
        reason: str,
        reviewer: str,
        structures_uid: str,
        registration_uid: str,
        figures: dict[str, Any],
    ) -> int:
        written = at.execute(
            review.insert().values(
                propagation=job.id,
                course_id=job.origin.course_id,
                acquired_at=job.origin.acquired_at,
                decision=decision,
                method=method,
                reason=reason,
                reviewer=reviewer,
                at=now().isoformat(),
                structures_uid=structures_uid or None,
                registration_uid=registration_uid or None,
                figures_json=figures,
            )
        )
        (number,) = written.inserted_primary_key or (0,)
        return int(number)

    def _one(self, number: int) -> Review:
        with self.records.index.read() as at:
            return _review(at.execute(select(review).where(review.c.number == number)).one())


def _match_later_again(at: Connection, job: Job) -> None:
    """The later fractions of its course, if it has one, have another prior now."""
    if job.origin.course_id is not None:
        match_again(
            at,
            course.c.id == job.origin.course_id,
            fraction.c.acquired_at > job.origin.acquired_at,
        )


def _contour_of(job: Job, made: StructureSet, method: str) -> Roi:
    """The ROI of a method, empty where it drew nothing.

    It has the number of its method's place in the order, wherever it stands in the set.
    """
    methods: Sequence[str] = job.order["methods"]
    if method not in methods:
        raise InputError(f"no contour is of '{method}'", remedy=f"choose: {', '.join(methods)}")
    return made.roi(f"#{methods.index(method) + 1}")


def _signed_roi(job: Job, machine: Roi, contours: Sequence[Contour], draft: Draft | None) -> Roi:
    """The one ROI of a signed set, named as the contour that was carried."""
    edits = "" if draft is None else f", {_edits(draft)}"
    algorithm = "AUTOMATIC"
    if draft is not None:
        algorithm = "SEMIAUTOMATIC" if machine.loops else "MANUAL"
    return Roi(
        number=SIGNED_ROI,
        name=str(job.figures.get("roi_name") or machine.name),
        contours=tuple(contours),
        frame_of_reference=machine.frame_of_reference,
        interpreted_type=machine.interpreted_type,
        generation_algorithm=algorithm,
        description=f"{machine.description}{edits}",
    )


def _edits(draft: Draft) -> str:
    n = len(draft.loops)
    return f"editing of {n} slice{'' if n == 1 else 's'} by hand"


def _require_sound(path: Path, scan: Volume, uid: str) -> None:
    if findings := check_structure_set(path, scan):
        raise ContourcastError(
            f"what was to be signed does not pass our own check: {findings[0]}",
            uid=uid,
            remedy="nothing was signed; mend the contour, or report this",
        )


def _staged(path: Path) -> Staged:
    header = read_header(path)
    content = path.read_bytes()
    return Staged(
        path=path,
        file_digest=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        header=header,
        modality=TAKEN[header.sop_class_uid],
    )


def _numbers(at: Connection, propagation_id: str) -> list[int]:
    query = select(review.c.number).where(review.c.propagation == propagation_id)
    return list(at.execute(query).scalars())


def _review(row: Row[Any]) -> Review:
    return Review(
        number=row.number,
        propagation=row.propagation,
        decision=row.decision,
        method=row.method,
        reason=row.reason,
        reviewer=row.reviewer,
        at=row.at,
        structures_uid=row.structures_uid or "",
        figures=row.figures_json,
    )
