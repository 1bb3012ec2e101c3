"""People whom this service knows itself, by name and password (argon2id, RFC 9106).

Off unless a setting says otherwise. A wrong password, an unknown name, a disabled account and one
that waits after failures get the same answer after the same work, so that nobody learns which
names there are.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import Connection, Row, select

from contourcast.imaging.errors import InputError
from contourcast.service.access.keys import require_name, require_roles
from contourcast.service.access.roles import Role
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import account, session
from contourcast.service.problems import (
    BusyError,
    ConflictError,
    NotFoundError,
    UnauthorizedError,
)

LOCAL: Final = "local:"  # before the name, so that no issuer's person is taken for ours
SHORTEST: Final = 15  # NIST SP 800-63B-4 §3.1.1.2, a password that is the only factor
LONGEST: Final = 256
FREE_FAILURES: Final = 5
FIRST_WAIT: Final = timedelta(seconds=30)
LONGEST_WAIT: Final = timedelta(minutes=15)

_hasher: Final = PasswordHasher()
# Each verification takes 64 MiB and a core: few run side by side, few wait for their turn, and the
# rest is told to come again, so that a flood of sign-ins holds up nothing but sign-ins.
_verifying: Final = threading.BoundedSemaphore(2)
_at_once: Final = threading.BoundedSemaphore(8)
_decoy: Final = _hasher.hash("nobody's password")


@dataclass(frozen=True, kw_only=True)
class Account:
    """A person without the password."""

    name: str
    roles: frozenset[Role]
    made_at: str
    disabled_at: str | None
    failures: int
    locked_until: str | None


def make_account(
    index: Index,
    *,
    name: str,
    password: str,
    roles: Collection[Role],
    at: datetime | None = None,
) -> Account:
    """A new account.

    Raises:
        InputError: Name, password or roles are not what they have to be.
        ConflictError: The name is taken, be it by an account that is disabled.
    """
    require_name(name)
    require_roles(roles)
    row = {
        "name": name,
        "password_hash": _hash(password),
        "roles_json": sorted(set(roles)),
        "made_at": (at or now()).isoformat(),
        "failures": 0,
    }
    with index.write() as connection:
        new = index.insert_new(account, row).returning(account.c.name)
        if connection.execute(new).first() is None:
            raise ConflictError("that name is taken", remedy="choose another")
        return _account(_row(connection, name))


def sign_in(index: Index, name: str, password: str, *, at: datetime | None = None) -> Account:
    """The account that name and password open.

    The attempt is counted before the password is looked at: guesses side by side gain nothing.

    Raises:
        UnauthorizedError: They open none, or it waits after failures.
        BusyError: Too many sign in at the same time.
    """
    if not _at_once.acquire(blocking=False):
        raise BusyError("too many sign in at the same time", remedy="try again in a moment")
    try:
        return _sign_in(index, name, password, at or now())
    finally:
        _at_once.release()


def list_accounts(index: Index) -> list[Account]:
    """All accounts, by name."""
    with index.read() as connection:
        return [_account(r) for r in connection.execute(select(account).order_by(account.c.name))]


def disable_account(index: Index, name: str, *, at: datetime | None = None) -> None:
    """Nobody signs in under that name any more, and whoever has is out.

    Raises:
        NotFoundError: There is no such account.
    """
    _change(index, name, disabled_at=(at or now()).isoformat())


def set_password(index: Index, name: str, password: str) -> None:
    """Another password: whoever is signed in is out, an account that waits is free.

    Raises:
        InputError: The password is too short or too long.
        NotFoundError: There is no such account.
    """
    _change(index, name, password_hash=_hash(password), failures=0, locked_until=None)


def set_roles(index: Index, name: str, roles: Collection[Role]) -> None:
    """Other roles; whoever is signed in is out.

    Raises:
        InputError: They are not roles to give.
        NotFoundError: There is no such account.
    """
    require_roles(roles)
    _change(index, name, roles_json=sorted(set(roles)))


def _sign_in(index: Index, name: str, password: str, at: datetime) -> Account:
    # an UPDATE in each case: an unknown name is not to be told by how long its answer takes
    with index.write() as connection:
        row = connection.execute(select(account).where(account.c.name == name)).one_or_none()
        waits = row is None or row.disabled_at is not None or _is_locked(row, at)
        failures = 0 if row is None else row.failures + (not waits)
        until = row.locked_until if row is not None and waits else _wait_after(failures, at)
        connection.execute(
            account.update()
            .where(account.c.name == name)
            .values(failures=failures, locked_until=until)
        )
    with _verifying:
        right = _matches(_decoy if row is None else row.password_hash, password)
    if row is None or waits or not right:
        raise UnauthorizedError(
            "name and password open no account now",
            remedy="after several failures an account waits for up to a quarter of an hour",
        )
    kept: dict[str, Any] = {"failures": 0, "locked_until": None}
    if _hasher.check_needs_rehash(row.password_hash):
        kept["password_hash"] = _hasher.hash(_normal(password))
    with index.write() as connection:
        connection.execute(account.update().where(account.c.name == name).values(**kept))
        return _account(_row(connection, name))


def _change(index: Index, name: str, **values: Any) -> None:
    with index.write() as connection:
        _row(connection, name)
        connection.execute(account.update().where(account.c.name == name).values(**values))
        connection.execute(session.delete().where(session.c.account == LOCAL + name))


def _row(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(account).where(account.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError("there is no account of that name", remedy="contourcast accounts list")
    return row


def _is_locked(row: Row[Any], at: datetime) -> bool:
    return row.locked_until is not None and datetime.fromisoformat(row.locked_until) > at


def _wait_after(failures: int, at: datetime) -> str | None:
    """Until when an account waits: twice as long after each failure, up to a limit."""
    over = failures - FREE_FAILURES
    if over < 0:
        return None
    wait: timedelta = FIRST_WAIT * 2 ** min(over, 16)
    return (at + min(wait, LONGEST_WAIT)).isoformat()


def _hash(password: str) -> str:
    normal = _normal(password)
    if not SHORTEST <= len(normal) <= LONGEST:
        raise InputError(
            f"a password has {SHORTEST} to {LONGEST} characters", remedy="several words do well"
        )
    return _hasher.hash(normal)


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, _normal(password)[: LONGEST + 1])
    except VerifyMismatchError:
        return False


def _normal(password: str) -> bytes:
    """One spelling for one password, however a keyboard composes it."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def _account(row: Row[Any]) -> Account:
    return Account(
        name=row.name,
        roles=frozenset(map(Role, row.roles_json)),
        made_at=row.made_at,
        disabled_at=row.disabled_at,
        failures=row.failures,
        locked_until=row.locked_until,
    )
