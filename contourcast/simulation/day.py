"""The anatomy of one fraction: how the patient lies, how the lung moves, what has changed.

Motion is a *pull*: for a point of today it says which point of the planning CT is there. Names
read right to left; ``planning_from_cbct`` first undoes the set-up (rigid, what bones say), then
adds the displacement of what is not bone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from contourcast.imaging.grid import Points
from contourcast.imaging.transform import RigidTransform
from contourcast.simulation.lesion import Layer
from contourcast.simulation.patient import VirtualPatient
from contourcast.simulation.recipe import Recipe
from contourcast.simulation.sampling import index_from_world, sample, smooth_noise

WEEKS: Final = 7.0  # f = week / 7
COS4_MEAN: Final = 3 / 8  # time mean of cos^4, so that breathing has none


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Where today's tissue was on the planning CT.

    Attributes:
        planning_from_cbct: Set-up: the true answer of a bone match.
        steady_z_mm: Displacement along z at the diaphragm that lasts all day (drift).
        shift_xyz_mm: Of the tumour against bone, the pull direction.
        breathing_mm: Today's peak to peak at the diaphragm.
        planning_offset_mm: Displacement of the planning CT's phase from the time mean, diaphragm.
        shrink: Linear scale of today's tumour by inward motion (1: none).
    """

    patient: VirtualPatient
    planning_from_cbct: RigidTransform
    steady_z_mm: float
    shift_xyz_mm: Float[np.ndarray, " 3"]
    breathing_mm: float
    planning_offset_mm: float
    shrink: float

    def pull(self, planning_xyz_mm: Float[np.ndarray, "*lead 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Displacements for points that the set-up has brought into the planning frame.

        Returns:
            The displacement at the time-mean position (``*lead`` 3, mm), and how many mm along z
            breathing adds for each unit of its phase (``*lead``).
        """
        recipe, lesion = self.patient.recipe, self.patient.lesion
        points = planning_xyz_mm.astype(np.float32)
        affine = index_from_world(self.patient.grid)
        index: np.ndarray = points @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(
            np.float32
        )
        weight = sample(self.patient.mobile_weight, index, outside=0.0)
        away = points - lesion.center_xyz_mm.astype(np.float32)
        squared = (away**2).sum(axis=-1)
        height = away[..., 2]
        breathing = weight * _breathing_profile(height, self._diaphragm_z(), recipe)
        near = weight * np.exp(-0.5 * squared / recipe.shift_reach_mm**2)
        steady = near[..., None] * self.shift_xyz_mm.astype(np.float32)
        steady[..., 2] += weight * self.steady_z_mm * _drift_profile(height, recipe)
        steady[..., 2] += self.planning_offset_mm * breathing
        if self.shrink < 1:
            reach = 2.0 * self._tumour_radius_mm()
            inward = weight * (1 / self.shrink - 1) * np.exp(-0.5 * squared / reach**2)
            steady += inward[..., None] * away
        return steady, breathing * self.breathing_mm

    def displacement(self, cbct_xyz_mm: Points) -> Points:
        """``d`` of ``p_planning = planning_from_cbct(p_cbct + d)``, time mean, mm."""
        steady, _ = self.pull(self.planning_from_cbct.apply(cbct_xyz_mm))
        back: Points = steady.astype(float) @ self.planning_from_cbct.matrix[:3, :3]
        return back

    def phases(self) -> Float[np.ndarray, " phases"]:
        """Breathing phases of one scan: of cos^4, even in time, mean zero; + is breathing in."""
        count = self.patient.sampling.breathing_phases
        wave: np.ndarray = np.cos(np.pi * (np.arange(count) + 0.25) / count) ** 4
        wave -= wave.mean()
        return wave

    def _diaphragm_z(self) -> float:
        """Height of the lung's lower part over the tumour's centre, mm (negative)."""
        lungs = self.patient.anatomy.lungs > 0
        heights = np.flatnonzero(lungs.any(axis=(1, 2)))
        bottom = self.patient.grid.world([[0, 0, float(np.quantile(heights, 0.08))]])[0, 2]
        return float(min(bottom - self.patient.lesion.center_xyz_mm[2], -20.0))

    def _tumour_radius_mm(self) -> float:
        return float((0.75 / np.pi * self.patient.gtv.volume_cc * 1000) ** (1 / 3))


def _drift_profile(height_mm: np.ndarray, recipe: Recipe) -> np.ndarray:
    """1 below, one half at the tumour, 0 above."""
    t = np.clip((recipe.drift_reach_mm - height_mm) / (2 * recipe.drift_reach_mm), 0, 1)
    profile: np.ndarray = t * t * (3 - 2 * t)
    return profile


def _breathing_profile(height_mm: np.ndarray, diaphragm_mm: float, recipe: Recipe) -> np.ndarray:
    """1 at the diaphragm, less at the tumour, little above."""
    profile: np.ndarray = np.interp(
        height_mm,
        [diaphragm_mm, 0.0, recipe.drift_reach_mm],
        [1.0, recipe.breathing_share_at_tumour, recipe.breathing_share_above],
    ).astype(np.float32)
    return profile


def todays_motion(
    patient: VirtualPatient, week: float, *, cbct_frame: str, rng: np.random.Generator
) -> Motion:
    """Set-up, drift, baseline shift and breathing of one day."""
    recipe, f = patient.recipe, week / WEEKS
    limit = recipe.setup_translation_limit_mm
    translation = np.clip(rng.normal(0, recipe.setup_translation_mm, 3), -limit, limit)
    turn_limit = recipe.setup_rotation_limit_deg
    angles = np.clip(rng.normal(0, recipe.setup_rotation_deg, 3), -turn_limit, turn_limit)
    shift = rng.normal(0, recipe.shift_mm, 3) * np.sqrt(f) * recipe.difficulty
    shift[2] *= recipe.shift_z_ratio
    first = recipe.drift_first_share
    return Motion(
        patient=patient,
        planning_from_cbct=RigidTransform.about(
            patient.lesion.center_xyz_mm,
            rotation=Rotation.from_euler("xyz", angles, degrees=True).as_matrix(),
            translation_xyz_mm=translation,
            source_frame=cbct_frame,
            target_frame=patient.frame,
        ),
        steady_z_mm=patient.drift_mm * (first + (1 - first) * f),
        shift_xyz_mm=shift,
        breathing_mm=patient.breathing_mm * rng.uniform(*recipe.breathing_day_range),
        planning_offset_mm=patient.breathing_mm * patient.planning_phase,
        shrink=(1 - min(recipe.inward_shrink * recipe.regression * f, 0.75)) ** (1 / 3),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """What has come and gone, on the lesion's box of the planning CT (motion apart).

    Attributes:
        tumour_depth_mm: Of what is left of the tumour.
        melted: Share of the tumour's volume that is gone.
        airless_border_mm: Mean move of the consolidation's border (outwards positive).
    """

    tumour_depth_mm: Layer
    airless_depth_mm: Layer
    ghost: Layer
    melted: float
    airless_border_mm: float


def todays_change(patient: VirtualPatient, week: float, rng: np.random.Generator) -> Change:
    """Melting in place, the ghost it leaves, airless lung that fills or spreads."""
    recipe, lesion, f = patient.recipe, patient.lesion, week / WEEKS
    spacing = patient.grid.spacing_zyx_mm
    shape = lesion.tumour_depth_mm.shape
    loss = recipe.melt * recipe.regression * f * rng.uniform(*recipe.melt_spread_range)
    depth = _melted(lesion.tumour_depth_mm, min(loss, recipe.melt_most), spacing, recipe, rng)
    uneven = smooth_noise(rng, shape, spacing, recipe.melt_noise_length_mm)
    ghost = np.clip(
        recipe.ghost * recipe.regression * f * (1 + recipe.ghost_noise * uneven), 0, 0.9
    )
    border = recipe.consolidation_change_mm * recipe.regression * f
    border *= rng.normal(*recipe.consolidation_change_normal)
    ripple = smooth_noise(rng, shape, spacing, recipe.consolidation_change_noise_length_mm)
    ripple *= recipe.consolidation_change_noise_mm * recipe.regression * f
    before, after = (lesion.tumour_depth_mm > 0).sum(), (depth > 0).sum()
    return Change(
        tumour_depth_mm=depth,
        airless_depth_mm=lesion.airless_depth_mm + np.float32(border) + ripple,
        ghost=ghost,
        melted=1 - float(after) / float(before),
        airless_border_mm=float(border),
    )


def _melted(
    depth_mm: Layer,
    loss: float,
    spacing_zyx_mm: tuple[float, float, float],
    recipe: Recipe,
    rng: np.random.Generator,
) -> Layer:
    """The depth after so much of the volume has gone from the rim, unevenly."""
    noise = smooth_noise(rng, depth_mm.shape, spacing_zyx_mm, recipe.melt_noise_length_mm)
    speed = np.clip(1 + recipe.melt_noise * noise, 0.1, 3.0)
    if loss <= 0:
        return depth_mm
    inside = depth_mm > 0
    reach = np.quantile((depth_mm / speed)[inside], loss)
    result: Layer = (depth_mm - reach * speed).astype(np.float32)
    return result
