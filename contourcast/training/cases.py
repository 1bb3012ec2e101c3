"""Models of the house side by side on the same samples.

Everybody sees what validation in training sees: the middle patch of a sample, cut at the 0.5 level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from contourcast.imaging.errors import InputError
from contourcast.models.weights import KNOWN_CHANNELS, SHIPPED, Card, load_model
from contourcast.training.augment import centre_crop
from contourcast.training.samples import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A trained network under a name of the user's choice.

    Attributes:
        digest: SHA-256 (hex) of its card, which names the weights by theirs.
    """

    name: str
    network: nn.Module
    card: Card
    digest: str
    device: str = "cpu"

    def facts(self) -> dict[str, object]:
        """What a result's JSON says of it."""
        return {
            "name": self.name,
            "network": self.card.network,
            "digest": self.digest,
            "weights_sha256": self.card.weights_sha256,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """The middle patch of a sample, as one model is shown it.

    Attributes:
        channels: Those that the model's card names, in its order.
        label: Share of each voxel that the label fills.
    """

    name: str
    patient: str
    channels: Float[np.ndarray, "c z y x"]
    label: Float[np.ndarray, "z y x"]

    @property
    def truth(self) -> Bool[np.ndarray, "z y x"]:
        """The label at its 0.5 level."""
        inside: np.ndarray = self.label >= 0.5
        return inside


def load_models(wanted: Sequence[str], *, device: str = "cpu") -> tuple[Model, ...]:
    """Model folders, each as ``FOLDER`` (its name is the model's) or ``NAME=FOLDER``.

    Nothing wanted is the checkpoint that comes with Contourcast.

    Raises:
        InputError: Two have one name.
        WeightsError: A folder is not a model.
    """
    models = []
    for text in wanted or (str(SHIPPED),):
        name, _, folder = text.rpartition("=")
        path = Path(folder)
        network, card, digest = load_model(path)
        models.append(
            Model(
                name=name or path.resolve().name,
                network=network.to(device),
                card=card,
                digest=digest,
                device=device,
            )
        )
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise InputError(
            f"two models are named '{max(names, key=names.count)}'",
            remedy="name them: --model NAME=FOLDER",
        )
    return tuple(models)


def case_for(model: Model, sample: Sample) -> Case:
    """What this model is shown of a sample.

    Raises:
        InputError: The sample is smaller than the model's patch, or lacks a channel it wants.
    """
    card = model.card
    if min(n - p for n, p in zip(sample.label.shape, card.patch_zyx, strict=True)) < 0:
        raise InputError(
            f"sample {sample.name} has {sample.label.shape} voxels, "
            f"{model.name} needs {card.patch_zyx}",
            remedy="make the samples with this model's patch and spacing",
        )
    unknown = [channel for channel in card.channels if channel not in KNOWN_CHANNELS]
    if unknown:
        raise InputError(
            f"{model.name} wants the channel {unknown[0]}, samples hold {', '.join(KNOWN_CHANNELS)}"
        )
    channels, label = centre_crop(sample, patch_zyx=card.patch_zyx)
    wanted = [KNOWN_CHANNELS.index(channel) for channel in card.channels]
    return Case(name=sample.name, patient=sample.patient, channels=channels[wanted], label=label)


@torch.inference_mode()
def drawn(model: Model, channels: Float[np.ndarray, "c z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Where the target's logit is above the background's."""
    network: Any = model.network
    logits = network(batch_of(model, channels))[0].float().cpu()
    region: np.ndarray = (logits[1] > logits[0]).numpy()
    return region


def batch_of(model: Model, channels: Float[np.ndarray, "c z y x"]) -> torch.Tensor:
    """One patch as the network takes it."""
    return torch.from_numpy(channels[None]).to(model.device)


def dice(one: Bool[np.ndarray, "*space"], other: Bool[np.ndarray, "*space"]) -> float:
    """Overlap of two arrays of one patch; two empty ones agree."""
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def thinned(samples: Sequence[Sample], most: int) -> tuple[Sample, ...]:
    """At most so many, evenly over the list (and so over its patients); 0 is all."""
    if not most or most >= len(samples):
        return tuple(samples)
    return tuple(samples[n * len(samples) // most] for n in range(most))
