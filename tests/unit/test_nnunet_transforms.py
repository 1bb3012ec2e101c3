from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("batchgeneratorsv2", reason="needs nnU-Net: pip install 'contourcast[train]'")

from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from contourcast.imaging.grid import Grid
from contourcast.training.nnunet.recipe import PriorErrors
from contourcast.training.nnunet.transforms import ImagesOnly, for_contours, wrong_prior
from support.models import ball

SPACING_MM = (2.0, 2.0, 2.0)
NOTHING = PriorErrors(shift_mm=0, rotation_deg=0, growth_mm=0, smooth_mm=0, dropped=0)


def prior(radius_mm: float = 14.0) -> np.ndarray:
    grid = Grid.even(
        shape_zyx=(36, 38, 40), spacing_xyz_mm=SPACING_MM, origin_xyz_mm=(-39.0, -37.0, -35.0)
    )
    _, values = ball(grid, center_xyz_mm=(0.0, 0.0, 0.0), radius_mm=radius_mm)
    return values.astype(np.float32)


def noisy() -> RandomTransform:
    return RandomTransform(
        GaussianNoiseTransform(noise_variance=(1.0, 1.0), p_per_channel=1.0), apply_probability=1.0
    )


def center_mm(values: np.ndarray) -> np.ndarray:
    places = np.argwhere(values >= 0.5) * np.array(SPACING_MM)
    found: np.ndarray = places.mean(0)
    return found


class TestImagesOnly:
    def test_a_contour_keeps_its_values_and_the_scan_does_not(self) -> None:
        image = torch.rand(2, 6, 6, 6)
        kept = image.clone()
        changed = ImagesOnly(noisy(), [0])(image=image, segmentation=None)["image"]
        assert torch.equal(changed[1], kept[1])
        assert (changed[0] - kept[0]).abs().mean() > 0.3
        assert torch.equal(image, kept)

    def test_nnunets_own_transforms_are_sorted(self) -> None:
        transforms = ComposeTransforms([noisy(), MirrorTransform(allowed_axes=(0,))])
        sorted_ = for_contours(
            transforms, contours=[1], channels=2, spacing_mm=SPACING_MM, errors=PriorErrors()
        ).transforms
        kinds = [type(each).__name__ for each in sorted_]
        assert kinds == ["WrongPrior", "ImagesOnly", "MirrorTransform"]

    def test_every_intensity_transform_of_nnunet_is_kept_from_contours(self) -> None:
        trainer = pytest.importorskip("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
        made = trainer.nnUNetTrainer.get_training_transforms(
            np.array([8, 8, 8]), (-0.5, 0.5), None, (0, 1, 2), False, use_mask_for_norm=[False] * 2
        )
        sorted_ = for_contours(
            made, contours=[1], channels=2, spacing_mm=SPACING_MM, errors=None
        ).transforms
        kept = [each.transform.transform for each in sorted_ if isinstance(each, ImagesOnly)]
        names = {type(each).__name__ for each in kept}
        assert names == {
            "GaussianNoiseTransform",
            "GaussianBlurTransform",
            "MultiplicativeBrightnessTransform",
            "ContrastTransform",
            "SimulateLowResolutionTransform",
            "GammaTransform",
        }

    def test_without_contours_nothing_changes(self) -> None:
        transforms = ComposeTransforms([noisy()])
        same = for_contours(
            transforms, contours=[], channels=1, spacing_mm=SPACING_MM, errors=PriorErrors()
        )
        assert same is transforms


class TestWrongPrior:
    def draw(self, errors: PriorErrors, seed: int = 0, **changes: Any) -> np.ndarray:
        return wrong_prior(prior(**changes), SPACING_MM, errors, np.random.default_rng(seed))

    def test_without_errors_it_stays(self) -> None:
        assert np.abs(self.draw(NOTHING) - prior()).max() < 0.02

    def test_it_is_displaced_by_what_is_asked(self) -> None:
        errors = PriorErrors(shift_mm=3, rotation_deg=0, growth_mm=0, smooth_mm=0, dropped=0)
        away = np.array(
            [center_mm(self.draw(errors, seed)) - center_mm(prior()) for seed in range(40)]
        )
        assert float(away.std()) == pytest.approx(3.0, rel=0.2)
        assert abs(float(away.mean())) < 1.0

    def test_it_grows_and_shrinks_and_stays_a_ball(self) -> None:
        errors = PriorErrors(shift_mm=0, rotation_deg=0, growth_mm=4, smooth_mm=0, dropped=0)
        voxel_cc = np.prod(SPACING_MM) / 1000
        radii = [
            (0.75 / np.pi * (self.draw(errors, seed) >= 0.5).sum() * voxel_cc * 1000) ** (1 / 3)
            for seed in range(20)
        ]
        assert 10.0 < min(radii) < 12.5
        assert 15.5 < max(radii) < 18.0

    def test_one_in_ten_is_dropped(self) -> None:
        errors = PriorErrors(shift_mm=0, rotation_deg=0, growth_mm=0, smooth_mm=0)
        small = prior(radius_mm=5.0)[10:26, 10:26, 10:26]
        generator = np.random.default_rng(3)
        gone = [not wrong_prior(small, SPACING_MM, errors, generator).any() for _ in range(300)]
        assert 0.06 < float(np.mean(gone)) < 0.14

    def test_an_empty_prior_stays_empty(self) -> None:
        nothing = np.zeros((5, 5, 5), np.float32)
        assert not wrong_prior(nothing, SPACING_MM, PriorErrors(), np.random.default_rng(0)).any()

    def test_values_stay_between_0_and_1_on_two_axes_too(self) -> None:
        flat = prior()[18]
        drawn = wrong_prior(flat, SPACING_MM[:2], PriorErrors(), np.random.default_rng(1))
        assert drawn.shape == flat.shape
        assert drawn.dtype == np.float32
        assert 0 <= drawn.min() <= drawn.max() <= 1
        assert drawn.any()
