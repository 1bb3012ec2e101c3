"""A job from request to result over HTTP, as a program sees it, on a real server."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import FileDataset

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.metrics import agreement
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.transform import RigidTransform
from contourcast.service.index.tables import metadata
from support.course import TUMOUR_XYZ_MM
from support.dicom_factory import make_ct_series
from support.records import looking_into
from support.server import Finished, form_files, request_for


def get(finished: Finished, part: str, **headers: str) -> Any:
    return finished.server.http.get(f"/v1/propagations/{finished.id}/{part}", headers=headers)


def test_the_state_tells_what_came_out(finished: Finished) -> None:
    job = finished.server.job(finished.id)
    assert (job["state"], job["done"], job["attempt"], job["problem"]) == (
        "awaiting_review",
        1.0,
        1,
        None,
    )
    assert job["figures"]["verdict"] in ("accept", "look")
    assert set(job["figures"]["methods"]) == {"translation", "rigid"}
    for figures in job["figures"]["methods"].values():
        assert figures["volume_cc"] == pytest.approx(33.5, rel=0.1)
        assert figures["failed"] == ""
    for link in job["links"].values():
        assert finished.server.http.get(link).status_code == 200, link


def test_the_registration_is_the_motion_of_the_patient(finished: Finished, tmp_path: Path) -> None:
    answer = get(finished, "registration")
    assert answer.headers["content-type"] == "application/dicom"
    path = tmp_path / "REG.dcm"
    path.write_bytes(answer.content)
    found: RigidTransform = read_registration(path).between(
        target_frame=finished.course.cbct.frame_of_reference,
        source_frame=finished.course.planning_ct.frame_of_reference,
    )
    error_mm = found.translation_at(TUMOUR_XYZ_MM) - finished.course.shift_xyz_mm
    assert abs(error_mm).max() < 0.7


def test_the_structure_set_lies_on_the_tumour_of_today(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "RS.dcm"
    path.write_bytes(get(finished, "structure-set").content)
    today = read_ct_series(list(finished.course.cbct.paths))
    drawn = read_structure_set(path)
    prior = read_structure_set(finished.course.structures).roi("GTV")
    assert drawn.referenced_series_uids == (finished.course.cbct.series_uid,)
    assert len(drawn.rois) == 2
    before = rasterise(prior, read_ct_series(list(finished.course.planning_ct.paths)).grid)
    for roi in drawn.rois:
        proposal = rasterise(roi, today.grid)
        centroid = proposal.centroid_xyz_mm()
        assert centroid is not None
        error_mm = centroid - (TUMOUR_XYZ_MM + finished.course.shift_xyz_mm)
        assert abs(error_mm).max() < 1.5, roi.name
        assert proposal.volume_cc == pytest.approx(before.volume_cc, rel=0.1)
        assert agreement(proposal, proposal).dice == 1.0


def test_the_report_is_json_for_programs_and_a_page_for_people(finished: Finished) -> None:
    report = get(finished, "report").json()
    assert report["verdict"] == finished.server.job(finished.id)["figures"]["verdict"]
    page = get(finished, "report", Accept="text/html,application/xhtml+xml")
    assert page.headers["content-type"].startswith("text/html")
    assert "script" not in page.headers["content-security-policy"]
    assert page.text.lstrip().lower().startswith("<!doctype html>")
    picture = get(finished, "pictures/overlay.png")
    assert picture.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "part", ["structure-set", "registration", "report", "pictures/overlay.png"]
)
def test_etags_are_digests_and_spare_the_second_transfer(finished: Finished, part: str) -> None:
    first = get(finished, part)
    assert first.headers["etag"] == f'"{hashlib.sha256(first.content).hexdigest()}"'
    assert first.headers["cache-control"] == "private, no-store"
    again = get(finished, part, **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_state_has_an_etag_too(finished: Finished) -> None:
    first = finished.server.http.get(f"/v1/propagations/{finished.id}")
    headers = {"If-None-Match": first.headers["etag"]}
    again = finished.server.http.get(f"/v1/propagations/{finished.id}", headers=headers)
    assert again.status_code == 304


def events(finished: Finished, **headers: str) -> list[dict[str, Any]]:
    """The events of the stream, which must end by itself."""
    found: list[dict[str, Any]] = []
    url = f"/v1/propagations/{finished.id}/events"
    with finished.server.http.stream("GET", url, headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for block in "".join(stream.iter_text()).split("\n\n"):
            if block and not block.startswith(":"):
                fields = dict(line.split(": ", 1) for line in block.splitlines())
                found.append(fields | json.loads(fields["data"]))
    return found


def test_events_tell_the_job_in_order_and_end_with_it(finished: Finished) -> None:
    told = events(finished)
    assert [int(e["id"]) for e in told] == list(range(1, len(told) + 1))
    states = list(dict.fromkeys(e["event"] for e in told))
    assert states == [
        "matched",
        "registering",
        "drawing",
        "comparing",
        "writing",
        "awaiting_review",
    ]
    shares = [e["done"] for e in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_last_event_id_resumes_the_stream(finished: Finished) -> None:
    told = events(finished)
    rest = events(finished, **{"Last-Event-ID": told[3]["id"]})
    assert [e["id"] for e in rest] == [e["id"] for e in told[4:]]
    assert events(finished, **{"Last-Event-ID": told[-1]["id"]}) == []


def test_the_same_request_after_the_end_is_the_same_result(finished: Finished) -> None:
    again = finished.server.http.post("/v1/propagations", json=request_for(finished.course))
    assert again.status_code == 200
    assert (again.json()["id"], again.json()["state"]) == (finished.id, "awaiting_review")


def test_a_request_whose_parts_do_not_belong_together_fails_with_its_reason(
    finished: Finished,
) -> None:
    """The CBCT given as planning CT, too."""
    wrong = request_for(finished.course) | {"planning_ct": finished.course.cbct.series_uid}
    answer = finished.server.http.post("/v1/propagations", json=wrong)
    assert answer.status_code == 202
    job = finished.server.until(answer.json()["id"], lambda _: False)
    assert job["state"] == "failed"
    assert job["problem"]["where"] in finished.course.cbct.sop_uids
    assert job["problem"]["remedy"]
    part = finished.server.http.get(f"/v1/propagations/{job['id']}/structure-set")
    assert part.status_code == 409
    again = finished.server.http.post("/v1/propagations", json=wrong)
    assert (again.status_code, again.json()["attempt"]) == (202, 2), "a failed one is tried again"
    assert finished.server.until(job["id"], lambda _: False)["state"] == "failed"


def test_ready_once_a_worker_lives(finished: Finished) -> None:
    answer = finished.server.http.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json()["ready"] is True


def test_no_name_of_a_patient_is_in_a_log_an_error_or_among_the_jobs(
    finished: Finished, tmp_path: Path
) -> None:
    """The course is of ZZQQ-LEAK; what may say so is what came in, the report, and two tables.

    Over HTTP only those ask for names who look at patients: the worklist, and studies of DICOMweb.
    """
    http, course = finished.server.http, finished.course

    def odd(dataset: FileDataset, _: int) -> None:
        """Libraries warn of such values, and quote them."""
        for keyword in ("StudyDate", "SeriesTime", "PatientBirthDate", "PatientAge", "Modality"):
            setattr(dataset, keyword, "ZZQQ-LEAK of an odd kind that is too long for its element")
        dataset.PatientName = "ZZQQ-LEAK" * 20
        dataset.WindowCenter = "1"
        dataset["WindowCenter"]._value = "ZZQQ"
        dataset.SpecificCharacterSet = "ISO_IR ZZQQ"

    with disable_value_validation(), warnings.catch_warnings(action="ignore"):
        strange = make_ct_series(
            tmp_path, np.full((3, 32, 32), 40, np.int16), name="odd", change=odd
        )
    broken = course.structures.read_bytes()[:2000]
    said = [
        http.post("/v1/instances", files=form_files(list(strange.paths))).text,
        http.post("/v1/instances", files=[("files", ("a.dcm", broken))]).text,
        http.get("/v1/series").text,
        http.get("/v1/nothing").text,
        http.get(f"/v1/propagations/{finished.id}").text,
        http.post("/v1/propagations", json={"cbct": "1.2", "roi": "x", "methods": ["rigid"]}).text,
        http.post(
            "/dicom-web/studies",
            content=b"--b\r\n\r\n" + broken + b"\r\n--b--\r\n",
            headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'},
        ).text,
        *(
            http.get(path).text
            for path in (
                f"/v1/series/{course.cbct.series_uid}",
                f"/v1/series/{strange.series_uid}",
                "/v1/courses",
                "/v1/propagations",
                "/v1/destinations",
                "/v1/deliveries",
                "/v1/notices",
                "/v1/rules",
                "/v1/settings",
                "/v1/session",
                "/v1/keys",
                "/v1/accounts",
                "/dicom-web/series",
                "/dicom-web/instances",
                "/dicom-web/instances?PatientID=ZZQQ-LEAK-ID*",
                "/metrics",
                "/health/ready",
            )
        ),
    ]
    assert "ZZQQ-LEAK" in http.get("/v1/worklist").text
    assert "ZZQQ-LEAK" in http.get("/dicom-web/studies").text
    asked = http.post("/v1/propagations", json=request_for(course) | {"cbct": strange.series_uid})
    if asked.status_code == 202:
        said.append(json.dumps(finished.server.until(asked.json()["id"], lambda _: False)))
    said += finished.server.lines
    assert len(finished.server.lines) > 5
    for text in said:
        assert "ZZQQ" not in text
    for path in finished.server.data_folder.rglob("*"):
        place = path.relative_to(finished.server.data_folder).parts
        kept = place[:2] in (("store", "instances"), ("store", "results")) or place[:3] in (
            ("store", "records", "patient"),
            ("store", "records", "series"),
        )
        if path.is_file() and not kept and not path.name.startswith("index.sqlite3"):
            assert b"ZZQQ" not in path.read_bytes(), path
    with looking_into(finished.server.data_folder) as records, records.index.read() as at:
        for table in metadata.sorted_tables:
            told = any("ZZQQ" in str(row) for row in at.execute(table.select()))
            assert told == (table.name in ("patient", "series")), table.name
