"""How often one credential may ask: a bucket of tokens for each, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# Buckets that are kept; then all are full again. Only who has a credential has one.
MOST_CALLERS: Final = 10_000


class Pace:
    """Lets everybody ask so often a minute, and a minute's worth at once.

    Args:
        each_minute: Requests; 0: as many as there are.
        clock: Seconds that only grow.
    """

    def __init__(self, each_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = float(each_minute), clock
        self._left: dict[str, tuple[float, float]] = {}

    def wait_s(self, caller: str) -> float:
        """Takes a token: 0; or, where none is left, seconds until there is one."""
        if not self._most:
            return 0.0
        now_s = self._clock()
        left, since_s = self._left.get(caller, (self._most, now_s))
        each_s = self._most / 60
        left = min(self._most, left + (now_s - since_s) * each_s)
        if left < 1:
            return (1 - left) / each_s
        if caller not in self._left and len(self._left) >= MOST_CALLERS:
            self._left.clear()
        self._left[caller] = (left - 1, now_s)
        return 0.0
