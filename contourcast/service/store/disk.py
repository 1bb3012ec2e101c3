"""What a disk promises, and what happens when it is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contourcast.service.problems import DiskFullError, SettingsError, StoreError


def flush_folder(folder: Path) -> None:
    """Makes sure that renames in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(folder: Path, reserve_bytes: int) -> None:
    """Refuses to take anything in when the disk is below its reserve.

    Raises:
        DiskFullError: It is.
        StoreError: It cannot be reached.
    """
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise StoreError(
            "a folder of the data or of the store cannot be reached",
            remedy="look whether its disk is there and mounted; then send again",
        ) from error
    if free_bytes < reserve_bytes:
        raise DiskFullError(
            "free space is below the reserve",
            remedy="free space on the disks of the data folder and of the store, then send again",
        )


@contextmanager
def writing() -> Iterator[None]:
    """A disk that fills up in the middle of a write is told as what it is.

    Raises:
        DiskFullError: It did.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            "the disk filled up while this was written",
            remedy="free space on the disk of the data folder, then send again",
        ) from error


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock that the system releases when the process dies, however it dies.

    Raises:
        SettingsError: Another process holds it, and we do not wait.
    """
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise SettingsError(
                "another service runs on the same data folder",
                remedy="stop it, or name another folder: CONTOURCAST_DATA_FOLDER",
            ) from error
        yield
