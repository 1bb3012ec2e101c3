from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.ct_series_out import Acquisition, write_ct_series
from contourcast.imaging.errors import DicomError, FrameMismatchError, GeometryError
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Volume
from support.scans import GRIDS, PHANTOM, make_scan
from support.validators import dcentvfy, dciodvfy, dcmdump

SMALL = Grid.even(shape_zyx=(3, 4, 5), spacing_xyz_mm=(2, 1.5, 3), origin_xyz_mm=(1 / 3, -2, 7))


def values_of(folder: Path) -> np.ndarray:
    files = [dcmread(path) for path in sorted(folder.iterdir())]
    return np.stack(
        [f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in files]
    )


@pytest.mark.parametrize("case", GRIDS)
def test_each_slice_states_where_it_lies(tmp_path: Path, case: str) -> None:
    scan = make_scan(GRIDS[case])
    source = write_ct_series(tmp_path, scan)
    assert scan.source is not None
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        file = dcmread(path)
        position = np.array([float(v) for v in file.ImagePositionPatient])
        assert (position == source.slices[k].position_xyz_mm).all()
        assert np.abs(position - scan.grid.world([[0, 0, k]])[0]).max() < 1e-9
        orientation = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        assert np.abs(orientation - scan.grid.direction[:, :2].T).max() < 1e-12
        x_mm, y_mm = scan.grid.spacing_xy_mm
        assert [float(v) for v in file.PixelSpacing] == [y_mm, x_mm]
        assert file.SOPInstanceUID == scan.source.slices[k].sop_instance_uid
        assert file.FrameOfReferenceUID == scan.frame_of_reference


def test_values_come_back_within_half_a_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n, (low, high, step) in enumerate([(-1024, 3071, 1.0), (-1e5, 2e5, 1.0), (0, 1, 1e-4)]):
        scan = make_scan(SMALL).with_values(rng.uniform(low, high, SMALL.shape_zyx))
        folder = tmp_path / str(n)
        write_ct_series(folder, scan, acquisition=Acquisition(step_hu=step))
        slope = float(dcmread(folder / "0001.dcm").RescaleSlope)
        assert slope == step or slope < 1.01 * (high - low) / 65534
        error = np.abs(values_of(folder) - scan.values).max()
        assert error <= slope / 2 * 1.001 + 1e-6 * high


def test_what_was_not_observed_is_declared_padding(tmp_path: Path) -> None:
    observed = np.ones(SMALL.shape_zyx, bool)
    observed[:, 0] = False
    write_ct_series(tmp_path, replace(make_scan(SMALL), observed=observed))
    for path, seen in zip(sorted(tmp_path.iterdir()), observed, strict=True):
        file = dcmread(path)
        assert ((file.pixel_array == file.PixelPaddingValue) == ~seen).all()


def test_the_same_scan_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_ct_series(tmp_path / folder, make_scan(SMALL))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_patient_is_written_as_it_came(tmp_path: Path) -> None:
    scan = make_scan(SMALL)
    assert scan.source is not None
    patient = replace(PHANTOM, name="Müller^Zoë=山田^太郎", patient_id="too long for SH" * 3)
    study = replace(scan.source.study, study_id="a study identifier of 33 letters")
    scan = replace(scan, source=replace(scan.source, patient=patient, study=study))
    write_ct_series(tmp_path, scan)
    file = dcmread(tmp_path / "0001.dcm")
    assert str(file.PatientName) == patient.name
    assert file.PatientID == patient.patient_id
    assert file.get_item("StudyID").value.decode() == study.study_id


def test_what_else_is_said_of_the_patient_is_written_and_read_again(tmp_path: Path) -> None:
    scan = make_scan(SMALL)
    assert scan.source is not None
    patient = replace(
        PHANTOM,
        further=(("EthnicGroup", "phantom"), ("PatientIdentityRemoved", "YES")),
        deidentified_by=(("113100", "DCM", "Basic Application Confidentiality Profile"),),
    )
    study = replace(scan.source.study, further=(("PatientAge", "066Y"), ("PatientWeight", "71.5")))
    source = replace(scan.source, patient=patient, study=study, series_number="no number")
    write_ct_series(tmp_path, replace(scan, source=source))
    read = read_ct_series(tmp_path).source
    assert read is not None
    assert read.patient.further == patient.further
    assert read.patient.deidentified_by == patient.deidentified_by
    assert read.study.further == study.further
    assert read.series_number == ""


@pytest.mark.peer
@pytest.mark.parametrize("case", ["plain", "oblique 20 degrees", "uneven slices"])
def test_validators_find_nothing(tmp_path: Path, case: str) -> None:
    scan = make_scan(GRIDS[case])
    acquisition = Acquisition(
        kvp=125, kernel="RAM-LAK", diameter_mm=465, derivation="simulated from a planning CT"
    )
    write_ct_series(tmp_path, scan, acquisition=acquisition)
    files = sorted(tmp_path.iterdir())
    assert [dciodvfy(file) for file in files] == [[]] * len(files)
    assert dcentvfy(files) == []
    assert "DERIVED\\PRIMARY\\AXIAL" in dcmdump(files[0])


@pytest.mark.peer
def test_validators_accept_a_series_of_which_little_is_known(tmp_path: Path) -> None:
    scan = make_scan(SMALL)
    assert scan.source is not None
    source = replace(scan.source, body_part="", series_date="", series_time="", model="")
    write_ct_series(tmp_path, replace(scan, source=source, observed=scan.values > 0))
    assert dciodvfy(tmp_path / "0001.dcm") == []


def broken(what: str) -> Volume:
    scan = make_scan(SMALL)
    if what == "no source":
        return replace(scan, source=None)
    if what == "no frame":
        return replace(scan, frame_of_reference="")
    if what == "not a number":
        return scan.with_values(np.full(SMALL.shape_zyx, np.nan))
    return replace(scan, grid=replace(SMALL, origin_xyz_mm=SMALL.origin_xyz_mm + 0.1))


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("no source", DicomError, "no DICOM identity"),
        ("no frame", FrameMismatchError, "without frame of reference"),
        ("not a number", DicomError, "no numbers"),
        ("moved", GeometryError, "do not lie where"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, what: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        write_ct_series(tmp_path / "out", broken(what))
    assert not (tmp_path / "out").exists()
