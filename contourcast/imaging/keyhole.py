"""Loops that lie in each other, and how holes are cut open so that no loop needs another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from contourcast.imaging.errors import GeometryError
from contourcast.imaging.polygon import Loop, contains, signed_area

# Points of a loop that are asked whether it lies in another: one alone may touch it.
WITNESSES: Final = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Ring:
    """A loop of positive area, and the holes right inside it, of negative area."""

    outer: Loop
    holes: tuple[Loop, ...] = ()

    @property
    def area(self) -> float:
        """Of the ring without its holes."""
        return signed_area(self.outer) + sum(signed_area(hole) for hole in self.holes)


def rings(loops: Sequence[Loop]) -> list[Ring]:
    """What loops that do not cross mean by even-odd counting: islands in holes are rings again."""
    if len(loops) == 1:
        return [Ring(outer=_turned(loops[0], 1))]
    lies_in = _nesting(loops)
    depth = lies_in.sum(axis=1)
    return [
        Ring(
            outer=_turned(outer, 1),
            holes=tuple(
                _turned(hole, -1)
                for h, hole in enumerate(loops)
                if depth[h] == depth[o] + 1 and lies_in[h, o]
            ),
        )
        for o, outer in enumerate(loops)
        if depth[o] % 2 == 0
    ]


def keyhole(ring: Ring) -> Loop:
    """One loop round the ring: each hole joined to what lies to its left by a cut of no width.

    Holes come from left to right, so whatever the cut meets first is already part of the loop.
    A cut is parallel to x: readers that fill row by row do not see it.

    Raises:
        GeometryError: A hole reaches out of its ring.
    """
    loop = ring.outer
    for hole in sorted(ring.holes, key=lambda h: float(h[:, 0].min())):
        opened = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        edge, meeting = _first_edge_to_the_left(loop, opened[0])
        loop = np.concatenate(
            (loop[: edge + 1], [meeting], opened, opened[:1], [meeting], loop[edge + 1 :])
        )
    return loop


def _nesting(loops: Sequence[Loop]) -> Bool[np.ndarray, "loops loops"]:
    """``[a, b]``: loop a lies in loop b (most of its witnesses do)."""
    lies_in = np.zeros((len(loops), len(loops)), bool)
    size = [abs(signed_area(loop)) for loop in loops]
    boxes = [(loop.min(axis=0), loop.max(axis=0)) for loop in loops]
    for a, inner in enumerate(loops):
        witnesses = inner[:: max(1, len(inner) // WITNESSES)][:WITNESSES]
        for b, outer in enumerate(loops):
            apart = (boxes[a][0] > boxes[b][1]).any() or (boxes[a][1] < boxes[b][0]).any()
            if a != b and not apart and size[a] < size[b]:
                lies_in[a, b] = np.mean([contains(outer, point) for point in witnesses]) > 0.5
    return lies_in


def _first_edge_to_the_left(loop: Loop, point: Float[np.ndarray, " 2"]) -> tuple[int, np.ndarray]:
    """The edge that a ray to -x meets first (the index of its start), and where it does."""
    start, end = loop, np.roll(loop, -1, axis=0)
    spans = (start[:, 1] <= point[1]) != (end[:, 1] <= point[1])
    rise = np.where(spans, end[:, 1] - start[:, 1], 1.0)
    x = start[:, 0] + (point[1] - start[:, 1]) * (end[:, 0] - start[:, 0]) / rise
    x = np.where(spans & (x <= point[0]), x, -np.inf)
    edge = int(x.argmax())
    if not np.isfinite(x[edge]):
        raise GeometryError("a hole reaches out of the loop round it, so it cannot be cut open")
    return edge, np.array([x[edge], point[1]])


def _turned(loop: Loop, sense: int) -> Loop:
    """Of positive area for +1, of negative area for -1."""
    turned: np.ndarray = loop if signed_area(loop) * sense > 0 else loop[::-1]
    return turned
