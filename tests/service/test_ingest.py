"""What comes in is stored once, answered one by one, or refused whole; never half."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.service.api.asked import remember_sent
from contourcast.service.archive import Archive, Sent
from contourcast.service.ingest import Answer, take_files, take_zip
from contourcast.service.problems import DiskFullError, TooLargeError
from contourcast.service.records import open_records
from contourcast.service.settings import ServiceSettings
from support.dicom_factory import (
    CtFiles,
    disc,
    make_ct_series,
    make_plan,
    make_registration,
    make_structure_set,
    uid,
)
from support.records import looking_into, stored_files

HU = np.random.default_rng(0).integers(-1000, 1000, (3, 40, 36)).astype(np.int16)
SETTINGS = ServiceSettings(
    file_limit_mib=1, unpacked_limit_mib=2, files_limit=8, disk_reserve_mib=0
)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with looking_into(tmp_path / "data") as records:
        yield records.archive


@pytest.fixture
def ct(tmp_path: Path) -> CtFiles:
    return make_ct_series(tmp_path / "ct", HU)


def take(archive: Archive, *paths: Path) -> list[Answer]:
    return take_files(
        ((p.name, p.open("rb")) for p in paths), archive, SETTINGS, sent=Sent(door="rest")
    )


def outcomes(answers: list[Answer]) -> list[str]:
    return [answer.outcome for answer in answers]


def kept_files(archive: Archive) -> set[Path]:
    """Every file that lies in the store, or is on its way in."""
    incoming = archive.incoming().parent
    return stored_files(incoming.parents[1]) | set(incoming.iterdir())


def test_a_series_is_kept_byte_for_byte(archive: Archive, ct: CtFiles) -> None:
    answers = take(archive, *ct.paths)
    assert outcomes(answers) == ["stored"] * 3
    assert [a.sop_instance_uid for a in answers] == list(ct.sop_uids)
    for path, sop_uid in zip(ct.paths, ct.sop_uids, strict=True):
        kept = archive.instance(sop_uid)
        assert kept is not None
        assert archive.path(kept).read_bytes() == path.read_bytes()
    (series,) = archive.series()
    assert (series.series_uid, series.instances, series.modality) == (ct.series_uid, 3, "CT")
    assert series.frames_of_reference == (ct.frame_of_reference,)
    assert len(kept_files(archive)) == 3, "nothing is left on its way in"


def test_the_same_bytes_again_change_nothing(archive: Archive, ct: CtFiles) -> None:
    take(archive, *ct.paths)
    before = kept_files(archive)
    assert outcomes(take(archive, ct.paths[1], ct.paths[1])) == ["already", "already"]
    assert kept_files(archive) == before


def test_what_the_store_lost_is_healed_by_sending_it_again(archive: Archive, ct: CtFiles) -> None:
    take(archive, *ct.paths)
    kept = archive.instance(ct.sop_uids[1])
    assert kept is not None
    archive.path(kept).unlink()
    assert outcomes(take(archive, ct.paths[1])) == ["already"]
    assert archive.path(kept).read_bytes() == ct.paths[1].read_bytes()


def test_the_same_file_twice_in_one_request_is_kept_once(archive: Archive, ct: CtFiles) -> None:
    assert outcomes(take(archive, ct.paths[0], ct.paths[0])) == ["stored", "already"]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_the_same_pixels_compressed_are_the_same_instance(
    archive: Archive, ct: CtFiles, tmp_path: Path, syntax: str
) -> None:
    again = make_ct_series(tmp_path / "again", HU, transfer_syntax=syntax)
    take(archive, ct.paths[0])
    assert again.paths[0].read_bytes() != ct.paths[0].read_bytes()
    assert outcomes(take(archive, again.paths[0])) == ["already"]
    assert len(kept_files(archive)) == 1


def _renamed(dataset: FileDataset, _: int) -> None:
    dataset.PatientName = "Corrected^Name"


def _moved(dataset: FileDataset, k: int) -> None:
    dataset.ImagePositionPatient = [0, 0, k]


def _rescaled(dataset: FileDataset, _: int) -> None:
    dataset.RescaleIntercept = "-1024"


def _repainted(dataset: FileDataset, _: int) -> None:
    dataset.PixelData = bytes(2) + dataset.PixelData[2:]


def _regrouped(dataset: FileDataset, _: int) -> None:
    dataset.SeriesInstanceUID = uid("another series")


def _of_another(dataset: FileDataset, _: int) -> None:
    dataset.PatientID = "ZZQQ-LEAK-OTHER"


def _of_another_issuer(dataset: FileDataset, _: int) -> None:
    dataset.IssuerOfPatientID = "elsewhere"


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (_renamed, "already"),
        (_of_another_issuer, "already"),
        (_of_another, "conflict"),
        (_moved, "conflict"),
        (_rescaled, "conflict"),
        (_repainted, "conflict"),
        (_regrouped, "conflict"),
    ],
)
def test_another_name_is_the_same_instance_and_another_content_is_not(
    archive: Archive,
    ct: CtFiles,
    tmp_path: Path,
    change: Callable[[FileDataset, int], None],
    outcome: str,
) -> None:
    other = make_ct_series(tmp_path / "other", HU, change=change)
    take(archive, ct.paths[0])
    (answer,) = take(archive, other.paths[0])
    assert answer.outcome == outcome
    kept = archive.instance(ct.sop_uids[0])
    assert kept is not None
    assert archive.path(kept).read_bytes() == ct.paths[0].read_bytes(), "the first stays"
    aside = [archive.blobs.get(k).read_bytes() for k in archive.blobs.list("quarantine/")]
    if outcome == "conflict":
        assert aside == [other.paths[0].read_bytes()], "the second is set aside"
        assert answer.problem is not None
        assert answer.problem.status == 409
        assert ct.sop_uids[0] in answer.problem.where
        assert archive.series()[0].conflicts == 1
    else:
        assert aside == []


def test_a_slice_of_another_patient_is_set_aside_and_its_sender_has_no_part_in_the_series(
    archive: Archive, ct: CtFiles, tmp_path: Path
) -> None:
    def of_another(dataset: FileDataset, _: int) -> None:
        dataset.PatientID = "ZZQQ-LEAK-OTHER"
        dataset.SeriesInstanceUID = ct.series_uid

    other = make_ct_series(tmp_path / "other", HU, name="other", change=of_another)
    take(archive, *ct.paths)
    first, second = take(archive, *other.paths[:2])
    assert outcomes([first, second]) == ["conflict", "conflict"]
    assert archive.instance(other.sop_uids[0]) is None
    assert [k.sop_uid for k in archive.instances_of(ct.series_uid)] == sorted(ct.sop_uids)
    assert remember_sent(archive.index, [first, second], "key:other") == []
    mixed = take(archive, *make_ct_series(tmp_path / "a", HU, name="a").paths[:1])
    assert outcomes(mixed) == ["stored"], "another series is nobody's yet"


def test_structure_sets_and_registrations_conflict_by_what_they_say(
    archive: Archive, ct: CtFiles, tmp_path: Path
) -> None:
    def named(dataset: FileDataset) -> None:
        dataset.PatientName = "Corrected^Name"

    def unchanged(dataset: FileDataset) -> None:
        pass

    def both(size_mm: float, change: Callable[[FileDataset], None]) -> tuple[Path, Path]:
        loop, matrix = disc((0, 0, -30), size_mm), np.eye(4)
        matrix[0, 3] = size_mm
        drawn = make_structure_set(
            tmp_path / "rs.dcm", {"GTV": [loop]}, reference=ct, change=change
        )
        moved = make_registration(
            tmp_path / "reg.dcm", registered=uid("a"), moved={uid("b"): matrix}, change=change
        )
        return drawn, moved

    first = take(archive, *both(8.0, unchanged))
    assert outcomes(first) == ["stored", "stored"]
    same = take(archive, *both(8.0, named))
    assert outcomes(same) == ["already", "already"]
    other = take(archive, *both(9.0, unchanged))
    assert outcomes(other) == ["conflict", "conflict"]


def _rejected(dataset: FileDataset) -> None:
    dataset.ApprovalStatus = "REJECTED"


def _of_another_frame(dataset: FileDataset) -> None:
    dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = uid("elsewhere")
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = uid("elsewhere")


def _series_of(dataset: FileDataset) -> FileDataset:
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    found: FileDataset = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    return found


def _on_another_series(dataset: FileDataset) -> None:
    _series_of(dataset).SeriesInstanceUID = uid("another series")


def _on_fewer_slices(dataset: FileDataset) -> None:
    del _series_of(dataset).ContourImageSequence[0]


@pytest.mark.parametrize(
    "change", [_rejected, _of_another_frame, _on_another_series, _on_fewer_slices]
)
def test_a_structure_set_of_the_same_contours_that_counts_otherwise_is_a_conflict(
    archive: Archive, ct: CtFiles, tmp_path: Path, change: Callable[[FileDataset], None]
) -> None:
    loops = {"GTV": [disc((0, 0, -27), 8.0)]}
    take(archive, make_structure_set(tmp_path / "rs.dcm", loops, reference=ct))
    other = make_structure_set(tmp_path / "other.dcm", loops, reference=ct, change=change)
    assert outcomes(take(archive, other)) == ["conflict"]


def test_a_plan_is_the_same_while_it_ties_and_counts_the_same(
    archive: Archive, tmp_path: Path
) -> None:
    def named(dataset: FileDataset) -> None:
        dataset.PatientName, dataset.IssuerOfPatientID = "Corrected^Name", "elsewhere"

    def damaged(dataset: FileDataset) -> None:
        del dataset.ReferencedStructureSetSequence

    def unapproved(dataset: FileDataset) -> None:
        dataset.ApprovalStatus = "UNAPPROVED"

    assert outcomes(take(archive, make_plan(tmp_path / "plan.dcm"))) == ["stored"]
    assert outcomes(take(archive, make_plan(tmp_path / "again.dcm", change=named))) == ["already"]
    for change in (unapproved, damaged):
        other = make_plan(tmp_path / "other.dcm", change=change)
        assert outcomes(take(archive, other)) == ["conflict"]
    moved = make_plan(tmp_path / "moved.dcm", structures_uid=uid("another set"))
    assert outcomes(take(archive, moved)) == ["conflict"]


def test_what_is_no_dicom_or_none_that_we_use_is_refused_and_leaves_nothing(
    archive: Archive, ct: CtFiles, tmp_path: Path
) -> None:
    def captured(dataset: FileDataset, _: int) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID

    capture = make_ct_series(tmp_path / "capture", HU, name="capture", change=captured)
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.dcm"
    text.write_text("not a scan")
    cut.write_bytes(ct.paths[1].read_bytes()[:900])
    answers = take(archive, ct.paths[0], text, cut, capture.paths[0], ct.paths[2])
    assert outcomes(answers) == ["stored", "refused", "refused", "refused", "stored"]
    for answer in answers:
        if answer.outcome == "refused":
            assert answer.problem is not None
            assert answer.problem.status == 422
            assert answer.problem.cause
    assert len(kept_files(archive)) == 2


def test_a_file_beyond_the_limit_is_refused(archive: Archive, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes(bytes(1024 * 1024 + 1))
    (answer,) = take(archive, large)
    assert answer.problem is not None
    assert (answer.outcome, answer.problem.status) == ("refused", 413)
    assert not kept_files(archive)


def test_nothing_comes_in_when_the_disk_is_below_its_reserve(tmp_path: Path, ct: CtFiles) -> None:
    settings = SETTINGS.model_copy(
        update={"data_folder": tmp_path / "full", "disk_reserve_mib": 1 << 42}
    )
    full = open_records(settings, role="test")
    with pytest.raises(DiskFullError, match="below the reserve"):
        take(full.archive, ct.paths[0])
    assert not kept_files(full.archive)
    full.close()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(st.sampled_from(range(6)), min_size=1, max_size=14),
    cuts=st.sets(st.integers(0, 14)),
)
def test_any_order_of_arrivals_gives_the_set_of_what_arrived(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[int], cuts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("arrivals")
    both = [make_ct_series(folder / n, HU, name=n) for n in ("one", "two")]
    paths = [p for series in both for p in series.paths]
    uids = [u for series in both for u in series.sop_uids]
    edges = sorted({0, len(arrivals), *(c for c in cuts if c < len(arrivals))})
    with looking_into(folder / "data") as records:
        archive = records.archive
        answered: list[str] = []
        for start, stop in itertools.pairwise(edges):
            answered += outcomes(take(archive, *(paths[a] for a in arrivals[start:stop])))
        seen: set[int] = set()
        for arrival, outcome in zip(arrivals, answered, strict=True):
            assert outcome == ("already" if arrival in seen else "stored")
            seen.add(arrival)
        kept = {sop for series in archive.series() for sop in uids if archive.instance(sop)}
        assert kept == {uids[a] for a in seen}
        assert len(kept_files(archive)) == len(seen)


# Zips


def zipped(members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def send_zip(archive: Archive, content: bytes) -> list[Answer]:
    path = archive.incoming()
    path.write_bytes(content)
    try:
        return take_zip(path, archive, SETTINGS, sent=Sent(door="rest"))
    finally:
        path.unlink()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_the_files_in_it(archive: Archive, ct: CtFiles, method: int) -> None:
    members = {f"PAT1/CT/{p.name}": p.read_bytes() for p in ct.paths} | {"PAT1/notes.txt": b"hello"}
    answers = send_zip(archive, zipped(members, method=method))
    assert outcomes(answers) == ["stored"] * 3 + ["refused"]
    assert [a.name for a in answers] == list(members)
    assert len(kept_files(archive)) == 3


def _with_flag(content: bytes, *, flag: int) -> bytes:
    """Sets a general purpose flag in every header of the archive."""
    changed = bytearray(content)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(magic)
        while at >= 0:
            flags = struct.unpack_from("<H", changed, at + offset)[0]
            struct.pack_into("<H", changed, at + offset, flags | flag)
            at = changed.find(magic, at + 4)
    return bytes(changed)


def _with_directory_value(content: bytes, *, offset: int, value: int) -> bytes:
    """Overwrites four bytes in the last entry of the archive's directory."""
    changed = bytearray(content)
    struct.pack_into("<I", changed, changed.rfind(b"PK\x01\x02") + offset, value)
    return bytes(changed)


def _linked(slice_: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.dcm", slice_)
        link = zipfile.ZipInfo("b.dcm")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


TRICKS: dict[str, tuple[Callable[[bytes], bytes], type[ContourcastError], str]] = {
    "no zip at all": (lambda s: b"PK" + s, InputError, "damaged"),
    "cut short": (lambda s: zipped({"a.dcm": s})[:-30], InputError, "damaged"),
    "a member is damaged": (
        lambda s: zipped({"a.dcm": s}, method=zipfile.ZIP_STORED).replace(s[500:520], bytes(20)),
        InputError,
        "damaged",
    ),
    "parent folder": (
        lambda s: zipped({"a.dcm": s, "../../etc/cron.d/x": s}),
        InputError,
        "leads out",
    ),
    "absolute": (lambda s: zipped({"a.dcm": s, "/etc/x": s}), InputError, "leads out"),
    "backslashes": (lambda s: zipped({"a.dcm": s, "..\\..\\x": s}), InputError, "leads out"),
    "drive": (lambda s: zipped({"a.dcm": s, "C:/x": s}), InputError, "leads out"),
    "link": (_linked, InputError, "is a link"),
    "encrypted": (
        lambda s: _with_flag(zipped({"a.dcm": s}), flag=1),
        InputError,
        "encrypted",
    ),
    "nested": (
        lambda s: zipped({"a.dcm": s, "b.zip": zipped({"c.dcm": s})}),
        InputError,
        "another zip",
    ),
    "nested under another name": (
        lambda s: zipped({"a.dcm": s, "b.dcm": zipped({"c.dcm": s})}),
        InputError,
        "another zip",
    ),
    "bomb": (
        lambda s: zipped({"a.dcm": s, "b.dcm": bytes(1 << 21)}),
        TooLargeError,
        "more than",
    ),
    "bomb of many": (
        lambda s: zipped({f"{n}.dcm": bytes(900_000) for n in range(8)}),
        TooLargeError,
        "more than",
    ),
    "larger than it says": (
        lambda s: _with_directory_value(
            zipped({"a.dcm": s, "b.dcm": bytes(300_000)}), offset=24, value=10
        ),
        InputError,
        "damaged",
    ),
    "overlapping": (
        lambda s: _with_directory_value(
            zipped({"a.dcm": s, "b.dcm": s}, method=zipfile.ZIP_STORED), offset=42, value=0
        ),
        InputError,
        "damaged|overlap",
    ),
    "too many": (
        lambda s: zipped({f"{n}.dcm": s for n in range(9)}),
        TooLargeError,
        "more than 8 members",
    ),
    "large member": (
        lambda s: zipped(
            {"a.dcm": s, "b.dcm": np.random.default_rng(0).bytes(1024 * 1024 + 1)},
            method=zipfile.ZIP_STORED,
        ),
        TooLargeError,
        "more than 1 MiB",
    ),
    "packed in a way we do not know": (
        lambda s: _with_method(zipped({"a.dcm": s}), 97),
        InputError,
        "damaged, or packed",
    ),
}


def _with_method(content: bytes, method: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into("<H", changed, changed.find(b"PK\x03\x04") + 8, method)
    struct.pack_into("<H", changed, changed.find(b"PK\x01\x02") + 10, method)
    return bytes(changed)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_zip_with_a_trick_in_it_is_refused_whole(
    archive: Archive, ct: CtFiles, trick: str
) -> None:
    make, kind, said = TRICKS[trick]
    with pytest.raises(kind, match=said) as refused:
        send_zip(archive, make(ct.paths[0].read_bytes()))
    assert refused.value.remedy
    assert not kept_files(archive), "nothing is half stored"
    assert archive.series() == []
