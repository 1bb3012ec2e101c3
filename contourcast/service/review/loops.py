"""Contours as the page has them: loops in millimetres on the CBCT's slices, and back.

On a slice a point is ``(u, v)``: millimetres from the centre of the slice's first pixel along its
rows and along its columns. Holes are loops of their own, by even-odd counting; the cuts of no
width with which structure sets open them (`imaging.keyhole`) are taken out, and made again when
a set is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from contourcast.imaging.errors import GeometryError
from contourcast.imaging.grid import EVEN_GAP_MM, Grid
from contourcast.imaging.polygon import Loop
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.volume import require_same_frame

# A contour this far off a slice, in slices, was not drawn on it.
OFF_SLICE: Final = 0.1
# A hole has three points at least; its cut adds two of each of its ends.
SHORTEST_HOLE: Final = 6
# Where a cut meets an edge between two vertices, four decimals put it no further off the line: the
# point and the edge each move by sqrt(3) / 2 * 1e-4 at most.
ON_EDGE_MM: Final = 2e-4

Slices = dict[int, list[Loop]]
"""Loops by the number of their slice, each of shape (n, 2)."""


def on_slices(roi: Roi, grid: Grid, frame_of_reference: str) -> Slices:
    """A ROI's loops by slice, in the plane's own coordinates, holes as loops.

    Args:
        roi: Drawn on the scan.
        grid: Of the scan that is shown.
        frame_of_reference: Of the scan that is shown.

    Raises:
        FrameMismatchError: The ROI was drawn in another frame: it is never shown on this scan.
        GeometryError: A loop lies on none of the slices.
    """
    require_same_frame(roi.frame_of_reference, frame_of_reference)
    found: Slices = {}
    for contour in roi.loops:
        flat = flattened(contour, grid)
        found.setdefault(slice_of(contour, grid), []).extend(opened(flat))
    return {k: found[k] for k in sorted(found)}


def slice_of(contour: Contour, grid: Grid) -> int:
    """The slice that a loop lies on.

    Raises:
        GeometryError: It lies on none.
    """
    depth_mm = (contour.points_xyz_mm - grid.origin_xyz_mm) @ grid.normal
    k = int(np.abs(grid.offsets_z_mm - depth_mm.mean()).argmin())
    off_mm = float(np.abs(depth_mm - grid.offsets_z_mm[k]).max())
    if off_mm > max(EVEN_GAP_MM, OFF_SLICE * grid.spacing_xyz_mm[2]):
        raise GeometryError(
            f"a contour lies {off_mm:.2f} mm off the nearest slice of the CBCT",
            tag="(3006,0050) Contour Data",
            remedy="it cannot be shown there; open it on the series that it was drawn on",
        )
    return k


def flattened(contour: Contour, grid: Grid) -> Loop:
    """A loop in the coordinates of its slice, shape (n, 2)."""
    flat: Loop = (contour.points_xyz_mm - grid.origin_xyz_mm) @ grid.direction[:, :2]
    return flat


def raised(loops: Iterable[Loop], k: int, grid: Grid) -> tuple[Contour, ...]:
    """Loops of slice ``k`` in the frame of the scan."""
    origin = grid.origin_xyz_mm + grid.offsets_z_mm[k] * grid.normal
    return tuple(
        Contour(points_xyz_mm=origin + np.asarray(loop, float) @ grid.direction[:, :2].T)
        for loop in loops
    )


def opened(loop: Loop) -> list[Loop]:
    """A loop without cuts of no width: the outer loop and its holes (`imaging.keyhole.keyhole`).

    A cut is walked twice, there and back: point M of the outer edge, then the hole from its first
    point round to the same point again, then M once more. M may be a vertex of the contour's own,
    for pixels in rows put the ends of many cuts there: only where it bends nothing is it left out.
    """
    points, holes = np.asarray(loop, float), []
    while (cut := _innermost_cut(points)) is not None:
        first, last = cut
        holes.append(points[first + 1 : last - 1])
        points = np.concatenate((points[: first + 1], points[last + 1 :]))
        if _bends_nothing(points, first):
            points = np.delete(points, first, axis=0)
    return [points, *holes]


def _bends_nothing(points: Loop, n: int) -> bool:
    """Whether a point lies on the straight way from the one before it to the one after it."""
    before, point, after = points[n - 1], points[n], points[(n + 1) % len(points)]
    way = after - before
    along = np.clip((point - before) @ way / max(float(way @ way), ON_EDGE_MM**2), 0.0, 1.0)
    return float(np.linalg.norm(before + along * way - point)) <= ON_EDGE_MM


def _innermost_cut(points: Loop) -> tuple[int, int] | None:
    """Where M stands the first and the second time; the shortest way round comes first."""
    places: dict[bytes, list[int]] = {}
    for n, point in enumerate(points):
        places.setdefault(point.tobytes(), []).append(n)
    cuts = [
        (last - first, first, last)
        for found in places.values()
        for i, first in enumerate(found)
        for last in found[i + 1 :]
        if last - first >= SHORTEST_HOLE - 1 and (points[first + 1] == points[last - 1]).all()
    ]
    return min(cuts)[1:] if cuts else None


def as_json(slices: Mapping[int, Sequence[Loop]]) -> list[dict[str, Any]]:
    """Loops as the contract of the page has them; doubles come back bit by bit."""
    return [
        {"slice": k, "points_xy_mm": np.asarray(loop, float).tolist()}
        for k in sorted(slices)
        for loop in slices[k]
    ]


def from_json(loops: Iterable[Mapping[str, Any]]) -> Slices:
    """What `as_json` wrote."""
    found: Slices = {}
    for loop in loops:
        found.setdefault(int(loop["slice"]), []).append(np.array(loop["points_xy_mm"], float))
    return found
