"""A Segmentation, read by other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from contourcast.imaging.dicom.ct_series_out import write_ct_series
from contourcast.imaging.dicom.segmentation_out import Segment, write_segmentation
from contourcast.imaging.errors import ContourcastError, DicomError, InputError
from contourcast.imaging.volume import Mask, Volume
from support.data import peer_module
from support.scans import DRAWN_AT, GRIDS, make_scan
from support.validators import dcentvfy, dciodvfy, dcmdump


def masks(scan: Volume) -> list[Mask]:
    """Two blobs that overlap, the second on fewer slices; on odd numbers of pixels."""
    shape = scan.grid.shape_zyx
    one, other = np.zeros(shape, bool), np.zeros(shape, bool)
    one[1:4, 10:23, 30:41] = True
    one[2, 15:17, 33:36] = False
    other[2:4, 17:40, 35:52] = True
    return [
        Mask(values=v, grid=scan.grid, frame_of_reference=scan.frame_of_reference)
        for v in (one, other)
    ]


def segments(scan: Volume) -> list[Segment]:
    names = (("GTV rigid", "rigid", "GTV"), ("Stomach dir-t", "dir-t", ""))
    return [
        Segment(
            mask=mask, name=name, method=method, color_rgb=(86, 180, 233), interpreted_type=kind
        )
        for mask, (name, method, kind) in zip(masks(scan), names, strict=True)
    ]


def write(path: Path, scan: Volume, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "segments": segments(scan),
        "reference_scan": scan,
        "digest": "inputs",
        "made_at": DRAWN_AT,
        "description": "Contourcast proposals",
    }
    return write_segmentation(path, **arguments | changes)


@pytest.mark.peer
@pytest.mark.parametrize("name", GRIDS)
def test_validators_find_nothing(tmp_path: Path, name: str) -> None:
    scan = make_scan(GRIDS[name])
    images = tmp_path / "images"
    write_ct_series(images, scan)
    path = tmp_path / "SEG.dcm"
    write(path, scan)
    assert dciodvfy(path) == []
    assert dcentvfy([path, *sorted(images.iterdir())]) == []
    assert "SegmentSequence" in dcmdump(path)


@pytest.mark.peer
def test_nor_where_the_images_do_not_say_which_part_they_show(tmp_path: Path) -> None:
    scan = make_scan()
    assert scan.source is not None
    write(tmp_path / "SEG.dcm", replace(scan, source=replace(scan.source, body_part="")))
    assert dciodvfy(tmp_path / "SEG.dcm") == []


@pytest.mark.peer
@pytest.mark.parametrize("name", GRIDS)
def test_another_program_finds_each_voxel_where_it_was(tmp_path: Path, name: str) -> None:
    seg = peer_module("highdicom.seg")
    scan = make_scan(GRIDS[name])
    path = tmp_path / "SEG.dcm"
    write(path, scan)
    read = seg.segread(path)
    assert scan.source is not None
    uids = [one.sop_instance_uid for one in scan.source.slices]
    found = read.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    for number, mask in enumerate(masks(scan)):
        assert (found[..., number] == mask.values).all()
    for frame in read.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        k = uids.index(source.ReferencedSOPInstanceUID)
        where = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(where, scan.source.slices[k].position_xyz_mm, atol=1e-9)
    shared = read.SharedFunctionalGroupsSequence[0]
    direction = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    assert np.allclose(direction.reshape(2, 3).T, scan.grid.direction[:, :2], atol=1e-12)
    row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    assert (column_mm, row_mm) == pytest.approx(tuple(scan.grid.spacing_xy_mm))


def test_segments_say_what_they_are_and_who_drew_them(tmp_path: Path) -> None:
    path = tmp_path / "SEG.dcm"
    uid = write(path, make_scan(), series_number=300)
    read = dcmread(path)
    assert (read.SOPInstanceUID, read.SeriesNumber, read.Modality) == (uid, 304, "SEG")
    tumour, organ = read.SegmentSequence
    assert (tumour.SegmentLabel, tumour.SegmentAlgorithmName) == ("GTV rigid", "rigid")
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert organ.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Organ"
    assert read.NumberOfFrames == 5


def test_colours_are_those_of_the_methods(tmp_path: Path) -> None:
    scan = make_scan()
    path = tmp_path / "SEG.dcm"
    primaries = ((255, 255, 255), (0, 0, 0), (255, 0, 0))
    write(path, scan, segments=[replace(segments(scan)[0], color_rgb=c) for c in primaries])
    lab = [
        np.array(one.RecommendedDisplayCIELabValue) / 65535 * (100, 255, 255) - (0, 128, 128)
        for one in dcmread(path).SegmentSequence
    ]
    # sRGB under D65: white, black, red
    assert np.allclose(lab, [(100, 0, 0), (0, 0, 0), (53.24, 80.09, 67.2)], atol=0.02)


@pytest.mark.peer
def test_what_was_not_drawn_is_there_without_a_voxel(tmp_path: Path) -> None:
    seg = peer_module("highdicom.seg")
    scan = make_scan()
    nothing = replace(
        segments(scan)[0], mask=masks(scan)[0].with_values(np.zeros(scan.grid.shape_zyx, bool))
    )
    one = tmp_path / "one.dcm"
    write(one, scan, segments=[nothing, segments(scan)[1]])
    assert len(seg.segread(one).SegmentSequence) == 2
    assert dcmread(one).NumberOfFrames == 2
    none = tmp_path / "none.dcm"
    write(none, scan, segments=[nothing])
    assert dciodvfy(none) == []
    assert not dcmread(none).pixel_array.any()


def test_the_same_masks_give_the_same_bytes(tmp_path: Path) -> None:
    scan = make_scan()
    write(tmp_path / "a.dcm", scan)
    write(tmp_path / "b.dcm", scan)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    scan, path = make_scan(), tmp_path / "SEG.dcm"
    with pytest.raises(InputError, match="without a segment"):
        write(path, scan, segments=[])
    with pytest.raises(DicomError, match="no DICOM identity"):
        write(path, replace(scan, source=None))
    elsewhere = replace(segments(scan)[0], mask=masks(make_scan(GRIDS["prone"]))[0])
    with pytest.raises(ContourcastError):
        write(path, scan, segments=[elsewhere])
    assert not path.exists()
