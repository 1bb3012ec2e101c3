"""What nnU-Net's augmentation leaves out: a contour is no image, and a prior is sometimes wrong.

nnU-Net changes the brightness of every channel; a mask of 0 and 1 then becomes grey. Here the
intensity transforms see the scan alone, and the contour gets the errors that it really has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from contourcast.models.region import EMPTY_BELOW
from contourcast.training.nnunet.recipe import PriorErrors

# A prior's value is sigmoid(signed distance / 1 mm), as imaging/distance.py carries it.
CARRY_MM: Final = 1.0
# How many sds of a shift the box round a prior is made for; what moves further is cut off.
REACH_SD: Final = 4.0


class ImagesOnly(BasicTransform):  # type: ignore[misc]
    """Shows a transform the image channels and keeps the contours from it."""

    def __init__(self, transform: BasicTransform, images: Sequence[int]) -> None:
        super().__init__()
        self.transform, self.images = transform, list(images)

    def __call__(self, **data: Any) -> dict[str, Any]:
        """The transform's own answer, but for the contour channels."""
        before = data["image"]
        seen = self.transform(**(data | {"image": before[self.images].clone()}))
        image = before.clone()
        image[self.images] = seen["image"]
        changed: dict[str, Any] = seen | {"image": image}
        return changed


class WrongPrior(BasicTransform):  # type: ignore[misc]
    """Moves, turns, grows, rounds and sometimes drops the contour channels of a crop."""

    def __init__(
        self, contours: Sequence[int], spacing_mm: Sequence[float], errors: PriorErrors
    ) -> None:
        super().__init__()
        self.contours, self.spacing_mm, self.errors = list(contours), tuple(spacing_mm), errors

    def __call__(self, **data: Any) -> dict[str, Any]:
        """One draw of errors for all contour channels would tie them together: each has its own."""
        seed = np.random.randint(2**32, dtype=np.uint64)  # noqa: NPY002, nnU-Net seeds this one
        generator = np.random.default_rng(seed)
        image = data["image"].clone()
        for channel in self.contours:
            prior = image[channel].numpy()
            wrong = wrong_prior(prior, self.spacing_mm, self.errors, generator)
            image[channel] = torch.from_numpy(wrong)
        return data | {"image": image}


def for_contours(
    transforms: ComposeTransforms,
    *,
    contours: Sequence[int],
    channels: int,
    spacing_mm: Sequence[float],
    errors: PriorErrors | None,
) -> ComposeTransforms:
    """nnU-Net's training transforms, in which contours keep their values and have errors.

    Args:
        transforms: As nnU-Net made them.
        contours: Numbers of the contour channels.
        channels: How many channels there are.
        spacing_mm: Of the crop, in the order of its axes.
        errors: Given before anything else, where the crop is still larger than the patch.
    """
    if not contours:
        return transforms
    images = [i for i in range(channels) if i not in contours]
    kept = [
        ImagesOnly(each, images) if _changes_intensities(each) else each
        for each in transforms.transforms
    ]
    first = [] if errors is None else [WrongPrior(contours, spacing_mm, errors)]
    return ComposeTransforms([*first, *kept])


def wrong_prior(
    prior: Float[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    errors: PriorErrors,
    generator: np.random.Generator,
) -> Float[np.ndarray, "*space"]:
    """A prior as another day's registration and another observer would have given it.

    Args:
        prior: Values 0 to 1 over two or three axes.
        spacing_mm: Of its axes.
        errors: Sizes of what is done.
        generator: Source of randomness.
    """
    if prior.max(initial=0.0) < EMPTY_BELOW:
        return prior
    if generator.random() < errors.dropped:
        return np.zeros_like(prior)
    spacing = np.array(spacing_mm)
    reach_mm = REACH_SD * (errors.shift_mm + CARRY_MM) + errors.growth_mm
    inside = np.argwhere(prior >= EMPTY_BELOW)
    margin = np.ceil(reach_mm / spacing).astype(int)
    low = (inside.min(0) - margin).clip(0)
    high = np.minimum(inside.max(0) + margin + 1, prior.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    distance_mm = _distance(prior[box], spacing)
    middle = inside.mean(0) - low
    turn = _rotation(generator, errors.rotation_deg, len(spacing))
    matrix = turn * spacing[None, :] / spacing[:, None]
    shift = generator.normal(0, errors.shift_mm, len(spacing)) / spacing
    moved = ndimage.affine_transform(
        distance_mm, matrix, middle - matrix @ (middle + shift), order=1, mode="nearest"
    )
    moved += generator.uniform(-1, 1) * errors.growth_mm
    moved = ndimage.gaussian_filter(moved, generator.uniform(0, errors.smooth_mm) / spacing)
    wrong = np.zeros_like(prior)
    wrong[box] = 1 / (1 + np.exp(-(moved / CARRY_MM).clip(-15, 15)))
    return wrong


def _changes_intensities(transform: BasicTransform) -> bool:
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return isinstance(inner, ImageOnlyTransform)


def _distance(prior: Float[np.ndarray, "*space"], spacing: np.ndarray) -> np.ndarray:
    """Millimetres to the 0.5 level, inside positive: from the value near it, by voxels beyond."""
    inside = prior >= min(0.5, float(prior.max()))
    far = ndimage.distance_transform_edt(inside, sampling=spacing)
    far -= ndimage.distance_transform_edt(~inside, sampling=spacing)
    p = prior.clip(1e-3, 1 - 1e-3).astype(float)
    near = CARRY_MM * np.log(p / (1 - p))
    distance: np.ndarray = np.where(np.abs(near) < 4 * CARRY_MM, near, far)
    return distance


def _rotation(generator: np.random.Generator, sd_deg: float, axes: int) -> np.ndarray:
    angles = generator.normal(0, sd_deg, 3)
    matrix: np.ndarray = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if axes == 2:
        matrix = Rotation.from_euler("z", angles[0], degrees=True).as_matrix()
    return matrix[:axes, :axes]
