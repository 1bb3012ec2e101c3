"""A department's service under load: simulated linacs, and what it does to every process.

    python benchmarks/service_load.py [--minutes 20] [--out FOLDER]
    python benchmarks/service_load.py --series 1000     intake alone, for leaks
    python benchmarks/service_load.py --rates           how fast files come in

PostgreSQL, Orthanc, API, DICOM node and a worker run as docker/compose.yaml describes them, and
linacs send a CBCT by C-STORE every 17 s: three times the peak of a department of eight linacs
(CLINICAL_SERVICE §6.2). Each is matched, drawn with translation and rigid, and sent to Orthanc.
Writes samples.csv (each process's memory and handles, the backlog) and prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import FileDataset
from sqlalchemy import func, select

from contourcast.imaging.errors import ContourcastError
from contourcast.service.index.tables import delivery, event, propagation, series
from contourcast.service.pacs.scu import Peer
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from support.course import (
    SPACING_XYZ_MM,
    TUMOUR_RADIUS_MM,
    TUMOUR_XYZ_MM,
    origin_xyz_mm,
    thorax_hu,
)
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set
from support.server import form_files
from support.topology import Process, Topology, topology

EVERY_S: Final = 3600 / (3 * 72)  # CLINICAL_SERVICE §6.2: 72 an hour at peak
PATIENTS: Final = 12
SAMPLE_S: Final = 5.0
END_S: Final = 900.0
MADE_AHEAD: Final = 4


# --------------------------------------------------------------------------------- what is sent


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A planning CT with its structure set."""

    name: str
    paths: list[Path]


def scan(
    folder: Path,
    name: str,
    patient: str,
    *,
    day: date,
    description: str,
    shift_xyz_mm: np.ndarray,
    seed: int,
    scale: int,
) -> CtFiles:
    """A series of ``24 * scale`` slices of ``64 * scale`` squared."""
    hu = thorax_hu(shift_xyz_mm, noise_hu=0.0, seed=seed)
    for axis in range(3):
        hu = hu.repeat(scale, axis)
    noise = np.random.default_rng(seed).normal(0.0, 20.0, hu.shape)
    origin = np.array(origin_xyz_mm()) - (scale - 1) / (2 * scale) * np.array(SPACING_XYZ_MM)

    def change(dataset: FileDataset, _: int) -> None:
        dataset.PatientName, dataset.PatientID = f"Phantom^{patient}", f"ID-{patient}"
        dataset.PatientBirthDate = "19500102"
        dataset.SeriesDescription = description
        dataset.StudyDate = dataset.SeriesDate = f"{day:%Y%m%d}"
        dataset.StudyTime = dataset.SeriesTime = "081500"

    return make_ct_series(
        folder,
        np.rint(hu + noise).astype(np.int16),
        spacing_xyz_mm=[mm / scale for mm in SPACING_XYZ_MM],
        origin_xyz_mm=origin.tolist(),
        name=name,
        change=change,
    )


def plan(folder: Path, patient: str, *, scale: int) -> Patient:
    """What is there before the first fraction."""
    day = date(2025, 12, 15)
    ct = scan(
        folder / "ct",
        f"{patient}-ct",
        patient,
        day=day,
        description="planning",
        shift_xyz_mm=np.zeros(3),
        seed=0,
        scale=scale,
    )
    z_mm = ct.positions_xyz_mm[:, 2] - TUMOUR_XYZ_MM[2]
    loops = [
        disc((*TUMOUR_XYZ_MM[:2], TUMOUR_XYZ_MM[2] + z), float(np.sqrt(TUMOUR_RADIUS_MM**2 - z**2)))
        for z in z_mm[np.abs(z_mm) < TUMOUR_RADIUS_MM]
    ]

    def change(dataset: FileDataset) -> None:
        dataset.PatientName, dataset.PatientID = f"Phantom^{patient}", f"ID-{patient}"
        dataset.PatientBirthDate = "19500102"
        dataset.StructureSetDate, dataset.StructureSetTime = f"{day:%Y%m%d}", "100000"

    structures = make_structure_set(
        folder / "structures.dcm",
        {"GTV": loops},
        reference=ct,
        name=f"{patient}-rs",
        change=change,
    )
    return Patient(name=patient, paths=[*ct.paths, structures])


def fraction(folder: Path, number: int, *, scale: int) -> CtFiles:
    """The CBCT of that number in all; patients take turns, each comes once a day."""
    patient = f"P{number % PATIENTS}"
    shift = np.random.default_rng(number).uniform(-6, 6, 3)
    return scan(
        folder / f"cbct-{number}",
        f"{patient}-cbct-{number}",
        patient,
        day=date(2026, 1, 5) + timedelta(days=number // PATIENTS),
        description="CBCT",
        shift_xyz_mm=shift,
        seed=number + 1,
        scale=scale,
    )


class Linacs:
    """Sends a series at each moment of a plan, late ones at once.

    Attributes:
        sent_at: When the last slice of each series was answered for.
        behind_s: How late the last one was begun.
    """

    def __init__(self, service: Topology, folder: Path, *, scale: int) -> None:
        self._peer = Peer(
            host="127.0.0.1", port=service.dicom_port, aet="CONTOURCAST", our_aet="ORTHANC"
        )
        self._folder = folder
        self._scale = scale
        self.sent_at: dict[str, datetime] = {}
        self.store_s: list[float] = []
        self.behind_s = 0.0
        self.refused = 0

    def run(self, *, for_s: float) -> None:
        """Sends for so long."""
        begun = time.monotonic()
        number = 0
        while (due := number * EVERY_S) < for_s:
            made = fraction(self._folder, number, scale=self._scale)
            time.sleep(max(0.0, begun + due - time.monotonic()))
            self.behind_s = max(self.behind_s, time.monotonic() - begun - due)
            self._send(made)
            number += 1

    def _send(self, made: CtFiles) -> None:
        left = list(made.paths)
        while left:
            start = time.monotonic()
            with suppress(ContourcastError):
                receipts = self._peer.store(left)
                self.store_s.append(time.monotonic() - start)
                left = [p for p, r in zip(left, receipts, strict=True) if not r.stored]
            self.refused += len(left)
        self.sent_at[made.series_uid] = datetime.now(UTC)
        for path in made.paths:
            path.unlink()


# ----------------------------------------------------------------------------- what is looked at


@dataclass(kw_only=True)
class Watch:
    """Samples of every process of ours, and of what waits."""

    service: Topology
    records: Records
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, float]] = field(default_factory=list)

    def sample(self) -> None:
        """Adds a row."""
        row: dict[str, float] = {"minute": (time.monotonic() - self.begun) / 60}
        for process in self.service.processes:
            row[f"{process.name} MiB"] = rss_mib(process)
            row[f"{process.name} handles"] = handles(process)
            row[f"{process.name} threads"] = threads(process)
        with self.records.index.read() as at:
            count = select(func.count())
            row["drawn on"] = at.execute(
                count.select_from(propagation).where(propagation.c.ended == 0)
            ).scalar_one()
            row["not whole"] = at.execute(
                count.select_from(series).where(series.c.state != "whole")
            ).scalar_one()
            row["to send"] = at.execute(
                count.select_from(delivery).where(delivery.c.state == "waiting")
            ).scalar_one()
        self.rows.append(row)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Samples until the block ends."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(SAMPLE_S):
                self.sample()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def flatness(self) -> dict[str, dict[str, float]]:
        """Of each column of a process: at a quarter, at the end, and the slope between them.

        The first quarter is left out: code is loaded, pools fill.
        """
        late = self.rows[len(self.rows) // 4 :]
        minutes = [row["minute"] for row in late]
        found = {}
        for name in late[0]:
            if not name.endswith(("MiB", "handles", "threads")):
                continue
            values = [row[name] for row in late]
            slope = float(np.polyfit(minutes, values, 1)[0]) if len(late) > 2 else 0.0
            found[name] = {
                "first": round(values[0], 1),
                "last": round(values[-1], 1),
                "most": round(max(values), 1),
                "per_hour": round(60 * slope, 2),
            }
        return found

    def write(self, path: Path) -> None:
        """All samples as CSV."""
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows({k: round(v, 3) for k, v in row.items()} for row in self.rows)


def rss_mib(process: Process) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def handles(process: Process) -> int:
    """Open files and sockets of a process."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def threads(process: Process) -> int:
    """Threads of a process."""
    return len(list(Path(f"/proc/{process.pid}/task").iterdir()))


def latencies(records: Records, sent_at: Mapping[str, datetime]) -> dict[str, Any]:
    """Seconds from the last slice to the contours, and to their receipt in Orthanc."""
    begun, drawn, received = [], [], []
    with records.index.read() as at:
        jobs = {
            row.cbct_series_uid: row.id
            for row in at.execute(
                select(propagation.c.cbct_series_uid, propagation.c.id).where(
                    propagation.c.state != "superseded"
                )
            )
        }
        for uid, sent in sent_at.items():
            if uid not in jobs:
                continue
            told = at.execute(
                select(event.c.sentence, event.c.at)
                .where(event.c.propagation == jobs[uid])
                .order_by(event.c.number)
            ).all()
            receipt = at.execute(
                select(delivery.c.receipt_json).where(delivery.c.propagation == jobs[uid])
            ).scalar()

            def since(when: str, sent: datetime = sent) -> float:
                return (datetime.fromisoformat(when) - sent).total_seconds()

            begun += [since(when) for said, when in told if said == "waiting for a worker"][:1]
            drawn += [since(when) for said, when in told if said == "sending the results"][:1]
            if receipt and "sent_at" in receipt:
                received.append(since(receipt["sent_at"]))
    return {
        "series": len(sent_at),
        "matched_s": percentiles(begun),
        "drawn_s": percentiles(drawn),
        "in_orthanc_s": percentiles(received),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """How many, and how long."""
    if not values:
        return {"count": 0}
    marks = {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 90, 95, 99)}
    return {"count": len(values), **marks, "most": round(max(values), 2)}


# -------------------------------------------------------------------------------------- the runs


def run_department(out: Path, *, minutes: float, scale: int) -> dict[str, Any]:
    """Linacs send for so long; then all is waited for."""
    settings = {"CONTOURCAST_METHODS": '["translation", "rigid"]'}
    with serving(out, settings) as (service, records):
        for number in range(PATIENTS):
            patient = plan(out / f"plan-{number}", f"P{number}", scale=scale)
            answer = service.http.post("/v1/instances", files=form_files(patient.paths))
            answer.raise_for_status()
        watch = Watch(service=service, records=records)
        linacs = Linacs(service, out / "cbcts", scale=scale)
        with watch.sampling():
            linacs.run(for_s=60 * minutes)
            done = waited(lambda: sent(records) >= len(linacs.sent_at))
        watch.write(out / "samples.csv")
        return {
            "load": {
                "minutes": minutes,
                "every_s": round(EVERY_S, 1),
                "series": f"{24 * scale} x {64 * scale} x {64 * scale}",
                "behind_s": round(linacs.behind_s, 2),
                "refused_and_sent_again": linacs.refused,
                "all_done": done,
            },
            "c_store_of_a_series_s": percentiles(linacs.store_s),
            "latency": latencies(records, linacs.sent_at),
            "step_s": steps(records),
            "backlog": {
                name: {
                    "most": max(row[name] for row in watch.rows),
                    "mean": round(statistics.fmean(row[name] for row in watch.rows), 2),
                }
                for name in ("drawn on", "not whole", "to send")
            },
            "flat": watch.flatness(),
        }


def run_intake(out: Path, *, count: int) -> dict[str, Any]:
    """Series come in by both doors, and nothing is drawn."""
    with serving(out, {"CONTOURCAST_INTAKE": "on_request"}) as (service, records):
        watch = Watch(service=service, records=records)
        peer = Peer(host="127.0.0.1", port=service.dicom_port, aet="CONTOURCAST", our_aet="ORTHANC")
        for number in range(count):
            made = fraction(out / "cbcts", number, scale=1)
            if number % 2:
                peer.store(made.paths)
            else:
                answer = service.http.post("/v1/instances", files=form_files(list(made.paths)))
                answer.raise_for_status()
            for path in made.paths:
                path.unlink()
            if number % 10 == 9:
                watch.sample()
        watch.write(out / "samples.csv")
        return {"series": count, "flat": watch.flatness()}


def run_rates(out: Path) -> dict[str, Any]:
    """One multipart of a hundred slices of 512 x 512, and forty small ones by C-STORE."""
    with serving(out, {"CONTOURCAST_INTAKE": "on_request"}) as (service, _):
        rates, seconds = [], []
        for number in range(3):
            noise = np.random.default_rng(number).integers(-1000, 1000, (100, 512, 512))
            big = make_ct_series(out / f"big-{number}", noise, name=f"big-{number}")
            files = form_files(list(big.paths))
            size = sum(len(content) for _, (_, content, _) in files)
            start = time.perf_counter()
            service.http.post("/v1/instances", files=files).raise_for_status()
            rates.append(size / 1e6 / (time.perf_counter() - start))
        peer = Peer(host="127.0.0.1", port=service.dicom_port, aet="CONTOURCAST", our_aet="ORTHANC")
        for number in range(3):
            small = make_ct_series(
                out / f"small-{number}", np.zeros((40, 64, 64)), name=f"small-{number}"
            )
            start = time.perf_counter()
            receipts = peer.store(small.paths)
            seconds.append(time.perf_counter() - start)
            assert all(receipt.stored for receipt in receipts)
        return {
            "multipart_mb_per_s": [round(rate, 1) for rate in rates],
            "c_store_of_40_small_slices_s": [round(s, 3) for s in seconds],
        }


@contextmanager
def serving(out: Path, settings: dict[str, str]) -> Iterator[tuple[Topology, Records]]:
    """The service, and its records to look into."""
    with topology(out / "service", settings=settings) as service:
        records = open_records(
            ServiceSettings(
                data_folder=service.data,
                database_url=service.api.environment["CONTOURCAST_DATABASE_URL"],
            ),
            role="load",
        )
        try:
            yield service, records
        finally:
            records.close()


def sent(records: Records) -> int:
    """Deliveries that were received."""
    with records.index.read() as at:
        return int(
            at.execute(
                select(func.count())
                .select_from(delivery)
                .where(delivery.c.state == "delivered", delivery.c.propagation != "")
            ).scalar_one()
        )


def steps(records: Records) -> dict[str, dict[str, float]]:
    """What the steps themselves took."""
    found: dict[str, list[float]] = {}
    for job in records.propagations.jobs(limit=10_000):
        figures = job.figures
        if "registration" in figures:
            found.setdefault("register", []).append(figures["registration"]["seconds"])
        for name, method in figures.get("methods", {}).items():
            found.setdefault(name, []).append(method["seconds"])
    return {name: percentiles(values) for name, values in found.items()}


def waited(reached: Callable[[], bool]) -> bool:
    """Whether it was so in time."""
    deadline = time.monotonic() + END_S
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def main() -> None:
    """Runs what was asked for and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--scale", type=int, default=2, help="1: 24 slices of 64 x 64; 2: 48 of …")
    parser.add_argument("--series", type=int, default=0, help="so many come in, none is drawn")
    parser.add_argument("--rates", action="store_true", help="how fast files come in")
    parser.add_argument("--out", type=Path, help="for samples.csv and figures.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="contourcast-load-") as folder:
        out = Path(folder)
        if asked.rates:
            figures = run_rates(out)
        elif asked.series:
            figures = run_intake(out, count=asked.series)
        else:
            figures = run_department(out, minutes=asked.minutes, scale=asked.scale)
        text = json.dumps(figures, indent=1)
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / "figures.json").write_text(text)
            if (out / "samples.csv").exists():
                (asked.out / "samples.csv").write_bytes((out / "samples.csv").read_bytes())
    print(text)


if __name__ == "__main__":
    main()
