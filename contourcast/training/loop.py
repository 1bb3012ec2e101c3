"""Training a network on samples: one readable loop, the same on a CPU and a GPU."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.models.config import NetworkConfig
from contourcast.models.diff_umamba import DiffUMambaConfig
from contourcast.models.networks import SEGMENTING, build
from contourcast.models.seen import Seen
from contourcast.models.slicewise import on_volume
from contourcast.models.weights import KNOWN_CHANNELS, Card, save_model
from contourcast.training.augment import Augmentation, augment, centre_crop
from contourcast.training.decay import decay_groups
from contourcast.training.provenance import cohort_facts
from contourcast.training.samples import Sample, SampleSettings

STATE_FILE = "state.pt"
LOG_FILE = "log.csv"
CURVE_FILE = "curve.svg"
SETTINGS_FILE = "settings.json"
COHORTS = "cohorts"  # the settings' entry for the digests of the samples
# Steps in a row whose loss is not finite before the run ends (NETWORKS §12).
MAX_BAD_STEPS = 10

Precision = Literal["auto", "fp32", "bf16"]


class TrainingDivergedError(ContourcastError):
    """The loss is no longer a number."""


def small_diff_umamba() -> DiffUMambaConfig:
    """The first checkpoint's network: docs/decisions/0006-first-checkpoint.md."""
    return DiffUMambaConfig(
        channels_in=len(KNOWN_CHANNELS),
        features=(16, 32, 64, 128, 160),
        kernels=((3, 3, 3),) * 5,
        strides=((1, 1, 1),) + ((2, 2, 2),) * 4,
        blocks=(1,) * 5,
        decoder_blocks_asked=(1,) * 4,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A training run; with the samples it decides every number.

    Attributes:
        network: A name of the table of networks.
        channels: What it is shown, a choice of `KNOWN_CHANNELS` in their order.
        optimiser: ``sgd`` is nnU-Net's (Nesterov 0.99); ``adamw`` learns faster in short runs.
        decay_ssm: Whether weight decay also pulls at Mamba's A, D and Δ bias, at λ and the gate.
        average: Decay per step of the running average of the weights that is validated and kept.
        precision: ``bf16`` computes convolutions in bfloat16, Mamba stays in float32; ``auto`` does
            so where the device is made for it.
        threads: CPU threads; 0 leaves torch's choice.
        start: Digest of the model whose weights it begins with; empty: with random ones.
    """

    network: str = "diff-umamba"
    config: NetworkConfig = field(default_factory=small_diff_umamba)
    channels: tuple[str, ...] = KNOWN_CHANNELS
    samples: SampleSettings = field(default_factory=SampleSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 1
    epochs: int = 40
    steps_per_epoch: int = 50
    batch: int = 2
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    decay_ssm: bool = False
    poly_power: float = 0.9
    clip_norm: float = 12.0
    average: float = 0.99
    precision: Precision = "auto"
    device: str = "cpu"
    threads: int = 1
    start: str = ""

    def __post_init__(self) -> None:
        if self.network not in SEGMENTING:
            raise InputError(
                f"a {self.network} cannot learn contours",
                remedy=f"choose from {', '.join(SEGMENTING)}",
            )
        if self.channels != tuple(c for c in KNOWN_CHANNELS if c in self.channels):
            raise InputError(
                f"the channels {', '.join(self.channels)} cannot be shown",
                remedy=f"choose from {', '.join(KNOWN_CHANNELS)}, in this order",
            )
        if len(self.channels) != self.config.channels_in:
            raise InputError(
                f"{len(self.channels)} channels are shown to a network that takes "
                f"{self.config.channels_in}"
            )

    @property
    def shown(self) -> list[int]:
        """Which channels of a sample those are."""
        return [KNOWN_CHANNELS.index(name) for name in self.channels]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A line of the log."""

    epoch: int
    loss: float
    validation_dice: float
    learning_rate: float
    skipped_steps: int
    seconds: float


OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What a run ends with: the averaged network of its best epoch, and its log."""

    network: nn.Module
    settings: TrainSettings
    log: tuple[Epoch, ...]

    @property
    def best(self) -> Epoch:
        """The epoch whose weights these are: of several that are as good, the first."""
        return max(self.log, key=lambda e: e.validation_dice)


def train(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    settings: TrainSettings,
    folder: Path,
    *,
    start: Mapping[str, Tensor] | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_epoch: OnEpoch = lambda epoch: None,
) -> Trained:
    """Trains, or goes on where the folder's last epoch ended.

    Every epoch draws from its own generator, so a resumed run ends as an unbroken one would. It may
    go on with fewer or more epochs than it began with: the learning rate then falls to zero by the
    new end, and the log shows it.

    Args:
        training: What is learned from.
        validation: By which the epoch is picked whose weights are kept.
        settings: All that the run is told.
        folder: Of log, settings and state.
        start: The weights of ``settings.start``, as `widened` gives them; None: random ones.
        clock: For the log alone.
        on_epoch: Told of each epoch that has ended.

    Raises:
        InputError: The folder holds a run with other settings or on other samples.
        TrainingDivergedError: The loss was not finite ten steps in a row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _keep_settings(folder, settings, training=training, validation=validation)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    network: Any = build(settings.network, settings.config).to(settings.device)
    if start is not None:
        network.load_state_dict(start)
    average: Any = build(settings.network, settings.config).to(settings.device)
    average.load_state_dict(network.state_dict())
    network.decoder.deep_supervision = True
    optimiser = _optimiser(network, settings)
    log: list[Epoch] = []
    best: dict[str, Tensor] = {}
    if (folder / STATE_FILE).exists():
        state = torch.load(folder / STATE_FILE, map_location=settings.device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        log, best = [Epoch(**row) for row in state["log"]], state["best"]
    for number in range(len(log), settings.epochs):
        began = clock()
        loss, skipped = _train_epoch(network, average, optimiser, training, settings, number)
        done = Epoch(
            epoch=number,
            loss=loss,
            validation_dice=validate(average, validation, settings),
            learning_rate=_learning_rate(settings, (number + 1) * settings.steps_per_epoch - 1),
            skipped_steps=skipped,
            seconds=clock() - began,
        )
        if done.validation_dice > max((e.validation_dice for e in log), default=-math.inf):
            best = {key: value.clone() for key, value in average.state_dict().items()}
        log.append(done)
        _keep_state(folder, network, average, optimiser, log, best)
        _write_log(folder, log)
        on_epoch(done)
    return best_so_far(folder, settings)


def widened(
    state: Mapping[str, Tensor], *, shown: Sequence[str], settings: TrainSettings
) -> dict[str, Tensor]:
    """A trained network's weights for one that is shown further channels: those begin with zeros.

    An arbiter that the trained one has not is born as it is.

    Args:
        state: The weights,
        shown: ... and the channels that they were trained on.
        settings: Of the run that begins with them.

    Raises:
        InputError: Its channels do not begin with those, or the networks differ in more.
    """
    if settings.channels[: len(shown)] != tuple(shown):
        raise InputError(
            f"a run on {', '.join(settings.channels)} cannot begin with a model that is shown "
            f"{', '.join(shown)}",
            remedy="show the new channels after those of the model",
        )
    wide: dict[str, Tensor] = {}
    wanted = build(settings.network, settings.config).state_dict()
    for key, own in wanted.items():
        before = state.get(key, own if key.startswith("arbiter.") else None)
        if before is None or before.ndim != own.ndim:
            raise InputError(f"the model to begin with has no {key} of {own.ndim} axes")
        wide[key] = before
        if before.shape != own.shape:
            new = len(settings.channels) - len(shown)
            padding = (0, 0) * (own.ndim - 2) + (0, new)
            wide[key] = F.pad(before, padding)
            if wide[key].shape != own.shape:
                raise InputError(
                    f"the model to begin with has {key} of {tuple(before.shape)}, needed is "
                    f"{tuple(own.shape)}"
                )
    return wide


def best_so_far(folder: Path, settings: TrainSettings) -> Trained:
    """The best epoch of a run, finished or not, and the curve up to now.

    Raises:
        InputError: No epoch has ended yet, or the run has other settings.
    """
    if not (folder / STATE_FILE).exists():
        raise InputError("no epoch of this run has ended", remedy="train first")
    _keep_settings(folder, settings)
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    network = build(settings.network, settings.config)
    network.load_state_dict(state["best"])
    log = tuple(Epoch(**row) for row in state["log"])
    draw_curve(folder / CURVE_FILE, log)
    return Trained(network=network.to(settings.device).eval(), settings=settings, log=log)


def export(
    trained: Trained, folder: Path, *, training: dict[str, Any], seen: Seen | None = None
) -> Card:
    """Writes the model folder (float16 weights and card) that the service loads.

    Args:
        trained: What `train` gave.
        folder: Made if it is not there.
        training: What people should know of it: command, data, who it is for.
        seen: The scans it was fitted on, and those before them where it began with another model.
    """
    settings, samples = trained.settings, trained.settings.samples
    card = Card(
        network=settings.network,
        config=settings.config,
        channels=settings.channels,
        spacing_zyx_mm=samples.spacing_zyx_mm,
        patch_zyx=samples.patch_zyx,
        margin_mm=samples.margin_mm,
        normalisation=samples.normalisation,
        seen=seen,
        training=training
        | {
            "settings": _plain(
                replace(settings, precision=precision_on(settings.device, settings.precision))
            ),
            "best_epoch": trained.best.epoch,
            "validation_dice": round(trained.best.validation_dice, 4),
        },
    )
    return save_model(folder, trained.network, card, dtype=torch.float16)


def autocast(device: str, precision: Precision) -> torch.autocast:
    """What convolutions are computed in."""
    return torch.autocast(
        torch.device(device).type,
        torch.bfloat16,
        enabled=precision_on(device, precision) == "bf16",
    )


def precision_on(device: str, precision: Precision) -> Literal["fp32", "bf16"]:
    """What ``auto`` means on a device; the others are what they are.

    A processor that is not made for bfloat16 takes a hundred times as long in it.
    """
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        made_for_it: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        made_for_it = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bf16" if made_for_it else "fp32"


def segmentation_loss(
    logits: Float[Tensor, "b 2 z y x"], label: Float[Tensor, "b z y x"]
) -> Tensor:
    """Cross-entropy and soft Dice of the target over the batch, unweighted (nnU-Net).

    The label is a share of each voxel, so the 0.5 level is learned finer than the grid.
    """
    logits = logits.float()
    wanted = torch.stack((1 - label, label), 1)
    target = logits.softmax(1)[:, 1]
    overlap = 2 * (target * label).sum() / (target.square().sum() + label.square().sum() + 1e-5)
    return F.cross_entropy(logits, wanted) + 1 - overlap


def deep_loss(logits: Sequence[Tensor], label: Float[Tensor, "b z y x"]) -> Tensor:
    """Each level weighs half of the finer one, the coarsest nothing (nnU-Net)."""
    weights = np.array([0.5**i for i in range(len(logits))])
    weights[-1] = 0.0 if len(logits) > 1 else 1.0
    weights /= weights.sum()
    total = logits[0].new_zeros((), dtype=torch.float32)
    for weight, level in zip(weights, logits, strict=True):
        if weight:
            z, y, x = level.shape[2:]
            small = F.adaptive_avg_pool3d(label[:, None], (z, y, x))[:, 0]
            total = total + float(weight) * segmentation_loss(level, small)
    return total


@torch.inference_mode()
def validate(network: Any, samples: Sequence[Sample], settings: TrainSettings) -> float:
    """Mean Dice over the samples' middles, at the 0.5 level of prediction and label."""
    network.eval()
    scores = []
    for each in samples:
        channels, label = centre_crop(each, patch_zyx=settings.samples.patch_zyx)
        channels = channels[settings.shown]
        with autocast(settings.device, settings.precision):
            x = torch.from_numpy(channels[None]).to(settings.device)
            logits = on_volume(network, x)[0].float().cpu()
        drawn, wanted = (logits[1] > logits[0]).numpy(), label >= 0.5
        total = int(drawn.sum() + wanted.sum())
        scores.append(2 * int((drawn & wanted).sum()) / total if total else 1.0)
    return float(np.mean(scores))


def _train_epoch(
    network: Any,
    average: Any,
    optimiser: torch.optim.Optimizer,
    samples: Sequence[Sample],
    settings: TrainSettings,
    number: int,
) -> tuple[float, int]:
    """Mean loss, and how many steps were skipped because their loss was not finite."""
    network.train()
    generator = np.random.default_rng([settings.seed, number])
    losses: list[float] = []
    bad_in_a_row = skipped = 0
    for step in range(settings.steps_per_epoch):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(settings, number * settings.steps_per_epoch + step)
        x, label = _batch(samples, settings, generator)
        optimiser.zero_grad(set_to_none=True)
        with autocast(settings.device, settings.precision):
            logits: Any = on_volume(network, x)
        loss = deep_loss(logits, label)
        if not torch.isfinite(loss):
            skipped += 1
            bad_in_a_row += 1
            if bad_in_a_row >= MAX_BAD_STEPS:
                raise TrainingDivergedError(
                    f"the loss was not finite {MAX_BAD_STEPS} steps in a row in epoch {number}; "
                    f"largest weights: {_largest(network)}",
                    remedy="lower the learning rate, or train with precision fp32",
                )
            continue
        bad_in_a_row = 0
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimiser.step()
        _follow(average, network, settings, number * settings.steps_per_epoch + step)
        losses.append(float(loss.detach()))
    return float(np.mean(losses)) if losses else math.nan, skipped


def _batch(
    samples: Sequence[Sample], settings: TrainSettings, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Patients are drawn first, so that long courses do not outweigh short ones."""
    patients = sorted({s.patient for s in samples})
    crops = []
    for _ in range(settings.batch):
        patient = patients[generator.integers(len(patients))]
        course = [s for s in samples if s.patient == patient]
        crops.append(
            augment(
                course[generator.integers(len(course))],
                patch_zyx=settings.samples.patch_zyx,
                spacing_zyx_mm=settings.samples.spacing_zyx_mm,
                settings=settings.augmentation,
                generator=generator,
            )
        )
    x, label = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
    return x[:, settings.shown].to(settings.device), label.to(settings.device)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, settings: TrainSettings, step: int) -> None:
    """The running average; young ones follow faster, or they would remember the start."""
    keep = min(settings.average, (1 + step) / (10 + step))
    pairs = zip(average.parameters(), network.parameters(), strict=True)
    for mean, now in pairs:
        mean.lerp_(now, 1 - keep)
    for kept, seen in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(seen)  # statistics of batches, which are averages already


def _optimiser(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Weights that decay, and those of the recurrence that must not (NETWORKS §2.3, §12)."""
    groups = decay_groups(network, weight_decay=settings.weight_decay, decay_ssm=settings.decay_ssm)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.99, nesterov=True)


def _learning_rate(settings: TrainSettings, step: int) -> float:
    """Polynomial descent to zero."""
    left = 1 - step / (settings.epochs * settings.steps_per_epoch)
    return float(settings.learning_rate * left**settings.poly_power)


def _largest(network: nn.Module) -> str:
    sizes = {name: float(p.detach().abs().max()) for name, p in network.named_parameters()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    return ", ".join(f"{name} {sizes[name]:.3g}" for name in largest)


def _plain(settings: TrainSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _keep_settings(folder: Path, settings: TrainSettings, **cohorts: Sequence[Sample]) -> None:
    """Refuses to go on with other settings than a run began with; its length may change.

    And on other samples, where they are given: one that was learned from may now stand in the test.
    """
    path = folder / SETTINGS_FILE
    now = _plain(replace(settings, threads=0, device=""))
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(now)
    samples = {part: cohort_facts(of)["digest"] for part, of in cohorts.items()}
    begun = before.pop(COHORTS, {} if (folder / STATE_FILE).exists() else samples)
    if before | {"epochs": settings.epochs} != now:
        raise InputError(
            "this folder holds a run with other settings", remedy="choose another folder"
        )
    if other := [part for part, digest in samples.items() if begun.get(part) != digest]:
        raise InputError(
            f"the run in this folder has other samples for {' and '.join(other)}",
            file=f"{folder.name}/{SETTINGS_FILE}",
            remedy="go on with the samples it began with, or choose another folder: --out",
        )
    plain = json.dumps(now | {COHORTS: begun}, indent=2, sort_keys=True)
    path.write_text(plain + "\n", encoding="utf-8")


def _keep_state(
    folder: Path,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    log: list[Epoch],
    best: dict[str, Tensor],
) -> None:
    """All that the next epoch needs; whole or not at all."""
    state = {
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "log": [asdict(e) for e in log],
        "best": best,
    }
    torch.save(state, folder / f"{STATE_FILE}.new")
    (folder / f"{STATE_FILE}.new").replace(folder / STATE_FILE)


def _write_log(folder: Path, log: list[Epoch]) -> None:
    with (folder / LOG_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(log[0])))
        writer.writeheader()
        for each in log:
            writer.writerow(
                {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(each).items()}
            )


def draw_curve(path: Path, log: Sequence[Epoch]) -> None:
    """Loss and validation Dice over the epochs, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left = figure.add_subplot()
    epochs = [e.epoch for e in log]
    left.plot(epochs, [e.loss for e in log], color="tab:gray", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss")
    right = left.twinx()
    right.plot(epochs, [e.validation_dice for e in log], color="tab:blue")
    right.set(ylabel="validation Dice", ylim=(0, 1))
    right.yaxis.label.set_color("tab:blue")
    figure.savefig(path, metadata={"Date": None})
