"""How a network of two axes answers a volume: slice by slice, the slices as a batch."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def on_volume(network: nn.Module, x: Float[Tensor, "b c z y x"]) -> Tensor | list[Tensor]:
    """A network's logits of a patch of three axes, whether it has two of its own or three.

    A network of two axes (``network.config.axes``) sees each z slice alone; nothing is carried from
    one slice to the next. With deep supervision all levels keep every slice.

    Raises:
        InputError: The network does not take slices, or patches, of this size.
    """
    config: Any = network.config
    if config.axes != 2:
        whole: Tensor | list[Tensor] = network(x)
        return whole
    logits: Tensor | list[Tensor] = network(rearrange(x, "b c z y x -> (b z) c y x"))
    if isinstance(logits, list):
        return [_stacked(level, x.shape[0]) for level in logits]
    return _stacked(logits, x.shape[0])


def _stacked(logits: Float[Tensor, "slices c y x"], batch: int) -> Float[Tensor, "batch c z y x"]:
    return rearrange(logits, "(b z) c y x -> b c z y x", b=batch)
