"""The HTTP API without a worker: what is taken, what is refused, and in which words."""

from __future__ import annotations

import io
import json
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client

from contourcast.service.api.app import create_app
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.data import REPOSITORY, data_item
from support.dicom_factory import make_ct_series, uid
from support.http import served
from support.server import form_files, request_for


@pytest.fixture
def http(folder: Path) -> Iterator[Client]:
    settings = ServiceSettings(data_folder=folder, request_limit_mib=8, disk_reserve_mib=0)
    with served(create_app(settings)) as client:
        yield client


@pytest.fixture
def loaded(http: Client, course: CourseFiles) -> Client:
    answer = http.post("/v1/instances", files=form_files(course.paths))
    assert answer.status_code == 200
    return http


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The problem document of an answer, which must be complete."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = dict(answer.json())
    assert document["status"] == status
    assert document["cause"]
    assert document["type"]
    return document


def test_many_files_in_one_multipart_are_answered_one_by_one(
    http: Client, course: CourseFiles
) -> None:
    text = ("files", ("notes.txt", b"not a scan", "text/plain"))
    answer = http.post("/v1/instances", files=[*form_files(course.paths), text])
    assert answer.status_code == 200
    *stored, refused = answer.json()["instances"]
    assert [i["outcome"] for i in stored] == ["stored"] * len(course.paths)
    assert [i["name"] for i in stored] == [p.name for p in course.paths]
    assert (refused["name"], refused["outcome"]) == ("notes.txt", "refused")
    assert refused["problem"]["cause"]
    listed = {s["series_uid"]: s for s in http.get("/v1/series").json()["series"]}
    assert listed[course.cbct.series_uid]["instances"] == len(course.cbct.paths)
    assert listed[course.cbct.series_uid]["frames_of_reference"] == [course.cbct.frame_of_reference]


def test_a_file_and_a_zip_go_as_raw_bodies(http: Client, course: CourseFiles) -> None:
    one = http.post(
        "/v1/instances",
        content=course.structures.read_bytes(),
        headers={"Content-Type": "application/dicom"},
    )
    assert [i["outcome"] for i in one.json()["instances"]] == ["stored"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (*course.cbct.paths, course.structures):
            archive.write(path, path.name)
    many = http.post(
        "/v1/instances", content=packed.getvalue(), headers={"Content-Type": "application/zip"}
    )
    found = [i["outcome"] for i in many.json()["instances"]]
    assert found == ["stored"] * len(course.cbct.paths) + ["already"]


def test_a_conflict_is_409_and_the_first_stays(http: Client, tmp_path: Path) -> None:
    hu = np.zeros((1, 32, 32), np.int16)
    first = make_ct_series(tmp_path / "a", hu)
    other = make_ct_series(tmp_path / "b", hu + 1)
    http.post("/v1/instances", files=form_files(list(first.paths)))
    found = problem(http.post("/v1/instances", files=form_files(list(other.paths))), 409)
    assert found["type"] == "/problems/conflict"
    assert [i["outcome"] for i in found["instances"]] == ["conflict"]
    assert http.get("/v1/series").json()["series"][0]["conflicts"] == 1


def test_a_request_of_which_nothing_can_be_used_is_422(http: Client) -> None:
    found = problem(http.post("/v1/instances", files=[("files", ("x", b"no scan"))]), 422)
    assert [i["outcome"] for i in found["instances"]] == ["refused"]


def test_a_large_body_is_413_whether_it_says_so_or_not(http: Client, folder: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(9):
            yield bytes(1024 * 1024)

    kind = {"Content-Type": "application/zip"}
    declared = http.post("/v1/instances", content=bytes(9 * 1024 * 1024), headers=kind)
    problem(declared, 413)
    problem(http.post("/v1/instances", content=pieces(), headers=kind), 413)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    problem(http.post("/v1/instances", content=pieces(), headers=form), 413)
    assert not [p for p in (folder / "incoming").rglob("*") if p.is_file()]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_a_body_of_another_type_is_415(http: Client, kind: str) -> None:
    found = problem(http.post("/v1/instances", content=b"x", headers={"Content-Type": kind}), 415)
    assert "application/zip" in found["remedy"]


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\nhello\r\n--x--\r\n"]
)
def test_a_broken_multipart_is_422(http: Client, body: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    problem(http.post("/v1/instances", content=body, headers=kind), 422)
    no_boundary = {"Content-Type": "multipart/form-data"}
    problem(http.post("/v1/instances", content=body, headers=no_boundary), 422)


def test_a_propagation_is_202_and_the_same_request_again_200(
    loaded: Client, course: CourseFiles
) -> None:
    first = loaded.post("/v1/propagations", json=request_for(course))
    assert first.status_code == 202
    assert first.headers["Location"] == f"/v1/propagations/{first.json()['id']}"
    again = loaded.post("/v1/propagations", json=request_for(course))
    assert again.status_code == 200
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    turned = {"methods": ["rigid", "translation", "rigid"]}
    same = loaded.post("/v1/propagations", json=request_for(course) | turned)
    assert (same.status_code, same.json()["id"]) == (200, first.json()["id"])
    other = loaded.post("/v1/propagations", json=request_for(course) | {"methods": ["rigid"]})
    assert other.status_code == 202
    assert other.json()["id"] != first.json()["id"]


def test_more_work_than_may_wait_is_503_and_what_arrives_is_taken(
    folder: Path, course: CourseFiles, tmp_path: Path
) -> None:
    settings = ServiceSettings(data_folder=folder, disk_reserve_mib=0, waiting_limit=1)
    more = make_ct_series(tmp_path / "more", np.zeros((1, 32, 32), np.int16))
    asked = request_for(course)
    with served(create_app(settings)) as http:
        http.post("/v1/instances", files=form_files(course.paths))
        evaluated = http.post("/v1/propagations", json=asked | {"priority": "evaluation"})
        assert evaluated.status_code == 202
        refused = http.post(
            "/v1/propagations", json=asked | {"priority": "evaluation", "methods": ["rigid"]}
        )
        assert problem(refused, 503)["type"] == "/problems/busy"
        assert int(refused.headers["Retry-After"]) > 0
        again = http.post("/v1/propagations", json=asked | {"priority": "evaluation"})
        assert again.status_code == 200, "what waits already is no more work"
        today = http.post("/v1/propagations", json=asked | {"methods": ["rigid"]})
        assert today.status_code == 202, "what is evaluated holds up nobody"
        many = http.post("/v1/propagations", json=asked | {"methods": ["translation"]})
        problem(many, 503)
        assert len(http.get("/v1/propagations").json()["propagations"]) == 2
        taken = http.post("/v1/instances", files=form_files(list(more.paths)))
        assert taken.json()["instances"][0]["outcome"] == "stored"
        http.delete(f"/v1/propagations/{today.json()['id']}")
        later = http.post("/v1/propagations", json=asked | {"methods": ["translation"]})
        assert later.status_code == 202


def test_what_is_left_out_is_concluded(loaded: Client, course: CourseFiles) -> None:
    asked = request_for(course)
    by_structures = loaded.post("/v1/propagations", json=asked).json()
    assert by_structures["planning_ct"] == course.planning_ct.series_uid
    del asked["structures"]
    asked["planning_ct"] = course.planning_ct.series_uid
    by_planning_ct = loaded.post("/v1/propagations", json=asked).json()
    assert by_planning_ct["id"] == by_structures["id"], "both name the same files"


def test_a_slice_that_comes_later_makes_another_propagation(
    http: Client, course: CourseFiles
) -> None:
    late = course.cbct.paths[-1]
    http.post("/v1/instances", files=form_files([p for p in course.paths if p != late]))
    first = http.post("/v1/propagations", json=request_for(course)).json()
    http.post("/v1/instances", files=form_files([late]))
    second = http.post("/v1/propagations", json=request_for(course))
    assert second.status_code == 202
    assert second.json()["id"] != first["id"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"roi": "GVT"}, 422, "the nearest is 'GTV'"),
        ({"methods": ["rigit"]}, 422, "the nearest is 'rigid'"),
        ({"methods": []}, 422, "at least 1"),
        ({"cbct": uid("nobody")}, 404, "no series of that UID is here (CBCT)"),
        ({"structures": uid("nobody")}, 404, "no RTSTRUCT of that SOP Instance UID"),
        ({"prior": uid("nobody")}, 404, "no RTSTRUCT of that SOP Instance UID"),
        ({"registration": uid("tiny-rs instance")}, 422, "this instance is a RTSTRUCT"),
        ({"planning_ct": uid("nobody")}, 404, "no series of that UID is here (planning CT)"),
        ({"structures": None}, 409, "the series is not whole"),
        (
            {"structures": None, "planning_ct": uid("nobody")},
            404,
            "no series of that UID is here (planning CT)",
        ),
        ({"colour": "red"}, 422, "Extra inputs are not permitted"),
        ({"focus": "elsewhere"}, 422, "'body' or 'target'"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(
    loaded: Client, course: CourseFiles, change: dict[str, Any], status: int, said: str
) -> None:
    found = problem(loaded.post("/v1/propagations", json=request_for(course) | change), status)
    assert said in found["detail"]
    assert found["remedy"]


def test_a_structure_set_without_its_planning_ct_is_refused(
    http: Client, course: CourseFiles
) -> None:
    http.post("/v1/instances", files=form_files([*course.cbct.paths, course.structures]))
    found = problem(http.post("/v1/propagations", json=request_for(course)), 422)
    assert "none of the series that the structure set was drawn on are here" in found["cause"]
    assert course.planning_ct.series_uid in found["where"]


def test_results_before_the_end_are_409(loaded: Client, course: CourseFiles) -> None:
    made = loaded.post("/v1/propagations", json=request_for(course)).json()
    for part in ("structure-set", "registration", "report", "pictures/overlay.png"):
        problem(loaded.get(f"/v1/propagations/{made['id']}/{part}"), 409)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/propagations/none",
        "/v1/propagations/none/events",
        "/v1/propagations/none/report",
        "/v1/propagations/none/pictures/overlay.png",
        "/v1/propagations/none/pictures/other.png",
        "/v1/nothing",
        "/problems/nothing",
    ],
)
def test_what_is_not_there_is_404(http: Client, path: str) -> None:
    problem(http.get(path), 404)


def test_a_verb_that_a_resource_has_not_is_405(http: Client) -> None:
    problem(http.delete("/v1/series"), 405)


def test_pages_of_other_sites_and_other_names_are_403(http: Client) -> None:
    problem(http.get("/v1/series", headers={"Origin": "http://elsewhere.example"}), 403)
    problem(http.get("/v1/series", headers={"Host": "elsewhere.example"}), 403)
    own = {"Origin": str(http.base_url).rstrip("/")}
    assert http.get("/v1/series", headers=own).status_code == 200
    for name in ("localhost", "localhost:8000", "127.0.0.1:9", "[::1]", "[::1]:8000"):
        assert http.get("/v1/series", headers={"Host": name}).status_code == 200, name


def test_methods_are_listed_with_the_weights(http: Client) -> None:
    methods = {m["name"]: m for m in http.get("/v1/methods").json()["methods"]}
    assert list(methods) == ["translation", "rigid", "dir-t", "dir-l", "diff-umamba"]
    network = methods["diff-umamba"]
    assert network["kind"] == "network"
    assert bool(network["weights_digest"]) != bool(network["unavailable"])


def test_the_process_lives_before_it_is_ready(http: Client) -> None:
    assert http.get("/health/live").json() == {"status": "live"}
    answer = http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["worker"] == "not seen lately"


def test_the_openapi_document_is_the_committed_one(http: Client) -> None:
    document = http.get("/openapi.json").json()
    committed = json.loads((REPOSITORY / "docs" / "openapi.json").read_text("utf-8"))
    assert document == committed, "python -m contourcast.service.api.app > docs/openapi.json"
    assert "Problem" in document["components"]["schemas"]
    taken = document["paths"]["/v1/instances"]["post"]["requestBody"]["content"]
    kinds = {"multipart/form-data", "multipart/related", "application/zip", "application/dicom"}
    assert set(taken) == kinds
    assert http.get("/docs").status_code == 200


def test_nothing_is_taken_when_the_disk_is_below_its_reserve(
    folder: Path, course: CourseFiles
) -> None:
    settings = ServiceSettings(data_folder=folder, disk_reserve_mib=1 << 40)
    with served(create_app(settings)) as http:
        problem(http.post("/v1/instances", files=form_files(course.paths[:1])), 507)
        assert http.get("/health/ready").json()["checks"]["store"].startswith("free space")


def test_an_index_that_cannot_be_reached_is_503(http: Client, folder: Path) -> None:
    for path in folder.glob("index.sqlite3*"):
        path.rename(path.with_name("moved-" + path.name))
    (folder / "index.sqlite3").mkdir()
    answer = http.get("/v1/series")
    assert problem(answer, 503)["cause"] == "the index cannot be reached"
    assert answer.headers["Retry-After"]
    assert http.get("/health/live").status_code == 200
    assert http.get("/health/ready").status_code == 503


def test_an_upload_that_stands_still_is_408_and_one_beyond_the_limit_503(
    folder: Path, course: CourseFiles
) -> None:
    settings = ServiceSettings(
        data_folder=folder, uploads_at_once=1, upload_idle_s=2.0, disk_reserve_mib=0
    )
    with served(create_app(settings)) as http, socket.socket() as slow:
        slow.connect((http.base_url.host, http.base_url.port))
        slow.sendall(
            b"POST /v1/instances HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/dicom\r\n\r\nonly this"
        )
        while not [p for p in (folder / "incoming").rglob("*") if p.is_file()]:
            time.sleep(0.001)
        found = problem(http.post("/v1/instances", files=form_files(course.paths[:1])), 503)
        assert found["type"] == "/problems/busy"
        assert b"408 Request Timeout" in slow.recv(100)
        assert not [p for p in (folder / "incoming").rglob("*") if p.is_file()]
        answer = http.post("/v1/instances", files=form_files(course.paths[:1]))
        assert answer.status_code == 200


@pytest.mark.real
def test_hard_files_are_each_answered_and_nothing_is_half_stored(
    http: Client, folder: Path
) -> None:
    files = sorted(p for p in data_item("hard_dicom").rglob("*") if p.is_file())
    assert len(files) > 100
    answers = []
    for start in range(0, len(files), 50):
        batch = [("files", (p.name, p.read_bytes())) for p in files[start : start + 50]]
        answer = http.post("/v1/instances", files=batch)
        assert answer.status_code in (200, 409, 422), answer.text
        answers += answer.json()["instances"]
    assert len(answers) == len(files)
    for answer in answers:
        if answer["outcome"] in ("refused", "conflict"):
            assert answer["problem"]["cause"]
            assert "/" not in answer["problem"]["where"].replace("(", "").split(";")[0]
    stored = [a for a in answers if a["outcome"] == "stored"]
    conflicts = [a for a in answers if a["outcome"] == "conflict"]
    assert not [p for p in (folder / "incoming").rglob("*") if p.is_file()]
    assert len(list((folder / "store" / "instances").rglob("*.dcm"))) == len(stored)
    assert len(list((folder / "store" / "quarantine").glob("*"))) <= len(conflicts)
