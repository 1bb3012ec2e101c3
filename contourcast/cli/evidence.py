"""Evidence: methods and models over a cohort, and the analyses of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contourcast.cli.terminal import (
    Device,
    chosen_device,
    progress,
    require_empty,
    require_writable,
)

if TYPE_CHECKING:
    from contourcast.training.analyses.outcome import Outcome
    from contourcast.training.analyses.trials import Parts
    from contourcast.training.cases import Model
    from contourcast.training.loop import TrainSettings
    from contourcast.training.samples import Sample

analyse = typer.Typer(
    no_args_is_help=True,
    help="Look into a network: each analysis writes a table, a figure and a JSON.",
)

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model folder, or NAME=FOLDER; may be repeated."),
]
Cases = Annotated[Path, typer.Option(help="Folder of samples ('fit samples' makes them).")]
Cts = Annotated[
    list[str] | None,
    typer.Option("--ct", help="Only samples of this CT; may be repeated. Default: all."),
]
Most = Annotated[int, typer.Option(help="At most so many samples, evenly spread; 0: all.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; new or empty.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.")]
Where = Annotated[Device, typer.Option(help="Where to compute.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as there are cores.")]


def evaluate(
    out: Out,
    reference: Annotated[str, typer.Option(help="The method all others are tested against.")],
    model: Models = None,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of samples: every model on every sample.")
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Folders that propagate wrote; may be repeated.")
    ] = None,
    truth: Annotated[
        list[Path] | None, typer.Option(help="Simulated courses. Default: beside the runs.")
    ] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Book of scores (CSV); may be repeated.")
    ] = None,
    ct: Cts = None,
    most: Most = 0,
    device: Where = Device.AUTO,
    threads: Threads = 0,
) -> None:
    """Methods and models over a cohort: table, intervals by patient, paired tests, box plots."""
    import time

    from contourcast.imaging.errors import InputError
    from contourcast.training.evaluate import evaluate as write_evaluation
    from contourcast.training.provenance import cohort_facts
    from contourcast.training.rows import rows_of_runs, rows_of_samples, rows_of_scores

    require_empty(out)
    if not (samples or runs or scores):
        raise InputError(
            "there is nothing to evaluate", remedy="name a cohort: --samples, --runs or --scores"
        )
    rows = rows_of_scores(scores) if scores else []
    facts: dict[str, object] = {}
    with progress() as tell:
        if runs:
            rows += rows_of_runs(runs, truth or [run.parent for run in runs], tell)
        if samples:
            models = _models(model, device, threads)
            chosen = _samples(samples, ct, most)
            rows += rows_of_samples(models, chosen, tell, clock=time.perf_counter)
            facts = {"models": [m.facts() for m in models], "cases": cohort_facts(chosen)}
    write_evaluation(rows, out, reference=reference, facts=facts)
    typer.echo((out / "table.md").read_text("utf-8"))
    typer.echo(f"written to {out}")


@analyse.command()
def robustness(
    cases: Cases,
    out: Out,
    model: Models = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(
            help="uniform, speckle, periodic, salt-and-pepper (in the features); poisson, cupping, "
            "streaks, motion, hu-shift, hu-scale (on the image); prior-shift, prior-turn. "
            "May be repeated. Default: the four in the features."
        ),
    ] = None,
    image: Annotated[bool, typer.Option("--image", help="All noises on the image too.")] = False,
    displace: Annotated[
        bool, typer.Option("--displace", help="The prior in the wrong place too.")
    ] = False,
    site: Annotated[str, typer.Option(help="stem, stage0, or a module's dotted name.")] = "stem",
    relative: Annotated[
        bool, typer.Option("--relative", help="Amplitudes in sds of the disturbed feature.")
    ] = False,
    seeds: Seeds = 5,
    ct: Cts = None,
    most: Most = 16,
    device: Where = Device.AUTO,
    threads: Threads = 0,
) -> None:
    """Dice under noise in the features, on the image, and with a displaced prior."""
    from contourcast.training.analyses import robustness as analysis

    kinds = tuple(noise or ([] if image or displace else analysis.FEATURE_LEVELS))
    kinds += tuple(analysis.IMAGE_LEVELS) if image else ()
    kinds += tuple(analysis.DISPLACEMENTS) if displace else ()
    settings = analysis.RobustnessSettings(
        kinds=tuple(dict.fromkeys(kinds)), site=site, seeds=_seeds(seeds), relative=relative
    )
    require_empty(out)
    with progress() as tell:
        outcome = analysis.robustness(
            _models(model, device, threads), _samples(cases, ct, most), settings, tell
        )
    _written(outcome, out, ("model", "kind", "level", "dice", "sd_cases", "sd_seeds"))


@analyse.command()
def latent(
    cases: Cases,
    out: Out,
    model: Models = None,
    perplexity: Annotated[float, typer.Option(help="Of t-SNE.")] = 30.0,
    embedding: Annotated[
        bool, typer.Option("--embedding/--no-embedding", help="Also in the t-SNE embedding.")
    ] = True,
    image_noise: Annotated[
        list[float] | None,
        typer.Option(help="Also with Gaussian noise of this sd on the image; may be repeated."),
    ] = None,
    seeds: Seeds = 5,
    ct: Cts = None,
    most: Most = 8,
    device: Where = Device.AUTO,
    threads: Threads = 0,
) -> None:
    """Clusters among the channels of the bottleneck, beside white noise."""
    from contourcast.training.analyses import latent as analysis

    settings = analysis.LatentSettings(
        perplexity=perplexity,
        embed=embedding,
        seeds=_seeds(seeds),
        image_noise=(0.0, *(image_noise or ())),
    )
    require_empty(out)
    with progress() as tell:
        outcome = analysis.latent(
            _models(model, device, threads), _samples(cases, ct, most), settings, tell
        )
    _written(outcome, out, ("model", "image_noise", "space", "mean", "low", "high", "best_k"))


@analyse.command()
def correlation(
    cases: Cases,
    out: Out,
    model: Models = None,
    seeds: Seeds = 5,
    ct: Cts = None,
    most: Most = 0,
    device: Where = Device.AUTO,
    threads: Threads = 0,
) -> None:
    """What the module subtracts (m₂) against what it subtracts from (m₁)."""
    from contourcast.training.analyses import correlation as analysis

    require_empty(out)
    with progress() as tell:
        outcome = analysis.correlation(
            _models(model, device, threads),
            _samples(cases, ct, most),
            analysis.CorrelationSettings(seeds=_seeds(seeds)),
            tell,
        )
    _written(outcome, out, ("model", "figure", "mean", "sd", "low", "high"))


@analyse.command()
def lambdas(
    out: Out,
    run: Annotated[list[Path], typer.Option(help="Folder of a training run; may be repeated.")],
) -> None:
    """The course of λ, of the levels' shares, γ and ‖m₂‖/‖m₁‖ in training."""
    from contourcast.training.analyses import lambdas as analysis

    require_empty(out)
    analysis.lambdas(run).write(out)
    typer.echo(f"written to {out}")


@analyse.command()
def field(
    cases: Cases,
    out: Out,
    model: Models = None,
    seeds: Seeds = 5,
    ct: Cts = None,
    most: Most = 8,
    device: Where = Device.AUTO,
    threads: Threads = 0,
) -> None:
    """The effective receptive field: which voxels the centre's logit depends on."""
    from contourcast.training.analyses import field as analysis

    require_empty(out)
    with progress() as tell:
        outcome = analysis.field(
            _models(model, device, threads),
            _samples(cases, ct, most),
            analysis.FieldSettings(seeds=_seeds(seeds)),
            tell,
        )
    columns = ("model", "input", "channel", "share_of_gradient", "radius_50_mm", "radius_95_mm")
    _written(outcome, out, columns)


@analyse.command()
def profile(
    out: Out,
    network: Annotated[
        list[str] | None, typer.Option(help="A name of the table; may be repeated. Default: all.")
    ] = None,
    model: Models = None,
    side: Annotated[
        list[int] | None,
        typer.Option(help="Of the cubes that are counted; may be repeated. Default: 64, 96, 128."),
    ] = None,
    measure: Annotated[
        list[int] | None,
        typer.Option(help="Side whose time and memory are measured too; may be repeated."),
    ] = None,
) -> None:
    """Parameters, arithmetic, memory and time of networks as published, or of your models."""
    from contourcast.imaging.errors import InputError
    from contourcast.models.networks import NETWORKS, entry
    from contourcast.training.analyses import profile as analysis
    from contourcast.training.cases import load_models

    require_empty(out)
    wanted = {}
    for name in network or ([] if model else list(NETWORKS)):
        try:
            wanted[name] = (name, entry(name).config_kind())
        except InputError as error:  # of a package that is not installed
            if network:
                raise
            typer.echo(f"{name} is left out: {error}", err=True)
    if model:
        wanted |= {m.name: (m.card.network, m.card.config) for m in load_models(model)}
    sides = tuple(dict.fromkeys((*(side or analysis.SIDES), *(measure or ()))))
    settings = analysis.ProfileSettings(sides=sides, measured_sides=tuple(measure or ()))
    with progress() as tell:
        outcome = analysis.profile(wanted, settings, tell)
    _written(outcome, out, tuple(outcome.rows[0]))


@analyse.command()
def ablate(
    cases: Cases,
    out: Annotated[Path, typer.Option(help="Folder for runs and results; a stopped one goes on.")],
    validation: Annotated[list[str], typer.Option(help="CT by which epochs are picked.")],
    test: Annotated[list[str], typer.Option(help="CT that is measured on.")],
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this variant; may be repeated. Default: all.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an epoch.")] = 50,
    seeds: Seeds = 3,
    device: Where = Device.AUTO,
    threads: Threads = 1,
) -> None:
    """Train with one switch of the noise reduction module turned, for each switch and seed."""
    from contourcast.training.analyses import ablate as analysis

    require_writable(out)
    settings = analysis.AblateSettings(
        train=_training("diff-umamba", epochs, steps, device, threads),
        seeds=_seeds(seeds),
        variants=tuple(variant or ()),
    )
    with progress() as tell:
        outcome = analysis.ablate(_parts(cases, validation, test), settings, out, tell)
    outcome.write(out)
    for line in outcome.facts["summary"]:
        lead = line["lead"]
        typer.echo(
            f"{line['trial']:<22} Dice {line['dice']['mean']:.3f}, lead {lead['mean']:+.3f} "
            f"({lead['low']:+.3f} to {lead['high']:+.3f})"
        )
    typer.echo(f"written to {out}")


@analyse.command()
def subset(
    cases: Cases,
    out: Annotated[Path, typer.Option(help="Folder for runs and results; a stopped one goes on.")],
    validation: Annotated[list[str], typer.Option(help="CT by which epochs are picked.")],
    test: Annotated[list[str], typer.Option(help="CT that is measured on.")],
    network: Annotated[
        list[str] | None, typer.Option(help="diff-umamba, umamba-bot; may be repeated.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an epoch.")] = 50,
    seeds: Seeds = 3,
    device: Where = Device.AUTO,
    threads: Threads = 1,
) -> None:
    """Train on 16, 32, 48, 64 and 80 % of the patients."""
    from contourcast.training.analyses import subset as analysis

    require_writable(out)
    settings = analysis.SubsetSettings(
        train={
            name: _training(name, epochs, steps, device, threads)
            for name in network or ("diff-umamba", "umamba-bot")
        },
        seeds=_seeds(seeds),
    )
    with progress() as tell:
        outcome = analysis.subset(_parts(cases, validation, test), settings, out, tell)
    _written(outcome, out, ("trial", "percent", "mean", "sd", "low", "high"))


def _models(wanted: list[str] | None, device: Device, threads: int) -> tuple[Model, ...]:
    from contourcast.training.cases import load_models

    return load_models(wanted or [], device=chosen_device(device, threads))


def _samples(folder: Path, cts: list[str] | None, most: int) -> tuple[Sample, ...]:
    from contourcast.imaging.errors import InputError
    from contourcast.training.cases import thinned
    from contourcast.training.samples import load_samples

    every = load_samples(folder)
    chosen = [sample for sample in every if not cts or sample.ct in cts]
    if not chosen:
        raise InputError(
            "no sample is of the CTs named",
            remedy=f"choose from {', '.join(sorted({sample.ct for sample in every}))}",
        )
    return thinned(chosen, most)


def _parts(folder: Path, validation: list[str], test: list[str]) -> Parts:
    from contourcast.training.analyses.trials import Parts
    from contourcast.training.samples import load_samples

    return Parts.by_ct(load_samples(folder), validation=validation, test=test)


def _training(network: str, epochs: int, steps: int, device: Device, threads: int) -> TrainSettings:
    """The house's small network, as it is or without its module."""
    from dataclasses import replace

    from contourcast.imaging.errors import InputError
    from contourcast.training.loop import TrainSettings

    if network not in ("diff-umamba", "umamba-bot"):
        raise InputError(f"'{network}' has no small form", remedy="diff-umamba or umamba-bot")
    settings = TrainSettings(
        epochs=epochs, steps_per_epoch=steps, device=chosen_device(device, threads), threads=threads
    )
    if network == "diff-umamba":
        return settings
    return replace(settings, config=replace(settings.config, nrm=None))  # type: ignore[call-arg]


def _seeds(count: int) -> tuple[int, ...]:
    return tuple(range(1, count + 1))


def _written(outcome: Outcome, out: Path, columns: tuple[str, ...]) -> None:
    """Writes the files and prints the summary."""
    outcome.write(out)
    typer.echo("  ".join(columns))
    for line in outcome.facts["summary"]:
        cells = (line[column] for column in columns)
        typer.echo("  ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    typer.echo(f"written to {out}")
