"""A folder of DICOM of any layout: its CT series, and the structure sets drawn on each.

What belongs together is said by UIDs (referenced series, frame of reference), never by names of
files or folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contourcast.imaging.dicom.ct_series import SeriesSummary, find_series, read_ct_series
from contourcast.imaging.dicom.instance import STRUCTURE_SET, read_header
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.imaging.structures import StructureSet
from contourcast.imaging.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A CT series that was found and is not read yet.

    Attributes:
        taken_at: Date and time, as text that sorts; empty when the files do not say.
    """

    series_uid: str
    study_uid: str
    frame_of_reference: str
    files: tuple[Path, ...]
    patient_id: str = field(repr=False)
    taken_at: str
    description: str = field(default="", repr=False)

    def read(self, role: str) -> Volume:
        """The volume.

        Raises:
            ContourcastError: Its slices do not make one.
        """
        return read_ct_series(self.files, series_uid=self.series_uid, role=role)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A structure set and its file."""

    path: Path
    structures: StructureSet = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DicomFolder:
    """What was found, scans in the order of time."""

    scans: tuple[Scan, ...]
    drawn: tuple[Drawn, ...]

    def on(self, scan: Scan) -> tuple[Drawn, ...]:
        """The structure sets that claim to be drawn on this scan.

        By the series that they name; one that names none, or none that is here, by its frame of
        reference, where that is one scan's alone. `require_drawn_on` proves it when the scan is
        read.
        """
        return tuple(drawn for drawn in self.drawn if self._home(drawn.structures) is scan)

    def holding(self, scan: Scan, roi: str) -> Drawn | None:
        """The first structure set of a scan that holds a ROI of this name; None: none does."""
        return next(
            (
                drawn
                for drawn in self.on(scan)
                if any(each.name.strip() == roi.strip() for each in drawn.structures.rois)
            ),
            None,
        )

    def _home(self, structures: StructureSet) -> Scan | None:
        frame = [s for s in self.scans if s.frame_of_reference == structures.frame_of_reference]
        named = [s for s in frame if s.series_uid in structures.referenced_series_uids]
        candidates = named or frame
        return candidates[0] if len(candidates) == 1 else None


def read_dicom_folder(folder: Path) -> DicomFolder:
    """Headers of all scans and all structure sets below a folder.

    Raises:
        InputError: There is no such folder.
        DicomError: A file is DICOM and broken.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", file=folder.name)
    series = find_series(folder)
    scans = [_scan(summary) for summary in series if summary.is_ct]
    drawn = [
        Drawn(path=path, structures=read_structure_set(path))
        for summary in series
        if summary.sop_class_uid == STRUCTURE_SET
        for path in summary.files
    ]
    return DicomFolder(
        scans=tuple(sorted(scans, key=lambda scan: (scan.taken_at, scan.series_uid))),
        drawn=tuple(drawn),
    )


def planning_of(scans: Sequence[Scan], *, below: Path) -> Scan:
    """The scan in a folder named ``plan…``, or the first in time, when that is beyond doubt.

    Args:
        scans: One or more, in the order of time.
        below: The folder that was searched; only what lies beneath it names a scan.

    Raises:
        InputError: Several could be it.
    """
    named = [
        scan
        for scan in scans
        if any(
            part.lower().startswith("plan")
            for part in scan.files[0].relative_to(below).parent.parts
        )
    ]
    if len(named) == 1:
        return named[0]
    times = Counter(scan.taken_at for scan in scans)
    first = scans[0]
    if len(scans) > 1 and ("" in times or times[first.taken_at] > 1):
        raise InputError(
            f"{below.name}: which scan is the planning CT cannot be told from their dates",
            tag="(0008,0021) Series Date",
            remedy="put its files into a folder named planning-ct",
        )
    return first


def _scan(summary: SeriesSummary) -> Scan:
    header = read_header(summary.files[0])
    date, time = header.series_date, header.series_time
    if not date:
        date, time = header.study.date, header.study.time
    return Scan(
        series_uid=summary.series_instance_uid,
        study_uid=summary.study_instance_uid,
        frame_of_reference=summary.frame_of_reference,
        files=summary.files,
        patient_id=header.patient.patient_id.strip(),
        taken_at=f"{date} {time}" if date else "",
        description=summary.description,
    )
