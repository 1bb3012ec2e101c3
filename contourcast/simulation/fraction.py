"""One fraction: the CBCT of a day and the truth about it, in memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.ndimage import binary_erosion, map_coordinates

from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import DeformableTransform, Displacement
from contourcast.imaging.volume import Mask, Volume
from contourcast.simulation import cone_beam, rtk
from contourcast.simulation.day import Motion, todays_change, todays_motion
from contourcast.simulation.lesion import Layer
from contourcast.simulation.observer import label_of_the_day
from contourcast.simulation.patient import FAR_MM, GTV_NAME, VirtualPatient, planning_image
from contourcast.simulation.sampling import (
    affine_points,
    index_from_world,
    sample,
    world_from_index,
)
from contourcast.simulation.truth import Truth

Physics = Literal["image", "rtk", "auto"]

FRACTION_SEED: Final = 7919  # keeps the days' numbers apart from the patient's
FIELD_OFF_AXIS: Final = 0.5  # the field's axis lies half way from the body's middle to the tumour
ISOCENTRE_Z_MM: Final = 15.0  # and so far off the tumour, at most, along the patient
ISOCENTRE_MOST_MM: Final = 40.0  # moved so far at most to stay within the CT
PROJECTED_MM: Final = 2.5  # REGISTRATION §11.1: what is projected is computed on this grid
RAYS_BEYOND_MM: Final = 60.0  # the cone of rays spreads beyond the field, along the patient
VISIBLE_STEP_HU: Final = 150.0  # REGISTRATION §11.1
VISIBLE_REACH_MM: Final = 3.0  # across the surface, each way
TRUTH_STEP: Final = 2  # the displacement is kept on every second voxel
BONE_STREAK_HU: Final = 350.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fraction:
    """What the machine sees of a day, and what is true of it."""

    week: float
    cbct: Volume
    truth: Truth


def fraction(
    patient: VirtualPatient,
    *,
    week: float,
    number: int = 1,
    series_uid: str = "",
    physics: Physics = "image",
) -> Fraction:
    """Scans the patient in a week of treatment (0 to 7).

    Args:
        patient: Who lies there.
        week: How far tumour and lung have changed; set-up and breathing are new each time.
        number: Of the fraction: the same patient, week and number give the same scan.
        series_uid: That the CBCT will have on disk.
        physics: How it is scanned: in the image domain, by projections (itk-rtk), or by
            projections where itk-rtk is installed.

    Raises:
        InputError: Projections are asked for and itk-rtk is not installed.
    """
    rng = np.random.default_rng((*patient.seed, FRACTION_SEED, number))
    digest = fraction_digest(patient, week=week, number=number, physics=physics)
    cbct_frame = derived_uid(digest, "frame of reference")
    motion = todays_motion(patient, week, cbct_frame=cbct_frame, rng=rng)
    change = todays_change(patient, week, rng)
    today = planning_image(
        patient.anatomy,
        patient.lesion,
        patient.lesion.image(
            patient.recipe,
            tumour_depth_mm=change.tumour_depth_mm,
            airless_depth_mm=change.airless_depth_mm,
            ghost=change.ghost,
        ),
    )
    grid = _scan_grid(patient, rng)
    view = _View(motion, grid)
    images = [view.of(today.values, phase, outside=-1000.0) for phase in motion.phases()]
    clean = cone_beam.phase_average(images)
    field = _field(grid, patient.sampling.field_diameter_mm) & view.within(patient.grid)
    if _by_projection(physics):
        body = _body_grid(patient, motion, grid)
        chest = _View(motion, body)
        still = [chest.of(today.values, phase, outside=-1000.0) for phase in motion.phases()]
        hu = rtk.scanned(still, body, onto=grid, recipe=patient.recipe, rng=rng)
        cbct_hu = cone_beam.within_field(hu, field)
    else:
        cbct_hu = cone_beam.degraded(
            clean,
            grid,
            field,
            patient.recipe,
            rng,
            dense=clean > BONE_STREAK_HU,
            field_diameter_mm=patient.sampling.field_diameter_mm,
        )
    depth = view.of_box(change.tumour_depth_mm, patient)
    anatomical = (depth > 0) & field
    drawn = label_of_the_day(np.where(field, depth, FAR_MM), clean, grid, patient.recipe, rng)
    truth = Truth(
        cbct_series_uid=series_uid,
        roi_name=GTV_NAME,
        label=Mask(values=drawn, grid=grid, frame_of_reference=cbct_frame, name=GTV_NAME),
        anatomical=Mask(values=anatomical, grid=grid, frame_of_reference=cbct_frame, name=GTV_NAME),
        motion=_true_motion(motion, grid, view),
        visible_share=visible_share(clean, depth, grid),
        facts={
            "week": week,
            "melted_fraction": change.melted,
            "airless_border_mm": change.airless_border_mm,
            "shift_pull_xyz_mm": motion.shift_xyz_mm.tolist(),
            "drift_pull_at_diaphragm_mm": motion.steady_z_mm,
            "breathing_peak_to_peak_mm": motion.breathing_mm,
            "planning_phase_offset_mm": motion.planning_offset_mm,
            "physics": "rtk" if _by_projection(physics) else "image",
        },
    )
    cbct = Volume(values=cbct_hu, grid=grid, frame_of_reference=cbct_frame)
    return Fraction(week=week, cbct=cbct, truth=truth)


def fraction_digest(patient: VirtualPatient, *, week: float, number: int, physics: Physics) -> str:
    """SHA-256 (hex) of what a fraction is made of; UIDs follow from it.

    Raises:
        InputError: Projections are asked for and itk-rtk is not installed.
    """
    parts = [patient.digest, number, float(week), _by_projection(physics)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _by_projection(physics: Physics) -> bool:
    if physics == "rtk":
        rtk.require_installed()
    return physics == "rtk" or (physics == "auto" and rtk.is_installed())


def _body_grid(patient: VirtualPatient, motion: Motion, scan: Grid) -> Grid:
    """All that rays of the scan pass through, in the CBCT's frame, coarse."""
    corners = motion.planning_from_cbct.inverse().apply(patient.grid.corners_xyz_mm)
    low, high = corners.min(axis=0), corners.max(axis=0)
    z = scan.origin_xyz_mm[2] + np.array([0.0, scan.offsets_z_mm[-1]])
    low[2] = max(low[2], z[0] - RAYS_BEYOND_MM)
    high[2] = min(high[2], z[1] + RAYS_BEYOND_MM)
    n = np.ceil((high - low) / PROJECTED_MM).astype(int) + 1
    return Grid.even(
        shape_zyx=(int(n[2]), int(n[1]), int(n[0])),
        spacing_xyz_mm=(PROJECTED_MM,) * 3,
        origin_xyz_mm=low,
    )


class _View:
    """The planning CT as seen from the voxels of a scan."""

    def __init__(self, motion: Motion, grid: Grid) -> None:
        patient = motion.patient
        to_planning = motion.planning_from_cbct.matrix @ world_from_index(grid)
        points = affine_points(to_planning, grid.shape_zyx)
        self.steady, self.breathing = motion.pull(points)
        affine = index_from_world(patient.grid).astype(np.float32)
        self.index = (points + self.steady) @ affine[:3, :3].T + affine[:3, 3]
        self.index_per_mm_z = affine[:3, 2]

    def of(self, values: np.ndarray, phase: float, *, outside: float) -> Layer:
        """Values of the planning grid as they lie in one breathing phase."""
        moved = self.index + (phase * self.breathing)[..., None] * self.index_per_mm_z
        return sample(values, moved, outside=outside)

    def of_box(self, depth_mm: Layer, patient: VirtualPatient) -> Layer:
        """A depth of the lesion's box, at the time-mean place."""
        z, y, x = (s.start for s in patient.lesion.box)
        return sample(depth_mm, self.index - np.array([x, y, z], np.float32), outside=FAR_MM)

    def within(self, planning_grid: Grid) -> np.ndarray:
        """Where the planning CT has anything to show."""
        slices = planning_grid.shape_zyx[0]
        k = self.index[..., 2]
        inside: np.ndarray = (k >= 0) & (k <= slices - 1)
        return inside


def _scan_grid(patient: VirtualPatient, rng: np.random.Generator) -> Grid:
    """The box round the reconstructed cylinder, axes of the machine."""
    sampling = patient.sampling
    spacing = np.asarray(sampling.cbct_spacing_xyz_mm)
    size = np.array(
        [sampling.field_diameter_mm, sampling.field_diameter_mm, sampling.field_length_mm]
    )
    n = np.maximum(2, np.round(size / spacing)).astype(int)
    k, j, i = np.argwhere(patient.anatomy.body[::4, ::4, ::4]).mean(axis=0) * 4
    middle = patient.grid.world([[i, j, k]])[0]
    center = middle + FIELD_OFF_AXIS * (patient.lesion.center_xyz_mm - middle)
    off = rng.uniform(-ISOCENTRE_Z_MM, ISOCENTRE_Z_MM)
    center[2] = patient.lesion.center_xyz_mm[2] + off
    half = sampling.field_length_mm / 2
    low, high = np.sort(patient.grid.corners_xyz_mm[[0, -1], 2])
    if low + half < high - half:  # scan what the CT shows, as far as the tumour allows
        within = np.clip(center[2], low + half, high - half)
        center[2] += np.clip(within - center[2], -ISOCENTRE_MOST_MM, ISOCENTRE_MOST_MM)
    return Grid.even(
        shape_zyx=(int(n[2]), int(n[1]), int(n[0])),
        spacing_xyz_mm=sampling.cbct_spacing_xyz_mm,
        origin_xyz_mm=np.round(center - (n - 1) / 2 * spacing, 2),
    )


def _field(grid: Grid, diameter_mm: float) -> np.ndarray:
    """The reconstructed cylinder."""
    nz, ny, nx = grid.shape_zyx
    x, y = grid.spacing_xy_mm
    across = np.hypot(
        ((np.arange(nx) - (nx - 1) / 2) * x)[None, :], ((np.arange(ny) - (ny - 1) / 2) * y)[:, None]
    )
    disc = across <= diameter_mm / 2
    return np.broadcast_to(disc, (nz, ny, nx))


def _true_motion(motion: Motion, grid: Grid, view: _View) -> DeformableTransform:
    """The pull as a displacement in the CBCT's frame, on a coarser grid."""
    n = TRUTH_STEP
    vectors = view.steady[:, ::n, ::n] @ motion.planning_from_cbct.matrix[:3, :3].astype(np.float32)
    nz, ny, nx = vectors.shape[:3]
    x, y, z = grid.spacing_xyz_mm
    coarse = Grid.even(
        shape_zyx=(nz, ny, nx),
        spacing_xyz_mm=(n * x, n * y, z),
        origin_xyz_mm=grid.origin_xyz_mm,
        direction=grid.direction,
    )
    return DeformableTransform(
        rigid=motion.planning_from_cbct,
        displacement=Displacement(
            values_xyz_mm=vectors,
            grid=coarse,
            frame_of_reference=motion.planning_from_cbct.source_frame,
        ),
    )


def visible_share(clean_hu: Layer, depth_mm: Layer, grid: Grid) -> float:
    """Share of a surface across which the noise-free image makes a visible step."""
    inside = depth_mm > 0
    surface = np.argwhere(inside & ~binary_erosion(inside))
    if not len(surface):
        return 0.0
    spacing = np.asarray(grid.spacing_zyx_mm)
    gradients = np.stack(
        [
            map_coordinates(depth_mm, (surface + step).T, order=1)
            - map_coordinates(depth_mm, (surface - step).T, order=1)
            for step in np.eye(3)
        ],
        axis=1,
    ) / (2 * spacing)
    normal = gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-6)
    reach = VISIBLE_REACH_MM * normal / spacing
    within = map_coordinates(clean_hu, (surface + reach).T, order=1)
    beyond = map_coordinates(clean_hu, (surface - reach).T, order=1)
    return float((np.abs(within - beyond) >= VISIBLE_STEP_HU).mean())
