"""The table of known mistakes (docs/verification.md) and the one test that stands nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from contourcast.models.windows import Windows, in_windows
from support.data import REPOSITORY

TABLE = REPOSITORY / "docs" / "verification.md"
ROWS = 30


def lines() -> list[list[str]]:
    """Cells of the lines that begin with a number."""
    text = TABLE.read_text(encoding="utf-8")
    split = [line.strip().strip("|").split("|") for line in text.splitlines()]
    return [[c.strip() for c in cells] for cells in split if cells[0].strip().isdigit()]


def test_every_known_mistake_has_its_line() -> None:
    assert sorted({int(cells[0]) for cells in lines()}) == list(range(1, ROWS + 1))


@pytest.mark.parametrize("cells", lines(), ids=lambda cells: cells[0])
def test_the_tests_that_the_table_names_are_there(cells: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[2])
    assert named, f"row {cells[0]} names no test"
    for file, function in named:
        assert function in functions(REPOSITORY / file), f"{file} has no {function}"


def functions(file: Path) -> set[str]:
    """Names of all test functions of a file, in classes too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_windows_over_a_constant_volume_answer_alike_everywhere() -> None:
    """A convolution answers otherwise at a window's edge; there the window hardly counts."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 2, 3, padding=1)
    constant = np.full((2, 30, 33, 35), 0.7, np.float32)
    windows = Windows.over(constant.shape[1:], (16, 16, 16))
    logits = in_windows(network, constant, windows, device="cpu")
    inside = logits[6:-6, 6:-6, 6:-6]  # windows begin and end in here
    one = network(torch.full((1, 2, 3, 3, 3), 0.7))[0, :, 1, 1, 1].detach()
    edge = float(np.abs(logits - inside.mean()).max())
    assert edge > 0.05  # zeros beyond the border do change the answer
    assert np.abs(inside - float(one[1] - one[0])).max() < 0.02 * edge
