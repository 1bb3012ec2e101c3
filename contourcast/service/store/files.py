"""A store in a folder, its own or one that several machines share."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from contourcast.service.problems import NotFoundError
from contourcast.service.store.blobs import require_key
from contourcast.service.store.disk import flush_folder, writing

# Of a file that is being copied in from another disk; `list` passes it over.
DRAFT: Final = "."


class FolderStore:
    """Each key is a path below the folder.

    A file is flushed, renamed, and its folder flushed: it is there whole, or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, files: Mapping[str, Path]) -> None:
        """See `Blobs.put`."""
        touched: set[Path] = set()
        with writing():
            for key, source in files.items():
                target = self._path(key)
                if target.exists():
                    continue
                touched |= _make(target.parent)
                with source.open("rb") as file:
                    os.fsync(file.fileno())
                _rename(source, target)
                touched.add(target.parent)
            for folder in touched:
                flush_folder(folder)

    def get(self, key: str) -> Path:
        """See `Blobs.get`."""
        path = self._path(key)
        if not path.is_file():
            raise NotFoundError("the store has no such file", remedy="send it again")
        return path

    def has(self, key: str) -> bool:
        """See `Blobs.has`."""
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """See `Blobs.delete`."""
        path = self._path(key)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others' files are in it
            path.parent.rmdir()

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        start = self.folder / prefix if prefix.endswith("/") else (self.folder / prefix).parent
        if not start.is_dir():
            return
        for path in sorted(start.rglob("*")):
            key = path.relative_to(self.folder).as_posix()
            if path.is_file() and not path.name.startswith(DRAFT) and key.startswith(prefix):
                yield key

    def _path(self, key: str) -> Path:
        return self.folder / require_key(key)


def _make(folder: Path) -> set[Path]:
    """Makes a folder; the folders in which a new one stands now."""
    touched: set[Path] = set()
    missing = folder
    while not missing.exists():
        touched.add(missing.parent)
        missing = missing.parent
    folder.mkdir(parents=True, exist_ok=True)
    return touched


def _rename(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError:  # another disk: copied beside it first
        draft = target.with_name(f"{DRAFT}{uuid.uuid4().hex}")
        shutil.copyfile(source, draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(target)
        source.unlink(missing_ok=True)
