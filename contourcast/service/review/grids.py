"""A grid as the page is told of it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from contourcast.imaging.grid import Grid


def grid_as_json(grid: Grid) -> dict[str, Any]:
    """Where voxels lie; doubles come back bit by bit."""
    return {
        "shape_zyx": list(grid.shape_zyx),
        "spacing_xyz_mm": list(grid.spacing_xyz_mm),
        "origin_xyz_mm": grid.origin_xyz_mm.tolist(),
        "direction": grid.direction.tolist(),
        "slice_z_mm": grid.offsets_z_mm.tolist(),
        "even": grid.is_even,
    }


def grid_of(image: Mapping[str, Any]) -> Grid:
    """What `grid_as_json` wrote."""
    slices, rows, columns = image["shape_zyx"]
    x, y, _ = image["spacing_xyz_mm"]
    return Grid(
        shape_zyx=(slices, rows, columns),
        spacing_xy_mm=(x, y),
        origin_xyz_mm=np.array(image["origin_xyz_mm"]),
        direction=np.array(image["direction"]),
        offsets_z_mm=np.array(image["slice_z_mm"]),
    )
