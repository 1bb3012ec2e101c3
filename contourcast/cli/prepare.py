"""Preparing a data set for nnU-Net."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from contourcast.cli.terminal import Device, chosen_device, progress, require_writable


class Extent(StrEnum):
    """How much of each scan is written."""

    REGION = "region"
    WHOLE = "whole"


def prepare(
    source: Annotated[
        str,
        typer.Argument(help="courses, msd, brats21, aiib23, 4d-lung or pancreatic-ct-cbct."),
    ],
    folder: Annotated[Path, typer.Argument(help="Where the data lie.")],
    out: Annotated[
        Path, typer.Option(envvar="nnUNet_raw", help="nnU-Net's folder for raw data sets.")
    ],
    dataset_id: Annotated[int, typer.Option("--id", help="Number of the data set, 1 to 999.")],
    name: Annotated[str, typer.Option(help="What it is called beside its number.")],
    roi: Annotated[str, typer.Option(help="ROI to learn. Default: the source's own.")] = "",
    label_roi: Annotated[
        str, typer.Option(help="Its name in the structure sets of the day, where it differs.")
    ] = "",
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Grid to write, mm along z, y, x. Default: the source's own."),
    ] = None,
    extent: Annotated[
        Extent | None,
        typer.Option(help="The region round the carried prior, or the whole scan."),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrated", help="The CBCTs' numbers are Hounsfield units to be relied on."
        ),
    ] = False,
    prior: Annotated[
        bool, typer.Option("--prior", help="4d-lung: a second channel with the first day's tumour.")
    ] = False,
    phase: Annotated[
        list[int] | None,
        typer.Option(help="4d-lung: this breathing phase in percent alone; may be repeated."),
    ] = None,
    nested: Annotated[
        bool,
        typer.Option(
            "--nested",
            help="Folds 0 to 4 learn from 16, 32, 48, 64 and 80 % of the patients and validate on "
            "the same. Default: each patient validates in one fold.",
        ),
    ] = False,
    device: Annotated[Device, typer.Option(help="Where registration computes.")] = Device.CPU,
) -> None:
    """Bring courses or a public collection into the form that nnU-Net trains on."""
    from contourcast.training.datasets import Options
    from contourcast.training.datasets import prepare as prepare_dataset
    from contourcast.training.datasets.nnunet_raw import summary

    require_writable(out)
    options = Options(
        roi=roi,
        label_roi=label_roi,
        spacing_zyx_mm=spacing,
        extent=extent.value if extent else "",
        calibrated=calibrated,
        prior=prior,
        phases=tuple(phase or ()),
        device="cpu" if device is Device.CPU else chosen_device(device, 0),
    )
    with progress() as tell:
        made = prepare_dataset(
            source,
            folder,
            out,
            dataset_id=dataset_id,
            name=name,
            options=options,
            nested=nested,
            on_step=tell,
        )
    typer.echo(summary(made))
