"""Gradient descent on the pose of a rigid motion, with a preconditioner and backtracking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from contourcast.registration.local_ncc import LocalNcc, Pose, Slope
from contourcast.registration.result import LevelLog
from contourcast.registration.settings import DescentSettings


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
        free: How many of (shift, rotation) may change: 3 is a translation, 6 a rigid motion.
        settings: Preconditioner and limits.
        spacing_mm: Of the level; steps are measured in it.
        allowed: Poses that are not are never taken.
    """
    value = metric.value(pose)
    values = [value]
    velocity = np.zeros(6)
    scale: float | None = None
    stopped = "reached the most iterations"
    for _ in range(settings.iterations):
        slope = metric.slope(pose)
        if slope is None:
            stopped = "too little overlap"
            break
        step = np.zeros(6)
        if settings.preconditioner == "gauss_newton":
            step[:free] = _newton(slope, free, settings.damping)
        else:
            scale = scale or 1.0 / max(np.linalg.eigvalsh(slope.curvature[:free, :free])[-1], 1e-12)
            step[:free] = scale * slope.gradient[:free]
            step += settings.momentum * velocity
        step *= min(1.0, settings.longest_step_voxels * spacing_mm / max(np.abs(step).max(), 1e-12))
        taken, better = _backtrack(metric, pose, step, value, settings, allowed)
        if taken is None:
            if velocity.any():  # momentum may have pointed uphill: begin again without
                velocity = np.zeros(6)
                continue
            stopped = "no better pose along the step"
            break
        pose = pose.moved(taken, rotation_radius_mm=settings.rotation_radius_mm)
        value, velocity = better, taken
        values.append(value)
        if np.abs(taken).max() < settings.shortest_step_voxels * spacing_mm:
            stopped = "the step is short"
            break
    log = LevelLog(spacing_mm=spacing_mm, metric_per_step=tuple(values), stopped_because=stopped)
    return pose, value, log


def _newton(slope: Slope, free: int, damping: float) -> Float[np.ndarray, " free"]:
    curvature = slope.curvature[:free, :free]
    damped = curvature + np.diag(damping * np.diag(curvature) + 1e-12)
    step: np.ndarray = np.linalg.solve(damped, slope.gradient[:free])
    return step


def _backtrack(
    metric: LocalNcc,
    pose: Pose,
    step: Float[np.ndarray, " 6"],
    value: float,
    settings: DescentSettings,
    allowed: Callable[[Pose], bool],
) -> tuple[Float[np.ndarray, " 6"] | None, float]:
    """The longest of step, step / 2, … that makes the metric better; None when none does."""
    for halving in range(settings.halvings + 1):
        shorter: np.ndarray = step / 2**halving
        tried = pose.moved(shorter, rotation_radius_mm=settings.rotation_radius_mm)
        if allowed(tried):
            better = metric.value(tried)
            if better > value:
                return shorter, better
    return None, value
