"""Data sets as people have them on the disk, brought into the form that nnU-Net v2 trains on.

A source is one file with a function ``find(folder, options)`` and one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Final

from contourcast.imaging.errors import InputError
from contourcast.imaging.structures import nearest_name
from contourcast.training.datasets.nifti import load_nibabel
from contourcast.training.datasets.nnunet_raw import OnStep, dataset_folder, write_raw
from contourcast.training.datasets.source import Found, Options

__all__ = ["SOURCES", "Options", "Source", "prepare", "source_named"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where data come from.

    Attributes:
        home: Module in this package with its ``find``.
        about: A line for people.
        takes: Options that mean something to it.
        usual: Its own values, where an option is not given.
    """

    home: str
    about: str
    takes: frozenset[str] = frozenset()
    usual: Options = field(default_factory=Options)

    def find(self, folder: Path, options: Options) -> Found:
        """The data set that lies in a folder.

        Raises:
            ContourcastError: It is not such a folder, or something in it cannot be used.
        """
        found: Callable[[Path, Options], Found] = import_module(f"{__name__}.{self.home}").find
        return found(folder, options)


SOURCES: Final[dict[str, Source]] = {
    "courses": Source(
        home="courses",
        about="planning CTs and CBCTs with contours, simulated or of your own (DICOM)",
        takes=frozenset({"roi", "label_roi", "spacing_zyx_mm", "extent", "calibrated", "device"}),
        usual=Options(extent="region"),
    ),
    "msd": Source(home="msd", about="Medical Segmentation Decathlon: Task06_Lung, Task07_Pancreas"),
    "brats21": Source(home="brats21", about="BraTS-21: brain tumours on four MR scans"),
    "aiib23": Source(home="aiib23", about="AIIB23: airways on CTs of fibrotic lungs"),
    "4d-lung": Source(
        home="four_d_lung",
        about="TCIA 4D-Lung: lung tumours on repeated 4D-CTs (DICOM)",
        takes=frozenset({"roi", "spacing_zyx_mm", "extent", "prior", "phases", "device"}),
        usual=Options(extent="whole"),
    ),
    "pancreatic-ct-cbct": Source(
        home="pancreatic_ct_cbct",
        about="TCIA Pancreatic-CT-CBCT-SEG: organs at risk on planning CT and CBCTs (DICOM)",
        takes=frozenset({"roi", "spacing_zyx_mm", "extent", "calibrated", "device"}),
        usual=Options(extent="whole"),
    ),
}


def prepare(
    source: str,
    folder: Path,
    out: Path,
    *,
    dataset_id: int,
    name: str,
    options: Options | None = None,
    nested: bool = False,
    on_step: OnStep = lambda sentence, done: None,
) -> Path:
    """Converts a data set to nnU-Net's raw form.

    Args:
        source: One of `SOURCES`.
        folder: Where the data lie.
        out: nnU-Net's folder for raw data (``nnUNet_raw``).
        dataset_id: Number of the data set, 1 to 999.
        name: What it is called beside its number.
        options: What deviates from the source's own.
        nested: Whether folds 0 to 4 learn from 16 to 80 % of the patients, each with those of the
            one before it, and validate on the same; else each patient validates in one fold.
        on_step: Told of progress.

    Returns:
        The data set's folder in ``out``.

    Raises:
        ContourcastError: The folder is not what the source expects, a case cannot be used, or the
            number is taken; then nothing is left behind.
    """
    chosen = source_named(source)
    wanted = _options(source, chosen, options or Options())
    place = dataset_folder(out, dataset_id, name)
    load_nibabel()
    on_step(f"looking for cases in {folder.name}", 0.0)
    found = chosen.find(folder, wanted)
    settings = {"source": source} | asdict(wanted) | dict(found.settings)
    return write_raw(place, found, settings=settings, nested=nested, on_step=on_step)


def source_named(name: str) -> Source:
    """The source of that name.

    Raises:
        InputError: There is none.
    """
    if name not in SOURCES:
        near = nearest_name(name, list(SOURCES))
        raise InputError(
            f"no source is named '{name}'" + (f"; the nearest is '{near}'" if near else ""),
            remedy=f"choose from {', '.join(SOURCES)}",
        )
    return SOURCES[name]


def _options(name: str, source: Source, given: Options) -> Options:
    """What is given, and the source's own for the rest.

    Raises:
        InputError: Something is given that means nothing to the source, or that no grid has.
    """
    nothing = Options()
    stated = {
        option.name: getattr(given, option.name)
        for option in fields(Options)
        if getattr(given, option.name) != getattr(nothing, option.name)
    }
    foreign = sorted(set(stated) - source.takes)
    if foreign:
        raise InputError(
            f"{name} takes no option {foreign[0]}",
            remedy=f"it takes {', '.join(sorted(source.takes)) or 'none'}",
        )
    if given.spacing_zyx_mm is not None and not all(0 < s < 100 for s in given.spacing_zyx_mm):
        raise InputError(
            f"no grid has a spacing of {given.spacing_zyx_mm} mm", remedy="for instance 2.5 2.5 2.5"
        )
    if given.extent == "region" and "prior" in source.takes and not given.prior:
        raise InputError("a region round the prior needs a prior", remedy="ask for the prior, too")
    return replace(source.usual, **stated)
