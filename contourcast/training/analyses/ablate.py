"""Which switch of the noise reduction module pays? Trainings that differ in one (NETWORKS §5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contourcast.imaging.errors import InputError
from contourcast.models.diff_umamba import DiffUMambaConfig
from contourcast.models.noise_reduction import NrmConfig
from contourcast.training.analyses.outcome import OnStep, Outcome, nobody
from contourcast.training.analyses.trials import Parts, trial
from contourcast.training.loop import TrainSettings
from contourcast.training.pictures import COLORS, picture, quiet
from contourcast.training.provenance import cohort_facts
from contourcast.training.statistics import Comparison, compared, estimate, holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE: Final = "as-is"


@dataclass(frozen=True, kw_only=True)
class AblateSettings:
    """The training that is repeated, and how often.

    Attributes:
        train: Of which only network switches and seed are changed.
        seeds: Each variant is trained with each.
        variants: Names of `variants`; empty: all.
    """

    train: TrainSettings
    seeds: tuple[int, ...] = (1, 2, 3)
    variants: tuple[str, ...] = ()


def variants(config: DiffUMambaConfig) -> dict[str, DiffUMambaConfig]:
    """The configuration as it is, and each switch of §5.2 turned.

    Raises:
        InputError: The configuration has no module to ablate.
    """
    if config.nrm is None or config.nrm.second_mamba == "none":
        raise InputError("a network without the noise reduction module has nothing to ablate")
    levels = config.nrm.levels or tuple(range(1, config.stages))

    def with_nrm(**changes: Any) -> DiffUMambaConfig:
        nrm: NrmConfig | None = config.nrm
        assert nrm is not None
        return replace(config, nrm=replace(nrm, **changes))

    without = {
        f"without-e{level}": with_nrm(levels=tuple(n for n in levels if n != level))
        for level in (levels if len(levels) > 1 else ())
    }
    return {
        BASE: config,
        "no-nrm": replace(config, nrm=None),
        "no-mamba": replace(config, nrm=None, bottleneck="identity"),
        **without,
        "second-mamba-identity": with_nrm(second_mamba="identity"),
        "lambda-0.1": with_nrm(lambda_init=0.1),
        "lambda-1": with_nrm(lambda_init=1.0),
        "lambda-frozen": with_nrm(lambda_trainable=False),
        "attached" if config.nrm.detach else "detached": with_nrm(detach=not config.nrm.detach),
        "gate-scalar": with_nrm(gate="scalar"),
        "gate-channel": with_nrm(gate="channel"),
    }


def ablate(parts: Parts, settings: AblateSettings, out: Path, on_step: OnStep = nobody) -> Outcome:
    """Trains every variant with every seed, in folders under ``out/runs``; a stopped one goes on.

    The epoch is picked on the validation part, the Dice is of the test part. Variants are
    compared with the configuration as it is, paired by case and seed.

    Raises:
        InputError: The network has no module to ablate, or a variant is not known.
    """
    config = settings.train.config
    if not isinstance(config, DiffUMambaConfig):
        raise InputError("only diff-umamba has the switches that are ablated")
    grid = variants(config)
    unknown = [name for name in settings.variants if name not in grid]
    if unknown:
        raise InputError(
            f"no variant is named '{unknown[0]}'", remedy=f"choose from {', '.join(grid)}"
        )
    chosen = {n: c for n, c in grid.items() if not settings.variants or n in settings.variants}
    chosen = {BASE: config, **chosen}
    rows: list[dict[str, Any]] = []
    plan = [(name, seed) for seed in settings.seeds for name in chosen]
    for done, (name, seed) in enumerate(plan):
        on_step(f"{name}, seed {seed}", done / len(plan))
        wanted = replace(settings.train, config=chosen[name], seed=seed)
        rows += trial(parts, wanted, out / "runs" / f"{name}-{seed}", name=name)
    summary = paired_summary(rows, BASE)
    return Outcome(
        analysis="ablate",
        rows=rows,
        figure=forest(summary, f"lead in Dice over {BASE}"),
        facts={
            "settings": asdict(settings),
            "seeds": settings.seeds,
            "parts": parts.facts(),
            "test_cases": cohort_facts(parts.test),
            "summary": summary,
        },
    )


def paired_summary(rows: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """Mean Dice of each trial; lead over the base by case and seed, p after Holm."""
    names = list(dict.fromkeys(row["trial"] for row in rows))
    of_base = {(r["case"], r["seed"]): r["dice"] for r in rows if r["trial"] == base}
    found: dict[str, Comparison] = {}
    for name in names:
        pairs = [
            (r["dice"], of_base[r["case"], r["seed"]], r["patient"])
            for r in rows
            if r["trial"] == name and (r["case"], r["seed"]) in of_base
        ]
        found[name] = compared([p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs])
    others = [name for name in names if name != base]
    corrected = {
        key: dict(zip(others, holm([getattr(found[n], key) for n in others]), strict=True))
        for key in ("p_t", "p_wilcoxon", "p_t_patients", "p_wilcoxon_patients")
    }
    return [
        {
            "trial": name,
            "dice": asdict(
                estimate(
                    [r["dice"] for r in rows if r["trial"] == name],
                    [r["patient"] for r in rows if r["trial"] == name],
                )
            ),
            "lead": asdict(found[name].lead),
            **{f"corrected_{key}": p.get(name) for key, p in corrected.items()},
        }
        for name in names
    ]


def forest(summary: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Each trial's lead with its interval, best on top."""
    ordered = sorted(summary, key=lambda line: -line["lead"]["mean"])
    figure, (axes,) = picture(width=5.6, height=0.9 + 0.3 * len(ordered))
    for n, line in enumerate(ordered):
        lead = line["lead"]
        axes.plot([lead["low"], lead["high"]], [n, n], color=COLORS[0], lw=2)
        axes.plot(lead["mean"], n, "o", color=COLORS[0], ms=5)
    axes.axvline(0, color="0.4", lw=0.8)
    axes.set_yticks(range(len(ordered)), [str(line["trial"]) for line in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_title(title)
    quiet(axes, grid="x")
    return figure
