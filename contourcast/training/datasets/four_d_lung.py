"""TCIA 4D-Lung: repeated 4D-CTs of lung cancer patients, a structure set for each phase.

```
4D-Lung/100_HM10395/07-02-2003-NA-p4-14571/1.000000-P4P100S300I00003 Gated 0.0A-29543/1-001.dcm …
```

Downloaders name folders differently, so nothing is taken from them: patients are told apart by
Patient ID, phases (``Gated, 40.0%B``) are read from the Series Description, and a structure set
belongs to the series that it names. Its ROIs carry the phase, too: ``Tumor_c40``, ``LN_c40``. The
4D-CBCTs come without contours, so they are no cases.

With a prior, the tumour of the patient's first day is carried to the same phase of every later
day, as in a course: two channels, from real scans, with a label of the day.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from contourcast.imaging.dicom.folder import (
    DicomFolder,
    Drawn,
    Scan,
    read_dicom_folder,
)
from contourcast.imaging.structures import Roi
from contourcast.training.datasets.courses import (
    LABELS,
    Keep,
    Plan,
    Today,
    convert,
    digest_of,
    keeping_the_last,
    label_of,
    on_grid,
    opened,
    settings_of,
    volumes_of,
    what_is_lost,
)
from contourcast.training.datasets.source import Converted, Found, LeftOut, Options, Pending

CITATION: Final = "Hugo et al. 2016, 4D-Lung, TCIA, doi 10.7937/K9/TCIA.2016.ELN8YGLE, CC BY 3.0"
TUMOUR: Final = "Tumor"
# ``Gated, 40.0%B``: percent of the breathing cycle, and which of the day's scans.
PHASE: Final = re.compile(r"(\d+)(?:\.0*)?%\s*([A-Za-z]?)")


class Phase(NamedTuple):
    """One phase of one 4D-CT, with the tumours that are drawn on it."""

    day: int
    percent: int
    letter: str
    scan: Scan
    drawn: Drawn
    rois: tuple[Roi, ...]


def find(folder: Path, options: Options) -> Found:
    """A case for each phase with a tumour drawn on it; with a prior, for each of a later day.

    Raises:
        DicomError: A file is DICOM and broken.
    """
    index = read_dicom_folder(folder)
    cases: list[Pending] = []
    left_out: dict[str, str] = {}
    keep = keeping_the_last()
    for patient in sorted({scan.patient_id for scan in index.scans}):
        scans = [scan for scan in index.scans if scan.patient_id == patient]
        phases = list(_phases(index, scans, options, left_out))
        if options.prior:
            cases += _courses(patient, phases, options, left_out, keep)
        else:
            cases += _single(patient, phases, options)
        bare = sum(not index.on(scan) for scan in scans)
        if bare:
            left_out[f"{patient}, {bare} scans"] = "no structure set is drawn on them"
    return Found(
        cases=tuple(cases),
        channels=("CT", "noNorm") if options.prior else ("CT",),
        labels=LABELS,
        left_out=left_out,
        citation=CITATION,
        settings=settings_of(options) if options.prior else {},
    )


def tumours(drawn: Drawn, name: str) -> tuple[Roi, ...]:
    """The ROIs of that name, whatever phase they carry: ``Tumor_c40``, ``Tumor_ c00``, ``Tumor1``.

    Those that enclose nothing are none.
    """
    wanted = re.compile(re.escape(name) + r"\d*[\s_]*(c\s*\d+)?", re.IGNORECASE)
    return tuple(
        roi for roi in drawn.structures.rois if wanted.fullmatch(roi.name.strip()) and roi.loops
    )


def _phases(
    index: DicomFolder, scans: list[Scan], options: Options, left_out: dict[str, str]
) -> Iterator[Phase]:
    studies = list(dict.fromkeys(scan.study_uid for scan in scans))  # in the order of time
    for scan in scans:
        stated = PHASE.search(scan.description)
        percent, letter = (int(stated[1]), stated[2].upper()) if stated else (-1, "")
        if options.phases and percent not in options.phases:
            continue
        sets = index.on(scan)
        for drawn in sets:
            rois = tumours(drawn, options.roi or TUMOUR)
            if rois:
                day = studies.index(scan.study_uid) + 1
                yield Phase(day, percent, letter, scan, drawn, rois)
                break
        else:
            if sets:
                listed = ", ".join(roi.name for roi in sets[0].structures.rois)
                left_out[f"series {scan.series_uid}"] = (
                    f"no '{options.roi or TUMOUR}' is drawn on it, but {listed or 'nothing'}"
                )


def _single(patient: str, phases: list[Phase], options: Options) -> list[Pending]:
    """Each phase alone."""
    return [
        Pending(
            name=_name(patient, phase),
            patient=patient,
            files=(*phase.scan.files, phase.drawn.path),
            read=partial(_scan_alone, phase, options),
        )
        for phase in phases
    ]


def _scan_alone(phase: Phase, options: Options) -> Converted | LeftOut:
    scan = phase.scan.read("CT")
    structures = phase.drawn.structures
    label = label_of(structures, phase.rois, scan)
    if lost := what_is_lost(phase.rois, scan.grid):
        return LeftOut(reason=lost)
    facts = {
        "ct": digest_of(scan),
        "structures": structures.digest,
        "rois": [roi.name for roi in phase.rois],
        **volumes_of(label, phase.rois),
    }
    return on_grid(scan, None, label, options, facts)


def _courses(
    patient: str,
    phases: list[Phase],
    options: Options,
    left_out: dict[str, str],
    keep: Keep,
) -> list[Pending]:
    """Each phase of a later day, with the tumour of the same phase of the first."""
    first_day = min((phase.day for phase in phases), default=0)
    plans: dict[int, tuple[Phase, Plan]] = {}
    for phase in phases:
        if phase.day == first_day and phase.percent not in plans:
            plan = Plan(
                planning_ct=partial(keep, partial(phase.scan.read, "planning CT")),
                structures=phase.drawn.structures,
                prior=phase.rois[0],
            )
            plans[phase.percent] = phase, plan
    cases = []
    for phase in sorted(phases, key=lambda phase: phase.percent):
        name = _name(patient, phase)
        if phase.day == first_day:
            continue
        if phase.percent not in plans:
            left_out[name] = "the first day has no such phase"
            continue
        planned, plan = plans[phase.percent]
        if len(planned.rois) > 1:
            left_out[name] = f"the first day has {len(planned.rois)} tumours, and a prior is one"
            continue
        structures = phase.drawn.structures
        today = Today(
            cbct=partial(phase.scan.read, "CT of the day"),
            label=partial(label_of, structures, phase.rois),
            facts={"label_structures": structures.digest},
            rois=phase.rois,
        )
        cases.append(
            Pending(
                name=name,
                patient=patient,
                files=(
                    *planned.scan.files,
                    planned.drawn.path,
                    *phase.scan.files,
                    phase.drawn.path,
                ),
                read=partial(convert, plan, today, options),
                check=partial(opened, plan, today),
            )
        )
    return cases


def _name(patient: str, phase: Phase) -> str:
    percent = f"{phase.percent:02d}" if phase.percent >= 0 else "none"
    return f"{patient}_day-{phase.day:02d}_phase-{percent}{phase.letter}"
