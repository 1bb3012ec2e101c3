"""Everything that the page says of a propagation beside its pictures and contours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, Field

from contourcast.imaging.transform import RigidTransform
from contourcast.propagate import color_rgb
from contourcast.service.intake.states import DECIDED, State
from contourcast.service.jobs.propagations import Job
from contourcast.service.outputs.recommended import recommended
from contourcast.service.outputs.report import JudgedFigure, MethodReport, Report
from contourcast.service.records import Records
from contourcast.service.review.basis import BasisItem, basis_of
from contourcast.service.review.decisions import Review
from contourcast.service.review.drafts import Draft
from contourcast.service.review.figures import change_percent
from contourcast.service.review.numbering import Taken
from contourcast.service.review.pages import PRIOR, Page
from contourcast.service.review.patient import PatientItem, facts_of, patient_of_scan
from contourcast.service.review.signed import APPROVED, Signed
from contourcast.service.review.stale import StaleItem, stale_of

# Told apart without colours, too; px along the line, drawn and left out.
DASHES: Final[dict[str, list[int]]] = {
    "translation": [2, 3],
    "rigid": [8, 4],
    "dir-t": [8, 3, 2, 3],
    "dir-l": [8, 3, 2, 3, 2, 3],
    PRIOR: [1, 4],
    APPROVED: [4, 2],
}
GHOST_COLOURS: Final = {PRIOR: "#b4b4b4", APPROVED: "#ffffff"}

Xyz = tuple[float, float, float]


class VerdictItem(BaseModel):
    """What the machine thinks of it all."""

    verdict: str = Field(description="accept, look or reject; empty until it is known.")
    reasons: list[str]
    figures: list[JudgedFigure]


class RegistrationItem(BaseModel):
    """Where the planning CT is today."""

    verdict: str
    direction: str
    translation_xyz_mm: Xyz
    rotation_xyz_deg: Xyz = Field(description="Angles of R = Rz Ry Rx.")
    at: str = Field(description="Where the translation is measured.")
    at_xyz_mm: Xyz = Field(description="On the CBCT.")
    figures: list[JudgedFigure]
    planning_from_cbct: list[list[float]] = Field(description="4x4, for columns, LPS mm.")


class ImageItem(BaseModel):
    """Voxels that /v1/volumes hands out, and where they lie."""

    volume: str = Field(description="SHA-256 of the voxels.")
    shape_zyx: tuple[int, int, int]
    spacing_xyz_mm: Xyz
    origin_xyz_mm: Xyz = Field(description="Centre of the first voxel.")
    direction: list[list[float]] = Field(description="Columns: where i, j and k lead, LPS.")
    slice_z_mm: list[float] = Field(description="Along k, from the first slice.")
    even: bool = Field(description="Whether all slices are the same distance apart.")
    label: str
    outside: int = Field(description="Where there is nothing to show.")
    frame_of_reference: str


class ImagesItem(BaseModel):
    """Both on one grid."""

    cbct: ImageItem
    planning: ImageItem | None
    planning_why_not: str


class TargetItem(BaseModel):
    """Where the contours are."""

    center_xyz_mm: Xyz
    first_slice: int
    last_slice: int


class AgreementItem(BaseModel):
    """Of two methods' contours."""

    dice: float | None
    mean_surface_mm: float | None


class DrawnItem(BaseModel):
    """A method's contour."""

    method: str
    roi_name: str
    colour: str
    dash: list[int]
    volume_cc: float | None
    change_percent: float | None = Field(description="Against the prior.")
    shift_xyz_mm: Xyz | None = Field(description="Of its centre, from the carried prior's.")
    seconds: float
    recommended: bool
    empty: bool
    agreement: dict[str, AgreementItem]
    note: str


class SliceItem(BaseModel):
    """How far methods lie apart on a slice."""

    slice: int
    mm: float


class GhostItem(BaseModel):
    """A contour that is shown and not chosen."""

    ghost: str = Field(description="prior or approved.")
    label: str
    carried_from: Literal["planning", "signed"] | None = Field(
        description="Whose contour the prior was: the plan's, or the one last signed."
    )
    colour: str
    dash: list[int]
    volume_cc: float | None


class ApprovedItem(BaseModel):
    """The last signature."""

    number: int
    method: str
    reviewer: str
    at: str
    structures_uid: str


class MayItem(BaseModel):
    """What the caller may do with it now."""

    sign: bool
    edit: bool
    retry: bool = Field(description="What failed; a reviewer may also put it away.")
    reject: bool = Field(description="Also of what is out of date, so that it need not stay.")
    why_not: str


class DraftItem(BaseModel):
    """An edit that somebody began and nobody signed: no part of what is shown."""

    by: str
    saved_at: str
    method: str
    edited_slices: int


class View(BaseModel):
    """A propagation for the review page."""

    propagation: str
    state: State
    patient: PatientItem | None
    course: str | None
    fraction: int | None
    fractions: int | None
    scan: int | None = Field(description="1, 2 … of that fraction: of one, several may be taken.")
    scans: int | None
    roi: str
    acquired_at: str
    arrived_at: str
    machine: str
    cbct_series: str
    frame_of_reference: str
    stale: StaleItem | None
    basis: BasisItem
    verdict: VerdictItem
    registration: RegistrationItem | None
    images: ImagesItem
    target: TargetItem | None
    methods: list[DrawnItem]
    disagreement: list[SliceItem]
    worst_slice: int | None
    ghosts: list[GhostItem]
    approved: ApprovedItem | None
    draft: DraftItem | None
    may: MayItem


def build_view(
    records: Records,
    job: Job,
    page: Page,
    report: Report | None,
    *,
    signed: Signed | None,
    reviews: Sequence[Review],
    draft: Draft | None,
    taken: Taken | None,
    planned: int | None,
    reviewer: bool,
    person: bool,
) -> View:
    """Puts together what the page shows.

    Args:
        records: Index and store.
        job: Whose view it is.
        page: Its pictures and contours.
        report: What came out; None: nothing yet.
        signed: The contour that was signed last, if any.
        reviews: Every decision on it.
        draft: What somebody began to edit, if anybody did.
        taken: Which fraction of its course it is of, as far as that is known.
        planned: How many fractions the course has by its plan, if that says so.
        reviewer: Whether the caller's role lets it edit.
        person: Whether the caller has signed in, so that it may sign.
    """
    scan = job.order["cbct"]["series"]
    with records.index.read() as at:
        about = facts_of(at, {scan}).get(scan, {})
        stale, basis = stale_of(at, job), basis_of(at, job)
    drawn = {} if report is None else {each.method: each for each in report.methods}
    best = recommended({m: each.volume_cc for m, each in drawn.items()})
    prior_cc = 0.0 if report is None else report.prior.volume_cc
    course = job.origin.course_id
    slices = [k for k, _ in page.disagreement.items()]
    worst = max(page.disagreement, key=page.disagreement.__getitem__, default=None)
    return View(
        propagation=job.id,
        state=job.state,
        patient=patient_of_scan(job.origin.patient_key, about),
        course=course,
        fraction=taken.fraction if taken else None,
        # more were scanned than were planned: what was planned is no help in counting
        fractions=planned if taken and planned and taken.fraction <= planned else None,
        scan=taken.scan if taken else None,
        scans=taken.scans if taken else None,
        roi=str(job.order["roi"]) if report is None else report.prior.roi_name,
        acquired_at=job.origin.acquired_at,
        arrived_at=job.made_at.isoformat(),
        machine=f"{about.get('manufacturer', '')} {about.get('model', '')}".strip(),
        cbct_series=scan,
        frame_of_reference=page.cbct["frame_of_reference"],
        stale=stale,
        basis=basis,
        verdict=VerdictItem(
            verdict=job.verdict,
            reasons=_reasons(job, report),
            figures=_judged(report),
        ),
        registration=None if report is None else _registration(report, page),
        images=ImagesItem(
            cbct=ImageItem.model_validate(page.cbct),
            planning=None if page.planning is None else ImageItem.model_validate(page.planning),
            planning_why_not=page.planning_why_not,
        ),
        target=_target(page, best, drawn, slices),
        methods=[
            _method(each, page, prior_cc, recommended=method == best)
            for method, each in drawn.items()
        ],
        disagreement=[SliceItem(slice=k, mm=mm) for k, mm in sorted(page.disagreement.items())],
        worst_slice=worst,
        ghosts=_ghosts(job, page, prior_cc, signed),
        approved=_approved(reviews),
        draft=_edit(draft),
        may=_may(job, stale, drawn, reviewer=reviewer, person=person),
    )


def _edit(draft: Draft | None) -> DraftItem | None:
    if draft is None:
        return None
    return DraftItem(
        by=draft.reviewer,
        saved_at=draft.saved_at,
        method=draft.method,
        edited_slices=len(draft.loops),
    )


def _judged(report: Report | None) -> list[JudgedFigure]:
    """What only the whole says, then what only a method says of itself."""
    if report is None:
        return []
    told = {
        each.name for each in (*report.registration.figures, *report.registration.target_figures)
    }
    whole = [e for e in report.figures if e.name not in told and not e.name.endswith("_quality")]
    everywhere = {each.name for each in whole}
    return [
        *whole,
        *(
            _named_after(method.method, each)
            for method in report.methods
            for each in method.figures
            if each.name not in everywhere
        ),
    ]


def _reasons(job: Job, report: Report | None) -> list[str]:
    if report is not None:
        return list(report.reasons)
    cause = job.problem.get("detail") or job.problem.get("cause")
    return [str(cause)] if cause else []


def _named_after(what: str, figure: JudgedFigure) -> JudgedFigure:
    return figure.model_copy(update={"name": f"{what} {figure.name}"})


def _registration(report: Report, page: Page) -> RegistrationItem:
    told = report.registration
    planning_from_cbct = RigidTransform(
        matrix=np.array(told.planning_from_cbct.rows), source_frame="cbct", target_frame="planning"
    )
    point, at = page.pivot_xyz_mm, "centre of the prior"
    if point is None:
        point, at = told.at_isocenter.point_xyz_mm, told.at_isocenter.point
    here = np.array(point)
    return RegistrationItem(
        verdict=told.verdict.value,
        direction=told.cbct_from_planning.direction,
        translation_xyz_mm=_xyz(here - planning_from_cbct.apply(here[None])[0]),
        rotation_xyz_deg=told.rotation_xyz_deg,
        at=at,
        at_xyz_mm=_xyz(here),
        figures=[
            *told.figures,
            *(_named_after("target", figure) for figure in told.target_figures),
        ],
        planning_from_cbct=told.planning_from_cbct.rows,
    )


def _target(
    page: Page, best: str, drawn: Mapping[str, MethodReport], slices: Sequence[int]
) -> TargetItem | None:
    center = drawn[best].centroid_xyz_mm if best else None
    if center is None or not slices:
        return None
    return TargetItem(center_xyz_mm=center, first_slice=min(slices), last_slice=max(slices))


def _method(each: MethodReport, page: Page, prior_cc: float, *, recommended: bool) -> DrawnItem:
    shift = None
    if each.centroid_xyz_mm is not None and page.pivot_xyz_mm is not None:
        shift = _xyz(np.array(each.centroid_xyz_mm) - page.pivot_xyz_mm)
    return DrawnItem(
        method=each.method,
        roi_name=each.roi_name,
        colour="#{:02x}{:02x}{:02x}".format(*color_rgb(each.method)),
        dash=DASHES.get(each.method, []),
        volume_cc=each.volume_cc,
        change_percent=change_percent(each.volume_cc, prior_cc),
        shift_xyz_mm=shift,
        seconds=each.seconds,
        recommended=recommended,
        empty=not page.contours.get(each.method),
        agreement={
            other: AgreementItem.model_validate(figures)
            for other, figures in page.agreement.get(each.method, {}).items()
        },
        note="; ".join(filter(None, (each.failed, each.ended_as, *each.notes))),
    )


def _ghosts(job: Job, page: Page, prior_cc: float, signed: Signed | None) -> list[GhostItem]:
    ghosts: list[tuple[str, str, Literal["planning", "signed"] | None, float | None]] = []
    if PRIOR in page.contours:
        if job.order["prior"] is None:
            ghosts.append((PRIOR, "prior: planning contour, carried rigidly", "planning", prior_cc))
        else:
            ghosts.append((PRIOR, "prior: last approved, carried rigidly", "signed", prior_cc))
    if signed is not None:
        ghosts.append((APPROVED, f"approved by {signed.reviewer}", None, signed.volume_cc))
    return [
        GhostItem(
            ghost=name,
            label=label,
            carried_from=carried_from,
            colour=GHOST_COLOURS[name],
            dash=DASHES[name],
            volume_cc=None if cc is None else round(cc, 4),
        )
        for name, label, carried_from, cc in ghosts
    ]


def _approved(reviews: Sequence[Review]) -> ApprovedItem | None:
    signed = [each for each in reviews if each.structures_uid]
    if not signed or reviews[-1].decision == "rejected":
        return None
    last = signed[-1]
    return ApprovedItem(
        number=last.number,
        method=last.method,
        reviewer=last.reviewer,
        at=last.at,
        structures_uid=last.structures_uid,
    )


def _may(
    job: Job,
    stale: StaleItem | None,
    drawn: Mapping[str, MethodReport],
    *,
    reviewer: bool,
    person: bool,
) -> MayItem:
    here = job.state in DECIDED | {State.AWAITING_REVIEW}
    if not reviewer:
        why_not = "your role is to look, not to decide"
    elif stale is not None:
        why_not = stale.why
    elif not here:
        why_not = f"it is {job.state.value.replace('_', ' ')}"
    else:
        why_not = ""
    edit = not why_not and any(each.state == "drawn" for each in drawn.values())
    if not why_not and not person:
        why_not = "a signature needs a person who has signed in"
    return MayItem(
        sign=not why_not,
        edit=edit,
        retry=reviewer and job.state is State.FAILED,
        reject=reviewer and person and here,
        why_not=why_not,
    )


def _xyz(values: np.ndarray) -> Xyz:
    x, y, z = (round(float(v), 4) for v in values)
    return x, y, z


def named_contours(page: Page, signed: Signed | None) -> dict[str, list[dict[str, Any]]]:
    """All loops, by the names that the view gives."""
    return page.contours | ({} if signed is None else {APPROVED: signed.loops})
