"""The fixed set: virtual patients whose truth is known, the same bytes on every machine.

Two patients grown from phantoms, one with the tumour in the left lung and one in the right; each
has a planning CT, a structure set and one CBCT, written as DICOM. Cone beams are simulated in the
image domain, which every installation can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from contourcast.service.acceptance.carried import Files
from contourcast.simulation.courses import simulate_course
from contourcast.simulation.patient import GTV_NAME
from contourcast.simulation.phantom import phantom
from contourcast.simulation.recipe import Sampling, recipe_named
from contourcast.simulation.truth import Truth, load_truth

Side = Literal["left", "right"]
OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""

SEED: Final = 1


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A virtual patient of the set, and what Contourcast reaches on its CBCT.

    Attributes:
        side: The lung that holds the tumour.
        recipe: Of the simulation.
        phantom: Seed of the body; networks of the house are fitted on others (below 500 000).
        week: Of treatment, 0 to 7.
        dsc: By method, against the label of the day; the network's is that of the shipped weights.
    """

    side: Side
    recipe: str
    phantom: int
    week: float
    dsc: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FixedSet:
    """Who is simulated, and how finely.

    Attributes:
        patients: Two, for one is the other's stranger.
        source: Where the expected figures come from.
    """

    patients: tuple[Patient, Patient]
    sampling: Sampling
    source: str

    @property
    def coarsest_mm(self) -> float:
        """The longest side of a voxel, of planning CT and CBCT."""
        return max(*self.sampling.planning_spacing_xyz_mm, *self.sampling.cbct_spacing_xyz_mm)


# Coarser than a clinic's scans by half, so that the whole takes minutes.
FIXED: Final = FixedSet(
    patients=(
        Patient(
            side="left",
            recipe="clinic-2",
            phantom=600_003,
            week=3.0,
            dsc={
                "translation": 0.792,
                "rigid": 0.8,
                "dir-t": 0.913,
                "dir-l": 0.916,
                "diff-umamba": 0.922,
            },
        ),
        Patient(
            side="right",
            recipe="clinic-1",
            phantom=600_009,
            week=3.0,
            dsc={
                "translation": 0.668,
                "rigid": 0.668,
                "dir-t": 0.804,
                "dir-l": 0.753,
                "diff-umamba": 0.839,
            },
        ),
    ),
    sampling=Sampling(planning_spacing_xyz_mm=(2.0, 2.0, 3.0), cbct_spacing_xyz_mm=(2.0, 2.0, 2.5)),
    source="found with this command where it was made: two CPU cores, 2026-11",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A patient of the set, on disk."""

    patient: Patient
    folder: Path
    truth: Truth

    @property
    def name(self) -> str:
        """What checks call it."""
        return f"virtual patient, {self.patient.side} lung"

    @property
    def files(self) -> Files:
        """What it is propagated with."""
        return Files(
            planning_ct=self.folder / "planning-ct",
            structures=self.folder / "structures.dcm",
            cbct=self.folder / "fraction-01",
            roi=GTV_NAME,
        )


def make(fixed: FixedSet, folder: Path, on_step: OnStep) -> tuple[Made, Made]:
    """Writes the set's courses, in the order of the set."""
    first, second = fixed.patients
    one = _made(first, 1, fixed.sampling, folder, on_step)
    return one, _made(second, 2, fixed.sampling, folder, on_step)


def _made(patient: Patient, number: int, sampling: Sampling, folder: Path, on_step: OnStep) -> Made:
    on_step(f"simulating the patient with the tumour in the {patient.side} lung", (number - 1) / 2)
    simulate_course(
        folder,
        recipe=recipe_named(patient.recipe),
        anatomy=phantom(seed=patient.phantom, spacing_xyz_mm=sampling.planning_spacing_xyz_mm),
        fractions=(patient.week,),
        seed=SEED,
        patient_number=number,
        sampling=sampling,
        physics="image",
    )
    course = folder / f"patient-{number:03d}"
    return Made(
        patient=patient, folder=course, truth=load_truth(course / "truth" / "fraction-01.json")
    )
