"""The states of a propagation, and the one table of what may follow what."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from contourcast.service.problems import ForbiddenTransitionError


class State(StrEnum):
    """Where a propagation is; the first nine in the order of its way."""

    RECEIVED = "received"
    COMPLETE = "complete"
    MATCHED = "matched"
    REGISTERING = "registering"
    DRAWING = "drawing"
    COMPARING = "comparing"
    WRITING = "writing"
    DELIVERING = "delivering"
    AWAITING_REVIEW = "awaiting_review"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    NEEDS_PERSON = "needs_person"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


_S = State
WORKING: Final = frozenset(
    {
        _S.RECEIVED,
        _S.COMPLETE,
        _S.MATCHED,
        _S.REGISTERING,
        _S.DRAWING,
        _S.COMPARING,
        _S.WRITING,
        _S.DELIVERING,
    }
)
"""The machine's turn."""
SIGNED: Final = frozenset({_S.APPROVED, _S.EDITED})
"""A person stands for the contour: nothing but a person's next decision moves it."""
DECIDED: Final = SIGNED | {_S.REJECTED}
"""A person has decided."""
THROUGH: Final = DECIDED | {_S.SUPERSEDED, _S.CANCELLED}
"""A person is through with these; a worklist shows them when they are asked for."""
STOPPED: Final = frozenset({_S.NEEDS_PERSON, _S.FAILED, _S.SUPERSEDED, _S.CANCELLED})
"""Left its way; where it may come back is in the table."""
WAITING_FOR_A_PERSON: Final = frozenset({_S.AWAITING_REVIEW, _S.NEEDS_PERSON})

# The way itself. A registration that is rejected draws nothing and is compared with nothing, yet
# its empty structure set is written (CLINICAL_SERVICE §1.1). Whoever has no destination delivers
# nothing.
_ONWARD: Final[dict[State, frozenset[State]]] = {
    _S.RECEIVED: frozenset({_S.COMPLETE}),
    _S.COMPLETE: frozenset({_S.MATCHED}),
    _S.MATCHED: frozenset({_S.REGISTERING}),
    _S.REGISTERING: frozenset({_S.DRAWING, _S.COMPARING}),
    _S.DRAWING: frozenset({_S.COMPARING}),
    _S.COMPARING: frozenset({_S.WRITING}),
    _S.WRITING: frozenset({_S.DELIVERING, _S.AWAITING_REVIEW}),
    _S.DELIVERING: frozenset({_S.AWAITING_REVIEW}),
    _S.AWAITING_REVIEW: DECIDED,
}

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    **{state: onward | STOPPED for state, onward in _ONWARD.items()},
    # A later decision is a new object beside the former, never its replacement (§2.5). A signed
    # contour is not superseded by itself: a notice is raised (§1.1).
    _S.APPROVED: DECIDED,
    _S.EDITED: DECIDED,
    _S.REJECTED: DECIDED | {_S.SUPERSEDED},
    # Answered: the question was whether it is whole, or to what it belongs.
    _S.NEEDS_PERSON: frozenset(
        {_S.RECEIVED, _S.COMPLETE, _S.MATCHED, _S.FAILED, _S.SUPERSEDED, _S.CANCELLED}
    ),
    # Tried again, from wherever its steps left results.
    _S.FAILED: WORKING | {_S.NEEDS_PERSON, _S.SUPERSEDED, _S.CANCELLED},
    # A propagation is its inputs: asked for again, or current again, it is the same one.
    _S.SUPERSEDED: frozenset({_S.RECEIVED}),
    _S.CANCELLED: frozenset({_S.RECEIVED, _S.SUPERSEDED}),
}


def advance(state: State, to: State) -> State:
    """The state after a step.

    Raises:
        ForbiddenTransitionError: The table has no such step; says what it has.
    """
    if to not in TRANSITIONS[state]:
        allowed = [s.value for s in State if s in TRANSITIONS[state]]
        raise ForbiddenTransitionError(
            f"a propagation that is {state.value} cannot become {to.value}",
            remedy=f"from here it may become {', '.join(allowed)}",
        )
    return to
