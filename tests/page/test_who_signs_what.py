"""A signature is of whom the page names, of what it shows, on the slice where it was drawn."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import expect

from support.review_page import PASSWORD, Department, Person, person

pytestmark = pytest.mark.peer
LOST = {
    "number": 1,
    "propagation": "",
    "decision": "approved",
    "method": "rigid",
    "reason": "",
    "reviewer": "ann",
    "at": "2026-01-09T08:20:00Z",
    "structures_uid": "1.2.3",
}


def hold(someone: Person, what: str, method: str = "GET", *, most: int = 1) -> list[Any]:
    """From now on so many requests wait here until the test lets them go on."""
    held: list[Any] = []

    def keep(route: Any) -> None:
        if route.request.method == method and len(held) < most:
            held.append(route)
        else:
            route.fallback()

    someone.page.route(what, keep)
    return held


def until(someone: Person, held: list[Any]) -> None:
    """A request waits."""
    for _ in range(100):
        if held:
            return
        someone.page.wait_for_timeout(50)
    raise AssertionError("nothing was asked")


def reviews(clinic: Department) -> list[Any]:
    return list(clinic.get(f"/v1/propagations/{clinic.looked_at}/reviews")["reviews"])


def test_whoever_signed_in_meanwhile_in_another_tab_signs_nothing(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        ann.page.keyboard.press("y")
        dialog = ann.page.locator("dialog")
        expect(dialog).to_contain_text("ann")
        ann.page.context.clear_cookies()
        answer = ann.page.context.request.post(
            f"{clinic.address}/v1/session",
            data={"name": "bob", "password": PASSWORD},
            headers={"Origin": clinic.address},
        )
        assert answer.ok, answer.text()
        ann.prove_and("Sign")
        expect(dialog).to_contain_text("Not signed: somebody else is signed in here now.")
        expect(dialog).to_contain_text("bob has signed in in this browser meanwhile")
    assert reviews(clinic) == []


def test_the_decision_names_who_is_meant_to_make_it(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        held = hold(ann, "**/reviews", "POST")
        ann.page.keyboard.press("y")
        ann.prove_and("Sign")
        until(ann, held)
        named = held[0].request.post_data_json["reviewer"]
        held[0].fulfill(status=201, body=json.dumps(LOST | {"reviewer": named}))
        assert named == ann.fetch("/v1/session")["name"]
        expect(ann.page.locator("dialog .signed")).to_contain_text("Signed by")


def test_nothing_is_signed_before_it_is_shown(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        held = hold(ann, "**/v1/volumes/**", most=2)  # the first of either image
        ann.page.goto(f"{clinic.address}/review/#/propagations/{clinic.looked_at}")
        approve = ann.page.get_by_role("button", name="Approve …")
        until(ann, held)
        expect(approve).to_be_disabled()
        assert "still loading" in approve.get_attribute("title")
        ann.page.keyboard.press("y")
        expect(ann.page.locator("dialog")).to_have_count(0)
        for each in held:
            each.continue_()
        expect(approve).to_be_enabled()


def test_a_stroke_stays_on_the_slice_that_it_began_on(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.edit(clinic.looked_at)
        mouse, keyboard = ann.page.mouse, ann.page.keyboard
        corner = ann.page.locator(".cv-axial .cv-corner-slice")
        begun = corner.inner_text()
        box = ann.page.locator(".cv-axial").bounding_box()
        bar = ann.page.locator(".cv-bar")
        x, y = box["x"] + 0.3 * box["width"], box["y"] + 0.45 * box["height"]
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + 20, y, steps=4)
        mouse.wheel(0, 240)
        keyboard.press("ArrowDown")
        bar.dispatch_event("keydown", {"key": "ArrowRight"})
        mouse.move(x + 40, y, steps=4)
        mouse.up()
        expect(ann.page.locator(".edit-facts")).to_contain_text("1 slice edited")
        expect(corner).to_have_text(begun)
        mouse.wheel(0, 240)
        expect(corner).not_to_have_text(begun)
        ann.discard()


def test_corners_that_keys_set_do_not_close_on_another_slice(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.edit(clinic.looked_at)
        keyboard = ann.page.keyboard
        keyboard.press("a")
        for way in ("", "ArrowRight", "ArrowDown"):
            for _ in range(30 if way else 0):
                keyboard.press(f"Alt+{way}")
            keyboard.press(" ")
        keyboard.press("ArrowDown")
        keyboard.press(" ")  # where the last corner was: it would close the line
        ann.page.wait_for_timeout(200)
        expect(ann.page.locator(".edit-facts")).to_contain_text("0 slices edited")
        ann.page.keyboard.press("q")


def test_a_slice_is_copied_by_a_button_and_keys_are_the_images_again(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.edit(clinic.looked_at)
        corner = ann.page.locator(".cv-axial .cv-corner-slice")
        facts = ann.page.locator(".edit-facts")
        other = "rigid" if "translation" in corner.inner_text() else "translation"
        copy = ann.page.get_by_role("button", name="Copy", exact=True)
        expect(copy).to_be_disabled()
        chosen = ann.page.get_by_label("Copy slice from …")
        chosen.select_option(other)
        chosen.press("ArrowDown")
        chosen.select_option(other)
        expect(facts).to_contain_text("0 slices edited")
        copy.click()
        expect(facts).to_contain_text("1 slice edited")
        expect(ann.page.locator(".cv-axial")).to_be_focused()
        chosen.focus()
        ann.page.keyboard.press("Control+z")
        expect(facts).to_contain_text("0 slices edited")
        copy.click()
        begun = corner.inner_text()
        ann.page.keyboard.press("ArrowDown")
        expect(corner).not_to_have_text(begun)
        expect(facts).to_contain_text("1 slice edited")
        ann.discard()


def test_a_filter_that_is_chosen_during_a_refresh_is_the_one_that_counts(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        held = hold(ann, "**/v1/worklist**")
        ann.page.keyboard.press("r")
        until(ann, held)
        ann.page.locator(".filters").get_by_role("button", name="REJECT").click()
        rows = ann.page.locator(".worklist-table .window .row")
        expect(rows).to_have_count(1)
        with ann.page.expect_response("**/v1/worklist**"):
            held[0].continue_()
        ann.page.wait_for_timeout(200)
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text("REJECT")


def test_after_a_refresh_enter_opens_the_patient_that_was_selected(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        keyboard = ann.page.keyboard
        selected = ann.page.locator(".row-selected")
        keyboard.press("ArrowDown")
        wanted = selected.get_attribute("data-key")
        ann.forge("**/v1/worklist**", lambda page: page["items"].reverse())
        with ann.page.expect_response("**/v1/worklist**"):
            keyboard.press("r")
        expect(selected).to_have_attribute("aria-rowindex", str(rank(ann, wanted)))
        expect(selected).to_be_focused()
        ann.page.unroute("**/v1/worklist**")

        def without(page: dict[str, Any]) -> None:
            page["items"] = [each for each in page["items"] if each["id"] != wanted]

        ann.forge("**/v1/worklist**", without)
        with ann.page.expect_response("**/v1/worklist**"):
            keyboard.press("r")
        expect(selected).to_have_count(0)
        keyboard.press("Enter")
        ann.page.wait_for_timeout(200)
        assert ann.page.url.endswith("#/worklist"), "whom nobody selected"
        keyboard.press("ArrowDown")
        expect(selected).to_have_count(1)


def rank(someone: Person, key: str) -> int:
    """Where a row is now, as assistive programs count rows."""
    row = someone.page.locator(f'.row[data-key="{key}"]')
    return int(row.get_attribute("aria-rowindex"))


def test_a_lost_answer_is_not_called_unsigned_and_what_stands_is_read(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        dialog = ann.page.locator("dialog")
        held = hold(ann, "**/reviews", "POST")
        ann.page.keyboard.press("y")
        ann.prove_and("Sign")
        until(ann, held)
        for _ in range(2):
            ann.page.keyboard.press("Escape")
        expect(dialog).to_be_visible()
        for name in ("Cancel", "Close"):
            expect(dialog.get_by_role("button", name=name)).to_be_disabled()
        held[0].abort()
        expect(dialog).to_contain_text("It is not known whether this was decided")
        expect(dialog).to_contain_text("No decision stands there.")
        expect(dialog).not_to_contain_text("Not signed")
        ann.forge("**/reviews", lambda told: told["reviews"].append(LOST))
        dialog.get_by_role("button", name="Ask again").click()
        expect(dialog).to_contain_text("There stands: approved by ann")
        expect(dialog.get_by_role("button", name="Sign", exact=True)).to_be_disabled()
        ann.picture("answer-lost")
        with ann.page.expect_response("**/view"):
            ann.page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)


def test_a_rejection_that_is_closed_by_escape_looks_again(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open(clinic.looked_at)
        held = hold(ann, "**/reviews", "POST")
        ann.page.keyboard.press("x")
        ann.page.get_by_label("registration wrong").check()
        ann.prove_and("Reject")
        until(ann, held)
        told = LOST | {"decision": "rejected", "reason": "registration wrong"}
        held[0].fulfill(status=201, body=json.dumps(told))
        expect(ann.page.locator("dialog .callout-reject")).to_contain_text("Rejected by ann")
        with ann.page.expect_response("**/view"):
            ann.page.keyboard.press("Escape")


def test_an_edit_that_was_left_is_told_here_and_to_whoever_comes_next(
    browser: Any, clinic: Department
) -> None:
    words = "A draft of 1 edited slice by ann, saved "
    with person(browser, clinic, "ann") as ann, person(browser, clinic, "bob") as bob:
        ann.edit(clinic.looked_at)
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        expect(ann.page.locator(".saving")).to_have_text("saved")
        expect(ann.page.locator(".notices")).not_to_contain_text("A draft of")
        ann.page.get_by_role("button", name="Leave editing").click()
        expect(ann.page.locator(".notices")).to_contain_text(words)
        ann.page.keyboard.press("y")
        expect(ann.page.locator("dialog .callout-look").first).to_contain_text(words)
        expect(ann.page.locator("dialog")).to_contain_text("without that draft")
        ann.picture("draft-is-not-signed")
        ann.page.keyboard.press("Escape")
        ann.page.keyboard.press("e")
        expect(ann.page.locator(".toast").last).to_contain_text("Your draft was taken up")
        expect(ann.page.locator(".notices")).not_to_contain_text("A draft of")
        bob.open(clinic.looked_at)
        expect(bob.page.locator(".notices")).to_contain_text(words)
        bob.page.keyboard.press("e")
        expect(bob.page.locator(".toast").last).to_contain_text("A draft of ann was taken up")
        bob.discard()
        expect(bob.page.locator(".notices")).not_to_contain_text("A draft of")


def test_a_scan_of_nobody_known_is_shown_and_said_to_be_so(
    browser: Any, clinic: Department
) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.forge("**/v1/propagations/*/view", lambda view: view.update(patient=None))
        ann.open(clinic.looked_at)
        expect(ann.page.locator(".notices .bar-bad").first).to_contain_text("Patient not known")
        expect(ann.page.locator(".banner h1")).to_have_text("patient not known")
        ann.picture("patient-not-known")
        for key in ("y", "x"):
            ann.page.keyboard.press(key)
            expect(ann.page.locator("dialog")).to_contain_text("patient not known")
            ann.page.keyboard.press("Escape")
            expect(ann.page.locator("dialog")).to_have_count(0)
