from __future__ import annotations

from collections.abc import Callable, Sequence
from time import process_time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging import polygon
from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import coverage, raster_notes, rasterise
from contourcast.imaging.structures import Contour, Roi
from support.phantoms import FRAME, ball, circle_area_mm2, planning_grid, stack, tube
from support.strategies import DECUBITUS, FEET_FIRST, PRONE, SUPINE

GRID = Grid.even(shape_zyx=(5, 8, 9), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 0))


def roi(*contours: Contour) -> Roi:
    return Roi(number=1, name="GTV", contours=contours, frame_of_reference=FRAME)


def loop(points_xy: Sequence[Sequence[float]], z: float = 6.0) -> Contour:
    return Contour(points_xyz_mm=np.array([[x, y, z] for x, y in points_xy]))


def square(low: float, high: float, z: float = 6.0) -> Contour:
    return loop([(low, low), (high, low), (high, high), (low, high)], z)


# --- which pixels


def test_edges_through_centres_count_on_the_low_side_alone() -> None:
    inside = rasterise(roi(square(2, 5)), GRID).values
    assert np.argwhere(inside[2]).min(axis=0).tolist() == [2, 2]
    assert np.argwhere(inside[2]).max(axis=0).tolist() == [4, 4]
    assert inside.sum() == 9


def test_two_regions_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    diagonal = [(1, 1), (7, 7)]
    one = rasterise(roi(loop([*diagonal, (1, 7)])), GRID).values
    other = rasterise(roi(loop([*diagonal, (7, 1)])), GRID).values
    both = rasterise(roi(square(1, 7)), GRID).values
    assert not (one & other).any()
    assert ((one | other) == both).all()


def test_winding_and_first_point_do_not_matter() -> None:
    points = square(1.2, 5.4).points_xyz_mm
    first = rasterise(roi(Contour(points_xyz_mm=points)), GRID).values
    for other in (points[::-1], np.roll(points, 1, axis=0)):
        assert (rasterise(roi(Contour(points_xyz_mm=other)), GRID).values == first).all()


def test_a_loop_in_a_loop_is_a_hole_and_a_third_an_island() -> None:
    nested = rasterise(roi(square(0.5, 7.5), square(1.5, 6.5), square(3.5, 4.5)), GRID).values
    assert nested[2].sum() == 49 - 25 + 1
    assert nested[2, 4, 4]


def test_a_keyhole_is_a_ring() -> None:
    outer = [(0.5, 0.5), (6.5, 0.5), (6.5, 6.5), (0.5, 6.5), (0.5, 0.5)]
    inner = [(2.5, 2.5), (2.5, 4.5), (4.5, 4.5), (4.5, 2.5), (2.5, 2.5)]
    ring = rasterise(roi(loop([*outer, *inner])), GRID).values
    assert ring[2].sum() == 36 - 4


@pytest.mark.parametrize("shift", [(-5.0, 0.0), (5.0, 0.0), (0.0, -5.0), (0.0, 5.0), (-4.2, 3.9)])
def test_what_reaches_beyond_the_image_is_cut_and_never_comes_back_elsewhere(
    shift: tuple[float, float],
) -> None:
    large = Grid.even(shape_zyx=(5, 28, 29), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(-10, -10, 0))
    points = np.array([[1.3, 1.1], [6.2, 2.2], [5.1, 6.4], [2.2, 5.3]]) + shift
    contour = roi(loop(points.tolist()))
    assert (
        rasterise(contour, GRID).values == rasterise(contour, large).values[:, 10:18, 10:19]
    ).all()


# --- which slice


def test_a_contour_a_little_off_its_slice_is_on_it() -> None:
    on = rasterise(roi(square(1, 5, z=6.0)), GRID).values
    assert (rasterise(roi(square(1, 5, z=6.002)), GRID).values == on).all()
    assert raster_notes(roi(square(1, 5, z=6.002)), GRID) == ()


@pytest.mark.parametrize(("z", "taken"), [(4.5, 1), (4.51, 2), (7.4, 2), (-1.49, 0), (13.5, 4)])
def test_a_contour_between_slices_goes_to_the_nearest(z: float, taken: int) -> None:
    inside = rasterise(roi(square(1, 5, z=z)), GRID).values
    assert np.flatnonzero(inside.any(axis=(1, 2))).tolist() == [taken]
    (note,) = raster_notes(roi(square(1, 5, z=z)), GRID)
    assert f"slice {taken}" in note.text
    assert not note.lost


@pytest.mark.parametrize("z", [-1.5, -40.0, 13.6, 1e9])
def test_a_contour_beyond_the_slices_is_on_none(z: float) -> None:
    assert rasterise(roi(square(1, 5, z=z)), GRID).is_empty
    (note,) = raster_notes(roi(square(1, 5, z=z)), GRID)
    assert "beyond the first or last slice" in note.text
    assert note.lost


def test_planes_closer_than_the_slices_do_not_cancel_each_other() -> None:
    dense = roi(square(1, 5, z=5.0), square(1, 5, z=6.0), square(1, 5, z=7.0))
    assert rasterise(dense, GRID).values.sum() == 16
    assert any("closer than the slices: 2" in note.text for note in raster_notes(dense, GRID))


def test_uneven_slices_take_what_is_nearest_in_their_own_gap() -> None:
    uneven = Grid(
        shape_zyx=(3, 8, 8),
        spacing_xy_mm=(1, 1),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=np.array([0.0, 2.0, 10.0]),
    )
    for z, taken in ((1.1, 1), (5.9, 1), (6.1, 2)):
        inside = rasterise(roi(square(1, 5, z=z)), uneven).values
        assert np.flatnonzero(inside.any(axis=(1, 2))).tolist() == [taken], z


def test_gaps_are_left_empty_and_told() -> None:
    gap = roi(square(1, 5, z=0.0), square(1, 5, z=12.0))
    assert rasterise(gap, GRID).values.any(axis=(1, 2)).tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]
    (note,) = raster_notes(gap, GRID)
    assert note.text == "no contour within the stack, left empty: slices 1-3"
    assert not note.lost, "two planes have no usual step"


@pytest.mark.parametrize(
    ("slices", "lost"),
    [
        ((0, 1, 3, 4), True),
        ((0, 2, 4), False),
        ((0, 1, 2, 8, 9), False),
        ((0, 2, 6, 8), True),
        ((0, 2, 4, 5, 6, 7, 8, 9), False),
        ((0, 2, 3, 4, 5, 6), True),
    ],
)
def test_a_forgotten_plane_is_told_from_a_usual_step_and_from_a_second_lesion(
    slices: tuple[int, ...], lost: bool
) -> None:
    grid = Grid.even(shape_zyx=(12, 8, 8), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=np.zeros(3))
    (note,) = raster_notes(roi(*(square(1, 5, z=3.0 * n) for n in slices)), grid)
    assert note.lost is lost


def test_a_contour_that_stands_twice_counts_once() -> None:
    twice = roi(square(1, 5, z=6.0), square(1, 5, z=6.0))
    assert rasterise(twice, GRID).values.sum() == 16
    (note,) = raster_notes(twice, GRID)
    assert note.text == "1 of the contours stand there twice, and count once"


def ring_of(radius: float, *, corners: int = 60, at: tuple[float, float] = (30.0, 30.0)) -> Contour:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    x, y = at[0] + radius * np.cos(angle), at[1] + radius * np.sin(angle)
    return loop(np.column_stack((x, y)).tolist())


WIDE = Grid.even(shape_zyx=(5, 61, 61), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 0))
LOST_TO_EACH_OTHER = "contours of one slice overlap: what they share is left out (slice 2)"
COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the other way": lambda points: points[::-1],
    "from another point": lambda points: np.roll(points, 7, axis=0),
    "rounded": lambda points: points.round(2),
    "points repeated": lambda points: np.repeat(points, 3, axis=0),
    "points between": lambda points: np.stack(
        (points, (points + np.roll(points, -1, axis=0)) / 2), axis=1
    ).reshape(-1, 3),
    "all of it": lambda points: np.repeat(np.roll(points[::-1].round(2), 7, axis=0), 2, axis=0),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("shape", ["circle", "keyhole"])
def test_a_copy_counts_once_however_it_is_written(
    shape: str, copied: Callable[[np.ndarray], np.ndarray]
) -> None:
    points = ring_of(20.123).points_xyz_mm
    if shape == "keyhole":
        hole = ring_of(7.77).points_xyz_mm[::-1]
        points = np.concatenate((points, points[:1], np.roll(hole, 1, axis=0), hole[-1:]))
    once = roi(Contour(points_xyz_mm=points))
    twice = roi(*once.contours, Contour(points_xyz_mm=copied(points)))
    assert (rasterise(twice, WIDE).values == rasterise(once, WIDE).values).all()
    (note,) = raster_notes(twice, WIDE)
    assert note.text == "1 of the contours stand there twice, and count once"
    assert not note.lost


def test_other_contours_through_the_same_points_are_no_copies() -> None:
    left = [(1.0, 1), (4, 3), (1, 5), (7, 5), (7, 1)]
    right = [(1.0, 1), (1, 5), (7, 5), (4, 3), (7, 1)]
    texts = [note.text for note in raster_notes(roi(loop(left), loop(right)), GRID)]
    assert texts == [LOST_TO_EACH_OTHER]


def test_many_contours_on_a_slice_are_soon_told_apart() -> None:
    corners = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    islands = [corners + np.array((2 * x, 2 * y)) for x in range(40) for y in range(40)]
    again = [np.roll(island[::-1], 1, axis=0) for island in islands]
    both = roi(*(loop(island.tolist()) for island in [*islands, *again]))
    grid = Grid.even(shape_zyx=(5, 90, 90), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=np.zeros(3))
    began = process_time()
    (note,) = raster_notes(both, grid)
    assert process_time() - began < 10
    assert note.text == "1600 of the contours stand there twice, and count once"


@pytest.mark.parametrize("apart", [24.0, 15.0, 4.0, 1.0, 0.3])
@pytest.mark.parametrize("corners", [30, 2000])
def test_what_two_contours_share_is_told_to_be_lost(apart: float, corners: int) -> None:
    one, other = (ring_of(13.0, corners=corners, at=(x, 30.3)) for x in (20.0, 20.0 + apart))
    (note,) = raster_notes(roi(one, other), WIDE)
    assert note.text == LOST_TO_EACH_OTHER
    assert note.lost


def test_a_bar_across_a_contour_overlaps_it() -> None:
    bar = loop([(10, 28), (50, 28), (50, 31), (10, 31)])
    (note,) = raster_notes(roi(ring_of(13.0), bar), WIDE)
    assert note.text == LOST_TO_EACH_OTHER


def test_slices_whose_contours_overlap_are_named() -> None:
    drawn = [square(1, low, z=3.0 * n) for n in range(5) for low in (4, 6)]
    overlapping = [square(3, 7, z=3.0 * n) for n in (0, 1, 3)]
    (note,) = raster_notes(roi(*drawn, *overlapping), GRID)
    assert note.text.endswith("(slices 0-1, 3)")


@pytest.mark.parametrize(
    "contours",
    [
        (ring_of(20.0), ring_of(12.0), ring_of(5.0)),
        (ring_of(10.0, at=(15.0, 30.0)), ring_of(10.0, at=(45.0, 30.0))),
        (square(1, 5), loop([(5, 1), (9, 1), (9, 5), (5, 5)])),
        (square(1, 5), loop([(4.96, 0.5), (9, 1), (9, 5), (4.96, 6)])),
        (ring_of(20.0), ring_of(12.0, at=(22.0, 30.0))),
        (loop([(1, 1), (7, 1), (7, 7), (1, 7), (1, 1), (2, 2), (2, 4), (4, 4), (4, 2), (2, 2)]),),
        (square(1, 7), loop([(1, 1), (3, 1), (1, 3)])),
    ],
    ids=["rings", "islands", "edge", "rounded edge", "hole at the rim", "keyhole", "shared corner"],
)
def test_contours_that_only_touch_or_nest_are_nothing_odd(contours: tuple[Contour, ...]) -> None:
    assert raster_notes(roi(*contours), WIDE) == ()


@pytest.mark.parametrize(
    "again",
    [
        lambda points: points[::4],
        lambda points: (points - [30, 30, 0]) * [0.997, 0.997, 1] + [30, 30, 0],
    ],
    ids=["fewer points", "a hair smaller"],
)
def test_contours_that_leave_next_to_nothing_of_each_other_are_told(
    again: Callable[[np.ndarray], np.ndarray],
) -> None:
    points = ring_of(20.0).points_xyz_mm
    drawn = roi(Contour(points_xyz_mm=points), Contour(points_xyz_mm=again(points)))
    lost = [note.text for note in raster_notes(drawn, WIDE) if note.lost]
    assert lost == ["contours of one slice leave next to nothing of each other (slice 2)"]


@pytest.mark.parametrize("decimals", [0, 1])
def test_a_copy_that_is_rounded_coarsely_is_none_and_told(decimals: int) -> None:
    points = ring_of(20.0).points_xyz_mm
    drawn = roi(Contour(points_xyz_mm=points), Contour(points_xyz_mm=points.round(decimals)))
    texts = [note.text for note in raster_notes(drawn, WIDE) if note.lost]
    assert texts == [LOST_TO_EACH_OTHER]


def test_a_contour_that_goes_round_twice_is_told() -> None:
    points = ring_of(20.0).points_xyz_mm
    drawn = roi(Contour(points_xyz_mm=np.concatenate((points, points))))
    assert any(note.lost for note in raster_notes(drawn, WIDE))


# --- any orientation


@pytest.mark.parametrize(
    "direction",
    [
        SUPINE,
        PRONE,
        FEET_FIRST,
        DECUBITUS,
        Rotation.from_euler("ZYX", [25, -10, 15], degrees=True).as_matrix(),
        Rotation.from_euler("ZYX", [10, 0, 5], degrees=True).as_matrix() @ PRONE,
    ],
    ids=["supine", "prone", "feet first", "decubitus", "oblique", "oblique prone"],
)
def test_the_pixels_are_those_whose_centre_is_inside_in_any_orientation(
    direction: np.ndarray,
) -> None:
    grid = Grid.even(
        shape_zyx=(6, 40, 50),
        spacing_xyz_mm=(1.3, 0.7, 4.0),
        origin_xyz_mm=direction @ np.array([-30.0, -12.0, -8.0]),
        direction=direction,
    )
    center = (1.23, 2.34, 1.0)
    inside = rasterise(stack(grid, tube(8.1, 3.3, 15.0), center_xyz_mm=center), grid).values
    local = grid.centers() @ direction - center
    radius = np.hypot(local[:, 0], local[:, 1]).reshape(grid.shape_zyx)
    height = np.abs(local[:, 2]).reshape(grid.shape_zyx)
    sure = (np.abs(radius - 8.1) > 0.01) & (np.abs(radius - 3.3) > 0.01)  # polygon, not circle
    expected = (radius < 8.1) & (radius > 3.3) & (height < 7.5)
    assert expected.any()
    assert (inside[sure] == expected[sure]).all()


def test_contours_across_the_slices_are_refused() -> None:
    sagittal = Contour(points_xyz_mm=np.array([[3.0, 1, 0], [3, 5, 0], [3, 5, 9], [3, 1, 9]]))
    for verb in (rasterise, coverage, raster_notes):
        with pytest.raises(GeometryError, match="not drawn on planes parallel"):
            verb(roi(sagittal), GRID)


def test_points_that_are_no_numbers_are_refused() -> None:
    broken = Contour(points_xyz_mm=np.array([[1.0, 1, 6], [np.nan, 5, 6], [5, 5, 6]]))
    with pytest.raises(GeometryError, match="not numbers"):
        rasterise(roi(broken), GRID)


def test_the_mask_keeps_frame_and_name() -> None:
    mask = rasterise(roi(square(1, 5)), GRID)
    assert (mask.frame_of_reference, mask.name) == (FRAME, "GTV")


# --- notes


@pytest.mark.parametrize(
    ("contours", "words"),
    [
        ((), "no contour"),
        ((Contour(points_xyz_mm=np.ones((1, 3)), geometric_type="POINT"),), "points and open"),
        ((Contour(points_xyz_mm=np.ones((2, 3))),), "fewer than three points"),
        ((square(2.2, 2.7),), "smaller than a voxel"),
        ((square(20, 25),), "wholly outside"),
        ((square(-3, 5),), "partly outside"),
        ((loop([(1, 1), (6, 6), (6, 1), (1, 6)]),), "cross themselves"),
    ],
)
def test_what_cannot_be_shown_is_told(contours: tuple[Contour, ...], words: str) -> None:
    (note,) = raster_notes(roi(*contours), GRID)
    assert words in note.text


def test_a_plain_roi_has_no_notes() -> None:
    grid = planning_grid()
    assert raster_notes(stack(grid, tube(20, 8, 40)), grid) == ()


# --- coverage


def test_coverage_is_the_exact_area() -> None:
    grid = planning_grid()
    shares = coverage(stack(grid, tube(20.0, 8.0, 40.0)), grid).values
    area = shares.sum(axis=(1, 2)) * np.prod(grid.spacing_xy_mm)
    expected = circle_area_mm2(20.0) - circle_area_mm2(8.0)
    assert np.abs(area[area > 0] / expected - 1).max() < 1e-5
    assert shares.min() >= 0
    assert shares.max() <= 1 + 1e-6


def test_coverage_of_one_pixel_by_hand() -> None:
    triangle = loop([(1.5, 1.5), (2.5, 1.5), (2.5, 2.5)])  # the half of pixel (2, 2) below y = x
    shares = coverage(roi(triangle), GRID).values[2]
    assert shares[2, 2] == pytest.approx(0.5)
    assert shares.sum() == pytest.approx(0.5)


@pytest.mark.parametrize("shift", [(-5.0, 0.0), (5.0, 0.0), (0.0, -5.0), (0.0, 5.0), (-4.2, 3.9)])
def test_coverage_is_cut_at_the_border(shift: tuple[float, float]) -> None:
    large = Grid.even(shape_zyx=(5, 28, 29), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(-10, -10, 0))
    points = np.array([[1.3, 1.1], [6.2, 2.2], [5.1, 6.4], [2.2, 5.3]]) + shift
    contour = roi(loop(points.tolist()))
    cut = coverage(contour, large).values[:, 10:18, 10:19]
    assert np.abs(coverage(contour, GRID).values - cut).max() < 1e-6


def test_coverage_against_many_points_in_each_pixel() -> None:
    grid = planning_grid(step_mm=6.0, pixel_mm=3.0)
    ragged = stack(grid, ball(23.0), corners=17)
    fine = Grid.even(
        shape_zyx=(grid.shape_zyx[0], grid.shape_zyx[1] * 9, grid.shape_zyx[2] * 9),
        spacing_xyz_mm=(3 / 9, 3 / 9, 6.0),
        origin_xyz_mm=grid.origin_xyz_mm - [4 / 3, 4 / 3, 0],
    )
    nz, ny, nx = grid.shape_zyx
    counted = rasterise(ragged, fine).values.reshape(nz, ny, 9, nx, 9).mean(axis=(2, 4))
    shares = coverage(ragged, grid).values
    assert np.abs(shares - counted).max() < 0.06
    assert shares.sum() == pytest.approx(counted.sum(), rel=2e-3)


# --- polygons


def test_areas_by_hand() -> None:
    outer = np.array([[0.0, 0], [10, 0], [10, 4], [0, 4]])
    hole = np.array([[1.0, 1], [3, 1], [3, 3], [1, 3]])
    assert polygon.signed_area(outer) == 40
    assert polygon.signed_area(outer[::-1]) == -40
    assert polygon.area([outer, hole]) == pytest.approx(36)
    assert polygon.area([outer, hole[::-1]]) == pytest.approx(36)
    assert polygon.area([]) == 0
    assert polygon.area([np.ones((3, 2))]) == 0
    bow_tie = np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]])
    assert polygon.area([bow_tie]) == pytest.approx(8, rel=2e-3)


def test_holes_and_islands_are_wound_in_turn() -> None:
    rings = [np.array([[-s, -s], [s, -s], [s, s], [-s, s]], float) for s in (1, 3, 2)]
    signs = [np.sign(polygon.signed_area(r)) for r in polygon.oriented(rings)]
    assert signs == [1, 1, -1]


def test_distance_to_the_nearest_edge() -> None:
    square_loop = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
    points = np.array([[5.0, 1], [-3, -4], [5, 5], [12, 5], [0, 0]])
    away = polygon.distance(points, [square_loop], limit=4.5)
    assert away == pytest.approx([1, 4.5, 4.5, 2, 0])


def test_signed_distance_to_a_square_by_hand() -> None:
    square_loop = np.array([[1.0, 1], [5, 1], [5, 5], [1, 5]])
    depth = polygon.signed_distance([square_loop], (7, 12), limit=3.0)
    assert depth[3].tolist() == [-1, 0, 1, 2, 1, 0, -1, -2, -3, -3, -3, -3]
    assert depth[0, 0] == pytest.approx(-np.sqrt(2))
    speck = polygon.signed_distance([square_loop / 20 + 3], (7, 7), limit=2.0)
    assert speck[3, 3] == pytest.approx(-np.hypot(0.05, 0.05))


def test_two_loops_cross_where_their_edges_do_and_islands_and_rings_do_not() -> None:
    square = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
    islands = [square + np.array((6 * i, 6 * j)) for i in range(8) for j in range(4)]
    assert not polygon.cross(islands)
    assert not polygon.cross([square, square / 2 + 1]), "a ring"
    assert polygon.cross([square, square + 2])
    assert not polygon.cross([square, square + np.array((4 - 1e-4, 1))], deeper_than=1e-3), (
        "by rounding"
    )


def test_only_loops_that_cross_cross() -> None:
    assert polygon.crosses_itself(np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]]))
    assert not polygon.crosses_itself(np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]]))
    keyhole = [[0.0, 0], [6, 0], [6, 6], [0, 6], [0, 0], [2, 2], [2, 4], [4, 4], [4, 2], [2, 2]]
    assert not polygon.crosses_itself(np.array(keyhole))


def test_a_crossing_among_many_points_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygon, "PAIRS_AT_A_TIME", 1000)
    angle = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    wavy = (50 + 3 * np.sin(9 * angle))[:, None] * np.column_stack((np.cos(angle), np.sin(angle)))
    assert not polygon.crosses_itself(wavy)
    swapped = wavy.copy()
    swapped[[1000, 1001]] = swapped[[1001, 1000]]
    assert polygon.crosses_itself(swapped)


def test_many_islands_are_measured_at_once() -> None:
    corners = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    islands = [corners + np.array([2 * x, 2 * y]) for x in range(40) for y in range(40)]
    assert polygon.area(islands) == pytest.approx(1600)
