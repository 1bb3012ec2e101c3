"""Keys: shown once, kept as a digest, gone when they expire or are revoked."""

# ruff: noqa: F811  what a fixture is called, its user's argument is called
from __future__ import annotations

import base64

import pytest
from sqlalchemy import select

from contourcast.imaging.errors import InputError
from contourcast.service.access.keys import (
    PREFIX,
    any_key,
    find_key,
    list_keys,
    make_key,
    revoke_key,
)
from contourcast.service.access.roles import Role
from contourcast.service.index.database import Index
from contourcast.service.index.tables import api_key
from contourcast.service.problems import NotFoundError
from support.access import NOON, after, cluster, index, url  # noqa: F401  fixtures


def make(index: Index, *, days: float | None = 30.0) -> tuple[str, str]:
    key, secret = make_key(index, label="linac 2", roles=[Role.UPLOADER], days=days, at=NOON)
    return key.id, secret


def test_a_secret_opens_with_its_roles_alone(index: Index) -> None:
    key_id, secret = make(index)
    found = find_key(index, secret, at=NOON)
    assert found is not None
    assert (found.id, found.roles) == (key_id, frozenset({Role.UPLOADER}))
    assert find_key(index, secret[:-1], at=NOON) is None
    assert find_key(index, secret + "A", at=NOON) is None


def test_the_secret_has_256_bits_and_is_nowhere_in_the_database(index: Index) -> None:
    _, secret = make(index)
    coded = secret.removeprefix(PREFIX)
    assert len(base64.urlsafe_b64decode(coded + "=")) * 8 == 256
    with index.read() as connection:
        row = connection.execute(select(api_key)).one()
    assert coded not in repr(tuple(row))
    assert make(index)[1] != secret


def test_it_expires_to_the_second(index: Index) -> None:
    _, secret = make(index, days=1)
    assert find_key(index, secret, at=after(hours=23, minutes=59, seconds=59)) is not None
    assert find_key(index, secret, at=after(days=1)) is None
    _, lasting = make(index, days=None)
    assert find_key(index, lasting, at=after(days=4000)) is not None


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(index: Index) -> None:
    key_id, secret = make(index)
    revoke_key(index, key_id, at=after(hours=1))
    revoke_key(index, key_id, at=after(hours=2))
    assert find_key(index, secret, at=after(minutes=1)) is None
    (listed,) = list_keys(index)
    assert listed.revoked_at == after(hours=1).isoformat()
    with pytest.raises(NotFoundError):
        revoke_key(index, "nothing")


def test_the_last_use_is_known_to_the_minute(index: Index) -> None:
    _, secret = make(index)
    for at in (after(seconds=1), after(seconds=59), after(seconds=62)):
        find_key(index, secret, at=at)
        seen = list_keys(index)[0].last_used_at
        assert seen == (after(seconds=1) if at < after(seconds=61) else at).isoformat()


def test_once_there_was_a_key_there_always_was(index: Index) -> None:
    assert not any_key(index)
    key_id, _ = make(index, days=0.1)
    revoke_key(index, key_id)
    assert any_key(index)


@pytest.mark.parametrize(
    ("label", "roles", "days"),
    [
        ("", [Role.VIEWER], None),
        ("two\nlines", [Role.VIEWER], None),
        (" blank", [Role.VIEWER], None),
        ("x" * 129, [Role.VIEWER], None),
        ("none", [], None),
        ("all", [Role.INTERNAL], None),
        ("late", [Role.VIEWER], 0.0),
    ],
)
def test_what_cannot_be_a_key_is_refused(
    index: Index, label: str, roles: list[Role], days: float | None
) -> None:
    with pytest.raises(InputError):
        make_key(index, label=label, roles=roles, days=days)
    assert list_keys(index) == []
