"""Doors for those who bring files by other ways than a request: the DICOM node, and archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contourcast.service.archive import Archive, Sent, Staged
from contourcast.service.ingest import TAKEN, say_the_same, take_files
from contourcast.service.pacs import door, node
from contourcast.service.settings import ServiceSettings


class NodeDoor:
    """Takes what the DICOM node has on its disk, one instance at a time (see `node.Door`)."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def incoming(self) -> Path:
        """A path for a new file.

        Raises:
            DiskFullError: The disk is below its reserve.
        """
        self._archive.require_space()
        return self._archive.incoming()

    def take(self, landed: node.Landed, *, sender: node.Sender) -> node.Taken:
        """Takes one instance; when this returns, file and row outlive a power cut."""
        staged = Staged(
            path=landed.path,
            file_digest=landed.file_digest,
            size_bytes=landed.size_bytes,
            header=landed.header,
            modality=TAKEN[landed.header.sop_class_uid],
        )
        sent = Sent(door="dimse", ae_title=sender.aet)
        (outcome,) = self._archive.admit([staged], say_the_same, sent=sent)
        if outcome == "conflict":
            return node.Taken(outcome=outcome, cause="this UID is here with other content")
        return node.Taken(outcome=outcome)


class ArchiveDoor:
    """Takes what was fetched from another archive (see `door.Door`)."""

    def __init__(self, archive: Archive, settings: ServiceSettings) -> None:
        self._archive = archive
        self._settings = settings

    def take(self, files: Sequence[Path], *, source: str) -> Sequence[door.Taken]:
        """Judges each file by itself and keeps what is sound."""
        answers = take_files(
            ((path.name, path.open("rb")) for path in files),
            self._archive,
            self._settings,
            sent=Sent(door="pull", ae_title=source),
        )
        return [
            door.Taken(
                outcome=answer.outcome,
                sop_instance_uid=answer.sop_instance_uid,
                code=answer.problem.type.rsplit("/", 1)[-1] if answer.problem else "",
            )
            for answer in answers
        ]
