from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, dcmread
from pydicom.dataset import FileDataset

from contourcast.imaging.dicom.rtplan_in import read_plan
from contourcast.imaging.errors import ContourcastError, DicomError, NotDicomError
from support.dicom_factory import ISOCENTRE_XYZ_MM, beam, dicom_item, make_ct_series, make_plan, uid


def test_a_plan_is_read_as_it_stands(tmp_path: Path) -> None:
    path = make_plan(tmp_path / "rp.dcm")
    plan = read_plan(path)
    assert plan.sop_instance_uid == uid("plan")
    assert plan.structure_set_uid == uid("rs")
    assert plan.frame_of_reference == uid("frame")
    assert plan.isocentres_xyz_mm == (ISOCENTRE_XYZ_MM,)
    assert (plan.label, plan.date, plan.time) == ("LUNG", "20260105", "083000")
    assert (plan.intent, plan.approval_status) == ("CURATIVE", "APPROVED")
    assert plan.fractions == 30
    assert plan.patient.patient_id == "P-1"
    assert plan.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("said", "fractions", "notes"),
    [
        ([], None, 0),
        ([None], None, 0),
        (["0"], None, 0),
        (["30", "5"], None, 0),
        (["thirty"], None, 1),
        (["30.5"], None, 1),
        (["5"], 5, 0),
    ],
)
def test_fractions_are_counted_where_one_group_says_so(
    tmp_path: Path, said: list[str | None], fractions: int | None, notes: int
) -> None:
    def change(dataset: FileDataset) -> None:
        groups = []
        for text in said:
            groups.append(dicom_item(FractionGroupNumber=1))
            if text is not None:
                # an IS is judged when it is made
                groups[-1][0x300A0078] = DataElement(0x300A0078, "SH", text)
        dataset.FractionGroupSequence = groups

    plan = read_plan(make_plan(tmp_path / "rp.dcm", change=change))
    assert (plan.fractions, len(plan.notes)) == (fractions, notes)


def test_its_repr_tells_nothing_of_the_patient(tmp_path: Path) -> None:
    told = repr(read_plan(make_plan(tmp_path / "rp.dcm")))
    assert "Phantom" not in told
    assert "P-1" not in told
    assert "LUNG" not in told


def test_two_isocentres_are_two_and_a_rounding_is_none(tmp_path: Path) -> None:
    second = (40.0, 0.0, -101.0)
    nearly = tuple(v + 0.04 for v in ISOCENTRE_XYZ_MM)
    plan = read_plan(
        make_plan(
            tmp_path / "rp.dcm", [beam(1, ISOCENTRE_XYZ_MM), beam(2, second), beam(3, nearly)]
        )
    )
    assert plan.isocentres_xyz_mm == (ISOCENTRE_XYZ_MM, second)
    assert plan.notes == ("its beams aim at 2 isocentres",)


def test_an_isocentre_that_moves_within_a_beam_is_found(tmp_path: Path) -> None:
    moved = (0.0, 0.0, 5.0)
    plan = read_plan(make_plan(tmp_path / "rp.dcm", [beam(1, ISOCENTRE_XYZ_MM, None, moved)]))
    assert plan.isocentres_xyz_mm == (ISOCENTRE_XYZ_MM, moved)


def test_a_plan_without_isocentre_is_a_plan(tmp_path: Path) -> None:
    plan = read_plan(make_plan(tmp_path / "rp.dcm", change=lambda d: delattr(d, "BeamSequence")))
    assert plan.isocentres_xyz_mm == ()
    assert plan.notes == ("it names no isocentre",)


def test_a_plan_of_a_machine_names_no_structure_set(tmp_path: Path) -> None:
    def change(dataset: FileDataset) -> None:
        dataset.RTPlanGeometry = "TREATMENT_DEVICE"
        del dataset.ReferencedStructureSetSequence

    plan = read_plan(make_plan(tmp_path / "rp.dcm", change=change))
    assert plan.structure_set_uid == ""
    assert "names no structure set" in plan.notes[0]


def empty_reference(dataset: FileDataset) -> None:
    dataset.ReferencedStructureSetSequence = [dicom_item(ReferencedSOPInstanceUID="")]


def no_reference(dataset: FileDataset) -> None:
    del dataset.ReferencedStructureSetSequence


@pytest.mark.parametrize("change", [empty_reference, no_reference])
def test_a_plan_of_a_patient_without_structure_set_is_refused(
    tmp_path: Path, change: Callable[[FileDataset], None]
) -> None:
    with pytest.raises(DicomError, match="names no structure set") as refused:
        read_plan(make_plan(tmp_path / "rp.dcm", change=change))
    assert refused.value.tag.startswith("(300C,0060)")


def test_two_structure_sets_are_refused_and_named(tmp_path: Path) -> None:
    def change(dataset: FileDataset) -> None:
        dataset.ReferencedStructureSetSequence.append(
            dicom_item(ReferencedSOPInstanceUID=uid("other"))
        )

    with pytest.raises(DicomError, match="names 2 structure sets") as refused:
        read_plan(make_plan(tmp_path / "rp.dcm", change=change))
    assert uid("other") in refused.value.uid


@pytest.mark.parametrize("value", ["1\\2", "1\\2\\nan", "1\\2\\inf", "1\\2\\x", "1\\2\\3\\4"])
def test_an_isocentre_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    def change(dataset: FileDataset) -> None:
        point = dataset.BeamSequence[0].ControlPointSequence[0]
        del point.IsocenterPosition
        point.add_new(0x300A012C, "LT", value)

    with pytest.raises(DicomError) as refused:
        read_plan(make_plan(tmp_path / "rp.dcm", change=change))
    assert refused.value.tag.startswith("(300A,012C)")


def test_an_isocentre_ten_metres_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DicomError, match="beyond any patient"):
        read_plan(make_plan(tmp_path / "rp.dcm", [beam(1, (0.0, 0.0, 10_001.0))]))


def test_another_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DicomError, match="not an RT Plan"):
        read_plan(make_ct_series(tmp_path / "ct").paths[0])
    (tmp_path / "text").write_text("no DICOM at all")
    with pytest.raises(NotDicomError):
        read_plan(tmp_path / "text")


def test_a_plan_cut_at_any_byte_is_refused_or_merely_not_approved(tmp_path: Path) -> None:
    """Approval stands last in the file: what is lost of it may only make the plan weaker."""
    data = make_plan(tmp_path / "rp.dcm").read_bytes()
    whole = read_plan(tmp_path / "rp.dcm")
    path, read = tmp_path / "cut.dcm", 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            plan = read_plan(path)
        except ContourcastError:
            continue
        read += 1
        assert plan.approval_status == ""
        assert plan.isocentres_xyz_mm == whole.isocentres_xyz_mm
        assert plan.structure_set_uid == whole.structure_set_uid
    assert read <= 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_never_escape_the_family_of_errors(
    tmp_path: Path, data: st.DataObject
) -> None:
    original = bytearray(make_plan(tmp_path / "rp.dcm").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(original) - 1))
        original[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.dcm"
    path.write_bytes(bytes(original))
    said = ""
    try:
        read_plan(path)
    except ContourcastError as refused:
        said = str(refused)
    assert "Phantom" not in said
    assert str(tmp_path) not in said


def test_pydicom_reads_the_same_isocentre(tmp_path: Path) -> None:
    path = make_plan(tmp_path / "rp.dcm")
    theirs = dcmread(path).BeamSequence[0].ControlPointSequence[0].IsocenterPosition
    assert tuple(map(float, theirs)) == read_plan(path).isocentres_xyz_mm[0]
