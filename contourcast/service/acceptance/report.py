"""The report to sign: acceptance.json for programs, acceptance.html for people."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, Self

import jinja2
from pydantic import BaseModel, ConfigDict, Field

from contourcast.imaging.metrics import Agreement
from contourcast.imaging.verdict import Verdict
from contourcast.service.acceptance.checks import Check, Group
from contourcast.service.acceptance.own import Outcome
from contourcast.service.outputs.report import RESEARCH, MethodReport

IN_WORDS: Final[dict[Group, str]] = {
    "truth": "Patients whose truth is known",
    "geometry": "The same scan, stored otherwise",
    "accident": "Accidents that must not pass",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CheckReport(_Part):
    """One fixed check."""

    group: Literal["truth", "geometry", "accident"]
    what: str
    expected: str
    found: str
    passed: bool
    because: str = Field(description="Why this is expected, or where the figure comes from.")

    @classmethod
    def of(cls, check: Check) -> Self:
        """As it was asked."""
        return cls(
            group=check.group,
            what=check.what,
            expected=check.expected,
            found=check.found,
            passed=check.passed,
            because=check.because,
        )


class OwnMethod(_Part):
    """One method on one CBCT of the site; distances are None where nothing was drawn by hand."""

    method: str
    state: Literal["drawn", "empty", "failed", "withheld"]
    verdict: Verdict
    volume_cc: float | None
    volume_over_prior: float | None
    seconds: float
    dice: float | None
    hd95_mm: float | None
    mean_surface_distance_mm: float | None
    failed: str
    notes: list[str]

    @classmethod
    def of(cls, method: MethodReport, prior_cc: float, found: Agreement | None) -> Self:
        """A row of the run's own report, and how far it is from what was drawn."""
        volume = method.volume_cc
        return cls(
            method=method.method,
            state=method.state,
            verdict=method.verdict,
            volume_cc=volume,
            volume_over_prior=round(volume / prior_cc, 4)
            if volume is not None and prior_cc
            else None,
            seconds=method.seconds,
            dice=_rounded(found.dice if found else None),
            hd95_mm=_rounded(found.hd95_mm if found else None),
            mean_surface_distance_mm=_rounded(found.msd_mm if found else None),
            failed=method.failed,
            notes=method.notes,
        )


class OwnCbct(_Part):
    """One CBCT of the site. Patients are numbered; scans are named by their UID."""

    patient: int
    cbct_series_uid: str
    cbct_series_date: str
    spacing_xyz_mm: tuple[float, float, float] | None
    manufacturer: str
    verdict: Verdict | None
    reasons: list[str]
    seconds: float | None
    drawn_by_hand: bool = Field(description="Whether a structure set of this CBCT holds the ROI.")
    problem: str = Field(description="Why nothing was carried; empty when it was.")
    methods: list[OwnMethod]

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Carried, or not and why."""
        scan, carried = outcome.today.scan, outcome.carried
        uid = scan.series_uid if scan else ""
        date = scan.taken_at.partition(" ")[0] if scan else ""
        if carried is None:
            return cls(
                patient=outcome.today.patient,
                cbct_series_uid=uid,
                cbct_series_date=date,
                spacing_xyz_mm=None,
                manufacturer="",
                verdict=None,
                reasons=[],
                seconds=None,
                drawn_by_hand=outcome.today.drawn is not None,
                problem=outcome.problem,
                methods=[],
            )
        report, source = carried.report, carried.case.cbct.source
        found = outcome.agreements or {}
        return cls(
            patient=outcome.today.patient,
            cbct_series_uid=uid,
            cbct_series_date=date,
            spacing_xyz_mm=report.cbct.spacing_xyz_mm,
            manufacturer=source.manufacturer if source else "",
            verdict=report.verdict,
            reasons=report.reasons,
            seconds=round(carried.seconds, 1),
            drawn_by_hand=outcome.today.drawn is not None,
            problem="",
            methods=[
                OwnMethod.of(each, report.prior.volume_cc, found.get(each.method))
                for each in report.methods
            ],
        )


class Own(_Part):
    """The site's own data."""

    roi: str
    cbcts: list[OwnCbct]


class Acceptance(_Part):
    """acceptance.json: what was asked of this installation, and what it answered."""

    notice: str = RESEARCH
    made_at: datetime
    passed: bool = Field(description="Whether every fixed check passed; own data are not judged.")
    checks: list[CheckReport]
    left_out: list[str] = Field(description="What could not be asked here, a sentence each.")
    own: Own | None
    network: str
    weights_digest: str
    shipped_weights: bool
    device: str
    machine: dict[str, str] = Field(description="What `contourcast doctor` says.")
    versions: dict[str, str]
    seconds: float


class Picture(BaseModel):
    """overlay.png of a run."""

    title: str
    png: bytes

    @property
    def base64(self) -> str:
        """For the page, which has no file beside it."""
        return base64.b64encode(self.png).decode()


def render_html(acceptance: Acceptance, pictures: Sequence[Picture]) -> str:
    """One self-contained page: no script, no outside file; legible in print."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("contourcast.service.acceptance", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["num"] = _number
    return environment.get_template("acceptance.html.j2").render(
        acceptance=acceptance,
        groups=IN_WORDS,
        pictures=pictures,
        failed=[check for check in acceptance.checks if not check.passed],
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
