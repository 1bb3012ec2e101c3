"""Loops of the page and structure sets: rings keep their holes, untouched ones their very text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
import pytest

from contourcast.imaging import polygon
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import loops_volume_cc, trace
from contourcast.imaging.volume import Mask, Volume
from contourcast.service.review.drafts import Draft
from contourcast.service.review.edited import edited
from contourcast.service.review.loops import flattened, on_slices, raised, slice_of
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


@pytest.mark.parametrize("seed", range(4))
def test_every_vertex_of_a_traced_ring_is_there_where_its_hole_was_cut_in(
    seed: int, tmp_path: Path
) -> None:
    """On pixels in rows a cut often meets a vertex of the contour's own."""
    scan = make_scan()
    traced = trace(blot(scan, np.random.default_rng(seed)))
    machine = Roi(number=1, name="GTV", contours=traced, frame_of_reference=scan.frame_of_reference)
    shown = on_slices(
        written(tmp_path / "rs.dcm", machine, scan), scan.grid, scan.frame_of_reference
    )
    assert {len(loops) for loops in shown.values()} == {2}
    for contour in traced:
        loops = shown[slice_of(contour, scan.grid)]
        off_mm = distance_to(loops, flattened(contour, scan.grid))
        assert off_mm.max() < 5e-4
    drawn_cc = loops_volume_cc(traced, scan.grid)
    back = [c for k, loops in shown.items() for c in raised(loops, k, scan.grid)]
    assert loops_volume_cc(back, scan.grid) == pytest.approx(drawn_cc, rel=1e-5)


def blot(scan: Volume, random: np.random.Generator) -> Mask:
    """On each slice a bent disc of pixels with a round hole that is not in its middle."""
    slices, rows, columns = scan.grid.shape_zyx
    y, x = np.mgrid[:rows, :columns].astype(float)
    values = np.zeros(scan.grid.shape_zyx, bool)
    for k in range(slices):
        turn, bend = random.uniform(0, 6, 2)
        angle = np.arctan2(y - rows / 2, x - columns / 2)
        edge = random.uniform(14, 20) * (1 + 0.15 * np.sin(3 * angle + turn) + 0.08 * np.sin(bend))
        off_x, off_y = random.normal(0, 2, 2)
        hole = np.hypot(x - columns / 2 - off_x, y - rows / 2 - off_y) < random.uniform(3, 6)
        values[k] = (np.hypot(x - columns / 2, y - rows / 2) < edge) & ~hole
    return Mask(values=values, grid=scan.grid, frame_of_reference=scan.frame_of_reference)


def distance_to(loops: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Of each point from the nearest edge."""
    start, end = polygon.edges(loops)
    way = end - start
    along = ((points[:, None] - start) * way).sum(-1) / (way**2).sum(-1)
    nearest = start + np.clip(along, 0, 1)[..., None] * way
    found: np.ndarray = np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)
    return found


def radius(loop: np.ndarray) -> float:
    return math.sqrt(float(((loop - loop.mean(axis=0)) ** 2).sum(axis=1).mean()))
