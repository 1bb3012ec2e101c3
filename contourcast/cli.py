"""The command line: a sentence per command.

Errors are one line on stderr and an exit code: 2 for input that cannot be used, 3 for geometry,
4 for a rejected registration (whose report is written), 1 for anything else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from contourcast.imaging.errors import ContourcastError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contourcast.service.report import Report
    from contourcast.training.cohort import RealCt

REJECTED = 4
# Phantoms below are what networks of the house were fitted on (docs/curriculum.toml).
FIRST_PHANTOM = 500_000

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carries a tumour's contour from the planning CT to each day's cone-beam CT. "
    "Not a medical device.",
)


training = typer.Typer(no_args_is_help=True, help="Fit networks on simulated patients.")
app.add_typer(training, name="train")


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class FocusOption(StrEnum):
    """What the registration that carries the prior looks at."""

    BODY = "body"
    TARGET = "target"


class Physics(StrEnum):
    """How a cone beam is simulated."""

    AUTO = "auto"
    RTK = "rtk"
    IMAGE = "image"


@app.command()
def propagate(
    planning_ct: Annotated[Path, typer.Option(help="Folder of the planning CT's slices.")],
    structures: Annotated[Path, typer.Option(help="RT Structure Set drawn on the planning CT.")],
    cbct: Annotated[Path, typer.Option(help="Folder of today's cone-beam CT.")],
    roi: Annotated[str, typer.Option(help="Name of the ROI to carry, or #number.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    method: Annotated[
        list[str] | None, typer.Option(help="A method; may be repeated. Default: all five.")
    ] = None,
    prior_structures: Annotated[
        Path | None,
        typer.Option(help="Take the ROI from here instead, such as the last approved set."),
    ] = None,
    registration: Annotated[
        list[Path] | None,
        typer.Option(help="Spatial Registration to start from, or that ties the prior's frame."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Model folder. Default: the one shipped.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    focus: Annotated[
        FocusOption, typer.Option(help="Which registration carries the prior: body or target.")
    ] = FocusOption.BODY,
    vouch: Annotated[
        str,
        typer.Option(
            help="Your reason why images and structures belong together although "
            "their references say otherwise. Recorded in the report."
        ),
    ] = "",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: as many as there are cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json on stdout.")] = False,
) -> None:
    """Carry a ROI of the planning CT to one CBCT, by every method, with a report."""
    with _one_line_errors():
        from contourcast import propagate as pipeline
        from contourcast.registration.settings import RegistrationSettings
        from contourcast.service.inputs import read_case
        from contourcast.service.report import write_results

        _require_empty(out)

        settings = pipeline.Settings(
            methods=tuple(method or pipeline.ALL_METHODS),
            registration=RegistrationSettings(focus=focus.value),
            device=_device(device, threads),
        )
        with _progress() as tell:
            tell("reading", 0.0)
            case = read_case(
                planning_ct=planning_ct,
                structures=structures,
                cbct=cbct,
                roi=roi,
                prior_structures=prior_structures,
                registrations=registration or [],
                vouched=vouch,
            )
            network = None
            if pipeline.NETWORK in settings.methods:
                from contourcast.models.predictor import load_network

                network = load_network(weights, device=settings.device)
            result = pipeline.propagate(
                case, settings=settings, network=network, clock=time.perf_counter, on_step=tell
            )
            tell("writing", 0.98)
            report = write_results(result, out, made_at=datetime.now(UTC))
        if as_json:
            typer.echo(report.model_dump_json(indent=1))
        else:
            _print_summary(report, out)
        if result.registrations.rejected:
            raise typer.Exit(REJECTED)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the courses; new or empty.")],
    patients: Annotated[int, typer.Option(min=1, help="How many virtual patients.")] = 1,
    fractions: Annotated[int, typer.Option(min=1, help="CBCTs of each.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    recipe: Annotated[str, typer.Option(help="smooth, clinic-1 or clinic-2.")] = "clinic-1",
    difficulty: Annotated[
        float, typer.Option(help="Multiplies shift, drift and phase offset.")
    ] = 1.0,
    regression: Annotated[
        float, typer.Option(help="Multiplies melt, ghost and consolidation change.")
    ] = 1.0,
    from_ct: Annotated[Path | None, typer.Option(help="Grow the patients from this CT.")] = None,
    structures: Annotated[Path | None, typer.Option(help="Structure set of that CT.")] = None,
    roi: Annotated[str, typer.Option(help="Tumour of that CT; without it, one is grafted.")] = "",
    graft: Annotated[
        bool, typer.Option("--graft", help="Graft a tumour although the CT has a drawn one.")
    ] = False,
    physics: Annotated[
        Physics, typer.Option(help="How cone beams are made; auto: rtk when it is installed.")
    ] = Physics.AUTO,
) -> None:
    """Make virtual patients and whole courses in DICOM, with the truth kept beside them."""
    with _one_line_errors():
        _require_empty(out)
        from contourcast.simulation.recipe import recipe_named
        from contourcast.training.cohort import Cohort, generate

        chosen = recipe_named(recipe, difficulty=difficulty, regression=regression)
        cts = [_real_ct(from_ct, structures, roi)] if from_ct else []
        if roi:
            chosen = replace(chosen, drawn_tumour_share=0.0 if graft else 1.0)
        cohort = Cohort(
            recipe=chosen,
            patients=patients,
            fractions=fractions,
            seed=seed,
            phantom_share=0.0 if cts else 1.0,
            first_phantom=FIRST_PHANTOM + 1000 * seed,
            physics=physics.value,
        )
        with _progress() as tell:
            generate(out, cohort, real_cts=cts, processes=min(2, patients), on_step=tell)
        typer.echo(f"{patients} patients with {fractions} fractions each: {out}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that propagate wrote.")],
    truth: Annotated[
        list[Path] | None, typer.Option(help="Simulated courses. Default: beside the runs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for table.csv, table.md, plots.png.")] = Path(
        "compared"
    ),
) -> None:
    """Measure runs whose truth is known: a table and plots."""
    with _one_line_errors():
        from contourcast.training.evaluate import compare as measure_all
        from contourcast.training.evaluate import table

        places = truth or [run.parent for run in runs]
        with _progress() as tell:
            rows = measure_all(runs, places, out, on_step=tell)
        typer.echo(table(rows))
        typer.echo(f"written to {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("demo"),
) -> None:
    """Show the whole: a virtual patient, the main job on it, a table and pictures."""
    import shutil

    for part in ("course", "run", "compared"):
        shutil.rmtree(out / part, ignore_errors=True)
    course = out / "course"
    simulate(out=course, patients=1, fractions=1, seed=7, physics=Physics.IMAGE)
    patient = course / "patient-001"
    propagate(
        planning_ct=patient / "planning-ct",
        structures=patient / "structures.dcm",
        cbct=patient / "fraction-01",
        roi="GTV",
        out=out / "run",
    )
    compare([out / "run"], truth=[course], out=out / "compared")
    typer.echo(f"look at {out / 'run' / 'report.html'} and {out / 'compared' / 'plots.png'}")


@training.command("samples")
def train_samples(
    curriculum: Annotated[Path, typer.Option(help="Who is simulated: docs/curriculum.toml.")],
    data: Annotated[Path, typer.Option(help="Folder that the curriculum's CTs lie in.")],
    out: Annotated[Path, typer.Option(help="Folder for the samples.")],
    part: Annotated[
        str, typer.Option(help="k/n: every n-th patient from the k-th on, for several processes.")
    ] = "0/1",
) -> None:
    """Simulate the samples of a curriculum; those that are there are kept."""
    with _one_line_errors():
        from contourcast.training.curriculum import build_curriculum, read_curriculum
        from contourcast.training.samples import SampleSettings

        wanted = read_curriculum(curriculum, data)
        first, _, of = part.partition("/")
        done = 0
        with _progress() as tell:

            def told(name: str) -> None:
                nonlocal done
                done += 1
                tell(name, done * int(of) / wanted.size)

            build_curriculum(
                wanted, out, SampleSettings(), part=(int(first), int(of)), on_sample=told
            )
        typer.echo(f"{len(list(out.glob('*.npz')))} samples in {out}")


@training.command("run")
def train_run(
    samples: Annotated[Path, typer.Option(help="Folder that 'train samples' made.")],
    out: Annotated[Path, typer.Option(help="Folder for log, curve, state and model.")],
    validation: Annotated[
        list[str], typer.Option(help="Name of a CT whose patients validate; may be repeated.")
    ],
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Steps of an epoch.")] = 50,
    seed: Annotated[int, typer.Option()] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
) -> None:
    """Fit a Diff-UMamba on samples, or go on where the folder's last epoch ended."""
    with _one_line_errors():
        from contourcast.training.loop import TrainSettings, export, train
        from contourcast.training.samples import load_samples, split

        settings = TrainSettings(
            epochs=epochs,
            steps_per_epoch=steps,
            seed=seed,
            threads=threads,
            device=_device(device, threads),
        )
        fitted, aside = split(load_samples(samples), validation_cts=validation)
        with _progress() as tell:
            trained = train(
                fitted,
                aside,
                settings,
                out,
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
        digest = export(trained, out / "model", training=facts)
        typer.echo(f"best validation DSC {trained.best.validation_dice:.3f}; {digest}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has: device, scan backend, codecs, elastix, weights."""
    with _one_line_errors():
        from contourcast.service.doctor import examine

        findings = examine()
        if as_json:
            typer.echo(json.dumps(findings, indent=1))
            return
        width = max(len(name) for name in findings)
        for name, finding in findings.items():
            typer.echo(f"{name:<{width}}  {finding}")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; loopback only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    data: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
) -> None:
    """Serve the HTTP API (OpenAPI at /docs) with durable jobs on this machine."""
    with _one_line_errors():
        from contourcast.service.server import serve as run_server
        from contourcast.service.settings import ServiceSettings

        settings = ServiceSettings() if data is None else ServiceSettings(data_folder=data)
        run_server(host=host, port=port, settings=settings)


def main() -> None:
    """The entry point ``contourcast``."""
    app()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """A refusal is one line on stderr and its exit code; a bug stays a traceback."""
    try:
        yield
    except ContourcastError as error:
        typer.echo(f"contourcast: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (OSError, MemoryError, ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        typer.echo(f"contourcast: {reason}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("contourcast: interrupted", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr where a person looks, silence where a script does."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<44}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda sentence, done: bar.update(task, description=sentence, completed=done)


def _require_empty(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(
            "the output folder is not empty", file=out.name, remedy="name a new or empty folder"
        )


def _print_summary(report: Report, out: Path) -> None:
    """What a person wants to know first."""
    typer.echo(f"verdict: {report.verdict}")
    for reason in report.reasons:
        typer.echo(f"  - {reason}")
    for method in report.methods:
        volume = "–" if method.volume_cc is None else f"{method.volume_cc:.1f} cc"
        typer.echo(f"{method.method:<12} {method.state:<9} {volume:>10}  {method.seconds:6.1f} s")
    typer.echo(f"results in {out}; not reviewed, not a medical device")


def _real_ct(folder: Path, structures: Path | None, roi: str) -> RealCt:
    from contourcast.imaging.dicom.ct_series import read_ct_series
    from contourcast.imaging.dicom.rtstruct_in import read_structure_set
    from contourcast.training.cohort import RealCt

    if bool(structures) != bool(roi):
        raise InputError("a tumour needs both --structures and --roi", remedy="give both or none")
    drawn = read_structure_set(structures).roi(roi) if structures else None
    return RealCt(name=folder.name, ct=read_ct_series(folder, role="planning CT"), drawn=drawn)


def _device(wanted: Device, threads: int) -> str:
    import torch

    if threads:
        torch.set_num_threads(threads)
    if wanted is Device.CUDA and not torch.cuda.is_available():
        raise InputError("this machine has no usable CUDA device", remedy="--device cpu")
    if wanted is Device.AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted.value
