"""TCIA Pancreatic-CT-CBCT-SEG: a planning CT and CBCTs of each patient, all contoured.

```
Pancreatic-CT-CBCT-SEG/Pancreas-CT-CB_001/07-06-2012-NA-PANCREAS-59677/
    201.000000-PANCREAS DI iDose 3-97846/1-001.dcm …      1.000000-BSCBLLLRSDCB-27748/1-1.dcm …
```

Nothing is taken from names of folders: patients are told apart by Patient ID, and a structure set
belongs to the series that it names. Its ROIs say which scan they are drawn on:
``Stomach_duo_planCT`` and ``Stomach_duo_CBCT``, ``Bowel_sm_planCT`` and ``Bowel_sm_CBCT``.

The CBCTs come aligned to the planning CT and resampled onto its grid, in its frame of reference;
they are registered all the same, as the service would.
"""

from __future__ import annotations

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
    keeping_the_last,
    label_of,
    opened,
    settings_of,
)
from contourcast.training.datasets.source import Found, Options, Pending

CITATION: Final = "Hong et al. 2021, Pancreatic-CT-CBCT-SEG, doi 10.7937/TCIA.ESHQ-4D90, CC BY 4.0"
ORGAN: Final = "Stomach_duo"
PLANNED: Final = "planct"
OF_THE_DAY: Final = "cbct"


class Organ(NamedTuple):
    """The organ as one structure set draws it."""

    scan: Scan
    drawn: Drawn
    roi: Roi


def find(folder: Path, options: Options) -> Found:
    """A case for each CBCT on which the organ is drawn.

    Raises:
        DicomError: A file is DICOM and broken.
    """
    index = read_dicom_folder(folder)
    cases: list[Pending] = []
    left_out: dict[str, str] = {}
    keep = keeping_the_last()
    for patient in sorted({scan.patient_id for scan in index.scans}):
        scans = [scan for scan in index.scans if scan.patient_id == patient]
        cases += _course(index, patient, scans, options, left_out, keep)
    return Found(
        cases=tuple(cases),
        channels=("CT" if options.calibrated else "zscore", "noNorm"),
        labels=LABELS,
        left_out=left_out,
        citation=CITATION,
        settings=settings_of(options),
    )


def _course(
    index: DicomFolder,
    patient: str,
    scans: list[Scan],
    options: Options,
    left_out: dict[str, str],
    keep: Keep,
) -> list[Pending]:
    wanted = options.roi or ORGAN
    planned = list(_drawn_on(index, scans, wanted, PLANNED))
    days = list(_drawn_on(index, scans, wanted, OF_THE_DAY))
    if len(planned) != 1 or not days:
        left_out[patient] = (
            f"'{wanted}' is drawn on {len(planned)} planning CTs and {len(days)} CBCTs"
        )
        return []
    start = planned[0]
    plan = Plan(
        planning_ct=partial(keep, partial(start.scan.read, "planning CT")),
        structures=start.drawn.structures,
        prior=start.roi,
    )
    cases = []
    for number, day in enumerate(days, 1):
        structures = day.drawn.structures
        today = Today(
            cbct=partial(day.scan.read, "CBCT"),
            label=partial(label_of, structures, (day.roi,)),
            facts={"label_structures": structures.digest, "roi": day.roi.name},
            rois=(day.roi,),
        )
        cases.append(
            Pending(
                name=f"{patient}_cbct-{number:02d}",
                patient=patient,
                files=(*start.scan.files, start.drawn.path, *day.scan.files, day.drawn.path),
                read=partial(convert, plan, today, options),
                check=partial(opened, plan, today),
            )
        )
    return cases


def _drawn_on(index: DicomFolder, scans: list[Scan], organ: str, where: str) -> Iterator[Organ]:
    """Scans on which the organ is drawn under a name that ends in ``planCT`` or ``CBCT…``."""
    for scan in scans:
        named = [
            (drawn, roi)
            for drawn in index.on(scan)
            for roi in drawn.structures.rois
            if _plain(roi.name).startswith(_plain(organ) + where) and roi.loops
        ]
        if named:
            yield Organ(scan, *named[0])


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
