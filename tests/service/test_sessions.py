"""Sign-ins: a cookie for the browser, a token for its page, an end, and a proof that ages."""

# ruff: noqa: F811  what a fixture is called, its user's argument is called
from __future__ import annotations

import pytest
from sqlalchemy import func, select

from contourcast.service.access.roles import Role
from contourcast.service.access.sessions import (
    Session,
    close_session,
    drop_cookie,
    find_session,
    open_session,
    prove,
    renew_csrf,
    require_csrf,
    require_proof,
    set_cookie,
    spend_proof,
)
from contourcast.service.index.database import Index
from contourcast.service.index.tables import session
from contourcast.service.problems import ForbiddenError
from support.access import NOON, after, cluster, index, url  # noqa: F401  fixtures


def opened(index: Index, *, hours: float = 8.0) -> tuple[Session, str, str]:
    new = open_session(index, account="local:ann", roles=[Role.REVIEWER], hours=hours, at=NOON)
    found = find_session(index, new.cookie, at=NOON)
    assert found is not None
    return found, new.cookie, new.csrf


def test_a_cookie_finds_its_sign_in_until_it_ends(index: Index) -> None:
    found, cookie, _ = opened(index)
    assert (found.account, found.roles) == ("local:ann", frozenset({Role.REVIEWER}))
    assert find_session(index, cookie, at=after(hours=7.99)) is not None
    assert find_session(index, cookie, at=after(hours=8)) is None
    assert find_session(index, cookie + "x", at=NOON) is None
    assert find_session(index, "", at=NOON) is None


def test_neither_cookie_nor_token_is_in_the_database(index: Index) -> None:
    _, cookie, csrf = opened(index)
    with index.read() as connection:
        kept = repr(tuple(connection.execute(select(session)).one()))
    assert cookie not in kept
    assert csrf not in kept


def test_signing_out_is_for_good(index: Index) -> None:
    found, cookie, _ = opened(index)
    close_session(index, found)
    assert find_session(index, cookie, at=NOON) is None


def test_those_that_ended_are_swept_out(index: Index) -> None:
    opened(index, hours=1)
    open_session(index, account="local:bo", roles=[Role.VIEWER], hours=1, at=after(hours=2))
    with index.read() as connection:
        assert connection.execute(select(func.count()).select_from(session)).scalar_one() == 1


def test_what_changes_something_needs_the_token_of_this_very_sign_in(index: Index) -> None:
    found, cookie, csrf = opened(index)
    _, _, other = opened(index)
    require_csrf(found, csrf)
    for wrong in ("", other, cookie, "\ud800"):
        with pytest.raises(ForbiddenError):
            require_csrf(found, wrong)


def test_a_page_that_was_loaded_anew_gets_another_token(index: Index) -> None:
    found, cookie, former = opened(index)
    token = renew_csrf(index, found)
    again = find_session(index, cookie, at=NOON)
    assert again is not None
    require_csrf(again, token)
    with pytest.raises(ForbiddenError):
        require_csrf(again, former)


def test_each_signature_needs_a_proof_of_its_own_and_of_the_last_minutes(index: Index) -> None:
    found, cookie, _ = opened(index)

    def now_found() -> Session:
        again = find_session(index, cookie, at=NOON)
        assert again is not None
        return again

    with pytest.raises(ForbiddenError):  # that one signed in is no proof
        require_proof(found, minutes=10, at=NOON)
    prove(index, found, at=after(minutes=30))
    require_proof(now_found(), minutes=10, at=after(minutes=40))
    with pytest.raises(ForbiddenError):
        require_proof(now_found(), minutes=10, at=after(minutes=40, seconds=1))
    seen = now_found()
    with index.write() as at:
        spend_proof(at, seen)
    with pytest.raises(ForbiddenError):
        require_proof(now_found(), minutes=10, at=after(minutes=31))
    with pytest.raises(ForbiddenError), index.write() as at:  # of two in flight the second
        spend_proof(at, seen)
    prove(index, found, at=after(minutes=32))
    with pytest.raises(ForbiddenError), index.write() as at:  # and it takes no newer one with it
        spend_proof(at, seen)
    require_proof(now_found(), minutes=10, at=after(minutes=33))


def test_who_showed_the_credential_at_the_issuer_to_sign_has_proven_it(index: Index) -> None:
    new = open_session(
        index, account="oidc:ann", roles=[Role.REVIEWER], hours=1, proven=True, at=NOON
    )
    found = find_session(index, new.cookie, at=NOON)
    assert found is not None
    require_proof(found, minutes=10, at=after(minutes=9))


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(index: Index) -> None:
    new = open_session(index, account="local:ann", roles=[Role.VIEWER], hours=1)
    said = set_cookie(new, secure=True)
    assert said == (f"__Host-contourcast={new.cookie}; Path=/; HttpOnly; SameSite=Strict; Secure")
    assert "Secure" not in set_cookie(new, secure=False)
    assert drop_cookie(secure=True).startswith("__Host-contourcast=; ")
    assert "Max-Age=0" in drop_cookie(secure=True)
