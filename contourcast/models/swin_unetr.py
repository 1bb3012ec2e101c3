"""SwinUNETR, MONAI's.

Hatamizadeh et al. 2022, arXiv 2201.01266.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from monai.networks.nets.swin_unetr import SwinUNETR as Host
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig, Supervision

# Five halvings: the patch embedding and four mergings.
REDUCTION: Final = 32


@dataclass(frozen=True, kw_only=True)
class SwinUnetrConfig(NetworkConfig):
    """Sizes; the defaults are the paper's.

    Attributes:
        feature: Width of the finest level, a multiple of twelve; it doubles with each level.
        depths: Transformer blocks of each level.
        heads: Of the attention of each level.
    """

    feature: int = 48
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)

    def __post_init__(self) -> None:
        if self.feature % 12 or not 12 <= self.feature <= 192:
            raise InputError(f"feature is {self.feature}, needed is a multiple of 12 up to 192")
        if not 0 < min(self.depths) <= max(self.depths) <= 64:
            raise InputError("depths are of a size that no network has")
        widths = [self.feature * 2**level for level in range(len(self.heads))]
        if any(h < 1 or w % h for w, h in zip(widths, self.heads, strict=True)):
            raise InputError(f"widths of {widths} do not fall to {self.heads} heads")

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Sides that can be halved five times and leave two voxels."""
        self._require_multiple(shape, REDUCTION)
        if math.prod(shape) == REDUCTION**self.axes:
            raise InputError(
                f"a patch of {shape} shrinks to a single voxel",
                remedy=f"use {(2 * REDUCTION, *shape[1:])}",
            )


class SwinUnetr(Host):
    """MONAI's network; its tables of window positions are made anew, not stored as weights."""

    def __init__(self, config: SwinUnetrConfig | None = None) -> None:
        config = config or SwinUnetrConfig()
        with _NumbersOnTheCpu():
            super().__init__(
                in_channels=config.channels_in,
                out_channels=config.channels_out,
                feature_size=config.feature,
                depths=config.depths,
                num_heads=config.heads,
            )
        for module in self.modules():
            _unstore(module, "relative_position_index")
        self.config = config
        self.decoder = Supervision()

    def forward(self, x: Float[Tensor, "b c *space"]) -> Tensor | list[Tensor]:
        """Logits (b, channels_out, *space)."""
        self.config.require_patch(tuple(x.shape[2:]))
        logits: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return [logits] if self.decoder.deep_supervision else logits


class _NumbersOnTheCpu(TorchFunctionMode):
    """While a network is built, what it is built from (rates, indices) has numbers in it.

    Where the meta device is asked for, its weights alone are there.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.arange:
            return func(*args, **kwargs | {"device": "cpu"})
        if func is torch.linspace:
            return np.linspace(*args)
        return func(*args, **kwargs)


def _unstore(module: nn.Module, buffer: str) -> None:
    """Keeps a buffer out of the state dict."""
    if buffer in dict(module.named_buffers(recurse=False)):
        module.register_buffer(buffer, getattr(module, buffer), persistent=False)
