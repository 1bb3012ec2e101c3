"""A small trained-looking model, and a case for it, made in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from contourcast.imaging.grid import Grid
from contourcast.imaging.resample import Moved
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Probability, Volume
from contourcast.models.diff_umamba import DiffUMamba, DiffUMambaConfig
from contourcast.models.weights import Card, save_model

TINY = DiffUMambaConfig(
    features=(4, 8, 16),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(1,) * 3,
    decoder_blocks_asked=(1,) * 2,
)
FRAME = "2.25.1"
PLANNING_FRAME = "2.25.9"


def tiny_card(**changes: object) -> Card:
    entries: dict[str, object] = {
        "network": "diff-umamba",
        "config": TINY,
        "spacing_zyx_mm": (3.0, 3.0, 3.0),
        "patch_zyx": (16, 20, 20),
        "margin_mm": 9.0,
        "training": {"data": "none: weights at birth"},
    }
    return Card(**entries | changes)  # type: ignore[arg-type]


def tiny_model(folder: Path, *, seed: int = 0) -> Card:
    """A model folder with weights at birth."""
    torch.manual_seed(seed)
    return save_model(folder, DiffUMamba(TINY), tiny_card(), dtype=torch.float32)


def ball(
    grid: Grid, *, center_xyz_mm: tuple[float, float, float], radius_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to a ball (inside positive) and its sigmoid, on a grid."""
    away = np.linalg.norm(grid.centers() - np.array(center_xyz_mm), axis=1)
    depth = (radius_mm - away).reshape(grid.shape_zyx)
    return depth, 1 / (1 + np.exp(-depth.clip(-30, 30)))


def ball_case(
    *, seed: int = 0, radius_mm: float = 12.0, shift_mm: float = 4.0, noise_hu: float = 60.0
) -> tuple[Volume, Probability, Mask]:
    """A scan with a dense ball in lung, a prior that is larger and beside it, and the truth."""
    generator = np.random.default_rng(seed)
    grid = Grid.even(
        shape_zyx=(36, 50, 54), spacing_xyz_mm=(2.0, 2.0, 2.5), origin_xyz_mm=(-50.0, -45.0, -40.0)
    )
    center = tuple(float(v) for v in generator.normal(0, shift_mm, 3))
    depth, _ = ball(grid, center_xyz_mm=center, radius_mm=radius_mm)  # type: ignore[arg-type]
    _, prior = ball(grid, center_xyz_mm=(0.0, 0.0, 0.0), radius_mm=1.2 * radius_mm)
    values = -700 + 720 / (1 + np.exp(-depth / 1.5)) + generator.normal(0, noise_hu, depth.shape)
    place = {"grid": grid, "frame_of_reference": FRAME}
    return (
        Volume(values=values, **place),  # type: ignore[arg-type]
        Probability(values=prior, name="GTV", **place),  # type: ignore[arg-type]
        Mask(values=depth > 0, name="GTV", **place),  # type: ignore[arg-type]
    )


def ball_planned(*, radius_mm: float = 14.4, offset_xyz_mm: tuple[float, float, float]) -> Moved:
    """The planning CT of a ball case: the ball where the prior is, the couch elsewhere."""
    grid = Grid.even(
        shape_zyx=(45, 60, 60),
        spacing_xyz_mm=(2.0, 2.0, 2.5),
        origin_xyz_mm=np.array((-60.0, -60.0, -55.0)) + offset_xyz_mm,
    )
    depth, _ = ball(grid, center_xyz_mm=offset_xyz_mm, radius_mm=radius_mm)
    matrix = np.eye(4)
    matrix[:3, 3] = offset_xyz_mm
    return Moved(
        volume=Volume(
            values=-700 + 720 / (1 + np.exp(-depth / 1.5)),
            grid=grid,
            frame_of_reference=PLANNING_FRAME,
        ),
        moving_from_fixed=RigidTransform(
            matrix=matrix, source_frame=FRAME, target_frame=PLANNING_FRAME
        ),
    )
