"""C-STORE over loopback: our node beside DCMTK's storescp, each fed by DCMTK's storescu in turns.

    python -m benchmarks.dicom_node [--times 5]

Two loads: 40 slices of 33 kB, and 200 of 0.5 MB. Our node answers once a file is flushed and its
row committed (SQLite, synchronous=FULL); storescp writes and answers, flushes nothing and keeps no
index. So that the disk can be told from the node, it runs a second time with a door that does not
flush, and the door is timed alone, without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import structlog

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from benchmarks.measure import compared
from contourcast.imaging.dicom.instance import read_header
from contourcast.service.pacs.door import Taken
from contourcast.service.pacs.node import Landed, Sender
from support.dicom_factory import make_ct_series
from support.dimse import LINAC, LOOPBACK, FolderDoor, node, storescu
from support.orthanc import free_ports

GOAL_S = 0.5  # of 40 slices of 33 kB, CLINICAL_SERVICE §3.2
LOADS = {"40 x 33 kB": (40, 128), "200 x 0.5 MB": (200, 512)}


class HastyDoor(FolderDoor):
    """Moves the file and flushes nothing, as storescp does."""

    def take(self, landed: Landed, *, sender: Sender) -> Taken:
        """Takes one instance."""
        landed.path.replace(self.path_of(landed.header.sop_instance_uid))
        return Taken(outcome="stored")


def serve(folder: Path, door_of: type[FolderDoor], pipe: Connection) -> None:
    """Our node in a process of its own, until it is told to end."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    door = door_of(folder)
    with node(door) as ours:
        pipe.send(ours.port)
        pipe.recv()
    door.close()


@contextmanager
def our_node(folder: Path, door_of: type[FolderDoor]) -> Iterator[int]:
    """Runs our node for a block; its port."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(folder, door_of, there)
    )
    process.start()
    try:
        yield int(here.recv())
    finally:
        here.send("end")
        process.join()


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """Runs DCMTK's receiver for a block; its port."""
    folder.mkdir()
    (port,) = free_ports(1)
    process = subprocess.Popen(
        ["storescp", "-od", str(folder), "--max-pdu", "131072", str(port)],
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    try:
        while process.poll() is None:
            if (
                subprocess.run(["echoscu", LOOPBACK, str(port)], capture_output=True).returncode
                == 0
            ):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def sending(port: int, paths: Sequence[Path], keeps: Path) -> Callable[[], None]:
    """Sends all paths to a node whose folder is emptied first, as a repeated file costs less."""

    def send() -> None:
        said = storescu(port, paths)
        assert said.returncode == 0, said.stderr
        for path in keeps.iterdir():
            path.unlink()

    return send


def door_alone(folder: Path, paths: Sequence[Path]) -> float:
    """Seconds that the same files take when nobody sends them."""
    door = FolderDoor(folder)
    begun = time.perf_counter()
    for path in paths:
        content = path.read_bytes()
        incoming = door.incoming()
        incoming.write_bytes(content)
        landed = Landed(
            path=incoming,
            file_digest=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            header=read_header(incoming),
        )
        door.take(landed, sender=Sender(aet=LINAC, address=LOOPBACK))
    took_s = time.perf_counter() - begun
    door.close()
    shutil.rmtree(folder)
    return took_s


def main() -> None:
    """Prints two lines for each load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    try:
        with (
            our_node(folder / "safe", FolderDoor) as safe,
            our_node(folder / "hasty", HastyDoor) as hasty,
            storescp(folder / "scp") as scp,
        ):
            for load, (files, side) in LOADS.items():
                hu = np.random.default_rng(0).integers(-1000, 1000, (files, side, side))
                paths = make_ct_series(folder / load, hu.astype(np.int16), name=load).paths
                size_mb = sum(path.stat().st_size for path in paths) / 1e6
                theirs = sending(scp, paths, folder / "scp")
                for title, port, keeps in (
                    ("flushed and committed", safe, folder / "safe" / "kept"),
                    ("not flushed", hasty, folder / "hasty" / "kept"),
                ):
                    found = compared(
                        f"{load}, {title}",
                        sending(port, paths, keeps),
                        theirs,
                        times=arguments.times,
                    )
                    print(found)
                    print(
                        f"  ours {size_mb / found.ours.best:.0f} MB/s, "
                        f"storescp {size_mb / found.peer.best:.0f} MB/s"
                    )
                alone_s = [door_alone(folder / "alone", paths) for _ in range(arguments.times)]
                best_s = min(alone_s)
                print(f"{load}, the door alone: {best_s:.3f} s, {size_mb / best_s:.0f} MB/s")
            print(f"goal for 40 x 33 kB: {GOAL_S} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
