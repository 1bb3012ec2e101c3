"""A real Orthanc in a folder of its own, to be talked to, watched and killed.

    with orthanc(tmp_path) as archive:
        archive.upload(paths)
        archive.kill()
        archive.start()

It runs with deploy/orthanc/orthanc.json; only ports, folder, password, peers and StableAge differ.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import httpx

from contourcast.service.pacs.connection import Peer
from support.data import REPOSITORY, peer, require

DEPLOYED: Final = REPOSITORY / "deploy" / "orthanc"
START_S: Final = 15.0
USER: Final = "contourcast"
PASSWORD: Final = "a password of tests"
AET: Final = "ORTHANC"


class RealOrthanc:
    """One Orthanc process over one folder.

    Attributes:
        url: Of its REST API; DICOMweb lies under ``/dicom-web``.
        dicom_port: Where it listens as the AE ``ORTHANC``.
        log: What the present process, and those before it, said.
    """

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.http_port: int = configuration["HttpPort"]
        self.dicom_port: int = configuration["DicomPort"]
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.log = folder / "orthanc.log"
        self._program = peer("Orthanc")
        self._environment = {**os.environ, "TCP_NODELAY": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(json.dumps(configuration, indent=2))
        self.http = httpx.Client(
            base_url=self.url,
            auth=(USER, PASSWORD),
            headers={"Accept-Encoding": "identity"},
            timeout=60.0,
        )

    def start(self) -> Self:
        """Starts it and waits until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._configuration)],
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        deadline = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return self
            time.sleep(0.02)
        self.stop()
        raise AssertionError(f"Orthanc did not start:\n{self.log.read_text(errors='replace')}")

    def stop(self) -> None:
        """The orderly end, waited for: its successor would die on the same database."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
            self._process = None

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def peer(self) -> Peer:
        """It, as settings would name it."""
        return Peer(name="orthanc", url=self.url, user=USER, password=PASSWORD)

    @property
    def dicomweb_peer(self) -> Peer:
        """Its DICOMweb root, as settings would name it."""
        return replace(self.peer, url=f"{self.url}/dicom-web")

    def _answers(self) -> bool:
        try:
            return self.http.get("/system").status_code == 200
        except httpx.TransportError:
            return False

    # What tests do with it

    def upload(self, paths: Iterable[Path]) -> list[str]:
        """Sends files over REST; Orthanc's word for each: Success or AlreadyStored."""
        return [
            str(
                self.http.post("/instances", content=path.read_bytes())
                .raise_for_status()
                .json()["Status"]
            )
            for path in paths
        ]

    def series(self) -> list[str]:
        """The Series Instance UIDs that it holds."""
        found = self.http.get("/series", params={"expand": ""}).raise_for_status().json()
        return [str(one["MainDicomTags"]["SeriesInstanceUID"]) for one in found]


@contextmanager
def orthanc(
    folder: Path,
    *,
    stable_age_s: int = 1,
    modalities: Mapping[str, Mapping[str, Any]] | None = None,
    rule: bool = False,
    environment: Mapping[str, str] | None = None,
    **changes: Any,
) -> Iterator[RealOrthanc]:
    """An Orthanc for a block.

    Args:
        folder: Of its database and log; made when missing.
        modalities: DICOM peers in Orthanc's words, such as
            ``{"contourcast": {"AET": "CONTOURCAST", "Host": "127.0.0.1", "Port": port}}``; only
            these may store and ask.
        rule: Whether deploy/orthanc/contourcast_rule.py is loaded.
        environment: More variables for the process.
        changes: Further options of Orthanc that differ.
    """
    peer("Orthanc")
    folder.mkdir(parents=True, exist_ok=True)
    configuration = json.loads((DEPLOYED / "orthanc.json").read_text())
    plugins = [p for p in configuration["Plugins"] if rule or "Python" not in p]
    for plugin in plugins:
        require("peer", Path(plugin).is_file(), f"{Path(plugin).name} is missing: make peers")
    http_port, dicom_port = free_ports(2)
    configuration |= {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": AET,
        "RegisteredUsers": {USER: PASSWORD},
        "StableAge": stable_age_s,
        "DicomModalities": dict(modalities or {}),
        "Plugins": plugins,
        "PythonScript": str(DEPLOYED / "contourcast_rule.py") if rule else "",
        **changes,
    }
    archive = RealOrthanc(folder, configuration, environment or {})
    try:
        yield archive.start()
    finally:
        archive.kill()  # the orderly end takes seconds, for a folder that nobody needs any more
        archive.http.close()


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nobody listens, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
