"""What happens again and again: how often that is worth a row of the audit log."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

AT_MOST: Final = 10_000
# Of those who are turned away and not known, by their address.
STRANGERS_EVERY_S: Final = 10.0


class Seldom:
    """One row for each of something and a while.

    Else anybody could fill the disk with rows, and hold the lock under which they are written.

    Args:
        every_s: How long a while is.
        clock: Seconds that only grow.
    """

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s, self._clock = every_s, clock
        self._seen: dict[Hashable, tuple[float, int]] = {}

    def came(self, what: Hashable) -> int | None:
        """How many since the last row, or none where this one goes without."""
        now_s = self._clock()
        since_s, left_out = self._seen.get(what, (-self._every_s, 0))
        if now_s - since_s < self._every_s:
            self._seen[what] = (since_s, left_out + 1)
            return None
        if len(self._seen) >= AT_MOST:
            self._seen.clear()
        self._seen[what] = (now_s, 0)
        return left_out + 1

    def forget(self, what: Hashable) -> None:
        """Its row could not be written: the next one has one."""
        self._seen.pop(what, None)
