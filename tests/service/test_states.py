from __future__ import annotations

from itertools import product

import pytest

from contourcast.service.intake.states import (
    DECIDED,
    SIGNED,
    STOPPED,
    TRANSITIONS,
    WAITING_FOR_A_PERSON,
    WORKING,
    State,
    advance,
)
from contourcast.service.problems import STATUS, ForbiddenTransitionError

# Written down by hand, a row a state, so that the table is not tested against itself.
STOPS = "needs_person failed superseded cancelled"
EXPECTED = {
    "received": f"complete {STOPS}",
    "complete": f"matched {STOPS}",
    "matched": f"registering {STOPS}",
    "registering": f"drawing comparing {STOPS}",
    "drawing": f"comparing {STOPS}",
    "comparing": f"writing {STOPS}",
    "writing": f"delivering awaiting_review {STOPS}",
    "delivering": f"awaiting_review {STOPS}",
    "awaiting_review": f"approved edited rejected {STOPS}",
    "approved": "approved edited rejected",
    "edited": "approved edited rejected",
    "rejected": "approved edited rejected superseded",
    "needs_person": "received complete matched failed superseded cancelled",
    "failed": "received complete matched registering drawing comparing writing delivering "
    "needs_person superseded cancelled",
    "superseded": "received",
    "cancelled": "received superseded",
}


@pytest.mark.parametrize(("state", "to"), list(product(State, State)))
def test_every_pair_is_allowed_or_refused_as_it_is_written(state: State, to: State) -> None:
    if to.value in EXPECTED[state.value].split():
        assert advance(state, to) is to
        return
    with pytest.raises(ForbiddenTransitionError) as refused:
        advance(state, to)
    assert f"is {state.value} cannot become {to.value}" in refused.value.cause
    for allowed in EXPECTED[state.value].split():
        assert allowed in refused.value.remedy


def test_every_state_has_its_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {State.RECEIVED}
    while more := {to for state in reached for to in TRANSITIONS[state]} - reached:
        reached |= more
    assert reached == set(State)


def test_every_state_is_of_one_kind() -> None:
    kinds = [WORKING, {State.AWAITING_REVIEW}, DECIDED, STOPPED]
    assert sorted(s for kind in kinds for s in kind) == sorted(State)


def test_a_signed_contour_is_moved_by_a_person_s_decision_alone() -> None:
    for state in SIGNED:
        assert TRANSITIONS[state] == DECIDED


def test_a_machine_never_decides() -> None:
    """Only from the review, or from another decision, a decision is reached."""
    for state in WORKING | STOPPED:
        assert not TRANSITIONS[state] & DECIDED
    assert State.AWAITING_REVIEW in WAITING_FOR_A_PERSON


def test_the_refusal_is_a_conflict_over_http() -> None:
    assert STATUS[ForbiddenTransitionError] == 409
