"""Every route of the OpenAPI document: who may call it, what is written down of that, no 5xx."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from httpx import Client, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.core.result import Err
from sqlalchemy import func, select

from contourcast.service.access.accounts import make_account
from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import GIVEN, TABLE, Role, rule_of
from contourcast.service.access.settings import AccessSettings
from contourcast.service.api.app import create_app
from contourcast.service.index.database import Index
from contourcast.service.index.tables import audit, idempotency
from contourcast.service.settings import ServiceSettings
from support.access import PASSWORD
from support.data import REPOSITORY
from support.http import served
from support.issuer import issuing
from support.records import looking_into

DOCUMENT = json.loads((REPOSITORY / "docs" / "openapi.json").read_text("utf-8"))
ROUTES = [
    (method.upper(), path)
    for path, verbs in DOCUMENT["paths"].items()
    for method in verbs
    if method in ("get", "put", "post", "patch", "delete")
]
# In the table of who may, and no part of what programs call.
NOT_HERE = {
    "GET /",
    "GET /review",
    "GET /review/",
    "GET /review/assets/{}",
    "GET /docs",
    "GET /openapi.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routes") / "data"


@pytest.fixture(scope="module")
def service(folder: Path) -> ServiceSettings:
    return ServiceSettings(
        data_folder=folder,
        disk_reserve_mib=0,
        access=AccessSettings(local_accounts=True, secure_cookies=False),
    )


@pytest.fixture(scope="module")
def http(service: ServiceSettings) -> Iterator[Client]:
    with served(create_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def index(http: Client, folder: Path) -> Iterator[Index]:
    with looking_into(folder) as records:
        yield records.index


@pytest.fixture(scope="module")
def keys(index: Index) -> dict[Role, dict[str, str]]:
    """A header for each role that can be given."""
    return {
        role: {"Authorization": f"Bearer {make_key(index, label=role, roles=[role], days=1)[1]}"}
        for role in sorted(GIVEN)
    }


def shape(route: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", route)


def call(http: Client, method: str, path: str, **more: Any) -> Response:
    """A request that is well-formed as far as who may is asked."""
    filled = re.sub(r"\{[^}]*\}", "ab" * 16, path)
    return http.request(method, filled, **more)


def test_the_document_and_the_table_of_who_may_name_the_same_routes() -> None:
    documented = {shape(f"{method} {path}") for method, path in ROUTES}
    assert documented == {shape(route) for route in TABLE} - NOT_HERE


@pytest.mark.parametrize("role", sorted(GIVEN))
def test_a_key_of_one_role_passes_where_the_table_says_and_nowhere_else(
    http: Client, keys: dict[Role, dict[str, str]], role: Role
) -> None:
    for method, path in ROUTES:
        rule = rule_of(method, path)
        assert rule is not None
        answer = call(http, method, path, headers=keys[role])
        may = rule.public or (role in rule.roles | rule.own and not rule.person)
        said = answer.text if answer.status_code == 403 else ""
        refused = "needs another role" in said or "only a person" in said
        assert refused != may, (method, path, answer.status_code, answer.text)
        assert answer.status_code < 500 or path == "/health/ready", (method, path, answer.text)


def test_nobody_in_particular_gets_401_everywhere_but_on_public_routes(
    http: Client, keys: dict[Role, dict[str, str]]
) -> None:
    for method, path in ROUTES:
        rule = rule_of(method, path)
        assert rule is not None
        answer = call(http, method, path)
        if rule.public:
            assert "Bearer" not in answer.headers.get("www-authenticate", "") or path.startswith(
                "/v1/session"
            )
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"


def test_every_access_is_a_row_of_the_audit_log_and_says_of_what(
    http: Client, index: Index, keys: dict[Role, dict[str, str]]
) -> None:
    for method, path in ROUTES:
        rule = rule_of(method, path)
        assert rule is not None
        role = next(iter(sorted((rule.roles | rule.own) & GIVEN)), Role.ADMIN)
        before = newest(index)
        call(http, method, path, headers=keys[role])
        after = newest(index)
        if rule.what is None:
            assert after == before, (method, path)
            continue
        assert after == before + 1, (method, path)
        with index.read() as at:
            row = at.execute(select(audit.c.row_json).where(audit.c.number == after)).scalar_one()
        assert shape(row["action"]) == shape(f"{method} {path}")
        assert row["what"] in (rule.what, "refusal")


def newest(index: Index) -> int:
    with index.read() as at:
        return int(at.execute(select(func.max(audit.c.number))).scalar() or 0)


# People


def test_a_person_signs_in_proves_and_signs_out(http: Client, index: Index) -> None:
    make_account(index, name="ann", password=PASSWORD, roles=[Role.REVIEWER, Role.ADMIN])
    wrong = http.post("/v1/session", json={"name": "ann", "password": "x"})
    assert (wrong.status_code, wrong.json()["type"]) == (401, "/problems/unauthorized")
    signed_in = http.post("/v1/session", json={"name": "ann", "password": PASSWORD})
    assert signed_in.status_code == 201
    assert signed_in.json()["name"] == "local:ann"
    assert "HttpOnly" in signed_in.headers["set-cookie"]
    token = {"X-CSRF-Token": signed_in.json()["csrf"]}
    who = http.get("/v1/session").json()
    assert (who["kind"], who["csrf"], who["proven_at"]) == ("person", None, None)
    assert http.post("/v1/session/proof", json={"password": PASSWORD}).status_code == 403
    proof = http.post("/v1/session/proof", json={"password": PASSWORD}, headers=token)
    assert proof.status_code == 204
    assert http.get("/v1/session").json()["proven_at"] is not None
    assert http.post("/v1/session/proof", json={"password": "x"}, headers=token).status_code == 401
    renewed = http.get("/v1/session?renew=true").json()["csrf"]
    assert http.delete("/v1/session", headers=token).status_code == 403, "the former token is void"
    assert http.delete("/v1/session", headers={"X-CSRF-Token": renewed}).status_code == 204
    http.cookies.clear()
    assert http.get("/v1/session").status_code == 401


def test_no_digest_of_a_password_is_kept_under_an_idempotency_key(
    http: Client, index: Index
) -> None:
    make_account(index, name="pia", password=PASSWORD, roles=[Role.REVIEWER])
    key = {"Idempotency-Key": "one"}
    given = {"name": "pia", "password": PASSWORD}
    signed_in = http.post("/v1/session", json=given, headers=key)
    token = key | {"X-CSRF-Token": signed_in.json()["csrf"]}
    for _ in range(2):
        proof = http.post("/v1/session/proof", json={"password": PASSWORD}, headers=token)
        assert (proof.status_code, "idempotency-replayed" in proof.headers) == (204, False)
    with index.read() as at:
        assert at.execute(select(idempotency)).all() == []


def test_accounts_are_made_and_changed_by_people_alone(
    http: Client, index: Index, keys: dict[Role, dict[str, str]]
) -> None:
    make_account(index, name="eve", password=PASSWORD, roles=[Role.ADMIN])
    csrf = http.post("/v1/session", json={"name": "eve", "password": PASSWORD}).json()["csrf"]
    token = {"X-CSRF-Token": csrf}
    new = {"name": "bob", "password": PASSWORD, "roles": ["viewer"]}
    assert http.post("/v1/accounts", json=new, headers=token).status_code == 201
    assert http.post("/v1/accounts", json=new, headers=token).status_code == 409
    short = new | {"name": "tim", "password": "short"}
    assert http.post("/v1/accounts", json=short, headers=token).status_code == 422
    changed = http.patch("/v1/accounts/bob", json={"roles": ["reviewer"]}, headers=token).json()
    assert changed["roles"] == ["reviewer"]
    again = {"password": "another fifteen letters"}
    assert http.patch("/v1/accounts/bob", json=again, headers=token).status_code == 200
    closed = http.patch("/v1/accounts/bob", json={"disabled": True}, headers=token).json()
    assert closed["disabled_at"]
    assert http.patch("/v1/accounts/nobody", json={}, headers=token).status_code == 404
    names = {a["name"] for a in http.get("/v1/accounts", headers=token).json()["accounts"]}
    assert {"eve", "bob"} <= names
    assert PASSWORD not in http.get("/v1/accounts").text
    http.cookies.clear()


def test_another_site_s_page_signs_nobody_in(http: Client) -> None:
    foreign = {"Origin": "https://elsewhere.example"}
    answer = http.post("/v1/session", json={"name": "a", "password": "b"}, headers=foreign)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/foreign-page")


def test_ways_to_sign_in_are_told_to_everybody(http: Client) -> None:
    assert http.get("/v1/session/ways").json() == {"local": True, "oidc": False}
    assert http.get("/v1/session/oidc").status_code == 404
    assert http.get("/v1/session/oidc/callback").status_code == 404


def test_where_no_passwords_are_kept_nobody_signs_in_with_one(tmp_path: Path) -> None:
    with served(create_app(ServiceSettings(data_folder=tmp_path, disk_reserve_mib=0))) as client:
        answer = client.post("/v1/session", json={"name": "a", "password": "b"})
        assert answer.status_code == 404


def test_a_person_comes_back_from_the_issuer_s_page(tmp_path: Path) -> None:
    with issuing() as (fake, ours):
        access = AccessSettings(oidc=ours.settings, secure_cookies=False)
        settings = ServiceSettings(data_folder=tmp_path, disk_reserve_mib=0, access=access)
        with served(create_app(settings)) as client:
            assert client.get("/v1/session/ways").json() == {"local": False, "oidc": True}
            there = client.get("/v1/session/oidc")
            assert there.status_code == 302
            code, state = fake.log_in(there.headers["location"])
            back = "/v1/session/oidc/callback"
            assert client.get(back, params={"state": state}).status_code == 401, "no code"
            page = client.get(back, params={"code": code, "state": state})
            assert page.status_code == 200, page.text
            assert 'content="0;url=/"' in page.text
            who = client.get("/v1/session").json()
            assert (who["name"], who["roles"]) == ("oidc:dr.ann", ["reviewer"])
            assert who["proven_at"] is None, "who was in already need not have shown anything"
            csrf = client.get("/v1/session?renew=true").json()["csrf"]
            proof = client.post(
                "/v1/session/proof", json={"password": "x"}, headers={"X-CSRF-Token": csrf}
            )
            assert (proof.status_code, "oidc?again=true" in proof.json()["remedy"]) == (403, True)
            again = client.get("/v1/session/oidc?again=true").headers["location"]
            assert "prompt=login" in again
            code, state = fake.log_in(again)
            assert client.get(back, params={"code": code, "state": state}).status_code == 200
            assert client.get("/v1/session").json()["proven_at"] is not None
        with looking_into(tmp_path) as records, records.index.read() as at:
            rows = at.execute(select(audit.c.row_json).order_by(audit.c.number)).scalars().all()
        logins = [(row["who"], row["outcome"]) for row in rows if row["what"] == "login"]
        assert logins == [
            *[("", "refused"), ("oidc:dr.ann", "success")],
            *[("oidc:dr.ann", "refused"), ("oidc:dr.ann", "success")],
        ]


def test_a_proof_of_a_key_is_refused(http: Client, keys: dict[Role, dict[str, str]]) -> None:
    answer = http.post("/v1/session/proof", json={"password": "x"}, headers=keys[Role.REVIEWER])
    assert answer.status_code == 403


def test_a_key_is_made_listed_and_revoked(http: Client, keys: dict[Role, dict[str, str]]) -> None:
    admin = keys[Role.ADMIN]
    wanted = {"label": "linac 3", "roles": ["uploader"], "days": 30}
    made = http.post("/v1/keys", json=wanted, headers=admin)
    assert made.status_code == 201
    opens = {"Authorization": f"Bearer {made.json()['secret']}"}
    assert http.get("/v1/session", headers=opens).json()["roles"] == ["uploader"]
    listed = http.get("/v1/keys", headers=admin)
    assert made.json()["id"] in {key["id"] for key in listed.json()["keys"]}
    assert made.json()["secret"] not in listed.text
    assert http.delete(f"/v1/keys/{made.json()['id']}", headers=admin).status_code == 204
    assert http.get("/v1/session", headers=opens).status_code == 401
    internal = wanted | {"roles": ["internal"]}
    assert http.post("/v1/keys", json=internal, headers=admin).status_code == 422


# What whoever runs it asks for


def test_settings_hold_no_password(tmp_path: Path) -> None:
    from contourcast.service.api.routes.site import _settings

    told = _settings(
        ServiceSettings(
            data_folder=tmp_path,
            database_url="postgresql://user:hunter2@db/contourcast?password=hunter2&a=b",
        )
    )
    text = json.dumps([item.model_dump() for item in told])
    assert "hunter2" not in text
    assert "postgresql://user:***@db/contourcast?password=***&a=b" in text


def test_the_audit_log_is_read_on_from_a_number(
    http: Client, keys: dict[Role, dict[str, str]]
) -> None:
    auditor = keys[Role.AUDITOR]
    first = http.get("/v1/audit?limit=2", headers=auditor)
    assert [row["number"] for row in first.json()["rows"]] == [1, 2]
    following = http.get(first.links["next"]["url"], headers=auditor).json()["rows"]
    assert following[0]["number"] == 3
    assert following[0]["previous"] == first.json()["rows"][1]["digest"]


def test_rules_are_shown(http: Client, keys: dict[Role, dict[str, str]]) -> None:
    assert "roi_names" in http.get("/v1/rules", headers=keys[Role.ADMIN]).json()


# Whatever is sent, the service does not fall over


@schemathesis.serializer("multipart/related", "application/dicom", "application/zip")
def _as_it_is(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


_attacked = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def everything(index: Index) -> dict[str, str]:
    """The key that opens whatever a key can."""
    return {"Authorization": f"Bearer {make_key(index, label='all', roles=GIVEN, days=1)[1]}"}


def attack(case: Case[Any], http: Client, headers: dict[str, str]) -> None:
    answer = case.call(base_url=str(http.base_url), headers=headers, timeout=60)
    # 503: no worker runs beside these tests
    assert answer.status_code < 500 or answer.status_code == 503, (case.path, answer.text)


@given(st.data())
@settings(max_examples=2, suppress_health_check=list(HealthCheck))
def test_no_input_is_a_fault_of_ours(
    http: Client, everything: dict[str, str], data: st.DataObject
) -> None:
    for operation in _attacked.get_all_operations():
        assert not isinstance(operation, Err), operation
        attack(data.draw(operation.ok().as_strategy()), http, everything)


@pytest.mark.slow
@_attacked.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_much_input_is_no_fault_of_ours(
    case: Case[Any], http: Client, everything: dict[str, str]
) -> None:
    attack(case, http, everything)
