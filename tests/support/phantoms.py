"""Grids and contour stacks with a closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Contour, Roi

FRAME = "2.25.1"
Radii = Callable[[float], Sequence[float]]


def planning_grid(*, step_mm: float = 3.0, pixel_mm: float = 0.9766) -> Grid:
    """As a planning CT of the thorax, cut to 150 mm about the world's origin."""
    columns, slices = int(150 / pixel_mm), int(120 / step_mm)
    return Grid.even(
        shape_zyx=(slices, columns, columns),
        spacing_xyz_mm=(pixel_mm, pixel_mm, step_mm),
        origin_xyz_mm=(-75.2, -74.9, -60.0),
    )


def stack(
    grid: Grid,
    radii_mm: Radii,
    *,
    center_xyz_mm: Sequence[float] = (3.3, -7.1, 0.7),
    corners: int = 120,
    every: int = 1,
) -> Roi:
    """Circles on the slices of a grid, as drawn by hand: a radius (or several) at each height.

    Heights and centre are in mm along the grid's axes, from the world's origin for a grid that
    has its axes along the world's.
    """
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    contours = []
    first = grid.origin_xyz_mm @ grid.direction
    for offset in grid.offsets_z_mm[::every]:
        height = float(first[2] + offset)
        for radius in radii_mm(height - center_xyz_mm[2]):
            if radius > 0:
                x = center_xyz_mm[0] + radius * np.cos(angle)
                y = center_xyz_mm[1] + radius * np.sin(angle)
                local = np.column_stack((x, y, np.full(corners, height)))
                contours.append(Contour(points_xyz_mm=local @ grid.direction.T))
    return Roi(number=1, name="GTV", contours=tuple(contours), frame_of_reference=FRAME)


def ball(radius_mm: float) -> Radii:
    """A sphere."""
    return lambda z: [float(np.sqrt(max(radius_mm**2 - z * z, 0.0)))]


def tube(outer_mm: float, inner_mm: float, length_mm: float) -> Radii:
    """A cylinder with a hole along its axis (none when the inner radius is 0)."""
    return lambda z: [outer_mm, inner_mm] if abs(z) < length_mm / 2 else []


def circle_area_mm2(radius_mm: float, corners: int = 120) -> float:
    """Of the polygon that `stack` draws."""
    return corners / 2 * radius_mm**2 * float(np.sin(2 * np.pi / corners))
