"""DIR-T and DIR-L: overlap, landmark errors, folding, seconds, memory and repeatability.

    python -m benchmarks.deformable [--only simulated landmarks inverse] [--repeat]

simulated: the CBCT made from 4D-Lung patient 113 by a known motion, carried by the true rigid
part and by each deformation on top of it. The tissue is the same scan, so a clinic is harder.
landmarks: two breath-hold CTs of one lung with 51 landmarks, after our rigid registration of the
lung. The published B-spline of that pair reaches 1.46 mm, the best rigid fit of the landmarks
themselves 3.58 mm. Two named settings: the default, for a cone beam, and that for breath-hold CT.
inverse: that pair there and back again, each way found anew but for the rigid step: how far from
where one began, over the lung.

Seconds are one thread's; elastix is a child, whose CPU and peak memory are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch

CASES = ("simulated", "landmarks", "inverse")


def main() -> None:
    """Prints a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeat", action="store_true", help="run DIR-T twice and compare")
    parser.add_argument("--wall-limit", type=float, default=300.0, help="s; more on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "simulated" in arguments.only:
        _simulated(repeat=arguments.repeat, wall_limit_s=arguments.wall_limit)
    if "landmarks" in arguments.only:
        _landmarks(wall_limit_s=arguments.wall_limit)
    if "inverse" in arguments.only:
        _inverse(wall_limit_s=arguments.wall_limit)


def _simulated(*, repeat: bool, wall_limit_s: float) -> None:
    from contourcast.imaging.dicom.rtstruct_in import read_structure_set
    from contourcast.imaging.distance import carry, distance_map
    from contourcast.imaging.metrics import dice
    from contourcast.imaging.rasterise import rasterise
    from contourcast.imaging.transform import PointMap, RigidTransform
    from contourcast.imaging.volume import Mask
    from contourcast.registration.deformable import Scene, dir_l, dir_t
    from contourcast.registration.settings import DeformableSettings, RegistrationSettings
    from support.data import data_item
    from support.pairings import LUNG, REAL
    from support.real_scans import scan

    fixed, moving = scan(REAL[LUNG]), scan(LUNG)
    folder = data_item("lung_cbct_simulated")
    rigid = RigidTransform(
        matrix=np.array(json.loads((folder / "truth.json").read_text())["rigid_ct_from_cbct"]),
        source_frame=fixed.frame_of_reference,
        target_frame=moving.frame_of_reference,
    )
    prior = read_structure_set(next((data_item("lung_planning_ct") / "rs").iterdir())).roi(
        "Tumor_c40"
    )
    truth = Mask(
        values=np.load(folder / "truth.npz")["mask_Tumor_c40"],
        grid=fixed.grid,
        frame_of_reference=fixed.frame_of_reference,
    )
    distance = distance_map(prior, grid=moving.grid)
    mask = rasterise(prior, moving.grid)

    def overlap(carried: PointMap) -> float:
        return dice(carry(distance, carried, onto=fixed.grid).mask(), truth)

    def scene() -> Scene:
        return Scene(
            fixed=fixed,
            moving=moving,
            prior=mask,
            planning_from_cbct=rigid,
            settings=RegistrationSettings(deformable=DeformableSettings(wall_limit_s=wall_limit_s)),
        )

    print(
        "| method | DSC | det J min | max d mm | ended as | wall s | CPU s | elastix CPU s | MiB |"
    )
    print("|---" * 9 + "|")
    print(f"| rigid (true) | {overlap(rigid):.3f} | | | | | | | |")
    for name, method in (("dir-t", dir_t), ("dir-l", dir_l)):
        carriage, cost = _measured(partial(method, scene()))
        figure = carriage.quality.figure
        print(
            f"| {name} | {overlap(carriage.planning_from_cbct):.3f} | {figure('jacobian_min'):.2f} "
            f"| {figure('largest_displacement_mm'):.1f} | {carriage.ended_as or name} | {cost} |"
        )
        if repeat and name == "dir-t":
            first, again = carriage.planning_from_cbct, method(scene()).planning_from_cbct
            apart = again.apply(fixed.grid.centers()) - first.apply(fixed.grid.centers())
            print(f"dir-t twice: largest difference {np.abs(apart).max():.4f} mm")


def _landmarks(*, wall_limit_s: float) -> None:
    from contourcast.imaging.transform import DeformableTransform
    from contourcast.registration.deformable import deform
    from contourcast.registration.folding import folding
    from contourcast.registration.settings import DeformableSettings, RegistrationSettings
    from support.landmark_pair import LandmarkPair

    pair = LandmarkPair.read()
    rigid, cost = _measured(partial(pair.rigid, RegistrationSettings()))
    print(
        "| setting | mean / median / 95 % mm | det J min | folded | wall s | CPU | elastix | MiB |"
    )
    print("|---" * 8 + "|")
    print(f"| rigid | {_errors(pair.errors_mm(rigid))} | | | {cost} |")
    for name, settings in (
        ("cone beam (default)", DeformableSettings()),
        ("breath-hold CT", DeformableSettings.for_breath_hold_ct()),
    ):
        scene = pair.scene(rigid, replace(settings, wall_limit_s=wall_limit_s))
        region = pair.region(scene).mask
        (displacement, _), cost = _measured(
            partial(deform, scene, region, settings.dir_l, method=name)
        )
        errors_mm = pair.errors_mm(DeformableTransform(rigid=rigid, displacement=displacement))
        folds = folding(displacement, region)
        print(
            f"| {name}, grid {settings.dir_l.grid_mm:g} mm | {_errors(errors_mm)} "
            f"| {folds.jacobian_min:.2f} | {folds.folded_fraction:.1g} | {cost} |"
        )


def _inverse(*, wall_limit_s: float) -> None:
    from contourcast.imaging.transform import DeformableTransform, RigidTransform
    from contourcast.registration.deformable import deform
    from contourcast.registration.settings import DeformableSettings, RegistrationSettings
    from support.landmark_pair import LandmarkPair

    pair = LandmarkPair.read()
    rigid = pair.rigid(RegistrationSettings())
    k, j, i = (places[::20] for places in np.nonzero(pair.lung.values))
    points = pair.lung.grid.world(np.column_stack((i, j, k)).astype(float))

    def deformed(
        way: LandmarkPair, first: RigidTransform, settings: DeformableSettings
    ) -> DeformableTransform:
        scene = way.scene(first, settings)
        displacement, _ = deform(
            scene, way.region(scene).mask, settings.dir_l, method="there and back"
        )
        return DeformableTransform(rigid=first, displacement=displacement)

    print("| setting | there and back, mean / median / 95 % mm | landmarks on the way back |")
    print("|---" * 3 + "|")
    for name, settings in (
        ("cone beam (default)", DeformableSettings()),
        ("breath-hold CT", DeformableSettings.for_breath_hold_ct()),
    ):
        patient = replace(settings, wall_limit_s=wall_limit_s)
        there = deformed(pair, rigid, patient)
        back = deformed(pair.swapped(), rigid.inverse(), patient)
        missed_mm = np.linalg.norm(back.apply(there.apply(points)) - points, axis=1)
        print(
            f"| {name}, grid {settings.dir_l.grid_mm:g} mm | {_errors(missed_mm)} "
            f"| {_errors(pair.swapped().errors_mm(back))} |",
            flush=True,
        )


def _errors(errors_mm: np.ndarray) -> str:
    return (
        f"{errors_mm.mean():.2f} / {np.median(errors_mm):.2f} / {np.percentile(errors_mm, 95):.2f}"
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a call took; its children's share apart."""

    wall_s: float
    cpu_s: float
    child_cpu_s: float
    child_mib: float

    def __str__(self) -> str:
        return (
            f"{self.wall_s:.0f} | {self.cpu_s:.1f} | {self.child_cpu_s:.1f} | {self.child_mib:.0f}"
        )


def _measured(call: Callable[[], Any]) -> tuple[Any, Cost]:
    wall, cpu, children = time.perf_counter(), time.process_time(), _child_cpu_s()
    with ChildMemory() as memory:
        result = call()
    return result, Cost(
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        child_cpu_s=_child_cpu_s() - children,
        child_mib=memory.peak_mib,
    )


def _child_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class ChildMemory:
    """The largest resident set of any child process, looked up now and then (Linux).

    ``ru_maxrss`` will not do: it begins with what the parent held when it started the child.
    """

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            for task in Path("/proc/self/task").iterdir():
                with suppress(OSError):
                    for child in (task / "children").read_text().split():
                        status = Path(f"/proc/{child}/status").read_text()
                        for peak_kib in status.partition("VmHWM:")[2].split()[:1]:  # none: it ended
                            self.peak_mib = max(self.peak_mib, int(peak_kib) / 1024)


if __name__ == "__main__":
    main()
