"""What the API knows of the network, and that it knows it without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contourcast.imaging.errors import WeightsError
from contourcast.models.predictor import load_network
from contourcast.models.weights import CARD_FILE, WEIGHTS_FILE
from contourcast.service.jobs.network import served_network
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.models import tiny_model
from support.server import request_for

API = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
from contourcast.service.api.app import create_app
from contourcast.service.settings import ServiceSettings
from support.http import served

data, *paths = map(Path, sys.argv[1:])
with served(create_app(ServiceSettings(data_folder=data, disk_reserve_mib=0))) as http:
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    assert http.post("/v1/instances", files=files).status_code == 200
    asked = json.load(sys.stdin)
    made = http.post("/v1/propagations", json=asked)
    assert made.status_code == 202, made.text
    for path in ("/v1/methods", "/v1/models", "/v1/worklist", "/metrics", "/v1/propagations"):
        assert http.get(path).status_code == 200, path
print(json.dumps({
    "methods": made.json()["methods"],
    "heavy": sorted({"torch", "dbos", "itk"} & sys.modules.keys()),
    # ru_maxrss would also remember the process that started it
    "resident_mib": int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024,
}))
"""


def settings(folder: Path) -> ServiceSettings:
    return ServiceSettings(weights=folder)


def test_the_api_takes_orders_for_the_network_and_never_loads_torch(
    tmp_path: Path, course: CourseFiles
) -> None:
    asked = request_for(course) | {"methods": ["rigid", "diff-umamba"]}
    said = subprocess.run(
        [sys.executable, "-c", API, str(tmp_path / "data"), *map(str, course.paths)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    assert found["methods"] == ["rigid", "diff-umamba"]
    assert found["heavy"] == [], found


def test_it_is_the_same_name_and_digest_as_of_the_loaded_network(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        if folder is not None:
            tiny_model(folder)
        loaded = load_network(folder)
        assert served_network(ServiceSettings(weights=folder))() == (loaded.name, loaded.digest)


def test_weights_that_are_not_the_cards_are_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"other")
    with pytest.raises(WeightsError, match="not those of the card"):
        served_network(settings(tmp_path))()


def test_a_network_that_draws_no_contour_is_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    card = (tmp_path / CARD_FILE).read_text().replace('"diff-umamba"', '"nnmamba-landmarks"')
    (tmp_path / CARD_FILE).write_text(card)
    with pytest.raises(WeightsError, match="draws no contour"):
        served_network(settings(tmp_path))()
