"""The same structure set in the manner of another importing system."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from contourcast.imaging.dicom.check import check_structure_set
from contourcast.imaging.dicom.rtstruct_adapt import adapt_structure_set, split
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.errors import GeometryError
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Roi
from contourcast.imaging.volume import Volume
from support.scans import DRAWN_AT, GRIDS, make_scan, ring
from support.validators import dciodvfy

HOLLOW = (20.0, 12.0, 5.0)  # a ring with an island in its hole


def written(folder: Path, scan: Volume, *rois: Roi, **changes: Any) -> Path:
    path = folder / "RS.dcm"
    write_structure_set(
        path,
        rois=rois,
        reference=scan,
        label="CC",
        series_description="Contourcast proposals",
        digest="inputs",
        drawn_at=DRAWN_AT,
        **changes,
    )
    return path


def texts(path: Path) -> Counter[tuple[str, str]]:
    """Every edge between two points of the file, as text, without those run through both ways."""
    edges: Counter[tuple[str, str]] = Counter()
    for roi in dcmread(path).ROIContourSequence:
        for contour in roi.get("ContourSequence", []):
            values = [str(v.original_string).rstrip("0") for v in contour.ContourData]
            points = ["/".join(values[n : n + 3]) for n in range(0, len(values), 3)]
            edges.update(zip(points, [*points[1:], points[0]], strict=True))
    return edges - Counter({(b, a): n for (a, b), n in edges.items()})


def two_holes(scan: Volume) -> Roi:
    """An outline with two holes side by side: one cut may meet the other hole."""
    outer, left, right = (ring(scan, r).contours for r in (30.0, 6.0, 4.0))
    aside = np.array([13.0, 0.5, 0.0])
    moved = [
        replace(c, points_xyz_mm=c.points_xyz_mm + scan.grid.direction @ shift)
        for contours, shift in ((left, -aside), (right, aside))
        for c in contours
    ]
    return replace(ring(scan, 30.0), contours=(*outer, *moved))


@pytest.mark.parametrize("grid", ["plain", "oblique 20 degrees", "feet first"])
def test_holes_become_loops_of_their_own_and_no_edge_moves(tmp_path: Path, grid: str) -> None:
    scan = make_scan(GRIDS[grid])
    roi = two_holes(scan)
    path = written(tmp_path, scan, roi, replace(ring(scan, *HOLLOW, name="hollow"), number=2))
    uid = adapt_structure_set(path, tmp_path / "xor.dcm", holes="xor")
    before, after = dcmread(path), dcmread(tmp_path / "xor.dcm")
    assert [len(r.ContourSequence) for r in before.ROIContourSequence] == [3, 6]
    assert [len(r.ContourSequence) for r in after.ROIContourSequence] == [9, 9]
    assert texts(tmp_path / "xor.dcm") == texts(path)
    assert uid == after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
    assert uid != before.SOPInstanceUID
    assert check_structure_set(tmp_path / "xor.dcm", scan) == ()
    for first, second in zip(
        read_structure_set(path).rois, read_structure_set(tmp_path / "xor.dcm").rois, strict=True
    ):
        assert (rasterise(first, scan.grid).values == rasterise(second, scan.grid).values).all()


def test_the_outline_comes_before_its_holes() -> None:
    def points(*numbers: int) -> list[tuple[bytes, ...]]:
        return [(str(n).encode(),) for n in numbers]

    assert split(points(1, 2, 3)) == [points(1, 2, 3)]
    cut_open = points(1, 2, 5, 6, 7, 8, 6, 5, 3)
    assert split(cut_open) == [points(1, 2, 5, 3), points(6, 7, 8)]
    figure_of_eight = points(1, 2, 3, 1, 4, 5)
    assert split(figure_of_eight) == [points(1, 4, 5), points(1, 2, 3)]


def test_without_holes_it_is_the_same_instance(tmp_path: Path) -> None:
    scan = make_scan()
    path = written(tmp_path, scan, ring(scan, 20.0))
    uid = adapt_structure_set(path, tmp_path / "same.dcm", holes="xor")
    assert uid == dcmread(path).SOPInstanceUID
    assert (tmp_path / "same.dcm").read_bytes() == path.read_bytes()


def test_an_empty_roi_stays_empty(tmp_path: Path) -> None:
    scan = make_scan()
    empty = replace(ring(scan, 20.0), contours=())
    path = written(tmp_path, scan, empty)
    adapt_structure_set(path, tmp_path / "new.dcm", holes="xor", explicit=True, points_at_most=3)
    assert "ContourSequence" not in dcmread(tmp_path / "new.dcm").ROIContourSequence[0]


@pytest.mark.peer
def test_names_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    scan = make_scan()
    rois = [
        replace(ring(scan, 20.0 + n), number=n + 1, name=name)
        for n, name in enumerate(["GTVlung rigid", "GTVlung dir-t", "GTV"])
    ]
    path = written(tmp_path, scan, *rois)
    uid = adapt_structure_set(path, tmp_path / "short.dcm", name_bytes=8)
    new = dcmread(tmp_path / "short.dcm")
    shortened = ["GTVl~gid", "GTVl~r-t", "GTV"]
    assert [item.ROIName for item in new.StructureSetROISequence] == shortened
    labels = [item.ROIObservationLabel for item in new.RTROIObservationsSequence]
    assert labels == shortened
    assert uid != dcmread(path).SOPInstanceUID
    assert texts(tmp_path / "short.dcm") == texts(path)
    assert dciodvfy(tmp_path / "short.dcm") == []
    again = adapt_structure_set(path, tmp_path / "again.dcm", name_bytes=8)
    assert again == uid
    assert (tmp_path / "again.dcm").read_bytes() == (tmp_path / "short.dcm").read_bytes()


@pytest.mark.peer
def test_explicit_vr_and_latin_1_are_the_same_instance_in_other_bytes(tmp_path: Path) -> None:
    scan = make_scan()
    path = written(tmp_path, scan, ring(scan, 20.0, 8.0, name="Läsion"), description="für Ärzte")
    new = tmp_path / "new.dcm"
    uid = adapt_structure_set(path, new, explicit=True, charset="ISO_IR 100")
    read = dcmread(new)
    assert uid == dcmread(path).SOPInstanceUID
    assert read.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert read.SpecificCharacterSet == "ISO_IR 100"
    assert "Läsion".encode("latin-1") in new.read_bytes()
    assert "Läsion".encode() not in new.read_bytes()
    assert read.StructureSetROISequence[0].ROIName == "Läsion"
    assert read.StructureSetDescription == "für Ärzte"
    assert read.ROIContourSequence[0].ContourSequence[0]["ContourData"].VR == "DS"
    assert texts(new) == texts(path)
    assert dciodvfy(new) == []


def test_text_beyond_latin_1_keeps_its_charset(tmp_path: Path) -> None:
    scan = make_scan()
    path = written(tmp_path, scan, ring(scan, 20.0, name="腫瘍"))
    adapt_structure_set(path, tmp_path / "new.dcm", charset="ISO_IR 100")
    assert (tmp_path / "new.dcm").read_bytes() == path.read_bytes()


def test_a_loop_of_too_many_points_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    scan = make_scan()
    path = written(tmp_path, scan, ring(scan, 20.0))
    count = int(dcmread(path).ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints)
    new = tmp_path / "new.dcm"
    with pytest.raises(GeometryError, match=f"{count} points, more than the {count - 1}"):
        adapt_structure_set(path, new, points_at_most=count - 1)
    assert not new.exists()
    adapt_structure_set(path, new, points_at_most=count)


def test_a_loop_that_explicit_vr_cannot_hold_is_refused(tmp_path: Path) -> None:
    scan = make_scan()
    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    first = ring(scan, 20.0, slices=(2,)).contours[0].points_xyz_mm
    center, z = first.mean(axis=0), first[0, 2]
    circle = np.column_stack((center[0] + 20 * np.cos(angle), center[1] + 20 * np.sin(angle)))
    points = np.column_stack((circle, np.full(4000, z)))
    contour = replace(ring(scan, 20.0, slices=(2,)).contours[0], points_xyz_mm=points)
    path = written(tmp_path, scan, replace(ring(scan, 20.0), contours=(contour,)))
    with pytest.raises(GeometryError, match="Explicit VR"):
        adapt_structure_set(path, tmp_path / "new.dcm", explicit=True)
