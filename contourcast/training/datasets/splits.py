"""Who is learned from and who is not: seeded lists by patient, a patient never in two parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.errors import InputError
from contourcast.imaging.files import write_atomically

SPLITS_FILE: Final = "splits_final.json"
PATIENTS_FILE: Final = "patients.json"
# Per cent of the patients that are learned from; the rest of the largest is never learned from
# (the paper's steps and its 80 : 20 split, NETWORKS §12).
FRACTIONS: Final = (16, 32, 48, 64, 80)
PARTS: Final = ("train", "val")


def read_patients(dataset: Path) -> dict[str, str]:
    """Which patient each case of a prepared data set is of.

    Raises:
        InputError: The folder was not prepared, or the file is not such a list.
    """
    path = dataset / PATIENTS_FILE
    document = _json(path, "prepare the data set first: contourcast train prepare")
    if not isinstance(document, dict) or not all(
        isinstance(name, str) and name for entry in document.items() for name in entry
    ):
        raise InputError("not a list of cases and their patients", file=path.name)
    return document


def write_splits(folder: Path, patients: Mapping[str, str], *, seed: int, folds: int) -> None:
    """Writes nnU-Net's ``splits_final.json``: each patient validates in one fold alone.

    Args:
        folder: The preprocessed data set's.
        patients: Which patient each case is of.
        seed: The same one deals the same folds.
        folds: How many.

    Raises:
        InputError: There are fewer patients than folds, or fewer than two folds.
    """
    people = sorted(set(patients.values()))
    if not 2 <= folds <= len(people):
        raise InputError(
            f"{len(people)} patients cannot be dealt to {folds} folds",
            remedy="two folds or more, and no more than there are patients",
        )
    order = np.random.default_rng(seed).permutation(len(people))
    parts = [{people[n] for n in part} for part in np.array_split(order, folds)]
    _write(folder, [_fold(patients, set(people) - part, part) for part in parts])


def write_fraction_splits(folder: Path, patients: Mapping[str, str], *, seed: int) -> None:
    """Writes ``splits_final.json`` whose folds 0 to 4 learn from 16 to 80 % of the patients.

    All of them validate on the same patients: those of no fraction.

    Raises:
        InputError: There are fewer than two patients.
    """
    learned = fractions(sorted(set(patients.values())), seed=seed)
    aside = set(patients.values()) - set(learned[max(learned)])
    _write(folder, [_fold(patients, set(part), aside) for part in learned.values()])


def fractions(patients: Sequence[str], *, seed: int) -> dict[int, tuple[str, ...]]:
    """Per cent to the patients that are learned from; each part holds the smaller ones.

    At least one patient is in every part and at least one in none.

    Args:
        patients: All, in any order; named once each or more often.
        seed: The same one draws the same parts.

    Raises:
        InputError: There are fewer than two patients.
    """
    people = sorted(set(patients))
    if len(people) < 2:
        raise InputError(
            f"{len(people)} patients cannot be parted", remedy="two patients or more are needed"
        )
    order = np.random.default_rng(seed).permutation(len(people))
    drawn = [people[n] for n in order]
    sizes = {
        share: int(np.clip(round(len(people) * share / 100), 1, len(people) - 1))
        for share in FRACTIONS
    }
    return {share: tuple(sorted(drawn[:size])) for share, size in sizes.items()}


def read_splits(path: Path, patients: Mapping[str, str]) -> list[dict[str, list[str]]]:
    """A ``splits_final.json`` of anybody's making, proven to keep patients apart.

    Raises:
        InputError: It is not such a file, names a case that is not in the data set, or has a
            patient on both sides of a fold; names that patient.
    """
    document = _json(path, "make it: contourcast train prepare writes one")
    lists = document if isinstance(document, list) else []
    parts = [fold.get(part) for fold in lists if isinstance(fold, dict) for part in PARTS]
    if not parts or len(parts) != 2 * len(lists) or not all(map(_is_names, parts)):
        raise InputError(
            "not a list of folds, each with 'train' and 'val' lists of cases", file=path.name
        )
    for number, fold in enumerate(lists):
        unknown = sorted({case for part in PARTS for case in fold[part]} - set(patients))
        if unknown:
            raise InputError(
                f"fold {number} names the case {unknown[0]}, which is not in the data set",
                file=path.name,
                remedy="make the splits again for this data set",
            )
        require_apart({part: fold[part] for part in PARTS}, patients, file=path.name)
    return lists


def require_apart(
    parts: Mapping[str, Sequence[str]], patients: Mapping[str, str], *, file: str = ""
) -> None:
    """Refuses a patient who stands in two parts.

    Args:
        parts: Name of each part to its cases.
        patients: Which patient each case is of.
        file: Where the parts come from, for the error.

    Raises:
        InputError: Names the first such patient and the two parts.
    """
    home: dict[str, str] = {}
    for part, cases in parts.items():
        for case in cases:
            patient = patients[case]
            if home.setdefault(patient, part) != part:
                raise InputError(
                    f"patient {patient} stands in two parts, {home[patient]} and {part}",
                    file=file,
                    remedy="keep all cases of a patient in one part",
                )


def _fold(patients: Mapping[str, str], learned: set[str], aside: set[str]) -> dict[str, list[str]]:
    cases = sorted(patients)
    fold = {
        "train": [case for case in cases if patients[case] in learned],
        "val": [case for case in cases if patients[case] in aside],
    }
    require_apart(fold, patients, file=SPLITS_FILE)
    return fold


def _write(folder: Path, splits: list[dict[str, list[str]]]) -> None:
    text = json.dumps(splits, indent=1) + "\n"
    write_atomically(folder / SPLITS_FILE, text.encode())


def _json(path: Path, remedy: str) -> object:
    try:
        document: object = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError("the file is not there", file=path.name, remedy=remedy) from error
    except ValueError as error:
        raise InputError("the file is not JSON", file=path.name, remedy=remedy) from error
    return document


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
