"""What holds of every grid, transform and mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import Agreement, agreement, dice, iou
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.resample import resample
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import loops_volume_cc, trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume
from support.strategies import FRAME, OTHER_FRAME, grids, masks, rigid_transforms

some = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@some
@given(st.data())
def test_index_to_world_to_index_is_the_identity(data: st.DataObject) -> None:
    grid = data.draw(grids())
    part = st.floats(-5, 15)
    ijk = np.array(data.draw(st.lists(st.tuples(part, part, part), min_size=1, max_size=20)))
    assert np.abs(grid.index(grid.world(ijk)) - ijk).max() < 1e-9


@some
@given(st.data())
def test_there_and_back_is_the_identity(data: st.DataObject) -> None:
    a_from_b = data.draw(rigid_transforms())
    points = np.random.default_rng(0).uniform(-300, 300, (20, 3))
    assert np.abs(a_from_b.inverse().apply(a_from_b.apply(points)) - points).max() < 1e-9
    assert np.abs((a_from_b @ a_from_b.inverse()).matrix - np.eye(4)).max() < 1e-9


@some
@given(st.data())
def test_chaining_is_applying_one_after_the_other(data: st.DataObject) -> None:
    first = data.draw(rigid_transforms(source_frame="2.25.3", target_frame=OTHER_FRAME))
    second = data.draw(rigid_transforms())
    points = np.random.default_rng(0).uniform(-300, 300, (20, 3))
    chained = second @ first
    assert (chained.source_frame, chained.target_frame) == ("2.25.3", FRAME)
    assert np.abs(chained.apply(points) - second.apply(first.apply(points))).max() < 1e-9


@some
@given(st.data())
def test_a_shift_by_whole_voxels_loses_no_voxel(data: st.DataObject) -> None:
    grid = data.draw(grids(uneven=False))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=grid.shape_zyx)
    volume = Volume(values=values, grid=grid, frame_of_reference=FRAME)
    dk, dj, di = data.draw(st.tuples(*[st.integers(-2, 2)] * 3))
    shift = grid.world([[di, dj, dk]])[0] - grid.origin_xyz_mm
    moved = resample(
        volume,
        RigidTransform.about(
            np.zeros(3),
            rotation=np.eye(3),
            translation_xyz_mm=shift,
            source_frame=OTHER_FRAME,
            target_frame=FRAME,
        ),
        onto=grid,
    )
    padded = np.pad(volume.values, 2, constant_values=-1000.0)
    nz, ny, nx = grid.shape_zyx
    expected = padded[2 + dk : 2 + dk + nz, 2 + dj : 2 + dj + ny, 2 + di : 2 + di + nx]
    assert np.abs(moved.values - expected).max() < 1e-4


@some
@given(st.data())
def test_a_mask_traced_and_rasterised_is_the_mask(data: st.DataObject) -> None:
    grid = data.draw(grids())
    mask = data.draw(masks(grid))
    roi = Roi(number=1, name="GTV", contours=trace(mask), frame_of_reference=FRAME)
    assert (rasterise(roi, grid).values == mask.values).all()


@some
@given(st.data())
def test_overlap_is_symmetric_and_bounded(data: st.DataObject) -> None:
    grid = data.draw(grids())
    a, b = data.draw(masks(grid)), data.draw(masks(grid))
    assert dice(a, b) == dice(b, a)
    assert iou(a, b) == iou(b, a)
    assert 0 <= iou(a, b) <= dice(a, b) <= 1
    assert dice(a, b) == pytest.approx(2 * iou(a, b) / (1 + iou(a, b)))


@some
@given(st.data())
def test_distances_are_symmetric_and_zero_on_itself(data: st.DataObject) -> None:
    grid = data.draw(grids())
    a, b = data.draw(masks(grid)), data.draw(masks(grid))
    there, back = agreement(a, b), agreement(b, a)
    for name in ("hd95_mm", "hd95_pooled_mm", "msd_mm", "surface_dice_2mm"):
        assert getattr(there, name) == pytest.approx(getattr(back, name)), name
    same = agreement(a, a)
    assert (same.dice, same.hd95_mm, same.msd_mm) == (1, 0, 0)
    assert same.surface_dice_1mm == 1
    assert same.added_path_length_mm == 0


@some
@given(st.data())
def test_agreement_is_the_same_when_the_grid_s_axes_are_flipped(data: st.DataObject) -> None:
    grid = data.draw(grids(uneven=False))
    a, b = data.draw(masks(grid)), data.draw(masks(grid))
    axes = data.draw(st.sets(st.sampled_from([0, 1, 2]), min_size=1))
    plain, flipped = agreement(a, b), agreement(_flipped(a, axes), _flipped(b, axes))
    for name, value in plain.as_dict().items():
        assert flipped.as_dict()[name] == (
            pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
        ), name


@some
@given(st.data())
def test_overlap_is_the_same_when_the_axes_of_an_uneven_grid_are_flipped(
    data: st.DataObject,
) -> None:
    grid = data.draw(grids())
    a, b = data.draw(masks(grid)), data.draw(masks(grid))
    assert dice(_flipped(a, {0, 1}), _flipped(b, {0, 1})) == pytest.approx(dice(a, b))


@some
@given(st.data())
def test_contours_are_the_same_when_the_grid_s_axes_are_flipped(data: st.DataObject) -> None:
    grid = data.draw(grids())
    mask = data.draw(masks(grid))
    axes = data.draw(st.sets(st.sampled_from([0, 1, 2]), min_size=1))
    plain, flipped = trace(mask), trace(_flipped(mask, axes))
    assert loops_volume_cc(flipped, _flipped(mask, axes).grid) == pytest.approx(
        loops_volume_cc(plain, grid), rel=5e-3
    )
    roi = Roi(number=1, name="GTV", contours=flipped, frame_of_reference=FRAME)
    assert (rasterise(roi, grid).values == mask.values).all()


def _flipped(mask: Mask, axes_zyx: set[int]) -> Mask:
    """The same voxels at the same places, counted from the other end of some axes."""
    grid = mask.grid
    first = [size - 1 if axis in axes_zyx else 0 for axis, size in enumerate(grid.shape_zyx)]
    signs = np.array([-1.0 if axis in axes_zyx else 1.0 for axis in (2, 1, 0)])
    offsets = grid.offsets_z_mm
    if 0 in axes_zyx:
        offsets = (offsets[-1] - offsets)[::-1]
    turned = Grid(
        shape_zyx=grid.shape_zyx,
        spacing_xy_mm=grid.spacing_xy_mm,
        origin_xyz_mm=grid.world([first[::-1]])[0],
        direction=grid.direction * signs,
        offsets_z_mm=offsets,
    )
    return replace(mask, values=np.flip(mask.values, tuple(axes_zyx)), grid=turned)


def test_the_flip_of_these_tests_keeps_places() -> None:
    grid = Grid.even(shape_zyx=(3, 4, 5), spacing_xyz_mm=(1, 2, 3), origin_xyz_mm=(7, 8, 9))
    values = np.zeros(grid.shape_zyx, bool)
    values[0, 1, 4] = True
    mask = Mask(values=values, grid=grid, frame_of_reference=FRAME)
    one, other = mask.centroid_xyz_mm(), _flipped(mask, {0, 2}).centroid_xyz_mm()
    assert one is not None
    assert other is not None
    assert np.allclose(one, other)
    assert isinstance(agreement(mask, mask), Agreement)
