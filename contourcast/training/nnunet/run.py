"""Training what a plans file describes; killed runs go on where their last checkpoint was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contourcast.imaging.errors import InputError
from contourcast.training.nnunet.plan import plans_name
from contourcast.training.nnunet.progress import EpochRow, read_rows
from contourcast.training.nnunet.recipe import PLANS_KEY, Recipe, changed, recipe_of
from contourcast.training.nnunet.workplace import Workplace

TRAINER: Final = "ContourcastTrainer"
FINAL: Final = "checkpoint_final.pth"
LATEST: Final = "checkpoint_latest.pth"
RUN_FILE: Final = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What to train, and what of the plans' recipe is to be otherwise; None leaves it.

    Attributes:
        plans: Name of the plans file; empty: that of ``network``.
        fold: Of the splits, or ``all``.
        workers: Processes that prepare batches; 0: this one does, and repeats itself exactly.
    """

    network: str = "diff-umamba"
    plans: str = ""
    configuration: str = "3d_fullres"
    fold: int | str = 0
    device: str = "cpu"
    threads: int = 0
    workers: int = 0
    epochs: int | None = None
    iterations: int | None = None
    validation_iterations: int | None = None
    learning_rate: float | None = None
    seed: int | None = None

    @property
    def plans_name(self) -> str:
        """What the plans file is called."""
        return self.plans or plans_name(self.network)


def run(
    workplace: Workplace,
    number: int,
    settings: RunSettings,
    *,
    on_epoch: Callable[[EpochRow, int], None] = lambda row, epochs: None,
) -> tuple[Path, list[EpochRow]]:
    """Trains, or goes on where a killed run left off.

    Args:
        workplace: nnU-Net's folders.
        number: Of the data set.
        settings: What to train.
        on_epoch: Told of each epoch, and how many there will be.

    Returns:
        The fold's folder and the rows of all its epochs.

    Raises:
        InputError: There are no such plans or splits, or the folder holds a run of other settings.
        TrainingDivergedError: The loss was not finite many steps in a row.
    """
    dataset = workplace.dataset(number)
    ready = workplace.preprocessed / dataset
    plans, recipe = _plans(ready, settings)
    workplace.results.mkdir(parents=True, exist_ok=True)
    folder = fold_folder(workplace, number, settings)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_settings(folder, plans, recipe, settings)
    if (folder / FINAL).exists():
        return folder, read_rows(folder)
    with workplace.at_work(workers=settings.workers):
        import torch

        from contourcast.training.nnunet.trainer import ContourcastTrainer

        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.backends.cudnn.benchmark = True  # patches are all of one size, as nnU-Net knows
        resume = (folder / LATEST).exists()
        trainer = ContourcastTrainer(
            plans=plans | {"continue_training": resume},
            configuration=settings.configuration,
            fold=settings.fold,
            dataset_json=json.loads((ready / "dataset.json").read_text(encoding="utf-8")),
            device=torch.device(settings.device),
        )
        trainer.on_epoch = lambda row: on_epoch(row, recipe.epochs)
        if resume:
            trainer.load_checkpoint(str(folder / LATEST))
        trainer.run_training()
        return folder, trainer.rows


def fold_folder(workplace: Workplace, number: int, settings: RunSettings) -> Path:
    """Where nnU-Net puts this training."""
    model = f"{TRAINER}__{settings.plans_name}__{settings.configuration}"
    return workplace.results / workplace.dataset(number) / model / f"fold_{settings.fold}"


def _plans(ready: Path, settings: RunSettings) -> tuple[dict[str, Any], Recipe]:
    """The plans with the recipe that this run follows: the model's folder then tells the truth."""
    path = ready / f"{settings.plans_name}.json"
    if not path.exists():
        raise InputError(
            f"there are no plans {path.stem}",
            file=path.name,
            remedy="make them first: contourcast train plan",
        )
    plans: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if settings.configuration not in plans["configurations"]:
        raise InputError(
            f"the plans have no {settings.configuration}",
            file=path.name,
            remedy=f"choose from {', '.join(plans['configurations'])}",
        )
    recipe = changed(
        recipe_of(plans),
        epochs=settings.epochs,
        iterations=settings.iterations,
        validation_iterations=settings.validation_iterations,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    plans[PLANS_KEY] = recipe.to_plain()
    return plans, recipe


def _keep_settings(
    folder: Path, plans: dict[str, Any], recipe: Recipe, settings: RunSettings
) -> None:
    """Refuses to go on with another network or recipe than the folder's run began with."""
    path = folder / RUN_FILE
    now = {
        "recipe": recipe.to_plain(),
        "configuration": plans["configurations"][settings.configuration],
    }
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if before != now:
        raise InputError(
            "this folder holds a run with other settings",
            file=path.name,
            remedy="plan under another name (--name), or remove that run's folder",
        )
    path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
