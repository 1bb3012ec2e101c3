"""Those who are turned away and not known: how often that is worth a row of the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

EVERY_S: Final = 10.0
AT_MOST: Final = 10_000


class Strangers:
    """One row for each address and a while.

    Else anybody could fill the disk with rows, and hold the lock under which they are written.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def came(self, address: str) -> int | None:
        """How many since the last row, or none where this one goes without."""
        now_s = self._clock()
        since_s, left_out = self._seen.get(address, (-EVERY_S, 0))
        if now_s - since_s < EVERY_S:
            self._seen[address] = (since_s, left_out + 1)
            return None
        if len(self._seen) >= AT_MOST:
            self._seen.clear()
        self._seen[address] = (now_s, 0)
        return left_out + 1
