"""Many CBCTs at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contourcast.service.cohort import Cohorts, Progress

POLL_S = 1.0


def cohort(
    what: Annotated[
        str,
        typer.Argument(
            help="A folder of DICOM of any number of patients; or, of what is here already: "
            "since=2026-01-01,until=2026-02-01,methods=rigid+dir-l"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for cohort.csv and cohort.json.")],
    data: Annotated[Path | None, typer.Option(help="Folder for all that is kept.")] = None,
    wait: Annotated[
        bool, typer.Option(help="Stay until all is drawn; else report what is known now.")
    ] = True,
    work: Annotated[
        bool, typer.Option(help="Work here, too; else workers of the service do.")
    ] = True,
) -> None:
    """Carry the contours of a whole folder or time; stopped, it goes on when asked for again."""
    import contextlib

    from contourcast.service.children import child
    from contourcast.service.cohort import Cohorts, Query
    from contourcast.service.jobs.network import served_network
    from contourcast.service.records import open_records
    from contourcast.service.server import WORKER
    from contourcast.service.settings import ServiceSettings

    settings = ServiceSettings() if data is None else ServiceSettings(data_folder=data)
    records = open_records(settings, role="cohort")
    cohorts = Cohorts(records, settings)
    try:
        if Path(what).is_dir():
            cohort_id = _taken(cohorts, Path(what))
        else:
            cohort_id = cohorts.again(Query.read(what), network=served_network(settings)())
        with child(WORKER, settings) if work else contextlib.nullcontext():
            if wait:
                _follow(cohorts, cohort_id)
        summary = cohorts.report(cohort_id, out)
        typer.echo(f"{summary['propagations']}; verdicts {summary['verdicts']}; see {out}")
    finally:
        records.close()


def _taken(cohorts: Cohorts, folder: Path) -> str:
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("taking files in")
        return cohorts.take(
            folder, told=lambda done, of: bar.update(task, completed=done, total=of)
        )


def _follow(cohorts: Cohorts, cohort_id: str) -> None:
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("drawing")
        while not (now := cohorts.progress(cohort_id)).ended:
            bar.update(task, completed=_through(now), total=sum(now.propagations.values()) or None)
            time.sleep(POLL_S)


def _through(now: Progress) -> int:
    from contourcast.service.cohort import UNDERWAY

    return sum(n for state, n in now.propagations.items() if state not in UNDERWAY)
