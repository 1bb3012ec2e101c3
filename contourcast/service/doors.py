"""Doors for those who bring files by other ways than a request: the DICOM node, and archives.

Each writes into the audit log of whom something came, as the door of HTTP does for each request:
a row for each series of a sender and a while, before the sender hears that it is here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from contourcast.imaging.dicom.instance import CT_IMAGE, STRUCTURE_SET, read_header
from contourcast.imaging.dicom.modules import MANUFACTURER
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import ContourcastError
from contourcast.service.access.audit import Happening, record
from contourcast.service.access.roles import What
from contourcast.service.access.seldom import Seldom
from contourcast.service.archive import Archive, Sent, Staged
from contourcast.service.ingest import TAKEN, Answer, say_the_same, take_files
from contourcast.service.pacs import door, node
from contourcast.service.settings import ServiceSettings

OURS: Final = "ours"
# A series has hundreds of slices, which come one by one; all that came in so long is one row.
ONE_ROW_S: Final = 600.0


class _Imports:
    """What came in, in the audit log."""

    def __init__(self, archive: Archive, action: str) -> None:
        self._archive = archive
        self._action = action
        self._rows = Seldom(ONE_ROW_S, time.monotonic)

    def note(self, series_uid: str, outcome: str, *, who: str, address: str = "") -> None:
        """Adds a row, unless the same had one a while ago.

        Raises:
            BusyError: The index cannot be reached; then nobody may hear that it is here.
        """
        what = (series_uid, outcome, who, address)
        if self._rows.came(what) is None:
            return
        happening = Happening(
            what=What.IMPORT,
            who=who,
            address=address,
            action=self._action,
            patient=self._archive.patient_of(series_uid),
            objects=(series_uid,),
            outcome="success" if outcome in ("stored", "already") else "refused",
            detail=outcome,
        )
        try:
            record(self._archive.index, happening)
        except ContourcastError:
            self._rows.forget(what)
            raise


class NodeDoor:
    """Takes what the DICOM node has on its disk, one instance at a time (see `node.Landing`)."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._imports = _Imports(archive, "C-STORE")

    def incoming(self) -> Path:
        """A path for a new file.

        Raises:
            DiskFullError: The disk is below its reserve.
        """
        self._archive.require_space()
        return self._archive.incoming()

    def take(self, landed: node.Landed, *, sender: node.Sender) -> door.Taken:
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
        series_uid = landed.header.series_instance_uid
        who, address = f"ae:{sender.aet}", sender.address
        self._imports.note(series_uid, outcome, who=who, address=address)
        if outcome == "conflict":
            return door.Taken(outcome=outcome, cause="this UID is here with other content")
        return door.Taken(outcome=outcome)


class ArchiveDoor:
    """Takes what was fetched from another archive (see `door.Door`)."""

    def __init__(self, archive: Archive, settings: ServiceSettings) -> None:
        self._archive = archive
        self._settings = settings
        self._imports = _Imports(archive, "pull")

    def take(self, files: Sequence[Path], *, source: str) -> Sequence[door.Taken]:
        """Judges each file by itself and keeps what is sound.

        What we sent there ourselves comes back from it: it is left where it is.
        """
        theirs = [path for path in files if not _is_our_proposal(path)]
        answers = take_files(
            ((path.name, path.open("rb")) for path in theirs),
            self._archive,
            self._settings,
            sent=Sent(door="pull", ae_title=source),
        )
        for answer in answers:
            if answer.series_instance_uid:
                self._imports.note(
                    answer.series_instance_uid, answer.outcome, who=f"archive:{source}"
                )
        taken = dict(zip(theirs, answers, strict=True))
        return [_told(taken.get(path)) for path in files]


def _told(answer: Answer | None) -> door.Taken:
    if answer is None:
        return door.Taken(outcome="refused", code=OURS)
    return door.Taken(
        outcome=answer.outcome,
        sop_instance_uid=answer.sop_instance_uid,
        code=answer.problem.type.rsplit("/", 1)[-1] if answer.problem else "",
    )


def _is_our_proposal(path: Path) -> bool:
    """Whether this service, or its like, wrote it and no person signed it."""
    try:
        header = read_header(path)
        if header.manufacturer.strip() != MANUFACTURER or header.sop_class_uid == CT_IMAGE:
            return False
        if header.sop_class_uid == STRUCTURE_SET:
            return read_structure_set(path).approval_status != "APPROVED"
    except ContourcastError:  # whoever takes files says what is wrong with them
        return False
    return True
