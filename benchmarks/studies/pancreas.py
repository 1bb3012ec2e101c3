"""Real linac CBCT: does the whole of propagate find the same place from ten directions?

Pancreatic-CT-CBCT-SEG patient 001 (TCIA, CC BY 4.0). The collection delivers its CBCT resampled
onto the planning CT's grid and frame, so it is moved by known random rigid motions and re-headered
with a frame of its own; the answers, brought back through the known motions, must agree.

    python benchmarks/studies/pancreas.py DATA OUT [--seeds 10] [--methods translation,rigid]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.ct_series_out import write_ct_series
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.distance import carry, distance_map
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.resample import resample
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from contourcast.models.predictor import load_network
from contourcast.propagate import ALL_METHODS, NETWORK, Settings, propagate
from contourcast.registration.settings import RegistrationSettings
from contourcast.service.jobs.inputs import read_case
from contourcast.service.outputs.report import write_results

PRIOR, TRUTH = "Stomach_duo_planCT", "Stomach_duo_CBCT"
CUBE_MM = 80.0  # half the extent of the grid that is compared (z: a quarter), in the field of view


def main() -> None:
    """Runs all seeds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", default=",".join(ALL_METHODS))
    parser.add_argument("--focus", default="body", choices=("body", "target"))
    arguments = parser.parse_args()
    item = arguments.data / "pancreas_ct_cbct"
    cbct = read_ct_series(item / "cbct_02", role="CBCT")
    truth = read_structure_set(next((item / "rs_cbct_02").glob("*.dcm"))).roi(TRUTH)
    plan = read_structure_set(next((item / "rs_plan").glob("*.dcm"))).roi(PRIOR)
    print(f"identity: DSC {dice(rasterise(plan, cbct.grid), rasterise(truth, cbct.grid)):.3f}")

    methods = tuple(arguments.methods.split(","))
    network = load_network(None, device="cpu") if NETWORK in methods else None
    settings = Settings(methods=methods, registration=RegistrationSettings(focus=arguments.focus))
    answers, rows = [], []
    for seed in range(arguments.seeds):
        folder = arguments.out / f"{arguments.focus}-{seed:02d}"
        moved, old_from_new = moved_copy(cbct, seed, folder / "cbct")
        case = read_case(
            planning_ct=item / "plan_ct",
            structures=next((item / "rs_plan").glob("*.dcm")),
            cbct=folder / "cbct",
            roi=PRIOR,
        )
        start = time.perf_counter()
        result = propagate(case, settings=settings, network=network, clock=time.perf_counter)
        write_results(result, folder / "run", made_at=datetime.now(UTC))
        seconds = time.perf_counter() - start
        reference = carry(distance_map(truth, grid=cbct.grid), old_from_new, onto=moved.grid).mask()
        answers.append(
            result.registrations.body.planning_from_cbct.matrix @ np.linalg.inv(old_from_new.matrix)
        )
        body = result.registrations.body.quality
        row = {
            "seed": seed,
            "seconds": round(seconds, 1),
            "verdict": result.registrations.quality.verdict.value,
            "near_bone_lncc": body.figure("near_bone_lncc"),
            "lncc": body.figure("lncc"),
            "apart_mm": result.registrations.apart_mm,
            "dsc": {
                d.method: round(dice(d.region.mask(), reference), 3) if d.region else d.failed
                for d in result.drawn
            },
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    report_spread(cbct, answers)


def moved_copy(cbct: Volume, seed: int, folder: Path) -> tuple[Volume, RigidTransform]:
    """The CBCT under a random rigid motion, in a frame of its own, as DICOM in ``folder``."""
    generator = np.random.default_rng(seed)
    direction = generator.normal(size=3)
    shift = direction / np.linalg.norm(direction) * generator.uniform(5.0, 30.0)
    angles = generator.uniform(-5.0, 5.0, 3)
    assert cbct.source is not None
    new_frame = f"{cbct.frame_of_reference[:50]}.{seed + 1}"
    old_from_new = RigidTransform.about(
        cbct.grid.center_xyz_mm,
        rotation=Rotation.from_euler("xyz", angles, degrees=True).as_matrix(),
        translation_xyz_mm=-shift,
        source_frame=new_frame,
        target_frame=cbct.frame_of_reference,
    )
    grid = Grid(
        shape_zyx=cbct.grid.shape_zyx,
        spacing_xy_mm=cbct.grid.spacing_xy_mm,
        origin_xyz_mm=cbct.grid.origin_xyz_mm + shift,
        direction=cbct.grid.direction,
        offsets_z_mm=cbct.grid.offsets_z_mm,
    )
    moved = resample(cbct, old_from_new, onto=grid)
    moved = replace(
        moved,
        frame_of_reference=new_frame,
        source=replace(
            cbct.source,
            series_instance_uid=f"{cbct.source.series_instance_uid[:50]}.{seed + 1}",
            slices=tuple(
                replace(
                    s,
                    sop_instance_uid=f"{s.sop_instance_uid[:50]}.{seed + 1}.{k}",
                    position_xyz_mm=grid.world([[0, 0, k]])[0],
                )
                for k, s in enumerate(cbct.source.slices)
            ),
        ),
    )
    write_ct_series(folder, moved)
    return moved, old_from_new


def report_spread(cbct: Volume, answers: list[np.ndarray]) -> None:
    """How far each answer is from the median answer, over a grid in the field of view."""
    side = np.linspace(-1.0, 1.0, 5)
    grid = np.array([[x, y, z / 2] for x in side for y in side for z in side])
    points = cbct.grid.center_xyz_mm + CUBE_MM * grid
    places = np.stack([points @ m[:3, :3].T + m[:3, 3] for m in answers])
    away = np.linalg.norm(places - np.median(places, axis=0), axis=2)
    mean, worst = away.mean(axis=1), away.max(axis=1)
    print(f"distance from the median answer, mean over the grid, mm: {mean.round(2).tolist()}")
    print(f"worst corner, mm: {worst.round(2).tolist()}")
    inside = f"{(mean <= 1.5).sum()} of {len(mean)} (worst corner: {(worst <= 1.5).sum()})"
    print(f"within 1.5 mm: {inside}")


if __name__ == "__main__":
    main()
