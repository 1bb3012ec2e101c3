"""Gradient descent on the pose of a rigid motion, with a preconditioner and backtracking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from contourcast.registration.local_ncc import NOTHING, LocalNcc, Pose, Slope
from contourcast.registration.pair import Pair
from contourcast.registration.result import LevelLog
from contourcast.registration.settings import DescentSettings, LevelSettings

RIGID, TRANSLATION = 6, 3  # how many of (shift, rotation) may change


def descend_level(
    pair: Pair, pose: Pose, *, level: LevelSettings, free: int = RIGID
) -> tuple[Pose, float, LevelLog]:
    """`descend` over the whole field of view, on one level of the pyramid."""
    places = pair.places(level.spacing_mm, most=level.samples)
    return descend(
        pair.metric(level.spacing_mm, pose, places),
        pose,
        free=free,
        settings=pair.settings.rigid.descent,
        spacing_mm=level.spacing_mm,
    )


def descend(
    metric: LocalNcc,
    pose: Pose,
    *,
    free: int,
    settings: DescentSettings,
    spacing_mm: float,
    allowed: Callable[[Pose], bool] = lambda pose: True,
) -> tuple[Pose, float, LevelLog]:
    """Steps ``P grad`` until they are short; gives the best pose, its metric, and the log.

    Args:
        metric: What is to grow.
        pose: Where to start.
        free: `RIGID` or `TRANSLATION`.
        settings: Preconditioner and limits.
        spacing_mm: Of the level; steps are measured in it.
        allowed: Poses that are not are never taken.
    """
    slope = metric.slope(pose)
    values = [slope.value if slope else NOTHING]
    velocity = np.zeros(6)
    scale = 1.0 / max(_steepest(slope, free), 1e-12)
    stopped = "reached the most iterations" if slope else "too little overlap"
    for _ in range(settings.iterations if slope else 0):
        assert slope is not None
        step = np.zeros(6)
        if settings.preconditioner == "gauss_newton":
            step[:free] = _newton(slope, free, settings.damping)
        else:
            step[:free] = scale * slope.gradient[:free]
            step += settings.momentum * velocity
        step *= min(1.0, settings.longest_step_voxels * spacing_mm / max(np.abs(step).max(), 1e-12))
        taken = _backtrack(metric, pose, step, slope.value, settings, allowed)
        if taken is None and velocity.any():  # momentum may point downhill: go on without
            velocity = np.zeros(6)
            continue
        if taken is None:
            stopped = "no better pose along the step"
            break
        velocity, pose, slope = taken
        values.append(slope.value)
        if np.abs(velocity).max() < settings.shortest_step_voxels * spacing_mm:
            stopped = "the step is short"
            break
    log = LevelLog(spacing_mm=spacing_mm, metric_per_step=tuple(values), stopped_because=stopped)
    return pose, values[-1], log


def _newton(slope: Slope, free: int, damping: float) -> Float[np.ndarray, " free"]:
    curvature = slope.curvature[:free, :free]
    damped = curvature + np.diag(damping * np.diag(curvature) + 1e-12)
    step: np.ndarray = np.linalg.solve(damped, slope.gradient[:free])
    return step


def _steepest(slope: Slope | None, free: int) -> float:
    """The largest curvature: a step of its inverse times the gradient cannot overshoot far."""
    return float(np.linalg.eigvalsh(slope.curvature[:free, :free])[-1]) if slope else 0.0


def _backtrack(
    metric: LocalNcc,
    pose: Pose,
    step: Float[np.ndarray, " 6"],
    value: float,
    settings: DescentSettings,
    allowed: Callable[[Pose], bool],
) -> tuple[Float[np.ndarray, " 6"], Pose, Slope] | None:
    """The longest of step, step / 2, … that makes the metric better, and what is there."""
    for halving in range(settings.halvings + 1):
        shorter: np.ndarray = step / 2**halving
        tried = pose.moved(shorter, rotation_radius_mm=settings.rotation_radius_mm)
        slope = metric.slope(tried) if allowed(tried) else None
        if slope is not None and slope.value > value:
            return shorter, tried, slope
    return None
