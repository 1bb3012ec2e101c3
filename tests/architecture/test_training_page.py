"""The short course in docs/training.md: its commands are real, and on toy size they run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from contourcast.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
# What a command is given beside what the page says; of an option given twice the last counts.
TOY = {
    "simulate": "--patients 2 --fractions 1 --seed 3 --physics image --recipe smooth",
    "train plan": "--patch 16,16,16 --stages 3 --width 4 --batch 2 --workers 1",
    "train run": "--epochs 2 --iterations 2 --validation-iterations 1 --device cpu --threads 1",
    "propagate": "--method translation --method diff-umamba --device cpu --threads 1",
}


def commands() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("    contourcast ")]


def named(words: list[str]) -> str:
    """The command without its arguments, such as ``train plan``."""
    return " ".join(words[:2]) if words[0] in ("train", "models") else words[0]


def test_the_page_goes_all_the_way() -> None:
    assert [named(words) for words in commands()] == [
        "simulate",
        "train prepare",
        "train plan",
        "train run",
        "train export",
        "propagate",
        "models import",
    ]


def test_every_command_and_option_of_the_page_exists() -> None:
    """Parsed, and not run."""
    group = typer.main.get_command(app)
    for words in commands():
        command = group
        rest = words
        context = command.make_context("contourcast", list(rest), resilient_parsing=True)
        while hasattr(command, "get_command"):
            command = command.get_command(context, rest[0])
            assert command is not None, words
            rest = rest[1:]
            context = command.make_context(named(words), list(rest), resilient_parsing=True)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.timeout(1800)
def test_every_command_of_the_page_runs_on_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install 'contourcast[train]'")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for words in commands():
        toy = TOY.get(named(words), "").split()
        result = runner.invoke(app, [*words, *toy])
        allowed = (0, 4) if words[0] == "propagate" else (0,)  # 4: a registration was rejected
        assert result.exit_code in allowed, (words, result.output, result.exception)
    assert Path("training/nnUNet_preprocessed/Dataset501_Thorax").is_dir()
    for folder in ("model", "imported"):
        held = sorted(path.name for path in Path(folder).iterdir())
        assert held == ["card.json", "weights.safetensors"]
    assert Path("today/report.json").is_file()
