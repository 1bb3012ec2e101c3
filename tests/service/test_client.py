"""The client and `contourcast send`: against a real service, and against one that is in trouble."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from contourcast import Client
from contourcast.cli import app
from contourcast.client import TRIES, SentFile, ServerAwayError, ServerError
from contourcast.imaging.errors import InputError
from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from support.http import served
from support.records import looking_into
from support.server import Server, serving
from support.treatment import Treatment, make_treatment

METHODS = json.dumps(["translation"])


@pytest.fixture(scope="module")
def treatment(tmp_path_factory: pytest.TempPathFactory) -> Treatment:
    return make_treatment(tmp_path_factory.mktemp("treatment"), fractions=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service") / "data"
    with serving(folder, intake="automatic", methods=METHODS) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return str(server.http.base_url)


@pytest.fixture(scope="module")
def secret(server: Server) -> str:
    """Of an uploader, who sees what came of its own files and nothing else."""
    with looking_into(server.data_folder) as records:
        return make_key(records.index, label="send", roles=[Role.UPLOADER], days=1)[1]


def test_one_call_sends_waits_and_fetches_and_a_second_one_sends_nothing(
    url: str, secret: str, treatment: Treatment, tmp_path: Path
) -> None:
    told: list[SentFile] = []
    with Client(url, key=secret) as client:
        (result,) = client.run(treatment.paths, out=tmp_path, on_file=told.append)
        assert {file.outcome for file in told} == {"stored"}
        assert sorted(file.path for file in told) == sorted(map(str, treatment.paths))
        assert (result.cbct, result.state) == (
            treatment.fractions[0].series_uid,
            "awaiting_review",
        )
        names = {path.name for path in result.files}
        assert names == {"RS.dcm", "REG.dcm", "report.json", "overlay.png"}
        before = {path: path.stat().st_mtime_ns for path in result.files}
        told.clear()
        (again,) = client.run(treatment.paths, out=tmp_path, on_file=told.append)
    assert again == result
    assert {file.outcome for file in told} == {"already"}
    assert {path: path.stat().st_mtime_ns for path in again.files} == before


def test_a_request_of_ones_own_is_asked_and_the_command_prints_it(
    url: str, secret: str, treatment: Treatment, tmp_path: Path
) -> None:
    folder = treatment.fractions[0].paths[0].parent
    key = tmp_path / "key"
    key.write_text(secret + "\n", "ascii")
    asked = ["--roi", "GTV", "--cbct", treatment.fractions[0].series_uid]
    about = ["--structures", treatment.structures_uid, "--method", "translation", "--json"]
    where = ["--server", url, "--key-file", str(key), "--wait", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["send", str(folder), *where, *asked, *about])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["files"] == {"already": len(treatment.fractions[0].paths)}
    (result,) = said["results"]
    assert result["verdict"] in ("accept", "look")
    assert (tmp_path / "out" / result["id"] / "RS.dcm").exists()


def test_without_waiting_it_says_what_became_of_the_files(
    url: str, secret: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no scan")
    (tmp_path / "key").write_text(secret)
    where = ["--server", url, "--key-file", str(tmp_path / "key")]
    done = CliRunner().invoke(app, ["send", str(tmp_path / "in"), *where])
    assert done.exit_code == 0, done.output
    assert "1 refused" in done.stdout
    assert "notes.txt" in done.stderr


def test_a_key_of_another_role_is_refused_with_the_server_s_own_words(
    url: str, server: Server, treatment: Treatment
) -> None:
    with looking_into(server.data_folder) as records:
        auditor = make_key(records.index, label="x", roles=[Role.AUDITOR], days=1)[1]
    with Client(url, key=auditor) as client, pytest.raises(ServerError, match="another role"):
        client.send(treatment.plan_paths)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--wait"], "--wait and --out"),
        (["--out", "x"], "--wait and --out"),
        (["--roi", "GTV"], "--roi and --cbct"),
    ],
)
def test_what_does_not_go_together_is_said(
    treatment: Treatment, arguments: list[str], said: str
) -> None:
    folder = str(treatment.structures.parent)
    done = CliRunner().invoke(app, ["send", folder, *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


def test_an_empty_folder_is_no_input(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["send", str(tmp_path)])
    assert (done.exit_code, "no file" in done.stderr) == (2, True)


def test_a_key_does_not_go_over_the_network_in_plain_text() -> None:
    with pytest.raises(InputError, match="plain text"):
        Client("http://scans.example", key="contourcast_x")
    Client("https://scans.example", key="contourcast_x").close()


# A server in trouble

Answering = Callable[[int], Response]


@contextmanager
def troubled(answer: Answering) -> Iterator[tuple[str, list[str]]]:
    """A server that answers the n-th request as told; its address, and what it was asked."""
    asked: list[str] = []

    async def handle(request: Request) -> Response:
        await request.body()
        asked.append(f"{request.method} {request.url.path}")
        return answer(len(asked))

    with served(
        Starlette(routes=[Route("/{path:path}", handle, methods=["GET", "POST", "PUT"])])
    ) as http:
        yield str(http.base_url), asked


def stored(count: int = 1) -> dict[str, Any]:
    one = {
        "outcome": "stored",
        "sop_instance_uid": "1.2.3",
        "series_instance_uid": "1.2",
        "problem": None,
    }
    return {"instances": [one] * count}


def test_what_may_pass_is_tried_again_and_the_server_says_how_soon(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    waits: list[float] = []

    def answer(number: int) -> Response:
        if number == 1:
            return JSONResponse({"cause": "busy"}, 503, {"Retry-After": "7"})
        if number == 2:
            return Response("slow down", 429)
        return JSONResponse(stored())

    with troubled(answer) as (url, asked), Client(url, sleep=waits.append) as client:
        (sent,) = client.send([tmp_path / "a"])
    assert sent.outcome == "stored"
    assert waits == [7.0, 1.0]
    assert asked == ["POST /v1/instances"] * 3


def test_a_server_that_stays_away_is_told_as_such(tmp_path: Path) -> None:
    waits: list[float] = []
    with (
        Client("http://127.0.0.1:9", sleep=waits.append) as client,
        pytest.raises(ServerAwayError, match="does not answer"),
    ):
        client.ask(cbct="1.2", roi="GTV")
    assert len(waits) == TRIES - 1
    assert waits == sorted(waits)


def test_a_server_that_stays_busy_is_told_with_its_cause() -> None:
    with (
        troubled(lambda _: JSONResponse({"cause": "the disk is full"}, 503)) as (url, asked),
        Client(url, sleep=lambda _: None) as client,
        pytest.raises(ServerAwayError, match="the disk is full"),
    ):
        client.ask(cbct="1.2", roi="GTV")
    assert len(asked) == TRIES


def test_a_refusal_is_not_tried_again() -> None:
    refusal = {"cause": "the ROI is not in the set", "where": "1.2.3", "remedy": "name another"}
    with (
        troubled(lambda _: JSONResponse(refusal, 422)) as (url, asked),
        Client(url) as client,
        pytest.raises(ServerError, match="the ROI is not in the set") as refused,
    ):
        client.ask(cbct="1.2", roi="GTV")
    assert refused.value.remedy == "name another"
    assert len(asked) == 1


def test_a_proxy_s_page_is_no_problem_document(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with (
        troubled(lambda _: Response("<h1>no</h1>", 404)) as (url, _),
        Client(url) as client,
        pytest.raises(ServerError, match="answers 404"),
    ):
        client.send([tmp_path / "a"])


def test_what_has_no_end_is_given_up() -> None:
    going = {"doing": "drawing", "done": 0.5, "ended": False}
    with (
        troubled(lambda _: JSONResponse(going)) as (url, _),
        Client(url) as client,
        pytest.raises(ServerAwayError, match="in the time that was given"),
    ):
        client.wait("ab", limit_s=0.0)


def test_what_was_refused_is_sent_again_and_what_is_there_is_not(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(b"x")
    refused = stored()["instances"][0] | {"outcome": "refused", "problem": {"detail": "no scan"}}
    half = {"instances": [stored()["instances"][0], refused]}
    state = tmp_path / "state.json"
    with (
        troubled(lambda n: JSONResponse(half if n == 1 else stored())) as (url, asked),
        Client(url) as client,
    ):
        first = client.send(paths, state=state)
        again = client.send(paths, state=state)
    assert [file.outcome for file in first] == ["stored", "refused"]
    assert [file.outcome for file in again] == ["already", "stored"]
    assert len(asked) == 2


def test_a_state_file_that_was_cut_off_costs_a_second_sending(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    state = tmp_path / "state.json"
    state.write_text('{"half')
    with troubled(lambda _: JSONResponse(stored())) as (url, asked), Client(url) as client:
        client.send([tmp_path / "a"], state=state)
    assert len(asked) == 1
    assert json.loads(state.read_text())


def looked_at(match: str | None, *, state: str = "whole", revision: str = "ab") -> dict[str, Any]:
    """A scan as the server tells of it, whose last revision is ``ab``."""
    last = {"id": "ab", "match": match}
    return {
        "modality": "CT", "state": state, "reason": f"it is {state}",
        "revision": revision, "revisions": [last],
    }  # fmt: skip


def test_a_scan_that_a_person_has_to_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def answer(number: int) -> Response:
        return JSONResponse(stored() if number == 1 else looked_at("needs_person"))

    with troubled(answer) as (url, _), Client(url) as client:
        (result,) = client.run([tmp_path / "a"], out=tmp_path / "out")
    assert (result.state, result.verdict, result.id) == ("needs_person", "", "ab")
    assert "/v1/courses" in result.problem


def test_while_a_scan_arrives_the_match_of_what_was_there_before_is_no_answer(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    looks = [
        looked_at("matched", state="arriving"),
        looked_at("matched", revision="newer"),
        looked_at(None),
        looked_at("needs_person"),
    ]
    waits: list[float] = []

    def answer(number: int) -> Response:
        return JSONResponse(stored() if number == 1 else looks[max(number - 3, 0)])

    with troubled(answer) as (url, _), Client(url, sleep=waits.append) as client:
        (result,) = client.run([tmp_path / "a"], out=tmp_path / "out")
    assert (result.state, len(waits)) == ("needs_person", len(looks) - 1)


def test_a_scan_that_lacks_a_slice_is_a_result_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def answer(number: int) -> Response:
        old = looked_at("matched", state="incomplete")
        return JSONResponse(stored() if number == 1 else old)

    with troubled(answer) as (url, _), Client(url) as client:
        (result,) = client.run([tmp_path / "a"], out=tmp_path / "out")
    assert (result.id, result.cbct, result.state) == ("", "1.2", "incomplete")
    assert (result.verdict, result.problem) == ("", "it is incomplete")


def test_what_was_superseded_is_no_result_with_or_without_a_successor(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    old = {"id": "p1", "state": "superseded", "superseded_by": None}

    def answer(number: int) -> Response:
        answers = [stored(), {}, looked_at("matched"), {"propagations": [old]}]
        return JSONResponse(answers[number - 1])

    with troubled(answer) as (url, asked), Client(url) as client:
        assert client.run([tmp_path / "a"], out=tmp_path / "out") == []
    assert asked[-1] == "GET /v1/propagations"


@pytest.mark.parametrize("outcome", ["refused", "conflict"])
def test_nothing_is_called_whole_while_a_file_is_not_there(outcome: str) -> None:
    def one(sop_uid: str, series_uid: str, outcome: str) -> SentFile:
        return SentFile(
            path="", outcome=outcome, sop_instance_uid=sop_uid, series_instance_uid=series_uid
        )

    here = [one("1.1", "1", "stored"), one("2.1", "2", "already")]
    with troubled(lambda _: JSONResponse({})) as (url, asked), Client(url) as client:
        client.complete([*here, one("", "", outcome)])
        assert asked == []
        client.complete(here)
    assert asked == ["PUT /v1/series/1/completion", "PUT /v1/series/2/completion"]
