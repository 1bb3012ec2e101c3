"""How much data does a network need? Nested shares of the patients, same seeds (NETWORKS §14.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contourcast.training.analyses.outcome import OnStep, Outcome, nobody
from contourcast.training.analyses.trials import Parts, trial
from contourcast.training.datasets.splits import fractions
from contourcast.training.loop import TrainSettings
from contourcast.training.pictures import COLORS, picture, quiet
from contourcast.training.provenance import cohort_facts
from contourcast.training.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class SubsetSettings:
    """What is trained on which shares.

    Attributes:
        train: A training for each network that is compared, by the name it is shown under.
        seeds: Of the training; each also draws its own nested parts.
        percentages: Of the patients to fit on; all that there are when empty.
    """

    train: Mapping[str, TrainSettings]
    seeds: tuple[int, ...] = (1, 2, 3)
    percentages: tuple[int, ...] = ()


def subset(parts: Parts, settings: SubsetSettings, out: Path, on_step: OnStep = nobody) -> Outcome:
    """A row for each network, share, seed and test case; folders under ``out/runs`` go on.

    Validation and test stay the same throughout.

    Raises:
        InputError: There are too few patients to share.
    """
    people = sorted({s.patient for s in parts.fitted})
    rows: list[dict[str, Any]] = []
    kept: dict[str, dict[int, tuple[str, ...]]] = {}
    for seed in settings.seeds:
        shares = fractions(people, seed=seed)
        wanted = settings.percentages or tuple(shares)
        kept[str(seed)] = {percent: shares[percent] for percent in wanted}
    plan = [
        (name, seed, percent)
        for seed in settings.seeds
        for percent in kept[str(seed)]
        for name in settings.train
    ]
    for done, (name, seed, percent) in enumerate(plan):
        on_step(f"{name}, {percent} %, seed {seed}", done / len(plan))
        chosen = kept[str(seed)][percent]
        fewer = replace(parts, fitted=tuple(s for s in parts.fitted if s.patient in chosen))
        training = replace(settings.train[name], seed=seed)
        folder = out / "runs" / f"{name}-{percent}-{seed}"
        found = trial(fewer, training, folder, name=name)
        rows += [{"percent": percent, "patients": len(chosen), **row} for row in found]
    summary = _summary(rows)
    return Outcome(
        analysis="subset",
        rows=rows,
        figure=_figure(summary),
        facts={
            "settings": asdict(settings),
            "seeds": settings.seeds,
            "fitted_patients": kept,
            "parts": parts.facts(),
            "test_cases": cohort_facts(parts.test),
            "summary": summary,
        },
    )


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["trial"], row["percent"]), []).append(row)
    return [
        {
            "trial": name,
            "percent": percent,
            **asdict(estimate([r["dice"] for r in of], [r["patient"] for r in of])),
        }
        for (name, percent), of in sorted(groups.items())
    ]


def _figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Dice over the share of patients, a line a network, intervals by test patient."""
    figure, (axes,) = picture(width=4.6, height=3.2)
    for n, name in enumerate(dict.fromkeys(line["trial"] for line in summary)):
        of = [line for line in summary if line["trial"] == name]
        percent, color = [line["percent"] for line in of], COLORS[n % len(COLORS)]
        low, high = [line["low"] for line in of], [line["high"] for line in of]
        axes.fill_between(percent, low, high, color=color, alpha=0.13)
        axes.plot(percent, [line["mean"] for line in of], "o-", color=color, ms=4, label=name)
    axes.set(xlabel="share of the training patients, %", ylabel="Dice", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    quiet(axes)
    return figure
