from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging import polygon
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.trace import loops_volume_cc, trace
from contourcast.imaging.volume import Mask, Probability
from support.phantoms import FRAME, ball, planning_grid, stack, tube
from support.strategies import FEET_FIRST, PRONE, SUPINE

OBLIQUE = Rotation.from_euler("ZYX", [10, 20, -15], degrees=True).as_matrix()


def grid_towards(direction: np.ndarray) -> Grid:
    return Grid(
        shape_zyx=(4, 30, 34),
        spacing_xy_mm=(1.2, 0.9),
        origin_xyz_mm=direction @ np.array([-20.0, -14.0, -5.0]),
        direction=direction,
        offsets_z_mm=np.array([0.0, 3.0, 5.0, 9.0]),
    )


def roi(contours: tuple[Contour, ...]) -> Roi:
    return Roi(number=1, name="GTV", contours=contours, frame_of_reference=FRAME)


def soft_ball(grid: Grid, radius_mm: float, center_xyz_mm: np.ndarray) -> Probability:
    depth = radius_mm - np.linalg.norm(grid.centers() - center_xyz_mm, axis=1)
    values = 1 / (1 + np.exp(-depth))
    return Probability(
        values=values.reshape(grid.shape_zyx), grid=grid, frame_of_reference=FRAME, name="GTV"
    )


@pytest.mark.parametrize("pixel_mm", [0.9766, 2.5])
def test_a_soft_ball_is_traced_to_a_hundredth_of_a_pixel(pixel_mm: float) -> None:
    grid = planning_grid(pixel_mm=pixel_mm)
    center = np.array([3.3, -7.1, 0.7])
    errors = []
    for contour in trace(soft_ball(grid, 20.0, center)):
        points = contour.points_xyz_mm
        expected = np.sqrt(max(400.0 - (points[0, 2] - center[2]) ** 2, 0))
        if expected > 5:
            errors.append(np.linalg.norm(points[:, :2] - center[:2], axis=1) - expected)
    found = np.concatenate(errors) / pixel_mm
    assert len(errors) > 10
    assert abs(found.mean()) < 0.01, f"mean radius off by {found.mean():.4f} px"
    assert np.abs(found).max() < 0.05


def test_a_mask_is_traced_half_way_between_centres() -> None:
    grid = Grid.even(shape_zyx=(2, 5, 5), spacing_xyz_mm=(2, 4, 3), origin_xyz_mm=(0, 0, 0))
    values = np.zeros(grid.shape_zyx, bool)
    values[1, 2, 3] = True
    (contour,) = trace(Mask(values=values, grid=grid, frame_of_reference=FRAME))
    assert sorted(contour.points_xyz_mm.tolist()) == [[5, 8, 3], [6, 6, 3], [6, 10, 3], [7, 8, 3]]


def test_the_border_of_the_image_closes_the_contour_half_a_pixel_out() -> None:
    grid = Grid.even(shape_zyx=(1, 4, 4), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 0))
    full = np.ones(grid.shape_zyx)
    for region in (
        Mask(values=full, grid=grid, frame_of_reference=FRAME),
        Probability(values=full, grid=grid, frame_of_reference=FRAME),
    ):
        (contour,) = trace(region)
        assert contour.points_xyz_mm[:, :2].min() == pytest.approx(-0.5)
        assert contour.points_xyz_mm[:, :2].max() == pytest.approx(3.5)
        assert rasterise(roi((contour,)), grid).values.all()


def test_an_uncertain_border_is_closed_closer() -> None:
    grid = Grid.even(shape_zyx=(1, 4, 4), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 0))
    values = np.full(grid.shape_zyx, 0.6)
    (contour,) = trace(Probability(values=values, grid=grid, frame_of_reference=FRAME))
    assert -0.5 < contour.points_xyz_mm[:, :2].min() < 0


def test_nothing_has_no_contour() -> None:
    grid = planning_grid()
    nothing = np.zeros(grid.shape_zyx)
    assert trace(Mask(values=nothing, grid=grid, frame_of_reference=FRAME)) == ()
    assert trace(Probability(values=nothing, grid=grid, frame_of_reference=FRAME)) == ()


@pytest.mark.parametrize(
    "direction", [SUPINE, PRONE, FEET_FIRST, OBLIQUE], ids=["supine", "prone", "feet", "oblique"]
)
def test_outer_loops_run_counter_clockwise_seen_from_the_head(direction: np.ndarray) -> None:
    grid = grid_towards(direction)
    ring = rasterise(stack(grid, tube(10, 4, 30), center_xyz_mm=(0, 0, 0)), grid)
    loops = trace(ring)
    assert len(loops) == 2 * grid.shape_zyx[0]
    areas = [polygon.signed_area(contour.points_xyz_mm[:, :2]) for contour in loops]
    assert sorted(np.sign(areas).tolist()) == [-1] * 4 + [1] * 4
    assert min(a for a in areas if a > 0) > max(-a for a in areas if a < 0)  # the outer is larger


@pytest.mark.parametrize("direction", [SUPINE, OBLIQUE], ids=["supine", "oblique"])
def test_contours_lie_on_their_slice_s_own_plane(direction: np.ndarray) -> None:
    grid = grid_towards(direction)
    ring = rasterise(stack(grid, tube(10, 4, 30), center_xyz_mm=(0, 0, 0)), grid)
    for contour in trace(ring):
        k = grid.index(contour.points_xyz_mm)[:, 2]
        assert np.abs(k - np.rint(k[0])).max() < 1e-9


@pytest.mark.parametrize("direction", [SUPINE, FEET_FIRST, OBLIQUE])
def test_mask_to_contours_to_mask_keeps_holes(direction: np.ndarray) -> None:
    grid = grid_towards(direction)
    ring = rasterise(stack(grid, tube(10, 4, 30), center_xyz_mm=(0, 0, 0)), grid)
    again = rasterise(roi(trace(ring)), grid)
    assert dice(again, ring) == 1


def test_probability_to_contours_to_mask() -> None:
    grid = planning_grid()
    region = soft_ball(grid, 20.0, np.array([3.3, -7.1, 0.7]))
    assert dice(rasterise(roi(trace(region)), grid), region.mask()) >= 0.999


def test_thinning_takes_points_and_leaves_the_area() -> None:
    grid = planning_grid()
    region = soft_ball(grid, 20.0, np.array([3.3, -7.1, 0.7]))
    loops = trace(region)
    for n in range(grid.shape_zyx[0]):
        crossings = np.diff(region.values[n] > 0.5, axis=0).sum()
        crossings += np.diff(region.values[n] > 0.5, axis=1).sum()
        own = [c for c in loops if abs(c.points_xyz_mm[0, 2] - grid.world([[0, 0, n]])[0, 2]) < 0.1]
        assert bool(own) == bool(crossings)
        if crossings > 100:
            assert len(own[0].points_xyz_mm) < 0.8 * crossings
            radius2 = 400.0 - (own[0].points_xyz_mm[0, 2] - 0.7) ** 2
            area = polygon.signed_area(own[0].points_xyz_mm[:, :2])
            assert area == pytest.approx(np.pi * radius2, rel=3e-3)


def test_no_loop_crosses_itself_or_has_less_than_three_points() -> None:
    grid = Grid.even(shape_zyx=(6, 40, 40), spacing_xyz_mm=(0.05, 0.06, 1), origin_xyz_mm=(0, 0, 0))
    noise = np.random.default_rng(3).random(grid.shape_zyx)
    for region in (
        Mask(values=noise > 0.6, grid=grid, frame_of_reference=FRAME),
        Probability(values=noise, grid=grid, frame_of_reference=FRAME),
    ):
        loops = trace(region)
        assert len(loops) > 50
        for contour in loops:
            assert len(contour.points_xyz_mm) >= 3
            assert not polygon.crosses_itself(contour.points_xyz_mm[:, :2])


def test_volumes_of_loops() -> None:
    grid = planning_grid()
    drawn = stack(grid, tube(20, 8, 40))
    slices = len(drawn.loops) / 2
    expected = slices * 3.0 * 60 * np.sin(np.pi / 60) * (20**2 - 8**2) / 1000
    assert loops_volume_cc(drawn.loops, grid) == pytest.approx(expected, rel=1e-6)
    assert loops_volume_cc((), grid) == 0


def test_volumes_of_loops_on_uneven_slices() -> None:
    grid = grid_towards(SUPINE)
    disc = stack(grid, lambda z: [10.0], center_xyz_mm=(0, 0, 0))
    area = 60 * np.sin(np.pi / 60) * 100
    assert loops_volume_cc(disc.loops, grid) == pytest.approx(
        area * grid.thickness_z_mm.sum() / 1000
    )


def test_a_traced_ball_keeps_its_volume() -> None:
    grid = planning_grid()
    drawn = stack(grid, ball(15.0))
    mask = rasterise(drawn, grid)
    assert loops_volume_cc(trace(mask), grid) == pytest.approx(mask.volume_cc, rel=0.01)
