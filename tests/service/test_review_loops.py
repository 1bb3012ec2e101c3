"""Loops of the page and structure sets: rings keep their holes, untouched ones their very text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
import pytest

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.structures import Roi
from contourcast.imaging.volume import Volume
from contourcast.service.review.drafts import Draft
from contourcast.service.review.edited import edited
from contourcast.service.review.loops import on_slices
from support.review import circle
from support.scans import DRAWN_AT, GRIDS, make_scan, ring


def written(path: Path, roi: Roi, scan: Volume) -> Roi:
    """A ROI as it is read back from a structure set."""
    write_structure_set(
        path,
        rois=[roi],
        reference=scan,
        label="CC",
        series_description="test",
        digest=path.name,
        drawn_at=DRAWN_AT,
    )
    return read_structure_set(path).rois[0]


def texts(path: Path) -> list[str]:
    (item,) = pydicom.dcmread(path).ROIContourSequence
    return [
        "\\".join(str(value.original_string) for value in contour.ContourData)
        for contour in item.ContourSequence
    ]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_ring_keeps_its_hole_on_the_page_and_its_text_in_the_signed_set(
    grid: str, tmp_path: Path
) -> None:
    scan = make_scan(GRIDS[grid])
    machine = written(tmp_path / "machine.dcm", ring(scan, 9.0, 6.0, 3.0), scan)
    shown = on_slices(machine, scan.grid, scan.frame_of_reference)
    assert sorted(shown) == [1, 2, 3]
    for loops in shown.values():
        radii = sorted(
            float(np.linalg.norm(loop - loop.mean(axis=0), axis=1).mean()) for loop in loops
        )
        assert radii == pytest.approx([3.0, 6.0, 9.0], abs=0.01)  # mm

    middle = shown[2][0].mean(axis=0)
    draft = Draft(
        propagation="p",
        method="rigid",
        loops={2: [circle((middle[0], middle[1]), r, points=90) for r in (8.0, 4.0)]},
        seconds=1.0,
        saved_at="",
        reviewer="ann",
        digest="d",
    )
    contours = edited(machine, draft, scan.grid)
    mended = Roi(
        number=1, name="GTV", contours=contours, frame_of_reference=machine.frame_of_reference
    )
    signed = written(tmp_path / "signed.dcm", mended, scan)
    before, after = texts(tmp_path / "machine.dcm"), texts(tmp_path / "signed.dcm")
    oblique = grid == "oblique 20 degrees"  # its points are written off their plane by rounding
    if not oblique:  # the edited slice's are others, and no others are
        assert len(set(before) - set(after)) == len(before) // 3
    back = on_slices(signed, scan.grid, scan.frame_of_reference)
    for k in (1, 3):
        for a, b in zip(back[k], shown[k], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 if oblique else 0)  # mm
    outer, hole = back[2]
    assert radius(outer) == pytest.approx(8.0, abs=1e-3)
    assert radius(hole) == pytest.approx(4.0, abs=1e-3)


def radius(loop: np.ndarray) -> float:
    return math.sqrt(float(((loop - loop.mean(axis=0)) ** 2).sum(axis=1).mean()))
