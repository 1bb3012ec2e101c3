import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.spatial.transform import Rotation

from contourcast.registration.local_ncc import NOTHING, LocalNcc, Pose, box_sum, normalise
from contourcast.registration.pyramid import full_resolution
from contourcast.registration.sampling import Image, sample
from contourcast.registration.settings import LocalNccSettings
from support.analytic_phantom import Phantom, motion

SETTINGS = LocalNccSettings()


def image(values: np.ndarray) -> Image:
    return Image(
        values=torch.tensor(values, dtype=torch.float32),
        world_from_index=np.diag([3.0, 3.0, 3.0, 1.0]),
    )


def test_box_sums_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=(9, 14, 11))
    expected = uniform_filter(values, (3, 5, 7), mode="constant") * 3 * 5 * 7
    found = box_sum(torch.tensor(values), np.array([1, 2, 3]))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_local_normalisation_forgets_gain_and_offset_where_tissue_has_contrast() -> None:
    values = Phantom().planning_ct().values[20:40, 20:50, 20:50]
    plain = LocalNccSettings(floor_hu=0.0)
    once = normalise(image(values), plain).values
    other = normalise(image(0.6 * values - 200), plain).values
    torch.testing.assert_close(once, other, atol=2e-3, rtol=0)


def test_what_was_not_observed_changes_no_neighbour() -> None:
    values = np.array(Phantom().planning_ct().values[20:40, 20:50, 20:50])
    values[:, :, :10] = np.nan
    left_out = normalise(image(values), SETTINGS).values
    cropped = normalise(image(values[:, :, 10:]), SETTINGS).values
    assert torch.isnan(left_out[:, :, :10]).all()
    torch.testing.assert_close(left_out[:, :, 10:], cropped, atol=1e-4, rtol=0)


def metric(seed: int = 3) -> tuple[LocalNcc, Pose]:
    """A metric in double precision at a pose that is neither identity nor the optimum."""
    generator = np.random.default_rng(seed)
    planning = full_resolution(Phantom().planning_ct(), device="cpu")
    moving = normalise(planning, SETTINGS)
    offsets = torch.tensor(generator.uniform(-45, 45, (4000, 3)))
    pose = Pose(
        rotation=Rotation.from_rotvec([0.05, -0.08, 0.03]).as_matrix(),
        translation_xyz_mm=np.array([4.0, -3.0, 6.0]),
        center_xyz_mm=np.array([1.0, 2.0, -3.0]),
    )
    fixed = sample(moving, offsets, np.eye(4)) + 0.2 * torch.tensor(generator.normal(size=4000))
    return (
        LocalNcc(
            offsets_xyz_mm=offsets,
            fixed=fixed,
            moving=moving,
            least_overlap=0.3,
            rotation_radius_mm=60.0,
        ),
        pose,
    )


def differentiable(metric: LocalNcc, pose: Pose, step: torch.Tensor) -> torch.Tensor:
    """The same correlation as a function of a step, for autograd; nothing shared but the data."""
    w = step[3:] / metric.rotation_radius_mm
    zero = torch.zeros((), dtype=torch.float64)
    cross = torch.stack(
        [torch.stack([zero, -w[2], w[1]]), torch.stack([w[2], zero, -w[0]]),
         torch.stack([-w[1], w[0], zero])]
    )  # fmt: skip
    rotation = torch.linalg.matrix_exp(cross) @ torch.tensor(pose.rotation.copy())
    shift = torch.tensor(pose.center_xyz_mm + pose.translation_xyz_mm) + step[:3]
    world = metric.offsets_xyz_mm @ rotation.T + shift
    inverse = torch.tensor(metric.moving.index_from_world)
    index = world @ inverse[:3, :3].T + inverse[:3, 3]
    size = torch.tensor(metric.moving.size_xyz)
    values = torch.nn.functional.grid_sample(
        metric.moving.values.double()[None, None],
        (2 * index / (size - 1) - 1)[None, None, None],
        align_corners=True,
    ).flatten()
    return torch.corrcoef(torch.stack([metric.fixed, values]))[0, 1]


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_hand_written_jacobian_is_the_one_of_autograd(seed: int) -> None:
    correlated, pose = metric(seed)
    step = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    value = differentiable(correlated, pose, step)
    (expected,) = torch.autograd.grad(value, step)
    slope = correlated.slope(pose)
    assert slope is not None
    assert slope.value == pytest.approx(float(value.detach()), abs=1e-9)
    error = np.linalg.norm(slope.gradient - expected.numpy()) / np.linalg.norm(expected.numpy())
    assert error < 1e-4


def test_a_step_along_the_gradient_does_what_the_gradient_says() -> None:
    correlated, pose = metric()
    slope = correlated.slope(pose)
    assert slope is not None
    length = 1e-4
    step = length * slope.gradient / np.linalg.norm(slope.gradient)
    gain = correlated.value(pose.moved(step, rotation_radius_mm=60.0)) - correlated.value(pose)
    assert gain / length == pytest.approx(np.linalg.norm(slope.gradient), rel=1e-2)


def test_the_curvature_is_symmetric_and_positive() -> None:
    correlated, pose = metric()
    slope = correlated.slope(pose)
    assert slope is not None
    np.testing.assert_allclose(slope.curvature, slope.curvature.T, atol=1e-12)
    assert np.linalg.eigvalsh(slope.curvature)[0] > 0


def test_a_pose_that_leaves_the_planning_ct_is_worth_nothing() -> None:
    correlated, pose = metric()
    far = pose.moved(np.array([500.0, 0, 0, 0, 0, 0]), rotation_radius_mm=60.0)
    assert correlated.value(far) == NOTHING
    assert correlated.slope(far) is None


def test_a_pose_is_the_transform_it_was_made_of() -> None:
    truth = motion(shift_xyz_mm=(3, -4, 5), rotation_xyz_deg=(2, -3, 4))
    pose = Pose.of(truth, center_xyz_mm=np.array([10.0, 20.0, 30.0]))
    points = np.random.default_rng(0).uniform(-200, 200, (20, 3))
    np.testing.assert_allclose(pose.apply(points), truth.apply(points), atol=1e-9)
    np.testing.assert_allclose(pose.back(pose.apply(points)), points, atol=1e-9)
    again = pose.transform(cbct_frame=truth.source_frame, planning_frame=truth.target_frame)
    np.testing.assert_allclose(again.matrix, truth.matrix, atol=1e-9)
