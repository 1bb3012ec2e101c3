"""Does the shipped network beat DIR-L on fractions of patients and CTs that it never saw?

    python benchmarks/studies/unseen_fractions.py OUT [--difficulty 1.0] [--regression 1.0]

Virtual patients by clinic-1 on Lung-PET-CT-Dx A0001, NSCLC-Radiogenomics R01-001 and five
phantoms, two patients on each, two fractions of each: none of these CTs, phantoms or grafts is in
the curriculum. Every score is kept in OUT/scores.csv as it comes, and a stopped study goes on.
Leads are paired means with a bootstrap by patient.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
import torch

from contourcast.models.predictor import load_network
from contourcast.propagate import NETWORK
from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.phantom import phantom
from contourcast.simulation.real_ct import anatomy_of_ct
from contourcast.simulation.recipe import Sampling, recipe_named
from contourcast.training.calibrate import (
    CalibrationSettings,
    Score,
    ScoreBook,
    cases_of,
    found,
    score,
)
from support.real_scans import scan

METHODS = ("translation", "rigid", NETWORK, "dir-l", "dir-t")
PHANTOMS = (201, 202, 203, 204, 205)
# The lungs that hold no tumour already: 1 right, 2 left.
REAL = {"Lung-PET-CT-Dx A0001": (1,), "NSCLC-Radiogenomics R01-001": (1, 2)}


def main() -> None:
    """Scores what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--regression", type=float, default=1.0)
    parser.add_argument("--recipe", default="clinic-1")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling().coarse
    recipe = replace(
        recipe_named(arguments.recipe),
        difficulty=arguments.difficulty,
        regression=arguments.regression,
    )
    cases = cases_of(anatomies(sampling), CalibrationSettings(seed=77))
    book = ScoreBook(arguments.out / "scores.csv")
    methods = tuple(arguments.methods.split(","))
    network = load_network(arguments.weights, device="cpu") if NETWORK in methods else None
    score(book, cases, recipe, sampling, methods, _say, network)
    scores = {m: found(book, cases, recipe, m) for m in METHODS}
    print_means(scores)
    print_leads(scores, "dir-l")
    print_leads(scores, "rigid")


def anatomies(sampling: Sampling) -> list[Anatomy]:
    """Two real CTs and five phantoms that no network was fitted on."""
    spacing = sampling.planning_spacing_xyz_mm
    real = [
        anatomy_of_ct(scan(name), name=name, spacing_xyz_mm=spacing, graft_sides=sides)
        for name, sides in REAL.items()
    ]
    return [*real, *(phantom(seed=n, spacing_xyz_mm=spacing) for n in PHANTOMS)]


def print_means(scores: dict[str, list[Score]]) -> None:
    """Mean and spread per method."""
    print(
        "| method | CBCTs | patients | CTs | DSC to the label | sd | DSC to the anatomy | empty |"
    )
    print("|---" * 8 + "|")
    for method, of in scores.items():
        if of:
            patients = len({(s.ct, s.patient) for s in of})
            print(
                f"| {method} | {len(of)} | {patients} | {len({s.ct for s in of})} "
                f"| {np.mean([s.dice for s in of]):.3f} | {np.std([s.dice for s in of]):.3f} "
                f"| {np.mean([s.dice_anatomical for s in of]):.3f} "
                f"| {sum(s.dice == 0 for s in of)} |"
            )


def print_leads(scores: dict[str, list[Score]], baseline: str) -> None:
    """The network's paired lead over a baseline: all, and split by size and by visibility."""
    groups: list[tuple[str, Callable[[Score], bool]]] = [
        ("all", lambda s: True),
        ("label < 10 cc", lambda s: s.label_cc < 10),
        ("label 10 to 30 cc", lambda s: 10 <= s.label_cc <= 30),
        ("label > 30 cc", lambda s: s.label_cc > 30),
        ("visible share < 30 %", lambda s: s.visible_share < 0.3),
        ("visible share >= 30 %", lambda s: s.visible_share >= 0.3),
        ("phantoms", lambda s: s.ct.startswith("phantom")),
        ("real CTs", lambda s: not s.ct.startswith("phantom")),
    ]
    by_case = {(s.ct, s.patient, s.week): s for s in scores.get(baseline, [])}
    print(f"\n| lead of {NETWORK} over {baseline} | CBCTs | mean | 95 % by patient |")
    print("|---" * 4 + "|")
    for name, belongs in groups:
        pairs = [
            (s, by_case[s.ct, s.patient, s.week])
            for s in scores.get(NETWORK, [])
            if (s.ct, s.patient, s.week) in by_case and belongs(s)
        ]
        if pairs:
            leads = [(s.ct, s.patient, s.dice - b.dice) for s, b in pairs]
            low, high = _interval(leads)
            mean = np.mean([lead for *_, lead in leads])
            print(f"| {name} | {len(leads)} | {mean:+.3f} | {low:+.3f} to {high:+.3f} |")


def _interval(leads: Sequence[tuple[str, int, float]]) -> tuple[float, float]:
    groups: dict[tuple[str, int], list[float]] = {}
    for ct, patient, lead in leads:
        groups.setdefault((ct, patient), []).append(lead)
    values = list(groups.values())
    rng = np.random.default_rng(0)
    means = [
        np.mean([v for n in rng.integers(len(values), size=len(values)) for v in values[n]])
        for _ in range(2000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
