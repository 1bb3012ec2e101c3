"""A real PostgreSQL cluster of our own, to be stopped, killed and started again.

with postgres() as cluster:
    url = cluster.database("index")
    cluster.kill()
    cluster.start()
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from support.data import require
from support.orthanc import free_ports

START_S: Final = 30.0
USER: Final = "contourcast"
# A process that is killed loses nothing that the system holds for it, so tests need no fsync.
OPTIONS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
}


class Cluster:
    """One cluster on a port of loopback; everybody on this machine may connect.

    Attributes:
        url: Of the database ``postgres``; see `Cluster.database` for one of a test's own.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self.url = self._url("postgres")
        self.log = folder / "postgres.log"
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8",
            "--locale=C.UTF-8", "--pgdata", str(folder / "data"),
        )  # fmt: skip

    def start(self) -> Self:
        """Starts it and waits until it takes connections."""
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            **OPTIONS,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    *("-D", str(self.folder / "data")),
                    *(
                        word
                        for name, value in options.items()
                        for word in ("-c", f"{name}={value}")
                    ),
                ],
                stdout=log,
                stderr=log,
                **self._as_ordinary_user(),
            )
        deadline = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._ready():
                return self
            time.sleep(0.02)
        self.stop()
        raise AssertionError(f"PostgreSQL did not start:\n{self.log.read_text(errors='replace')}")

    def stop(self) -> None:
        """The fast orderly end: sessions are cut off, what was not committed is rolled back."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=30)
            self._process = None

    def kill(self) -> None:
        """``kill -9`` of all its processes at once."""
        assert self._process is not None
        pid = self._process.pid
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text("ascii").split()
        ]
        for one in (pid, *children):
            with suppress(ProcessLookupError):  # it went by itself
                os.kill(one, signal.SIGKILL)
        self._process.wait()
        self._process = None
        while any(_runs(child) for child in children):
            time.sleep(0.005)

    def database(self, name: str) -> str:
        """Makes an empty database, dropping the one of that name; its URL."""
        self._run("dropdb", "--if-exists", "--force", *self._address(), name)
        self._run("createdb", *self._address(), name)
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def _address(self) -> Sequence[str]:
        return ("--host=127.0.0.1", f"--port={self.port}", f"--username={USER}")

    def _ready(self) -> bool:
        asked = subprocess.run(
            [str(self._programs / "pg_isready"), "--quiet", *self._address(), "--dbname=postgres"]
        )
        return asked.returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        ran = subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            **self._as_ordinary_user(),
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def _as_ordinary_user(self) -> dict[str, Any]:
        """The server refuses to run as root, and its user must be able to enter where it starts."""
        if os.geteuid() != 0:
            return {"cwd": self.folder}
        return {"cwd": self.folder, "user": "postgres", "group": "postgres", "extra_groups": []}


@contextmanager
def postgres() -> Iterator[Cluster]:
    """A cluster for a block, in a folder of its own (the folders of pytest are root's alone)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_major)
    require("peer", bool(found), "PostgreSQL is not installed: make peers")
    folder = Path(tempfile.mkdtemp(prefix="contourcast-postgres-"))
    try:
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
        cluster = Cluster(folder, found[-1].parent)
        try:
            yield cluster.start()
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


def _major(program: Path) -> float:
    return float(program.parent.parent.name)


def _runs(pid: int) -> bool:
    """Whether a process is there and no corpse."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
