"""The networks of the table beside each other: what each weighs, costs and takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig
from contourcast.models.networks import build, entry
from contourcast.models.profile import gigaflops, measured, parameters

# Sides of cubes that a network is asked about: a full-resolution patch of any plan is smaller.
SIDES: Final = range(1, 257)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network at its default setting.

    Attributes:
        name: In the table of networks.
        status: ``main``, ``peer`` or ``experimental``.
        source: Where it is from.
        needs: Package that is missing here; then nothing else is known.
        parameters: Trainable ones.
        takes: The images it takes, in words.
        shape: Of the image, that costs are told for.
        gigaflops: Of one forward pass.
        seconds: Measured here, one thread; None: not asked for.
        peak_mb: Measured in the same pass, MiB beyond the network.
    """

    name: str
    status: str
    source: str
    needs: str = ""
    parameters: int = 0
    takes: str = ""
    shape: tuple[int, ...] = ()
    gigaflops: float = 0.0
    seconds: float | None = None
    peak_mb: float | None = None


def overview(names: Sequence[str], *, side: int, measure: bool = False) -> Iterator[Row]:
    """A row for each name, as soon as it is known.

    Args:
        names: In the table of networks.
        side: Of the image, for which costs are told; a network that does not take it is told for
            the next larger one that it takes.
        measure: Whether to run each network, in a process of its own.
    """
    for name in names:
        line = entry(name)
        row = Row(name=name, status=line.status, source=line.source)
        try:
            config = bound_to(line.config_kind(), side)
        except InputError:
            if not line.needs:
                raise
            yield replace(row, needs=line.needs)
            continue
        with torch.device("meta"):
            network = build(name, config).eval()
        shape = (next_taken(config, side),) * config.axes
        image = (1, config.channels_in, *shape)
        row = replace(
            row,
            parameters=parameters(network),
            takes=sizes_taken(config),
            shape=shape,
            gigaflops=gigaflops(network, image),
        )
        if measure:
            seen = measured(build(name, config), image)
            row = replace(row, seconds=seen.seconds, peak_mb=seen.peak_mb)
        yield row


def bound_to(config: NetworkConfig, side: int) -> NetworkConfig:
    """The configuration for a cube of that side, where its weights belong to one patch."""
    if "patch_zyx" not in {f.name for f in fields(config)}:
        return config
    switches: dict[str, Any] = {"patch_zyx": (side,) * config.axes}
    return replace(config, **switches)


def sizes_taken(config: NetworkConfig) -> str:
    """Which sides an image may have, found by asking."""
    taken = [side for side in SIDES if takes(config, side)]
    if not taken:
        return f"no cube up to {SIDES[-1]}"
    first = taken[0]
    if len(taken) == 1:
        return " x ".join([str(first)] * config.axes) + " only"
    step = taken[1] - first
    even = taken == list(range(first, SIDES.stop, step))
    if even and step == 1:
        return f"any from {first}"
    if even and first % step == 0:
        return f"multiples of {step}" + (f" from {first}" if first > step else "")
    return "sides " + ", ".join(str(side) for side in taken[:4]) + " …"


def next_taken(config: NetworkConfig, side: int) -> int:
    """The smallest side from ``side`` on that the network takes.

    Raises:
        InputError: There is none.
    """
    for candidate in range(side, SIDES.stop):
        if takes(config, candidate):
            return candidate
    raise InputError(f"it takes no image of a side from {side} to {SIDES[-1]}")


def takes(config: NetworkConfig, side: int) -> bool:
    """Whether a cube (or square) of that side can be shown to the network."""
    try:
        config.require_patch((side,) * config.axes)
    except InputError:
        return False
    return True
