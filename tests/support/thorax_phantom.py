"""A thorax that is known at every point: two lungs with vessels, a tumour, a windpipe, a couch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contourcast.imaging.grid import Grid, Points
from contourcast.imaging.transform import PointMap
from contourcast.imaging.volume import Mask, Volume
from support.analytic_phantom import CBCT, PLANNING, even_grid

EDGE_MM = 1.5
LUNG_HALF_AXES_MM = (40.0, 55.0, 60.0)
LEFT_LUNG_MM = np.array([55.0, 0.0, 0.0])
RIGHT_LUNG_MM = np.array([-55.0, 0.0, 0.0])
TUMOUR_MM = np.array([50.0, 10.0, 5.0])
TUMOUR_RADIUS_MM = 14.0


@dataclass(frozen=True, kw_only=True)
class Thorax:
    """Lungs as ellipsoids, the patient's left at positive x.

    Attributes:
        lungs: Which there are.
        bridge: Air joins the lungs in front, as thin lungs touch behind the breastbone.
        couch: A shell filled with foam, below.
        gas: A bubble of bowel gas as large as a lung, below the left one.
    """

    lungs: tuple[str, ...] = ("left", "right")
    tumour: bool = True
    bridge: bool = False
    couch: bool = False
    gas: bool = False
    vessels: int = 60

    def __call__(self, points_xyz_mm: Points) -> np.ndarray:
        """HU at points of the planning frame."""
        values = _blend(np.full(len(points_xyz_mm), -1000.0), points_xyz_mm, 30.0, BODY)
        generator = np.random.default_rng(5)
        for side, middle in (("left", LEFT_LUNG_MM), ("right", RIGHT_LUNG_MM)):
            if side in self.lungs:
                values = _blend(values, points_xyz_mm, -780.0, (middle, LUNG_HALF_AXES_MM))
                places = generator.normal(size=(self.vessels // 2, 3))
                places *= generator.uniform(0.2, 0.85, (len(places), 1)) / np.linalg.norm(
                    places, axis=1, keepdims=True
                )
                for place in places * LUNG_HALF_AXES_MM + middle:
                    values = _blend(values, points_xyz_mm, 0.0, (place, (3.5, 3.5, 3.5)))
        if self.tumour:
            values = _blend(values, points_xyz_mm, 40.0, (TUMOUR_MM, (TUMOUR_RADIUS_MM,) * 3))
        if self.bridge:
            values = _blend(values, points_xyz_mm, -750.0, (np.array([0.0, 0, 0]), (25, 8, 8)))
        if self.gas:
            values = _blend(
                values, points_xyz_mm, -990.0, (np.array([50.0, 0, 95.0]), (40, 45, 28))
            )
        if self.couch:
            for hu, half in ((200.0, (115, 14, 300)), (-900.0, (112, 11, 300))):
                inside = (np.abs(points_xyz_mm - [0, 120, 0]) <= half).all(axis=1)
                values[inside] = hu
        return values

    def planning_ct(self, grid: Grid | None = None) -> Volume:
        """As the planning CT shows it."""
        grid = grid or even_grid(extent_xyz_mm=(272, 280, 152), spacing_mm=4.0)
        return Volume(
            values=self(grid.centers()).reshape(grid.shape_zyx),
            grid=grid,
            frame_of_reference=PLANNING,
        )

    def cbct(
        self,
        planning_from_cbct: PointMap,
        *,
        grid: Grid | None = None,
        radius_mm: float = 110.0,
        noise_hu: float = 30.0,
    ) -> Volume:
        """As a cone beam shows it: other units, noise, a cylinder round the grid's middle."""
        grid = grid or even_grid(extent_xyz_mm=(240, 240, 136), spacing_mm=4.0)
        points = grid.centers()
        noise = np.random.default_rng(7).normal(size=len(points)) * noise_hu
        values = 0.8 * self(planning_from_cbct.apply(points)) - 60 + noise
        local = (points - grid.center_xyz_mm) @ grid.direction
        values[np.hypot(local[:, 0], local[:, 1]) > radius_mm] = -1000
        return Volume(values=values.reshape(grid.shape_zyx), grid=grid, frame_of_reference=CBCT)


def tumour_mask(ct: Volume) -> Mask:
    """The tumour as it is drawn on the planning CT."""
    inside = np.linalg.norm(ct.grid.centers() - TUMOUR_MM, axis=1) <= TUMOUR_RADIUS_MM
    return Mask(
        values=inside.reshape(ct.grid.shape_zyx),
        grid=ct.grid,
        frame_of_reference=ct.frame_of_reference,
        name="GTV",
    )


BODY = (np.array([0.0, 0.0, 0.0]), (115.0, 85.0, 600.0))


def _blend(
    values: np.ndarray,
    points_xyz_mm: Points,
    hu: float,
    ellipsoid: tuple[np.ndarray, tuple[float, float, float]],
) -> np.ndarray:
    """The same values, now with a soft-edged ellipsoid in them."""
    middle, half = ellipsoid
    reach = np.array(half) * (1 + 8 * EDGE_MM / min(half))
    near = np.ones(len(values), bool)
    for axis in range(3):
        near &= np.abs(points_xyz_mm[:, axis] - middle[axis]) < reach[axis]
    outside_mm = (np.linalg.norm((points_xyz_mm[near] - middle) / half, axis=1) - 1) * min(half)
    share = 1 / (1 + np.exp(np.clip(outside_mm / EDGE_MM, -50, 50)))
    values[near] += share * (hu - values[near])
    return values
