"""To what does a CBCT belong? CBCT → patient → planning CT → structure set → ROIs → prior → start.

Each answer is given by the strongest evidence that there is, and says which (CLINICAL_SERVICE
§1.4). Where evidence is missing, equal, or contradicts itself, a person is asked, with choices;
what a person answered comes back in as one more fact and settles that one question. No answer
ever rests on a name alone, and none on a frame of reference without being registered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypeVar

from contourcast.imaging.plan import XYZ
from contourcast.service.intake.facts import (
    PatientKey,
    PlanFacts,
    PriorFacts,
    RegistrationFacts,
    RoiFacts,
    SeriesFacts,
    StructureSetFacts,
)
from contourcast.service.intake.outcomes import (
    NONE_OF_THESE,
    Answer,
    Choice,
    Item,
    Known,
    Match,
    NeedsPerson,
    NotOurs,
    Question,
    Reason,
    Start,
    Topic,
)
from contourcast.service.intake.rules import SiteRules, judge_series

Relation = Literal["same", "unsure", "contradicts", "other"]
ORIGIN: Final[XYZ] = (0.0, 0.0, 0.0)

T = TypeVar("T")


def match(
    cbct: SeriesFacts, known: Known, rules: SiteRules, *, answers: Sequence[Answer] = ()
) -> Match | NeedsPerson | NotOurs:
    """Finds to what a series belongs.

    Args:
        cbct: A series that is whole.
        known: Of the same patient ID; what turns out to be another's is not used.
        rules: Of the site.
        answers: Of a person, about this CBCT; of two to one question the last counts.
    """
    judged = judge_series(cbct, rules)
    said = f"rule '{judged.rule}': {judged.why}" if judged.rule else judged.why
    if judged.verdict != "cbct":
        return NotOurs(reason=f"it is no CBCT ({said})")
    matching = _Matching(
        cbct=cbct,
        known=_in_order(known),
        rules=rules,
        answers={answer.question: answer.choice for answer in answers},
    )
    matching.tell("cbct", judged.rule, f"it is a CBCT: {judged.why}")
    return matching.run()


def relation(one: PatientKey, other: PatientKey) -> tuple[Relation, str]:
    """What two patient keys are to each other, and why.

    Number and issuer decide. Where one of them does not state the issuer, name and birth date,
    both stated and agreeing, have to confirm the number.
    """
    if not one.patient_id or one.patient_id != other.patient_id:
        return "other", "the patient IDs differ"
    if one.issuer and other.issuer and one.issuer != other.issuer:
        return "other", "the issuers of the patient IDs differ"
    if differing := one.contradicts(other):
        return "contradicts", f"one patient ID, but another {differing}"
    if one.issuer == other.issuer:
        return "same", "patient ID and issuer are the same"
    if one.confirms(other):
        return "same", "patient ID, name and birth date are the same; one issuer is not stated"
    return "unsure", "one patient ID, but only one of the two says who issued it"


@dataclass(kw_only=True)
class _Matching:
    """One CBCT on its way from question to question.

    Attributes:
        home: Whose planning data is asked: the CBCT's own key, or one that a person vouched for.
    """

    cbct: SeriesFacts
    known: Known
    rules: SiteRules
    answers: dict[Question, tuple[str, ...]]
    reasons: list[Reason] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    home: PatientKey = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.cbct.patient

    def tell(self, question: Topic, rule: str, sentence: str) -> None:
        self.reasons.append(Reason(question=question, rule=rule, sentence=sentence))

    def ask(
        self,
        question: Question,
        why: str,
        *,
        choices: Iterable[Choice] = (),
        several: bool = False,
        missing: Iterable[str] = (),
    ) -> NeedsPerson:
        return NeedsPerson(
            question=question,
            why=why,
            choices=tuple(choices),
            several=several,
            missing=tuple(dict.fromkeys(missing)),
            reasons=tuple(self.reasons),
        )

    def run(self) -> Match | NeedsPerson | NotOurs:
        """The questions in order; the first that stays open ends it."""
        stopped = self.find_patient()
        if stopped is not None:
            return stopped
        planning_ct = self.find_planning_ct()
        if isinstance(planning_ct, NeedsPerson | NotOurs):
            return planning_ct
        structure_set = self.find_structure_set(planning_ct)
        if isinstance(structure_set, NeedsPerson | NotOurs):
            return structure_set
        rois = self.find_rois(structure_set, planning_ct)
        if isinstance(rois, NeedsPerson | NotOurs):
            return rois
        items = tuple(
            Item(roi=roi, prior=self.find_prior(planning_ct, structure_set, roi)) for roi in rois
        )
        start = self.find_start(planning_ct, structure_set)
        return Match(
            cbct_uid=self.cbct.series_uid,
            planning_ct_uid=planning_ct.series_uid,
            structure_set_uid=structure_set.sop_uid,
            items=items,
            start=start,
            reasons=tuple(self.reasons),
            doubts=tuple(self.doubts),
        )

    # Which patient?

    def find_patient(self) -> NeedsPerson | NotOurs | None:
        if "patient" in self.answers:
            return self._vouched_patient(self.answers["patient"])
        if not self.cbct.patient.patient_id:
            alike = [s for s in self._scans() if s.patient.confirms(self.cbct.patient)]
            return self._ask_patient(
                "the CBCT states no patient ID; a name alone finds nobody", alike
            )
        objects: list[tuple[str, PatientKey]] = [
            *((f"series {s.series_uid}", s.patient) for s in self._scans()),
            *((f"structure set {s.sop_uid}", s.patient) for s in self.known.structure_sets),
            *((f"plan {p.sop_uid}", p.patient) for p in self.known.plans),
            *((f"registration {r.sop_uid}", r.patient) for r in self.known.registrations),
        ]
        related = [(what, *relation(self.cbct.patient, key)) for what, key in objects]
        for what, kind, why in related:
            if kind == "contradicts":
                return self._ask_patient(f"the CBCT and {what} state {why}", self._scans())
        unsure = [what for what, kind, _ in related if kind == "unsure"]
        same = [why for _, kind, why in related if kind == "same"]
        if unsure and not same:
            return self._ask_patient(
                f"the CBCT and {unsure[0]} have one patient ID, but only one of them says who "
                "issued it, and name and birth date do not confirm it",
                self._scans(),
            )
        if same:
            self.tell("patient", "patient ID", "; ".join(dict.fromkeys(same)))
        if unsure:
            self.doubts.append(
                f"{len(unsure)} objects of the same patient ID were left out: their issuer is not "
                "known to be the same"
            )
        return None

    def _scans(self) -> list[SeriesFacts]:
        """Every CT under this ID that no rule takes for a CBCT."""
        return [
            s
            for s in self.known.series
            if s.is_ct
            and s.series_uid != self.cbct.series_uid
            and judge_series(s, self.rules).verdict != "cbct"
        ]

    def _ask_patient(self, why: str, scans: Iterable[SeriesFacts]) -> NeedsPerson:
        none = Choice(value=NONE_OF_THESE, label="none of these")
        return self.ask("patient", why, choices=[*map(_scan_choice, scans), none])

    def _vouched_patient(self, choice: tuple[str, ...]) -> NeedsPerson | NotOurs | None:
        if choice == (NONE_OF_THESE,):
            return NotOurs(reason="a person said that it belongs to none of the patients here")
        found = [s for s in self._scans() if (s.series_uid,) == choice]
        if not found:
            return self._ask_patient(
                "the patient was to be that of a series that is not here", self._scans()
            )
        self.home = found[0].patient
        sentence = f"a person said that it is the patient of series {found[0].series_uid}"
        self.tell("patient", "answered", sentence)
        return None

    def _at_home(self, key: PatientKey) -> bool:
        """Whether that is the patient whose data is asked.

        A person may vouch for a scan without patient ID; then name and birth date have to agree.
        """
        if not self.home.patient_id:
            return not key.patient_id and self.home.confirms(key)
        return relation(self.home, key)[0] == "same"

    def _sets(self) -> list[StructureSetFacts]:
        """Structure sets of the patient that may be used."""
        return [s for s in self.known.structure_sets if s.usable and self._at_home(s.patient)]

    # Which planning CT?

    def find_planning_ct(self) -> SeriesFacts | NeedsPerson | NotOurs:
        here = [s for s in self._scans() if self._at_home(s.patient)]
        if "planning_ct" in self.answers:
            return self._answered_planning_ct(self.answers["planning_ct"], here)
        candidates = [s for s in here if self._may_be_planned_on(s)]
        if not candidates:
            return self._ask_for_scan(here)
        if lost := self._lost_plan(candidates):
            plan, missing = lost
            return self._ask_planning_ct(
                f"the newest plan {plan.sop_uid} was made on structures or a CT that are not here "
                "or were rejected",
                candidates,
                missing=missing,
            )
        return self._by_evidence(candidates)

    def _answered_planning_ct(
        self, choice: tuple[str, ...], here: Sequence[SeriesFacts]
    ) -> SeriesFacts | NeedsPerson | NotOurs:
        if choice == (NONE_OF_THESE,):
            return NotOurs(reason="a person said that it belongs to no planning CT that is here")
        answered = [s for s in here if (s.series_uid,) == choice]
        if not answered:
            return self._ask_planning_ct(
                "the planning CT was to be a series that is not here", here
            )
        self.tell("planning_ct", "answered", f"a person chose {answered[0].series_uid}")
        return answered[0]

    def _ask_planning_ct(
        self, why: str, scans: Iterable[SeriesFacts], *, missing: Iterable[str] = ()
    ) -> NeedsPerson:
        none = Choice(value=NONE_OF_THESE, label="none of these")
        return self.ask(
            "planning_ct", why, choices=[*map(_scan_choice, scans), none], missing=missing
        )

    def _may_be_planned_on(self, scan: SeriesFacts) -> bool:
        """A CT that was taken before today and that a structure set was drawn on.

        One that the site's rules ignore counts if a plan was made on it: they cannot know better.
        """
        if self._taken_later(scan):
            return False
        drawn = {s.sop_uid for s in self._sets() if s.drawn_on(scan)}
        if judge_series(scan, self.rules).verdict == "planning_ct":
            return bool(drawn)
        return any(plan.structure_set_uid in drawn for plan in self._plans())

    def _taken_later(self, scan: SeriesFacts) -> bool:
        """Whether it was taken on a later day than the CBCT; some files state the day alone."""
        then, now = scan.acquired_at, self.cbct.acquired_at
        return then is not None and now is not None and then.date() > now.date()

    def _ask_for_scan(self, here: Sequence[SeriesFacts]) -> NeedsPerson:
        """No CT carries structures: says what is missing."""
        named = [
            uid for s in self._sets() for uid in s.referenced_series_uids if uid not in self._held()
        ]
        unknown = [uid for p in self._plans() if (uid := p.structure_set_uid) not in self._held()]
        earlier = [s for s in here if not self._taken_later(s)]
        if named:
            why = f"the planning CT is not here: structure sets were drawn on series {named[0]}"
        elif unknown:
            why = f"the structure set {unknown[0]} of a plan is not here"
        elif earlier:
            why = "no structure set that may be used was drawn on any CT of this patient"
        elif here:
            why = "every CT of this patient was taken after the CBCT"
        else:
            why = "no planning CT of this patient is here"
        later = [s for s in here if s not in earlier and any(x.drawn_on(s) for x in self._sets())]
        return self._ask_planning_ct(why, later, missing=[*named, *unknown, *self.known.lost])

    def _plans(self) -> list[PlanFacts]:
        """Plans that may have been in use on the day of the CBCT.

        Plans for a phantom or a machine are no one's treatment, and drafts from before the newest
        approved plan have been replaced by it.
        """
        plans = [
            plan
            for plan in self.known.plans
            if self._at_home(plan.patient)
            and plan.structure_set_uid
            and plan.treats
            and not _later(plan.planned_at, self.cbct.acquired_at)
        ]
        approved_at = [p.planned_at for p in plans if p.approved and p.planned_at is not None]
        newest = max(approved_at, default=None)
        return [p for p in plans if p.approved or not _later(newest, p.planned_at)]

    def _lost_plan(
        self, candidates: Sequence[SeriesFacts]
    ) -> tuple[PlanFacts, tuple[str, ...]] | None:
        """The newest plan, when what it was made on is not here: an older one would be stale."""
        plans = [p for p in self._plans() if p.approved] or self._plans()
        newest = _newest(plans, lambda plan: plan.planned_at)
        for plan in plans if newest is None else [newest]:
            sets = [s for s in self._sets() if s.sop_uid == plan.structure_set_uid]
            if any(s.drawn_on(scan) for s in sets for scan in candidates):
                continue
            named = sets[0].referenced_series_uids if sets else (plan.structure_set_uid,)
            return plan, tuple(uid for uid in named if uid not in self._held())
        return None

    def _held(self) -> frozenset[str]:
        """UIDs of the series and structure sets that are here, whoever's and whatever they are."""
        series = (s.series_uid for s in self.known.series)
        return frozenset((*series, *(s.sop_uid for s in self.known.structure_sets)))

    def _by_evidence(self, candidates: list[SeriesFacts]) -> SeriesFacts | NeedsPerson:
        """Narrows the candidates, strongest evidence first, until one is left."""
        frame = self.cbct.frame_of_reference
        evidence: list[tuple[str, str, Callable[[SeriesFacts], bool]]] = [
            ("plan", "a plan was made on its structure set", self._planned_on),
            (
                "frame of reference",
                "it states the CBCT's frame of reference (a claim, to be registered anew)",
                lambda scan: bool(frame) and scan.frame_of_reference == frame,
            ),
            (
                "registration",
                "a Spatial Registration ties its frame of reference to the CBCT's",
                lambda scan: bool(self._ties(scan)),
            ),
        ]
        left, rule, sentence = candidates, "", ""
        for name, why, speaks_for in evidence:
            supported = [s for s in candidates if speaks_for(s)]
            agreed = [s for s in supported if s in left]
            if supported and not agreed:
                return self._ask_planning_ct(
                    f"the evidence contradicts itself: of one CT, {sentence}; of another, {why}",
                    left + supported,
                )
            if agreed and len(agreed) < len(left):
                left, rule, sentence = agreed, name, why
            elif agreed and not rule:
                rule, sentence = name, why
        if len(left) == 1:
            if rule:
                self.tell("planning_ct", rule, f"{left[0].series_uid}: {sentence}")
            else:
                self.tell(
                    "planning_ct",
                    "only one",
                    f"{left[0].series_uid} is the only CT of this patient with structures",
                )
            return left[0]
        return self._by_date(left)

    def _planned_on(self, scan: SeriesFacts) -> bool:
        planned = {plan.structure_set_uid for plan in self._plans()}
        return any(s.sop_uid in planned and s.drawn_on(scan) for s in self._sets())

    def _by_date(self, left: Sequence[SeriesFacts]) -> SeriesFacts | NeedsPerson:
        """The CT of the newest approved structures, unless an older course goes on beside it."""
        dated = [
            (scan, None if newest is None else newest.drawn_at)
            for scan in left
            if (approved := [s for s in self._sets_on(scan) if self._stands(s)])
            for newest in [_newest(approved, lambda s: s.drawn_at)]
        ]
        chosen = _newest(dated, lambda pair: pair[1])
        if chosen is None:
            return self._ask_planning_ct(
                f"{len(left)} planning CTs have structures, and neither plan, frame of reference, "
                "registration nor the dates of approved structure sets tell them apart",
                left,
            )
        scan, drawn_at = chosen
        others = [s for s in left if s is not scan]
        uids = {s.series_uid for s in others}
        beside = [
            course.planning_ct_uid
            for course in self.known.courses
            if course.planning_ct_uid in uids and _later(course.last_fraction_at, drawn_at)
        ]
        if beside:
            return self._ask_planning_ct(
                f"two courses go on side by side: that of {beside[0]} had a fraction after the "
                f"structures of {scan.series_uid} were drawn",
                left,
            )
        self.tell(
            "planning_ct",
            "newest approved structure set",
            f"{scan.series_uid} has the newest approved structures of {len(left)} planning CTs",
        )
        if not any(prior.planning_ct_uid == scan.series_uid for prior in self.known.priors):
            self.doubts.append("the planning CT was chosen among several by date alone")
        if any(_later(s.drawn_at, drawn_at) for other in others for s in self._sets_on(other)):
            self.doubts.append("another planning CT has newer structures that are not approved")
        return scan

    def _sets_on(self, scan: SeriesFacts) -> list[StructureSetFacts]:
        """Structure sets that were drawn on that scan before the CBCT was taken."""
        return [
            s
            for s in self._sets()
            if s.drawn_on(scan) and not _later(s.drawn_at, self.cbct.acquired_at)
        ]

    def _stands(self, structure_set: StructureSetFacts) -> bool:
        """Whether a person stands for it, or for a plan that was made on it."""
        return structure_set.approved or any(
            plan.approved and plan.structure_set_uid == structure_set.sop_uid
            for plan in self._plans()
        )

    # Which structure set?

    def find_structure_set(self, scan: SeriesFacts) -> StructureSetFacts | NeedsPerson | NotOurs:
        drawn = [s for s in self._sets() if s.drawn_on(scan)]
        if "structure_set" in self.answers:
            choice = self.answers["structure_set"]
            answered = [s for s in drawn if (s.sop_uid,) == choice]
            if answered:
                self.tell("structure_set", "answered", f"a person chose {answered[0].sop_uid}")
                if self.known.lost:
                    self.doubts.append(f"{self._lost()}; a person chose another one without")
                return answered[0]
            return self._ask_structure_set(
                "the structure set was to be one that is not here, or not of that CT", drawn
            )
        if self.known.lost:  # it may be the newest of all, and what is left be stale
            return self._ask_structure_set(
                f"{self._lost()}: send again what is lost", drawn, missing=self.known.lost
            )
        if not drawn:
            return self._ask_structure_set(
                f"no structure set that may be used was drawn on CT {scan.series_uid}", drawn
            )
        plans = [p for p in self._plans() if p.structure_set_uid in {s.sop_uid for s in drawn}]
        if plans:
            return self._planned_set([p for p in plans if p.approved] or plans, drawn)
        return self._newest_set(drawn)

    def _lost(self) -> str:
        lost = self.known.lost
        return f"{len(lost)} structure sets or plans of this patient were lost, such as {lost[0]}"

    def _ask_structure_set(
        self, why: str, drawn: Iterable[StructureSetFacts], *, missing: Iterable[str] = ()
    ) -> NeedsPerson:
        return self.ask("structure_set", why, choices=map(_set_choice, drawn), missing=missing)

    def _planned_set(
        self, plans: Sequence[PlanFacts], drawn: Sequence[StructureSetFacts]
    ) -> StructureSetFacts | NeedsPerson:
        named = {plan.structure_set_uid for plan in plans}
        newest = _newest(plans, lambda plan: plan.planned_at)
        if len(named) > 1 and newest is None:
            return self._ask_structure_set(
                f"{len(plans)} plans on that CT were made on {len(named)} structure sets, and "
                "their dates do not tell which is the newest",
                [s for s in drawn if s.sop_uid in named],
            )
        plan = plans[0] if newest is None else newest
        chosen = next(s for s in drawn if s.sop_uid == plan.structure_set_uid)
        self.tell("structure_set", "plan", f"plan {plan.sop_uid} was made on {chosen.sop_uid}")
        newer = [s for s in drawn if s.approved and _later(s.drawn_at, chosen.drawn_at)]
        if newer:
            self.doubts.append(
                f"structure set {newer[0].sop_uid} is newer than that of the plan and approved"
            )
        return chosen

    def _newest_set(self, drawn: Sequence[StructureSetFacts]) -> StructureSetFacts | NeedsPerson:
        left, said = list(drawn), []
        before = [s for s in left if not _later(s.drawn_at, self.cbct.acquired_at)]
        if not before:
            self.doubts.append("every structure set of the planning CT was drawn after the CBCT")
        left = before or left
        approved = [s for s in left if s.approved]
        if approved:
            said.append("approved")
        else:
            self.doubts.append("no structure set of the planning CT says that it is approved")
        left = approved or left
        if len(left) > 1:
            newest = _newest(left, lambda s: s.drawn_at)
            if newest is None:
                return self._ask_structure_set(
                    f"{len(left)} structure sets of that CT are equally good, and their dates do "
                    "not tell which is the newest",
                    left,
                )
            said.append("the newest")
            left = [newest]
        elif len(drawn) == 1:
            said.append("the only one")
        words = " and ".join(said) or "the only one of its kind"
        self.tell("structure_set", words, f"{left[0].sop_uid} is {words} on that CT")
        return left[0]

    # Which ROIs?

    def find_rois(
        self, structure_set: StructureSetFacts, scan: SeriesFacts
    ) -> tuple[RoiFacts, ...] | NeedsPerson | NotOurs:
        rois = [roi for roi in structure_set.rois if roi.loops]
        choices = [Choice(value=str(roi.number), label=roi.name) for roi in rois]
        if "roi" in self.answers:
            wanted = self.answers["roi"]
            answered = tuple(roi for roi in rois if str(roi.number) in wanted)
            if wanted and len(answered) == len(set(wanted)):
                self.tell("roi", "answered", f"a person chose {_numbers(answered)}")
                return answered
            return self.ask(
                "roi",
                f"the ROIs were to be some that structure set {structure_set.sop_uid} has not",
                choices=choices,
                several=True,
            )
        typed = tuple(roi for roi in rois if roi.interpreted_type == "GTV")
        named = tuple(roi for roi in rois if self.rules.names_target(roi.name))
        if typed:
            self.tell("roi", "interpreted type", f"{_numbers(typed)}: of the type GTV")
            if beside := [roi for roi in named if roi not in typed]:
                self.doubts.append(
                    f"{_numbers(beside)}: named like a target, but not of the type GTV; left out"
                )
            return typed
        if named:
            self.tell("roi", "name", f"{_numbers(named)}: named as the site names its targets")
            return named
        if not rois:
            return self._ask_structure_set(
                f"structure set {structure_set.sop_uid} has no ROI with closed contours",
                [s for s in self._sets() if s.drawn_on(scan) and any(r.loops for r in s.rois)],
            )
        return self.ask(
            "roi",
            f"no ROI of structure set {structure_set.sop_uid} is a GTV by type or by name",
            choices=choices,
            several=True,
        )

    # From which contour, and from where?

    def find_prior(
        self, scan: SeriesFacts, structure_set: StructureSetFacts, roi: RoiFacts
    ) -> PriorFacts | None:
        """The contour last signed on an earlier CBCT of this course.

        Last is by the day of treatment, not by the day of signing: a fraction that is signed late
        does not overtake a newer one.
        """
        if self.rules.prior == "planning":
            self.tell("prior", "setting", f"ROI #{roi.number}: the site carries the plan's contour")
            return None
        now = self.cbct.acquired_at
        if now is None:
            self.tell(
                "prior",
                "planning",
                f"ROI #{roi.number}: the planning contour, as the CBCT does not say when it was "
                "taken",
            )
            return None
        earlier = [
            (prior.cbct_acquired_at, prior.decision, prior)
            for prior in self.known.priors
            if prior.planning_ct_uid == scan.series_uid
            and prior.planning_structure_set_uid == structure_set.sop_uid
            and prior.roi_number == roi.number
            and prior.cbct_uid != self.cbct.series_uid
            and prior.cbct_acquired_at is not None
            and prior.cbct_acquired_at < now
        ]
        if not earlier:
            self.tell(
                "prior",
                "planning",
                f"ROI #{roi.number}: the planning contour; none of an earlier fraction is signed",
            )
            return None
        at, _, prior = max(earlier, key=lambda each: each[:2])
        self.tell(
            "prior",
            "latest approved",
            f"ROI #{roi.number}: {prior.structure_set_uid}, signed on the CBCT of "
            f"{at:%Y-%m-%d %H:%M}",
        )
        return prior

    def find_start(self, scan: SeriesFacts, structure_set: StructureSetFacts) -> Start:
        """Where registration begins; it says itself how far it went from there."""
        if ties := self._ties(scan):
            newest = _newest(ties, lambda r: r.made_at)
            if newest is not None:
                self.tell("start", "registration", f"{newest.sop_uid} ties the two frames")
                return Start(kind="registration", registration_uid=newest.sop_uid)
            self.doubts.append(
                f"{len(ties)} Spatial Registrations tie the two frames, and their dates do not "
                "tell which is the newest; none is used"
            )
        frame = self.cbct.frame_of_reference
        if frame and scan.frame_of_reference == frame:
            self.tell("start", "frame of reference", "both scans state one frame of reference")
            return Start(kind="identity")
        isocentre = self._isocentre(scan, structure_set)
        if isocentre is not None:
            self.tell(
                "start",
                "isocentre",
                "the plan's isocentre is laid on the origin of the CBCT, which lies within it",
            )
            x, y, z = isocentre
            return Start(kind="isocentre", cbct_from_planning_mm=(-x, -y, -z))
        self.tell("start", "centre", "nothing ties the two scans: centre of mass on centre of mass")
        return Start(kind="centre")

    def _ties(self, scan: SeriesFacts) -> list[RegistrationFacts]:
        """Registrations of this patient that tie the scan's frame to the CBCT's, unequivocally."""
        return [
            r
            for r in self.known.registrations
            if r.single
            and r.ties(scan.frame_of_reference, self.cbct.frame_of_reference)
            and (self._at_home(r.patient) or relation(self.cbct.patient, r.patient)[0] == "same")
        ]

    def _isocentre(self, scan: SeriesFacts, structure_set: StructureSetFacts) -> XYZ | None:
        """The one isocentre of the plans on that set, if both scans hold what would coincide."""
        places = {
            place
            for plan in self._plans()
            if plan.structure_set_uid == structure_set.sop_uid
            and plan.frame_of_reference in ("", scan.frame_of_reference)
            for place in plan.isocentres_xyz_mm
        }
        if len(places) != 1:
            return None
        (place,) = places
        return place if self.cbct.holds(ORIGIN) and scan.holds(place) else None


def _in_order(known: Known) -> Known:
    """The same evidence in the order of its UIDs, so that the same question reads the same."""
    return Known(
        series=tuple(sorted(known.series, key=lambda s: s.series_uid)),
        structure_sets=tuple(sorted(known.structure_sets, key=lambda s: s.sop_uid)),
        plans=tuple(sorted(known.plans, key=lambda p: p.sop_uid)),
        registrations=tuple(sorted(known.registrations, key=lambda r: r.sop_uid)),
        courses=tuple(sorted(known.courses, key=lambda c: c.planning_ct_uid)),
        priors=tuple(sorted(known.priors, key=lambda p: (p.decision, p.structure_set_uid))),
        lost=tuple(sorted(known.lost)),
    )


def _later(one: datetime | None, other: datetime | None) -> bool:
    """Whether it is known that one is later than the other."""
    return one is not None and other is not None and one > other


def _newest(things: Sequence[T], when: Callable[[T], datetime | None]) -> T | None:
    """The newest, or the only one; None when there is none, a date is missing, or two share it."""
    if len(things) == 1:
        return things[0]
    dates = [date for thing in things if (date := when(thing)) is not None]
    if not dates or len(dates) < len(things):
        return None
    newest = [thing for thing in things if when(thing) == max(dates)]
    return newest[0] if len(newest) == 1 else None


def _numbers(rois: Iterable[RoiFacts]) -> str:
    return ", ".join(f"ROI #{roi.number}" for roi in rois)


def _scan_choice(scan: SeriesFacts) -> Choice:
    taken = "at an unknown time" if scan.acquired_at is None else f"{scan.acquired_at:%Y-%m-%d}"
    slices = len(scan.positions_mm)
    described = f": {scan.description}" if scan.description else ""
    return Choice(value=scan.series_uid, label=f"CT of {taken}, {slices} slices{described}")


def _set_choice(structure_set: StructureSetFacts) -> Choice:
    at = structure_set.drawn_at
    drawn = "at an unknown time" if at is None else f"{at:%Y-%m-%d %H:%M}"
    status = structure_set.approval_status or "approval not stated"
    return Choice(
        value=structure_set.sop_uid,
        label=f"drawn {drawn}, {status}, {len(structure_set.rois)} ROIs",
    )
