"""How a site wants its objects: by which clock, and under which numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from contourcast.imaging.dicom.modules import SERIES_NUMBER


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all workers of a site read from the same settings, so that they write the same bytes.

    Attributes:
        zone: Of dates and times in DICOM; everywhere else they are in UTC.
        series_number: Of structure sets; what is written beside them has the next ones.
    """

    zone: tzinfo = UTC
    series_number: int = SERIES_NUMBER

    def clock(self, moment: datetime) -> datetime:
        """A moment as the site's clocks showed it."""
        return moment.astimezone(self.zone)
