"""Small figures that the worklist, the page and the history share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from contourcast.service.outputs.report import JudgedFigure


def volumes_cc(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Of each method, from the figures that a propagation ended with; cm³."""
    return {name: each.get("volume_cc") for name, each in figures.get("methods", {}).items()}


def first_reason(figures: Mapping[str, Any], problem: Mapping[str, Any]) -> str:
    """Why its verdict is what it is, or what went wrong; empty when neither is so."""
    told = [*figures.get("reasons", []), *figures.get("registration", {}).get("reasons", [])]
    return str((told or [problem.get("cause", "")])[0])


def first_doubt(figures: Mapping[str, Any]) -> JudgedFigure | None:
    """The figure that `first_reason` is about; None where it is about none."""
    told = figures if figures.get("reasons") else figures.get("registration", {})
    doubt = told.get("doubt")
    return None if doubt is None else JudgedFigure(**doubt)


def change_percent(volume_cc: float | None, prior_cc: float) -> float | None:
    """How much larger than the prior a contour is; None where that says nothing."""
    if not volume_cc or not prior_cc:
        return None
    return round(100.0 * (volume_cc / prior_cc - 1.0), 1)


def mean_or_none(values: Iterable[float]) -> float | None:
    """The mean of some numbers; None of none."""
    known = list(values)
    return sum(known) / len(known) if known else None
