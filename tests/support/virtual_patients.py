"""Virtual patients with one scan each, and what the scan shows: those of the acceptance's size."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from contourcast.imaging.volume import Mask
from contourcast.propagate import Case
from contourcast.service.acceptance.fixed import FIXED
from contourcast.service.jobs.inputs import read_case
from contourcast.simulation.courses import simulate_course
from contourcast.simulation.patient import GTV_NAME
from contourcast.simulation.phantom import phantom
from contourcast.simulation.recipe import recipe_named
from contourcast.simulation.truth import load_truth


@functools.cache
def phantom_course(seed: int) -> tuple[Case, Mask]:
    """One in the third week, with the tumour that grew in it; and the label of that day."""
    sampling = FIXED.sampling
    with tempfile.TemporaryDirectory() as folder:
        simulate_course(
            Path(folder),
            recipe=recipe_named("clinic-1"),
            anatomy=phantom(seed=seed, spacing_xyz_mm=sampling.planning_spacing_xyz_mm),
            fractions=(3.0,),
            seed=1,
            patient_number=1,
            sampling=sampling,
            physics="image",
        )
        course = Path(folder) / "patient-001"
        case = read_case(
            planning_ct=course / "planning-ct",
            structures=course / "structures.dcm",
            cbct=course / "fraction-01",
            roi=GTV_NAME,
        )
        return case, load_truth(course / "truth" / "fraction-01.json").label
