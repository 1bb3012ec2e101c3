"""nnMamba's other two tasks: what kind of image it is, and where its landmarks are.

For each its loss, its figures and a recipe; `fit` is the loop of both. Segmentation has its own
loop (`contourcast.training.loop`). Gong et al., ISBI 2025, arXiv 2402.03526.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterator[tuple[Tensor, Tensor]]
# nnU-Net's: no step is longer.
CLIP_NORM: Final = 12.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns one task, with AdamW and a learning rate that falls to zero."""

    steps: int
    learning_rate: float
    weight_decay: float


# lhaof/nnMamba, classification/train_model.py: AdamW 1e-4, decay 1e-3. There it is 100 epochs of a
# data set; here as many steps as nnU-Net takes in as many epochs.
CLASSIFICATION: Final = Recipe(steps=25_000, learning_rate=1e-4, weight_decay=1e-3)
# The article's optimiser, Adam 2e-3 and decay 1e-3; the authors' landmark program is not public in
# their repository.
LANDMARKS: Final = Recipe(steps=25_000, learning_rate=2e-3, weight_decay=1e-3)


def fit(network: nn.Module, batches: Batches, loss: Loss, recipe: Recipe) -> list[float]:
    """Trains on as many batches (images, what they should give) as the recipe has steps.

    Returns:
        The loss of each step.

    Raises:
        InputError: A loss was not finite, or the batches came to an end.
    """
    network.train()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, recipe.steps, power=0.9)
    losses = []
    for step in range(recipe.steps):
        batch = next(batches, None)
        if batch is None:
            raise InputError(f"the batches ended after {step} of {recipe.steps} steps")
        images, wanted = batch
        optimiser.zero_grad(set_to_none=True)
        value = loss(network(images), wanted)
        if not torch.isfinite(value):
            raise InputError(f"the loss of step {step} is not finite")
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        schedule.step()
        losses.append(float(value.detach()))
    return losses


def classification_loss(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> Tensor:
    """Cross-entropy; of one output, the binary one."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())
    return F.cross_entropy(logits.float(), labels)


@dataclass(frozen=True, kw_only=True)
class ClassificationFigures:
    """How well images are told apart.

    Attributes:
        accuracy: Share of images whose likeliest class is theirs.
        f1: Harmonic mean of precision and sensitivity for class 1; with more classes, the mean over
            the classes. A class that is neither there nor found counts 0.
        auc: Share of pairs of an image of class 1 and one that is not, in which the first scores
            higher, ties by half. None with more than two classes, or when a class is missing.
    """

    accuracy: float
    f1: float
    auc: float | None


def classification_figures(
    logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]
) -> ClassificationFigures:
    """Of the images of a test set.

    Raises:
        InputError: There is no image.
    """
    if not len(labels):
        raise InputError("there is no image to score")
    if logits.shape[1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), 1)
    classes = logits.shape[1]
    found = logits.argmax(1)
    scored = [1] if classes == 2 else list(range(classes))
    return ClassificationFigures(
        accuracy=float((found == labels).float().mean()),
        f1=sum(_f1(found == k, labels == k) for k in scored) / len(scored),
        auc=_auc(logits[:, 1] - logits[:, 0], labels == 1) if classes == 2 else None,
    )


def _f1(found: Tensor, true: Tensor) -> float:
    total = int(found.sum() + true.sum())
    return 2 * int((found & true).sum()) / total if total else 0.0


def _auc(scores: Tensor, positive: Tensor) -> float | None:
    """Mann and Whitney's U over the number of pairs."""
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    ranks = rankdata(scores.detach().cpu().double().numpy())
    above = ranks[positive.cpu().numpy()].sum() - ones * (ones + 1) / 2
    return float(above / (ones * zeros))


def heat_maps(
    points_zyx: Float[Tensor, "b k 3"], shape_zyx: tuple[int, int, int], *, sigma_voxels: float
) -> Float[Tensor, "b k z y x"]:
    """A Gaussian of height 1 round each landmark (index coordinates; need not be whole)."""
    z, y, x = (
        torch.exp(
            -0.5 * ((torch.arange(n, device=points_zyx.device) - points_zyx[..., axis, None])
            / sigma_voxels) ** 2
        )
        for axis, n in enumerate(shape_zyx)
    )  # fmt: skip
    return torch.einsum("bkz,bky,bkx->bkzyx", z, y, x)


def landmark_loss(maps: Float[Tensor, "b k z y x"], wanted: Float[Tensor, "b k z y x"]) -> Tensor:
    """Mean squared error, as a share of what empty maps would have: they begin at 1."""
    wanted = wanted.float()
    return F.mse_loss(maps.float(), wanted) / wanted.square().mean().clamp(min=1e-8)


def positions_zyx(maps: Float[Tensor, "b k z y x"], *, radius: int = 2) -> Float[Tensor, "b k 3"]:
    """The highest voxel of each map, and the centroid of what is positive round it.

    Args:
        maps: Of the network.
        radius: Of the cube round the highest voxel, in voxels; 0 leaves the voxel itself.

    Returns:
        Index coordinates; they can lie between voxels.
    """
    found = torch.empty(*maps.shape[:2], 3, device=maps.device)
    for b, k in torch.cartesian_prod(*(torch.arange(n) for n in maps.shape[:2])).tolist():
        found[b, k] = _centroid(maps[b, k].float(), radius)
    return found


def _centroid(one: Float[Tensor, "z y x"], radius: int) -> Float[Tensor, " 3"]:
    top = [int(i) for i in torch.unravel_index(one.argmax(), one.shape)]
    box = [slice(max(0, i - radius), i + radius + 1) for i in top]
    weights = one[tuple(box)].clamp(min=0)
    if not weights.any():
        return torch.tensor(top, dtype=torch.float32, device=one.device)
    places = torch.meshgrid(
        *(
            torch.arange(b.start, b.start + n, device=one.device)
            for b, n in zip(box, weights.shape, strict=True)
        ),
        indexing="ij",
    )
    return torch.stack([(weights * place).sum() for place in places]) / weights.sum()


def landmark_errors_mm(
    found_zyx: Float[Tensor, "b k 3"],
    true_zyx: Float[Tensor, "b k 3"],
    *,
    spacing_zyx_mm: tuple[float, float, float],
) -> Float[Tensor, "b k"]:
    """How far each landmark was found from where it is; their mean is the article's figure.

    Raises:
        InputError: A spacing is not a positive number.
    """
    if not all(math.isfinite(mm) and mm > 0 for mm in spacing_zyx_mm):
        raise InputError(f"a spacing of {spacing_zyx_mm} mm measures nothing")
    apart_mm = (found_zyx - true_zyx) * torch.tensor(spacing_zyx_mm, device=found_zyx.device)
    errors_mm: Tensor = torch.linalg.vector_norm(apart_mm, dim=-1)
    return errors_mm
