"""Tokens of the site's issuer: what holds, and everything that does not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pydantic import ValidationError

from contourcast.service.access.oidc import KEYS_AGAIN_S, KEYS_AGE_S, Attempt, Issuer, Person
from contourcast.service.access.roles import Role
from contourcast.service.access.settings import OidcSettings
from contourcast.service.problems import (
    ForbiddenError,
    PeerError,
    PeerUnreachableError,
    SettingsError,
    UnauthorizedError,
)
from support.issuer import AUDIENCE, CLIENT, FakeIssuer, issuing, redirect, says

Both = tuple[FakeIssuer, Issuer]
ANN = Person(name="dr.ann", roles=frozenset({Role.REVIEWER}))


@pytest.fixture
def both() -> Iterator[Both]:
    with issuing() as pair:
        yield pair


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_token_of_the_issuer_says_who_and_its_groups_what_for(both: Both, algorithm: str) -> None:
    fake, ours = both
    assert ours.bearer(fake.token(algorithm=algorithm)) == ANN
    assert ours.bearer(fake.token(fake.claims(aud=["other", AUDIENCE]))) == ANN


def test_who_has_no_name_is_called_by_the_subject(both: Both) -> None:
    fake, ours = both
    assert ours.bearer(fake.token(fake.claims(preferred_username=None))).name == "0042"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody else"},
        {"aud": None},
        {"aud": CLIENT},
        {"iss": "https://issuer.example"},
        {"iss": None},
        {"sub": None},
        {"exp": None},
        {"exp": 1_000_000_000},
        {"exp": "soon"},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"preferred_username": "two\nlines"},
        {"preferred_username": "x" * 129},
    ],
    ids=str,
)
def test_a_token_that_is_not_for_us_or_not_for_now_is_refused(
    both: Both, claims: dict[str, object]
) -> None:
    fake, ours = both
    with pytest.raises(UnauthorizedError):
        ours.bearer(fake.token(fake.claims(**claims)))


def test_half_a_minute_between_clocks_is_forgiven_and_no_more(both: Both) -> None:
    fake, ours = both
    now = int(time.time())
    assert ours.bearer(fake.token(fake.claims(exp=now - 20))) == ANN
    with pytest.raises(UnauthorizedError):
        ours.bearer(fake.token(fake.claims(exp=now - 40)))


@pytest.mark.parametrize("groups", [None, [], "Coffee", ["radiotherapy"], [7, None], {"a": 1}])
def test_without_a_group_of_ours_there_is_nothing_to_do_here(both: Both, groups: object) -> None:
    fake, ours = both
    with pytest.raises(ForbiddenError):
        ours.bearer(fake.token(fake.claims(groups=groups)))


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["Physics"]}}),
        ("https://rt.example/roles", {"https://rt.example/roles": "Physics"}),
    ],
)
def test_groups_may_lie_deeper_or_under_any_name(path: str, claims: dict[str, object]) -> None:
    with issuing(roles_claim=path) as (fake, ours):
        assert ours.bearer(fake.token(fake.claims(**claims))).roles == {Role.ADMIN}


# Signatures


def test_another_key_under_a_known_name_signs_nothing(both: Both) -> None:
    fake, ours = both
    fake.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(UnauthorizedError):
        ours.bearer(fake.token())


def test_no_algorithm_but_the_two(both: Both) -> None:
    """Unsigned; signed with the public key as a password; with the right key by another way."""
    fake, ours = both
    public = fake.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    body = _part(fake.claims())
    forged = _part({"alg": "HS256", "kid": "r1"}) + "." + body
    mac = base64.urlsafe_b64encode(hmac.digest(public, forged.encode(), hashlib.sha256))
    wrong = [
        f"{_part({'alg': 'none', 'kid': 'r1'})}.{body}.",
        f"{forged}.{mac.rstrip(b'=').decode()}",
        jwt.encode(fake.claims(), fake.rsa, "RS512", headers={"kid": "r1"}),
        jwt.encode(fake.claims(), fake.rsa, "PS256", headers={"kid": "r1"}),
        jwt.encode(fake.claims(), fake.rsa, "RS256", headers={"kid": "e1"}),
        jwt.encode(fake.claims(), fake.rsa, "RS256", headers={"kid": "r1", "crit": ["x"]}),
        jwt.encode(fake.claims(), fake.rsa, "RS256"),
    ]
    for token in wrong:
        with pytest.raises(UnauthorizedError):
            ours.bearer(token)


def test_weak_keys_and_keys_for_other_uses_are_passed_over(both: Both) -> None:
    fake, ours = both
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    other_curve = ec.generate_private_key(ec.SECP384R1())
    sound = fake.keys[0]
    keys: list[Any] = [
        RSAAlgorithm.to_jwk(small.public_key(), as_dict=True) | {"kid": "small"},
        ECAlgorithm.to_jwk(other_curve.public_key(), as_dict=True) | {"kid": "curve"},
        sound | {"kid": "enc", "use": "enc"},
        sound | {"kid": "other", "alg": "RS512"},
        {"kty": "oct", "k": "AAAA", "kid": "oct"},
        {"kty": "RSA", "kid": "broken", "n": 1},
        {"kty": "RSA"},
        sound | {"kid": 7},
        "no key",
        sound,
    ]
    fake.keys = keys
    assert ours.bearer(fake.token()) == ANN
    for kid in ("enc", "other", "broken", "oct", "small", "curve"):
        with pytest.raises(UnauthorizedError):
            ours.bearer(fake.token(kid=kid))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
def test_no_token_that_was_tampered_with_gets_through(both: Both, data: st.DataObject) -> None:
    fake, ours = both
    good = fake.token()
    place = data.draw(st.integers(0, len(good) - 1))
    letter = data.draw(st.characters(codec="utf-8"))
    token = good[:place] + letter + good[place + 1 :]
    if _same_bytes(token, good):
        return
    with pytest.raises(UnauthorizedError):
        ours.bearer(token)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    token=st.text()
    | st.binary().map(lambda b: b.decode("latin-1"))
    | st.lists(st.text(), min_size=3, max_size=3).map(".".join)
)
def test_whatever_is_sent_as_a_token_is_refused_and_nothing_else(both: Both, token: str) -> None:
    with pytest.raises(UnauthorizedError):
        both[1].bearer(token)


def test_a_token_without_end_is_not_even_looked_at(both: Both) -> None:
    fake, ours = both
    with pytest.raises(UnauthorizedError):
        ours.bearer(fake.token(fake.claims(groups=["x" * 20_000])))
    assert fake.asked == []


def test_programs_need_an_audience_of_their_own(both: Both) -> None:
    fake, ours = both
    closed = Issuer(ours.settings.model_copy(update={"audience": ""}))
    with pytest.raises(UnauthorizedError):
        closed.bearer(fake.token())
    closed.close()


# Where keys come from


def test_keys_are_fetched_once_and_again_when_a_new_one_appears() -> None:
    clock = [1000.0]
    with issuing(clock=lambda: clock[0]) as (fake, ours):
        for _ in range(3):
            ours.bearer(fake.token())
        assert fake.asked == ["description", "keys"]
        for kid in ("made-up-1", "made-up-2"):
            with pytest.raises(UnauthorizedError):
                ours.bearer(fake.token(kid=kid))
        assert fake.asked.count("keys") == 1  # whoever makes ids up does not make us ask
        fake.keys[0] = fake.keys[0] | {"kid": "r2"}
        clock[0] += KEYS_AGAIN_S
        assert ours.bearer(fake.token(kid="r2")) == ANN
        with pytest.raises(UnauthorizedError):
            ours.bearer(fake.token(kid="r1"))  # the issuer took it back


def test_keys_that_the_issuer_took_back_are_forgotten_within_the_hour() -> None:
    clock = [1000.0]
    with issuing(clock=lambda: clock[0]) as (fake, ours):
        ours.bearer(fake.token())
        fake.keys = []
        clock[0] += KEYS_AGE_S
        with pytest.raises(UnauthorizedError):
            ours.bearer(fake.token())


@pytest.mark.parametrize(
    "path",
    ["description", "keys"],
)
@pytest.mark.parametrize(
    "answer",
    [
        redirect("/keys"),
        says("no JSON"),
        says("[" * 10_000),
        says([1]),
        says({}, status=500),
        says(" " * (1024 * 1024 + 1)),
    ],
    ids=["elsewhere", "text", "depth", "list", "500", "length"],
)
def test_an_issuer_that_does_not_answer_as_it_should_is_named(
    both: Both, path: str, answer: object
) -> None:
    fake, ours = both
    fake.answers[path] = answer  # type: ignore[assignment]
    with pytest.raises(PeerError):
        ours.bearer(fake.token())


def test_keys_at_another_address_than_the_issuer_s_are_not_fetched(both: Both) -> None:
    fake, ours = both
    fake.description = {"jwks_uri": "http://127.0.0.1:9/keys"}
    with pytest.raises(PeerError, match="another address"):
        ours.bearer(fake.token())
    assert fake.asked == ["description"]


def test_an_issuer_that_calls_itself_otherwise_is_not_believed(both: Both) -> None:
    fake, ours = both
    fake.description = {"issuer": fake.url + "/"}
    with pytest.raises(PeerError, match="another name"):
        ours.bearer(fake.token())


def test_an_issuer_that_is_not_there_is_said_to_be_so() -> None:
    with issuing() as (fake, ours):
        token = fake.token()
    gone = Issuer(ours.settings)
    with pytest.raises(PeerUnreachableError):
        gone.bearer(token)
    gone.close()


def test_an_issuer_without_tls_is_refused_beyond_this_machine() -> None:
    far = OidcSettings(issuer="http://issuer.example", client_id="x", roles={})
    with pytest.raises(SettingsError):
        Issuer(far)


def test_nobody_s_group_gives_the_role_of_this_machine() -> None:
    with pytest.raises(ValidationError):
        OidcSettings(issuer="https://issuer.example", client_id="x", roles={"all": Role.INTERNAL})


# Sign-in of people


def test_a_person_signs_in_by_code_and_pkce(both: Both) -> None:
    fake, ours = both
    address, attempt = ours.sign_in_url()
    query = parse_qs(urlsplit(address).query)
    assert address.startswith(f"{fake.url}/authorize?")
    assert query["code_challenge_method"] == ["S256"]
    assert attempt.verifier not in address
    kept = Attempt.from_cookie(attempt.cookie(secure=True).split(";")[0].partition("=")[2])
    assert kept == attempt
    code, state = fake.log_in(address)
    assert ours.sign_in(code=code, state=state, attempt=kept) == ANN


def test_the_client_s_secret_goes_along_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct horse\n")
    with issuing(client_secret_file=tmp_path / "secret") as (fake, ours):
        address, attempt = ours.sign_in_url()
        code, state = fake.log_in(address)
        ours.sign_in(code=code, state=state, attempt=attempt)
        assert fake.secret == "correct horse"


def test_an_answer_to_another_attempt_is_refused(both: Both) -> None:
    fake, ours = both
    address, mine = ours.sign_in_url()
    _, other = ours.sign_in_url()
    code, state = fake.log_in(address)
    with pytest.raises(UnauthorizedError, match="another sign-in"):
        ours.sign_in(code=code, state=other.state, attempt=mine)
    with pytest.raises(UnauthorizedError):  # a stolen code, without the verifier
        ours.sign_in(
            code=code,
            state=state,
            attempt=Attempt(
                state=state, nonce=mine.nonce, verifier=other.verifier, again=False, begun_at_s=0
            ),
        )
    with pytest.raises(UnauthorizedError):  # and a code opens once at most
        ours.sign_in(code=code, state=state, attempt=mine)


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"nonce": 7},
        {"aud": AUDIENCE},
        {"azp": "somebody"},
        {"exp": 1_000_000_000},
    ],
    ids=str,
)
def test_an_id_token_of_another_attempt_or_client_is_refused(
    both: Both, claims: dict[str, object]
) -> None:
    fake, ours = both
    address, attempt = ours.sign_in_url()
    code, state = fake.log_in(address)
    fake.token_claims = claims
    with pytest.raises(UnauthorizedError):
        ours.sign_in(code=code, state=state, attempt=attempt)


def test_an_issuer_that_sends_no_id_token_is_named(both: Both) -> None:
    fake, ours = both
    address, attempt = ours.sign_in_url()
    code, state = fake.log_in(address)
    fake.answers["token"] = says({"access_token": "x"})
    with pytest.raises(PeerError, match="ID token"):
        ours.sign_in(code=code, state=state, attempt=attempt)


@pytest.mark.parametrize(
    ("auth_time", "holds"),
    [("now", True), ("old", False), ("before", False), (None, False), ("text", False)],
)
def test_to_sign_the_credential_itself_is_shown_again(
    both: Both, auth_time: str | None, holds: bool
) -> None:
    fake, ours = both
    address, attempt = ours.sign_in_url(again=True)
    query = parse_qs(urlsplit(address).query)
    assert (query["prompt"], query["max_age"]) == (["login"], ["0"])
    code, state = fake.log_in(address)
    if auth_time != "now":
        now = int(time.time())
        said = {"old": now - 3600, "before": now - 60, "text": "now", None: None}[auth_time]
        fake.token_claims = {"auth_time": said}
    if holds:
        assert ours.sign_in(code=code, state=state, attempt=attempt) == ANN
        return
    with pytest.raises(UnauthorizedError):
        ours.sign_in(code=code, state=state, attempt=attempt)


@given(st.text())
def test_whatever_a_browser_keeps_is_an_attempt_or_none(value: str) -> None:
    try:
        attempt = Attempt.from_cookie(value)
    except UnauthorizedError:
        return
    assert attempt.state
    assert attempt.nonce
    assert attempt.verifier


def _part(said: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()


def _same_bytes(token: str, good: str) -> bool:
    """The last letter of base64 has bits that mean nothing."""
    try:
        parts = [
            [base64.urlsafe_b64decode(part + "==") for part in text.split(".")]
            for text in (token, good)
        ]
    except ValueError:
        return False
    return token.isascii() and parts[0] == parts[1]
