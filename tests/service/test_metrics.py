"""What Prometheus is told: from the database, so that all processes say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event as event_api
from sqlalchemy import text

from contourcast.service.access.audit import Happening, record
from contourcast.service.access.roles import What
from contourcast.service.api.app import create_app
from contourcast.service.api.measures import WHOLE_EVERY_S, AuditChain, Measures
from contourcast.service.index.tables import (
    arrival,
    cursor,
    delivery,
    event,
    fraction,
    instance,
    propagation,
    series,
)
from contourcast.service.jobs import work
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.course import CourseFiles
from support.http import served
from support.postgres import postgres
from support.rows import add
from support.server import Finished, form_files

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LEAK = "ZZQQ-LEAK"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.peer)])
def service(request: pytest.FixtureRequest, folder: Path) -> Iterator[ServiceSettings]:
    callers: dict[str, tuple[str, ...]] = {"LINAC1": ("127.0.0.1",)}
    if request.param == "sqlite":
        yield ServiceSettings(data_folder=folder, dicom_callers=callers)
        return
    with postgres() as cluster:
        url = cluster.database("metrics")
        yield ServiceSettings(data_folder=folder, dicom_callers=callers, database_url=url)


@pytest.fixture
def records(service: ServiceSettings) -> Iterator[Records]:
    opened = open_records(service, role="test")
    yield opened
    opened.close()


def at(**later: float) -> str:
    return (NOON + timedelta(**later)).isoformat()


def fill(records: Records) -> None:
    index = records.index
    for number, outcome in enumerate(("stored", "stored", "conflict"), start=1):
        add(index, arrival, number=number, door="rest", outcome=outcome)
    add(index, instance, sop_uid="1.1", modality="CT", bytes=500)
    for uid, sender, maker in (
        ("1.2.1", "LINAC1", LEAK),
        ("1.2.2", LEAK, "Varian Medical Systems"),
        ("1.2.3", LEAK, LEAK),
    ):
        facts = {"manufacturer": maker, "model": LEAK}
        add(index, series, uid=uid, modality="CT", sender=sender, facts_json=facts, state="whole")
        add(
            index,
            propagation,
            id=uid,
            number=int(uid[-1]),
            state="awaiting_review",
            verdict="look",
            ended=1,
            cbct_series_uid=uid,
            figures_json={"methods": {"rigid": {"verdict": "accept"}}},
        )
    for state, seconds in (("registering", 0), ("drawing", 3), ("comparing", 33)):
        add(
            index,
            event,
            propagation="1.2.1",
            number=seconds + 1,
            at=at(seconds=seconds),
            state=state,
        )
    for number, state, priority in ((10, "matched", 1), (11, "drawing", 1), (12, "matched", 9)):
        add(
            index,
            propagation,
            id=str(number),
            number=number,
            state=state,
            priority=priority,
            made_at=at(minutes=number - 30),
        )
    add(index, fraction, revision_id="a", state="needs_person")
    add(index, delivery, id="a", number=1, destination="pacs", state="dead")
    add(index, cursor, name="diary:pacs", value_json={"looked_at": at(minutes=-2)})
    records.workers.seen("worker-1", "cpu")


def measured(text_: bytes) -> dict[str, float]:
    """Every sample by its name and labels."""
    return {
        sample.name + str(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text_.decode())
        for sample in family.samples
    }


def test_what_is_counted_stands_in_the_database(records: Records, service: ServiceSettings) -> None:
    fill(records)
    found = Measures(records, service, clock=lambda: NOON).text()
    assert LEAK.encode() not in found, "what a header says is no label"
    values = measured(found)
    expected = {
        "contourcast_arrivals_total['rest', 'stored']": 2,
        "contourcast_arrivals_total['conflict', 'rest']": 1,
        "contourcast_kept_bytes_total['CT']": 500,
        "contourcast_series['whole']": 3,
        "contourcast_queue_depth['matched', 'today']": 1,
        "contourcast_queue_depth['drawing', 'today']": 1,
        "contourcast_queue_depth['evaluation', 'matched']": 1,
        "contourcast_queue_age_seconds['today']": 20 * 60,
        "contourcast_queue_age_seconds['evaluation']": 18 * 60,
        "contourcast_open_questions[]": 1,
        "contourcast_step_seconds_bucket['2.0', 'registering']": 0,
        "contourcast_step_seconds_bucket['5.0', 'registering']": 1,
        "contourcast_step_seconds_bucket['30.0', 'drawing']": 1,
        "contourcast_step_seconds_count['drawing']": 1,
        "contourcast_step_seconds_sum['drawing']": pytest.approx(30.0, abs=0.01),
        "contourcast_verdicts['LINAC1', 'look']": 1,
        "contourcast_verdicts['look', 'varian']": 1,
        "contourcast_verdicts['look', 'other']": 1,
        "contourcast_method_verdicts['LINAC1', 'accept', 'rigid']": 1,
        "contourcast_deliveries['dead', 'pacs']": 1,
        "contourcast_reconciler_lag_seconds['pacs']": 120,
        "contourcast_audit_chain_ok[]": 1,
        "contourcast_disk_reserve_bytes[]": service.disk_reserve_mib * 2**20,
    }
    assert {name: values[name] for name in expected} == expected
    assert values["contourcast_worker_silent_seconds['worker-1']"] < 60
    assert values["contourcast_disk_free_bytes[]"] > 0
    again = open_records(service, role="other")
    other = measured(Measures(again, service, clock=lambda: NOON).text())
    again.close()
    assert {name: other[name] for name in expected} == expected, "every process says the same"


def test_a_scrape_goes_through_what_is_new_and_through_whole_tables_once_a_minute(
    records: Records, service: ServiceSettings
) -> None:
    fill(records)
    moment = [NOON]
    measures = Measures(records, service, clock=lambda: moment[0])
    stored = "contourcast_arrivals_total['rest', 'stored']"
    kept, waiting = "contourcast_kept_bytes_total['CT']", "contourcast_open_questions[]"
    assert [measured(measures.text())[name] for name in (stored, kept, waiting)] == [2, 500, 1]
    fresh = records.index.now().isoformat()
    add(records.index, arrival, number=4, door="rest", outcome="stored", at=fresh)
    add(records.index, arrival, number=6, door="rest", outcome="stored", at=fresh)
    add(records.index, instance, sop_uid="1.3", modality="CT", bytes=7)
    add(records.index, fraction, revision_id="b", state="needs_person")
    found = measured(measures.text())
    assert [found[name] for name in (stored, kept, waiting)] == [4, 500, 2]
    # one that was begun before them and committed after them is not left out
    add(records.index, arrival, number=5, door="rest", outcome="stored", at=fresh)
    moment[0] += timedelta(seconds=WHOLE_EVERY_S)
    found = measured(measures.text())
    assert [found[name] for name in (stored, kept)] == [5, 507]
    queries: list[str] = []
    with records.index.read() as connection:
        event_api.listen(connection.engine, "before_cursor_execute", _noting(queries))
    measures.text()
    whole = [q for q in queries if "FROM instance" in q or "FROM event" in q]
    assert whole == []
    assert all("arrival.number >" in q for q in queries if "FROM arrival" in q)


def _noting(queries: list[str]) -> Callable[..., None]:
    return lambda connection, cursor_, statement, *_: queries.append(statement)


def test_an_empty_service_measures_nothing_and_does_not_fall(
    records: Records, service: ServiceSettings
) -> None:
    values = measured(Measures(records, service).text())
    assert values["contourcast_queue_age_seconds['today']"] == 0
    assert values["contourcast_audit_rows_looked_at[]"] == 0


def test_a_gpu_s_memory_is_told_by_its_worker_while_that_lives(
    records: Records, service: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (3_000, 8_000))
    for worker in ("gpu-1", "gpu-2"):
        records.workers.seen(worker, "gpu")
        duty = work._gpu(records.workers, worker)
        duty.run()
        duty.run()
    assert not duty.alone, "each has its own"
    records.workers.left("gpu-2")
    records.workers.seen("cpu-1", "cpu")
    told = measured(Measures(records, service).text())
    assert {name: value for name, value in told.items() if "gpu_memory" in name} == {
        "contourcast_gpu_memory_used_bytes['gpu-1']": 5_000,
        "contourcast_gpu_memory_bytes['gpu-1']": 8_000,
    }


def test_a_row_of_the_log_that_was_changed_is_told(records: Records) -> None:
    chain = AuditChain(records.index)
    for _ in range(3):
        record(records.index, Happening(what=What.START))
    assert chain.look() == (1, 3)
    record(records.index, Happening(what=What.START))
    assert chain.look() == (1, 4)
    with records.index.write() as connection:
        connection.execute(text("UPDATE audit SET at = 'later' WHERE number = 2"))
    assert AuditChain(records.index).look() == (0, 4)
    assert chain.look() == (1, 4), "this one looked before; `contourcast audit verify` looks anew"


def test_it_is_served_as_text_and_names_no_patient(finished: Finished) -> None:
    answer = finished.server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "ZZQQ" not in answer.text
    values = measured(answer.content)
    series = finished.server.http.get("/v1/series").json()["series"]
    here = sum(one["instances"] for one in series)  # other tests may have sent more
    assert (
        values["contourcast_arrivals_total['rest', 'stored']"] == here >= len(finished.course.paths)
    )
    assert sum(v for name, v in values.items() if name.startswith("contourcast_verdicts")) >= 1
    assert values["contourcast_step_seconds_count['registering']"] >= 1
    assert values["contourcast_audit_chain_ok[]"] == 1


def test_a_service_without_a_gpu_is_ready_and_says_that_it_is_slower(finished: Finished) -> None:
    answer = finished.server.http.get("/health/ready")
    assert answer.status_code == 200
    assert isinstance(answer.json()["degraded"], list)


def test_without_its_database_nothing_is_measured(folder: Path) -> None:
    with served(create_app(ServiceSettings(data_folder=folder))) as http:
        for path in folder.glob("index.sqlite3*"):
            path.rename(path.with_name("moved-" + path.name))
        (folder / "index.sqlite3").mkdir()
        assert http.get("/metrics").status_code == 503


def test_a_store_that_is_away_is_told_and_all_else_is_measured(
    folder: Path, tmp_path: Path, course: CourseFiles
) -> None:
    with served(create_app(ServiceSettings(data_folder=folder, disk_reserve_mib=0))) as http:
        before = measured(http.get("/metrics").content)
        (folder / "store").rename(tmp_path / "away")
        after = measured(http.get("/metrics").content)
        assert before["contourcast_disk_free_bytes[]"] > 0
        assert after["contourcast_disk_free_bytes[]"] == 0
        assert after.keys() == before.keys()
        ready = http.get("/health/ready")
        assert ready.status_code == 503
        assert "cannot be reached" in ready.json()["checks"]["store"]
        assert ready.json()["checks"]["index"] == "reachable"
        sent = http.post("/v1/instances", files=form_files(course.cbct.paths[:1]))
        assert (sent.status_code, sent.json()["type"]) == (503, "/problems/store")
