"""A real server process, to be talked to, watched and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from support.course import CourseFiles

START_S = 180.0


class Server:
    """``contourcast serve`` over a data folder, on a port of its own."""

    def __init__(self, data_folder: Path, *options: str, **settings: str) -> None:
        self.data_folder = data_folder
        self.options = options
        self.settings = {f"CONTOURCAST_{n.upper()}": value for n, value in settings.items()}
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._listening = threading.Event()
        self.http = httpx.Client()

    def start(self) -> Self:
        """Starts it and waits until it answers."""
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "CONTOURCAST_DEVICE": "cpu",
            "CONTOURCAST_INTAKE": "on_request",
            **self.settings,
        }
        command = [sys.executable, "-m", "contourcast", "serve", "--port", "0", "--data"]
        self._process = subprocess.Popen(
            [*command, str(self.data_folder), *self.options],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        assert self._listening.wait(START_S), "\n".join(self.lines)
        return self

    def kill(self) -> None:
        """``kill -9`` of the server; its worker follows."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._listening.clear()
        self.http.close()

    def worker_pid(self) -> int:
        """The process that runs the jobs."""
        assert self._process is not None
        pid = self._process.pid
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            children = [
                child
                for thread in Path(f"/proc/{pid}/task").iterdir()
                for child in (thread / "children").read_text("ascii").split()
            ]
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise AssertionError("the server has no worker")

    def stop(self) -> None:
        """The orderly end."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=20)
        self.http.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stderr:
            for line in stderr:
                self.lines.append(line)
                if '"serving"' in line:
                    self.http.close()
                    self.http = httpx.Client(base_url=json.loads(line)["url"], timeout=30.0)
                    self._listening.set()

    # What tests do with it

    def send(self, course: CourseFiles) -> None:
        """Uploads the whole course in one request."""
        answer = self.http.post("/v1/instances", files=form_files(course.paths))
        assert answer.status_code == 200, answer.text + "".join(self.lines)
        assert {i["outcome"] for i in answer.json()["instances"]} <= {"stored", "already"}

    def ask(self, course: CourseFiles, **more: Any) -> str:
        """Asks for translation and rigid; the id."""
        answer = self.http.post("/v1/propagations", json=request_for(course) | more)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["id"])

    def job(self, propagation: str) -> dict[str, Any]:
        """The state of a propagation."""
        answer = self.http.get(f"/v1/propagations/{propagation}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until(
        self, propagation: str, reached: Callable[[dict[str, Any]], bool], *, limit_s: float = 300.0
    ) -> dict[str, Any]:
        """Follows a job by its events until its state is as wanted."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            job = self.job(propagation)
            if reached(job) or (job["ended"] and job["state"] != "delivering"):
                return job
            time.sleep(0.02)
        raise AssertionError(f"not reached within {limit_s} s: {job}\n" + "".join(self.lines))

    def done(self, propagation: str) -> dict[str, Any]:
        """Waits for the end, which must be a good one."""
        job = self.until(propagation, lambda _: False)
        assert job["state"] == "awaiting_review", f"{job}\n{''.join(self.lines)}"
        return job


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A server with one job that is done."""

    server: Server
    course: CourseFiles
    id: str


def request_for(course: CourseFiles) -> dict[str, Any]:
    """Asks for two methods that take seconds."""
    return {
        "cbct": course.cbct.series_uid,
        "roi": "GTV",
        "structures": course.structures_uid,
        "methods": ["translation", "rigid"],
    }


def form_files(paths: Sequence[Path]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Files as parts of a multipart request."""
    return [("files", (p.name, p.read_bytes(), "application/dicom")) for p in paths]


@contextmanager
def serving(data_folder: Path, *options: str, **settings: str) -> Iterator[Server]:
    """A server for a block."""
    server = Server(data_folder, *options, **settings).start()
    try:
        yield server
    finally:
        server.stop()
