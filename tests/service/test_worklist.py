"""The worklist: in which order, and with what. How fast, benchmarks/worklist.py says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import Client
from sqlalchemy import update

from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.access.settings import AccessSettings
from contourcast.service.api.app import create_app
from contourcast.service.index.database import Index
from contourcast.service.index.tables import course, fraction, propagation, series
from contourcast.service.settings import ServiceSettings
from support.http import served
from support.postgres import postgres
from support.records import looking_into
from support.rows import add

# Cause of being where it is; state, verdict, minute of the hour at which it was asked for.
IN_ORDER = [
    ("rejected, for long", "awaiting_review", "reject", 5),
    ("rejected", "awaiting_review", "reject", 20),
    ("a question", "needs_person", "", 10),
    ("failed", "failed", "", 30),
    ("to look at", "awaiting_review", "look", 1),
    ("accepted", "awaiting_review", "accept", 0),
    ("being drawn", "drawing", "", 2),
]
WHO = {"patient_id": "7", "issuer": "", "name": "A^B", "birth_date": "19500101"}
QUESTION = {"question": "roi", "why": "two targets", "choices": [], "several": True, "missing": []}


def fill(index: Index) -> None:
    """One patient, one course, a scan in each state; last made first."""
    add(index, course, id="c1", patient_key="key")
    for number, (cause, state, verdict, minute) in enumerate(reversed(IN_ORDER), start=1):
        at = f"2026-03-02T08:{minute:02}:00+00:00"
        scan = f"1.2.{number}"
        add(
            index,
            series,
            uid=scan,
            modality="CT",
            facts_json={
                "manufacturer": "Elekta",
                "model": "XVI" if number % 2 else "HexaPOD",
                "patient": WHO,
            },
        )
        asked = state == "needs_person"
        add(
            index,
            fraction,
            revision_id=cause,
            series_uid=scan,
            patient_key="key",
            course_id=None if asked else "c1",
            acquired_at=f"2026-03-{number:02}T08:00:00",
            state="needs_person" if asked else "matched",
            question_json=QUESTION if asked else {},
            reasons_json=[],
            made_at=at,
        )
        if asked:
            continue
        add(
            index,
            propagation,
            id=cause,
            number=number,
            state=state,
            verdict=verdict,
            made_at=at,
            course_id="c1",
            revision_id=cause,
            patient_key="key",
            cbct_series_uid=scan,
            order_json={"roi": "#1"},
            figures_json={
                "roi_name": "GTV",
                "reasons": [f"why {cause}"],
                "doubt": doubt(f"why {cause}"),
                "methods": {"rigid": {"volume_cc": 30.5, "verdict": verdict}},
            },
        )
    for number, state in enumerate(("approved", "superseded", "cancelled"), start=100):
        add(
            index,
            propagation,
            id=state,
            number=number,
            state=state,
            made_at="2026-03-01T08:00:00+00:00",
            order_json={"roi": "GTV"},
            figures_json={},
        )


def doubt(reason: str) -> dict[str, Any]:
    limit = "accept ≤ 3, reject ≥ 9"
    return {"name": "s_mm", "value": 5.0, "limit": limit, "verdict": "look", "reason": reason}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.peer)])
def settings(request: pytest.FixtureRequest, folder: Path) -> Iterator[ServiceSettings]:
    if request.param == "sqlite":
        yield ServiceSettings(data_folder=folder)
        return
    with postgres() as cluster:
        yield ServiceSettings(data_folder=folder, database_url=cluster.database("worklist"))


@pytest.fixture
def http(settings: ServiceSettings) -> Iterator[Client]:
    with served(create_app(settings)) as client:
        yield client


@pytest.fixture
def index(settings: ServiceSettings, http: Client) -> Iterator[Index]:
    """Of the service that runs."""
    opened = Index(settings.index_url)
    fill(opened)
    yield opened
    opened.close()


def test_names_are_for_the_roles_that_the_site_says(folder: Path) -> None:
    access = AccessSettings(names_shown_to=frozenset({Role.REVIEWER}))
    with (
        looking_into(folder) as records,
        served(create_app(ServiceSettings(data_folder=folder, access=access))) as http,
    ):
        fill(records.index)
        trial = items(http)[0]["patient"]
        assert trial["name"] == "A^B", "on trial, whoever is at this machine"
        for role, name, born in ((Role.REVIEWER, "A^B", "19500101"), (Role.VIEWER, "", "")):
            _, secret = make_key(records.index, label=role, roles=[role], days=1)
            http.headers["Authorization"] = f"Bearer {secret}"
            for item in items(http):
                expected = {"key": "key", "id": "7", "name": name, "birth_date": born}
                assert item["patient"] == expected
            (asked,) = http.get("/v1/courses/a question").json()["fractions"]
            assert asked["patient"] == expected


def items(http: Client, **wanted: Any) -> list[dict[str, Any]]:
    answer = http.get("/v1/worklist", params=wanted)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


@pytest.mark.usefixtures("index")
def test_what_is_urgent_comes_first_and_inside_what_waited_longest(http: Client) -> None:
    found = items(http)
    assert [item["id"] for item in found] == [cause for cause, *_ in IN_ORDER]
    assert [item["kind"] for item in found] == [
        "question" if state == "needs_person" else "propagation" for _, state, *_ in IN_ORDER
    ]
    paged: list[str] = []
    path = "/v1/worklist?limit=2"
    while path:
        page = http.get(path)
        paged += [item["id"] for item in page.json()["items"]]
        path = page.links.get("next", {}).get("url", "")
    assert paged == [item["id"] for item in found]
    # what a row says
    first, question = found[0], found[2]
    assert first["patient"] == {"key": "key", "id": "7", "name": "A^B", "birth_date": "19500101"}
    assert (first["reason"], first["roi"], first["machine"]) == (
        "why rejected, for long",
        "GTV",
        "Elekta XVI",
    )
    assert first["doubt"] == doubt(first["reason"])
    assert question["doubt"] is None
    assert first["volumes_cc"] == {"rigid": 30.5}
    assert first["fraction"] == 6, "of the course's six, in the order of being taken"
    assert (question["reason"], question["fraction"], question["link"]) == (
        "two targets",
        None,
        "/v1/courses/a question",
    )
    # filters
    assert [i["id"] for i in items(http, verdict="look")] == ["to look at"]
    assert {i["id"] for i in items(http, verdict=["accept", "look"])} == {"accepted", "to look at"}
    assert [i["id"] for i in items(http, state="approved")] == ["approved"]
    assert {i["id"] for i in items(http, state=["needs_person", "failed"])} == {
        "a question",
        "failed",
    }
    assert len(items(http, course="c1")) == 6
    assert len(items(http, machine="Elekta XVI")) == 4
    assert items(http, machine="Elekta") == []
    for since in ("2026-03-02T08:10:00Z", "2026-03-02T16:10:00+08:00"):
        late = {i["id"] for i in items(http, since=since)}
        assert late == {"rejected", "a question", "failed"}
    for no_time in ("yesterday", "2026-03-02T08:10:00"):
        assert http.get("/v1/worklist", params={"since": no_time}).status_code == 422
    # the rest of the lists, on the same rows
    jobs = http.get("/v1/courses/c1").json()
    assert jobs["fractions"][0]["id"] == "being drawn"
    assert jobs["fractions"][0]["propagations"] == ["being drawn"]
    courses = http.get("/v1/courses?limit=1")
    assert [c["id"] for c in courses.json()["courses"]] == ["a question"]
    following = http.get(courses.links["next"]["url"]).json()["courses"]
    assert [c["id"] for c in following] == ["c1"]
    # what no database can hold names nothing
    assert http.get("/v1/series/%00").status_code in (404, 422)
    assert http.get("/v1/propagations", params={"cbct": "\0"}).status_code in (200, 422)


def test_of_scans_of_one_fraction_the_last_stands_there_with_the_others_under_it(
    http: Client, index: Index
) -> None:
    verdicts = ("reject", "look", "accept", "accept")
    for number, (minute, verdict) in enumerate(zip((0, 20, 50, 400), verdicts, strict=True)):
        scanned(index, f"s{number}", minute=minute, verdict=verdict)
    shown = items(http, course="twice")
    assert [(i["id"], i["fraction"], i["scan"]) for i in shown] == [("s2", 1, 3), ("s3", 2, 1)]
    under = shown[0]["earlier"]
    assert [(i["id"], i["fraction"], i["scan"]) for i in under] == [("s1", 1, 2), ("s0", 1, 1)]
    assert under[1]["verdict"] == "reject"
    # under what passes the filter, and else by itself
    assert [i["id"] for i in items(http, course="twice", verdict=["look", "reject"])] == ["s1"]
    assert [i["id"] for i in items(http, course="twice", verdict="reject")] == ["s0"]
    # another ROI of the same scans is a matter of its own
    scanned(index, "node", minute=0, verdict="look", roi_number=2, scan="s0")
    assert [i["id"] for i in items(http, course="twice")] == ["node", "s2", "s3"]
    # once the last is signed, nobody waits for the ones before
    decide(index, "s2", "approved")
    assert [i["id"] for i in items(http, course="twice")] == ["node", "s3"]
    # and what was decided is never under what waits
    decide(index, "s2", "awaiting_review")
    decide(index, "s1", "approved")
    found = {i["id"]: [e["id"] for e in i["earlier"]] for i in items(http, course="twice")}
    assert found == {"node": [], "s2": ["s0"], "s3": []}
    (alone,) = items(http, course="twice", state="approved")
    assert (alone["id"], alone["earlier"]) == ("s1", [])


def test_a_scan_that_lacks_slices_is_there_until_somebody_puts_it_away_or_it_is_whole(
    http: Client, index: Index
) -> None:
    facts = {"patient": WHO, "manufacturer": "Elekta", "model": "gap", "series_date": "20260302"}
    add(
        index,
        series,
        uid="9.gap",
        modality="CT",
        patient_key="key",
        state="incomplete",
        reason="a slice is missing",
        last_arrival_at="2026-03-02T08:09:00+00:00",
        facts_json=facts,
    )
    shown = items(http)
    place = [item["id"] for item in shown].index("9.gap")
    assert shown[place + 1]["id"] == "a question", "among what waits for an answer"
    gap = shown[place]
    assert (gap["kind"], gap["state"], gap["reason"]) == (
        "series",
        "needs_person",
        "a slice is missing",
    )
    assert (gap["patient"]["id"], gap["acquired_at"]) == ("7", "2026-03-02T00:00:00")
    assert [i["id"] for i in items(http, machine="Elekta gap")] == ["9.gap"]
    assert "9.gap" not in {i["id"] for i in items(http, verdict="look")}
    assert http.put("/v1/series/9.none/dismissal").status_code == 404
    answer = http.put("/v1/series/9.gap/dismissal")
    assert answer.json()["state"] == "dismissed", answer.text
    assert "9.gap" not in {i["id"] for i in items(http)}
    assert http.put("/v1/series/9.gap/dismissal").status_code == 409


def test_a_machine_is_found_by_what_its_rows_call_it(http: Client, index: Index) -> None:
    for number, (maker, model) in enumerate((("Varian", ""), ("", "XVI"), ("E" * 64, "M" * 64))):
        scanned(index, f"m{number}", minute=1000 * number, verdict="look")
        with index.write() as at:
            facts = {"patient": WHO, "manufacturer": maker, "model": model}
            at.execute(
                update(series).where(series.c.uid == f"9.m{number}").values(facts_json=facts)
            )
    for item in items(http, course="twice"):
        assert [i["id"] for i in items(http, machine=item["machine"])] == [item["id"]]


def test_times_that_cannot_be_are_no_reason_to_fold(http: Client, index: Index) -> None:
    for scan in ("a", "b"):  # as an archive writes them that takes dates away
        scanned(index, scan, minute=0, verdict="accept")
    for scan in ("c", "d"):
        scanned(index, scan, minute=None, verdict="accept")
    found = items(http, course="twice")
    assert sorted(i["fraction"] for i in found) == [1, 2, 3, 4]
    assert {i["scan"] for i in found} == {1}


def scanned(
    index: Index,
    name: str,
    *,
    minute: int | None,
    verdict: str,
    roi_number: int = 1,
    scan: str = "",
) -> None:
    """A propagation of that name, in the course ``twice``."""
    began = datetime(2026, 3, 2, 8)
    at = "" if minute is None else (began + timedelta(minutes=minute)).isoformat()
    common = {"patient_key": "key", "course_id": "twice", "acquired_at": at}
    if not scan:
        add(index, series, uid=f"9.{name}", modality="CT", facts_json={"patient": WHO})
        add(
            index,
            fraction,
            **common,
            revision_id=name,
            series_uid=f"9.{name}",
            state="matched",
            reasons_json=[],
        )
    add(
        index,
        propagation,
        **common,
        id=name,
        number=1000 + ord(name[-1]),
        state="awaiting_review",
        verdict=verdict,
        made_at=f"2026-03-02T09:00:00.{name}",
        cbct_series_uid=f"9.{scan or name}",
        order_json={"roi": "GTV", "roi_number": roi_number},
        figures_json={"roi_name": "GTV"},
    )


def decide(index: Index, name: str, state: str) -> None:
    with index.write() as at:
        at.execute(update(propagation).where(propagation.c.id == name).values(state=state))
