"""Propagations as they were promised: what was asked for, how far it is, what came out of it.

A row is there before anybody is told that work was accepted; the engine's own tables follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, select, update

from contourcast.imaging.errors import ContourcastError
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import event, propagation
from contourcast.service.intake.states import SIGNED, TRANSITIONS, WORKING, State, advance
from contourcast.service.problems import BusyError, NotFoundError

# Those of a cohort come after everything that somebody waits for (CLINICAL_SERVICE §6.1).
TODAY: Final = 1
EVALUATION: Final = 9

# From these a propagation is taken up again.
BEGUN_AGAIN: Final = frozenset({State.FAILED, State.CANCELLED, State.SUPERSEDED})

# Hears, in the transaction that brings it about, that a propagation came into a state.
Told = Callable[[Connection, str, State], None]


class StoppedError(ContourcastError):
    """The propagation was cancelled, or overtaken by another."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of a job, as told to those who wait for it."""

    number: int
    at: str
    state: State
    sentence: str
    done: float


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a propagation comes from; what an order leaves out, since no result depends on it.

    Attributes:
        patient_key: See `archive.patient_key`.
        acquired_at: When the CBCT was taken, ISO 8601 without zone, as its machine wrote it.
        asked_by: Who asked: an account, a key, or ``intake``.
        cohort: The cohort it belongs to, if any.
    """

    patient_key: str = ""
    acquired_at: str = ""
    course_id: str | None = None
    revision_id: str | None = None
    asked_by: str = ""
    priority: int = TODAY
    cohort: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A propagation, as the index knows it.

    Attributes:
        number: Counts up; in the order of being asked for.
        order: All that the result depends on, and nothing else (see `orders`).
        made_at: When it was first asked for; the time that its DICOM objects bear.
        attempt: 1, and one more each time that it was asked for again after it had stopped.
        files: Name to SHA-256 of each result, once it is written.
        ended: Whether the engine is through with it.
        verdict: ``accept``, ``look``, ``reject``; empty until it is known.
    """

    id: str
    number: int
    order: dict[str, Any]
    made_at: datetime
    attempt: int
    state: State
    figures: dict[str, Any]
    problem: dict[str, Any]
    files: dict[str, str]
    origin: Origin
    verdict: str
    superseded_by: str | None
    ended: bool


class Propagations:
    """The tables of propagations and of what happened to them.

    Args:
        index: Where they are.
        told: Hears of each state that a propagation ends or waits in.
    """

    def __init__(self, index: Index, *, told: Told = lambda *_: None) -> None:
        self.index = index
        self._told = told

    def open(
        self,
        propagation_id: str,
        order: dict[str, Any],
        origin: Origin | None = None,
        *,
        most: int | None = None,
    ) -> tuple[Job, bool]:
        """The job of that order: made, or taken up again if it had stopped; is it new work?

        Args:
            propagation_id: Digest of the order.
            order: All that the result depends on.
            origin: Where it comes from.
            most: New work is refused when so many others wait that come first, or as soon.

        Raises:
            BusyError: So many wait.
        """
        origin = origin or Origin()
        with self.index.write() as at:
            full = most is not None and unfinished_before(at, origin.priority) >= most
            new = self.open_within(at, propagation_id, order, origin)
            if new and full:
                raise _full()
        return self.job(propagation_id), new

    def retry(
        self, propagation_id: str, *, most: int, require: Callable[[Connection, Job], object]
    ) -> Job:
        """Takes up by its id what has stopped, with the order that it has.

        An order of the intake cannot be asked for in other words: it names what a match found.

        Args:
            propagation_id: Which.
            most: It is refused when so many others wait that come first, or as soon.
            require: Raises where this job is not to be begun again.

        Raises:
            NotFoundError: There is none of that id.
            BusyError: So many wait.
        """
        with self.index.write() as at:
            job = _job(_locked(at, propagation_id))
            require(at, job)
            if unfinished_before(at, job.origin.priority) >= most:
                raise _full()
            self.open_within(at, job.id, job.order, job.origin)
        return self.job(propagation_id)

    def open_within(
        self, at: Connection, propagation_id: str, order: dict[str, Any], origin: Origin
    ) -> bool:
        """`open`, in a transaction of the caller's, so that a match and its job are one."""
        query = select(propagation).where(propagation.c.id == propagation_id).with_for_update()
        row = at.execute(query).first()
        if row is None:
            self.index.in_turn(at, "propagation")  # so that no number is given twice
            row = at.execute(query).first()  # whoever asked for the same at once was before us
        if row is None:
            last = at.execute(select(func.max(propagation.c.number))).scalar()
            at.execute(
                propagation.insert().values(
                    id=propagation_id,
                    number=int(last or 0) + 1,
                    order_json=order,
                    made_at=now().replace(microsecond=0).isoformat(),
                    attempt=1,
                    state=State.MATCHED,
                    figures_json={},
                    problem_json={},
                    files_json={},
                    course_id=origin.course_id,
                    revision_id=origin.revision_id,
                    patient_key=origin.patient_key,
                    cbct_series_uid=order["cbct"]["series"],
                    acquired_at=origin.acquired_at,
                    verdict="",
                    priority=origin.priority,
                    cohort_id=origin.cohort,
                    asked_by=origin.asked_by,
                    ended=0,
                )
            )
        elif State(row.state) in BEGUN_AGAIN:
            at.execute(
                update(propagation)
                .where(propagation.c.id == propagation_id)
                .values(
                    attempt=row.attempt + 1,
                    state=State.MATCHED,
                    figures_json={},
                    problem_json={},
                    superseded_by=None,
                    ended=0,
                )
            )
        else:
            return False
        _tell(at, propagation_id, State.MATCHED, "waiting for a worker", 0.0)
        return True

    def job(self, propagation_id: str) -> Job:
        """What is known of a propagation.

        Raises:
            NotFoundError: There is none of that id.
        """
        with self.index.read() as at:
            row = at.execute(select(propagation).where(propagation.c.id == propagation_id)).first()
        if row is None:
            raise NotFoundError("no propagation has that id", remedy="post one to /v1/propagations")
        return _job(row)

    def jobs(
        self, *, before: int | None = None, limit: int = 100, **equal: str | None
    ) -> list[Job]:
        """Propagations, newest first.

        Args:
            before: Only those with a smaller number.
            limit: At most so many.
            equal: Columns and the values they must have.
        """
        query = select(propagation).order_by(propagation.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(propagation.c.number < before)
        for column, value in equal.items():
            if value is not None:
                query = query.where(propagation.c[column] == value)
        return self.select(query)

    def select(self, query: Select[Any]) -> list[Job]:
        """The jobs that a query over `propagation` finds."""
        with self.index.read() as at:
            return [_job(row) for row in at.execute(query)]

    def unfinished(self, *, limit: int | None = None) -> list[Job]:
        """What the engine still has to do; what is waited for first, then first promised first."""
        return self.select(
            select(propagation)
            .where(propagation.c.ended == 0)
            .order_by(propagation.c.priority, propagation.c.number)
            .limit(limit)
        )

    def tell(
        self,
        propagation_id: str,
        to: State,
        sentence: str,
        done: float,
        *,
        figures: dict[str, Any] | None = None,
        verdict: str | None = None,
    ) -> None:
        """Writes down how far a job is.

        A worker that was slow, and was taken over from, tells what is past: it changes nothing.

        Raises:
            StoppedError: It was cancelled or superseded meanwhile.
        """
        with self.index.write() as at:
            row = _locked(at, propagation_id)
            state = State(row.state)
            if state in (State.CANCELLED, State.SUPERSEDED):
                raise StoppedError(f"the propagation was {state.value}")
            if to is not state and to not in TRANSITIONS[state]:
                return
            changes: dict[str, Any] = {"state": to}
            if figures is not None:
                changes["figures_json"] = _merged(row.figures_json, figures)
            if verdict is not None:
                changes["verdict"] = verdict
            at.execute(
                update(propagation).where(propagation.c.id == propagation_id).values(**changes)
            )
            _tell(at, propagation_id, to, sentence, done)

    def end(
        self,
        propagation_id: str,
        *,
        attempt: int | None = None,
        files: dict[str, str] | None = None,
        problem: dict[str, Any] | None = None,
        delivering: bool = False,
    ) -> None:
        """The engine is through with it; a second time changes nothing.

        Args:
            propagation_id: Which.
            attempt: That has come to its end, however late it is told; None: the last one.
            files: Name to SHA-256 of the results.
            problem: Why there are none.
            delivering: Whether they go out now.
        """
        with self.index.write() as at:
            self.end_within(
                at,
                propagation_id,
                attempt=attempt,
                files=files,
                problem=problem,
                delivering=delivering,
            )

    def end_within(
        self,
        at: Connection,
        propagation_id: str,
        *,
        attempt: int | None = None,
        files: dict[str, str] | None = None,
        problem: dict[str, Any] | None = None,
        delivering: bool = False,
    ) -> None:
        """`end`, in a transaction of the caller's, so that results and deliveries are one."""
        job = self.under_way(at, propagation_id, attempt=attempt)
        if job is None:
            return
        state = job.state
        changes: dict[str, Any] = {"ended": 1}
        if state not in (State.CANCELLED, State.SUPERSEDED):
            to = State.FAILED if problem else State.AWAITING_REVIEW
            if delivering and not problem:
                to = State.DELIVERING
            changes |= {
                "state": to,
                "files_json": files or {},
                "problem_json": problem or {},
            }
            sentence = {
                State.FAILED: "failed",
                State.DELIVERING: "sending the results",
                State.AWAITING_REVIEW: "done",
            }[to]
            _tell(at, propagation_id, to, sentence, 1.0)
        at.execute(update(propagation).where(propagation.c.id == propagation_id).values(**changes))
        if "state" in changes:
            self._told(at, propagation_id, changes["state"])

    def under_way(
        self, at: Connection, propagation_id: str, *, attempt: int | None = None
    ) -> Job | None:
        """A job as it stays until the transaction ends; None once it, or that attempt, is over."""
        job = _job(_locked(at, propagation_id))
        over = job.ended or attempt not in (None, job.attempt)
        return None if over else job

    def move(
        self,
        at: Connection,
        propagation_id: str,
        to: State,
        sentence: str,
        **changes: Any,
    ) -> None:
        """A step of the table of states, in a transaction of the caller's.

        Raises:
            ForbiddenTransitionError: The table has no such step.
            NotFoundError: There is no such propagation.
        """
        row = _locked(at, propagation_id)
        state = advance(State(row.state), to)
        stops = state not in WORKING and not row.ended
        at.execute(
            update(propagation)
            .where(propagation.c.id == propagation_id)
            .values(state=state, **changes, **({"ended": 1} if stops else {}))
        )
        _tell(at, propagation_id, state, sentence, 1.0)
        self._told(at, propagation_id, state)

    def begin_again(self, job: Job) -> None:
        """Another attempt at a job, unless that one has ended or is not the last any more."""
        with self.index.write() as at:
            row = _locked(at, job.id)
            if row.ended or row.attempt != job.attempt:
                return
            at.execute(
                update(propagation)
                .where(propagation.c.id == job.id)
                .values(attempt=row.attempt + 1, state=State.MATCHED, figures_json={})
            )
            _tell(at, job.id, State.MATCHED, "begun again by a newer version", 0.0)

    def cancel(self, propagation_id: str, *, by: str) -> Job:
        """Stops it: what is running is not begun again, what is written stays.

        Raises:
            ForbiddenTransitionError: It is past that.
        """
        with self.index.write() as at:
            self.move(at, propagation_id, State.CANCELLED, f"cancelled by {by}")
        return self.job(propagation_id)

    def supersede(
        self, at: Connection, older: Sequence[str], newer: str | None, why: str
    ) -> list[str]:
        """Marks what is not to be signed any more; the ids of signed ones, which stay.

        Args:
            at: The transaction in which that came about.
            older: Ids.
            newer: What took their place; None: nothing, or nothing yet.
            why: In a sentence.
        """
        signed = []
        for propagation_id in older:
            row = _locked(at, propagation_id)
            if State(row.state) in SIGNED:
                signed.append(propagation_id)
            elif State.SUPERSEDED in TRANSITIONS[State(row.state)]:
                self.move(at, propagation_id, State.SUPERSEDED, why, superseded_by=newer)
            elif row.superseded_by is None and newer is not None:  # its place was left empty
                at.execute(
                    update(propagation)
                    .where(propagation.c.id == propagation_id)
                    .values(superseded_by=newer)
                )
        return signed

    def events(self, propagation_id: str, *, after: int = 0) -> list[Event]:
        """What happened to a job, in order, from the event after a number on."""
        query = (
            select(event)
            .where(event.c.propagation == propagation_id, event.c.number > after)
            .order_by(event.c.number)
        )
        with self.index.read() as at:
            return [
                Event(
                    number=row.number,
                    at=row.at,
                    state=State(row.state),
                    sentence=row.sentence,
                    done=row.done,
                )
                for row in at.execute(query)
            ]


def unfinished_before(at: Connection, priority: int) -> int:
    """How many propagations the engine has to do that come as soon as this priority, or sooner."""
    query = select(func.count()).where(propagation.c.ended == 0, propagation.c.priority <= priority)
    return int(at.execute(query).scalar_one())


def _full() -> BusyError:
    return BusyError("as many propagations wait as may", remedy="send the request again later")


def _locked(at: Connection, propagation_id: str) -> Row[Any]:
    """The row, which nobody else changes until the transaction ends."""
    query = select(propagation).where(propagation.c.id == propagation_id).with_for_update()
    row = at.execute(query).first()
    if row is None:
        raise NotFoundError("no propagation has that id", remedy="post one to /v1/propagations")
    return row


def _tell(at: Connection, propagation_id: str, state: State, sentence: str, done: float) -> None:
    last = at.execute(
        select(func.max(event.c.number)).where(event.c.propagation == propagation_id)
    ).scalar()
    at.execute(
        event.insert().values(
            propagation=propagation_id,
            number=int(last or 0) + 1,
            at=now().isoformat(),
            state=state,
            sentence=sentence,
            done=done,
        )
    )


def _merged(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Figures side by side: methods are drawn at the same time and tell each for itself."""
    both = first | then
    for name in first.keys() & then.keys():
        if isinstance(first[name], dict) and isinstance(then[name], dict):
            both[name] = first[name] | then[name]
    return both


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        number=row.number,
        order=row.order_json,
        made_at=datetime.fromisoformat(row.made_at),
        attempt=row.attempt,
        state=State(row.state),
        figures=row.figures_json,
        problem=row.problem_json,
        files=row.files_json,
        origin=Origin(
            patient_key=row.patient_key,
            acquired_at=row.acquired_at,
            course_id=row.course_id,
            revision_id=row.revision_id,
            asked_by=row.asked_by,
            priority=row.priority,
            cohort=row.cohort_id,
        ),
        verdict=row.verdict,
        superseded_by=row.superseded_by,
        ended=bool(row.ended),
    )
