"""Contour geometry on a planning CT's grid: agreement against MONAI; other steps, peak memory.

    python benchmarks/geometry.py [REPETITIONS]

A tumour of 66 cc on 512 x 512 x 100 voxels (0.98 x 0.98 x 3 mm) and the same moved by a few
millimetres, drawn as bumpy circles. Ratios are ours over MONAI's of the same run, in turns, one
thread each.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.measure import compared, peak_mib, timed
from contourcast.imaging.distance import DistanceMap, carry, distance_map
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import agreement, dice
from contourcast.imaging.rasterise import coverage, rasterise
from contourcast.imaging.resample import resample
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume

FRAME, CBCT_FRAME = "2.25.1", "2.25.2"
GRID = Grid.even(
    shape_zyx=(100, 512, 512),
    spacing_xyz_mm=(0.9766, 0.9766, 3.0),
    origin_xyz_mm=(-250.0, -250.0, -150.0),
)
MOTION = RigidTransform.about(
    np.zeros(3),
    rotation=Rotation.from_euler("ZYX", [3, -2, 1], degrees=True).as_matrix(),
    translation_xyz_mm=np.array([3.0, -4.0, 5.0]),
    source_frame=CBCT_FRAME,
    target_frame=FRAME,
)


@cache
def tumour(shift_mm: float = 0.0) -> Roi:
    """A ball of 25 mm with bumps, 200 points a contour."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    contours = []
    for z in GRID.origin_xyz_mm[2] + GRID.offsets_z_mm:
        radius2 = 25.0**2 - (z - 1.0) ** 2
        if radius2 > 0:
            radius = np.sqrt(radius2) * (1 + 0.08 * np.sin(3 * angle + z / 7))
            x, y = 40 + shift_mm + radius * np.cos(angle), 10 + radius * np.sin(angle)
            contours.append(Contour(points_xyz_mm=np.column_stack((x, y, np.full(200, z)))))
    return Roi(number=1, name="GTV", contours=tuple(contours), frame_of_reference=FRAME)


@cache
def pair() -> tuple[Mask, Mask]:
    """Proposal and reference."""
    return rasterise(tumour(3.0), GRID), rasterise(tumour(), GRID)


@cache
def scan() -> Volume:
    """Noise in Hounsfield units."""
    values = np.random.default_rng(0).normal(0, 300, GRID.shape_zyx)
    return Volume(values=values, grid=GRID, frame_of_reference=FRAME)


def run_rasterise() -> object:
    """Contours to a mask."""
    return rasterise(tumour(), GRID)


def run_coverage() -> object:
    """Contours to area shares."""
    return coverage(tumour(), GRID)


def run_distance_map() -> object:
    """Contours to a signed distance."""
    return distance_map(tumour(), grid=GRID)


def run_carry() -> object:
    """A signed distance to another scan."""
    return carry(_distance(), MOTION, onto=GRID)


def run_trace() -> object:
    """A mask to contours."""
    return trace(pair()[1])


def run_resample() -> object:
    """A whole scan to another grid."""
    return resample(scan(), MOTION, onto=GRID)


def run_agreement() -> object:
    """All figures of two masks."""
    return agreement(*pair())


def run_dice() -> object:
    """The overlap alone."""
    return dice(*pair())


@cache
def _distance() -> DistanceMap:
    return distance_map(tumour(), grid=GRID)


def monai_figures() -> dict[str, Callable[[], object]]:
    """MONAI's functions for the same figures, on the same two masks as tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        metrics = import_module("monai.metrics")
    torch.set_num_threads(1)
    a, b = (torch.from_numpy(m.values.astype(np.float32))[None, None] for m in pair())
    spacing = list(GRID.spacing_zyx_mm)
    return {
        "dice": partial(metrics.compute_dice, a, b),
        "iou": partial(metrics.compute_iou, a, b),
        "hd95": partial(metrics.compute_hausdorff_distance, a, b, percentile=95, spacing=spacing),
        "msd": partial(
            metrics.compute_average_surface_distance, a, b, symmetric=True, spacing=spacing
        ),
        "surface dice at 1, 2, 3 mm": lambda: [
            metrics.compute_surface_dice(a, b, [mm], spacing=spacing, use_subvoxels=True)
            for mm in (1.0, 2.0, 3.0)
        ],
    }


def main(times: int) -> None:
    """Prints a line for each step."""
    steps = [
        run_rasterise, run_coverage, run_distance_map, run_carry, run_trace, run_resample,
    ]  # fmt: skip
    for step in steps:
        print(f"{step.__doc__} {timed(step, times=1 if step is run_resample else times)}")
    carrying = peak_mib(partial(carry, onto=GRID), _distance(), MOTION)
    print(f"Carrying, peak memory beyond its inputs: {carrying:.0f} MiB")
    measuring = peak_mib(agreement, *pair())
    print(f"Agreement, peak memory beyond its inputs: {measuring:.0f} MiB")
    theirs = monai_figures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI announces its own deprecations
        print(compared("dice alone", run_dice, theirs["dice"], times=times))
        every = list(theirs.values())
        print(compared("every figure", run_agreement, lambda: [f() for f in every], times=times))
        for name in ("hd95", "msd", "surface dice at 1, 2, 3 mm"):
            label = f"every figure of ours, {name} of MONAI"
            print(compared(label, run_agreement, theirs[name], times=times))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
