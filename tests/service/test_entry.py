"""From a password or an issuer to a sign-in, and to a signature."""

# ruff: noqa: F811  what a fixture is called, its user's argument is called
from __future__ import annotations

from typing import Any

import pytest

from contourcast.service.access.accounts import make_account
from contourcast.service.access.caller import Caller, Gate
from contourcast.service.access.entry import (
    enter_by_password,
    enter_from_issuer,
    leave_for_issuer,
    prove_by_password,
    ways,
)
from contourcast.service.access.roles import Role
from contourcast.service.access.sessions import NewSession, require_proof
from contourcast.service.access.settings import AccessSettings
from contourcast.service.index.database import Index
from contourcast.service.problems import ForbiddenError, UnauthorizedError
from support.access import NOON, PASSWORD, after, caller, cluster, index, url  # noqa: F401  fixtures
from support.issuer import issuing


def gate_of(index: Index, **settings: Any) -> Gate:
    return Gate(index, AccessSettings(**settings), host="0.0.0.0")


def who(gate: Gate, new: NewSession) -> Caller:
    cookie = ("Cookie", f"__Host-contourcast={new.cookie}")
    return gate.identify([cookie], method="GET", address="10.0.0.9", at=NOON)


def test_name_and_password_become_a_person(index: Index) -> None:
    gate = gate_of(index, local_accounts=True)
    make_account(index, name="ann", password=PASSWORD, roles=[Role.REVIEWER])
    entered = who(gate, enter_by_password(gate, name="ann", password=PASSWORD, at=NOON))
    assert (entered.name, entered.kind, entered.roles) == (
        "local:ann",
        "person",
        frozenset({Role.REVIEWER}),
    )
    with pytest.raises(UnauthorizedError):
        enter_by_password(gate, name="ann", password=PASSWORD[:-1], at=NOON)


def test_accounts_open_nothing_where_they_are_off(index: Index) -> None:
    make_account(index, name="ann", password=PASSWORD, roles=[Role.REVIEWER])
    with pytest.raises(ForbiddenError):
        enter_by_password(gate_of(index), name="ann", password=PASSWORD)


def test_the_password_again_renews_the_proof_and_a_wrong_one_does_not(index: Index) -> None:
    gate = gate_of(index, local_accounts=True)
    make_account(index, name="ann", password=PASSWORD, roles=[Role.REVIEWER])
    new = enter_by_password(gate, name="ann", password=PASSWORD, at=NOON)
    for password, at in ((PASSWORD, after(minutes=30)), ("wrong all along", after(minutes=60))):
        try:
            prove_by_password(gate, who(gate, new), password=password, at=at)
        except UnauthorizedError:
            assert password != PASSWORD
    session = who(gate, new).session
    assert session is not None
    require_proof(session, minutes=10, at=after(minutes=40))
    with pytest.raises(UnauthorizedError):
        require_proof(session, minutes=10, at=after(minutes=60))


def test_a_key_and_an_issuer_s_person_have_no_password_here(index: Index) -> None:
    for somebody in (caller(Role.REVIEWER, kind="key"), caller(Role.REVIEWER)):
        with pytest.raises(UnauthorizedError, match="issuer"):
            prove_by_password(gate_of(index), somebody, password=PASSWORD)


def test_a_person_comes_back_from_the_issuer(index: Index) -> None:
    with issuing() as (fake, issuer):
        gate = Gate(index, AccessSettings(oidc=issuer.settings), host="0.0.0.0", issuer=issuer)
        assert ways(gate) == ["issuer"]
        address, attempt = leave_for_issuer(gate)
        kept = attempt.cookie(secure=True).partition("=")[2].partition(";")[0]
        code, state = fake.log_in(address)
        account, new = enter_from_issuer(gate, code=code, state=state, kept=kept, at=NOON)
        assert account == "oidc:dr.ann"
        entered = who(gate, new)
        assert (entered.name, entered.kind) == ("oidc:dr.ann", "person")
        assert "prompt=login" in leave_for_issuer(gate, again=True)[0]


def test_where_there_is_no_issuer_nobody_is_sent_there(index: Index) -> None:
    gate = gate_of(index, local_accounts=True)
    assert ways(gate) == ["password"]
    with pytest.raises(ForbiddenError):
        leave_for_issuer(gate)
    with pytest.raises(ForbiddenError):
        enter_from_issuer(gate, code="c", state="s", kept="a.b.c.0")
