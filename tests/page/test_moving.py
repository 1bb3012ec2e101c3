"""The planning CT is moved by a hand in a plane; scans lie under the last one of their fraction."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from playwright.sync_api import expect

from support.review_page import Department, Person, person

pytestmark = pytest.mark.peer


def drag(someone: Person, *points: tuple[float, float]) -> dict[str, Any]:
    """On the axial pane; the change that is previewed thereupon."""
    with someone.page.expect_request("**/adjusted") as asked:
        someone.stroke(*points)
    return dict(json.loads(asked.value.post_data))


def slider(someone: Person, name: str) -> float:
    return float(someone.page.locator(f"#adjust-{name}").input_value())


def test_the_planning_ct_goes_where_a_hand_drags_it_and_turns_with_shift(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        ann.page.keyboard.press("r")
        ann.page.locator("#adjust-mm-x").wait_for()
        box = ann.page.locator(".cv-axial").bounding_box()
        change = drag(ann, (0.5, 0.5), (0.52, 0.5))
        # to the right of the screen is to the patient's left: x grows; nothing else moves
        x, y, z = change["translation_xyz_mm"]
        assert x > 0.4
        assert (y, z) == (0, 0)
        assert change["rotation_xyz_deg"] == [0, 0, 0]
        assert slider(ann, "mm-x") == x
        back = drag(ann, (0.52, 0.5), (0.52, 0.53))
        px_per_mm = 0.02 * box["width"] / x
        assert back["translation_xyz_mm"][1] == pytest.approx(
            0.03 * box["height"] / px_per_mm, abs=1.0
        )
        ann.page.keyboard.down("Shift")
        turned = drag(ann, (0.7, 0.5), (0.7, 0.52))
        ann.page.keyboard.up("Shift")
        assert turned["rotation_xyz_deg"][:2] == [0, 0]
        assert turned["rotation_xyz_deg"][2] > 0.4, "from left to back, seen from the feet"
        assert turned["translation_xyz_mm"] == back["translation_xyz_mm"]
        ann.picture("adjusting-by-hand")
        # afterwards the left button is the crosshair's again
        ann.page.keyboard.press("q")
        ann.page.locator("#adjust-mm-x").wait_for(state="detached")
        ann.stroke((0.5, 0.5), (0.52, 0.5))
        ann.page.keyboard.press("r")
        assert slider(ann, "mm-x") == 0


def test_earlier_scans_of_a_fraction_lie_under_the_last_one(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:

        def scanned_twice(page: dict[str, Any]) -> None:
            last = page["items"][0]
            last["scan"] = 2
            last["earlier"] = [copy.deepcopy(last) | {"id": "before", "scan": 1, "earlier": []}]

        ann.forge("**/v1/worklist**", scanned_twice)
        with ann.page.expect_response("**/v1/worklist**"):
            ann.page.keyboard.press("r")
        rows = ann.page.locator(".worklist-table .window .row")
        count = rows.count()
        first = rows.first
        expect(first).to_have_attribute("aria-expanded", "false")
        ann.page.keyboard.press("Home")
        ann.page.keyboard.press("ArrowRight")
        expect(rows).to_have_count(count + 1)
        expect(rows.nth(1)).to_contain_text("scan 1")
        expect(rows.nth(1)).to_have_attribute("aria-level", "2")
        ann.picture("worklist-folded-open")
        ann.page.keyboard.press("ArrowDown")
        ann.page.keyboard.press("ArrowLeft")
        expect(rows).to_have_count(count)
        expect(first).to_be_focused()
        first.get_by_role("button", name="1 earlier of this fraction").click()
        expect(rows).to_have_count(count + 1)
        assert ann.page.url.endswith("#/worklist"), "the button opens no patient"


def test_whoever_signs_can_see_which_plan_it_is_and_why(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        ann.page.keyboard.press("i")
        about = ann.page.locator(".about")
        view = ann.fetch(f"/v1/propagations/{clinic.looked_at}/view")
        assert view["basis"]["reasons"], "this one came by itself"
        for reason in view["basis"]["reasons"]:
            expect(about).to_contain_text(reason["sentence"])
        expect(about).to_contain_text("the plan's contour")
        ann.picture("about")


def test_a_scan_that_lacks_slices_is_told_and_opens_no_patient(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:

        def gapped(page: dict[str, Any]) -> None:
            page["items"][0] |= {
                "kind": "series",
                "id": "1.2.3",
                "verdict": "",
                "state": "needs_person",
                "reason": "a slice is missing at z = 4",
            }

        ann.forge("**/v1/worklist**", gapped)
        with ann.page.expect_response("**/v1/worklist**"):
            ann.page.keyboard.press("r")
        ann.page.keyboard.press("Home")
        ann.page.keyboard.press("Enter")
        dialog = ann.page.locator("dialog")
        expect(dialog).to_contain_text("a slice is missing at z = 4")
        ann.picture("gap")
        ann.page.keyboard.press("Escape")
        assert ann.page.url.endswith("#/worklist")


def test_a_sign_out_that_fails_is_told_and_one_that_does_not_saves_what_was_drawn(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.page.route(
            "**/v1/session",
            lambda route: (
                route.fulfill(status=500, json={"title": "no", "detail": "the index is away"})
                if route.request.method == "DELETE"
                else route.continue_()
            ),
        )
        ann.page.get_by_role("button", name="Sign out").click()
        expect(ann.page.locator("body")).to_contain_text("You are STILL signed in.")
        ann.page.unroute("**/v1/session")
        ann.edit(clinic.looked_at)
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        ann.page.get_by_role("button", name="Sign out").click()
        ann.page.get_by_label("Name", exact=True).wait_for()
    with person(browser, clinic, "ann") as ann:
        draft = ann.fetch(f"/v1/propagations/{clinic.looked_at}/draft")
        assert draft["edited_slices"], "the stroke was saved before the sign-in ended"
        ann.edit(clinic.looked_at)
        ann.discard()


def test_who_leaves_twice_while_a_draft_is_saved_leaves_nothing_behind(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.edit(clinic.looked_at)
        held: list[Any] = []
        ann.page.route(
            "**/draft",
            lambda route: (
                held.append(route) if route.request.method == "PUT" else route.continue_()
            ),
        )
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        asked: list[str] = []
        ann.page.on("request", lambda request: asked.append(request.url))
        ann.page.evaluate("location.hash = '#/worklist'")
        ann.page.wait_for_timeout(100)
        ann.page.evaluate("location.hash = '#/settings'")
        ann.page.wait_for_timeout(600)
        for route in held:
            route.continue_()
        ann.page.unroute("**/draft")
        ann.page.locator(".settings form").wait_for()
        ann.page.wait_for_timeout(500)
        assert not [url for url in asked if "/v1/worklist" in url], "a screen that nobody sees"
        ann.edit(clinic.looked_at)
        ann.discard()
