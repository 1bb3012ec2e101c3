"""What a network is fitted on: virtual patients as samples, straight from the simulation.

A curriculum is a small TOML file, so that a checkpoint's data can be made again:

```toml
seed = 1
fractions = 3            # scans of each patient
phantoms = 30            # each a CT, and a patient, of its own

[shares]                 # of patients, by recipe; the others are of clinic-1
smooth = 0.3
"clinic-2" = 0.25

[[ct]]                   # a real CT, from which patients are grown
name = "4D-Lung 113"     # two patients of one name never stand in two splits
folder = "lung_planning_ct/ct"
structures = "lung_planning_ct/rs/rs.dcm"
roi = "Tumor_c40"
graft_sides = [1, 2]     # lungs free of disease: 1 right, 2 left
patients = 8
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.distance import carry, distance_map
from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.resample import Moved
from contourcast.imaging.volume import Volume
from contourcast.models.seen import Seen
from contourcast.simulation.anatomy import LEFT, RIGHT, Anatomy
from contourcast.simulation.courses import MANUFACTURER
from contourcast.simulation.fraction import fraction
from contourcast.simulation.patient import virtual_patient
from contourcast.simulation.phantom import phantom
from contourcast.simulation.real_ct import anatomy_of_ct
from contourcast.simulation.recipe import Recipe, Sampling, recipe_named
from contourcast.training.datasets.nifti import read_nifti
from contourcast.training.samples import SampleSettings, make_sample, save_sample

# Coarser than a course on disk: samples are resampled to 2.5 mm anyway.
SAMPLING: Final = Sampling(
    planning_spacing_xyz_mm=(2.0, 2.0, 3.0), cbct_spacing_xyz_mm=(2.0, 2.0, 2.5)
)
# Patients differ by more than one recipe says: variety is what a network learns from.
USUAL: Final = "clinic-1"
DIFFICULTY_RANGE: Final = (0.4, 1.1)  # round the calibrated 0.632 (docs/calibration.md)
REGRESSION_RANGE: Final = (0.5, 1.4)
FIRST_WEEK, LAST_WEEK = 1.0, 7.0


@dataclass(frozen=True, kw_only=True)
class CtSource:
    """A CT and how many patients are grown from it.

    Attributes:
        folder: Its DICOM slices, or a NIfTI file; None: the phantom of that number.
    """

    name: str
    folder: Path | None = None
    phantom: int | None = None
    structures: Path | None = None
    roi: str = ""
    graft_sides: tuple[int, ...] = (RIGHT, LEFT)
    patients: int = 1

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.phantom is None):
            raise InputError(f"the CT '{self.name}' needs either a folder or a phantom's number")


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Who is simulated.

    Attributes:
        shares: Of patients, by recipe; the others are of the usual one.
    """

    seed: int
    fractions: int
    phantoms: int = 0
    cts: tuple[CtSource, ...] = ()
    shares: Mapping[str, float] = field(default_factory=lambda: {"smooth": 0.15})

    def __post_init__(self) -> None:
        for name in self.shares:
            recipe_named(name)
        if min(self.shares.values(), default=0.0) < 0 or sum(self.shares.values()) > 1:
            raise InputError(
                "the recipes' shares of the patients are below zero, or more than all of them",
                remedy="give shares from 0 to 1 with a sum of at most 1",
            )

    @property
    def size(self) -> int:
        """How many samples it makes."""
        return self.fractions * (self.phantoms + sum(ct.patients for ct in self.cts))


def read_curriculum(path: Path, data: Path) -> Curriculum:
    """Reads a curriculum; its folders are relative to ``data``.

    Raises:
        InputError: It is not such a file.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        cts = tuple(
            CtSource(
                **{
                    key: data / value if key in ("folder", "structures") else value
                    for key, value in ct.items()
                }
            )
            for ct in document.pop("ct", [])
        )
        return Curriculum(**document, cts=cts)
    except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
        raise InputError(
            f"not a curriculum: {error}",
            file=path.name,
            remedy="see the example in the documentation",
        ) from error


def build_curriculum(
    curriculum: Curriculum,
    out: Path,
    settings: SampleSettings,
    *,
    part: tuple[int, int] = (0, 1),
    on_sample: Callable[[str], None] = lambda name: None,
) -> None:
    """Makes the samples that are not there yet.

    The prior is carried by the true motion of the bones; how wrong a registration is comes with
    the augmentation.

    Args:
        curriculum: Who is simulated.
        out: Where the samples go, one file each.
        settings: Their grid.
        part: ``(k, n)``: every n-th patient from the k-th on, for work in several processes.
        on_sample: Told the name of each.
    """
    for number, (name, grow) in enumerate(_anatomies(curriculum)):
        if number % part[1] != part[0]:
            continue
        names = [
            f"patient-{number:03d}-fraction-{n:02d}" for n in range(1, curriculum.fractions + 1)
        ]
        if all((out / f"{n}.npz").exists() for n in names):
            continue
        rng = np.random.default_rng((curriculum.seed, number))
        try:
            patient = virtual_patient(
                grow(),
                recipe=_recipe(curriculum.shares, rng),
                sampling=SAMPLING,
                seed=(curriculum.seed, number),
            )
            prior = distance_map(patient.prior, grid=patient.planning_ct.grid)
            for n, sample_name in enumerate(names, 1):
                week = float(rng.uniform(FIRST_WEEK, LAST_WEEK))
                day = fraction(patient, week=week, number=n)
                sample = make_sample(
                    day.cbct,
                    carry(prior, day.truth.motion.rigid, onto=day.cbct.grid),
                    day.truth.label,
                    planning_ct=Moved(
                        volume=patient.planning_ct, moving_from_fixed=day.truth.motion.rigid
                    ),
                    name=sample_name,
                    patient=f"patient-{number:03d}",
                    ct=name,
                    settings=settings,
                )
                save_sample(out, replace(sample, seen=_simulated(day.cbct)))
                on_sample(sample_name)
        except ContourcastError as error:  # a CT without a place for this tumour: no such patient
            on_sample(f"patient-{number:03d} left out: {error.cause}")


def _simulated(cbct: Volume) -> Seen:
    """What the scan was; its maker is the simulation, as in courses on disk."""
    return replace(Seen.of(cbct), manufacturers=(MANUFACTURER,))


def _recipe(shares: Mapping[str, float], rng: np.random.Generator) -> Recipe:
    drawn, name = rng.uniform(), USUAL
    for other, share in shares.items():
        if 0 <= drawn < share:
            name = other
        drawn -= share
    return replace(
        recipe_named(name),
        difficulty=float(rng.uniform(*DIFFICULTY_RANGE)),
        regression=float(rng.uniform(*REGRESSION_RANGE)),
    )


def _anatomies(curriculum: Curriculum) -> Iterator[tuple[str, Callable[[], Anatomy]]]:
    """The CT's name and how to get it, for each patient; a real CT is read once."""
    spacing = SAMPLING.planning_spacing_xyz_mm
    for ct in curriculum.cts:
        kept: list[Anatomy] = []

        def grow(ct: CtSource = ct, kept: list[Anatomy] = kept) -> Anatomy:
            if not kept:
                kept.append(read_anatomy(ct, spacing))
            return kept[0]

        for _ in range(ct.patients):
            yield ct.name, grow
    for n in range(curriculum.phantoms):
        number = 1000 * curriculum.seed + n
        yield f"phantom {number}", partial(phantom, seed=number, spacing_xyz_mm=spacing)


def read_anatomy(ct: CtSource, spacing_xyz_mm: tuple[float, float, float]) -> Anatomy:
    """A CT as an anatomy to grow patients from.

    Raises:
        ContourcastError: It cannot be read, or is no thorax.
    """
    if ct.folder is None:
        return phantom(seed=ct.phantom or 0, spacing_xyz_mm=spacing_xyz_mm)
    volume = _read_ct(ct.folder)
    drawn = read_structure_set(ct.structures).roi(ct.roi) if ct.structures and ct.roi else None
    return anatomy_of_ct(
        volume,
        name=ct.name,
        spacing_xyz_mm=spacing_xyz_mm,
        drawn=drawn,
        graft_sides=tuple(ct.graft_sides),
    )


def _read_ct(place: Path) -> Volume:
    if place.is_dir():
        return read_ct_series(place, role="planning CT")
    image = read_nifti(place, role="planning CT")
    return Volume(
        values=image.values.astype(np.float32),
        grid=image.grid,
        frame_of_reference=derived_uid(image.sha256, "frame of reference"),
    )
