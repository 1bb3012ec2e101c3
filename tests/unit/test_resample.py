from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging import resample as module
from contourcast.imaging.errors import FrameMismatchError
from contourcast.imaging.grid import Grid
from contourcast.imaging.resample import resample
from contourcast.imaging.transform import DeformableTransform, Displacement, RigidTransform
from contourcast.imaging.volume import Volume
from support.data import peer_module
from support.strategies import FEET_FIRST, PRONE, SUPINE

OBLIQUE = Rotation.from_euler("ZYX", [20, -10, 15], degrees=True).as_matrix()
FIXED = Grid.even(
    shape_zyx=(15, 40, 44), spacing_xyz_mm=(1.7, 1.9, 4.1), origin_xyz_mm=(-38, -40, -30)
)


def noise(grid: Grid, observed: np.ndarray | None = None) -> Volume:
    values = np.random.default_rng(0).uniform(-1000, 1500, grid.shape_zyx)
    return Volume(values=values, grid=grid, frame_of_reference="planning", observed=observed)


def moving_grid(direction: np.ndarray) -> Grid:
    return Grid.even(
        shape_zyx=(20, 50, 40),
        spacing_xyz_mm=(1.6, 1.3, 3.0),
        origin_xyz_mm=direction @ np.array([-30.0, -32.0, -28.0]),
        direction=direction,
    )


def motion() -> RigidTransform:
    return RigidTransform.about(
        np.array([1.0, 2.0, 3.0]),
        rotation=Rotation.from_rotvec([0.05, -0.03, 0.1]).as_matrix(),
        translation_xyz_mm=np.array([4.0, -3.0, 6.0]),
        source_frame="cbct",
        target_frame="planning",
    )


def still() -> RigidTransform:
    return RigidTransform.identity(source_frame="cbct", target_frame="planning")


def image(sitk: Any, values: np.ndarray, grid: Grid) -> Any:
    made = sitk.GetImageFromArray(values.astype(np.float32))
    made.SetSpacing(grid.spacing_xyz_mm)
    made.SetOrigin(grid.origin_xyz_mm.tolist())
    made.SetDirection(grid.direction.ravel().tolist())
    return made


@pytest.mark.peer
@pytest.mark.parametrize("direction", [SUPINE, PRONE, FEET_FIRST, OBLIQUE])
def test_it_is_what_simpleitk_gives(direction: np.ndarray) -> None:
    sitk = peer_module("SimpleITK")
    moving = noise(moving_grid(direction))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(motion().matrix[:3, :3].ravel().tolist())
    affine.SetTranslation(motion().matrix[:3, 3].tolist())
    scan, onto = (
        image(sitk, moving.values, moving.grid),
        image(sitk, np.zeros(FIXED.shape_zyx), FIXED),
    )
    theirs = sitk.GetArrayFromImage(sitk.Resample(scan, onto, affine, sitk.sitkLinear, -1000.0))
    ours = resample(moving, motion(), onto=FIXED)
    assert ours.observed is not None
    assert 0.2 < ours.observed.mean() < 0.95
    assert np.abs(ours.values - theirs)[ours.observed].max() <= 0.03
    assert (ours.values[~ours.observed] == -1000).all()


def test_the_result_lives_in_the_fixed_frame() -> None:
    moved = resample(noise(moving_grid(SUPINE)), motion(), onto=FIXED)
    assert moved.frame_of_reference == "cbct"
    assert moved.grid is FIXED
    assert moved.source is None


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    moving = noise(moving_grid(OBLIQUE))
    whole = resample(moving, motion(), onto=FIXED)
    for points in (1, 1000, 5000):
        monkeypatch.setattr(module, "POINTS_AT_A_TIME", points)
        assert (resample(moving, motion(), onto=FIXED).values == whole.values).all()


def test_uneven_slices_are_taken_where_they_are() -> None:
    uneven = Grid(
        shape_zyx=(4, 5, 5),
        spacing_xy_mm=(1.0, 1.0),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=np.array([0.0, 1.0, 5.0, 7.0]),
    )
    values = np.broadcast_to(uneven.offsets_z_mm[:, None, None] * 10, uneven.shape_zyx)
    ramp = Volume(values=values, grid=uneven, frame_of_reference="planning")
    even = Grid.even(shape_zyx=(8, 5, 5), spacing_xyz_mm=(1, 1, 1), origin_xyz_mm=(0, 0, 0))
    for onto in (even, uneven):
        heights = onto.centers()[:, 2].reshape(onto.shape_zyx)
        assert resample(ramp, still(), onto=onto).values == pytest.approx(heights * 10, abs=1e-4)


def test_a_deformation_is_followed() -> None:
    grid = moving_grid(SUPINE)
    x = grid.centers()[:, 0].reshape(grid.shape_zyx)
    ramp = Volume(values=x, grid=grid, frame_of_reference="planning")
    field = np.zeros((3, 3, 3, 3))
    field[..., 0] = 2.5
    wide = Grid.even(
        shape_zyx=(3, 3, 3), spacing_xyz_mm=(80, 80, 80), origin_xyz_mm=(-80, -80, -80)
    )
    shift = DeformableTransform(
        rigid=still(),
        displacement=Displacement(values_xyz_mm=field, grid=wide, frame_of_reference="cbct"),
    )
    moved = resample(ramp, shift, onto=grid)
    inner = (slice(None), slice(None), slice(None, -2))
    assert moved.values[inner] == pytest.approx(x[inner] + 2.5, abs=1e-3)


def test_half_a_voxel_beyond_the_outermost_centre_is_inside_and_more_is_not() -> None:
    grid = Grid.even(shape_zyx=(2, 2, 2), spacing_xyz_mm=(2, 2, 2), origin_xyz_mm=(0, 0, 0))
    flat = Volume(values=np.full((2, 2, 2), 7.0), grid=grid, frame_of_reference="planning")
    line = Grid.even(shape_zyx=(1, 1, 5), spacing_xyz_mm=(0.6, 1, 1), origin_xyz_mm=(-1.5, 0, 0))
    moved = resample(flat, still(), onto=line, outside=-5.0)
    assert moved.values.ravel().tolist() == [-5, 7, 7, 7, 7]
    assert moved.observed is not None
    assert moved.observed.ravel().tolist() == [False, True, True, True, True]


def test_what_was_declared_padding_is_not_observed_afterwards() -> None:
    grid = moving_grid(SUPINE)
    observed = np.ones(grid.shape_zyx, bool)
    observed[5:] = False
    moved = resample(noise(grid, observed), still(), onto=grid)
    assert moved.observed is not None
    assert (moved.observed == observed).all()


def test_a_map_to_another_frame_is_refused() -> None:
    with pytest.raises(FrameMismatchError):
        resample(noise(moving_grid(SUPINE)), motion().inverse(), onto=FIXED)
