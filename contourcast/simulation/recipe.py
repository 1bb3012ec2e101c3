"""Every figure that a simulated course is made of, with unit and source.

Sources: [P] the paper whose table the recipe is calibrated to, [L] literature as cited in
docs/simulation.md, [O] our own choice, tuned or plainly assumed. ``f`` is week / 7.
A pair named ``…_range`` is uniform between its ends; one named ``…_normal`` is (mean, sd).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from contourcast.imaging.errors import InputError
from contourcast.imaging.structures import nearest_name

RECIPE_VERSION: Final = 1

Pair = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How finely a course is computed and scanned.

    Attributes:
        planning_spacing_xyz_mm: Of the planning CT; the anatomy of the day is computed on it too.
        cbct_spacing_xyz_mm: Of the reconstructed cone beam.
        field_diameter_mm: Of the reconstructed cylinder (half fan 450, full fan 250).
        field_length_mm: Of the cylinder, along the patient.
        breathing_phases: How many still anatomies one scan averages.
    """

    planning_spacing_xyz_mm: tuple[float, float, float] = (1.5, 1.5, 3.0)  # [O] a planning CT's
    cbct_spacing_xyz_mm: tuple[float, float, float] = (1.5, 1.5, 2.5)  # [O] a thorax CBCT's
    field_diameter_mm: float = 450.0  # [L] half fan 45-47 cm
    field_length_mm: float = 170.0  # [L] half fan 16-18 cm
    breathing_phases: int = 4  # [O] 10 average better

    @property
    def coarse(self) -> Sampling:
        """For calibration and tests: 3 mm cone beams."""
        return replace(self, cbct_spacing_xyz_mm=(3.0, 3.0, 3.0))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What happens to virtual patients; every number of it.

    Attributes:
        name: Which recipe; goes into the truth of each course.
        difficulty: Multiplies baseline shift, drift and planning phase (moves rigid methods).
        regression: Multiplies melting, ghost and consolidation change (moves deformable methods).
    """

    name: str
    difficulty: float = 1.0
    regression: float = 1.0

    # the tumour
    drawn_tumour_share: float = 0.3  # [P] of patients, where the CT has a drawn one
    tumour_volume_cc_range: Pair = (5.0, 60.0)  # [O] log-uniform
    place_weights: tuple[float, float, float] = (5.0, 4.0, 1.0)  # [P] wall, mediastinum, free
    axis_ratio_range: Pair = (0.8, 1.25)  # [O] of each half axis to the mean radius
    radius_noise_fraction: float = 0.22  # [O] sd of the radius, over the radius
    radius_noise_least_mm: float = 10.0  # [O] correlation is the larger of this and the radius
    tumour_hu_normal: Pair = (28.0, 8.0)  # [L] unenhanced soft tissue
    fine_texture_hu: float = 7.0  # [O] sd, at one voxel
    coarse_texture_hu: float = 15.0  # [O] sd, at 12 mm
    tumour_edge_mm: float = 1.2  # [O] logistic scale
    spicule_count_range: Pair = (6.0, 12.0)  # [O]
    spicule_length_mm_range: Pair = (4.0, 12.0)  # [O]
    spicule_radius_mm_range: Pair = (1.2, 2.7)  # [O]
    spicule_density: float = 0.6  # [O] of the tumour's, over lung
    tissue_invasion_mm: float = 5.0  # [O] how far it may reach out of the lung, unseen
    necrosis_least_cc: float = 15.0  # [O] smaller tumours have none
    necrosis_share: float = 0.5  # [O] of the tumours above that
    necrosis_depth_fraction_range: Pair = (0.35, 0.6)  # [O] of the deepest point, where it begins
    necrosis_drop_hu_range: Pair = (15.0, 28.0)  # [L] liquefied centre 0-15 HU

    # airless lung beside the tumour on the planning CT
    consolidation_share: float = 0.8  # [L] of patients
    consolidation_radius_mm_range: Pair = (20.0, 36.0)  # [L] sphere of the same volume
    consolidation_noise_mm: float = 9.0  # [O] sd of its border
    consolidation_noise_length_mm: float = 14.0  # [O]
    consolidation_hu: float = 22.0  # [O]
    consolidation_edge_mm: float = 2.0  # [O] logistic scale
    bronchogram_count_range: Pair = (2.0, 6.0)  # [O] open bronchi seen in it
    bronchogram_radius_mm_range: Pair = (0.9, 1.8)  # [O]

    # the prior: how the planning contour was drawn
    generosity_mm_normal: Pair = (1.5, 1.0)  # [L] observers' volumes differ by half
    generosity_mm_limits: Pair = (0.0, 3.5)  # [O]
    observer_noise_mm: float = 1.5  # [L] sd of the border, prior and label alike
    observer_noise_length_mm: float = 18.0  # [O]

    # motion
    planning_phase_range: Pair = (-0.6, 0.6)  # [P] free-breathing CT is one snapshot; x amplitude
    setup_translation_mm: float = 4.0  # [L] sd for each axis
    setup_translation_limit_mm: float = 20.0  # [L]
    setup_rotation_deg: float = 1.8  # [L] sd for each axis
    setup_rotation_limit_deg: float = 4.0  # [L]
    drift_mm: float = 14.0  # [O] of the diaphragm against the plan in week 7
    drift_first_share: float = 0.4  # [O] of it that is there from the first day
    drift_spread_range: Pair = (0.7, 1.3)  # [O]
    drift_reach_mm: float = 70.0  # [O] full so far below the tumour, none so far above
    shift_mm: float = 5.0  # [L] sd of tumour against bone in week 7, each axis
    shift_z_ratio: float = 1.3  # [L]
    shift_reach_mm: float = 50.0  # [O] sd of the region that shifts
    sliding_mm: float = 2.5  # [O] width of the pleura over which motion ends
    breathing_mm_range: Pair = (7.0, 17.0)  # [L] peak to peak at the diaphragm
    breathing_day_range: Pair = (0.6, 1.4)  # [L] this day's amplitude over the patient's
    breathing_share_at_tumour: float = 2 / 3  # [L]
    breathing_share_above: float = 1 / 3  # [L] at drift_reach_mm above the tumour
    inward_shrink: float = 0.0  # [O] volume lost by motion in week 7 (recipe smooth)

    # change
    melt: float = 0.5  # [L] volume lost in place in week 7
    melt_spread_range: Pair = (0.7, 1.3)  # [O]
    melt_most: float = 0.75  # [O]
    melt_noise: float = 0.8  # [O] how unevenly it goes
    melt_noise_length_mm: float = 12.0  # [O]
    ghost: float = 0.3  # [O] density that stays where tumour was in week 7
    ghost_noise: float = 0.6  # [O]
    consolidation_change_mm: float = 12.0  # [L] of its border in week 7
    consolidation_change_normal: Pair = (-0.7, 0.8)  # [L] mostly re-aerates
    consolidation_change_noise_mm: float = 4.8  # [O] sd in week 7
    consolidation_change_noise_length_mm: float = 25.0  # [O]

    # the label of the day
    label_window_hu: Pair | None = (-400.0, 175.0)  # [P]
    label_least_piece: float = 0.1  # [O] of the largest piece

    # the scan, image domain
    gain_range: Pair = (0.75, 0.95)  # [L] a CBCT's numbers over a CT's
    offset_hu_range: Pair = (-60.0, 40.0)  # [O]
    shading_hu: float = 90.0  # [L] low-frequency error, peak
    cupping_hu_range: Pair = (40.0, 120.0)  # [L] at the centre
    noise_hu: float = 60.0  # [L] sd in soft tissue
    streak_hu: float = 25.0  # [O] amplitude of one streak
    streak_count: int = 40  # [O]
    rim_hu: float = 60.0  # [L] truncation brightens the edge of the field
    rim_mm: float = 7.0  # [O] over this depth
    blur_mm: float = 0.9  # [O] sd of the reconstruction's point spread

    # the scan, projections
    scatter_to_primary_range: Pair = (0.4, 1.2)  # [L]
    scatter_subtracted_range: Pair = (0.5, 0.9)  # [L]
    photons_log10_range: Pair = (4.2, 5.0)  # [O] for each detector pixel

    def __post_init__(self) -> None:
        if not (0 <= self.difficulty < math.inf and 0 <= self.regression < math.inf):
            raise InputError(
                "difficulty and regression multiply: they cannot be negative or without end",
                remedy="give finite numbers from 0 up; 1 is the recipe as it stands",
            )


SMOOTH: Final = Recipe(
    name="smooth",
    consolidation_share=0.0,
    generosity_mm_normal=(0.0, 0.0),
    observer_noise_mm=0.0,
    planning_phase_range=(0.0, 0.0),
    drift_mm=10.0,
    sliding_mm=12.0,
    inward_shrink=0.3,
    melt=0.0,
    ghost=0.0,
    label_window_hu=None,
)
"""Analytic motion, shrinking by inward motion, true labels: deformable methods should do well."""

CLINIC_1: Final = Recipe(name="clinic-1", difficulty=0.632)  # docs/calibration.md
"""Hard in the clinic's way; calibrated to the paper's table (docs/calibration.md)."""

CLINIC_2: Final = replace(
    CLINIC_1,
    name="clinic-2",
    generosity_mm_normal=(0.0, 0.0),
    observer_noise_mm=0.0,
    label_window_hu=None,
)
"""clinic-1 with anatomical truth: what a network loses here was label style, not anatomy."""

RECIPES: Final[dict[str, Recipe]] = {r.name: r for r in (SMOOTH, CLINIC_1, CLINIC_2)}


def recipe_named(name: str, *, difficulty: float = 1.0, regression: float = 1.0) -> Recipe:
    """The recipe of that name, with its multipliers taken times these.

    Raises:
        InputError: No recipe has that name.
    """
    if name not in RECIPES:
        near = nearest_name(name, list(RECIPES))
        raise InputError(
            f"no recipe is named '{name}'" + (f"; the nearest is '{near}'" if near else ""),
            remedy=f"choose from {', '.join(RECIPES)}",
        )
    found = RECIPES[name]
    return replace(
        found,
        difficulty=found.difficulty * difficulty,
        regression=found.regression * regression,
    )
