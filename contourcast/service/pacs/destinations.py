"""Where results go: destinations as data of the settings.

A destination has a name, an address, the names of the environment variables that hold its
credentials, and what it gets. Nothing is ever sent to an address that is not among them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from contourcast.service.pacs.profiles import PROFILES, Profile
from contourcast.service.problems import SettingsError

Verdict = Literal["accept", "look", "reject"]
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=100)]


class _Destination(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="What it is called everywhere."
    )


class _Archive(_Destination):
    """A system that keeps DICOM objects, and what it gets."""

    structure_set: bool = Field(default=True, description="The proposals, UNAPPROVED.")
    registration: bool = Field(
        default=True, description="The Spatial Registration, never with the verdict reject."
    )
    signed: bool = Field(default=True, description="What a person has signed, APPROVED.")
    secondary_capture: bool = Field(
        default=False, description="One picture: three planes, contours, verdict."
    )
    pdf: bool = Field(default=False, description="The report on one page.")
    segmentation: bool = Field(
        default=False, description="The proposals as masks, never with the verdict reject."
    )
    verdicts: tuple[Verdict, ...] = Field(
        default=("accept", "look", "reject"), description="With which of them it gets anything."
    )
    cohorts: bool = Field(default=False, description="Also what belongs to an evaluation.")
    profile: str | Profile = Field(
        default="default", description="How structure sets are written: a name, or five lines."
    )
    confirm: bool = Field(
        default=True, description="Whether it is asked, a minute later, if all is really there."
    )
    fetch: bool = Field(
        default=False, description="Whether it is asked, by itself, for what is missing here."
    )

    @field_validator("profile")
    @classmethod
    def _known(cls, profile: str | Profile) -> str | Profile:
        if isinstance(profile, str) and profile not in PROFILES:
            raise ValueError(f"there are the profiles {', '.join(PROFILES)}")
        return profile

    @property
    def written_as(self) -> Profile:
        """The profile itself."""
        return self.profile if isinstance(self.profile, Profile) else PROFILES[self.profile]


class _OverHttp(BaseModel):
    url: str = Field(description="http:// or https://, without credentials.")
    user: str = Field(default="", description="For HTTP Basic.")
    password_env: Variable | None = Field(default=None, description="Variable of its password.")
    token_env: Variable | None = Field(default=None, description="Variable of a Bearer token.")
    ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM.")
    timeout_s: float = Field(default=30.0, gt=0, description="Without a byte, seconds.")


class OrthancDestination(_Archive, _OverHttp):
    """An Orthanc, over its REST API."""

    kind: Literal["orthanc"] = "orthanc"
    watch: bool = Field(
        default=False, description="Whether what arrives there is taken in here, by itself."
    )


class _Surveyed(BaseModel):
    """An archive without a diary: what arrived there is found out by asking."""

    watch: bool = Field(
        default=False,
        description="Whether it is asked for CT series of the last days, and those are taken in "
        "with what belongs to them.",
    )
    watch_every_s: float = Field(
        default=60.0, ge=10.0, le=3600.0, description="Until it is asked for them again, seconds."
    )
    watch_days: int = Field(
        default=2, ge=1, le=14, description="How many days before today are looked through."
    )


class DicomWebDestination(_Archive, _OverHttp, _Surveyed):
    """An archive that speaks DICOMweb; the URL is that of its root."""

    kind: Literal["dicomweb"] = "dicomweb"


class DimseDestination(_Archive, _Surveyed):
    """A DICOM node."""

    kind: Literal["dimse"] = "dimse"
    host: str
    port: int = Field(ge=1, le=65535)
    aet: str = Field(description="Its AE title.")
    our_aet: str = Field(default="CONTOURCAST", description="As which we call it.")
    commitment: bool = Field(
        default=False,
        description="Whether it is asked for storage commitment first; it answers to our node.",
    )
    tls: bool = False
    certificate: Path | None = Field(default=None, description="Ours, PEM.")
    key: Path | None = Field(default=None, description="Of our certificate, PEM.")
    authority: Path | None = Field(default=None, description="Who signed its certificate, PEM.")
    timeout_s: float = Field(default=60.0, gt=0, description="Until it answers, seconds.")


class WebhookDestination(_Destination, _OverHttp):
    """A program that is told what happened; it gets notices, no objects."""

    kind: Literal["webhook"] = "webhook"
    secret_env: Variable = Field(
        description="Variable of the secret that signs; two of them, with a blank between, while "
        "it is exchanged."
    )
    kinds: tuple[str, ...] | None = Field(
        default=None, description="Of which notices it is told; left out: of all."
    )


Surveyed = DicomWebDestination | DimseDestination
Archive = OrthancDestination | Surveyed
Destination = Annotated[Archive | WebhookDestination, Field(discriminator="kind")]


def webhooks(destinations: Sequence[Destination]) -> tuple[WebhookDestination, ...]:
    """Those that are told, and sent nothing."""
    return tuple(d for d in destinations if isinstance(d, WebhookDestination))


def by_name(destinations: Sequence[Destination]) -> dict[str, Destination]:
    """Destinations by their names.

    Raises:
        SettingsError: Two have one name.
    """
    named = {one.name: one for one in destinations}
    if len(named) != len(destinations):
        raise SettingsError(
            "two destinations have one name",
            remedy="name each differently: its deliveries are filed under it",
        )
    return named


def require_ready(destinations: Sequence[Destination]) -> None:
    """Refuses to begin without a credential, or a library, that a destination needs.

    Raises:
        SettingsError: An environment variable is not there, or what writes PDF is not.
    """
    for one in destinations:
        if isinstance(one, OrthancDestination | DicomWebDestination | WebhookDestination):
            for variable in (one.password_env, one.token_env):
                secret(one, variable)
        if isinstance(one, WebhookDestination):
            secret(one, one.secret_env)
        elif one.pdf and importlib.util.find_spec("reportlab") is None:
            raise SettingsError(
                f"the destination '{one.name}' wants a PDF, and what writes one is not installed",
                remedy="pip install contourcast[report], or set pdf = false",
            )


def secret(destination: Destination, variable: str | None) -> str:
    """What an environment variable holds; empty where none is named.

    Raises:
        SettingsError: It is named and not there.
    """
    if variable is None:
        return ""
    value = os.environ.get(variable, "")
    if not value:
        raise SettingsError(
            f"the environment variable {variable} is empty, which the destination "
            f"'{destination.name}' needs",
            remedy="set it for every process of the service",
        )
    return value
