"""Virtual patients and whole courses."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contourcast.cli.terminal import progress, require_empty, require_writable
from contourcast.imaging.errors import InputError

if TYPE_CHECKING:
    from contourcast.training.cohort import RealCt

# Phantoms below are what networks of the house were fitted on (docs/curriculum.toml).
FIRST_PHANTOM = 500_000


class Physics(StrEnum):
    """How a cone beam is simulated."""

    AUTO = "auto"
    RTK = "rtk"
    IMAGE = "image"


def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the courses; new or empty.")],
    patients: Annotated[int, typer.Option(min=1, help="How many virtual patients.")] = 1,
    fractions: Annotated[int, typer.Option(min=1, help="CBCTs of each.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    recipe: Annotated[str, typer.Option(help="smooth, clinic-1 or clinic-2.")] = "clinic-1",
    difficulty: Annotated[
        float, typer.Option(help="Multiplies the recipe's shift, drift and phase offset.")
    ] = 1.0,
    regression: Annotated[
        float, typer.Option(help="Multiplies the recipe's melt, ghost and consolidation change.")
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
    require_empty(out)
    if from_ct is None and (structures or roi or graft):
        raise InputError(
            "--structures, --roi and --graft are of a CT, and none is named",
            remedy="name its folder: --from-ct",
        )
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
    with progress() as tell:
        generate(out, cohort, real_cts=cts, processes=min(2, patients), on_step=tell)
    typer.echo(f"{patients} patients with {fractions} fractions each: {out}")


def calibrate(
    curriculum: Annotated[Path, typer.Option(help="CTs to calibrate on: docs/calibration.toml.")],
    data: Annotated[Path, typer.Option(help="Folder that the curriculum's CTs lie in.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.csv and calibration.json.")],
    recipe: Annotated[str, typer.Option(help="Whose two multipliers are sought.")] = "clinic-1",
    difficulty: Annotated[float, typer.Option(help="Where the search for it begins.")] = 1.0,
    regression: Annotated[float, typer.Option(help="The same.")] = 1.0,
) -> None:
    """Make courses as hard as published ones; a calibration that was stopped goes on."""
    from contourcast.simulation.recipe import Sampling, recipe_named
    from contourcast.training.calibrate import CalibrationSettings
    from contourcast.training.calibrate import calibrate as search
    from contourcast.training.curriculum import read_anatomy, read_curriculum

    require_writable(out)
    wanted = read_curriculum(curriculum, data)
    sampling = Sampling().coarse
    with progress() as tell:
        tell("reading the CTs", 0.0)
        found = search(
            out,
            anatomies=[read_anatomy(ct, sampling.planning_spacing_xyz_mm) for ct in wanted.cts],
            recipe=recipe_named(recipe, difficulty=difficulty, regression=regression),
            sampling=sampling,
            settings=CalibrationSettings(seed=wanted.seed),
            on_step=tell,
        )
    typer.echo(f"difficulty {found.difficulty:g}, regression {found.regression:g}: {out}")


def _real_ct(folder: Path, structures: Path | None, roi: str) -> RealCt:
    from contourcast.imaging.dicom.ct_series import read_ct_series
    from contourcast.imaging.dicom.rtstruct_in import read_structure_set
    from contourcast.training.cohort import RealCt

    if bool(structures) != bool(roi):
        raise InputError("a tumour needs both --structures and --roi", remedy="give both or none")
    drawn = read_structure_set(structures).roi(roi) if structures else None
    return RealCt(name=folder.name, ct=read_ct_series(folder, role="planning CT"), drawn=drawn)
