"""BraTS-21: brain tumours on four MR scans of each patient.

```
BraTS2021_00000/BraTS2021_00000_flair.nii.gz  _t1.nii.gz  _t1ce.nii.gz  _t2.nii.gz  _seg.nii.gz
```

The labels 1 (necrosis), 2 (oedema) and 4 (enhancing) become 2, 1 and 3, and are learned as the
three nested regions that the challenge scores, as nnU-Net's own conversion does it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from contourcast.imaging.errors import InputError
from contourcast.training.datasets.msd import SUFFIXES
from contourcast.training.datasets.nifti import read_case
from contourcast.training.datasets.source import Found, Label, Options, Pending

CITATION: Final = "Baid et al. 2021, The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv:2107.02314"
SCANS: Final = ("t1", "t1ce", "t2", "flair")
VALUES: Final = {0: 0, 1: 2, 2: 1, 4: 3}
LABELS: Final[dict[str, Label]] = {
    "background": 0,
    "whole tumor": (1, 2, 3),
    "tumor core": (2, 3),
    "enhancing tumor": (3,),
}
REGIONS_CLASS_ORDER: Final = (1, 2, 3)


def find(folder: Path, options: Options) -> Found:
    """A case for each patient's folder, right here or one folder further down.

    Raises:
        InputError: A patient lacks a scan or the label, or there is no patient.
    """
    del options  # it takes none
    found = {
        path.name: path
        for pattern in ("BraTS2021_[0-9]*", "*/BraTS2021_[0-9]*")
        for path in sorted(folder.glob(pattern))
        if path.is_dir()
    }
    if not found:
        raise InputError(
            "there is no folder named BraTS2021_…",
            file=folder.name,
            remedy="name the folder that holds BraTS2021_00000 and the others",
        )
    return Found(
        cases=tuple(_case(found[name]) for name in sorted(found)),
        channels=("zscore", "zscore", "zscore", "zscore"),
        labels=LABELS,
        regions_class_order=REGIONS_CLASS_ORDER,
        citation=CITATION,
    )


def _case(folder: Path) -> Pending:
    files = [_file(folder, kind) for kind in (*SCANS, "seg")]
    missing = [kind for kind, path in zip((*SCANS, "seg"), files, strict=True) if path is None]
    there = tuple(path for path in files if path is not None)
    if missing:
        raise InputError(
            f"{folder.name} lacks {', '.join(missing)}; needed are {', '.join(SCANS)} and seg",
            remedy="unpack the training data again (the validation data have no labels)",
        )
    return Pending(
        name=folder.name,
        patient=folder.name,
        files=there,
        read=partial(read_case, there[:-1], there[-1], values=VALUES),
    )


def _file(folder: Path, kind: str) -> Path | None:
    paths = (folder / f"{folder.name}_{kind}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
