import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from contourcast.registration.consensus import Blocks, agreed, blocks_at
from contourcast.registration.local_ncc import LocalNcc, Pose
from contourcast.registration.result import Registrations
from contourcast.registration.rigid import register_all
from contourcast.registration.sampling import Image
from contourcast.registration.settings import (
    ConsensusSettings,
    DescentSettings,
    LevelSettings,
    RegistrationSettings,
    RigidSettings,
)
from support.analytic_phantom import Phantom, even_grid, motion
from support.virtual_cbct import ball, target_errors_mm

RADIUS_MM = 60.0
TURNED = Pose(
    rotation=Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix(),
    translation_xyz_mm=np.array([5.0, 6.0, 7.0]),
    center_xyz_mm=np.zeros(3),
)
STEP = np.array([1.5, -0.8, 0.6, 1.2, -0.9, 2.0])


def lattice() -> np.ndarray:
    side = np.arange(-80.0, 81.0, 20.0)
    return np.array([[x, y, z] for x in side for y in side for z in side])


def blocks(shifts_xyz_mm: np.ndarray, telling: np.ndarray | None = None) -> Blocks:
    places = lattice()
    isotropic = np.repeat(np.eye(3)[None] / 3, len(places), axis=0)
    return Blocks(
        cell_of_sample=np.arange(len(places)),
        blocks_of_cell=np.repeat(np.arange(len(places))[None], 8, axis=0),
        places_xyz_mm=places,
        shifts_xyz_mm=shifts_xyz_mm,
        telling=isotropic if telling is None else telling,
    )


def shifts_of(step: np.ndarray) -> np.ndarray:
    """How a small step moves the planning CT's points under the blocks."""
    shifts: np.ndarray = step[:3] + np.cross(step[3:] / RADIUS_MM, lattice() @ TURNED.rotation.T)
    return shifts


def test_the_motion_of_the_greater_part_is_found_and_the_rest_is_left_out() -> None:
    breathing = lattice()[:, 2] < -25  # a third of the field, below
    shifts = shifts_of(STEP) + np.where(breathing[:, None], [0.0, 2.0, 9.0], 0.0)
    found = agreed(blocks(shifts), TURNED, share=0.5, rotation_radius_mm=RADIUS_MM)
    np.testing.assert_allclose(found.step, STEP, atol=1e-6)
    assert found.agreeing.sum() == round(0.5 * len(shifts))
    assert not (found.agreeing & breathing).any()
    everything = agreed(blocks(shifts), TURNED, share=1.0, rotation_radius_mm=RADIUS_MM)
    assert np.abs(everything.step - STEP).max() > 2
    assert everything.contrast == np.inf, "there are no others"


def test_one_kind_of_blocks_has_the_contrast_of_a_normal_law_and_two_kinds_have_more() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, lattice().shape)
    drift = np.where(lattice()[:, 2:] < 0, [0.0, 1.0, 4.0], 0.0)
    one, two = (
        agreed(blocks(shifts_of(STEP) + each), TURNED, share=0.5, rotation_radius_mm=RADIUS_MM)
        for each in (noise, noise + drift)
    )
    assert 1.7 < one.contrast < 2.4
    assert two.contrast > 4


def test_an_edge_is_not_believed_about_shifts_along_it() -> None:
    """Each block knows one direction alone, and says nonsense of the others."""
    direction = np.eye(3)[np.arange(len(lattice())) % 3]
    telling = direction[:, :, None] * direction[:, None, :]
    nonsense = np.random.default_rng(0).normal(0, 5, (len(lattice()), 3)) * (1 - direction)
    found = agreed(
        blocks(shifts_of(STEP) + nonsense, telling),
        TURNED,
        share=1.0,
        rotation_radius_mm=RADIUS_MM,
    )
    np.testing.assert_allclose(found.step, STEP, atol=1e-6)


def metric_of(values: np.ndarray) -> LocalNcc:
    """A scan compared with itself, moved by 1 mm along x."""
    size = values.shape[0]
    shifted = Image(values=torch.as_tensor(values), world_from_index=np.diag([2.0, 2.0, 2.0, 1.0]))
    k, j, i = np.meshgrid(*[np.arange(8, size - 8)] * 3, indexing="ij")
    inside = np.column_stack((i.ravel(), j.ravel(), k.ravel()))
    fixed = 0.5 * (
        values[inside[:, 2], inside[:, 1], inside[:, 0]]
        + values[inside[:, 2], inside[:, 1], inside[:, 0] + 1]
    )
    return LocalNcc(
        offsets_xyz_mm=torch.as_tensor(2.0 * inside, dtype=torch.float32),
        fixed=torch.as_tensor(fixed),
        moving=shifted,
        least_overlap=0.3,
        rotation_radius_mm=RADIUS_MM,
    )


HERE = Pose(rotation=np.eye(3), translation_xyz_mm=np.zeros(3), center_xyz_mm=np.zeros(3))


def texture(size: int = 48) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=(size, size, size))
    values: np.ndarray = 10 * gaussian_filter(noise, 2.0)
    return values.astype(np.float32)


def test_every_block_sees_by_how_much_it_is_off() -> None:
    found = blocks_at(
        metric_of(texture()),
        HERE,
        settings=ConsensusSettings(block_mm=20.0),
        descent=DescentSettings(),
        longest_mm=4.0,
    )
    assert len(found) > 40
    off = np.abs(found.shifts_xyz_mm - [1.0, 0, 0])
    assert off.max() < 0.3
    assert np.median(off) < 0.05
    np.testing.assert_allclose(np.trace(found.telling, axis1=1, axis2=2), 1.0)
    assert found.samples_of(np.ones(len(found), bool)).mean() > 0.9  # all but the rim
    assert not found.samples_of(np.zeros(len(found), bool)).any()


def test_a_block_that_shows_nothing_is_not_asked_and_no_step_is_long() -> None:
    values = texture()
    values[:, :, 24:] = 0.3
    found = blocks_at(
        metric_of(values),
        HERE,
        settings=ConsensusSettings(block_mm=20.0),
        descent=DescentSettings(),
        longest_mm=0.4,
    )
    assert found.places_xyz_mm[:, 0].max() < 60  # 2 mm a voxel: the grey half begins at 48
    assert np.linalg.norm(found.shifts_xyz_mm, axis=1).max() <= 0.4 + 1e-9
    told = found.samples_of(np.ones(len(found), bool))
    assert 0 < told.sum() < len(told)


def test_where_the_scans_do_not_meet_there_is_nobody_to_ask() -> None:
    found = blocks_at(
        metric_of(texture()),
        replace(HERE, translation_xyz_mm=np.array([5000.0, 0, 0])),
        settings=ConsensusSettings(),
        descent=DescentSettings(),
        longest_mm=4.0,
    )
    assert len(found) == 0


# ------------------------------------------------------------------------------ in a registration

STILL = motion(shift_xyz_mm=(4, -3, 5), rotation_xyz_deg=(1, -1, 2))


def settings(**consensus: Any) -> RegistrationSettings:
    rigid = RigidSettings(
        levels=(
            LevelSettings(spacing_mm=6.0, samples=8000),
            LevelSettings(spacing_mm=3.0, samples=20_000),
        )
    )
    return RegistrationSettings(
        rigid=replace(rigid, consensus=replace(ConsensusSettings(block_mm=30.0), **consensus))
    )


@functools.cache
def scans() -> tuple[Volume, Volume]:
    """A CBCT and its planning CT: the lowest third has moved by 5 mm along z in between."""
    today = Phantom(seed=2, balls=110)
    ct = today.planning_ct(even_grid(extent_xyz_mm=(200, 180, 130), spacing_mm=3.0))
    today.centers[today.centers[:, 2] < -18] += [0.0, 1.0, -5.0]
    return today.cbct(STILL), ct


@functools.cache
def breathing(**consensus: Any) -> Registrations:
    cbct, ct = scans()
    prior = ball(ct, np.array([10.0, 5.0, 20.0]), radius_mm=15)
    return register_all(fixed=cbct, moving=ct, prior=prior, settings=settings(**consensus))


def error_mm(found: RigidTransform) -> float:
    return float(target_errors_mm(found, STILL, center_xyz_mm=np.array([0.0, 0, 20])).mean())


def test_what_breathes_does_not_pull_the_answer_of_what_does_not() -> None:
    everything = error_mm(breathing(share=1.0).body.planning_from_cbct)
    agreeing = error_mm(breathing().body.planning_from_cbct)
    assert everything > 1.0
    assert agreeing < everything / 3


@pytest.mark.parametrize("rule", [{"least_contrast": 100.0}, {"least_move_voxels": 1.0}])
def test_of_one_kind_or_of_one_place_the_whole_field_decides(rule: dict[str, float]) -> None:
    answer = breathing(**rule).body
    assert len(answer.log) == 2
    assert error_mm(answer.planning_from_cbct) > 1.0


def test_of_too_few_blocks_the_whole_field_decides() -> None:
    few = breathing(least_blocks=100_000)
    assert len(few.body.log) == 2
    assert len(breathing().body.log) == 3
    off = target_errors_mm(
        few.body.planning_from_cbct,
        breathing(share=1.0).body.planning_from_cbct,
        center_xyz_mm=np.zeros(3),
    )
    assert off.mean() < 0.2
