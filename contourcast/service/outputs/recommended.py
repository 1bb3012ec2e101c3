"""Which method's contour comes first: on the page, in the worklist, in the structure set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from contourcast.propagate import is_network
from contourcast.registration.methods import METHODS

# Of the ways to carry a prior, the one that needs least to hold comes first.
_CARRYING: Final = ("rigid", *(method for method in METHODS if method != "rigid"))


def recommended(volumes_cc: Mapping[str, float | None]) -> str:
    """The method whose contour is shown first: the network's, else rigid; empty: none drew.

    >>> recommended({"rigid": 31.0, "diff-umamba": 28.5}), recommended({"rigid": 0.0})
    ('diff-umamba', '')
    """
    drawn = [method for method, cc in volumes_cc.items() if cc]
    networks = [method for method in drawn if is_network(method)]
    carried = [method for method in _CARRYING if method in drawn]
    return next(iter([*networks, *carried]), "")
