"""elastix, from outside: a job in a private folder, a child process, a B-spline back.

The child may crash, hang or eat memory; all of that ends here, as a MethodError that says how.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from contourcast.imaging.errors import MethodError
from contourcast.imaging.grid import frozen_array
from contourcast.registration import elastix_child
from contourcast.registration.settings import BSplineSettings, DeformableSettings

CHILD: Final = (sys.executable, "-m", elastix_child.__name__)
LOG_LINES: Final = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two scans on one even grid, with the part of it that is to be matched.

    Attributes:
        fixed: Today, ``[z, y, x]``.
        moving: The planning CT, already where the rigid registration puts it, ``[z, y, x]``.
        region: Where the fixed scan is sampled.
        moving_observed: Where the moving scan is known.
    """

    fixed: Float[np.ndarray, "z y x"]
    moving: Float[np.ndarray, "z y x"]
    region: Bool[np.ndarray, "z y x"]
    moving_observed: Bool[np.ndarray, "z y x"]
    spacing_mm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BSpline:
    """A cubic B-spline, in the pair's own axes (first voxel at the origin).

    Attributes:
        coefficients_xyz_mm: Of the control points, shape (3, z, y, x).
        version: Of the program that found it.
    """

    coefficients_xyz_mm: Float[np.ndarray, "3 z y x"]
    spacing_xyz_mm: Float[np.ndarray, " 3"]
    origin_xyz_mm: Float[np.ndarray, " 3"]
    version: str

    def __post_init__(self) -> None:
        for name in ("coefficients_xyz_mm", "spacing_xyz_mm", "origin_xyz_mm"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))

    def displacement(
        self, shape_zyx: tuple[int, int, int], spacing_mm: float
    ) -> Float[np.ndarray, "z y x 3"]:
        """The vectors (x, y, z), mm, at the voxels of the pair."""
        z, y, x = (
            _basis(
                (np.arange(shape_zyx[2 - axis]) * spacing_mm - self.origin_xyz_mm[axis])
                / self.spacing_xyz_mm[axis],
                self.coefficients_xyz_mm.shape[3 - axis],
            )
            for axis in (2, 1, 0)
        )
        vectors: np.ndarray = np.einsum(
            "dkji,zk,yj,xi->zyxd", self.coefficients_xyz_mm, z, y, x, optimize=True
        )
        return vectors


def _basis(place: Float[np.ndarray, " n"], knots: int) -> Float[np.ndarray, "n knots"]:
    """Weight of each control point at each place, counted in control points."""
    t = np.abs(place[:, None] - np.arange(knots))
    weights: np.ndarray = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6)
    return weights


def run_elastix(
    pair: Pair,
    bspline: BSplineSettings,
    settings: DeformableSettings,
    *,
    method: str,
    program: Sequence[str] = CHILD,
) -> BSpline:
    """The B-spline that takes points of the fixed scan to the moving scan.

    Args:
        pair: What to match.
        bspline: How.
        settings: Threads and limits of the child.
        method: Name for errors.
        program: What is started, with the job's folder as its last argument.

    Raises:
        MethodError: The child failed; the end of its log is attached as a note.
    """
    try:
        return _run(pair, bspline, settings, method=method, program=program)
    except OSError as error:
        raise MethodError(
            f"{method} failed: elastix could not be given its job ({error.strerror})",
            remedy="check the space that is left for temporary files (TMPDIR)",
        ) from error


def _run(
    pair: Pair,
    bspline: BSplineSettings,
    settings: DeformableSettings,
    *,
    method: str,
    program: Sequence[str],
) -> BSpline:
    with tempfile.TemporaryDirectory(prefix="contourcast-elastix-") as name:
        folder = Path(name)
        _write(folder, pair, bspline, settings)
        log = folder / "log.txt"
        threads = str(settings.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads,
        }
        try:
            with log.open("wb") as output:
                code = subprocess.run(
                    [*program, name],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    timeout=settings.wall_limit_s,
                    check=False,
                ).returncode
        except subprocess.TimeoutExpired:
            raise _failed(
                method,
                f"elastix did not end within {settings.wall_limit_s:g} s",
                "raise the wall limit of deformable registration, or leave this method out",
                log,
            ) from None
        if code == elastix_child.ELASTIX_IS_MISSING:
            raise _failed(
                method, "elastix is not installed", "pip install contourcast[baselines]", log
            )
        if code != 0:
            raise _failed(
                method, f"elastix {_ending(code)}", "see the end of its log with this error", log
            )
        with np.load(folder / elastix_child.RESULT, allow_pickle=False) as result:
            return BSpline(
                coefficients_xyz_mm=result["coefficients_xyz_mm"],
                spacing_xyz_mm=result["spacing_xyz_mm"],
                origin_xyz_mm=result["origin_xyz_mm"],
                version=f"itk-elastix {result['version']}",
            )


def _write(
    folder: Path, pair: Pair, bspline: BSplineSettings, settings: DeformableSettings
) -> None:
    job = asdict(bspline) | {
        "spacing_mm": pair.spacing_mm,
        "threads": settings.threads,
        "wall_limit_s": settings.wall_limit_s,
        "memory_limit_gib": settings.memory_limit_gib,
    }
    (folder / elastix_child.JOB).write_text(json.dumps(job))
    np.save(folder / elastix_child.FIXED, pair.fixed.astype(np.float32))
    np.save(folder / elastix_child.MOVING, pair.moving.astype(np.float32))
    np.save(folder / elastix_child.FIXED_MASK, pair.region.astype(np.uint8))
    np.save(folder / elastix_child.MOVING_MASK, pair.moving_observed.astype(np.uint8))


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _failed(method: str, what: str, remedy: str, log: Path) -> MethodError:
    error = MethodError(f"{method} failed: {what}", remedy=remedy)
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    error.add_note("\n".join(["the end of its log:", *lines]))
    return error
