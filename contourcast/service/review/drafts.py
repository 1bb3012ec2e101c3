"""Edits in progress: what a reviewer changed so far, saved each second, signed by nobody.

A draft holds the slices that were edited and no others: all else is the machine's own contour,
point by point. There is one of each propagation; two who edit at once learn of each other by its
digest, and neither overwrites what the other saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Row, delete, select, update

from contourcast.imaging.errors import InputError
from contourcast.service.index.database import Index, as_json, now
from contourcast.service.index.tables import draft
from contourcast.service.intake.states import DECIDED, State
from contourcast.service.jobs.propagations import Job
from contourcast.service.problems import ChangedError, ConflictError, NotFoundError
from contourcast.service.review.loops import Slices

EDITABLE: Final = DECIDED | {State.AWAITING_REVIEW}
NEW: Final = "*"
"""Instead of a digest: there is no draft yet."""

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An edit in progress.

    Attributes:
        method: Whose contour it began from.
        loops: Of each edited slice: its closed loops; none: it was emptied.
        seconds: Of editing, as the page counted them.
        digest: Of all of it.
    """

    propagation: str
    method: str
    loops: dict[int, list[Points]]
    seconds: float
    saved_at: str
    reviewer: str
    digest: str

    @property
    def slices(self) -> Slices:
        """The loops as arrays."""
        return {k: [np.array(loop, float) for loop in found] for k, found in self.loops.items()}


class Drafts:
    """The table of drafts.

    Args:
        index: Where it is.
    """

    def __init__(self, index: Index) -> None:
        self.index = index

    def of(self, propagation_id: str) -> Draft:
        """The draft of a propagation.

        Raises:
            NotFoundError: There is none.
        """
        found = self.begun(propagation_id)
        if found is None:
            raise NotFoundError("nobody has edited this propagation", remedy="begin with a PUT")
        return found

    def begun(self, propagation_id: str) -> Draft | None:
        """The draft of a propagation, where somebody began one."""
        with self.index.read() as at:
            found = _row(at, propagation_id)
        return None if found is None else _draft(found)

    def save(
        self,
        job: Job,
        *,
        method: str,
        loops: Mapping[int, list[Points]],
        slices: int,
        seconds: float,
        reviewer: str,
        expected: str,
    ) -> Draft:
        """Keeps an edit, in place of the one that it goes on from.

        Args:
            job: What is edited.
            method: Whose contour it began from.
            loops: Of edited slices alone.
            slices: How many the CBCT has.
            seconds: Of editing so far.
            reviewer: Who edits.
            expected: The digest of the draft that this one goes on from, or `NEW`.

        Raises:
            InputError: The method or a slice is none of this propagation's.
            ConflictError: It cannot be edited in its state.
            ChangedError: Somebody else saved meanwhile; says who.
        """
        if method not in job.order["methods"]:
            choices = ", ".join(job.order["methods"])
            raise InputError(f"no contour is of '{method}'", remedy=f"choose: {choices}")
        if beyond := [k for k in loops if not 0 <= k < slices]:
            raise InputError(
                f"slice {beyond[0]} is not there", remedy=f"there are 0 to {slices - 1}"
            )
        if job.state not in EDITABLE:
            raise ConflictError(
                f"a propagation that is {job.state.value} is not edited",
                remedy="look at it again: something came after it",
            )
        kept: dict[str, Any] = {
            "propagation": job.id,
            "method": method,
            "slices_json": {str(k): loops[k] for k in sorted(loops)},
            "seconds": seconds,
            "saved_at": now().isoformat(),
            "reviewer": reviewer,
        }
        kept["digest"] = hashlib.sha256(as_json(kept).encode()).hexdigest()
        with self.index.write() as at:
            if expected == NEW:
                if not at.execute(self.index.insert_new(draft, kept)).rowcount:
                    raise _overtaken(_row(at, job.id))
            else:
                saved = at.execute(
                    update(draft)
                    .where(draft.c.propagation == job.id, draft.c.digest == expected)
                    .values(**kept)
                )
                if not saved.rowcount:
                    raise _overtaken(_row(at, job.id))
        return self.of(job.id)

    def discard(self, propagation_id: str, *, expected: str | None) -> None:
        """Forgets it; what the machine drew is there as before.

        Raises:
            NotFoundError: There is none.
            ChangedError: It is another by now.
        """
        with self.index.write() as at:
            found = _row(at, propagation_id)
            if found is None:
                raise NotFoundError("there is no draft to discard", remedy="nothing is left to do")
            if expected is not None and found.digest != expected:
                raise _overtaken(found)
            at.execute(delete(draft).where(draft.c.propagation == propagation_id))


def take_within(at: Connection, signed: Draft) -> None:
    """Takes a draft away in the transaction of its signature.

    Raises:
        ChangedError: It is another by now.
    """
    mine = (draft.c.propagation == signed.propagation) & (draft.c.digest == signed.digest)
    if not at.execute(delete(draft).where(mine)).rowcount:
        raise _overtaken(_row(at, signed.propagation))


def _row(at: Connection, propagation_id: str) -> Row[Any] | None:
    return at.execute(select(draft).where(draft.c.propagation == propagation_id)).first()


def _overtaken(found: Row[Any] | None) -> ChangedError:
    if found is None:
        return ChangedError(
            "the draft is gone: it was signed or discarded", remedy="look at the propagation again"
        )
    return ChangedError(
        f"{found.reviewer} saved an edit at {found.saved_at[11:19]} UTC",
        remedy="take that one over, or discard it, then go on",
    )


def _draft(row: Row[Any]) -> Draft:
    return Draft(
        propagation=row.propagation,
        method=row.method,
        loops={
            int(k): [[(u, v) for u, v in loop] for loop in found]
            for k, found in row.slices_json.items()
        },
        seconds=row.seconds,
        saved_at=row.saved_at,
        reviewer=row.reviewer,
        digest=row.digest,
    )
