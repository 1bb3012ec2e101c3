from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contourcast.imaging.grid import Grid
from contourcast.simulation import cone_beam, observer
from contourcast.simulation.fraction import fraction, visible_share
from contourcast.simulation.recipe import CLINIC_1, Recipe
from support.virtual import STILL, tiny_patient

GRID = Grid.even(shape_zyx=(12, 60, 60), spacing_xyz_mm=(2, 2, 2.5), origin_xyz_mm=(0, 0, 0))


def _water(recipe: Recipe, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    field = np.zeros(GRID.shape_zyx, bool)
    field[:, 5:-5, 5:-5] = True
    return cone_beam.degraded(
        np.zeros(GRID.shape_zyx, np.float32),
        GRID,
        field,
        recipe,
        np.random.default_rng(seed),
        dense=np.zeros(GRID.shape_zyx, bool),
        field_diameter_mm=450.0,
    ), field


def test_outside_the_field_there_is_padding_alone() -> None:
    scan, field = _water(CLINIC_1)
    assert (scan[~field] == cone_beam.PADDING_HU).all()
    assert (scan[field] > cone_beam.PADDING_HU).mean() > 0.99


def test_noise_has_the_sd_of_the_recipe_and_no_slow_waves() -> None:
    noisy, field = _water(replace(STILL, noise_hu=60.0))
    clean, _ = _water(STILL)
    noise = (noisy - clean)[field].reshape(12, 50, 50)
    assert 45 < noise.std() < 90
    # a ramp filter leaves no slow waves: of white noise, means over 10 x 10 voxels keep a tenth
    assert noise.reshape(12, 5, 10, 5, 10).mean(axis=(2, 4)).std() < 0.07 * noise.std()


def test_gain_and_offset_change_the_numbers() -> None:
    scan, field = _water(replace(STILL, gain_range=(0.8, 0.8), offset_hu_range=(30.0, 30.0)))
    assert scan[field].mean() == pytest.approx(0.8 * 1000 - 1000 + 30, abs=2)


def test_streaks_start_at_bone() -> None:
    recipe = replace(STILL, streak_hu=25.0)
    assert np.array_equal(_water(recipe)[0], _water(STILL)[0])


def test_a_scan_averages_its_phases() -> None:
    average = cone_beam.phase_average([np.zeros((1, 1, 1)), np.full((1, 1, 1), 10.0)])
    assert average[0, 0, 0] == 5.0


def test_generosity_makes_the_prior_larger_than_the_tumour() -> None:
    patient = tiny_patient(replace(CLINIC_1, generosity_mm_normal=(3.0, 0.0)))
    assert patient.prior_mask.volume_cc > 1.1 * patient.gtv.volume_cc


def test_without_observers_the_label_is_the_tumour() -> None:
    day = fraction(tiny_patient(STILL), week=4.0)
    assert np.array_equal(day.truth.label.values, day.truth.anatomical.values)


def test_the_window_cuts_what_is_not_tissue() -> None:
    depth = np.full(GRID.shape_zyx, 10.0, np.float32)
    hu = np.where(np.arange(60) < 30, 0.0, -800.0) * np.ones(GRID.shape_zyx)
    recipe = replace(STILL, label_window_hu=(-400.0, 175.0))
    label = observer.label_of_the_day(depth, hu, GRID, recipe, np.random.default_rng(0))
    assert label[:, :, :30].all()
    assert not label[:, :, 30:].any()


def test_crumbs_are_dropped_and_pieces_stay() -> None:
    mask = np.zeros((1, 10, 30), bool)
    mask[0, 1:9, 1:9] = mask[0, 1:5, 12:17] = mask[0, 2, 25] = True
    kept = observer.without_crumbs(mask, 0.1)
    assert kept[0, 2, 13]
    assert not kept[0, 2, 25]


def test_a_tumour_in_tissue_cannot_be_seen_and_one_in_lung_can() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in (12, 60, 60)), indexing="ij")
    depth = 12.0 - np.hypot(np.hypot(2 * (y - 30), 2 * (x - 30)), 2.5 * (z - 6))
    assert visible_share(np.zeros(depth.shape), depth, GRID) == 0.0
    # the caps are one slice thick: a step of 3 mm out of them is blurred by the slices' distance
    assert visible_share(np.where(depth > 0, 0.0, -800.0), depth, GRID) > 0.85


def test_the_same_fraction_is_the_same_scan_and_another_is_not() -> None:
    first, again, other = (
        fraction(tiny_patient(), week=4.0, number=n).cbct.values for n in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
