"""Results of steps, and results of propagations, as files of the store.

What a step made is found by the digest of its bytes and may be thrown away: it is made again. What
a propagation gives out is found by its id and the name of the file, and stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from contourcast.service.archive import Archive
from contourcast.service.problems import DamagedError, NotFoundError
from contourcast.service.store.blobs import Blobs
from contourcast.service.store.disk import writing


class Derived:
    """Everything that is not an instance that came in."""

    def __init__(self, archive: Archive) -> None:
        self._blobs: Blobs = archive.blobs
        self._draft = archive.incoming

    def put(self, content: bytes) -> str:
        """Keeps the result of a step; the digest it is found by."""
        digest = hashlib.sha256(content).hexdigest()
        self._keep(f"derived/{digest}.npz", content)
        return digest

    def get(self, digest: str) -> bytes:
        """The result of a step.

        Raises:
            NotFoundError: It is gone, or its bytes are not what they were.
        """
        try:
            content = self._blobs.get(f"derived/{digest}.npz").read_bytes()
        except (NotFoundError, DamagedError, FileNotFoundError):
            content = b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise NotFoundError(
                "an intermediate result is gone or damaged",
                remedy="send the request again: it is made anew",
            )
        return content

    def put_voxels(self, content: bytes) -> str:
        """Keeps voxels that are read in parts; the digest that they are found by."""
        digest = hashlib.sha256(content).hexdigest()
        self._keep(voxels_key(digest), content)
        return digest

    def voxels(self, digest: str) -> Path:
        """A file on this machine with the voxels of that digest.

        Raises:
            NotFoundError: They are gone, or damaged; they can be made again.
        """
        try:
            return self._blobs.get(voxels_key(digest))
        except DamagedError as error:
            raise NotFoundError("voxels are damaged; they were set aside") from error

    def put_results(self, propagation: str, files: Mapping[str, Path]) -> None:
        """Keeps the files of a propagation; those that are there already stay as they are."""
        self._blobs.put({result_key(propagation, name): path for name, path in files.items()})

    def result(self, propagation: str, name: str) -> Path:
        """A file of a propagation, on this machine.

        Raises:
            NotFoundError: There is none of that name.
        """
        return self._blobs.get(result_key(propagation, name))

    def _keep(self, key: str, content: bytes) -> None:
        if self._blobs.has(key):
            return
        draft = self._draft()
        try:
            with writing():
                draft.write_bytes(content)
            self._blobs.put({key: draft})
        finally:
            draft.unlink(missing_ok=True)

    def results(self, propagation: str) -> list[str]:
        """The names of a propagation's files, in order."""
        prefix = f"results/{propagation}/"
        return [key.removeprefix(prefix) for key in self._blobs.list(prefix)]


def voxels_key(digest: str) -> str:
    """Where voxels lie in the store: among what may be thrown away."""
    return f"derived/{digest}.i16"


def result_key(propagation: str, name: str) -> str:
    """Where a file of a propagation lies in the store."""
    return f"results/{propagation}/{name}"
