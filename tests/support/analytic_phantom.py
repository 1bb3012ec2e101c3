"""A body of soft-edged balls that is known at every point, so no truth is interpolated."""

from __future__ import annotations

import numpy as np

from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume

PLANNING, CBCT = "1.2.3.10", "1.2.3.20"
EDGE_MM = 2.0


class Phantom:
    """An ellipsoid of tissue with ``balls`` of lung, bone and fat in it, about the origin."""

    def __init__(self, seed: int = 1, balls: int = 70) -> None:
        generator = np.random.default_rng(seed)
        self.centers = generator.uniform(-1, 1, (balls, 3)) * [85, 65, 55]
        self.radii = generator.uniform(6, 18, balls)
        self.hu = generator.choice([-750.0, 500.0, 700.0, -100.0], balls, p=[0.3, 0.3, 0.1, 0.3])

    def __call__(self, points_xyz_mm: np.ndarray) -> np.ndarray:
        """HU at points of the planning frame."""
        body = 1 / (1 + np.exp((np.linalg.norm(points_xyz_mm / [105, 85, 400], axis=1) - 1) * 60))
        values = -1000 + 1040 * body
        for center, radius, hu in zip(self.centers, self.radii, self.hu, strict=True):
            distance = np.linalg.norm(points_xyz_mm - center, axis=1) - radius
            near = distance < 8 * EDGE_MM
            share = 1 / (1 + np.exp(distance[near] / EDGE_MM))
            values[near] += share * (hu - values[near])
        painted: np.ndarray = values
        return painted

    def planning_ct(self, grid: Grid | None = None) -> Volume:
        """As the planning CT shows it."""
        grid = grid or even_grid(extent_xyz_mm=(240, 200, 180), spacing_mm=3.0)
        return Volume(
            values=self(grid.centers()).reshape(grid.shape_zyx),
            grid=grid,
            frame_of_reference=PLANNING,
        )

    def cbct(
        self,
        planning_from_cbct: RigidTransform,
        *,
        grid: Grid | None = None,
        noise_hu: float = 30.0,
        radius_mm: float = 80.0,
    ) -> Volume:
        """As a cone beam shows it: other units, noise, a cylinder round the grid's middle."""
        grid = grid or even_grid(extent_xyz_mm=(190, 190, 110), spacing_mm=3.0)
        points = grid.centers()
        noise = np.random.default_rng(7).normal(size=len(points)) * noise_hu
        values = 0.8 * self(planning_from_cbct.apply(points)) - 60 + noise
        local = (points - grid.center_xyz_mm) @ grid.direction
        values[np.hypot(local[:, 0], local[:, 1]) > radius_mm] = -1000
        return Volume(values=values.reshape(grid.shape_zyx), grid=grid, frame_of_reference=CBCT)


def even_grid(
    *,
    extent_xyz_mm: tuple[float, float, float],
    spacing_mm: float,
    center_xyz_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: np.ndarray | None = None,
) -> Grid:
    """Isotropic, round a centre."""
    axes = np.eye(3) if direction is None else direction
    size = [round(e / spacing_mm) for e in extent_xyz_mm]
    half = (np.array(size) - 1) * spacing_mm / 2
    return Grid.even(
        shape_zyx=(size[2], size[1], size[0]),
        spacing_xyz_mm=(spacing_mm,) * 3,
        origin_xyz_mm=np.array(center_xyz_mm) - axes @ half,
        direction=axes,
    )


def motion(
    *, shift_xyz_mm: tuple[float, float, float], rotation_xyz_deg: tuple[float, float, float]
) -> RigidTransform:
    """``planning_from_cbct`` about the origin."""
    from scipy.spatial.transform import Rotation

    return RigidTransform.about(
        np.zeros(3),
        rotation=Rotation.from_euler("xyz", rotation_xyz_deg, degrees=True).as_matrix(),
        translation_xyz_mm=np.array(shift_xyz_mm),
        source_frame=CBCT,
        target_frame=PLANNING,
    )
