"""What evidence does not answer is asked, and it is said whose scan it is about."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from support.review_page import Department, Person, person, send_stranger, violations

pytestmark = pytest.mark.peer
LIMIT_S = 60.0
STRANGER = ("ZZQQ-LEAK^Stranger", "ZZQQ-LEAK-ID-2")


@pytest.fixture
def question(clinic: Department, tmp_path: Path) -> str:
    """A scan of somebody of whom nothing else is here; the id that its question stands under."""
    series_uid = send_stranger(clinic.server, tmp_path, STRANGER)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for asked in clinic.get("/v1/courses?open_questions=true")["courses"]:
            course = clinic.get(f"/v1/courses/{asked['id']}")
            if course["fractions"][0]["series"] == series_uid:
                return str(asked["id"])
        time.sleep(0.5)
    raise AssertionError("nothing was asked")


def test_a_question_names_the_patient_and_of_two_answers_one_is_taken(
    browser: Any, clinic: Department, question: str
) -> None:
    with person(browser, clinic, "ann") as ann, person(browser, clinic, "bob") as bob:
        for each in (ann, bob):
            asked = ask(each, question)
            expect(asked.locator("h2")).to_have_text("ZZQQ-LEAK, Stranger · ID ZZQQ-LEAK-ID-2")
            expect(asked).to_contain_text("Which planning CT does it belong to?")
            expect(asked).to_contain_text("no planning CT of this patient is here")
        assert violations(ann) == []
        ann.picture("question")
        for each in (bob, ann):
            each.page.get_by_label("none of these").check()
            each.page.get_by_role("button", name="Answer").click()
        bob.page.locator(".worklist-table").wait_for()
        expect(ann.page.locator(".question")).to_contain_text("it changed since it was looked at")
        ann.page.get_by_role("button", name="Look again").click()
        expect(ann.page.locator(".course-body")).to_contain_text("Nothing is asked here")
    assert question not in {
        each["id"] for each in clinic.get("/v1/courses?open_questions=true")["courses"]
    }


def ask(someone: Person, question: str) -> Any:
    """Opens a question by its address."""
    someone.page.goto(f"{someone.address}/review/#/courses/{question}")
    found = someone.page.locator(".question")
    found.wait_for()
    return found
