"""The report on one page, and as a DICOM object."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from pydicom import dcmread

from contourcast.imaging.dicom.pdf_out import write_pdf
from contourcast.imaging.errors import InputError
from contourcast.imaging.source import Patient
from contourcast.propagate import Settings, propagate
from contourcast.service.jobs.inputs import read_case
from contourcast.service.outputs.pdf import report_pdf
from contourcast.service.outputs.report import NOTICE, Report, write_results
from support.course import make_course
from support.data import peer
from support.scans import DRAWN_AT, PHANTOM, make_scan
from support.validators import dciodvfy

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    course = make_course(tmp_path_factory.mktemp("course"))
    case = read_case(
        planning_ct=course.planning_ct.folder,
        structures=course.structures,
        cbct=course.cbct.folder,
        roi="GTV",
    )
    settings = Settings(methods=("translation", "rigid"))
    result = propagate(case, settings=settings, network=None, clock=lambda: 0.0)
    out = tmp_path_factory.mktemp("out") / "run"
    write_results(result, out, made_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return out


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return Report.model_validate_json((run / "report.json").read_text("utf-8"))


def page_of(run: Path, report: Report, patient: Patient = PHANTOM) -> bytes:
    return report_pdf(report, patient, (run / "overlay.png").read_bytes())


def printed(document: bytes, folder: Path) -> str:
    """The words of the page, as Ghostscript reads them."""
    path = folder / "page.pdf"
    path.write_bytes(document)
    command = [peer("gs"), "-q", "-sDEVICE=txtwrite", "-o", "-", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.peer
def test_the_page_says_what_the_report_says(run: Path, report: Report, tmp_path: Path) -> None:
    text = " ".join(printed(page_of(run, report), tmp_path).split())
    for expected in (
        report.verdict.value,
        "Contourcast Phantom 001",
        "CONTOURCAST-001",
        "1960-01-01",
        NOTICE.split(";")[0],
        report.cbct.series_instance_uid,
        "translation",
        "rigid",
        f"{report.methods[0].volume_cc:.1f}",
        *(" ".join(reason.split()[:6]) for reason in report.reasons[:3]),
    ):
        assert expected in text, expected


@pytest.mark.peer
def test_a_report_without_end_still_is_one_page(run: Path, report: Report, tmp_path: Path) -> None:
    long = report.model_copy(
        update={
            "reasons": ["a reason that goes on and on " * 40] * 30,
            "methods": list(report.methods) * 20,
            "prior": report.prior.model_copy(update={"vouched": "since " * 400}),
        }
    )
    document = page_of(run, long, replace(PHANTOM, name="Żółć<b>&^Łucja=山田^太郎", patient_id=""))
    text = printed(document, tmp_path)
    assert "\f" not in text.strip("\f\n ")
    words = " ".join(text.split())
    assert "and 24 more" in words
    assert "<b>&" in words, "a name is text, whatever it holds"
    assert "none" in words
    rows, columns = rendered(tmp_path / "page.pdf").shape[:2]
    assert rows > columns


@pytest.mark.peer
def test_the_picture_is_on_the_page(run: Path, report: Report, tmp_path: Path) -> None:
    (tmp_path / "page.pdf").write_bytes(page_of(run, report))
    page = rendered(tmp_path / "page.pdf")
    dark = (page[..., :3].max(axis=2) < 0.1).mean()
    assert 0.15 < dark < 0.6, "a black picture on white paper"


def rendered(path: Path) -> np.ndarray:
    png = path.with_suffix(".png")
    command = [peer("gs"), "-q", "-sDEVICE=png16m", "-r40", "-o", str(png), str(path)]
    subprocess.run(command, check=True)
    page: np.ndarray = image.imread(png)
    return page


def test_the_same_report_gives_the_same_bytes(run: Path, report: Report) -> None:
    assert page_of(run, report) == page_of(run, report)


def write(path: Path, document: bytes, **changes: Any) -> str:
    source = make_scan().source
    assert source is not None
    arguments: dict[str, Any] = {
        "document": document,
        "title": "GTV on the CBCT of 2026-01-03",
        "patient": source.patient,
        "study": source.study,
        "made_of": [(RTSTRUCT, "2.25.7")],
        "digest": "inputs",
        "made_at": DRAWN_AT,
    } | changes
    return write_pdf(path, **arguments)


@pytest.mark.peer
def test_validators_find_nothing_and_the_document_comes_out_again(
    run: Path, report: Report, tmp_path: Path
) -> None:
    document = page_of(run, report)
    document += b"\n" * (1 - len(document) % 2)
    path = tmp_path / "PDF.dcm"
    uid = write(path, document)
    assert dciodvfy(path) == []
    read = dcmread(path)
    assert read.SOPInstanceUID == uid
    assert read.EncapsulatedDocument[: read.EncapsulatedDocumentLength] == document
    assert len(read.EncapsulatedDocument) == len(document) + 1
    assert read.SourceInstanceSequence[0].ReferencedSOPInstanceUID == "2.25.7"
    if shutil.which("dcm2pdf"):
        out = tmp_path / "out.pdf"
        subprocess.run(["dcm2pdf", str(path), str(out)], check=True)
        assert out.read_bytes().startswith(document)


def test_what_is_no_pdf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is none"):
        write(tmp_path / "PDF.dcm", b"<html>")
