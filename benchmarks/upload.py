"""Upload of a series over loopback: MB/s, beside the least that a disk and a digest cost.

    python benchmarks/upload.py [--files 100] [--times 3]

Each file is a CT slice of 512 x 512 (0.525 MB). The server is a real uvicorn in a process of its
own; its answer comes after every file was digested, read up to its pixels, flushed to the disk and
written into the index. The floor does the digest, the write and the flush alone, in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from support.dicom_factory import make_ct_series

GOAL_MB_S = 200.0  # DESIGN §7; Orthanc took 101 to 177 MB/s in the same trial
SERVER = """
import sys, uvicorn
from pathlib import Path
from contourcast.service.api.app import create_app
from contourcast.service.logs import configure_logging
from contourcast.service.settings import ServiceSettings
configure_logging("error")
app = create_app(ServiceSettings(data_folder=Path(sys.argv[1])))
uvicorn.run(app, port=int(sys.argv[2]), log_config=None, access_log=False)
"""


def main() -> None:
    """Prints a line for each way to send."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        series = [slices(folder / str(n), arguments.files, n) for n in range(3 * arguments.times)]
        port = 18321
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder / "data"), str(port)])
        try:
            wait_for(port)
            for title, send in (
                ("one multipart", multipart),
                ("raw zip, stored", stored_zip),
                ("a request a file", one_by_one),
            ):
                rates = [rate(send, port, series.pop()) for _ in range(arguments.times)]
                print(f"{title}: best {max(rates):.0f} MB/s of {shown(rates)}")
            print(f"goal for one multipart: {GOAL_MB_S:.0f} MB/s")
            print(f"peak memory of the server: {peak_mib(server.pid):.0f} MiB")
        finally:
            server.terminate()
            server.wait()
        again = slices(folder / "floor", arguments.files, 99)
        rates = [floor(again, folder) for _ in range(arguments.times)]
        print(f"floor (digest, write, flush): best {max(rates):.0f} MB/s of {shown(rates)}")


def slices(folder: Path, files: int, seed: int) -> list[tuple[str, bytes]]:
    """A series of noise: nothing to gain by compressing."""
    hu = np.random.default_rng(seed).integers(-1000, 1000, (files, 512, 512)).astype(np.int16)
    made = make_ct_series(folder, hu, name=f"upload {seed}")
    return [(p.name, p.read_bytes()) for p in made.paths]


def multipart(port: int, files: list[tuple[str, bytes]]) -> float:
    """All files in one form; the body is built before the clock starts."""
    boundary = uuid.uuid4().hex
    body = io.BytesIO()
    for name, content in files:
        body.write(
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/dicom\r\n\r\n".encode()
        )
        body.write(content)
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return post(port, body.getvalue(), f"multipart/form-data; boundary={boundary}")


def stored_zip(port: int, files: list[tuple[str, bytes]]) -> float:
    """A zip that only holds, as the body."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return post(port, body.getvalue(), "application/zip")


def one_by_one(port: int, files: list[tuple[str, bytes]]) -> float:
    """Each file a request of its own, one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    start = time.perf_counter()
    for _, content in files:
        connection.request("POST", "/v1/instances", content, {"Content-Type": "application/dicom"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
    return time.perf_counter() - start


def post(port: int, body: bytes, kind: str) -> float:
    """Seconds until the answer is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    start = time.perf_counter()
    connection.request("POST", "/v1/instances", body, {"Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    seconds = time.perf_counter() - start
    assert answer.status == 200, content
    assert b'"stored"' in content
    assert b'"refused"' not in content
    return seconds


def rate(
    send: Callable[[int, list[tuple[str, bytes]]], float],
    port: int,
    files: list[tuple[str, bytes]],
) -> float:
    """MB/s of one way to send."""
    return sum(len(content) for _, content in files) / 1e6 / send(port, files)


def floor(files: list[tuple[str, bytes]], folder: Path) -> float:
    """MB/s of what no server can spare."""
    start = time.perf_counter()
    for number, (_, content) in enumerate(files):
        hashlib.sha256(content).hexdigest()
        with (folder / f"{number}.floor").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return sum(len(content) for _, content in files) / 1e6 / (time.perf_counter() - start)


def wait_for(port: int) -> None:
    """Until the server answers."""
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health/live")
            connection.getresponse().read()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server did not start")


def peak_mib(pid: int) -> float:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def shown(rates: list[float]) -> str:
    """All repetitions."""
    return ", ".join(f"{r:.0f}" for r in rates)


if __name__ == "__main__":
    main()
