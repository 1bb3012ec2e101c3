"""How long a page of the worklist takes with 10,000 propagations in the database.

    python benchmarks/worklist.py [--propagations 10000] [--database postgresql://USER@HOST/NAME]

Prints a table: each page is fetched over HTTP from a server of its own, audit row included.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import httpx
import uvicorn

from contourcast.service.api.app import create_app
from contourcast.service.index.database import Index
from contourcast.service.index.tables import course, event, fraction, propagation, series
from contourcast.service.settings import ServiceSettings

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
PAGES = (
    "/v1/worklist",
    "/v1/worklist?limit=500",
    "/v1/worklist?verdict=look",
    "/v1/worklist?machine=Varian+Medical+Systems+On-Board+Imager",
    "/v1/worklist?state=approved",
    "/v1/propagations",
    "/v1/propagations?limit=500",
    "/v1/courses",
    "/metrics",
)


def fill(index: Index, propagations: int) -> None:
    """Courses of thirty fractions, one propagation each; a tenth decided, a few in question."""
    dice = Random(7)
    rows: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("course", "series", "fraction", "propagation", "event")
    }
    for number in range(propagations):
        who, nth = divmod(number, 30)
        key, course_id = f"{who:032x}", f"{who + 10**6:032x}"
        at = (START + timedelta(minutes=2 * number)).isoformat()
        taken_at = (START + timedelta(days=nth, minutes=2 * who)).isoformat()[:19]
        if nth == 0:
            rows["course"].append(
                {
                    "id": course_id,
                    "patient_key": key,
                    "planning_series_uid": f"1.2.3.{who}",
                    "structures_uid": f"1.2.4.{who}",
                    "rois_json": [{"number": 1, "name": "GTV"}],
                    "made_at": at,
                }
            )
        scan, revision = f"1.2.5.{number}", f"{number:064x}"
        facts = {
            "manufacturer": "Varian Medical Systems",
            "model": "On-Board Imager",
            "patient": {
                "patient_id": str(who),
                "issuer": "",
                "name": f"P^{who}",
                "birth_date": "",
            },
        }
        rows["series"].append(
            {
                "uid": scan,
                "study_uid": f"1.2.6.{number}",
                "modality": "CT",
                "patient_key": key,
                "facts_json": facts
                | {"series_description": "CBCT" * 4, "image_type": ["ORIGINAL"]},
                "door": "dimse",
                "sender": "LINAC1",
                "counted_json": [],
                "last_arrival_at": at,
                "state": "whole",
                "reason": "gapless and released",
                "revision": revision,
            }
        )
        asks = dice.random() < 0.01
        rows["fraction"].append(
            {
                "revision_id": revision,
                "series_uid": scan,
                "patient_key": key,
                "course_id": None if asks else course_id,
                "acquired_at": taken_at,
                "state": "needs_person" if asks else "matched",
                "reasons_json": [],
                "question_json": {"question": "roi", "why": "two targets", "choices": []}
                if asks
                else {},
                "answers_json": [],
                "looked_at": 0,
                "made_at": at,
            }
        )
        verdict = dice.choices(("accept", "look", "reject"), (70, 25, 5))[0]
        state = dice.choices(("awaiting_review", "approved", "failed"), (88, 10, 2))[0]
        job = f"{number:032x}"
        drawn = {
            name: {
                "volume_cc": 30.0,
                "verdict": verdict,
                "seconds": 3.0,
                "centroid_xyz_mm": [1, 2, 3],
            }
            for name in ("translation", "rigid", "dir-t", "dir-l", "diff-umamba")
        }
        rows["propagation"].append(
            {
                "id": job,
                "number": number + 1,
                "order_json": {
                    "cbct": {"series": scan, "files": [f"{n:064x}" for n in range(88)]},
                    "planning_ct": {
                        "series": f"1.2.3.{who}",
                        "files": [f"{n:064x}" for n in range(200)],
                    },
                    "roi": "GTV",
                    "methods": list(drawn),
                },
                "made_at": at,
                "attempt": 1,
                "state": state,
                "figures_json": {"methods": drawn, "verdict": verdict, "reasons": ["as expected"]},
                "problem_json": {},
                "files_json": {"RS.dcm": "0" * 64},
                "course_id": course_id,
                "revision_id": revision,
                "patient_key": key,
                "cbct_series_uid": scan,
                "acquired_at": taken_at,
                "verdict": verdict,
                "priority": 1,
                "asked_by": "intake",
                "ended": 1,
            }
        )
        for step, name in enumerate(
            ("matched", "registering", "drawing", "awaiting_review"), start=1
        ):
            when = (START + timedelta(minutes=2 * number, seconds=5 * step)).isoformat()
            rows["event"].append(
                {
                    "propagation": job,
                    "number": step,
                    "at": when,
                    "state": name,
                    "sentence": name,
                    "done": step / 4,
                }
            )
    tables = (course, series, fraction, propagation, event)
    with index.write() as at_once:
        for table in tables:
            found = rows[table.name]
            for start in range(0, len(found), 1000):
                at_once.execute(table.insert(), found[start : start + 1000])


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[httpx.Client]:
    """The API on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = uvicorn.Server(
            uvicorn.Config(create_app(settings), log_config=None, access_log=False)
        )
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=120.0) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def measure(client: httpx.Client, path: str, times: int) -> tuple[float, float, float, int]:
    """Median, worst and processor's seconds of a page, and bytes on the wire.

    The processor's are of client and server together, and the same however busy the machine is.
    """
    seconds = []
    processor = time.process_time()
    for _ in range(times):
        start = time.perf_counter()
        answer = client.get(path)
        seconds.append(time.perf_counter() - start)
        answer.raise_for_status()
    processor_s = (time.process_time() - processor) / times
    return statistics.median(seconds), max(seconds), processor_s, answer.num_bytes_downloaded


def pages_of(client: httpx.Client, path: str) -> tuple[int, float]:
    """How many pages there are, and the slowest one's seconds, following Link to the end."""
    number, worst = 0, 0.0
    while path:
        start = time.perf_counter()
        answer = client.get(path)
        worst = max(worst, time.perf_counter() - start)
        number += 1
        path = answer.links.get("next", {}).get("url", "")
    return number, worst


def main() -> None:
    """Fills a database and fetches pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--propagations", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--database", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ServiceSettings(
            data_folder=Path(folder), database_url=asked.database, disk_reserve_mib=0
        )
        index = Index(settings.index_url)
        fill(index, asked.propagations)
        index.close()
        with serving(settings) as client:
            print(f"{asked.propagations} propagations, of {asked.times}: median, worst, processor")
            for path in PAGES:
                median_s, worst_s, processor_s, size = measure(client, path, asked.times)
                print(
                    f"{path:<62} {median_s * 1e3:6.0f} {worst_s * 1e3:6.0f} "
                    f"{processor_s * 1e3:6.0f} ms {size:8d} B"
                )
            number, worst = pages_of(client, "/v1/worklist")
            print(f"all {number} pages of the worklist: the slowest {worst * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
