"""A store whose CT images may lie in the PACS alone; all else, and what is new, lies in another.

What comes in is put into the other store first. An image is given up there by `PacsStore.release`,
once the PACS was asked for it and gave it back; what stays is a note of where it is and of what it
must be. From then on it is fetched by WADO-RS whenever it is wanted, through a cache.

What is compared each time: SOP Class, SOP Instance, Series and Frame of Reference UID, the plane
with rescale and padding, and the digest of the decoded pixels. What is not: the other attributes,
for a PACS corrects names and codes pixels anew, and no result depends on either.
"""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from contourcast.imaging.dicom.instance import CT_IMAGE, Header, read_header
from contourcast.imaging.dicom.pixels import pixel_digest
from contourcast.imaging.errors import ContourcastError
from contourcast.service.problems import (
    DamagedError,
    NotFoundError,
    PeerError,
    PeerGoneError,
    StoreError,
)
from contourcast.service.store.blobs import Dated, Detail, digest_in, require_key, require_prefix
from contourcast.service.store.cache import LruCache

INSTANCES: Final = "instances/"
NOTES: Final = "at-pacs/"
IMAGE_SUFFIX: Final = ".dcm"
NOTE_SUFFIX: Final = "-note.json"


class Pacs(Protocol):
    """Whoever gives instances out; `contourcast.service.pacs.dicomweb.DicomWeb` is one."""

    def fetch(self, study: str, series: str, instance: str, into: Path) -> Path:
        """Writes an instance to a new file; `PeerError` when it does not come."""


class PacsStore:
    """The other store, and behind it the PACS.

    Args:
        own: Where everything is put, and stays unless it is released.
        pacs: Where released images are fetched from. Nothing is ever deleted there.
        cache: Of what was fetched.
    """

    def __init__(self, own: Dated, pacs: Pacs, *, cache: LruCache) -> None:
        self.own = own
        self.cache = cache
        self._pacs = pacs

    def put(self, files: Mapping[str, Path]) -> None:
        """See `Blobs.put`."""
        self.own.put(files)

    def get(self, key: str) -> Path:
        """See `Blobs.get`; an image that the PACS gave back otherwise counts as damaged."""
        try:
            return self.own.get(key)
        except NotFoundError:
            note = self._note(key)
            if note is None:
                raise
        return self.cache.get(key) or self.cache.fill(key, lambda draft: self._fetch(note, draft))

    def has(self, key: str) -> bool:
        """See `Blobs.has`; that the PACS still holds a released image is found out by `get`."""
        return self.own.has(key) or (_is_image(key) and self.own.has(_note_key(key)))

    def delete(self, key: str) -> None:
        """See `Blobs.delete`; the PACS keeps what it has."""
        self.own.delete(key)
        if _is_image(key):
            self.own.delete(_note_key(key))
            self.cache.discard(key)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Blobs.list`."""
        require_prefix(prefix)
        here = (key for key in self.own.list(prefix) if not key.startswith(NOTES))
        last = ""
        for key in heapq.merge(here, self._released(prefix)):
            if key != last:
                yield key
            last = key

    @property
    def disk(self) -> Path | None:
        """See `Dated.disk`: what the PACS does not keep lies here."""
        return self.own.disk

    def details(self, prefix: str) -> Iterator[Detail]:
        """See `Dated.details`; of what lies here."""
        return (one for one in self.own.details(prefix) if not one.key.startswith(NOTES))

    def release(self, key: str) -> bool:
        """Gives up our copy of a CT image if the PACS holds the same; whether it does.

        Raises:
            NotFoundError: Nothing lies under that key.
            StoreError: The store or the PACS cannot be reached.
        """
        if not _is_image(key):
            return False
        if not self.own.has(key) and self.own.has(_note_key(key)):
            return True  # an earlier release was killed half way, or it is done
        ours = self.own.get(key)
        if read_header(ours).sop_class_uid != CT_IMAGE:
            return False
        note = _says(ours)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._fetch(note, Path(folder) / "theirs")
            except (DamagedError, NotFoundError):
                return False
            draft = Path(folder) / "note"
            draft.write_text(json.dumps(note, sort_keys=True))
            self.own.put({_note_key(key): draft})
        self.own.delete(key)
        return True

    def _note(self, key: str) -> dict[str, Any] | None:
        if not _is_image(key):
            return None
        try:
            note: dict[str, Any] = json.loads(self.own.get(_note_key(key)).read_bytes())
        except NotFoundError:
            return None
        return note

    def _fetch(self, note: dict[str, Any], into: Path) -> None:
        try:
            self._pacs.fetch(note["study"], note["series"], note["instance"], into)
        except PeerGoneError as error:
            raise NotFoundError(
                "the PACS no longer has an image that it held for us",
                uid=note["instance"],
                remedy="send it to the PACS again",
            ) from error
        except PeerError as error:
            raise StoreError(
                "the PACS does not give out an image that it holds for us",
                uid=note["instance"],
                remedy="look whether the PACS runs and still has it",
            ) from error
        try:
            theirs = _says(into)
        except ContourcastError:
            theirs = {}
        if theirs != note:
            raise DamagedError(
                "the PACS holds something else under this UID than what it held for us",
                tag="(0008,0018) SOP Instance UID",
                uid=note["instance"],
                remedy="find out who changed it; send the first one again",
            )

    def _released(self, prefix: str) -> Iterator[str]:
        if prefix.startswith(INSTANCES):
            notes = NOTES + prefix.removeprefix(INSTANCES).removesuffix(IMAGE_SUFFIX)
        elif INSTANCES.startswith(prefix):
            notes = NOTES
        else:
            return
        for note in self.own.list(notes):
            place = note.removeprefix(NOTES).removesuffix(NOTE_SUFFIX)
            yield f"{INSTANCES}{place}{IMAGE_SUFFIX}"


def _is_image(key: str) -> bool:
    """Whether a key names an instance by its digest; no other is ever released."""
    require_key(key)
    return key.startswith(INSTANCES) and key.endswith(IMAGE_SUFFIX) and digest_in(key) is not None


def _note_key(key: str) -> str:
    return f"{NOTES}{key.removeprefix(INSTANCES).removesuffix(IMAGE_SUFFIX)}{NOTE_SUFFIX}"


def _says(image: Path) -> dict[str, Any]:
    """All of an image that a result may depend on, and nothing of the patient."""
    header: Header = read_header(image)
    plane: dict[str, Any] = json.loads(json.dumps(asdict(header.plane)))
    return {
        "study": header.study_instance_uid,
        "series": header.series_instance_uid,
        "instance": header.sop_instance_uid,
        "sop_class": header.sop_class_uid,
        "frame_of_reference": header.frame_of_reference,
        "plane": plane,
        "pixels": pixel_digest(image),
    }
