"""What each network costs here: parameters, arithmetic, memory, time (NETWORKS §1, §14.5)."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import build
from contourcast.models.overview import bound_to, takes
from contourcast.models.profile import gigaflops, measured, parameters
from contourcast.training.analyses.outcome import OnStep, Outcome, nobody
from contourcast.training.pictures import COLORS, picture, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES: Final = (64, 96, 128)  # NETWORKS §1


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """What is counted and measured.

    Attributes:
        sides: Of the cubes (2-D: squares) that costs are told for.
        measured_sides: Those of them whose time and memory are measured too.
        seed: Of the weights.
    """

    sides: tuple[int, ...] = SIDES
    measured_sides: tuple[int, ...] = (64,)
    seed: int = 1


def profile(
    networks: Mapping[str, tuple[str, NetworkConfig]],
    settings: ProfileSettings | None = None,
    on_step: OnStep = nobody,
) -> Outcome:
    """A row for each network and size that it takes.

    A network whose weights belong to one patch is told as it would be built for each.

    Args:
        networks: By the name shown: a name of the table, and a configuration.
        settings: What is wanted.
        on_step: Told what is going on.

    Raises:
        InputError: No network takes any of the sizes.
    """
    settings = settings or ProfileSettings()
    rows: list[dict[str, Any]] = []
    plan = [(name, side) for name in networks for side in settings.sides]
    for done, (name, side) in enumerate(plan):
        on_step(f"{name}, {side}", done / len(plan))
        kind, config = networks[name]
        bound = bound_to(config, side)
        if takes(bound, side):
            rows.append({"network": name, **costs(kind, bound, side, settings)})
    if not rows:
        raise InputError(
            "no network takes any of these sizes", remedy="ask for others: contourcast networks"
        )
    return Outcome(
        analysis="profile",
        rows=rows,
        figure=_figure(rows),
        facts={
            "settings": asdict(settings),
            "seeds": [settings.seed],
            "machine": {"processor": platform.machine(), "threads": 1},
            "configurations": {name: asdict(config) for name, (_, config) in networks.items()},
            "summary": rows,
        },
    )


def costs(kind: str, config: NetworkConfig, side: int, settings: ProfileSettings) -> dict[str, Any]:
    """One row; weights are only made where something is measured."""
    image = (1, config.channels_in, *(side,) * config.axes)
    with torch.device("meta"):
        counted = build(kind, config).eval()
    row: dict[str, Any] = {
        "side": side,
        "parameters": parameters(counted),
        "gflop": gigaflops(counted, image),
        "seconds": None,
        "peak_mb": None,
    }
    if side in settings.measured_sides:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            born = build(kind, config).eval()
        found = measured(born, image)
        row |= {"seconds": found.seconds, "peak_mb": found.peak_mb}
    return row


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar a network: parameters and arithmetic at its largest size, and what was measured."""
    largest = {row["network"]: row for row in rows}
    timed = {row["network"]: row for row in rows if row["seconds"] is not None}
    panels: list[tuple[str, Mapping[str, Mapping[str, Any]], str, float]] = [
        ("parameters, millions", largest, "parameters", 1e-6),
        ("GFLOP at the largest size", largest, "gflop", 1.0),
    ]
    if timed:
        panels += [
            ("CPU seconds", timed, "seconds", 1.0),
            ("peak memory, MiB", timed, "peak_mb", 1.0),
        ]
    figure, many = picture(columns=len(panels), width=3.0, height=0.9 + 0.3 * len(largest))
    for axes, (title, of, key, unit) in zip(many, panels, strict=True):
        values = [of[name][key] * unit if name in of else 0.0 for name in largest]
        axes.barh(range(len(largest)), values, color=COLORS[0], height=0.6)
        axes.set_yticks(range(len(largest)), list(largest) if axes is many[0] else [])
        axes.set_ylim(len(largest) - 0.4, -0.6)
        axes.set_title(title)
        quiet(axes, grid="x")
    return figure
