"""What every analysis ends with: a table, a figure, and how they came about."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contourcast.training.cases import Model
from contourcast.training.pictures import save_svg
from contourcast.training.provenance import cohort_facts, versions, write_json
from contourcast.training.samples import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""


def nobody(sentence: str, done: float) -> None:
    """Nobody is told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """An analysis that is done.

    Attributes:
        analysis: Its name, and that of its files.
        rows: The table, a mapping a line, all with the first line's columns.
        figure: The picture.
        facts: Settings and seeds, models, cases and the summary, for the JSON.
    """

    analysis: str
    rows: Sequence[Mapping[str, Any]]
    figure: Figure
    facts: Mapping[str, Any]

    def write(self, out: Path) -> None:
        """``NAME.csv``, ``NAME.svg`` and ``NAME.json`` in a folder."""
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{self.analysis}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            for row in self.rows:
                writer.writerow(
                    {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                )
        save_svg(self.figure, out / f"{self.analysis}.svg")
        document = {"analysis": self.analysis, "versions": versions(), **self.facts}
        write_json(out / f"{self.analysis}.json", document)


def told_of(models: Sequence[Model], samples: Sequence[Sample]) -> dict[str, Any]:
    """Models by digest and cases by theirs, for an outcome's facts."""
    return {"models": [model.facts() for model in models], "cases": cohort_facts(samples)}
