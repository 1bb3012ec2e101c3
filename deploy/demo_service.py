"""`make demo-service`: a department on one machine, from the linac's push to the PACS and back.

Starts Debian's Orthanc with the configuration of deploy/orthanc, and the service with everything
(`contourcast serve --all`); pushes a simulated course of five fractions into Orthanc by C-STORE,
as a linac does; waits until each is drawn and sent back, finds the structure sets in Orthanc, and
prints the worklist. Nothing outside the demo's folder is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from contourcast.service.pacs.scu import Peer

HERE = Path(__file__).parent
ORTHANC = "/usr/sbin/Orthanc"
WAIT_S = 1800.0
POLL_S = 2.0
console = Console()


def main() -> int:
    """Runs the demo; 0 when every fraction came back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-service"))
    parser.add_argument("--fractions", type=int, default=5)
    parser.add_argument("--methods", default="translation,rigid,diff-umamba")
    asked = parser.parse_args()
    if not Path(ORTHANC).exists():
        console.print("Orthanc is not installed; on Debian: make peers")
        return 1
    shutil.rmtree(asked.out, ignore_errors=True)
    asked.out.mkdir(parents=True)
    course = asked.out / "course"
    console.print(f"simulating a course of {asked.fractions} fractions …")
    _run(
        "simulate",
        "--out",
        str(course),
        "--fractions",
        str(asked.fractions),
        "--seed",
        "7",
        "--physics",
        "image",
    )
    with tempfile.TemporaryDirectory() as private:
        os.environ["DEMO_ORTHANC_PASSWORD"] = secrets.token_urlsafe(24)
        with (
            _orthanc(Path(private), asked.out / "orthanc.log") as (rest, dicom_port),
            _service(asked.out / "data", rest.base_url, asked.methods) as service,
        ):
            files = sorted(course.rglob("*.dcm"))
            start = time.monotonic()
            linac = Peer(aet="ORTHANC", host="127.0.0.1", port=dicom_port, our_aet="LINAC1")
            receipts = linac.store(files)
            stored = sum(receipt.stored for receipt in receipts)
            took_s = time.monotonic() - start
            console.print(f"pushed {stored} of {len(files)} files by C-STORE in {took_s:.1f} s")
            items = _follow(service, asked.fractions)
            _worklist(items)
            return _found_back(rest, asked.fractions)


def _follow(service: httpx.Client, fractions: int) -> list[dict[str, Any]]:
    """Waits until every fraction is drawn and what had to be sent is there."""
    deadline = time.monotonic() + WAIT_S
    with console.status("waiting for the first series") as status:
        while time.monotonic() < deadline:
            items = list(service.get("/v1/worklist").raise_for_status().json()["items"])
            drawn = [i for i in items if i["state"] == "awaiting_review"]
            waiting = [
                d
                for d in service.get("/v1/deliveries").raise_for_status().json()["deliveries"]
                if d["state"] not in ("delivered", "dead")
            ]
            status.update(f"{len(items)} on the worklist, {len(drawn)} drawn and sent")
            if len(drawn) == fractions and not waiting:
                return items
            time.sleep(POLL_S)
    raise SystemExit("not every fraction was drawn in time; see the log in the demo's folder")


def _worklist(items: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Worklist, the most urgent first")
    for column in ("patient", "fraction", "taken", "verdict", "first reason", "GTV cm³", "Δ prior"):
        table.add_column(column)
    for item in items:
        volumes = item["volumes_cc"]
        change = item["volume_change_percent"]
        table.add_row(
            (item["patient"] or {}).get("id", ""),
            str(item["fraction"]),
            item["acquired_at"].replace("T", " "),
            item["verdict"],
            item["reason"][:60],
            ", ".join(f"{name} {v:.1f}" for name, v in volumes.items() if v is not None),
            "" if change is None else f"{change:+.0f} %",
        )
    console.print(table)


def _found_back(rest: httpx.Client, fractions: int) -> int:
    """Whether Orthanc holds a structure set of ours for each fraction."""
    query = {"Level": "Instance", "Query": {"Modality": "RTSTRUCT"}, "Expand": True}
    found = rest.post("/tools/find", json=query).raise_for_status().json()
    labels = []
    for one in found:
        tags = rest.get(f"/instances/{one['ID']}/simplified-tags").raise_for_status().json()
        if tags.get("Manufacturer") == "Contourcast" and tags.get("ApprovalStatus") == "UNAPPROVED":
            rois = tags.get("StructureSetROISequence", [])
            labels.append((tags["StructureSetLabel"], ", ".join(r["ROIName"] for r in rois)))
    for label, rois in labels:
        console.print(f"in Orthanc: {label}: {rois}")
    console.print(f"{len(labels)} structure sets of {fractions} found back in Orthanc")
    return 0 if len(labels) == fractions else 1


@contextmanager
def _orthanc(folder: Path, log_file: Path) -> Iterator[tuple[httpx.Client, int]]:
    """Debian's Orthanc with our configuration, on ports of its own."""
    http_port, dicom_port = _free_port(), _free_port()
    configuration = json.loads((HERE / "orthanc" / "orthanc.json").read_text("utf-8"))
    password = os.environ["DEMO_ORTHANC_PASSWORD"]
    configuration |= {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "RemoteAccessAllowed": False,
        "RegisteredUsers": {"contourcast": password},
        "StableAge": 5,
        "DicomModalities": {
            "linac1": {"AET": "LINAC1", "Host": "127.0.0.1", "Port": 104, "AllowStore": True}
        },
    }
    del configuration["PythonScript"]  # the demo is watched by looks alone
    (folder / "orthanc.json").write_text(json.dumps(configuration), "utf-8")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [ORTHANC, str(folder / "orthanc.json")],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{http_port}",
                auth=("contourcast", password),
                headers={"Accept-Encoding": "identity"},
            ) as rest:
                _until_it_answers(rest, "/system", process)
                yield rest, dicom_port
        finally:
            process.kill()
            process.wait()


@contextmanager
def _service(data: Path, orthanc: httpx.URL, methods: str) -> Iterator[httpx.Client]:
    """The service with API, DICOM node and worker, on loopback and without credentials."""
    port = _free_port()
    destination = {
        "kind": "orthanc",
        "name": "orthanc",
        "url": str(orthanc),
        "user": "contourcast",
        "password_env": "DEMO_ORTHANC_PASSWORD",
        "watch": True,
    }
    environment = {
        **os.environ,
        "CONTOURCAST_DATA_FOLDER": str(data),
        "CONTOURCAST_PORT": str(port),
        "CONTOURCAST_DICOM_PORT": str(_free_port()),
        "CONTOURCAST_METHODS": json.dumps(methods.split(",")),
        "CONTOURCAST_DESTINATIONS": json.dumps([destination]),
    }
    data.mkdir(parents=True)
    with (data / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "contourcast", "serve", "--all"], stderr=log, env=environment
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
                _until_it_answers(client, "/health/ready", process)
                console.print(f"service ready: {client.base_url}docs")
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _until_it_answers(client: httpx.Client, path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120.0
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{client.base_url} does not answer")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "contourcast", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
