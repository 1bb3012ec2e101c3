from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import Grid, frozen_array

UNEVEN = Grid(
    shape_zyx=(4, 3, 5),
    spacing_xy_mm=(2.0, 1.0),
    origin_xyz_mm=np.array([10.0, 20.0, 30.0]),
    offsets_z_mm=np.array([0.0, 3.0, 5.0, 10.0]),
)


def test_the_first_index_is_the_centre_of_the_first_voxel() -> None:
    assert UNEVEN.world([[0, 0, 0]]).tolist() == [[10, 20, 30]]


def test_indices_are_column_row_slice() -> None:
    assert UNEVEN.world([[1, 2, 3]]).tolist() == [[12, 22, 40]]
    assert UNEVEN.index([[12, 22, 40]]).tolist() == [[1, 2, 3]]


def test_slices_keep_their_own_positions() -> None:
    assert UNEVEN.world([[0, 0, 1.5]])[0, 2] == 34.0
    assert UNEVEN.index([[10, 20, 34.0]])[0, 2] == 1.5


def test_outside_the_slices_the_end_gaps_go_on() -> None:
    assert UNEVEN.world([[0, 0, -1], [0, 0, 4]])[:, 2].tolist() == [27, 45]
    assert UNEVEN.index([[10, 20, 27], [10, 20, 45]])[:, 2].tolist() == [-1, 4]


def test_one_slice_alone_has_a_normal_but_no_distance() -> None:
    grid = Grid.even(shape_zyx=(1, 2, 2), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 5))
    assert grid.spacing_xyz_mm == (1, 1, 0)
    assert grid.index([[0, 0, 7]])[0, 2] == 2.0
    assert grid.thickness_z_mm.tolist() == [0]


def test_a_slice_stands_for_the_length_half_way_to_its_neighbours() -> None:
    assert UNEVEN.thickness_z_mm.tolist() == [3.0, 2.5, 3.5, 5.0]
    assert UNEVEN.voxel_cc.ravel() == pytest.approx([0.006, 0.005, 0.007, 0.01])


def sliced_at(offsets_z_mm: np.ndarray) -> Grid:
    return Grid(
        shape_zyx=(len(offsets_z_mm), 1, 1),
        spacing_xy_mm=(1, 1),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=offsets_z_mm,
    )


def test_spacing_is_the_median_and_unevenness_is_seen() -> None:
    assert UNEVEN.spacing_xyz_mm == (2, 1, 3)
    assert UNEVEN.spacing_zyx_mm == (3, 1, 2)
    assert not UNEVEN.is_even
    assert sliced_at(np.array([0.0, 3.002, 5.998])).is_even


@pytest.mark.parametrize("step_mm", [0.625, 0.312, 1.171875, 0.9765625])
def test_even_slices_of_few_digits_do_not_drift(step_mm: float) -> None:
    grid = sliced_at(np.round(np.arange(400) * step_mm, 2))
    assert grid.is_even
    assert grid.spacing_xyz_mm[2] * 399 == pytest.approx(grid.offsets_z_mm[-1])
    assert grid.spacing_xyz_mm[2] == pytest.approx(step_mm, abs=2e-5)


def test_gaps_that_are_each_a_little_off_add_up_to_uneven_slices() -> None:
    gaps = np.repeat([3.0, 3.02], 40)
    assert not sliced_at(np.concatenate(([0.0], np.cumsum(gaps)))).is_even
    assert sliced_at(np.concatenate(([0.0], np.cumsum(gaps.reshape(2, 40).T.ravel())))).is_even


def test_oblique_axes_are_the_columns_of_direction() -> None:
    direction = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    grid = Grid.even(
        shape_zyx=(2, 2, 2), spacing_xyz_mm=(2, 3, 4), origin_xyz_mm=(0, 0, 0), direction=direction
    )
    assert grid.world([[1, 0, 0], [0, 1, 0]]).tolist() == [[0, 2, 0], [-3, 0, 0]]
    assert grid.normal.tolist() == [0, 0, 1]


def test_centers_run_in_array_order() -> None:
    centers = UNEVEN.centers().reshape(4, 3, 5, 3)
    assert centers[1, 2, 3].tolist() == UNEVEN.world([[3, 2, 1]])[0].tolist()


def test_a_crop_keeps_places() -> None:
    part = UNEVEN.crop((1, 0, 2), (4, 2, 5))
    assert part.shape_zyx == (3, 2, 3)
    assert np.allclose(part.world([[0, 0, 0], [2, 1, 2]]), UNEVEN.world([[2, 0, 1], [4, 1, 3]]))


def test_corners_and_middle() -> None:
    assert UNEVEN.corners_xyz_mm.min(axis=0).tolist() == [10, 20, 30]
    assert UNEVEN.corners_xyz_mm.max(axis=0).tolist() == [18, 22, 40]
    assert UNEVEN.center_xyz_mm.tolist() == [14, 21, 34]


def test_the_same_place_within_the_digits_of_a_file() -> None:
    def at(x: float, inner: float = 3.0) -> Grid:
        return Grid(
            shape_zyx=(4, 3, 5),
            spacing_xy_mm=(2.0, 1.0),
            origin_xyz_mm=np.array([x, 20.0, 30.0]),
            offsets_z_mm=np.array([0.0, inner, 5.0, 10.0]),
        )

    assert UNEVEN.same_as(at(10.004))
    assert not UNEVEN.same_as(at(10.01))
    assert not UNEVEN.same_as(at(10.0, inner=3.1))
    assert not UNEVEN.same_as(UNEVEN.crop((0, 0, 0), (3, 3, 5)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape_zyx": (0, 3, 5), "offsets_z_mm": np.array([])},
        {"spacing_xy_mm": (0.0, 1.0)},
        {"spacing_xy_mm": (np.nan, 1.0)},
        {"origin_xyz_mm": np.array([0.0, np.inf, 0.0])},
        {"direction": np.diag([1.0, 1.0, 1.1])},
        {"direction": np.ones((3, 3))},
        {"offsets_z_mm": np.array([0.0, 3.0, 5.0])},
        {"offsets_z_mm": np.array([0.0, 3.0, 3.0, 10.0])},
        {"offsets_z_mm": np.array([0.0, 5.0, 3.0, 10.0])},
    ],
)
def test_no_grid_of_impossible_numbers(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "shape_zyx": (4, 3, 5),
        "spacing_xy_mm": (2.0, 1.0),
        "origin_xyz_mm": np.zeros(3),
        "offsets_z_mm": np.array([0.0, 3.0, 5.0, 10.0]),
    }
    Grid(**right)
    with pytest.raises(GeometryError):
        Grid(**(right | wrong))


def test_arrays_inside_are_their_own_and_read_only() -> None:
    offsets = np.array([0.0, 3.0, 5.0, 10.0])
    grid = Grid(
        shape_zyx=(4, 3, 5),
        spacing_xy_mm=(1, 1),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=offsets,
    )
    offsets[1] = 99
    assert grid.offsets_z_mm[1] == 3
    with pytest.raises(ValueError, match="read-only"):
        grid.offsets_z_mm[1] = 4
    view = frozen_array(np.arange(6.0)[::2])
    assert not view.flags.writeable
