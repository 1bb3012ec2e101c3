"""What a training tells: a row for each epoch, kept beside nnU-Net's checkpoints, and a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

TABLE_FILE: Final = "epochs.csv"
CURVE_FILE: Final = "curve.svg"
FIGURES_FILE: Final = "nrm.svg"


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch of a training.

    Attributes:
        loss: Mean over the training steps that counted.
        dice: nnU-Net's pseudo Dice over validation patches, mean of the labels.
        skipped_steps: Steps whose loss was not finite.
        figures: λ shares, ‖m₂‖/‖m₁‖, γ of a network that has them (`nrm_figures`).
    """

    epoch: int
    loss: float
    validation_loss: float
    dice: float
    learning_rate: float
    skipped_steps: int
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """One line of the table."""
        plain = {k: v for k, v in self.__dict__.items() if k != "figures"}
        return plain | dict(self.figures)


OnEpoch = Callable[[EpochRow], None]


def read_rows(folder: Path, *, before: int | None = None) -> list[EpochRow]:
    """The table of a run; ``before`` leaves out that epoch and all that follow."""
    path = folder / TABLE_FILE
    if not path.exists():
        return []
    known = set(EpochRow.__dataclass_fields__) - {"figures"}
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            numbers = {k: float(v) if v else math.nan for k, v in line.items()}
            own: dict[str, Any] = {k: v for k, v in numbers.items() if k in known}
            own |= {k: int(own[k]) for k in ("epoch", "skipped_steps")}
            figures = {k: v for k, v in numbers.items() if k not in known}
            rows.append(EpochRow(**own, figures=figures))
    return [row for row in rows if before is None or row.epoch < before]


def write_rows(folder: Path, rows: Sequence[EpochRow]) -> None:
    """The table, whole or not at all, and the plots."""
    names = list(dict.fromkeys(name for row in rows for name in row.to_plain()))
    part = folder / f"{TABLE_FILE}.new"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: repr(v) for k, v in row.to_plain().items()})
    part.replace(folder / TABLE_FILE)


def draw(folder: Path, rows: Sequence[EpochRow]) -> None:
    """Loss and Dice over the epochs, and the noise reduction's figures where there are any."""
    from matplotlib.figure import Figure

    epochs = [row.epoch for row in rows]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left = figure.add_subplot()
    left.plot(epochs, [r.loss for r in rows], color="tab:gray", label="training")
    left.plot(epochs, [r.validation_loss for r in rows], color="tab:orange", label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend(loc="upper left")
    right = left.twinx()
    right.plot(epochs, [r.dice for r in rows], color="tab:blue")
    right.set(ylabel="validation Dice of patches", ylim=(0, 1))
    right.yaxis.label.set_color("tab:blue")
    figure.savefig(folder / CURVE_FILE, metadata={"Date": None})
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    if not names:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch")
    for name in names:
        axes.plot(epochs, [row.figures.get(name, math.nan) for row in rows], label=name)
    axes.legend(fontsize="small")
    figure.savefig(folder / FIGURES_FILE, metadata={"Date": None})
