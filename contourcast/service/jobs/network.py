"""The network that this service draws with."""

from __future__ import annotations

import functools
from collections.abc import Callable

from contourcast.service.settings import ServiceSettings


def served_network(settings: ServiceSettings) -> Callable[[], tuple[str, str]]:
    """Name and digest of the network, read when they are first asked for."""

    @functools.lru_cache(maxsize=1)
    def read() -> tuple[str, str]:
        from contourcast.models.predictor import load_network

        network = load_network(settings.weights, device="cpu")
        return network.name, network.digest

    return read
