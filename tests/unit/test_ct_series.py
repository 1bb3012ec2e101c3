from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.uid import JPEGLSLossless
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.ct_series import find_series, read_ct_series
from contourcast.imaging.dicom.elements import LIMITS
from contourcast.imaging.errors import (
    ContourcastError,
    DicomError,
    FrameMismatchError,
    IncompleteSeriesError,
)
from support.data import require
from support.dicom_factory import CtFiles, make_ct_series, make_structure_set, uid

AXES: dict[str, list[float]] = {
    "supine, head first": [1, 0, 0, 0, 1, 0],
    "prone, head first": [-1, 0, 0, 0, -1, 0],
    "supine, feet first": [-1, 0, 0, 0, 1, 0],
    "decubitus": [0, 1, 0, -1, 0, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
}


def direction_of(orientation: list[float]) -> np.ndarray:
    row, column = np.reshape(np.asarray(orientation, float), (2, 3))
    return np.column_stack((row, column, np.cross(row, column)))


def only_slice(k: int, change: Callable[[FileDataset], None]) -> Callable[[FileDataset, int], None]:
    """Changes one slice alone."""
    return lambda dataset, n: change(dataset) if n == k else None


def put(name: str, value: object) -> Callable[[FileDataset], None]:
    return lambda dataset: setattr(dataset, name, value)


def drop(name: str) -> Callable[[FileDataset, int], None]:
    return lambda dataset, k: delattr(dataset, name)


def test_a_series_becomes_a_volume_in_hounsfield_units(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    volume = read_ct_series(tmp_path)
    assert volume.values.dtype == np.float32
    assert (volume.values == ct.hu_zyx).all()
    assert volume.grid.shape_zyx == (5, 8, 10)
    assert volume.grid.spacing_xyz_mm == (2.0, 1.5, 3.0)
    assert volume.grid.origin_xyz_mm.tolist() == [-10, -20, -30]
    assert volume.grid.direction.tolist() == np.eye(3).tolist()
    assert volume.frame_of_reference == ct.frame_of_reference
    assert volume.observed is None
    source = volume.source
    assert source is not None
    assert source.series_instance_uid == ct.series_uid
    assert tuple(s.sop_instance_uid for s in source.slices) == ct.sop_uids
    assert [s.position_xyz_mm.tolist() for s in source.slices] == ct.positions_xyz_mm.tolist()
    assert source.patient.patient_id == "P-1"
    assert source.study.instance_uid == ct.study_uid
    assert source.notes == ()


def test_a_world_point_of_a_voxel_is_where_its_slice_says(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    volume = read_ct_series(tmp_path)
    centre = volume.grid.world([[3, 2, 4]])[0]
    assert centre.tolist() == (ct.positions_xyz_mm[4] + [3 * 2.0, 2 * 1.5, 0]).tolist()


@pytest.mark.parametrize("name", AXES)
def test_patient_positions_are_read_from_axes_alone(tmp_path: Path, name: str) -> None:
    direction = direction_of(AXES[name])
    ct = make_ct_series(
        tmp_path, direction=direction, change=lambda dataset, k: setattr(
            dataset, "PatientPosition", "HFS"
        )
    )  # fmt: skip
    volume = read_ct_series(tmp_path)
    assert np.allclose(volume.grid.direction, direction, atol=1e-9)
    assert (volume.values == ct.hu_zyx).all()
    corner = volume.grid.world([[0, 0, 4]])[0]
    assert np.allclose(corner, ct.positions_xyz_mm[4], atol=1e-6)


def test_an_oblique_series_keeps_its_axes(tmp_path: Path) -> None:
    direction = Rotation.from_euler("xyz", [12, -7, 20], degrees=True).as_matrix()
    ct = make_ct_series(tmp_path, direction=direction)
    volume = read_ct_series(tmp_path)
    assert np.allclose(volume.grid.direction, direction, atol=1e-6)
    assert np.allclose(volume.grid.world([[0, 0, 4]])[0], ct.positions_xyz_mm[4], atol=1e-4)
    assert volume.grid.spacing_xyz_mm[2] == pytest.approx(3.0, abs=1e-6)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), numbers=st.permutations(range(1, 6)))
def test_the_volume_does_not_depend_on_names_or_instance_numbers(
    tmp_path: Path, order: list[int], numbers: list[int]
) -> None:
    shutil.rmtree(tmp_path / "ct", ignore_errors=True)
    ct = make_ct_series(
        tmp_path / "ct", change=lambda dataset, k: setattr(dataset, "InstanceNumber", numbers[k])
    )
    expected = read_ct_series(list(ct.paths))
    for k, path in enumerate(ct.paths):
        path.rename(path.with_name(f"{order[k]}.dcm"))
    volume = read_ct_series(tmp_path / "ct")
    assert (volume.values == expected.values).all()
    assert volume.source is not None
    assert expected.source is not None
    assert volume.source.digest == expected.source.digest


def test_each_slice_is_rescaled_by_its_own_slope_and_intercept(tmp_path: Path) -> None:
    def change(dataset: FileDataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(k + 1), str(-100 * k)

    ct = make_ct_series(tmp_path, np.full((5, 4, 4), 10), change=change)
    values = read_ct_series(ct.folder).values
    assert [v[0, 0] for v in values] == [10 * (k + 1) - 100 * k for k in range(5)]


@pytest.mark.parametrize(("bits", "dtype"), [(8, "<u1"), (32, "<i4")])
def test_other_sample_widths_are_read(tmp_path: Path, bits: int, dtype: str) -> None:
    values = np.arange(5 * 4 * 4).reshape(5, 4, 4)

    def change(dataset: FileDataset, k: int) -> None:
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit = bits - 1
        dataset.PixelRepresentation = int(bits == 32)
        dataset.PixelData = values[k].astype(dtype).tobytes()

    make_ct_series(tmp_path, values, change=change)
    assert (read_ct_series(tmp_path).values == values).all()


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    ct.paths[2].unlink()
    with pytest.raises(IncompleteSeriesError) as refused:
        read_ct_series(tmp_path, role="planning CT")
    assert refused.value.cause == (
        "planning CT: slices 2 and 3 are 6.0 mm apart, all others 3.0 mm"
    )
    assert refused.value.tag == "(0020,0032) Image Position (Patient)"
    assert refused.value.uid == f"SOP {ct.sop_uids[1]}, SOP {ct.sop_uids[3]}"
    assert "send the missing slice again" in refused.value.remedy


def test_uneven_slices_without_a_gap_keep_their_places_and_are_noted(tmp_path: Path) -> None:
    offsets = [0.0, 3.0, 6.0, 10.0, 14.0, 17.0]
    make_ct_series(tmp_path, np.zeros((6, 4, 4), int), positions_z_mm=offsets)
    volume = read_ct_series(tmp_path)
    assert volume.grid.offsets_z_mm.tolist() == offsets
    assert volume.source is not None
    assert volume.source.notes == ("the slices are not evenly spaced: 3.00 to 4.00 mm",)


def test_positions_with_few_digits_are_even(tmp_path: Path) -> None:
    noise = [0.0, 2.99999, 6.00001, 9.00002, 11.99998]
    make_ct_series(tmp_path, positions_z_mm=noise)
    volume = read_ct_series(tmp_path)
    assert volume.grid.is_even
    assert volume.source is not None
    assert volume.source.notes == ()


@pytest.mark.parametrize("digits", [3, 4, 6])
def test_axes_written_with_few_digits_are_set_right(tmp_path: Path, digits: int) -> None:
    direction = Rotation.from_euler("xyz", [3, -2, 5], degrees=True).as_matrix()
    written = [f"{v:.{digits}f}" for v in direction[:, :2].T.ravel()]
    make_ct_series(
        tmp_path,
        direction=direction,
        change=lambda dataset, k: setattr(dataset, "ImageOrientationPatient", written),
    )
    volume = read_ct_series(tmp_path)
    assert np.allclose(volume.grid.direction, direction, atol=10.0**-digits)
    assert volume.source is not None
    assert any("set right" in note for note in volume.source.notes) == (digits < 6)


@pytest.mark.parametrize(
    "axes",
    [[1.01, 0, 0, 0, 1, 0], [1, 0, 0, 0.1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]],
)
def test_axes_that_are_not_orthonormal_are_refused(tmp_path: Path, axes: list[float]) -> None:
    make_ct_series(
        tmp_path, change=lambda dataset, k: setattr(dataset, "ImageOrientationPatient", axes)
    )
    with pytest.raises(DicomError, match="not orthonormal") as refused:
        read_ct_series(tmp_path)
    assert "(0020,0037)" in refused.value.tag


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path: Path) -> None:
    tilted = Rotation.from_euler("x", 10, degrees=True).as_matrix()
    axes = tilted[:, :2].T.ravel().tolist()
    make_ct_series(
        tmp_path,
        change=lambda dataset, k: setattr(
            dataset, "ImageOrientationPatient", [f"{v:.8f}" for v in axes]
        ),
    )
    with pytest.raises(DicomError, match=r"gantry tilt of 10\.0 degrees"):
        read_ct_series(tmp_path)


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        (put("FrameOfReferenceUID", "1.2.3"), FrameMismatchError, "more than one frame"),
        (put("PatientID", "P-2"), DicomError, "more than one patient"),
        (put("PixelSpacing", [1.5, 2.1]), DicomError, "more than one pixel spacing"),
        (put("ImageOrientationPatient", [0, 1, 0, -1, 0, 0]), DicomError, "one orientation"),
        (put("Modality", "MR"), DicomError, "not CT"),
        (put("PixelSpacing", [-1.5, 2]), DicomError, "impossible"),
        (put("PixelSpacing", [1.5, 0]), DicomError, "impossible"),
        (put("PixelSpacing", [1.5, 101]), DicomError, "impossible"),
        (put("ImagePositionPatient", ["0", "0", "1e30"]), DicomError, "beyond any patient"),
        (put("RescaleSlope", "0"), DicomError, "impossible rescale"),
        (put("RescaleSlope", "1e30"), DicomError, "impossible rescale"),
        (put("RescaleIntercept", "1e300"), DicomError, "impossible rescale"),
    ],
)
def test_a_slice_that_does_not_belong_is_refused_and_named(
    tmp_path: Path,
    change: Callable[[FileDataset], None],
    kind: type[ContourcastError],
    expected: str,
) -> None:
    ct = make_ct_series(tmp_path, change=only_slice(2, change))
    with pytest.raises(kind, match=expected) as refused:
        read_ct_series(tmp_path)
    assert refused.value.uid == f"SOP {ct.sop_uids[2]}"
    assert "P-1" not in str(refused.value)
    assert "P-2" not in str(refused.value)


def test_a_slice_of_another_size_is_refused_and_named(tmp_path: Path) -> None:
    def smaller(dataset: FileDataset) -> None:
        dataset.Rows, dataset.PixelData = 4, bytes(4 * 10 * 2)

    ct = make_ct_series(tmp_path, change=only_slice(1, smaller))
    with pytest.raises(DicomError, match="more than one image size") as refused:
        read_ct_series(tmp_path)
    assert refused.value.file == ct.paths[1].name


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("ImagePositionPatient", "(0020,0032)"),
        ("ImageOrientationPatient", "(0020,0037)"),
        ("PixelSpacing", "(0028,0030)"),
    ],
)
def test_a_slice_that_does_not_say_where_it_lies_is_refused(
    tmp_path: Path, name: str, tag: str
) -> None:
    make_ct_series(tmp_path, change=drop(name))
    with pytest.raises(DicomError, match="does not say where") as refused:
        read_ct_series(tmp_path)
    assert refused.value.tag.startswith(tag)


def test_a_rescale_in_some_slices_only_is_refused(tmp_path: Path) -> None:
    make_ct_series(tmp_path, change=only_slice(3, lambda dataset: delattr(dataset, "RescaleSlope")))
    with pytest.raises(DicomError, match="more than one rescale"):
        read_ct_series(tmp_path)


def test_no_rescale_at_all_is_noted(tmp_path: Path) -> None:
    def change(dataset: FileDataset, k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    make_ct_series(tmp_path, change=change)
    volume = read_ct_series(tmp_path)
    assert volume.source is not None
    assert "no rescale" in volume.source.notes[0]


def test_values_that_are_no_hounsfield_units_are_noted(tmp_path: Path) -> None:
    make_ct_series(tmp_path, change=lambda dataset, k: setattr(dataset, "RescaleType", "US"))
    source = read_ct_series(tmp_path).source
    assert source is not None
    assert source.notes == ("(0028,1054) Rescale Type says that values are not HU",)


def test_reading_takes_the_memory_of_the_volume_and_little_more(tmp_path: Path) -> None:
    make_ct_series(tmp_path, np.zeros((60, 256, 256), int))
    read_ct_series(tmp_path)
    tracemalloc.start()
    volume = read_ct_series(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.values.nbytes + (3 << 20), f"{peak >> 20} MiB"


def test_simpleitk_puts_the_same_values_at_the_same_places(tmp_path: Path) -> None:
    require("peer", find_spec("SimpleITK") is not None, "SimpleITK is not installed: make test")
    sitk: Any = import_module("SimpleITK")
    direction = Rotation.from_euler("xyz", [12, -7, 20], degrees=True).as_matrix()
    make_ct_series(tmp_path, direction=direction)
    volume = read_ct_series(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert (sitk.GetArrayFromImage(image) == volume.values).all()
    for ijk in [(0, 0, 0), (9, 0, 0), (0, 7, 0), (0, 0, 4), (9, 7, 4)]:
        theirs = np.array(image.TransformIndexToPhysicalPoint(ijk))
        distance_mm = np.linalg.norm(volume.grid.world([ijk])[0] - theirs)
        assert distance_mm < 0.01, ijk


def test_a_series_without_frame_of_reference_is_an_image_and_no_more(tmp_path: Path) -> None:
    make_ct_series(tmp_path, change=drop("FrameOfReferenceUID"))
    volume = read_ct_series(tmp_path)
    assert volume.frame_of_reference == ""
    assert volume.source is not None
    assert "nothing can be drawn" in volume.source.notes[0]


def test_declared_padding_is_not_observed_and_is_air(tmp_path: Path) -> None:
    values = np.full((5, 4, 4), 40)
    values[:, 0, :] = -2000
    make_ct_series(
        tmp_path, values, change=lambda dataset, k: setattr(dataset, "PixelPaddingValue", -2000)
    )
    volume = read_ct_series(tmp_path)
    assert volume.observed is not None
    assert (volume.observed == (values != -2000)).all()
    assert (volume.values == np.where(values == -2000, -1024, 40)).all()


def test_a_range_of_padding_is_not_observed(tmp_path: Path) -> None:
    values = np.full((5, 4, 4), 40)
    values[:, 0, 0], values[:, 0, 1], values[:, 0, 2] = -2000, -1990, -1000

    def change(dataset: FileDataset, k: int) -> None:
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = -2000, -1980

    make_ct_series(tmp_path, values, change=change)
    observed = read_ct_series(tmp_path).observed
    assert observed is not None
    assert observed[0, 0].tolist() == [False, False, True, True]


def test_padding_that_tissue_has_too_is_taken_as_tissue(tmp_path: Path) -> None:
    make_ct_series(
        tmp_path,
        np.zeros((5, 4, 4), int),
        change=lambda dataset, k: setattr(dataset, "PixelPaddingValue", 0),
    )
    volume = read_ct_series(tmp_path)
    assert (volume.values == 0).all()
    assert volume.observed is None or volume.observed.all()
    assert volume.source is not None
    assert "tissue" in volume.source.notes[0]


def test_values_below_air_are_set_to_air_and_noted(tmp_path: Path) -> None:
    values = np.full((5, 4, 4), 40)
    values[:, 0, :] = -3024
    make_ct_series(tmp_path, values)
    volume = read_ct_series(tmp_path)
    assert volume.values.min() == -1024
    assert volume.source is not None
    assert volume.source.notes == (
        "25.0 % of the values lay below -1024 HU (down to -3024) and were set to it",
    )


def test_a_wrong_sign_flag_is_refused(tmp_path: Path) -> None:
    make_ct_series(tmp_path, change=lambda dataset, k: setattr(dataset, "PixelRepresentation", 0))
    with pytest.raises(DicomError, match="sign is stored wrong"):
        read_ct_series(tmp_path)


def scout(dataset: FileDataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def test_scout_views_are_left_out_and_noted(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path, change=only_slice(0, scout))
    volume = read_ct_series(tmp_path)
    assert (volume.values == ct.hu_zyx[1:]).all()
    assert volume.source is not None
    assert volume.source.notes == ("1 scout views were left out",)


def test_scout_views_alone_are_no_series(tmp_path: Path) -> None:
    make_ct_series(tmp_path, change=lambda dataset, k: scout(dataset))
    with pytest.raises(DicomError, match="there is no CT series"):
        read_ct_series(tmp_path)
    with pytest.raises(DicomError, match="scout views alone"):
        read_ct_series(tmp_path, series_uid=uid("ct series"))


def again(ct: CtFiles, k: int, change: Callable[[FileDataset], None]) -> None:
    """A further file of the series, made from slice k."""
    from pydicom import dcmread

    dataset = dcmread(ct.paths[k])
    change(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(ct.folder / "again.dcm")


def test_the_same_instance_in_two_files_counts_once(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    again(ct, 2, put("PatientName", "Coerced^Name"))
    volume = read_ct_series(tmp_path)
    assert volume.values.shape[0] == 5
    assert volume.source is not None
    assert volume.source.notes == ("1 files repeat an instance and were left out",)


def test_one_uid_on_two_pictures_is_refused(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    again(ct, 2, lambda dataset: setattr(dataset, "PixelData", bytes(160)))
    with pytest.raises(DicomError, match="two different images") as refused:
        read_ct_series(tmp_path)
    assert refused.value.uid == f"SOP {ct.sop_uids[2]}"


def test_the_same_slice_under_another_uid_is_left_out(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    again(ct, 2, put("SOPInstanceUID", "1.2.3"))
    volume = read_ct_series(tmp_path)
    assert (volume.values == ct.hu_zyx).all()
    assert volume.source is not None
    assert "repeat the one at their position" in volume.source.notes[0]


def test_two_acquisitions_are_never_interleaved(tmp_path: Path) -> None:
    make_ct_series(tmp_path / "a")

    def second(dataset: FileDataset, k: int) -> None:
        dataset.AcquisitionNumber = 2
        dataset.SOPInstanceUID = uid(f"second {k}")

    make_ct_series(tmp_path / "b", np.full((5, 8, 10), 7), change=second)
    with pytest.raises(DicomError, match="two acquisitions"):
        read_ct_series(tmp_path)


def test_several_series_are_listed_by_uid_alone(tmp_path: Path) -> None:
    make_ct_series(tmp_path / "a", name="one", description="SECRET")
    make_ct_series(tmp_path / "b", name="two", description="SECRET")
    with pytest.raises(DicomError, match="2 series could be the CBCT") as refused:
        read_ct_series(tmp_path, role="CBCT")
    assert uid("one series") in refused.value.uid
    assert uid("two series") in refused.value.uid
    assert "SECRET" not in str(refused.value)
    chosen = read_ct_series(tmp_path, series_uid=uid("two series"))
    assert chosen.frame_of_reference == uid("two frame")
    with pytest.raises(DicomError, match="is not here") as refused:
        read_ct_series(tmp_path, series_uid="1.2.3")
    assert uid("one series") in refused.value.remedy


def test_a_folder_without_ct_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DicomError, match="there is no planning CT"):
        read_ct_series(tmp_path, role="planning CT")


def test_series_are_found_and_other_files_passed_over(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path / "deep" / "er")
    make_structure_set(tmp_path / "rs.dcm", {"GTV": []}, reference=ct)
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = {s.modality: s for s in find_series(tmp_path)}
    assert set(found) == {"CT", "RTSTRUCT"}
    assert found["CT"].is_ct
    assert not found["RTSTRUCT"].is_ct
    assert found["CT"].files == ct.paths
    volume = read_ct_series(tmp_path)
    assert volume.source is not None
    assert volume.source.notes == ("1 files are not DICOM and were passed over",)


def test_a_broken_file_is_not_passed_over(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path)
    ct.paths[4].write_bytes(ct.paths[4].read_bytes()[:-20])
    with pytest.raises(DicomError, match="cut short") as refused:
        read_ct_series(tmp_path)
    assert refused.value.file == ct.paths[4].name
    assert str(tmp_path) not in str(refused.value)


def test_one_slice_alone_passes_only_when_asked_for(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path, np.ones((1, 4, 4), int))
    with pytest.raises(DicomError, match="one slice alone"):
        read_ct_series(ct.paths[0])
    assert read_ct_series(ct.paths[0], allow_single=True).grid.spacing_xyz_mm[2] == 0.0


def test_a_series_of_too_many_slices_or_bytes_is_refused(tmp_path: Path) -> None:
    make_ct_series(tmp_path)
    for limits in (replace(LIMITS, slices=4), replace(LIMITS, pixel_bytes=5 * 8 * 10 * 2 - 1)):
        with pytest.raises(DicomError, match="the CT series has 5 slices"):
            read_ct_series(tmp_path, limits=limits)
    read_ct_series(tmp_path, limits=replace(LIMITS, slices=5, pixel_bytes=5 * 8 * 10 * 2))


def test_slices_of_several_studies_are_noted(tmp_path: Path) -> None:
    make_ct_series(tmp_path, change=only_slice(4, put("StudyInstanceUID", "1.2.3")))
    source = read_ct_series(tmp_path).source
    assert source is not None
    assert source.study.instance_uid == uid("ct study")
    assert source.notes == ("the slices name 2 studies; that of the first is kept",)


def test_the_digest_follows_pixels_and_not_their_compression(tmp_path: Path) -> None:
    hu = (np.arange(3 * 32 * 32).reshape(3, 32, 32) * 7) % 2000 - 1000
    other = hu.copy()
    other[1, 5, 5] += 1
    plain = make_ct_series(tmp_path / "plain", hu)
    packed = make_ct_series(tmp_path / "packed", hu, transfer_syntax=JPEGLSLossless)
    changed = make_ct_series(tmp_path / "changed", other)
    digests = []
    for ct in (plain, packed, changed):
        volume = read_ct_series(ct.folder)
        assert (volume.values == ct.hu_zyx).all()
        assert volume.source is not None
        digests.append(volume.source.digest)
    assert digests[0] == digests[1] != digests[2]
