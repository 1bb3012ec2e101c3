from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from contourcast.imaging.dicom.codec import Codec
from contourcast.imaging.dicom.elements import LIMITS, read_elements
from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.pixels import pixel_digest, read_stored
from contourcast.imaging.errors import ContourcastError, DicomError, NotDicomError
from support.dicom_factory import make_ct_series, make_registration, make_structure_set, uid

NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
COMPRESSED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
# Enough pixels for five levels of JPEG 2000; every value differs from its neighbours.
PICTURE = (np.arange(40 * 48).reshape(1, 40, 48) * 37 % 3000) - 1000


def one_file(
    folder: Path,
    change: Callable[[FileDataset], None] = lambda dataset: None,
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
    values: np.ndarray = PICTURE,
) -> Path:
    """A single slice, changed before it is written."""
    return make_ct_series(
        folder, values, transfer_syntax=transfer_syntax, change=lambda dataset, k: change(dataset)
    ).paths[0]


def with_private(value: bytes, vr: str = "OB") -> Callable[[FileDataset], None]:
    """Puts a private element into a file."""

    def change(dataset: FileDataset) -> None:
        dataset.private_block(0x0009, "TEST", create=True).add_new(0x01, vr, value)

    return change


def patched(path: Path, old: bytes, new: bytes) -> bytes:
    """The file's bytes with one place replaced, which pydicom would refuse to write."""
    data = path.read_bytes()
    assert data.count(old) == 1
    return data.replace(old, new)


def test_a_header_says_what_the_file_says(tmp_path: Path) -> None:
    header = read_header(one_file(tmp_path))
    assert header.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert header.sop_instance_uid == uid("ct slice 0 instance")
    assert header.series_instance_uid == uid("ct series")
    assert header.frame_of_reference == uid("ct frame")
    assert header.modality == "CT"
    assert header.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert header.plane.position_xyz_mm == (-10.0, -20.0, -30.0)
    assert header.plane.orientation == (1, 0, 0, 0, 1, 0)
    assert header.plane.spacing_yx_mm == (1.5, 2.0)
    assert (header.plane.slope, header.plane.intercept) == (1.0, 0.0)
    assert header.pixels is not None
    assert (header.pixels.rows, header.pixels.columns, header.pixels.signed) == (40, 48, True)
    assert header.patient.patient_id == "P-1"
    assert header.notes == ()


def test_path_bytes_and_stream_give_the_same_header(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    data = path.read_bytes()
    expected = read_header(path)
    assert read_header(data, file=path.name) == expected
    assert read_header(io.BytesIO(data), file=path.name) == expected


@pytest.mark.parametrize("syntax", NATIVE)
def test_every_native_transfer_syntax_gives_the_same_header(tmp_path: Path, syntax: str) -> None:
    plain = read_header(one_file(tmp_path / "plain"))
    other = read_header(one_file(tmp_path / "other", transfer_syntax=syntax))
    assert other.transfer_syntax == syntax
    assert replace(other, transfer_syntax=plain.transfer_syntax, pixels=plain.pixels) == plain


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    with Codec() as one:
        yield one


def test_a_pixel_digest_is_the_same_in_every_transfer_syntax(tmp_path: Path, codec: Codec) -> None:
    digests = {
        syntax: pixel_digest(one_file(tmp_path / syntax, transfer_syntax=syntax), codec=codec)
        for syntax in (*NATIVE, *COMPRESSED)
    }
    assert len(set(digests.values())) == 1, digests


def test_a_pixel_digest_tells_pictures_and_shapes_apart(tmp_path: Path) -> None:
    changed = PICTURE.copy()
    changed[0, 3, 4] += 1
    digests = {
        pixel_digest(one_file(tmp_path / str(n), values=values))
        for n, values in enumerate((PICTURE, changed, PICTURE.reshape(1, 48, 40)))
    }
    assert len(digests) == 3


def test_bits_above_the_stored_ones_are_cleared_and_the_sign_extended(tmp_path: Path) -> None:
    wanted = np.array([[[-2048, -1, 0, 2047]]])
    junk = (wanted & 0x0FFF) | 0xA000

    def twelve_bits(dataset: FileDataset) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = junk.astype("<u2").tobytes()

    path = one_file(tmp_path, twelve_bits, values=wanted)
    assert read_stored(path, read_header(path)).tolist() == wanted[0].tolist()


@pytest.mark.parametrize("padding", [b"\0", b" ", b"\0\0", b"  "])
def test_a_uid_may_end_in_nul_or_space(tmp_path: Path, padding: bytes) -> None:
    frame = "1.2.3.4" if len(padding) == 1 else "1.2.3.45"

    def change(dataset: FileDataset) -> None:
        dataset.FrameOfReferenceUID = frame + "9" * len(padding)

    path = one_file(tmp_path, change)
    data = path.read_bytes().replace(
        (frame + "9" * len(padding)).encode(), frame.encode() + padding
    )
    assert read_header(data).frame_of_reference == frame


@pytest.mark.parametrize("name", ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"])
def test_a_file_without_its_identity_is_refused(tmp_path: Path, name: str) -> None:
    path = one_file(tmp_path, lambda dataset: delattr(dataset, name))
    with pytest.raises(DicomError, match="is missing") as refused:
        read_header(path)
    assert refused.value.file == path.name


def test_text_in_place_of_a_uid_is_refused(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    wrong = patched(path, uid("ct frame").encode(), b"x" * len(uid("ct frame")))
    with pytest.raises(DicomError, match="is not a UID") as refused:
        read_header(wrong)
    assert "(0020,0052)" in refused.value.tag


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n" + bytes(500), bytes(2000)])
def test_what_is_not_dicom_is_told_apart_from_what_is_broken(data: bytes) -> None:
    with pytest.raises(NotDicomError):
        read_header(data, file="x")


def test_a_dicom_file_that_holds_nothing_is_not_dicom() -> None:
    with pytest.raises(NotDicomError, match="holds nothing"):
        read_header(bytes(128) + b"DICM")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_a_path_that_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.dcm"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(NotDicomError, match="not a file"):
        read_header(path)


def test_a_bare_data_set_is_read_and_noted(tmp_path: Path) -> None:
    path = one_file(tmp_path, transfer_syntax=ImplicitVRLittleEndian)
    data = path.read_bytes()
    start = data.index(b"\x08\x00\x05\x00")  # Specific Character Set begins the data set
    header = read_header(data[start:])
    assert header.series_instance_uid == uid("ct series")
    assert "no preamble: read as a bare data set" in header.notes
    assert any(ImplicitVRLittleEndian in note for note in header.notes)


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    wrong = patched(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0")
    with pytest.raises(DicomError, match="unknown") as refused:
        read_header(wrong)
    assert refused.value.uid == "1.2.840.99999.1.2.1"


def deflated(tmp_path: Path, data_set: bytes) -> bytes:
    """A deflated file around any data set."""
    path = one_file(tmp_path, transfer_syntax=DeflatedExplicitVRLittleEndian)
    start = read_elements(path).deflated_from
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return path.read_bytes()[:start] + engine.compress(data_set) + engine.flush()


def test_a_deflated_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    bomb = deflated(tmp_path, bytes(60 << 20))
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    with pytest.raises(DicomError, match="grows beyond"):
        read_header(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, f"{peak >> 20} MiB were taken"


def test_a_deflated_file_within_the_ratio_may_still_not_pass_the_limit(tmp_path: Path) -> None:
    data = deflated(tmp_path, np.random.default_rng(0).bytes(3 << 20))
    limits = replace(LIMITS, inflated_bytes=2 << 20)
    with pytest.raises(DicomError, match=r"cut short|grows beyond"):
        read_header(data, limits=limits)


def test_a_blank_slice_may_deflate_a_thousandfold(tmp_path: Path) -> None:
    blank = np.full((1, 1024, 1024), -1000)
    path = one_file(tmp_path, transfer_syntax=DeflatedExplicitVRLittleEndian, values=blank)
    assert path.stat().st_size * 500 < blank.size * 2
    assert (read_stored(path, read_header(path)) == -1000).all()


def test_damaged_and_cut_deflate_streams_are_refused(tmp_path: Path) -> None:
    path = one_file(tmp_path, transfer_syntax=DeflatedExplicitVRLittleEndian)
    data, start = path.read_bytes(), read_elements(path).deflated_from
    assert start is not None
    with pytest.raises(DicomError, match="damaged"):
        read_header(data[:start] + b"\xff" * 50)
    with pytest.raises(DicomError, match="cut short"):
        read_header(data[: start + 200])


@pytest.mark.parametrize("claimed", [0xFFFFFFFE, 0x7FFFFFFF, 1 << 24])
def test_an_element_that_claims_gigabytes_costs_nothing(tmp_path: Path, claimed: int) -> None:
    path = one_file(tmp_path, with_private(b"abcdefgh"))
    old = b"\x09\x00\x01\x10OB\0\0" + struct.pack("<I", 8)
    wrong = patched(path, old, old[:8] + struct.pack("<I", claimed))
    tracemalloc.start()
    with pytest.raises(DicomError, match="cut short"):
        read_header(wrong)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, f"{peak >> 10} KiB were taken"


def test_a_header_beyond_the_limit_is_refused_within_memory(tmp_path: Path) -> None:
    path = one_file(tmp_path, with_private(bytes(40 << 20)))
    tracemalloc.start()
    with pytest.raises(DicomError, match="more than 8 MiB"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20, f"{peak >> 20} MiB were taken"


def test_a_large_private_attachment_within_the_limit_is_read_over(tmp_path: Path) -> None:
    path = one_file(tmp_path, with_private(bytes(2 << 20)))
    assert read_stored(path, read_header(path)).tolist() == PICTURE[0].tolist()


def test_pixels_are_not_read_with_the_header(tmp_path: Path) -> None:
    path = one_file(tmp_path, values=np.zeros((1, 2048, 2048), int))
    tracemalloc.start()
    read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, f"{peak >> 10} KiB were taken"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Rows", 2049, "more than 2048 a side"),
        ("Columns", 65535, "more than 2048 a side"),
        ("NumberOfFrames", 300_000, "more than 1024 MiB"),
        ("NumberOfFrames", -1, "more than 1024 MiB"),
        ("BitsStored", 17, "do not fit"),
        ("HighBit", 16, "do not fit"),
        ("BitsAllocated", 13, "do not fit"),
        ("Rows", None, "does not say how many"),
    ],
)
def test_impossible_pixel_formats_are_refused_before_decoding(
    tmp_path: Path, name: str, value: int | None, expected: str
) -> None:
    path = one_file(tmp_path, lambda dataset: setattr(dataset, name, value))
    with pytest.raises(DicomError, match=expected):
        read_header(path)


def nested(depth: int) -> Dataset:
    """Sequences within sequences."""
    item = Dataset()
    if depth:
        item.ReferencedImageSequence = [nested(depth - 1)]
    return item


def test_sequences_may_nest_eight_deep_and_no_deeper(tmp_path: Path) -> None:
    def deep(depth: int) -> Callable[[FileDataset], None]:
        return lambda dataset: setattr(dataset, "ReferencedImageSequence", [nested(depth - 1)])

    read_header(one_file(tmp_path / "8", deep(8)))
    with pytest.raises(DicomError, match="nest deeper than 8"):
        read_header(one_file(tmp_path / "9", deep(9)))


def test_endless_nesting_is_refused_without_recursion_error(tmp_path: Path) -> None:
    start = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path = one_file(tmp_path)
    meta_end = path.read_bytes().index(b"\x08\x00\x05\x00")
    with pytest.raises(DicomError, match="nest deeper"):
        read_header(path.read_bytes()[:meta_end] + start * 100_000)


def test_too_many_elements_are_refused(tmp_path: Path) -> None:
    def many(dataset: FileDataset) -> None:
        dataset.ReferencedImageSequence = [Dataset() for _ in range(300)]

    path = one_file(tmp_path, many)
    for most in (300, 100):  # the last ones are elements, or items
        with pytest.raises(DicomError, match=f"more than {most} elements"):
            read_header(path, limits=replace(LIMITS, elements=most))


def test_an_object_without_pixels_may_be_larger_but_not_endless(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path / "ct")
    attachment = with_private(bytes(9 << 20))
    path = make_structure_set(tmp_path / "rs.dcm", {}, reference=ct, change=attachment)
    assert read_header(path).modality == "RTSTRUCT"
    with pytest.raises(DicomError, match="more than 9 MiB"):
        read_header(path, limits=replace(LIMITS, object_bytes=9 << 20))


def test_an_attribute_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    modality = b"\x08\x00\x60\x00CS\x02\x00CT"
    with pytest.raises(DicomError, match="stands twice"):
        read_header(patched(path, modality, modality * 2))


def test_a_compressed_icon_is_read_over(tmp_path: Path) -> None:
    def icon(dataset: FileDataset) -> None:
        item = Dataset()
        item.add_new(0x7FE00010, "OB", encapsulate([b"12345678"]))
        item[0x7FE00010].is_undefined_length = True
        dataset.IconImageSequence = [item]

    header = read_header(one_file(tmp_path, icon))
    assert header.pixels is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PixelSpacing", "1.5\\x"),
        ("PixelSpacing", "nan\\1"),
        ("PixelSpacing", "1_0\\1"),
        ("PixelSpacing", "1.5"),
        ("ImagePositionPatient", "1\\2\\inf"),
        ("ImagePositionPatient", "1\\2"),
        ("ImageOrientationPatient", "1\\0\\0\\0\\1"),
        ("RescaleSlope", "1\\2"),
    ],
)
def test_numbers_that_are_none_are_refused_with_their_tag(
    tmp_path: Path, name: str, text: str
) -> None:
    def change(dataset: FileDataset) -> None:
        del dataset[name]
        dataset.add_new(tag_for_keyword(name) or 0, "LT", text)  # no VR that pydicom checks

    path = one_file(tmp_path, change)
    with pytest.raises(DicomError, match=r"no number|instead of") as refused:
        read_header(path)
    assert refused.value.tag
    assert refused.value.file == path.name


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Müller^Zoë"),
        ("ISO_IR 144", "Жук^Юлия"),
        ("GB18030", "王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_names_are_unicode_in_every_character_set(
    tmp_path: Path, character_set: str | list[str], name: str
) -> None:
    def change(dataset: FileDataset) -> None:
        dataset.SpecificCharacterSet = character_set
        dataset.PatientName = name

    assert read_header(one_file(tmp_path, change)).patient.name == name


def test_an_unknown_character_set_costs_the_letters_and_not_the_file(tmp_path: Path) -> None:
    path = one_file(tmp_path, lambda dataset: setattr(dataset, "PatientName", "Müller"))
    header = read_header(patched(path, b"ISO_IR 192", b"ISO_IR 999"))
    assert header.patient.name.startswith("M")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_native_pixels_of_another_length_are_refused(tmp_path: Path, syntax: str) -> None:
    path = one_file(tmp_path, lambda dataset: setattr(dataset, "Rows", 39), transfer_syntax=syntax)
    with pytest.raises(DicomError, match="bytes of pixels"):
        read_stored(path, read_header(path))


def test_an_object_without_pixels_has_no_digest(tmp_path: Path) -> None:
    path = make_registration(tmp_path / "reg.dcm", registered=uid("a"), moved={})
    with pytest.raises(DicomError, match="not one grey image"):
        pixel_digest(path)


def test_an_image_without_pixels_is_taken_for_cut_short(tmp_path: Path) -> None:
    path = one_file(tmp_path, lambda dataset: delattr(dataset, "PixelData"))
    with pytest.raises(DicomError, match="no pixels"):
        read_header(path)


def compressed_with(tmp_path: Path, stream: bytes, syntax: str = JPEG2000Lossless) -> Path:
    """A file that says it is compressed and holds any stream."""

    def change(dataset: FileDataset) -> None:
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    path = one_file(tmp_path, change)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    "syntax",
    [JPEG2000Lossless, JPEGLSLossless, RLELossless, "1.2.840.10008.1.2.4.70"],
)
def test_a_damaged_compressed_stream_is_refused_and_the_next_one_read(
    tmp_path: Path, syntax: str, codec: Codec
) -> None:
    broken = compressed_with(tmp_path / "broken", b"\xff\x4f\xff\x51 not a stream ", syntax)
    good = one_file(tmp_path / "good", transfer_syntax=RLELossless)
    with pytest.raises(DicomError, match="cannot be decoded") as refused:
        pixel_digest(broken, codec=codec)
    assert refused.value.file == broken.name
    assert pixel_digest(good, codec=codec) == pixel_digest(one_file(tmp_path / "plain"))


def test_a_stream_that_claims_another_size_than_its_header_is_refused(tmp_path: Path) -> None:
    """A codestream of 65535 x 65535 in a file of 40 x 48 never takes its 8 GiB."""
    path = one_file(tmp_path / "good", transfer_syntax=JPEG2000Lossless)
    dataset = dcmread(path)
    size = struct.pack(">II", 48, 40)
    assert size in dataset.PixelData
    dataset.PixelData = dataset.PixelData.replace(size, struct.pack(">II", 65535, 65535))
    dataset.save_as(path)
    with pytest.raises(DicomError, match="cannot be decoded"):
        pixel_digest(path)


def test_a_decoder_that_was_ended_costs_no_image(tmp_path: Path) -> None:
    """The system may end the child between two images; the next one starts another."""
    path = one_file(tmp_path, transfer_syntax=RLELossless)
    with Codec() as own:
        first = pixel_digest(path, codec=own)
        assert own._child is not None
        own._child.kill()
        own._child.wait()
        assert pixel_digest(path, codec=own) == first


def test_a_decoder_that_never_ends_is_ended_by_the_system() -> None:
    """Python code stands for the C code of a codec: the signal's default is taken in both."""
    endless = (
        "from contourcast.imaging.dicom.codec import _end_after\n"
        "_end_after(cpu_seconds=1, wall_seconds=500)\n"
        "while True: pass"
    )
    ended = subprocess.run([sys.executable, "-c", endless], check=False)
    assert ended.returncode == -signal.SIGPROF


def test_a_codec_that_is_not_there_is_named(tmp_path: Path, codec: Codec) -> None:
    path = compressed_with(tmp_path, b"12345678", "1.2.840.10008.1.2.4.100")  # MPEG-2
    with pytest.raises(DicomError, match="no decoder") as refused:
        pixel_digest(path, codec=codec)
    assert "codecs" in refused.value.remedy


def test_compressed_pixels_far_larger_than_the_image_are_refused(tmp_path: Path) -> None:
    path = compressed_with(tmp_path, bytes(1 << 20))
    with pytest.raises(DicomError, match="more than twice"):
        pixel_digest(path)


def everything(data: bytes) -> None:
    """All that is read of one instance; whatever is refused is refused as ours, without names."""
    said = ""
    try:
        header = read_header(data, file="slice.dcm")
        if header.pixels is not None and header.pixels.length is not None:
            read_stored(data, header)
    except ContourcastError as refused:
        said = str(refused)
    assert "Phantom" not in said
    assert "P-1" not in said


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, syntax: str) -> None:
    small = PICTURE[:, :4, :5]
    data = one_file(tmp_path, transfer_syntax=syntax, values=small).read_bytes()
    # A deflated file ends with a byte of padding, which may be missing.
    for length in range(len(data) - 1):
        with pytest.raises(DicomError):
            read_header(data[:length], file="slice.dcm")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_in_a_file_never_escape_the_family_of_errors(
    tmp_path: Path, data: st.DataObject
) -> None:
    syntax = data.draw(st.sampled_from(NATIVE))
    folder = tmp_path / syntax
    if not folder.exists():
        one_file(folder, with_private(b"abcdefgh"), transfer_syntax=syntax)
    original = bytearray(next(folder.iterdir()).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(original), 1600) - 1))
        original[position] = data.draw(st.integers(0, 255))
    everything(bytes(original))
