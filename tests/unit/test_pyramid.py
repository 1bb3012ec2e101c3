import numpy as np
import pytest
import torch

from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Volume
from contourcast.registration.pyramid import average, full_resolution, pyramid
from contourcast.registration.sampling import sample, sample_with_gradient
from support.analytic_phantom import Phantom, even_grid

OBLIQUE = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
OBLIQUE = OBLIQUE * np.sign(np.linalg.det(OBLIQUE))


def ramp(grid: Grid, slope_xyz: tuple[float, float, float]) -> Volume:
    """Values that are linear in world coordinates: any linear interpolation is exact."""
    values = (grid.centers() @ slope_xyz).reshape(grid.shape_zyx)
    return Volume(values=values, grid=grid, frame_of_reference="1.2")


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([1.0, -1.0, -1.0]), OBLIQUE])
def test_block_averages_stay_where_they_were(direction: np.ndarray) -> None:
    grid = even_grid(extent_xyz_mm=(60, 60, 60), spacing_mm=1.5, direction=direction)
    coarse = average(full_resolution(ramp(grid, (1.0, -2.0, 3.0)), device="cpu"), spacing_mm=6.0)
    assert coarse.values.shape == (10, 10, 10)
    points = torch.tensor([[0.0, 0.0, 0.0], [5.0, -7.0, 3.0]])
    found = sample(coarse, points, np.eye(4))
    torch.testing.assert_close(found, points @ torch.tensor([1.0, -2.0, 3.0]), atol=1e-3, rtol=0)


def test_unevenly_spaced_slices_are_read_where_they_lie() -> None:
    offsets = np.array([0.0, 2.0, 4.0, 7.0, 9.0, 14.0, 16.0])
    grid = Grid(
        shape_zyx=(7, 12, 12),
        spacing_xy_mm=(2.0, 2.0),
        origin_xyz_mm=np.array([5.0, 6.0, 7.0]),
        direction=OBLIQUE,
        offsets_z_mm=offsets,
    )
    image = full_resolution(ramp(grid, (1.0, 2.0, -1.0)), device="cpu")
    points = grid.world([[4.0, 5.0, 2.5], [3.0, 3.0, 4.6]])
    found = sample(image, torch.tensor(points), np.eye(4))
    np.testing.assert_allclose(found.numpy(), points @ [1.0, 2.0, -1.0], atol=1e-4)


@pytest.mark.parametrize(
    "offsets",
    [
        [*range(0, 90, 3), 45.02],
        [*range(10), *range(200, 1000, 50)],
        [0.0, 1e-3, 2e-3, 3e-3, 300.0],
    ],
    ids=["a slice twice", "half of it sparse", "nearly one place"],
)
def test_slices_nearly_in_one_place_do_not_multiply_the_volume(offsets: list[float]) -> None:
    grid = Grid(
        shape_zyx=(len(offsets), 4, 5),
        spacing_xy_mm=(2.0, 2.0),
        origin_xyz_mm=np.array([5.0, 6.0, 7.0]),
        direction=OBLIQUE,
        offsets_z_mm=np.sort(np.array(offsets, float)),
    )
    image = full_resolution(ramp(grid, (1.0, 2.0, -1.0)), device="cpu")
    assert image.values.shape[0] <= 8 * len(offsets)
    points = grid.world([[2.0, 2.0, 3.3], [3.0, 1.0, 3.8]])
    found = sample(image, torch.tensor(points), np.eye(4))
    np.testing.assert_allclose(found.numpy(), points @ [1.0, 2.0, -1.0], rtol=1e-4, atol=1e-3)


def test_an_uneven_series_is_sampled_at_its_smallest_gap() -> None:
    offsets = np.array([0.0, 2.0, 4.0, 7.0, 9.0, 14.0, 16.0])
    grid = Grid(
        shape_zyx=(7, 4, 5),
        spacing_xy_mm=(2.0, 2.0),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=offsets,
    )
    image = full_resolution(ramp(grid, (1.0, 2.0, -1.0)), device="cpu")
    assert (image.spacing_xyz_mm[2], image.values.shape[0]) == (2.0, 9)


def test_gradients_are_per_millimetre_along_the_patient_axes() -> None:
    grid = even_grid(extent_xyz_mm=(60, 50, 40), spacing_mm=2.5, direction=OBLIQUE)
    image = full_resolution(ramp(grid, (0.5, -1.5, 2.0)), device="cpu")
    points = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 2.0, 1.0]])
    _, gradient = sample_with_gradient(image, points, np.eye(4))
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -1.5, 2.0]] * 2), atol=1e-4, rtol=0)


def test_outside_and_unobserved_are_not_numbers() -> None:
    volume = Phantom().planning_ct()
    values = np.array(volume.values)
    values[:, :, :10] = -2000  # neither tissue nor air
    image = full_resolution(volume.with_values(values), device="cpu")
    hidden, outside, seen = sample(
        image, torch.tensor([[-110.0, 0, 0], [0, 0, 500.0], [50.0, 0, 0]]), np.eye(4)
    )
    assert torch.isnan(hidden)
    assert torch.isnan(outside)
    assert torch.isfinite(seen)


def test_levels_that_fit_into_each_other_are_made_from_each_other() -> None:
    full = full_resolution(Phantom().planning_ct(), device="cpu")
    levels = pyramid(full, spacings_mm=(3.0, 6.0, 12.0))
    assert [tuple(levels[s].values.shape) for s in (3.0, 6.0, 12.0)] == [
        (60, 67, 80),
        (30, 33, 40),
        (15, 16, 20),
    ]
    direct = average(full, spacing_mm=12.0).values
    torch.testing.assert_close(levels[12.0].values, direct, atol=1e-2, rtol=0)
