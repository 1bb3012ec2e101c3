from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contourcast.imaging.errors import InputError
from contourcast.training.datasets.splits import (
    FRACTIONS,
    fractions,
    read_patients,
    read_splits,
    write_fraction_splits,
    write_splits,
)

people = st.lists(
    st.text("abcdefg0123", min_size=1, max_size=4), min_size=2, max_size=40, unique=True
)


@st.composite
def cohorts(draw: st.DrawFn) -> dict[str, str]:
    """Two patients or more, with one to four cases each."""
    return {
        f"{patient}_{n}": patient
        for patient in draw(people)
        for n in range(draw(st.integers(1, 4)))
    }


def written(folder: Path) -> list[dict[str, list[str]]]:
    splits: list[dict[str, list[str]]] = json.loads((folder / "splits_final.json").read_text())
    return splits


@given(cohort=cohorts(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_every_case_validates_once_and_no_patient_stands_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory,
    cohort: dict[str, str],
    seed: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("splits")
    count = len(set(cohort.values()))
    folds = data.draw(st.integers(2, count))
    write_splits(folder, cohort, seed=seed, folds=folds)
    splits = written(folder)
    assert len(splits) == folds
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(cohort)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(cohort)
        assert not {cohort[c] for c in fold["train"]} & {cohort[c] for c in fold["val"]}
        assert count // folds <= len({cohort[c] for c in fold["val"]}) <= -(-count // folds)
    assert read_splits(folder / "splits_final.json", cohort) == splits


@given(patients=people, seed=st.integers(0, 2**32 - 1))
def test_fractions_are_nested_and_leave_somebody_aside(patients: list[str], seed: int) -> None:
    parts = fractions(patients, seed=seed)
    assert tuple(parts) == FRACTIONS
    for smaller, larger in pairwise(FRACTIONS):
        assert set(parts[smaller]) <= set(parts[larger])
    assert set(parts[80]) < set(patients)
    assert parts[16]
    for share, part in parts.items():
        assert abs(len(part) - len(patients) * share / 100) <= 1
    assert fractions(sorted(patients), seed=seed) == parts, "the order of the list says nothing"


def test_another_seed_draws_others() -> None:
    patients = [f"p{n:02d}" for n in range(40)]
    assert fractions(patients, seed=1) != fractions(patients, seed=2)
    assert [len(part) for part in fractions(patients, seed=1).values()] == [6, 13, 19, 26, 32]


@given(cohort=cohorts())
def test_fraction_folds_learn_ever_more_and_validate_on_the_same(
    tmp_path_factory: pytest.TempPathFactory, cohort: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("fractions")
    write_fraction_splits(folder, cohort, seed=3)
    splits = read_splits(folder / "splits_final.json", cohort)
    assert len(splits) == len(FRACTIONS)
    assert all(fold["val"] == splits[0]["val"] and fold["val"] for fold in splits)
    for before, after in pairwise(splits):
        assert set(before["train"]) <= set(after["train"])


def test_a_patient_in_two_parts_is_named(tmp_path: Path) -> None:
    cohort = {"a_1": "anna", "a_2": "anna", "b_1": "bert"}
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a_1", "b_1"], "val": ["a_2"]}]))
    with pytest.raises(InputError, match="patient anna stands in two parts, train and val"):
        read_splits(path, cohort)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a list of folds"),
        ('[{"train": ["a_1"]}]', "not a list of folds"),
        ('[{"train": ["a_1"], "val": "b_1"}]', "not a list of folds"),
        ('[{"train": ["a_1"], "val": ["c_1"]}]', "names the case c_1"),
    ],
)
def test_a_broken_split_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_splits(path, {"a_1": "anna", "b_1": "bert"})


@pytest.mark.parametrize("folds", [0, 1, 3])
def test_patients_are_not_dealt_to_more_folds_than_there_are(tmp_path: Path, folds: int) -> None:
    with pytest.raises(InputError, match=f"2 patients cannot be dealt to {folds} folds"):
        write_splits(tmp_path, {"a_1": "anna", "b_1": "bert"}, seed=1, folds=folds)
    assert not list(tmp_path.iterdir())


def test_one_patient_cannot_be_parted() -> None:
    with pytest.raises(InputError, match="1 patients cannot be parted"):
        fractions(["anna", "anna"], seed=1)


@pytest.mark.parametrize("text", [None, "[]", '{"a": 1}', "{"])
def test_a_list_of_patients_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "patients.json").write_text(text)
    with pytest.raises(InputError, match=r"patients\.json"):
        read_patients(tmp_path)
