"""Training with nnU-Net: plan, run, export; and the import of models trained elsewhere."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from contourcast.cli.terminal import Device, chosen_device, progress, require_empty
from contourcast.imaging.errors import InputError

app = typer.Typer(
    no_args_is_help=True, help="Train any network of the house with nnU-Net v2, unpatched."
)
models_app = typer.Typer(no_args_is_help=True, help="Model folders.")


MOST_WORKERS = 12  # nnU-Net's own default (utilities/default_n_proc_DA.py)


class PresetOption(StrEnum):
    """How to train."""

    PAPER = "paper"
    HOUSE = "house"


class ConfigurationOption(StrEnum):
    """nnU-Net's names for the resolution."""

    FULLRES = "3d_fullres"
    FLAT = "2d"


Work = Annotated[
    Path, typer.Option(help="Folder that holds nnUNet_raw, nnUNet_preprocessed, nnUNet_results.")
]
Dataset = Annotated[int, typer.Option(help="Number of the data set.")]
Network = Annotated[str, typer.Option(help="A network of: contourcast networks.")]
PlansName = Annotated[
    str, typer.Option("--plans", help="Name of the plans; empty: after the network.")
]
Configuration = Annotated[ConfigurationOption, typer.Option(help="nnU-Net's configuration.")]
Fold = Annotated[str, typer.Option(help="Fold of the splits, or 'all'.")]


@app.command("plan")
def train_plan(
    work: Work,
    dataset: Dataset,
    network: Network = "diff-umamba",
    preset: Annotated[
        PresetOption, typer.Option(help="paper: as published; house: what we would do.")
    ] = PresetOption.PAPER,
    configuration: Configuration = ConfigurationOption.FULLRES,
    patch: Annotated[
        str, typer.Option(help="Voxels z,y,x of the training's patch. Default: nnU-Net's.")
    ] = "",
    stages: Annotated[int | None, typer.Option(help="Of the network. Default: nnU-Net's.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the first stage.")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches in a step.")] = None,
    switches: Annotated[
        str, typer.Option(help='Of the network, as JSON: \'{"nrm": {"gate": "scalar"}}\'.')
    ] = "{}",
    each_case_a_patient: Annotated[
        bool,
        typer.Option(
            "--each-case-a-patient", help="For data sets of your own without patients.json."
        ),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes for preprocessing.")] = 2,
    plans: PlansName = "",
) -> None:
    """Let nnU-Net look at a prepared data set, and write plans for one of our networks."""
    from contourcast.training.nnunet.plan import PlanSettings, plan
    from contourcast.training.nnunet.workplace import Workplace

    settings = PlanSettings(
        network=network,
        preset=preset.value,
        configuration=configuration.value,
        patch_zyx=_sizes(patch),
        stages=stages,
        width=width,
        batch=batch,
        switches=_switches(switches),
        each_case_a_patient=each_case_a_patient,
        workers=workers,
        name=plans,
    )
    with progress() as tell:
        path = plan(Workplace.at(work), dataset, settings, on_step=tell)
    typer.echo(f"planned: {path}")


@app.command("run")
def train_run(
    work: Work,
    dataset: Dataset,
    network: Network = "diff-umamba",
    configuration: Configuration = ConfigurationOption.FULLRES,
    fold: Fold = "0",
    epochs: Annotated[int | None, typer.Option(help="Default: the plans'.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps of an epoch.")] = None,
    validation_iterations: Annotated[int | None, typer.Option(help="Of an epoch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the first step.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that prepare batches; 0 repeats itself exactly, and is the default "
            "on a CPU. Default on a GPU: one for each core, at most 12.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads; 0: as many as there are cores.")
    ] = 0,
    plans: PlansName = "",
) -> None:
    """Train what was planned; the same command again goes on where a killed run left off."""
    from contourcast.training.nnunet.run import run
    from contourcast.training.nnunet.workplace import Workplace

    where = chosen_device(device, threads)
    usual = 0 if where == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)
    settings = _run_settings(
        network=network,
        plans=plans,
        configuration=configuration.value,
        fold=fold,
        device=where,
        threads=threads,
        workers=usual if workers is None else workers,
        epochs=epochs,
        iterations=iterations,
        validation_iterations=validation_iterations,
        learning_rate=learning_rate,
        seed=seed,
    )
    with progress() as tell:
        folder, rows = run(
            Workplace.at(work),
            dataset,
            settings,
            on_epoch=lambda row, epochs: tell(
                f"epoch {row.epoch}: loss {row.loss:.3f}, Dice of patches {row.dice:.3f}",
                (row.epoch + 1) / epochs,
            ),
        )
    typer.echo(f"{len(rows)} epochs, loss {rows[-1].loss:.3f}, Dice {rows[-1].dice:.3f}: {folder}")


@app.command("export")
def train_export(
    work: Work,
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Model folder; new or empty.")],
    network: Network = "diff-umamba",
    configuration: Configuration = ConfigurationOption.FULLRES,
    fold: Fold = "0",
    plans: PlansName = "",
) -> None:
    """Turn a finished training into the model folder that propagate and serve load."""
    from contourcast.training.nnunet.export import export
    from contourcast.training.nnunet.workplace import Workplace

    require_empty(out)
    settings = _run_settings(
        network=network, plans=plans, configuration=configuration.value, fold=fold
    )
    card = export(Workplace.at(work), dataset, settings, out)
    typer.echo(f"{card.network}, SHA-256 {card.weights_sha256[:12]}…: {out}")


@models_app.command("import")
def models_import(
    folder: Annotated[Path, typer.Argument(help="nnU-Net's: plans.json, dataset.json, fold_x.")],
    out: Annotated[Path, typer.Option(help="Model folder; new or empty.")],
    fold: Annotated[str | None, typer.Option(help="Default: the only one.")] = None,
    margin_mm: Annotated[
        float, typer.Option(help="Round the prior, where the network is to look.")
    ] = 30.0,
) -> None:
    """Turn a model folder of nnU-Net into one of ours; nothing that it holds is run."""
    from contourcast.models.foreign import ImportSettings, import_folder

    require_empty(out)
    card = import_folder(folder, out, ImportSettings(fold=fold, margin_mm=margin_mm))
    typer.echo(f"{card.network}, SHA-256 {card.weights_sha256[:12]}…: {out}")


def _run_settings(**entries: Any) -> Any:
    from contourcast.training.nnunet.run import RunSettings

    fold = entries.pop("fold")
    if fold != "all" and not fold.isdecimal():
        raise InputError(f"'{fold}' is no fold", remedy="a number, or all")
    return RunSettings(fold=fold if fold == "all" else int(fold), **entries)


def _sizes(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"'{text}' is no patch", remedy="such as 64,96,96")
    return sizes


def _switches(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            "the switches are no JSON object", remedy='such as {"bottleneck": "mamba"}'
        )
    return found
