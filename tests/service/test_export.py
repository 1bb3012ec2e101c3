"""De-identified copies: nothing of the patient in any byte, all of the geometry still there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, JPEG2000Lossless, generate_uid

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.rtstruct_in import read_structure_set, require_drawn_on
from contourcast.imaging.errors import ContourcastError, DicomError
from contourcast.service.index.tables import course, review
from contourcast.service.keeping.export import (
    METHODS,
    Pseudonyms,
    _require_clean,
    clean_roi_name,
    deidentify,
    export,
)
from contourcast.service.keeping.selection import files_of
from contourcast.service.problems import NotFoundError, SettingsError
from support.data import peer_module
from support.dicom_factory import (
    CtFiles,
    disc,
    make_ct_series,
    make_registration,
    make_structure_set,
    uid,
)
from support.records import looking_into
from support.review import take
from support.rows import add
from support.validators import dciodvfy

SITE = Pseudonyms(key=b"the key of a site that is long enough")
LEAK = "ZZQQ"


def identified(dataset: FileDataset, _: int = 0) -> None:
    """Fills in whatever the standard has for saying who, where, by whom and when."""
    dataset.PatientName, dataset.PatientID = f"{LEAK}-Name^First", f"{LEAK}-ID"
    dataset.IssuerOfPatientID, dataset.PatientBirthDate = f"{LEAK}-Issuer", "19310517"
    dataset.PatientSex, dataset.PatientAge = "F", "094Y"
    dataset.AccessionNumber, dataset.StudyID = f"{LEAK}-7", f"{LEAK}-8"
    dataset.StudyDescription = dataset.SeriesDescription = f"{LEAK} described"
    dataset.InstitutionName, dataset.StationName = f"{LEAK} hospital", f"{LEAK}-LINAC"
    dataset.ReferringPhysicianName = dataset.OperatorsName = f"{LEAK}^Doctor"
    dataset.DeviceSerialNumber, dataset.ProtocolName = f"{LEAK}-SN", f"{LEAK} protocol"
    dataset.PatientComments = dataset.ImageComments = f"{LEAK} comment"
    dataset.FrameOfReferenceUID = dataset.get("FrameOfReferenceUID", uid("frame"))
    dataset.Manufacturer, dataset.ManufacturerModelName = "Factory", "Model 1"
    block = dataset.private_block(0x0029, f"{LEAK} PRIVATE", create=True)
    block.add_new(0x10, "LO", f"{LEAK} in private")
    block.add_new(0x11, "SQ", [item(PatientName=f"{LEAK}^Nested")])
    dataset.RequestAttributesSequence = [
        item(RequestedProcedureID=f"{LEAK}-9", RequestedProcedureDescription=f"{LEAK} asked")
    ]
    dataset.add_new(0x60003000, "OW", LEAK.encode() * 4)  # an overlay
    dataset.file_meta.SourceApplicationEntityTitle = f"{LEAK}-AE"
    dataset.preamble = (LEAK.encode() * 32)[:128]


def item(**elements: object) -> Dataset:
    one = Dataset()
    for keyword, value in elements.items():
        setattr(one, keyword, value)
    return one


@pytest.fixture
def ct(tmp_path: Path) -> CtFiles:
    return make_ct_series(tmp_path / "ct", change=identified)


@pytest.fixture
def structures(tmp_path: Path, ct: CtFiles) -> Path:
    def change(dataset: FileDataset) -> None:
        identified(dataset)
        dataset.StructureSetLabel = f"{LEAK}-LABEL"
        dataset.StructureSetName = dataset.StructureSetDescription = f"{LEAK} set"
        dataset.ReviewerName, dataset.ReviewDate = f"{LEAK}^Reviewer", "20260104"
        dataset.StructureSetROISequence[0].ROIDescription = f"{LEAK} tumour"
        dataset.RTROIObservationsSequence[0].ROIInterpreter = f"{LEAK}^Drew"

    loop = disc((0, -10, -24), 4)
    return make_structure_set(
        tmp_path / "rs.dcm",
        {"GTV": [loop], f"{LEAK} mass": [loop], "Lung_L": [loop]},
        reference=ct,
        change=change,
    )


@pytest.fixture
def registration(tmp_path: Path, ct: CtFiles) -> Path:
    def change(dataset: FileDataset) -> None:
        identified(dataset)
        dataset.FrameOfReferenceUID = ct.frame_of_reference
        dataset.ContentCreatorName = f"{LEAK}^Creator"
        dataset.ContentDescription = f"{LEAK} content"

    return make_registration(
        tmp_path / "reg.dcm",
        registered=ct.frame_of_reference,
        moved={uid("cbct frame"): np.eye(4)},
        change=change,
    )


@pytest.fixture
def plan(tmp_path: Path, structures: Path) -> Path:
    dataset = pydicom.dcmread(structures)
    kept = {
        "PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "Manufacturer", "PatientBirthDate",
        "PatientSex", "FrameOfReferenceUID", "PositionReferenceIndicator", "InstitutionName",
    }  # fmt: skip
    for element in list(dataset):
        if element.keyword not in kept:
            del dataset[element.tag]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(
        "1.2.840.10008.5.1.4.1.1.481.5"
    )
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid("plan"))
    dataset.SeriesInstanceUID, dataset.SeriesNumber = uid("plan series"), None
    dataset.Modality, dataset.RTPlanGeometry = "RTPLAN", "PATIENT"
    dataset.OperatorsName = f"{LEAK}^Planner"
    dataset.RTPlanLabel = dataset.RTPlanName = f"{LEAK} plan"
    dataset.RTPlanDescription = f"{LEAK} planned"
    dataset.RTPlanDate, dataset.RTPlanTime = "20260105", "1200"
    dataset.ApprovalStatus = "APPROVED"
    dataset.ReviewerName, dataset.ReviewDate, dataset.ReviewTime = f"{LEAK}^R", "20260105", ""
    dataset.ReferencedStructureSetSequence = [
        item(
            ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
            ReferencedSOPInstanceUID=uid("rs instance"),
        )
    ]
    dataset.BeamSequence = [
        item(
            BeamNumber=1, BeamName=f"{LEAK} beam", TreatmentMachineName=f"{LEAK}-LINAC",
            BeamType="STATIC", RadiationType="PHOTON", NumberOfControlPoints=1,
            ControlPointSequence=[item(ControlPointIndex=0, IsocenterPosition=["1", "2", "3"])],
        )
    ]  # fmt: skip
    dataset.save_as(tmp_path / "plan.dcm")
    return tmp_path / "plan.dcm"


def test_no_byte_of_what_leaves_says_whose_it_is(
    ct: CtFiles, structures: Path, registration: Path, plan: Path, tmp_path: Path
) -> None:
    files = [*ct.paths, structures, registration, plan]
    done = export(files, tmp_path / "out", pseudonyms=SITE)
    assert done.refused == ()
    assert done.patients == 1
    assert len(done.paths) == len(files)
    originals = {
        *ct.sop_uids, ct.series_uid, ct.study_uid, ct.frame_of_reference, uid("rs instance"),
        uid("plan"), uid("cbct frame"),
    }  # fmt: skip
    for path in (tmp_path / "out").rglob("*"):
        assert LEAK not in path.name
        if path.is_file():
            content = path.read_bytes()
            for known in (LEAK, "19310517", "20260103", "20260104", "20260105", "094Y", *originals):
                assert known.encode() not in content


def test_what_belongs_together_still_does(
    ct: CtFiles, structures: Path, registration: Path, plan: Path, tmp_path: Path
) -> None:
    done = export([*ct.paths, structures, registration, plan], tmp_path / "out", pseudonyms=SITE)
    images, rest = done.paths[: len(ct.paths)], done.paths[len(ct.paths) :]
    scan, drawn = read_ct_series(images, role="planning CT"), read_structure_set(rest[0])
    np.testing.assert_array_equal(scan.values, ct.hu_zyx)
    np.testing.assert_allclose(scan.grid.origin_xyz_mm, ct.positions_xyz_mm[0])
    require_drawn_on(drawn, scan)
    assert [roi.name for roi in drawn.rois] == ["GTV", "ROI 2", "Lung_L"]
    before = read_structure_set(structures)
    for one, other in zip(drawn.rois, before.rois, strict=True):
        np.testing.assert_array_equal(one.loops[0].points_xyz_mm, other.loops[0].points_xyz_mm)
    assert set(read_registration(rest[1]).frames) == {
        SITE.uid(ct.frame_of_reference),
        SITE.uid(uid("cbct frame")),
    }
    planned = pydicom.dcmread(rest[2])
    named = planned.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID
    assert named == drawn.sop_instance_uid
    assert planned.BeamSequence[0].ControlPointSequence[0].IsocenterPosition == [1, 2, 3]
    assert planned.BeamSequence[0].TreatmentMachineName == ""


def test_each_file_says_how_it_was_done(ct: CtFiles) -> None:
    clean = deidentify(ct.paths[0], pseudonyms=SITE)
    assert clean.PatientIdentityRemoved == "YES"
    assert clean.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [(c.CodeValue, c.CodeMeaning) for c in clean.DeidentificationMethodCodeSequence]
    assert tuple(codes) == METHODS
    assert all(c.CodingSchemeDesignator == "DCM" for c in clean.DeidentificationMethodCodeSequence)
    assert clean.PatientID == clean.PatientName
    assert clean.Manufacturer == "Factory"


def test_intervals_and_weekdays_stay(tmp_path: Path) -> None:
    days = {}
    for date in ("20260103", "20260301", "20240229"):

        def dated(dataset: FileDataset, _: int, date: str = date) -> None:
            dataset.StudyDate = date
            dataset.AcquisitionDateTime = f"{date}101500.5+0100"
            dataset.add(DataElement(0x00080031, "TM", "10:15 o'clock", validation_mode=0))

        series = make_ct_series(tmp_path / date, name=date, change=dated)
        clean = deidentify(series.paths[0], pseudonyms=SITE)
        assert clean.SeriesTime == ""
        assert clean.StudyTime == "100000"
        assert "AcquisitionDateTime" not in clean
        days[date] = np.datetime64(
            f"{clean.StudyDate[:4]}-{clean.StudyDate[4:6]}-{clean.StudyDate[6:]}"
        )
    shift = np.datetime64("2026-01-03") - days["20260103"]
    assert shift.astype(int) % 7 == 0
    assert 7 <= shift.astype(int) <= 7 * 520
    assert np.datetime64("2026-03-01") - days["20260301"] == shift
    assert np.datetime64("2024-02-29") - days["20240229"] == shift


def test_another_patient_and_another_site_have_other_pseudonyms(ct: CtFiles) -> None:
    other = Pseudonyms(key=b"another key that is also long enough")
    one, same, elsewhere = (
        deidentify(ct.paths[0], pseudonyms=SITE),
        deidentify(ct.paths[0], pseudonyms=SITE),
        deidentify(ct.paths[0], pseudonyms=other),
    )
    assert one == same
    assert one.PatientID != elsewhere.PatientID
    assert one.SOPInstanceUID != elsewhere.SOPInstanceUID
    assert len(one.SOPInstanceUID) <= 64
    assert one.SOPClassUID == elsewhere.SOPClassUID


def test_a_key_that_can_be_guessed_is_none() -> None:
    with pytest.raises(SettingsError, match="fewer than 32"):
        Pseudonyms(key=b"secret")
    assert "guess" not in repr(Pseudonyms(key=b"guess" * 10))


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("GTV", "GTV"),
        ("iGTV_MIP 50", "iGTV_MIP 50"),
        ("PTV 54.00", "PTV 54.00"),
        ("Lung_L", "Lung_L"),
        ("GTV Müller", "ROI 7"),
        ("ZhangSan", "ROI 7"),
        ("GTV 19310517", "ROI 7"),
        ("", "ROI 7"),
        ("GTV 王", "ROI 7"),
        (" ", "ROI 7"),
    ],
)
def test_roi_names_are_made_of_known_words(name: str, cleaned: str) -> None:
    assert clean_roi_name(name, number=7) == cleaned


def test_what_may_show_a_name_never_leaves(ct: CtFiles, tmp_path: Path) -> None:
    shown = pydicom.dcmread(ct.paths[0])
    shown.SOPClassUID = shown.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    shown.save_as(tmp_path / "capture.dcm")
    burned = pydicom.dcmread(ct.paths[1])
    burned.BurnedInAnnotation = "YES"
    burned.save_as(tmp_path / "burned.dcm")
    (tmp_path / "text.dcm").write_bytes(b"no DICOM")
    done = export(
        [tmp_path / "capture.dcm", tmp_path / "burned.dcm", tmp_path / "text.dcm"],
        tmp_path / "out",
        pseudonyms=SITE,
    )
    assert done.paths == ()
    assert not (tmp_path / "out").exists()
    assert [why for _, why in done.refused][:2] == [
        "objects of this kind are never given out: pictures and texts may show a name",
        "text is burned into the pixels of this image",
    ]
    assert len(done.refused) == 3
    assert LEAK not in str(done)


def test_pixels_are_written_anew(tmp_path: Path) -> None:
    values = np.arange(2 * 32 * 32).reshape(2, 32, 32) - 1000

    def commented(dataset: FileDataset, _: int) -> None:
        identified(dataset)

    packed = make_ct_series(
        tmp_path / "packed", values, transfer_syntax=JPEG2000Lossless, change=commented
    )
    path = packed.paths[0]
    content = path.read_bytes()  # a comment marker of JPEG 2000, right behind SIZ
    at = content.index(b"\xff\x52")
    text = LEAK.encode()
    marker = b"\xff\x64" + (len(text) + 4).to_bytes(2, "big") + b"\0\1" + text
    start = content.rindex(b"\xfe\xff\x00\xe0", 0, at)
    length = int.from_bytes(content[start + 4 : start + 8], "little") + len(marker)
    path.write_bytes(
        content[: start + 4] + length.to_bytes(4, "little") + content[start + 8 : at] + marker
        + content[at:]
    )  # fmt: skip
    clean = deidentify(path, pseudonyms=SITE)
    assert clean.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    np.testing.assert_array_equal(clean.pixel_array, values[0])
    assert LEAK.encode() not in clean.PixelData


def test_an_attribute_that_cannot_be_read_stays_with_its_file(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct")
    content = series.paths[0].read_bytes()
    at = content.index(b"DS\x04\x00120 ")  # KVP
    series.paths[0].write_bytes(content[: at + 4] + b"abcd" + content[at + 8 :])
    with pytest.raises(DicomError, match="cannot be read"):
        deidentify(series.paths[0], pseudonyms=SITE)


def test_the_second_look_finds_what_the_first_let_through(ct: CtFiles) -> None:
    original = pydicom.dcmread(ct.paths[0])
    clean = deidentify(ct.paths[0], pseudonyms=SITE)
    clean.Manufacturer = f"made for {LEAK}"
    with pytest.raises(ContourcastError, match="still in") as told:
        _require_clean(clean, original)
    assert LEAK not in str(told.value)


def test_a_name_that_is_part_of_a_harmless_word_stops_nothing(tmp_path: Path) -> None:
    def called(dataset: FileDataset, _: int) -> None:
        dataset.PatientName = "Mary^Xia"  # PRIMARY, AXIAL

    series = make_ct_series(tmp_path / "ct", change=called)
    assert deidentify(series.paths[0], pseudonyms=SITE).ImageType == [
        "ORIGINAL",
        "PRIMARY",
        "AXIAL",
    ]


@pytest.mark.peer
def test_what_leaves_is_still_sound_dicom(
    ct: CtFiles, structures: Path, registration: Path, tmp_path: Path
) -> None:
    files = [ct.paths[0], structures, registration]
    done = export(files, tmp_path / "out", pseudonyms=SITE)
    for before, after in zip(files, done.paths, strict=True):
        new = set(dciodvfy(after)) - set(dciodvfy(before))
        assert not {line for line in new if line.startswith("Error")}


def table() -> dict[int, str]:
    """PS3.15 Table E.1-1 as dicom-anonymizer keeps it: tag to action."""
    known = peer_module("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    return {
        (tag[0] << 16) + tag[1]: name
        for name in (
            "D_TAGS", "Z_TAGS", "X_TAGS", "U_TAGS", "Z_D_TAGS", "X_Z_TAGS", "X_D_TAGS",
            "X_Z_D_TAGS", "X_Z_U_STAR_TAGS",
        )
        for tag in getattr(known, name)
        if len(tag) == 2
    }  # fmt: skip


TEXT = f"{LEAK}T"
SAMPLES: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("LO", "SH", "LT", "ST", "UT", "UC", "UR", "PN", "AE"), lambda: TEXT),
    "CS": lambda: TEXT, "AS": lambda: "091Y", "DA": lambda: "19310517",
    "DT": lambda: "19310517101500", "TM": lambda: "101507", "UI": lambda: generate_uid(),
    "IS": lambda: "190517", "DS": lambda: "190517", "US": lambda: 51739, "SS": lambda: 17039,
    "UL": lambda: 4051739, "FL": lambda: 517.25, "FD": lambda: 517.25,
    **dict.fromkeys(("OB", "OW", "UN"), lambda: TEXT.encode() + b"\0"),
}  # fmt: skip


@pytest.mark.peer
def test_nothing_that_the_table_of_the_standard_takes_out_stays(tmp_path: Path) -> None:
    stayed = []
    for tag, action in table().items():
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            continue
        keyword = keyword_for_tag(tag)
        if vr == "SQ":
            value: Any = Sequence(
                [item(PatientName=TEXT, TextValue=TEXT, RequestedProcedureID=TEXT)]
            )
        elif vr in SAMPLES:
            value = SAMPLES[vr]()
        else:
            continue
        if keyword in ("PixelData", "SOPInstanceUID") or tag < 0x00080000:
            continue

        def change(
            dataset: FileDataset, _: int, tag: int = tag, vr: str = vr, value: Any = value
        ) -> None:
            dataset.add(DataElement(tag, vr, value))

        name = hashlib.sha256(str(tag).encode()).hexdigest()[:8]
        try:
            series = make_ct_series(tmp_path / name, np.zeros((1, 2, 2)), name=name, change=change)
            clean = deidentify(series.paths[0], pseudonyms=SITE)
        except DicomError:
            continue  # it stays whole
        left = clean.get(tag)
        if left is None or left.value in ("", None):
            continue
        if vr == "SQ":
            if TEXT in str(left):
                stayed.append((keyword, action, vr))
        elif vr != "TM" and str(left.value) == str(DataElement(tag, vr, value).value):
            stayed.append((keyword, action, vr))
    assert not stayed


# Which files


def test_what_was_signed_and_rejected_after_all_is_not_given_out(
    ct: CtFiles, tmp_path: Path
) -> None:
    def drawn(name: str) -> Path:
        return make_structure_set(tmp_path / f"{name}.dcm", {"GTV": []}, reference=ct, name=name)

    sets = [drawn(name) for name in ("plan", "withdrawn", "stands")]
    with looking_into(tmp_path / "data") as records:
        take(records, [*ct.paths, *sets])
        for number, propagation, decision, name in (
            (1, "p1", "approved", "withdrawn"),
            (2, "p1", "rejected", ""),
            (3, "p2", "edited", "stands"),
        ):
            add(
                records.index,
                review,
                number=number,
                propagation=propagation,
                course_id="c1",
                decision=decision,
                structures_uid=uid(f"{name} instance") if name else None,
            )
        add(records.index, course, id="c1", structures_uid=uid("plan instance"))
        given = files_of(records.archive, courses=["c1"], series=[])
        assert {read_header(path).sop_instance_uid for path in given} == {
            uid("plan instance"),
            uid("stands instance"),
        }
        (alone,) = files_of(records.archive, courses=[], series=[uid("stands series")])
        assert read_header(alone).sop_instance_uid == uid("stands instance")
        with pytest.raises(NotFoundError):
            files_of(records.archive, courses=[], series=[uid("withdrawn series")])
