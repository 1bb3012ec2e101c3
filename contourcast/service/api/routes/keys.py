"""Keys of programs, and accounts of people."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from contourcast.service.access.accounts import (
    Account,
    disable_account,
    list_accounts,
    make_account,
    set_password,
    set_roles,
)
from contourcast.service.access.keys import Key, list_keys, make_key, revoke_key
from contourcast.service.access.roles import Role
from contourcast.service.api.context import Context, in_thread
from contourcast.service.index.database import Index
from contourcast.service.problems import NotFoundError, document_for

LONGEST_PASSWORD = 1024  # that is looked at; what one may have, `accounts` says
LONGEST_DAYS = 36_500.0


class KeyItem(BaseModel):
    """A key without its secret."""

    id: str
    label: str
    roles: list[Role]
    made_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class KeysAnswer(BaseModel):
    """Every key that was ever made, the oldest first."""

    keys: list[KeyItem]


class KeyRequest(BaseModel):
    """What a new key is for."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field(max_length=128)
    roles: list[Role] = Field(min_length=1, max_length=16)
    days: float | None = Field(
        default=365.0, gt=0, le=LONGEST_DAYS, description="null: until it is revoked."
    )


class NewKeyAnswer(KeyItem):
    """A new key, with the secret that nobody is told again."""

    secret: str


class AccountItem(BaseModel):
    """A person without the password."""

    name: str
    roles: list[Role]
    made_at: str
    disabled_at: str | None
    failures: int
    locked_until: str | None


class AccountsAnswer(BaseModel):
    """Everybody who has an account here."""

    accounts: list[AccountItem]


class AccountRequest(BaseModel):
    """A new account."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(max_length=128)
    password: str = Field(max_length=LONGEST_PASSWORD, repr=False)
    roles: list[Role] = Field(min_length=1, max_length=16)


class AccountChange(BaseModel):
    """What is to be another; whoever is signed in under the name is out."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    roles: list[Role] | None = Field(default=None, min_length=1, max_length=16)
    password: str | None = Field(default=None, max_length=LONGEST_PASSWORD, repr=False)
    disabled: bool = Field(default=False, description="true: nobody signs in under it any more.")


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["access"])
    index = context.records.index

    @router.get("/v1/keys")
    async def get_keys() -> KeysAnswer:
        """Every key, without its secret."""
        return KeysAnswer(keys=[_key(key) for key in await in_thread(list_keys, index)])

    @router.post("/v1/keys", status_code=201, responses=document_for(409))
    async def post_key(wanted: KeyRequest, response: Response) -> NewKeyAnswer:
        """Make a key; its secret is told this once."""
        key, secret = await in_thread(
            lambda: make_key(index, label=wanted.label, roles=set(wanted.roles), days=wanted.days)
        )
        response.headers["Cache-Control"] = "no-store"
        return NewKeyAnswer(**_key(key).model_dump(), secret=secret)

    @router.delete("/v1/keys/{key}", status_code=204, responses=document_for(404))
    async def delete_key(key: str) -> None:
        """Revoke a key: from now on it opens nothing."""
        await in_thread(revoke_key, index, key)

    @router.get("/v1/accounts")
    async def get_accounts() -> AccountsAnswer:
        """Everybody who has an account here."""
        found = await in_thread(list_accounts, index)
        return AccountsAnswer(accounts=[_account(account) for account in found])

    @router.post("/v1/accounts", status_code=201, responses=document_for(409))
    async def post_account(wanted: AccountRequest) -> AccountItem:
        """Make an account for a person."""
        made = await in_thread(
            lambda: make_account(
                index, name=wanted.name, password=wanted.password, roles=set(wanted.roles)
            )
        )
        return _account(made)

    @router.patch("/v1/accounts/{name}", responses=document_for(404))
    async def patch_account(name: str, change: AccountChange) -> AccountItem:
        """Give other roles, another password, or close it."""
        return await in_thread(_changed, index, name, change)

    return router


def _changed(index: Index, name: str, change: AccountChange) -> AccountItem:
    if change.roles is not None:
        set_roles(index, name, set(change.roles))
    if change.password is not None:
        set_password(index, name, change.password)
    if change.disabled:
        disable_account(index, name)
    found = next((account for account in list_accounts(index) if account.name == name), None)
    if found is None:
        raise NotFoundError("there is no account of that name", remedy="see /v1/accounts")
    return _account(found)


def _key(key: Key) -> KeyItem:
    return KeyItem.model_validate(asdict(key) | {"roles": sorted(key.roles)})


def _account(account: Account) -> AccountItem:
    return AccountItem.model_validate(asdict(account) | {"roles": sorted(account.roles)})
