"""Measured cases, a row for each case, method and truth; and where they come from.

Three sources: runs of ``propagate`` whose truth is known, models on a folder of samples, and books
of scores. Only this module reads truth. A run's proposal is read back from the structure set that
the run wrote, so that what is measured is what a planning system would import.
"""

from __future__ import annotations

import csv
import filecmp
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import Agreement, agreement
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import StructureSet
from contourcast.imaging.volume import Mask
from contourcast.simulation.truth import Truth, load_truth
from contourcast.training.calibrate import Score, read_scores
from contourcast.training.cases import Model, case_for, drawn
from contourcast.training.samples import Sample

TARGETS: Final = ("label", "anatomy")
PRIOR: Final = "prior"  # the method that moves nothing and draws nothing
PATCH_FRAME: Final = "2.25.1"  # samples keep no frame of reference; all patches share this one

OnStep = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one CBCT against one truth. None: not defined, or not known from this source.

    Attributes:
        target: ``label``: as a physician would have drawn it; ``anatomy``: where the tumour is.
        state: ``drawn``, or what else became of it.
        visible_share: Share of the truth's surface that can be seen on a noise-free scan.
    """

    patient: str
    fraction: str
    method: str
    target: str
    state: str
    verdict: str
    truth_cc: float
    proposal_cc: float | None
    dsc: float
    iou: float | None
    hd95_mm: float | None
    msd_mm: float | None
    surface_dice_1mm: float | None
    surface_dice_2mm: float | None
    surface_dice_3mm: float | None
    added_path_length_mm: float | None
    visible_share: float | None
    seconds: float | None

    @property
    def case(self) -> tuple[str, str]:
        """What methods are paired by."""
        return (self.patient, self.fraction)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """As CSV, numbers to four decimals."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            )


def rows_of_runs(
    runs: Sequence[Path],
    truth: Sequence[Path],
    on_step: OnStep = lambda sentence, done: None,
) -> list[Row]:
    """Measures what ``propagate`` wrote.

    Args:
        runs: Folders that ``propagate`` wrote, or folders of such folders.
        truth: Simulated courses, or any folders above them.
        on_step: Told what is going on.

    Raises:
        InputError: No run, a damaged report, no truth for a run, or two truths that differ for
            one CBCT.
    """
    folders = sorted({report.parent for run in runs for report in run.rglob("report.json")})
    if not folders:
        raise InputError(
            "no run was found", file=runs[0].name if runs else "", remedy="run propagate first"
        )
    truths = _find_truths(truth)
    rows: list[Row] = []
    for n, folder in enumerate(folders):
        on_step(f"measuring {folder.name}", n / len(folders))
        rows += _measured(folder, truths)
    return rows


def rows_of_samples(
    models: Sequence[Model],
    samples: Sequence[Sample],
    on_step: OnStep = lambda sentence, done: None,
    clock: Callable[[], float] | None = None,
) -> list[Row]:
    """Every model on the middle patch of every sample, and the carried prior as it came.

    Args:
        models: Of one patch and spacing: the same voxels are asked of all.
        samples: Whose labels are the truth.
        on_step: Told what is going on.
        clock: Seconds, to time the forward pass; None: times are left out.

    Raises:
        InputError: The models look at patches or spacings that differ, or a sample is too small.
    """
    sizes = {(m.card.patch_zyx, m.card.spacing_zyx_mm) for m in models}
    if len(sizes) != 1:
        raise InputError(
            "the models look at patches of different size or spacing",
            remedy="evaluate them one at a time, each on samples of its own spacing",
        )
    spacing_zyx_mm = models[0].card.spacing_zyx_mm
    rows = []
    for n, sample in enumerate(samples):
        on_step(sample.name, n / len(samples))
        first = case_for(models[0], sample)
        proposals: list[tuple[str, Bool[np.ndarray, "z y x"], float | None]] = [
            (PRIOR, _prior(sample, models[0].card.patch_zyx), None)
        ]
        for model in models:
            start = clock() if clock else 0.0
            region = drawn(model, case_for(model, sample).channels)
            proposals.append((model.name, region, clock() - start if clock else None))
        for method, region, seconds in proposals:
            found = agreement(_mask(region, spacing_zyx_mm), _mask(first.truth, spacing_zyx_mm))
            rows.append(
                _row(
                    found,
                    patient=sample.patient,
                    fraction=sample.name,
                    method=method,
                    target="label",
                    state="drawn" if region.any() else "empty",
                    seconds=seconds,
                )
            )
    return rows


def rows_of_scores(books: Sequence[Path]) -> list[Row]:
    """The scores of books as `contourcast.training.calibrate.ScoreBook` keeps them.

    Raises:
        InputError: There is no such file, or it is no book of scores.
    """
    rows = []
    for book in books:
        for score in read_scores(book):
            patient = f"{score.ct}/{score.patient}"
            fraction = (
                f"week {score.week:g}, difficulty {score.difficulty:g}, "
                f"regression {score.regression:g}"
            )
            for target, dsc in zip(TARGETS, (score.dice, score.dice_anatomical), strict=True):
                rows.append(_row_of_score(score, patient, fraction, target, dsc))
    if not rows:
        raise InputError(
            "no score was found", file=books[0].name if books else "", remedy="name a score book"
        )
    return rows


def _row_of_score(score: Score, patient: str, fraction: str, target: str, dsc: float) -> Row:
    return Row(
        patient=patient,
        fraction=fraction,
        method=score.method,
        target=target,
        state="failed" if score.failed else "drawn",
        verdict="",
        truth_cc=score.label_cc,
        proposal_cc=None,
        dsc=dsc,
        iou=dsc / (2 - dsc),
        hd95_mm=None,
        msd_mm=None,
        surface_dice_1mm=None,
        surface_dice_2mm=None,
        surface_dice_3mm=None,
        added_path_length_mm=None,
        visible_share=score.visible_share,
        seconds=None,
    )


def _row(
    found: Agreement,
    *,
    patient: str,
    fraction: str,
    method: str,
    target: str,
    state: str,
    verdict: str = "",
    visible_share: float | None = None,
    seconds: float | None = None,
) -> Row:
    return Row(
        patient=patient,
        fraction=fraction,
        method=method,
        target=target,
        state=state,
        verdict=verdict,
        truth_cc=found.reference_cc,
        proposal_cc=found.proposal_cc,
        dsc=found.dice,
        iou=found.iou,
        hd95_mm=found.hd95_mm,
        msd_mm=found.msd_mm,
        surface_dice_1mm=found.surface_dice_1mm,
        surface_dice_2mm=found.surface_dice_2mm,
        surface_dice_3mm=found.surface_dice_3mm,
        added_path_length_mm=found.added_path_length_mm,
        visible_share=visible_share,
        seconds=seconds,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A truth, whose it is, and the file it was read from."""

    patient: str
    fraction: str
    truth: Truth
    path: Path


def _find_truths(places: Sequence[Path]) -> dict[str, Known]:
    """Every truth beneath these folders, by the series UID of its CBCT.

    Raises:
        InputError: Two truths of one CBCT differ, so that a score would depend on their order.
    """
    found: dict[str, Known] = {}
    for path in sorted(p for place in places for p in place.rglob("truth/fraction-*.json")):
        truth = load_truth(path)
        known = Known(
            patient=f"{path.parents[2].name}/{path.parents[1].name}",
            fraction=path.stem,
            truth=truth,
            path=path,
        )
        other = found.setdefault(truth.cbct_series_uid, known)
        if not _same_truth(other.path, path):
            raise InputError(
                "two truths of one CBCT differ",
                uid=truth.cbct_series_uid,
                file=" and ".join(f"{k.patient}/{k.fraction}" for k in (other, known)),
                remedy="name the folder of one of them (--truth), or simulate both courses again",
            )
        found[truth.cbct_series_uid] = known
    return found


def _same_truth(one: Path, other: Path) -> bool:
    """Whether two truths are one, or copies, with their arrays."""
    return all(
        filecmp.cmp(one.with_suffix(suffix), other.with_suffix(suffix), shallow=False)
        for suffix in (".json", ".npz")
    )


def _measured(run: Path, truths: dict[str, Known]) -> list[Row]:
    """The rows of one run.

    Raises:
        InputError: Its report is damaged, or nobody knows the truth of this CBCT.
    """
    try:
        report = json.loads((run / "report.json").read_text("utf-8"))
        series_uid, verdict = report["cbct"]["series_instance_uid"], report["verdict"]
        stated = [
            [method[key] for key in ("method", "roi_name", "state", "seconds")]
            for method in report["methods"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "this is no whole report of a run",
            file=f"{run.name}/report.json",
            remedy="run propagate again, or leave this folder out",
        ) from error
    if series_uid not in truths:
        raise InputError(
            "the truth of this run's CBCT is not known",
            uid=series_uid,
            file=run.name,
            remedy="name the folder of its simulated course: --truth",
        )
    known = truths[series_uid]
    truth = known.truth
    proposals = read_structure_set(run / "RS.dcm")
    return [
        _row(
            agreement(_proposal(proposals, roi_name, reference), reference),
            patient=known.patient,
            fraction=known.fraction,
            method=method,
            target=target,
            state=state,
            verdict=verdict,
            visible_share=truth.visible_share,
            seconds=seconds,
        )
        for target, reference in zip(TARGETS, (truth.label, truth.anatomical), strict=True)
        for method, roi_name, state, seconds in stated
    ]


def _proposal(proposals: StructureSet, roi_name: str, reference: Mask) -> Mask:
    """The proposal on the truth's grid; a ROI without contours is an empty mask, and counts."""
    return rasterise(proposals.roi(roi_name), reference.grid)


def _prior(sample: Sample, patch_zyx: tuple[int, int, int]) -> Bool[np.ndarray, "z y x"]:
    """The carried contour in the middle patch."""
    low = [(n - p) // 2 for n, p in zip(sample.label.shape, patch_zyx, strict=True)]
    box = tuple(slice(a, a + p) for a, p in zip(low, patch_zyx, strict=True))
    inside: np.ndarray = sample.prior_mm[box] > 0
    return inside


def _mask(inside: Bool[np.ndarray, "z y x"], spacing_zyx_mm: tuple[float, float, float]) -> Mask:
    """A patch as a mask; samples keep neither place nor frame, and the distances need none."""
    z, y, x = spacing_zyx_mm
    grid = Grid.even(
        shape_zyx=(inside.shape[0], inside.shape[1], inside.shape[2]),
        spacing_xyz_mm=(x, y, z),
        origin_xyz_mm=(0.0, 0.0, 0.0),
    )
    return Mask(values=inside, grid=grid, frame_of_reference=PATCH_FRAME, name="patch")
