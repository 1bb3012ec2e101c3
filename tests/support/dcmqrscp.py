"""DCMTK's archive, dcmqrscp: it counts no instances, and gives by C-GET or C-MOVE."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contourcast.service.pacs.scu import Peer
from contourcast.service.problems import PeerUnreachableError
from support.data import peer
from support.dimse import AET, LOOPBACK
from support.orthanc import free_ports


@dataclass(frozen=True, kw_only=True)
class Dcmqrscp:
    """DCMTK's archive over one folder."""

    port: int
    peer: Peer


@contextmanager
def dcmqrscp(folder: Path, move_to: int, *options: str) -> Iterator[Dcmqrscp]:
    """Runs it for a block; waits until it answers."""
    (port,) = free_ports(1)
    (folder / "db").mkdir(parents=True)
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nours = ({AET}, localhost, {move_to})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nDCMQRSCP {folder / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [peer("dcmqrscp"), "-c", str(configuration), *options],
            stdout=log,
            stderr=log,
            env={"TCP_NODELAY": "1", "PATH": "/usr/bin"},
        )
    there = Peer(aet="DCMQRSCP", host=LOOPBACK, port=port, our_aet=AET)
    try:
        until_it_answers(there)
        yield Dcmqrscp(port=port, peer=there)
    finally:
        process.terminate()
        process.wait(timeout=20)


def until_it_answers(there: Peer) -> None:
    """Waits for a peer that was just begun."""
    for _ in range(100):
        try:
            there.echo()
        except PeerUnreachableError:
            threading.Event().wait(0.05)
        else:
            return
    there.echo()
