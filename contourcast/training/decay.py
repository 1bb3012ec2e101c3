"""Which weights decay: not those of the recurrence (NETWORKS §2.3, §12)."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

# Mamba's A, D and Δ bias, in VMamba's spelling too; the noise reduction's λ and gate.
SPARED: Final = (
    "A_log",
    ".D",
    "dt_proj.bias",
    "A_logs",
    ".Ds",
    "dt_projs_bias",
    "lambdas",
    "gate",
)


def decay_groups(
    network: nn.Module, *, weight_decay: float, decay_ssm: bool
) -> list[dict[str, Any]]:
    """The optimiser's groups: what decays, and what is spared unless ``decay_ssm``."""
    free: list[nn.Parameter] = []
    pulled: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            spared = not decay_ssm and name.endswith(SPARED)
            (free if spared else pulled).append(parameter)
    groups = [
        {"params": pulled, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
