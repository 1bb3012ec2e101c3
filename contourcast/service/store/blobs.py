"""What a store does: five verbs over bytes that have a name. One test-suite holds every kind.

Names are keys such as ``instances/<series>/<sha-256>.dcm``: parts of letters, digits, ``.``, ``-``
and ``_``, joined by ``/``. What lies under a key is never another thing later: keys hold the digest
of their bytes, or of what the bytes were made from, so putting twice is harmless.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, TypeVar, runtime_checkable

from contourcast.imaging.errors import InputError
from contourcast.service.problems import DamagedError

PART: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"
KEY: Final = re.compile(f"{PART}(/{PART})*", re.ASCII)
PREFIX: Final = re.compile(f"({PART}/)*({PART})?", re.ASCII)
DIGEST: Final = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.[a-z0-9]+)?", re.ASCII)
LONGEST_KEY: Final = 512
# Files that are brought or sent at the same time: enough to hide a network's answer times.
PARALLEL: Final = 8

T = TypeVar("T")
R = TypeVar("R")


class Blobs(Protocol):
    """A store. Every verb may be called by many threads and processes at once."""

    def put(self, files: Mapping[str, Path]) -> None:
        """Keeps files under keys; when it returns, they outlive a power cut.

        The files may be moved away; those whose key is there already are left where they are.

        Raises:
            InputError: A key is none.
            DiskFullError: There is no room.
            StoreError: The store cannot be reached.
        """

    def get(self, key: str) -> Path:
        """A file on this machine that holds the bytes; to be read, not kept or changed.

        Raises:
            InputError: The key is none.
            NotFoundError: Nothing lies under that key.
            DamagedError: The bytes are not those that the key names; they are set aside, so that
                they can be put again.
            StoreError: The store cannot be reached.
        """

    def has(self, key: str) -> bool:
        """Whether something lies under that key.

        Raises:
            InputError: The key is none.
            StoreError: The store cannot be reached.
        """

    def delete(self, key: str) -> None:
        """Forgets what lies under that key, if anything does.

        Raises:
            InputError: The key is none.
            StoreError: The store cannot be reached.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Every key that begins so, sorted.

        Raises:
            InputError: No key can begin so.
            StoreError: The store cannot be reached.
        """


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What a store knows of what lies under a key, without reading it."""

    key: str
    size_bytes: int
    put_at: datetime


@runtime_checkable
class Dated(Blobs, Protocol):
    """A store that can say how large and how old things are; every kind of ours can.

    Not a verb that work depends on: for housekeeping.
    """

    def details(self, prefix: str) -> Iterator[Detail]:
        """As `Blobs.list`, with sizes and times (UTC)."""

    @property
    def disk(self) -> Path | None:
        """A folder on the disk that it fills; None where that is another machine's matter."""


def require_key(key: str) -> str:
    """The key, if it is one that no file system takes for anything else.

    Raises:
        InputError: It is not.
    """
    if not KEY.fullmatch(key) or len(key) > LONGEST_KEY:
        raise InputError("this is no key of the store", remedy="use letters, digits, . - _ and /")
    return key


def require_prefix(prefix: str) -> str:
    """The prefix, if a key can begin so.

    Raises:
        InputError: None can.
    """
    if not PREFIX.fullmatch(prefix) or len(prefix) > LONGEST_KEY:
        raise InputError("no key of the store begins so", remedy="use letters, digits, . - _ and /")
    return prefix


def digest_in(key: str) -> str | None:
    """The SHA-256 that a key promises of its bytes; None when it promises none."""
    found = DIGEST.fullmatch(key)
    return found[1] if found else None


def digest_of(path: Path) -> str:
    """The SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged() -> DamagedError:
    """The error for bytes that are not those that their key names."""
    return DamagedError(
        "a file of the store is damaged; it was set aside",
        remedy="send it again, or restore it from a backup; then look at the disk",
    )


def fetch_all(blobs: Blobs, keys: Iterable[str]) -> list[Path]:
    """`Blobs.get` of many keys, several at a time; in the order of the keys.

    Raises:
        StoreError, NotFoundError: As `Blobs.get`, for the first that failed.
    """
    return in_parallel(blobs.get, keys)


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Does the same with each item, several at a time; the results in the order of the items.

    The first error is raised once those that had begun have ended; no further ones begin.
    """
    with ThreadPoolExecutor(PARALLEL) as pool:
        begun = [pool.submit(work, item) for item in items]
        try:
            return [one.result() for one in begun]
        finally:
            pool.shutdown(cancel_futures=True)
