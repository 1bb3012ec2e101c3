"""A quick cone beam in the image domain, moved by a motion that is known exactly.

Gain, offset, shading, cupping, streaks, noise and a round field of view; no scatter, no
breathing. For tests of geometry: the tissue is the scan's own, so accuracy is flattered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter, zoom
from scipy.spatial.transform import Rotation

from contourcast.imaging.grid import Grid
from contourcast.imaging.resample import resample
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume

CBCT_FRAME = "1.2.826.0.1.3680043.10.1.1"


def random_motion(
    generator: np.random.Generator,
    *,
    center_xyz_mm: np.ndarray,
    longest_mm: float,
    widest_deg: float,
    source_frame: str,
    target_frame: str,
) -> RigidTransform:
    """A shift up to ``longest_mm`` long, and up to ``widest_deg`` about each axis."""
    direction = generator.normal(size=3)
    return RigidTransform.about(
        center_xyz_mm,
        rotation=Rotation.from_euler(
            "xyz", generator.uniform(-widest_deg, widest_deg, 3), degrees=True
        ).as_matrix(),
        translation_xyz_mm=direction / np.linalg.norm(direction) * generator.uniform(0, longest_mm),
        source_frame=source_frame,
        target_frame=target_frame,
    )


def cone_beam(
    ct: Volume,
    planning_from_cbct: RigidTransform,
    *,
    generator: np.random.Generator,
    center_xyz_mm: np.ndarray,
    radius_mm: float,
    length_mm: float,
    spacing_mm: float = 2.5,
) -> Volume:
    """What a cone beam round this centre might show of the moved CT; -1000 outside its field."""
    across, along = int(2 * (radius_mm + 20) / spacing_mm), int(length_mm / spacing_mm)
    grid = Grid.even(
        shape_zyx=(along, across, across),
        spacing_xyz_mm=(spacing_mm,) * 3,
        origin_xyz_mm=center_xyz_mm
        - np.array([across - 1, across - 1, along - 1]) * spacing_mm / 2,
    )
    clean = resample(ct, planning_from_cbct, onto=grid).values.astype(float)
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape_zyx), indexing="ij")
    distance = np.hypot(x, y) * across * spacing_mm / 2
    body = uniform_filter((clean > -500).astype(np.float32), 9)
    coarse = generator.normal(size=(4, 4, 4))
    shading = zoom(coarse, np.array(grid.shape_zyx) / 4, order=1, grid_mode=True, mode="nearest")
    angle = np.arctan2(y - generator.uniform(-0.3, 0.3), x - generator.uniform(-0.3, 0.3))
    noise = gaussian_filter(generator.normal(size=grid.shape_zyx), 0.7)
    seen = (
        clean * generator.uniform(0.75, 0.95)
        + generator.uniform(-80, 60)
        + 90 * shading / np.abs(shading).max()
        - 130 * body * np.exp(-((distance / 90) ** 2))
        + 25 * body * np.cos(generator.integers(20, 40) * angle)
        + 60 * noise / noise.std()
    )
    seen = np.where(distance <= radius_mm, np.maximum(seen, -1000), -1000)
    return Volume(
        values=seen.astype(np.float32),
        grid=grid,
        frame_of_reference=planning_from_cbct.source_frame,
    )


def target_errors_mm(
    answer: RigidTransform, truth: RigidTransform, *, center_xyz_mm: np.ndarray
) -> np.ndarray:
    """Distance between both at the nodes of a 16 cm cube."""
    side = np.linspace(-80, 80, 5)
    cube = np.array([[a, b, c] for a in side for b in side for c in side]) + center_xyz_mm
    errors: np.ndarray = np.linalg.norm(answer.apply(cube) - truth.apply(cube), axis=1)
    return errors


def ball(volume: Volume, center_xyz_mm: np.ndarray, *, radius_mm: float) -> Mask:
    """A round prior on the grid of a scan."""
    middle = volume.grid.index(center_xyz_mm[None])[0][::-1]
    reach = radius_mm / np.array(volume.grid.spacing_zyx_mm) + 1
    low = np.clip(np.floor(middle - reach), 0, volume.grid.shape_zyx).astype(int)
    high = np.clip(np.ceil(middle + reach) + 1, 0, volume.grid.shape_zyx).astype(int)
    values = np.zeros(volume.grid.shape_zyx, bool)
    if (high > low).all():
        box = volume.grid.crop(low.tolist(), high.tolist())
        inside = np.linalg.norm(box.centers() - center_xyz_mm, axis=1) <= radius_mm
        values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside.reshape(
            box.shape_zyx
        )
    return Mask(
        values=values,
        grid=volume.grid,
        frame_of_reference=volume.frame_of_reference,
        name="GTV",
    )


def thinned(volume: Volume, *, factor: int) -> Volume:
    """Means of square blocks within each slice: the same scan, cheaper."""
    nz, ny, nx = volume.grid.shape_zyx
    rows, columns = ny // factor, nx // factor
    blocks = volume.values[:, : rows * factor, : columns * factor].reshape(
        nz, rows, factor, columns, factor
    )
    x, y = volume.grid.spacing_xy_mm
    grid = replace(
        volume.grid,
        shape_zyx=(nz, rows, columns),
        spacing_xy_mm=(x * factor, y * factor),
        origin_xyz_mm=volume.grid.world([[(factor - 1) / 2, (factor - 1) / 2, 0]])[0],
    )
    return Volume(
        values=blocks.mean(axis=(2, 4)), grid=grid, frame_of_reference=volume.frame_of_reference
    )


def moved_series(volume: Volume, motion: RigidTransform) -> Volume:
    """The same voxels, laid elsewhere and otherwise: new positions, orientation and frame."""
    grid = replace(
        volume.grid,
        origin_xyz_mm=motion.apply(volume.grid.origin_xyz_mm[None])[0],
        direction=motion.matrix[:3, :3] @ volume.grid.direction,
    )
    return Volume(values=volume.values, grid=grid, frame_of_reference=motion.target_frame)
