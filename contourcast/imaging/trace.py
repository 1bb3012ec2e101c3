"""From a region on a grid to its contours in millimetres.

The surface is the 0.5 level, found between pixel centres on the slice's own plane. A probability
is interpolated as log-odds: for a region that was carried as a signed distance these are linear
in millimetres, so that the level lies where the distance is zero. A mask's surface lies half way
between the centres of pixels. Beyond the image nothing is inside, so what touches the border is
closed there, half a pixel outside the outermost centres at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import contourpy
import numpy as np

from contourcast.imaging import polygon
from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Contour
from contourcast.imaging.volume import Mask, Probability

# CLINICAL_SERVICE §2.4: size and import speed of structure sets.
THINNED_BY_MM: Final = 0.05
# CLINICAL_SERVICE §2.4, against thinning that eats a small contour.
AREA_CHANGE: Final = 0.001
# Points closer than this become one when written with four decimals (CLINICAL_SERVICE §2.4).
SAME_POINT_MM: Final = 0.001
# Log-odds beyond these are as good as certain; 4 is 0.982, or 4 mm inside a carried region.
CERTAIN_LOG_ODDS: Final = 4.0


def trace(region: Probability | Mask) -> tuple[Contour, ...]:
    """The region's contours, slice by slice from the first to the last.

    Outer loops run counter-clockwise and holes clockwise, seen from the head. No loop crosses
    itself; loops that enclose nothing are left out.
    """
    grid = region.grid
    slices, traced = [], []
    for n in np.flatnonzero(region.values.max(axis=(1, 2)) > 0.5).tolist():
        for loop in _loops(region.values[n], grid.spacing_xy_mm):
            slices.append(n)
            traced.append(loop)
    contours = []
    for n, loop in zip(slices, _thinned(traced), strict=True):
        ij = loop / grid.spacing_xy_mm
        points = grid.world(np.column_stack((ij, np.full(len(ij), n))))
        contours.append(Contour(points_xyz_mm=points[::-1] if grid.normal[2] < 0 else points))
    return tuple(contours)


def loops_volume_cc(loops: Sequence[Contour], grid: Grid) -> float:
    """Volume of a stack of loops: even-odd area times the length that the nearest slice stands for.

    Loops half a slice or more beyond the grid's first and last slice count as on them.
    """
    lengths = grid.thickness_z_mm
    on_slice: dict[int, list[polygon.Loop]] = {}
    for loop in loops:
        if loop.encloses:
            ijk = grid.index(loop.points_xyz_mm)
            n = int(np.clip(np.rint(ijk[:, 2].mean()), 0, grid.shape_zyx[0] - 1))
            on_slice.setdefault(n, []).append(ijk[:, :2] * grid.spacing_xy_mm)
    return sum(polygon.area(flat) * float(lengths[n]) for n, flat in on_slice.items()) / 1000.0


def _loops(inside: np.ndarray, spacing_xy_mm: tuple[float, float]) -> list[polygon.Loop]:
    """Loops of one slice in mm from the first pixel, wound from x to y (holes the other way)."""
    rows, columns = (np.flatnonzero((inside > 0.5).any(axis=axis)) for axis in (1, 0))
    top, left = rows[0] - 1, columns[0] - 1
    box = np.zeros((np.ptp(rows) + 3, np.ptp(columns) + 3))
    part = inside[max(top, 0) : rows[-1] + 2, max(left, 0) : columns[-1] + 2]
    y, x = max(-top, 0), max(-left, 0)
    box[y : y + part.shape[0], x : x + part.shape[1]] = part
    found = contourpy.contour_generator(
        x=(left + np.arange(box.shape[1])) * spacing_xy_mm[0],
        y=(top + np.arange(box.shape[0])) * spacing_xy_mm[1],
        z=_log_odds(box),
        name="serial",
        line_type=contourpy.LineType.Separate,
    ).lines(0.0)
    lines = [np.asarray(line, float) for line in found]
    loops = [_distinct(line[:-1]) for line in lines]
    return [loop for loop in loops if len(loop) >= 3 and polygon.signed_area(loop) != 0]


def _log_odds(probability: np.ndarray) -> np.ndarray:
    """Positive inside, zero on the surface; a mask's voxels are certain."""
    certain = 1 / (1 + np.exp(-CERTAIN_LOG_ODDS))
    held = np.clip(probability, 1 - certain, certain)
    odds: np.ndarray = np.log(held / (1 - held))
    return odds


def _distinct(loop: polygon.Loop) -> polygon.Loop:
    """The loop without points that fall onto the one before them."""
    steps = np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1)
    distinct: polygon.Loop = loop[steps > SAME_POINT_MM]
    return distinct


def _thinned(loops: Sequence[polygon.Loop]) -> list[polygon.Loop]:
    """Fewer points of each loop, as far as its area and simplicity allow."""
    result, left, tolerance = list(loops), list(range(len(loops))), THINNED_BY_MM
    while left and tolerance > SAME_POINT_MM:
        for n, fewer in zip(left, _fewer_points([loops[n] for n in left], tolerance), strict=True):
            if _is_as_good(fewer, loops[n]):
                result[n] = fewer
        left = [n for n in left if result[n] is loops[n]]
        tolerance /= 2
    return result


def _is_as_good(fewer: polygon.Loop, loop: polygon.Loop) -> bool:
    area = polygon.signed_area(loop)
    return (
        len(fewer) >= 3
        and abs(polygon.signed_area(fewer) - area) < AREA_CHANGE * abs(area)
        and not polygon.crosses_itself(fewer)
    )


def _fewer_points(loops: Sequence[polygon.Loop], tolerance: float) -> list[polygon.Loop]:
    """The points that Douglas and Peucker (1973) keep of each loop, opened at two far points.

    All spans between kept points of all loops are split at once, round by round.
    """
    points = np.concatenate([part for loop in loops for part in (loop, loop[:1])])
    begin = np.cumsum([0, *(len(loop) + 1 for loop in loops)])
    far = [int(((loop - loop[0]) ** 2).sum(axis=1).argmax()) for loop in loops]
    kept = np.zeros(len(points), bool)
    kept[begin[:-1]] = kept[begin[:-1] + far] = kept[begin[1:] - 1] = True
    undecided = np.flatnonzero(~kept)
    while len(undecided):
        knots = np.flatnonzero(kept)
        span = np.searchsorted(knots, undecided) - 1
        away2 = _away2(points[undecided], points[knots[span]], points[knots[span + 1]])
        starts = np.flatnonzero(np.diff(span, prepend=-1))
        worst = np.repeat(np.maximum.reduceat(away2, starts), np.diff(np.append(starts, len(span))))
        splits = worst > tolerance * tolerance
        farthest = np.flatnonzero(splits & (away2 == worst))
        one_of_each = np.diff(span[farthest], prepend=-1) > 0
        kept[undecided[farthest[one_of_each]]] = True
        undecided = undecided[splits & ~kept[undecided]]
    return [
        loop[kept[first : first + len(loop)]]
        for loop, first in zip(loops, begin[:-1].tolist(), strict=True)
    ]


def _away2(points: polygon.Loop, first: polygon.Loop, last: polygon.Loop) -> np.ndarray:
    """Squared distance of points from the chords between first and last."""
    chord, to = last - first, points - first
    length2 = np.einsum("ij,ij->i", chord, chord)
    along = np.einsum("ij,ij->i", to, chord) / np.where(length2 > 0, length2, 1.0)
    off = to - np.clip(along, 0, 1)[:, None] * chord
    away2: np.ndarray = np.einsum("ij,ij->i", off, off)
    return away2
