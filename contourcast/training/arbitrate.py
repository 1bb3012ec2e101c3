"""Teaching an arbiter beside a network that stays as it is.

The network's answers do not change while the arbiter learns, so each crop is shown to the network
once; the arbiter, which is small and works at half the resolution, then sees all of them often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.imaging.files import whole_folder
from contourcast.models.arbiter import CHANNELS, Arbiter, asked
from contourcast.models.diff_umamba import DiffUMambaConfig
from contourcast.models.networks import build
from contourcast.models.seen import united
from contourcast.models.weights import KNOWN_CHANNELS, Card, load_model, save_model
from contourcast.training.augment import Augmentation, augment, centre_crop
from contourcast.training.loop import (
    TrainSettings,
    autocast,
    segmentation_loss,
    widened,
)
from contourcast.training.samples import Sample, SampleSettings

CLIP_NORM: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class ArbiterSettings:
    """How an arbiter is taught (docs/decisions/0027).

    Attributes:
        width: Of its features.
        versions: Crops of each sample; the first is its middle as it is.
        augmentation: Of the others: priors are hardly touched, for they are what is judged.
        average: Decay per step of the running average of the weights that is kept.
        sharpness: What the share's logit is multiplied by in the end; 1: as it was learned.
    """

    width: int = 16
    versions: int = 2
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            unfollowed=0.05,
            prior_far=0.03,
            prior_growth_mm=0.3,
            prior_wobble_mm=0.2,
            prior_dropped=0.0,
        )
    )
    samples: SampleSettings = field(default_factory=SampleSettings)
    seed: int = 0
    steps: int = 2400
    batch: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    average: float = 0.99
    sharpness: float = 1.25


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One crop: what the arbiter is asked (`asked`), in float16, and the label."""

    asked: tuple[Tensor, ...]
    label: Tensor


def teach(
    start: Path,
    samples: Sequence[Sample],
    settings: ArbiterSettings,
    folder: Path,
    *,
    facts: dict[str, Any],
    on_step: Callable[[str, float], None] = lambda sentence, done: None,
) -> Card:
    """A model folder with an arbiter: the network of ``start``, and who is right.

    Args:
        start: Model folder of a Diff-UMamba without an arbiter.
        samples: To learn from.
        settings: How.
        folder: Where the new model goes; new or empty.
        facts: For the card, for people.
        on_step: Told of progress.

    Raises:
        InputError: The model to begin with is another network, or has an arbiter already.
        OSError: The folder holds something.
    """
    network, card, digest = load_model(start)
    config = card.config
    if not isinstance(config, DiffUMambaConfig) or config.arbiter:
        raise InputError(
            f"an arbiter is taught beside a diff-umamba without one; this is a {card.network}",
            remedy="begin with another model",
        )
    wide = replace(config, channels_in=CHANNELS, arbiter=settings.width)
    both = build(card.network, wide)
    run = TrainSettings(config=wide, channels=KNOWN_CHANNELS, samples=settings.samples)
    torch.manual_seed(settings.seed)
    both.load_state_dict(widened(network.state_dict(), shown=card.channels, settings=run))
    lessons = prepare(network, len(card.channels), samples, settings, on_step=on_step)
    arbiter = learn(lessons, settings, on_step=on_step)
    taught: Any = both
    taught.arbiter.load_state_dict(arbiter.state_dict())
    learned = {"beside": digest, "settings": asdict(settings), **facts}
    of_both = replace(
        card,
        config=wide,
        channels=KNOWN_CHANNELS,
        seen=united((card.seen, *(sample.seen for sample in samples))),
        training=dict(card.training)
        | {
            "arbiter": learned,
            "cts": sorted({*card.training.get("cts", ()), *(s.ct for s in samples)}),
        },
    )
    with whole_folder(folder) as draft:
        return save_model(draft, both, of_both, dtype=torch.float16)


@torch.inference_mode()
def prepare(
    network: nn.Module,
    shown: int,
    samples: Sequence[Sample],
    settings: ArbiterSettings,
    *,
    on_step: Callable[[str, float], None] = lambda sentence, done: None,
) -> list[Lesson]:
    """Every crop with what the network draws in it.

    Args:
        network: In evaluation.
        shown: How many of the channels it looks at.
        samples: Cut and augmented.
        settings: How often and how.
        on_step: Told of progress.
    """
    generator = np.random.default_rng(settings.seed)
    patch, spacing = settings.samples.patch_zyx, settings.samples.spacing_zyx_mm
    lessons = []
    for version in range(settings.versions):
        for n, sample in enumerate(samples):
            channels, label = (
                augment(
                    sample,
                    patch_zyx=patch,
                    spacing_zyx_mm=spacing,
                    settings=settings.augmentation,
                    generator=generator,
                )
                if version
                else centre_crop(sample, patch_zyx=patch)
            )
            x = torch.from_numpy(channels[None])
            with autocast("cpu", "auto"):  # as a run on this machine would
                logits = network(x[:, :shown])
            question = tuple(part.half() for part in asked(x, logits))
            lessons.append(Lesson(asked=question, label=torch.from_numpy(label[None])))
            done = (version * len(samples) + n + 1) / (settings.versions * len(samples))
            on_step(f"drawing {sample.name}", 0.5 * done)
    return lessons


def learn(
    lessons: Sequence[Lesson],
    settings: ArbiterSettings,
    *,
    on_step: Callable[[str, float], None] = lambda sentence, done: None,
) -> Arbiter:
    """An arbiter that has seen the lessons: the running average of its weights, made surer."""
    torch.manual_seed(settings.seed)
    arbiter = Arbiter(settings.width)
    average = deepcopy(arbiter)
    optimiser = torch.optim.AdamW(
        arbiter.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    generator = np.random.default_rng(settings.seed)
    for step in range(settings.steps):
        left = 1 - step / settings.steps
        optimiser.param_groups[0]["lr"] = settings.learning_rate * left**0.9
        drawn = [lessons[int(generator.integers(len(lessons)))] for _ in range(settings.batch)]
        parts = zip(*(lesson.asked for lesson in drawn), strict=True)
        both = arbiter.decide(*(torch.cat(part).float() for part in parts))
        logits = torch.cat((-both, both), 1) / 2
        loss = segmentation_loss(logits, torch.cat([lesson.label for lesson in drawn]))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(arbiter.parameters(), CLIP_NORM)
        optimiser.step()
        keep = min(settings.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), arbiter.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        on_step(f"step {step + 1}: loss {float(loss.detach()):.3f}", 0.5 + 0.5 * (1 - left))
    with torch.no_grad():
        for parameter in average.share.parameters():
            parameter.mul_(settings.sharpness)
    return average.eval()
