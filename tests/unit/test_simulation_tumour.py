from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from contourcast.imaging.errors import InputError
from contourcast.simulation import consolidation, tumour
from contourcast.simulation.recipe import CLINIC_1
from support.virtual import STILL, tiny_patient, tiny_thorax


def _volume_cc(depth: np.ndarray) -> float:
    return float((depth > 0).sum() * tiny_thorax().grid.voxel_cc.mean())


def test_a_grafted_tumour_has_about_the_volume_asked_for() -> None:
    recipe = replace(CLINIC_1, tumour_volume_cc_range=(30.0, 30.0))
    volumes = [
        _volume_cc(tumour.graft(tiny_thorax(), recipe, np.random.default_rng(s)).depth_mm)
        for s in range(5)
    ]
    assert np.mean(volumes) == pytest.approx(30.0, rel=0.25)


@pytest.mark.parametrize("place", tumour.PLACES)
def test_a_tumour_sits_where_its_kind_sits(place: tumour.Place) -> None:
    first, second, third = (float(place == p) for p in tumour.PLACES)
    weights = (first, second, third)
    recipe = replace(CLINIC_1, place_weights=weights, tumour_volume_cc_range=(12.0, 12.0))
    grown = tumour.graft(tiny_thorax(), recipe, np.random.default_rng(2))
    assert grown.place == place
    steps = tiny_thorax().distances.steps_zyx
    i, j, k = tiny_thorax().grid.index(grown.center_xyz_mm[None])[0]
    at = tuple(round(v / s) for v, s in zip((k, j, i), steps, strict=True))
    radius = (12_000 * 0.75 / np.pi) ** (1 / 3)
    d = tiny_thorax().distances
    near = {"wall": d.wall[at], "mediastinum": d.mediastinum[at]}
    for kind, distance in near.items():
        assert (distance < radius + 4) == (kind == place)


def test_a_tumour_reaches_no_further_out_of_the_lung_than_allowed() -> None:
    for seed in range(4):
        grown = tumour.graft(tiny_thorax(), CLINIC_1, np.random.default_rng(seed))
        outside = distance_transform_edt(
            tiny_thorax().lungs[grown.box] == 0, sampling=tiny_thorax().grid.spacing_zyx_mm
        )
        # a voxel's half diagonal beside the recipe's reach
        assert outside[grown.depth_mm > 0].max() < CLINIC_1.tissue_invasion_mm + 7


def test_a_thorax_without_a_free_lung_is_refused() -> None:
    full = replace(tiny_thorax(), graft_sides=())
    with pytest.raises(InputError, match="no place"):
        tumour.graft(full, CLINIC_1, np.random.default_rng(0))


def test_a_drawn_tumour_needs_a_drawing() -> None:
    with pytest.raises(InputError, match="no tumour is drawn"):
        tumour.drawn(tiny_thorax(), CLINIC_1, np.random.default_rng(0))


def test_a_drawn_tumour_can_be_taken_out_of_the_lung() -> None:
    grafted = tiny_patient(STILL)
    thorax = replace(grafted.anatomy, ct=grafted.planning_ct, drawn=grafted.gtv.values.copy())
    found = tumour.drawn(thorax, CLINIC_1, np.random.default_rng(0))
    core = (found.depth_mm > 4) & (thorax.lungs[found.box] > 0)
    assert found.hu[core].mean() > -100
    assert found.lung_hu[core].mean() < -550


def test_airless_lung_is_lung_and_widens_to_the_pleura() -> None:
    rng = np.random.default_rng(5)
    grown = tumour.graft(tiny_thorax(), CLINIC_1, rng)
    wedge = consolidation.grow(tiny_thorax(), grown, CLINIC_1, rng)
    lung = tiny_thorax().lungs[grown.box] > 0
    airless = (wedge.depth_mm > 0) & lung
    assert 10 < airless.sum() * tiny_thorax().grid.voxel_cc.mean() < 200
    depth_in_lung = distance_transform_edt(lung, sampling=tiny_thorax().grid.spacing_zyx_mm)
    assert depth_in_lung[airless].min() < 7  # it reaches the pleura
    assert wedge.bronchograms.max() > 0.3


def test_a_patient_without_airless_lung_has_none() -> None:
    grown = tumour.graft(tiny_thorax(), CLINIC_1, np.random.default_rng(5))
    assert (consolidation.none_of(grown).depth_mm < -100).all()
