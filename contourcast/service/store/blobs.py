"""What a store does: five verbs over bytes that have a name. One test-suite holds every kind.

Names are keys such as ``instances/<series>/<sha-256>.dcm``: parts of letters, digits, ``.``, ``-``
and ``_``, joined by ``/``. What lies under a key is never another thing later: keys hold the digest
of their bytes, or of what the bytes were made from, so putting twice is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from contourcast.imaging.errors import InputError

KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class Blobs(Protocol):
    """A store. Every verb may be called by many threads and processes at once."""

    def put(self, files: Mapping[str, Path]) -> None:
        """Keeps files under keys; when it returns, they outlive a power cut.

        The files may be moved away; those whose key is there already are left where they are.

        Raises:
            DiskFullError: There is no room.
            StoreError: The store cannot be reached.
        """

    def get(self, key: str) -> Path:
        """A file on this machine that holds the bytes; to be read, not kept or changed.

        Raises:
            NotFoundError: Nothing lies under that key.
            StoreError: The store cannot be reached.
        """

    def has(self, key: str) -> bool:
        """Whether something lies under that key."""

    def delete(self, key: str) -> None:
        """Forgets what lies under that key, if anything does."""

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that begins so, sorted."""


def require_key(key: str) -> str:
    """The key, if it is one that no file system takes for anything else.

    Raises:
        InputError: It is not.
    """
    if not KEY.fullmatch(key) or len(key) > 512:
        raise InputError("this is no key of the store", remedy="use letters, digits, . - _ and /")
    return key
