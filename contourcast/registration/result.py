"""What a registration returns: the transform and the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from contourcast.imaging.transform import PointMap, RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict

Focus = Literal["body", "target"]


@dataclass(frozen=True, kw_only=True)
class LevelLog:
    """How one level of the descent went."""

    spacing_mm: float
    metric_per_step: tuple[float, ...]
    stopped_because: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Registration:
    """One rigid answer.

    Attributes:
        planning_from_cbct: Takes a point of the CBCT to the planning CT.
        center_xyz_mm: The point of the CBCT that rotations turn about.
    """

    planning_from_cbct: RigidTransform
    quality: Quality
    center_xyz_mm: Float[np.ndarray, " 3"]
    log: tuple[LevelLog, ...] = ()

    @property
    def cbct_from_planning(self) -> RigidTransform:
        """Takes a point of the planning CT to the CBCT: the way contours go."""
        return self.planning_from_cbct.inverse()


@dataclass(frozen=True, kw_only=True, eq=False)
class Registrations:
    """Every answer to "where is the planning CT today", and which one carries the prior.

    Attributes:
        body: The whole field of view decides (bones dominate: a *bone match*).
        target: The prior and its surroundings decide (a *soft-tissue match*); None without prior
            in view.
        translation: As body, without rotation.
        apart_mm: Distance between body's and target's answer at the prior's centroid.
        quality: Of the whole: the chosen one's figures and the disagreement.
    """

    body: Registration
    target: Registration | None
    translation: Registration
    focus: Focus
    apart_mm: float | None
    quality: Quality

    @property
    def chosen(self) -> Registration:
        """The one that carries the prior."""
        return self.target if self.focus == "target" and self.target is not None else self.body

    @property
    def rejected(self) -> bool:
        """Whether nothing may be carried today."""
        return self.quality.verdict is Verdict.REJECT


@dataclass(frozen=True, kw_only=True, eq=False)
class Carriage:
    """What a carrying method returns: the way to carry the prior, and its figures.

    Attributes:
        planning_from_cbct: The map that carries the prior (used in the resampling direction).
        ended_as: The step it ended on, when it had to fall back (such as ``rigid``).
        notes: What the method says of itself, a sentence each.
    """

    planning_from_cbct: PointMap
    quality: Quality
    ended_as: str = ""
    notes: tuple[str, ...] = ()


__all__ = ["Carriage", "Figure", "Focus", "LevelLog", "Registration", "Registrations"]
