"""How a course went, fraction by fraction; and what methods cost people, over all courses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row, select

from contourcast.service.index.tables import propagation, review
from contourcast.service.intake.states import State
from contourcast.service.outputs.recommended import recommended
from contourcast.service.outputs.report import JudgedFigure
from contourcast.service.review.figures import first_doubt, first_reason, volumes_cc
from contourcast.service.review.numbering import Taken

# Replaced, or given up: they say nothing of how the course went.
_GONE: Final = (State.SUPERSEDED, State.CANCELLED)

Xyz = tuple[float, float, float]


class DecisionItem(BaseModel):
    """The last decision on a fraction."""

    decision: str
    method: str
    reviewer: str
    at: str
    surface_dice_1mm: float | None
    mean_surface_mm: float | None
    edited_slices: int | None
    seconds: float | None


class PassedItem(BaseModel):
    """One propagation of a course."""

    fraction: int | None
    scan: int | None = Field(description="1, 2 … of that fraction.")
    propagation: str
    roi: str = Field(description="Its name; until it is drawn, as it was asked for.")
    acquired_at: str
    state: State
    verdict: str
    reason: str
    doubt: JudgedFigure | None = Field(description="The figure that the reason is about, if any.")
    volumes_cc: dict[str, float | None] = Field(description="Of each method.")
    signed_volume_cc: float | None
    prior_volume_cc: float | None
    shift_xyz_mm: Xyz | None = Field(
        description="Of the recommended contour's centre, from the carried prior's."
    )
    review: DecisionItem | None


class MonthEditing(BaseModel):
    """The same over one month."""

    month: str = Field(description="YYYY-MM of the signatures, UTC.")
    signed: int
    edited: int
    median_surface_dice_1mm: float | None


class MethodEditing(BaseModel):
    """What people had to do to a method's contours."""

    method: str
    signed: int
    unchanged: int
    edited: int
    rejected: int = Field(description="Of propagations that had this method's contour.")
    median_surface_dice_1mm: float | None = Field(description="Of signed and machine's contour.")
    median_mean_surface_mm: float | None
    median_seconds: float | None = Field(description="Of editing, where there was any.")
    months: list[MonthEditing] = Field(description="In their order, but those without a signature.")


def passed(
    at: Connection, course_id: str, numbers: Mapping[tuple[str, str], Taken]
) -> list[PassedItem]:
    """Every current propagation of a course, in the order of being taken."""
    rows: Sequence[Any] = at.execute(
        select(
            propagation.c.id,
            propagation.c.cbct_series_uid,
            propagation.c.acquired_at,
            propagation.c.state,
            propagation.c.verdict,
            propagation.c.figures_json,
            propagation.c.problem_json,
            propagation.c.order_json["roi"].as_string().label("roi"),
        )
        .where(propagation.c.course_id == course_id, propagation.c.state.not_in(_GONE))
        .order_by(propagation.c.acquired_at, propagation.c.number)
    ).all()
    query = (
        select(review)
        .where(review.c.propagation.in_([row.id for row in rows]))
        .order_by(review.c.number)
    )
    decided = {row.propagation: row for row in at.execute(query)}  # the last one stands
    return [
        _passed(row, numbers.get((course_id, row.cbct_series_uid)), decided.get(row.id))
        for row in rows
    ]


def editing(at: Connection) -> tuple[list[MethodEditing], str | None]:
    """What the last decision on each propagation says of each method; since when."""
    rows = at.execute(select(review).order_by(review.c.number)).all()
    last = {row.propagation: row for row in rows}
    rejected = [row.propagation for row in last.values() if row.decision == "rejected"]
    drawn = at.execute(
        select(propagation.c.figures_json).where(propagation.c.id.in_(rejected))
    ).scalars()
    turned_down = [
        method for figures in drawn for method, cc in volumes_cc(figures).items() if cc is not None
    ]
    signed: dict[str, list[Row[Any]]] = {}
    for row in last.values():
        if row.decision != "rejected":
            signed.setdefault(row.method, []).append(row)
    found = [
        _editing(method, signed.get(method, []), turned_down.count(method))
        for method in sorted({*signed, *turned_down})
    ]
    return found, rows[0].at if rows else None


def _passed(row: Row[Any], taken: Taken | None, decision: Row[Any] | None) -> PassedItem:
    figures = row.figures_json
    told = {} if decision is None else decision.figures_json
    return PassedItem(
        fraction=taken.fraction if taken else None,
        scan=taken.scan if taken else None,
        propagation=row.id,
        roi=figures.get("roi_name", row.roi),
        acquired_at=row.acquired_at,
        state=State(row.state),
        verdict=row.verdict,
        reason=first_reason(figures, row.problem_json),
        doubt=first_doubt(figures),
        volumes_cc=volumes_cc(figures),
        signed_volume_cc=told.get("volume_cc"),
        prior_volume_cc=figures.get("prior_volume_cc"),
        shift_xyz_mm=_shift(figures),
        review=None
        if decision is None
        else DecisionItem(
            decision=decision.decision,
            method=decision.method,
            reviewer=decision.reviewer,
            at=decision.at,
            surface_dice_1mm=told.get("surface_dice_1mm"),
            mean_surface_mm=told.get("mean_surface_mm"),
            edited_slices=told.get("edited_slices"),
            seconds=told.get("seconds"),
        ),
    )


def _shift(figures: Mapping[str, Any]) -> Xyz | None:
    best = recommended(volumes_cc(figures))
    here = figures.get("methods", {}).get(best, {}).get("centroid_xyz_mm")
    prior = figures.get("prior_centroid_xyz_mm")
    if here is None or prior is None:
        return None
    x, y, z = (round(float(v), 3) for v in np.subtract(here, prior))
    return x, y, z


def _editing(method: str, signed: Sequence[Row[Any]], rejected: int) -> MethodEditing:
    edited = [row for row in signed if row.decision == "edited"]
    return MethodEditing(
        method=method,
        signed=len(signed),
        unchanged=len(signed) - len(edited),
        edited=len(edited),
        rejected=rejected,
        median_surface_dice_1mm=_median(signed, "surface_dice_1mm"),
        median_mean_surface_mm=_median(signed, "mean_surface_mm"),
        median_seconds=_median(edited, "seconds"),
        months=[
            MonthEditing(
                month=month,
                signed=len(its),
                edited=sum(row.decision == "edited" for row in its),
                median_surface_dice_1mm=_median(its, "surface_dice_1mm"),
            )
            for month, its in _by_month(signed)
        ],
    )


def _by_month(rows: Sequence[Row[Any]]) -> list[tuple[str, list[Row[Any]]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in rows:
        found.setdefault(row.at[:7], []).append(row)
    return sorted(found.items())


def _median(rows: Sequence[Row[Any]], name: str) -> float | None:
    known = [row.figures_json[name] for row in rows if row.figures_json.get(name) is not None]
    return float(median(known)) if known else None
