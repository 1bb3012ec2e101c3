"""What holds for every route: tags, conditions, pages, keys of requests, compression, waiting."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx import Client
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import select, update

from contourcast.imaging.errors import InputError
from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.api.app import create_app
from contourcast.service.api.conditional import etag, require_unchanged
from contourcast.service.api.paging import after, cursor_at
from contourcast.service.index.database import now
from contourcast.service.index.tables import delivery, fraction, idempotency, notice
from contourcast.service.intake.states import State
from contourcast.service.pacs.outbox import DeliveryState
from contourcast.service.problems import ChangedError
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.http import served
from support.records import looking_into
from support.rows import add
from support.server import form_files, request_for

DESTINATIONS = [
    {
        "kind": "orthanc",
        "name": "archive",
        "url": "http://127.0.0.1:9",
        "watch": True,
    },
    {
        "kind": "webhook",
        "name": "hook",
        "url": "http://127.0.0.1:9",
        "secret_env": "HOOK",
        "kinds": ["conflict"],
    },
]


@pytest.fixture
def http(folder: Path) -> Iterator[Client]:
    settings = ServiceSettings(
        data_folder=folder,
        disk_reserve_mib=0,
        destinations=DESTINATIONS,  # type: ignore[arg-type]
    )
    with served(create_app(settings)) as client:
        yield client


@pytest.fixture
def loaded(http: Client, course: CourseFiles) -> Client:
    assert http.post("/v1/instances", files=form_files(course.paths)).status_code == 200
    return http


# Conditions


def test_every_json_answer_has_a_strong_tag_that_spares_the_second_one(loaded: Client) -> None:
    for path in ("/v1/series", "/v1/worklist", "/v1/settings", "/openapi.json"):
        first = loaded.get(path, headers={"Accept-Encoding": "identity"})
        tag = first.headers["etag"]
        assert tag == f'"{hashlib.sha256(first.content).hexdigest()}"', path
        for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            again = loaded.get(
                path, headers={"If-None-Match": known, "Accept-Encoding": "identity"}
            )
            assert (again.status_code, again.content) == (304, b""), (path, known)
            assert again.headers["etag"] == tag
        other = loaded.get(path, headers={"If-None-Match": '"other"'})
        assert other.status_code == 200


def test_a_compressed_answer_is_another_representation(loaded: Client) -> None:
    plain = loaded.get("/v1/series", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with loaded.stream(
        "GET", "/v1/series", headers={"Accept-Encoding": "br, gzip;q=0.5"}
    ) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == plain.content
    assert len(raw) == int(packed.headers["content-length"]) < len(plain.content)
    assert packed.headers["etag"] != plain.headers["etag"]
    assert "Accept-Encoding" in packed.headers["vary"]
    spared = loaded.get("/v1/series", headers={"If-None-Match": packed.headers["etag"]})
    assert spared.status_code == 304
    for refused in ("gzip;q=0", "br", ""):
        answer = loaded.get("/v1/series", headers={"Accept-Encoding": refused})
        assert "content-encoding" not in answer.headers, refused


def test_a_head_is_a_get_without_its_body(loaded: Client) -> None:
    got = loaded.get("/v1/series")
    head = loaded.head("/v1/series")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == got.headers["etag"]


def test_patient_data_is_not_to_be_stored_on_the_way(loaded: Client) -> None:
    for path in ("/v1/worklist", "/v1/series", "/v1/propagations", "/dicom-web/studies"):
        assert loaded.get(path).headers["cache-control"] == "private, no-store", path


def test_what_changed_since_is_412(loaded: Client, course: CourseFiles) -> None:
    job = loaded.post("/v1/propagations", json=request_for(course)).json()
    path = f"/v1/propagations/{job['id']}"
    stale = loaded.delete(path, headers={"If-Match": '"stale"'})
    assert (stale.status_code, stale.json()["type"]) == (412, "/problems/changed")
    seen = loaded.get(path, headers={"Accept-Encoding": "gzip"}).headers["etag"]
    assert loaded.delete(path, headers={"If-Match": seen}).json()["state"] == "cancelled"


class _Thing(BaseModel):
    name: str


def test_what_is_not_asked_is_not_compared() -> None:
    thing = _Thing(name="a")
    require_unchanged(None, thing)
    require_unchanged("*", thing)
    require_unchanged(f'"x", {etag(thing)}', thing)
    with pytest.raises(ChangedError):
        require_unchanged('"x"', thing)


# Pages


def test_lists_lead_from_page_to_page_to_the_end(loaded: Client) -> None:
    whole = [s["series_uid"] for s in loaded.get("/v1/series").json()["series"]]
    assert whole == sorted(whole)
    found, path = [], "/v1/series?limit=1"
    while path:
        page = loaded.get(path)
        found += [s["series_uid"] for s in page.json()["series"]]
        path = page.links.get("next", {}).get("url", "")
        assert not path or "limit=1" in path
    assert found == whole


@pytest.mark.parametrize(
    "cursor", ["x", "!!!!", "bm8=", cursor_at("text"), cursor_at(1, 2), cursor_at(-1), "W" * 513]
)
def test_a_cursor_of_anything_else_is_422(http: Client, cursor: str) -> None:
    answer = http.get("/v1/propagations", params={"cursor": cursor})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


@given(st.lists(st.one_of(st.integers(0, 2**53 - 1), st.text()), min_size=1, max_size=4))
def test_a_cursor_says_what_it_was_made_of(key: list[int | str]) -> None:
    assert after(cursor_at(*key), *map(type, key)) == tuple(key)


@given(st.text(max_size=50))
def test_no_text_is_taken_for_a_key_that_it_is_not(text: str) -> None:
    try:
        found = after(text, int)
    except InputError:
        return
    assert found is None or cursor_at(*found)


@pytest.mark.parametrize("limit", ["0", "501", "x", "-1"])
def test_a_page_has_one_to_five_hundred_items(http: Client, limit: str) -> None:
    assert http.get("/v1/propagations", params={"limit": limit}).status_code == 422


# Keys of requests


def test_the_same_request_under_its_key_is_answered_and_not_done_again(
    http: Client, course: CourseFiles, folder: Path
) -> None:
    key = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    files = form_files(course.paths[:3])
    first = http.post("/v1/instances", files=files, headers=key)
    again = http.post("/v1/instances", files=files, headers=key)
    assert [i["outcome"] for i in first.json()["instances"]] == ["stored"] * 3
    assert again.headers["idempotency-replayed"] == "true"
    nameless = [i | {"name": ""} for i in first.json()["instances"]]
    assert again.json()["instances"] == nameless, "boundaries differ, and say nothing"
    other = http.post("/v1/instances", files=files[:2], headers=key)
    assert (other.status_code, "another request" in other.json()["cause"]) == (422, True)
    with looking_into(folder) as records, records.index.read() as at:
        kept = at.execute(select(idempotency)).all()
    assert len(kept) == 1
    assert course.paths[0].name not in json.dumps(kept[0].answer_json)


def test_status_location_and_body_are_kept(loaded: Client, course: CourseFiles) -> None:
    key = {"Idempotency-Key": "a"}
    first = loaded.post("/v1/propagations", json=request_for(course), headers=key)
    again = loaded.post("/v1/propagations", json=request_for(course), headers=key)
    assert (first.status_code, again.status_code) == (202, 202), "not 200, as without a key"
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["retry-after"] == first.headers["retry-after"] == "2"
    assert again.json() == first.json()


def test_what_was_refused_may_be_tried_again_under_its_key(
    http: Client, course: CourseFiles
) -> None:
    key = {"Idempotency-Key": "a"}
    assert http.post("/v1/propagations", json=request_for(course), headers=key).status_code == 404
    http.post("/v1/instances", files=form_files(course.paths))
    assert http.post("/v1/propagations", json=request_for(course), headers=key).status_code == 202


def test_keys_are_forgotten_after_a_day(loaded: Client, course: CourseFiles, folder: Path) -> None:
    key = {"Idempotency-Key": "a"}
    loaded.post("/v1/propagations", json=request_for(course), headers=key)
    with looking_into(folder) as records, records.index.write() as at:
        at.execute(update(idempotency).values(at=(now() - timedelta(hours=25)).isoformat()))
    other = loaded.post("/v1/propagations", json=request_for(course), headers=key)
    assert (other.status_code, "idempotency-replayed" in other.headers) == (200, False)
    more = loaded.post(
        "/v1/propagations", json=request_for(course), headers={"Idempotency-Key": "b"}
    )
    assert more.status_code == 200
    with looking_into(folder) as records, records.index.read() as at:
        found = set(at.execute(select(idempotency.c.key)).scalars())
    assert found == {"a", "b"}


@pytest.mark.parametrize("key", ["", "two words", "x" * 129])
def test_a_key_of_a_request_is_one_word(http: Client, key: str) -> None:
    answer = http.post("/v1/propagations", json={}, headers={"Idempotency-Key": key})
    assert (answer.status_code, "Idempotency-Key" in answer.json()["cause"]) == (422, True)


def test_a_secret_is_not_told_twice_nor_kept(http: Client, folder: Path) -> None:
    wanted = {"label": "a", "roles": ["admin"], "days": 1}
    key = {"Idempotency-Key": "k"}
    with looking_into(folder) as records:
        _, secret = make_key(records.index, label="first", roles=[Role.ADMIN], days=1)
    admin = {"Authorization": f"Bearer {secret}"}
    made = http.post("/v1/keys", json=wanted, headers=key | admin).json()
    again = http.post("/v1/keys", json=wanted, headers=key | admin)
    assert (again.status_code, again.json()["type"]) == (409, "/problems/conflict")
    with looking_into(folder) as records, records.index.read() as at:
        assert made["secret"] not in str(at.execute(select(idempotency)).all())


def test_two_callers_have_keys_of_their_own(
    loaded: Client, course: CourseFiles, folder: Path
) -> None:
    with looking_into(folder) as records:
        secrets = [
            make_key(records.index, label=name, roles=[Role.UPLOADER], days=1)[1] for name in "ab"
        ]
    answers = [
        loaded.post(
            "/v1/propagations",
            json=request_for(course),
            headers={"Idempotency-Key": "k", "Authorization": f"Bearer {secret}"},
        )
        for secret in secrets
    ]
    assert [a.status_code for a in answers] == [202, 200]
    assert not any("idempotency-replayed" in a.headers for a in answers)


# Who may see what


def test_an_uploader_sees_what_it_asked_for_and_what_came_of_its_files(
    loaded: Client, course: CourseFiles, folder: Path
) -> None:
    with looking_into(folder) as records:
        ours, theirs = (
            {
                "Authorization": "Bearer "
                + make_key(records.index, label=name, roles=[Role.UPLOADER], days=1)[1]
            }
            for name in ("ours", "theirs")
        )
    path = loaded.post("/v1/propagations", json=request_for(course), headers=ours).headers[
        "location"
    ]
    listed = loaded.get("/v1/propagations", headers=ours).json()["propagations"]
    assert [p["links"]["self"] for p in listed] == [path]
    assert loaded.get("/v1/propagations", headers=theirs).json()["propagations"] == []
    for part in ("", "/events?wait=0", "/report", "/structure-set"):
        assert loaded.get(path + part, headers=theirs).status_code == 404, part
    assert loaded.delete(path, headers=theirs).status_code == 404
    sent = loaded.post("/v1/instances", files=form_files(list(course.cbct.paths)), headers=theirs)
    assert {i["outcome"] for i in sent.json()["instances"]} == {"already"}
    assert loaded.get(path, headers=theirs).status_code == 200, "whoever has the scan may see it"


# Waiting


def test_prefer_wait_answers_when_it_is_done(
    loaded: Client, course: CourseFiles, folder: Path
) -> None:
    job = loaded.post("/v1/propagations", json=request_for(course)).json()

    def end() -> None:
        with looking_into(folder) as records:
            records.propagations.end(
                job["id"], problem={"type": "x", "title": "", "status": 422, "detail": "x"}
            )

    worker = threading.Timer(0.5, end)
    worker.start()
    answer = loaded.post(
        "/v1/propagations", json=request_for(course), headers={"Prefer": "respond-async, wait=30"}
    )
    worker.join()
    assert (answer.status_code, answer.json()["state"]) == (200, "failed")
    assert answer.headers["preference-applied"] == "wait=30"
    assert "retry-after" not in answer.headers


def test_waiting_has_an_end(loaded: Client, course: CourseFiles) -> None:
    answer = loaded.post("/v1/propagations", json=request_for(course), headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "2")
    path = answer.headers["location"]
    assert loaded.get(path, params={"wait": 0.3}).json()["ended"] is False
    assert loaded.get(path, params={"wait": 61}).status_code == 422
    assert loaded.get(f"{path}/events", params={"wait": 0}).json()["events"][0]["number"] == 1
    known = loaded.get(f"{path}/events", params={"wait": 0.3}, headers={"Last-Event-ID": "1"})
    assert known.json() == {"events": [], "ended": False}


@pytest.mark.parametrize("known", ["x", "-1", "9" * 40, ""])
def test_an_event_id_that_is_none_begins_at_the_beginning(
    loaded: Client, course: CourseFiles, known: str
) -> None:
    path = loaded.post("/v1/propagations", json=request_for(course)).headers["location"]
    answer = loaded.get(f"{path}/events", params={"wait": 0}, headers={"Last-Event-ID": known})
    assert len(answer.json()["events"]) == 1


# Other resources


def test_completion_is_the_sender_s_word(loaded: Client, course: CourseFiles) -> None:
    path = f"/v1/series/{course.cbct.series_uid}"
    said = loaded.put(f"{path}/completion", json={"instances": 99})
    assert said.json()["expected_instances"] == 99
    assert loaded.get(path).json()["state"] == "arriving"
    assert loaded.put(f"{path}9/completion", json={"instances": 1}).status_code == 404
    assert loaded.get(f"{path}9").status_code == 404
    for wrong in ({"instances": 0}, {"instances": "many"}, {}, {"instances": 1, "more": 2}):
        assert loaded.put(f"{path}/completion", json=wrong).status_code == 422


def test_a_question_is_answered_over_the_api(
    loaded: Client, course: CourseFiles, folder: Path
) -> None:
    with looking_into(folder) as records:
        add(
            records.index,
            fraction,
            revision_id="ab" * 32,
            state="needs_person",
            series_uid=course.cbct.series_uid,
            question_json={
                "question": "roi",
                "why": "two targets",
                "choices": [{"value": "1", "label": "GTV 1"}, {"value": "2", "label": "GTV 2"}],
                "several": False,
                "missing": [],
            },
            reasons_json=[{"question": "cbct", "rule": "a", "sentence": "it is one"}],
            answers_json=[],
        )
    (listed,) = loaded.get("/v1/courses?open_questions=true").json()["courses"]
    assert (listed["question"], listed["planning_ct"]) == ("roi", None)
    path = f"/v1/courses/{listed['id']}"
    seen = loaded.get(path)
    (asked,) = seen.json()["fractions"]
    assert [c["value"] for c in asked["question"]["choices"]] == ["1", "2"]
    answer = {"question": "roi", "choice": ["1"]}
    for wrong, status in (
        (answer | {"choice": ["3"]}, 422),
        (answer | {"choice": ["1", "2"]}, 422),
        (answer | {"question": "patient"}, 409),
        (answer | {"fraction": "cd" * 32}, 404),
        (answer | {"choice": []}, 422),
    ):
        assert loaded.patch(path, json=wrong).status_code == status, wrong
    stale = loaded.patch(path, json=answer, headers={"If-Match": '"x"'})
    assert stale.status_code == 412
    assert loaded.patch("/v1/courses/none", json=answer).status_code == 404
    with looking_into(folder) as records, records.index.read() as at:
        assert at.execute(select(fraction.c.answers_json)).scalar_one() == []


def test_destinations_and_deliveries_are_shown_and_sent_again(http: Client, folder: Path) -> None:
    with looking_into(folder) as records:
        for number, state in enumerate(("delivered", "dead", "dead"), start=1):
            add(
                records.index,
                delivery,
                id=f"{number:032x}",
                number=number,
                destination="archive",
                state=state,
                propagation="ab" * 16,
                attempts=2,
                objects_json=[{"role": "structure_set", "files": {"RS.dcm": "ab"}}],
            )
    shown = {d["name"]: d for d in http.get("/v1/destinations").json()["destinations"]}
    assert shown["archive"]["deliveries"] == {"delivered": 1, "dead": 2}
    assert shown["archive"]["gets"] == ["structure_set", "registration", "signed"]
    assert shown["hook"]["gets"] == ["conflict"]
    assert "127.0.0.1" not in http.get("/v1/destinations").text
    page = http.get("/v1/deliveries?state=dead&limit=1")
    assert [d["id"] for d in page.json()["deliveries"]] == [f"{3:032x}"]
    following = http.get(page.links["next"]["url"]).json()["deliveries"]
    assert [d["id"] for d in following] == [f"{2:032x}"]
    again = http.post(f"/v1/deliveries/{3:032x}/resend")
    assert (again.status_code, again.json()["state"]) == (200, DeliveryState.WAITING)
    assert http.get(f"/v1/deliveries/{3:032x}").json()["state"] == "waiting"
    assert http.get("/v1/deliveries/none").status_code == 404
    assert http.post("/v1/deliveries/none/resend").status_code == 404


def test_notices_are_read_on_from_a_number(http: Client, folder: Path) -> None:
    with looking_into(folder) as records:
        for number in range(1, 4):
            add(records.index, notice, number=number, kind="conflict", subject=f"1.2.{number}")
    first = http.get("/v1/notices?limit=2")
    assert [n["number"] for n in first.json()["notices"]] == [1, 2]
    last = http.get(first.links["next"]["url"])
    assert [n["subject"] for n in last.json()["notices"]] == ["1.2.3"]
    assert "next" not in last.links
    assert http.get("/v1/notices?after=3").json() == {"notices": [], "last": 3}


def test_a_hint_makes_watched_archives_be_looked_at(http: Client, folder: Path) -> None:
    hint = {"event": "stable-series", "orthanc_id": "a", "modality": "CT", "instances": 3}
    answer = http.post("/v1/orthanc/events", json=hint)
    assert (answer.status_code, answer.json()) == (202, {"looking_at": ["archive"]})


def test_models_have_their_card_and_digest(http: Client) -> None:
    (model,) = http.get("/v1/models").json()["models"]
    methods = {m["name"]: m for m in http.get("/v1/methods").json()["methods"]}
    assert model["digest"] == methods[model["network"]]["weights_digest"]
    assert re.fullmatch("[0-9a-f]{64}", model["card"]["weights_sha256"])


def test_without_weights_there_is_no_model_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    settings = ServiceSettings(data_folder=tmp_path, weights=tmp_path / "none", disk_reserve_mib=0)
    with served(create_app(settings)) as client:
        answer = client.get("/v1/models").json()
    assert answer["models"] == []
    assert answer["unavailable"]


# Bodies and times


def test_a_body_that_is_no_upload_has_a_limit_whether_it_says_so_or_not(http: Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    large = {"cbct": "1", "roi": "x" * (1 << 20)}
    assert http.post("/v1/propagations", json=large).status_code == 413
    kind = {"Content-Type": "application/json"}
    assert http.post("/v1/propagations", content=pieces(), headers=kind).status_code == 413


def test_a_body_that_stands_still_is_given_up(tmp_path: Path) -> None:
    import socket

    settings = ServiceSettings(data_folder=tmp_path, disk_reserve_mib=0, upload_idle_s=0.5)
    with served(create_app(settings)) as client, socket.socket() as slow:
        slow.connect((client.base_url.host, client.base_url.port))
        slow.sendall(
            b"POST /v1/propagations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            b"Content-Type: application/json\r\n\r\n{"
        )
        assert b"408 Request Timeout" in slow.recv(100)


def test_times_are_rfc_3339_in_utc(loaded: Client, course: CourseFiles) -> None:
    job = loaded.post("/v1/propagations", json=request_for(course)).json()
    series = loaded.get(f"/v1/series/{job['cbct']}").json()
    for told in (job["made_at"], series["last_arrival_at"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", told), told


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/worklist", 405),
        ("OPTIONS", "/v1/series", 405),
        ("POST", "/v1/propagations", 422),
        ("GET", "/v1/worklist?verdict=maybe", 422),
        ("GET", "/v1/series//", 404),
    ],
)
def test_every_refusal_is_a_problem_document(
    http: Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["remedy"]
    if status == 405:
        assert answer.headers["allow"]


def test_a_problem_s_type_is_a_page(http: Client) -> None:
    found = http.get("/v1/courses/none").json()["type"]
    assert http.get(found).json()["meaning"] == "There is no such thing here."


def test_states_are_filters_by_their_own_names(loaded: Client, course: CourseFiles) -> None:
    job = loaded.post("/v1/propagations", json=request_for(course)).json()
    for filters, there in (
        ({"state": "matched"}, True),
        ({"state": "failed"}, False),
        ({"cbct": job["cbct"]}, True),
        ({"cbct": "1.2"}, False),
        ({"verdict": "accept"}, False),
        ({"course": "ab"}, False),
    ):
        found = loaded.get("/v1/propagations", params=filters).json()["propagations"]
        assert bool(found) == there, filters
    assert State(job["state"]) is State.MATCHED
