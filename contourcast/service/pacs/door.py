"""What the ways from archives share: the door that files come in by, receipts for what went out.

The reconciliation with Orthanc and the pull from archives bring files to one `Door`; whoever
implements it decides alone what is taken. What lands in the middle of an association, one instance
at a time, has a `node.Landing`; both say what became of a file by a `Taken`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pydicom

Outcome = Literal["stored", "already", "conflict", "refused"]
# Whether the second file says what the first says: one instance in two encodings, for example.
Same = Callable[[Path, Path], bool]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of one file that was brought to the door.

    Attributes:
        sop_instance_uid: Empty when the file does not even say so much.
        code: The kind of problem (`ContourcastError.code`) of a file that was not taken.
        cause: Why it was refused or is in conflict; no patient data, it may go to the sender.
    """

    outcome: Outcome
    sop_instance_uid: str = ""
    code: str = ""
    cause: str = ""


class Door(Protocol):
    """Takes files in; what it answers for is flushed to the disk and committed."""

    def take(self, files: Sequence[Path], *, source: str) -> Sequence[Taken]:
        """Judges each file by itself and keeps what is sound, in the order given.

        The files stay the caller's, who deletes them afterwards.

        Args:
            files: DICOM files (PS3.10) on our own disk.
            source: Who brought them, such as ``orthanc`` or an AE title.

        Raises:
            DiskFullError: Nothing was taken; the sender keeps it and comes again.
            BusyError: The same, since the index cannot be reached.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What another system said to one instance that it was sent.

    Attributes:
        outcome: ``stored``; ``already`` (it holds the same); ``conflict`` (it holds something else
            under this UID); ``refused``.
        reason: In words and numbers of the protocol, such as ``0x0110``; never of the data.
    """

    sop_instance_uid: str
    outcome: Outcome
    reason: str = ""


def same_data_set(ours: Path, theirs: Path) -> bool:
    """Whether two files hold equal data sets, whatever their encoding and meta information."""
    return bool(pydicom.dcmread(ours) == pydicom.dcmread(theirs))
