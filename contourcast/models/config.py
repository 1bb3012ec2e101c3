"""What every network's configuration is: frozen, JSON-able, and clear about what it can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from contourcast.imaging.errors import InputError

STRICT = ConfigDict(extra="forbid", strict=True)
"""How configurations are read from a card: an unknown switch is an error."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What all networks share.

    Attributes:
        channels_in: CBCT and r-CT, unless a card says otherwise.
        channels_out: Background and GTV.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    channels_in: int = 2
    channels_out: int = 2

    @property
    def axes(self) -> int:
        """Two or three."""
        return 3

    def require_patch(self, shape: tuple[int, ...]) -> None:
        """Nothing, when the network takes a patch of this size (spatial axes only).

        Raises:
            InputError: It does not; the remedy names sizes that it takes.
        """

    def _require_multiple(self, shape: tuple[int, ...], of: int | tuple[int, ...]) -> None:
        """For networks that halve sizes and add them up again; ``of`` may differ by axis."""
        steps = (of,) * self.axes if isinstance(of, int) else of
        if len(shape) != self.axes:
            raise InputError(f"a patch of {shape} has {len(shape)} axes, needed are {self.axes}")
        if any(n % step or n < step for n, step in zip(shape, steps, strict=True)):
            fitting = tuple(
                max(step, -(-n // step) * step) for n, step in zip(shape, steps, strict=True)
            )
            raise InputError(
                f"a patch of {shape} cannot be taken: every side must be a multiple of {of}",
                remedy=f"use {fitting}",
            )


class Supervision:
    """The flag by which nnU-Net switches deep supervision, for networks with one head.

    nnU-Net sets ``network.decoder.deep_supervision``; when it is on, a network answers with a
    list of logits, finest first.
    """

    def __init__(self) -> None:
        self.deep_supervision = False
