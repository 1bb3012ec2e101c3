"""One table says who may call what; what it does not have, nobody may."""

from __future__ import annotations

import json
import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contourcast.service.access.roles import (
    GIVEN,
    TABLE,
    Role,
    allowed,
    methods_of,
    own_only,
    rule_of,
    template_of,
)
from contourcast.service.problems import ForbiddenError, UnauthorizedError
from support.access import caller
from support.data import REPOSITORY

ROUTES = [tuple(route.split(" ", 1)) for route in TABLE]
REVIEWS = "/v1/propagations/{propagation}/reviews"


def documented() -> list[tuple[str, str]]:
    document = json.loads((REPOSITORY / "docs" / "openapi.json").read_text("utf-8"))
    return [
        (method.upper(), path)
        for path, verbs in document["paths"].items()
        for method in verbs
        if method in ("get", "put", "post", "patch", "delete")
    ]


@pytest.mark.parametrize(("method", "path"), documented())
def test_every_route_of_the_openapi_document_is_in_the_table(method: str, path: str) -> None:
    assert rule_of(method, path) is not None


@pytest.mark.parametrize("role", list(Role))
def test_each_role_passes_where_the_table_says_and_nowhere_else(role: Role) -> None:
    for method, template in ROUTES:
        rule = TABLE[f"{method} {template}"]
        if rule.public or role in rule.roles | rule.own:
            allowed(caller(role), method, template)
            continue
        with pytest.raises(ForbiddenError):
            allowed(caller(role), method, template)


def test_nobody_in_particular_passes_on_public_routes_alone() -> None:
    for method, template in ROUTES:
        if TABLE[f"{method} {template}"].public:
            allowed(None, method, template)
            continue
        with pytest.raises(UnauthorizedError):
            allowed(None, method, template)


def test_what_is_public_has_nothing_of_patients() -> None:
    public = {route for route, rule in TABLE.items() if rule.public}
    prefixes = {route.split("/")[1] for route in public}
    assert prefixes == {"", "health", "problems", "review", "v1"}
    assert all("/v1/session" in route for route in public if "/v1/" in route)


@pytest.mark.parametrize("role", list(Role))
def test_a_route_that_the_table_does_not_have_is_refused_to_everybody(role: Role) -> None:
    with pytest.raises(ForbiddenError):
        allowed(caller(role), "GET", "/v1/patients")
    with pytest.raises(ForbiddenError):
        allowed(caller(role), "DELETE", "/v1/series")
    with pytest.raises(ForbiddenError):
        allowed(None, "OPTIONS", "/health/live")


def test_a_key_never_approves_whatever_its_roles() -> None:
    with pytest.raises(ForbiddenError, match="only a person"):
        allowed(caller(*GIVEN, kind="key"), "POST", REVIEWS)
    allowed(caller(Role.REVIEWER, kind="person"), "POST", REVIEWS)


def test_a_key_makes_no_person() -> None:
    with pytest.raises(ForbiddenError, match="only a person"):
        allowed(caller(Role.ADMIN, kind="key"), "POST", "/v1/accounts")


def test_whoever_is_on_this_machine_does_not_sign() -> None:
    with pytest.raises(ForbiddenError):
        allowed(caller(Role.INTERNAL, kind="loopback"), "POST", REVIEWS)


def test_an_administrator_sees_no_pictures_and_an_auditor_the_log_alone() -> None:
    for template in ("/v1/propagations/{id}/pictures/{name}", "/v1/volumes/{digest}/slices"):
        with pytest.raises(ForbiddenError):
            allowed(caller(Role.ADMIN), "GET", template)
    of_auditors = {
        route
        for route, rule in TABLE.items()
        if Role.AUDITOR in rule.roles | rule.own and rule.what is not None
    }
    assert of_auditors == {"GET /v1/audit", "DELETE /v1/session", "POST /v1/session/proof"}


def test_an_uploader_sees_only_what_came_of_its_own() -> None:
    template = "/v1/propagations/{id}/structure-set"
    assert own_only(caller(Role.UPLOADER), "GET", template)
    assert not own_only(caller(Role.UPLOADER, Role.VIEWER), "GET", template)
    assert not own_only(caller(Role.UPLOADER), "POST", "/v1/instances")


def test_names_of_parameters_do_not_matter_and_a_head_is_a_get() -> None:
    assert rule_of("GET", "/v1/series/{anything}") is TABLE["GET /v1/series/{uid}"]
    assert rule_of("HEAD", "/v1/series/{x}") is TABLE["GET /v1/series/{uid}"]
    assert template_of("HEAD", "/v1/series/1.2") == "/v1/series/{uid}"


def test_a_path_finds_its_own_template() -> None:
    for method, template in ROUTES:
        filled = re.sub(r"\{[^}]*\}", "1.2.3", template)
        assert template_of(method, filled) == template
        assert method in methods_of(filled)


def test_no_two_templates_of_a_verb_match_one_path() -> None:
    """Else the application might take another one than the one that was judged."""
    for (verb_a, a), (verb_b, b) in combinations(ROUTES, 2):
        if verb_a != verb_b or a.count("/") != b.count("/"):
            continue
        pairs = zip(a.split("/"), b.split("/"), strict=True)
        apart = any(x != y and "{" not in x and "{" not in y for x, y in pairs)
        assert apart, (a, b)


@given(st.text(max_size=60))
def test_no_text_leads_past_the_table(text: str) -> None:
    template = template_of("GET", "/" + text)
    assert template is None or rule_of("GET", template) is not None
    assert template_of(text, "/v1/series") is None or text.upper() in ("GET", "HEAD")


@pytest.mark.parametrize(
    "path", ["/v1/series/", "//v1/series", "/v1/series\n", "/V1/series", "/v1/series/1/../../audit"]
)
def test_other_spellings_of_a_path_are_other_paths(path: str) -> None:
    assert template_of("GET", path) is None
