"""Every kind of refusal becomes a problem document, with the status that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from httpx import Client

from contourcast.imaging.errors import ContourcastError
from contourcast.service import problems
from contourcast.service.problems import STATUS, kinds, problem_of
from support.http import served

SECRET = "ZZQQ-LEAK"


@pytest.fixture
def http() -> Iterator[Client]:
    app = FastAPI()
    problems.install(app)

    @app.get("/refuse/{code}")
    def refuse(code: str) -> None:
        raise kinds()[code](
            "the cause", tag="(0028,0030) Pixel Spacing", uid="1.2.3", file="a.dcm", remedy="mend"
        )

    @app.get("/fail")
    def fail() -> None:
        raise RuntimeError(f"could not parse '{SECRET}'")

    with served(app) as client:
        yield client


def test_all_kinds_are_known() -> None:
    found = set(kinds().values())
    assert set(STATUS) <= found
    assert len(found) == len(kinds()), "two kinds share a code"
    assert len(found) >= 20


@pytest.mark.parametrize("code", sorted(kinds()))
def test_every_kind_reaches_the_caller_in_its_four_parts(http: Client, code: str) -> None:
    answer = http.get(f"/refuse/{code}")
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert answer.status_code == document["status"]
    assert 400 <= answer.status_code < 600
    assert document["cause"] == "the cause"
    assert document["where"] == "a.dcm; (0028,0030) Pixel Spacing; 1.2.3"
    assert document["remedy"] == "mend"
    assert document["detail"] == "the cause; a.dcm; (0028,0030) Pixel Spacing; 1.2.3; mend"
    assert document["type"] == f"/problems/{code}"
    assert document["title"]
    assert document["instance"] == f"/refuse/{code}"
    assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))


def test_a_fault_of_ours_tells_nothing_of_the_data(
    http: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = http.get("/fail")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    trace = answer.json()["trace"]
    said = capsys.readouterr()
    logged = said.out + said.err
    assert trace in logged, "the log has the place under the trace"
    assert "RuntimeError" in logged
    assert SECRET not in logged + json.dumps(answer.json())


def test_the_text_is_the_command_lines() -> None:
    error = ContourcastError("the cause", uid="1.2.3", remedy="mend")
    assert problem_of(error).detail == str(error)
