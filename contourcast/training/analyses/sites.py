"""Where in a network to look or to disturb, found by watching one pass; no network knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models.nrm_figures import module_of
from contourcast.training.cases import Model, batch_of

STAGE0: Final = "encoder.stages.0"  # of every U-Net of the house and of nnU-Net's


def site_of(model: Model, site: str, channels: Any) -> nn.Module:
    """The module behind ``stem``, ``stage0``, or a module's own dotted name.

    ``stem`` is the first block that is done: the first module with a convolution and a
    normalisation in it whose answer is a feature map (NETWORKS §14.1).

    Args:
        model: Whose network.
        site: What is sought.
        channels: One patch, for the pass that is watched.

    Raises:
        InputError: The network has no such place.
    """
    if site == "stem":
        return _first_block(model, channels)
    name = STAGE0 if site == "stage0" else site
    try:
        return model.network.get_submodule(name)
    except AttributeError:
        known = [n for n, _ in model.network.named_modules() if n.count(".") == 1][:8]
        raise InputError(
            f"{model.name} has no module '{name}'",
            remedy=f"--site stem, or a module's name, such as {', '.join(known)}",
        ) from None


def _first_block(model: Model, channels: Any) -> nn.Module:
    axes = len(model.card.patch_zyx)
    done: list[nn.Module] = []

    def finished(module: nn.Module, _: Any, answer: Any) -> None:
        if isinstance(answer, Tensor) and answer.dim() == axes + 2:
            done.append(module)

    blocks = [m for m in model.network.modules() if _is_block(m) and m is not model.network]
    with _hooked(blocks, finished), torch.inference_mode():
        model.network(batch_of(model, channels))
    if not done:
        raise InputError(
            f"{model.name} has no block of convolution and normalisation",
            remedy="name a module: --site encoder.stages.0",
        )
    return done[0]


def _is_block(module: nn.Module) -> bool:
    parts = list(module.modules())
    return any(isinstance(p, nn.Conv2d | nn.Conv3d) for p in parts) and any(
        "norm" in type(p).__name__.lower() for p in parts if p is not module
    )


@torch.inference_mode()
def bottleneck_of(model: Model, channels: Any) -> Tensor:
    """The deepest features as the decoder is given them (c *space): m̂ where there is an NRM.

    It is the last tensor that any module is given among those with the fewest voxels and, of
    these, the most channels: steps up begin by thinning channels, so nothing later is as wide.

    Raises:
        InputError: The network never shrinks what it is shown.
    """
    axes = len(model.card.patch_zyx)
    best: tuple[int, int] | None = None
    found = torch.empty(0)

    def given(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal best, found
        for x in inputs:
            if isinstance(x, Tensor) and x.dim() == axes + 2 and prod(x.shape[2:]) > 1:
                rank = (prod(x.shape[2:]), -x.shape[1])
                if best is None or rank <= best:
                    best, found = rank, x[0].clone()

    # the module's projections are given parts of feature maps, row by row
    nrm = module_of(model.network)
    parts = set(nrm.proj.modules()) if nrm is not None and nrm.levels else set()
    whole = [m for m in model.network.modules() if m not in parts]
    hooks = [m.register_forward_pre_hook(given) for m in whole]
    try:
        model.network(batch_of(model, channels))
    finally:
        for hook in hooks:
            hook.remove()
    if best is None or best[0] >= prod(channels.shape[1:]):
        raise InputError(f"{model.name} has no bottleneck: it never shrinks what it is shown")
    return found.float().cpu()


@contextmanager
def _hooked(modules: list[nn.Module], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
