"""Many CBCTs at once: taken in once, behind what is waited for, reported at any time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from contourcast.imaging.errors import InputError
from contourcast.service.archive import Sent
from contourcast.service.cohort import Cohorts, Query
from contourcast.service.ingest import take_files
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.rules import SiteRules
from contourcast.service.intake.states import State
from contourcast.service.jobs.propagations import EVALUATION, TODAY
from contourcast.service.jobs.steps import Steps
from contourcast.service.problems import NotFoundError
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings
from support.records import looking_into
from support.treatment import make_treatment

SETTINGS = ServiceSettings(disk_reserve_mib=0)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with looking_into(tmp_path / "data") as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    make_treatment(root / "p1", patient="P1", fractions=2, seed=2)
    make_treatment(root / "p2", patient="P2", fractions=1, seed=3)
    (root / "notes.txt").write_text("not a scan")
    return root


def take_up(records: Records) -> None:
    """What the duties of a worker do with what has arrived."""
    Arriving(records.index, records.notices).look()
    Fractions(
        Evidence(records.archive),
        records.propagations,
        records.notices,
        SiteRules(),
        served_network=lambda: ("", ""),
        methods=["translation"],
    ).look()


def draw(records: Records, propagation: str) -> None:
    steps = Steps(records, device="cpu", weights=None)
    registered = steps.register(propagation)
    drawn = steps.draw(propagation, "translation", registered["registrations"], registered["r_ct"])
    steps.end(propagation, steps.finish(propagation, registered, [drawn["drawn"]]))


def test_a_folder_is_matched_at_once_and_lies_behind_what_is_waited_for(
    records: Records, folder: Path, tmp_path: Path
) -> None:
    cohorts = Cohorts(records, SETTINGS)
    heard: list[tuple[int, int]] = []
    cohort = cohorts.take(folder, told=lambda done, of: heard.append((done, of)))
    assert heard[-1][0] == heard[-1][1] > 100
    take_up(records)
    jobs = records.propagations.jobs()
    assert len(jobs) == 3
    assert {(j.origin.cohort, j.origin.priority) for j in jobs} == {(cohort, EVALUATION)}
    progress = cohorts.progress(cohort)
    assert (progress.series, progress.waiting, progress.open_questions) == (5, 0, 0)
    assert not progress.ended

    again = cohorts.take(folder)
    take_up(records)
    assert again == cohort
    assert len(records.propagations.jobs()) == 3, "stopped and begun again, nothing is there twice"

    draw(records, jobs[0].id)
    summary = cohorts.report(cohort, tmp_path / "report")
    assert summary["propagations"] == {"matched": 2, "awaiting_review": 1}
    with (tmp_path / "report" / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    (drawn,) = [row for row in rows if row["method"]]
    assert drawn["propagation"] == jobs[0].id
    assert float(drawn["volume_cc"]) > 10


def test_a_cohort_is_not_drawn_from_another_one(records: Records, folder: Path) -> None:
    cohorts = Cohorts(records, SETTINGS)
    first = cohorts.take(folder)
    take_up(records)
    assert {job.origin.cohort for job in records.propagations.jobs()} == {first}
    with pytest.raises(InputError, match="no CBCT of those days"):
        cohorts.again(Query.read("since=2031-01-01"), network=("", ""))


def test_days_that_are_here_become_a_cohort(records: Records, tmp_path: Path) -> None:
    patient = make_treatment(tmp_path / "p", patient="Q", fractions=2, seed=5)
    take_files(
        ((p.name, p.open("rb")) for p in patient.paths),
        records.archive,
        SETTINGS,
        sent=Sent(door="rest"),
    )
    arriving = Arriving(records.index, records.notices)
    for cbct in (patient.planning_ct, *patient.fractions):
        arriving.expect(cbct.series_uid, len(cbct.paths))
    take_up(records)
    assert {j.origin.priority for j in records.propagations.jobs()} == {TODAY}
    cohorts = Cohorts(records, SETTINGS)
    query = Query.read("since=2026-01-06,until=2026-01-07,methods=rigid")
    cohort = cohorts.again(query, network=("", ""))
    (mine,) = records.propagations.jobs(cohort_id=cohort)
    assert mine.order["methods"] == ["rigid"]
    assert mine.order["cbct"]["series"] == patient.fractions[1].series_uid
    assert (mine.origin.priority, mine.state) == (EVALUATION, State.MATCHED)
    assert cohorts.progress(cohort).propagations == {"matched": 1}
    assert cohorts.again(query, network=("", "")) == cohort
    assert len(records.propagations.jobs(cohort_id=cohort)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/no/such/folder", "neither a folder nor a query"),
        ("since=2026-01-01,since=2026-01-02", "neither"),
        ("since=yesterday", "no day"),
        ("patient=X", "neither"),
    ],
)
def test_what_is_no_query_is_told(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Query.read(text)


def test_folders_without_dicom_and_unknown_cohorts_are_told(
    records: Records, tmp_path: Path
) -> None:
    cohorts = Cohorts(records, SETTINGS)
    with pytest.raises(InputError, match="not a folder"):
        cohorts.take(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM"):
        cohorts.take(tmp_path / "empty")
    with pytest.raises(NotFoundError):
        cohorts.progress("0" * 32)
