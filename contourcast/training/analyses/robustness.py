"""Noise inside a network, on its image, and a prior in the wrong place (NETWORKS §14.1).

Noise is added to the features after a block of the network by a hook; the network knows nothing of
it. An absolute amplitude means little where feature scales differ: the table gives each noise also
over the standard deviation of the feature that it was added to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.models.follow import follow, followed
from contourcast.simulation.cone_beam import BODY_RADIUS_MM, reconstruction_noise, streaks
from contourcast.training.analyses.outcome import OnStep, Outcome, nobody, told_of
from contourcast.training.analyses.sites import site_of
from contourcast.training.cases import Case, Model, case_for, dice, drawn
from contourcast.training.pictures import COLORS, picture, quiet
from contourcast.training.samples import Sample
from contourcast.training.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Levels of the paper's tables (NETWORKS §14.1).
FEATURE_LEVELS: Final[Mapping[str, tuple[float, ...]]] = {
    "uniform": (0, 2, 5, 8, 10, 12),
    "speckle": (0, 0.3, 0.5, 0.7, 0.9, 1.1),
    "periodic": (0, 0.5, 1, 2, 3.5, 5),
    "salt-and-pepper": (0, 0.002, 0.005, 0.008, 0.01, 0.02),
}
# Kinds whose level is an absolute amplitude; as shares of the feature's sd they take these levels.
RELATIVE_LEVELS: Final = (0, 0.25, 0.5, 1, 2, 4)
ABSOLUTE_KINDS: Final = ("uniform", "periodic")
# What a clinic meets; zero, and steps up to about twice what REGISTRATION §11.1 simulates.
IMAGE_LEVELS: Final[Mapping[str, tuple[float, ...]]] = {
    "poisson": (0, 30, 60, 120, 240),  # HU, sd in soft tissue
    "cupping": (0, 60, 120, 240, 480),  # HU at the body's axis
    "streaks": (0, 25, 50, 100, 200),  # HU, amplitude of one streak
    "motion": (0, 5, 10, 15, 20),  # mm, peak to peak, along the patient
    "hu-shift": (0, 50, 100, 200, 400),  # HU
    "hu-scale": (0, 0.05, 0.1, 0.2, 0.4),  # gain less one
}
DISPLACEMENTS: Final[Mapping[str, tuple[float, ...]]] = {
    "prior-shift": (0, 2, 5, 10),  # mm (NETWORKS §14.1)
    "prior-turn": (0, 3, 6),  # degrees
}
UNITS: Final[Mapping[str, str]] = {
    "uniform": "± amplitude",
    "speckle": "scale",
    "periodic": "amplitude",
    "salt-and-pepper": "share of voxels",
    "poisson": "sd, HU",
    "cupping": "HU at the axis",
    "streaks": "amplitude, HU",
    "motion": "mm, peak to peak",
    "hu-shift": "HU",
    "hu-scale": "gain less one",
    "prior-shift": "mm",
    "prior-turn": "degrees",
}
# One standard deviation of a region round a lung tumour: means of 12 regions of 140 x 140 x 120 mm
# in each of 4D-Lung 113, Lung-PET-CT-Dx A0001 and A0002, NSCLC-Radiogenomics R01-001 are 365, 416,
# 395 and 444 HU (contourcast.models.region.scaling, November 2026).
HU_PER_SD: Final = 400.0
STREAKS: Final = 12  # through one patch; the simulated scan has 40 in a field of 450 mm
DENSE_SD: Final = 1.0  # bone and other dense tissue, where streaks start, lie above this
WAVES: Final = 10  # periods of the paper's periodic noise along the last axis
BREATHS: Final = 9  # places of which motion is the mean
# Where nothing is drawn, one seed speaks for all.
UNDRAWN: Final = ("periodic", "motion", "hu-shift", "hu-scale")
# How far from the body's axis a patch may lie: tumours sit within 100 mm of it.
AXIS_OFFSET_MM: Final = 100.0


@dataclass(frozen=True, kw_only=True)
class RobustnessSettings:
    """What is disturbed, where, how often.

    Attributes:
        kinds: Names of `FEATURE_LEVELS`, `IMAGE_LEVELS` and `DISPLACEMENTS`.
        site: ``stem``, ``stage0``, or a module's dotted name: where features are disturbed.
        seeds: Of the noise; one pass for each case, level and seed.
        relative: Whether uniform and periodic amplitudes are multiples of the feature's sd.
    """

    kinds: tuple[str, ...] = tuple(FEATURE_LEVELS)
    site: str = "stem"
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    relative: bool = False

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in UNITS]
        if unknown:
            raise InputError(
                f"no disturbance is named '{unknown[0]}'", remedy=f"choose from {', '.join(UNITS)}"
            )
        if not self.seeds or not self.kinds:
            raise InputError("at least one seed and one kind of disturbance are needed")

    def levels(self, kind: str) -> tuple[float, ...]:
        """From none to the most."""
        if self.relative and kind in ABSOLUTE_KINDS:
            return RELATIVE_LEVELS
        levels = {**FEATURE_LEVELS, **IMAGE_LEVELS, **DISPLACEMENTS}
        return levels[kind]


def robustness(
    models: Sequence[Model],
    samples: Sequence[Sample],
    settings: RobustnessSettings | None = None,
    on_step: OnStep = nobody,
) -> Outcome:
    """Dice of every model under every disturbance: a row for each case, level and seed.

    Cases and seeds are the same for all models. Level zero is the undisturbed network.

    Raises:
        InputError: A model has no such site, or a sample is too small for it.
    """
    settings = settings or RobustnessSettings()
    rows: list[dict[str, Any]] = []
    total = len(models) * len(samples)
    for m, model in enumerate(models):
        module = site_of(model, settings.site, case_for(model, samples[0]).channels)
        for n, sample in enumerate(samples):
            on_step(f"{model.name}: {sample.name}", (m * len(samples) + n) / total)
            rows += _of_case(model, module, sample, n, settings)
    summary = _summary(rows, settings)
    return Outcome(
        analysis="robustness",
        rows=rows,
        figure=_figure(summary, settings),
        facts={
            "settings": asdict(settings),
            "seeds": settings.seeds,
            **told_of(models, samples),
            "summary": summary,
        },
    )


def _of_case(
    model: Model, module: nn.Module, sample: Sample, number: int, settings: RobustnessSettings
) -> list[dict[str, Any]]:
    case = case_for(model, sample)
    clean, feature_sd = _undisturbed(model, module, case)
    rows = []
    for kind in settings.kinds:
        for level in settings.levels(kind):
            score, noise = clean, 0.0
            for n, seed in enumerate(settings.seeds):
                if level and (n == 0 or kind not in UNDRAWN):
                    score, noise = _disturbed(
                        model, module, sample, case, kind, level, seed, number, settings
                    )
                rows.append(
                    {
                        "model": model.name,
                        "kind": kind,
                        "level": float(level),
                        "seed": seed,
                        "case": case.name,
                        "patient": case.patient,
                        "dice": score,
                        "feature_sd": feature_sd if kind in FEATURE_LEVELS else None,
                        "noise_over_sd": noise / feature_sd if kind in FEATURE_LEVELS else None,
                    }
                )
    return rows


def _undisturbed(model: Model, module: nn.Module, case: Case) -> tuple[float, float]:
    """Dice, and the standard deviation of the features at the site."""
    sds: list[float] = []

    def noted(x: Tensor) -> Tensor:
        sds.append(float(x.std()))
        return x

    with _answered(module, noted):
        score = dice(drawn(model, case.channels), case.truth)
    return score, sds[0]


def _disturbed(
    model: Model,
    module: nn.Module,
    sample: Sample,
    case: Case,
    kind: str,
    level: float,
    seed: int,
    number: int,
    settings: RobustnessSettings,
) -> tuple[float, float]:
    """Dice, and the root mean square of the noise that was added to the features."""
    if kind in FEATURE_LEVELS:
        sizes: list[float] = []

        def answer(x: Tensor) -> Tensor:
            amplitude = level
            if settings.relative and kind in ABSOLUTE_KINDS:
                amplitude = level * float(x.std())
            generator = torch.Generator(x.device).manual_seed(_mixed(seed, number))
            noisy = NOISES[kind](x, amplitude, generator)
            sizes.append(float((noisy - x).square().mean().sqrt()))
            return noisy

        with _answered(module, answer):
            return dice(drawn(model, case.channels), case.truth), sizes[0]
    rng = np.random.default_rng([seed, number])
    if kind in DISPLACEMENTS:
        moved = displaced(
            sample,
            spacing_zyx_mm=model.card.spacing_zyx_mm,
            shift_mm=level if kind == "prior-shift" else 0.0,
            turn_deg=level if kind == "prior-turn" else 0.0,
            rng=rng,
        )
        return dice(drawn(model, case_for(model, moved).channels), case.truth), 0.0
    channels = case.channels.copy()
    where = model.card.channels.index("cbct")
    channels[where] = on_image(
        channels[where], kind, level, spacing_zyx_mm=model.card.spacing_zyx_mm, rng=rng
    )
    return dice(drawn(model, channels), case.truth), 0.0


@contextmanager
def _answered(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The module answers with what ``change`` makes of its first answer; afterwards as before."""
    handle = module.register_forward_hook(lambda _, __, answer: change(answer))
    try:
        yield
    finally:
        handle.remove()


def uniform(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """X + U(-level, level)."""
    return x + level * (2 * _rand(x, generator) - 1)


def speckle(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """X + x N(0, level)."""
    normal = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + x * (level * normal)


def periodic(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """X + level sin(2π 10 j / W) along the last axis of length W; nothing is drawn.

    The paper's formula: where W divides 20, every sample of it is zero (`noise_over_sd` tells).
    """
    j = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
    return x + level * torch.sin(2 * torch.pi * WAVES * j / x.shape[-1])


def salt_and_pepper(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """A share level/2 of the voxels at the tensor's minimum, as many at its maximum; a copy."""
    lot = _rand(x, generator)
    noisy = torch.where(lot < level / 2, x.min(), x)
    return torch.where((lot >= level / 2) & (lot < level), x.max(), noisy)


def _rand(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)


NOISES: Final[Mapping[str, Callable[[Tensor, float, torch.Generator], Tensor]]] = {
    "uniform": uniform,
    "speckle": speckle,
    "periodic": periodic,
    "salt-and-pepper": salt_and_pepper,
}


def on_image(
    scan: Float[np.ndarray, "z y x"],
    kind: str,
    level: float,
    *,
    spacing_zyx_mm: Sequence[float],
    rng: np.random.Generator,
) -> Float[np.ndarray, "z y x"]:
    """A normalised scan disturbed as scanners and patients disturb it.

    The predictor normalises each scan anew, so the patch gets its own mean and sd back, but for
    ``hu-shift`` and ``hu-scale``: a shift or gain of the whole region would vanish in the
    normalisation, and these say what happens where it errs by so much.

    Args:
        scan: In standard deviations of its region.
        kind: A name of `IMAGE_LEVELS`.
        level: In the unit of that name.
        spacing_zyx_mm: Of the patch.
        rng: Draws noise and places.
    """
    if kind == "hu-shift":
        return scan + np.float32(level / HU_PER_SD)
    if kind == "hu-scale":
        return scan * np.float32(1 + level)
    z, y, x = spacing_zyx_mm
    grid = Grid.even(
        shape_zyx=(scan.shape[0], scan.shape[1], scan.shape[2]),
        spacing_xyz_mm=(x, y, z),
        origin_xyz_mm=(0.0, 0.0, 0.0),
    )
    if kind == "motion":
        steps = level / 2 / z * np.cos(np.linspace(0, np.pi, BREATHS))
        noisy = np.mean(
            [ndimage.shift(scan, (step, 0, 0), order=1, mode="nearest") for step in steps], 0
        )
    elif kind == "poisson":  # more quanta are lost where the body is denser
        tissue = np.clip(0.7 + 0.3 * scan, 0.45, 1.3)
        noisy = scan + level / HU_PER_SD * tissue * reconstruction_noise(rng, scan.shape, grid)
    elif kind == "streaks":
        noisy = scan + level / HU_PER_SD * streaks(scan > DENSE_SD, grid, STREAKS, rng)
    else:
        noisy = scan - level / HU_PER_SD * _cup(grid, rng)
    back = (noisy - noisy.mean()) / max(float(noisy.std()), 1e-6) * scan.std() + scan.mean()
    same: np.ndarray = back.astype(np.float32)
    return same


def _cup(grid: Grid, rng: np.random.Generator) -> Float[np.ndarray, "1 y x"]:
    """One at the body's axis, which lies somewhere near the patch, and none at the skin."""
    _, ny, nx = grid.shape_zyx
    _, y, x = grid.spacing_zyx_mm
    away = rng.uniform(0, AXIS_OFFSET_MM) * np.exp(2j * np.pi * rng.random())
    to_axis = np.hypot(
        ((np.arange(ny) - (ny - 1) / 2) * y - away.real)[:, None],
        ((np.arange(nx) - (nx - 1) / 2) * x - away.imag)[None, :],
    )
    cup: np.ndarray = np.clip(1 - (to_axis / BODY_RADIUS_MM) ** 2, 0, 1)[None]
    return cup


def displaced(
    sample: Sample,
    *,
    spacing_zyx_mm: Sequence[float],
    shift_mm: float,
    turn_deg: float,
    rng: np.random.Generator,
) -> Sample:
    """The same fraction with all that was carried (prior, planning CT) carried wrongly.

    What follows the tissue begins there, as it would in a clinic.

    Args:
        sample: Its scan and label stay.
        spacing_zyx_mm: Of the sample.
        shift_mm: In a direction that is drawn,
        turn_deg: … and about an axis through the middle that is drawn.
        rng: Draws them.
    """
    directions = rng.standard_normal((2, 3))
    shift, axis = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    turn = Rotation.from_rotvec(axis * turn_deg, degrees=True).as_matrix()
    spacing = np.asarray(spacing_zyx_mm, float)
    middle = (np.array(sample.label.shape) - 1) / 2
    matrix = turn * spacing[None, :] / spacing[:, None]
    offset = middle - matrix @ (middle + shift * shift_mm / spacing)

    def carried(values: np.ndarray) -> np.ndarray:
        moved: np.ndarray = ndimage.affine_transform(
            values.astype(np.float32), matrix, offset, order=1, mode="nearest"
        )
        return moved

    prior_mm, planning = carried(sample.prior_mm), carried(sample.planning)
    field = follow(sample.scan, planning, spacing_zyx_mm=spacing_zyx_mm)
    return replace(
        sample,
        prior_mm=prior_mm,
        planning=planning,
        followed_prior_mm=followed(prior_mm, field, spacing_zyx_mm=spacing_zyx_mm),
        followed_planning=followed(planning, field, spacing_zyx_mm=spacing_zyx_mm),
    )


def _mixed(seed: int, number: int) -> int:
    """One seed of two numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _summary(rows: Sequence[dict[str, Any]], settings: RobustnessSettings) -> list[dict[str, Any]]:
    """Mean over cases and seeds, its interval by patient, and the spread of the seeds' means."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["kind"], row["level"]), []).append(row)
    summary = []
    for (model, kind, level), of in groups.items():
        found = estimate([row["dice"] for row in of], [row["patient"] for row in of])
        seeds = [np.mean([r["dice"] for r in of if r["seed"] == seed]) for seed in settings.seeds]
        noise = [r["noise_over_sd"] for r in of if r["noise_over_sd"] is not None]
        summary.append(
            {
                "model": model,
                "kind": kind,
                "level": level,
                "dice": found.mean,
                "sd_cases": found.sd,
                "sd_seeds": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None,
                "low": found.low,
                "high": found.high,
                "noise_over_sd": float(np.mean(noise)) if noise else None,
            }
        )
    return summary


def _figure(summary: Sequence[dict[str, Any]], settings: RobustnessSettings) -> Figure:
    """A panel a kind: Dice over level, a line a model, its interval by patient as a band."""
    columns = min(4, len(settings.kinds))
    rows = -(-len(settings.kinds) // columns)
    figure, panels = picture(columns=columns, rows=rows, width=2.9, height=2.5)
    models = list(dict.fromkeys(line["model"] for line in summary))
    for axes, kind in zip(panels, settings.kinds, strict=False):
        for n, model in enumerate(models):
            of = [r for r in summary if r["model"] == model and r["kind"] == kind]
            levels, color = [r["level"] for r in of], COLORS[n % len(COLORS)]
            axes.fill_between(
                levels, [r["low"] for r in of], [r["high"] for r in of], color=color, alpha=0.13
            )
            axes.plot(levels, [r["dice"] for r in of], color=color, marker="o", ms=3, label=model)
        relative = settings.relative and kind in ABSOLUTE_KINDS
        axes.set(title=kind, ylim=(0, 1), xlabel="sds of the feature" if relative else UNITS[kind])
        quiet(axes)
    for axes in panels[len(settings.kinds) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("Dice")
    panels[0].legend(frameon=False, fontsize=8, loc="best")
    return figure
