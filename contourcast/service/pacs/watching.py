"""Archives that are watched: what arrives there is taken in here, told or not.

An Orthanc has a diary, which is read here; others are asked what they have (see `surveys`). Where
we are in a diary, and what its archive counted of each series, is written down in one transaction
with nothing in between, so that whatever dies, the next look finds the same again.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import select

from contourcast.service.doors import ArchiveDoor
from contourcast.service.index import cursors
from contourcast.service.index.database import Index
from contourcast.service.index.tables import series
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import LOST
from contourcast.service.jobs.duties import Duty
from contourcast.service.pacs import hints
from contourcast.service.pacs.destinations import (
    Archive,
    Destination,
    OrthancDestination,
    WebhookDestination,
)
from contourcast.service.pacs.orthanc import Orthanc
from contourcast.service.pacs.reconcile import Count, Look, Memory, Position, Reconciler
from contourcast.service.pacs.surveys import Survey
from contourcast.service.pacs.ways import http_peer
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

EVERY_S: Final = 20.0
# A hint is looked for so often; each costs one small query.
HINT_EVERY_S: Final = 1.0
# SOP Instance UIDs of one archive that were not taken and are not asked for again.
REFUSED_AT_MOST: Final = 10_000

log = structlog.get_logger()


def watched(destinations: Sequence[Destination]) -> tuple[Archive, ...]:
    """Those of which the arrivals are taken in."""
    return tuple(d for d in destinations if not isinstance(d, WebhookDestination) and d.watch)


def watching(settings: ServiceSettings, records: Records) -> list[Duty]:
    """A duty for each archive that is watched."""
    return [
        Duty(
            name=f"watch-{archive.name}",
            every_s=HINT_EVERY_S,
            run=_looker(archive, settings, records),
        )
        for archive in watched(settings.destinations)
    ]


def hint(index: Index, archive: str) -> None:
    """Something arrived at an archive: the next look is now."""
    hints.add(index, archive)


def _looker(archive: Archive, settings: ServiceSettings, records: Records) -> Callable[[], object]:
    if isinstance(archive, OrthancDestination):
        return _reader(archive, settings, records)
    return Survey(archive, settings, records).look


def _reader(
    archive: OrthancDestination, settings: ServiceSettings, records: Records
) -> Callable[[], None]:
    door = ArchiveDoor(records.archive, settings)
    place = _Place(records, archive.name)
    folder = settings.data_folder / "incoming" / settings.worker_slot
    client = Orthanc(http_peer(archive))
    reconciler = Reconciler(client, door, place, place, folder=folder)
    due_s, followed = -math.inf, -1

    def look() -> None:
        nonlocal due_s, followed
        hints = place.hints()
        if time.monotonic() < due_s and hints == followed:
            return
        due_s, followed = time.monotonic() + EVERY_S, hints
        while not reconciler.look(records.index.now()).done:
            pass

    return look


class _Place:
    """How far an archive was read (see `reconcile.Cursor`), and what we have (`Holdings`)."""

    def __init__(self, records: Records, archive: str) -> None:
        self._records = records
        self._index = records.index
        self._archive = archive
        self._arriving = Arriving(records.index, records.notices)

    def get(self) -> Memory:
        """What the last look left."""
        kept = self._kept()
        position = kept.get("position")
        with self._index.read() as at:
            whole = set(
                at.execute(select(series.c.uid).where(series.c.state == "whole")).scalars()
                if kept.get("waiting")
                else ()
            )
        return Memory(
            position=None if position is None else Position(**position),
            waiting=tuple(
                _count(each)
                for each in kept.get("waiting", [])
                if each["series_instance_uid"] not in whole
            ),
            failed=tuple(kept.get("failed", [])),
        )

    def set(self, look: Look) -> None:
        """Writes down position, counts, refusals and failures, in one transaction."""
        kept = self._kept()
        waiting = {each["orthanc_id"]: each for each in kept.get("waiting", [])}
        waiting |= {count.orthanc_id: _plain(count) for count in look.counts}
        refused = [*kept.get("refused", []), *look.refused][-REFUSED_AT_MOST:]
        value = {
            "position": {"seq": look.position.seq, "mark": look.position.mark},
            "waiting": [each for each in waiting.values() if self._is_open(each)],
            "failed": list(look.failed),
            "refused": refused,
            "looked_at": self._index.now().isoformat(),
        }
        with self._index.write() as at:
            cursors.write(self._index, at, _name_of(self._archive), value)
            for count in look.counts:
                self._arriving.counted_within(at, count.series_instance_uid, count.instances)

    def known(self, series_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs that need not be pulled: held, or refused for good."""
        here = {k.sop_uid for k in self._records.archive.instances_of(series_instance_uid)}
        return here | set(self._kept().get("refused", []))

    def md5(self, sop_instance_uid: str) -> str:
        """The digest of the file that we hold; empty where it is ours, not here, or lost."""
        kept = self._records.archive.instance(sop_instance_uid)
        if kept is None:
            return ""
        try:
            path = self._records.archive.path(kept)
        except LOST as error:
            log.warning("file_lost", series=kept.series_uid, kind=error.code)
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()

    def hints(self) -> int:
        """How often the archive told of something."""
        with self._index.read() as at:
            return hints.count(at, self._archive)

    def _is_open(self, count: dict[str, Any]) -> bool:
        with self._index.read() as at:
            state = at.execute(
                select(series.c.state).where(series.c.uid == count["series_instance_uid"])
            ).scalar()
        return state is not None and state != "whole"

    def _kept(self) -> dict[str, Any]:
        with self._index.read() as at:
            return cursors.note(at, _name_of(self._archive)) or {}


def _name_of(archive: str) -> str:
    return f"diary:{archive}"


def _plain(count: Count) -> dict[str, Any]:
    return {
        "series_instance_uid": count.series_instance_uid,
        "orthanc_id": count.orthanc_id,
        "instances": count.instances,
        "first_at": count.first_at.isoformat(),
        "last_at": count.last_at.isoformat(),
    }


def _count(kept: dict[str, Any]) -> Count:
    return Count(
        series_instance_uid=kept["series_instance_uid"],
        orthanc_id=kept["orthanc_id"],
        instances=kept["instances"],
        first_at=datetime.fromisoformat(kept["first_at"]),
        last_at=datetime.fromisoformat(kept["last_at"]),
    )
