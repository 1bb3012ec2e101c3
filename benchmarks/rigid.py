"""Rigid registration: seconds, memory and error beside itk-elastix and SimpleITK, in one run.

    python -m benchmarks.rigid [--only speed accuracy inverse courses] [--cases 3] [--draws 20]

Speed: virtual cone beams (2 mm, tests/support) of the full planning CT of 4D-Lung patient 113,
|t| <= 10 mm and <= 3 degrees, so that peers without a search of starts converge too. Each solver
is a process of its own and reads the same files; seconds count from images in memory to the
transform. The peers are given our field-of-view mask for nothing. Ours is all of `register_all`:
field of view, starts, body, translation, target and verdict.

Accuracy: `--draws` cone beams with |t| <= 40 mm and up to 8 degrees about each axis.

Inverse: from A to B against from B to A, the distance from where one began, over a cube of 16 cm:
cone beams as above, a real CBCT, the simulated one, two phases of a 4DCT, two CTs of one lung.

Courses (only when named): virtual patients whose lungs breathe and drift against their bones, on
the CTs of docs/unseen.toml; the error against their set-up, by the whole field and by that half
of it that one motion explains best.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

SOLVERS = ("contourcast", "elastix", "simpleitk")
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # idle threads spin
PARTS = ("speed", "accuracy", "inverse", "courses")
CENTER = np.array([29.4, 86.5, -944.1])  # the middle of the simulated CBCT's field


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--courses", type=int, default=8, metavar="FRACTIONS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--solve", nargs=2, metavar=("SOLVER", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.solve:
        print(json.dumps(_solve(*arguments.solve, threads=arguments.threads)))
        return
    if "speed" in arguments.only and arguments.cases:
        _speed(arguments.cases, arguments.threads)
    if "accuracy" in arguments.only and arguments.draws:
        _accuracy(arguments.draws)
    if "inverse" in arguments.only:
        _inverse()
    if "courses" in arguments.only:
        _courses(arguments.courses)


def _speed(cases: int, threads: int) -> None:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SOLVERS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(cases):
            case = Path(folder) / f"{number}.npz"
            _write_case(case, number)
            for name in SOLVERS:
                command = [sys.executable, __file__, "--solve", name, str(case)]
                done = subprocess.run(
                    [*command, "--threads", str(threads)],
                    capture_output=True,
                    text=True,
                    env=os.environ | dict.fromkeys(POOLS, str(threads)),
                )
                if done.returncode:
                    raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
                rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    print("| solver | wall s | CPU s | ours / this, CPU | memory MiB | errors mm |")
    print("|---" * 6 + "|")
    ours = np.median([row["cpu_s"] for row in rows["contourcast"]])
    for name, measured in rows.items():
        middle = {key: np.median([row[key] for row in measured]) for key in measured[0]}
        errors = ", ".join(f"{row['error_mm']:.2f}" for row in measured)
        print(
            f"| {name} | {middle['wall_s']:.1f} | {middle['cpu_s']:.1f} "
            f"| {ours / middle['cpu_s']:.2f} | {middle['memory_mib']:.0f} | {errors} |"
        )


def _accuracy(draws: int) -> None:
    from contourcast.registration.rigid import register_all
    from contourcast.registration.settings import RegistrationSettings
    from support.pairings import LUNG, virtual_with_truth
    from support.real_scans import scan
    from support.virtual_cbct import ball, target_errors_mm

    ct = scan(LUNG)
    errors, verdicts, seconds = [], [], []
    for seed in range(draws):
        cbct, truth = virtual_with_truth(LUNG, seed=1000 + seed, longest_mm=40, widest_deg=8)
        began = time.process_time()
        found = register_all(
            fixed=cbct,
            moving=ct,
            prior=ball(ct, CENTER, radius_mm=15),
            settings=RegistrationSettings(),
        )
        seconds.append(time.process_time() - began)
        center = truth.inverse().apply(CENTER[None])[0]
        errors.append(
            target_errors_mm(found.body.planning_from_cbct, truth, center_xyz_mm=center).mean()
        )
        verdicts.append(str(found.quality.verdict))
    print(
        f"{draws} draws: error mean {np.mean(errors):.3f}, worst {max(errors):.3f} mm; "
        f"{sum(e < 1 for e in errors)} below 1 mm; accepted {verdicts.count('accept')}; "
        f"{np.median(seconds):.1f} s CPU each"
    )


def _inverse() -> None:
    from support.round_trips import round_trips

    print("| pair | mean mm | worst mm |")
    print("|---" * 3 + "|")
    for name, errors_mm in round_trips():
        print(f"| {name} | {errors_mm.mean():.3f} | {errors_mm.max():.3f} |", flush=True)


def _courses(fractions: int) -> None:
    from contourcast.registration.rigid import register_all
    from contourcast.registration.settings import RegistrationSettings
    from contourcast.simulation.fraction import fraction
    from contourcast.simulation.patient import virtual_patient
    from contourcast.simulation.recipe import Sampling, recipe_named
    from contourcast.training.calibrate import CalibrationSettings, cases_of
    from contourcast.training.curriculum import read_anatomy, read_curriculum
    from support.data import REPOSITORY, data_item
    from support.virtual_cbct import target_errors_mm

    folder, _ = (data_item(name).parent for name in ("lung_ct_dx", "lung_ct_r01"))
    curriculum = read_curriculum(REPOSITORY / "docs" / "unseen.toml", folder)
    sampling = Sampling().coarse
    anatomies = [read_anatomy(ct, sampling.planning_spacing_xyz_mm) for ct in curriculum.cts[:4]]
    usual = RegistrationSettings()
    everything = replace(usual.rigid.consensus, share=1.0)
    ways = {
        "the whole field": replace(usual, rigid=replace(usual.rigid, consensus=everything)),
        "its agreeing half": usual,
    }
    errors: dict[str, list[float]] = {name: [] for name in ways}
    cases = cases_of(anatomies, CalibrationSettings(seed=curriculum.seed))[:fractions]
    for case in cases:
        patient = virtual_patient(
            case.anatomy, recipe=recipe_named("clinic-1"), sampling=sampling, seed=case.seed
        )
        day = fraction(patient, week=case.week, number=case.number)
        for name, settings in ways.items():
            body = register_all(
                fixed=day.cbct,
                moving=patient.planning_ct,
                prior=patient.prior_mask,
                settings=settings,
            ).body
            off = target_errors_mm(
                body.planning_from_cbct,
                day.truth.motion.rigid,
                center_xyz_mm=body.center_xyz_mm,
            )
            errors[name].append(float(off.mean()))
    print(f"set-up of {len(cases)} fractions, decided by | mean mm | worst mm |")
    for name, found in errors.items():
        print(f"| {name} | {np.mean(found):.3f} | {max(found):.3f} |")


def _write_case(path: Path, seed: int) -> None:
    from contourcast.imaging.dicom.ct_series import read_ct_series
    from contourcast.registration.field_of_view import depth_at, depth_in_view
    from contourcast.registration.pyramid import full_resolution
    from contourcast.registration.settings import FieldOfViewSettings
    from support.data import data_item
    from support.virtual_cbct import CBCT_FRAME, cone_beam, random_motion

    ct = read_ct_series(data_item("lung_planning_ct") / "ct")
    generator = np.random.default_rng(seed)
    truth = random_motion(
        generator,
        center_xyz_mm=CENTER,
        longest_mm=10,
        widest_deg=3,
        source_frame=CBCT_FRAME,
        target_frame=ct.frame_of_reference,
    )
    cbct = cone_beam(
        ct,
        truth,
        generator=generator,
        center_xyz_mm=truth.inverse().apply(CENTER[None])[0],
        radius_mm=200,
        length_mm=170,
        spacing_mm=2.0,
    )
    full = full_resolution(cbct, device="cpu")
    settings = FieldOfViewSettings()
    mask = depth_at(depth_in_view(full, settings), full) >= settings.erosion_mm
    np.savez(
        path,
        fixed=cbct.values,
        fixed_spacing=cbct.grid.spacing_xyz_mm,
        fixed_origin=cbct.grid.origin_xyz_mm,
        moving=ct.values,
        moving_spacing=ct.grid.spacing_xyz_mm,
        moving_origin=ct.grid.origin_xyz_mm,
        mask=mask.numpy(),
        truth=truth.matrix,
        center=truth.inverse().apply(CENTER[None])[0],
    )


def _solve(solver: str, case: str, *, threads: int) -> dict[str, float]:
    """One registration in this process: seconds, memory above the images, error."""
    arrays = dict(np.load(case))
    run = {"contourcast": _ours, "elastix": _elastix, "simpleitk": _simpleitk}[solver]
    before: list[float] = []
    began: list[tuple[float, float]] = []

    def start() -> None:
        before.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        began.append((time.perf_counter(), time.process_time()))

    matrix = run(arrays, threads, start)
    wall, cpu = time.perf_counter() - began[0][0], time.process_time() - began[0][1]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    side = np.linspace(-80, 80, 5)
    cube = np.array([[a, b, c] for a in side for b in side for c in side]) + arrays["center"]
    off = cube @ (matrix[:3, :3] - arrays["truth"][:3, :3]).T + (matrix - arrays["truth"])[:3, 3]
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "memory_mib": after - before[0],
        "error_mm": float(np.linalg.norm(off, axis=1).mean()),
    }


def _ours(arrays: dict[str, np.ndarray], threads: int, start: Callable[[], None]) -> np.ndarray:
    import torch

    from contourcast.imaging.grid import Grid
    from contourcast.imaging.volume import Volume
    from contourcast.registration.rigid import register_all
    from contourcast.registration.settings import RegistrationSettings
    from support.virtual_cbct import ball

    torch.set_num_threads(threads)
    fixed, moving = (
        Volume(
            values=arrays[name],
            grid=Grid.even(
                shape_zyx=arrays[name].shape,
                spacing_xyz_mm=arrays[f"{name}_spacing"].tolist(),
                origin_xyz_mm=arrays[f"{name}_origin"],
            ),
            frame_of_reference=name,
        )
        for name in ("fixed", "moving")
    )
    prior = ball(moving, CENTER, radius_mm=25)
    start()
    found = register_all(fixed=fixed, moving=moving, prior=prior, settings=RegistrationSettings())
    return found.body.planning_from_cbct.matrix


def _elastix(arrays: dict[str, np.ndarray], threads: int, start: Callable[[], None]) -> np.ndarray:
    """Rigid, correlation, 250 iterations, 4000 samples, 3 levels."""
    import itk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)

    def image(name: str, spacing: str, kind: type) -> object:
        made = itk.image_from_array(np.ascontiguousarray(arrays[name], kind))
        made.SetSpacing([float(s) for s in arrays[f"{spacing}_spacing"]])
        made.SetOrigin([float(o) for o in arrays[f"{spacing}_origin"]])
        return made

    fixed, moving = image("fixed", "fixed", np.float32), image("moving", "moving", np.float32)
    mask = image("mask", "fixed", np.uint8)
    parameters = itk.ParameterObject.New()
    rigid = itk.ParameterObject.GetDefaultParameterMap("rigid", 3)
    rigid["Metric"] = ["AdvancedNormalizedCorrelation"]
    rigid["MaximumNumberOfIterations"] = ["250"]
    rigid["NumberOfSpatialSamples"] = ["4000"]
    rigid["WriteResultImage"] = ["false"]
    parameters.AddParameterMap(rigid)
    start()
    method = itk.ElastixRegistrationMethod.New(fixed, moving)
    method.SetParameterObject(parameters)
    method.SetFixedMask(mask)
    method.LogToConsoleOff()
    method.UpdateLargestPossibleRegion()
    result = method.GetTransformParameterObject().GetParameterMap(0)
    values = np.array(result["TransformParameters"], float)
    center = np.array(result["CenterOfRotationPoint"], float)
    transform = itk.Euler3DTransform[itk.D].New()
    transform.SetCenter(center)
    transform.SetComputeZYX(result.get("ComputeZYX", ["false"])[0] == "true")
    transform.SetParameters(itk.OptimizerParameters[itk.D](list(values)))
    return _matrix(
        itk.array_from_matrix(transform.GetMatrix()), np.array(transform.GetOffset(), float)
    )


def _simpleitk(
    arrays: dict[str, np.ndarray], threads: int, start: Callable[[], None]
) -> np.ndarray:
    """Mattes MI, gradient descent, physical-shift scales, 2 % samples, 3 levels, 100 iterations."""
    sitk: Any = importlib.import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)

    def image(name: str, spacing: str, kind: type) -> Any:
        made = sitk.GetImageFromArray(np.ascontiguousarray(arrays[name], kind))
        made.SetSpacing([float(s) for s in arrays[f"{spacing}_spacing"]])
        made.SetOrigin([float(o) for o in arrays[f"{spacing}_origin"]])
        return made

    fixed, moving = image("fixed", "fixed", np.float32), image("moving", "moving", np.float32)
    mask = image("mask", "fixed", np.uint8)
    start()
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(c) for c in arrays["center"]])
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.02, 1)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(1.0, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    center, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    return _matrix(rotation, center - rotation @ center + shift)


def _matrix(rotation: np.ndarray, offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, offset
    return matrix


if __name__ == "__main__":
    main()
