"""The contour that was signed last on a propagation, as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.trace import loops_volume_cc
from contourcast.service.jobs.orders import SIGNED_ROI
from contourcast.service.problems import NotFoundError
from contourcast.service.records import Records
from contourcast.service.review.decisions import Review
from contourcast.service.review.grids import grid_of
from contourcast.service.review.loops import as_json, on_slices
from contourcast.service.review.pages import Page

APPROVED: Final = "approved"


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A signed contour on the slices of its CBCT.

    Attributes:
        loops: As `loops.as_json`.
    """

    reviewer: str
    volume_cc: float
    loops: list[dict[str, Any]]


def last_signed(records: Records, page: Page, reviews: Sequence[Review]) -> Signed | None:
    """The contour that stands: none where nobody signed, or somebody rejected it afterwards.

    Raises:
        FrameMismatchError: It is not of the CBCT's frame of reference.
    """
    signed = [each for each in reviews if each.structures_uid]
    if not signed or reviews[-1].decision == "rejected":
        return None
    last = signed[-1]
    kept = records.archive.instance(last.structures_uid)
    if kept is None:
        raise NotFoundError(
            "the signed structure set is not here any more",
            uid=last.structures_uid,
            remedy="send it to /v1/instances again",
        )
    roi = read_structure_set(records.archive.path(kept)).roi(f"#{SIGNED_ROI}")
    grid = grid_of(page.cbct)
    slices = on_slices(roi, grid, page.cbct["frame_of_reference"])
    return Signed(
        reviewer=last.reviewer,
        volume_cc=loops_volume_cc(roi.loops, grid),
        loops=as_json(slices),
    )
