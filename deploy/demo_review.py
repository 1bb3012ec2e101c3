"""`make demo-review`: the review page over a simulated course, with somebody to sign in as.

Simulates a patient with a few fractions, hides a CBCT of another patient among them, upside down,
as no hospital should, starts the service with everything (`contourcast serve --all`) and has
each fraction drawn. Then it prints the address, a name and a password, and serves until it is
stopped. Run again on the same folder, it goes on where it was. Nothing outside that folder is
touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pydicom
from rich.console import Console

from contourcast.client import Client
from contourcast.service.access.accounts import make_account
from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.records import open_records
from contourcast.service.settings import ServiceSettings

WAIT_S: Final = 3600.0
POLL_S: Final = 2.0
# Two who may sign, so that one can see what happens when both look; one who may only look.
PEOPLE: Final = {
    "physicist": (Role.REVIEWER, Role.VIEWER),
    "colleague": (Role.REVIEWER, Role.VIEWER),
    "trainee": (Role.VIEWER,),
}
PATIENT: Final = "patient-001"
STRANGER: Final = "patient-002"
console = Console()


def main() -> int:
    """Runs the demo until it is stopped; 0 when every fraction was drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-review"))
    parser.add_argument("--fractions", type=int, default=4)
    parser.add_argument("--methods", default="translation,rigid,diff-umamba")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--course", type=Path, help="a simulated course that is there already")
    parser.add_argument("--leave", action="store_true", help="stop once all is drawn")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    course = asked.course or out / "course"
    if not course.exists():
        console.print(f"simulating {asked.fractions} fractions …")
        _simulate(course, asked.fractions)
    settings = _settings(out, asked.methods, asked.port)
    password, key = _people(out, settings)
    with _serving(out, settings) as address:
        wanted = _send(course, out, address, key, asked.fractions)
        _until_drawn(address, key, wanted)
        console.print(f"[bold]{address}/review/[/bold]")
        for name, roles in PEOPLE.items():
            console.print(f"  {name} ({', '.join(roles)}), password: {password}")
        if not asked.leave:
            console.print("stop it with Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 0


def _simulate(course: Path, fractions: int) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "contourcast", "simulate", "--out", str(course)),
            *("--patients", "2", "--fractions", str(fractions)),
            *("--seed", "7", "--physics", "image"),
        ],
        check=True,
    )


def _settings(out: Path, methods: str, port: int) -> ServiceSettings:
    """What the service is told, as a file, so that it can be started without this program."""
    lines = (
        f"data_folder = {json.dumps(str(out / 'data'))}",
        f"port = {port}",
        "dicom_port = 0",
        "disk_reserve_mib = 0",
        f"methods = {json.dumps(methods.split(','))}",
        "[access]",
        "local_accounts = true",
        "secure_cookies = false",
    )
    path = out / "settings.toml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    os.environ["CONTOURCAST_SETTINGS_FILE"] = str(path)
    return ServiceSettings()


def _people(out: Path, settings: ServiceSettings) -> tuple[str, str]:
    """A password for the people, and a key for this program; kept in the demo's folder."""
    kept = out / "secrets.json"
    if kept.exists():
        known = json.loads(kept.read_text("utf-8"))
        return known["password"], known["key"]
    password = secrets.token_urlsafe(12)
    records = open_records(settings, role="demo")
    try:
        for name, roles in PEOPLE.items():
            make_account(records.index, name=name, password=password, roles=roles)
        _, key = make_key(
            records.index, label="demo", roles=[Role.UPLOADER, Role.VIEWER], days=None
        )
    finally:
        records.close()
    kept.touch(mode=0o600)
    kept.write_text(json.dumps({"password": password, "key": key}), "utf-8")
    return password, key


def _send(course: Path, out: Path, address: str, key: str, fractions: int) -> int:
    """Plan, fractions and the stranger; how many CBCTs that is."""
    plan = [*(course / PATIENT / "planning-ct").glob("*.dcm"), *(course / PATIENT).glob("*.dcm")]
    scans = [
        *(
            sorted((course / PATIENT / f"fraction-{n + 1:02d}").glob("*.dcm"))
            for n in range(fractions)
        ),
        _stranger(course, out),
    ]
    with Client(address, key=key) as client:
        for files in (plan, *scans):
            for _ in client.send(files):
                pass
    return len(scans)


def _stranger(course: Path, out: Path) -> list[Path]:
    """A CBCT of another patient, upside down, under our patient's name: it must be rejected."""
    folder = out / "stranger"
    folder.mkdir(exist_ok=True)
    ours = pydicom.dcmread(next((course / PATIENT / "planning-ct").glob("*.dcm")))
    scan = [pydicom.dcmread(path) for path in (course / STRANGER / "fraction-02").glob("*.dcm")]
    scan.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    pixels = [dataset.PixelData for dataset in reversed(scan)]
    paths = []
    for number, (dataset, turned) in enumerate(zip(scan, pixels, strict=True), start=1):
        dataset.PatientName, dataset.PatientID = ours.PatientName, ours.PatientID
        dataset.PixelData = turned
        paths.append(folder / f"{number:03d}.dcm")
        dataset.save_as(paths[-1])
    return paths


def _until_drawn(address: str, key: str, wanted: int) -> None:
    deadline = time.monotonic() + WAIT_S
    headers = {"Authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=address, headers=headers, timeout=30.0) as client,
        console.status("waiting for the first series") as status,
    ):
        while time.monotonic() < deadline:
            answer = client.get("/v1/propagations").raise_for_status().json()
            current = [p for p in answer["propagations"] if p["state"] != "superseded"]
            ended = sum(p["ended"] for p in current)
            status.update(f"{ended} of {wanted} fractions drawn")
            if ended >= wanted:
                return
            time.sleep(POLL_S)
    raise SystemExit("not every fraction was drawn in time; see service.log in the demo's folder")


@contextlib.contextmanager
def _serving(out: Path, settings: ServiceSettings) -> Iterator[str]:
    """The service with API, DICOM node and worker, on loopback."""
    address = f"http://127.0.0.1:{settings.port}"
    with (out / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "contourcast", "serve", "--all"], stderr=log
        )
        try:
            _until_it_answers(address, process)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120.0
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/health/live").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{address} does not answer; see service.log in the demo's folder")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
