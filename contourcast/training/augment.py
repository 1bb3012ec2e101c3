"""What happens to a sample before the network sees it.

The whole crop is turned, scaled and shifted; the scan alone gets what scanners do to it; the
prior and the planning CT get what registrations do to them; the prior, and the prior that follows
today's tissue with it, get what observers do to them. A prior that is never wrong would teach the
network to copy it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from contourcast.models.region import as_carried
from contourcast.training.samples import Sample


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Sizes of what is done. Probabilities are of a sample, sds of a normal distribution.

    Attributes:
        rotation_deg: Sd of the angle about each axis; patients lie nearly alike.
        scale: Largest factor of growth or shrinkage.
        jitter_mm: Sd of the crop's place beside the prior's own error.
        mirror: Probability of exchanging left and right. Thorax, target and label rule have no
            side (the heart does, at the edge of few crops), and there are few CTs.
        prior_shift_mm: Sd of the prior's error per axis: the worst registrations that are
            accepted, and targets that moved against the bones.
        prior_far: Probability of ``prior_far_mm`` instead.
        prior_rotation_deg: Sd of the prior's rotation error about each axis.
        prior_growth_mm: The prior's surface moves by up to this, all of it, in or out.
        prior_wobble_mm: Sd of a smooth error of its surface.
        prior_dropped: Probability of an empty prior.
        unfollowed: Probability that what follows the tissue did not follow: it is then what was
            carried, wrong as it may be.
        noise: Largest sd of added noise; the normalised scan has sd 1.
        gain: Largest relative change of contrast.
        offset: Sd of a shift of all values.
        shading: Sd of a smooth multiplicative field.
        blur_voxels: Largest sd of smoothing, in half of the samples.
    """

    rotation_deg: float = 6.0
    scale: float = 1.15
    jitter_mm: float = 3.0
    mirror: float = 0.5
    prior_shift_mm: float = 2.0
    prior_far: float = 0.1
    prior_far_mm: float = 9.0
    prior_rotation_deg: float = 2.0
    prior_growth_mm: float = 0.5
    prior_wobble_mm: float = 0.3
    prior_dropped: float = 0.05
    unfollowed: float = 0.1
    noise: float = 0.15
    gain: float = 0.25
    offset: float = 0.15
    shading: float = 0.1
    blur_voxels: float = 0.8


def centre_crop(
    sample: Sample, *, patch_zyx: tuple[int, int, int]
) -> tuple[Float[np.ndarray, "c z y x"], Float[np.ndarray, "z y x"]]:
    """Channels and label of the middle of a sample, as the predictor would see them."""
    low = [(n - p) // 2 for n, p in zip(sample.label.shape, patch_zyx, strict=True)]
    box = tuple(slice(a, a + p) for a, p in zip(low, patch_zyx, strict=True))
    channels = np.stack(
        (
            sample.scan[box].astype(np.float32),
            as_carried(sample.prior_mm[box]),
            sample.planning[box].astype(np.float32),
            as_carried(sample.followed_prior_mm[box]),
            sample.followed_planning[box].astype(np.float32),
        )
    )
    return channels, sample.label[box].astype(np.float32)


def augment(
    sample: Sample,
    *,
    patch_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    settings: Augmentation,
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, "c z y x"], Float[np.ndarray, "z y x"]]:
    """Channels, in the order of `KNOWN_CHANNELS`, and label of one random crop."""
    g, s = generator, settings
    spacing = np.array(spacing_zyx_mm)
    far = g.random() < s.prior_far
    shift_mm = g.normal(0, s.prior_far_mm if far else s.prior_shift_mm, 3)
    turn = _rotation(g, s.rotation_deg) * s.scale ** g.uniform(-1, 1)
    if g.random() < s.mirror:
        turn = turn @ np.diag([1.0, 1.0, -1.0])
    # the crop lies round the prior as it was carried, wrong as it may be
    centre = (np.array(sample.label.shape) - 1) / 2
    centre += (shift_mm + g.normal(0, s.jitter_mm, 3)) / spacing
    prior_turn = _rotation(g, s.prior_rotation_deg)
    middle = (np.array(sample.label.shape) - 1) / 2

    scan = _cut(sample.scan, turn, centre, spacing, patch_zyx, mode="nearest")
    label = _cut(sample.label, turn, centre, spacing, patch_zyx, mode="constant")
    # a place p of the crop shows the prior that truly lies at R (p - shift - middle) + middle
    prior_centre = middle + (prior_turn @ ((centre - middle) * spacing - shift_mm)) / spacing
    prior_mm = _cut(
        sample.prior_mm, prior_turn @ turn, prior_centre, spacing, patch_zyx, mode="nearest"
    )
    planning = _cut(
        sample.planning, prior_turn @ turn, prior_centre, spacing, patch_zyx, mode="nearest"
    )
    scan = _scanner(scan, s, g)
    if g.random() < s.unfollowed:
        followed_mm, followed_planning = prior_mm, planning
    else:
        followed_mm, followed_planning = (
            _cut(part, turn, centre, spacing, patch_zyx, mode="nearest")
            for part in (sample.followed_prior_mm, sample.followed_planning)
        )
    # one person drew one prior: both show the same error
    growth_mm = g.uniform(-1, 1) * s.prior_growth_mm
    error_mm = growth_mm + s.prior_wobble_mm * _smooth_noise(patch_zyx, g)
    priors = np.stack([as_carried(mm + error_mm) for mm in (prior_mm, followed_mm)])
    if g.random() < s.prior_dropped:
        priors[:] = 0.0
    channels = np.stack((scan, priors[0], planning, priors[1], followed_planning))
    return channels, label.clip(0, 1)


def _scanner(
    scan: Float[np.ndarray, "z y x"], s: Augmentation, g: np.random.Generator
) -> Float[np.ndarray, "z y x"]:
    """Contrast, brightness, shading, sharpness and noise of another machine and another day."""
    if g.random() < 0.5:
        scan = ndimage.gaussian_filter(scan, g.uniform(0, s.blur_voxels))
    scan = scan * (1 + g.uniform(-s.gain, s.gain) + s.shading * _smooth_noise(scan.shape, g))
    scan = scan + g.normal(0, s.offset)
    noise = g.standard_normal(scan.shape, dtype=np.float32) * g.uniform(0, s.noise)
    return (scan + noise).astype(np.float32)


def _cut(
    values: np.ndarray,
    turn: np.ndarray,
    centre: np.ndarray,
    spacing: np.ndarray,
    patch_zyx: tuple[int, int, int],
    *,
    mode: str,
) -> Float[np.ndarray, "z y x"]:
    """A turned crop round a place; ``turn`` acts on millimetres, z y x."""
    matrix = turn * spacing[None, :] / spacing[:, None]
    offset = centre - matrix @ ((np.array(patch_zyx) - 1) / 2)
    cut: np.ndarray = ndimage.affine_transform(
        values.astype(np.float32),
        matrix,
        offset,
        output_shape=patch_zyx,
        order=1,
        mode=mode,
        cval=0.0,
    )
    return cut


def _rotation(g: np.random.Generator, sd_deg: float) -> Float[np.ndarray, "3 3"]:
    matrix: np.ndarray = Rotation.from_euler(
        "xyz", g.normal(0, sd_deg, 3), degrees=True
    ).as_matrix()
    return matrix


def _smooth_noise(shape: tuple[int, ...], g: np.random.Generator) -> Float[np.ndarray, "z y x"]:
    """Sd about 1, changing over about a sixth of the crop."""
    knots = g.standard_normal((6, 6, 6), dtype=np.float32)
    zoom = np.array(shape) / 6
    field: np.ndarray = ndimage.zoom(knots, zoom, order=1, mode="nearest", grid_mode=True)
    return field
