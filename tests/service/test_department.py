"""A department's day with a real Orthanc: two courses in scrambled order, and what is wrong."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import UID

from contourcast.imaging.dicom.instance import read_header
from support.dicom_factory import uid
from support.orthanc import PASSWORD, USER, RealOrthanc, orthanc
from support.server import Server, serving
from support.validators import dciodvfy

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(3600)]
PATIENTS = 2
FRACTIONS = 10
LIMIT_S = 2400.0


@dataclass(frozen=True, kw_only=True)
class Department:
    """The service beside its PACS."""

    archive: RealOrthanc
    server: Server

    def until(self, reached: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The propagations, once they are as wanted and nothing waits to be sent."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            found = self.propagations()
            if reached(found) and not self.sending():
                return found
            time.sleep(1.0)
        raise AssertionError(f"{found}\n" + "".join(self.server.lines[-60:]))

    def propagations(self) -> list[dict[str, Any]]:
        answer = self.server.http.get("/v1/propagations", params={"limit": 500})
        return list(answer.raise_for_status().json()["propagations"])

    def sending(self) -> bool:
        answer = self.server.http.get("/v1/deliveries", params={"state": "waiting"})
        return bool(answer.raise_for_status().json()["deliveries"])

    def files(self, folder: Path, modality: str) -> list[Path]:
        """What Orthanc holds of a modality, as files."""
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        folder.mkdir(exist_ok=True)
        paths = []
        for found in self.archive.http.post("/tools/find", json=query).raise_for_status().json():
            path = folder / f"{found}.dcm"
            path.write_bytes(self.archive.http.get(f"/instances/{found}/file").content)
            paths.append(path)
        return paths


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("courses") / "out"
    subprocess.run(
        [
            *(sys.executable, "-m", "contourcast", "simulate", "--out", str(folder)),
            *("--patients", str(PATIENTS), "--fractions", str(FRACTIONS)),
            *("--seed", "11", "--physics", "image", "--recipe", "smooth"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def department(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Department]:
    folder = tmp_path_factory.mktemp("department")
    (folder / "orthanc").mkdir()
    with orthanc(folder / "orthanc", stable_age_s=2) as archive, pytest.MonkeyPatch.context() as on:
        on.setenv("TEST_ORTHANC_PASSWORD", PASSWORD)
        destination = {
            "kind": "orthanc",
            "name": "pacs",
            "url": archive.url,
            "user": USER,
            "password_env": "TEST_ORTHANC_PASSWORD",
            "watch": True,
        }
        with serving(
            folder / "data",
            intake="automatic",
            methods='["translation", "rigid"]',
            destinations=json.dumps([destination]),
        ) as server:
            yield Department(archive=archive, server=server)


def images(course: Path) -> list[Path]:
    return sorted(p for p in course.rglob("*.dcm"))


def test_two_courses_in_scrambled_order_come_back_each_matched_to_its_plan(
    department: Department, courses: Path, tmp_path: Path
) -> None:
    paths = [p for patient in sorted(courses.iterdir()) for p in images(patient)]
    random.Random(5).shuffle(paths)
    department.archive.upload(paths)
    wanted = PATIENTS * FRACTIONS
    drawn = current(department.until(lambda all_: sum(p["ended"] for p in current(all_)) == wanted))
    assert len({p["cbct"] for p in drawn}) == wanted
    assert {p["state"] for p in drawn} == {"awaiting_review"}
    plans = {p["course"]: p["planning_ct"] for p in drawn}
    assert len(plans) == PATIENTS
    of_patient = {
        read_header(scan[0]).series_instance_uid: patient.name
        for patient in courses.iterdir()
        for folder in patient.iterdir()
        if folder.is_dir() and (scan := images(folder))
    }
    for each in drawn:
        assert of_patient[each["cbct"]] == of_patient[each["planning_ct"]]

    sent = {read_header(path).sop_instance_uid for path in paths}
    found = {
        read_header(p).sop_instance_uid: p for p in department.files(tmp_path / "rs", "RTSTRUCT")
    }
    proposals = [path for uid, path in found.items() if uid not in sent]
    registrations = department.files(tmp_path / "reg", "REG")
    assert len(proposals) == wanted
    assert len(registrations) == sum(p["verdict"] != "reject" for p in drawn)
    for path in (*proposals, *registrations):
        assert dciodvfy(path) == [], path


def test_a_late_slice_makes_a_revision(
    department: Department, courses: Path, tmp_path: Path
) -> None:
    """Of a new fraction, all but one slice; that one when all was drawn already."""
    fraction = tmp_path / "late"
    shutil.copytree(min(courses.iterdir()) / "fraction-01", fraction)
    slices = renamed(images(fraction), "late")
    department.archive.upload(slices[:-1])
    series = read_header(slices[0]).series_instance_uid
    department.until(lambda all_: any(p["cbct"] == series and p["ended"] for p in all_))
    department.archive.upload(slices[-1:])
    both = department.until(lambda all_: sum(p["cbct"] == series and p["ended"] for p in all_) == 2)
    states = {p["state"]: p for p in both if p["cbct"] == series}
    assert set(states) == {"superseded", "awaiting_review"}
    assert states["superseded"]["superseded_by"] == states["awaiting_review"]["id"]


def test_a_cbct_under_another_patient_s_id_is_rejected(
    department: Department, courses: Path, tmp_path: Path
) -> None:
    """The second patient's scan, sent as the first patient's: name, ID and birth date agree."""
    first, second = sorted(courses.iterdir())[:2]
    fraction = tmp_path / "swapped"
    shutil.copytree(second / "fraction-02", fraction)
    who = pydicom.dcmread(images(first)[0], stop_before_pixels=True)
    slices = renamed(images(fraction), "swapped", who=who)
    department.archive.upload(slices)
    series = read_header(slices[0]).series_instance_uid
    found = department.until(lambda all_: any(p["cbct"] == series and p["ended"] for p in all_))
    (mine,) = [p for p in found if p["cbct"] == series]
    assert mine["verdict"] == "reject", mine["figures"]


def current(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p for p in found if p["state"] != "superseded"]


def renamed(paths: list[Path], seed: str, *, who: pydicom.Dataset | None = None) -> list[Path]:
    """The same pixels as another series, in another frame, of whom it says."""
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = UID(uid(f"{seed} {number}"))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid(f"{seed} s"), uid(f"{seed} t")
        dataset.FrameOfReferenceUID = uid(f"{seed} f")
        if who is not None:
            for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
                setattr(dataset, keyword, who.get(keyword, ""))
        dataset.save_as(path)
    return paths
