"""``python -m contourcast.service.dicom_node``: the DICOM node, a process of its own."""

from __future__ import annotations

import threading

from contourcast.service.children import until_abandoned
from contourcast.service.doors import NodeDoor
from contourcast.service.intake.arriving import Arriving
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.node import Caller, Commitment, NodeSettings, Sender, run_node
from contourcast.service.pacs.wire import Bounds, Tls
from contourcast.service.records import MIB, open_records
from contourcast.service.settings import ServiceSettings


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
        )
    finally:
        records.close()


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
