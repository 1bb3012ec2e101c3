"""Medical Segmentation Decathlon, Task06_Lung and Task07_Pancreas, as their archives unpack.

```
Task06_Lung/dataset.json   imagesTr/lung_001.nii.gz …   labelsTr/lung_001.nii.gz …   imagesTs/
```

Beside each file lies a ``._lung_001.nii.gz`` that a Macintosh left there: it is no image, and
``dataset.json`` alone says what is one. Each scan is a patient of its own.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

from contourcast.imaging.errors import InputError
from contourcast.training.datasets.nifti import read_case
from contourcast.training.datasets.source import Found, Options, Pending

CITATION: Final = "Antonelli et al. 2022, The Medical Segmentation Decathlon, CC BY-SA 4.0"
SUFFIXES: Final = (".nii.gz", ".nii")


def find(folder: Path, options: Options) -> Found:
    """The training cases that ``dataset.json`` lists.

    Raises:
        InputError: No such file, a task of several channels, or a case outside of the folder.
    """
    del options  # it takes none
    document = _document(folder / "dataset.json")
    try:
        modality, labels, listed = (document[k] for k in ("modality", "labels", "training"))
        names = {str(name): int(value) for value, name in labels.items()}
        files = [(entry["image"], entry["label"]) for entry in listed]
        channels = list(modality.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "not a task of the Medical Segmentation Decathlon",
            file="dataset.json",
            remedy="name the folder that the archive unpacks to, such as Task06_Lung",
        ) from error
    if len(channels) != 1:
        raise InputError(
            f"a task of {len(channels)} channels in one file is not read",
            file="dataset.json",
            remedy="Task06_Lung and Task07_Pancreas have one",
        )
    values = {value: value for value in names.values()}
    cases = []
    for image, label in files:
        paths = _within(folder, image), _within(folder, label)
        name = case_name(paths[0])
        cases.append(
            Pending(
                name=name,
                patient=name,
                files=paths,
                read=partial(read_case, paths[:1], paths[1], values=values),
            )
        )
    return Found(
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        channels=("CT" if channels[0] == "CT" else "zscore",),
        labels=names,
        citation=CITATION,
    )


def case_name(path: Path) -> str:
    """The file's name without its ending."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            "there is no dataset.json",
            file=path.name,
            remedy="name the folder that the archive unpacks to, such as Task06_Lung",
        ) from error
    except ValueError as error:
        raise InputError(
            "dataset.json is not JSON", file=path.name, remedy="unpack the archive again"
        ) from error
    return document if isinstance(document, dict) else {}


def _within(folder: Path, listed: str) -> Path:
    """A file that is listed, which may lie nowhere but in the folder."""
    path = folder / listed
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "a case is listed outside of the folder",
            file="dataset.json",
            remedy="unpack the archive again",
        )
    if not path.is_file():
        raise InputError(
            "a file that dataset.json lists is missing",
            file=path.name,
            remedy="unpack the archive again",
        )
    return path
