"""The processes of docker/compose.yaml come up together, work, and go down cleanly."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.course import make_course
from support.server import form_files
from support.topology import topology

pytestmark = [pytest.mark.peer, pytest.mark.slow]


def test_everything_comes_up_takes_work_and_goes_down_cleanly(tmp_path: Path) -> None:
    with topology(tmp_path, workers=2) as service:
        ready = service.ready()
        assert ready["checks"] == {
            "store": "above its reserve",
            "index": "reachable",
            "worker": "alive",
        }
        slots = {worker.environment["CONTOURCAST_WORKER_SLOT"] for worker in service.workers}
        assert slots == {"cpu-1", "cpu-2"}
        echoed = service.orthanc.http.post("/modalities/contourcast/echo", content=b"{}")
        assert echoed.status_code == 200, "".join(service.node.lines)
        course = make_course(tmp_path / "course")
        answer = service.http.post("/v1/instances", files=form_files(course.planning_ct.paths))
        assert answer.status_code == 200, answer.text
        assert {one["outcome"] for one in answer.json()["instances"]} == {"stored"}

        frozen = service.workers[1]
        frozen.stop()
        assert frozen.runs
        frozen.cont()
        service.api.kill()
        assert not service.api.runs
        service.api.start()
        service.ready()

        codes = {process.name: process.end() for process in service.processes}
    # uvicorn closes everything and then lets the signal do what it does to anybody
    assert codes == {"api": -signal.SIGTERM, "dicom-node": 0, "worker 1": 0, "worker 2": 0}
