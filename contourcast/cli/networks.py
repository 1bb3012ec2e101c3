"""The networks beside each other."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from contourcast.cli.terminal import progress

if TYPE_CHECKING:
    from contourcast.models.overview import Row

HEADINGS = (
    "network",
    "status",
    "parameters",
    "image",
    "GFLOP",
    "seconds here",
    "peak MiB here",
    "takes",
)


def networks(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which networks; without a name, all.")
    ] = None,
    side: Annotated[
        int, typer.Option(min=1, max=256, help="Of the image that costs are told for, voxels.")
    ] = 96,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run each, one thread, in a process of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the networks: what each weighs and costs, what images it takes, what it is for."""
    from contourcast.models.networks import NETWORKS
    from contourcast.models.overview import overview

    wanted = names or list(NETWORKS)
    rows = []
    with progress() as tell:
        tell(wanted[0], 0.0)
        for row in overview(wanted, side=side, measure=measure):
            rows.append(row)
            tell(row.name, len(rows) / len(wanted))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS))]
    for row_of_cells in cells:
        padded = [
            cell.rjust(width) if 2 <= i < 7 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row_of_cells, widths, strict=True))
        ]
        typer.echo("  ".join(padded).rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    if row.needs:
        return (row.name, row.status, *[""] * 5, f"(needs {row.needs})")
    return (
        row.name,
        row.status,
        f"{row.parameters:,}",
        " x ".join(str(n) for n in row.shape),
        f"{row.gigaflops:,.0f}",
        "" if row.seconds is None else f"{row.seconds:.2f}",
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        row.takes,
    )
