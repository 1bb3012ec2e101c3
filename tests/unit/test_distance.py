from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.distance import (
    MOST_VOXELS,
    carry,
    distance_map,
    drawn_volume_cc,
    filled,
    own_grid,
)
from contourcast.imaging.errors import FrameMismatchError, GeometryError, InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.keyhole import keyhole, rings
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import coverage, rasterise
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.trace import loops_volume_cc
from contourcast.imaging.transform import DeformableTransform, Displacement, RigidTransform
from support.phantoms import (
    FRAME,
    Radii,
    ball,
    circle_area_mm2,
    planning_grid,
    stack,
    tube,
)
from support.strategies import FEET_FIRST, PRONE

CBCT_FRAME = "2.25.2"
CBCT = Grid.even(
    shape_zyx=(75, 150, 150), spacing_xyz_mm=(1.0, 1.0, 2.0), origin_xyz_mm=(-75.3, -74.6, -74.2)
)


def motion(seed: int, *, degrees: float = 6.0, mm: float = 12.0) -> RigidTransform:
    rng = np.random.default_rng(seed)
    return RigidTransform.about(
        np.zeros(3),
        rotation=Rotation.from_rotvec(np.radians(rng.uniform(-degrees, degrees, 3))).as_matrix(),
        translation_xyz_mm=rng.uniform(-mm, mm, 3),
        source_frame=CBCT_FRAME,
        target_frame=FRAME,
    )


def still() -> RigidTransform:
    return RigidTransform.identity(source_frame=CBCT_FRAME, target_frame=FRAME)


def centroid_of(roi: Roi, grid: Grid) -> np.ndarray:
    """By exact area, slice by slice."""
    weights = (coverage(roi, grid).values * grid.voxel_cc).ravel()
    centroid: np.ndarray = weights @ grid.centers() / weights.sum()
    return centroid


SHAPES: dict[str, tuple[Radii, float]] = {
    "65 cc ball": (ball(25.0), 0.01),
    "39 cc ring": (tube(20.0, 9.0, 40.0), 0.01),
    "72 cc cylinder": (tube(20.0, 0.0, 60.0), 0.01),
    "5 cc ball": (ball(10.7), 0.01),
    "2 cc ball": (ball(8.0), 0.03),
    "1 cc ball": (ball(6.3), 0.03),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rigid_motion_keeps_volume_and_place(shape: str) -> None:
    radii, allowed = SHAPES[shape]
    grid = planning_grid()
    roi = stack(grid, radii)
    distance = distance_map(roi, grid=grid)
    drawn_cc, drawn_at = loops_volume_cc(roi.loops, grid), centroid_of(roi, grid)
    volumes, misses = [], []
    for seed in range(6):
        planning_from_cbct = motion(seed)
        carried = carry(distance, planning_from_cbct, onto=CBCT).mask()
        at = carried.centroid_xyz_mm()
        assert at is not None
        volumes.append(carried.volume_cc / drawn_cc - 1)
        misses.append(at - planning_from_cbct.inverse().apply(drawn_at[None])[0])
    assert np.abs(volumes).max() <= allowed, f"volume off by {volumes}"
    assert np.linalg.norm(misses, axis=1).max() < 0.2, "centroid off by more than 0.2 mm"


@pytest.mark.parametrize("shape", SHAPES)
def test_lying_still_changes_nothing_on_the_contoured_planes(shape: str) -> None:
    grid = planning_grid()
    roi = stack(grid, SHAPES[shape][0])
    carried = carry(distance_map(roi, grid=grid), still(), onto=grid)
    drawn = rasterise(roi, grid)
    assert (carried.frame_of_reference, carried.name) == (CBCT_FRAME, "GTV")
    same = drawn.with_values(carried.mask().values)
    assert dice(same, drawn) >= 0.99


def test_there_and_back_again_five_times_loses_nothing() -> None:
    grid = planning_grid()
    roi = stack(grid, ball(12.0))
    distance = distance_map(roi, grid=grid)
    chain, step = still(), motion(3)
    for _ in range(5):
        onward = RigidTransform(matrix=step.matrix, source_frame=FRAME, target_frame=FRAME)
        chain = onward.inverse() @ (onward @ chain)
    carried = carry(distance, chain, onto=CBCT).mask()
    assert carried.volume_cc == pytest.approx(loops_volume_cc(roi.loops, grid), rel=0.01)


def test_a_hole_survives() -> None:
    grid = planning_grid()
    distance = distance_map(stack(grid, tube(20.0, 4.0, 40.0)), grid=grid)
    planning_from_cbct = motion(1)
    carried = carry(distance, planning_from_cbct, onto=CBCT).mask()
    axis = planning_from_cbct.inverse().apply(np.array([[3.3, -7.1, z] for z in (-12.0, 0, 12)]))
    i, j, k = np.rint(CBCT.index(axis)).astype(int).T
    assert not carried.values[k, j, i].any()
    rim = planning_from_cbct.inverse().apply(np.array([[3.3 + 12, -7.1, 0.0], [3.3, -19.0, 5]]))
    i, j, k = np.rint(CBCT.index(rim)).astype(int).T
    assert carried.values[k, j, i].all()


def test_a_hole_that_is_cut_open_leaves_no_seam() -> None:
    grid = planning_grid()
    roi = stack(grid, tube(20.0, 9.0, 40.0))
    by_height: dict[float, list[np.ndarray]] = {}
    for loop in roi.loops:
        by_height.setdefault(loop.points_xyz_mm[0, 2], []).append(loop.points_xyz_mm[:, :2])
    cut_open = replace(
        roi,
        contours=tuple(
            Contour(points_xyz_mm=np.pad(keyhole(ring), ((0, 0), (0, 1)), constant_values=z))
            for z, loops in by_height.items()
            for ring in rings(loops)
        ),
    )
    assert 2 * len(cut_open.loops) == len(roi.loops)
    as_drawn, as_cut = (
        carry(distance_map(r, grid=grid), motion(2), onto=CBCT) for r in (roi, cut_open)
    )
    assert dice(as_cut.mask(), as_drawn.mask()) >= 0.9999
    assert np.abs(as_cut.values - as_drawn.values).max() < 0.1


def test_values_are_millimetres_positive_inside() -> None:
    grid = planning_grid()
    center, radius = np.array([3.3, -7.1, 0.7]), 20.0
    distance = distance_map(stack(grid, ball(radius), corners=360), grid=grid)
    points = distance.grid.centers()
    expected = radius - np.linalg.norm(points - center, axis=1)
    found = distance.values_mm.ravel()
    # Near the poles the slices do not say where the ball ends; 45 degrees about them left out.
    beside = np.abs(points - center)[:, 2] < np.linalg.norm(points - center, axis=1) * 0.7
    near = beside & (np.abs(expected) < 8)
    error = found[near] - expected[near]
    assert abs(error.mean()) < 0.06, f"{error.mean():.3f} mm"
    assert np.abs(error).max() < 0.3, f"{np.abs(error).max():.3f} mm"


def test_probability_is_the_sigmoid_of_the_distance() -> None:
    grid = planning_grid()
    distance = distance_map(stack(grid, ball(20.0), corners=360), grid=grid)
    region = carry(distance, still(), onto=grid)
    center = np.array([3.3, -7.1, 0.7])
    i, j, k = np.rint(grid.index(center[None])[0]).astype(int)
    row = region.values[k, j, :]
    x = grid.world(
        np.column_stack((np.arange(len(row)), np.full(len(row), j), np.full(len(row), k)))
    )
    depth = 20.0 - np.linalg.norm(x - center, axis=1)
    near = np.abs(depth) < 5
    assert np.abs(row[near] - 1 / (1 + np.exp(-depth[near]))).max() < 0.03
    assert row[i] == pytest.approx(1.0, abs=1e-3)


def test_far_away_there_is_exactly_nothing() -> None:
    grid = planning_grid()
    distance = distance_map(stack(grid, ball(6.3)), grid=grid)
    region = carry(distance, still(), onto=CBCT)
    assert region.values[0, 0, 0] == 0
    assert (region.values > 0).mean() < 0.1
    away = RigidTransform.about(
        np.zeros(3),
        rotation=np.eye(3),
        translation_xyz_mm=np.array([500.0, 0, 0]),
        source_frame=CBCT_FRAME,
        target_frame=FRAME,
    )
    assert not carry(distance, away, onto=CBCT).values.any()


def test_a_region_cut_by_the_scan_s_border_is_cut_and_no_more() -> None:
    grid = planning_grid()
    distance = distance_map(stack(grid, ball(20.0)), grid=grid)
    whole = carry(distance, still(), onto=CBCT).values
    part = carry(distance, still(), onto=CBCT.crop((30, 60, 70), (50, 90, 80))).values
    assert np.abs(part - whole[30:50, 60:90, 70:80]).max() < 1e-6


@pytest.mark.parametrize("direction", [PRONE, FEET_FIRST], ids=["prone", "feet first"])
def test_the_patient_s_position_does_not_matter(direction: np.ndarray) -> None:
    plain = planning_grid()
    turned = Grid.even(
        shape_zyx=plain.shape_zyx,
        spacing_xyz_mm=plain.spacing_xyz_mm,
        origin_xyz_mm=direction @ (plain.origin_xyz_mm * [1, 1, 1]),
        direction=direction,
    )
    here = stack(plain, ball(14.0))
    there = stack(turned, ball(14.0))
    turn = RigidTransform.about(
        np.zeros(3),
        rotation=direction,
        translation_xyz_mm=np.zeros(3),
        source_frame=CBCT_FRAME,
        target_frame=FRAME,
    )
    one = carry(distance_map(here, grid=plain), still(), onto=CBCT).values
    other = carry(distance_map(there, grid=turned), turn, onto=CBCT).values
    assert np.abs(one - other).max() < 1e-3


def test_slices_contoured_every_other_time_are_filled_between() -> None:
    grid = planning_grid()
    sparse = stack(grid, tube(15.0, 0.0, 60.0), every=2)
    carried = carry(distance_map(sparse, grid=grid), still(), onto=grid).mask()
    filled = np.flatnonzero(carried.values.any(axis=(1, 2)))
    assert (np.diff(filled) == 1).all()
    area = 60 * np.sin(np.pi / 60) * 225
    assert carried.volume_cc == pytest.approx(len(sparse.loops) * 6 * area / 1000, rel=0.05)


def test_a_gap_in_the_stack_stays_a_gap() -> None:
    grid = planning_grid()
    whole = stack(grid, tube(15.0, 0.0, 60.0))
    kept = [c for c in whole.contours if not -8 < c.points_xyz_mm[0, 2] < 2]
    gap = Roi(number=1, name="GTV", contours=tuple(kept), frame_of_reference=FRAME)
    carried = carry(distance_map(gap, grid=grid), still(), onto=grid).mask().values
    assert (carried.any(axis=(1, 2)) == rasterise(gap, grid).values.any(axis=(1, 2))).all()


ROUGH = Grid.even(shape_zyx=(60, 60, 60), spacing_xyz_mm=(2, 2, 2), origin_xyz_mm=(-60, -60, -60))


def heights_of(roi: Roi, *kept_mm: float) -> Roi:
    kept = [c for c in roi.contours if c.points_xyz_mm[0, 2].round(3) in kept_mm]
    assert len(kept) == len(kept_mm)
    return replace(roi, contours=tuple(kept))


def empty_slices(roi: Roi) -> list[int]:
    """Slices without the carried region, from its first to its last."""
    slices = carry(distance_map(roi, grid=ROUGH), still(), onto=ROUGH).mask().values.any((1, 2))
    here = np.flatnonzero(slices)
    return sorted(set(range(here[0], here[-1])) - set(here.tolist()))


@pytest.mark.parametrize(
    "heights_mm",
    [
        (-20, -16, -12, -8, -6, -4, -2, 0, 2, 4, 6, 8, 12, 16, 20),
        (-16, -10, -4, -2, 0, 2, 4, 6, 8, 10),
        (-20, -16, -14, -12, -10, -8),
        (-20, -10, 0, *range(2, 30, 2)),
    ],
    ids=["every second at both ends", "every third at one", "the last but one forgotten", "fifth"],
)
def test_contours_are_filled_between_where_only_the_ends_are_drawn_sparsely(
    heights_mm: tuple[int, ...],
) -> None:
    whole = stack(ROUGH, lambda z: [20.0 + z / 5], center_xyz_mm=(0.0, 3.0, 0.0))
    roi = heights_of(whole, *heights_mm)
    assert empty_slices(roi) == []
    ends = [heights_mm[0], *heights_mm, heights_mm[-1]]
    thickness_mm = (np.diff(ends)[:-1] + np.diff(ends)[1:]) / 2
    thickness_mm[[0, -1]] += np.diff(heights_mm)[[0, -1]] / 2
    areas = [circle_area_mm2(20.0 + z / 5) for z in heights_mm]
    drawn_cc = float(thickness_mm @ areas) / 1000
    carried = carry(distance_map(roi, grid=ROUGH), still(), onto=CBCT).mask()
    assert carried.volume_cc == pytest.approx(drawn_cc, rel=0.02)
    assert drawn_volume_cc(roi, grid=ROUGH) == pytest.approx(drawn_cc, rel=1e-6)


@pytest.mark.parametrize(
    ("heights_mm", "empty_mm"),
    [
        ((-20, -18, -16, 0, 2, 4, 20, 22, 24), (-14, -2, 6, 18)),
        ((-20, -18, -16, -2, 0, 2, 4, 6, 18), (-14, -4, 8, 16)),
        ((-20, -18, -16, -14, -10, -8, -6, -4), (-12, -12)),
    ],
    ids=["three lesions", "a small one apart", "a plane forgotten in the middle"],
)
def test_true_gaps_stay_gaps(heights_mm: tuple[int, ...], empty_mm: tuple[int, ...]) -> None:
    whole = stack(ROUGH, lambda z: [20.0], center_xyz_mm=(0.0, 3.0, 0.0))
    empty = empty_slices(heights_of(whole, *heights_mm))
    slices = [
        n
        for a, b in zip(empty_mm[::2], empty_mm[1::2], strict=True)
        for n in range((a + 60) // 2, (b + 60) // 2 + 1)
    ]
    # A dome reaches up to a whole step beyond its last plane.
    assert set(empty) <= set(slices)
    assert len(empty) >= max(1, len(slices) - 2 * len(empty_mm))


def test_a_lesion_on_a_single_plane_beside_another_is_one_of_its_own() -> None:
    large = heights_of(stack(ROUGH, ball(20.0), center_xyz_mm=(-30, 0, 0)), *range(-10, 11, 2))
    small = heights_of(stack(ROUGH, lambda z: [5.0], center_xyz_mm=(30, 0, 0)), 16)
    both = replace(large, contours=(*large.contours, *small.contours))
    assert empty_slices(both)


def test_a_roi_where_it_was_drawn_is_whole() -> None:
    grid = planning_grid()
    sparse = stack(grid, tube(15.0, 0.0, 60.0), every=2)
    mask = filled(sparse, grid=grid, onto=grid)
    assert (mask.frame_of_reference, mask.grid) == (FRAME, grid)
    assert mask.volume_cc == pytest.approx(drawn_volume_cc(sparse, grid=grid), rel=0.05)
    assert mask.volume_cc > 1.9 * rasterise(sparse, grid).volume_cc


def test_what_encloses_nothing_has_no_volume() -> None:
    nothing = Roi(number=7, name="GTV", contours=(), frame_of_reference=FRAME)
    assert drawn_volume_cc(nothing, grid=planning_grid()) == 0


def test_one_contour_alone_is_a_slice_thick() -> None:
    grid = planning_grid()
    whole = stack(grid, tube(15.0, 0.0, 60.0))
    alone = Roi(number=1, name="GTV", contours=whole.contours[5:6], frame_of_reference=FRAME)
    fine = Grid.even(
        shape_zyx=(20, 100, 100), spacing_xyz_mm=(0.5, 0.5, 0.5), origin_xyz_mm=(-22, -32, -17)
    )
    carried = carry(distance_map(alone, grid=grid), still(), onto=fine).mask()
    assert carried.volume_cc == pytest.approx(3 * 706.5 / 1000, rel=0.03)


def test_a_last_contour_that_is_a_sliver_does_no_harm() -> None:
    grid = planning_grid()
    roi = stack(grid, ball(15.0))
    top = max(roi.loops, key=lambda loop: float(loop.points_xyz_mm[0, 2]))
    sliver = top.points_xyz_mm.copy()
    sliver[:, 1] = sliver[0, 1] + 1e-3 * np.sin(np.arange(len(sliver)))
    sliver[:, 2] = grid.world([[0, 0, grid.index(top.points_xyz_mm)[0, 2] + 1]])[0, 2]
    with_sliver = replace(roi, contours=(*roi.contours, Contour(points_xyz_mm=sliver)))
    whole, less = (
        carry(distance_map(r, grid=grid), still(), onto=CBCT).mask().volume_cc
        for r in (with_sliver, roi)
    )
    assert whole == pytest.approx(less, rel=0.1)


def test_uneven_slices_keep_their_volume() -> None:
    offsets = np.cumsum([0, *[3.0, 3, 2, 4, 3, 2.5, 3.5, 3, 3, 3, 2, 4] * 2])
    grid = Grid(
        shape_zyx=(len(offsets), 120, 120),
        spacing_xy_mm=(0.9, 1.1),
        origin_xyz_mm=np.array([-54.0, -66.0, -36.0]),
        offsets_z_mm=offsets,
    )
    roi = stack(grid, ball(18.0))
    carried = carry(distance_map(roi, grid=grid), motion(2), onto=CBCT).mask()
    assert carried.volume_cc == pytest.approx(loops_volume_cc(roi.loops, grid), rel=0.01)


def test_two_branches_stay_two() -> None:
    grid = planning_grid()
    left = stack(grid, tube(6.0, 0, 40), center_xyz_mm=(-14, 0, 0))
    right = stack(grid, tube(6.0, 0, 20), center_xyz_mm=(14, 0, 10))
    both = Roi(
        number=1,
        name="GTV",
        contours=(*left.contours, *right.contours),
        frame_of_reference=FRAME,
    )
    carried = carry(distance_map(both, grid=grid), motion(4), onto=CBCT).mask()
    assert carried.volume_cc == pytest.approx(loops_volume_cc(both.loops, grid), rel=0.02)


def test_a_deformation_is_followed() -> None:
    grid = planning_grid()
    roi = stack(grid, ball(18.0))
    coarse = Grid.even(
        shape_zyx=(20, 20, 20), spacing_xyz_mm=(10, 10, 10), origin_xyz_mm=(-95, -95, -95)
    )
    # planning = 0.9 cbct: the region grows by 1 / 0.9 each way.
    field = (-0.1 * coarse.centers()).reshape(20, 20, 20, 3)
    planning_from_cbct = DeformableTransform(
        rigid=still(),
        displacement=Displacement(values_xyz_mm=field, grid=coarse, frame_of_reference=CBCT_FRAME),
    )
    carried = carry(distance_map(roi, grid=grid), planning_from_cbct, onto=CBCT).mask()
    expected = loops_volume_cc(roi.loops, grid) / 0.9**3
    assert carried.volume_cc == pytest.approx(expected, rel=0.01)
    at = carried.centroid_xyz_mm()
    assert at is not None
    assert np.linalg.norm(at - centroid_of(roi, grid) / 0.9) < 0.2


def test_a_large_region_does_not_ask_for_gigabytes() -> None:
    grid = Grid.even(
        shape_zyx=(60, 70, 70), spacing_xyz_mm=(4, 4, 5), origin_xyz_mm=(-140, -140, -150)
    )
    distance = distance_map(stack(grid, ball(110.0)), grid=grid)
    assert distance.values_mm.size < 1.5 * MOST_VOXELS
    carried = carry(distance, still(), onto=grid).mask()
    assert carried.volume_cc == pytest.approx(4 / 3 * np.pi * 11**3, rel=0.01)


def test_a_map_to_another_frame_is_refused() -> None:
    grid = planning_grid()
    distance = distance_map(stack(grid, ball(6.3)), grid=grid)
    with pytest.raises(FrameMismatchError):
        carry(distance, still().inverse(), onto=CBCT)


def test_a_roi_without_volume_is_refused() -> None:
    nothing = Roi(number=7, name="GTV", contours=(), frame_of_reference=FRAME)
    with pytest.raises(InputError, match="ROI #7 encloses no volume"):
        distance_map(nothing, grid=planning_grid())


def test_one_slice_alone_gives_no_thickness() -> None:
    single = Grid.even(shape_zyx=(1, 50, 50), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 0))
    square = Contour(points_xyz_mm=np.array([[5.0, 5, 0], [9, 5, 0], [9, 9, 0], [5, 9, 0]]))
    roi = Roi(number=1, name="GTV", contours=(square,), frame_of_reference=FRAME)
    with pytest.raises(GeometryError, match="no thickness"):
        distance_map(roi, grid=single)


def test_a_stack_whose_scan_is_not_at_hand_has_a_grid_of_its_own() -> None:
    grid = planning_grid()
    roi = stack(grid, ball(14.0))
    own = own_grid(roi)
    assert own.shape_zyx[0] == len(roi.loops)
    one = carry(distance_map(roi, grid=grid), still(), onto=CBCT).mask()
    other = carry(distance_map(roi, grid=own), still(), onto=CBCT).mask()
    assert dice(other, one) > 0.995


@pytest.mark.parametrize("tilt", [0.0, 90.0])
def test_a_single_contour_or_a_sagittal_one_has_no_grid_of_its_own(tilt: float) -> None:
    whole = stack(planning_grid(), ball(14.0)).contours[: 1 if tilt == 0 else None]
    turn = Rotation.from_euler("Y", tilt, degrees=True).as_matrix()
    contours = tuple(Contour(points_xyz_mm=c.points_xyz_mm @ turn.T) for c in whole)
    roi = Roi(number=1, name="GTV", contours=contours, frame_of_reference=FRAME)
    with pytest.raises(InputError, match="not a stack of axial contours"):
        own_grid(roi)
