"""Fitting the small network that one CPU core can fit, on simulated patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from contourcast.cli.terminal import (
    Device,
    chosen_device,
    progress,
    require_empty,
    require_writable,
)
from contourcast.imaging.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Fit small networks on simulated patients.")


@app.command("samples")
def fit_samples(
    curriculum: Annotated[Path, typer.Option(help="Who is simulated: docs/curriculum.toml.")],
    data: Annotated[Path, typer.Option(help="Folder that the curriculum's CTs lie in.")],
    out: Annotated[Path, typer.Option(help="Folder for the samples.")],
    part: Annotated[
        str, typer.Option(help="k/n: every n-th patient from the k-th on, for several processes.")
    ] = "0/1",
) -> None:
    """Simulate the samples of a curriculum; those that are there are kept."""
    from contourcast.training.curriculum import build_curriculum, read_curriculum
    from contourcast.training.samples import SampleSettings

    k, n = _part(part)
    require_writable(out)
    wanted = read_curriculum(curriculum, data)
    done = 0
    with progress() as tell:

        def told(name: str) -> None:
            nonlocal done
            done += 1
            tell(name, done * n / wanted.size)

        build_curriculum(wanted, out, SampleSettings(), part=(k, n), on_sample=told)
    typer.echo(f"{len(list(out.glob('*.npz')))} samples in {out}")


@app.command("arbiter")
def fit_arbiter(
    samples: Annotated[Path, typer.Option(help="Folder that 'fit samples' made.")],
    start: Annotated[Path, typer.Option(help="Model folder of a diff-umamba without an arbiter.")],
    out: Annotated[Path, typer.Option(help="Folder for the model with one; new or empty.")],
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Name of a CT whose patients are left out; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 2400,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Teach an arbiter between what a network draws and what follows the tissue, on one core."""
    import torch

    from contourcast.training.arbitrate import ArbiterSettings, teach
    from contourcast.training.samples import load_samples, split

    require_empty(out)
    torch.set_num_threads(1)
    learned = load_samples(samples)
    if validation:
        learned, _ = split(learned, validation_cts=validation)
    facts = {"samples": len(learned)}
    settings = ArbiterSettings(steps=steps, seed=seed)
    with progress() as tell:
        made = teach(start, learned, settings, out, facts=facts, on_step=tell)
    typer.echo(f"{out}: {made.weights_sha256}")


@app.command("network")
def fit_network(
    samples: Annotated[Path, typer.Option(help="Folder that 'fit samples' made.")],
    out: Annotated[Path, typer.Option(help="Folder for log, curve, state and model.")],
    validation: Annotated[
        list[str], typer.Option(help="Name of a CT whose patients validate; may be repeated.")
    ],
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an epoch.")] = 50,
    seed: Annotated[int, typer.Option()] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="At the first step.")] = 1e-3,
    start: Annotated[
        Path | None, typer.Option(help="Model folder to begin with; new channels begin with zeros.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads.")] = 1,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
) -> None:
    """Fit a Diff-UMamba on samples, or go on where the folder's last epoch ended."""
    from contourcast.models.seen import united
    from contourcast.models.weights import load_model
    from contourcast.training.loop import TrainSettings, export, train, widened
    from contourcast.training.samples import load_samples, split

    require_writable(out)
    settings = TrainSettings(
        epochs=epochs,
        steps_per_epoch=steps,
        seed=seed,
        learning_rate=learning_rate,
        threads=threads,
        device=chosen_device(device, threads),
    )
    weights, before = None, []
    if start is not None:
        begun, card, digest = load_model(start)
        settings, before = replace(settings, start=digest), [card.seen]
        weights = widened(begun.state_dict(), shown=card.channels, settings=settings)
    fitted, aside = split(load_samples(samples), validation_cts=validation)
    with progress() as tell:
        trained = train(
            fitted,
            aside,
            settings,
            out,
            start=weights,
            on_epoch=lambda e: tell(
                f"epoch {e.epoch}: validation DSC {e.validation_dice:.3f}",
                (e.epoch + 1) / epochs,
            ),
        )
    facts = {
        "samples": len(fitted),
        "validation_samples": len(aside),
        "cts": sorted({s.ct for s in fitted}),
        "validation_cts": sorted({s.ct for s in aside}),
    }
    seen = united((*before, *(sample.seen for sample in fitted)))
    made = export(trained, out / "model", training=facts, seen=seen)
    typer.echo(f"best validation DSC {trained.best.validation_dice:.3f}; {made.weights_sha256}")


def _part(text: str) -> tuple[int, int]:
    """``k/n`` as numbers."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise InputError(f"'{text}' is no part", remedy="k/n with 0 <= k < n, such as 0/2 and 1/2")
    return int(k), int(n)
