"""What a physicist does on the page, in a real browser, against a real service."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from support.review_page import PASSWORD, Department, person

pytestmark = pytest.mark.peer
REJECTED = "registration wrong"


def test_the_worst_is_first_and_one_key_opens_it(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "ann") as ann:
        ann.open_the_worst(clinic.worst, "REJECT")
        expect(ann.page.locator(".notices")).to_contain_text("The registration was rejected")
        expect(ann.page.get_by_role("button", name="Approve …")).to_be_disabled()


def test_an_edit_is_drawn_undone_signed_and_found_as_the_approved_set(
    browser: Any, clinic: Department
) -> None:
    propagation = clinic.undecided()
    with person(browser, clinic, "ann") as ann:
        ann.open(propagation)
        ann.flick_and_jump()
        ann.mend()
        ann.page.keyboard.press("y")
        dialog = ann.page.locator("dialog")
        expect(dialog).to_contain_text("1 slice edited (")
        expect(dialog).to_contain_text("ann")
        ann.prove_and("Sign")
        dialog.locator(".signed").wait_for()
        shown = dialog.inner_text()
    reviews = clinic.get(f"/v1/propagations/{propagation}/reviews")["reviews"]
    assert [review["decision"] for review in reviews] == ["edited"]
    assert reviews[0]["structures_uid"] in shown
    assert clinic.get(f"/v1/propagations/{propagation}")["state"] == "edited"
    approved = clinic.get(f"/v1/propagations/{propagation}/contours")["contours"]["approved"]
    assert approved


def test_a_rejection_needs_its_reason_and_is_kept(browser: Any, clinic: Department) -> None:
    propagation = clinic.undecided()
    with person(browser, clinic, "ann") as ann:
        ann.open(propagation)
        ann.page.keyboard.press("x")
        ann.prove_and("Reject")
        expect(ann.page.locator("dialog")).to_contain_text("Choose a reason.")
        ann.page.get_by_label(REJECTED).check()
        ann.prove_and("Reject")
        expect(ann.page.locator("dialog .callout-reject")).to_contain_text(REJECTED)
    reviews = clinic.get(f"/v1/propagations/{propagation}/reviews")["reviews"]
    assert [(review["decision"], review["reason"]) for review in reviews] == [
        ("rejected", REJECTED)
    ]


def test_of_two_who_look_the_second_is_told_and_signs_nothing(
    browser: Any, clinic: Department
) -> None:
    propagation = clinic.undecided()
    with person(browser, clinic, "ann") as ann, person(browser, clinic, "bob") as bob:
        ann.open(propagation)
        bob.open(propagation)
        expect(bob.page.locator(".notices")).to_contain_text("Also open at: ann")
        bob.page.keyboard.press("y")
        ann.page.keyboard.press("y")
        ann.prove_and("Sign")
        ann.page.locator("dialog .signed").wait_for()
        bob.prove_and("Sign")
        expect(bob.page.locator("dialog")).to_contain_text("Not signed: it changed")
        bob.page.get_by_role("button", name="Look again").click()
        expect(bob.page.locator(".notices")).to_contain_text("Signed by ann")
    reviews = clinic.get(f"/v1/propagations/{propagation}/reviews")["reviews"]
    assert [review["reviewer"].removeprefix("local:") for review in reviews] == ["ann"]


@pytest.mark.parametrize(("kept", "by"), [("Keep mine", "bob"), ("Take that of ann", "ann")])
def test_of_two_who_edit_the_second_decides_whose_draft_is_kept(
    browser: Any, clinic: Department, kept: str, by: str
) -> None:
    propagation = clinic.looked_at
    with person(browser, clinic, "ann") as ann, person(browser, clinic, "bob") as bob:
        ann.edit(propagation)
        bob.edit(propagation)
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        expect(ann.page.locator(".saving")).to_have_text("saved")
        bob.stroke((0.60, 0.45), (0.66, 0.50))
        expect(bob.page.locator(".saving")).to_contain_text("ann saved another draft")
        bob.page.get_by_role("button", name="Decide …").click()
        bob.page.locator("dialog").get_by_role("button", name=kept, exact=True).click()
        expect(bob.page.locator(".saving")).to_have_text("saved")
        draft = bob.fetch(f"/v1/propagations/{propagation}/draft")
        assert draft["by"].removeprefix("local:") == by
        bob.discard()


def test_a_wrong_password_signs_nothing(browser: Any, clinic: Department) -> None:
    propagation = clinic.looked_at
    with person(browser, clinic, "ann") as ann:
        ann.open(propagation)
        ann.page.keyboard.press("y")
        ann.page.locator("dialog input[type=password]").fill("eight")
        ann.page.keyboard.press("Enter")
        expect(ann.page.locator("dialog")).to_contain_text("Nothing was signed")
    assert clinic.get(f"/v1/propagations/{propagation}/reviews")["reviews"] == []


def test_who_comes_from_the_issuer_signs_with_the_credential_shown_there_again(
    browser: Any, clinic: Department
) -> None:
    propagation = clinic.undecided()
    with person(browser, clinic, "") as ann:
        ann.sign_in_at_the_issuer()
        ann.open(propagation)
        ann.page.keyboard.press("y")
        dialog = ann.page.locator("dialog")
        sign = dialog.get_by_role("button", name="Sign", exact=True)
        sign.click()
        expect(dialog.get_by_role("alert").first).to_contain_text("credential")
        with ann.page.context.expect_page() as opened:
            dialog.get_by_role("link", name="To the issuer").click()
        there = opened.value
        there.get_by_role("link", name="In", exact=True).click()
        there.wait_for_url("**/review/**")
        there.close()
        ann.picture("signing-at-the-issuer")
        sign.click()
        expect(dialog.get_by_role("status")).to_contain_text("Signed")
    (review,) = clinic.get(f"/v1/propagations/{propagation}/reviews")["reviews"]
    assert (review["decision"], review["reviewer"]) == ("approved", "dr.ann")


def test_who_may_only_look_signs_nothing_and_is_told_why(browser: Any, clinic: Department) -> None:
    with person(browser, clinic, "eve") as eve:
        eve.open(clinic.looked_at)
        for name in ("Approve …", "Reject …", "Edit"):
            expect(eve.page.get_by_role("button", name=name)).to_be_disabled()
        expect(eve.page.locator(".notices")).to_contain_text("your role is to look")
        eve.page.keyboard.press("y")
        expect(eve.page.locator("dialog")).to_have_count(0)


def test_everything_to_a_signature_goes_by_keyboard_alone(browser: Any, clinic: Department) -> None:
    propagation = clinic.undecided()
    with person(browser, clinic, "bob") as bob:
        keyboard = bob.page.keyboard
        bob.page.goto(f"{clinic.address}/review/#/propagations/{propagation}")
        bob.page.locator(f'.review[data-shown="{propagation}"]').wait_for()
        keyboard.press("c")
        keyboard.press("e")
        bob.page.locator(".tools-edit").wait_for()
        bob.page.locator(".cv-axial").focus()
        keyboard.press("e")  # the eraser, at the centre of the target
        keyboard.press("Alt+ArrowRight")
        keyboard.press(" ")
        facts = bob.page.locator(".edit-facts")
        expect(facts).to_contain_text("1 slice edited")
        keyboard.press("Control+z")
        expect(facts).to_contain_text("0 slices edited")
        keyboard.press("Shift+C")  # another method's contour of this slice
        expect(facts).to_contain_text("1 slice edited")
        keyboard.press("Shift+D")
        bob.page.locator("dialog").get_by_role("button", name="Discard", exact=True).press("Enter")
        expect(bob.page.locator(".tools-edit")).to_have_count(0)
        keyboard.press("y")
        bob.page.locator("dialog").wait_for()
        keyboard.type(PASSWORD)
        keyboard.press("Enter")
        bob.page.locator("dialog .signed").wait_for()
        keyboard.press("Escape")
        expect(bob.page.locator(".notices")).to_contain_text("Signed by bob")
    assert clinic.get(f"/v1/propagations/{propagation}")["state"] == "approved"
