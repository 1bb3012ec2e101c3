"""A whole course as a department has it: planning CT, structure set, plan, one CBCT a fraction.

```
OUT/patient-001/planning-ct/*.dcm   structures.dcm   plan.dcm   fraction-01/*.dcm  …
OUT/patient-001/truth/patient.json  fraction-01.json  fraction-01.npz   …   for evaluation alone
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.dicom.ct_series_out import Acquisition, series_source, write_ct_series
from contourcast.imaging.dicom.rtplan_out import write_plan
from contourcast.imaging.dicom.rtstruct_out import Approval, write_structure_set
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.volume import Volume
from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.fraction import Physics, fraction, fraction_digest
from contourcast.simulation.patient import GTV_NAME, VirtualPatient, virtual_patient
from contourcast.simulation.recipe import RECIPE_VERSION, Recipe, Sampling
from contourcast.simulation.truth import save_truth

FIRST_PLAN: Final = datetime(2025, 1, 6, 9, 30, tzinfo=UTC)  # any working day: dates are invented
FRACTIONS_PLANNED: Final = 30  # over seven weeks; not all of them need be simulated
PLAN_TO_TREATMENT: Final = timedelta(days=10)
MANUFACTURER: Final = "Contourcast (simulated)"
PHYSICIAN: Final = "Simulated^Physician"
DIGITS: Final = 8  # of the digest in a patient's ID: patients of one seed, of unlike recipes or CTs

OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""


def simulate_course(
    out: Path,
    *,
    recipe: Recipe,
    anatomy: Anatomy,
    fractions: Sequence[float],
    seed: int,
    patient_number: int,
    sampling: Sampling | None = None,
    physics: Physics = "auto",
    on_step: OnStep = lambda sentence, done: None,
) -> None:
    """Writes one patient's course; the same arguments write the same bytes.

    The folder of the patient is there whole or not at all; one that is there is left alone.

    Args:
        out: Where ``patient-NNN`` is made.
        recipe: What happens to the patient.
        anatomy: What the patient is grown from, on the sampling's planning spacing.
        fractions: The week of treatment (0 to 7) of each fraction, in order.
        seed: Of the cohort.
        patient_number: Tells patients of one seed apart.
        sampling: Spacings and sizes; None: the usual.
        physics: How cone beams are made: ``auto`` takes projections where itk-rtk is installed.
        on_step: Told of progress.

    Raises:
        InputError: The CT has no place for a tumour, or itk-rtk is asked for and missing.
    """
    folder = out / f"patient-{patient_number:03d}"
    if folder.exists():
        return
    part = out / f".{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        _write_course(
            part, recipe, anatomy, fractions, seed, patient_number, sampling, physics, on_step
        )
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    on_step(f"patient {patient_number}: done", 1.0)


def _write_course(
    folder: Path,
    recipe: Recipe,
    anatomy: Anatomy,
    fractions: Sequence[float],
    seed: int,
    patient_number: int,
    sampling: Sampling | None,
    physics: Physics,
    on_step: OnStep,
) -> None:
    on_step(f"patient {patient_number}: planning CT", 0.0)
    patient = virtual_patient(
        anatomy, recipe=recipe, sampling=sampling or Sampling(), seed=(seed, patient_number)
    )
    person = Patient(
        name=f"Virtual^Patient {patient_number:03d}",
        patient_id=f"VP-{seed}-{patient_number:03d}-{patient.digest[:DIGITS]}",
        sex="O",
    )
    planned_at = FIRST_PLAN + timedelta(days=patient_number % 300)
    planned = max(FRACTIONS_PLANNED, len(fractions))
    _write_plan(folder, patient, person, planned_at, fractions=planned)
    _write_patient_truth(folder / "truth" / "patient.json", patient, seed, fractions)
    for number, week in enumerate(fractions, 1):
        on_step(f"patient {patient_number}: fraction {number}", number / (len(fractions) + 1))
        scanned_at = (
            planned_at + PLAN_TO_TREATMENT + timedelta(days=round(7 * week), hours=number % 7)
        )
        _write_fraction(folder, patient, person, number, week, scanned_at, physics)


def _write_plan(
    folder: Path,
    patient: VirtualPatient,
    person: Patient,
    planned_at: datetime,
    *,
    fractions: int,
) -> None:
    planning_ct = _identified(
        patient.planning_ct,
        patient.digest,
        person,
        role="planning CT",
        description="Thorax planning CT",
        at=planned_at,
    )
    source = write_ct_series(
        folder / "planning-ct", planning_ct, acquisition=Acquisition(kvp=120.0, kernel="SOFT")
    )
    structures_uid = write_structure_set(
        folder / "structures.dcm",
        rois=patient.rois,
        reference=replace(planning_ct, source=source),
        label="PLAN",
        series_description="Planning structures",
        digest=patient.digest,
        drawn_at=planned_at + timedelta(days=1),
        approval=Approval(status="APPROVED", reviewer=PHYSICIAN, at=planned_at + timedelta(days=2)),
    )
    write_plan(
        folder / "plan.dcm",
        source=source,
        frame_of_reference=planning_ct.frame_of_reference,
        structure_set_uid=structures_uid,
        fractions=fractions,
        label="PLAN",
        digest=patient.digest,
        planned_at=planned_at + timedelta(days=3),
        approval=Approval(status="APPROVED", reviewer=PHYSICIAN, at=planned_at + timedelta(days=4)),
    )


def _write_fraction(
    folder: Path,
    patient: VirtualPatient,
    person: Patient,
    number: int,
    week: float,
    scanned_at: datetime,
    physics: Physics,
) -> None:
    role = f"fraction {number}"
    digest = fraction_digest(patient, week=week, number=number, physics=physics)
    day = fraction(
        patient,
        week=week,
        number=number,
        series_uid=derived_uid(digest, role),
        physics=physics,
    )
    cbct = _identified(
        day.cbct,
        digest,
        person,
        role=role,
        description=f"Thorax CBCT, fraction {number}",
        at=scanned_at,
    )
    write_ct_series(
        folder / f"fraction-{number:02d}",
        cbct,
        acquisition=Acquisition(
            kvp=125.0, kernel="HANN", diameter_mm=patient.sampling.field_diameter_mm
        ),
    )
    save_truth(day.truth, folder / "truth", f"fraction-{number:02d}")


def _identified(
    volume: Volume,
    digest: str,
    person: Patient,
    *,
    role: str,
    description: str,
    at: datetime,
) -> Volume:
    """The volume with an identity in DICOM: its own study, series, date."""
    date, time = at.strftime("%Y%m%d"), at.strftime("%H%M%S")
    study = Study(
        instance_uid=derived_uid(digest, f"{role}, study"),
        date=date,
        time=time,
        study_id=role[:16],
        description=description,
    )
    source = series_source(
        volume,
        digest=digest,
        patient=person,
        study=study,
        role=role,
        series_description=description,
        series_date=date,
        series_time=time,
        manufacturer=MANUFACTURER,
        body_part="CHEST",
    )
    return replace(volume, source=source)


def _write_patient_truth(
    path: Path, patient: VirtualPatient, seed: int, fractions: Sequence[float]
) -> None:
    document = {
        "recipe_version": RECIPE_VERSION,
        "recipe": asdict(patient.recipe),
        "sampling": asdict(patient.sampling),
        "seed": seed,
        "patient_seed": list(patient.seed),
        "ct": patient.anatomy.name,
        "roi_name": GTV_NAME,
        "weeks": list(fractions),
        "place": patient.lesion.place,
        "gtv_cc": patient.gtv.volume_cc,
        "prior_cc": patient.prior_mask.volume_cc,
        "airless_cc": float(
            ((patient.lesion.airless_depth_mm > 0) & patient.lesion.seen).sum()
            * float(np.mean(patient.grid.voxel_cc))
        ),
        "generosity_mm": patient.generosity_mm,
        "breathing_peak_to_peak_mm": patient.breathing_mm,
        "planning_phase_fraction": patient.planning_phase,
        "drift_at_diaphragm_week_7_mm": patient.drift_mm,
        "packages": {name: version(name) for name in ("contourcast", "numpy", "scipy", "torch")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
