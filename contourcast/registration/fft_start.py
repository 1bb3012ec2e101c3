"""Every shift at once: masked NCC by FFT on coarse, locally normalised volumes.

Padfield, "Masked object registration in the Fourier domain", IEEE Trans. Image Process. 21(5)
(2012), equations 20 to 26, with an overlap that is known for every shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from contourcast.registration.local_ncc import Pose, normalise
from contourcast.registration.sampling import Image, sample
from contourcast.registration.settings import LocalNccSettings, StartSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """A pose from which to descend, and how well coarse volumes agree there."""

    pose: Pose
    peak: float


def start_poses(
    fixed: Image,
    core: Image,
    moving: Image,
    base: Pose,
    *,
    range_mm: float,
    settings: StartSettings,
    local_ncc: LocalNccSettings,
) -> tuple[Start, ...]:
    """The best shifts of ``base``, the best first, each a local maximum away from the others.

    Args:
        fixed: The CBCT at a coarse level.
        core: 1 where the CBCT may be compared.
        moving: The planning CT at a coarse level.
        base: What shifts are added to.
        range_mm: How far to look along each axis.
        settings: Spacing, overlap, number of peaks.
        local_ncc: How the coarse volumes are normalised.
    """
    step = settings.spacing_mm
    reach = int(np.ceil(range_mm / step))
    lattice = _lattice(core, step)
    wide = _widened(lattice, reach)
    a = normalise(_resampled(fixed, lattice, np.eye(4)), local_ncc).values
    a = a.where(_resampled(core, lattice, np.eye(4)).values >= 0.5, torch.nan)
    matrix = base.transform(cbct_frame="f", planning_frame="m").matrix
    b = normalise(_resampled(moving, wide, matrix), local_ncc).values
    scores = masked_ncc(a, b, least_overlap=settings.least_overlap)
    starts = []
    for peak, (k, j, i) in _peaks(scores, settings):
        shift = (np.array([i, j, k]) - reach) * step
        pose = Pose(
            rotation=base.rotation,
            translation_xyz_mm=base.translation_xyz_mm + base.rotation @ shift,
            center_xyz_mm=base.center_xyz_mm,
        )
        starts.append(Start(pose=pose, peak=peak))
    return tuple(starts)


def masked_ncc(
    fixed: Float[Tensor, "z y x"], moving: Float[Tensor, "Z Y X"], *, least_overlap: float
) -> Float[Tensor, "dz dy dx"]:
    """Correlation of ``fixed(p)`` and ``moving(p + s)`` for every s that keeps fixed within moving.

    NaN is what was not observed. Shifts that leave less than ``least_overlap`` of the observed
    fixed samples on observed moving ones are worth -1.
    """
    shape = moving.shape
    seen_f, seen_m = torch.isfinite(fixed).double(), torch.isfinite(moving).double()
    f, m = torch.nan_to_num(fixed.double()), torch.nan_to_num(moving.double())

    def transform(values: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfftn(values, s=shape)
        return spectrum

    def correlate(first: Tensor, second: Tensor) -> Tensor:
        whole: Tensor = torch.fft.irfftn(first.conj() * second, s=shape)
        return whole[tuple(slice(0, n - k + 1) for n, k in zip(shape, fixed.shape, strict=True))]

    tf, tff, tsf = transform(f), transform(f * f), transform(seen_f)
    tm, tmm, tsm = transform(m), transform(m * m), transform(seen_m)
    count = correlate(tsf, tsm)
    n = count.clamp(min=1)
    sum_f, sum_m = correlate(tf, tsm), correlate(tsf, tm)
    covariance = correlate(tf, tm) - sum_f * sum_m / n
    power = (correlate(tff, tsm) - sum_f**2 / n).clamp(min=0) * (
        correlate(tsf, tmm) - sum_m**2 / n
    ).clamp(min=0)
    enough = count >= max(least_overlap * float(seen_f.sum()), 1.0)
    score = covariance / power.sqrt().clamp(min=1e-9)
    return score.where(enough & (power > 1e-9), torch.tensor(-1.0, dtype=score.dtype))


def _lattice(core: Image, step_mm: float) -> Image:
    """World-parallel positions over the field of view (values are not used)."""
    nz, ny, nx = core.values.shape
    corners = core.world(
        np.array([[i, j, k] for k in (0, nz - 1) for j in (0, ny - 1) for i in (0, nx - 1)], float)
    )
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = np.maximum(np.floor((high - low) / step_mm).astype(int) + 1, 1)
    matrix = np.diag([step_mm, step_mm, step_mm, 1.0])
    matrix[:3, 3] = low + ((high - low) - (size - 1) * step_mm) / 2
    values = torch.empty(tuple(int(n) for n in size[::-1]), device=core.values.device)
    return Image(values=values, world_from_index=matrix)


def _widened(lattice: Image, reach: int) -> Image:
    nz, ny, nx = lattice.values.shape
    matrix = lattice.world_from_index.copy()
    matrix[:3, 3] -= matrix[:3, :3] @ [reach, reach, reach]
    values = lattice.values.new_empty((nz + 2 * reach, ny + 2 * reach, nx + 2 * reach))
    return Image(values=values, world_from_index=matrix)


def _resampled(image: Image, lattice: Image, target_from_lattice: np.ndarray) -> Image:
    nz, ny, nx = lattice.values.shape
    device = lattice.values.device
    k, j, i = torch.meshgrid(
        *(torch.arange(n, device=device, dtype=torch.float32) for n in (nz, ny, nx)), indexing="ij"
    )
    points = torch.stack((i.flatten(), j.flatten(), k.flatten()), dim=1)
    values = sample(image, points, target_from_lattice @ lattice.world_from_index)
    return lattice.with_values(values.reshape(nz, ny, nx))


def _peaks(
    scores: Float[Tensor, "z y x"], settings: StartSettings
) -> list[tuple[float, tuple[int, int, int]]]:
    """Local maxima, the highest first, none near a higher one."""
    around = functional.max_pool3d(scores[None], 3, 1, 1)[0]
    candidates = ((scores == around) & (scores > -1.0)).nonzero().cpu().numpy()
    heights = [float(scores[tuple(c)]) for c in candidates]
    chosen: list[tuple[float, tuple[int, int, int]]] = []
    for n in np.argsort(heights)[::-1]:
        z, y, x = (int(c) for c in candidates[n])
        apart = (
            np.linalg.norm(np.subtract((z, y, x), other)) * settings.spacing_mm
            for _, other in chosen
        )
        if all(distance >= settings.peak_distance_mm for distance in apart):
            chosen.append((heights[n], (z, y, x)))
        if len(chosen) == settings.peaks:
            break
    return chosen
