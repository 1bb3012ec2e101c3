"""A patient's course: one planning CT with its structure set, and small CBCTs, a day apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from support.course import (
    SPACING_XYZ_MM,
    TUMOUR_RADIUS_MM,
    TUMOUR_XYZ_MM,
    origin_xyz_mm,
    thorax_hu,
)
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set, uid


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is on disk of one patient."""

    patient: str
    planning_ct: CtFiles
    structures: Path
    structures_uid: str
    fractions: tuple[CtFiles, ...]

    @property
    def plan_paths(self) -> list[Path]:
        """Planning CT and structure set."""
        return [*self.planning_ct.paths, self.structures]

    @property
    def paths(self) -> list[Path]:
        """Every file."""
        return [*self.plan_paths, *(p for f in self.fractions for p in f.paths)]


def make_treatment(
    folder: Path, *, patient: str = "A", fractions: int = 2, seed: int = 0
) -> Treatment:
    """Writes a course; the same arguments give the same bytes.

    Args:
        folder: Where.
        patient: ID, and part of every UID.
        fractions: How many CBCTs, on consecutive days.
        seed: Of noise and shifts.
    """
    planning, structures = make_replan(
        folder, patient=patient, ct_day="20251215", day="20251216", seed=seed, name=patient
    )
    generator = np.random.default_rng(seed)
    return Treatment(
        patient=patient,
        planning_ct=planning,
        structures=structures,
        structures_uid=uid(f"{patient}-rs instance"),
        fractions=tuple(
            make_ct_series(
                folder / f"fraction-{number:02d}",
                thorax_hu(generator.uniform(-6, 6, 3), noise_hu=25.0, seed=seed + number),
                spacing_xyz_mm=SPACING_XYZ_MM,
                origin_xyz_mm=origin_xyz_mm(),
                name=f"{patient}-cbct-{number}",
                change=_of(patient, f"202601{4 + number:02d}", "CBCT"),
            )
            for number in range(1, fractions + 1)
        ),
    )


def make_replan(
    folder: Path, *, patient: str, ct_day: str, day: str, seed: int, name: str
) -> tuple[CtFiles, Path]:
    """Writes a planning CT, and the structure set that was drawn on it.

    Args:
        folder: Where.
        patient: ID.
        ct_day: When the CT was taken, DA.
        day: When the structures were drawn, DA.
        seed: Of the noise.
        name: Seed of the UIDs.
    """
    planning = make_ct_series(
        folder / "ct",
        thorax_hu(np.zeros(3), noise_hu=10.0, seed=seed),
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=origin_xyz_mm(),
        name=f"{name}-ct",
        change=_of(patient, ct_day, "planning"),
    )
    z_mm = planning.positions_xyz_mm[:, 2] - TUMOUR_XYZ_MM[2]
    loops = [
        disc((*TUMOUR_XYZ_MM[:2], TUMOUR_XYZ_MM[2] + z), float(np.sqrt(TUMOUR_RADIUS_MM**2 - z**2)))
        for z in z_mm[np.abs(z_mm) < TUMOUR_RADIUS_MM]
    ]
    of_plan = _of(patient, day, "plan")

    def drawn(dataset: FileDataset) -> None:
        of_plan(dataset, 0)
        dataset.StructureSetDate, dataset.StructureSetTime = day, "100000"

    structures = make_structure_set(
        folder / "structures.dcm",
        {"GTV": loops},
        reference=planning,
        name=f"{name}-rs",
        change=drawn,
    )
    return planning, structures


def _of(patient: str, day: str, description: str) -> Callable[[FileDataset, int], None]:
    def change(dataset: FileDataset, _: int) -> None:
        dataset.PatientName, dataset.PatientID = f"Phantom^{patient}", f"ID-{patient}"
        dataset.PatientBirthDate = "19500102"
        dataset.SeriesDescription = description
        dataset.StudyDate = dataset.SeriesDate = day
        dataset.StudyTime = dataset.SeriesTime = "081500"

    return change
