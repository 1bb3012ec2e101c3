"""Who asks, by whatever is shown; and the door itself, before a real application."""

# ruff: noqa: F811  what a fixture is called, its user's argument is called
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Request
from httpx import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.types import Message

from contourcast.service import problems
from contourcast.service.access import seldom
from contourcast.service.access.accounts import make_account
from contourcast.service.access.audit import guard, rows, verify
from contourcast.service.access.caller import (
    Caller,
    Gate,
    has_credentials,
    is_loopback,
    require_credentials_or_loopback,
)
from contourcast.service.access.guard import Guard, note
from contourcast.service.access.keys import make_key, revoke_key
from contourcast.service.access.pace import Pace
from contourcast.service.access.roles import Role
from contourcast.service.access.sessions import NewSession, open_session
from contourcast.service.access.settings import AccessSettings, OidcSettings
from contourcast.service.index.database import Index
from contourcast.service.index.tables import audit, series
from contourcast.service.problems import ForbiddenError, SettingsError, UnauthorizedError
from support.access import NOON, PASSWORD, cluster, index, url  # noqa: F401  fixtures
from support.http import served
from support.issuer import issuing

HERE = [("Host", "127.0.0.1:8000")]
SERIES = "1.2.840.113619.2.55"
JOB = "ab" * 32
CLOCK = [1000.0]


def asks(
    gate: Gate, *headers: tuple[str, str], method: str = "GET", address: str = "127.0.0.1"
) -> Caller:
    return gate.identify([*HERE, *headers], method=method, address=address, at=NOON)


def bearer(secret: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {secret}"


def gate_of(index: Index, host: str = "127.0.0.1", **settings: Any) -> Gate:
    return Gate(index, AccessSettings(**settings), host=host)


# On trial


def test_while_there_is_no_credential_this_machine_may_enter(index: Index) -> None:
    caller = asks(gate_of(index))
    assert (caller.name, caller.kind) == ("loopback", "loopback")
    assert caller.roles == {Role.INTERNAL}
    assert asks(gate_of(index, "::1"), address="::1").kind == "loopback"


def test_the_trial_ends_with_the_first_key_for_good(index: Index) -> None:
    gate = gate_of(index)
    key, _ = make_key(index, label="first", roles=[Role.ADMIN], days=1)
    with pytest.raises(UnauthorizedError):
        asks(gate)
    revoke_key(index, key.id)
    with pytest.raises(UnauthorizedError):
        asks(gate)


@pytest.mark.parametrize(
    "settings",
    [
        {"loopback_trial": False},
        {"local_accounts": True},
        {"oidc": OidcSettings(issuer="https://i.example", client_id="c", roles={})},
        {
            "identities": {"planning": [Role.UPLOADER]},
            "identity_header": "x-client",
            "proxy_addresses": ("10.0.0.1",),
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_there_is_no_trial_where_somebody_can_say_who_they_are(
    index: Index, settings: dict[str, Any]
) -> None:
    with pytest.raises(UnauthorizedError):
        asks(gate_of(index, **settings))


def test_there_is_no_trial_beyond_this_machine(index: Index) -> None:
    with pytest.raises(UnauthorizedError):
        asks(gate_of(index, host="0.0.0.0"))
    with pytest.raises(UnauthorizedError):
        asks(gate_of(index), address="10.0.0.9")
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
        with pytest.raises(UnauthorizedError):
            asks(gate_of(index), (header, "10.0.0.9"))


def test_another_site_s_page_does_not_act_for_this_machine(index: Index) -> None:
    gate = gate_of(index)
    with pytest.raises(ForbiddenError):
        asks(gate, ("Origin", "https://evil.example"))
    assert asks(gate, ("Origin", "http://127.0.0.1:8000")).kind == "loopback"
    for host in ("evil.example", "evil.example:8000", "", "[::2]:1"):
        with pytest.raises(ForbiddenError):
            gate.identify([("Host", host)], method="GET", address="127.0.0.1")
    for host in ("localhost:1", "[::1]:8000", "127.0.0.1"):
        gate.identify([("Host", host)], method="GET", address="127.0.0.1")


# Keys


def test_a_key_is_known_from_anywhere_and_is_no_person(index: Index) -> None:
    key, secret = make_key(index, label="linac", roles=[Role.UPLOADER], days=1, at=NOON)
    gate = gate_of(index, "0.0.0.0")
    caller = asks(gate, bearer(secret), method="POST", address="10.0.0.9")
    assert caller == Caller(
        name=f"key:{key.id}", kind="key", roles=frozenset({Role.UPLOADER}), address="10.0.0.9"
    )
    assert caller.shown_name == key.id
    assert asks(gate, ("AUTHORIZATION", f"bEARER   {secret}")).name == caller.name


def test_what_opens_nothing_is_not_passed_over_for_something_that_would(index: Index) -> None:
    """A wrong key from this machine is a wrong key, and no trial."""
    for said in ("", "Bearer", "Bearer x", "Basic YTpi", "contourcast_x", "Bearer contourcast_"):
        with pytest.raises(UnauthorizedError):
            asks(gate_of(index), ("Authorization", said))
    with pytest.raises(UnauthorizedError):
        asks(gate_of(index), ("Cookie", "__Host-contourcast=x"))


@pytest.mark.parametrize("header", ["Authorization", "Host", "Origin", "X-CSRF-Token"])
def test_what_decides_comes_once(index: Index, header: str) -> None:
    with pytest.raises(UnauthorizedError, match="twice"):
        asks(gate_of(index), (header, "a"), (header.lower(), "b"))


# People


def signed_in(index: Index, account: str = "local:ann") -> tuple[NewSession, tuple[str, str]]:
    new = open_session(index, account=account, roles=[Role.REVIEWER], hours=1, at=NOON)
    return new, ("Cookie", f"theme=dark; __Host-contourcast={new.cookie}")


def test_a_sign_in_is_a_person_and_changes_things_with_the_token_alone(index: Index) -> None:
    gate = gate_of(index, local_accounts=True)
    new, cookie = signed_in(index)
    caller = asks(gate, cookie, address="10.0.0.9")
    assert (caller.name, caller.kind, caller.shown_name) == ("local:ann", "person", "ann")
    assert caller.session is not None
    for method in ("POST", "PUT", "PATCH", "DELETE", "post", "ODD"):
        with pytest.raises(ForbiddenError):
            asks(gate, cookie, method=method)
        with pytest.raises(ForbiddenError):
            asks(gate, cookie, ("X-CSRF-Token", "x"), method=method)
        assert asks(gate, cookie, ("X-CSRF-Token", new.csrf), method=method).kind == "person"


def test_two_cookie_headers_are_one(index: Index) -> None:
    gate = gate_of(index, local_accounts=True)
    _, cookie = signed_in(index)
    assert asks(gate, ("Cookie", "a=b"), cookie).name == "local:ann"


def test_a_way_in_that_was_closed_is_closed_to_who_is_in(index: Index) -> None:
    _, ours = signed_in(index)
    _, theirs = signed_in(index, "oidc:ann")
    for cookie in (ours, theirs):
        with pytest.raises(UnauthorizedError):
            asks(gate_of(index), cookie)


def test_a_token_of_the_issuer_is_no_person_who_signs(index: Index) -> None:
    with issuing() as (fake, issuer):
        settings = AccessSettings(oidc=issuer.settings)
        gate = Gate(index, settings, host="0.0.0.0", issuer=issuer)
        caller = asks(gate, bearer(fake.token()), address="10.0.0.9")
        assert (caller.name, caller.kind) == ("oidc:dr.ann", "key")
        _, cookie = signed_in(index, "oidc:dr.ann")
        assert asks(gate, cookie).kind == "person"


# Proxies


PROXIED: dict[str, Any] = {
    "proxy_addresses": ("10.1.0.0/24",),
    "identity_header": "X-Client",
    "identities": {"CN=planning": [Role.UPLOADER]},
}


def test_a_certificate_s_name_counts_from_the_named_proxy_alone(index: Index) -> None:
    gate = gate_of(index, "0.0.0.0", **PROXIED)
    header = ("x-client", "CN=planning")
    caller = asks(gate, header, ("X-Forwarded-For", "1.1.1.1, 10.0.0.9"), address="10.1.0.7")
    assert caller == Caller(
        name="certificate:CN=planning",
        kind="key",
        roles=frozenset({Role.UPLOADER}),
        address="10.0.0.9",
    )
    for address in ("10.2.0.7", "127.0.0.1", "", "unix"):
        with pytest.raises(ForbiddenError):
            asks(gate, header, address=address)
    with pytest.raises(ForbiddenError):
        asks(gate, ("x-client", "CN=somebody"), address="10.1.0.7")
    with pytest.raises(UnauthorizedError):
        asks(gate, header, header, address="10.1.0.7")


def test_where_somebody_comes_from_is_what_the_proxy_saw(index: Index) -> None:
    _, secret = make_key(index, label="x", roles=[Role.VIEWER], days=1, at=NOON)
    gate = gate_of(index, "0.0.0.0", **PROXIED)
    for address, said, seen in (
        ("10.1.0.7", "10.0.0.9", "10.0.0.9"),
        ("10.1.0.7", "not an address", "10.1.0.7"),
        ("10.0.0.3", "10.0.0.9", "10.0.0.3"),  # nobody's proxy
    ):
        forwarded = ("X-Forwarded-For", said)
        assert asks(gate, bearer(secret), forwarded, address=address).address == seen


@pytest.mark.parametrize(
    "settings",
    [
        {"identity_header": "x-client"},
        {"proxy_addresses": ("everybody",)},
        {"identities": {"CN=x": ["internal"]}},
        {"identities": {"CN=x": ["king"]}},
        {"names_shown_to": ["internal"]},
        {"session_hours": 0},
        {"unknown": 1},
    ],
    ids=str,
)
def test_settings_that_cannot_hold_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AccessSettings(**settings)


# Where to listen


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "rt.example", "", "127.0.0.1.evil"])
def test_without_credentials_it_listens_on_this_machine_alone(index: Index, host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(SettingsError):
        require_credentials_or_loopback(host, index, AccessSettings())
    for near in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        require_credentials_or_loopback(near, index, AccessSettings())
    make_key(index, label="x", roles=[Role.VIEWER], days=1)
    require_credentials_or_loopback(host, index, AccessSettings())


def test_accounts_count_when_they_may_be_used(index: Index) -> None:
    make_account(index, name="ann", password=PASSWORD, roles=[Role.VIEWER])
    assert not has_credentials(index, AccessSettings())
    assert has_credentials(index, AccessSettings(local_accounts=True))


# Anything at all


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["authorization", "cookie", "x-csrf-token", "x-client", "host", "via"])
            | st.text(max_size=12),
            st.text(max_size=80)
            | st.text(max_size=40).map("Bearer contourcast_{}".format)
            | st.text(max_size=40).map("__Host-contourcast={}".format),
        ),
        max_size=5,
    ),
    method=st.sampled_from(["GET", "POST"]),
    address=st.sampled_from(["127.0.0.1", "10.1.0.7", "", "10.0.0.9"]),
)
def test_whatever_headers_come_nobody_gets_in_who_has_no_credential(
    closed: Gate,
    headers: list[tuple[str, str]],
    method: str,
    address: str,
) -> None:
    with pytest.raises((UnauthorizedError, ForbiddenError)):
        closed.identify(headers, method=method, address=address)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Gate]:
    made = Index(f"sqlite:///{tmp_path / 'closed.sqlite3'}")
    yield gate_of(made, local_accounts=True, **PROXIED)
    made.close()


# The door itself


@pytest.fixture
def door(index: Index) -> Iterator[tuple[Client, dict[Role, dict[str, str]]]]:
    """An application with something of patients, behind the guard."""
    guard(index)
    _fill(index)
    app = FastAPI(docs_url=None, redoc_url=None)

    @app.get("/v1/series/{uid}")
    def get_series(request: Request, uid: str) -> dict[str, str]:
        return {"who": request.state.caller.name, "uid": uid}

    @app.get("/v1/propagations/{propagation}")
    def get_propagation(request: Request, propagation: str) -> None:
        raise problems.NotFoundError("there is none")

    @app.post("/v1/propagations")
    def post_propagation(request: Request) -> dict[str, str]:
        note(request, patient="key-of-somebody", objects=["1.2.3"])
        return {}

    @app.get("/v1/patients")
    def get_patients() -> list[str]:
        return ["the table does not know this route"]

    @app.get("/health/live")
    def live(request: Request) -> dict[str, bool]:
        return {"known": request.state.caller is not None}

    app.add_middleware(Guard, gate=gate_of(index), clock=lambda: CLOCK[0])
    problems.install(app)
    keys = {
        role: dict([bearer(make_key(index, label=role, roles=[role], days=1)[1])])
        for role in (Role.VIEWER, Role.AUDITOR, Role.REVIEWER)
    }
    with served(app) as client:
        yield client, keys


def _fill(index: Index) -> None:
    """A series of somebody's, whatever else its table has."""
    blank: dict[str, Any] = {
        column.name: {"JSON": {}, "VARCHAR": ""}.get(str(column.type), 0)
        for column in series.columns
        if not column.nullable
    }
    known = {"uid": SERIES, "patient_key": "9f86d081884c7d65"}
    with index.write() as connection:
        connection.execute(series.insert().values(**(blank | known)))


def happenings(index: Index) -> list[dict[str, Any]]:
    return [row.happening for row in rows(index)]


Door = tuple[Client, dict[Role, dict[str, str]]]


def test_an_access_is_written_down_with_its_patient_before_the_answer(
    index: Index, door: Door
) -> None:
    http, keys = door
    answer = http.get(f"/v1/series/{SERIES}", headers=keys[Role.VIEWER])
    assert answer.status_code == 200
    (row,) = happenings(index)
    assert row == {
        "what": "read",
        "who": answer.json()["who"],
        "roles": ["viewer"],
        "address": "127.0.0.1",
        "action": "GET /v1/series/{uid}",
        "patient": "9f86d081884c7d65",
        "objects": [SERIES],
        "outcome": "success",
        "detail": "200",
    }
    assert verify(index) is None


def test_a_refusal_is_written_down_too(index: Index, door: Door) -> None:
    http, keys = door
    nobody = http.get(f"/v1/series/{SERIES}")
    wrong = http.get(f"/v1/series/{SERIES}", headers=keys[Role.AUDITOR])
    assert (nobody.status_code, wrong.status_code) == (401, 403)
    assert nobody.headers["WWW-Authenticate"] == 'Bearer realm="contourcast"'
    assert nobody.headers["content-type"] == wrong.headers["content-type"]
    assert nobody.json()["type"] == "/problems/unauthorized"
    first, second = happenings(index)
    assert (first["who"], first["what"], first["outcome"]) == ("", "refusal", "refused")
    assert first["address"] == "127.0.0.1"
    assert (second["roles"], second["detail"]) == (["auditor"], "forbidden")


def test_strangers_do_not_fill_the_log(index: Index, door: Door) -> None:
    http, keys = door
    for _ in range(4):
        assert http.get(f"/v1/series/{SERIES}").status_code == 401
    assert len(happenings(index)) == 1
    CLOCK[0] += seldom.STRANGERS_EVERY_S
    http.get(f"/v1/series/{SERIES}")
    assert [row["detail"] for row in happenings(index)] == [
        "unauthorized",
        "unauthorized, the last of 4",
    ]
    for _ in range(2):  # whoever is known is written down each time
        http.get(f"/v1/series/{SERIES}", headers=keys[Role.AUDITOR])
    assert len(happenings(index)) == 4


def test_what_a_handler_knows_is_noted_and_a_failure_is_one(index: Index, door: Door) -> None:
    http, keys = door
    http.post("/v1/propagations", headers=keys[Role.REVIEWER])
    missing = http.get(f"/v1/propagations/{JOB}", headers=keys[Role.REVIEWER])
    assert missing.status_code == 404
    made, looked = happenings(index)
    assert (made["what"], made["patient"], made["objects"]) == (
        "create",
        "key-of-somebody",
        ["1.2.3"],
    )
    assert (looked["outcome"], looked["objects"], looked["patient"]) == ("failed", [JOB], "")


def test_a_key_that_asks_too_often_is_429_until_it_has_waited(index: Index) -> None:
    app, now_s = FastAPI(), [0.0]

    @app.get("/v1/series/{uid}")
    def get_series(uid: str) -> str:
        return uid

    @app.get("/health/live")
    def live() -> str:
        return "live"

    gate = gate_of(index, local_accounts=True)
    app.add_middleware(Guard, gate=gate, each_minute=30, clock=lambda: now_s[0])
    first, other = (
        dict([bearer(make_key(index, label=who, roles=[Role.VIEWER], days=1)[1])])
        for who in ("first", "other")
    )
    path = f"/v1/series/{SERIES}"
    with served(app) as http:
        assert {http.get(path, headers=first).status_code for _ in range(30)} == {200}
        rows_before = len(happenings(index))
        slower = http.get(path, headers=first)
        assert slower.status_code == 429
        assert slower.json()["type"] == "/problems/too-often"
        assert slower.headers["Retry-After"] == "2"
        assert len(happenings(index)) == rows_before, "a flood does not fill the log"
        assert http.get(path, headers=other).status_code == 200
        assert http.get("/health/live", headers=first).status_code == 200
        now_s[0] = 1.5
        assert http.get(path, headers=first).headers["Retry-After"] == "1"
        now_s[0] = 2.0
        assert http.get(path, headers=first).status_code == 200
        assert http.get(path, headers=first).status_code == 429
        new = open_session(index, account="local:ann", roles=[Role.VIEWER], hours=1)
        cookie = {"Cookie": f"__Host-contourcast={new.cookie}"}
        people = {http.get(path, headers=cookie).status_code for _ in range(40)}
        assert people == {200}, "a person is not a program"


def test_as_many_requests_as_there_are_where_there_is_no_limit() -> None:
    pace = Pace(0, clock=lambda: 0.0)
    assert not any(pace.wait_s("key:a") for _ in range(1000))


def test_buckets_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contourcast.service.access.pace.MOST_CALLERS", 2)
    pace = Pace(1, clock=lambda: 0.0)
    assert [pace.wait_s(who) for who in ("a", "a", "b", "c", "a")] == [0, 60, 0, 0, 0]


def test_a_route_outside_the_table_is_reached_by_nobody(index: Index, door: Door) -> None:
    http, keys = door
    assert http.get("/v1/patients").status_code == 401
    assert http.get("/v1/patients", headers=keys[Role.VIEWER]).status_code == 404
    assert http.get("/openapi.json").status_code == 401
    wrong = http.put("/v1/propagations", headers=keys[Role.VIEWER])
    assert wrong.status_code == 405
    assert wrong.headers["Allow"] == "GET, POST"


def test_what_is_public_asks_nobody_and_writes_nothing(index: Index, door: Door) -> None:
    http, _ = door
    answer = http.get("/health/live", headers={"Authorization": "Bearer nonsense"})
    assert answer.json() == {"known": False}
    assert happenings(index) == []


@pytest.mark.parametrize("typed", ["ZZQQ-LEAK", "ZZQQ^LEAK", "19700101", "4711-0815", "facade"])
def test_what_somebody_typed_is_in_no_row(index: Index, door: Door, typed: str) -> None:
    http, keys = door
    for headers in (keys[Role.VIEWER], {}):
        http.get(f"/v1/series/{typed}", params={"PatientName": typed}, headers=headers)
        http.get(f"/v1/{typed}", headers=headers)
    kept = " ".join(row.line() for row in rows(index))
    assert len(happenings(index)) == 2
    assert typed not in kept.replace(happenings(index)[0]["who"], "")


def test_nothing_of_a_patient_leaves_when_its_row_cannot_be_written(
    index: Index, door: Door
) -> None:
    http, keys = door
    http.get(f"/v1/series/{SERIES}", headers=keys[Role.VIEWER])
    with index.write() as connection:  # somebody puts a row where the next one belongs
        connection.execute(
            audit.insert().values(number=2, at="", row_json={}, previous_digest="", digest="")
        )
    for path, headers in ((f"/v1/series/{SERIES}", keys[Role.VIEWER]), ("/v1/series/1", {})):
        answer = http.get(path, headers=headers)
        assert answer.status_code == 503
        assert "who" not in answer.json()


def test_other_protocols_do_not_pass() -> None:
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def silent() -> Message:
        raise AssertionError("nothing is read")

    async def unsaid(message: Message) -> None:
        raise AssertionError("nothing is said")

    async def knock(kind: str) -> None:
        await door({"type": kind}, silent, unsaid)

    door = Guard(app, gate=None)  # type: ignore[arg-type]
    for kind in ("websocket", "lifespan"):
        anyio.run(knock, kind)
    assert reached == ["lifespan"]
