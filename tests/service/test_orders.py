"""Which files a request speaks of, where it does not name them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from contourcast.imaging.errors import InputError
from contourcast.service.jobs.orders import PropagationRequest, make_order
from contourcast.service.problems import NotFoundError
from contourcast.service.records import Records
from support.records import looking_into
from support.review import take
from support.treatment import Treatment, make_treatment


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Treatment:
    return make_treatment(tmp_path_factory.mktemp("a"), patient="A", fractions=1)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with looking_into(tmp_path / "data") as records:
        yield records


def on(planning_ct: str, patient: Treatment) -> PropagationRequest:
    return PropagationRequest(
        cbct=patient.fractions[0].series_uid,
        roi="GTV",
        planning_ct=planning_ct,
        methods=["translation"],
    )


def unreadable(patient: Treatment, to: Path) -> Path:
    """Another structure set of a patient, whose first contour has no third coordinate."""
    dataset = pydicom.dcmread(patient.structures)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData = [1.0, 2.0]
    uid = pydicom.uid.UID(f"{dataset.SOPInstanceUID}.9")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID}.9"
    dataset.save_as(to)
    return to


def test_a_structure_set_that_cannot_be_read_is_nobodys_obstacle(
    records: Records, patient: Treatment, tmp_path: Path
) -> None:
    stranger = make_treatment(tmp_path / "b", patient="B", fractions=0)
    take(records, patient.paths)
    take(records, [unreadable(stranger, tmp_path / "b.dcm")])
    take(records, [unreadable(patient, tmp_path / "a.dcm")])
    request = on(patient.planning_ct.series_uid, patient)
    order = make_order(request, records.archive, network=("", ""))
    assert order["structures"]["sop_uid"] == patient.structures_uid


def test_of_two_sets_on_a_planning_ct_one_has_to_be_named(
    records: Records, patient: Treatment, tmp_path: Path
) -> None:
    dataset = pydicom.dcmread(patient.structures)
    uid = pydicom.uid.UID(f"{dataset.SOPInstanceUID}.8")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.save_as(tmp_path / "second.dcm")
    take(records, [*patient.paths, tmp_path / "second.dcm"])
    with pytest.raises(InputError, match="2 structure sets"):
        make_order(on(patient.planning_ct.series_uid, patient), records.archive, network=("", ""))


def test_a_planning_ct_that_is_not_here_is_told(records: Records, patient: Treatment) -> None:
    take(records, [patient.structures, *patient.fractions[0].paths])
    with pytest.raises(NotFoundError, match="planning CT"):
        make_order(on(patient.planning_ct.series_uid, patient), records.archive, network=("", ""))


def test_who_names_the_plan_names_the_roi_too(records: Records, patient: Treatment) -> None:
    take(records, patient.paths)
    request = on(patient.planning_ct.series_uid, patient).model_copy(update={"roi": None})
    with pytest.raises(InputError, match="name it: roi"):
        make_order(request, records.archive, network=("", ""))


def test_a_plan_has_to_be_named_by_its_ct_or_its_structures(
    records: Records, patient: Treatment
) -> None:
    request = on(patient.planning_ct.series_uid, patient).model_copy(update={"planning_ct": None})
    with pytest.raises(InputError, match="neither a structure set nor a planning CT"):
        make_order(request, records.archive, network=("", ""))
