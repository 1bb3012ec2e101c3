"""What it costs to pull a series from an Orthanc on loopback, and to look at what it has.

    python -m benchmarks.orthanc [--slices 100] [--series 40] [--times 3]

Slices are 512 x 512 (0.525 MB). Files are pulled with and without their digests being asked for,
beside what a client without "Accept-Encoding: identity" gets, in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import httpx
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from contourcast.service.pacs.connection import PIECE, in_parallel
from contourcast.service.pacs.orthanc import HeldInstance, Orthanc
from support.dicom_factory import make_ct_series
from support.orthanc import PASSWORD, USER, orthanc


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        orthanc(Path(name) / "orthanc", stable_age_s=60) as archive,
        Orthanc(archive.peer) as client,
        httpx.Client(base_url=archive.url, auth=(USER, PASSWORD)) as plain,
    ):
        folder = Path(name)
        generator = np.random.default_rng(1)
        hu_zyx = generator.integers(-1000, 1000, (arguments.slices, 512, 512))
        series = make_ct_series(folder / "large", hu_zyx, name="large")
        megabytes = sum(path.stat().st_size for path in series.paths) / 1e6
        seconds = timed(lambda: client.send(series.paths))
        print(f"send {len(series.paths)} files: {megabytes / seconds:.0f} MB/s")
        (held,) = map(client.series, client.find_series(since=date(2026, 1, 1)))
        assert held is not None

        def digested(place: Path) -> None:
            client.fetch_all(held.instances, place)

        def bare(place: Path) -> None:
            def one(instance: HeldInstance) -> None:
                into = place / instance.id
                client._connection.download(f"instances/{instance.id}/file", into, watch=len)

            in_parallel(one, held.instances)

        def deflated(place: Path) -> None:
            for instance in held.instances:
                with (
                    plain.stream("GET", f"/instances/{instance.id}/file") as answer,
                    (place / instance.id).open("wb") as file,
                ):
                    for piece in answer.iter_bytes(PIECE):
                        file.write(piece)

        ways = {"pulled, digests compared": digested, "pulled": bare, "as httpx asks": deflated}
        for turn in range(arguments.times):
            for title, way in ways.items():
                place = folder / f"{title} {turn}"
                place.mkdir()
                print(f"{title}: {megabytes / timed(way, place):.0f} MB/s")

        tiny = np.zeros((88, 8, 8), int)
        for k in range(arguments.series):
            archive.upload(make_ct_series(folder / str(k), tiny, name=f"small {k}").paths)
        ids = client.find_series(since=date(2026, 1, 1))
        seconds = timed(lambda: [client.series(one) for one in ids])
        print(f"list {len(ids)} series of 88 slices: {1000 * seconds / len(ids):.1f} ms each")


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
