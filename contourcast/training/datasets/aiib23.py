"""AIIB23: airways on CTs of fibrotic lungs.

```
AIIB23_Train_T1/img/AIIB23_30.nii.gz …   AIIB23_Train_T1/gt/AIIB23_30.nii.gz …
```

The archive of the challenge's organisers names the folders ``img`` and ``gt``; copies of it are
met with ``image`` and ``label``. Each scan is a patient of its own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from contourcast.imaging.errors import InputError
from contourcast.training.datasets.msd import SUFFIXES, case_name
from contourcast.training.datasets.nifti import read_case
from contourcast.training.datasets.source import Found, Options, Pending

CITATION: Final = "Nan et al. 2024, Hunting imaging biomarkers in pulmonary fibrosis (AIIB23)"
FOLDERS: Final = (("img", "gt"), ("image", "label"))
LABELS: Final = {"background": 0, "airway": 1}


def find(folder: Path, options: Options) -> Found:
    """A case for each scan, with the label of the same name.

    Raises:
        InputError: The two folders are not there, or a scan has no label, or a label no scan.
    """
    del options  # it takes none
    for images, labels in FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            break
    else:
        raise InputError(
            "there are no folders img and gt",
            file=folder.name,
            remedy="name the folder that AIIB23_Train_T1.zip unpacks to",
        )
    scans, drawn = _files(folder / images), _files(folder / labels)
    for name in sorted(set(scans) ^ set(drawn)):
        lacks = "label" if name in scans else "scan"
        raise InputError(f"{name} has no {lacks}", remedy="unpack the archive again")
    return Found(
        cases=tuple(
            Pending(
                name=name,
                patient=name,
                files=(scans[name], drawn[name]),
                read=partial(read_case, (scans[name],), drawn[name], values={0: 0, 1: 1}),
            )
            for name in sorted(scans)
        ),
        channels=("CT",),
        labels=LABELS,
        citation=CITATION,
    )


def _files(folder: Path) -> dict[str, Path]:
    """Case names to files; hidden ones (``._…``) are none."""
    return {
        case_name(path): path
        for path in sorted(folder.iterdir())
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
    }
