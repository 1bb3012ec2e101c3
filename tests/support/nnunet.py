"""A toy data set as `contourcast train prepare` leaves one: balls, each with a prior beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from contourcast.imaging.grid import Grid
from contourcast.training.datasets.nifti import write_nifti
from contourcast.training.datasets.splits import write_splits
from support.models import ball

NUMBER = 901
NAME = "Dataset901_Toy"
CASES = 4
SPACING_MM = 3.0


def toy_dataset(
    raw: Path, *, shape_zyx: tuple[int, int, int] = (24, 24, 24), channels: int = 2, seed: int = 0
) -> Path:
    """Four cases of four patients; the answer is the data set's folder in ``raw``."""
    folder = raw / NAME
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    generator = np.random.default_rng(seed)
    grid = Grid.even(
        shape_zyx=shape_zyx,
        spacing_xyz_mm=(SPACING_MM,) * 3,
        origin_xyz_mm=tuple(-SPACING_MM * (n - 1) / 2 for n in shape_zyx[::-1]),
    )
    patients = {}
    for number in range(CASES):
        case = f"toy-{number}"
        patients[case] = f"patient-{number}"
        center = tuple(float(v) for v in generator.normal(0, 3, 3))
        depth, _ = ball(grid, center_xyz_mm=center, radius_mm=14.0)  # type: ignore[arg-type]
        _, prior = ball(grid, center_xyz_mm=(0.0, 0.0, 0.0), radius_mm=15.0)
        scan = -700 + 720 / (1 + np.exp(-depth / 1.5)) + generator.normal(0, 60, depth.shape)
        for channel, values in enumerate((scan, prior)[:channels]):
            path = folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
            write_nifti(path, values.astype(np.float32), grid)
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", (depth > 0).astype(np.uint8), grid)
    document = {
        "channel_names": {"0": "CT", "1": "noNorm"} if channels == 2 else {"0": "CT"},
        "labels": {"background": 0, "GTV": 1},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    (folder / "patients.json").write_text(json.dumps(patients))
    write_splits(folder, patients, seed=1, folds=2)
    return folder
