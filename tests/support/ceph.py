"""A real Ceph of our own, one monitor, one store in memory, and the gateway that speaks S3.

with ceph() as server:
    server.endpoint, server.access_key, server.secret_key
    server.kill()
    server.start()
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import boto3
from botocore.config import Config

from support.data import peer
from support.orthanc import free_ports

START_S: Final = 60.0
# All of it on loopback with nobody else: one copy of everything, in memory.
CONFIGURATION: Final = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{mon_port}]
public network = 127.0.0.0/8
keyring = {folder}/keyring
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
pid file =
mon data = {folder}/mon
osd data = {folder}/osd
mon data avail crit = 1
mon allow pool size one = true
mon pg warn min per osd = 0
mon cluster log to file = false
paxos propose interval = 0.05
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
[client]
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
rgw data = {folder}/rgw
rgw cache enabled = false
rgw bucket quota ttl = 0
"""


class Ceph:
    """One cluster in a folder.

    Attributes:
        endpoint: Of the gateway, which speaks S3.
    """

    access_key: Final = "contourcast"
    secret_key: Final = "a secret of tests"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mon_port, self.s3_port = free_ports(2)
        self.fsid = str(uuid.uuid4())
        self.endpoint = f"http://127.0.0.1:{self.s3_port}"
        self._running: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        (folder / "ceph.conf").write_text(
            CONFIGURATION.format(
                folder=folder, fsid=self.fsid, mon_port=self.mon_port, s3_port=self.s3_port
            )
        )
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()

    def start(self) -> Self:
        """Starts the gateway, at first all behind it, and waits until it answers."""
        if not self._running:
            self._make()
        self._gateway = self._spawn("radosgw", "--id=admin", f"--keyring={self.folder / 'keyring'}")
        deadline = time.monotonic() + START_S
        while self._gateway.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self.endpoint, timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise AssertionError("the gateway of Ceph did not start")

    def kill(self) -> None:
        """``kill -9`` of the gateway; what was promised lies behind it."""
        assert self._gateway is not None
        _end(self._gateway)
        self._gateway = None

    def stop(self) -> None:
        """The end of it all."""
        for process in (self._gateway, *reversed(self._running)):
            if process is not None:
                _end(process)
        self._gateway, self._running = None, []

    def limit(self, *, objects: int | None) -> None:
        """How many objects each bucket may hold; None: any number."""
        user = ("--quota-scope=bucket", "--uid=contourcast")
        most = f"--max-objects={-1 if objects is None else objects}"
        self._run("radosgw-admin", "quota", "set", *user, most)
        switch = "disable" if objects is None else "enable"
        self._run("radosgw-admin", "quota", switch, *user)

    def client(self) -> Any:
        """A plain client, to look and to meddle with."""
        session = boto3.session.Session(self.access_key, self.secret_key, region_name="us-east-1")
        config = Config(
            s3={"addressing_style": "path"}, request_checksum_calculation="when_required"
        )
        return session.client("s3", endpoint_url=self.endpoint, config=config)

    def _make(self) -> None:
        keyring = self.folder / "keyring"
        for name, caps in (
            ("mon.", ("mon", "allow *")),
            ("client.admin", ("mon", "allow *", "osd", "allow *")),
            ("osd.0", ("mon", "allow profile osd", "osd", "allow *")),
        ):
            made = [] if keyring.exists() else ["--create-keyring"]
            pairs = zip(caps[::2], caps[1::2], strict=True)
            self._run(
                "ceph-authtool", str(keyring), *made, "--gen-key", "--name", name,
                *(word for which, what in pairs for word in ("--cap", which, what)),
            )  # fmt: skip
        osd = str(uuid.uuid4())
        monmap = self.folder / "monmap"
        self._run(
            "monmaptool", "--create", f"--fsid={self.fsid}", "--addv", "a",
            f"[v2:127.0.0.1:{self.mon_port}]", str(monmap),
        )  # fmt: skip
        self._run("ceph-mon", "--id=a", "--mkfs", f"--monmap={monmap}", f"--keyring={keyring}")
        self._running.append(self._spawn("ceph-mon", "--id=a"))
        self._run("ceph-osd", "--id=0", "--mkfs", f"--osd-uuid={osd}")
        self._run("ceph", "osd", "new", osd, "0")
        self._running.append(self._spawn("ceph-osd", "--id=0"))
        self._run(
            "radosgw-admin", "user", "create", "--uid=contourcast", "--display-name=contourcast",
            f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
        )  # fmt: skip

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "out.log").open("ab") as log:
            return subprocess.Popen(
                [peer(program), "-f", f"--conf={self.folder / 'ceph.conf'}", *arguments],
                stdout=log,
                stderr=log,
            )

    def _run(self, program: str, *arguments: str) -> None:
        configuration = ("--conf", str(self.folder / "ceph.conf"))
        ran = subprocess.run(
            [
                peer(program),
                *(() if program in ("ceph-authtool", "monmaptool") else configuration),
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=START_S,
            env={**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")},
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@contextmanager
def ceph() -> Iterator[Ceph]:
    """A cluster for a block, in a folder whose path is short enough for its sockets."""
    for program in ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph"):
        peer(program)
    folder = Path(tempfile.mkdtemp(prefix="contourcast-ceph-"))
    cluster = Ceph(folder)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
        shutil.rmtree(folder)
