"""Why a loss is no longer a number: which activations were the largest, and where it began."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

NAMED: Final = 3


@torch.no_grad()
def largest_activations(network: nn.Module, x: Tensor) -> str:
    """The modules with the largest outputs for this input, in words, and the first without sense.

    Args:
        network: Left as it was.
        x: The batch whose loss was not finite.
    """
    sizes: dict[str, float] = {}
    broken: list[str] = []
    hooks = []

    def watch(name: str) -> None:
        def look(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                if not torch.isfinite(output).all():
                    broken.append(name)
                sizes[name] = float(output.detach().abs().nan_to_num(0.0, posinf=torch.inf).max())

        hooks.append(module.register_forward_hook(look))

    for label, module in network.named_modules():
        if not list(module.children()):
            watch(label)
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    largest = sorted(sizes, key=lambda name: -sizes[name])[:NAMED]
    told = ", ".join(f"{name} {sizes[name]:.3g}" for name in largest)
    first = f"; not finite first in {broken[0]}" if broken else ""
    return f"largest activations: {told}{first}"
