from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import Grid
from contourcast.simulation.sampling import (
    affine_points,
    index_from_world,
    sample,
    smooth_noise,
    world_from_index,
)


def test_sampling_is_trilinear_as_scipy_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 7, 8)).astype(np.float32)
    ijk = rng.uniform(0, 5, (200, 3)).astype(np.float32)
    expected = map_coordinates(values, ijk[:, ::-1].T, order=1)
    assert np.abs(sample(values, ijk, outside=-5.0) - expected).max() < 1e-4


def test_outside_the_grid_is_what_was_said() -> None:
    values = np.zeros((3, 3, 3), np.float32)
    assert sample(values, np.array([[9.0, 0.0, 0.0]], np.float32), outside=-7.0)[0] == -7.0


def test_affines_agree_with_the_grid_for_any_direction() -> None:
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    grid = Grid.even(
        shape_zyx=(3, 4, 5), spacing_xyz_mm=(1, 2, 3), origin_xyz_mm=(7, 8, 9), direction=turn
    )
    points = affine_points(world_from_index(grid), grid.shape_zyx).reshape(-1, 3)
    assert np.abs(points - grid.centers()).max() < 1e-4
    assert np.allclose(index_from_world(grid) @ world_from_index(grid), np.eye(4))


def test_a_grid_with_uneven_slices_is_refused() -> None:
    grid = Grid(
        shape_zyx=(3, 2, 2),
        spacing_xy_mm=(1, 1),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=np.array([0.0, 1.0, 4.0]),
    )
    with pytest.raises(GeometryError, match="uneven"):
        world_from_index(grid)


@pytest.mark.parametrize("length_mm", [4.0, 30.0])
def test_noise_has_unit_sd_and_resembles_itself_over_its_length(length_mm: float) -> None:
    field = smooth_noise(np.random.default_rng(1), (40, 60, 60), (2.0, 2.0, 2.0), length_mm)
    assert field.shape == (40, 60, 60)
    assert 0.5 < field.std() < 1.4
    near = np.corrcoef(field[:, :, 1:].ravel(), field[:, :, :-1].ravel())[0, 1]
    far = np.corrcoef(field[:, :, 25:].ravel(), field[:, :, :-25].ravel())[0, 1]
    assert near > 0.6 > far
