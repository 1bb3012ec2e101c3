"""What a run leaves behind: RS.dcm, REG.dcm, report.json, report.html, overlay.png.

All of them appear together or none does. REG.dcm is left out when the registration was rejected:
a transform that nobody should use is in the report, and nowhere a system would import it.
"""

from __future__ import annotations

import base64
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, Self

import jinja2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from contourcast.imaging.dicom.check import check_registration, check_structure_set
from contourcast.imaging.dicom.modules import SERIES_NUMBER, required_source
from contourcast.imaging.dicom.registration_out import write_registration
from contourcast.imaging.dicom.rtstruct_out import (
    Generation,
    day_label,
    proposal_name,
    write_structure_set,
)
from contourcast.imaging.errors import ContourcastError
from contourcast.imaging.metrics import Agreement
from contourcast.imaging.structures import Roi
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Verdict, worst
from contourcast.imaging.volume import Volume
from contourcast.propagate import Drawn, Propagation, color_rgb, is_network
from contourcast.registration.result import Registrations
from contourcast.service.outputs.pictures import overlay_png
from contourcast.service.outputs.recommended import recommended

FILES: Final = ("RS.dcm", "REG.dcm", "report.json", "report.html", "overlay.png")
NOTICE: Final = (
    "Not a medical device. A proposal made by a machine; nobody has reviewed it. "
    "Do not treat by it before a physicist has."
)
# What stands with a contour that somebody did review (CLINICAL_SERVICE §5.5).
RESEARCH: Final = (
    "Contourcast is research software, not a medical device; it is neither CE marked nor FDA "
    "cleared; a qualified person must check each contour; the operating institution is responsible."
)
PACKAGES: Final = ("contourcast", "numpy", "scipy", "torch", "pydicom", "contourpy", "itk-elastix")

Vector = tuple[float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JudgedFigure(_Part):
    """A number with its limit."""

    name: str
    value: float | None
    limit: str
    verdict: Verdict
    reason: str

    @classmethod
    def of(cls, figure: Figure) -> Self:
        """A value that is no number is not told."""
        return cls(
            name=figure.name,
            value=_maybe(figure.value),
            limit=figure.limit,
            verdict=figure.verdict,
            reason=figure.reason,
        )


class Series(_Part):
    """A scan that went in."""

    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    series_date: str
    slices: int
    shape_zyx: tuple[int, int, int]
    spacing_xyz_mm: Vector
    digest: str
    notes: list[str]


class Prior(_Part):
    """The contour that was carried."""

    structure_set_uid: str
    roi_number: int
    roi_name: str
    volume_cc: float
    vouched: str = Field(description="What a person vouched for against the references; or empty.")
    notes: list[str] = Field(
        default_factory=list, description="What is odd about the contours and their references."
    )


class Matrix(_Part):
    """A 4x4 matrix for column vectors (x, y, z, 1) in LPS mm, and what it does in words."""

    rows: list[list[float]]
    direction: str


class MotionAt(_Part):
    """How far the planning CT moved, at one point of the CBCT."""

    point: str
    point_xyz_mm: Vector
    translation_xyz_mm: Vector


class RegistrationReport(_Part):
    """Where the planning CT is today."""

    verdict: Verdict
    focus: Literal["body", "target"]
    planning_from_cbct: Matrix
    cbct_from_planning: Matrix
    rotation_xyz_deg: Vector = Field(description="Angles of R = Rz Ry Rx of cbct_from_planning.")
    angle_deg: float
    at_isocenter: MotionAt
    at_gtv: MotionAt | None
    body_and_target_apart_mm: float | None
    translation_only_xyz_mm: Vector
    seconds: float
    figures: list[JudgedFigure]
    target_figures: list[JudgedFigure]


class MethodReport(_Part):
    """One method's contour."""

    method: str
    state: Literal["drawn", "empty", "failed", "withheld"]
    roi_name: str
    volume_cc: float | None
    centroid_xyz_mm: Vector | None
    seconds: float
    ended_as: str
    failed: str
    notes: list[str]
    verdict: Verdict
    figures: list[JudgedFigure]
    agreement_with_rigid: dict[str, float | str | None] | None
    agreement_with_network: dict[str, float | str | None] | None


class Provenance(_Part):
    """What made it."""

    made_at: datetime
    inputs_digest: str
    network: str
    weights_digest: str
    device: str
    versions: dict[str, str]
    settings: dict[str, object]


class Report(_Part):
    """report.json: everything that a program or a physicist may ask about one propagation."""

    notice: str = NOTICE
    verdict: Verdict
    reasons: list[str]
    figures: list[JudgedFigure] = Field(
        default_factory=list,  # reports of before have none
        description="Of the whole: the verdict is the worst of them.",
    )
    cbct: Series
    planning_ct: Series
    prior: Prior
    registration: RegistrationReport
    methods: list[MethodReport]
    provenance: Provenance


def write_results(
    propagation: Propagation, out: Path, *, made_at: datetime, series_number: int = SERIES_NUMBER
) -> Report:
    """Writes the files of a run into the folder ``out``, all or none.

    Args:
        propagation: The run.
        out: A new or empty folder, or one of an earlier try.
        made_at: When, by the clock that the DICOM objects go by; the report is in UTC.
        series_number: (0020,0011) of the structure set.

    Raises:
        ContourcastError: Our own cross-checker finds fault with what was written (a bug, which
            must not leave the house), or ``out`` holds something else.
    """
    out = out.resolve()
    foreign = [p.name for p in out.iterdir() if p.name not in FILES] if out.is_dir() else []
    if foreign:
        raise ContourcastError(
            f"the output folder holds other files, such as '{foreign[0]}'",
            file=out.name,
            remedy="name a new or empty folder",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    report = build_report(propagation, made_at=made_at)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_dicom(propagation, report, draft, made_at, series_number)
        picture = overlay_png(propagation)
        (draft / "overlay.png").write_bytes(picture)
        (draft / "report.json").write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
        (draft / "report.html").write_text(render_html(report, propagation, picture), "utf-8")
        draft.chmod(0o755)
        if out.is_dir():  # ours, of an earlier try
            for name in FILES:
                if (draft / name).exists():
                    (draft / name).replace(out / name)
                else:
                    (out / name).unlink(missing_ok=True)
        else:
            draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


def build_report(propagation: Propagation, *, made_at: datetime) -> Report:
    """The report as data."""
    case = propagation.case
    return Report(
        verdict=propagation.verdict,
        reasons=list(propagation.quality.reasons),
        figures=_figures(propagation.quality.figures),
        cbct=_series(case.cbct),
        planning_ct=_series(case.planning_ct),
        prior=Prior(
            structure_set_uid=case.prior_source_uid,
            roi_number=case.prior.number,
            roi_name=case.prior.name,
            volume_cc=_round(propagation.prior_volume_cc),
            vouched=case.vouched,
            notes=list(case.notes),
        ),
        registration=_registration(propagation),
        methods=[_method(d, propagation) for d in propagation.drawn],
        provenance=Provenance(
            made_at=made_at.astimezone(UTC),
            inputs_digest=propagation.digest,
            network=propagation.network_name,
            weights_digest=propagation.network_digest,
            device=propagation.settings.device,
            versions=_versions(propagation.settings.device),
            settings=asdict(propagation.settings),
        ),
    )


def render_html(report: Report, propagation: Propagation, picture: bytes) -> str:
    """One self-contained page for a physicist: no script, no outside file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("contourcast.service.outputs", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["num"] = _number
    source = propagation.case.cbct.source
    return environment.get_template("report.html.j2").render(
        report=report,
        patient=source.patient if source else None,
        colors={
            m.method: "#{:02x}{:02x}{:02x}".format(*color_rgb(m.method)) for m in report.methods
        },
        picture=base64.b64encode(picture).decode(),
    )


def _write_dicom(
    propagation: Propagation, report: Report, folder: Path, made_at: datetime, series_number: int
) -> None:
    case = propagation.case
    numbered = _recommended_first(propagation.drawn)
    generations = [generation_of(drawn.method, report) for _, drawn in numbered]
    drawn_by = "; ".join(each.description for each in generations)
    write_structure_set(
        folder / "RS.dcm",
        rois=[_roi(number, drawn, propagation) for number, drawn in numbered],
        generations=generations,
        reference=case.cbct,
        label=day_label(required_source(case.cbct.source, "CBCT")),
        name=case.prior.name,
        series_description="Contourcast proposals",
        series_number=series_number,
        description=f"verdict {report.verdict}; {NOTICE} Drawn by {drawn_by}",
        digest=propagation.digest,
        drawn_at=made_at,
        predecessor_uid=case.prior_source_uid,
    )
    findings = check_structure_set(folder / "RS.dcm", case.cbct)
    if not propagation.registrations.rejected:
        write_registration(
            folder / "REG.dcm",
            cbct_from_planning=propagation.registrations.chosen.cbct_from_planning,
            cbct=case.cbct,
            planning_ct=case.planning_ct,
            digest=propagation.digest,
            made_at=made_at,
            series_number=series_number,
        )
        findings += check_registration(folder / "REG.dcm", case.cbct, case.planning_ct)
    if findings:
        raise ContourcastError(
            f"what was written does not pass our own check: {findings[0]}",
            uid=report.cbct.series_instance_uid,
            remedy="nothing was kept; report this with the series UID",
        )


def _recommended_first(drawn: Sequence[Drawn]) -> list[tuple[int, Drawn]]:
    """Contours with their numbers: a method's place among the methods, whichever comes first.

    So whoever knows the methods finds each contour by its number, as in the sets of before.
    """
    best = recommended({each.method: each.volume_cc for each in drawn})
    return sorted(enumerate(drawn, start=1), key=lambda each: each[1].method != best)


def generation_of(method: str, report: Report) -> Generation:
    """What drew a method's contour, as its run says."""
    made = report.provenance
    return Generation(
        method=method,
        version=made.versions.get("contourcast", ""),
        weights_digest=made.weights_digest if is_network(method) else "",
        is_network=is_network(method),
    )


def _roi(number: int, drawn: Drawn, propagation: Propagation) -> Roi:
    prior = propagation.case.prior
    return Roi(
        number=number,
        name=proposal_name(prior.name, drawn.method),
        contours=drawn.loops,
        frame_of_reference=propagation.case.cbct.frame_of_reference,
        interpreted_type=prior.interpreted_type,
        generation_algorithm="AUTOMATIC",
        description=f"{prior.name}, carried to this CBCT by {drawn.method}",
        color_rgb=color_rgb(drawn.method),
    )


def _series(volume: Volume) -> Series:
    source = volume.source
    return Series(
        study_instance_uid=source.study.instance_uid if source else "",
        series_instance_uid=source.series_instance_uid if source else "",
        frame_of_reference_uid=volume.frame_of_reference,
        series_date=source.series_date if source else "",
        slices=volume.grid.shape_zyx[0],
        shape_zyx=volume.grid.shape_zyx,
        spacing_xyz_mm=_vector(np.array(volume.grid.spacing_xyz_mm)),
        digest=source.digest if source else "",
        notes=list(source.notes) if source else [],
    )


def _registration(propagation: Propagation) -> RegistrationReport:
    registrations = propagation.registrations
    chosen = registrations.chosen
    cbct_from_planning = chosen.cbct_from_planning
    planning, cbct = cbct_from_planning.source_frame, cbct_from_planning.target_frame
    isocenter, what = _isocenter(propagation.case.cbct)
    gtv = propagation.r_ct.mask().centroid_xyz_mm()
    translation = registrations.translation.cbct_from_planning
    return RegistrationReport(
        verdict=registrations.quality.verdict,
        focus=registrations.focus,
        planning_from_cbct=_matrix(
            chosen.planning_from_cbct,
            f"takes a point of today's CBCT (frame {cbct}) to the planning CT (frame {planning})",
        ),
        cbct_from_planning=_matrix(
            cbct_from_planning,
            f"takes a point of the planning CT (frame {planning}) to today's CBCT (frame {cbct})",
        ),
        rotation_xyz_deg=_vector(np.array(cbct_from_planning.euler_xyz_deg)),
        angle_deg=_round(cbct_from_planning.angle_deg),
        at_isocenter=_motion_at(cbct_from_planning, isocenter, what),
        at_gtv=(
            _motion_at(cbct_from_planning, gtv, "centroid of the carried prior")
            if gtv is not None
            else None
        ),
        body_and_target_apart_mm=_maybe(registrations.apart_mm),
        translation_only_xyz_mm=_vector(translation.translation_at(isocenter)),
        seconds=_round(propagation.registration_seconds),
        figures=_figures(chosen.quality.figures),
        target_figures=_figures(
            registrations.target.quality.figures if registrations.target else ()
        ),
    )


def _isocenter(cbct: Volume) -> tuple[np.ndarray, str]:
    """The frame's origin where linacs put the isocentre there, else the middle of the scan."""
    middle = cbct.grid.center_xyz_mm
    if np.linalg.norm(middle) <= 100.0:
        return np.zeros(3), "origin of the CBCT's frame (isocentre)"
    return middle, "middle of the CBCT (its frame's origin is not the isocentre)"


def _motion_at(
    cbct_from_planning: RigidTransform, point_cbct_xyz_mm: np.ndarray, what: str
) -> MotionAt:
    """The shift of the tissue that is now at this point of the CBCT."""
    before = cbct_from_planning.inverse().apply(point_cbct_xyz_mm[None])[0]
    return MotionAt(
        point=what,
        point_xyz_mm=_vector(point_cbct_xyz_mm),
        translation_xyz_mm=_vector(point_cbct_xyz_mm - before),
    )


def _method(drawn: Drawn, propagation: Propagation) -> MethodReport:
    centroid = drawn.centroid_xyz_mm
    return MethodReport(
        method=drawn.method,
        state=_state(drawn),
        roi_name=proposal_name(propagation.case.prior.name, drawn.method),
        volume_cc=_maybe(drawn.volume_cc),
        centroid_xyz_mm=_vector(centroid) if centroid is not None else None,
        seconds=_round(drawn.seconds),
        ended_as=drawn.ended_as,
        failed=drawn.failed,
        notes=list(drawn.notes),
        verdict=_verdict(drawn, propagation.registrations),
        figures=_figures(drawn.quality.figures),
        agreement_with_rigid=_agreement(propagation.agreement.get((drawn.method, "rigid"))),
        agreement_with_network=_agreement(
            propagation.agreement.get((drawn.method, propagation.network_name))
        ),
    )


def _state(drawn: Drawn) -> Literal["drawn", "empty", "failed", "withheld"]:
    if drawn.failed:
        return "failed"
    if drawn.region is None:
        return "withheld"
    return "drawn" if drawn.loops else "empty"


def _verdict(drawn: Drawn, registrations: Registrations) -> Verdict:
    """The worst of its own and of the registration that it stands on."""
    if drawn.region is None:
        return Verdict.REJECT
    return worst([drawn.quality.verdict, registrations.quality.verdict])


def _agreement(found: Agreement | None) -> dict[str, float | str | None] | None:
    if found is None:
        return None
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in asdict(found).items()
    }


def _figures(figures: tuple[Figure, ...]) -> list[JudgedFigure]:
    return [JudgedFigure.of(figure) for figure in figures]


def _matrix(transform: RigidTransform, direction: str) -> Matrix:
    return Matrix(rows=transform.matrix.round(10).tolist(), direction=direction)


def _vector(xyz: np.ndarray) -> Vector:
    x, y, z = (_round(float(v)) for v in xyz)
    return x, y, z


def _round(value: float) -> float:
    return round(float(value), 4)


def _maybe(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else _round(value)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _versions(device: str) -> dict[str, str]:
    """Of what computed; a network whose card names no scan takes the one that ``auto`` means."""
    import torch

    from contourcast.models.selective_scan import explain_scan

    found = {name: _version(name) for name in PACKAGES}
    scan = explain_scan(torch.device(device))
    return (
        {"python": platform.python_version()}
        | {k: v for k, v in found.items() if v}
        | {"selective scan": f"auto is {scan.name}: {scan.why}"}
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
