"""The site's own courses: what each method makes of each CBCT, and how far from what was drawn.

A folder of DICOM of any number of patients, as `contourcast cohort` takes it: best a folder for
each, for what lies in one is read together. What belongs together is said by UIDs. Of a patient's
scans the planning CT is the one with a structure set that holds the ROI (of several, the one in a
folder named ``plan…``, or the first in time); every other CT is a CBCT. Whatever cannot be used
is a row with its reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contourcast.imaging.dicom.folder import (
    DicomFolder,
    Drawn,
    Scan,
    planning_of,
    read_dicom_folder,
)
from contourcast.imaging.dicom.rtstruct_in import require_drawn_on
from contourcast.imaging.distance import filled
from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.metrics import Agreement, agreement
from contourcast.imaging.rasterise import rasterise, skips_slices
from contourcast.imaging.volume import Mask, Volume
from contourcast.propagate import DeviceError
from contourcast.service.acceptance.carried import Carried, Files, Machine

# What one bad case may raise; it costs its row, and nothing else.
BAD_CASE: Final = (
    ContourcastError,
    OSError,
    RuntimeError,
    MemoryError,
    ArithmeticError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Today:
    """One CBCT of a patient, or why there is none.

    Attributes:
        patient: Number of the patient, from 1 in the order of the folders.
        drawn: A structure set that was drawn on it and holds the ROI.
        problem: Why it cannot be asked about; scans are then not named.
    """

    patient: int
    planning: Scan | None = None
    structures: Drawn | None = None
    scan: Scan | None = None
    drawn: Drawn | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a CBCT.

    Attributes:
        agreements: By method, with what was drawn on the CBCT; empty where nothing was.
    """

    today: Today
    carried: Carried | None = None
    agreements: dict[str, Agreement] | None = None
    problem: str = ""


def find(folder: Path, roi: str) -> list[Today]:
    """Every CBCT beneath a folder, patient by patient, in the order of time.

    Raises:
        InputError: There is no such folder, or nothing lies in it.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", file=folder.name, remedy="see --patients")
    places = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found: list[Today] = []
    for place in places if places and not _has_files(folder) else [folder]:
        found += _courses(place, roi, first=1 + max((each.patient for each in found), default=0))
    if not found:
        raise InputError("the folder holds no CT series", file=folder.name, remedy="see --patients")
    return found


def run(today: Today, machine: Machine, roi: str) -> Outcome:
    """Carries the contour to one CBCT by every method; what goes wrong is in the answer.

    Raises:
        DeviceError: The GPU is lost, and with it all that comes after.
    """
    if today.planning is None or today.structures is None or today.scan is None:
        return Outcome(today=today, problem=today.problem)
    try:
        carried = machine.carry(
            Files(
                planning_ct=today.planning.files,
                structures=today.structures.path,
                cbct=today.scan.files,
                roi=roi,
            )
        )
        return Outcome(
            today=today, carried=carried, agreements=_agreements(carried, today.drawn, roi)
        )
    except DeviceError:
        raise
    except BAD_CASE as error:
        return Outcome(today=today, problem=_reason(error))


def _has_files(folder: Path) -> bool:
    return any(p.is_file() and not p.name.startswith(".") for p in folder.iterdir())


def _courses(place: Path, roi: str, *, first: int) -> Iterator[Today]:
    """The CBCTs of every patient in one folder, numbered from ``first``."""
    try:
        index = read_dicom_folder(place)
    except BAD_CASE as error:
        yield Today(patient=first, problem=_reason(error))
        return
    for number, patient in enumerate(dict.fromkeys(scan.patient_id for scan in index.scans)):
        scans = [scan for scan in index.scans if scan.patient_id == patient]
        yield from _course(index, scans, place, roi, first + number)


def _course(
    index: DicomFolder, scans: list[Scan], place: Path, roi: str, number: int
) -> Iterator[Today]:
    holding = [scan for scan in scans if index.holding(scan, roi)]
    try:
        if not holding:
            names = {r.name for scan in scans for d in index.on(scan) for r in d.structures.rois}
            raise InputError(
                f"no structure set that was drawn on a scan here holds a ROI '{roi}'",
                remedy=f"name one with --roi: {', '.join(sorted(names)) or 'there is none'}",
            )
        planning = planning_of(holding, below=place)
    except InputError as error:
        yield Today(patient=number, problem=_reason(error))
        return
    others = [scan for scan in scans if scan is not planning]
    if not others:
        yield Today(patient=number, problem="there is a planning CT, and no CBCT")
    for scan in others:
        yield Today(
            patient=number,
            planning=planning,
            structures=index.holding(planning, roi),
            scan=scan,
            drawn=index.holding(scan, roi),
        )


def _agreements(carried: Carried, drawn: Drawn | None, roi: str) -> dict[str, Agreement]:
    """Each method against what a person drew on this CBCT."""
    if drawn is None:
        return {}
    cbct = carried.case.cbct
    reference = _drawn_on(cbct, drawn, roi)
    return {
        method: agreement(rasterise(contour, cbct.grid), reference)
        for method, contour in carried.contours.items()
    }


def _drawn_on(cbct: Volume, drawn: Drawn, roi: str) -> Mask:
    """What was drawn, whole where every second slice was left out, as the prior is.

    Raises:
        FrameMismatchError: It was not drawn on this scan.
    """
    require_drawn_on(drawn.structures, cbct)
    contour = drawn.structures.roi(roi)
    if skips_slices(contour, cbct.grid):
        return filled(contour, grid=cbct.grid, onto=cbct.grid)
    return rasterise(contour, cbct.grid)


def _reason(error: BaseException) -> str:
    """A sentence; of a fault of our own with its kind, for whoever is to be told."""
    if isinstance(error, ContourcastError):
        return str(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
