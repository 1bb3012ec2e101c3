"""A store in a folder, its own or one that several machines share."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from contourcast.imaging.errors import InputError
from contourcast.service.problems import NotFoundError, StoreError
from contourcast.service.store.blobs import (
    Detail,
    damaged,
    digest_in,
    digest_of,
    require_key,
    require_prefix,
)
from contourcast.service.store.disk import flush_folder, writing

# Names that no key has: what is being copied in, what was damaged, and what says that this is the
# folder of the store and not the place where it should have been mounted.
DRAFTS: Final = ".drafts"
DAMAGED: Final = ".damaged"
MARK: Final = ".contourcast-store"
# A draft that nobody has written to for so long belongs to a process that was killed.
STALE_S: Final = 24 * 3600.0
# A folder goes when its last file is deleted; whoever puts a file there just then makes it again.
ATTEMPTS: Final = 100


class FolderStore:
    """Each key is a path below the folder.

    A file is flushed, renamed, and its folder flushed: it is there whole, or not at all.

    Args:
        folder: Made when it is missing.

    Raises:
        StoreError: It cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _told(), writing():
            (folder / DRAFTS).mkdir(parents=True, exist_ok=True)
            (folder / MARK).touch()
        self._discard_drafts()

    def put(self, files: Mapping[str, Path]) -> None:
        """See `Blobs.put`."""
        touched: set[Path] = set()
        with _told(), writing():
            for key, source in files.items():
                target = self._path(key)
                touched.add(target.parent)  # also of one that is there: its process may have died
                if target.is_file():
                    continue
                with source.open("rb") as file:
                    os.fsync(file.fileno())
                touched |= self._bring(source, target)
            for folder in touched:
                with contextlib.suppress(FileNotFoundError):  # all in it was deleted meanwhile
                    flush_folder(folder)

    def get(self, key: str) -> Path:
        """See `Blobs.get`."""
        path = self._path(key)
        promised = digest_in(key)
        with _told():
            try:
                if not path.is_file():
                    raise FileNotFoundError
                if promised and not _is_whole(path, promised):
                    self._set_aside(key, path)
                    raise damaged()
            except FileNotFoundError as error:
                self._require_mounted()
                raise NotFoundError("the store has no such file", remedy="send it again") from error
        return path

    def has(self, key: str) -> bool:
        """See `Blobs.has`."""
        path = self._path(key)
        with _told():
            if path.is_file():
                return True
            self._require_mounted()
            return False

    def delete(self, key: str) -> None:
        """See `Blobs.delete`."""
        path = self._path(key)
        with _told():
            self._require_mounted()
            with contextlib.suppress(NotADirectoryError, IsADirectoryError):  # no such key
                path.unlink(missing_ok=True)
            folder = path.parent
            while folder != self.folder:
                try:
                    folder.rmdir()
                except OSError:  # others' files are in it, or others were quicker
                    break
                folder = folder.parent

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        require_prefix(prefix)
        above = prefix.rpartition("/")[0]
        with _told():
            self._require_mounted()
            yield from _walk(self.folder / above, f"{above}/" if above else "", prefix)

    @property
    def disk(self) -> Path:
        """See `Dated.disk`."""
        return self.folder

    def details(self, prefix: str) -> Iterator[Detail]:
        """See `Dated.details`."""
        for key in self.list(prefix):
            with _told(), contextlib.suppress(FileNotFoundError):  # deleted just then
                told = self._path(key).stat()
                yield Detail(
                    key=key,
                    size_bytes=told.st_size,
                    put_at=datetime.fromtimestamp(told.st_mtime, UTC),
                )

    def _path(self, key: str) -> Path:
        return self.folder / require_key(key)

    def _require_mounted(self) -> None:
        """A folder that is not there holds nothing; that must not be taken for an answer.

        Raises:
            StoreError: It is not there.
        """
        if not (self.folder / MARK).is_file():
            raise _unreachable()

    def _bring(self, source: Path, target: Path) -> set[Path]:
        """Moves a file in; the folders in which a new folder stands now."""
        made: set[Path] = set()
        for _ in range(ATTEMPTS):
            try:
                made |= _make(target.parent)
                self._move(source, target)
            except FileNotFoundError:
                if not source.exists():
                    raise
                continue  # the folder went just then
            return made
        raise _unreachable()

    def _move(self, source: Path, target: Path) -> None:
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            draft = self.folder / DRAFTS / uuid.uuid4().hex  # another disk: copied to ours first
            try:
                shutil.copyfile(source, draft)
                with draft.open("rb") as file:
                    os.fsync(file.fileno())
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
            source.unlink(missing_ok=True)

    def _set_aside(self, key: str, path: Path) -> None:
        aside = self.folder / DAMAGED
        aside.mkdir(exist_ok=True)
        path.replace(aside / key.replace("/", "+"))

    def _discard_drafts(self) -> None:
        with _told():
            for draft in (self.folder / DRAFTS).iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if draft.stat().st_mtime < time.time() - STALE_S:
                        draft.unlink()


def _is_whole(path: Path, promised: str) -> bool:
    """Whether its bytes can be read and are the promised ones.

    A disk that has lost these bytes alone says so of them alone; of one that is away, setting the
    file aside tells.
    """
    try:
        return digest_of(path) == promised
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EACCES):
            raise
        return False


def _walk(folder: Path, begins: str, prefix: str) -> Iterator[str]:
    """The keys below a folder in the order of their text, though not all are read at once."""
    try:
        with os.scandir(folder) as entries:
            # "a/b" comes after "a.b", though "a" comes before it
            found = sorted(
                f"{entry.name}/" if entry.is_dir() else entry.name
                for entry in entries
                if not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in found:
        key = begins + name
        if not (key.startswith(prefix) or prefix.startswith(key)):
            continue
        if key.endswith("/"):
            yield from _walk(folder / name, key, prefix)
        elif key.startswith(prefix):
            yield key


def _make(folder: Path) -> set[Path]:
    """Makes a folder; the folders in which a new one stands now.

    Raises:
        FileNotFoundError: Somebody made it at the same moment, and it is gone already: try again.
    """
    touched: set[Path] = set()
    missing = folder
    while not missing.exists():
        touched.add(missing.parent)
        missing = missing.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        if folder.is_file():
            raise
        raise FileNotFoundError(str(folder)) from error  # it stood there, and went just then
    return touched


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Faults of the file system as ours; a full disk is told by `writing`."""
    try:
        yield
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(
            "another key of the store stands in the way of this one",
            remedy="no key begins with another one and a slash",
        ) from error
    except OSError as error:
        raise _unreachable() from error


def _unreachable() -> StoreError:
    return StoreError(
        "the folder of the store cannot be reached",
        remedy="look whether its disk is there, mounted, and writable; then send again",
    )
