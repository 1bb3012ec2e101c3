"""Closed loops in a plane: what they enclose, how far away they are.

A loop is an array ``(n, 2)`` of points ``(x, y)``, the first not repeated. Several loops together
enclose by the even-odd rule, so that a loop within a loop is a hole whichever way it winds.
Pixels are squares of size one about integer points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

Loop = Float[np.ndarray, "_ 2"]
Loops = Sequence[Loop]

# Positions written with six decimals must not fall on either side of a pixel centre by rounding.
SAME_PIXEL_PLACE: Final = 6
# Squares along the longer side of the box in which an area is counted; exact with any number.
AREA_SQUARES: Final = 32
# In pixels; the nearest edge is found by marks set along the edges at most this far apart.
MARK_EVERY: Final = 0.5
# Pairs of edges compared at a time: some tens of megabytes, however many points a contour has.
PAIRS_AT_A_TIME: Final = 500_000


def edges(loops: Loops) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Where the edges of all loops start and where they stop."""
    starts = np.concatenate([np.asarray(loop, float) for loop in loops])
    stops = np.concatenate([np.roll(np.asarray(loop, float), -1, axis=0) for loop in loops])
    return starts, stops


def inside(loops: Loops, shape_yx: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Pixels whose centre is inside, by even-odd counting over all loops.

    Half-open: an edge through a centre counts as inside where the region lies towards larger x
    or y, and as outside where it lies towards smaller ones. So two regions that share an edge
    share no pixel and leave none out. What reaches beyond the image is cut off at its border.
    """
    rows, columns = shape_yx
    result = np.zeros(shape_yx, bool)
    start, stop = (np.round(ends, SAME_PIXEL_PLACE) for ends in edges(loops))
    low, high = np.minimum(start, stop), np.maximum(start, stop)
    left, right = (int(v) for v in np.clip((low[:, 0].min(), high[:, 0].max() + 1), 0, columns))
    top, bottom = (
        int(v) for v in np.clip((np.ceil(low[:, 1].min()), np.ceil(high[:, 1].max())), 0, rows)
    )
    if left >= right or top >= bottom:
        return result
    first = np.maximum(np.ceil(low[:, 1]), top).astype(int)
    last = np.minimum(np.ceil(high[:, 1]) - 1, bottom - 1).astype(int)
    edge, step = _repeated(np.maximum(last - first + 1, 0))
    row = first[edge] + step
    run, rise = (stop - start)[edge].T
    crossing = start[edge, 0] + (row - start[edge, 1]) * run / rise
    column = np.clip(np.ceil(np.round(crossing, SAME_PIXEL_PLACE)), left, right).astype(int)
    width = right - left + 1
    crossings = np.bincount(
        (row - top) * width + (column - left), minlength=(bottom - top) * width
    ).astype(np.uint8)
    odd = np.cumsum(crossings.reshape(-1, width), axis=1, dtype=np.uint8) & 1
    result[top:bottom, left:right] = odd[:, :-1]
    return result


def border(loops: Loops) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Edges that part inside from outside: where they start and stop.

    Where edges coincide in pairs, whichever way they run, both sides are alike by even-odd
    counting: such are the two ways along the cut that opens a hole (see `keyhole`). Loops of
    nothing else enclose nothing, and keep their edges.
    """
    start, stop = edges(loops)
    # Rounded as in `inside`, or a pixel between two edges called one would be outside, and deep.
    x, y = np.round(np.stack((start, stop), axis=1), SAME_PIXEL_PLACE).transpose(2, 0, 1) + 0.0
    ends = np.sort(x + 1j * y, axis=1)  # the same whichever way the edge runs
    _, which, times = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    parts = times[which.ravel()] % 2 == 1
    return (start[parts], stop[parts]) if parts.any() else (start, stop)


def coverage(loops: Loops, shape_yx: tuple[int, int]) -> Float[np.ndarray, "y x"]:
    """How much of each pixel is inside, 0 to 1: exact for loops that do not cross.

    Every edge is cut at the pixels' borders; each piece covers the part of its pixel to its
    right, and all pixels further right, by its height. In the one pixel in which edges cross, a
    bow-tie's share is that of its net area.
    """
    corners = np.floor(np.concatenate(list(loops)) + 0.5)  # the pixels that hold them
    left, top = (int(v) for v in np.clip(corners.min(axis=0), 0, shape_yx[::-1]))
    right, bottom = (int(v) for v in np.clip(corners.max(axis=0) + 1, 0, shape_yx[::-1]))
    shares = np.zeros(shape_yx)
    if left < right and top < bottom:
        within = [loop - (left, top) for loop in loops]
        shares[top:bottom, left:right] = _coverage(within, bottom - top, right - left)
    return shares


def _coverage(loops: Loops, rows: int, columns: int) -> Float[np.ndarray, "y x"]:
    start, stop = edges(oriented(loops))
    start, stop = start + 0.5, stop + 0.5  # pixel c now reaches from c to c + 1
    start, stop = _cut(start, stop, axis=1, borders=rows)
    start, stop = _cut(start, stop, axis=0, borders=columns)
    middle, height = (start + stop) / 2, stop[:, 1] - start[:, 1]
    row = np.floor(middle[:, 1]).astype(int)
    column = np.floor(middle[:, 0]).astype(int)
    seen = (row >= 0) & (row < rows) & (column < columns)
    row, column, height, x = row[seen], column[seen], height[seen], middle[seen, 0]
    right_of_it = np.where(column < 0, 1.0, column + 1 - x)
    column = np.maximum(column, 0)
    place, size = row * (columns + 1) + column, rows * (columns + 1)
    change = np.bincount(place, height * right_of_it, size)
    change += np.bincount(place + 1, height * (1 - right_of_it), size + 1)[:size]
    winding = np.cumsum(change.reshape(rows, columns + 1), axis=1)[:, :-1]
    even_odd: np.ndarray = 1 - np.abs(1 - np.abs(winding) % 2)
    return even_odd


def signed_area(loop: Loop) -> float:
    """Area, positive when it winds from x to y."""
    x, y = (loop - loop[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def area(loops: Loops, *, squares: int = AREA_SQUARES) -> float:
    """Area enclosed by the even-odd rule, in the square of the loops' unit.

    Args:
        loops: The loops.
        squares: Along the longer side of their box. Where loops cross or lie on each other the
            squares that their edges run through are too full.
    """
    if not loops:
        return 0.0
    corners = np.concatenate(list(loops))
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    square = float(extent.max()) / squares
    if square == 0:
        return 0.0
    columns, rows = (int(n) for n in np.ceil(extent / square) + 1)
    return float(coverage([(loop - low) / square for loop in loops], (rows, columns)).sum()) * (
        square * square
    )


def contains(loop: Loop, point: Float[np.ndarray, " 2"]) -> bool:
    """Whether the point is inside the loop, half-open as in `inside`."""
    return bool(within(loop, point[None])[0])


def within(loop: Loop, points: Float[np.ndarray, "p 2"]) -> Bool[np.ndarray, " p"]:
    """Which of the points are inside the loop, half-open as in `inside`."""
    start, stop = edges([loop])
    height = points[:, 1:]
    which, edge = np.nonzero((start[:, 1] <= height) != (stop[:, 1] <= height))
    run, rise = (stop - start)[edge].T
    crossing = start[edge, 0] + (points[which, 1] - start[edge, 1]) * run / rise
    to_the_left = which[crossing <= points[which, 0]]
    odd: np.ndarray = np.bincount(to_the_left, minlength=len(points)) % 2 == 1
    return odd


def oriented(loops: Loops) -> list[Loop]:
    """The same loops, wound so that outer ones have positive area and holes negative area."""
    low = np.array([np.min(loop, axis=0) for loop in loops])
    high = np.array([np.max(loop, axis=0) for loop in loops])
    result = []
    for n, loop in enumerate(loops):
        about = ((low <= loop[0]) & (loop[0] <= high)).all(axis=1)
        about[n] = False
        depth = sum(contains(loops[m], loop[0]) for m in np.flatnonzero(about).tolist())
        outer = depth % 2 == 0
        result.append(loop if (signed_area(loop) >= 0) == outer else loop[::-1])
    return result


def distance(
    points: Float[np.ndarray, "p 2"], loops: Loops, *, limit: float
) -> Float[np.ndarray, " p"]:
    """Distance of points to the nearest edge of the `border`, at most ``limit``.

    The nearest of the marks set along the edges names a piece of an edge; the distance is then
    that to this piece and to the two beside it.
    """
    start, stop = pieces(loops, MARK_EVERY)
    middle = (start + stop) / 2
    away, nearest = cKDTree(middle).query(points, distance_upper_bound=limit + MARK_EVERY)
    result = np.full(len(points), limit)
    near = np.isfinite(away)
    for neighbour in (-1, 0, 1):
        piece = np.clip(nearest[near] + neighbour, 0, len(start) - 1)
        to_edge = _distance_to_segment(points[near], start[piece], stop[piece])
        result[near] = np.minimum(result[near], to_edge)
    return result


def signed_distance(
    loops: Loops, shape_yx: tuple[int, int], *, limit: float
) -> Float[np.ndarray, "y x"]:
    """Distance of pixel centres to the `border` in pixels, positive inside, at most ``limit``.

    Only pixels near an edge are measured.
    """
    start, stop = pieces(loops, MARK_EVERY)
    column, row = np.rint((start + stop) / 2).astype(int).T
    seen = (row >= 0) & (row < shape_yx[0]) & (column >= 0) & (column < shape_yx[1])
    marked = np.zeros(shape_yx, bool)
    marked[row[seen], column[seen]] = True
    near = maximum_filter(marked, size=2 * int(np.ceil(limit)) + 3)
    away = np.full(shape_yx, limit)
    points = np.argwhere(near)[:, ::-1].astype(float)
    away[near] = distance(points, loops, limit=limit)
    signed: np.ndarray = np.where(inside(loops, shape_yx), away, -away)
    return signed


def crosses_itself(loop: Loop, *, deeper_than: float = 0.0) -> bool:
    """Whether two edges of the loop cross, see `cross`."""
    return cross([loop], deeper_than=deeper_than)


def cross(loops: Loops, *, deeper_than: float = 0.0) -> bool:
    """Whether two edges, of one loop or of two, cross in their interiors (touching does not count).

    Only pairs of edges that share a stretch of x are looked at, a bounded number at a time.

    Args:
        loops: The loops.
        deeper_than: How far each edge must reach beyond the other, in the loop's unit: above
            zero, what crosses by rounding alone is let pass.
    """
    start, stop = edges(loops)
    order = np.argsort(np.minimum(start[:, 0], stop[:, 0]))
    start, stop = start[order], stop[order]
    low, high = np.minimum(start[:, 0], stop[:, 0]), np.maximum(start[:, 0], stop[:, 0])
    later = np.searchsorted(low, high, side="right") - np.arange(len(low)) - 1
    chunk = np.cumsum(later) // PAIRS_AT_A_TIME
    for edges_of_chunk in np.split(np.arange(len(low)), np.flatnonzero(np.diff(chunk)) + 1):
        one, step = _repeated(later[edges_of_chunk])
        a = edges_of_chunk[one]
        b = a + 1 + step
        b_from_a = _beside(start[a], stop[a], start[b]), _beside(start[a], stop[a], stop[b])
        a_from_b = _beside(start[b], stop[b], start[a]), _beside(start[b], stop[b], stop[a])
        crossing = (b_from_a[0] * b_from_a[1] < 0) & (a_from_b[0] * a_from_b[1] < 0)
        depth = np.abs([*b_from_a, *a_from_b]).min(axis=0, initial=np.inf)
        if (crossing & (depth > deeper_than)).any():
            return True
    return False


def same(one: Loop, other: Loop, *, apart: float) -> bool:
    """Whether two loops enclose the same, however their points are chosen, rounded and ordered.

    Args:
        one: A loop.
        other: Another.
        apart: How far from each other they may run, in their unit.
    """
    perimeter = np.linalg.norm(one - np.roll(one, 1, axis=0), axis=1).sum()
    if abs(abs(signed_area(one)) - abs(signed_area(other))) > apart * perimeter:
        return False
    return _beside_each_other(one, other, by=apart)


def overlap(one: Loop, other: Loop, *, deeper_than: float) -> bool:
    """Whether two loops share some of what they enclose, and neither lies within the other.

    Args:
        one: A loop.
        other: Another.
        deeper_than: In their unit; loops that reach no further into each other merely touch.
    """
    border_of_one = pieces([one], MARK_EVERY)[0]
    deep = within(other, border_of_one)
    if deep.all() or not deep.any():
        return False
    clear = ~near(border_of_one, other, by=deeper_than)
    if not clear.any():
        return _beside_each_other(one, other, by=deeper_than)
    return bool(deep[clear].any() and not deep[clear].all())


def near(points: Float[np.ndarray, "p 2"], loop: Loop, *, by: float) -> Bool[np.ndarray, " p"]:
    """Which points lie within a distance of the loop's `border`, an eighth more at most."""
    marks, _ = pieces([loop], by)
    away, _ = cKDTree(marks).query(points, distance_upper_bound=float(np.hypot(by, by / 2)))
    close: np.ndarray = np.isfinite(away)
    return close


def _beside_each_other(one: Loop, other: Loop, *, by: float) -> bool:
    """Whether either loop runs near the other all the way."""
    return all(
        bool(near(pieces([a], MARK_EVERY)[0], b, by=by).all())
        for a, b in ((one, other), (other, one))
    )


def _beside(start: Loop, stop: Loop, points: Loop) -> Float[np.ndarray, " m"]:
    """How far points lie to one side of the lines through edges (signed)."""
    (dx, dy), (px, py) = (stop - start).T, (points - start).T
    length = np.hypot(dx, dy)
    away: np.ndarray = (dx * py - dy * px) / np.where(length > 0, length, 1.0)
    return away


def pieces(loops: Loops, step: float) -> tuple[Loop, Loop]:
    """The `border`, cut into pieces not longer than the step: where they start and stop."""
    start, stop = border(loops)
    count = np.maximum(np.ceil(np.linalg.norm(stop - start, axis=1) / step), 1).astype(int)
    edge, n = _repeated(count)
    along = ((stop - start) / count[:, None])[edge]
    return start[edge] + n[:, None] * along, start[edge] + (n + 1)[:, None] * along


def _distance_to_segment(points: Loop, start: Loop, stop: Loop) -> Float[np.ndarray, " p"]:
    along, to = stop - start, points - start
    length2 = np.maximum((along**2).sum(axis=1), np.finfo(float).tiny)
    share = np.clip((along * to).sum(axis=1) / length2, 0, 1)
    away: np.ndarray = np.linalg.norm(to - share[:, None] * along, axis=1)
    return away


def _cut(start: Loop, stop: Loop, *, axis: int, borders: int) -> tuple[Loop, Loop]:
    """Edges cut where they cross the integers 0 to ``borders`` on one axis."""
    a, b = start[:, axis], stop[:, axis]
    first = np.maximum(np.floor(np.minimum(a, b)) + 1, 0)
    last = np.minimum(np.ceil(np.maximum(a, b)) - 1, borders)
    cuts = np.maximum(last - first + 1, 0).astype(int)
    edge, n = _repeated(cuts + 1)
    forward = (b > a)[edge]

    def share_at(cut: np.ndarray) -> np.ndarray:
        border = np.where(forward, first[edge] + cut, last[edge] - cut)
        with np.errstate(divide="ignore", invalid="ignore"):
            share: np.ndarray = (border - a[edge]) / (b - a)[edge]
        return share

    since = np.where(n == 0, 0.0, share_at(n - 1))[:, None]
    until = np.where(n == cuts[edge], 1.0, share_at(n))[:, None]
    along = (stop - start)[edge]
    return start[edge] + since * along, start[edge] + until * along


def _repeated(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each index as often as its count, and which time it is (from 0)."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
