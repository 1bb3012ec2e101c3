"""The service as docker/compose.yaml describes it, as plain processes of this machine.

    with topology(tmp_path, workers=3) as service:
        service.http.get("/v1/worklist")
        service.workers[0].kill()
        service.workers[0].start()
        service.api.stop()      # SIGSTOP
        service.api.cont()      # SIGCONT

PostgreSQL, Orthanc with our rule, the API, the DICOM node and the workers are processes of their
own, with the commands and the environment that compose.yaml gives them; only addresses, ports and
folders are put in place of the containers'.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
import yaml  # type: ignore[import-untyped]

from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import GIVEN, Role
from contourcast.service.index.database import Index
from support.data import REPOSITORY
from support.orthanc import PASSWORD, RealOrthanc, free_ports, orthanc
from support.postgres import Cluster, postgres

COMPOSE: Final = REPOSITORY / "docker" / "compose.yaml"
SITE: Final = REPOSITORY / "docker" / "contourcast.toml"
START_S: Final = 180.0
GRACE_S: Final = 60.0  # stop_grace_period in compose.yaml
DATABASE_PASSWORD: Final = "trusted-without-it"
VARIABLE: Final = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Process:
    """One process of the service, to be watched, frozen, killed and started again.

    Attributes:
        lines: What it, and those before it, logged.
    """

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], *, started: str
    ) -> None:
        self.name = name
        self.command = [sys.executable, "-m", "contourcast", *command]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.lines: list[str] = []
        self.started = started
        self._said = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def start(self, *, wait: bool = True) -> Self:
        """Starts it and, unless told otherwise, waits until it says that it works."""
        assert self._process is None, f"{self.name} runs"
        before = len(self.lines)
        self._process = subprocess.Popen(
            self.command, stderr=subprocess.PIPE, text=True, env=self.environment
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        if wait:
            self.wait_for(self.started, after=before)
        return self

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """``kill -9``."""
        os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def stop(self) -> None:
        """SIGSTOP: it is there and does nothing, as on a machine that swaps or hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: it goes on as if nothing had been."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> int:
        """The end as a supervisor makes it: asked, and killed when it takes too long; its code."""
        os.kill(self.pid, signal.SIGTERM)
        os.kill(self.pid, signal.SIGCONT)
        try:
            return self._gone()
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def wait_for(self, text: str, *, after: int = 0, limit_s: float = START_S) -> str:
        """Waits for a line with a text among those from the line number ``after`` on."""
        deadline = time.monotonic() + limit_s
        with self._said:
            while True:
                for line in self.lines[after:]:
                    if text in line:
                        return line
                assert time.monotonic() < deadline, self._story(f"not said in {limit_s} s: {text}")
                assert self.runs, self._story(f"ended before it said: {text}")
                self._said.wait(0.2)

    def _gone(self) -> int:
        assert self._process is not None
        code = self._process.wait(timeout=GRACE_S)
        self._process = None
        return code

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stderr:
            for line in stderr:
                with self._said:
                    self.lines.append(line)
                    self._said.notify_all()

    def _story(self, what: str) -> str:
        return f"{self.name}: {what}\n{''.join(self.lines[-40:])}"


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Everything that runs.

    Attributes:
        data: The data folder that all share.
        dicom_port: Where the node listens, as the AE ``CONTOURCAST``.
        http: Calls the API with a key that has every role.
        key: That key.
    """

    data: Path
    postgres: Cluster
    orthanc: RealOrthanc
    api: Process
    node: Process
    workers: tuple[Process, ...]
    http: httpx.Client
    dicom_port: int
    key: str

    @property
    def processes(self) -> tuple[Process, ...]:
        """Those of ours."""
        return (self.api, self.node, *self.workers)

    @property
    def lines(self) -> list[str]:
        """What all of ours logged, one process after the other."""
        return [line for process in self.processes for line in process.lines]

    def ready(self, *, limit_s: float = START_S) -> dict[str, Any]:
        """Waits until the service says that it takes work; what it says."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                answer = self.http.get("/health/ready")
            except httpx.TransportError as error:
                told = repr(error)
            else:
                if answer.status_code == 200:
                    return dict(answer.json())
                told = answer.text
            assert time.monotonic() < deadline, told + "".join(self.lines[-40:])
            time.sleep(0.05)


@contextmanager
def topology(
    folder: Path,
    *,
    workers: int = 1,
    queues: str | None = None,
    settings: Mapping[str, str] | None = None,
    **archive: Any,
) -> Iterator[Topology]:
    """Starts everything for a block, in the order of compose.yaml, and ends it orderly.

    Args:
        folder: Of data, settings and Orthanc.
        workers: How many; their slots are ``cpu-1``, ``cpu-2``, …
        queues: What each of them serves; left out: all, since one machine has no second kind.
        settings: More environment variables for all processes of ours.
        archive: Options of `support.orthanc.orthanc`.
    """
    api_port, dicom_port = free_ports(2)
    data = folder / "data"
    data.mkdir(parents=True)
    with postgres() as cluster, ExitStack() as beside:
        database = cluster.database("contourcast")
        key, hint = _keys(database)
        secrets = {
            "POSTGRES_PASSWORD": DATABASE_PASSWORD,
            "CONTOURCAST_ORTHANC_PASSWORD": PASSWORD,
            "CONTOURCAST_EVENTS_KEY": hint,
        }
        places = {
            "/data": str(data),
            f"contourcast:{DATABASE_PASSWORD}@postgres:5432/contourcast": database.partition("//")[
                2
            ],
            "http://api:8000": f"http://127.0.0.1:{api_port}",
            "0.0.0.0": "127.0.0.1",
            "/etc/contourcast/contourcast.toml": str(folder / SITE.name),
        }
        kept = beside.enter_context(
            orthanc(
                folder / "orthanc",
                rule=True,
                environment=environment_of("orthanc", secrets, places),
                modalities={
                    "contourcast": {"AET": "CONTOURCAST", "Host": "127.0.0.1", "Port": dicom_port}
                },
                **archive,
            )
        )
        _site(folder / SITE.name, orthanc_url=kept.url)

        def process(service: str, name: str, *, started: str, **other: str) -> Process:
            environment = environment_of(service, secrets, places) | other | dict(settings or {})
            command = command_of(service)
            if queues is None and "--queues" in command:
                del command[(at := command.index("--queues")) : at + 2]
            elif "--queues" in command:
                command[command.index("--queues") + 1] = str(queues)
            made = Process(name, command, environment, started=f'"{started}"')
            beside.callback(lambda: made.end() if made.runs else None)
            return made

        service = Topology(
            data=data,
            postgres=cluster,
            orthanc=kept,
            api=process("api", "api", started="serving", CONTOURCAST_PORT=str(api_port)),
            node=process(
                "dicom-node",
                "dicom-node",
                started="dicom_node_started",
                CONTOURCAST_DICOM_PORT=str(dicom_port),
            ),
            workers=tuple(
                process(
                    "worker-cpu",
                    f"worker {number}",
                    started="worker_started",
                    CONTOURCAST_WORKER_SLOT=f"cpu-{number}",
                )
                for number in range(1, workers + 1)
            ),
            http=beside.enter_context(
                httpx.Client(
                    base_url=f"http://127.0.0.1:{api_port}",
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=60.0,
                )
            ),
            dicom_port=dicom_port,
            key=key,
        )
        service.api.start()
        for one in (service.node, *service.workers):
            one.start(wait=False)
        for one in (service.node, *service.workers):
            one.wait_for(one.started)
        service.ready()
        yield service


def composed() -> dict[str, Any]:
    """The services of compose.yaml."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services


def command_of(service: str) -> list[str]:
    """What follows ``contourcast`` there."""
    return [str(word) for word in composed()[service]["command"]]


def environment_of(
    service: str, secrets: Mapping[str, str], places: Mapping[str, str]
) -> dict[str, str]:
    """The variables of a service as compose would set them, moved to other places.

    Args:
        service: Its name.
        secrets: What the secret file holds.
        places: What stands in place of what.
    """
    found = {}
    for name, value in composed()[service].get("environment", {}).items():
        text = interpolated(str(value), secrets)
        for there, here in places.items():
            text = text.replace(there, here)
        found[name] = text
    return found


def interpolated(text: str, known: Mapping[str, str]) -> str:
    """Puts variables in place of ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?why}``."""

    def value(found: re.Match[str]) -> str:
        name, sign, rest = found.groups()
        if known.get(name):
            return known[name]
        assert sign != "?", f"{name}: {rest}"
        return rest or ""

    return VARIABLE.sub(value, text)


def _keys(database: str) -> tuple[str, str]:
    """A key that may everything, and that of Orthanc's rule."""
    index = Index(database)
    try:
        return (
            make_key(index, label="tests", roles=GIVEN, days=None)[1],
            make_key(index, label="orthanc", roles=[Role.MACHINE], days=None)[1],
        )
    finally:
        index.close()


def _site(path: Path, *, orthanc_url: str) -> None:
    """The site's settings, with Orthanc and its network where they are here."""
    text = SITE.read_text()
    for there, here in {
        '"http://orthanc:8042"': json.dumps(orthanc_url),
        '"172.31.77.0/24"': '"127.0.0.0/8"',
    }.items():
        assert there in text
        text = text.replace(there, here)
    path.write_text(text)
