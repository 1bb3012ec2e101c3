"""What tests of who-may-what share: an index on each database, callers, a clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from contourcast.service.access.caller import Caller
from contourcast.service.access.roles import Role
from contourcast.service.index.database import Index
from support.postgres import Cluster, postgres

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PASSWORD = "seven small green apples"


def after(**duration: float) -> datetime:
    """A time after `NOON`."""
    return NOON + timedelta(**duration)


def caller(*roles: Role, kind: Literal["key", "person", "loopback"] = "person") -> Caller:
    """Somebody with roles."""
    name = {"key": "key:0123456789abcdef", "person": "local:ann", "loopback": "loopback"}[kind]
    return Caller(name=name, kind=kind, roles=frozenset(roles), address="10.0.0.9")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.peer)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'index.sqlite3'}"
    return str(request.getfixturevalue("cluster").database("access"))


@pytest.fixture
def index(url: str) -> Iterator[Index]:
    made = Index(url)
    yield made
    made.close()
