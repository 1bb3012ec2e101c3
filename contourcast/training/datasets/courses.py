"""Courses of treatment: a planning CT with its contour, and CBCTs with the contour of the day.

Two layouts are known, a folder for each patient:

- simulated courses (`contourcast.simulation.courses`), whose labels lie in ``truth/``;
- DICOM in any arrangement below the patient's folder. Series and structure sets are matched by
  UIDs. The planning CT is the scan whose path has a folder starting with ``plan``, or else the
  first in time; every other scan with a structure set is a fraction.

A case has two channels, both already on the grid that the network works on, so that nnU-Net
resamples nothing: the CBCT by our interpolator, and the prior as the service carries it
(`contourcast.propagate.register` and `carry_prior`), as the share of each voxel that it fills.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.folder import (
    DicomFolder,
    Drawn,
    Scan,
    planning_of,
    read_dicom_folder,
)
from contourcast.imaging.dicom.rtstruct_in import read_structure_set, require_drawn_on
from contourcast.imaging.distance import drawn_volume_cc, filled
from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import raster_notes, rasterise, skips_slices
from contourcast.imaging.structures import Roi, StructureSet
from contourcast.imaging.volume import Mask, Probability, Volume
from contourcast.models.region import is_empty, region_grid, sample_on, scan_on, whole_grid
from contourcast.models.seen import Seen
from contourcast.propagate import Case, Settings, carry_prior, register
from contourcast.simulation.truth import load_truth
from contourcast.training.datasets.source import (
    SEEN,
    Converted,
    Found,
    LeftOut,
    Options,
    Pending,
)
from contourcast.training.samples import SampleSettings

GTV: Final = "GTV"
LABELS: Final = {"background": 0, "target": 1}
PLANNING_FOLDER: Final = "planning-ct"  # of a simulated course

Read = Callable[[], Volume]
Keep = Callable[[Read], Volume]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Where a course begins.

    Attributes:
        planning_ct: Reads it, or gives what `keeping_the_last` has kept of it.
        structures: Its structure set.
        prior: The ROI that is carried.
    """

    planning_ct: Read
    structures: StructureSet
    prior: Roi


@dataclass(frozen=True, kw_only=True, eq=False)
class Today:
    """One fraction.

    Attributes:
        cbct: Reads it.
        label: What the network is to draw on it.
        facts: For the provenance.
        rois: What the label is made of; none where it was never drawn as contours.
    """

    cbct: Read
    label: Callable[[Volume], Mask]
    facts: dict[str, Any]
    rois: tuple[Roi, ...] = ()


def find(folder: Path, options: Options) -> Found:
    """A case for each fraction of each patient's course.

    Raises:
        ContourcastError: A course cannot be read, or two folders hold one patient.
    """
    if (folder / PLANNING_FOLDER).is_dir():
        raise InputError(
            "this is one patient's course", file=folder.name, remedy="name the folder above it"
        )
    patients = sorted(
        p for p in _listed(folder) if p.is_dir() and not p.name.startswith((".", "_"))
    )
    cases: list[Pending] = []
    left_out: dict[str, str] = {}
    owners: dict[str, str] = {}
    keep = keeping_the_last()
    for patient in patients:
        if (patient / PLANNING_FOLDER).is_dir() and (patient / "truth").is_dir():
            cases += _simulated(patient, options, keep)
        else:
            index = read_dicom_folder(patient)
            _require_own_patient(index, patient.name, owners)
            cases += _recorded(index, patient, options, left_out, keep)
    return Found(
        cases=tuple(cases),
        channels=("CT" if options.calibrated else "zscore", "noNorm"),
        labels=LABELS,
        left_out=left_out,
        settings=settings_of(options),
    )


def keeping_the_last() -> Keep:
    """Reads a scan, or gives it again when it was the last: a course has one planning CT."""

    def read_now(read: Read) -> Volume:
        return read()

    return lru_cache(maxsize=1)(read_now)


def settings_of(options: Options) -> dict[str, Any]:
    """What decides over a case of two channels beside the options, for the provenance."""
    registration = asdict(Settings().registration)
    used = {key: registration[key] for key in ("focus", "rigid", "limits")}
    if options.extent != "region":
        return {"registration": used}
    usual = SampleSettings()
    return {
        "registration": used,
        "spacing_zyx_mm": list(options.spacing_zyx_mm or usual.spacing_zyx_mm),
        "patch_zyx": list(usual.patch_zyx),
        "slack_zyx": list(usual.slack_zyx),
        "margin_mm": usual.margin_mm,
    }


def opened(plan: Plan, today: Today) -> tuple[Volume, Volume, Mask]:
    """Planning CT, CBCT, and the label of the day on the CBCT's grid.

    Raises:
        ContourcastError: One cannot be read, or they do not belong together.
    """
    planning_ct, cbct = plan.planning_ct(), today.cbct()
    require_drawn_on(plan.structures, planning_ct)
    label = today.label(cbct)
    cbct.require_same_place(label)
    return planning_ct, cbct, label


def convert(plan: Plan, today: Today, options: Options) -> Converted | LeftOut:
    """One fraction as two channels and a label; left out where the label lacks what was drawn.

    Raises:
        ContourcastError: Scans and contours cannot be read, or do not belong together.
    """
    planning_ct, cbct, label = opened(plan, today)
    if lost := what_is_lost(today.rois, cbct.grid):
        return LeftOut(reason=lost)
    case = Case(
        planning_ct=planning_ct,
        cbct=cbct,
        prior=plan.prior,
        prior_source_uid=plan.structures.sop_instance_uid,
        prior_digest=plan.structures.digest,
    )
    registrations = register(case, Settings(device=options.device))
    r_ct = carry_prior(case, registrations)
    facts = {
        "planning_ct": digest_of(planning_ct),
        "cbct": digest_of(cbct),
        "structures": plan.structures.digest,
        "verdict": registrations.quality.verdict.value,
        "reasons": list(registrations.quality.reasons),
        **volumes_of(label, today.rois),
        **today.facts,
    }
    if options.extent == "region" and is_empty(r_ct):
        why = "the registration was rejected" if registrations.rejected else "it lies elsewhere"
        return LeftOut(reason=f"no prior on today's scan: {why}")
    return on_grid(cbct, r_ct, label, options, facts)


def on_grid(
    scan: Volume, r_ct: Probability | None, label: Mask, options: Options, facts: dict[str, Any]
) -> Converted:
    """Scan, prior (if there is to be one) and label on the grid that the options ask for."""
    facts = facts | {SEEN: asdict(Seen.of(scan))}
    grid = _grid(scan, r_ct, options)
    if grid is None:
        return Converted(
            channels=(scan.values,) if r_ct is None else (scan.values, r_ct.values),
            label=label.values.astype(np.uint8),
            grid=scan.grid,
            facts=facts,
        )
    values, _ = scan_on(scan, grid)
    filled = sample_on(label.values.astype(np.float32), label.grid, onto=grid, outside=0.0)
    drawn = (filled >= 0.5).astype(np.uint8)
    channels = [values]
    if r_ct is not None:
        prior = sample_on(r_ct.values, r_ct.grid, onto=grid, outside=0.0)
        channels.append(prior.clip(0.0, 1.0))
    written_cc = float(drawn.sum() * np.prod(grid.spacing_zyx_mm) / 1000)
    return Converted(
        channels=tuple(channels),
        label=drawn,
        grid=grid,
        facts=facts | {"written_label_cc": written_cc},
    )


def one_roi(structures: StructureSet, name: str) -> Roi:
    """The ROI of that name, which must enclose something.

    Raises:
        UnknownRoiError: There is none.
        InputError: It is empty.
    """
    roi = structures.roi(name)
    if not roi.loops:
        raise InputError(
            f"ROI '{roi.name}' encloses nothing",
            uid=structures.sop_instance_uid,
            remedy="choose a ROI with closed contours",
        )
    return roi


def label_of(structures: StructureSet, rois: Sequence[Roi], cbct: Volume) -> Mask:
    """The voxels of this scan whose centre is in one of the ROIs.

    A ROI that was drawn on every second slice is filled between them, as the prior is.

    Raises:
        FrameMismatchError: They were not drawn on this scan.
    """
    require_drawn_on(structures, cbct)
    masks = [
        filled(roi, grid=cbct.grid, onto=cbct.grid)
        if skips_slices(roi, cbct.grid)
        else rasterise(roi, cbct.grid)
        for roi in rois
    ]
    inside = np.logical_or.reduce([mask.values for mask in masks])
    return replace(masks[0], values=inside)


def what_is_lost(rois: Sequence[Roi], grid: Grid) -> str:
    """Why a label of these ROIs would not be what was drawn; empty where it is."""
    notes = {note.text: None for roi in rois for note in raster_notes(roi, grid) if note.lost}
    return f"the label is not what was drawn: {'; '.join(notes)}" if notes else ""


def volumes_of(label: Mask, rois: Sequence[Roi]) -> dict[str, float]:
    """For the provenance: the label's volume, and that of the polygons it is made of, if any."""
    volumes = {"label_cc": label.volume_cc}
    if rois:
        volumes["drawn_cc"] = sum(drawn_volume_cc(roi, grid=label.grid) for roi in rois)
    return volumes


def _listed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError("there is no such folder", file=folder.name)
    return list(folder.iterdir())


def _simulated(folder: Path, options: Options, keep: Keep) -> list[Pending]:
    """The fractions of a simulated course; the CT that it was grown from counts as the patient."""
    facts = _facts_of_simulated(folder / "truth" / "patient.json")
    structures = read_structure_set(folder / "structures.dcm")
    plan = Plan(
        planning_ct=partial(
            keep, partial(read_ct_series, folder / PLANNING_FOLDER, role="planning CT")
        ),
        structures=structures,
        prior=one_roi(structures, options.roi or facts["roi_name"]),
    )
    common = (folder / "structures.dcm", *sorted((folder / PLANNING_FOLDER).iterdir()))
    cases = []
    for fraction in sorted(folder.glob("fraction-*")):
        truth = folder / "truth" / f"{fraction.name}.json"
        today = Today(
            cbct=partial(read_ct_series, fraction, role="CBCT"),
            label=partial(_true_label, truth),
            facts={"virtual_patient": folder.name, "recipe": facts["recipe"]["name"]},
        )
        cases.append(
            Pending(
                name=f"{folder.name}_{fraction.name}",
                patient=facts["ct"],
                files=(*common, *sorted(fraction.iterdir()), truth, truth.with_suffix(".npz")),
                read=partial(convert, plan, today, options),
                check=partial(opened, plan, today),
            )
        )
        for path in cases[-1].files[-2:]:
            if not path.is_file():
                raise InputError(
                    f"{folder.name}, {fraction.name} has no label",
                    file=path.name,
                    remedy="copy the whole course, with its folder truth",
                )
    return cases


def _true_label(truth: Path, cbct: Volume) -> Mask:
    answer = load_truth(truth)
    if cbct.source is None or answer.cbct_series_uid != cbct.source.series_instance_uid:
        raise InputError(
            "the truth is of another CBCT", file=truth.name, remedy="copy the whole course again"
        )
    return answer.label


def _facts_of_simulated(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _ = facts["ct"], facts["roi_name"], facts["recipe"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "not the truth of a simulated patient",
            file=path.name,
            remedy="copy the whole course again, or simulate it with this version",
        ) from error
    return facts


def _require_own_patient(index: DicomFolder, name: str, owners: dict[str, str]) -> None:
    """Refuses a folder of two patients, and a patient of two folders; IDs themselves stay untold.

    Raises:
        InputError: A split by folder would not be one by patient.
    """
    ids = {scan.patient_id for scan in index.scans if scan.patient_id}
    if len(ids) > 1:
        raise InputError(
            f"the folder {name} holds scans of {len(ids)} patients",
            tag="(0010,0020) Patient ID",
            remedy="one folder for each patient",
        )
    # Where the IDs were taken out, scans of one study are still of one patient.
    for token in ids | {scan.study_uid for scan in index.scans}:
        owner = owners.setdefault(token, name)
        if owner != name:
            raise InputError(
                f"the folders {owner} and {name} hold scans of one patient",
                tag="(0010,0020) Patient ID, (0020,000D) Study Instance UID",
                remedy="put all scans of a patient into one folder",
            )


def _recorded(
    index: DicomFolder,
    folder: Path,
    options: Options,
    left_out: dict[str, str],
    keep: Keep,
) -> list[Pending]:
    """The fractions of a course in DICOM."""
    with_contours = [scan for scan in index.scans if index.on(scan)]
    planning = _planning(with_contours, folder)
    roi = options.roi or GTV
    structures = _holding(index, planning, roi)
    plan = Plan(
        planning_ct=partial(keep, partial(planning.read, "planning CT")),
        structures=structures.structures,
        prior=one_roi(structures.structures, roi),
    )
    cases = []
    fractions = [scan for scan in index.scans if scan is not planning]
    for number, scan in enumerate(fractions, 1):
        name = f"{folder.name}_{number:02d}"
        if scan not in with_contours:
            left_out[name] = "no structure set is drawn on it"
            continue
        wanted = options.label_roi or roi
        drawn = _holding(index, scan, wanted)
        rois = (one_roi(drawn.structures, wanted),)
        today = Today(
            cbct=partial(scan.read, "CBCT"),
            label=partial(label_of, drawn.structures, rois),
            facts={"label_structures": drawn.structures.digest},
            rois=rois,
        )
        cases.append(
            Pending(
                name=name,
                patient=folder.name,
                files=(*planning.files, structures.path, *scan.files, drawn.path),
                read=partial(convert, plan, today, options),
                check=partial(opened, plan, today),
            )
        )
    return cases


def _planning(scans: Sequence[Scan], folder: Path) -> Scan:
    """The scan in a folder named so, or the first in time, when that is beyond doubt.

    Raises:
        InputError: No scan has contours, or several could be it.
    """
    if len(scans) < 2:
        raise InputError(
            f"{folder.name} has {len(scans)} scans with a structure set; needed are the planning "
            "CT and a CBCT or more",
            remedy="add the structure sets, or take the folder away",
        )
    return planning_of(scans, below=folder)


def _holding(index: DicomFolder, scan: Scan, roi: str) -> Drawn:
    """The structure set of a scan that holds the ROI; where none does, the last one says so."""
    return index.holding(scan, roi) or index.on(scan)[-1]


def _grid(scan: Volume, r_ct: Probability | None, options: Options) -> Grid | None:
    """None: the scan's own."""
    usual = SampleSettings()
    spacing = options.spacing_zyx_mm
    if options.extent == "region" and r_ct is not None:
        wanted = np.array(spacing or usual.spacing_zyx_mm)
        slack = np.array(usual.slack_zyx)
        return region_grid(
            r_ct,
            spacing_zyx_mm=wanted.tolist(),
            patch_zyx=(np.array(usual.patch_zyx) + 2 * slack).tolist(),
            margin_mm=usual.margin_mm + float((slack * wanted).max()),
        )
    return None if spacing is None else whole_grid(scan.grid, spacing)


def digest_of(volume: Volume) -> str:
    """SHA-256 (hex) over the instances and pixels that were read."""
    return volume.source.digest if volume.source else ""
