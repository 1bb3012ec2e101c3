from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.errors import ContourcastError, GeometryError, InputError
from contourcast.imaging.grid import Grid
from contourcast.training.datasets.nifti import (
    read_case,
    read_nifti,
    require_same_grid,
    write_nifti,
)
from support import collections
from support.collections import drawn, scan
from support.data import peer_module

OBLIQUE = Rotation.from_euler("zyx", [20, -10, 5], degrees=True).as_matrix()
GRIDS = {
    "axial": np.eye(3),
    "oblique": OBLIQUE,
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "left-handed": np.diag([1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
}


@pytest.fixture(autouse=True)
def nibabel() -> Any:
    """What reads and writes NIfTI; and SimpleITK, which must agree."""
    peer_module("SimpleITK")
    return peer_module("nibabel")


def grid(direction: np.ndarray) -> Grid:
    return Grid.even(
        shape_zyx=(4, 5, 6),
        spacing_xyz_mm=(0.75, 1.25, 2.5),
        origin_xyz_mm=(-20.0, 30.0, -1132.5),
        direction=direction,
    )


@pytest.mark.parametrize("direction", GRIDS.values(), ids=GRIDS)
def test_what_is_written_lies_where_two_other_programs_find_it(
    tmp_path: Path, nibabel: Any, direction: np.ndarray
) -> None:
    sitk = peer_module("SimpleITK")
    values, where = scan(), grid(direction)
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, values, where)
    by_itk, by_nibabel = sitk.ReadImage(str(path)), nibabel.load(path)
    for ijk in ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3), (3, 2, 1)):
        place_mm = where.world([ijk])[0]
        itk_mm = by_itk.TransformIndexToPhysicalPoint(ijk)
        ras_mm = nibabel.affines.apply_affine(by_nibabel.affine, ijk)
        assert np.abs(place_mm - itk_mm).max() < 1e-3
        assert np.abs(place_mm * (-1, -1, 1) - ras_mm).max() < 1e-3
        expected = values[ijk[::-1]]
        assert by_itk[ijk] == expected
        assert np.asarray(by_nibabel.dataobj)[ijk] == expected


@pytest.mark.parametrize("direction", GRIDS.values(), ids=GRIDS)
def test_what_another_program_wrote_is_read_at_its_place(
    tmp_path: Path, direction: np.ndarray
) -> None:
    values, where = scan(), grid(direction)
    path = collections.write_nifti(
        tmp_path / "scan.nii",
        values,
        origin_xyz_mm=where.origin_xyz_mm.tolist(),
        direction=direction.ravel().tolist(),
    )
    image = read_nifti(path, role="scan")
    assert (image.values == values).all()
    assert np.abs(image.grid.corners_xyz_mm - where.corners_xyz_mm).max() < 1e-3


def test_values_come_back_as_they_were_and_twice_the_same_bytes(tmp_path: Path) -> None:
    where = grid(np.eye(3))
    for n, values in enumerate((scan(), drawn(1, 2), scan() + np.float32(0.25))):
        one, two = tmp_path / f"{n}.nii.gz", tmp_path / "again" / f"{n}.nii.gz"
        two.parent.mkdir(exist_ok=True)
        write_nifti(one, values, where)
        write_nifti(two, values, where)
        image = read_nifti(one, role="scan")
        assert image.values.dtype == values.dtype
        assert (image.values == values).all()
        assert one.read_bytes() == two.read_bytes()


def test_uneven_slices_are_not_written_as_even(tmp_path: Path) -> None:
    uneven = Grid(
        shape_zyx=(4, 5, 6),
        spacing_xy_mm=(1.0, 1.0),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=np.array([0.0, 3.0, 6.0, 12.0]),
    )
    with pytest.raises(GeometryError, match="not evenly spaced"):
        write_nifti(tmp_path / "scan.nii.gz", scan(), uneven)
    assert not list(tmp_path.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def truncate_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-40]))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def no_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(b"<html>please log in</html>" * 40))


def header(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """A change of the header alone."""

    def damage(path: Path) -> None:
        nib = peer_module("nibabel")
        content = bytearray(gzip.decompress(path.read_bytes()))
        head = nib.Nifti1Header(bytes(content[:348]), check=False)
        change(head)
        content[:348] = head.binaryblock
        path.write_bytes(gzip.compress(content))

    return damage


def zero_spacing(head: Any) -> None:
    head["pixdim"][3] = 0.0


def zero_axis(head: Any) -> None:
    head["srow_x"][2] = head["srow_y"][2] = head["srow_z"][2] = 0.0


def two_spacings(head: Any) -> None:
    head["pixdim"][1] = 2.0


def sheared(head: Any) -> None:
    head["srow_x"][2] += 0.5
    head["pixdim"][3] = np.hypot(2.5, 0.5)


def no_orientation(head: Any) -> None:
    head["sform_code"] = head["qform_code"] = 0


def endless(head: Any) -> None:
    head["dim"][1:4] = 32000


def four_volumes(head: Any) -> None:
    head["dim"][0], head["dim"][3], head["dim"][4] = 4, 2, 2


def complex_numbers(head: Any) -> None:
    head["datatype"], head["bitpix"] = 32, 64
    head["dim"][1:4] = (3, 5, 2)


HOSTILE = {
    "truncated": (truncate, InputError, "cut short"),
    "truncated inside": (truncate_inside, InputError, "cut short"),
    "damaged": (flip_a_bit, InputError, "cut short|damaged"),
    "a web page": (no_nifti, InputError, "no NIfTI"),
    "missing": (Path.unlink, InputError, "the scan is missing"),
    "spacing of zero": (header(zero_spacing), GeometryError, "the spacing is 0.75 x 1.25 x 0 mm"),
    "axis of zero": (header(zero_axis), GeometryError, "the spacing is"),
    "two spacings": (header(two_spacings), GeometryError, "two spacings"),
    "sheared": (header(sheared), GeometryError, "right angles"),
    "no orientation": (header(no_orientation), GeometryError, "where the patient's left is"),
    "endless": (header(endless), InputError, "claims 32000 x 32000 x 32000 voxels"),
    "four dimensions": (header(four_volumes), InputError, "has 6 x 5 x 2 x 2 voxels"),
    "complex": (header(complex_numbers), InputError, "not one number each"),
}


@pytest.mark.parametrize(("damage", "kind", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_its_name(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[ContourcastError], says: str
) -> None:
    path = collections.write_nifti(tmp_path / "scan_030.nii.gz", scan())
    damage(path)
    with pytest.raises(kind, match=says) as refused:
        read_nifti(path, role="scan")
    assert refused.value.file == "scan_030.nii.gz"
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_counted(tmp_path: Path, odd: float) -> None:
    values = scan().astype(np.float32)
    values[2, 1, 3] = values[0, 0, 0] = odd
    path = collections.write_nifti(tmp_path / "scan.nii.gz", values)
    with pytest.raises(InputError, match="2 voxels of the scan are not finite"):
        read_nifti(path, role="scan")


def test_a_label_on_another_grid_is_refused(tmp_path: Path) -> None:
    image = collections.write_nifti(tmp_path / "scan.nii.gz", scan())
    for number, (label, moved_mm) in enumerate(
        ((drawn(1, shape_zyx=(4, 5, 5)), 0.0), (drawn(1), 0.5), (drawn(1), -0.2))
    ):
        path = collections.write_nifti(
            tmp_path / f"label_{number}.nii.gz", label, origin_xyz_mm=(-20.0 + moved_mm, 30, -100)
        )
        with pytest.raises(GeometryError, match=r"another grid than scan\.nii\.gz") as refused:
            read_case([image], path, values={0: 0, 1: 1})
        assert refused.value.file == f"label_{number}.nii.gz"


def test_a_place_that_differs_by_rounding_is_the_same(tmp_path: Path) -> None:
    image = read_nifti(collections.write_nifti(tmp_path / "a.nii.gz", scan()), role="scan")
    label = collections.write_nifti(
        tmp_path / "b.nii.gz", drawn(1), origin_xyz_mm=(-20.004, 30, -100)
    )
    require_same_grid(read_nifti(label, role="label"), image)


def test_a_label_of_an_unknown_value_is_refused(tmp_path: Path) -> None:
    image = collections.write_nifti(tmp_path / "scan.nii.gz", scan())
    label = collections.write_nifti(tmp_path / "label.nii.gz", drawn(1, 3))
    with pytest.raises(InputError, match="the label holds 3, which stands for nothing"):
        read_case([image], label, values={0: 0, 1: 1, 2: 2})


def test_label_values_are_renamed_all_at_once(tmp_path: Path) -> None:
    image = collections.write_nifti(tmp_path / "scan.nii.gz", scan())
    label = collections.write_nifti(tmp_path / "label.nii.gz", drawn(1, 2, 4).astype(np.float32))
    case = read_case([image], label, values={0: 0, 1: 2, 2: 1, 4: 3})
    expected = drawn(2, 1, 3)
    assert (case.label == expected).all()
    assert case.label.dtype == np.uint8
