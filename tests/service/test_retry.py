"""What failed, was cancelled or overtaken by nothing is tried again by its id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Client
from sqlalchemy import select, update

from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.api.app import create_app
from contourcast.service.index.tables import asked, audit, fraction, propagation, revision
from contourcast.service.intake.states import State
from contourcast.service.jobs.propagations import Origin
from contourcast.service.jobs.workflow import RETRY, set_aside
from contourcast.service.problems import problem_of
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings
from support.department import Department
from support.http import served
from support.records import looking_into
from support.rows import add
from support.treatment import make_treatment

CBCT = "1.2.840.7"
ORDER = {
    "cbct": {"series": CBCT, "files": ["d1"]},
    "planning_ct": {"series": "1.2.840.8", "files": []},
    "roi": "GTV",
    "methods": ["translation"],
    "prior": None,
}
JOB = "ab" * 16
PATH = f"/v1/propagations/{JOB}"


@pytest.fixture
def records(folder: Path) -> Iterator[Records]:
    with looking_into(folder) as opened:
        yield opened


@pytest.fixture
def http(folder: Path) -> Iterator[Client]:
    settings = ServiceSettings(data_folder=folder, disk_reserve_mib=0, waiting_limit=2)
    with served(create_app(settings)) as client:
        yield client


def stopped(records: Records, state: State = State.FAILED, **columns: Any) -> None:
    """The job of a match, that came to nothing."""
    origin = Origin(patient_key="p", revision_id="r1", course_id="c1", asked_by="intake")
    records.propagations.open(JOB, ORDER, origin)
    add(records.index, revision, id="r1", series_uid=CBCT, number=1, members_json=[["1.1", "d1"]])
    add(records.index, fraction, revision_id="r1", series_uid=CBCT, course_id="c1", state="matched")
    with records.index.write() as at:
        at.execute(update(propagation).values(state=state, ended=1, **columns))


def test_a_propagation_of_the_intake_that_failed_is_drawn_after_all(
    records: Records, folder: Path, tmp_path: Path
) -> None:
    treatment = make_treatment(tmp_path / "treatment", fractions=1, seed=1)
    department = Department(records)
    department.send(treatment.paths)
    department.wait()
    (failed,) = department.jobs().values()
    problem = problem_of(set_aside(RETRY)).model_dump()
    records.propagations.end(failed.id, problem=problem)
    assert problem["remedy"].endswith("POST /v1/propagations/{id}/retry")
    with served(create_app(ServiceSettings(data_folder=folder, disk_reserve_mib=0))) as http:
        answer = http.post(f"/v1/propagations/{failed.id}/retry")
        again = http.post(f"/v1/propagations/{failed.id}/retry")
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/propagations/{failed.id}"
    assert int(answer.headers["retry-after"]) > 0
    said = answer.json()
    assert (said["state"], said["attempt"], said["ended"]) == ("matched", 2, False)
    assert said["problem"] is None
    assert (again.status_code, again.json()["type"]) == (409, "/problems/forbidden-transition")
    job = records.propagations.job(failed.id)
    assert (job.order, job.origin) == (failed.order, failed.origin)
    department.steps.end(job.id, department.finish(job.id, department.drawn(job)), job.attempt)
    assert records.propagations.job(job.id).state is State.AWAITING_REVIEW


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.SUPERSEDED])
def test_what_stopped_with_nothing_in_its_place_is_tried_again(
    http: Client, records: Records, state: State
) -> None:
    stopped(records, state)
    assert http.post(f"{PATH}/retry").status_code == 202
    assert records.propagations.job(JOB).state is State.MATCHED


@pytest.mark.parametrize(
    "state", [state for state in State if state.value not in ("failed", "cancelled", "superseded")]
)
def test_what_did_not_stop_is_not(http: Client, records: Records, state: State) -> None:
    stopped(records, state)
    answer = http.post(f"{PATH}/retry")
    assert (answer.status_code, state.value in answer.json()["cause"]) == (409, True)
    assert records.propagations.job(JOB).attempt == 1


def test_what_something_newer_replaces_is_not(http: Client, records: Records) -> None:
    stopped(records, State.SUPERSEDED, superseded_by="cd" * 16)
    assert "newer propagation" in http.post(f"{PATH}/retry").json()["cause"]
    with records.index.write() as at:
        at.execute(update(propagation).values(superseded_by=None))
        at.execute(update(fraction).values(state="not_ours"))
    assert "decided otherwise" in http.post(f"{PATH}/retry").json()["cause"]
    members = [["1.1", "d1"], ["1.2", "d2"]]
    add(records.index, revision, id="r2", series_uid=CBCT, number=2, members_json=members)
    with records.index.write() as at:
        at.execute(update(fraction).values(state="matched"))
    answer = http.post(f"{PATH}/retry")
    assert (answer.status_code, "more slices" in answer.json()["cause"]) == (409, True)
    assert records.propagations.job(JOB).state is State.SUPERSEDED


def test_what_changed_since_it_was_looked_at_is_not(http: Client, records: Records) -> None:
    stopped(records)
    tag = http.get(PATH).headers["etag"]
    assert http.post(f"{PATH}/retry", headers={"If-Match": '"other"'}).status_code == 412
    assert http.post(f"{PATH}/retry", headers={"If-Match": tag}).status_code == 202


def test_while_too_many_wait_it_is_told_to_come_later(http: Client, records: Records) -> None:
    stopped(records)
    for name in ("b", "c"):
        records.propagations.open(name, ORDER)
    assert http.post(f"{PATH}/retry").status_code == 503
    assert records.propagations.job(JOB).state is State.FAILED


def test_whoever_may_stop_a_propagation_may_have_it_tried_again(
    http: Client, records: Records
) -> None:
    def key(role: Role) -> dict[str, str]:
        secret = make_key(records.index, label=role, roles=[role], days=1)[1]
        return {"Authorization": f"Bearer {secret}"}

    stopped(records)
    uploader = key(Role.UPLOADER)
    assert http.post(f"{PATH}/retry", headers=key(Role.VIEWER)).status_code == 403
    assert http.post(f"{PATH}/retry", headers=uploader).status_code == 404, "it is not its own"
    assert http.post(f"{PATH}/retry", headers=key(Role.ADMIN)).status_code == 202
    with records.index.read() as at:
        (by,) = at.execute(select(asked.c.caller).where(asked.c.propagation == JOB)).scalars()
        rows = list(at.execute(select(audit.c.row_json).order_by(audit.c.number)).scalars())
    assert by.startswith("key:")
    last = rows[-1]
    assert (last["what"], last["patient"], last["objects"]) == ("create", "p", [JOB])
