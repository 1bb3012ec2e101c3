"""Site acceptance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contourcast.cli.terminal import Device, chosen_device, progress, require_empty


def accept(
    out: Annotated[
        Path, typer.Option(help="Folder for acceptance.html and acceptance.json; new or empty.")
    ],
    patients: Annotated[
        Path | None,
        typer.Option(help="The site's own courses too: a folder of DICOM, best one for each."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Model folder. Default: the one shipped.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    roi: Annotated[str, typer.Option(help="Name of the tumour in the own structure sets.")] = "GTV",
) -> None:
    """Site acceptance: a fixed set and the site's own data on this machine; a report to sign."""
    require_empty(out)
    where = chosen_device(device, 0)
    from contourcast.models.predictor import load_network
    from contourcast.service.acceptance import fixed
    from contourcast.service.acceptance.accept import PAGE_FILE
    from contourcast.service.acceptance.accept import accept as ask
    from contourcast.service.acceptance.carried import Machine
    from contourcast.service.doctor import examine
    from contourcast.service.settings import ServiceSettings

    machine = Machine(network=load_network(weights, device=where), device=where)
    with progress() as tell:
        tell("looking at this machine", 0.0)
        facts = examine(ServiceSettings())
        made = ask(
            out,
            machine=machine,
            fixed=fixed.FIXED,
            facts=facts,
            patients=patients,
            roi=roi,
            on_step=tell,
        )
    failed = [check.what for check in made.checks if not check.passed]
    said = f"{len(made.checks) - len(failed)} of {len(made.checks)} checks passed"
    if failed:
        typer.echo(
            f"contourcast: not accepted, {said}: {failed[0]}; see {out / PAGE_FILE}", err=True
        )
        raise typer.Exit(1)
    typer.echo(f"{said} in {made.seconds:.0f} s: {out / PAGE_FILE}, to be read and signed")
