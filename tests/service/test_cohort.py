"""Many CBCTs at once: taken in once, behind what is waited for, reported at any time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from contourcast.imaging.errors import InputError
from contourcast.service.api.app import create_app
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
from support.http import served
from support.records import looking_into
from support.treatment import Treatment, make_treatment

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


def send_today(records: Records, patient: Treatment) -> None:
    """Scans that are no cohort's, and are matched."""
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
    send_today(records, patient)
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


def test_cohorts_are_listed_with_how_far_they_are(
    records: Records, folder: Path, tmp_path: Path
) -> None:
    cohorts = Cohorts(records, SETTINGS)
    taken = cohorts.take(folder)
    take_up(records)
    job = records.propagations.jobs()[0]
    draw(records, job.id)
    send_today(records, make_treatment(tmp_path / "today", patient="T", fractions=1, seed=9))
    again = cohorts.again(Query.read("methods=rigid"), network=("", ""))
    settings = ServiceSettings(data_folder=tmp_path / "data", disk_reserve_mib=0)
    with served(create_app(settings)) as http:
        first = http.get("/v1/cohorts?limit=1")
        (newest,) = first.json()["cohorts"]
        assert (newest["id"], newest["kind"], newest["methods"]) == (again, "query", ["rigid"])
        rest = http.get(first.links["next"]["url"])
        (older,) = rest.json()["cohorts"]
        assert (older["id"], older["kind"]) == (taken, "folder")
        assert "next" not in rest.links
        assert folder.name not in rest.text, "a folder may have a patient's name"

        detail = http.get(older["link"]).json()
        assert detail["propagations"] == {"matched": 2, "awaiting_review": 1}
        assert sum(detail["verdicts"].values()) == 1
        assert (detail["series"], detail["waiting"], detail["ended"]) == (5, 0, False)
        listed = http.get(detail["links"]["propagations"]).json()["propagations"]
        assert len(listed) == 3

        report = http.get(detail["links"]["report"])
        assert report.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(report.text.splitlines()))
        assert [row["propagation"] for row in rows if row["method"]] == [job.id]
        assert len(rows) == 3
        for path in ("/v1/cohorts/none", "/v1/cohorts/none/report"):
            assert http.get(path).status_code == 404


def test_a_report_of_nothing_has_its_header(records: Records) -> None:
    assert "".join(Cohorts(records, SETTINGS).lines("none")).startswith("propagation,cbct,")


def test_a_report_is_read_in_parts(
    records: Records, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts = Cohorts(records, SETTINGS)
    taken = cohorts.take(folder)
    take_up(records)
    monkeypatch.setattr("contourcast.service.cohort.AT_ONCE", 2)
    assert len(list(csv.DictReader("".join(cohorts.lines(taken)).splitlines()))) == 3
