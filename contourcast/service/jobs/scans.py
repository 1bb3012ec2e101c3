"""Today's CBCT of a job, as it was when the job was ordered."""

from __future__ import annotations

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.volume import Volume
from contourcast.service.archive import Archive
from contourcast.service.jobs.propagations import Job


def cbct_of(archive: Archive, job: Job) -> Volume:
    """Reads the very files that were drawn on, whatever came to their series since.

    Raises:
        ContourcastError: It is not here any more, or cannot be read.
    """
    ordered = job.order["cbct"]
    return read_ct_series(archive.files_of(ordered["series"], ordered["files"]), role="CBCT")
