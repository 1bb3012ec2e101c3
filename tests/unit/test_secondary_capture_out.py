"""A picture as a Secondary Capture, and what is drawn on it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from pydicom import dcmread

from contourcast.imaging.dicom.secondary_capture_out import write_secondary_capture
from contourcast.imaging.errors import InputError
from contourcast.service.outputs.secondary_capture import picture_rgb
from support.scans import DRAWN_AT, make_scan
from support.validators import dcentvfy, dciodvfy, dcmdump

PICTURE = np.random.default_rng(0).integers(0, 256, (33, 45, 3), np.uint8)


def write(path: Path, picture: np.ndarray = PICTURE, **changes: Any) -> str:
    source = make_scan().source
    assert source is not None
    arguments: dict[str, Any] = {
        "picture_rgb": picture,
        "patient": source.patient,
        "study": source.study,
        "body_part": source.body_part,
        "digest": "inputs",
        "made_at": DRAWN_AT,
    } | changes
    return write_secondary_capture(path, **arguments)


@pytest.mark.peer
@pytest.mark.parametrize("body_part", ["", "CHEST"])
def test_validators_find_nothing(tmp_path: Path, body_part: str) -> None:
    path = tmp_path / "SC.dcm"
    write(path, body_part=body_part, description="made of overlay.png")
    assert dciodvfy(path) == []
    assert dcentvfy([path]) == []
    assert "WSD" in dcmdump(path)


def test_the_pixels_are_the_picture_s_and_text_is_said_to_be_burned_in(tmp_path: Path) -> None:
    path = tmp_path / "SC.dcm"
    uid = write(path, series_number=300)
    read = dcmread(path)
    assert read.SeriesNumber == 302
    assert (read.pixel_array == PICTURE).all()
    assert len(read.PixelData) % 2 == 0
    assert (read.Rows * read.Columns * 3) % 2 == 1, "the case that needs padding"
    assert read.SOPInstanceUID == uid
    assert read.BurnedInAnnotation == "YES"
    assert list(read.ImageType) == ["DERIVED", "SECONDARY"]
    source = make_scan().source
    assert source is not None
    assert read.StudyInstanceUID == source.study.instance_uid
    assert read.SeriesInstanceUID != source.series_instance_uid


def test_the_same_picture_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm")
    write(tmp_path / "b.dcm")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


@pytest.mark.parametrize("shape", [(0, 4, 3), (70000, 1, 3)])
def test_what_is_no_image_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="is no image"):
        write(tmp_path / "SC.dcm", np.zeros(shape, np.uint8))


def test_the_verdict_stands_above_the_overlay_which_stays_as_it_is() -> None:
    overlay = np.random.default_rng(1).integers(0, 256, (300, 900, 3), np.uint8)
    png = BytesIO()
    image.imsave(png, overlay, format="png")
    drawn = {
        verdict: picture_rgb(png.getvalue(), verdict=verdict, reasons=reasons)
        for verdict, reasons in {
            "accept": [],
            "look": ["one reason"],
            "reject": ["a " * 2000],
        }.items()
    }
    for picture in drawn.values():
        assert picture.dtype == np.uint8
        assert (picture[-300:] == overlay).all()
    heights = [picture.shape[0] for picture in drawn.values()]
    assert heights == sorted(heights)
    assert heights[2] < 2 * 300, "reasons without end do not push the picture off"
    band = drawn["reject"][: heights[2] - 300]
    assert (band.max(axis=2) > 200).any()
    red = (band[..., 0] > 200) & (band[..., 1] < 160)
    assert red.any()
    assert not ((drawn["accept"][: heights[0] - 300, :, 0] > 200) & red[: heights[0] - 300]).all()
