"""The raw data set of nnU-Net v2, there whole or not at all.

```
OUT/Dataset007_Name/imagesTr/CASE_0000.nii.gz  CASE_0001.nii.gz   labelsTr/CASE.nii.gz
OUT/Dataset007_Name/dataset.json  patients.json  provenance.json  splits_final.json
```

Cases are written one by one into a hidden folder beside it, which takes the data set's name when
all are done. A run that was killed goes on there; one that is refused takes it away.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.files import write_atomically
from contourcast.training.datasets import splits
from contourcast.training.datasets.nifti import finite, write_nifti
from contourcast.training.datasets.source import Converted, Found, LeftOut, Pending

FILE_ENDING: Final = ".nii.gz"
# nnU-Net's reader; named, so that it does not try several and take the first that does not fail.
READER: Final = "SimpleITKIO"
PROVENANCE_FILE: Final = "provenance.json"
FORMAT: Final = 1
PACKAGES: Final = ("contourcast", "numpy", "scipy", "nibabel", "pydicom", "torch")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
CASE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
HIGHEST_ID: Final = 999  # nnU-Net writes three digits
CHECKED: Final = 0.05  # of the progress: reading, beside registering
MOST_FOLDS: Final = 5  # nnU-Net's own
SEED: Final = 12345  # nnU-Net's own (utilities/crossval_split.py)

OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""


def dataset_folder(out: Path, dataset_id: int, name: str) -> Path:
    """Where a data set of this number and name is to be made.

    Raises:
        InputError: A number or name that nnU-Net cannot use, or one that is taken.
    """
    if not 1 <= dataset_id <= HIGHEST_ID or not NAME.fullmatch(name):
        raise InputError(
            f"a data set cannot be numbered {dataset_id} and named '{name}'",
            remedy=f"a number from 1 to {HIGHEST_ID}, and letters, digits, '-' and '_'",
        )
    taken = sorted(out.glob(f"Dataset{dataset_id:03d}_*"))
    if taken:
        raise InputError(
            f"number {dataset_id} is taken",
            file=taken[0].name,
            remedy="choose another number, or remove that folder",
        )
    return out / f"Dataset{dataset_id:03d}_{name}"


def write_raw(
    folder: Path,
    found: Found,
    *,
    settings: Mapping[str, Any],
    nested: bool = False,
    on_step: OnStep = lambda sentence, done: None,
) -> Path:
    """Converts every case and writes the data set.

    Args:
        folder: What `dataset_folder` answered.
        found: The cases.
        settings: For the provenance, as plain JSON values; cases that were finished under
            others are made again.
        nested: Whether the folds learn from ever more patients instead of each validating others.
        on_step: Told of each case.

    Returns:
        The folder.

    Raises:
        ContourcastError: A case cannot be used; nothing is left behind.
    """
    _require_names(found)
    part = folder.with_name(f".{folder.name}.part")
    try:
        records = _write_cases(part, found, settings, on_step)
        _write_documents(part / "dataset", found, settings, records)
        _deal(part / "dataset", nested=nested)
    except ContourcastError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    (part / "dataset").rename(folder)
    shutil.rmtree(part)
    on_step(f"{folder.name}: done", 1.0)
    return folder


def summary(dataset: Path) -> str:
    """A line for people on a data set that `write_raw` made."""
    cases = json.loads((dataset / PROVENANCE_FILE).read_text())
    patients = {case["patient"] for case in cases["cases"].values()}
    left_out = f", {len(cases['left_out'])} left out" if cases["left_out"] else ""
    return f"{len(cases['cases'])} cases of {len(patients)} patients{left_out}: {dataset}"


def _require_names(found: Found) -> None:
    if not found.cases:
        raise InputError(
            "there is nothing to learn from: no scan with a label was found"
            + "".join(f"; {name}: {why}" for name, why in list(found.left_out.items())[:1])
        )
    names = [case.name for case in found.cases]
    for name in names:
        if not CASE_NAME.fullmatch(name) or names.count(name) > 1:
            raise InputError(
                f"'{name}' cannot be the name of a case, or is the name of two",
                remedy="rename the folder or file that it comes from",
            )


def _write_cases(
    part: Path, found: Found, settings: Mapping[str, Any], on_step: OnStep
) -> dict[str, dict[str, Any]]:
    """Every case's record; those that an earlier run finished are taken as they are."""
    for folder in ("dataset/imagesTr", "dataset/labelsTr", "cases"):
        (part / folder).mkdir(parents=True, exist_ok=True)
    keys = {case.name: _key(case, settings) for case in found.cases}
    records = _finished(part, keys)
    _sweep(part, set(records))
    pending = [case for case in found.cases if case.name not in records]
    for number, case in enumerate(pending):
        on_step(f"checking {case.name}", CHECKED * number / len(pending))
        case.check()
    for number, case in enumerate(pending):
        on_step(f"converting {case.name}", CHECKED + (1 - CHECKED) * number / len(pending))
        record = {"key": keys[case.name], **_write_case(part / "dataset", case, found)}
        write_atomically(part / "cases" / f"{case.name}.json", json.dumps(record).encode())
        records[case.name] = record
    return {name: records[name] for name in keys}


def _write_case(dataset: Path, case: Pending, found: Found) -> dict[str, Any]:
    converted = case.read()
    if isinstance(converted, LeftOut):
        return {"left_out": converted.reason}
    _require_usable(case.name, converted, found)
    for number, values in enumerate(converted.channels):
        image = dataset / "imagesTr" / f"{case.name}_{number:04d}{FILE_ENDING}"
        write_nifti(image, values, converted.grid)
    label = dataset / "labelsTr" / f"{case.name}{FILE_ENDING}"
    write_nifti(label, converted.label.astype(np.uint8), converted.grid)
    return {
        "patient": case.patient,
        "facts": dict(converted.facts),
        "label_voxels": {
            str(value): int(count)
            for value, count in zip(*np.unique(converted.label, return_counts=True), strict=True)
        },
    }


def _require_usable(name: str, converted: Converted, found: Found) -> None:
    """What nnU-Net would stumble over, or learn nonsense from.

    Raises:
        InputError: Number of channels, sizes, values.
    """
    if len(converted.channels) != len(found.channels):
        raise InputError(
            f"{name}: {len(converted.channels)} channels, and the data set has "
            f"{len(found.channels)}"
        )
    for values in (*converted.channels, converted.label):
        if values.shape != converted.grid.shape_zyx:
            raise InputError(
                f"{name}: an array of {values.shape} does not fit a grid of "
                f"{converted.grid.shape_zyx}"
            )
        finite(values, name, "case")
    strange = sorted(set(np.unique(converted.label).tolist()) - found.known_values)
    if strange:
        raise InputError(
            f"{name}: the label holds {strange[0]:g}, which stands for nothing",
            remedy=f"known are {', '.join(map(str, sorted(found.known_values)))}",
        )


def _write_documents(
    dataset: Path, found: Found, settings: Mapping[str, Any], records: dict[str, dict[str, Any]]
) -> None:
    kept = {name: record for name, record in records.items() if "left_out" not in record}
    left_out = dict(found.left_out) | {
        name: record["left_out"] for name, record in records.items() if "left_out" in record
    }
    if not kept:
        name, reason = next(iter(left_out.items()))
        raise InputError(
            f"there is nothing to learn from: all {len(left_out)} cases were left out, such as "
            f"{name}: {reason}"
        )
    patients = {name: record["patient"] for name, record in kept.items()}
    document = {
        "channel_names": {str(n): channel for n, channel in enumerate(found.channels)},
        "labels": dict(found.labels),
        "numTraining": len(kept),
        "file_ending": FILE_ENDING,
        "overwrite_image_reader_writer": READER,
        "reference": found.citation,
        "converted_by": f"contourcast {_version('contourcast')}",
    }
    if found.regions_class_order:
        document["regions_class_order"] = list(found.regions_class_order)
    provenance = {
        "format": FORMAT,
        "settings": dict(settings),
        "citation": found.citation,
        "versions": {package: _version(package) for package in PACKAGES},
        "cases": {
            name: {key: value for key, value in record.items() if key != "key"}
            for name, record in kept.items()
        },
        "left_out": left_out,
    }
    for file, content in (
        ("dataset.json", document),
        (splits.PATIENTS_FILE, patients),
        (PROVENANCE_FILE, provenance),
    ):
        write_atomically(dataset / file, (json.dumps(content, indent=1) + "\n").encode())


def _deal(dataset: Path, *, nested: bool) -> None:
    """Who is learned from: nnU-Net's planner copies this, or would deal cases, not patients."""
    patients = splits.read_patients(dataset)
    folds = min(MOST_FOLDS, len(set(patients.values())))
    if nested:
        splits.write_fraction_splits(dataset, patients, seed=SEED)
    elif folds > 1:
        splits.write_splits(dataset, patients, seed=SEED, folds=folds)


def _key(case: Pending, settings: Mapping[str, Any]) -> str:
    """What a finished case was made from: settings, version, and the files' sizes and times."""
    stats = [(path.name, path) for path in case.files]
    files = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in stats]
    plain = [FORMAT, _version("contourcast"), case.patient, dict(settings), files]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _finished(part: Path, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Records of an earlier run, where they are of the same: written last, they vouch for files."""
    records = {path.stem: json.loads(path.read_text()) for path in (part / "cases").glob("*.json")}
    return {n: record for n, record in records.items() if keys.get(n) == record.get("key")}


def _sweep(part: Path, finished: set[str]) -> None:
    """Takes away what a run left behind that was killed, or made of something else."""
    numbered = re.compile(r"_\d{4}" + re.escape(FILE_ENDING) + "$")
    for path in sorted((part / "dataset" / "imagesTr").iterdir()):
        if numbered.split(path.name)[0] not in finished:
            path.unlink()
    for path in sorted((part / "dataset" / "labelsTr").iterdir()):
        if path.name.removesuffix(FILE_ENDING) not in finished:
            path.unlink()
    for path in sorted((part / "cases").iterdir()):
        if path.name.removesuffix(".json") not in finished:
            path.unlink()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
