"""nnU-Net's trainer with our networks' needs; imported directly, never searched for.

What differs from ``nnUNetTrainer``: contours are no images and priors have errors
(`contourcast.training.nnunet.transforms`), weights of the recurrence may be spared from decay, a
loss that is not finite is skipped and at last ends the run, checkpoints are written whole or not at
all, each epoch has its own seed, splits are never made up, networks with one head work.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from contourcast.imaging.errors import InputError
from contourcast.models.foreign_child import read_checkpoint
from contourcast.training.datasets.splits import SPLITS_FILE, read_patients, read_splits
from contourcast.training.decay import decay_groups
from contourcast.training.loop import MAX_BAD_STEPS, TrainingDivergedError
from contourcast.training.nnunet.diagnosis import largest_activations
from contourcast.training.nnunet.progress import EpochRow, OnEpoch, draw, read_rows, write_rows
from contourcast.training.nnunet.recipe import recipe_of
from contourcast.training.nnunet.transforms import for_contours

NOT_NORMALISED = "NoNormalization"


class QuietLogger(MetaLogger):  # type: ignore[misc]
    """nnU-Net's logger without its poster of a plot: ours is drawn beside it."""

    def plot_progress_png(self, output_folder: str) -> None:
        """Nothing."""


class ContourcastTrainer(nnUNetTrainer):  # type: ignore[misc]
    """Trains what a plans file describes by the recipe that stands in it."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's signature
    ) -> None:
        resume = bool(plans.get("continue_training", False))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.recipe = recipe = recipe_of(self.plans_manager.plans)
        self.logger = QuietLogger(self.output_folder, resume)
        self.num_epochs = recipe.epochs
        self.num_iterations_per_epoch = recipe.iterations
        self.num_val_iterations_per_epoch = recipe.validation_iterations
        self.initial_lr, self.weight_decay = recipe.learning_rate, recipe.weight_decay
        self.save_every = recipe.save_every
        if recipe.precision != "fp16":
            self.grad_scaler = None
        self.rows: list[EpochRow] = []
        self.on_epoch: OnEpoch = lambda row: None
        self.skipped = self.bad_in_a_row = 0
        self.last_batch: torch.Tensor | None = None
        self.started = 0.0
        self._seed(-1)

    def initialize(self) -> None:
        """Deep supervision at the sizes that the network answers with, if there are several."""
        self.scales = self._scales()
        self.enable_deep_supervision = len(self.scales) > 1
        self._seed(-1)
        super().initialize()

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """nnU-Net's would be read from the strides, which not every network has."""
        return self.scales if self.enable_deep_supervision else None

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """nnU-Net's, in two groups."""
        groups = decay_groups(
            self.network, weight_decay=self.weight_decay, decay_ssm=self.recipe.decay_ssm
        )
        optimiser = torch.optim.SGD(
            groups, self.initial_lr, momentum=self.recipe.momentum, nesterov=True
        )
        return optimiser, PolyLRScheduler(optimiser, self.initial_lr, self.num_epochs)

    def get_training_transforms(self, *arguments: Any, **named: Any) -> BasicTransform:
        """nnU-Net's, which see the contours as what they are."""
        schemes = self.configuration_manager.normalization_schemes
        return for_contours(
            nnUNetTrainer.get_training_transforms(*arguments, **named),
            contours=[i for i, scheme in enumerate(schemes) if scheme == NOT_NORMALISED],
            channels=len(schemes),
            spacing_mm=self.configuration_manager.spacing,
            errors=self.recipe.prior,
        )

    def do_split(self) -> tuple[list[str], list[str]]:
        """The fold of the data set's own splits, proven to keep patients apart.

        Raises:
            InputError: There are no such splits, or a patient stands on both sides.
        """
        if self.fold == "all":
            both: tuple[list[str], list[str]] = super().do_split()
            return both
        folder = Path(self.preprocessed_dataset_folder_base)
        splits = read_splits(folder / SPLITS_FILE, read_patients(folder))
        if not 0 <= int(self.fold) < len(splits):
            raise InputError(
                f"there is no fold {self.fold}: the splits have {len(splits)}",
                file=SPLITS_FILE,
                remedy=f"choose 0 to {len(splits) - 1}, or all",
            )
        fold = splits[int(self.fold)]
        return fold["train"], fold["val"]

    def plot_network_architecture(self) -> None:
        """Nothing: it needs a package that no longer works."""

    def on_epoch_start(self) -> None:
        """Every epoch has its own seed, so that a resumed run ends as an unbroken one would."""
        self._seed(self.current_epoch)
        self.skipped, self.started = 0, time.monotonic()
        super().on_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step; skipped when its loss is not finite.

        Raises:
            TrainingDivergedError: That happened too often in a row.
        """
        data, target = self._on_device(batch["data"]), self._on_device(batch["target"])
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.loss(self.network(data), target)
        if not torch.isfinite(loss):
            return self._skip(data)
        self.bad_in_a_row, self.last_batch = 0, data
        parameters = self.network.parameters()
        if self.grad_scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """The mean over the steps that counted."""
        counted = [each for each in train_outputs if np.isfinite(each["loss"])]
        super().on_train_epoch_end(counted or train_outputs[:1])

    def on_epoch_end(self) -> None:
        """The row is written before the checkpoint: what a killed run repeats is trimmed."""
        value = self.logger.get_value
        row = EpochRow(
            epoch=self.current_epoch,
            loss=float(value("train_losses", -1)),
            validation_loss=float(value("val_losses", -1)),
            dice=float(value("mean_fg_dice", -1)),
            learning_rate=float(value("lrs", -1)),
            skipped_steps=self.skipped,
            seconds=time.monotonic() - self.started,
            figures=self._figures(),
        )
        self.rows = [*self.rows, row]
        write_rows(Path(self.output_folder), self.rows)
        draw(Path(self.output_folder), self.rows)
        super().on_epoch_end()
        self.on_epoch(row)

    def save_checkpoint(self, filename: str) -> None:
        """Whole or not at all: a kill in the midst leaves the one before."""
        part = Path(f"{filename}.new")
        super().save_checkpoint(str(part))
        if part.exists():
            part.replace(filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Only after it was proven to hold no program."""
        read_checkpoint(Path(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)
        self.rows = read_rows(Path(self.output_folder), before=self.current_epoch)

    @torch.no_grad()
    def _scales(self) -> list[list[float]]:
        """Size of each of the network's answers, as a share of the patch; finest first."""
        channels = len(self.configuration_manager.normalization_schemes)
        patch = self.configuration_manager.patch_size
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            channels,
            self.label_manager.num_segmentation_heads,
            True,
        )
        answers = network.to(self.device).eval()(
            torch.zeros(1, channels, *patch, device=self.device)
        )
        return [[n / p for n, p in zip(a.shape[2:], patch, strict=True)] for a in answers]

    def _skip(self, data: torch.Tensor) -> dict[str, Any]:
        self.skipped += 1
        self.bad_in_a_row += 1
        with self._precision():
            why = largest_activations(self.network, data)
        self.print_to_log_file(f"step skipped: its loss is not finite; {why}")
        if self.bad_in_a_row >= MAX_BAD_STEPS:
            raise TrainingDivergedError(
                f"the loss was not finite {MAX_BAD_STEPS} steps in a row in epoch "
                f"{self.current_epoch}; {why}",
                remedy="lower the learning rate, or train with precision bf16 or fp32",
            )
        return {"loss": np.array(math.nan, np.float32)}

    def _figures(self) -> dict[str, float]:
        """λ shares, ‖m₂‖/‖m₁‖ and γ, of networks that have them."""
        if find_spec("contourcast.models.nrm_figures") is None or self.last_batch is None:
            return {}
        from contourcast.models.nrm_figures import nrm_figures

        with self._precision():
            found: dict[str, float] = nrm_figures(self.network, self.last_batch)
        return found

    def _on_device(self, values: Any) -> Any:
        if isinstance(values, list):
            return [each.to(self.device, non_blocking=True) for each in values]
        return values.to(self.device, non_blocking=True)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.device.type != "cuda" or self.recipe.precision == "fp32":
            return contextlib.nullcontext()
        half = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float16
        return torch.autocast("cuda", half)

    def _seed(self, epoch: int) -> None:
        """nnU-Net draws from the three global generators; these are theirs for the epoch."""
        seed = int(np.random.SeedSequence([self.recipe.seed, epoch + 1]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
