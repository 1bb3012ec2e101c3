"""A person's contour: the machine's, with some slices drawn anew; and how far they lie apart."""

from __future__ import annotations

from typing import Any, Final

from contourcast.imaging import polygon
from contourcast.imaging.dicom.rtstruct_out import LEAST_AREA_MM2
from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import agreement
from contourcast.imaging.polygon import Loop
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.trace import loops_volume_cc
from contourcast.service.review.drafts import Draft
from contourcast.service.review.loops import raised, slice_of

# Lines that cross by less do so by the rounding of whoever cut them.
ROUNDING_MM: Final = 1e-3


def edited(machine: Roi, draft: Draft, grid: Grid) -> tuple[Contour, ...]:
    """The machine's loops, with the slices of a draft in place of its own.

    Loops of other slices are the very objects that were read.

    Raises:
        InputError: A loop of the draft encloses nothing, crosses itself or another, or reaches out
            of the image; or nothing is left. Names the slice.
    """
    drawn = draft.slices
    if not drawn:
        raise InputError("nothing was edited", remedy="approve the contour unchanged")
    by_slice: dict[int, list[Contour]] = {}
    for loop in machine.loops:
        by_slice.setdefault(slice_of(loop, grid), []).append(loop)
    for k, loops in drawn.items():
        _require_drawable(loops, k, grid)
        by_slice[k] = list(raised(loops, k, grid))
    found = tuple(loop for k in sorted(by_slice) for loop in by_slice[k])
    if not found:
        raise InputError("no contour is left", remedy="draw one, or reject the propagation")
    return found


def distance_of(machine: Roi, signed: Roi, grid: Grid, *, draft: Draft | None) -> dict[str, Any]:
    """How far a signed contour lies from the machine's; the best figure that a department has."""
    figures: dict[str, Any] = {
        "volume_cc": round(loops_volume_cc(signed.loops, grid), 4),
        "machine_volume_cc": round(loops_volume_cc(machine.loops, grid), 4),
    }
    if draft is None:
        same = {"surface_dice_1mm": 1.0, "mean_surface_mm": 0.0}
        return figures | same | {"edited_slices": 0, "seconds": 0.0}
    measured = agreement(rasterise(signed, grid), rasterise(machine, grid))
    return figures | {
        "surface_dice_1mm": round(measured.surface_dice_1mm, 4),
        "mean_surface_mm": None if measured.msd_mm is None else round(measured.msd_mm, 4),
        "edited_slices": len(draft.loops),
        "seconds": draft.seconds,
    }


def _require_drawable(loops: list[Loop], k: int, grid: Grid) -> None:
    def refused(why: str) -> InputError:
        return InputError(f"slice {k + 1}: {why}", remedy="mend the contour there, then sign")

    if not loops:
        return
    _, rows, columns = grid.shape_zyx
    x, y = grid.spacing_xy_mm
    for loop in loops:
        if polygon.crosses_itself(loop, deeper_than=ROUNDING_MM):
            raise refused("a contour crosses itself")
        if abs(polygon.signed_area(loop)) < LEAST_AREA_MM2:
            raise refused("a contour encloses nothing")
        if (loop < (-x / 2, -y / 2)).any() or (
            loop > ((columns - 0.5) * x, (rows - 0.5) * y)
        ).any():
            raise refused("a contour reaches out of the image")
    if polygon.cross(loops, deeper_than=ROUNDING_MM):
        raise refused("two contours cross each other")
