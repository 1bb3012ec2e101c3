"""``python -m contourcast.service.dicom_node``: the DICOM node, a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from contourcast.imaging.errors import ContourcastError
from contourcast.service.access.audit import Happening, record
from contourcast.service.access.roles import What
from contourcast.service.access.seldom import STRANGERS_EVERY_S, Seldom
from contourcast.service.children import until_abandoned
from contourcast.service.doors import NodeDoor
from contourcast.service.index.database import Index
from contourcast.service.intake.arriving import Arriving
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.node import (
    Caller,
    Commitment,
    NodeSettings,
    Sender,
    TurnedAway,
    run_node,
)
from contourcast.service.pacs.wire import Bounds, Tls
from contourcast.service.records import MIB, open_records
from contourcast.service.settings import ServiceSettings

log = structlog.get_logger()


def run(settings: ServiceSettings, stop: threading.Event) -> None:
    """Takes in what is sent until told to stop.

    Raises:
        SettingsError: The port cannot be had, or the certificates cannot be read.
        BusyError: The database cannot be reached.
    """
    records = open_records(settings, role="node")
    records.archive.discard_incoming()
    arriving = Arriving(records.index, records.notices)
    deliveries = Deliveries(records, settings.destinations)

    def arrived(series_uids: frozenset[str], _: Sender) -> None:
        arriving.released(sorted(series_uids))

    def committed(commitment: Commitment, _: Sender) -> None:
        deliveries.committed(commitment)

    try:
        run_node(
            node_settings(settings),
            NodeDoor(records.archive),
            stop=stop,
            arrived=arrived,
            committed=committed,
            turned_away=turning_away(records.index, time.monotonic),
        )
    finally:
        records.close()


def turning_away(index: Index, clock: Callable[[], float]) -> TurnedAway:
    """Writes down who may not call: a row of the audit log for each address and a while.

    Args:
        index: With the log.
        clock: Seconds that only grow.
    """
    strangers = Seldom(STRANGERS_EVERY_S, clock)

    def turned_away(sender: Sender, why: str) -> None:
        times = strangers.came(sender.address)
        if times is None:
            return
        happening = Happening(
            what=What.REFUSAL,
            address=sender.address,
            action="A-ASSOCIATE",
            outcome="refused",
            detail="rejected" if times == 1 else f"rejected, the last of {times}",
        )
        try:
            record(index, happening)
        except ContourcastError as error:  # it is turned away in any case
            log.warning("refusal_not_audited", cause=error.cause, reason=why)

    return turned_away


def node_settings(settings: ServiceSettings) -> NodeSettings:
    """The node as the service's settings describe it."""
    tls = None
    if settings.dicom_certificate is not None:
        tls = Tls(
            certificate=settings.dicom_certificate,
            key=settings.dicom_key,
            authority=settings.dicom_authority,
        )
    return NodeSettings(
        aet=settings.dicom_aet,
        host=settings.dicom_host,
        port=settings.dicom_port,
        callers=tuple(
            Caller(aet=aet, networks=networks) for aet, networks in settings.dicom_callers.items()
        ),
        tls=tls,
        bounds=Bounds(file_bytes=settings.file_limit_mib * MIB),
    )


if __name__ == "__main__":
    until_abandoned(run)
