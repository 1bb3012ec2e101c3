"""Scans with a DICOM identity, and rings to draw on them.

scan = make_scan(uneven_grid())                       # a Volume whose source says where it is
ring(scan, 10.0, 5.0)                                 # a Roi: a disc with a hole on each slice
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from contourcast.imaging.dicom.ct_series_out import series_source
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.grid import Grid
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.volume import Volume

DRAWN_AT = datetime(2026, 1, 3, 10, 15, 0, tzinfo=UTC)
PHANTOM = Patient(
    name="Contourcast^Phantom 001", patient_id="CONTOURCAST-001", birth_date="19600101", sex="O"
)


def _turned(axis: int, degrees: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    turn: np.ndarray = Rotation.from_rotvec(np.eye(3)[axis] * np.radians(degrees)).as_matrix()
    return turn


def _grid(direction: np.ndarray, *, offsets: Sequence[float], spacing: tuple[float, float]) -> Grid:
    rows, columns = 100, 120
    corner = -0.5 * np.array([columns * spacing[0], rows * spacing[1], 2 * offsets[2]])
    return Grid(
        shape_zyx=(len(offsets), rows, columns),
        spacing_xy_mm=spacing,
        origin_xyz_mm=direction @ corner + [12.34567, -200.123456, 484.910003662109],
        direction=direction,
        offsets_z_mm=np.array(offsets) - offsets[0],
    )


EVEN = (0.0, 3.0, 6.0, 9.0, 12.0)
SQUARE = (0.97, 0.97)
GRIDS = {
    "plain": _grid(np.eye(3), offsets=EVEN, spacing=SQUARE),
    "non-square pixels": _grid(np.eye(3), offsets=EVEN, spacing=(0.8, 1.7)),
    "uneven slices": _grid(np.eye(3), offsets=(0.0, 3.0, 5.0, 9.25, 12.0), spacing=SQUARE),
    "oblique 0.0017": _grid(_turned(0, np.degrees(0.0017)), offsets=EVEN, spacing=SQUARE),
    "oblique 20 degrees": _grid(_turned(0, 20) @ _turned(1, -9), offsets=EVEN, spacing=SQUARE),
    "prone": _grid(np.diag([-1.0, -1.0, 1.0]), offsets=EVEN, spacing=SQUARE),
    "feet first": _grid(np.diag([-1.0, 1.0, -1.0]), offsets=EVEN, spacing=SQUARE),
    "decubitus": _grid(
        np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), offsets=EVEN, spacing=SQUARE
    ),
    "sagittal planes": _grid(
        np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]), offsets=EVEN, spacing=SQUARE
    ),
}


def make_scan(grid: Grid = GRIDS["plain"], *, name: str = "cbct", study: str = "study") -> Volume:
    """A scan of noise, of the phantom patient."""
    rng = np.random.default_rng(len(name))
    volume = Volume(
        values=np.rint(rng.normal(0, 300, grid.shape_zyx)),
        grid=grid,
        frame_of_reference=derived_uid(name, "frame"),
    )
    source = series_source(
        volume,
        digest=name,
        patient=PHANTOM,
        study=Study(
            instance_uid=derived_uid(study, "study"),
            date="20260103",
            time="090000",
            study_id="1",
            accession_number="A1",
        ),
        series_description=name,
        series_date="20260103",
        series_time="090100",
        manufacturer="Contourcast",
        model="phantom",
        body_part="CHEST",
    )
    return replace(volume, source=source)


def circle(grid: Grid, k: int, radius_mm: float, *, at_mm: tuple[float, float] = (0, 0)) -> Contour:
    """A polygon of 120 corners on slice k, about the middle of the slice."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False) + 0.01
    i, j, _ = grid.direction.T
    rows, columns = grid.shape_zyx[1:]
    middle = grid.world([[columns / 2, rows / 2, k]])[0] + at_mm[0] * i + at_mm[1] * j
    return Contour(
        points_xyz_mm=middle + radius_mm * (np.cos(angle)[:, None] * i + np.sin(angle)[:, None] * j)
    )


def ring(
    scan: Volume,
    *radii_mm: float,
    number: int = 1,
    name: str = "GTV",
    slices: Sequence[int] = (1, 2, 3),
) -> Roi:
    """Circles within circles on some slices: every second one is the edge of a hole."""
    return Roi(
        number=number,
        name=name,
        contours=tuple(circle(scan.grid, k, r) for k in slices for r in radii_mm),
        frame_of_reference=scan.frame_of_reference,
        interpreted_type="GTV",
        generation_algorithm="AUTOMATIC",
        description=f"{name}, drawn by a formula",
    )
