"""Two CTs of one lung with 51 landmarks (the elastix project's example), as a registration case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import ndimage

from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import PointMap, RigidTransform
from contourcast.imaging.volume import Mask, Volume
from contourcast.registration.deformable import Region, Scene, working_grid
from contourcast.registration.rigid import register_all
from contourcast.registration.settings import DeformableSettings, RegistrationSettings
from support.data import data_item
from support.real_scans import image_file, mask_file
from support.virtual_cbct import ball

BASELINE, FOLLOWUP = "1.2.3.1", "1.2.3.2"


@dataclass(frozen=True, kw_only=True)
class LandmarkPair:
    """Fixed = baseline, moving = follow-up, where the same vessels fork.

    Attributes:
        lung: Of the fixed scan, on a grid of its own; `moving_lung` of the other.
        in_fixed: Landmarks, LPS mm, shape (51, 3); `in_moving` the same places.
    """

    fixed: Volume
    moving: Volume
    lung: Mask
    moving_lung: Mask
    in_fixed: np.ndarray
    in_moving: np.ndarray

    @classmethod
    def read(cls) -> Self:
        """From the shared test data."""
        folder = data_item("lung_pair_landmarks")
        rows = np.loadtxt(folder / "landmarks_mm_lps.csv", delimiter=",", skiprows=1)
        return cls(
            fixed=image_file(folder / "baseline_half.mha", frame=BASELINE),
            moving=image_file(folder / "followup_rebuilt.mha", frame=FOLLOWUP),
            lung=mask_file(folder / "baseline_lung_mask.mha", frame=BASELINE),
            moving_lung=mask_file(folder / "followup_lung_mask.mha", frame=FOLLOWUP),
            in_fixed=rows[:, 1:4],
            in_moving=rows[:, 4:7],
        )

    def errors_mm(self, moving_from_fixed: PointMap) -> np.ndarray:
        """Distance of each landmark from where it is carried to, shape (51,)."""
        errors: np.ndarray = np.linalg.norm(
            moving_from_fixed.apply(self.in_fixed) - self.in_moving, axis=1
        )
        return errors

    def lung_on(self, grid: Grid, *, grown_mm: float = 0.0) -> Mask:
        """The lung, with what lies within a distance of it, on another grid."""
        index_zyx = self.lung.grid.index(grid.centers())[:, ::-1].T
        share = ndimage.map_coordinates(self.lung.values.astype(float), index_zyx, order=1)
        inside = share.reshape(grid.shape_zyx) >= 0.5
        if grown_mm:
            away = ndimage.distance_transform_edt(~inside, sampling=grid.spacing_zyx_mm)
            inside = away <= grown_mm
        return Mask(values=inside, grid=grid, frame_of_reference=self.lung.frame_of_reference)

    def swapped(self) -> Self:
        """The way back: what was fixed moves."""
        return replace(
            self,
            fixed=self.moving,
            moving=self.fixed,
            lung=self.moving_lung,
            moving_lung=self.lung,
            in_fixed=self.in_moving,
            in_moving=self.in_fixed,
        )

    def rigid(self, settings: RegistrationSettings) -> RigidTransform:
        """The rigid answer that looks at the lung alone."""
        return register_all(
            fixed=self.fixed,
            moving=self.moving,
            prior=self._prior,
            settings=settings,
            region=self.lung_on(self.fixed.grid),
        ).body.planning_from_cbct

    def scene(self, rigid: RigidTransform, deformable: DeformableSettings) -> Scene:
        """As DIR-L looks at it."""
        return Scene(
            fixed=self.fixed,
            moving=self.moving,
            prior=self._prior,
            planning_from_cbct=rigid,
            settings=RegistrationSettings(deformable=deformable),
        )

    def region(self, scene: Scene) -> Region:
        """The lung and DIR-L's margin, on the working grid."""
        k, j, i = np.nonzero(self.lung.values)
        places = self.lung.grid.world(np.column_stack((i, j, k)))
        grid = working_grid(scene, places, method="dir-l")
        margin_mm = scene.deformable.lung_margin_mm
        return Region(mask=self.lung_on(grid, grown_mm=margin_mm))

    @property
    def _prior(self) -> Mask:
        return ball(self.moving, self.in_moving.mean(axis=0), radius_mm=15)
