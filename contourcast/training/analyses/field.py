"""How far does a network look? Its effective receptive field (Luo et al. 2016, arXiv 1701.04128).

The gradient of the centre voxel's logit (target less background) with respect to the input; its
size at each voxel, averaged. On white noise it is the network's alone, on cases it is what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Float

from contourcast.training.analyses.outcome import OnStep, Outcome, nobody, told_of
from contourcast.training.cases import Model, batch_of, case_for
from contourcast.training.pictures import COLORS, picture, quiet
from contourcast.training.samples import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES: Final = (0.5, 0.95)  # of the gradient, whose radii are given
NOISE: Final = "white noise"
CASES: Final = "cases"


@dataclass(frozen=True, kw_only=True)
class FieldSettings:
    """Seeds of the white-noise inputs."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


def field(
    models: Sequence[Model],
    samples: Sequence[Sample],
    settings: FieldSettings | None = None,
    on_step: OnStep = nobody,
) -> Outcome:
    """A row for each model, kind of input and channel: the radii that hold half and 95 %."""
    settings = settings or FieldSettings()
    rows: list[dict[str, Any]] = []
    fields: dict[tuple[str, str], np.ndarray] = {}
    done, steps = 0, len(models) * (len(settings.seeds) + len(samples))
    for model in models:
        shape = (len(model.card.channels), *model.card.patch_zyx)
        inputs: dict[str, list[np.ndarray]] = {
            NOISE: [
                np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
                for seed in settings.seeds
            ],
            CASES: [case_for(model, sample).channels for sample in samples],
        }
        for kind, channels in inputs.items():
            mean = np.zeros(shape)
            for each in channels:
                on_step(f"{model.name}: {kind}", done / steps)
                mean += influence(model, each) / len(channels)
                done += 1
            fields[model.name, kind] = mean
            total = mean.sum()
            for channel, of in zip(model.card.channels, mean, strict=True):
                radii = radii_mm(of, model.card.spacing_zyx_mm)
                rows.append(
                    {
                        "model": model.name,
                        "input": kind,
                        "channel": channel,
                        "share_of_gradient": float(of.sum() / total) if total else float("nan"),
                        "radius_50_mm": radii[0],
                        "radius_95_mm": radii[1],
                    }
                )
    return Outcome(
        analysis="field",
        rows=rows,
        figure=_figure(models, fields),
        facts={
            "settings": asdict(settings),
            "seeds": settings.seeds,
            **told_of(models, samples),
            "summary": rows,
        },
    )


def influence(model: Model, channels: Float[np.ndarray, "c z y x"]) -> Float[np.ndarray, "c z y x"]:
    """|∂(target - background)/∂input| of the patch's centre voxel."""
    x = batch_of(model, channels).requires_grad_()
    logits = model.network(x)[0]
    centre = tuple(n // 2 for n in logits.shape[1:])
    (gradient,) = torch.autograd.grad(logits[(1, *centre)] - logits[(0, *centre)], x)
    size: np.ndarray = gradient[0].abs().double().cpu().numpy()
    return size


def radii_mm(
    influence: Float[np.ndarray, "z y x"], spacing_zyx_mm: Sequence[float]
) -> tuple[float, ...]:
    """Radii round the centre voxel that hold `SHARES` of the whole; NaN where there is nothing."""
    away = _away_mm(influence.shape, spacing_zyx_mm).ravel()
    order = np.argsort(away, kind="stable")
    held = np.cumsum(influence.ravel()[order])
    if not held[-1]:
        return tuple(float("nan") for _ in SHARES)
    where = np.searchsorted(held, [share * held[-1] for share in SHARES])
    return tuple(float(away[order[n]]) for n in where)


def _away_mm(shape: tuple[int, ...], spacing_zyx_mm: Sequence[float]) -> Float[np.ndarray, "z y x"]:
    axes = [(np.arange(n) - n // 2) * mm for n, mm in zip(shape, spacing_zyx_mm, strict=True)]
    away: np.ndarray = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    return away


def _figure(models: Sequence[Model], fields: dict[tuple[str, str], np.ndarray]) -> Figure:
    """Share of the gradient within a radius; the middle slices, logarithmic."""
    figure, panels = picture(columns=1 + len(fields), width=3.2, height=3.0)
    curves, *slices = panels
    for axes, (m, ((name, kind), of)) in zip(slices, enumerate(fields.items()), strict=True):
        spacing = next(model for model in models if model.name == name).card.spacing_zyx_mm
        away = _away_mm(of.shape[1:], spacing).ravel()
        order = np.argsort(away, kind="stable")
        held = np.cumsum(of.sum(0).ravel()[order])
        curves.plot(
            away[order],
            held / held[-1],
            color=COLORS[m // 2 % len(COLORS)],
            ls="-" if kind == CASES else ":",
            lw=1.4,
            label=f"{name}, {kind}",
        )
        middle = of.sum(0)[of.shape[1] // 2]
        shown = np.log10(np.maximum(middle / middle.max(), 1e-4))
        ny, nx = middle.shape
        extent = (
            -nx / 2 * spacing[2],
            nx / 2 * spacing[2],
            ny / 2 * spacing[1],
            -ny / 2 * spacing[1],
        )
        image = axes.imshow(shown, cmap="magma", vmin=-4, vmax=0, extent=extent)
        axes.set(title=f"{name}\n{kind}", xlabel="mm")
        axes.title.set_fontsize(10)
    figure.colorbar(image, ax=slices, shrink=0.7, label="log₁₀ of the largest")
    curves.set(title="gradient within a radius", xlabel="mm", ylim=(0, 1.02), xlim=(0, None))
    for share in SHARES:
        curves.axhline(share, color="0.75", lw=0.7)
    curves.legend(frameon=False, fontsize=8, loc="lower right")
    quiet(curves)
    return figure
