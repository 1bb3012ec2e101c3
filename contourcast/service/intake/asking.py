"""A contour that somebody asks for by its scan alone: what it belongs to, matching says.

It is the same match as of what arrives by itself, with the same reasons and the same questions, so
an open question is answered in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Select, select

from contourcast.imaging.errors import InputError
from contourcast.service.index.tables import fraction, propagation, revision, series
from contourcast.service.intake.outcomes import Item
from contourcast.service.jobs.orders import PropagationRequest
from contourcast.service.jobs.propagations import BEGUN_AGAIN, TODAY, Job, unfinished_before
from contourcast.service.problems import BusyError, NotFoundError, NotReadyError

if TYPE_CHECKING:
    from contourcast.service.intake.fractions import Fractions

# What says how planning CT, structures and scan belong together: whoever gives it, gives them too.
BY_HAND: Final = ("prior", "registration", "prior_registration", "vouch")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What of a match is asked for.

    Attributes:
        roi: Name, or number as ``#7``; None: the only one that there is.
        methods: None: what the site draws with.
        by: Who asks.
        priority: How soon, see `propagations.TODAY`.
    """

    roi: str | None
    methods: Sequence[str] | None
    by: str
    priority: int = TODAY

    def of(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """The one item that is asked for.

        Raises:
            InputError: It is none or several; names those that there are.
        """
        wanted = (self.roi or "").strip()
        found = [i for i in items if wanted in ("", i.roi.name.strip(), f"#{i.roi.number}")]
        if len(found) == 1:
            return (found[0],)
        listed = ", ".join(f"'{i.roi.name}' (#{i.roi.number})" for i in items)
        if found:
            raise InputError(
                f"{len(found)} ROIs may be carried to this CBCT: {listed}",
                remedy="name one by its number: roi",
            )
        raise InputError(
            f"'{wanted}' is none of the ROIs that are carried to this CBCT: {listed}",
            remedy="name one of them: roi; to carry another, name its structure set: structures",
        )


def is_matched(request: PropagationRequest) -> bool:
    """Whether a request leaves it to matching to what its scan belongs."""
    return request.structures is None and request.planning_ct is None


def ask(
    fractions: Fractions,
    request: PropagationRequest,
    *,
    by: str,
    priority: int,
    automatic: bool,
    most: int,
) -> tuple[Job, bool]:
    """The job on a scan that is matched now, and whether it is new work.

    Args:
        fractions: What matches.
        request: One that `is_matched`.
        by: Who asks.
        priority: How soon.
        automatic: Whether all that arrives is matched by itself; then this one is first, and
            nothing of its match is left out.
        most: New work is refused when so many others wait that come first, or as soon.

    Raises:
        NotFoundError: No such series is here.
        NotReadyError: It is not whole yet, or a person has to answer a question first.
        InputError: It belongs to nothing here; or the ROI that is meant is not clear.
        BusyError: So many wait.
    """
    if any(getattr(request, each) for each in BY_HAND) or request.focus != "body":
        raise InputError(
            "how the scans belong together is said, and not which they are",
            remedy="name the structure set and the planning CT too: structures, planning_ct",
        )
    wish = Wish(roi=request.roi, methods=request.methods, by=by, priority=priority)
    with fractions.index.read() as at:
        revision_id = _newest_whole(at, request.cbct)
        stands = _stands(at, revision_id)
        here = set(at.execute(_current(request.cbct)).scalars())
        if not here and unfinished_before(at, priority) >= most:
            raise BusyError("as many propagations wait as may", remedy="send the request later")
    if automatic and not stands:
        fractions.match(revision_id)
    promised = fractions.match_as(revision_id, wish)
    if not promised:
        with fractions.index.read() as at:
            raise _unmatched(at, revision_id)
    job = fractions.propagations.job(promised[0])
    return job, job.id not in here


def _newest_whole(at: Connection, series_uid: str) -> str:
    """The revision that a series is now."""
    row = at.execute(select(series).where(series.c.uid == series_uid)).first()
    if row is None:
        raise NotFoundError(
            "no series of that UID is here (CBCT)",
            uid=series_uid,
            remedy="send it to /v1/instances first",
        )
    if row.state != "whole" or row.revision is None:
        raise NotReadyError(
            f"the series is not whole: {row.reason or 'it may still be arriving'}",
            uid=series_uid,
            remedy=f"wait, or say how many instances are all: /v1/series/{series_uid}/completion",
        )
    return str(row.revision)


def _stands(at: Connection, revision_id: str) -> bool:
    """Whether it is matched, and nothing has come since that would match it anew."""
    found = (
        select(fraction.c.state, revision.c.matched)
        .join(revision, revision.c.id == fraction.c.revision_id)
        .where(fraction.c.revision_id == revision_id)
    )
    return at.execute(found).first() == ("matched", 1)


def _current(series_uid: str) -> Select[Any]:
    """What is drawn, or was, on a scan."""
    stopped = [state.value for state in BEGUN_AGAIN]
    return select(propagation.c.id).where(
        propagation.c.cbct_series_uid == series_uid, propagation.c.state.not_in(stopped)
    )


def _unmatched(at: Connection, revision_id: str) -> NotReadyError | InputError:
    """Why nothing is drawn on a scan."""
    row = at.execute(select(fraction).where(fraction.c.revision_id == revision_id)).first()
    if row is not None and row.state == "needs_person":
        question = row.question_json
        return NotReadyError(
            f"a person has to answer a question first, {question['question']}: {question['why']}",
            uid=row.series_uid,
            remedy=f"answer it at /v1/courses/{revision_id}, then ask again",
        )
    if row is not None and row.state == "not_ours":
        return InputError(
            f"it belongs to nothing here: {row.reasons_json[-1]['sentence']}",
            uid=row.series_uid,
            remedy="name what it belongs to: structures, planning_ct, roi",
        )
    return NotReadyError(
        "what it belongs to is still arriving", remedy="send the request again in a moment"
    )
