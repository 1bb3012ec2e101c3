from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.errors import FrameMismatchError, GeometryError, GridMismatchError
from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import DeformableTransform, Displacement, RigidTransform

TURN = Rotation.from_euler("ZYX", [30, -20, 10], degrees=True).as_matrix()


def about_a_point() -> RigidTransform:
    return RigidTransform.about(
        np.array([10.0, 20.0, 30.0]),
        rotation=TURN,
        translation_xyz_mm=np.array([1.0, 2.0, 3.0]),
        source_frame="cbct",
        target_frame="planning",
    )


def test_the_centre_moves_by_the_translation_alone() -> None:
    planning_from_cbct = about_a_point()
    assert np.allclose(planning_from_cbct.apply(np.array([[10.0, 20, 30]])), [[11, 22, 33]])
    assert np.allclose(planning_from_cbct.translation_at(np.array([10.0, 20, 30])), [1, 2, 3])


def test_angles_are_for_rz_ry_rx() -> None:
    assert about_a_point().euler_xyz_deg == pytest.approx((10, -20, 30))
    assert RigidTransform.identity(source_frame="a", target_frame="b").angle_deg == 0.0
    x_alone = RigidTransform.about(
        np.zeros(3),
        rotation=Rotation.from_euler("X", 7, degrees=True).as_matrix(),
        translation_xyz_mm=np.zeros(3),
        source_frame="a",
        target_frame="b",
    )
    assert x_alone.angle_deg == pytest.approx(7)
    assert x_alone.apply(np.array([[0.0, 1, 0]]))[0, 2] > 0  # y turns towards z


def test_the_inverse_swaps_the_frames() -> None:
    back = about_a_point().inverse()
    assert (back.source_frame, back.target_frame) == ("planning", "cbct")


@pytest.mark.parametrize("frames", [("x", "cbct"), ("planning", "x"), ("", "")])
def test_transforms_meet_in_one_frame_or_not_at_all(frames: tuple[str, str]) -> None:
    first = RigidTransform.identity(source_frame="mr", target_frame=frames[1])
    second = RigidTransform.identity(source_frame=frames[0], target_frame="z")
    with pytest.raises(FrameMismatchError, match=r"\(0020,0052\)"):
        second @ first


def test_matrices_of_few_digits_can_be_chained_for_ever() -> None:
    rounded = np.round(about_a_point().matrix, 5)
    step = RigidTransform(matrix=rounded, source_frame="a", target_frame="a")
    chain = step
    for _ in range(20):
        chain = chain @ step
    rotation = chain.matrix[:3, :3]
    assert np.abs(rotation.T @ rotation - np.eye(3)).max() < 1e-12
    far = np.array([[300.0, -300, 300]])
    assert np.abs(step.inverse().apply(step.apply(far)) - far).max() < 1e-9


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        np.arange(16.0),
        np.diag([1.0, 1.0, -1.0, 1.0]),
        np.diag([1.03, 1.03, 1.03, 1.0]),
        np.diag([1.0, 1.0, 1.0, 2.0]),
        np.full((4, 4), np.nan),
        np.eye(4) + np.eye(4, k=1) * 0.01,
    ],
)
def test_scaling_shear_mirror_and_nonsense_are_refused(matrix: np.ndarray) -> None:
    with pytest.raises(GeometryError, match="not a rigid motion"):
        RigidTransform(matrix=matrix, source_frame="a", target_frame="b")


def linear_field() -> Displacement:
    """Displacement (0.1 x, 0, 2) on a grid of 10 mm."""
    grid = Grid.even(shape_zyx=(4, 4, 4), spacing_xyz_mm=(10, 10, 10), origin_xyz_mm=(0, 0, 0))
    x = grid.centers()[:, 0]
    values = np.column_stack((0.1 * x, 0 * x, 0 * x + 2)).reshape(4, 4, 4, 3)
    return Displacement(values_xyz_mm=values, grid=grid, frame_of_reference="cbct")


def test_a_displacement_is_linear_between_samples_and_nothing_outside() -> None:
    moved = linear_field().at(np.array([[5.0, 7, 9], [12.5, 0, 30], [-0.1, 0, 0], [0, 0, 31]]))
    assert moved.tolist() == [[0.5, 0, 2], [1.25, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_first_the_displacement_then_the_rigid_step() -> None:
    rigid = about_a_point()
    both = DeformableTransform(rigid=rigid, displacement=linear_field())
    point = np.array([[5.0, 7, 9]])
    assert np.allclose(both.apply(point), rigid.apply(point + np.array([0.5, 0, 2])))
    assert (both.source_frame, both.target_frame) == ("cbct", "planning")


def test_a_displacement_of_another_frame_is_refused() -> None:
    with pytest.raises(FrameMismatchError):
        DeformableTransform(rigid=about_a_point().inverse(), displacement=linear_field())


def test_vectors_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(GridMismatchError):
        Displacement(
            values_xyz_mm=np.zeros((4, 4, 3, 3)), grid=linear_field().grid, frame_of_reference="x"
        )
