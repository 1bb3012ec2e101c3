"""A patient of the fixed set against what is true of it.

Limits are for results that were written as DICOM and read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.grid import Points
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Roi
from contourcast.imaging.verdict import Verdict
from contourcast.models.weights import SHIPPED, named
from contourcast.propagate import is_network
from contourcast.service.acceptance.carried import BY_ELASTIX, Carried
from contourcast.service.acceptance.checks import (
    NOTHING,
    Check,
    apart_mm,
    at_most,
    center_xyz_mm,
    dice_with,
    told,
)
from contourcast.service.acceptance.fixed import FixedSet, Made

# Success of a registration in REGISTRATION §5; half a voxel of the set's cone beams. Found: 0.04
# and 0.54 mm.
RIGID_MM: Final = 1.0
# A motion without scale keeps a volume; the rest are voxels of the border.
VOLUME_RATIO: Final = 0.08
# DSC may be so far from the reference either way: better than it is another result as well. A
# carried contour that is a quarter of a voxel off changes by 0.02; elastix draws random samples,
# on as many threads as there are; a network's arithmetic differs from one processor to the next.
DSC_TOLERANCE: Final = 0.03
DSC_TOLERANCE_ELASTIX: Final = 0.05


def of_truth(made: Made, carried: Carried, fixed: FixedSet, *, network_digest: str) -> list[Check]:
    """A run on a patient of the set against what is true of it.

    Args:
        made: The patient.
        carried: The run.
        fixed: The set that the patient is of.
        network_digest: SHA-256 (hex) of the weights that were asked.
    """
    return [
        _accepted(made, carried),
        _placed(made, carried),
        _carried(made, carried, fixed),
        *_volumes(made, carried),
        *_overlaps(made, carried, network_digest, fixed.source),
        *_sides(made, carried),
    ]


def _accepted(made: Made, carried: Carried) -> Check:
    found = carried.report.registration
    reasons = [figure.reason for figure in found.figures if figure.reason]
    return Check(
        group="truth",
        what=f"{made.name}: verdict of the registration",
        expected="accept",
        found="; ".join([found.verdict.value, *reasons]),
        passed=found.verdict is Verdict.ACCEPT,
        because="planning CT and CBCT are of one patient, and were simulated so",
    )


def _placed(made: Made, carried: Carried) -> Check:
    """How far the registration in REG.dcm is off, at the tumour."""
    off_mm = None
    if carried.cbct_from_planning is not None:
        today_xyz_mm = center_xyz_mm(made.truth.anatomical)
        planned = made.truth.motion.rigid.apply(today_xyz_mm)
        off_mm = apart_mm(carried.cbct_from_planning.apply(planned), today_xyz_mm)
    return at_most(
        RIGID_MM,
        off_mm,
        group="truth",
        what=f"{made.name}: error of the rigid registration at the tumour",
        because="success of a registration by the design paper; half a voxel of these scans",
    )


def _carried(made: Made, carried: Carried, fixed: FixedSet) -> Check:
    """Whether the contour lies where the registration says: two ways, from two files."""
    off_mm = None
    if carried.cbct_from_planning is not None and "rigid" in carried.contours:
        case = carried.case
        planned = center_xyz_mm(rasterise(case.prior, case.planning_ct.grid))
        drawn = center_xyz_mm(rasterise(carried.contours["rigid"], case.cbct.grid))
        off_mm = apart_mm(carried.cbct_from_planning.apply(planned), drawn)
    return at_most(
        fixed.coarsest_mm / 4,
        off_mm,
        group="truth",
        what=f"{made.name}: distance of the carried contour (RS.dcm) from where the registration "
        "(REG.dcm) takes the planned one",
        because="the same by two ways, from voxel to polygon and back; a quarter of a voxel",
    )


def _volumes(made: Made, carried: Carried) -> Iterator[Check]:
    planned_cc = rasterise(carried.case.prior, carried.case.planning_ct.grid).volume_cc
    for method in ("translation", "rigid"):
        ratio = None
        if method in carried.contours:
            drawn = rasterise(carried.contours[method], carried.case.cbct.grid)
            ratio = drawn.volume_cc / planned_cc
        yield Check(
            group="truth",
            what=f"{made.name}: volume by {method} over the planned one",
            expected=f"1 ± {VOLUME_RATIO}",
            found=told(ratio),
            passed=ratio is not None and abs(ratio - 1) <= VOLUME_RATIO,
            because="a rigid motion keeps a volume; the rest are voxels of the border",
        )


def _overlaps(made: Made, carried: Carried, network_digest: str, source: str) -> Iterator[Check]:
    """DSC of each method against the label of the day."""
    found = {
        method: dice_with(carried.contours.get(method), made.truth.label)
        for method in (each.method for each in carried.report.methods)
    }
    for method, dsc in found.items():
        what = f"{made.name}: DSC of {method}"
        if is_network(method) and network_digest != named(SHIPPED)[1]:
            least = (found.get("rigid") or 0.0) - DSC_TOLERANCE
            yield Check(
                group="truth",
                what=what,
                expected=f"≥ {least:.2f}",
                found=told(dsc),
                passed=dsc is not None and dsc >= least,
                because="weights other than the shipped ones: no worse than the prior that they "
                "are shown",
            )
            continue
        tolerance = DSC_TOLERANCE_ELASTIX if method in BY_ELASTIX else DSC_TOLERANCE
        expected = made.patient.dsc[method]
        yield Check(
            group="truth",
            what=what,
            expected=f"{expected:.2f} ± {tolerance}",
            found=told(dsc),
            passed=dsc is not None and abs(dsc - expected) <= tolerance,
            because=source,
        )


def _sides(made: Made, carried: Carried) -> Iterator[Check]:
    """On which side of the middle between the lungs, in the patient's own axes."""
    rois = read_structure_set(made.files.structures)
    lungs = [_middle(rois.roi(name)) for name in ("Lung_L", "Lung_R")]
    middle = made.truth.motion.rigid.inverse().apply(np.mean(lungs, axis=0))
    for each in carried.report.methods:
        roi = carried.contours.get(each.method)
        side = NOTHING
        if roi is not None:
            side = "left" if _middle(roi)[0, 0] > middle[0, 0] else "right"
        yield Check(
            group="truth",
            what=f"{made.name}: side of the contour by {each.method}",
            expected=made.patient.side,
            found=side,
            passed=side == made.patient.side,
            because="the tumour was put there",
        )


def _middle(roi: Roi) -> Points:
    """The mean of a contour's points, which its volume's centre is near enough to, for a side."""
    points = np.concatenate([loop.points_xyz_mm for loop in roi.loops])
    middle: np.ndarray = points.mean(axis=0, keepdims=True)
    return middle
