"""Names and passwords: argon2id, the same answer for all that is wrong, waits that grow."""

# ruff: noqa: F811  what a fixture is called, its user's argument is called
from __future__ import annotations

import contextlib
import threading
import time
from statistics import median

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from contourcast.imaging.errors import InputError
from contourcast.service.access.accounts import (
    FREE_FAILURES,
    LOCAL,
    disable_account,
    list_accounts,
    make_account,
    set_password,
    set_roles,
    sign_in,
)
from contourcast.service.access.roles import Role
from contourcast.service.access.sessions import find_session, open_session
from contourcast.service.index.database import Index
from contourcast.service.index.tables import account
from contourcast.service.problems import (
    BusyError,
    ConflictError,
    NotFoundError,
    UnauthorizedError,
)
from support.access import NOON, PASSWORD, after, cluster, index, url  # noqa: F401  fixtures

WRONG = "seven small green pears"


@pytest.fixture
def ann(index: Index) -> Index:
    make_account(index, name="ann", password=PASSWORD, roles=[Role.REVIEWER], at=NOON)
    return index


def fail(index: Index, name: str = "ann", *, times: int = 1, password: str = WRONG) -> str:
    for _ in range(times):
        with pytest.raises(UnauthorizedError) as refused:
            sign_in(index, name, password, at=NOON)
    return str(refused.value)


def test_the_right_password_opens_and_argon2id_is_what_is_kept(ann: Index) -> None:
    assert sign_in(ann, "ann", PASSWORD, at=NOON).roles == frozenset({Role.REVIEWER})
    with ann.read() as connection:
        kept = connection.execute(select(account.c.password_hash)).scalar_one()
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_password_is_one_however_the_keyboard_composes_it(index: Index) -> None:
    make_account(index, name="bo", password="fünfzehn Zeichen!", roles=[Role.VIEWER])
    assert sign_in(index, "bo", "fu\u0308nfzehn Zeichen!").name == "bo"


def test_all_that_is_wrong_gets_the_same_answer(ann: Index) -> None:
    make_account(ann, name="off", password=PASSWORD, roles=[Role.VIEWER])
    disable_account(ann, "off")
    said = {fail(ann), fail(ann, "nobody"), fail(ann, "off", password=PASSWORD)}
    fail(ann, times=FREE_FAILURES)
    said.add(fail(ann, password=PASSWORD))  # it waits
    assert len(said) == 1


def test_an_unknown_name_takes_as_long_as_a_known_one(ann: Index) -> None:
    """Both verify one hash; without it an unknown name would answer some forty times as fast.

    In processor time: other tests run beside this one.
    """
    taken: dict[str, list[float]] = {"ann": [], "nobody": []}
    for _ in range(5):
        for name, times in taken.items():
            began = time.process_time()
            fail(ann, name)
            times.append(time.process_time() - began)
    ratio = median(taken["nobody"]) / median(taken["ann"])
    assert 0.4 < ratio < 2.5


def test_waits_double_up_to_a_quarter_of_an_hour(ann: Index) -> None:
    at, waits = NOON, []
    for _ in range(FREE_FAILURES + 8):
        with pytest.raises(UnauthorizedError):
            sign_in(ann, "ann", WRONG, at=at)
        until = list_accounts(ann)[0].locked_until
        if until is not None:
            ends = type(at).fromisoformat(until)
            waits.append((ends - at).total_seconds())
            at = ends
    assert waits[:6] == [30, 60, 120, 240, 480, 900]
    assert set(waits[6:]) == {900}
    assert sign_in(ann, "ann", PASSWORD, at=at).failures == 0


def test_while_it_waits_even_the_right_password_does_not_open_nor_the_wrong_one_prolong(
    ann: Index,
) -> None:
    fail(ann, times=FREE_FAILURES)
    until = list_accounts(ann)[0].locked_until
    with pytest.raises(UnauthorizedError):
        sign_in(ann, "ann", PASSWORD, at=after(seconds=29))
    fail(ann)
    assert list_accounts(ann)[0].locked_until == until
    assert sign_in(ann, "ann", PASSWORD, at=after(seconds=30)).locked_until is None


def test_guesses_side_by_side_gain_nothing(ann: Index) -> None:
    """Eight at once, and one was free: the others wait, whatever they would have been."""
    fail(ann, times=FREE_FAILURES - 1)
    opened: list[str] = []

    def guess() -> None:
        with contextlib.suppress(UnauthorizedError):
            opened.append(sign_in(ann, "ann", WRONG, at=NOON).name)

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == []
    assert list_accounts(ann)[0].failures == FREE_FAILURES


def test_a_flood_of_sign_ins_is_told_to_come_again_and_ends(ann: Index) -> None:
    said: list[type[Exception]] = []
    start = threading.Barrier(24)

    def enter() -> None:
        start.wait()
        try:
            sign_in(ann, "nobody", PASSWORD, at=NOON)
        except (BusyError, UnauthorizedError) as error:
            said.append(type(error))

    threads = [threading.Thread(target=enter) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 24
    assert BusyError in said
    assert UnauthorizedError in said
    assert sign_in(ann, "ann", PASSWORD, at=NOON).name == "ann"


def test_a_hash_of_other_parameters_is_renewed_at_the_next_sign_in(ann: Index) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    with ann.write() as connection:
        connection.execute(account.update().values(password_hash=weak))
    sign_in(ann, "ann", PASSWORD, at=NOON)
    with ann.read() as connection:
        kept = connection.execute(select(account.c.password_hash)).scalar_one()
    assert "m=65536,t=3,p=4" in kept


def test_disabling_another_password_and_other_roles_end_all_sign_ins(ann: Index) -> None:
    def signed_in() -> str:
        return open_session(ann, account=LOCAL + "ann", roles=[Role.REVIEWER], hours=1).cookie

    first = signed_in()
    set_roles(ann, "ann", [Role.VIEWER])
    assert find_session(ann, first) is None
    second = signed_in()
    set_password(ann, "ann", WRONG)
    assert find_session(ann, second) is None
    assert sign_in(ann, "ann", WRONG).roles == frozenset({Role.VIEWER})
    third = signed_in()
    disable_account(ann, "ann")
    assert find_session(ann, third) is None
    with pytest.raises(UnauthorizedError):
        sign_in(ann, "ann", WRONG)


def test_a_name_is_given_once(ann: Index) -> None:
    with pytest.raises(ConflictError):
        make_account(ann, name="ann", password=PASSWORD, roles=[Role.VIEWER])
    assert sign_in(ann, "ann", PASSWORD).roles == frozenset({Role.REVIEWER})


@pytest.mark.parametrize("change", [disable_account, lambda i, n: set_password(i, n, PASSWORD)])
def test_nobody_is_changed_who_is_not_there(index: Index, change: object) -> None:
    assert callable(change)
    with pytest.raises(NotFoundError):
        change(index, "nobody")


@pytest.mark.parametrize("password", ["fourteen chars", "x" * 257])
def test_a_password_too_short_or_too_long_is_refused(index: Index, password: str) -> None:
    with pytest.raises(InputError):
        make_account(index, name="ann", password=password, roles=[Role.VIEWER])
    assert list_accounts(index) == []
