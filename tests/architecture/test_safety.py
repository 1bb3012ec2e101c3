"""The page on safety names tests that exist, and a control for every hazard that it has to name."""

from __future__ import annotations

import re

from support.data import REPOSITORY

PAGE = (REPOSITORY / "docs" / "safety.md").read_text(encoding="utf-8")
HAZARDS = {
    "wrong patient",
    "wrong frame",
    "mirrored image",
    "wrong side",
    "stale contour",
    "silent failure",
    "over-trust in automation",
    "edit lost",
    "unit error",
}


def rows() -> list[list[str]]:
    lines = PAGE.partition("\n## Hazards")[2].partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_every_hazard_has_a_cause_a_control_and_a_test() -> None:
    assert {row[0] for row in rows()} >= HAZARDS
    for hazard, cause, control, tests in rows():
        assert cause, hazard
        assert control, hazard
        assert re.fullmatch(r"(`test_\w+`\s?)+", tests), hazard


def test_every_test_that_the_page_names_exists() -> None:
    written = {
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > len(HAZARDS)
    assert named <= written, sorted(named - written)


def test_the_page_says_what_it_is_not() -> None:
    for said in ("not a medical device", "neither CE marked nor FDA cleared", "Not intended"):
        assert said in PAGE
