"""What a structure set says, in millimetres, before anybody rasterises it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from contourcast.imaging.errors import UnknownRoiError
from contourcast.imaging.grid import frozen_array
from contourcast.imaging.source import Patient, Study

GeometricType = Literal[
    "CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "OPEN_PLANAR", "OPEN_NONPLANAR", "POINT"
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contour:
    """One loop (or point, or line) of a ROI.

    Attributes:
        points_xyz_mm: LPS mm, shape (n, 3), the first point not repeated.
        geometric_type: As in (3006,0042) Contour Geometric Type.
        sop_instance_uid: The slice it says it lies on; empty when it does not say.
    """

    points_xyz_mm: Float[np.ndarray, "n 3"]
    geometric_type: GeometricType = "CLOSED_PLANAR"
    sop_instance_uid: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "points_xyz_mm", frozen_array(self.points_xyz_mm))

    @property
    def encloses(self) -> bool:
        """Whether it bounds an area: closed, three points or more."""
        return self.geometric_type.startswith("CLOSED") and len(self.points_xyz_mm) >= 3


@dataclass(frozen=True, kw_only=True)
class Roi:
    """A region of interest: a name and its contours. Holes are loops within loops (even-odd)."""

    number: int
    name: str
    contours: tuple[Contour, ...]
    frame_of_reference: str
    interpreted_type: str = ""
    generation_algorithm: str = ""
    description: str = ""
    color_rgb: tuple[int, int, int] | None = None

    @property
    def loops(self) -> tuple[Contour, ...]:
        """The contours that enclose an area."""
        return tuple(c for c in self.contours if c.encloses)


@dataclass(frozen=True, kw_only=True)
class StructureSet:
    """An RT Structure Set, as far as contours and their references go.

    Attributes:
        referenced_series_uids: Series that it says it was drawn on.
        referenced_sop_uids: Slices that it names, from anywhere in the file.
        date, time: When it was drawn, (3006,0008) and (3006,0009), as the file writes them.
        digest: SHA-256 (hex) of the file.
        notes: What the reader found odd, a sentence each.
    """

    sop_instance_uid: str
    series_instance_uid: str
    frame_of_reference: str
    patient: Patient
    study: Study
    rois: tuple[Roi, ...]
    label: str = ""
    name: str = field(default="", repr=False)
    date: str = ""
    time: str = ""
    approval_status: str = ""
    referenced_series_uids: tuple[str, ...] = ()
    referenced_sop_uids: frozenset[str] = frozenset()
    digest: str = ""
    notes: tuple[str, ...] = ()

    def roi(self, name: str) -> Roi:
        """The ROI of that name, or of that number written ``#7`` (names may repeat).

        Raises:
            UnknownRoiError: There is none, or more than one; lists what there is, nearest first.
        """
        wanted = name.strip()
        found = [r for r in self.rois if r.name.strip() == wanted or f"#{r.number}" == wanted]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(f"'{r.name}' (#{r.number})" for r in self.rois) or "none at all"
        if found:
            raise UnknownRoiError(
                f"{len(found)} ROIs are named '{wanted}'",
                uid=self.sop_instance_uid,
                remedy=f"name one by its number: {', '.join(f'#{r.number}' for r in found)}",
            )
        near = nearest_name(wanted, [r.name for r in self.rois])
        raise UnknownRoiError(
            f"no ROI is named '{wanted}'" + (f"; the nearest is '{near}'" if near else ""),
            uid=self.sop_instance_uid,
            remedy=f"the structure set holds {listed}",
        )


def nearest_name(wanted: str, names: Sequence[str]) -> str:
    """The name that reads most like the wanted one, letter case aside; empty when none does."""
    by_lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(wanted.lower(), by_lower, n=1, cutoff=0.4)
    return by_lower[close[0]] if close else ""
