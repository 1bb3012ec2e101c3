"""Everybody can read it, it keeps its policy, it fits its screen, a crash costs nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import expect

from support.review_page import (
    DARK,
    LARGE,
    LIGHT,
    ORDINARY,
    PASSWORD,
    Department,
    Person,
    person,
    violations,
)

pytestmark = pytest.mark.peer
# What a browser says of answers that are no success: they are expected, and no fault of the page.
EXPECTED = ("Failed to load resource", "[DOM]")


def complaints(someone: Person) -> list[str]:
    """What the console said beyond what is expected."""
    return [line for line in someone.said if not any(word in line for word in EXPECTED)]


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_axe_finds_nothing_serious_on_any_screen_and_the_policy_is_kept(
    browser: Any, clinic: Department, theme: str
) -> None:
    propagation = clinic.looked_at
    with person(browser, clinic, "", theme=theme) as ann:
        ann.page.goto(f"{clinic.address}/review/")
        ann.page.get_by_label("Name", exact=True).wait_for()
        found = {"sign-in": violations(ann)}
        ann.sign_in("ann")
        found["worklist"] = violations(ann)
        ann.page.keyboard.press("?")
        found["keys"] = violations(ann)
        ann.page.keyboard.press("Escape")
        ann.open(propagation)
        found["review"] = violations(ann)
        ann.page.keyboard.press("i")
        ann.page.locator(".about .deliveries").wait_for()
        found["about"] = violations(ann)
        ann.page.keyboard.press("Escape")
        ann.page.keyboard.press("r")
        found["adjusting"] = violations(ann)
        ann.page.keyboard.press("q")
        ann.page.keyboard.press("e")
        ann.page.locator(".tools-edit").wait_for()
        found["editing"] = violations(ann)
        ann.page.keyboard.press("q")
        ann.page.keyboard.press("y")
        ann.page.locator("dialog").wait_for()
        found["signing"] = violations(ann)
        ann.page.keyboard.press("Escape")
        ann.page.keyboard.press("x")
        found["rejecting"] = violations(ann)
        ann.page.keyboard.press("Escape")
        ann.page.keyboard.press("j")
        ann.page.locator(".course-body .card").first.wait_for()
        found["course"] = violations(ann)
        ann.page.goto(f"{clinic.address}/review/#/settings")
        ann.page.locator(".settings form").wait_for()
        found["settings"] = violations(ann)
        assert {screen: told for screen, told in found.items() if told} == {}
        assert complaints(ann) == []


@pytest.mark.parametrize("size", [ORDINARY, LARGE])
def test_the_review_fits_the_screen_without_scrolling(
    browser: Any, clinic: Department, size: tuple[int, int]
) -> None:
    with person(browser, clinic, "ann", size=size) as ann:
        ann.open(clinic.looked_at)
        ann.page.locator(".history .plots").wait_for()
        room = """selector => {
            const it = document.querySelector(selector);
            return [it.scrollWidth - it.clientWidth, it.scrollHeight - it.clientHeight];
        }"""
        for selector in ("html", ".review", ".banner", ".verdict-line", ".side"):
            assert ann.page.evaluate(room, selector) == [0, 0], selector
        small = ann.page.evaluate(
            """() => [...document.querySelectorAll("button, select, input, summary, .decision a")]
                .map(it => [it.getBoundingClientRect(), it.outerHTML.slice(0, 80)])
                .filter(([box]) => box.height > 0 && Math.min(box.height, box.width) < 24)
                .map(([, html]) => html)"""
        )
        assert small == []


def test_every_text_is_there_in_chinese_too(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann", language="zh") as ann:
        expect(ann.page.get_by_role("heading", level=1)).to_have_text("工作列表")
        why = ann.page.locator(".worklist-table .window .cell-reason").first
        expect(why).to_have_text(re.compile(r"^[\u4e00-\u9fff].*\d"))  # a figure and its limit
        ann.open(clinic.looked_at)
        expect(ann.page.get_by_role("button", name="批准…")).to_be_enabled()
        assert ann.page.evaluate("document.documentElement.lang") == "zh-Hans"


def test_what_editing_costs_is_drawn_month_by_month(browser: Any, clinic: Department) -> None:
    months = [
        {"month": f"2026-0{n}", "signed": 9, "edited": 3, "median_surface_dice_1mm": 0.7 + n / 20}
        for n in (1, 2, 4)
    ]
    editing = {
        "method": "rigid",
        "signed": 27,
        "unchanged": 18,
        "edited": 9,
        "rejected": 1,
        "median_surface_dice_1mm": 0.8,
        "median_mean_surface_mm": 0.6,
        "median_seconds": 40,
        "months": months,
    }
    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/statistics/editing", lambda told: told.update(methods=[editing]))
        ann.open(clinic.looked_at)
        ann.page.keyboard.press("j")
        drawn = ann.page.locator(".chart-figure", has_text="median of each month")
        expect(drawn.locator("circle")).to_have_count(3)
        expect(drawn.locator("circle title").last).to_have_text("rigid · 2026-04: 0.90")
        drawn.scroll_into_view_if_needed()
        ann.picture("statistics")


def test_settings_are_kept_and_obeyed(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.page.keyboard.press("Control+,")
        ann.page.get_by_label("ID alone").check()
        ann.page.get_by_label("Light").check()
        ann.page.reload()
        assert ann.page.evaluate("document.documentElement.dataset.theme") == LIGHT
        ann.open(clinic.looked_at)
        expect(ann.page.locator(".banner")).not_to_contain_text("Phantom")
        ann.page.keyboard.press("y")  # a signature names the patient whatever is liked
        expect(ann.page.locator("dialog")).to_contain_text("Phantom")


def test_a_sign_in_that_ended_asks_again_and_comes_back(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        ann.page.context.clear_cookies()
        ann.page.keyboard.press("q")
        expect(ann.page.locator("body")).to_contain_text("Your sign-in ended.")
        ann.page.get_by_label("Name", exact=True).fill("ann")
        ann.page.get_by_label("Password", exact=True).fill(PASSWORD)
        ann.page.keyboard.press("Enter")
        expect(ann.page.get_by_role("heading", level=1)).to_have_text("Worklist")
        assert ann.page.url.endswith("#/worklist"), "where it was going"


def test_a_server_that_is_killed_in_mid_edit_costs_no_stroke(
    browser: Any, clinic: Department
) -> None:
    propagation = clinic.looked_at
    with person(browser, clinic, "ann") as ann:
        ann.edit(propagation)
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        expect(ann.page.locator(".saving")).to_have_text("saved")
        clinic.kill()
        ann.stroke((0.60, 0.45), (0.66, 0.50))
        volume = ann.page.locator(".edit-facts").inner_text()
        expect(ann.page.locator(".saving")).to_contain_text("kept in this browser")
        clinic.start_again()
        expect(ann.page.locator(".saving")).to_have_text("saved", timeout=30_000)
        ann.page.reload()  # the browser is closed, too
        ann.page.locator(f'.review[data-shown="{propagation}"]').wait_for()
        ann.page.keyboard.press("e")
        expect(ann.page.locator(".edit-facts")).to_have_text(volume)
        draft = ann.fetch(f"/v1/propagations/{propagation}/draft")
        assert len(json.dumps(draft["slices"])) > 2
        ann.discard()
