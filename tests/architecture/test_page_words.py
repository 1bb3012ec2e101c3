"""The review page has words for every figure that a verdict can stand on, in each language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support.data import REPOSITORY

JUDGING: Final = [
    *(REPOSITORY / "contourcast" / "registration").glob("*.py"),
    REPOSITORY / "contourcast" / "propagate.py",
]
CATALOGUES: Final = REPOSITORY / "review" / "src" / "catalogue"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_figure_has_its_words(language: str) -> None:
    text = (CATALOGUES / f"{language}.ts").read_text("utf-8")
    known = set(re.findall(r'^ +"figure\.(\w+)":', text, re.M))
    named = {name for path in JUDGING for name in figures_of(path)}
    assert len(named) > 20
    assert named <= known, sorted(named - known)


def figures_of(path: Path) -> Iterator[str]:
    """Names that a module gives to figures: of `Figure` itself, and of what returns one."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    makes = {f.name for f in functions if f.returns and ast.unparse(f.returns) == "Figure"}
    makes.add("Figure")
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute):
            continue
        maker = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
        named = [k.value for k in call.keywords if k.arg == "name"] or call.args[:1]
        if maker not in makes or not named:
            continue
        match named[0]:
            case ast.Constant(value=str(name)):
                yield name
            case ast.JoinedStr(values=[*_, ast.Constant(value=str(name))]):
                yield name.removeprefix("_")  # what stands before it is the method
