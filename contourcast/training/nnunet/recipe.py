"""How a network is trained: what stands in the plans under ``contourcast``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from contourcast.imaging.errors import InputError
from contourcast.models.config import STRICT

PLANS_KEY: Final = "contourcast"
Preset = Literal["paper", "house"]


@dataclass(frozen=True, kw_only=True)
class PriorErrors:
    """What happens to a prior before it reaches the clinic (NETWORKS §16.4).

    Attributes:
        shift_mm: Sd of the registration's error along each axis.
        rotation_deg: Sd of its error about each axis.
        growth_mm: The surface moves by up to this, all of it, in or out.
        smooth_mm: Largest sd of the Gaussian that rounds the surface.
        dropped: Share of samples without a prior.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    shift_mm: float = 3.0
    rotation_deg: float = 2.0
    growth_mm: float = 4.0
    smooth_mm: float = 3.0
    dropped: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training that is not the network and not the data (NETWORKS §12).

    Attributes:
        epochs: Of ``iterations`` steps each; the learning rate falls to zero by the last.
        decay_ssm: Whether weight decay also pulls at Mamba's A, D and Δ bias, at λ and the gate.
        precision: Of convolutions on a GPU; a CPU and the Mamba layers compute in fp32.
        prior: Errors given to contour channels; None: they are shown as they are.
        save_every: Epochs between checkpoints that a killed run goes on from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    preset: Preset = "paper"
    epochs: int = 1000
    iterations: int = 250
    validation_iterations: int = 50
    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    momentum: float = 0.99
    clip_norm: float = 12.0
    decay_ssm: bool = True
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    prior: PriorErrors | None = None
    seed: int = 1
    save_every: int = 1

    def __post_init__(self) -> None:
        if min(self.epochs, self.iterations, self.validation_iterations, self.save_every) < 1:
            raise InputError("a training needs at least one epoch, iteration and validation")
        if not 0 < self.learning_rate < 10:
            raise InputError(f"no network learns at a learning rate of {self.learning_rate:g}")

    def to_plain(self) -> dict[str, Any]:
        """As JSON knows it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


RECIPES: Final[Mapping[str, Recipe]] = {
    "paper": Recipe(),
    "house": Recipe(preset="house", decay_ssm=False, precision="bf16", prior=PriorErrors()),
}


def recipe_of(plans: Mapping[str, Any]) -> Recipe:
    """What a plans file says of the training; preset ``paper`` when it says nothing.

    Raises:
        InputError: An entry that this version does not know, or of the wrong type.
    """
    plain = plans.get(PLANS_KEY, {})
    try:
        return TypeAdapter(Recipe).validate_json(json.dumps(plain))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"the plans' entry '{PLANS_KEY}.{where}' cannot be used: {first['msg']}",
            remedy="write them again with: contourcast train plan",
        ) from error


def changed(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with the changes that are not None."""
    return replace(recipe, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
