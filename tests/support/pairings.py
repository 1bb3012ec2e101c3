"""Right and wrong pairings of scans, of which no wrong one may ever be accepted."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Quality
from contourcast.imaging.volume import Volume
from contourcast.propagate import prior_mask
from contourcast.registration.quality import assess
from contourcast.registration.rigid import register_all
from contourcast.registration.settings import RegistrationSettings
from support.real_scans import CBCTS, PLANNING_CTS, flipped, scan, slices
from support.virtual_cbct import CBCT_FRAME, ball, cone_beam, moved_series, random_motion
from support.virtual_patients import phantom_course

LUNG, PANCREAS = "4D-Lung 113", "Pancreatic-CT-CBCT-SEG 001"
REAL = {PANCREAS: "Pancreatic-CT-CBCT-SEG 001 CBCT", LUNG: "4D-Lung 113 simulated CBCT"}
# Places of the planning CT that its CBCT shows: the middle of the field, by eye.
IN_VIEW = {PANCREAS: (-11.0, 72.0, 276.0), LUNG: (30.0, 85.0, -945.0)}
# Virtual patients of one build, whose bones nearly fit each other's.
PHANTOMS = range(600_001, 600_011)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """One question to the registration.

    Attributes:
        kind: Such as ``other patient``; ``correct`` for right ones.
        name: Which scans.
        answer: Gives the quality, or raises a named error.
    """

    kind: str
    name: str
    answer: Callable[[RegistrationSettings], Quality]

    @property
    def correct(self) -> bool:
        """Whether it ought to be accepted."""
        return self.kind.startswith("correct")


def virtual(name: str, *, seed: int, longest_mm: float = 30.0, widest_deg: float = 5.0) -> Volume:
    """A quick cone beam of that planning CT, moved by a motion within set-up errors."""
    cbct, _ = virtual_with_truth(name, seed=seed, longest_mm=longest_mm, widest_deg=widest_deg)
    return cbct


@functools.cache
def virtual_with_truth(
    name: str, *, seed: int, longest_mm: float, widest_deg: float
) -> tuple[Volume, RigidTransform]:
    """The cone beam, and ``planning_from_cbct``."""
    ct = scan(name)
    generator = np.random.default_rng([zlib.crc32(name.encode()), seed])
    center = body_center(ct)
    truth = random_motion(
        generator,
        center_xyz_mm=center,
        longest_mm=longest_mm,
        widest_deg=widest_deg,
        source_frame=CBCT_FRAME,
        target_frame=ct.frame_of_reference,
    )
    cbct = cone_beam(
        ct,
        truth,
        generator=generator,
        center_xyz_mm=truth.inverse().apply(center[None])[0],
        radius_mm=float(generator.choice([125.0, 150.0, 200.0])),
        length_mm=min(160.0, float(np.ptp(ct.grid.corners_xyz_mm[:, 2])) - 30.0),
        spacing_mm=3.0,
    )
    return cbct, truth


def body_center(ct: Volume) -> np.ndarray:
    """Mean position of what is denser than lung."""
    k, j, i = np.nonzero(ct.values[::4, ::4, ::4] > -300)
    center: np.ndarray = ct.grid.world([[4 * i.mean(), 4 * j.mean(), 4 * k.mean()]])[0]
    return center


def registered(
    fixed: Volume, moving: Volume, prior_xyz_mm: np.ndarray | None = None
) -> Callable[[RegistrationSettings], Quality]:
    """Asks with a round prior, in the middle of the planning CT when no place is given."""

    def answer(settings: RegistrationSettings) -> Quality:
        place = body_center(moving) if prior_xyz_mm is None else prior_xyz_mm
        prior = ball(moving, place, radius_mm=15)
        return register_all(fixed=fixed, moving=moving, prior=prior, settings=settings).quality

    return answer


def displaced(
    fixed: Volume, moving: Volume, truth: RigidTransform, wrong: RigidTransform
) -> Callable[[RegistrationSettings], Quality]:
    """Asks for the judgement of an answer that is off by a known motion, nothing optimised."""

    def answer(settings: RegistrationSettings) -> Quality:
        return assess(
            fixed=fixed,
            moving=moving,
            planning_from_cbct=truth @ wrong,
            prior=ball(moving, body_center(moving), radius_mm=15),
            settings=settings,
        )

    return answer


def correct(seeds: int) -> Iterator[Pairing]:
    """Every CT with virtual cone beams of its own; the two courses with their CBCTs, moved."""
    for name in PLANNING_CTS:
        for seed in range(seeds):
            yield Pairing(
                kind="correct, virtual",
                name=f"{name}, draw {seed}",
                answer=registered(virtual(name, seed=seed), scan(name)),
            )
    for name, cbct in REAL.items():
        for seed in range(seeds):
            fixed = scan(cbct)
            generator = np.random.default_rng(seed)
            motion = random_motion(
                generator,
                center_xyz_mm=body_center(fixed),
                longest_mm=20,
                widest_deg=4,
                source_frame=fixed.frame_of_reference,
                target_frame=CBCT_FRAME,
            )
            yield Pairing(
                kind="correct, " + ("real" if name == PANCREAS else "simulated"),
                name=f"{cbct}, moved {seed}",
                answer=registered(moved_series(fixed, motion), scan(name), np.array(IN_VIEW[name])),
            )

    for seed in PHANTOMS:
        yield Pairing(
            kind="correct, phantom",
            name=f"phantom {seed} with its own scan",
            answer=_with_scan_of(seed, seed),
        )


def wrong() -> Iterator[Pairing]:
    """Everything that may go wrong and must be seen."""
    yield from _other_patients()
    yield from _flips()
    yield from _regions()
    yield from _broken()
    yield from _displaced()
    yield from _phantoms()


def _fixed() -> Iterator[tuple[str, str, Volume]]:
    """Name of the scan, name of its own planning CT, the scan."""
    for name in PLANNING_CTS:
        yield f"virtual cone beam of {name}", name, virtual(name, seed=100)
    for name, cbct in REAL.items():
        yield cbct, name, scan(cbct)


def _other_patients() -> Iterator[Pairing]:
    for fixed_name, own, fixed in _fixed():
        for name in PLANNING_CTS:
            if name != own:
                yield Pairing(
                    kind="other patient",
                    name=f"{fixed_name} with {name}",
                    answer=registered(_centred(fixed, scan(name)), scan(name)),
                )


def _phantoms() -> Iterator[Pairing]:
    """Each of them under two others' names."""
    for step in (1, 3):
        for place, seed in enumerate(PHANTOMS):
            other = PHANTOMS[(place + step) % len(PHANTOMS)]
            yield Pairing(
                kind="other phantom",
                name=f"phantom {seed} with the scan of {other}",
                answer=_with_scan_of(seed, other),
            )


def _with_scan_of(seed: int, other: int) -> Callable[[RegistrationSettings], Quality]:
    def answer(settings: RegistrationSettings) -> Quality:
        own, scanned = phantom_course(seed)[0], phantom_course(other)[0]
        return register_all(
            fixed=scanned.cbct, moving=own.planning_ct, prior=prior_mask(own), settings=settings
        ).quality

    return answer


def _flips() -> Iterator[Pairing]:
    for fixed_name, own, fixed in _fixed():
        for axis, way in enumerate(("head-feet", "front-back", "left-right")):
            yield Pairing(
                kind=f"flipped {way}",
                name=f"{fixed_name} with its own CT, flipped {way}",
                answer=registered(fixed, flipped(scan(own), axis)),
            )


def _regions() -> Iterator[Pairing]:
    """The planning CT ends where the CBCT begins, or holds less than 30 % of its field."""
    for fixed_name, own, fixed in _fixed():
        ct = scan(own)
        z = ct.grid.origin_xyz_mm[2] + ct.grid.offsets_z_mm
        ends = fixed.grid.corners_xyz_mm[:, 2]
        field = [202.9, 379.9] if fixed_name.startswith(PANCREAS) else [ends.min(), ends.max()]
        quarter = (field[1] - field[0]) / 4
        for part, keep in (
            ("its upper rest", z > field[1] - quarter),
            ("its lower rest", z < field[0] + quarter),
        ):
            inside = np.flatnonzero(keep)
            if len(inside) >= 3:
                yield Pairing(
                    kind="less than 30 % overlap",
                    name=f"{fixed_name} with {part}",
                    answer=registered(fixed, slices(ct, int(inside[0]), int(inside[-1]) + 1)),
                )


def _broken() -> Iterator[Pairing]:
    fixed, moving = virtual(LUNG, seed=100), scan(LUNG)
    for what, value in (("constant", 0.0), ("not a number", np.nan)):
        for which in ("CBCT", "planning CT"):
            f, m = (
                replace(
                    v,
                    values=np.where(
                        np.arange(v.values.size).reshape(v.values.shape) % 2
                        if np.isnan(value)
                        else True,
                        value,
                        v.values,
                    ),
                )
                if which == role
                else v
                for v, role in ((fixed, "CBCT"), (moving, "planning CT"))
            )
            yield Pairing(kind=what, name=f"{which} is {what}", answer=registered(f, m))


def _displaced() -> Iterator[Pairing]:
    """10 mm or 5° away from the truth."""
    for name in PLANNING_CTS:
        fixed, truth = virtual_with_truth(name, seed=100, longest_mm=30, widest_deg=5)
        center = truth.inverse().apply(body_center(scan(name))[None])[0]
        for axis in range(3):
            unit = (1, -1, 1)[axis] * np.eye(3)[axis]
            for kind, shift, turn in (
                ("10 mm off, not optimised", 10 * unit, np.zeros(3)),
                ("5° off, not optimised", np.zeros(3), np.radians(5) * unit),
            ):
                off = RigidTransform.about(
                    center,
                    rotation=Rotation.from_rotvec(turn).as_matrix(),
                    translation_xyz_mm=shift,
                    source_frame=CBCT_FRAME,
                    target_frame=CBCT_FRAME,
                )
                yield Pairing(
                    kind=kind,
                    name=f"{name}, along {'xyz'[axis]}",
                    answer=displaced(fixed, scan(name), truth, off),
                )


def _centred(fixed: Volume, moving: Volume) -> Volume:
    """Laid over the other patient, so that the coordinates give nothing away."""
    shift = moving.grid.center_xyz_mm - fixed.grid.center_xyz_mm
    return replace(fixed, grid=replace(fixed.grid, origin_xyz_mm=fixed.grid.origin_xyz_mm + shift))


__all__ = ["CBCTS", "Pairing", "correct", "virtual", "virtual_with_truth", "wrong"]
