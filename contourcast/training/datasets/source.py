"""What a source of training data hands over, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from contourcast.imaging.grid import Grid

# nnU-Net chooses how a channel is normalised by exactly these names; any other name silently
# means z-score (NETWORKS §16.4).
Normalised = Literal["CT", "zscore", "noNorm"]
Label = int | tuple[int, ...]

# Where a case's facts say what its scan was (models.seen), where the source knows it.
SEEN: Final = "seen"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a conversion may be told; a source refuses what means nothing to it.

    Attributes:
        roi: Name of the ROI to learn; empty: the source's own.
        label_roi: Its name in the structure sets of the day; empty: the same.
        spacing_zyx_mm: Of the grid that is written; None: the source's own, or the scans'.
        extent: ``region`` round the carried prior, or the ``whole`` scan; empty: the source's own.
        calibrated: Whether the scans' numbers are Hounsfield units that can be relied on.
        prior: Whether a second channel holds the prior, carried from an earlier scan.
        phases: Breathing phases in percent; empty: all.
        device: Where registration computes.
    """

    roi: str = ""
    label_roi: str = ""
    spacing_zyx_mm: tuple[float, float, float] | None = None
    extent: Literal["", "region", "whole"] = ""
    calibrated: bool = False
    prior: bool = False
    phases: tuple[int, ...] = ()
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, eq=False)
class Converted:
    """One case as it will be written.

    Attributes:
        channels: Each ``[z, y, x]`` on the grid.
        label: ``[z, y, x]``, whole numbers.
        facts: For the provenance: digests of what was read, and what was found; plain JSON values.
    """

    channels: tuple[np.ndarray, ...]
    label: np.ndarray
    grid: Grid
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A case that nothing can be learned from, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A case that was found and is not read yet.

    Attributes:
        name: In file names: letters, digits, ``-``, ``_`` and ``.``.
        patient: Who may not stand in two parts of a split.
        files: All that it is made from.
        read: Reads and converts it.
        check: Refuses what ``read`` would refuse, where ``read`` is slow: all cases are checked
            before the first is converted, so that hours of work do not end in a refusal.
    """

    name: str
    patient: str
    files: tuple[Path, ...]
    read: Callable[[], Converted | LeftOut]
    check: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A data set as it was found in a folder.

    Attributes:
        labels: Name to number, or to the numbers that make up a region.
        regions_class_order: The number that each region is written as, for regions that overlap.
        left_out: What was found and is no case, with the reason.
        citation: Where the data come from.
        settings: What decided over the cases beside the options; plain JSON values.
    """

    cases: tuple[Pending, ...]
    channels: tuple[Normalised, ...]
    labels: Mapping[str, Label]
    regions_class_order: tuple[int, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    citation: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known_values(self) -> frozenset[int]:
        """Every number that a label may hold."""
        values = [v if isinstance(v, tuple) else (v,) for v in self.labels.values()]
        return frozenset(number for numbers in values for number in numbers)
