"""A small virtual patient, coarse enough for milliseconds."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.patient import VirtualPatient, virtual_patient
from contourcast.simulation.phantom import phantom
from contourcast.simulation.recipe import CLINIC_1, Recipe, Sampling

TINY = Sampling(
    planning_spacing_xyz_mm=(4.0, 4.0, 6.0),
    cbct_spacing_xyz_mm=(5.0, 5.0, 6.0),
    breathing_phases=2,
)

STILL = replace(
    CLINIC_1,
    name="still",
    consolidation_share=0.0,
    planning_phase_range=(0.0, 0.0),
    setup_translation_mm=0.0,
    setup_rotation_deg=0.0,
    drift_mm=0.0,
    shift_mm=0.0,
    breathing_mm_range=(0.0, 0.0),
    melt=0.0,
    ghost=0.0,
    consolidation_change_mm=0.0,
    consolidation_change_noise_mm=0.0,
    generosity_mm_normal=(0.0, 0.0),
    observer_noise_mm=0.0,
    label_window_hu=None,
    gain_range=(1.0, 1.0),
    offset_hu_range=(0.0, 0.0),
    shading_hu=0.0,
    cupping_hu_range=(0.0, 0.0),
    noise_hu=0.0,
    streak_hu=0.0,
    rim_hu=0.0,
    blur_mm=0.0,
)
"""Nothing moves, nothing changes, the scan is perfect."""


@lru_cache
def tiny_thorax(seed: int = 3) -> Anatomy:
    """A phantom of few voxels."""
    return phantom(seed=seed, spacing_xyz_mm=TINY.planning_spacing_xyz_mm)


@lru_cache
def tiny_patient(recipe: Recipe = CLINIC_1, seed: int = 1) -> VirtualPatient:
    """A patient grown from it."""
    return virtual_patient(tiny_thorax(), recipe=recipe, sampling=TINY, seed=(seed,))
