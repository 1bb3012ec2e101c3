"""The same scan in another order of its voxels, which must give the same answer.

A scanner that was told that the patient lies prone, or with the feet first, stores columns, rows
and slices along other axes of the patient, and says so in each slice. A reader that goes by the
order of the files mirrors or turns what it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.errors import ContourcastError
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.volume import Volume
from contourcast.service.acceptance.carried import Carried, Machine
from contourcast.service.acceptance.checks import (
    Check,
    apart_mm,
    at_most,
    carry_or_refuse,
    center_xyz_mm,
    dice_with,
    refused,
    rewritten,
    told,
)
from contourcast.service.acceptance.fixed import Made

# Registration draws its samples by the order of the voxels, so it answers a little else.
SAME_MM: Final = 0.5
SAME_DSC: Final = 0.95
# The axes of columns, rows and slices in LPS as a scanner stores them (PS3.3 C.7.3.1.1.2).
AXES: Final = {"HFP": (-1, -1, 1), "FFS": (-1, 1, -1)}
IN_WORDS: Final = {"HFP": "head first, prone", "FFS": "feet first, supine"}
BECAUSE: Final = "the same voxels at the same places, in another order"


def of_geometry(
    made: Made, carried: Carried, machine: Machine, position: str, folder: Path
) -> list[Check]:
    """A patient's CBCT stored for another position of the patient, against the answer of before.

    Args:
        made: The patient.
        carried: The answer to the CBCT as it was stored at first.
        machine: What draws.
        position: One of `AXES`.
        folder: For the slices; new.
    """
    what = f"{made.name}: the CBCT stored as {IN_WORDS[position]} ({position})"
    today = read_ct_series(made.files.cbct, role="CBCT")
    turned = laid(today, AXES[position])
    rewritten(turned, folder, like=today, role=position, position=position)
    methods = ("rigid", machine.network.name)
    other = carry_or_refuse(machine, replace(made.files, cbct=folder), methods)
    if isinstance(other, ContourcastError):
        return [
            refused(
                other,
                group="geometry",
                what=what,
                expected="the same answer",
                because=BECAUSE,
                meant=False,
            )
        ]
    return [
        at_most(
            SAME_MM,
            _apart_mm(carried, other),
            group="geometry",
            what=f"{what}: the registrations' distance at the tumour",
            because=BECAUSE,
        ),
        *(_same(made, carried, other, method, what) for method in methods),
    ]


def _apart_mm(one: Carried, other: Carried) -> float | None:
    first, second = one.cbct_from_planning, other.cbct_from_planning
    if first is None or second is None:
        return None
    planned = center_xyz_mm(rasterise(one.case.prior, one.case.planning_ct.grid))
    return apart_mm(first.apply(planned), second.apply(planned))


def _same(made: Made, one: Carried, other: Carried, method: str, what: str) -> Check:
    first, grid = one.contours.get(method), made.truth.label.grid
    dsc = dice_with(other.contours.get(method), rasterise(first, grid)) if first else None
    return Check(
        group="geometry",
        what=f"{what}: DSC of the two contours by {method}",
        expected=f"≥ {SAME_DSC}",
        found=told(dsc),
        passed=dsc is not None and dsc >= SAME_DSC,
        because=BECAUSE,
    )


def laid(volume: Volume, axes: Sequence[int]) -> Volume:
    """The same voxels at the same places, along axes that run the other way where they are -1.

    Args:
        volume: Even, its axes the patient's.
        axes: For columns, rows and slices.
    """
    grid = volume.grid
    first = [0 if sign > 0 else n - 1 for sign, n in zip(axes, grid.shape_zyx[::-1], strict=True)]
    turned = Grid.even(
        shape_zyx=grid.shape_zyx,
        spacing_xyz_mm=grid.spacing_xyz_mm,
        origin_xyz_mm=grid.world([first])[0],
        direction=grid.direction * np.asarray(axes, float),
    )
    steps = tuple(slice(None, None, sign) for sign in axes[::-1])
    observed = None if volume.observed is None else volume.observed[steps]
    return replace(volume, values=volume.values[steps], observed=observed, grid=turned)
