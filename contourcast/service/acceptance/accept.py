"""The whole of it: the fixed set, the site's own data, and a report to sign."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from contourcast.imaging.errors import ContourcastError
from contourcast.imaging.files import whole_folder
from contourcast.models.weights import SHIPPED, named
from contourcast.service.acceptance import own
from contourcast.service.acceptance.accidents import ACCIDENTS, of_accident
from contourcast.service.acceptance.carried import Carried, Machine
from contourcast.service.acceptance.checks import Check, carry_or_refuse, refused
from contourcast.service.acceptance.fixed import FixedSet, Made, make
from contourcast.service.acceptance.geometry import AXES, of_geometry
from contourcast.service.acceptance.report import (
    Acceptance,
    CheckReport,
    Own,
    OwnCbct,
    Picture,
    render_html,
)
from contourcast.service.acceptance.truth import of_truth

REPORT_FILE: Final = "acceptance.json"
PAGE_FILE: Final = "acceptance.html"
# A page of more pictures is too heavy to be sent: the first CBCT of each of the first patients.
MOST_OWN_PICTURES: Final = 6

OnStep = Callable[[str, float], None]
"""Told what is going on (a sentence) and how much of the whole is done (0 to 1)."""


@dataclass(kw_only=True, eq=False)
class _Found:
    """What has been answered so far."""

    checks: list[Check] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def show(self, carried: Carried, title: str) -> None:
        """Keeps a run's picture, and what it was computed with."""
        self.pictures.append(Picture(title=title, png=carried.picture))
        self.versions = carried.report.provenance.versions


def accept(
    out: Path,
    *,
    machine: Machine,
    fixed: FixedSet,
    facts: Mapping[str, str],
    patients: Path | None = None,
    roi: str = "GTV",
    on_step: OnStep = lambda sentence, done: None,
) -> Acceptance:
    """Asks this installation everything, and writes the report; all of it or nothing.

    Args:
        out: A new or empty folder.
        machine: What draws.
        fixed: Who is simulated.
        facts: What the machine is, for the report.
        patients: The site's own courses in DICOM; None: the fixed set alone.
        roi: Of the own courses: the tumour, on planning CT and CBCT alike.
        on_step: Told of progress.

    Raises:
        InputError: The folder of the own courses holds nothing.
        DeviceError: The GPU failed for good.
        OSError: Nothing can be written.
    """
    start = time.perf_counter()
    theirs = own.find(patients, roi) if patients else []
    share = 0.5 if theirs else 1.0  # of the progress
    found = _Found()
    _ask(found, fixed, machine, lambda sentence, done: on_step(sentence, share * done))
    rows = _rows(found, theirs, machine, roi, lambda s, done: on_step(s, share * (1 + done)))
    acceptance = Acceptance(
        made_at=datetime.now(UTC).astimezone(),
        passed=all(check.passed for check in found.checks),
        checks=[CheckReport.of(check) for check in found.checks],
        left_out=list(machine.left_out),
        own=Own(roi=roi, cbcts=rows) if patients else None,
        network=machine.network.name,
        weights_digest=machine.network.digest,
        shipped_weights=machine.network.digest == named(SHIPPED)[1],
        device=machine.device,
        machine=dict(facts),
        versions=found.versions,
        seconds=round(time.perf_counter() - start, 1),
    )
    with whole_folder(out) as draft:
        (draft / REPORT_FILE).write_text(acceptance.model_dump_json(indent=1) + "\n", "utf-8")
        (draft / PAGE_FILE).write_text(render_html(acceptance, found.pictures), "utf-8")
    return acceptance


def _ask(found: _Found, fixed: FixedSet, machine: Machine, on_step: OnStep) -> None:
    """The fixed set: simulated, carried, stored otherwise, and tampered with."""
    with tempfile.TemporaryDirectory(prefix="contourcast-accept-") as name:
        work = Path(name)
        first, second = make(fixed, work / "set", lambda s, done: on_step(s, 0.1 * done))
        answers = []
        for number, made in enumerate((first, second)):
            on_step(f"{made.name}: every method", 0.1 + 0.25 * number)
            answers.append(_against_truth(found, made, machine, fixed))
        for number, position in enumerate(AXES):
            on_step(f"the same scan, stored as {position}", 0.6 + 0.05 * number)
            if answers[0] is not None:
                found.checks += of_geometry(first, answers[0], machine, position, work / position)
        for number, accident in enumerate(ACCIDENTS):
            on_step(accident.what, 0.7 + 0.3 * number / len(ACCIDENTS))
            found.checks.append(of_accident(accident, first, second, machine, work))


def _against_truth(found: _Found, made: Made, machine: Machine, fixed: FixedSet) -> Carried | None:
    carried = carry_or_refuse(machine, made.files)
    if isinstance(carried, ContourcastError):
        found.checks.append(
            refused(
                carried,
                group="truth",
                what=f"{made.name}: every method",
                expected="a contour by each",
                because="nothing is wrong with it",
                meant=False,
            )
        )
        return None
    digest = machine.network.digest
    found.checks += of_truth(made, carried, fixed, network_digest=digest)
    found.show(carried, made.name)
    return carried


def _rows(
    found: _Found, theirs: Sequence[own.Today], machine: Machine, roi: str, on_step: OnStep
) -> list[OwnCbct]:
    """Each CBCT of the site, one after the other: a scan is large, a row is not."""
    rows, shown = [], set[int]()
    for number, today in enumerate(theirs):
        on_step(f"own data: CBCT {number + 1} of {len(theirs)}", number / len(theirs))
        outcome = own.run(today, machine, roi)
        rows.append(OwnCbct.of(outcome))
        if outcome.carried and today.patient not in shown and len(shown) < MOST_OWN_PICTURES:
            shown.add(today.patient)
            found.show(outcome.carried, f"own data: patient {today.patient}, first CBCT carried")
    return rows
