"""Accidents that happen in a department, and must be refused or rejected."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import (
    ContourcastError,
    FrameMismatchError,
    IncompleteSeriesError,
    InputError,
)
from contourcast.imaging.verdict import Verdict
from contourcast.service.acceptance.carried import Files, Machine
from contourcast.service.acceptance.checks import Check, carry_or_refuse, refused, rewritten
from contourcast.service.acceptance.fixed import Made

PATIENT_ID: Final = "(0010,0020)"
DRAWN_AT: Final = datetime(2025, 1, 7, tzinfo=UTC)  # any: dates of the set are invented


@dataclass(frozen=True, kw_only=True)
class Accident:
    """Something that happens, and what must become of it.

    Attributes:
        make: Writes what is wrong beneath a folder; what is then propagated.
        expected: In words.
        refusal: What is meant to be raised, of the attribute ``tag``; None: it is to be judged.
        verdicts: That are right for what is judged.
    """

    what: str
    because: str
    make: Callable[[Made, Made, Path], Files]
    expected: str
    refusal: type[ContourcastError] | None = None
    tag: str = ""
    verdicts: tuple[Verdict, ...] = ()


def of_accident(
    accident: Accident, made: Made, stranger: Made, machine: Machine, folder: Path
) -> Check:
    """Lets it happen to a patient of the set; ``folder`` is for what it writes."""
    files = accident.make(made, stranger, folder)
    found = carry_or_refuse(machine, files, ("rigid",))
    what = f"{made.name}: {accident.what}"
    if isinstance(found, ContourcastError):
        kind = accident.refusal
        return refused(
            found,
            group="accident",
            what=what,
            expected=accident.expected,
            because=accident.because,
            meant=kind is not None and isinstance(found, kind) and accident.tag in found.tag,
        )
    verdict = found.report.verdict
    return Check(
        group="accident",
        what=what,
        expected=accident.expected,
        found=f"verdict {verdict}: {'; '.join(found.report.reasons) or 'no doubt'}",
        passed=verdict in accident.verdicts,
        because=accident.because,
    )


def _of_a_stranger(made: Made, stranger: Made, folder: Path) -> Files:
    return replace(made.files, cbct=stranger.files.cbct)


def _of_a_stranger_under_this_name(made: Made, stranger: Made, folder: Path) -> Files:
    """The other's scan with this patient's whole header."""
    today = read_ct_series(made.files.cbct, role="CBCT")
    other = read_ct_series(stranger.files.cbct, role="CBCT")
    rewritten(other, folder / "stranger", like=today, role="stranger")
    return replace(made.files, cbct=folder / "stranger")


def _mirrored(made: Made, stranger: Made, folder: Path) -> Files:
    today = read_ct_series(made.files.cbct, role="CBCT")
    flipped = replace(today, values=today.values[:, :, ::-1])
    rewritten(flipped, folder / "mirrored", like=today, role="mirrored")
    return replace(made.files, cbct=folder / "mirrored")


def _drawn_elsewhere(made: Made, stranger: Made, folder: Path) -> Files:
    """The same contours, said to be drawn on another scan of the same patient."""
    planned = read_ct_series(made.files.planning_ct, role="planning CT")
    drawn = read_structure_set(made.files.structures)
    frame = derived_uid(drawn.digest, "another frame of reference")
    other = rewritten(
        replace(planned, frame_of_reference=frame),
        folder / "elsewhere",
        like=planned,
        role="elsewhere",
    )
    write_structure_set(
        folder / "elsewhere.dcm",
        rois=[replace(drawn.roi(made.files.roi), frame_of_reference=frame)],
        reference=other,
        label="ELSEWHERE",
        series_description="Planning structures",
        digest=drawn.digest,
        drawn_at=DRAWN_AT,
    )
    return replace(made.files, structures=folder / "elsewhere.dcm")


def _with_gaps(made: Made, stranger: Made, folder: Path) -> Files:
    """Three slices sent, three lost, and so on."""
    (folder / "gaps").mkdir()
    for number, path in enumerate(sorted(Path(str(made.files.cbct)).iterdir())):
        if number // 3 % 2 == 0:
            shutil.copy(path, folder / "gaps")
    return replace(made.files, cbct=folder / "gaps")


def _without_the_tumour(made: Made, stranger: Made, folder: Path) -> Files:
    """The half of the scan that shows less of the tumour."""
    (folder / "half").mkdir()
    slices = sorted(Path(str(made.files.cbct)).iterdir())
    half = len(slices) // 2
    shown = np.asarray(made.truth.label.values.any(axis=(1, 2)))
    kept = slices[:half] if shown[:half].sum() < shown[half:].sum() else slices[half:]
    for path in kept:
        shutil.copy(path, folder / "half")
    return replace(made.files, cbct=folder / "half")


ACCIDENTS: Final = (
    Accident(
        what="another patient's CBCT",
        expected="refused: two patients",
        make=_of_a_stranger,
        refusal=InputError,
        tag=PATIENT_ID,
        because="the Patient IDs differ",
    ),
    Accident(
        what="another patient's CBCT under this patient's name and ID",
        expected="verdict reject",
        make=_of_a_stranger_under_this_name,
        verdicts=(Verdict.REJECT,),
        because="the pictures are judged, not the header, and these two are unlike; two of one "
        "build can pass (docs/acceptance.md)",
    ),
    Accident(
        what="the CBCT with left and right exchanged",
        expected="verdict look or reject",
        make=_mirrored,
        verdicts=(Verdict.LOOK, Verdict.REJECT),
        because="a mirrored patient is never accepted (docs/safety.md)",
    ),
    Accident(
        what="a structure set of another frame of reference",
        expected="refused: another frame of reference",
        make=_drawn_elsewhere,
        refusal=FrameMismatchError,
        because="nobody vouched for it",
    ),
    Accident(
        what="half of the CBCT's slices are missing, three by three",
        expected="refused: slices are missing",
        make=_with_gaps,
        refusal=IncompleteSeriesError,
        because="a volume with gaps lies about where things are",
    ),
    Accident(
        what="the half of the CBCT that shows the tumour is missing",
        expected="verdict look or reject",
        make=_without_the_tumour,
        verdicts=(Verdict.LOOK, Verdict.REJECT),
        because="nothing may be drawn unseen where the scan does not reach",
    ),
)
