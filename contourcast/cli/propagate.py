"""The main job, its measurement, and a demonstration of both."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contourcast.cli.simulate import Physics, simulate
from contourcast.cli.terminal import (
    Device,
    chosen_device,
    progress,
    require_empty,
    require_writable,
)

if TYPE_CHECKING:
    from contourcast.service.outputs.report import Report

REJECTED = 4
DEMO_MARK = ".contourcast-demo"


class FocusOption(StrEnum):
    """What the registration that carries the prior looks at."""

    BODY = "body"
    TARGET = "target"


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
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads; 0: as many as there are cores.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json on stdout.")] = False,
) -> None:
    """Carry a ROI of the planning CT to one CBCT, by every method, with a report."""
    from contourcast import propagate as pipeline
    from contourcast.registration.settings import RegistrationSettings
    from contourcast.service.jobs.inputs import read_case
    from contourcast.service.outputs.report import write_results

    require_empty(out)
    require_writable(out.resolve().parent)  # where the results are drafted

    where = chosen_device(device, threads)
    network = None
    if not method or any(pipeline.is_network(name) for name in method):
        from contourcast.models.predictor import load_network

        network = load_network(weights, device=where)
    settings = pipeline.Settings(
        methods=tuple(method or pipeline.methods_with(network)),
        registration=RegistrationSettings(focus=focus.value),
        device=where,
    )
    with progress() as tell:
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
        result = pipeline.propagate(
            case, settings=settings, network=network, clock=time.perf_counter, on_step=tell
        )
        tell("writing", 0.98)
        report = write_results(result, out, made_at=datetime.now(UTC).astimezone())
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        _print_summary(report, out)
    if result.registrations.rejected:
        raise typer.Exit(REJECTED)


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
    from contourcast.training.evaluate import compare as measure_all
    from contourcast.training.evaluate import table

    require_writable(out)
    places = truth or [run.parent for run in runs]
    with progress() as tell:
        rows = measure_all(runs, places, out, on_step=tell)
    typer.echo(table(rows))
    typer.echo(f"written to {out}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("demo"),
) -> None:
    """Show the whole: a virtual patient, the main job on it, a table and pictures."""
    mark = out / DEMO_MARK
    if not mark.is_file():  # only what an earlier demo wrote is deleted
        require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text("contourcast demo begins anew in this folder each time\n", "utf-8")
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


def _print_summary(report: Report, out: Path) -> None:
    """What a person wants to know first."""
    typer.echo(f"verdict: {report.verdict}")
    for reason in report.reasons:
        typer.echo(f"  - {reason}")
    for method in report.methods:
        volume = "–" if method.volume_cc is None else f"{method.volume_cc:.1f} cc"
        typer.echo(f"{method.method:<12} {method.state:<9} {volume:>10}  {method.seconds:6.1f} s")
    typer.echo(f"results in {out}; not reviewed, not a medical device")
