"""What a noise reduction module does, in figures that mean something (NETWORKS §5.3).

λ alone says nothing of how much is subtracted: M₂ begins with a LayerNorm. So beside λ stand its
direction λ/‖λ‖, each level's share |λ_i| ‖e_i‖ / Σ, the gate γ, and ‖m₂‖/‖m₁‖.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from contourcast.models.noise_reduction import NoiseReduction


@dataclass(kw_only=True)
class Subtraction:
    """What went through the module at its last call.

    Attributes:
        features: F_1 … F_l, finest first.
        m1: The bottleneck that came in.
        m2: What is subtracted from it, before the gate.
    """

    features: Sequence[Tensor] = field(default_factory=tuple)
    m1: Tensor = field(default_factory=lambda: torch.empty(0))
    m2: Tensor = field(default_factory=lambda: torch.empty(0))


def module_of(network: nn.Module) -> NoiseReduction | None:
    """The network's noise reduction module, if it has one that subtracts anything."""
    for module in network.modules():
        if isinstance(module, NoiseReduction) and module.levels:
            return module
    return None


@contextmanager
def watched(module: NoiseReduction) -> Iterator[Subtraction]:
    """Keeps what goes through the module; it knows nothing of it, and is left as it was."""
    seen = Subtraction()

    def entering(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen.features, seen.m1 = [f.detach() for f in given[0]], given[1].detach()

    def summed(_: nn.Module, __: tuple[Any, ...], answer: Tensor) -> None:
        seen.m2 = answer.detach()

    hooks = [
        module.register_forward_pre_hook(entering),
        module.mamba.register_forward_hook(summed),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def nrm_figures(network: nn.Module, batch: Tensor) -> dict[str, float]:
    """Figures of the network's module on one batch; nothing where there is no module.

    Args:
        network: Any with a `NoiseReduction` somewhere in it.
        batch: As the network takes it (b c *space).

    Returns:
        ``lambda_i``, ``lambda_unit_i`` and ``share_i`` for each level i (1 = finest), ``ratio``
        (‖m₂‖/‖m₁‖ before the gate) and ``gamma`` (mean |γ|; 1 without a gate).
    """
    module = module_of(network)
    if module is None:
        return {}
    with watched(module) as seen:
        network(batch)
    return figures_of(module, seen)


@torch.no_grad()
def figures_of(module: NoiseReduction, seen: Subtraction) -> dict[str, float]:
    """The figures of one call."""
    size = tuple(seen.m1.shape[2:])
    lambdas = module.lambdas.detach().float().cpu()
    norms = torch.stack(
        [
            module.project(projection, seen.features[level - 1], size).norm().cpu()
            for projection, level in zip(module.proj, module.levels, strict=True)
        ]
    )
    weights = lambdas.abs() * norms
    shares = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    unit = lambdas / lambdas.norm().clamp_min(torch.finfo(lambdas.dtype).tiny)
    figures: dict[str, float] = {}
    for n, level in enumerate(module.levels):
        figures[f"lambda_{level}"] = float(lambdas[n])
        figures[f"lambda_unit_{level}"] = float(unit[n])
        figures[f"share_{level}"] = float(shares[n])
    gate = getattr(module, "gate", None)
    figures["gamma"] = 1.0 if gate is None else float(gate.detach().abs().mean())
    figures["ratio"] = float(seen.m2.norm() / seen.m1.norm())
    return figures
