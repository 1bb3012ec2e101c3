"""Keys for programs: 256 random bits, shown once, of which only the digest is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, select

from contourcast.imaging.errors import InputError
from contourcast.service.access.roles import GIVEN, Role
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import api_key
from contourcast.service.problems import NotFoundError

PREFIX: Final = "contourcast_"  # so that scanners for leaked secrets can know one
KEY_BYTES: Final = 32
# A use is written down when the last one that was is older than this.
USED_EVERY: Final = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key without its secret."""

    id: str
    label: str
    roles: frozenset[Role]
    made_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None

    def opens(self, at: datetime) -> bool:
        """Whether it still lets somebody in."""
        expired = self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= at
        return self.revoked_at is None and not expired


def make_key(
    index: Index,
    *,
    label: str,
    roles: Collection[Role],
    days: float | None,
    at: datetime | None = None,
) -> tuple[Key, str]:
    """A new key and its secret, which nobody can be told again.

    Args:
        index: Where it is kept.
        label: Who or what it is for.
        roles: What it may do.
        days: How long; none: until it is revoked.
        at: The time; none: now.

    Raises:
        InputError: The label or the roles are not what they have to be.
    """
    at = at or now()
    require_name(label)
    require_roles(roles)
    if days is not None and days <= 0:
        raise InputError("a key that has expired opens nothing", remedy="give it more than 0 days")
    secret = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    key = Key(
        id=secrets.token_hex(8),
        label=label,
        roles=frozenset(roles),
        made_at=at.isoformat(),
        expires_at=None if days is None else (at + timedelta(days=days)).isoformat(),
        last_used_at=None,
        revoked_at=None,
    )
    row = {
        "id": key.id,
        "digest": digest_of(secret),
        "label": label,
        "roles_json": sorted(key.roles),
        "made_at": key.made_at,
        "expires_at": key.expires_at,
    }
    with index.write() as connection:
        connection.execute(api_key.insert().values(**row))
    return key, secret


def find_key(index: Index, secret: str, *, at: datetime | None = None) -> Key | None:
    """The key of a secret, if it still opens; that it was used is written down.

    It is looked up by its digest: what an attacker could learn from how long that takes is of
    the digest, which leads nowhere.
    """
    at = at or now()
    wanted = api_key.c.digest == digest_of(secret)
    with index.read() as connection:
        row = connection.execute(select(api_key).where(wanted)).one_or_none()
    if row is None:
        return None
    key = _key(row)
    if not key.opens(at):
        return None
    if key.last_used_at is None or datetime.fromisoformat(key.last_used_at) <= at - USED_EVERY:
        with index.write() as connection:
            connection.execute(api_key.update().where(wanted).values(last_used_at=at.isoformat()))
    return key


def list_keys(index: Index) -> list[Key]:
    """All keys that were ever made, the oldest first."""
    with index.read() as connection:
        rows = connection.execute(select(api_key).order_by(api_key.c.made_at, api_key.c.id))
        return [_key(row) for row in rows]


def revoke_key(index: Index, key_id: str, *, at: datetime | None = None) -> None:
    """From now on it opens nothing; it stays in the list.

    Raises:
        NotFoundError: There is no such key.
    """
    when = (at or now()).isoformat()
    with index.write() as connection:
        known = connection.execute(
            select(api_key.c.revoked_at).where(api_key.c.id == key_id)
        ).one_or_none()
        if known is None:
            raise NotFoundError("there is no key of that id", remedy="contourcast keys list")
        if known.revoked_at is None:
            connection.execute(
                api_key.update().where(api_key.c.id == key_id).values(revoked_at=when)
            )


def any_key(index: Index) -> bool:
    """Whether a key was ever made: the last one's end must not open the door to everybody."""
    with index.read() as connection:
        return connection.execute(select(api_key.c.id).limit(1)).first() is not None


def digest_of(secret: str) -> str:
    """SHA-256, in hex; enough for 256 random bits, which nobody can guess at any speed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def require_name(name: str) -> None:
    """What a key, an account or a person may be called.

    Raises:
        InputError: It is empty, long, or has what cannot be printed.
    """
    if not (0 < len(name) <= 128 and name.isprintable() and name == name.strip()):
        raise InputError(
            "a name has 1 to 128 printable characters, and no blank at its ends",
            remedy="choose another",
        )


def require_roles(roles: Collection[Role]) -> None:
    """At least one role, of those that can be given.

    Raises:
        InputError: They are not.
    """
    if not roles or not set(roles) <= GIVEN:
        raise InputError(
            "that is not a role to give", remedy=f"choose of {', '.join(sorted(GIVEN))}"
        )


def _key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        label=row.label,
        roles=frozenset(map(Role, row.roles_json)),
        made_at=row.made_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
