"""What a site decides about who may enter."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from contourcast.service.access.roles import GIVEN, Role

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class OidcSettings(BaseModel):
    """One issuer of identities (OpenID Connect Core 1.0)."""

    model_config = _FROZEN

    issuer: str = Field(description="Its address, as in the `iss` of its tokens.")
    client_id: str = Field(min_length=1, description="What the issuer calls this service.")
    client_secret_file: Path | None = Field(
        default=None, description="File with the client's secret; none: a public client with PKCE."
    )
    audience: str = Field(
        default="", description="The `aud` of access tokens that programs send; left out: none may."
    )
    redirect_url: str = Field(
        default="", description="Our /v1/session/oidc/callback as browsers reach it."
    )
    name_claim: str = Field(default="preferred_username", description="Who a person is, in words.")
    roles_claim: str = Field(
        default="groups", description="Claim with the groups; dots lead into objects."
    )
    roles: dict[str, Role] = Field(description="The role that a group gives; others give none.")

    @field_validator("roles")
    @classmethod
    def _only_given(cls, roles: dict[str, Role]) -> dict[str, Role]:
        _require_given(set(roles.values()))
        return roles


class AccessSettings(BaseModel):
    """Who may enter, and how; as it comes, whoever is on this machine and nobody else."""

    model_config = _FROZEN

    loopback_trial: bool = Field(
        default=True,
        description="While there is no credential, this machine alone may do all but sign.",
    )
    oidc: OidcSettings | None = Field(default=None, description="Sign-in at the site's issuer.")
    local_accounts: bool = Field(default=False, description="Names and passwords kept here.")
    proxy_addresses: tuple[str, ...] = Field(
        default=(), description="Addresses or networks of proxies whose headers are believed."
    )
    identity_header: str = Field(
        default="", description="Header in which those proxies name the client's certificate."
    )
    identities: dict[str, frozenset[Role]] = Field(
        default={}, description="Roles of each name that may come in that header."
    )
    names_shown_to: frozenset[Role] = Field(
        default=frozenset({Role.VIEWER, Role.REVIEWER}),
        description="Whom the worklist and the review page tell name and birth date of a patient; "
        "others, the ID alone. Files are as they are.",
    )
    session_hours: float = Field(default=10.0, gt=0, le=24, description="How long a sign-in lasts.")
    sign_proof_minutes: float = Field(
        default=10.0,
        gt=0,
        description="How long a credential that was shown for a signature may wait for it.",
    )
    secure_cookies: bool = Field(
        default=True, description="Cookies over TLS (or loopback) alone; off for plain-HTTP tests."
    )

    @field_validator("proxy_addresses")
    @classmethod
    def _networks(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            ipaddress.ip_network(address)
        return addresses

    @field_validator("identities")
    @classmethod
    def _only_given(cls, identities: dict[str, frozenset[Role]]) -> dict[str, frozenset[Role]]:
        for roles in identities.values():
            _require_given(set(roles))
        return identities

    @field_validator("names_shown_to")
    @classmethod
    def _only_given_roles(cls, roles: frozenset[Role]) -> frozenset[Role]:
        _require_given(set(roles))
        return roles

    def shows_names(self, roles: frozenset[Role]) -> bool:
        """Whether somebody of these roles is told patients' names."""
        return bool(roles & (self.names_shown_to | {Role.INTERNAL}))

    @model_validator(mode="after")
    def _header_needs_proxies(self) -> AccessSettings:
        if self.identity_header and not self.proxy_addresses:
            raise ValueError("identity_header needs proxy_addresses: who may send it")
        return self


def _require_given(roles: set[Role]) -> None:
    if not roles <= GIVEN:
        raise ValueError(f"nobody can be given the role '{next(iter(roles - GIVEN))}'")
