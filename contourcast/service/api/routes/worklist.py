"""What waits for a person, in the order in which it should be looked at.

Rejected first, then questions and failures, then what should be looked at, then what the machine
would accept, then what is still on its way; inside each, what has waited longest comes first.
Of several scans of one fraction the last one stands there, with the others under it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, get_args

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    func,
    literal,
    select,
    tuple_,
    union_all,
)

from contourcast.service.access.guard import note
from contourcast.service.api.asked import caller_of
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.paging import USUAL, Cursor, Limit, after, lead_on
from contourcast.service.archive import taken_at
from contourcast.service.index.tables import fraction, propagation, series
from contourcast.service.intake.states import THROUGH, State
from contourcast.service.outputs.report import JudgedFigure
from contourcast.service.review.figures import first_doubt, first_reason, volumes_cc
from contourcast.service.review.folding import earlier_scans
from contourcast.service.review.numbering import Taken, numbers_of
from contourcast.service.review.patient import PatientItem, facts_of, patient_of_scan
from contourcast.service.review.presence import open_by

Kind = Literal["propagation", "question", "series"]
Verdict = Literal["accept", "look", "reject"]
_SHOWN: Final = (
    "patient_key",
    "course_id",
    "cbct_series_uid",
    "acquired_at",
    "made_at",
    "state",
    "verdict",
    "figures_json",
    "problem_json",
)


class WorklistItem(BaseModel):
    """One scan that somebody has to look at: drawn, in question, or with slices missing."""

    kind: Kind
    id: str = Field(description="Of the propagation; of the fraction in question; of the series.")
    link: str
    patient: PatientItem | None
    course: str | None
    fraction: int | None = Field(description="1, 2 … in the order of being taken.")
    scan: int | None = Field(description="1, 2 … of that fraction.")
    cbct: str
    acquired_at: str = Field(description="As its machine wrote it: no zone.")
    arrived_at: str = Field(description="When it was first asked for, or in question.")
    machine: str = Field(description="Manufacturer and model.")
    state: State
    verdict: str = Field(description="accept, look or reject; empty until it is known.")
    reason: str = Field(description="The first of the verdict's, or what is asked.")
    doubt: JudgedFigure | None = Field(description="The figure that the reason is about, if any.")
    roi: str = Field(description="Its name; until it is drawn, as it was asked for.")
    volumes_cc: dict[str, float | None] = Field(description="Of each method.")
    volume_change_percent: float | None = Field(
        description="Of the recommended method against the prior; null until it is known."
    )
    agreement: float | None = Field(description="Mean Dice of the methods; null where unknown.")
    open_by: list[str] = Field(description="Who has it open just now.")
    earlier: list[WorklistItem] = Field(
        default=[],
        description="Of the same fraction and ROI, taken before it, the latest first: they are "
        "listed here alone, and not at all once a later one is signed.",
    )


class WorklistAnswer(BaseModel):
    """What waits, the most urgent first."""

    items: list[WorklistItem]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["worklist"])
    index = context.records.index

    @router.get("/v1/worklist")
    async def get_worklist(
        request: Request,
        response: Response,
        state: Annotated[
            list[State] | None, Query(description="Left out: what nobody has decided on.")
        ] = None,
        verdict: Annotated[list[Verdict] | None, Query()] = None,
        machine: Annotated[
            str | None, Query(max_length=129, description="Manufacturer and model.")
        ] = None,
        course: Annotated[str | None, Query(max_length=64)] = None,
        since: Annotated[
            AwareDatetime | None, Query(description="RFC 3339: what arrived from then on.")
        ] = None,
        limit: Limit = USUAL,
        cursor: Cursor = "",
    ) -> WorklistAnswer:
        """What waits for a person, in the order of triage."""
        wanted = _conditions(state, verdict, machine, course, since)

        def find() -> tuple[list[WorklistItem], tuple[Any, ...] | None]:
            with index.read() as at:
                return _page(
                    at,
                    wanted,
                    after(cursor, int, str, str),
                    limit,
                    repeat_minutes=context.fractions.rules.repeat_minutes,
                )

        items, last = await in_thread(find)
        if last is not None:
            lead_on(request, response, *last)
        if not context.settings.access.shows_names(caller_of(request).roles):
            for item in items:
                for each in (item, *item.earlier):
                    each.patient = each.patient and each.patient.without_name()
        note(request, objects=[each.id for item in items for each in (item, *item.earlier)])
        return WorklistAnswer(items=items)

    return router


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What propagations have to be; and what questions and series, where any can be that."""

    drawn: list[Any]
    others: tuple[list[Any], list[Any]] | None


def _conditions(
    states: list[State] | None,
    verdicts: list[Verdict] | None,
    machine: str | None,
    course: str | None,
    since: datetime | None,
) -> _Wanted:
    drawn: list[Any] = [
        propagation.c.state.in_(states) if states else propagation.c.state.not_in(THROUGH)
    ]
    asked: list[Any] = [fraction.c.state == "needs_person"]
    gapped: list[Any] = [series.c.state == "incomplete", series.c.modality == "CT"]
    if verdicts:
        drawn.append(propagation.c.verdict.in_(verdicts))
    if course:
        drawn.append(propagation.c.course_id == course)
    if since:
        from_then_on = since.astimezone(UTC).isoformat()
        drawn.append(propagation.c.made_at >= from_then_on)
        asked.append(fraction.c.made_at >= from_then_on)
        gapped.append(series.c.last_arrival_at >= from_then_on)
    if machine:
        made_by = series.c.facts_json["manufacturer"].as_string()
        model = series.c.facts_json["model"].as_string()
        scans = select(series.c.uid).where(func.trim(made_by + " " + model) == machine)
        drawn.append(propagation.c.cbct_series_uid.in_(scans))
        asked.append(fraction.c.series_uid.in_(scans))
        gapped.append(series.c.uid.in_(scans))
    drawn_alone = (states and State.NEEDS_PERSON not in states) or verdicts or course
    return _Wanted(drawn=drawn, others=None if drawn_alone else (asked, gapped))


def _page(
    at: Connection,
    wanted: _Wanted,
    last: tuple[Any, ...] | None,
    limit: int,
    *,
    repeat_minutes: float,
) -> tuple[list[WorklistItem], tuple[Any, ...] | None]:
    """One page, and the key of its last item where there is another."""
    waiting = propagation.c.state == State.AWAITING_REVIEW
    rank = case(
        (waiting & (propagation.c.verdict == "reject"), 0),
        (propagation.c.state.in_([State.NEEDS_PERSON, State.FAILED]), 1),
        (waiting & (propagation.c.verdict == "look"), 2),
        (waiting, 3),
        (propagation.c.state.in_(THROUGH), 5),
        else_=4,
    )
    parts: list[Select[Any]] = [
        select(
            rank.label("rank"),
            propagation.c.made_at.label("at"),
            propagation.c.id.label("id"),
            literal("propagation").label("kind"),
        ).where(and_(*wanted.drawn))
    ]
    if wanted.others is not None:
        asked, gapped = wanted.others
        parts.append(
            select(
                literal(1).label("rank"),
                fraction.c.made_at.label("at"),
                fraction.c.revision_id.label("id"),
                literal("question").label("kind"),
            ).where(and_(*asked))
        )
        parts.append(
            select(
                literal(1).label("rank"),
                series.c.last_arrival_at.label("at"),
                series.c.uid.label("id"),
                literal("series").label("kind"),
            ).where(and_(*gapped))
        )
    every = union_all(*parts).subquery()
    key = (every.c.rank, every.c.at, every.c.id)
    query = select(every).order_by(*key).limit(limit + 1)
    if last is not None:
        query = query.where(tuple_(*key) > tuple_(*map(literal, last)))
    found = at.execute(query).all()
    shown = found[:limit]
    more = (shown[-1].rank, shown[-1].at, shown[-1].id) if len(found) > limit else None
    return _items(at, shown, and_(*wanted.drawn), repeat_minutes), more


def _items(
    at: Connection, shown: Sequence[Row[Any]], listed: ColumnElement[bool], repeat_minutes: float
) -> list[WorklistItem]:
    ids = {kind: [r.id for r in shown if r.kind == kind] for kind in get_args(Kind)}
    rows = _drawn(at, ids["propagation"])
    courses = {row.course_id for row in rows.values()} - {None}
    numbers = numbers_of(at, courses, repeat_minutes=repeat_minutes)
    earlier = earlier_scans(at, numbers, listed)
    folded = {each for under in earlier.values() for each in under}
    rows |= _drawn(at, folded - rows.keys())
    asked = select(fraction).where(fraction.c.revision_id.in_(ids["question"]))
    rows |= {row.revision_id: row for row in at.execute(asked)}
    gapped = select(series).where(series.c.uid.in_(ids["series"]))
    rows |= {row.uid: row for row in at.execute(gapped)}
    facts = facts_of(at, {_scan(row) for row in rows.values()})
    looking = open_by(at, [*ids["propagation"], *folded])

    def item(kind: Kind, each: str) -> WorklistItem:
        under = [item(kind, one) for one in earlier.get(each, ()) if one in rows]
        return _item(kind, rows[each], facts, numbers, looking.get(each, []), under)

    return [item(r.kind, r.id) for r in shown if r.id in rows and r.id not in folded]


def _drawn(at: Connection, ids: Iterable[str]) -> dict[str, Row[Any]]:
    query = select(
        propagation.c.id,
        propagation.c.order_json["roi"].as_string().label("roi"),
        *(propagation.c[name] for name in _SHOWN),
    )
    return {row.id: row for row in at.execute(query.where(propagation.c.id.in_(ids)))}


def _scan(row: Row[Any]) -> str:
    names = ("cbct_series_uid", "series_uid", "uid")
    return str(next(getattr(row, name) for name in names if name in row._fields))


def _item(
    kind: Kind,
    row: Row[Any],
    facts: dict[str, dict[str, Any]],
    numbers: Mapping[tuple[str, str], Taken],
    looking: list[str],
    earlier: list[WorklistItem],
) -> WorklistItem:
    scan = _scan(row)
    taken = numbers.get((row.course_id, scan)) if kind == "propagation" else None
    about = facts.get(scan, {})
    common: dict[str, Any] = {
        "kind": kind,
        "patient": patient_of_scan(row.patient_key, about),
        "cbct": scan,
        "machine": f"{about.get('manufacturer', '')} {about.get('model', '')}".strip(),
    }
    waits: dict[str, Any] = {
        "state": State.NEEDS_PERSON,
        "verdict": "",
        "doubt": None,
        "roi": "",
        "volumes_cc": {},
        "volume_change_percent": None,
        "agreement": None,
        "open_by": [],
    }
    if kind == "series":
        return WorklistItem(
            **common,
            **waits,
            id=scan,
            link=f"/v1/series/{scan}",
            course=None,
            fraction=None,
            scan=None,
            acquired_at=taken_at(about),
            arrived_at=row.last_arrival_at,
            reason=row.reason,
        )
    common |= {
        "course": row.course_id,
        "fraction": taken.fraction if taken else None,
        "scan": taken.scan if taken else None,
        "acquired_at": row.acquired_at,
        "arrived_at": row.made_at,
    }
    if kind == "question":
        return WorklistItem(
            **common,
            **waits,
            id=row.revision_id,
            link=f"/v1/courses/{row.revision_id}",
            reason=row.question_json.get("why", ""),
        )
    figures = row.figures_json
    return WorklistItem(
        **common,
        id=row.id,
        link=f"/v1/propagations/{row.id}",
        state=State(row.state),
        verdict=row.verdict,
        reason=first_reason(figures, row.problem_json),
        doubt=first_doubt(figures),
        roi=figures.get("roi_name", row.roi),
        volumes_cc=volumes_cc(figures),
        volume_change_percent=figures.get("volume_change_percent"),
        agreement=figures.get("agreement"),
        open_by=looking,
        earlier=earlier,
    )
