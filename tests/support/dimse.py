"""A door of its own for DICOM nodes, DCMTK's tools as peers, certificates, and raw PDUs.

door = FolderDoor(tmp_path)
with node(door) as ours:
    storescu(ours.port, paths)
assert door.kept() == {...}
"""

from __future__ import annotations

import os
import socket
import sqlite3
import struct
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from contourcast.imaging.dicom.pixels import pixel_digest
from contourcast.service.pacs.door import Taken
from contourcast.service.pacs.node import (
    Caller,
    Commitment,
    Landed,
    Landing,
    Node,
    NodeSettings,
    Sender,
    TurnedAway,
)
from contourcast.service.pacs.wire import Bounds, Tls
from contourcast.service.problems import BusyError, DiskFullError
from support.data import peer

AET: Final = "CONTOURCAST"
LINAC: Final = "LINAC1"
LOOPBACK: Final = "127.0.0.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
CT: Final = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION: Final = "1.2.840.10008.1.1"
APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"


class FolderDoor:
    """Flushes each file and commits a row for it, as a store has to.

    Attributes:
        full, busy: Whether the disk is below its reserve, the database away.
        senders: Of each instance, in their order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.full = self.busy = False
        self.senders: list[Sender] = []
        for name in ("incoming", "kept"):
            (folder / name).mkdir(parents=True)
        self._lock = threading.Lock()
        self._index = sqlite3.connect(folder / "index.sqlite3", check_same_thread=False)
        self._index.execute("PRAGMA journal_mode=WAL")
        self._index.execute("PRAGMA synchronous=FULL")
        self._index.execute("CREATE TABLE instance (sop_uid TEXT PRIMARY KEY, digest TEXT)")
        self._index.commit()

    def incoming(self) -> Path:
        if self.full:
            raise DiskFullError("free space is below the reserve", remedy="free space")
        return self.folder / "incoming" / f"{uuid.uuid4().hex}.part"

    def take(self, landed: Landed, *, sender: Sender) -> Taken:
        with self._lock:
            if self.busy:
                raise BusyError("the index cannot be reached", remedy="send again later")
            self.senders.append(sender)
            to = self.path_of(landed.header.sop_instance_uid)
            if to.exists():
                return self._again(landed, to)
            with landed.path.open("rb") as file:
                os.fsync(file.fileno())
            landed.path.replace(to)
            folder = os.open(to.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            with self._index:
                self._index.execute(
                    "INSERT OR REPLACE INTO instance VALUES (?, ?)",
                    (landed.header.sop_instance_uid, landed.file_digest),
                )
            return Taken(outcome="stored")

    def _again(self, landed: Landed, to: Path) -> Taken:
        if landed.header.pixels is None or pixel_digest(to) == pixel_digest(landed.path):
            return Taken(outcome="already")
        return Taken(outcome="conflict", cause="an instance of this UID says something else")

    def path_of(self, sop_uid: str) -> Path:
        return self.folder / "kept" / f"{sop_uid}.dcm"

    def kept(self) -> set[str]:
        """The instances whose rows are committed."""
        with closing(sqlite3.connect(self.folder / "index.sqlite3")) as index:
            return {row[0] for row in index.execute("SELECT sop_uid FROM instance")}

    def digests(self) -> dict[str, str]:
        with closing(sqlite3.connect(self.folder / "index.sqlite3")) as index:
            return dict(index.execute("SELECT sop_uid, digest FROM instance").fetchall())

    def on_their_way(self) -> list[Path]:
        """Files that nobody has taken."""
        return list((self.folder / "incoming").iterdir())

    def close(self) -> None:
        self._index.close()


@dataclass
class Heard:
    """What a node told: to be waited for."""

    arrivals: list[tuple[frozenset[str], Sender]] = field(default_factory=list)
    commitments: list[tuple[Commitment, Sender]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def arrived(self, series: frozenset[str], sender: Sender) -> None:
        with self.changed:
            self.arrivals.append((series, sender))
            self.changed.notify_all()

    def committed(self, commitment: Commitment, sender: Sender) -> None:
        with self.changed:
            self.commitments.append((commitment, sender))
            self.changed.notify_all()

    def wait_for_arrivals(self, count: int) -> list[tuple[frozenset[str], Sender]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.arrivals) >= count, 20), self.arrivals
            return list(self.arrivals)

    def wait_for_commitments(self, count: int) -> list[tuple[Commitment, Sender]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.commitments) >= count, 20)
            return list(self.commitments)


@contextmanager
def node(
    door: Landing,
    *,
    heard: Heard | None = None,
    bounds: Bounds | None = None,
    callers: Sequence[str] = (LINAC,),
    tls: Tls | None = None,
    turned_away: TurnedAway = lambda sender, why: None,
    **changes: Any,
) -> Iterator[Node]:
    """A node on a free port of loopback."""
    heard = heard or Heard()
    settings = NodeSettings(
        aet=AET,
        port=0,
        callers=tuple(Caller(aet=aet, networks=(LOOPBACK,)) for aet in callers),
        tls=tls,
        bounds=bounds or Bounds(pdu_s=5, idle_s=10, answer_s=5),
        **({"drain_s": 5.0} | changes),
    )
    with Node(
        settings, door, arrived=heard.arrived, committed=heard.committed, turned_away=turned_away
    ) as ours:
        yield ours


def dcmtk(
    program: str, *arguments: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of DCMTK's network tools, with TCP_NODELAY."""
    return subprocess.run(
        [peer(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        env={**os.environ, "TCP_NODELAY": "1", **(environment or {})},
    )


def storescu(
    port: int,
    paths: Sequence[Path],
    *options: str | Path,
    calling: str = LINAC,
    called: str = AET,
) -> subprocess.CompletedProcess[str]:
    """Sends files as DCMTK does."""
    return dcmtk(
        "storescu", "-v", "-aet", calling, "-aec", called, *options, LOOPBACK, str(port), *paths
    )


# Certificates


def make_authority(folder: Path, *names: str) -> dict[str, tuple[Path, Path]]:
    """Certificates for the names, and that of the authority which signed them, ``authority``."""
    openssl = peer("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Path, Path]] = {}
    for name in ("authority", *names):
        certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        command = [
            openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate),
        ]  # fmt: skip
        if name != "authority":
            signer, signer_key = made["authority"]
            command += [
                "-CA", str(signer), "-CAkey", str(signer_key),
                "-addext", f"subjectAltName=IP:{LOOPBACK}",
                "-addext", "basicConstraints=critical,CA:FALSE",
            ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        made[name] = (certificate, key)
    return made


# Raw PDUs, for what no decent tool sends (PS3.8 §9.3)


def pdu(kind: int, body: bytes, *, claims: int | None = None) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body) if claims is None else claims) + body


def associate_request(
    *,
    calling: str = LINAC,
    called: str = AET,
    contexts: Sequence[tuple[str, Sequence[str]]] = ((CT, (EXPLICIT,)),),
) -> bytes:
    """An A-ASSOCIATE-RQ; its contexts are numbered 1, 3, 5 …"""
    items = _item(0x10, APPLICATION_CONTEXT.encode())
    for n, (abstract, transfers) in enumerate(contexts):
        syntaxes = _item(0x30, abstract.encode())
        syntaxes += b"".join(_item(0x40, one.encode()) for one in transfers)
        items += _item(0x20, bytes([2 * n + 1, 0, 0, 0]) + syntaxes)
    user = _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3.4")
    items += _item(0x50, user)
    head = struct.pack(">HH", 1, 0) + called.ljust(16).encode() + calling.ljust(16).encode()
    return pdu(1, head + bytes(32) + items)


def store_command(
    sop_uid: str, *, sop_class: str = CT, message_id: int = 1, without: int | None = None
) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 Table 9.3-1)."""
    return command(
        {
            0x0002: _ui(sop_class),
            0x0100: struct.pack("<H", 1),
            0x0110: struct.pack("<H", message_id),
            0x0700: struct.pack("<H", 0),
            0x0800: struct.pack("<H", 1),
            0x1000: _ui(sop_uid),
        },
        without=without,
    )


def command(elements: dict[int, bytes], *, without: int | None = None) -> bytes:
    """A command set of elements of group 0000."""
    body = b"".join(
        struct.pack("<HHL", 0, element, len(value)) + value
        for element, value in sorted(elements.items())
        if element != without
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def fragment(data: bytes, *, last: bool, is_command: bool, context: int = 1) -> bytes:
    """A P-DATA-TF with one fragment."""
    header = bytes([context, (1 if is_command else 0) | (2 if last else 0)])
    return pdu(4, struct.pack(">L", len(data) + 2) + header + data)


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _ui(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


class Wire:
    """A plain connection to a node."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((LOOPBACK, port), timeout=30)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> tuple[int, bytes]:
        """The next PDU: its kind (0: the connection was closed) and its body."""
        head = self._read(6)
        if len(head) < 6:
            return 0, b""
        kind, _, length = struct.unpack(">BBL", head)
        return kind, self._read(length)

    def status(self) -> int:
        """The status of the response that comes next."""
        kind, body = self.receive()
        assert kind == 4, kind
        at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
        return int(struct.unpack_from("<H", body, at + 8)[0])

    def associate(self, **how: Any) -> Wire:
        self.send(associate_request(**how))
        kind, _ = self.receive()
        assert kind == 2, kind
        return self

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                here = self.socket.recv(count - len(data))
            except ConnectionResetError:
                break
            if not here:
                break
            data += here
        return data
