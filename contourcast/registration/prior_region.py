"""The prior as the registration needs it: where it is, and what lies round it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from contourcast.imaging.grid import frozen_array
from contourcast.imaging.volume import Mask

MOST_POINTS = 5000  # of a mask: a sphere of 500 cc keeps one point in 5 mm


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorRegion:
    """Evenly drawn points of the prior on the planning CT.

    Attributes:
        points_xyz_mm: LPS mm, at most `MOST_POINTS`; none when the prior has no voxel.
        centroid_xyz_mm: Centre of mass; None when it has no voxel.
    """

    points_xyz_mm: Float[np.ndarray, "n 3"]
    centroid_xyz_mm: Float[np.ndarray, " 3"] | None

    @classmethod
    def of(cls, prior: Mask) -> PriorRegion:
        """From its voxels."""
        filled = np.flatnonzero(prior.values.any(axis=(1, 2)))
        if not len(filled):
            return cls(points_xyz_mm=np.empty((0, 3)), centroid_xyz_mm=None)
        first, last = int(filled[0]), int(filled[-1]) + 1
        _, ny, nx = prior.grid.shape_zyx
        part = Mask(
            values=prior.values[first:last],
            grid=prior.grid.crop((first, 0, 0), (last, ny, nx)),
            frame_of_reference=prior.frame_of_reference,
        )
        k, j, i = np.nonzero(part.values)
        index = np.column_stack((i, j, k)).astype(float)[:: -(-len(k) // MOST_POINTS)]
        return cls(
            points_xyz_mm=frozen_array(part.grid.world(index)),
            centroid_xyz_mm=part.centroid_xyz_mm(),
        )

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.points_xyz_mm)

    def near(
        self, planning_xyz_mm: Float[np.ndarray, "n 3"], *, margin_mm: float
    ) -> Bool[np.ndarray, " n"]:
        """Which points of the planning CT lie within the margin."""
        within = np.zeros(len(planning_xyz_mm), bool)
        if not len(self.points_xyz_mm):
            return within
        low = self.points_xyz_mm.min(axis=0) - margin_mm
        high = self.points_xyz_mm.max(axis=0) + margin_mm
        boxed = ((planning_xyz_mm >= low) & (planning_xyz_mm <= high)).all(axis=1)
        distance, _ = self._tree.query(planning_xyz_mm[boxed], distance_upper_bound=margin_mm)
        within[boxed] = np.isfinite(distance)
        return within
