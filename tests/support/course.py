"""A course so small that a whole propagation takes seconds: one planning CT, its GTV, one CBCT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set, uid

SHAPE_ZYX = (24, 64, 64)
SPACING_XYZ_MM = (5.0, 5.0, 5.0)
TUMOUR_XYZ_MM = np.array([-70.0, 10.0, 0.0])
TUMOUR_RADIUS_MM = 20.0
PATIENT_NAME = "ZZQQ-LEAK^Phantom"


@dataclass(frozen=True, kw_only=True)
class CourseFiles:
    """What is on disk, and the shift of the patient on the CBCT."""

    planning_ct: CtFiles
    cbct: CtFiles
    structures: Path
    structures_uid: str
    shift_xyz_mm: np.ndarray

    @property
    def paths(self) -> list[Path]:
        """Every file."""
        return [*self.planning_ct.paths, *self.cbct.paths, self.structures]


def make_course(
    folder: Path,
    *,
    shift_xyz_mm: tuple[float, float, float] = (7.0, -4.0, 6.0),
    seed: int = 0,
    name: str = "tiny",
) -> CourseFiles:
    """Writes the course; the same arguments give the same bytes."""
    shift = np.array(shift_xyz_mm)
    planning = make_ct_series(
        folder / "ct",
        thorax_hu(np.zeros(3), noise_hu=10.0, seed=seed),
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=origin_xyz_mm(),
        name=f"{name}-ct",
        change=_named,
    )
    cbct = make_ct_series(
        folder / "cbct",
        thorax_hu(shift, noise_hu=25.0, seed=seed + 1),
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=origin_xyz_mm(),
        name=f"{name}-cbct",
        change=_cone_beam,
    )
    z_mm = planning.positions_xyz_mm[:, 2] - TUMOUR_XYZ_MM[2]
    loops = [
        disc((*TUMOUR_XYZ_MM[:2], TUMOUR_XYZ_MM[2] + z), float(np.sqrt(TUMOUR_RADIUS_MM**2 - z**2)))
        for z in z_mm[np.abs(z_mm) < TUMOUR_RADIUS_MM]
    ]
    structures = make_structure_set(
        folder / "structures.dcm",
        {"GTV": loops},
        reference=planning,
        name=f"{name}-rs",
        change=lambda dataset: _named(dataset, 0),
    )
    return CourseFiles(
        planning_ct=planning,
        cbct=cbct,
        structures=structures,
        structures_uid=uid(f"{name}-rs instance"),
        shift_xyz_mm=shift,
    )


def thorax_hu(shift_xyz_mm: np.ndarray, *, noise_hu: float, seed: int) -> np.ndarray:
    """A body with two lungs, a spine, ribs and a tumour, moved as one; whole HU, [z, y, x]."""
    x, y, z = _world() - shift_xyz_mm[:, None, None, None]
    hu = np.full(SHAPE_ZYX, -1000.0)

    def fill(inside: np.ndarray, value: float) -> None:
        hu[inside] = value

    fill((x / 140) ** 2 + (y / 100) ** 2 < 1, 30.0)
    for side in (-1, 1):
        fill(((x - side * 65) / 48) ** 2 + ((y - 5) / 70) ** 2 + (z / 130) ** 2 < 1, -800.0)
    fill((x / 18) ** 2 + ((y - 65) / 18) ** 2 < 1, 400.0)
    between = (x / 18) ** 2 + ((y - 65) / 18) ** 2 < 1
    fill(between & (np.cos(z / 5.0) > 0.6), 120.0)
    shell = np.abs(np.sqrt((x / 130) ** 2 + (y / 90) ** 2) - 1) < 0.06
    fill(shell & (np.cos((z + 0.3 * y) / 6.0) > 0.2), 600.0)
    center = TUMOUR_XYZ_MM[:, None, None, None]
    away = np.linalg.norm(np.stack((x, y, z)) - center, axis=0)
    fill(away < TUMOUR_RADIUS_MM, 40.0)
    noise = np.random.default_rng(seed).normal(0.0, noise_hu, SHAPE_ZYX)
    return np.rint(hu + noise).astype(np.int16)


def _world() -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE_ZYX), indexing="ij")
    origin = origin_xyz_mm()
    return np.stack([origin[a] + SPACING_XYZ_MM[a] * v for a, v in enumerate((x, y, z))])


def origin_xyz_mm() -> tuple[float, float, float]:
    """The first voxel, so that the middle of the volume is at zero."""
    nz, ny, nx = SHAPE_ZYX
    x, y, z = (-(n - 1) / 2 * s for n, s in zip((nx, ny, nz), SPACING_XYZ_MM, strict=True))
    return x, y, z


def _cone_beam(dataset: FileDataset, number: int) -> None:
    _named(dataset, number)
    dataset.SeriesDescription = "CBCT"


def _named(dataset: FileDataset, _: int) -> None:
    dataset.PatientName = PATIENT_NAME
    dataset.PatientID = "ZZQQ-LEAK-ID"
    dataset.SeriesDescription = "ZZQQ-LEAK description"
