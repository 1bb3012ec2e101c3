from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.simulation import rtk
from contourcast.simulation.fraction import fraction
from support.data import require
from support.virtual import STILL, tiny_patient

BODY = Grid.even(
    shape_zyx=(50, 60, 70), spacing_xyz_mm=(4.0, 4.0, 4.0), origin_xyz_mm=(-138, -118, -98)
)
ONTO = Grid.even(
    shape_zyx=(12, 50, 60), spacing_xyz_mm=(5.0, 5.0, 5.0), origin_xyz_mm=(-147.5, -122.5, -27.5)
)
CLEAN = replace(STILL, scatter_to_primary_range=(0.0, 0.0), photons_log10_range=(7.0, 7.0))
FEW = rtk.Orbit(projections=90, detector_uv=(110, 60), pixel_mm=3.6)


def _off_centre_phantom() -> np.ndarray:
    """Water with a bone rod that lies left, behind and above the middle, and an air rod right."""
    points = BODY.centers()
    x, y, z = (points[:, a].reshape(BODY.shape_zyx) for a in range(3))
    hu = np.where(np.hypot(x / 110, y / 90) < 1, 0.0, -1000.0)
    hu[(np.hypot(x - 50, y - 30) < 16) & (z > 0)] = 600.0
    hu[np.hypot(x + 50, y + 30) < 16] = -1000.0
    return hu.astype(np.float32)


@pytest.mark.peer
def test_a_rod_comes_back_where_it_was_and_as_dense_as_it_was() -> None:
    require("peer", rtk.is_installed(), "itk-rtk is not installed")
    hu = rtk.scanned(
        [_off_centre_phantom()],
        BODY,
        onto=ONTO,
        recipe=CLEAN,
        rng=np.random.default_rng(0),
        orbit=FEW,
    )
    points = ONTO.centers()
    x, y, z = (points[:, a].reshape(ONTO.shape_zyx) for a in range(3))
    middle = np.abs(z) < 25
    water = (np.hypot(x, y) < 30) & middle
    assert abs(np.median(hu[water])) < 60
    above = (np.hypot(x - 50, y - 30) < 10) & (z > 8) & middle
    below = (np.hypot(x - 50, y - 30) < 10) & (z < -8) & middle
    assert np.median(hu[above]) > 350
    assert abs(np.median(hu[below])) < 120
    assert np.median(hu[(np.hypot(x + 50, y + 30) < 10) & middle]) < -700


@pytest.mark.peer
def test_scatter_that_is_not_subtracted_makes_tissue_darker() -> None:
    require("peer", rtk.is_installed(), "itk-rtk is not installed")
    scattering = replace(
        CLEAN, scatter_to_primary_range=(1.0, 1.0), scatter_subtracted_range=(0.5, 0.5)
    )
    points = ONTO.centers()
    middle = (np.hypot(points[:, 0], points[:, 1]) < 30).reshape(ONTO.shape_zyx)
    clean, dark = (
        np.median(
            rtk.scanned(
                [_off_centre_phantom()],
                BODY,
                onto=ONTO,
                recipe=recipe,
                rng=np.random.default_rng(0),
                orbit=FEW,
            )[middle]
        )
        for recipe in (CLEAN, scattering)
    )
    assert dark < clean - 60


def test_every_projection_sees_one_phase_and_every_phase_is_seen() -> None:
    seen = rtk._phase_of_each(rtk.Orbit(), 4, np.random.default_rng(0))
    assert len(seen) == rtk.Orbit().projections
    assert set(seen.tolist()) == {0, 1, 2, 3}


def test_without_itk_rtk_projections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="itk-rtk"):
        fraction(tiny_patient(), week=3.0, physics="rtk")


def test_auto_takes_the_image_domain_without_itk_rtk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert fraction(tiny_patient(), week=3.0, physics="auto").truth.facts["physics"] == "image"
