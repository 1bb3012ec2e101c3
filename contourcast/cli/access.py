"""Keys for programs and accounts for people, on the machine that has the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from contourcast.cli.terminal import OneLineErrors

if TYPE_CHECKING:
    from contourcast.service.access.audit import Happening
    from contourcast.service.access.roles import Role
    from contourcast.service.index.database import Index

keys = typer.Typer(cls=OneLineErrors, no_args_is_help=True, help="Make, list and revoke API keys.")
accounts = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, help="Make, list and disable people's accounts."
)

Database = Annotated[
    str, typer.Option(help="Database of the service; left out: as the settings say.")
]
Roles = Annotated[
    list[str], typer.Option("--role", help="What it may do; may be given more than once.")
]
Name = Annotated[str, typer.Argument(help="Name of the account.")]


@keys.command("make")
def make(
    label: Annotated[str, typer.Argument(help="Who or what it is for.")],
    role: Roles,
    days: Annotated[float, typer.Option(help="Days that it opens; 0: until revoked.")] = 365.0,
    database: Database = "",
) -> None:
    """Make a key and print it, once: it cannot be shown again."""
    from contourcast.service.access.keys import make_key

    with opened(database) as index:
        key, secret = make_key(index, label=label, roles=_roles(role), days=days or None)
        _record(index, "keys make", key.id)
    typer.echo(secret)
    until = key.expires_at or "it is revoked"
    typer.echo(f"key {key.id} opens as {', '.join(sorted(key.roles))} until {until}", err=True)


@keys.command("list")
def list_all(database: Database = "") -> None:
    """List all keys that were ever made, without their secrets."""
    from contourcast.service.access.keys import list_keys

    with opened(database) as index:
        for key in list_keys(index):
            ended = f"revoked {key.revoked_at}" if key.revoked_at else f"until {key.expires_at}"
            used = f"used {key.last_used_at}" if key.last_used_at else "never used"
            typer.echo(f"{key.id}  {', '.join(sorted(key.roles))}  {ended}  {used}  {key.label}")


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, from the list.")], database: Database = ""
) -> None:
    """From now on a key opens nothing."""
    from contourcast.service.access.keys import revoke_key

    with opened(database) as index:
        revoke_key(index, key)
        _record(index, "keys revoke", key)


@accounts.command("make")
def make_person(name: Name, role: Roles, database: Database = "") -> None:
    """Make an account; its password is asked for, or read from a pipe."""
    from contourcast.service.access.accounts import make_account

    with opened(database) as index:
        make_account(index, name=name, password=_password(), roles=_roles(role))
        _record(index, "accounts make", name)


@accounts.command("list")
def list_people(database: Database = "") -> None:
    """List all accounts."""
    from contourcast.service.access.accounts import list_accounts

    with opened(database) as index:
        for person in list_accounts(index):
            state = f"disabled {person.disabled_at}" if person.disabled_at else "open"
            if person.locked_until and not person.disabled_at:
                state = f"waits until {person.locked_until}"
            typer.echo(f"{person.name}  {', '.join(sorted(person.roles))}  {state}")


@accounts.command("disable")
def disable(name: Name, database: Database = "") -> None:
    """Nobody signs in under that name any more, and whoever has is out."""
    from contourcast.service.access.accounts import disable_account

    with opened(database) as index:
        disable_account(index, name)
        _record(index, "accounts disable", name)


@accounts.command("password")
def password(name: Name, database: Database = "") -> None:
    """Set another password; whoever is signed in under that name is out."""
    from contourcast.service.access.accounts import set_password

    with opened(database) as index:
        set_password(index, name, _password())
        _record(index, "accounts password", name)


@contextmanager
def opened(database: str) -> Iterator[Index]:
    """The index of the settings, or another one, with its log guarded."""
    from contourcast.service.access.audit import guard
    from contourcast.service.index.database import Index
    from contourcast.service.settings import ServiceSettings

    settings = ServiceSettings()
    if not (database or settings.database_url):
        settings.data_folder.mkdir(parents=True, exist_ok=True)
    index = Index(database or settings.index_url)
    try:
        guard(index)
        yield index
    finally:
        index.close()


def happened(action: str, *objects: str) -> Happening:
    """What the person at this machine's command line changed."""
    import getpass

    from contourcast.service.access.audit import Happening
    from contourcast.service.access.roles import What

    who = f"shell:{getpass.getuser()}"
    return Happening(what=What.SETTING, who=who, action=f"contourcast {action}", objects=objects)


def _record(index: Index, action: str, *objects: str) -> None:
    from contourcast.service.access.audit import record

    record(index, happened(action, *objects))


def _roles(named: list[str]) -> list[Role]:
    from contourcast.imaging.errors import InputError
    from contourcast.service.access.roles import GIVEN, Role

    known = {role.value for role in GIVEN}
    for name in named:
        if name not in known:
            raise InputError(
                "that is not a role to give", remedy=f"choose of {', '.join(sorted(known))}"
            )
    return [Role(name) for name in named]


def _password() -> str:
    import sys

    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")
