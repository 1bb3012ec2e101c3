"""Where methods differ, slice by slice: the heat along the page's slice bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from contourcast.imaging import polygon
from contourcast.imaging.polygon import Loop
from contourcast.service.review.loops import Slices

# Contours are compared at points no farther apart along them.
STEP_MM: Final = 0.5


def disagreement(methods: Mapping[str, Slices]) -> dict[int, float]:
    """Of each slice with any contour: the largest of the methods' mean distances in the plane, mm.

    Methods that drew nothing at all take no part. Where one of two has no contour on a slice, the
    distance is the radius of a disc of the other's area: how far its contour would have to shrink.
    """
    drawn = [slices for slices in methods.values() if slices]
    found: dict[int, float] = {}
    for k in sorted({k for slices in drawn for k in slices}):
        found[k] = max(
            (mean_distance_mm(a.get(k, ()), b.get(k, ())) for a, b in combinations(drawn, 2)),
            default=0.0,
        )
    return found


def mean_distance_mm(one: Sequence[Loop], other: Sequence[Loop]) -> float:
    """The mean of both directed mean distances between contours of one slice."""
    if not one or not other:
        return float(np.sqrt(polygon.area([*one, *other]) / np.pi))
    a, b = (polygon.pieces(loops, STEP_MM)[0] for loops in (one, other))
    return float((cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2)
