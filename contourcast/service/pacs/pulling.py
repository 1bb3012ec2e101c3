"""Takes of one series what an archive has of it and we have not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from contourcast.imaging.dicom.instance import Header
from contourcast.service.doors import ArchiveDoor
from contourcast.service.intake.arriving import Arriving
from contourcast.service.pacs.sources import Budget, Gate, Offer, Source
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What an archive has of a series, and what became of what was lacking.

    Attributes:
        there: SOP Instance UIDs that it has.
        gate: By which the rest came; None: nothing was lacking, or nothing may come.
    """

    there: frozenset[str] = frozenset()
    gate: Gate | None = None


class Puller:
    """Pulls series from one archive.

    Args:
        name: What the archive is called in the settings.
        settings: What is taken.
        records: What is here.
    """

    def __init__(self, name: str, settings: ServiceSettings, records: Records) -> None:
        self._name = name
        self._archive = records.archive
        self._door = ArchiveDoor(records.archive, settings)
        self._arriving = Arriving(records.index, records.notices)

    def pull(
        self, source: Source, offer: Offer, judge: Callable[[Header], str], budget: Budget
    ) -> Pulled:
        """Pulls one series.

        Args:
            source: The archive.
            offer: The series.
            judge: Why a file of it may not come in; empty: it may.
            budget: What may still come; it is spent here.

        Raises:
            PeerError: Some could not be fetched; the others are here.
            DiskFullError, BusyError: Nothing can be taken in at present.
        """
        if budget.series == 0:
            return Pulled()
        there = source.instances(offer)
        here = self._archive.known(there)
        lacking = [uid for uid in there if uid not in here]
        if not lacking:
            return Pulled(there=frozenset(there))
        if not budget.allows(len(lacking)):
            log.warning("too_much_to_fetch", series=offer.series_uid, instances=len(lacking))
            return Pulled(there=frozenset(there))
        budget.series -= 1
        gate = Gate(self._door, self._name, judge, budget)
        try:
            source.bring(offer, lacking, gate)
        finally:
            # an association that sent the first slices has long ended, and says so of the last
            self._arriving.released([offer.series_uid])
        if gate.reasons:
            log.warning("files_left_out", series=offer.series_uid, reasons=dict(gate.reasons))
        return Pulled(there=frozenset(there), gate=gate)
