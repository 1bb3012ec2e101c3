"""Methods and models over a cohort: tables with intervals, paired tests, and plots.

`compare` measures runs and shows them, failures counted. `evaluate` takes measured rows from any
source (`contourcast.training.rows`) and adds tests against a reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from contourcast.imaging.errors import InputError
from contourcast.imaging.structures import nearest_name
from contourcast.propagate import ALL_METHODS, color_rgb
from contourcast.training.pictures import picture, quiet, save_svg
from contourcast.training.provenance import versions, write_json
from contourcast.training.rows import TARGETS, OnStep, Row, rows_of_runs, write_rows
from contourcast.training.statistics import (
    RESAMPLES,
    Comparison,
    Estimate,
    compared,
    estimate,
    estimate_over_patients,
    holm,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is tested; leads are shown for the first, and stand in the JSON for all.
TESTED: Final[Mapping[str, Callable[[Row], float | None]]] = {
    "dsc": lambda row: row.dsc,
    "surface_dice_2mm": lambda row: row.surface_dice_2mm,
    "hd95_mm": lambda row: row.hd95_mm,
}
# Strata of REGISTRATION §11.6: by size of the truth, and by how much of it can be seen.
STRATA: Final[Mapping[str, Callable[[Row], bool]]] = {
    "all": lambda row: True,
    "< 10 cc": lambda row: row.truth_cc < 10,
    "10 to 30 cc": lambda row: 10 <= row.truth_cc <= 30,
    "> 30 cc": lambda row: row.truth_cc > 30,
    "< 30 % visible": lambda row: row.visible_share is not None and row.visible_share < 0.3,
    ">= 30 % visible": lambda row: row.visible_share is not None and row.visible_share >= 0.3,
}


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A method against the reference; p values are corrected for the family they stand in.

    The family of a test is all methods compared by one metric against one target.

    Attributes:
        untested: Why nothing was compared; empty where it was.
    """

    target: str
    metric: str
    method: str
    reference: str
    found: Comparison
    corrected_t: float
    corrected_wilcoxon: float
    corrected_t_patients: float
    corrected_wilcoxon_patients: float
    untested: str = ""


def compare(
    runs: Sequence[Path],
    truth: Sequence[Path],
    out: Path,
    on_step: OnStep = lambda sentence, done: None,
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
    rows = rows_of_runs(runs, truth, on_step)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(rows, out / "table.csv")
    (out / "table.md").write_text(table(rows), "utf-8")
    plot(rows, out / "plots.png")
    return rows


def evaluate(
    rows: Sequence[Row],
    out: Path,
    *,
    reference: str,
    facts: Mapping[str, object] | None = None,
) -> list[Lead]:
    """Writes ``cases.csv``, ``table.md``, ``boxes.svg`` and ``evaluation.json``.

    Args:
        rows: Each case once for each method and target.
        out: Folder of the four files.
        reference: The method that all others are tested against.
        facts: What the JSON says of models and cohort.

    Raises:
        InputError: The reference is not among the methods, or a case was measured twice.
    """
    leads = leads_over(rows, reference)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(rows, out / "cases.csv")
    text = "\n".join((table(rows), leads_table(leads), strata_table(rows, reference)))
    (out / "table.md").write_text(text, "utf-8")
    boxes(rows, out / "boxes.svg")
    document = {
        "reference": reference,
        "bootstrap": {"resamples": RESAMPLES, "seed": 0, "unit": "patient"},
        "versions": versions(),
        **(facts or {}),
        "methods": [
            {
                "target": target,
                "method": method,
                "metric": metric,
                **asdict(estimate(*_known(of, value))),
                "over_patients": asdict(estimate_over_patients(*_known(of, value))),
                "not_defined": sum(value(row) is None for row in of),
            }
            for target in TARGETS
            for method, of in _by_method(rows, target).items()
            for metric, value in TESTED.items()
        ],
        "leads": [asdict(lead) for lead in leads],
    }
    write_json(out / "evaluation.json", document)
    return leads


def leads_over(rows: Sequence[Row], reference: str) -> list[Lead]:
    """Every other method against the reference, on the cases that both have.

    A distance that one of the two has not on every such case, because it drew nothing, is not
    compared: the mean over the others would reward who fails on the hard ones.

    Raises:
        InputError: The reference is not among the methods, or a case was measured twice.
    """
    methods = methods_of(rows)
    if reference not in methods:
        near = nearest_name(reference, methods)
        raise InputError(
            f"no method is named '{reference}'" + (f"; the nearest is '{near}'" if near else ""),
            remedy=f"choose the reference from {', '.join(methods)}",
        )
    leads = []
    for target in TARGETS:
        by_method = _by_method(rows, target)
        others = {
            method: _pairs(of, by_method.get(reference, []))
            for method, of in by_method.items()
            if method != reference
        }
        for metric, value in TESTED.items():
            untested = {method: _untested(pairs, value) for method, pairs in others.items()}
            found = {
                method: _compared([] if untested[method] else pairs, value)
                for method, pairs in others.items()
            }
            found = {m: c for m, c in found.items() if c.lead.cases or untested[m]}
            leads += _corrected(found, untested, target=target, metric=metric, reference=reference)
    return leads


def _corrected(
    found: Mapping[str, Comparison],
    untested: Mapping[str, str],
    *,
    target: str,
    metric: str,
    reference: str,
) -> list[Lead]:
    t, w, t_patients, w_patients = (
        holm([getattr(comparison, name) for comparison in found.values()])
        for name in ("p_t", "p_wilcoxon", "p_t_patients", "p_wilcoxon_patients")
    )
    return [
        Lead(
            target=target,
            metric=metric,
            method=method,
            reference=reference,
            found=comparison,
            corrected_t=t[n],
            corrected_wilcoxon=w[n],
            corrected_t_patients=t_patients[n],
            corrected_wilcoxon_patients=w_patients[n],
            untested=untested[method],
        )
        for n, (method, comparison) in enumerate(found.items())
    ]


def _pairs(of: Sequence[Row], reference: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows of a method and of the reference, on the cases that both have."""
    theirs = {row.case: row for row in reference}
    return [(row, theirs[row.case]) for row in of if row.case in theirs]


def _untested(pairs: Sequence[tuple[Row, Row]], value: Callable[[Row], float | None]) -> str:
    """Why these are not compared by a metric: some cases have it, and others have not."""
    known = [(value(mine) is not None, value(other) is not None) for mine, other in pairs]
    lacking = sum(not all(both) for both in known)
    if not lacking or not any(any(both) for both in known):
        return ""
    return f"not defined on {lacking} of {len(pairs)} CBCTs, where a contour is empty"


def _compared(pairs: Sequence[tuple[Row, Row]], value: Callable[[Row], float | None]) -> Comparison:
    """On the cases where both are known."""
    known = [
        (mine, other, row.patient)
        for row, theirs in pairs
        if (mine := value(row)) is not None and (other := value(theirs)) is not None
    ]
    return compared([k[0] for k in known], [k[1] for k in known], [k[2] for k in known])


def methods_of(rows: Sequence[Row]) -> list[str]:
    """The pipeline's methods in their order, then others as they come."""
    seen = list(dict.fromkeys(row.method for row in rows))
    known = [method for method in ALL_METHODS if method in seen]
    return [*known, *(method for method in seen if method not in known)]


def _by_method(rows: Sequence[Row], target: str) -> dict[str, list[Row]]:
    """Rows of each method that has any against this target.

    Raises:
        InputError: A case was measured twice by one method.
    """
    groups = {}
    for method in methods_of(rows):
        of = [row for row in rows if row.target == target and row.method == method]
        if len({row.case for row in of}) < len(of):
            raise InputError(
                f"a case was measured twice by {method}",
                remedy="name each run, book and model once",
            )
        if of:
            groups[method] = of
    return groups


def _known(
    rows: Sequence[Row], value: Callable[[Row], float | None]
) -> tuple[list[float], list[str]]:
    """The values of the rows that have one, and whose they are."""
    known = [(v, row.patient) for row in rows if (v := value(row)) is not None]
    return [v for v, _ in known], [patient for _, patient in known]


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each truth a line per method, failures counted and never dropped.

    Below it what is tested, over CBCTs and over patients.
    """
    lines = []
    for target in TARGETS:
        chosen = [r for r in rows if r.target == target]
        if not chosen:
            continue
        lines += [
            f"Against the {target}: {len({r.case for r in chosen})} CBCTs of "
            f"{len({r.patient for r in chosen})} patients. "
            "DSC as mean ± sd over CBCTs (95 % interval by patient). Distances as mean (over so "
            "many CBCTs: without a contour there is none).",
            "",
            "| method | DSC | IoU | HD95 mm | mean surface distance mm | surface Dice 1, 2, 3 mm "
            "| added path length mm | no contour | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for method, of in _by_method(rows, target).items():
            surface = ", ".join(
                _show(_mean([getattr(r, f"surface_dice_{mm}mm") for r in of])) for mm in (1, 2, 3)
            )
            cells = (
                method,
                _with_interval(estimate(*_known(of, lambda r: r.dsc))),
                _show(_mean([r.iou for r in of])),
                _with_count([r.hd95_mm for r in of], 1),
                _with_count([r.msd_mm for r in of], 2),
                surface,
                _show(_mean([r.added_path_length_mm for r in of]), 0),
                str(sum(r.state != "drawn" for r in of)),
                _show(_mean([r.seconds for r in of]), 1),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *_spread_lines(rows, target), ""]
    return "\n".join(lines)


def _spread_lines(rows: Sequence[Row], target: str) -> list[str]:
    """Markdown: what is tested over CBCTs and over patients, for each method."""
    lines = [
        "The same over CBCTs, and over patients (each patient the mean over the CBCTs): mean ± sd "
        "(95 % interval by patient), and median (quartiles).",
        "",
        "| method | figure | CBCTs | mean | median | patients | mean | median |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, of in _by_method(rows, target).items():
        for metric, value in TESTED.items():
            known = _known(of, value)
            over_cases, over_patients = estimate(*known), estimate_over_patients(*known)
            cells = (
                method,
                metric,
                *_spread(over_cases),
                *_spread(over_patients),
            )
            if over_cases.cases:
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def leads_table(leads: Sequence[Lead]) -> str:
    """Markdown: the lead in DSC of each method, with corrected p values."""
    lines = []
    for target in TARGETS:
        chosen = [lead for lead in leads if lead.target == target and lead.metric == "dsc"]
        if not chosen:
            continue
        lines += [
            f"Lead in DSC over {chosen[0].reference} against the {target}, paired "
            "(95 % interval by patient); p of t and Wilcoxon after Holm, over CBCTs and over "
            "patients' means.",
            "",
            "| method | CBCTs | patients | lead | t | Wilcoxon | t, patients "
            "| Wilcoxon, patients |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for lead in chosen:
            of = lead.found.lead
            cells = (
                lead.method,
                str(of.cases),
                str(of.patients),
                f"{of.mean:+.3f} ({of.low:+.3f} to {of.high:+.3f})",
                _show_p(lead.corrected_t),
                _show_p(lead.corrected_wilcoxon),
                _show_p(lead.corrected_t_patients),
                _show_p(lead.corrected_wilcoxon_patients),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        left_out = [lead for lead in leads if lead.target == target and lead.untested]
        lines += [f"- {of.metric} of {of.method} not compared: {of.untested}." for of in left_out]
        lines += [""] if left_out else []
    return "\n".join(lines)


def strata_table(rows: Sequence[Row], reference: str) -> str:
    """Markdown: DSC by size and visible share, and the lead over the reference there."""
    lines = []
    for target in TARGETS:
        by_method = _by_method(rows, target)
        if not by_method:
            continue
        lines += [
            f"DSC against the {target} by size of the truth and by visible share"
            + (f"; in brackets the paired lead over {reference}." if len(by_method) > 1 else "."),
            "",
            f"| | CBCTs | {' | '.join(by_method)} |",
            f"| --- | --- |{' --- |' * len(by_method)}",
        ]
        for name, belongs in STRATA.items():
            chosen = {m: [r for r in of if belongs(r)] for m, of in by_method.items()}
            count = len({r.case for of in chosen.values() for r in of})
            if not count:
                continue
            cells = [
                _stratum(of, chosen.get(reference, []) if method != reference else [])
                for method, of in chosen.items()
            ]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _stratum(of: Sequence[Row], reference: Sequence[Row]) -> str:
    mean = _show(_mean([r.dsc for r in of]), 3)
    lead = _compared(_pairs(of, reference), lambda r: r.dsc).lead
    return f"{mean} ({lead.mean:+.3f}, {lead.low:+.3f} to {lead.high:+.3f})" if lead.cases else mean


def boxes(rows: Sequence[Row], path: Path) -> None:
    """DSC, and HD95 where it is known, against the label: a box per method, a dot per CBCT."""
    of = _by_method(rows, "label") or _by_method(rows, "anatomy")
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        ("Dice similarity coefficient", lambda r: r.dsc)
    ]
    if any(row.hd95_mm is not None for row in rows):
        panels.append(("95 % Hausdorff distance where drawn, mm", lambda r: r.hd95_mm))
    figure, many = picture(columns=len(panels), height=0.9 + 0.42 * len(of), width=5.2)
    generator = np.random.default_rng(0)
    for axes, (title, value) in zip(many, panels, strict=True):
        for n, (method, rows_of) in enumerate(of.items()):
            known = [v for row in rows_of if (v := value(row)) is not None]
            jitter = n + generator.uniform(-0.16, 0.16, len(known))
            axes.scatter(known, jitter, s=9, color=_color(method), ec="0.35", lw=0.3, zorder=2)
            axes.boxplot(
                [known],
                positions=[n],
                orientation="horizontal",
                widths=0.56,
                showfliers=False,
                showmeans=True,
                medianprops={"color": "0.1", "lw": 1.4},
                meanprops={"marker": "D", "mfc": "white", "mec": "0.1", "ms": 4},
                boxprops={"color": "0.35", "lw": 0.9},
                whiskerprops={"color": "0.35", "lw": 0.9},
                capprops={"color": "0.35", "lw": 0.9},
            )
        axes.set_yticks(range(len(of)), list(of))
        axes.set_ylim(len(of) - 0.4, -0.6)
        axes.set_title(title)
        quiet(axes, grid="x")
    many[0].set_xlim(0, 1)
    save_svg(figure, path)


def plot(rows: Sequence[Row], path: Path) -> None:
    """DSC and HD95 per method, each CBCT a dot, its patient's dots joined; DSC against volume."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [r for r in rows if r.target == "label"]
    methods = methods_of(chosen)
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    cases = sorted({r.case for r in chosen})
    found = {(*r.case, r.method): r for r in chosen}
    panels: list[tuple[Axes, Callable[[Row], float | None], str]] = [
        (left, lambda r: r.dsc, "Dice similarity coefficient"),
        (middle, lambda r: r.hd95_mm, "95 % Hausdorff distance where drawn, mm"),
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
                [n] * len(known), known, color=_color(method), s=22, zorder=2, ec="0.2", lw=0.4
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
            color=_color(method),
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


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _show(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_count(values: Sequence[float | None], digits: int) -> str:
    """A mean beside how many are in it."""
    known = sum(v is not None for v in values)
    return f"{_show(_mean(values), digits)} ({known})" if known else "–"


def _show_p(p: float) -> str:
    if np.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _with_interval(of: Estimate) -> str:
    sd = "" if np.isnan(of.sd) else f" ± {of.sd:.3f}"
    return f"{of.mean:.3f}{sd} ({of.low:.3f} to {of.high:.3f})"


def _spread(of: Estimate) -> tuple[str, str, str]:
    """Three cells: how many, their mean and their median."""
    return str(of.cases), _with_interval(of), _with_quartiles(of)


def _with_quartiles(of: Estimate) -> str:
    return f"{of.median:.3f} ({of.lower_quartile:.3f} to {of.upper_quartile:.3f})"


def _color(method: str) -> tuple[float, float, float]:
    """The pipeline's colour of a method, grey for others."""
    red, green, blue = color_rgb(method)
    return red / 255, green / 255, blue / 255
