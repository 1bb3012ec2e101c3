"""Every row of the page on reliability names tests that exist; no row of the design is missing."""

from __future__ import annotations

import re

from support.data import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
DESIGN = (REPOSITORY / "docs" / "design" / "CLINICAL_SERVICE.md").read_text(encoding="utf-8")


def table(text: str, after: str) -> list[list[str]]:
    lines = text.partition(after)[2].partition("\n#")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def test_there_are_as_many_rows_as_the_design_has() -> None:
    designed = [row[0] for row in table(DESIGN, "### 6.1 What if")]
    # the design has no row for a worker that stays dead; it is in its text
    assert len(table(PAGE, "## The table")) == len(designed) + 1


def test_every_row_says_what_happens_and_names_its_tests() -> None:
    more = table(PAGE, "## What the design did not ask")
    assert more
    for happens, does, tests in table(PAGE, "## The table") + more:
        assert happens
        assert does, happens
        assert re.fullmatch(r"(`test_\w+`\s?)+", tests), happens


def test_every_test_that_the_page_names_exists() -> None:
    written = {
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > len(table(PAGE, "## The table"))
    assert named <= written, sorted(named - written)
