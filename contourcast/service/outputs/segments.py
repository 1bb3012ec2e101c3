"""The regions of a structure set as masks on the scan, each with what drew it."""

from __future__ import annotations

from contourcast.imaging.dicom.rtstruct_out import PALETTE_RGB
from contourcast.imaging.dicom.segmentation_out import Segment
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import StructureSet
from contourcast.service.outputs.report import Report


def segments_of(structures: StructureSet, report: Report, grid: Grid) -> list[Segment]:
    """A segment for each ROI, in the order of the set.

    Args:
        structures: The proposals.
        report: Of the same propagation: it knows which method drew which ROI.
        grid: Of the scan that was drawn on; masks have its shape (z, y, x).

    Raises:
        GeometryError: Loops that do not lie parallel to the slices, or are not finite.
    """
    drew = {method.roi_name: method.method for method in report.methods}
    return [
        Segment(
            mask=rasterise(roi, grid),
            name=roi.name,
            method=drew.get(roi.name, roi.name),
            color_rgb=roi.color_rgb or PALETTE_RGB[n % len(PALETTE_RGB)],
            interpreted_type=roi.interpreted_type,
        )
        for n, roi in enumerate(structures.rois)
    ]
