"""Many virtual patients at once: who is grown from which CT, in how many processes.

A CT belongs to one split alone: a phantom's number is its seed, and patients for fitting and for
testing take numbers from different ranges (`Cohort.first_phantom`); real CTs are named by split.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from contourcast.imaging.structures import Roi
from contourcast.imaging.volume import Volume
from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.courses import simulate_course
from contourcast.simulation.fraction import Physics
from contourcast.simulation.phantom import phantom
from contourcast.simulation.real_ct import anatomy_of_ct
from contourcast.simulation.recipe import Recipe, Sampling

OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RealCt:
    """A planning CT to grow patients from.

    Attributes:
        drawn: Its tumour, where a person drew one.
        graft_sides: Lungs free of disease (see Anatomy).
    """

    name: str
    ct: Volume
    drawn: Roi | None = None
    graft_sides: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Which patients are made.

    Attributes:
        patients: How many.
        fractions: CBCTs of each, spread over the weeks of treatment.
        seed: Of all.
        phantom_share: Of patients grown from phantoms, where real CTs are given too.
        first_phantom: Seed of the first phantom; each phantom patient has the next.
        first_patient: Number of the first patient.
    """

    recipe: Recipe
    patients: int
    fractions: int
    seed: int
    phantom_share: float = 0.5
    first_phantom: int = 1000
    first_patient: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    physics: Physics = "image"

    def weeks(self) -> tuple[float, ...]:
        """Weeks 2 to 7 (REGISTRATION §11.1), evenly."""
        return tuple(float(w) for w in np.linspace(2, 7, self.fractions).round(2))


def generate(
    out: Path,
    cohort: Cohort,
    *,
    real_cts: Sequence[RealCt] = (),
    processes: int = 2,
    on_step: OnStep = lambda sentence, done: None,
) -> list[Path]:
    """Writes a cohort's courses in parallel; patients that are there already are kept.

    Returns:
        The patients' folders, in order.

    Raises:
        InputError: A CT has no place for a tumour.
    """
    out.mkdir(parents=True, exist_ok=True)
    anatomies = [
        anatomy_of_ct(
            real.ct,
            name=real.name,
            spacing_xyz_mm=cohort.sampling.planning_spacing_xyz_mm,
            drawn=real.drawn,
            graft_sides=real.graft_sides,
        )
        for real in real_cts
    ]
    numbers = range(cohort.first_patient, cohort.first_patient + cohort.patients)
    if processes <= 1:
        for done, number in enumerate(numbers, 1):
            _one(out, cohort, _anatomy_for(cohort, number, anatomies), number)
            on_step(f"patient {number}", done / cohort.patients)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
            jobs = {
                pool.submit(
                    _one, out, cohort, _anatomy_for(cohort, number, anatomies), number
                ): number
                for number in numbers
            }
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                on_step(f"patient {jobs[job]}", done / cohort.patients)
    return [out / f"patient-{number:03d}" for number in numbers]


def _anatomy_for(cohort: Cohort, number: int, real: Sequence[Anatomy]) -> Anatomy | int:
    """A real anatomy, or the seed of the phantom that the patient is grown from."""
    n = number - cohort.first_patient
    phantoms_before, phantoms_with = (int(m * cohort.phantom_share) for m in (n, n + 1))
    if not real or phantoms_with > phantoms_before:
        return cohort.first_phantom + n
    return real[(n - phantoms_before) % len(real)]


def _one(out: Path, cohort: Cohort, anatomy: Anatomy | int, number: int) -> None:
    if isinstance(anatomy, int):
        anatomy = phantom(seed=anatomy, spacing_xyz_mm=cohort.sampling.planning_spacing_xyz_mm)
    simulate_course(
        out,
        recipe=cohort.recipe,
        anatomy=anatomy,
        fractions=cohort.weeks(),
        seed=cohort.seed,
        patient_number=number,
        sampling=cohort.sampling,
        physics=cohort.physics,
    )


def _one_thread() -> None:
    """Processes share the cores; threads within each would only fight."""
    import torch

    torch.set_num_threads(1)
