"""Methods and networks on fractions of patients and CTs that no network ever saw.

    python -m benchmarks.studies.unseen_fractions DATA OUT [--network NAME=FOLDER ...]
    contourcast evaluate --scores OUT/scores.csv --reference dir-l --out OUT/evaluated

Virtual patients grown from the CTs of docs/unseen.toml, two on each, two fractions of each, every
scan registered as the product does it. Every score is kept in OUT/scores.csv as it comes, and a
stopped study goes on. ``--network diff-umamba`` alone is the shipped checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from contourcast.models.predictor import load_network
from contourcast.simulation.recipe import Sampling, recipe_named
from contourcast.training.calibrate import CalibrationSettings, ScoreBook, cases_of, score
from contourcast.training.curriculum import read_anatomy, read_curriculum

CTS = Path(__file__).resolve().parents[2] / "docs" / "unseen.toml"


def main() -> None:
    """Scores what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder that the CTs lie in")
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="clinic-1")
    parser.add_argument("--methods", default="translation,rigid,dir-t,dir-l")
    parser.add_argument("--network", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--cases", type=int, help="only the first so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curriculum = read_curriculum(CTS, arguments.data)
    sampling = Sampling().coarse
    recipe = recipe_named(arguments.recipe)
    networks = {
        name: load_network(Path(folder) if folder else None)
        for name, _, folder in (each.partition("=") for each in arguments.network)
    }
    anatomies = [read_anatomy(ct, sampling.planning_spacing_xyz_mm) for ct in curriculum.cts]
    cases = cases_of(anatomies, CalibrationSettings(seed=curriculum.seed))[: arguments.cases]
    methods = [m for m in arguments.methods.split(",") if m] + list(networks)
    book = ScoreBook(arguments.out / "scores.csv")
    score(book, cases, recipe, sampling, methods, _say, networks)


def _say(sentence: str, done: float) -> None:
    print(f"{done:4.0%} {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
