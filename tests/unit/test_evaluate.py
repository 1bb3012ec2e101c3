"""Proposals against truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from contourcast.imaging.errors import InputError
from contourcast.training.evaluate import Row, compare, mean_with_interval, plot, table


def row(patient: str, method: str, dsc: float, *, target: str = "label") -> Row:
    return Row(
        patient=patient,
        fraction="fraction-01",
        method=method,
        target=target,
        state="drawn" if dsc else "failed",
        verdict="accept",
        truth_cc=20.0,
        proposal_cc=20.0,
        dsc=dsc,
        iou=dsc / (2 - dsc),
        hd95_mm=3.0 if dsc else None,
        msd_mm=1.0 if dsc else None,
        surface_dice_1mm=0.5,
        surface_dice_2mm=0.6,
        surface_dice_3mm=0.7,
        added_path_length_mm=100.0,
        visible_share=0.8,
        seconds=1.0,
    )


def test_a_failure_counts_in_the_mean_and_is_counted() -> None:
    rows = [row("a", "rigid", 0.8), row("b", "rigid", 0.0)]
    text = table(rows)
    assert "| rigid | 0.400 " in text
    line = next(line for line in text.splitlines() if line.startswith("| rigid"))
    assert line.split("|")[-3].strip() == "1"


def test_the_interval_draws_patients_and_not_cbcts() -> None:
    rows = [row("a", "rigid", 0.9)] * 10 + [row("b", "rigid", 0.1)] * 10
    mean, low, high = mean_with_interval(rows, lambda r: r.dsc)
    assert mean == pytest.approx(0.5)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.9)


def test_a_plot_is_drawn_even_where_a_method_has_no_distance(tmp_path: Path) -> None:
    plot([row("a", "rigid", 0.8), row("a", "dir-t", 0.0)], tmp_path / "plots.png")
    assert (tmp_path / "plots.png").read_bytes()[:4] == b"\x89PNG"


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run was found"):
        compare([tmp_path], [tmp_path], tmp_path / "out")
