"""How λ, its direction, the levels' shares, γ and ‖m₂‖/‖m₁‖ ran in training (NETWORKS §14.4).

Read from the log that a run writes each epoch (`contourcast.models.nrm_figures`), the house's
``log.csv`` or ``epochs.csv`` beside nnU-Net's checkpoints. The size of λ
says nothing of how much is subtracted (§5.3): the shares, γ and the ratio do.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contourcast.imaging.errors import InputError
from contourcast.training.analyses.outcome import OnStep, Outcome, nobody
from contourcast.training.loop import LOG_FILE, SETTINGS_FILE
from contourcast.training.nnunet.progress import TABLE_FILE
from contourcast.training.pictures import COLORS, picture, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS: Final[Mapping[str, str]] = {
    "lambda_unit_": "λ / ‖λ‖",
    "share_": "share |λ| ‖e‖ of each level",
    "lambda_": "λ, raw",
}
SINGLE: Final[Mapping[str, str]] = {"ratio": "‖m₂‖ / ‖m₁‖", "gamma": "γ"}


def lambdas(runs: Sequence[Path], on_step: OnStep = nobody) -> Outcome:
    """The course of one or several runs: a row for each run and epoch.

    Args:
        runs: Folders of training runs, each with a log.
        on_step: Told what is going on.

    Raises:
        InputError: A folder has no log, or its log has no figures of a noise reduction module.
    """
    rows: list[dict[str, Any]] = []
    for n, run in enumerate(runs):
        on_step(run.name, n / len(runs))
        rows += [{"run": run.name, **line} for line in course(run)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    last = {row["run"]: row for row in rows}
    return Outcome(
        analysis="lambdas",
        rows=[{key: row.get(key) for key in columns} for row in rows],
        figure=_figure(rows),
        facts={
            "runs": [run.name for run in runs],
            "seeds": {run.name: _seed_of(run) for run in runs},
            "summary": last,
        },
    )


def course(run: Path) -> list[dict[str, float]]:
    """Epoch and the module's figures, line by line.

    Raises:
        InputError: No log, or no such figures in it.
    """
    logs = [run / name for name in (LOG_FILE, TABLE_FILE) if (run / name).is_file()]
    if not logs:
        raise InputError(
            "the run has no log",
            file=run.name,
            remedy=f"name the folder of a training run, with {LOG_FILE} or {TABLE_FILE} in it",
        )
    log = logs[0]
    with log.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    kept = [key for key in (lines[0] if lines else {}) if _is_figure(key)]
    if not kept:
        raise InputError(
            "the log holds no figures of a noise reduction module",
            file=log.name,
            remedy="train a network that has the module, such as diff-umamba",
        )
    return [
        {"epoch": float(line["epoch"]), **{key: float(line[key]) for key in kept if line[key]}}
        for line in lines
    ]


def _is_figure(key: str) -> bool:
    return key in SINGLE or key.startswith(tuple(GROUPS))


def _seed_of(run: Path) -> int | None:
    """What the run's settings say, if it has any."""
    path = run / SETTINGS_FILE
    if not path.is_file():
        return None
    seed = json.loads(path.read_text("utf-8")).get("seed")
    return int(seed) if seed is not None else None


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A column of panels for each run: direction, shares, raw λ; ratio and γ."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    kinds = [*GROUPS, "once"]
    figure, panels = picture(columns=len(kinds), rows=len(runs), width=3.1, height=2.6)
    for r, run in enumerate(runs):
        of = [row for row in rows if row["run"] == run]
        for axes, kind in zip(panels[r * len(kinds) : (r + 1) * len(kinds)], kinds, strict=True):
            keys = (
                [key for key in SINGLE if key in of[0]]
                if kind == "once"
                else sorted(key for key in of[0] if _belongs(key, kind))
            )
            _draw(axes, of, keys)
            axes.set_title("ratio and gate" if kind == "once" else GROUPS[kind])
            axes.set_xlabel("epoch")
            quiet(axes)
        panels[r * len(kinds)].set_ylabel(run)
    for axes in (panels[0], panels[len(kinds) - 1]):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _belongs(key: str, kind: str) -> bool:
    return key.startswith(kind) and key.removeprefix(kind).isdigit()


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    for n, key in enumerate(keys):
        known = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        level = key.rpartition("_")[2]
        label = SINGLE.get(key, f"level {level}")
        color = COLORS[n % len(COLORS)]
        axes.plot(*zip(*known, strict=True), color=color, lw=1.3, marker=".", ms=3, label=label)
