"""``python -m contourcast.service.jobs.worker``: runs jobs; the server starts it."""

from __future__ import annotations

import threading

from contourcast.service.children import until_abandoned
from contourcast.service.settings import ServiceSettings
from contourcast.service.store.disk import exclusive


def run(settings: ServiceSettings, stop: threading.Event) -> None:
    """Works until told to stop; one process for each worker slot of a machine.

    Raises:
        SettingsError: The settings cannot be followed.
    """
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with exclusive(settings.data_folder / f"{settings.worker_slot}.lock", wait=True):
        from contourcast.service.jobs.work import work

        work(settings, stop)


if __name__ == "__main__":
    until_abandoned(run)
