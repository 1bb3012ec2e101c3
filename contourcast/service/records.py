"""Everything that the service keeps, opened from the settings by each of its processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from contourcast.service.archive import Archive
from contourcast.service.index.database import Index
from contourcast.service.jobs.derived import Derived
from contourcast.service.jobs.propagations import Propagations
from contourcast.service.jobs.workers import Workers
from contourcast.service.outputs.site import Site
from contourcast.service.pacs.destinations import webhooks
from contourcast.service.pacs.notices import Notices
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.open import GIB, Credentials, open_store

MIB: Final = 1024 * 1024


@runtime_checkable
class Closing(Protocol):
    """A store with connections."""

    def close(self) -> None:
        """Ends them."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """One index and one store, and what is asked of them."""

    index: Index
    archive: Archive
    propagations: Propagations
    derived: Derived
    workers: Workers
    notices: Notices
    site: Site

    def close(self) -> None:
        """Lets go of the database, and of what the store holds open."""
        if isinstance(self.archive.blobs, Closing):
            self.archive.blobs.close()
        self.index.close()


def open_records(settings: ServiceSettings, *, role: str) -> Records:
    """Opens, and at the very first time makes, index and store.

    Args:
        settings: Where they lie.
        role: The process that opens them; each has a folder of its own for files on their way in,
            so that none tidies up after another.

    Raises:
        SettingsError: They cannot be where the settings say.
        BusyError: The database cannot be reached.
    """
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    index = Index(settings.index_url)
    archive = Archive(
        index,
        open_store(
            settings.store_url,
            folder=settings.data_folder,
            cache_bytes=round(settings.store_cache_gib * GIB),
            credentials=Credentials(
                user=settings.store_user,
                password=os.environ.get(settings.store_password_env, ""),
            ),
        ),
        incoming=settings.data_folder / "incoming" / role,
        disk_reserve_bytes=settings.disk_reserve_mib * MIB,
    )
    notices = Notices(index, webhooks(settings.destinations))
    return Records(
        index=index,
        archive=archive,
        propagations=Propagations(index, told=notices.of_state),
        derived=Derived(archive),
        workers=Workers(index),
        notices=notices,
        site=Site(zone=settings.zone, series_number=settings.series_number),
    )
