"""Hypothesis generators of valid domain objects.

Grids come in every orientation a scan may have, with square and other pixels and with even and
uneven slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask

FRAME = "2.25.1"
OTHER_FRAME = "2.25.2"
Draw = Callable[[st.SearchStrategy[Any]], Any]

SUPINE = np.eye(3)
PRONE = np.diag([-1.0, -1.0, 1.0])
FEET_FIRST = np.diag([-1.0, 1.0, -1.0])
DECUBITUS = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def rotations(max_deg: float) -> st.SearchStrategy[np.ndarray]:
    """Rotation matrices up to an angle."""
    angle = np.radians(max_deg) / np.sqrt(3)
    part = st.floats(-angle, angle)
    return st.tuples(part, part, part).map(lambda v: Rotation.from_rotvec(v).as_matrix())


def directions() -> st.SearchStrategy[np.ndarray]:
    """Patient positions, straight and oblique."""
    positions = st.sampled_from([SUPINE, PRONE, FEET_FIRST, DECUBITUS])
    tilts = st.one_of(st.just(np.eye(3)), rotations(30))
    return st.tuples(tilts, positions).map(lambda pair: pair[0] @ pair[1])


@st.composite
def grids(draw: Draw, *, most_zyx: tuple[int, int, int] = (6, 9, 10), uneven: bool = True) -> Grid:
    """Grids of at least three slices."""
    nz, ny, nx = (draw(st.integers(3, most)) for most in most_zyx)
    spacings = st.floats(0.3, 6.0)
    gaps = st.floats(0.5, 8.0)
    one_gap = draw(gaps)
    each = draw(st.lists(gaps, min_size=nz - 1, max_size=nz - 1)) if uneven else None
    is_uneven = uneven and draw(st.booleans())
    offsets = np.cumsum([0.0, *(each if is_uneven and each else [one_gap] * (nz - 1))])
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return Grid(
        shape_zyx=(nz, ny, nx),
        spacing_xy_mm=(draw(spacings), draw(spacings)),
        origin_xyz_mm=np.array(origin),
        direction=draw(directions()),
        offsets_z_mm=offsets,
    )


@st.composite
def masks(draw: Draw, grid: Grid, *, border: int = 0) -> Mask:
    """Masks of a random blob, at least ``border`` voxels from the grid's sides; may be empty."""
    values = np.zeros(grid.shape_zyx, bool)
    inner = tuple(slice(border, size - border) for size in grid.shape_zyx)
    shape = values[inner].shape
    seed = draw(st.integers(0, 2**32 - 1))
    share = draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]))
    values[inner] = np.random.default_rng(seed).random(shape) < share
    return Mask(values=values, grid=grid, frame_of_reference=FRAME, name="GTV")


@st.composite
def rigid_transforms(
    draw: Draw, *, source_frame: str = OTHER_FRAME, target_frame: str = FRAME
) -> RigidTransform:
    """Motions of up to 40 degrees and 100 mm."""
    return RigidTransform.about(
        np.array(draw(st.tuples(*[st.floats(-300, 300)] * 3))),
        rotation=draw(rotations(40)),
        translation_xyz_mm=np.array(draw(st.tuples(*[st.floats(-100, 100)] * 3))),
        source_frame=source_frame,
        target_frame=target_frame,
    )
