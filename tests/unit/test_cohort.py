from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contourcast.simulation.recipe import CLINIC_1
from contourcast.training import cohort
from contourcast.training.cohort import Cohort, generate
from support.virtual import TINY, tiny_thorax

TWO = Cohort(recipe=CLINIC_1, patients=2, fractions=1, seed=5, sampling=TINY, first_phantom=3)


def test_a_cohort_has_its_patients_and_keeps_those_that_are_there(tmp_path: Path) -> None:
    heard: list[str] = []
    folders = generate(tmp_path, TWO, processes=1, on_step=lambda s, done: heard.append(s))
    assert [f.name for f in folders] == ["patient-001", "patient-002"]
    assert all((f / "truth" / "fraction-01.npz").is_file() for f in folders)
    assert len(heard) == 2
    before = (folders[0] / "structures.dcm").stat().st_mtime_ns
    generate(tmp_path, TWO, processes=1)
    assert (folders[0] / "structures.dcm").stat().st_mtime_ns == before


def test_real_cts_and_phantoms_take_turns_by_the_share_asked_for() -> None:
    real = [tiny_thorax(3), tiny_thorax(4)]
    half = replace(TWO, patients=8, phantom_share=0.5)
    taken = [cohort._anatomy_for(half, n, real) for n in range(1, 9)]
    assert sum(isinstance(a, int) for a in taken) == 4
    assert {a.name for a in taken if not isinstance(a, int)} == {"phantom-3", "phantom-4"}


def test_each_phantom_patient_has_a_thorax_of_their_own() -> None:
    every = replace(TWO, patients=5)
    taken = [cohort._anatomy_for(every, n, []) for n in range(1, 6)]
    assert len(set(taken)) == 5


def test_weeks_run_from_two_to_seven() -> None:
    assert replace(TWO, fractions=6).weeks() == (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
