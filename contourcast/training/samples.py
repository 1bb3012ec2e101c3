"""From cases to samples: what the trainer reads, one small file for each fraction.

A sample is the region round the prior at the card's spacing, with some slack round it for
augmentation: the normalised scan, the signed distance to the carried prior (so that the prior can
be moved and grown), the planning CT carried with it, both once more as they follow today's tissue,
and how much of each voxel the label fills.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float
from pydantic import TypeAdapter

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.resample import Moved
from contourcast.imaging.volume import Mask, Probability, Volume, require_same_frame
from contourcast.models.follow import follow, followed
from contourcast.models.region import (
    is_empty,
    planning_on,
    region_grid,
    sample_on,
    scaling,
    scan_on,
    signed_distance,
)
from contourcast.models.seen import Seen
from contourcast.models.weights import Normalisation

ARRAYS: Final = (
    "scan",
    "prior_mm",
    "planning",
    "followed_prior_mm",
    "followed_planning",
    "label",
)
SEEN: Final = TypeAdapter(Seen)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """The grid that samples and, later, predictions live on.

    Attributes:
        spacing_zyx_mm: Near the simulated scans' own; docs/decisions/0006-first-checkpoint.md.
        patch_zyx: What the network is trained on.
        margin_mm: Round the prior: more than a target moves and grows between fractions.
        slack_zyx: Voxels kept round the region, for rotations and shifted crops.
    """

    spacing_zyx_mm: tuple[float, float, float] = (2.5, 2.5, 2.5)
    patch_zyx: tuple[int, int, int] = (40, 48, 48)
    margin_mm: float = 25.0
    slack_zyx: tuple[int, int, int] = (12, 14, 14)
    normalisation: Normalisation = field(default_factory=Normalisation)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One fraction as the trainer sees it.

    Attributes:
        name: Such as ``patient-7-1-fraction-03``: seed, number, fraction.
        patient: Virtual patients of one name never stand in two splits,
        ct: … nor do two that were grown from one CT.
        scan: Normalised, ``[z, y, x]``.
        prior_mm: Signed distance to the carried prior's surface, inside positive.
        planning: The planning CT carried like the prior, windowed and scaled.
        followed_prior_mm: The prior deformed onto the scan,
        followed_planning: ... and the planning CT (models/follow.py).
        label: Share of each voxel that the label fills, 0 to 1.
        seen: The scan it was cut from; None: an earlier version made it.
    """

    name: str
    patient: str
    ct: str
    scan: Float[np.ndarray, "z y x"]
    prior_mm: Float[np.ndarray, "z y x"]
    planning: Float[np.ndarray, "z y x"]
    followed_prior_mm: Float[np.ndarray, "z y x"]
    followed_planning: Float[np.ndarray, "z y x"]
    label: Float[np.ndarray, "z y x"]
    seen: Seen | None = None


def make_sample(
    cbct: Volume,
    r_ct: Probability,
    label: Mask | Probability,
    *,
    planning_ct: Moved,
    name: str,
    patient: str,
    ct: str,
    settings: SampleSettings,
) -> Sample:
    """Cuts, resamples and normalises one case, as the predictor will.

    Raises:
        InputError: The prior is empty.
        FrameMismatchError: Scan, prior and label are of different frames of reference.
        GridMismatchError: They are on different grids.
    """
    cbct.require_same_place(r_ct)
    cbct.require_same_place(label)
    require_same_frame(cbct.frame_of_reference, planning_ct.moving_from_fixed.source_frame)
    if is_empty(r_ct):
        raise InputError(f"{name}: the carried prior is empty, there is nothing to learn from")
    grid = region_grid(
        r_ct,
        spacing_zyx_mm=settings.spacing_zyx_mm,
        patch_zyx=settings.patch_zyx,
        margin_mm=settings.margin_mm,
    )
    values, observed = scan_on(cbct, grid)
    normalise = scaling(values, observed, settings.normalisation)
    wide = _grown(grid, settings.slack_zyx)
    values, _ = scan_on(cbct, wide)
    scan = normalise.apply(values)
    prior = sample_on(r_ct.values, r_ct.grid, onto=wide, outside=0.0)
    prior_mm, planning = signed_distance(prior, wide), planning_on(planning_ct, wide)
    spacing = settings.spacing_zyx_mm
    region = tuple(slice(n, -n or None) for n in settings.slack_zyx)
    moved = follow(scan[region], planning[region], spacing_zyx_mm=spacing)
    moved = np.pad(moved, ((0, 0), *((n, n) for n in settings.slack_zyx)), mode="edge")
    return Sample(
        name=name,
        patient=patient,
        ct=ct,
        scan=scan,
        prior_mm=prior_mm,
        planning=planning,
        followed_prior_mm=followed(prior_mm, moved, spacing_zyx_mm=spacing),
        followed_planning=followed(planning, moved, spacing_zyx_mm=spacing),
        label=sample_on(label.values, label.grid, onto=wide, outside=0.0).clip(0.0, 1.0),
        seen=Seen.of(cbct),
    )


def save_sample(folder: Path, sample: Sample) -> Path:
    """Writes ``NAME.npz``; float16 holds all to better than a hundredth."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sample.name}.npz"
    held: dict[str, Any] = {name: getattr(sample, name).astype(np.float16) for name in ARRAYS}
    if sample.seen is not None:
        held["seen"] = SEEN.dump_json(sample.seen).decode()
    np.savez_compressed(path, patient=sample.patient, ct=sample.ct, **held)
    return path


def load_samples(folder: Path) -> tuple[Sample, ...]:
    """All samples of a folder, by name.

    Raises:
        InputError: There is none, or one lacks a part or is damaged.
    """
    samples = [_load_sample(path) for path in sorted(folder.glob("*.npz"))]
    if not samples:
        raise InputError(
            "the folder holds no samples", remedy="make them first: contourcast fit samples"
        )
    return tuple(samples)


def _load_sample(path: Path) -> Sample:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if missing := [key for key in ARRAYS if key not in file]:
                raise InputError(
                    f"the sample has no {missing[0]}: an earlier version made it",
                    file=path.name,
                    remedy="make the samples again: contourcast fit samples",
                )
            return Sample(
                name=path.stem,
                patient=str(file["patient"]),
                ct=str(file["ct"]),
                seen=SEEN.validate_json(str(file["seen"])) if "seen" in file else None,
                **{key: file[key] for key in ARRAYS},
            )
    except (BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "the sample is damaged",
            file=path.name,
            remedy="delete it and make it again: contourcast fit samples",
        ) from error


def split(
    samples: Sequence[Sample], *, validation_cts: Sequence[str]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Training and validation, apart by patient *and* by CT.

    Raises:
        InputError: A patient stands on both sides, or a side is empty.
    """
    train = tuple(s for s in samples if s.ct not in validation_cts)
    validation = tuple(s for s in samples if s.ct in validation_cts)
    shared = {s.patient for s in train} & {s.patient for s in validation}
    if shared:
        raise InputError(f"patients stand on both sides of the split: {', '.join(sorted(shared))}")
    if not train or not validation:
        known = ", ".join(sorted({s.ct for s in samples}))
        raise InputError(
            "one side of the split is empty", remedy=f"choose validation CTs from {known}"
        )
    return train, validation


def _grown(grid: Grid, voxels_zyx: Sequence[int]) -> Grid:
    """The same grid with some voxels more on every side."""
    x, y, z = (int(v) for v in voxels_zyx[::-1])
    nz, ny, nx = grid.shape_zyx
    return Grid.even(
        shape_zyx=(nz + 2 * z, ny + 2 * y, nx + 2 * x),
        spacing_xyz_mm=grid.spacing_xyz_mm,
        origin_xyz_mm=grid.world([[-x, -y, -z]])[0],
        direction=grid.direction,
    )
