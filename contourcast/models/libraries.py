"""Libraries whose import leaves traces in the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untouched_path() -> Iterator[None]:
    """Puts ``sys.path`` back as it was.

    MONAI tries OpenCV, which on a machine without graphics libraries fails with its own folder left
    in the path; that holds a ``typing``, and no process spawned after it starts.
    """
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
