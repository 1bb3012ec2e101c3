"""The rule that runs inside Orthanc: it tells of a stable series, insists, and gives up."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import FileDataset

from support.dicom_factory import make_ct_series
from support.orthanc import DEPLOYED, PASSWORD, USER, orthanc
from support.stub import Asked, Says, stub

pytestmark = pytest.mark.peer
KEY = "an API key"
SECRET = "ZZQQ-LEAK"


def environment(url: str) -> dict[str, str]:
    return {"CONTOURCAST_EVENTS_URL": f"{url}/v1/orthanc/events", "CONTOURCAST_EVENTS_KEY": KEY}


def named(dataset: FileDataset, k: int) -> None:
    dataset.PatientName = dataset.PatientID = dataset.SeriesDescription = SECRET


def test_a_stable_series_is_told_with_the_key_and_without_the_patient(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct", change=named)
    with (
        stub(lambda asked: Says(status=202)) as server,
        orthanc(tmp_path / "orthanc", rule=True, environment=environment(server.url)) as archive,
    ):
        archive.upload(series.paths[:3])
        asked = server.asked.get(timeout=20)
        archive.upload(series.paths[3:])
        late = server.asked.get(timeout=20)
    assert (asked.method, asked.path) == ("POST", "/v1/orthanc/events")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    told = json.loads(asked.body)
    assert len(told.pop("orthanc_id")) == 44
    assert told == {
        "event": "stable-series",
        "series_instance_uid": series.series_uid,
        "modality": "CT",
        "instances": 3,
    }
    assert json.loads(late.body)["instances"] == 5
    assert SECRET.encode() not in asked.body + late.body


@pytest.mark.slow
def test_it_insists_four_times_and_gives_up_and_goes_on(tmp_path: Path) -> None:
    one = make_ct_series(tmp_path / "one", name="one")
    two = make_ct_series(tmp_path / "two", name="two")
    times: list[float] = []

    def answer(asked: Asked) -> Says:
        if json.loads(asked.body)["series_instance_uid"] == two.series_uid:
            return Says(status=202)
        times.append(time.monotonic())
        return Says(status=503)

    with (
        stub(answer) as server,
        orthanc(tmp_path / "orthanc", rule=True, environment=environment(server.url)) as archive,
    ):
        archive.upload(one.paths)
        server.asked.get(timeout=20)
        archive.upload(two.paths)
        told = [json.loads(server.asked.get(timeout=20).body) for _ in range(4)]
    uids = [hint["series_instance_uid"] for hint in told]
    assert uids == [one.series_uid] * 3 + [two.series_uid]
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert waits == pytest.approx([0.5, 2.0, 8.0], abs=0.5)


def test_it_follows_no_redirect_with_the_key(tmp_path: Path) -> None:
    with (
        stub(lambda asked: Says()) as elsewhere,
        stub(lambda asked: Says(status=307, headers={"Location": elsewhere.url})) as server,
        orthanc(tmp_path / "orthanc", rule=True, environment=environment(server.url)) as archive,
    ):
        archive.upload(make_ct_series(tmp_path / "ct").paths)
        for _ in range(2):
            server.asked.get(timeout=20)
        assert elsewhere.seen() == []


def test_orthanc_stops_while_the_rule_insists(tmp_path: Path) -> None:
    with (
        stub(lambda asked: Says(status=503)) as server,
        orthanc(tmp_path / "orthanc", rule=True, environment=environment(server.url)) as archive,
    ):
        archive.upload(make_ct_series(tmp_path / "ct").paths)
        server.asked.get(timeout=20)
        archive.stop()  # fails when it takes longer than 30 s
        assert "Orthanc has stopped" in archive.log.read_text(errors="replace")


def test_without_a_key_nothing_is_sent_and_that_is_said(tmp_path: Path) -> None:
    with (
        stub(lambda asked: Says(status=202)) as server,
        orthanc(
            tmp_path / "orthanc",
            rule=True,
            environment=environment(server.url) | {"CONTOURCAST_EVENTS_KEY": ""},
        ) as archive,
    ):
        assert "CONTOURCAST_EVENTS_KEY is not set" in archive.log.read_text(errors="replace")


def test_the_shipped_configuration_takes_its_password_from_the_environment(
    tmp_path: Path,
) -> None:
    shipped = json.loads((DEPLOYED / "orthanc.json").read_text())
    with orthanc(
        tmp_path / "orthanc",
        rule=True,
        environment={"CONTOURCAST_ORTHANC_PASSWORD": PASSWORD},
        RegisteredUsers=shipped["RegisteredUsers"],
        DicomModalities=shipped["DicomModalities"],
    ) as archive:
        told = archive.http.get("/modalities/contourcast/configuration").json()
        assert (told["AET"], told["Host"], told["Port"]) == ("CONTOURCAST", "127.0.0.1", 11112)
        assert httpx.get(f"{archive.url}/system").status_code == 401


def test_orthanc_does_not_start_with_an_empty_password(tmp_path: Path) -> None:
    """That is what an unset variable in the shipped configuration comes to."""
    shipped = json.loads((DEPLOYED / "orthanc.json").read_text())
    with (
        pytest.raises(AssertionError, match=f"users without a password: {USER}"),
        orthanc(
            tmp_path / "orthanc",
            rule=True,
            environment={"CONTOURCAST_ORTHANC_PASSWORD": ""},
            RegisteredUsers=shipped["RegisteredUsers"],
        ),
    ):
        raise RuntimeError("it started")
