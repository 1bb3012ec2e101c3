"""What each network costs here: parameters, arithmetic, memory, time (NETWORKS §1, §14.5)."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from contourcast.models.config import NetworkConfig
from contourcast.models.networks import build
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
        sides: Of the cubes whose arithmetic is counted.
        patch_zyx: Whose time and memory are measured; None: neither is.
        seed: Of the weights.
    """

    sides: tuple[int, ...] = SIDES
    patch_zyx: tuple[int, int, int] | None = (64, 64, 64)
    seed: int = 1


def profile(
    networks: Mapping[str, tuple[str, NetworkConfig]],
    settings: ProfileSettings | None = None,
    on_step: OnStep = nobody,
) -> Outcome:
    """A row for each network.

    Args:
        networks: By the name shown: a name of the table, and a configuration.
        settings: What is wanted.
        on_step: Told what is going on.

    Raises:
        InputError: A network cannot take one of the sizes.
    """
    settings = settings or ProfileSettings()
    rows: list[dict[str, Any]] = []
    for n, (name, (kind, config)) in enumerate(networks.items()):
        on_step(name, n / len(networks))
        rows.append(costs(name, kind, config, settings))
    return Outcome(
        analysis="profile",
        rows=rows,
        figure=_figure(rows, settings),
        facts={
            "settings": asdict(settings),
            "seeds": [settings.seed],
            "machine": {"processor": platform.machine(), "threads": 1},
            "configurations": {name: asdict(config) for name, (_, config) in networks.items()},
            "summary": rows,
        },
    )


def costs(name: str, kind: str, config: NetworkConfig, settings: ProfileSettings) -> dict[str, Any]:
    """One row; weights are only made where something is measured."""
    with torch.device("meta"):
        counted = build(kind, config)
    row: dict[str, Any] = {"network": name, "parameters": parameters(counted)}
    for side in settings.sides:
        cube = (side,) * config.axes
        row[f"gflop_{side}"] = gigaflops(counted, (1, config.channels_in, *cube))
    if settings.patch_zyx is not None:
        found = measured(_born(kind, config, settings), _shape(config, settings.patch_zyx))
        row |= {"seconds": found.seconds, "peak_mb": found.peak_mb}
    return row


def _born(kind: str, config: NetworkConfig, settings: ProfileSettings) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return build(kind, config).eval()


def _shape(config: NetworkConfig, patch_zyx: tuple[int, int, int]) -> tuple[int, ...]:
    return (1, config.channels_in, *patch_zyx[-config.axes :])


def _figure(rows: Sequence[Mapping[str, Any]], settings: ProfileSettings) -> Figure:
    """A bar a network: parameters, arithmetic, and what was measured."""
    panels: list[tuple[str, str, float]] = [("parameters", "parameters, millions", 1e-6)]
    panels += [(f"gflop_{max(settings.sides)}", f"GFLOP at {max(settings.sides)}³", 1.0)]
    if settings.patch_zyx is not None:
        size = " x ".join(str(n) for n in settings.patch_zyx)
        panels += [("seconds", f"CPU seconds at {size}", 1.0), ("peak_mb", "peak memory, MiB", 1.0)]
    figure, many = picture(columns=len(panels), width=3.0, height=0.9 + 0.3 * len(rows))
    for axes, (key, title, unit) in zip(many, panels, strict=True):
        axes.barh(range(len(rows)), [row[key] * unit for row in rows], color=COLORS[0], height=0.6)
        axes.set_yticks(range(len(rows)), [str(row["network"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(title)
        quiet(axes, grid="x")
    for axes in many[1:]:
        axes.set_yticklabels([])
    return figure
