"""The page tells the truth when things are bad; the bad news is put into true answers."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from support.review_page import Department, person

pytestmark = pytest.mark.peer


def test_a_missing_planning_ct_is_told_and_nothing_is_compared(
    browser: Any, clinic: Department
) -> None:
    def without(view: dict[str, Any]) -> None:
        view["images"] |= {"planning": None, "planning_why_not": "the PACS has deleted it"}

    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/propagations/*/view", without)
        ann.open(clinic.looked_at)
        expect(ann.page.locator(".notices")).to_contain_text("the PACS has deleted it")
        ann.picture("no-planning-ct")
        expect(ann.page.get_by_role("button", name="Checker")).to_be_disabled()


def test_what_was_replaced_cannot_be_signed(browser: Any, clinic: Department) -> None:
    def stale(view: dict[str, Any]) -> None:
        if view["propagation"] == clinic.looked_at:
            view["stale"] = {"why": "12 more slices came", "propagation": clinic.worst}

    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/propagations/*/view", stale)
        ann.open(clinic.looked_at)
        bar = ann.page.locator(".notices .bar-bad").first
        expect(bar).to_contain_text("Out of date, signing is blocked: 12 more slices came")
        ann.picture("out-of-date")
        expect(ann.page.get_by_role("button", name="Approve …")).to_be_disabled()
        expect(ann.page.get_by_role("button", name="Reject …")).to_be_disabled()
        bar.get_by_role("link").click()
        ann.page.locator(f'.review[data-shown="{clinic.worst}"]').wait_for()


def test_a_method_that_drew_nothing_is_named_and_not_signed(
    browser: Any, clinic: Department
) -> None:
    def emptied(view: dict[str, Any]) -> None:
        view["methods"][0] |= {"empty": True, "volume_cc": None, "agreement": {}}

    def no_loops(contours: dict[str, Any]) -> None:
        contours["contours"]["translation"] = []

    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/propagations/*/view", emptied)
        ann.forge("**/v1/propagations/*/contours", no_loops)
        ann.open(clinic.looked_at)
        expect(ann.page.locator(".notices")).to_contain_text("translation drew nothing")
        ann.picture("one-method-drew-nothing")
        ann.page.keyboard.press("5")
        expect(ann.page.get_by_role("button", name="Approve …")).to_be_disabled()
        ann.page.keyboard.press("6")
        expect(ann.page.get_by_role("button", name="Approve …")).to_be_enabled()


def test_a_tumour_out_of_view_is_told(browser: Any, clinic: Department) -> None:
    figure = {
        "name": "prior_in_view",
        "value": 0.6,
        "limit": "accept ≥ 0.99",
        "verdict": "look",
        "reason": "40% of the prior lies outside the CBCT's view",
    }

    def outside(view: dict[str, Any]) -> None:
        view["registration"]["figures"] = [figure]

    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/propagations/*/view", outside)
        ann.open(clinic.looked_at)
        expect(ann.page.locator(".notices")).to_contain_text(str(figure["reason"]))
        ann.picture("out-of-view")


def test_contours_of_another_frame_of_reference_are_never_drawn(
    browser: Any, clinic: Department
) -> None:
    def foreign(contours: dict[str, Any]) -> None:
        contours["frame_of_reference"] = "1.2.3.4.5"

    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/propagations/*/contours", foreign)
        ann.page.goto(f"{clinic.address}/review/#/propagations/{clinic.looked_at}")
        expect(ann.page.locator(".notices")).to_contain_text("another frame of reference")
        expect(ann.page.get_by_role("button", name="Approve …")).to_be_disabled()
        ann.picture("foreign-frame")


def test_an_image_that_does_not_come_is_told(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.page.route("**/v1/volumes/**", lambda route: route.fulfill(status=500, body="{}"))
        ann.page.goto(f"{clinic.address}/review/#/propagations/{clinic.looked_at}")
        expect(ann.page.locator(".notices")).to_contain_text("The CBCT could not be loaded")
        expect(ann.page.get_by_role("button", name="Approve …")).to_be_disabled()


def test_a_silent_service_is_told_and_what_is_drawn_is_kept(
    browser: Any, clinic: Department
) -> None:
    propagation = clinic.looked_at
    with person(browser, clinic, "ann") as ann:
        ann.edit(propagation)
        ann.page.context.set_offline(True)
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        expect(ann.page.locator(".bar-bad").first).to_contain_text("The service does not answer")
        expect(ann.page.locator(".saving")).to_contain_text("kept in this browser")
        ann.picture("service-silent")
        ann.page.context.set_offline(False)
        expect(ann.page.locator(".saving")).to_have_text("saved", timeout=30_000)
        draft = ann.fetch(f"/v1/propagations/{propagation}/draft")
        assert len(draft["edited_slices"]) == 1
        ann.discard()
