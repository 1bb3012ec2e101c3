"""A cohort on one machine, stopped by kill -9 and asked for again: time, memory, what came of it.

    contourcast simulate --out COURSES --patients 20 --fractions 10
    python benchmarks/studies/cohort.py COURSES [--out FOLDER] [--kills 2]

`contourcast cohort COURSES` takes the folder in and draws translation and rigid, with the embedded
database and one worker. So many times it is killed, with all its processes, as soon as a further
part has ended. Prints the figures as JSON; cohort.csv and cohort.json stay in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

POLL_S: Final = 1.0
SETTINGS: Final = {
    "CONTOURCAST_METHODS": '["translation", "rigid"]',
    "CONTOURCAST_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("courses", type=Path, help="as contourcast simulate wrote them")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--kills", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(run(asked.courses, asked.out or Path(scratch), asked.kills), indent=2))


def run(courses: Path, out: Path, kills: int) -> dict[str, Any]:
    """Until all is drawn."""
    data, report = out / "data", out / "report"
    scans = sorted(courses.glob("*/fraction-*"))
    spans: list[dict[str, Any]] = []
    for killed in range(kills + 1):
        enough = len(scans) * (killed + 1) // (kills + 1) if killed < kills else None
        spans.append(span(courses, data, report, enough=enough))
        print(f"{spans[-1]}", file=sys.stderr, flush=True)
    with (report / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "cbcts": len(scans),
        "patients": len({scan.parent for scan in scans}),
        "spans": spans,
        "seconds_a_cbct": round(sum(each["seconds"] for each in spans) / len(scans), 2),
        "summary": json.loads((report / "cohort.json").read_text("utf-8")),
        "rows": len(rows),
        "rows_of_each_method": dict(Counter(row["method"] for row in rows)),
        "store_mb": round(bytes_of(data) / 1e6),
        "index_mb": round(sum(p.stat().st_size for p in data.glob("*.sqlite3*")) / 1e6, 1),
        "came_in_mb": round(bytes_of(courses) / 1e6),
    }


def span(courses: Path, data: Path, report: Path, *, enough: int | None) -> dict[str, Any]:
    """One call of the command, to its end or until so many are drawn."""
    begun, most_mib = time.monotonic(), 0.0
    command = [*(sys.executable, "-m", "contourcast", "cohort", str(courses))]
    command += ["--out", str(report), "--data", str(data)]
    process = subprocess.Popen(
        command, env=os.environ | SETTINGS, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            most_mib = max(most_mib, resident_mib(process.pid))
            if enough is not None and ended(data) >= enough:
                break
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the command ended with {process.returncode}")
    return {
        "ended": ended(data),
        "seconds": round(time.monotonic() - begun, 1),
        "most_mib": round(most_mib),
    }


def ended(data: Path) -> int:
    """Propagations that have ended."""
    path = data / "index.sqlite3"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)) as at:
        try:
            return int(at.execute("SELECT count(*) FROM propagation WHERE ended = 1").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):  # not made yet
                raise
            return 0


def resident_mib(leader: int) -> float:
    """Of all processes of a session."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) == leader:
                status = (folder / "status").read_text("ascii")
                total += int(status.partition("VmRSS:")[2].split()[0]) / 1024
        except (OSError, IndexError):  # it has ended
            continue
    return total


def bytes_of(folder: Path) -> int:
    """Of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
