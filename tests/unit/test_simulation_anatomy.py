from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from contourcast.imaging.errors import FrameMismatchError, InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.volume import Volume
from contourcast.simulation.anatomy import LEFT, RIGHT
from contourcast.simulation.phantom import phantom
from contourcast.simulation.real_ct import anatomy_of_ct
from support.virtual import TINY, tiny_thorax


def test_a_phantom_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    again = phantom(seed=3, spacing_xyz_mm=TINY.planning_spacing_xyz_mm)
    assert np.array_equal(again.ct.values, tiny_thorax(3).ct.values)
    other = tiny_thorax(4)
    assert other.grid.shape_zyx != again.grid.shape_zyx or not np.array_equal(
        other.ct.values, again.ct.values
    )


def test_a_phantom_has_two_lungs_of_adult_size_on_their_own_sides() -> None:
    thorax = tiny_thorax()
    for side, sign in ((RIGHT, -1), (LEFT, 1)):
        where = thorax.lungs == side
        litres = float((where * thorax.grid.voxel_cc).sum()) / 1000
        assert 0.9 < litres < 4.0
        x_mm = thorax.grid.world(np.argwhere(where)[:, ::-1])[:, 0].mean()
        assert sign * x_mm > 30
    assert -880 < np.median(thorax.ct.values[thorax.lungs > 0]) < -700
    assert thorax.ct.values[thorax.bone].mean() > 200


def test_organs_do_not_overlap_the_lungs() -> None:
    thorax = tiny_thorax()
    lung = thorax.lungs > 0
    assert not (thorax.between_lungs & lung).any()
    assert not (thorax.below_lungs & lung).any()
    assert thorax.between_lungs.any()
    assert thorax.below_lungs.any()
    assert not (thorax.mobile & thorax.bone).any()


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_lungs_of_a_ct_are_found_whatever_way_its_axes_run(flip: tuple[int, int, int]) -> None:
    thorax = tiny_thorax()
    x, y, z = flip
    values = thorax.ct.values[::z, ::y, ::x]
    old = thorax.grid
    last = np.array(old.shape_zyx)[::-1] - 1
    corner = [[last[a] if flip[a] < 0 else 0 for a in range(3)]]
    ct = Volume(
        values=values,
        grid=Grid.even(
            shape_zyx=old.shape_zyx,
            spacing_xyz_mm=old.spacing_xyz_mm,
            origin_xyz_mm=old.world(corner)[0],
            direction=np.diag(np.array(flip, float)),
        ),
        frame_of_reference="1.2",
    )
    found = anatomy_of_ct(ct, name="flipped", spacing_xyz_mm=(4.0, 4.0, 6.0))
    for side in (RIGHT, LEFT):
        true = thorax.grid.world(np.argwhere(thorax.lungs == side)[:, ::-1])
        seen = found.grid.world(np.argwhere(found.lungs == side)[:, ::-1])
        assert np.linalg.norm(true.mean(axis=0) - seen.mean(axis=0)) < 10
        assert 0.75 < len(seen) / len(true) < 1.25


def test_anatomies_of_one_name_found_on_different_things_are_told_apart() -> None:
    ct = tiny_thorax().ct
    triangle = ct.grid.center_xyz_mm + np.array([[0.0, 0, 0], [20, 0, 0], [0, 20, 0]])
    drawn = Roi(
        number=1,
        name="GTV",
        contours=(Contour(points_xyz_mm=triangle),),
        frame_of_reference=ct.frame_of_reference,
    )
    found = partial(anatomy_of_ct, name="one", spacing_xyz_mm=(4.0, 4.0, 6.0))
    others = [
        found(ct.with_values(ct.values + 1)),
        found(ct, graft_sides=(LEFT,)),
        found(ct, drawn=drawn),
    ]
    digests = {anatomy.digest for anatomy in (found(ct), *others)}
    assert len(digests) == 4
    assert found(ct).digest in digests


def test_a_tumour_drawn_on_thicker_slices_is_grown_whole() -> None:
    ct = tiny_thorax().ct
    middle = ct.grid.center_xyz_mm
    heights = np.arange(-16.0, 17.0, 8.0)
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    ball = [
        np.column_stack((r * np.cos(angle), r * np.sin(angle), np.full(80, z))) + middle
        for z, r in zip(heights, np.sqrt(18.0**2 - heights**2), strict=True)
    ]
    drawn = Roi(
        number=1,
        name="GTV",
        contours=tuple(Contour(points_xyz_mm=points) for points in ball),
        frame_of_reference=ct.frame_of_reference,
    )
    found = anatomy_of_ct(ct, name="x", spacing_xyz_mm=(3.0, 3.0, 3.0), drawn=drawn)
    assert found.drawn is not None
    slices = np.flatnonzero(found.drawn.any(axis=(1, 2)))
    assert (np.diff(slices) == 1).all(), "a comb"
    volume_cc = float((found.drawn * found.grid.voxel_cc).sum())
    assert volume_cc == pytest.approx(4 / 3 * np.pi * 1.8**3, rel=0.05)


def test_a_ct_without_lungs_is_refused() -> None:
    thorax = tiny_thorax()
    solid = thorax.ct.with_values(np.where(thorax.body, 40, -1000))
    with pytest.raises(InputError, match="two lungs"):
        anatomy_of_ct(solid, name="solid", spacing_xyz_mm=(4.0, 4.0, 6.0))


def test_a_ct_without_body_is_refused() -> None:
    air = tiny_thorax().ct.with_values(np.full(tiny_thorax().grid.shape_zyx, -1000.0))
    with pytest.raises(InputError, match="no body"):
        anatomy_of_ct(air, name="air", spacing_xyz_mm=(4.0, 4.0, 6.0))


def test_a_tumour_drawn_in_another_frame_is_refused() -> None:
    roi = Roi(number=1, name="GTV", contours=(), frame_of_reference="9.9")
    with pytest.raises(FrameMismatchError):
        anatomy_of_ct(tiny_thorax().ct, name="x", spacing_xyz_mm=(4.0, 4.0, 6.0), drawn=roi)
