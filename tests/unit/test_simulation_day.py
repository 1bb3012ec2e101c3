from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contourcast.simulation.day import Motion, todays_change, todays_motion
from contourcast.simulation.fraction import fraction
from contourcast.simulation.patient import virtual_patient
from contourcast.simulation.recipe import CLINIC_1, SMOOTH, Recipe
from contourcast.simulation.sampling import sample
from support.virtual import STILL, TINY, tiny_patient, tiny_thorax


def _motion(recipe: Recipe = CLINIC_1, week: float = 6.0, seed: int = 0) -> Motion:
    return todays_motion(
        tiny_patient(recipe), week, cbct_frame="1.9", rng=np.random.default_rng(seed)
    )


def test_bones_do_what_the_setup_says_and_nothing_else() -> None:
    motion = _motion()
    bones = np.argwhere(tiny_thorax().bone)[:, ::-1]
    steady, breathing = motion.pull(tiny_thorax().grid.world(bones))
    # trilinear between voxels of 4 and 6 mm: a bone's neighbour may be lung
    assert np.quantile(np.linalg.norm(steady, axis=1), 0.9) < 0.5
    assert np.quantile(np.abs(breathing), 0.9) < 0.5


def test_the_lung_below_the_tumour_drifts() -> None:
    motion = _motion()
    lesion = motion.patient.lesion
    below = np.argwhere(tiny_thorax().lungs > 0)[:, ::-1]
    points = tiny_thorax().grid.world(below)
    points = points[points[:, 2] < lesion.center_xyz_mm[2] - 40]
    steady, _ = motion.pull(points)
    assert np.abs(steady[:, 2]).mean() > 2


def test_breathing_has_no_mean_over_a_scan() -> None:
    for phases in (2, 4, 10):
        motion = _motion()
        motion = replace(
            motion,
            patient=replace(motion.patient, sampling=replace(TINY, breathing_phases=phases)),
        )
        assert abs(motion.phases().mean()) < 1e-9
        assert np.ptp(motion.phases()) > 0.2


def test_the_displacement_leads_to_the_pulled_point() -> None:
    motion = _motion()
    points = np.random.default_rng(1).uniform(-60, 60, (50, 3))
    rigid = motion.planning_from_cbct
    steady, _ = motion.pull(rigid.apply(points))
    expected = rigid.apply(points) + steady
    assert np.abs(rigid.apply(points + motion.displacement(points)) - expected).max() < 1e-3


def test_difficulty_zero_leaves_the_lung_where_it_was() -> None:
    motion = _motion(replace(CLINIC_1, difficulty=0.0))
    steady, _ = motion.pull(motion.patient.lesion.center_xyz_mm[None])
    assert np.abs(steady).max() < 1e-6


@pytest.mark.parametrize("week", [0.0, 3.0, 7.0])
def test_melting_takes_the_share_it_is_told(week: float) -> None:
    recipe = replace(CLINIC_1, melt_spread_range=(1.0, 1.0))
    change = todays_change(tiny_patient(recipe), week, np.random.default_rng(0))
    assert change.melted == pytest.approx(recipe.melt * week / 7, abs=0.05)


def test_what_melts_was_tumour() -> None:
    patient = tiny_patient()
    change = todays_change(patient, 7.0, np.random.default_rng(0))
    assert not ((change.tumour_depth_mm > 0) & (patient.lesion.tumour_depth_mm <= 0)).any()


def test_regression_zero_changes_nothing() -> None:
    patient = tiny_patient(replace(CLINIC_1, regression=0.0))
    change = todays_change(patient, 7.0, np.random.default_rng(0))
    assert np.array_equal(change.tumour_depth_mm, patient.lesion.tumour_depth_mm)
    assert np.allclose(change.airless_depth_mm, patient.lesion.airless_depth_mm)
    assert np.max(change.ghost) == 0


def test_the_smooth_recipe_shrinks_by_motion_alone() -> None:
    patient = tiny_patient(SMOOTH)
    day = fraction(patient, week=7.0)
    assert day.truth.facts["melted_fraction"] == 0.0
    assert day.truth.anatomical.volume_cc < 0.95 * patient.gtv.volume_cc


def test_a_perfect_scan_of_a_still_patient_is_the_planning_ct() -> None:
    recipe = replace(STILL, setup_translation_mm=6.0, setup_rotation_deg=2.0)
    patient = virtual_patient(tiny_thorax(), recipe=recipe, sampling=TINY, seed=(4,))
    day = fraction(patient, week=5.0)
    points = day.cbct.grid.centers()
    planned = patient.grid.index(day.truth.motion.apply(points)).astype(np.float32)
    expected = sample(patient.planning_ct.values, planned, outside=-1000.0)
    seen = day.cbct.values.ravel()
    field = seen > -1000
    assert field.mean() > 0.3
    assert np.abs(seen - np.clip(expected, -1000, 3000))[field].max() < 1.0


def test_truth_says_where_moved_tissue_is() -> None:
    recipe = replace(STILL, setup_translation_mm=4.0, shift_mm=8.0, drift_mm=10.0)
    patient = virtual_patient(tiny_thorax(), recipe=recipe, sampling=TINY, seed=(4,))
    day = fraction(patient, week=7.0)
    label = day.truth.label.centroid_xyz_mm()
    planned = patient.gtv.centroid_xyz_mm()
    assert label is not None
    assert planned is not None
    assert np.linalg.norm(day.truth.motion.apply(label[None])[0] - planned) < 2.5
    assert np.linalg.norm(label - planned) > 3
