"""m₁ against m₂: is what is subtracted another thing than what it is subtracted from? (§14.3).

Low correlation alone proves nothing: an untrained network's is low too, so one stands beside each
model, of the same configuration and with weights at birth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.networks import build
from contourcast.models.nrm_figures import module_of, watched
from contourcast.training.analyses.outcome import OnStep, Outcome, nobody, told_of
from contourcast.training.cases import Model, batch_of, case_for
from contourcast.training.pictures import COLORS, picture, quiet
from contourcast.training.samples import Sample
from contourcast.training.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNTRAINED: Final = "untrained"
FIGURES: Final = ("pearson", "cosine", "ratio", "norm_m1", "norm_m2")


@dataclass(frozen=True, kw_only=True)
class CorrelationSettings:
    """Seeds of the untrained networks."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


def correlation(
    models: Sequence[Model],
    samples: Sequence[Sample],
    settings: CorrelationSettings | None = None,
    on_step: OnStep = nobody,
) -> Outcome:
    """A row for each patch of each model, and of its untrained namesakes.

    Raises:
        InputError: A model has no noise reduction module.
    """
    settings = settings or CorrelationSettings()
    rows: list[dict[str, Any]] = []
    for m, model in enumerate(models):
        if module_of(model.network) is None:
            raise InputError(
                f"{model.name} has no noise reduction module, there is no m₂ to correlate",
                remedy="use a model with the module, such as diff-umamba",
            )
        networks = [(model, None), *((untrained(model, seed), seed) for seed in settings.seeds)]
        for n, (each, seed) in enumerate(networks):
            on_step(each.name, (m * len(networks) + n) / (len(models) * len(networks)))
            rows += [_of_patch(each, seed, sample) for sample in samples]
    return Outcome(
        analysis="correlation",
        rows=rows,
        figure=_figure(rows),
        facts={
            "settings": asdict(settings),
            "seeds": settings.seeds,
            **told_of(models, samples),
            "summary": _summary(rows),
        },
    )


def untrained(model: Model, seed: int) -> Model:
    """The same network with weights at birth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(model.card.network, model.card.config).eval().to(model.device)
    return replace(model, name=f"{UNTRAINED} {model.name}", network=network, digest="")


@torch.inference_mode()
def _of_patch(model: Model, seed: int | None, sample: Sample) -> dict[str, Any]:
    case = case_for(model, sample)
    module = module_of(model.network)
    assert module is not None
    with watched(module) as seen:
        model.network(batch_of(model, case.channels))
    return {
        "model": model.name,
        "seed": seed,
        "case": case.name,
        "patient": case.patient,
        **related(seen.m1.flatten().cpu().numpy(), seen.m2.flatten().cpu().numpy()),
    }


def related(m1: np.ndarray, m2: np.ndarray) -> dict[str, float]:
    """Pearson's r, cosine, norms and ‖m₂‖/‖m₁‖ of two flattened tensors; NaN where one is zero."""
    one, two = m1.astype(float), m2.astype(float)
    norm1, norm2 = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    return {
        "pearson": _cosine(one - one.mean(), two - two.mean()),
        "cosine": _cosine(one, two),
        "norm_m1": norm1,
        "norm_m2": norm2,
        "ratio": norm2 / norm1 if norm1 else float("nan"),
    }


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / size if size else float("nan")


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(row["model"] for row in rows))
    return [
        {
            "model": name,
            "figure": figure,
            **asdict(
                estimate(
                    [row[figure] for row in rows if row["model"] == name],
                    [row["patient"] for row in rows if row["model"] == name],
                )
            ),
        }
        for name in names
        for figure in FIGURES
    ]


def _figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Histograms of r and of the ratio, trained beside untrained."""
    figure, panels = picture(columns=2, width=4.2, height=2.8)
    names = list(dict.fromkeys(row["model"] for row in rows))
    for axes, key, title in zip(
        panels, ("pearson", "ratio"), ("Pearson r of m₁ and m₂", "‖m₂‖ / ‖m₁‖"), strict=True
    ):
        values = {name: [row[key] for row in rows if row["model"] == name] for name in names}
        every = np.concatenate(list(values.values()))
        edges = np.histogram_bin_edges(every[np.isfinite(every)], bins=30).tolist()
        for n, (name, of) in enumerate(values.items()):
            control = name.startswith(UNTRAINED)
            color = "0.6" if control else COLORS[n // 2 % len(COLORS)]
            weights = np.full(len(of), 1 / len(of))
            axes.hist(of, edges, weights=weights, color=color, alpha=0.55, label=name)
        axes.set(title=title, ylabel="share of patches")
        quiet(axes)
    panels[0].legend(frameon=False, fontsize=8)
    return figure
