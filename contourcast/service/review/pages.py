"""What the page shows of a propagation: voxels on the CBCT's grid, contours on its slices.

Everything here follows from the order and its results, so it is derived: kept under its digest,
and made again when it is gone. The browser holds one frame of reference: the planning CT is
resampled here, through the transform that carried the prior, onto the CBCT's grid.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Row, delete, select, update

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.distance import carry, distance_map
from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import agreement
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.resample import resample
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume
from contourcast.propagate import Case
from contourcast.service.index.tables import page, propagation, volume
from contourcast.service.jobs.orders import case_of
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.scans import cbct_of
from contourcast.service.outputs.report import MethodReport, Report
from contourcast.service.problems import NotFoundError, NotReadyError
from contourcast.service.records import Records
from contourcast.service.review.disagreement import disagreement
from contourcast.service.review.grids import grid_as_json, grid_of
from contourcast.service.review.loops import Slices, as_json, on_slices
from contourcast.service.review.motion import moved

# Where there is nothing to show: no CT scanner writes it (16 bits signed).
OUTSIDE: Final = -32768
PRIOR: Final = "prior"
# Voxels whose files are known to be whole.
KNOWN_FILES: Final = 64


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is shown.

    Attributes:
        cbct: Its image, as JSON (see docs/http.md).
        planning: The planning CT's image on the same grid; None: there is none to show.
        planning_why_not: Why there is none, a sentence.
        contours: Loops by method, and of the prior, as `loops.as_json`.
        agreement: Dice and mean surface distance of each two methods.
        disagreement: mm, by slice.
        pivot_xyz_mm: The centre of the prior on the CBCT; None: it was not carried.
        digest: Of contours and comparisons.
    """

    cbct: dict[str, Any]
    planning: dict[str, Any] | None
    planning_why_not: str
    contours: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    agreement: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    disagreement: dict[int, float] = field(default_factory=dict)
    pivot_xyz_mm: tuple[float, float, float] | None = None
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """A registration that a person changed, to be looked at."""

    image: dict[str, Any]
    contours: list[dict[str, Any]]
    planning_from_cbct: RigidTransform


class Pages:
    """Makes pages, and hands out their voxels.

    Args:
        records: Index and store.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self._making = threading.Lock()  # one at a time: each takes a core and much memory
        self._case = functools.lru_cache(maxsize=1)(self._read_case)  # hundreds of MiB each
        self._files: dict[str, Path] = {}

    def of(self, job: Job) -> Page:
        """What is shown of a propagation; made at the first time, in some seconds.

        Raises:
            ContourcastError: The CBCT cannot be read, or a contour is not of its frame.
        """
        if (kept := self._kept(job)) is not None:
            return kept
        with self._making:
            made = self._kept(job) or self._make(job)
            self._case.cache_clear()  # who adjusts reads it once more, and keeps it
        return made

    def prepare(self, job: Job, case: Case, report: Report, structures: Path, digest: str) -> None:
        """`of`, at the end of a job, when everything is at hand.

        Args:
            job: Whose page it is.
            case: What went into it.
            report: What came out.
            structures: The structure set that was written.
            digest: SHA-256 of it.
        """
        with self._making:
            self._write(job, digest, case.cbct, case, "", report, structures)

    def voxels(self, digest: str, *, first: int, last: int) -> tuple[bytes, dict[str, Any]]:
        """Slices of an image, int16 in array order, and the image.

        Raises:
            NotFoundError: Nobody was told of voxels of that digest.
            InputError: It has no such slices.
        """
        row = self.handed_out(digest)
        slices, rows, columns = row.image_json["shape_zyx"]
        if not 0 <= first <= last < slices:
            raise InputError(
                f"slices {first} to {last} are not there", remedy=f"there are 0 to {slices - 1}"
            )
        size = rows * columns * 2
        with self._file(row).open("rb") as file:
            file.seek(first * size)
            return file.read((last - first + 1) * size), row.image_json

    def handed_out(self, digest: str) -> Row[Any]:
        """The row of an image that somebody was told of.

        Raises:
            NotFoundError: Nobody was.
        """
        query = (
            select(volume, propagation.c.patient_key)
            .join(propagation, propagation.c.id == volume.c.propagation)
            .where(volume.c.digest == digest)
            .limit(1)
        )
        with self.records.index.read() as at:
            row = at.execute(query).first()
        if row is None:
            raise NotFoundError(
                "no image has that digest", remedy="see /v1/propagations/{id}/view for those shown"
            )
        return row

    def adjusted(
        self,
        job: Job,
        *,
        translation_xyz_mm: tuple[float, float, float],
        rotation_xyz_deg: tuple[float, float, float],
    ) -> Adjusted:
        """The planning CT and the prior through a transform that a person changed.

        Raises:
            NotReadyError: There is no registration to change.
        """
        changed = self.changed(job, translation_xyz_mm, rotation_xyz_deg)
        with self._making:
            case = self._case(job.id)
            image = self._resampled(job, case, changed, "adjusted", "adjusted by hand")
            prior = _carried(case, changed)
        return Adjusted(
            image=image,
            contours=as_json(on_slices(prior, case.cbct.grid, case.cbct.frame_of_reference)),
            planning_from_cbct=changed,
        )

    def changed(
        self,
        job: Job,
        translation_xyz_mm: tuple[float, float, float],
        rotation_xyz_deg: tuple[float, float, float],
    ) -> RigidTransform:
        """The propagation's own ``planning_from_cbct`` with a person's change on top of it.

        Raises:
            NotReadyError: There is no registration to change.
        """
        pivot, report = self.of(job).pivot_xyz_mm, self.report(job)
        if report is None or pivot is None:
            raise NotReadyError(
                "there is no registration to change", remedy="wait until the planning CT is placed"
            )
        return moved(
            _transform(report),
            pivot_xyz_mm=pivot,
            translation_xyz_mm=translation_xyz_mm,
            rotation_xyz_deg=rotation_xyz_deg,
        )

    def grid(self, job: Job) -> Grid:
        """Of the CBCT that is shown."""
        query = select(volume.c.image_json).where(
            volume.c.propagation == job.id, volume.c.role == "cbct"
        )
        with self.records.index.read() as at:
            known = at.execute(query).scalar()
        return grid_of(known if known is not None else self.of(job).cbct)

    def report(self, job: Job) -> Report | None:
        """The report, once it is written."""
        if "report.json" not in job.files:
            return None
        path = self.records.derived.result(job.id, "report.json")
        return Report.model_validate_json(path.read_bytes())

    # What was made before

    def _kept(self, job: Job) -> Page | None:
        with self.records.index.read() as at:
            made = at.execute(select(page).where(page.c.propagation == job.id)).first()
            query = select(volume).where(volume.c.propagation == job.id)
            images = {row.role: row for row in at.execute(query)}
        if made is None or made.structures_digest != job.files.get("RS.dcm", ""):
            return None
        try:
            content = json.loads(self.records.derived.get(made.content_digest))
            for role in ("cbct", "planning"):
                if role in images:
                    self._file(images[role], again=False)
        except NotFoundError:
            return None
        planning = images.get("planning")
        return _page(
            content,
            made.content_digest,
            images["cbct"].image_json,
            None if planning is None else planning.image_json,
        )

    def _file(self, row: Row[Any], *, again: bool = True) -> Path:
        """The voxels on this machine, made again if they are gone."""
        known = self._files.get(row.digest)
        if known is not None and known.is_file():
            return known
        try:
            path = self.records.derived.voxels(row.digest)
        except NotFoundError:
            if not again:
                raise
            self._make_again(row)
            path = self.records.derived.voxels(row.digest)
        if len(self._files) >= KNOWN_FILES:
            self._files.clear()
        self._files[row.digest] = path
        return path

    def _make_again(self, row: Row[Any]) -> None:
        job = self.records.propagations.job(row.propagation)
        with self._making:
            if row.role == "cbct":
                self.records.derived.put_voxels(_bytes(cbct_of(self.records.archive, job)))
                return
            case = self._case(job.id)
            onto = case.cbct
            transform = _rigid(row.matrix_json, onto, case.planning_ct)
            self.records.derived.put_voxels(_through(transform, case.planning_ct, onto.grid))

    # Making

    def _make(self, job: Job) -> Page:
        why_not, case = "", None
        report = self.report(job)
        if report is None:
            why_not = "the planning CT is not placed on this CBCT yet"
            scan = cbct_of(self.records.archive, job)
        else:
            try:
                case = self._case(job.id)
                scan = case.cbct
            except ContourcastError as error:
                why_not, scan = error.cause, cbct_of(self.records.archive, job)
        structures = None
        if "RS.dcm" in job.files:
            structures = self.records.derived.result(job.id, "RS.dcm")
        return self._write(
            job, job.files.get("RS.dcm", ""), scan, case, why_not, report, structures
        )

    def _write(
        self,
        job: Job,
        structures_digest: str,
        scan: Volume,
        case: Case | None,
        why_not: str,
        report: Report | None,
        structures: Path | None,
    ) -> Page:
        cbct = self._put(job, "cbct", _bytes(scan), _image(scan, _taken(scan)), [])
        planning = None
        content: dict[str, Any] = {"planning_why_not": why_not}
        if report is not None and structures is not None:
            content |= self._compared(job, scan, report, structures)
        if report is not None and case is not None:
            transform = _transform(report)
            words = (
                "the rejected registration"
                if report.registration.verdict == "reject"
                else ("this propagation's registration")
            )
            planning = self._resampled(job, case, transform, "planning", words)
            content["pivot_xyz_mm"] = _pivot(case, transform).tolist()
            if report.registration.verdict != "reject":
                prior = _carried(case, transform)
                content["contours"][PRIOR] = as_json(
                    on_slices(prior, scan.grid, scan.frame_of_reference)
                )
        digest = self.records.derived.put(json.dumps(content, sort_keys=True).encode())
        row = {"structures_digest": structures_digest, "content_digest": digest}
        with self.records.index.write() as at:
            new = self.records.index.insert_new(page, {"propagation": job.id} | row)
            if not at.execute(new).rowcount:
                at.execute(update(page).where(page.c.propagation == job.id).values(**row))
            if planning is None:
                gone = (volume.c.propagation == job.id) & (volume.c.role == "planning")
                at.execute(delete(volume).where(gone))
        return _page(content, digest, cbct, planning)

    def _compared(self, job: Job, scan: Volume, report: Report, structures: Path) -> dict[str, Any]:
        """Every method's loops, and what they say of each other."""
        made = read_structure_set(structures)
        rois = {m: made.roi(f"#{n}") for n, m in enumerate(job.order["methods"], start=1)}
        drawn = {
            method: on_slices(roi, scan.grid, scan.frame_of_reference)
            for method, roi in rois.items()
        }
        return {
            "contours": {method: as_json(slices) for method, slices in drawn.items()},
            "agreement": _agreement(report, rois, drawn, scan.grid),
            "disagreement": {str(k): round(mm, 3) for k, mm in disagreement(drawn).items()},
        }

    def _resampled(
        self, job: Job, case: Case, transform: RigidTransform, role: str, words: str
    ) -> dict[str, Any]:
        """The planning CT on the CBCT's grid, kept, and its image."""
        voxels = _through(transform, case.planning_ct, case.cbct.grid)
        label = f"planning CT through {words}"
        return self._put(job, role, voxels, _image(case.cbct, label), transform.matrix.tolist())

    def _put(
        self, job: Job, role: str, voxels: bytes, image: dict[str, Any], matrix: list[Any]
    ) -> dict[str, Any]:
        digest = self.records.derived.put_voxels(voxels)
        told = {"volume": digest} | image
        row = {
            "propagation": job.id,
            "digest": digest,
            "role": role,
            "image_json": told,
            "matrix_json": matrix,
        }
        with self.records.index.write() as at:
            if role != "adjusted":  # one of each; what is looked at while adjusting comes and goes
                mine = (volume.c.propagation == job.id) & (volume.c.role == role)
                at.execute(delete(volume).where(mine, volume.c.digest != digest))
            at.execute(self.records.index.insert_new(volume, row))
        return told

    def _read_case(self, propagation_id: str) -> Case:
        order = self.records.propagations.job(propagation_id).order
        return case_of(order, self.records.archive)


def _page(
    content: Mapping[str, Any],
    digest: str,
    cbct: dict[str, Any],
    planning: dict[str, Any] | None,
) -> Page:
    pivot = content.get("pivot_xyz_mm")
    return Page(
        cbct=cbct,
        planning=planning,
        planning_why_not=content["planning_why_not"],
        contours=dict(content.get("contours", {})),
        agreement=dict(content.get("agreement", {})),
        disagreement={int(k): mm for k, mm in content.get("disagreement", {}).items()},
        pivot_xyz_mm=None if pivot is None else (pivot[0], pivot[1], pivot[2]),
        digest=digest,
    )


def _image(on: Volume, label: str) -> dict[str, Any]:
    """Where the voxels lie: the CBCT's own slices, never an even grid that they are not on."""
    return grid_as_json(on.grid) | {
        "label": label,
        "outside": OUTSIDE,
        "frame_of_reference": on.frame_of_reference,
    }


def _taken(scan: Volume) -> str:
    source = scan.source
    day = source.series_date if source is not None else ""
    return f"CBCT {day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 else "CBCT"


def _bytes(scan: Volume) -> bytes:
    """Voxels as the page takes them: int16, little endian, whole HU, in array order."""
    values = np.clip(np.rint(scan.values), OUTSIDE + 1, -OUTSIDE - 1).astype("<i2")
    if scan.observed is not None:
        values[~scan.observed] = OUTSIDE
    content: bytes = values.tobytes()
    return content


def _through(transform: RigidTransform, planning_ct: Volume, onto: Grid) -> bytes:
    return _bytes(resample(planning_ct, transform, onto=onto, outside=float(OUTSIDE)))


def _transform(report: Report) -> RigidTransform:
    """The ``planning_from_cbct`` that carried the prior."""
    return RigidTransform(
        matrix=np.array(report.registration.planning_from_cbct.rows),
        source_frame=report.cbct.frame_of_reference_uid,
        target_frame=report.planning_ct.frame_of_reference_uid,
    )


def _rigid(matrix: list[Any], cbct: Volume, planning_ct: Volume) -> RigidTransform:
    return RigidTransform(
        matrix=np.array(matrix),
        source_frame=cbct.frame_of_reference,
        target_frame=planning_ct.frame_of_reference,
    )


def _carried(case: Case, planning_from_cbct: RigidTransform) -> Roi:
    """The prior on today's slices."""
    shape = distance_map(case.prior, grid=case.planning_ct.grid)
    region = carry(shape, planning_from_cbct, onto=case.cbct.grid)
    return Roi(
        number=1,
        name=PRIOR,
        contours=trace(region),
        frame_of_reference=region.frame_of_reference,
    )


def _pivot(case: Case, planning_from_cbct: RigidTransform) -> np.ndarray:
    """The centre of the prior on the CBCT."""
    center = rasterise(case.prior, case.planning_ct.grid).centroid_xyz_mm()
    if center is None:  # it lies beyond the planning CT's slices, or is thinner than they are
        center = np.concatenate([loop.points_xyz_mm for loop in case.prior.loops]).mean(axis=0)
    pivot: np.ndarray = planning_from_cbct.inverse().apply(center[None])[0]
    return pivot


def _agreement(
    report: Report, rois: Mapping[str, Roi], drawn: Mapping[str, Slices], grid: Grid
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Of each two methods that drew something; what the report has is not measured again."""
    reports = {each.method: each for each in report.methods}
    masks: dict[str, Mask] = {}
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for one, other in combinations([method for method, slices in drawn.items() if slices], 2):
        figures = next(_reported(report, reports[one], reports[other]), None)
        if figures is None:
            for method in (one, other):
                masks.setdefault(method, rasterise(rois[method], grid))
            measured = agreement(masks[one], masks[other])
            figures = {"dice": measured.dice, "mean_surface_mm": measured.msd_mm}
        for a, b in ((one, other), (other, one)):
            found.setdefault(a, {})[b] = figures
    return found


def _reported(
    report: Report, one: MethodReport, other: MethodReport
) -> Iterator[dict[str, float | None]]:
    """Both figures mean the same either way."""
    network = report.provenance.network
    for a, b in ((one, other), (other, one)):
        for reference, told in (
            ("rigid", a.agreement_with_rigid),
            (network, a.agreement_with_network),
        ):
            if b.method == reference and told is not None:
                yield {"dice": _number(told["dice"]), "mean_surface_mm": _number(told["msd_mm"])}


def _number(told: float | str | None) -> float | None:
    return float(told) if told is not None else None
