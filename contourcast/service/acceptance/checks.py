"""One thing that is asked of the fixed set, and how its answer is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from contourcast.imaging.dicom.ct_series_out import series_source, write_ct_series
from contourcast.imaging.dicom.modules import required_source
from contourcast.imaging.errors import ContourcastError
from contourcast.imaging.grid import Points
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Roi
from contourcast.imaging.volume import Mask, Volume
from contourcast.propagate import DeviceError
from contourcast.service.acceptance.carried import Carried, Files, Machine

Group = Literal["truth", "geometry", "accident"]
NOTHING: Final = "nothing drawn"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was asked for.

    Attributes:
        because: Why this is expected, or where the figure comes from.
    """

    group: Group
    what: str
    expected: str
    found: str
    passed: bool
    because: str


def at_most(
    limit_mm: float, found_mm: float | None, *, group: Group, what: str, because: str
) -> Check:
    """A distance that may not be longer; None: there is none, which is no pass."""
    return Check(
        group=group,
        what=what,
        expected=f"≤ {limit_mm} mm",
        found=NOTHING if found_mm is None else f"{found_mm:.2f} mm",
        passed=found_mm is not None and found_mm <= limit_mm,
        because=because,
    )


def refused(
    error: ContourcastError, *, group: Group, what: str, expected: str, because: str, meant: bool
) -> Check:
    """What could not be carried at all; ``meant``: as it should not."""
    return Check(
        group=group,
        what=what,
        expected=expected,
        found=f"refused: {error.cause}",
        passed=meant,
        because=because,
    )


def carry_or_refuse(
    machine: Machine, files: Files, methods: tuple[str, ...] = ()
) -> Carried | ContourcastError:
    """A run, or why there is none; a GPU that is lost ends it all."""
    try:
        return machine.carry(files, methods=methods)
    except DeviceError:
        raise
    except ContourcastError as error:
        return error


def told(figure: float | None) -> str:
    """A ratio in words."""
    return NOTHING if figure is None else f"{figure:.3f}"


def dice_with(roi: Roi | None, reference: Mask) -> float | None:
    """DSC of a contour with a region; None: there is no contour."""
    return None if roi is None else dice(rasterise(roi, reference.grid), reference)


def center_xyz_mm(mask: Mask) -> Points:
    """Its centre of mass, a single row."""
    center = mask.centroid_xyz_mm()
    assert center is not None, "patients of the set have a tumour, and what was drawn is not empty"
    return center[None]


def apart_mm(one: Points, other: Points) -> float:
    """Distance of two points, each a single row."""
    return float(np.linalg.norm(one - other))


def rewritten(
    volume: Volume, folder: Path, *, like: Volume, role: str, position: str = "HFS"
) -> Volume:
    """Writes a scan as another series of the patient and study of ``like``.

    Args:
        volume: The voxels.
        folder: For the slices.
        like: Whose name and study it takes.
        role: Tells such series apart.
        position: (0018,5100) Patient Position.
    """
    of = required_source(like.source, "scan")
    digest = required_source(volume.source, "scan").digest
    named = series_source(
        volume,
        digest=digest,
        patient=of.patient,
        study=of.study,
        role=f"acceptance, {role}",
        series_description=of.series_description,
        series_date=of.series_date,
        series_time=of.series_time,
        manufacturer=of.manufacturer,
        patient_position=position,
        body_part=of.body_part,
    )
    source = write_ct_series(folder, replace(volume, source=named))
    return replace(volume, source=source)
