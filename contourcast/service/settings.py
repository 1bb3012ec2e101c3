"""Every setting of the service: environment variables ``CONTOURCAST_*``, or a TOML file."""

from __future__ import annotations

import os
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from contourcast.imaging.dicom.modules import SERIES_NUMBER
from contourcast.service.access.settings import AccessSettings
from contourcast.service.pacs.destinations import Destination

FILE_VARIABLE = "CONTOURCAST_SETTINGS_FILE"


def _known_zone(name: str) -> str:
    _zone(name)
    return name


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # which needs no table of the world's zones
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone is called '{name}'; one is Europe/Zurich") from error


class ServiceSettings(BaseSettings):
    """Read once at the start and passed on; no algorithm reads the environment.

    An environment variable wins over the TOML file that ``CONTOURCAST_SETTINGS_FILE`` names, and
    what is passed in code wins over both.
    """

    model_config = SettingsConfigDict(env_prefix="CONTOURCAST_", extra="forbid", frozen=True)

    data_folder: Path = Field(
        default=Path.home() / ".local" / "share" / "contourcast",
        description="Folder of everything that the service keeps.",
    )
    database_url: str = Field(
        default="",
        description="Database of the index and of jobs, postgresql://USER@HOST/NAME; left out: "
        "SQLite files in the data folder, for one machine.",
    )
    store: str = Field(
        default="",
        description="Where files lie: file:///FOLDER (all machines must see it), "
        "s3://BUCKET/PREFIX?endpoint=https://HOST, dicomweb+https://HOST/PATH; left out: in the "
        "data folder.",
    )
    store_user: str = Field(default="", description="Access key or user, where the store has one.")
    store_password_env: str = Field(
        default="", description="Environment variable of the store's secret key or password."
    )
    store_cache_gib: float = Field(
        default=50.0, gt=0, description="Copies of what lies elsewhere, on this machine, GiB."
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; beyond loopback only once there is a credential.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    internal_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="TCP port on which whoever reaches it is told /health and /metrics without a "
        "credential, and nothing else; left out: there is none.",
    )

    access: AccessSettings = Field(
        default_factory=AccessSettings, description="Who may enter; see docs/security.md."
    )
    dicom_aet: str = Field(
        default="CONTOURCAST", min_length=1, max_length=16, description="AE title of our node."
    )
    dicom_host: str = Field(default="127.0.0.1", description="Address that the node listens on.")
    dicom_port: int = Field(default=11112, ge=0, le=65535, description="TCP port of the node.")
    dicom_callers: dict[str, tuple[str, ...]] = Field(
        default={},
        description="Who may call the node: AE title and the addresses or networks it calls from.",
    )
    dicom_certificate: Path | None = Field(
        default=None, description="PEM file; with it, the node speaks TLS."
    )
    dicom_key: Path | None = Field(default=None, description="PEM file of its key.")
    dicom_authority: Path | None = Field(
        default=None, description="PEM file of who must have signed the callers' certificates."
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where registration and networks run."
    )
    weights: Path | None = Field(
        default=None, description="Model folder of the network; none: the one that is shipped."
    )
    intake: Literal["automatic", "on_request"] = Field(
        default="automatic",
        description="Whether each CBCT that arrives is matched and drawn on by itself.",
    )
    methods: tuple[str, ...] = Field(
        default=(), description="What is drawn on what arrives by itself; left out: all methods."
    )
    rules: Path | None = Field(
        default=None, description="TOML file of the site's rules (docs/rules.md); none: ours."
    )
    waiting_limit: int = Field(
        default=2000,
        ge=1,
        description="Propagations that may wait or run before more cannot be asked for, and scans "
        "of cohorts stay unmatched; those of today's fractions that arrive are always taken.",
    )
    jobs_at_once: int = Field(
        default=0,
        ge=0,
        description="Steps that compute side by side in a worker; 0: half of the processors.",
    )
    gpu_draws: int = Field(
        default=500,
        ge=0,
        description="Networks that a worker draws on a GPU before it ends itself, so that its "
        "supervisor starts it anew; 0: it never does.",
    )
    queues: str = Field(
        default="",
        description="Queues that a worker serves, joined by commas: cpu, gpu, course, cohort, "
        "deliver; left out: all.",
    )
    worker_slot: str = Field(
        default="worker-1",
        min_length=1,
        description="Name of this worker; a job that it left is taken up under the same name.",
    )

    time_zone: Annotated[str, AfterValidator(_known_zone)] = Field(
        default="UTC",
        description="Name of the site's time zone, such as Europe/Zurich: dates and times of what "
        "is written in DICOM are by its clocks; the same for all processes of a site.",
    )
    series_number: int = Field(
        default=SERIES_NUMBER,
        ge=1,
        le=2**31 - 4,
        description="Series Number of structure sets; registrations, pictures and reports have "
        "the next three.",
    )
    destinations: tuple[Destination, ...] = Field(
        default=(), description="Where results and notices go; see docs/destinations.md."
    )

    request_limit_mib: int = Field(default=2048, ge=1, description="Largest request body, MiB.")
    file_limit_mib: int = Field(default=256, ge=1, description="Largest DICOM file, MiB.")
    unpacked_limit_mib: int = Field(default=4096, ge=1, description="Largest zip, unpacked, MiB.")
    zip_ratio_limit: int = Field(
        default=50, ge=1, description="Unpacked bytes for each packed byte, at most."
    )
    files_limit: int = Field(default=5000, ge=1, description="Files in one request, at most.")
    requests_each_minute: int = Field(
        default=6000,
        ge=0,
        description="Requests of one key to one API process; a minute's worth may come at once; "
        "0: as many as there are.",
    )
    uploads_at_once: int = Field(default=64, ge=1, description="Uploads taken at the same time.")
    upload_memory_mib: int = Field(
        default=256, ge=0, description="Uploads wait in this much memory, then on disk, MiB."
    )
    upload_idle_s: float = Field(
        default=60.0, gt=0, description="Seconds without a byte after which an upload is given up."
    )
    disk_reserve_mib: int = Field(
        default=1024, ge=0, description="Free space below which nothing more is taken in, MiB."
    )

    @property
    def zone(self) -> tzinfo:
        """The site's time zone."""
        return _zone(self.time_zone)

    @property
    def index_url(self) -> str:
        """The database of the index."""
        return self.database_url or f"sqlite:///{self.data_folder / 'index.sqlite3'}"

    @property
    def store_url(self) -> str:
        """Where files lie."""
        return self.store or (self.data_folder.absolute() / "store").as_uri()

    @property
    def jobs_url(self) -> str:
        """The database of the job engine's own tables."""
        return self.database_url or f"sqlite:///{self.data_folder / 'jobs.sqlite3'}"

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Code, then environment, then the TOML file."""
        named = os.environ.get(FILE_VARIABLE)
        if not named:
            return init_settings, env_settings
        toml = TomlConfigSettingsSource(settings_cls, toml_file=Path(named))
        return init_settings, env_settings, toml
