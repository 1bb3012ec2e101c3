"""From a stroke in a browser to the PACS and the next fraction's prior, with a real Orthanc."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from support.data import data_item, peer_module
from support.orthanc import PASSWORD, USER, RealOrthanc, orthanc
from support.review_page import Department, Person, department, person, real_patient
from support.validators import plastimatch_masks

pytestmark = [pytest.mark.peer, pytest.mark.slow]
LIMIT_S = 120.0


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealOrthanc]:
    monkeypatch.setenv("TEST_ORTHANC_PASSWORD", PASSWORD)
    with orthanc(tmp_path / "orthanc") as running:
        yield running


def test_what_is_edited_and_signed_in_the_browser_is_in_the_pacs_and_the_next_prior(
    browser: Any, archive: RealOrthanc, tmp_path: Path
) -> None:
    with department(tmp_path / "clinic", destinations=to(archive)) as clinic:
        first, second = clinic.drawn[:2]
        signed_cc = signed_in_the_browser(browser, clinic, first)
        path = approved_in(archive, tmp_path)
        scans = list((tmp_path / "clinic").glob("cbct-*"))
        assert masked_cc(path, scans, tmp_path) == pytest.approx(signed_cc, rel=0.05)
        assert prior_of_the_next(clinic, second) == pydicom.dcmread(path).SOPInstanceUID


@pytest.mark.real
def test_a_real_patient_is_judged_mended_and_signed(
    browser: Any, archive: RealOrthanc, tmp_path: Path
) -> None:
    with real_patient(tmp_path / "clinic", destinations=to(archive)) as clinic:
        with person(browser, clinic, "ann") as ann:
            ann.open_the_worst(clinic.worst, "LOOK")
            ann.flick_and_jump()
            ann.picture("pancreas")
            ann.mend()
            ann.picture("pancreas-edited")
            signed_cc = signed(ann, clinic, clinic.worst)
        path = approved_in(archive, tmp_path)
        scans = [data_item("pancreas_ct_cbct") / "cbct_02"]
        assert masked_cc(path, scans, tmp_path) == pytest.approx(signed_cc, rel=0.02)


def to(archive: RealOrthanc) -> str:
    """It as the only destination, as the service's settings have that."""
    pacs = {"kind": "orthanc", "name": "pacs", "url": archive.url, "user": USER}
    return json.dumps([pacs | {"password_env": "TEST_ORTHANC_PASSWORD"}])


def signed_in_the_browser(browser: Any, clinic: Department, propagation: str) -> float:
    """Draws with the brush and signs; the volume that the service says was signed, cm3."""
    with person(browser, clinic, "ann") as ann:
        ann.edit(propagation)
        ann.stroke((0.30, 0.45), (0.36, 0.50))
        ann.page.get_by_text("1 slice edited").first.wait_for()
        return signed(ann, clinic, propagation)


def signed(ann: Person, clinic: Department, propagation: str) -> float:
    """Signs what was edited; the volume that the service says was signed, cm3."""
    ann.page.keyboard.press("y")
    ann.prove_and("Sign")
    ann.page.locator("dialog .signed").wait_for()
    (review,) = clinic.get(f"/v1/propagations/{propagation}/reviews")["reviews"]
    assert review["decision"] == "edited"
    assert review["figures"]["volume_cc"] != review["figures"]["machine_volume_cc"]
    return float(review["figures"]["volume_cc"])


def approved_in(archive: RealOrthanc, folder: Path) -> Path:
    """The one APPROVED structure set that Orthanc holds, once it is there, as a file."""
    query = {"Level": "Instance", "Query": {"Modality": "RTSTRUCT"}}
    path = folder / "from-orthanc.dcm"
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for found in archive.http.post("/tools/find", json=query).raise_for_status().json():
            path.write_bytes(archive.http.get(f"/instances/{found}/file").content)
            if pydicom.dcmread(path).ApprovalStatus == "APPROVED":
                return path
        time.sleep(0.5)
    raise AssertionError("no approved structure set came")


def masked_cc(structure_set: Path, scans: Sequence[Path], folder: Path) -> float:
    """Of its ROI, as plastimatch counts it on its CBCT, one of these folders; cm3."""
    sitk = peer_module("SimpleITK")
    series = pydicom.dcmread(structure_set).ReferencedFrameOfReferenceSequence[0]
    uid = series.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID
    (cbct,) = (
        scan for scan in scans if pydicom.dcmread(next(scan.glob("*.dcm"))).SeriesInstanceUID == uid
    )
    (mask,) = plastimatch_masks(structure_set, cbct, folder / "masks").values()
    image = sitk.ReadImage(str(mask))
    voxels = int((sitk.GetArrayFromImage(image) > 0).sum())
    return voxels * float(np.prod(image.GetSpacing())) / 1000


def prior_of_the_next(clinic: Department, superseded: str) -> str:
    """SOP Instance UID of the set that the next fraction is drawn anew from."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        cbct = clinic.get(f"/v1/propagations/{superseded}")["cbct"]
        found = clinic.get(f"/v1/propagations?cbct={cbct}")["propagations"]
        for each in found:
            if each["id"] != superseded and each["state"] == "awaiting_review":
                prior = clinic.get(f"/v1/propagations/{each['id']}/report")["prior"]
                return str(prior["structure_set_uid"])
        time.sleep(0.5)
    raise AssertionError("the next fraction was not drawn again")
