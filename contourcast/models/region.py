"""What a network is shown: the region round the prior, on the grid of its card.

Training and prediction cut, resample and normalise by these same functions, so that a network
meets in the clinic what it met in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid, Points
from contourcast.imaging.resample import AIR_HU, Moved
from contourcast.imaging.transform import PointMap
from contourcast.imaging.volume import Probability, Volume
from contourcast.models.weights import Normalisation

# A prior that reaches nowhere above this is no prior: its surface is the 0.5 level, and one that
# is smaller than a voxel still shows this much at the nearest centre.
EMPTY_BELOW: Final = 0.05
# Share of a region at exactly its lowest value from which that value is padding, not tissue:
# noise lets no real scan repeat its minimum.
PADDING_SHARE: Final = 0.01
# A planning CT is calibrated: lung to contrast-filled vessels, scaled to about -1.5 to 1.5.
PLANNING_WINDOW_HU: Final = (-1000.0, 300.0)
PLANNING_MIDDLE_HU: Final = -350.0
PLANNING_SCALE_HU: Final = 430.0
# The carried prior falls off as sigmoid(distance / 1 mm) (imaging/distance.py, `carry`); beyond
# this many millimetres its logit says no more than near or far.
CARRY_REACH_MM: Final = 4.0


def is_empty(r_ct: Probability) -> bool:
    """Whether nothing was carried (a rejected registration gives such a channel)."""
    return bool(r_ct.values.max(initial=0.0) < EMPTY_BELOW)


def region_grid(
    r_ct: Probability,
    *,
    spacing_zyx_mm: Sequence[float],
    patch_zyx: Sequence[int],
    margin_mm: float,
) -> Grid:
    """The prior's box and a margin, at least a patch, along LPS whatever the scan's axes are."""
    inside = np.argwhere(r_ct.values >= min(0.5, float(r_ct.values.max())))
    low, high = inside.min(0), inside.max(0)
    corners = r_ct.grid.crop(low, high + 1).corners_xyz_mm
    low_mm, high_mm = corners.min(0) - margin_mm, corners.max(0) + margin_mm
    spacing = np.asarray(spacing_zyx_mm, float)[::-1]
    shape = np.maximum(np.ceil((high_mm - low_mm) / spacing).astype(int) + 1, patch_zyx[::-1])
    first = (low_mm + high_mm) / 2 - (shape - 1) / 2 * spacing
    return Grid.even(
        shape_zyx=(int(shape[2]), int(shape[1]), int(shape[0])),
        spacing_xyz_mm=spacing.tolist(),
        origin_xyz_mm=first,
    )


def whole_grid(scan: Grid, spacing_zyx_mm: Sequence[float]) -> Grid:
    """The box of a scan along LPS, at another spacing."""
    corners = scan.corners_xyz_mm
    low, high = corners.min(0), corners.max(0)
    spacing = np.asarray(spacing_zyx_mm, float)[::-1]
    shape = np.floor((high - low) / spacing + 1e-6).astype(int) + 1
    first = (low + high) / 2 - (shape - 1) / 2 * spacing
    return Grid.even(
        shape_zyx=(int(shape[2]), int(shape[1]), int(shape[0])),
        spacing_xyz_mm=spacing.tolist(),
        origin_xyz_mm=first,
    )


def filled_up(whole: Grid, spacing_zyx_mm: Sequence[float], patch_zyx: Sequence[int]) -> Grid:
    """The same, at least a patch: voxels are added on both sides, the odd one last (nnU-Net)."""
    shape = np.maximum(whole.shape_zyx, patch_zyx)
    before = (shape - np.array(whole.shape_zyx)) // 2
    spacing = np.asarray(spacing_zyx_mm, float)[::-1]
    return Grid.even(
        shape_zyx=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing_xyz_mm=spacing.tolist(),
        origin_xyz_mm=whole.origin_xyz_mm - before[::-1] * spacing,
    )


def box_of(part: Grid, whole: Grid) -> tuple[slice, slice, slice]:
    """Those voxels of a grid that hold all of another one's that it has."""
    corners = whole.index(part.corners_xyz_mm)[:, ::-1]
    low = np.floor(corners.min(0) + 1e-3).astype(int).clip(0)  # a thousandth of a voxel is rounding
    high = np.minimum(np.ceil(corners.max(0) - 1e-3).astype(int) + 1, whole.shape_zyx)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def sample_on(
    values: np.ndarray,
    grid: Grid,
    *,
    onto: Grid,
    outside: float,
    blur: bool = True,
    order: int = 1,
    through: PointMap | None = None,
) -> Float[np.ndarray, "z y x"]:
    """Values at the places of another grid, float32.

    Args:
        values: ``[z, y, x]``.
        grid: Where they lie.
        onto: Where they are wanted.
        outside: The value where ``grid`` has none.
        blur: Whether a finer grid is averaged to the coarser one's voxels (Gaussian of the same
            variance as the box) rather than picked from.
        order: Of the interpolating spline.
        through: Takes places of ``onto`` to those of ``grid``; None: they share a frame.
    """
    box = _box(grid, onto, through)
    if box is None:
        return np.full(onto.shape_zyx, outside, np.float32)
    low, high = box
    part = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    sigma = _blur_voxels(grid, onto)
    if blur and sigma.any():
        part = ndimage.gaussian_filter(part, sigma, mode="nearest")
    zyx = grid.index(_carried(onto.centers(), through))[:, ::-1].T - low[:, None]  # (3 n)
    found: np.ndarray = ndimage.map_coordinates(
        part, zyx, order=order, mode="constant", cval=outside
    )
    return found.reshape(onto.shape_zyx)


def _carried(points_xyz_mm: Points, through: PointMap | None) -> Points:
    return points_xyz_mm if through is None else through.apply(points_xyz_mm)


def _box(
    grid: Grid, onto: Grid, through: PointMap | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """First and last + 1 index of ``grid`` that matter at the places of ``onto``; None: none do."""
    corners = grid.index(_carried(onto.corners_xyz_mm, through))[:, ::-1]
    reach = np.ceil(4 * _blur_voxels(grid, onto)).astype(int) + 2
    low = (np.floor(corners.min(0)).astype(int) - reach).clip(0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + reach + 1, grid.shape_zyx)
    return None if (low >= high).any() else (low, high)


def _blur_voxels(grid: Grid, onto: Grid) -> Float[np.ndarray, " 3"]:
    """Sd of the Gaussian that makes voxels of ``grid`` as wide as those of ``onto``."""
    fine, coarse = np.array(grid.spacing_zyx_mm), np.array(onto.spacing_zyx_mm)
    sigma_mm = np.sqrt(((coarse**2 - fine**2) / 12).clip(0.0))
    voxels: np.ndarray = sigma_mm / np.where(fine > 0, fine, np.inf)
    return voxels


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """From this scan's numbers to the network's: clip, shift, divide."""

    lower: float
    upper: float
    mean: float
    sd: float

    def apply(self, values: np.ndarray) -> Float[np.ndarray, "z y x"]:
        """Normalised, float32."""
        scaled: np.ndarray = (values.clip(self.lower, self.upper) - self.mean) / self.sd
        return scaled.astype(np.float32)


def scaling(
    values: np.ndarray,
    observed: Bool[np.ndarray, "z y x"],
    normalisation: Normalisation,
    *,
    scan: Volume | None = None,
) -> Scaling:
    """What `Normalisation` says of one region.

    Args:
        values: Of the region.
        observed: Where they are real.
        normalisation: What the card says.
        scan: The whole, which ``scan-zscore`` looks at.

    Raises:
        InputError: The whole scan is needed and was not given.
    """
    if normalisation.kind == "ct":
        return _window(normalisation)
    if normalisation.kind == "scan-zscore":
        if scan is None:
            raise InputError("this model is shown a scan that was normalised as a whole")
        return _of_all(_whole(scan))
    if normalisation.kind == "crop-zscore":
        return _of_all(values)
    real = values[observed]
    if not real.size:
        return Scaling(lower=0.0, upper=0.0, mean=0.0, sd=1.0)
    lower, upper = np.percentile(
        real, [normalisation.lower_percentile, normalisation.upper_percentile]
    )
    clipped = real.clip(lower, upper)
    return Scaling(
        lower=float(lower),
        upper=float(upper),
        mean=float(clipped.mean()),
        sd=max(float(clipped.std()), 1e-3),  # a constant region becomes zeros, not infinities
    )


def _window(normalisation: Normalisation) -> Scaling:
    n = normalisation
    assert n.lower_hu is not None, "Normalisation checks itself"
    assert n.upper_hu is not None
    assert n.mean_hu is not None
    assert n.sd_hu is not None
    return Scaling(lower=n.lower_hu, upper=n.upper_hu, mean=n.mean_hu, sd=n.sd_hu)


def _of_all(values: np.ndarray) -> Scaling:
    """nnU-Net's z-score: every voxel counts, nothing is clipped."""
    sd = max(float(values.std(dtype=float)), 1e-3)
    return Scaling(lower=-np.inf, upper=np.inf, mean=float(values.mean(dtype=float)), sd=sd)


def _whole(scan: Volume) -> np.ndarray:
    """All values of a scan, with padding as low as the lowest that was observed."""
    seen = np.isfinite(scan.values)
    if scan.observed is not None:
        seen &= scan.observed
    if not seen.any():
        return np.zeros(1)
    filled: np.ndarray = np.where(seen, scan.values, scan.values[seen].min())
    return filled


def scan_on(cbct: Volume, grid: Grid) -> tuple[np.ndarray, Bool[np.ndarray, "z y x"]]:
    """The scan at a region's grid, and where it really shows something.

    Left out are declared padding, places beyond the scan, values that are no numbers, and the one
    value that a cone beam repeats outside its round field. They get the lowest value observed.
    """
    box = _box(cbct.grid, grid)
    if box is None:
        return np.zeros(grid.shape_zyx, np.float32), np.zeros(grid.shape_zyx, bool)
    near = tuple(slice(a, b) for a, b in zip(*box, strict=True))
    values, part = cbct.values[near], cbct.grid.crop(box[0].tolist(), box[1].tolist())
    seen = np.isfinite(values)
    if cbct.observed is not None:
        seen &= cbct.observed[near]
    lowest = values[seen].min() if seen.any() else 0.0
    padding = seen & (values == lowest)
    if padding.mean() > PADDING_SHARE:
        seen &= ~padding
    fallback = values[seen].min() if seen.any() else 0.0
    filled = np.where(seen, values, fallback)
    observed = sample_on(seen, part, onto=grid, outside=0.0) > 0.99
    return sample_on(filled, part, onto=grid, outside=float(fallback)), observed


def out_of_view(observed: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Where a region lies beyond the field of view: what was not observed in one piece to its rim.

    Single voxels at a scan's lowest value are air or noise, and no padding.
    """
    wide = np.pad(~observed, 2, mode="edge")  # at the rim it may go on
    pieces, _ = ndimage.label(ndimage.binary_opening(wide, np.ones((3, 3, 3))))
    outermost = np.ones(pieces.shape, bool)
    outermost[1:-1, 1:-1, 1:-1] = False
    at_rim = np.unique(pieces[outermost])
    outside: np.ndarray = np.isin(pieces, at_rim[at_rim > 0])[2:-2, 2:-2, 2:-2]
    return outside


def planning_on(planning_ct: Moved, grid: Grid) -> Float[np.ndarray, "z y x"]:
    """The planning CT at a region's grid, as the network is shown it: windowed and scaled."""
    values = sample_on(
        planning_ct.volume.values,
        planning_ct.volume.grid,
        onto=grid,
        outside=AIR_HU,
        through=planning_ct.moving_from_fixed,
    )
    return (values.clip(*PLANNING_WINDOW_HU) - PLANNING_MIDDLE_HU) / PLANNING_SCALE_HU


def signed_distance(prior: Float[np.ndarray, "z y x"], grid: Grid) -> Float[np.ndarray, "z y x"]:
    """Millimetres to the 0.5 level, inside positive: from the logit near it, by voxels beyond."""
    inside = prior >= min(0.5, float(prior.max()))
    spacing = grid.spacing_zyx_mm
    far = ndimage.distance_transform_edt(inside, sampling=spacing)
    far -= ndimage.distance_transform_edt(~inside, sampling=spacing)
    p = prior.clip(1e-3, 1 - 1e-3).astype(float)
    near = np.log(p / (1 - p))
    distance: np.ndarray = np.where(np.abs(near) < CARRY_REACH_MM, near, far)
    return distance.astype(np.float32)


def as_carried(distance_mm: np.ndarray) -> Float[np.ndarray, "z y x"]:
    """As `contourcast.imaging.distance.carry` makes a channel of a distance."""
    channel: np.ndarray = 1 / (1 + np.exp(-distance_mm.astype(np.float32).clip(-15, 15)))
    return channel
