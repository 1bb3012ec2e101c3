from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from contourcast.imaging.dicom.instance import CT_IMAGE, read_header
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.plan import Plan
from contourcast.imaging.source import Patient, Study
from contourcast.service.intake.facts import (
    CourseFacts,
    PatientKey,
    PlanFacts,
    PriorFacts,
    RegistrationFacts,
    RoiFacts,
    SeriesFacts,
    StructureSetFacts,
    moment,
    plan_facts,
    registration_facts,
    series_facts,
    structure_set_facts,
)
from contourcast.service.intake.matching import match, relation
from contourcast.service.intake.outcomes import (
    NONE_OF_THESE,
    Answer,
    Known,
    Match,
    NeedsPerson,
    NotOurs,
    Question,
)
from contourcast.service.intake.rules import SiteRules
from support.course import make_course
from support.dicom_factory import make_registration, uid

RULES = SiteRules()
ANNA = PatientKey(patient_id="1001", issuer="HOSP", name="LEAK^ANNA", birth_date="19500101")
BERTA = replace(ANNA, name="LEAK^BERTA", birth_date="19611224")
GTV = RoiFacts(number=3, name="GTV", interpreted_type="GTV", loops=20)
HEART = RoiFacts(number=7, name="Heart", interpreted_type="ORGAN", loops=30)


def day(n: float) -> datetime:
    """Day n of the story, which begins on the first of March; a fraction is hours."""
    return datetime(2026, 3, 1 + int(n), int(24 * (n % 1)))


def ct(
    name: str, *, at: datetime | None = None, frame: str = "", patient: PatientKey = ANNA
) -> SeriesFacts:
    return SeriesFacts(
        series_uid=f"ct-{name}",
        study_uid=f"study-{name}",
        patient=patient,
        modality="CT",
        sop_class_uid=CT_IMAGE,
        frame_of_reference=frame or f"frame-{name}",
        acquired_at=at or day(0),
        manufacturer="Scanner Works",
        description="planning",
        sop_uids=frozenset(f"{name}-{k}" for k in range(3)),
        positions_mm=(0.0, 3.0, 6.0),
        box_xyz_mm=((-250.0, -250.0, -100.0), (250.0, 250.0, 200.0)),
    )


def cbct(
    name: str = "today", *, at: datetime | None = None, frame: str = "", patient: PatientKey = ANNA
) -> SeriesFacts:
    scan = ct(name, at=at or day(20), frame=frame, patient=patient)
    return replace(scan, description="CBCT", box_xyz_mm=((-120.0,) * 3, (120.0,) * 3))


def drawn_on(
    scan: SeriesFacts,
    name: str = "",
    *,
    at: datetime | None = None,
    approval: str = "APPROVED",
    rois: tuple[RoiFacts, ...] = (HEART, GTV),
    ours: bool = False,
) -> StructureSetFacts:
    return StructureSetFacts(
        sop_uid=f"rs-{name or scan.series_uid}",
        series_uid=f"rs-series-{name or scan.series_uid}",
        patient=scan.patient,
        frame_of_reference=scan.frame_of_reference,
        rois=rois,
        drawn_at=at or day(2),
        approval_status=approval,
        ours=ours,
        referenced_series_uids=(scan.series_uid,),
        referenced_sop_uids=scan.sop_uids,
    )


def planned(
    structures: StructureSetFacts,
    name: str = "",
    *,
    at: datetime | None = None,
    approval: str = "APPROVED",
    intent: str = "CURATIVE",
) -> PlanFacts:
    return PlanFacts(
        sop_uid=f"rp-{name or structures.sop_uid}",
        patient=structures.patient,
        structure_set_uid=structures.sop_uid,
        frame_of_reference=structures.frame_of_reference,
        isocentres_xyz_mm=((12.0, -30.0, 55.0),),
        planned_at=at or day(4),
        intent=intent,
        approval_status=approval,
    )


def tie(
    one: SeriesFacts, other: SeriesFacts, name: str = "tie", *, at: datetime | None = None
) -> RegistrationFacts:
    return RegistrationFacts(
        sop_uid=f"reg-{name}",
        patient=one.patient,
        frames=(one.frame_of_reference, other.frame_of_reference),
        made_at=at or day(20),
    )


def signed(
    structures: StructureSetFacts,
    scan: SeriesFacts,
    name: str,
    *,
    at: datetime | None,
    decision: int,
    roi: RoiFacts = GTV,
) -> PriorFacts:
    return PriorFacts(
        planning_ct_uid=scan.series_uid,
        planning_structure_set_uid=structures.sop_uid,
        roi_number=roi.number,
        structure_set_uid=f"signed-{name}",
        cbct_uid=f"ct-{name}",
        cbct_acquired_at=at,
        decision=decision,
    )


PLAN_CT = ct("plan")
STRUCTURES = drawn_on(PLAN_CT)
PLAN = planned(STRUCTURES)
HOME = Known(series=(PLAN_CT,), structure_sets=(STRUCTURES,), plans=(PLAN,))


def found(scan: SeriesFacts, known: Known, *answers: Answer, rules: SiteRules = RULES) -> Match:
    outcome = match(scan, known, rules, answers=answers)
    assert isinstance(outcome, Match), outcome
    return outcome


def asked(
    scan: SeriesFacts, known: Known, *answers: Answer, rules: SiteRules = RULES
) -> NeedsPerson:
    outcome = match(scan, known, rules, answers=answers)
    assert isinstance(outcome, NeedsPerson), outcome
    return outcome


def values(outcome: NeedsPerson) -> list[str]:
    return [choice.value for choice in outcome.choices]


def rule(outcome: Match, question: str) -> str:
    return " ".join(r.rule for r in outcome.reasons if r.question == question)


def answer(question: Question, *choice: str) -> Answer:
    return Answer(question=question, choice=choice)


def test_a_usual_fraction_finds_everything_and_says_why() -> None:
    outcome = found(cbct(), HOME)
    assert outcome.cbct_uid == "ct-today"
    assert outcome.planning_ct_uid == "ct-plan"
    assert outcome.structure_set_uid == "rs-ct-plan"
    assert [(i.roi.number, i.prior) for i in outcome.items] == [(3, None)]
    assert outcome.start.kind == "isocentre"
    assert outcome.start.cbct_from_planning_mm == (-12.0, 30.0, -55.0)
    assert outcome.doubts == ()
    assert [(r.question, r.rule) for r in outcome.reasons] == [
        ("cbct", "called a CBCT"),
        ("patient", "patient ID"),
        ("planning_ct", "plan"),
        ("structure_set", "plan"),
        ("roi", "interpreted type"),
        ("prior", "planning"),
        ("start", "isocentre"),
    ]


def test_what_was_lost_may_be_the_newest_so_a_person_chooses_without_it() -> None:
    known = replace(HOME, lost=("rs-2", "rs-1"))
    outcome = asked(cbct(), known)
    assert (outcome.question, outcome.missing) == ("structure_set", ("rs-1", "rs-2"))
    assert "2 structure sets or plans of this patient were lost, such as rs-1" in outcome.why
    chosen = found(cbct(), known, answer("structure_set", *values(outcome)))
    assert chosen.structure_set_uid == STRUCTURES.sop_uid
    assert "were lost" in chosen.doubts[0]
    nothing = asked(cbct(), Known(series=(PLAN_CT,), lost=("rs-1",)))
    assert nothing.missing == ("rs-1",)


@given(data=st.data())
def test_the_order_of_what_is_known_does_not_matter(data: st.DataObject) -> None:
    old, new = ct("old"), ct("new", at=day(10))
    sets = (
        drawn_on(old),
        drawn_on(new, at=day(12)),
        drawn_on(new, "draft", at=day(13), approval="UNAPPROVED"),
    )
    priors = tuple(signed(sets[1], new, f"f{n}", at=day(14 + n), decision=n) for n in range(4))
    expected = found(cbct(), Known(series=(old, new), structure_sets=sets, priors=priors))
    shuffled = Known(
        series=tuple(data.draw(st.permutations([old, new]))),
        structure_sets=tuple(data.draw(st.permutations(sets))),
        priors=tuple(data.draw(st.permutations(priors))),
    )
    assert found(cbct(), shuffled) == expected


@given(data=st.data())
def test_a_question_reads_the_same_in_whatever_order_things_came(data: st.DataObject) -> None:
    scans = [ct(name) for name in "abc"]
    sets = [drawn_on(scan) for scan in scans]
    expected = asked(cbct(), Known(series=tuple(scans), structure_sets=tuple(sets)))
    shuffled = Known(
        series=tuple(data.draw(st.permutations(scans))),
        structure_sets=tuple(data.draw(st.permutations(sets))),
    )
    assert asked(cbct(), shuffled) == expected


def test_what_is_no_cbct_is_not_ours() -> None:
    outcome = match(PLAN_CT, HOME, RULES)
    assert outcome == NotOurs(
        reason="it is no CBCT (rule 'any other CT': it meets every CT series)"
    )


# Which patient?


def test_another_patient_s_plan_is_never_used_whatever_the_name() -> None:
    other = replace(ANNA, patient_id="1002")
    theirs = ct("theirs", patient=other)
    outcome = asked(cbct(), Known(series=(theirs,), structure_sets=(drawn_on(theirs),)))
    assert outcome.question == "planning_ct"
    assert outcome.why == "no planning CT of this patient is here"
    assert values(outcome) == [NONE_OF_THESE]


def test_one_number_of_two_issuers_is_two_patients() -> None:
    theirs = ct("theirs", patient=replace(ANNA, issuer="OTHER"))
    assert asked(cbct(), Known(series=(theirs,), structure_sets=(drawn_on(theirs),))).why == (
        "no planning CT of this patient is here"
    )


def test_an_issuer_that_is_not_stated_wants_name_and_birth_date() -> None:
    unstated = replace(ANNA, issuer="")
    outcome = found(cbct(patient=unstated), HOME)
    assert "one issuer is not stated" in outcome.reasons[1].sentence
    for bare in (replace(unstated, name=""), replace(unstated, birth_date="")):
        question = asked(cbct(patient=bare), HOME)
        assert question.question == "patient"
        assert "only one of them says who issued it" in question.why
        assert values(question) == ["ct-plan", NONE_OF_THESE]
        assert found(cbct(patient=bare), HOME, answer("patient", "ct-plan")).doubts == ()


def test_objects_of_an_unsure_issuer_are_left_out_beside_sure_ones() -> None:
    unsure = ct("unsure", at=day(3), patient=replace(ANNA, issuer="", name=""))
    known = replace(HOME, series=(PLAN_CT, unsure))
    outcome = found(cbct(), known)
    assert outcome.planning_ct_uid == "ct-plan"
    assert "1 objects of the same patient ID were left out" in outcome.doubts[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "LEAK^BERTA"}, "another name"),
        ({"birth_date": "19500102"}, "another birth date"),
        ({"name": "LEAK^BERTA", "birth_date": "19611224"}, "another name and birth date"),
    ],
)
@pytest.mark.parametrize("what", ["series", "structure_sets", "plans", "registrations"])
def test_a_contradiction_in_anything_is_asked_and_tells_no_name(
    changed: dict[str, str], said: str, what: str
) -> None:
    """A hospital's merge error: two persons under one number."""
    wrong = replace(ANNA, **changed)
    known = replace(HOME, registrations=(tie(PLAN_CT, cbct()),))
    objects = tuple(replace(each, patient=wrong) for each in getattr(known, what))
    outcome = asked(cbct(), replace(known, **{what: objects}))
    assert outcome.question == "patient"
    assert said in outcome.why
    assert values(outcome) == ["ct-plan", NONE_OF_THESE]
    for secret in ("LEAK", "ANNA", "BERTA", "1001", "1950", "1961"):
        assert secret not in repr(outcome)


def test_a_person_settles_a_merge_error_for_one_patient() -> None:
    berta_ct = ct("berta", at=day(1), patient=BERTA)
    known = Known(
        series=(PLAN_CT, berta_ct), structure_sets=(STRUCTURES, drawn_on(berta_ct)), plans=(PLAN,)
    )
    assert set(values(asked(cbct(), known))) == {"ct-plan", "ct-berta", NONE_OF_THESE}
    assert found(cbct(), known, answer("patient", "ct-plan")).planning_ct_uid == "ct-plan"
    assert found(cbct(), known, answer("patient", "ct-berta")).planning_ct_uid == "ct-berta"
    outcome = match(cbct(), known, RULES, answers=[answer("patient", NONE_OF_THESE)])
    assert isinstance(outcome, NotOurs)


def test_a_header_that_was_swapped_whole_is_matched_and_left_to_the_registration() -> None:
    """Nothing that is written contradicts it; the body will (CLINICAL_SERVICE §1.4)."""
    assert found(cbct(patient=ANNA), HOME).planning_ct_uid == "ct-plan"


def test_a_cbct_without_patient_id_is_asked_about_with_those_who_share_name_and_birth_date() -> (
    None
):
    nobody = replace(ANNA, patient_id="", issuer="")
    stranger = ct("stranger", patient=replace(BERTA, patient_id="1002"))
    known = replace(HOME, series=(PLAN_CT, stranger))
    outcome = asked(cbct(patient=nobody), known)
    assert outcome.question == "patient"
    assert values(outcome) == ["ct-plan", NONE_OF_THESE]
    settled = found(cbct(patient=nobody), known, answer("patient", "ct-plan"))
    assert settled.structure_set_uid == "rs-ct-plan"
    assert settled.reasons[1].rule == "answered"


def test_scans_without_patient_id_are_not_one_patient() -> None:
    nobody, somebody = (replace(key, patient_id="", issuer="") for key in (ANNA, BERTA))
    mine, theirs = ct("mine", patient=nobody), ct("theirs", patient=somebody)
    newer = drawn_on(theirs, at=day(5))
    known = Known(series=(mine, theirs), structure_sets=(drawn_on(mine), newer))
    outcome = found(cbct(patient=nobody), known, answer("patient", "ct-mine"))
    assert outcome.planning_ct_uid == "ct-mine"


def test_an_answer_that_names_what_is_not_here_asks_again() -> None:
    gone = "ct-gone"
    for question in ("patient", "planning_ct", "structure_set", "roi"):
        outcome = asked(cbct(), HOME, Answer(question=question, choice=(gone,)))
        assert outcome.question == question
        assert outcome.choices


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("DOE^JANE", "Doe^Jane^^", True),
        ("DOE^JANE", "DOE^JANE^MARY", True),
        ("MÜLLER^JOSÉ", "Muller^Jose", True),
        ("DOE", "DOE^JANE", True),
        ("", "DOE^JANE", True),
        ("DOE^JANE=腫^瘍", "DOE^JANE", True),
        ("DOE JANE", "DOE^JANE", True),
        ("DOE^JANE", "DOE^JOAN", False),
        ("DOE^JANE", "DOES^JANE", False),
        ("DOE^JANE=腫^瘍", "DOE^JANE=山^田", False),
    ],
)
def test_what_contradicts_a_name(one: str, other: str, agree: bool) -> None:
    first, second = replace(ANNA, name=one), replace(ANNA, name=other)
    assert (first.contradicts(second) == "") is agree
    assert (second.contradicts(first) == "") is agree


def test_patient_keys_are_equal_by_number_and_issuer_and_hide_everything() -> None:
    assert ANNA == BERTA
    assert replace(ANNA, issuer="") != ANNA
    assert repr(ANNA) == "PatientKey()"
    assert relation(ANNA, BERTA)[0] == "contradicts"


# Which planning CT?


def test_two_courses_of_one_patient_are_told_apart_by_plan_frame_or_registration() -> None:
    old, new = ct("old"), ct("new", at=day(10))
    sets = (drawn_on(old), drawn_on(new, at=day(12)))
    known = Known(series=(old, new), structure_sets=sets)
    today = cbct()
    by_plan = found(today, replace(known, plans=(planned(sets[0]),)))
    assert (by_plan.planning_ct_uid, rule(by_plan, "planning_ct")) == ("ct-old", "plan")
    by_frame = found(cbct(frame="frame-old"), known)
    assert (by_frame.planning_ct_uid, by_frame.start.kind) == ("ct-old", "identity")
    assert "a claim" in by_frame.reasons[2].sentence
    by_tie = found(today, replace(known, registrations=(tie(old, today),)))
    assert (by_tie.planning_ct_uid, rule(by_tie, "planning_ct")) == ("ct-old", "registration")
    assert by_tie.start.registration_uid == "reg-tie"
    for outcome in (by_plan, by_frame, by_tie):
        assert outcome.doubts == ()


def test_with_two_plans_weaker_evidence_decides_among_their_cts() -> None:
    old, new = ct("old"), ct("new", at=day(10))
    sets = (drawn_on(old), drawn_on(new, at=day(12)))
    plans = (planned(sets[0]), planned(sets[1], at=day(14)))
    today = cbct()
    known = Known(
        series=(old, new), structure_sets=sets, plans=plans, registrations=(tie(old, today),)
    )
    assert found(today, known).planning_ct_uid == "ct-old"


def test_evidence_that_contradicts_itself_is_asked() -> None:
    replan = ct("replan", at=day(10))
    known = replace(
        HOME,
        series=(PLAN_CT, replan),
        structure_sets=(STRUCTURES, drawn_on(replan, at=day(12))),
    )
    outcome = asked(cbct(frame="frame-replan"), known)
    assert outcome.question == "planning_ct"
    assert "contradicts itself" in outcome.why
    assert set(values(outcome)) == {"ct-plan", "ct-replan", NONE_OF_THESE}
    chosen = found(cbct(frame="frame-replan"), known, answer("planning_ct", "ct-replan"))
    assert chosen.structure_set_uid == "rs-ct-replan"
    outcome_none = match(cbct(), known, RULES, answers=[answer("planning_ct", NONE_OF_THESE)])
    assert isinstance(outcome_none, NotOurs)


def test_a_replan_takes_over_once_its_structures_are_approved_and_says_that_a_date_decided() -> (
    None
):
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12)))
    plans = (PLAN, planned(sets[1], at=day(14)))
    known = Known(series=(PLAN_CT, replan), structure_sets=sets, plans=plans)
    later = found(cbct(at=day(20)), known)
    assert later.planning_ct_uid == "ct-replan"
    assert later.doubts == ("the planning CT was chosen among several by date alone",)
    before = found(cbct(at=day(11)), known)
    assert before.planning_ct_uid == "ct-plan"
    assert before.doubts == ()


def test_a_signed_fraction_of_the_replan_ends_the_doubt() -> None:
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12)))
    prior = signed(sets[1], replan, "f1", at=day(18), decision=1)
    known = Known(series=(PLAN_CT, replan), structure_sets=sets, priors=(prior,))
    outcome = found(cbct(), known)
    assert outcome.doubts == ()
    assert outcome.items[0].prior == prior


def test_a_prior_is_not_carried_into_a_replan() -> None:
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12)))
    known = Known(
        series=(PLAN_CT, replan),
        structure_sets=sets,
        priors=(signed(STRUCTURES, PLAN_CT, "f1", at=day(9), decision=1),),
    )
    outcome = found(cbct(), known)
    assert (outcome.planning_ct_uid, outcome.items[0].prior) == ("ct-replan", None)


def test_two_courses_side_by_side_are_asked() -> None:
    lung, brain = ct("lung"), ct("brain", at=day(10))
    sets = (drawn_on(lung), drawn_on(brain, at=day(12)))
    course = CourseFacts(
        planning_ct_uid="ct-lung", structure_set_uid="rs-ct-lung", last_fraction_at=day(19)
    )
    known = Known(series=(lung, brain), structure_sets=sets, courses=(course,))
    outcome = asked(cbct(), known)
    assert outcome.question == "planning_ct"
    assert "side by side" in outcome.why
    ended = replace(known, courses=(replace(course, last_fraction_at=day(11)),))
    assert found(cbct(), ended).planning_ct_uid == "ct-brain"


@pytest.mark.parametrize("dates", [(day(2), day(2)), (None, day(2)), (None, None)])
def test_structures_of_two_cts_that_dates_do_not_tell_apart_are_asked(
    dates: Sequence[datetime | None],
) -> None:
    scans = (ct("a"), ct("b"))
    sets = tuple(
        replace(drawn_on(scan), drawn_at=at) for scan, at in zip(scans, dates, strict=True)
    )
    outcome = asked(cbct(), Known(series=scans, structure_sets=sets))
    assert outcome.question == "planning_ct"
    assert "nor the dates of approved structure sets tell them apart" in outcome.why


def test_newer_structures_that_nobody_approved_do_not_decide_and_are_said() -> None:
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12), approval="UNAPPROVED"))
    outcome = found(cbct(), Known(series=(PLAN_CT, replan), structure_sets=sets))
    assert outcome.planning_ct_uid == "ct-plan"
    assert outcome.doubts[-1] == "another planning CT has newer structures that are not approved"


def test_a_draft_plan_that_is_newer_than_the_approved_one_leaves_the_date_to_decide() -> None:
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12), approval=""))
    plans = (PLAN, planned(sets[1], at=day(14), approval="UNAPPROVED"))
    outcome = found(cbct(), Known(series=(PLAN_CT, replan), structure_sets=sets, plans=plans))
    assert rule(outcome, "planning_ct") == "newest approved structure set"
    assert outcome.planning_ct_uid == "ct-plan"
    assert len(outcome.doubts) == 2


def test_a_draft_from_before_the_approved_plan_has_been_replaced_by_it() -> None:
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12)))
    plans = (planned(STRUCTURES, approval="UNAPPROVED"), planned(sets[1], at=day(14)))
    outcome = found(cbct(), Known(series=(PLAN_CT, replan), structure_sets=sets, plans=plans))
    assert (outcome.planning_ct_uid, rule(outcome, "planning_ct")) == ("ct-replan", "plan")
    assert outcome.doubts == ()


@pytest.mark.parametrize("change", [{"intent": "VERIFICATION"}, {"approval": "REJECTED"}])
def test_a_plan_that_treats_nobody_is_no_evidence(change: dict[str, str]) -> None:
    phantom = drawn_on(ct("phantom", at=day(6)), at=day(7))
    plans = (PLAN, planned(phantom, at=day(8), **change))
    outcome = found(cbct(), replace(HOME, plans=plans))
    assert outcome.planning_ct_uid == "ct-plan"


def test_a_missing_planning_ct_is_named_to_be_fetched() -> None:
    outcome = asked(cbct(), Known(structure_sets=(STRUCTURES,), plans=(PLAN,)))
    assert outcome.question == "planning_ct"
    assert outcome.missing == ("ct-plan",)
    assert "ct-plan" in outcome.why
    no_set = asked(cbct(), Known(series=(PLAN_CT,), plans=(PLAN,)))
    assert no_set.missing == ("rs-ct-plan",)


def test_a_missing_replan_is_not_replaced_by_the_former_plan() -> None:
    replan = ct("replan", at=day(10))
    sets = (STRUCTURES, drawn_on(replan, at=day(12)))
    plans = (PLAN, planned(sets[1], at=day(14)))
    without_set = asked(cbct(), replace(HOME, plans=plans))
    assert without_set.missing == ("rs-ct-replan",)
    assert values(without_set) == ["ct-plan", NONE_OF_THESE]
    without_ct = asked(cbct(), replace(HOME, structure_sets=sets, plans=plans))
    assert without_ct.missing == ("ct-replan",)


def test_a_ct_without_structures_is_no_planning_ct() -> None:
    outcome = asked(cbct(), Known(series=(PLAN_CT,)))
    assert outcome.why == "no structure set that may be used was drawn on any CT of this patient"


def test_a_ct_that_was_taken_after_the_cbct_is_offered_and_never_taken() -> None:
    outcome = asked(cbct(at=datetime(2026, 2, 1)), HOME)
    assert outcome.why == "every CT of this patient was taken after the CBCT"
    assert values(outcome) == ["ct-plan", NONE_OF_THESE]
    early = cbct(at=datetime(2026, 2, 1))
    assert found(early, HOME, answer("planning_ct", "ct-plan")).planning_ct_uid == "ct-plan"


def test_a_ct_of_the_same_day_may_be_the_planning_ct() -> None:
    """Emergencies; and files that state the day alone, which is midnight."""
    midnight = cbct(at=day(0))
    known = Known(series=(ct("plan", at=day(0.5)),), structure_sets=(drawn_on(PLAN_CT, at=day(0)),))
    assert found(midnight, known).planning_ct_uid == "ct-plan"


def test_phases_of_a_4dct_that_share_the_frame_are_not_the_ct_that_was_drawn_on() -> None:
    phase = replace(ct("phase", frame="frame-plan"), acquired_at=day(0))
    outcome = found(cbct(), replace(HOME, series=(phase, PLAN_CT), plans=()))
    assert (outcome.planning_ct_uid, rule(outcome, "planning_ct")) == ("ct-plan", "only one")


def test_a_ct_that_the_rules_ignore_counts_when_a_plan_was_made_on_it() -> None:
    """Planning on a synthetic CT, where magnetic resonance is the only scan."""
    synthetic = replace(ct("syn"), description="sCT")
    structures = drawn_on(synthetic)
    known = Known(series=(synthetic,), structure_sets=(structures,))
    assert asked(cbct(), known).question == "planning_ct"
    outcome = found(cbct(), replace(known, plans=(planned(structures),)))
    assert outcome.planning_ct_uid == "ct-syn"


# Which structure set?


def test_an_unapproved_set_of_our_own_is_never_a_planning_set() -> None:
    proposal = drawn_on(PLAN_CT, "ours", at=day(15), approval="UNAPPROVED", ours=True)
    known = Known(series=(PLAN_CT,), structure_sets=(proposal,))
    assert asked(cbct(), known).question == "planning_ct"
    both = found(cbct(), replace(known, structure_sets=(proposal, STRUCTURES)))
    assert both.structure_set_uid == "rs-ct-plan"
    accepted = replace(proposal, approval_status="APPROVED")
    assert found(cbct(), replace(known, structure_sets=(accepted,))).structure_set_uid == "rs-ours"


def test_a_rejected_set_is_never_a_planning_set() -> None:
    rejected = drawn_on(PLAN_CT, approval="REJECTED")
    known = Known(series=(PLAN_CT,), structure_sets=(rejected,))
    assert asked(cbct(), known).question == "planning_ct"
    planned_on = asked(cbct(), replace(known, plans=(planned(rejected),)))
    assert (planned_on.question, planned_on.missing) == ("planning_ct", ())
    beside = (rejected, drawn_on(PLAN_CT, "draft", approval=""))
    outcome = asked(cbct(), replace(known, structure_sets=beside, plans=(planned(rejected),)))
    assert "or were rejected" in outcome.why
    assert (values(outcome), outcome.missing) == (["ct-plan", NONE_OF_THESE], ())


def test_sets_on_cbcts_are_not_planning_sets() -> None:
    yesterday = cbct("yesterday", at=day(19))
    known = replace(
        HOME,
        series=(PLAN_CT, yesterday),
        structure_sets=(STRUCTURES, drawn_on(yesterday, at=day(19), ours=True)),
        plans=(),
    )
    assert found(cbct(), known).planning_ct_uid == "ct-plan"


def test_approved_comes_before_newer_and_newer_before_older() -> None:
    older = drawn_on(PLAN_CT, "older", at=day(1))
    draft = drawn_on(PLAN_CT, "draft", at=day(9), approval="UNAPPROVED")
    rejected = drawn_on(PLAN_CT, "rejected", at=day(10), approval="REJECTED")
    future = drawn_on(PLAN_CT, "future", at=day(25))
    sets = (older, STRUCTURES, draft, rejected, future)
    outcome = found(cbct(), Known(series=(PLAN_CT,), structure_sets=sets))
    assert outcome.structure_set_uid == "rs-ct-plan"
    assert rule(outcome, "structure_set") == "approved and the newest"
    assert outcome.doubts == ()


def test_sets_that_say_nothing_of_approval_serve_with_a_doubt() -> None:
    plain = drawn_on(PLAN_CT, approval="")
    outcome = found(cbct(), Known(series=(PLAN_CT,), structure_sets=(plain,)))
    assert outcome.doubts == ("no structure set of the planning CT says that it is approved",)
    assert rule(outcome, "structure_set") == "the only one"


def test_structures_drawn_after_the_cbct_serve_with_a_doubt() -> None:
    late = drawn_on(PLAN_CT, at=day(25))
    outcome = found(cbct(), Known(series=(PLAN_CT,), structure_sets=(late,)))
    assert outcome.doubts == ("every structure set of the planning CT was drawn after the CBCT",)


def test_equal_sets_are_asked() -> None:
    twins = (drawn_on(PLAN_CT, "a"), drawn_on(PLAN_CT, "b"))
    outcome = asked(cbct(), Known(series=(PLAN_CT,), structure_sets=twins))
    assert (outcome.question, values(outcome)) == ("structure_set", ["rs-a", "rs-b"])
    chosen = found(
        cbct(), Known(series=(PLAN_CT,), structure_sets=twins), answer("structure_set", "rs-b")
    )
    assert chosen.structure_set_uid == "rs-b"


def test_the_plan_s_set_stands_before_a_newer_one_which_is_said() -> None:
    newer = drawn_on(PLAN_CT, "newer", at=day(9))
    outcome = found(cbct(), replace(HOME, structure_sets=(STRUCTURES, newer)))
    assert outcome.structure_set_uid == "rs-ct-plan"
    assert "rs-newer is newer than that of the plan" in outcome.doubts[0]


def test_a_second_plan_on_one_ct_brings_its_own_set() -> None:
    boost = drawn_on(PLAN_CT, "boost", at=day(9))
    known = replace(HOME, structure_sets=(STRUCTURES, boost))
    newest = found(cbct(), replace(known, plans=(PLAN, planned(boost, at=day(10)))))
    assert newest.structure_set_uid == "rs-boost"
    equal = asked(cbct(), replace(known, plans=(PLAN, planned(boost))))
    assert (equal.question, set(values(equal))) == ("structure_set", {"rs-ct-plan", "rs-boost"})


def test_a_chosen_ct_without_structures_leads_to_the_next_question() -> None:
    bare = ct("bare", at=day(1))
    known = replace(HOME, series=(PLAN_CT, bare))
    outcome = asked(cbct(), known, answer("planning_ct", "ct-bare"))
    assert (outcome.question, outcome.choices) == ("structure_set", ())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"referenced_series_uids": ("ct-other",)}, True),
        ({"referenced_sop_uids": frozenset()}, True),
        ({"referenced_sop_uids": frozenset({"lost"})}, True),
        ({"referenced_series_uids": (), "referenced_sop_uids": frozenset()}, True),
        ({"referenced_series_uids": (), "referenced_sop_uids": frozenset({"x"})}, False),
        ({"referenced_series_uids": ("o",), "referenced_sop_uids": frozenset()}, False),
        ({"frame_of_reference": "frame-other"}, False),
    ],
)
def test_on_which_scan_a_set_was_drawn(change: dict[str, object], expected: bool) -> None:
    assert replace(STRUCTURES, **change).drawn_on(PLAN_CT) is expected  # type: ignore[arg-type]


def test_nothing_was_drawn_on_a_scan_without_frame_of_reference() -> None:
    bare = replace(PLAN_CT, frame_of_reference="")
    assert not replace(STRUCTURES, frame_of_reference="").drawn_on(bare)


# Which ROIs?


def with_rois(*rois: RoiFacts) -> Known:
    return replace(HOME, structure_sets=(drawn_on(PLAN_CT, rois=rois),))


def roi(number: int, name: str, kind: str = "", loops: int = 5) -> RoiFacts:
    return RoiFacts(number=number, name=name, interpreted_type=kind, loops=loops)


def test_several_gtvs_are_several_items() -> None:
    known = with_rois(roi(1, "GTVp", "GTV"), roi(2, "GTVn", "GTV"), roi(3, "PTV", "PTV"))
    outcome = found(cbct(), known)
    assert [item.roi.number for item in outcome.items] == [1, 2]
    assert outcome.reasons[4].sentence == "ROI #1, ROI #2: of the type GTV"


def test_names_count_where_no_type_says_gtv() -> None:
    known = with_rois(roi(1, "iGTV_lung"), roi(2, "gtv-n"), roi(3, "PTV"), roi(4, "ring GTV"))
    outcome = found(cbct(), known)
    assert [item.roi.number for item in outcome.items] == [1, 2]
    assert rule(outcome, "roi") == "name"
    site = SiteRules(roi_names=("^tumou?r",))
    assert asked(cbct(), known, rules=site).question == "roi"


def test_a_target_by_name_beside_one_by_type_is_said() -> None:
    outcome = found(cbct(), with_rois(roi(1, "GTVp", "GTV"), roi(2, "GTVn", "CTV")))
    assert [item.roi.number for item in outcome.items] == [1]
    assert outcome.doubts == ("ROI #2: named like a target, but not of the type GTV; left out",)


def test_an_empty_gtv_is_nothing_to_carry() -> None:
    outcome = found(cbct(), with_rois(roi(1, "GTV old", "GTV", loops=0), roi(2, "GTV", "GTV")))
    assert [item.roi.number for item in outcome.items] == [2]


def test_without_a_target_a_person_chooses_one_or_several() -> None:
    known = with_rois(roi(1, "Lung L"), roi(2, "Mass"), roi(9, "Mass 2"))
    outcome = asked(cbct(), known)
    assert (outcome.question, outcome.several) == ("roi", True)
    assert [(c.value, c.label) for c in outcome.choices][1] == ("2", "Mass")
    assert "Mass" not in repr(outcome)
    chosen = found(cbct(), known, answer("roi", "9", "2"))
    assert [item.roi.number for item in chosen.items] == [2, 9]
    assert asked(cbct(), known, answer("roi", "2", "17")).question == "roi"
    assert asked(cbct(), known, Answer(question="roi", choice=())).question == "roi"


def test_a_set_without_contours_asks_for_another_set() -> None:
    outcome = asked(cbct(), with_rois(roi(1, "GTV", "GTV", loops=0)))
    assert (outcome.question, outcome.choices) == ("structure_set", ())
    assert "no ROI with closed contours" in outcome.why


# Which prior?


def test_the_prior_is_the_last_approved_contour_of_an_earlier_fraction() -> None:
    priors = tuple(
        signed(STRUCTURES, PLAN_CT, f"f{n}", at=day(at), decision=decision)
        for n, at, decision in ((1, 16, 1), (3, 18, 2), (2, 17, 3), (5, 21, 4))
    )
    outcome = found(cbct(), replace(HOME, priors=priors))
    prior = outcome.items[0].prior
    assert prior is not None
    assert prior.structure_set_uid == "signed-f3"
    assert "signed on the CBCT of 2026-03-19 00:00" in outcome.reasons[5].sentence


def test_the_last_signature_of_one_cbct_counts() -> None:
    first = signed(STRUCTURES, PLAN_CT, "f1", at=day(18), decision=1)
    again = replace(first, structure_set_uid="signed-again", decision=2)
    prior = found(cbct(), replace(HOME, priors=(again, first))).items[0].prior
    assert prior == again


@given(
    treated=st.lists(st.integers(10, 27), min_size=1, max_size=8),
    decisions=st.permutations(range(8)),
)
def test_a_prior_is_never_of_a_later_day_and_never_overtaken_by_an_older_one(
    treated: list[int], decisions: list[int]
) -> None:
    priors = tuple(
        signed(STRUCTURES, PLAN_CT, f"f{k}", at=day(n), decision=d)
        for k, (n, d) in enumerate(zip(treated, decisions, strict=False))
    )
    prior = found(cbct(at=day(20)), replace(HOME, priors=priors)).items[0].prior
    earlier = [n for n in treated if n < 20]
    if not earlier:
        assert prior is None
        return
    assert prior is not None
    assert prior.cbct_acquired_at == day(max(earlier))


@pytest.mark.parametrize(
    "change",
    [
        {"cbct_acquired_at": day(20)},
        {"cbct_acquired_at": None},
        {"cbct_uid": "ct-today"},
        {"planning_ct_uid": "ct-other"},
        {"planning_structure_set_uid": "rs-other"},
        {"roi_number": 7},
    ],
)
def test_what_is_no_prior(change: dict[str, object]) -> None:
    prior = replace(
        signed(STRUCTURES, PLAN_CT, "f1", at=day(18), decision=1),
        **change,  # type: ignore[arg-type]
    )
    assert found(cbct(), replace(HOME, priors=(prior,))).items[0].prior is None


def test_each_roi_has_its_own_prior() -> None:
    structures = drawn_on(PLAN_CT, rois=(roi(1, "GTVp", "GTV"), roi(2, "GTVn", "GTV")))
    prior = signed(structures, PLAN_CT, "f1", at=day(18), decision=1, roi=roi(2, "GTVn"))
    known = Known(series=(PLAN_CT,), structure_sets=(structures,), priors=(prior,))
    assert [item.prior for item in found(cbct(), known).items] == [None, prior]


def test_a_site_may_carry_the_planning_contour_always() -> None:
    prior = signed(STRUCTURES, PLAN_CT, "f1", at=day(18), decision=1)
    outcome = found(cbct(), replace(HOME, priors=(prior,)), rules=SiteRules(prior="planning"))
    assert (outcome.items[0].prior, rule(outcome, "prior")) == (None, "setting")


def test_a_cbct_that_does_not_say_when_has_the_planning_contour() -> None:
    prior = signed(STRUCTURES, PLAN_CT, "f1", at=day(18), decision=1)
    timeless = replace(cbct(), acquired_at=None)
    outcome = found(timeless, replace(HOME, priors=(prior,)))
    assert outcome.items[0].prior is None
    assert "does not say when" in outcome.reasons[5].sentence


# Where registration starts


def test_a_registration_is_a_start_before_the_isocentre() -> None:
    today = cbct()
    outcome = found(today, replace(HOME, registrations=(tie(today, PLAN_CT),)))
    assert (outcome.start.kind, outcome.start.registration_uid) == ("registration", "reg-tie")


def test_the_newest_of_several_registrations_starts_and_equal_ones_do_not() -> None:
    today = cbct()
    first, second = tie(today, PLAN_CT, "a", at=day(20)), tie(today, PLAN_CT, "b", at=day(20.5))
    newest = found(today, replace(HOME, registrations=(second, first)))
    assert newest.start.registration_uid == "reg-b"
    equal = found(today, replace(HOME, registrations=(first, replace(second, made_at=day(20)))))
    assert equal.start.kind == "isocentre"
    assert "2 Spatial Registrations" in equal.doubts[0]


def test_a_registration_with_several_results_or_of_another_patient_is_none() -> None:
    today = cbct()
    several = replace(tie(today, PLAN_CT), single=False)
    foreign = replace(tie(today, PLAN_CT), patient=replace(ANNA, patient_id="1002"))
    outcome = found(today, replace(HOME, registrations=(several, foreign)))
    assert outcome.start.kind == "isocentre"


def test_one_frame_of_reference_starts_at_identity() -> None:
    assert found(cbct(frame="frame-plan"), HOME).start.kind == "identity"


@pytest.mark.parametrize(
    ("plan", "today"),
    [
        (replace(PLAN, isocentres_xyz_mm=()), cbct()),
        (replace(PLAN, isocentres_xyz_mm=((0.0, 0.0, 0.0), (50.0, 0.0, 0.0))), cbct()),
        (replace(PLAN, isocentres_xyz_mm=((0.0, 0.0, 900.0),)), cbct()),
        (replace(PLAN, frame_of_reference="frame-other"), cbct()),
        (PLAN, replace(cbct(), box_xyz_mm=((500.0,) * 3, (700.0,) * 3))),
        (PLAN, replace(cbct(), box_xyz_mm=None)),
    ],
)
def test_an_isocentre_that_does_not_fit_leaves_the_centres(
    plan: PlanFacts, today: SeriesFacts
) -> None:
    assert found(today, replace(HOME, plans=(plan,))).start.kind == "centre"


def test_no_reason_tells_anything_of_the_patient() -> None:
    outcome = found(cbct(), HOME)
    told = " ".join((repr(outcome), *(r.sentence for r in outcome.reasons)))
    for secret in ("LEAK", "1001", "19500101", "HOSP"):
        assert secret not in told


# Facts from files


def test_a_course_on_disk_becomes_facts_that_match(tmp_path: Path) -> None:
    course = make_course(tmp_path)
    scans = [
        series_facts([read_header(p) for p in files.paths], sender=" LINAC1 ")
        for files in (course.planning_ct, course.cbct)
    ]
    planning, today = replace(scans[0], acquired_at=day(0)), scans[1]
    today = replace(today, description="CBCT", acquired_at=day(9))
    structures = structure_set_facts(
        read_structure_set(course.structures), read_header(course.structures), drawn_at=day(1)
    )
    assert today.sender == "LINAC1"
    assert len(today.positions_mm) == 24
    assert today.positions_mm[1] - today.positions_mm[0] == 5.0
    assert today.holds((0.0, 0.0, 0.0))
    assert not today.holds((0.0, 0.0, 1000.0))
    path = make_registration(
        tmp_path / "reg.dcm",
        registered=course.cbct.frame_of_reference,
        moved={course.planning_ct.frame_of_reference: np.eye(4)},
    )
    registration = replace(
        registration_facts(read_registration(path), read_header(path)), patient=today.patient
    )
    assert registration.single
    known = Known(series=(planning,), structure_sets=(structures,), registrations=(registration,))
    outcome = found(today, known)
    assert outcome.structure_set_uid == course.structures_uid
    assert outcome.start.registration_uid == uid("reg instance")
    assert [item.roi.name for item in outcome.items] == ["GTV"]
    assert "ZZQQ" not in repr((scans, structures, registration, outcome))


def test_two_results_for_one_frame_are_not_single(tmp_path: Path) -> None:
    def second(dataset: FileDataset) -> None:
        item = dataset.RegistrationSequence[-1]
        item.MatrixRegistrationSequence = list(item.MatrixRegistrationSequence) * 2

    path = make_registration(
        tmp_path / "reg.dcm", registered=uid("a"), moved={uid("b"): np.eye(4)}, change=second
    )
    facts = registration_facts(read_registration(path), read_header(path))
    assert not facts.single
    assert facts.ties(uid("b"), uid("a"))
    assert facts.made_at == datetime(2026, 1, 3, 10, 1)


def test_facts_of_a_series_do_not_depend_on_the_order_of_its_files(tmp_path: Path) -> None:
    headers = [read_header(p) for p in make_course(tmp_path).cbct.paths]
    assert series_facts(headers[::-1]) == series_facts(headers)


def test_the_time_of_a_set_falls_back_to_its_series(tmp_path: Path) -> None:
    course = make_course(tmp_path)
    facts = structure_set_facts(
        read_structure_set(course.structures), read_header(course.structures)
    )
    assert facts.drawn_at == datetime(2026, 1, 3, 10, 1)
    assert not facts.ours


def test_a_scout_is_left_out_of_the_place_of_a_series(tmp_path: Path) -> None:
    headers = [read_header(p) for p in make_course(tmp_path).cbct.paths]
    scout = replace(headers[0], image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    facts = series_facts([scout, *headers[1:]])
    assert len(facts.positions_mm) == 23
    assert len(facts.sop_uids) == 24


@pytest.mark.parametrize("lost", ["position_xyz_mm", "orientation", "spacing_yx_mm"])
def test_a_series_that_does_not_say_where_it_lies_has_no_box(tmp_path: Path, lost: str) -> None:
    headers = [read_header(p) for p in make_course(tmp_path).cbct.paths]
    blind = replace(headers[0], plane=replace(headers[0].plane, **{lost: None}))  # type: ignore[arg-type]
    facts = series_facts([blind, *headers[1:]])
    assert facts.box_xyz_mm is None
    assert facts.holds((0.0, 0.0, 0.0)) is None


def test_numbers_too_large_to_multiply_are_no_place(tmp_path: Path) -> None:
    header = read_header(make_course(tmp_path).cbct.paths[0])
    far = replace(
        header.plane,
        position_xyz_mm=(1e308, 1e308, 1e308),
        orientation=(1e9, 0.0, 0.0, 0.0, 1e9, 0.0),
    )
    facts = series_facts([replace(header, plane=replace(far, spacing_yx_mm=(1e300, 1e300)))])
    assert facts.positions_mm == ()
    assert facts.box_xyz_mm is None


def test_facts_of_a_plan() -> None:
    plan = Plan(
        sop_instance_uid="1.2",
        series_instance_uid="1.3",
        frame_of_reference="1.4",
        patient=Patient(patient_id=" 1001 ", issuer="HOSP "),
        study=Study(instance_uid="1.5"),
        structure_set_uid="1.6",
        date="20260304",
        time="1015",
        intent="MACHINE_QA",
    )
    facts = plan_facts(plan)
    assert facts.planned_at == datetime(2026, 3, 4, 10, 15)
    assert facts.patient == ANNA
    assert not facts.treats
    assert not facts.approved


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20260103", "101500.25", datetime(2026, 1, 3, 10, 15)),
        ("2026.01.03", "10:15:00", datetime(2026, 1, 3, 10, 15)),
        ("20260103", "10", datetime(2026, 1, 3, 10)),
        ("20260103", "", datetime(2026, 1, 3)),
        ("20260103", "256000", datetime(2026, 1, 3)),
        ("20260103", "now", datetime(2026, 1, 3)),
        ("20261303", "101500", None),
        ("", "101500", None),
        ("yesterday", "", None),
    ],
)
def test_a_date_and_a_time_of_dicom(date: str, time: str, expected: datetime | None) -> None:
    assert moment(date, time) == expected
