"""Tiny samples, made in memory (a ball, and a prior beside it), and scores."""

from __future__ import annotations

import numpy as np

from contourcast.training.calibrate import Score
from contourcast.training.samples import Sample


def patch_sample(
    *, seed: int, shape_zyx: tuple[int, int, int] = (20, 24, 24), fractions: int = 2
) -> Sample:
    """A dense ball of 9 mm in 3 mm voxels; every ``fractions`` samples share a patient."""
    generator = np.random.default_rng(seed)
    places = np.stack(
        np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape_zyx), indexing="ij"), -1
    )
    center = generator.normal(0, 1.0, 3)
    depth_mm = 9.0 - 3.0 * np.linalg.norm(places - center, axis=-1)
    prior_mm = 10.0 - 3.0 * np.linalg.norm(places, axis=-1)
    scan = np.tanh(depth_mm / 3.0) + 0.2 * generator.standard_normal(shape_zyx)
    return Sample(
        name=f"sample-{seed}",
        patient=f"patient-{seed // fractions}",
        ct=f"ct-{seed // fractions}",
        scan=scan.astype(np.float32),
        prior_mm=prior_mm.astype(np.float32),
        planning=np.tanh(prior_mm / 3.0).astype(np.float32),
        followed_prior_mm=prior_mm.astype(np.float32),
        followed_planning=np.tanh(prior_mm / 3.0).astype(np.float32),
        label=(1 / (1 + np.exp(-depth_mm / 0.5))).astype(np.float32),
    )


def score(method: str, dice: float, *, patient: int = 0, ended_as: str = "") -> Score:
    return Score(
        ct="phantom 1",
        patient=patient,
        week=3.0,
        difficulty=1.0,
        regression=1.0,
        method=method,
        dice=dice,
        dice_anatomical=dice / 2,
        label_cc=12.0,
        visible_share=0.1,
        place="wall",
        ended_as=ended_as,
    )
