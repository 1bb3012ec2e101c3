"""From a series that is whole to what is drawn on it: the match, the course, the propagations.

One revision is one fraction; its match, its course and its propagations are written in one
transaction. A question that evidence left open is asked again by itself when more arrives of the
patient, and at once when a person has answered it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, Connection, Row, Select, func, select, update

from contourcast.imaging.errors import ContourcastError, GeometryError, InputError
from contourcast.propagate import is_network
from contourcast.service.index.database import now
from contourcast.service.index.tables import (
    arrival,
    course,
    fraction,
    propagation,
    review,
    revision,
    series,
)
from contourcast.service.intake.asking import Wish
from contourcast.service.intake.conflicts import Conflict, conflicts_of, settled
from contourcast.service.intake.evidence import Evidence, priors_of
from contourcast.service.intake.facts import PriorFacts, SeriesFacts
from contourcast.service.intake.matching import match
from contourcast.service.intake.outcomes import Answer, Item, Known, Match, NeedsPerson, NotOurs
from contourcast.service.intake.rematching import match_again, turn_of
from contourcast.service.intake.rules import SiteRules
from contourcast.service.jobs.orders import MatchedOrder, order_id, order_of_match
from contourcast.service.jobs.propagations import (
    EVALUATION,
    TODAY,
    Origin,
    Propagations,
    unfinished_before,
)
from contourcast.service.pacs.notices import Kind, Notices
from contourcast.service.problems import (
    BusyError,
    ConflictError,
    DamagedError,
    NotFoundError,
    log_fault,
)

AT_A_LOOK: Final = 50
# Of these at most: what an earlier look had to leave, so that it holds up nobody.
AGAIN_AT_A_LOOK: Final = 10
# While more are put off, nothing fresh is: neither memory nor a query grows without end.
PUT_OFF_AT_MOST: Final = 1000
# What went wrong is left alone for so long.
FAILED_S: Final = 30.0
ASKED_BY: Final = "intake"
MATCHED_ANEW: Final = "superseded: more of the series, or another prior or plan, is here"
TAKEN_BACK: Final = "superseded: to what the scan belongs is in question, or was decided otherwise"
# What was found cannot be used after all; the next file of the patient may mend it.
UNUSABLE: Final = (InputError, GeometryError, NotFoundError, DamagedError)

log = structlog.get_logger()
# Of a column of revisions: those that may be looked at now.
May = Callable[[ColumnElement[str]], ColumnElement[bool]]


class Fractions:
    """Matches revisions, and opens what has to be drawn.

    Args:
        evidence: What is here.
        propagations: Where work is promised.
        notices: Who is told.
        rules: Of the site.
        served_network: Name and digest of the network that is drawn with.
        methods: What is drawn with; None: everything.
        asked_alone: Whether `look` keeps to scans on which somebody asked for something.
        waiting_limit: When so many propagations wait, scans of cohorts are not matched yet; None:
            they always are.
    """

    def __init__(
        self,
        evidence: Evidence,
        propagations: Propagations,
        notices: Notices,
        rules: SiteRules,
        *,
        served_network: Callable[[], tuple[str, str]],
        methods: Sequence[str] | None = None,
        asked_alone: bool = False,
        waiting_limit: int | None = None,
    ) -> None:
        self.evidence = evidence
        self.propagations = propagations
        self.index = propagations.index
        self._notices = notices
        self.rules = rules
        self._served_network = served_network
        self._methods = methods
        self._asked_alone = asked_alone
        self._waiting_limit = waiting_limit
        # by when each may be looked at again, in the order of being put off
        self._put_off: dict[str, float] = {}

    def look(self) -> int:
        """Matches what is new, and what may be answered by now; how many were matched.

        Scans of cohorts come last, and only while there is room for what is drawn on them. What
        cannot be matched yet is looked at again a few at a time, and holds up nobody.

        Raises:
            BusyError: The index cannot be reached.
        """
        due = [one for one, at_s in self._put_off.items() if at_s <= time.monotonic()]
        again = due[:AGAIN_AT_A_LOOK]
        held = self._put_off.keys() - set(again)
        full = len(held) > PUT_OFF_AT_MOST

        def may(one: ColumnElement[str]) -> ColumnElement[bool]:
            return one.in_(again) if full else one.not_in(held)

        with self.index.read() as at:
            fresh = list(at.execute(self._fresh(at, may)).scalars())
            asked = list(at.execute(self._open_again(may)).scalars())
        for one in again:
            del self._put_off[one]
        return sum(self._attempt(revision_id) for revision_id in dict.fromkeys((*fresh, *asked)))

    def _fresh(self, at: Connection, may: May) -> Select[Any]:
        of_cohort = series.c.door == "cohort"
        query = (
            select(revision.c.id)
            .join(series, series.c.uid == revision.c.series_uid)
            .where(revision.c.matched == 0, may(revision.c.id))
            .order_by(of_cohort, revision.c.made_at)
            .limit(AT_A_LOOK)
        )
        if self._asked_alone:
            query = query.where(revision.c.id.in_(select(fraction.c.revision_id)))
        return query.where(~of_cohort) if self._is_full(at) else query

    def _attempt(self, revision_id: str) -> bool:
        """`match`; what goes wrong with one is told, and left to a later look."""
        wait_s = FAILED_S
        try:
            drawn = self._matched(revision_id)
        except BusyError:  # nobody can be matched
            raise
        except ContourcastError as error:
            log.warning("series_not_matched", revision=revision_id, cause=error.cause)
            drawn = None
        except Exception as error:
            log_fault("matching_failed", error, trace="", revision=revision_id)
            drawn = None
        else:
            wait_s = 0.0
        if drawn is None:
            self._put_off[revision_id] = time.monotonic() + wait_s
        return bool(drawn)

    def match(self, revision_id: str) -> bool:
        """Matches one revision; whether something is to be drawn."""
        return bool(self._matched(revision_id))

    def match_as(self, revision_id: str, wish: Wish) -> list[str]:
        """Matches one revision, and promises what somebody asks for of it; the ids of that.

        Nothing is promised where a person has to answer first, where it is not ours, and where
        something that it belongs to still arrives.

        Raises:
            InputError: The match has no such ROI, or several and none is named.
        """
        return self._matched(revision_id, wish) or []

    def _matched(self, revision_id: str, wish: Wish | None = None) -> list[str] | None:
        """The ids of what is promised; None: nothing was written, it has to be looked at again."""
        with self.index.read() as at:
            row = at.execute(select(revision).where(revision.c.id == revision_id)).one()
            scan = at.execute(select(series).where(series.c.uid == row.series_uid)).one()
            asked = at.execute(
                select(fraction).where(fraction.c.revision_id == revision_id)
            ).first()
            # what arrives from here on is looked at again
            seen = _last_arrival(at, scan.patient_key)
        facts = self.evidence.of_series(row.series_uid, _ae_title(scan))
        known = Known()
        outcome: Match | NeedsPerson | NotOurs = NotOurs(reason="it cannot be read")
        if facts is not None:
            known = self.evidence.of_patient(scan.patient_key)
            outcome = match(facts, known, self.rules, answers=_answers(asked))
        orders: list[tuple[Item, dict[str, Any]]] = []
        conflicts: list[Conflict] = []
        if isinstance(outcome, Match):
            with self.index.read() as at:
                conflicts = self._conflicts(at, outcome)
            outcome = settled(outcome, conflicts, _answers(asked))
        if isinstance(outcome, Match):
            planning = self._planning_ct(outcome.planning_ct_uid)
            if planning.state == "arriving":
                return None  # looked at again until it is whole
            if planning.state != "whole":
                outcome = NeedsPerson(
                    question="planning_ct",
                    why=f"the planning CT {planning.uid} is not whole: {planning.reason}",
                    missing=(planning.uid,),
                    reasons=outcome.reasons,
                )
        if isinstance(outcome, Match):
            items = outcome.items if wish is None else wish.of(outcome.items)
            methods = self._methods if wish is None or wish.methods is None else wish.methods
            try:
                orders = self._orders(outcome, row, items, methods)
            except UNUSABLE as error:  # else one damaged file would hold up everybody's
                outcome = NeedsPerson(
                    question="structure_set", why=str(error), reasons=outcome.reasons
                )
        with self.index.write() as at:
            # whoever signs, withdraws or disputes anything of the patient does so before or after
            self.index.in_turn(at, turn_of(scan.patient_key))
            current = at.execute(
                select(fraction).where(fraction.c.revision_id == revision_id).with_for_update()
            ).first()
            if _answers(current) != _answers(asked):
                log.info("answered_meanwhile", series=row.series_uid)
                return None  # matched by whoever answered, or looked at again
            if isinstance(outcome, Match) and (
                self._conflicts(at, outcome) != conflicts
                or priors_of(at, scan.patient_key) != known.priors
            ):
                return None  # one came, or was signed or withdrawn meanwhile: looked at again
            stood = at.execute(
                select(revision.c.matched).where(revision.c.id == revision_id)
            ).scalar_one()
            at.execute(update(revision).where(revision.c.id == revision_id).values(matched=1))
            if _is_overtaken(at, row):
                return []  # its turn came late: the newer one was matched, or will be
            values = self._write(at, row, scan, facts, outcome, seen, current)
            new = self._promise(at, scan, row.id, values, orders, wish)
            # what is asked for of a match that stands is beside what was promised on it before
            if not (stood and current and current.course_id == values["course_id"]):
                news = new or current is None or current.state != values["state"]
                self._take_back(at, row.series_uid, orders, news=news)
        log.info("series_matched", series=row.series_uid, outcome=type(outcome).__name__)
        return [order_id(order) for _, order in orders]

    def answer(self, revision_id: str, answer: Answer, *, by: str) -> None:
        """A person answers the question of a fraction; it is matched again at once.

        Raises:
            NotFoundError: There is no such fraction.
            ConflictError: It has no open question, or another one, or somebody answered it and that
                answer is not followed yet.
            InputError: The answer is none of the choices.
        """
        with self.index.write() as at:
            row = at.execute(
                select(fraction).where(fraction.c.revision_id == revision_id).with_for_update()
            ).first()
            if row is None:
                raise NotFoundError("no fraction has that id", remedy="see /v1/courses")
            question = row.question_json
            if row.state != "needs_person" or question.get("question") != answer.question:
                raise ConflictError(
                    "that question is not open", remedy="read the fraction again: it has changed"
                )
            matched = at.execute(select(revision.c.matched).where(revision.c.id == revision_id))
            last = row.answers_json[-1]["question"] if row.answers_json else ""
            if last == answer.question and not matched.scalar():
                raise ConflictError(
                    "somebody answered that question just now", remedy="read the fraction again"
                )
            offered = {choice["value"] for choice in question["choices"]}
            if not answer.choice or not set(answer.choice) <= offered:
                raise InputError(
                    "the answer is none of the choices", remedy="choose from the question's choices"
                )
            if len(answer.choice) > 1 and not question["several"]:
                raise InputError("only one may be chosen", remedy="choose one")
            given = {
                "question": answer.question,
                "choice": list(answer.choice),
                "by": by,
                "at": now().isoformat(),
            }
            at.execute(
                update(fraction)
                .where(fraction.c.revision_id == revision_id)
                .values(answers_json=[*row.answers_json, given])
            )
            # whatever becomes of us, the answer is followed
            at.execute(update(revision).where(revision.c.id == revision_id).values(matched=0))
        self.match(revision_id)

    def _is_full(self, at: Connection) -> bool:
        limit = self._waiting_limit
        return limit is not None and unfinished_before(at, EVALUATION) >= limit

    @staticmethod
    def _open_again(may: May) -> Select[Any]:
        """Open questions of patients of whom something has arrived since they were asked."""
        # one look into the index of arrivals for each series, however many came of it
        newest = (
            select(func.max(arrival.c.number))
            .where(arrival.c.series_uid == series.c.uid)
            .scalar_subquery()
        )
        news = select(series.c.uid).where(
            series.c.patient_key == fraction.c.patient_key, newest > fraction.c.looked_at
        )
        return (
            select(fraction.c.revision_id)
            .where(
                fraction.c.state == "needs_person",
                may(fraction.c.revision_id),
                news.exists(),
            )
            .order_by(fraction.c.looked_at)
            .limit(AT_A_LOOK)
        )

    def _orders(
        self, found: Match, row: Row[Any], items: Sequence[Item], methods: Sequence[str] | None
    ) -> list[tuple[Item, dict[str, Any]]]:
        cbct_files = [digest for _, digest in row.members_json]
        drawn = methods is None or any(is_network(method) for method in methods)
        return [
            (
                item,
                order_of_match(
                    MatchedOrder(
                        cbct=found.cbct_uid,
                        cbct_files=tuple(cbct_files),
                        planning_ct=found.planning_ct_uid,
                        structures=found.structure_set_uid,
                        roi_number=item.roi.number,
                        prior=item.prior.structure_set_uid if item.prior else "",
                        prior_registration=self._way_home(item.prior),
                        registration=found.start.registration_uid,
                        start_shift_xyz_mm=found.start.cbct_from_planning_mm,
                        doubts=found.doubts,
                        vouched="; ".join(
                            r.sentence for r in found.reasons if r.rule == "answered"
                        ),
                        methods=methods,
                    ),
                    self.evidence.archive,
                    network=self._served_network() if drawn else ("", ""),
                ),
            )
            for item in items
        ]

    def _conflicts(self, at: Connection, found: Match) -> list[Conflict]:
        """Contents that a person has to choose from."""
        came = conflicts_of(at, found)
        approvals = self.evidence.approvals((each.sop_uid, each.file_digest) for each in came)
        return [each for each in came if (each.sop_uid, each.file_digest) not in approvals]

    def _planning_ct(self, series_uid: str) -> Row[Any]:
        with self.index.read() as at:
            return at.execute(select(series).where(series.c.uid == series_uid)).one()

    def _way_home(self, prior: PriorFacts | None) -> str:
        """The registration that was kept beside a signed contour."""
        if prior is None:
            return ""
        query = select(review.c.registration_uid).where(
            review.c.structures_uid == prior.structure_set_uid
        )
        with self.index.read() as at:
            return str(at.execute(query).scalar() or "")

    def _write(
        self,
        at: Connection,
        row: Row[Any],
        scan: Row[Any],
        facts: SeriesFacts | None,
        outcome: Match | NeedsPerson | NotOurs,
        seen: int,
        asked: Row[Any] | None,
    ) -> dict[str, Any]:
        """The fraction, as it is written down."""
        acquired = facts.acquired_at.isoformat() if facts and facts.acquired_at else ""
        values: dict[str, Any] = {
            "series_uid": row.series_uid,
            "patient_key": scan.patient_key,
            "course_id": None,
            "acquired_at": acquired,
            "question_json": {},
            "answers_json": list(asked.answers_json) if asked else [],
            "looked_at": seen,
        }
        if isinstance(outcome, Match):
            course_id = self._course(at, scan.patient_key, outcome)
            values |= {
                "state": "matched",
                "course_id": course_id,
                "reasons_json": [asdict(reason) for reason in outcome.reasons]
                + [{"question": "doubt", "rule": "", "sentence": d} for d in outcome.doubts],
            }
        elif isinstance(outcome, NeedsPerson):
            question = {
                "question": outcome.question,
                "why": outcome.why,
                "choices": [asdict(choice) for choice in outcome.choices],
                "several": outcome.several,
                "missing": list(outcome.missing),
            }
            values |= {
                "state": "needs_person",
                "question_json": question,
                "reasons_json": [asdict(reason) for reason in outcome.reasons],
            }
            if asked is None or asked.question_json != question:
                self._notices.tell(at, Kind.NEEDS_PERSON, row.id, question=outcome.question)
        else:
            reason = {"question": "cbct", "rule": "", "sentence": outcome.reason}
            values |= {"state": "not_ours", "reasons_json": [reason]}
            if row.number > 1:
                match_again(at, course.c.planning_series_uid == row.series_uid)
        made = {"revision_id": row.id, "made_at": now().isoformat()}
        at.execute(self.index.insert_new(fraction, values | made))
        at.execute(update(fraction).where(fraction.c.revision_id == row.id).values(**values))
        self._older_revisions(at, row)
        return values

    def _course(self, at: Connection, patient_key: str, found: Match) -> str:
        parts = (patient_key, found.planning_ct_uid, found.structure_set_uid)
        course_id = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        rois = [{"number": item.roi.number, "name": item.roi.name} for item in found.items]
        values = {
            "id": course_id,
            "patient_key": patient_key,
            "planning_series_uid": found.planning_ct_uid,
            "structures_uid": found.structure_set_uid,
            "rois_json": rois,
            "made_at": now().isoformat(),
        }
        at.execute(self.index.insert_new(course, values))
        return course_id

    def _promise(
        self,
        at: Connection,
        scan: Row[Any],
        revision_id: str,
        matched: dict[str, Any],
        orders: Sequence[tuple[Item, dict[str, Any]]],
        wish: Wish | None,
    ) -> bool:
        """Whether anything of it is to be drawn that was not, or not any more."""
        usual = EVALUATION if scan.door == "cohort" else TODAY
        origin = Origin(
            patient_key=scan.patient_key,
            acquired_at=matched["acquired_at"],
            course_id=matched["course_id"],
            revision_id=revision_id,
            asked_by=ASKED_BY if wish is None else wish.by,
            priority=usual if wish is None else wish.priority,
            cohort=scan.sender if scan.door == "cohort" else None,
        )
        opened = [
            self.propagations.open_within(at, order_id(order), order, origin) for _, order in orders
        ]
        return any(opened)

    def _take_back(
        self,
        at: Connection,
        series_uid: str,
        orders: Sequence[tuple[Item, dict[str, Any]]],
        *,
        news: bool,
    ) -> None:
        """Nobody signs any more what was once promised on a scan and now is not.

        While a question is open nothing is promised, so all of it is taken back; if the question
        settles to the same match, `_promise` takes it up again. What is signed stays.

        Args:
            at: The transaction of the match.
            series_uid: Of the scan.
            orders: What is promised now.
            news: Whether the match is another than before: signed contours are told of it once.
        """
        promised = {order_id(order): (item, order) for item, order in orders}
        former = select(
            propagation.c.id,
            propagation.c.order_json[("structures", "sop_uid")].as_string().label("structures_uid"),
            propagation.c.order_json["roi_number"].as_integer().label("roi_number"),
            propagation.c.figures_json["roi_name"].as_string().label("roi_name"),
        ).where(
            propagation.c.cbct_series_uid == series_uid,
            propagation.c.revision_id.is_not(None),  # what no match asked for stands by itself
            propagation.c.superseded_by.is_(None),
            propagation.c.id.not_in(promised),
        )
        for each in at.execute(former).all():
            its = (new for new, one in promised.items() if _is_of_one_roi(each, *one))
            newer = next(its, None)
            why = MATCHED_ANEW if newer else TAKEN_BACK
            for signed in self.propagations.supersede(at, [each.id], newer, why):
                if news:
                    self._notices.tell(at, Kind.SIGNED_OVERTAKEN, signed, newer=newer)

    @staticmethod
    def _older_revisions(at: Connection, row: Row[Any]) -> None:
        older = select(revision.c.id).where(
            revision.c.series_uid == row.series_uid, revision.c.number < row.number
        )
        at.execute(
            update(fraction).where(fraction.c.revision_id.in_(older)).values(state="superseded")
        )


def _is_overtaken(at: Connection, row: Row[Any]) -> bool:
    """Whether a revision is not the newest of its series."""
    newer = select(revision.c.id).where(
        revision.c.series_uid == row.series_uid, revision.c.number > row.number
    )
    return at.execute(newer).first() is not None


def _is_of_one_roi(former: Row[Any], item: Item, order: dict[str, Any]) -> bool:
    """Whether a former propagation carried that ROI: by number in one set, else by name."""
    if former.structures_uid == order["structures"]["sop_uid"]:
        return bool(former.roi_number == item.roi.number)
    return bool(former.roi_name == item.roi.name)


def _ae_title(scan: Row[Any]) -> str:
    """Who sent it, as far as a site's rules ask for it."""
    return str(scan.sender) if scan.door == "dimse" else ""


def _answers(asked: Row[Any] | None) -> tuple[Answer, ...]:
    if asked is None:
        return ()
    return tuple(
        Answer(question=given["question"], choice=tuple(given["choice"]))
        for given in asked.answers_json
    )


def _last_arrival(at: Connection, patient_key: str) -> int:
    """The number of the newest arrival of anything of a patient."""
    mine = select(series.c.uid).where(series.c.patient_key == patient_key)
    return int(
        at.execute(
            select(func.max(arrival.c.number)).where(arrival.c.series_uid.in_(mine))
        ).scalar()
        or 0
    )
