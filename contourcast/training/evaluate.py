"""Proposals against known truth: a row per CBCT and method, a table, and plots.

Only this module reads truth. A proposal is read back from the structure set that a run wrote, so
that what is measured is what a planning system would import.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.imaging.metrics import agreement
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import StructureSet
from contourcast.imaging.volume import Mask
from contourcast.propagate import ALL_METHODS, COLORS_RGB
from contourcast.simulation.truth import Truth, load_truth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESAMPLES: Final = 2000  # of the bootstrap
TARGETS: Final = ("label", "anatomy")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one CBCT against one truth.

    Attributes:
        target: ``label``: as a physician would have drawn it; ``anatomy``: where the tumour is.
        visible_share: Share of the truth's surface that can be seen on a noise-free scan.
    """

    patient: str
    fraction: str
    method: str
    target: str
    state: str
    verdict: str
    truth_cc: float
    proposal_cc: float
    dsc: float
    iou: float
    hd95_mm: float | None
    msd_mm: float | None
    surface_dice_1mm: float | None
    surface_dice_2mm: float | None
    surface_dice_3mm: float | None
    added_path_length_mm: float | None
    visible_share: float | None
    seconds: float


def compare(
    runs: Sequence[Path],
    truth: Sequence[Path],
    out: Path,
    on_step: Callable[[str, float], None] = lambda sentence, done: None,
) -> list[Row]:
    """Measures runs whose truth is known and writes ``table.csv``, ``table.md``, ``plots.png``.

    Args:
        runs: Folders that ``propagate`` wrote, or folders of such folders.
        truth: Simulated courses, or any folders above them.
        out: Where the tables and plots go.
        on_step: Told what is going on.

    Raises:
        InputError: No run, or no truth for a run.
    """
    folders = sorted({report.parent for run in runs for report in run.rglob("report.json")})
    if not folders:
        raise InputError(
            "no run was found", file=runs[0].name if runs else "", remedy="run propagate first"
        )
    truths = find_truths(truth)
    rows: list[Row] = []
    for n, folder in enumerate(folders):
        on_step(f"measuring {folder.name}", n / len(folders))
        rows += measure(folder, truths)
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(rows, out / "table.csv")
    (out / "table.md").write_text(table(rows), "utf-8")
    plot(rows, out / "plots.png")
    return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A truth and whose it is."""

    patient: str
    fraction: str
    truth: Truth


def find_truths(places: Sequence[Path]) -> dict[str, Known]:
    """Every truth beneath these folders, by the series UID of its CBCT."""
    found = {}
    for path in sorted(p for place in places for p in place.rglob("truth/fraction-*.json")):
        truth = load_truth(path)
        found[truth.cbct_series_uid] = Known(
            patient=f"{path.parents[2].name}/{path.parents[1].name}",
            fraction=path.stem,
            truth=truth,
        )
    return found


def measure(run: Path, truths: dict[str, Known]) -> list[Row]:
    """The rows of one run.

    Raises:
        InputError: Nobody knows the truth of this CBCT.
    """
    report = json.loads((run / "report.json").read_text("utf-8"))
    series_uid = report["cbct"]["series_instance_uid"]
    if series_uid not in truths:
        raise InputError(
            "the truth of this run's CBCT is not known",
            uid=series_uid,
            file=run.name,
            remedy="name the folder of its simulated course: --truth",
        )
    known = truths[series_uid]
    truth = known.truth
    proposals = read_structure_set(run / "RS.dcm")
    rows = []
    for target, reference in zip(TARGETS, (truth.label, truth.anatomical), strict=True):
        for method in report["methods"]:
            proposal = _proposal(proposals, method["roi_name"], reference)
            found = agreement(proposal, reference)
            rows.append(
                Row(
                    patient=known.patient,
                    fraction=known.fraction,
                    method=method["method"],
                    target=target,
                    state=method["state"],
                    verdict=report["verdict"],
                    truth_cc=reference.volume_cc,
                    proposal_cc=proposal.volume_cc,
                    dsc=found.dice,
                    iou=found.iou,
                    hd95_mm=found.hd95_mm,
                    msd_mm=found.msd_mm,
                    surface_dice_1mm=found.surface_dice_1mm,
                    surface_dice_2mm=found.surface_dice_2mm,
                    surface_dice_3mm=found.surface_dice_3mm,
                    added_path_length_mm=found.added_path_length_mm,
                    visible_share=truth.visible_share,
                    seconds=method["seconds"],
                )
            )
    return rows


def _proposal(proposals: StructureSet, roi_name: str, reference: Mask) -> Mask:
    """The proposal on the truth's grid; a ROI without contours is an empty mask, and counts."""
    return rasterise(proposals.roi(roi_name), reference.grid)


def mean_with_interval(
    rows: Sequence[Row], value: Callable[[Row], float | None]
) -> tuple[float, float, float]:
    """Mean over CBCTs with a 95 % bootstrap interval by patient (seeded)."""
    by_patient: dict[str, list[float]] = {}
    for row in rows:
        number = value(row)
        if number is not None:
            by_patient.setdefault(row.patient, []).append(number)
    groups = [np.array(v) for v in by_patient.values()]
    if not groups:
        return float("nan"), float("nan"), float("nan")
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(groups), (RESAMPLES, len(groups)))
    means = [np.concatenate([groups[g] for g in draw]).mean() for draw in draws]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.concatenate(groups).mean()), float(low), float(high)


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each truth a line per method, failures counted and never dropped."""
    lines = []
    for target in TARGETS:
        chosen = [r for r in rows if r.target == target]
        fractions = {(r.patient, r.fraction) for r in chosen}
        patients = {r.patient for r in chosen}
        lines += [
            f"Against the {target}: {len(fractions)} CBCTs of {len(patients)} patients. "
            "DSC as mean (95 % interval by patient).",
            "",
            "| method | DSC | IoU | HD95 mm | mean surface distance mm | surface Dice 1, 2, 3 mm "
            "| added path length mm | no contour | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for method in [m for m in ALL_METHODS if any(r.method == m for r in chosen)]:
            of = [r for r in chosen if r.method == method]
            dsc, low, high = mean_with_interval(of, lambda r: r.dsc)
            surface = ", ".join(
                _show(_mean([getattr(r, f"surface_dice_{mm}mm") for r in of])) for mm in (1, 2, 3)
            )
            hd95, msd = _mean([r.hd95_mm for r in of]), _mean([r.msd_mm for r in of])
            cells = (
                method,
                f"{dsc:.3f} ({low:.3f} to {high:.3f})",
                _show(_mean([r.iou for r in of])),
                _show(hd95, 1),
                _show(msd),
                surface,
                _show(_mean([r.added_path_length_mm for r in of]), 0),
                str(sum(r.state != "drawn" for r in of)),
                _show(_mean([r.seconds for r in of]), 1),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """DSC and HD95 per method, each CBCT a dot, its patient's dots joined; DSC against volume."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [r for r in rows if r.target == "label"]
    methods = [m for m in ALL_METHODS if any(r.method == m for r in chosen)]
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    cases = sorted({(r.patient, r.fraction) for r in chosen})
    found = {(r.patient, r.fraction, r.method): r for r in chosen}
    panels: list[tuple[Axes, Callable[[Row], float | None], str]] = [
        (left, lambda r: r.dsc, "Dice similarity coefficient"),
        (middle, lambda r: r.hd95_mm, "95 % Hausdorff distance, mm"),
    ]
    for axes, value, title in panels:
        for case in cases:
            drawn = [value(found[(*case, m)]) if (*case, m) in found else None for m in methods]
            axes.plot(
                range(len(methods)),
                [np.nan if v is None else v for v in drawn],
                color="0.75",
                lw=0.7,
                zorder=1,
            )
        for n, method in enumerate(methods):
            numbers = [value(r) for r in chosen if r.method == method]
            known = [v for v in numbers if v is not None]
            axes.scatter(
                [n] * len(known), known, color=_rgb(method), s=22, zorder=2, ec="0.2", lw=0.4
            )
            if known:
                axes.hlines(np.mean(known), n - 0.28, n + 0.28, color="0.1", lw=2, zorder=3)
        axes.set_xticks(range(len(methods)), methods, rotation=20)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", color="0.9")
    left.set_ylim(0, 1)
    for method in methods:
        of = [r for r in chosen if r.method == method]
        right.scatter(
            [r.truth_cc for r in of],
            [r.dsc for r in of],
            color=_rgb(method),
            s=22,
            label=method,
            ec="0.2",
            lw=0.4,
        )
    right.set(xscale="log", ylim=(0, 1), xlabel="volume of the truth, cc")
    right.set_title("DSC by size of the tumour", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    right.grid(color="0.9")
    figure.savefig(path, metadata={"Software": None})


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _show(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _rgb(method: str) -> tuple[float, float, float]:
    red, green, blue = COLORS_RGB[method]
    return red / 255, green / 255, blue / 255
