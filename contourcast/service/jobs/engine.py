"""The job engine, and the one module that starts it: DBOS on the service's own database.

The rules that DBOS needs (each tried, see docs/decisions): JSON instead of pickle in its tables;
an executor id that stays the same, with one live process for it; a version of ours, so that an
upgrade does not orphan running work; steps that are harmless twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, Queue

from contourcast.service.jobs.queues import ASKED_EVERY_S, limits
from contourcast.service.settings import ServiceSettings

# Raised when the steps change, and only then: a worker takes up jobs of its own version alone.
WORKFLOW_VERSION: Final = "2"
POLL_S: Final = 0.2


@contextlib.contextmanager
def running(settings: ServiceSettings, listen: Sequence[str]) -> Iterator[Mapping[str, Queue]]:
    """The engine, from its launch to its end; gives every queue by name.

    The workflows must be defined before.

    Args:
        settings: The database and the name of this worker.
        listen: Queues whose work is done here.
    """
    DBOS(config=_config(settings))
    DBOS.listen_queues(list(listen))
    DBOS.launch()
    try:
        yield {
            name: DBOS.register_queue(
                name,
                polling_interval_sec=ASKED_EVERY_S[name],
                on_conflict="always_update",
                worker_concurrency=limit.get("worker_concurrency"),
                global_concurrency=limit.get("global_concurrency"),
                partition_concurrency=limit.get("partition_concurrency"),
            )
            for name, limit in limits(settings.jobs_at_once).items()
        }
    finally:
        DBOS.destroy()


def _config(settings: ServiceSettings) -> DBOSConfig:
    return {
        "name": "contourcast",
        "system_database_url": settings.jobs_url,
        "application_version": WORKFLOW_VERSION,
        "executor_id": settings.worker_slot,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
        "notification_listener_polling_interval_sec": POLL_S,
    }
