"""Whether a deformation tears or folds tissue: its Jacobian determinant, and what it says.

A determinant of 1 keeps the volume, 0.5 halves it, 0 or less turns tissue inside out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import Displacement
from contourcast.imaging.verdict import Figure, Verdict
from contourcast.imaging.volume import Mask, require_same_frame
from contourcast.registration.settings import FoldingLimits


@dataclass(frozen=True, kw_only=True)
class Folding:
    """How a deformation treats the tissue of a region.

    Attributes:
        jacobian_p01: First percentile of the determinant; `jacobian_p99` is the last.
        log_jacobian_sd: Spread of its logarithm; None where something folds.
        folded_fraction: Share of the region with a determinant of 0 or less.
        largest_mm: The longest displacement.
    """

    jacobian_min: float
    jacobian_p01: float
    jacobian_p99: float
    jacobian_max: float
    log_jacobian_sd: float | None
    folded_fraction: float
    largest_mm: float


def jacobian(displacement: Displacement) -> Float[np.ndarray, "z y x"]:
    """The determinant of ``I + grad d`` at the displacement's own samples (central differences)."""
    grid = displacement.grid
    places_zyx = (grid.offsets_z_mm, *_even_axes(grid))
    along_axes = np.stack(
        np.gradient(displacement.values_xyz_mm.astype(float), *places_zyx, axis=(0, 1, 2))[::-1],
        axis=-1,
    )  # (z y x component axis), axes i j k of the grid
    along_world = along_axes @ grid.direction.T
    determinant: np.ndarray = np.linalg.det(along_world + np.eye(3))
    return determinant


def _even_axes(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    _, ny, nx = grid.shape_zyx
    x_mm, y_mm = grid.spacing_xy_mm
    return np.arange(ny) * y_mm, np.arange(nx) * x_mm


def folding(displacement: Displacement, region: Mask) -> Folding:
    """The figures of a deformation within a region, on the displacement's own grid.

    Raises:
        FrameMismatchError: The region lives in another frame of reference.
    """
    require_same_frame(displacement.frame_of_reference, region.frame_of_reference)
    determinant = jacobian(displacement)[region.values]
    low, high = np.percentile(determinant, (1, 99))
    folded = float((determinant <= 0).mean())
    return Folding(
        jacobian_min=float(determinant.min()),
        jacobian_p01=float(low),
        jacobian_p99=float(high),
        jacobian_max=float(determinant.max()),
        log_jacobian_sd=None if folded else float(np.log(determinant).std()),
        folded_fraction=folded,
        largest_mm=float(np.linalg.norm(displacement.values_xyz_mm[region.values], axis=1).max()),
    )


def folding_figures(measured: Folding, limits: FoldingLimits) -> tuple[Figure, ...]:
    """Each figure with its limit, verdict and, where it is not accepted, the reason."""
    least, most = limits.accept_jacobian_min, limits.accept_jacobian_max
    farthest = limits.accept_displacement_mm
    return (
        _judged(
            "jacobian_min",
            measured.jacobian_min,
            limit=f"accept > {least:g}, reject ≤ 0",
            fault=_shrinking(measured.jacobian_min, least),
            verdict=Verdict.LOOK if measured.jacobian_min > 0 else Verdict.REJECT,
        ),
        Figure(name="jacobian_p01", value=measured.jacobian_p01),
        Figure(name="jacobian_p99", value=measured.jacobian_p99),
        _judged(
            "jacobian_max",
            measured.jacobian_max,
            limit=f"accept < {most:g}",
            fault=(
                f"somewhere the deformation swells tissue to {measured.jacobian_max:.1f} times "
                "its volume"
                if measured.jacobian_max >= most
                else ""
            ),
        ),
        Figure(name="log_jacobian_sd", value=measured.log_jacobian_sd),
        Figure(name="folded_fraction", value=measured.folded_fraction),
        _judged(
            "largest_displacement_mm",
            measured.largest_mm,
            limit=f"accept ≤ {farthest:g}",
            fault=(
                f"the deformation moves tissue by up to {measured.largest_mm:.0f} mm"
                if measured.largest_mm > farthest
                else ""
            ),
        ),
    )


def _shrinking(jacobian_min: float, least: float) -> str:
    if jacobian_min <= 0:
        return f"the deformation folds (smallest Jacobian determinant {jacobian_min:.2f})"
    if jacobian_min <= least:
        return f"somewhere the deformation shrinks tissue to {jacobian_min:.2f} of its volume"
    return ""


def _judged(
    name: str, value: float, *, limit: str, fault: str, verdict: Verdict = Verdict.LOOK
) -> Figure:
    return Figure(
        name=name,
        value=value,
        limit=limit,
        verdict=verdict if fault else Verdict.ACCEPT,
        reason=fault,
    )
