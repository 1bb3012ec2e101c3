"""`contourcast evaluate` and `contourcast analyse`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from contourcast.cli import app
from contourcast.cli.evidence import _training
from contourcast.cli.terminal import Device
from contourcast.imaging.errors import InputError
from contourcast.training.analyses import ANALYSES
from contourcast.training.calibrate import ScoreBook
from contourcast.training.samples import save_sample
from support.evidence import patch_sample, score
from support.models import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, two models and a book of scores."""
    folder = tmp_path_factory.mktemp("evidence")
    for n in range(4):
        save_sample(folder / "samples", patch_sample(seed=n))
    for name in ("one", "two"):
        tiny_model(folder / name)
    ScoreBook(folder / "scores.csv").add(
        [
            score(m, d + 0.1 * n, patient=n)
            for m, d in (("rigid", 0.4), ("dir-l", 0.5))
            for n in (0, 1)
        ]
    )
    return folder


def typed(place: Path, *words: str) -> Result:
    """Runs a command whose paths are relative to the place."""
    known = ("samples", "one", "two", "scores.csv", "out-")
    full = [str(place / word) if word.startswith(known) else word for word in words]
    return CliRunner().invoke(app, full)


def test_models_on_samples_and_a_book_of_scores(place: Path) -> None:
    result = typed(
        place, "evaluate", "--samples", "samples", "--model", "one", "--model", "two",
        "--reference", "prior", "--out", "out-samples", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Lead in DSC over prior" in result.output
    document = json.loads((place / "out-samples" / "evaluation.json").read_text())
    assert [model["name"] for model in document["models"]] == ["one", "two"]
    assert document["cases"]["patients"] == 2
    result = typed(
        place, "evaluate", "--scores", "scores.csv", "--reference", "rigid", "--out", "out-scores"
    )
    assert result.exit_code == 0, result.output
    assert "| dir-l | 2 | 2 | +0.100 (+0.100 to +0.100)" in result.output


@pytest.mark.parametrize(
    ("words", "column"),
    [
        (("robustness", "--noise", "speckle", "--seeds", "1", "--most", "1"), "noise_over_sd"),
        (("latent", "--no-embedding", "--seeds", "1", "--most", "1"), "silhouette_2"),
        (("correlation", "--seeds", "1", "--most", "1"), "pearson"),
        (("field", "--seeds", "1", "--most", "1"), "radius_95_mm"),
    ],
)
def test_an_analysis_of_a_model_writes_its_three_files(
    place: Path, words: tuple[str, ...], column: str
) -> None:
    name, *options = words
    result = typed(
        place, "analyse", name, "--cases", "samples", "--model", "one", "--out", f"out-{name}",
        "--device", "cpu", *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert column in (place / f"out-{name}" / f"{name}.csv").read_text().splitlines()[0]
    assert {p.suffix for p in (place / f"out-{name}").iterdir()} == {".csv", ".svg", ".json"}


def test_profile_counts_networks_and_models(place: Path) -> None:
    result = typed(
        place, "analyse", "profile", "--network", "umamba-bot", "--model", "one", "--side", "64",
        "--out", "out-profile",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = (place / "out-profile" / "profile.csv").read_text()
    assert "umamba-bot,64,42121290" in table
    assert "\none,64," in table.replace("\r", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "--reference", "prior", "--out", "out-a"), "there is nothing to evaluate"),
        (
            ("evaluate", "--scores", "scores.csv", "--reference", "rigit", "--out", "out-b"),
            "the nearest is 'rigid'",
        ),
        (
            ("analyse", "field", "--cases", "samples", "--ct", "ct-9", "--out", "out-c"),
            "no sample is of the CTs named",
        ),
        (
            ("analyse", "field", "--cases", "samples", "--out", "samples"),
            "the output folder is not empty",
        ),
        (
            ("analyse", "profile", "--network", "umamba", "--out", "out-d"),
            "no network is named 'umamba'",
        ),
        (
            ("analyse", "ablate", "--cases", "samples", "--out", "out-e", "--validation", "ct-0",
             "--test", "ct-9"),
            "no sample is of 'ct-9'",
        ),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line(place: Path, words: tuple[str, ...], said: str) -> None:
    result = typed(place, *words)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output


def test_every_analysis_is_a_command() -> None:
    shown = CliRunner().invoke(app, ["analyse", "--help"]).output
    assert all(name in shown for name in ANALYSES)


def test_the_small_form_of_umamba_bot_is_the_same_without_its_module() -> None:
    with_module = _training("diff-umamba", 1, 1, Device.CPU, 0)
    without = _training("umamba-bot", 1, 1, Device.CPU, 0)
    assert without.config.nrm is None  # type: ignore[attr-defined]
    assert without.config.features == with_module.config.features  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no small form"):
        _training("unetr", 1, 1, Device.CPU, 0)
