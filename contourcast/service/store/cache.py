"""A folder of copies from a store that lies elsewhere, within a limit of bytes.

Any number of threads and processes may share it. What was not used for longest goes first. A copy
is named by the digest of its bytes and compared with it each time that it is handed out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contourcast.service.store.blobs import digest_of
from contourcast.service.store.disk import writing

DRAFT: Final = ".draft-"
STALE_S: Final = 24 * 3600.0
# Whoever was handed a path opens it within this time.
IN_USE_S: Final = 60.0
# Fraction of the limit that is left after clearing, so that not every new file clears anew.
CLEARED_TO: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class _Copy:
    path: Path
    size_bytes: int
    used_s: float


class LruCache:
    """Copies by key.

    The limit is kept but for copies that were handed out within the last minute: their readers may
    not have opened them yet.

    Args:
        folder: Of the copies alone; made when it is missing.
        limit_bytes: Of all copies together.
        clock: Seconds since 1970.
    """

    def __init__(
        self, folder: Path, *, limit_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._bringing: dict[str, tuple[threading.Lock, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._discard_drafts()
        self._bytes = sum(copy.size_bytes for copy in self._copies())
        self._clear()

    def get(self, key: str) -> Path | None:
        """The copy of what lies under a key; None when there is none, or none that is whole."""
        for path in _files(self._place(key)):
            with contextlib.suppress(FileNotFoundError):  # cleared just then
                if digest_of(path) == path.name:
                    self._use(path)
                    return path
                path.unlink()
        return None

    def fill(self, key: str, bring: Callable[[Path], None]) -> Path:
        """The copy of what lies under a key, brought unless it is here.

        Threads that want the same key wait for the one that brings it.

        Args:
            key: Of the store.
            bring: Writes the bytes to a path; what it raises is passed on, and nothing is kept.

        Raises:
            DiskFullError: There is no room for it.
        """
        with self._one_at_a_time(key):
            if (copy := self.get(key)) is not None:
                return copy
            draft = self.folder / f"{DRAFT}{uuid.uuid4().hex}"
            try:
                with writing():
                    bring(draft)
                    return self._keep(key, draft)
            finally:
                draft.unlink(missing_ok=True)

    def adopt(self, key: str, file: Path) -> None:
        """Makes a file the copy of a key; it is moved away."""
        draft = self.folder / f"{DRAFT}{uuid.uuid4().hex}"
        try:
            with writing():
                shutil.move(file, draft)
                self._keep(key, draft)
        finally:
            draft.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Forgets the copy of a key, if there is one."""
        shutil.rmtree(self._place(key), ignore_errors=True)

    def _place(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:42]

    def _keep(self, key: str, draft: Path) -> Path:
        size, name = draft.stat().st_size, digest_of(draft)
        place = self._place(key)
        while True:
            place.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # cleared just then
                draft.replace(place / name)
                break
        self._use(place / name)
        with self._lock:
            self._bytes += size
            if self._bytes > self.limit_bytes:
                self._clear()
        return place / name

    def _use(self, path: Path) -> None:
        at = self._clock()
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (at, at))

    def _clear(self) -> None:
        """Deletes what was not used for longest; other processes may have done so meanwhile."""
        copies = sorted(self._copies(), key=lambda copy: copy.used_s)
        left = sum(copy.size_bytes for copy in copies)
        if left > self.limit_bytes:
            for copy in copies:
                if left <= CLEARED_TO * self.limit_bytes or (
                    copy.used_s > self._clock() - IN_USE_S
                ):
                    break
                copy.path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    copy.path.parent.rmdir()
                left -= copy.size_bytes
        self._bytes = left

    def _copies(self) -> Iterator[_Copy]:
        for place, _, names in os.walk(self.folder):  # passes over what others clear meanwhile
            if Path(place).parent.parent != self.folder:
                continue  # drafts
            for path in (Path(place) / name for name in names):
                with contextlib.suppress(FileNotFoundError):
                    told = path.stat()
                    yield _Copy(path=path, size_bytes=told.st_size, used_s=told.st_mtime)

    def _discard_drafts(self) -> None:
        for draft in self.folder.glob(f"{DRAFT}*"):
            with contextlib.suppress(FileNotFoundError):
                if draft.stat().st_mtime < self._clock() - STALE_S:
                    draft.unlink()

    @contextmanager
    def _one_at_a_time(self, key: str) -> Iterator[None]:
        with self._lock:
            lock, waiting = self._bringing.get(key, (threading.Lock(), 0))
            self._bringing[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._bringing[key]
                if waiting == 1:
                    del self._bringing[key]
                else:
                    self._bringing[key] = lock, waiting - 1


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
