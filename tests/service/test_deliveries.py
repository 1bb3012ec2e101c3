"""What goes where, whatever the destinations do: refuse, vanish, lose, lie."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from contourcast.imaging.dicom.instance import read_header
from contourcast.propagate import Settings, propagate
from contourcast.service.intake.states import State
from contourcast.service.jobs.inputs import read_case
from contourcast.service.jobs.propagations import Origin
from contourcast.service.outputs.report import write_results
from contourcast.service.pacs.deliveries import CONFIRM_AFTER_S
from contourcast.service.pacs.destinations import (
    Destination,
    DicomWebDestination,
    DimseDestination,
    OrthancDestination,
)
from contourcast.service.pacs.notices import Kind
from contourcast.service.pacs.objects import wanted
from contourcast.service.pacs.outbox import (
    FIRST_WAIT_S,
    GIVE_UP_AFTER_S,
    JITTER,
    LONGEST_WAIT_S,
    TRIES_AT_MOST,
    DeliveryState,
    wait_s,
)
from contourcast.service.pacs.profiles import Profile
from contourcast.service.problems import ForbiddenTransitionError, NotFoundError
from support.course import make_course
from support.data import peer
from support.dimse import FolderDoor, Heard, node
from support.orthanc import PASSWORD, USER, RealOrthanc, free_ports, orthanc
from support.outgoing import ORDER, START, House, KeepsWhatItGets, make_results, outgoing
from support.postgres import Cluster, postgres
from support.stub import Asked, Says, stub
from support.validators import dciodvfy

NOBODY = "http://127.0.0.1:1"  # a port on which nobody listens


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("made") / "results")


@pytest.fixture
def keeper() -> Iterator[tuple[str, KeepsWhatItGets]]:
    keeps = KeepsWhatItGets()
    with stub(keeps) as running:
        yield running.url, keeps


def web(name: str, url: str, **more: Any) -> DicomWebDestination:
    return DicomWebDestination(name=name, url=url, timeout_s=5, **more)


def uids(results: Path, *names: str) -> set[str]:
    return {read_header(results / name).sop_instance_uid for name in names}


# ------------------------------------------------------------------------------------- decisions

FILES = {"RS.dcm": "a" * 64, "REG.dcm": "b" * 64, "overlay.png": "c" * 64, "report.json": "d" * 64}


@pytest.mark.parametrize(
    ("asks", "verdict", "roles"),
    [
        ({}, "accept", ["structure_set", "registration"]),
        ({}, "look", ["structure_set", "registration"]),
        ({}, "reject", ["structure_set"]),
        ({"verdicts": ("accept",)}, "look", []),
        ({"registration": False}, "accept", ["structure_set"]),
        ({"structure_set": False}, "accept", ["registration"]),
        (
            {"secondary_capture": True, "pdf": True, "segmentation": True},
            "reject",
            ["structure_set", "secondary_capture", "pdf"],
        ),
        ({"segmentation": True}, "look", ["structure_set", "registration", "segmentation"]),
    ],
)
def test_what_a_destination_gets(asks: dict[str, Any], verdict: str, roles: list[str]) -> None:
    found = wanted(web("pacs", NOBODY, **asks), verdict, FILES)
    assert [one["role"] for one in found] == roles


def test_what_was_not_written_goes_nowhere() -> None:
    archive = web("pacs", NOBODY, secondary_capture=True, pdf=True, segmentation=True)
    assert wanted(archive, "accept", {"report.json": "d" * 64}) == []


def test_waits_double_from_ten_seconds_to_an_hour_for_three_days() -> None:
    waits = [wait_s("some id", n) for n in range(1, TRIES_AT_MOST)]
    assert waits == [wait_s("some id", n) for n in range(1, TRIES_AT_MOST)]
    assert waits != [wait_s("another", n) for n in range(1, TRIES_AT_MOST)]
    for n, seconds in enumerate(waits):
        plain = min(FIRST_WAIT_S * 2.0**n, LONGEST_WAIT_S)
        assert abs(seconds - plain) <= JITTER * plain
    assert max(abs(s / LONGEST_WAIT_S - 1) for s in waits[20:]) > JITTER / 2, "they are apart"
    assert sum(waits) == pytest.approx(GIVE_UP_AFTER_S, rel=0.05)


# ------------------------------------------------------------------------------------- planning


def test_planning_twice_is_planning_once(tmp_path: Path, results: Path) -> None:
    with outgoing(tmp_path, [web("a", NOBODY), web("b", NOBODY)]) as house:
        job, files = house.begin(results=results)
        house.end(job, files)
        first = [one.id for one in house.deliveries.list()]
        house.end(job, files)
        assert [one.id for one in house.deliveries.list()] == first
        assert len(first) == 2
        assert house.state() is State.DELIVERING


def test_without_a_destination_the_results_wait_for_a_person_at_once(
    tmp_path: Path, results: Path
) -> None:
    with outgoing(tmp_path, []) as house:
        house.finish(results=results)
        assert house.state() is State.AWAITING_REVIEW


def test_an_evaluation_goes_where_that_is_wanted_alone(tmp_path: Path, results: Path) -> None:
    with outgoing(tmp_path, [web("clinic", NOBODY), web("study", NOBODY, cohorts=True)]) as house:
        house.finish(results=results, cohort="c1")
        assert [one.destination for one in house.deliveries.list()] == ["study"]


def test_a_signed_evaluation_goes_where_that_is_wanted_alone(tmp_path: Path, results: Path) -> None:
    archives = [web("clinic", NOBODY), web("study", NOBODY, cohorts=True)]
    with outgoing(tmp_path, archives) as house:
        for name, cohort in (("p1", "c1"), ("p2", None)):
            _, files = house.begin(name, results=results, cohort=cohort)
            with house.records.index.write() as at:
                house.deliveries.plan_signed(at, name, "RS.dcm", files["RS.dcm"])
        went = [(one.propagation, one.destination) for one in house.deliveries.list()]
        assert went == [("p2", "study"), ("p2", "clinic"), ("p1", "study")]


def test_a_plan_that_is_rolled_back_never_was(tmp_path: Path, results: Path) -> None:
    with outgoing(tmp_path, [web("a", NOBODY)]) as house:
        job, files = house.begin(results=results)

        def fails_after_planning() -> None:
            with house.records.index.write() as at:
                assert house.deliveries.plan(at, job, files)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fails_after_planning()
        assert house.deliveries.list() == []


# ------------------------------------------------------------------------- with real archives


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOrthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), stable_age_s=60) as running:
        yield running


@pytest.fixture
def of_orthanc(archive: RealOrthanc, monkeypatch: pytest.MonkeyPatch) -> dict[str, Destination]:
    monkeypatch.setenv("ORTHANC_PASSWORD", PASSWORD)
    how: dict[str, Any] = {"user": USER, "password_env": "ORTHANC_PASSWORD"}
    return {
        "orthanc": OrthancDestination(name="orthanc", url=archive.url, **how),
        "dicomweb": DicomWebDestination(
            name="dicomweb", url=f"{archive.url}/dicom-web", profile=Profile(holes="xor"), **how
        ),
    }


def held(archive: RealOrthanc) -> dict[str, list[str]]:
    """Instances that Orthanc holds: its ids by SOP Instance UID."""
    found: dict[str, list[str]] = {}
    for one in archive.http.get("/instances", params={"expand": ""}).raise_for_status().json():
        found.setdefault(one["MainDicomTags"]["SOPInstanceUID"], []).append(one["ID"])
    return found


@pytest.mark.peer
def test_orthanc_gets_it_once_both_ways_and_is_asked_a_minute_later(
    tmp_path: Path, results: Path, archive: RealOrthanc, of_orthanc: dict[str, Destination]
) -> None:
    with outgoing(tmp_path, list(of_orthanc.values())) as house:
        house.finish(results=results)
        assert house.state() is State.DELIVERING
        assert house.told() == []
        assert house.run_due() == 2
        assert house.state() is State.AWAITING_REVIEW
        assert house.told() == ["propagation.done"]
        ours, adapted = house.one("orthanc"), house.one("dicomweb")
        for one in (ours, adapted):
            assert one.state is DeliveryState.DELIVERED, one.problem
            assert one.attempts == 1
        assert {o["sop_uid"] for o in ours.objects} == uids(results, "RS.dcm", "REG.dcm")
        sent = held(archive)
        both = {o["sop_uid"] for one in (ours, adapted) for o in one.objects}
        assert both <= sent.keys()
        assert len(both) == 3, "the structure set in two manners, one registration"
        assert all(len(ids) == 1 for ids in sent.values())

        assert house.run_due() == 0, "a minute has not passed"
        house.clock.turn(CONFIRM_AFTER_S)
        assert house.run_due() == 2
        for name in ("orthanc", "dicomweb"):
            one = house.one(name)
            assert one.confirm_at is None
            assert {c["outcome"] for c in one.receipt["confirmations"]} == {"stored"}
        assert house.run_due() == 0

        house.deliveries.resend(ours.id)
        assert house.run_due() == 1
        again = house.one("orthanc")
        assert {i["outcome"] for i in again.receipt["instances"]} == {"already"}
        assert (again.state, again.attempts, again.tries) == (DeliveryState.DELIVERED, 2, 1)
        assert held(archive) == sent

        assert isinstance(adapted.objects[0]["key"], str)
        made = house.records.archive.blobs.get(adapted.objects[0]["key"])
        assert len(dcmread(made).ROIContourSequence[0].ContourSequence) == 6


@pytest.mark.peer
def test_orthanc_that_holds_something_else_is_a_conflict_for_good(
    tmp_path: Path, archive: RealOrthanc, of_orthanc: dict[str, Destination]
) -> None:
    results = make_results(tmp_path / "results", name="conflict")
    other = dcmread(results / "RS.dcm")
    other.StructureSetDescription = "somebody else's"
    other.save_as(tmp_path / "other.dcm")
    archive.upload([tmp_path / "other.dcm"])
    with outgoing(tmp_path / "data", [of_orthanc["orthanc"]]) as house:
        house.finish(results=results)
        house.run_due()
        one = house.one("orthanc")
        assert one.state is DeliveryState.DEAD
        assert one.problem["type"] == "/problems/conflict"
        assert one.problem["where"] in str(uids(results, "RS.dcm"))
        assert house.told() == ["conflict", "delivery.dead", "propagation.done"]
        house.clock.turn(GIVE_UP_AFTER_S)
        assert house.run_due() == 0


@contextmanager
def dcmqrscp(folder: Path) -> Iterator[int]:
    """DCMTK's archive on a free port."""
    program = peer("dcmqrscp")
    (port,) = free_ports(1)
    (folder / "db").mkdir(parents=True)
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {folder / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen(
        [program, "-c", str(folder / "dcmqrscp.cfg")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def dimse(port: int, **more: Any) -> DimseDestination:
    return DimseDestination(
        name="node", host="127.0.0.1", port=port, aet="ARCHIVE", timeout_s=10, **more
    )


def until_listening(house: House) -> None:
    """Attempts, as their waits run out, until the other program has started."""
    deadline = time.monotonic() + 60
    while house.one("node").state is not DeliveryState.DELIVERED:
        assert time.monotonic() < deadline, house.one("node").problem
        house.clock.turn(LONGEST_WAIT_S)
        house.run_due()


@pytest.mark.peer
@pytest.mark.parametrize("commitment", [False, True])
def test_a_dicom_archive_is_sent_to_and_searched(
    tmp_path: Path, results: Path, commitment: bool
) -> None:
    """DCMTK's offers no storage commitment: whoever asks for it searches after all."""
    with (
        dcmqrscp(tmp_path / "archive") as port,
        outgoing(tmp_path / "data", [dimse(port, commitment=commitment)]) as house,
    ):
        house.finish(results=results)
        until_listening(house)
        for _ in range(2 if commitment else 1):
            assert house.one("node").confirm_at is not None
            house.clock.turn(CONFIRM_AFTER_S)
            house.run_due()
        one = house.one("node")
        assert one.confirm_at is None, one
        assert {c["outcome"] for c in one.receipt["confirmations"]} == {"stored"}
        house.deliveries.resend(one.id)
        house.run_due()
        assert house.one("node").state is DeliveryState.DELIVERED
        kept = [p for p in (tmp_path / "archive" / "db").iterdir() if p.name != "index.dat"]
        there = {read_header(path).sop_instance_uid for path in kept}
        assert there == uids(results, "RS.dcm", "REG.dcm")


@pytest.mark.peer
def test_a_node_that_only_stores_stays_unconfirmed_and_that_is_told(
    tmp_path: Path, results: Path
) -> None:
    (port,) = free_ports(1)
    (tmp_path / "out").mkdir()
    command = [peer("storescp"), "-aet", "ARCHIVE", "-od", str(tmp_path / "out"), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with outgoing(tmp_path / "data", [dimse(port)]) as house:
            house.finish(results=results)
            until_listening(house)
            with house.records.index.write() as at:  # as after three days
                seen = house.one("node")
                receipt = seen.receipt | {"looks": TRIES_AT_MOST - 2}
                house.deliveries.outbox.change(at, seen, receipt_json=receipt)
            house.clock.turn(CONFIRM_AFTER_S)
            house.run_due()
            assert house.one("node").looks == TRIES_AT_MOST - 1
            assert house.one("node").confirm_at is not None
            house.clock.turn(2 * LONGEST_WAIT_S)
            house.run_due()
            one = house.one("node")
            assert (one.state, one.confirm_at) == (DeliveryState.DELIVERED, None)
            assert one.problem["type"] == "/problems/peer"
            assert house.told()[-1] == "delivery.unconfirmed"
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.peer
def test_orthanc_vouches_for_what_it_was_sent_to_our_node(tmp_path: Path, results: Path) -> None:
    door = FolderDoor(tmp_path / "door")
    heard = Heard()
    with node(door, heard=heard, callers=("ORTHANC",)) as ours:
        us = {"contourcast": {"AET": "CONTOURCAST", "Host": "127.0.0.1", "Port": ours.port}}
        with orthanc(tmp_path / "orthanc", modalities=us) as archive:
            to = DimseDestination(
                name="node",
                host="127.0.0.1",
                port=archive.dicom_port,
                aet="ORTHANC",
                commitment=True,
                timeout_s=10,
            )
            with outgoing(tmp_path / "data", [to]) as house:
                house.finish(results=results)
                house.run_due()
                house.clock.turn(CONFIRM_AFTER_S)
                house.run_due()
                (commitment, _) = heard.wait_for_commitments(1)[0]
                assert not house.deliveries.committed(replace(commitment, transaction_uid="2.25.1"))
                assert house.one("node").confirm_at is not None
                assert house.deliveries.committed(commitment)
                one = house.one("node")
                assert one.confirm_at is None
                assert {c["outcome"] for c in one.receipt["confirmations"]} == {"stored"}
                assert not house.deliveries.committed(commitment), "nobody waits for it any more"
    door.close()


# --------------------------------------------------------------------- destinations that fail


def test_one_that_is_down_holds_up_nobody_and_gets_it_when_it_is_up(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    (port,) = free_ports(1)
    down = web("down", f"http://127.0.0.1:{port}")
    with outgoing(tmp_path, [down, web("up", url)]) as house:
        house.finish(results=results)
        house.run_due()
        assert house.state() is State.AWAITING_REVIEW, "tried once, it no longer waits for that"
        assert house.one("up").state is DeliveryState.DELIVERED
        late = house.one("down")
        assert (late.state, late.attempts) == (DeliveryState.WAITING, 1)
        assert late.problem["type"] == "/problems/peer-unreachable"
        assert house.run_due() == 0
        house.clock.turn(FIRST_WAIT_S * (1 + JITTER))
        house.run_due()
        assert house.one("down").attempts == 2
        moved = {"down": web("down", url)}
        house.deliveries.destinations.update(moved)
        house.clock.turn(2 * FIRST_WAIT_S * (1 + JITTER))
        house.run_due()
        now_up = house.one("down")
        assert (now_up.state, now_up.attempts) == (DeliveryState.DELIVERED, 3)
        assert now_up.problem == {}
        assert keeps.kept.keys() == uids(results, "RS.dcm", "REG.dcm")
        assert house.told() == ["propagation.done"]


def test_after_three_days_it_is_a_dead_letter_that_a_person_sends_again(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    keeps.status = 503
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        house.finish(results=results)
        began = house.clock.moment
        while house.one("pacs").state is DeliveryState.WAITING:
            house.run_due()
            house.clock.turn(wait_s(house.one("pacs").id, house.one("pacs").attempts))
        days = (house.clock.moment - began).total_seconds() / 86400
        assert days == pytest.approx(3, rel=0.05)
        dead = house.one("pacs")
        assert (dead.state, dead.attempts) == (DeliveryState.DEAD, TRIES_AT_MOST)
        assert "status 503" in dead.problem["cause"]
        assert house.told() == ["propagation.done", "delivery.dead"]
        assert house.records.notices.list()[-1].subject == dead.id
        house.clock.turn(GIVE_UP_AFTER_S)
        assert house.run_due() == 0

        keeps.status = 500
        house.deliveries.resend(dead.id)
        house.run_due()
        again = house.one("pacs")
        assert (again.state, again.tries) == (DeliveryState.WAITING, 1), "as if it were new"
        keeps.status = 0
        house.clock.turn(LONGEST_WAIT_S)
        house.run_due()
        assert house.one("pacs").state is DeliveryState.DELIVERED
        assert keeps.kept.keys() == uids(results, "RS.dcm", "REG.dcm")


def test_one_that_takes_and_loses_is_found_out_and_sent_to_again(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    keeps.loses = 1
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        house.finish(results=results)
        house.run_due()
        assert house.one("pacs").state is DeliveryState.DELIVERED
        assert keeps.kept == {}
        house.clock.turn(CONFIRM_AFTER_S)
        house.run_due()
        lost = house.one("pacs")
        assert lost.state is DeliveryState.WAITING
        assert "does not have it" in lost.problem["cause"]
        house.clock.turn(LONGEST_WAIT_S)
        house.run_due()
        house.clock.turn(CONFIRM_AFTER_S)
        house.run_due()
        found = house.one("pacs")
        assert (found.state, found.confirm_at) == (DeliveryState.DELIVERED, None)
        assert keeps.stored == 2
        assert keeps.kept.keys() == uids(results, "RS.dcm", "REG.dcm")


def test_one_that_keeps_something_else_than_it_was_sent_is_a_conflict(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        house.finish(results=results)
        house.run_due()
        uid = next(iter(uids(results, "RS.dcm")))
        changed = dcmread(results / "RS.dcm")
        changed.StructureSetLabel = "changed"
        changed.save_as(tmp_path / "changed.dcm")
        keeps.kept[uid] = (tmp_path / "changed.dcm").read_bytes()
        house.clock.turn(CONFIRM_AFTER_S)
        house.run_due()
        assert house.one("pacs").state is DeliveryState.DEAD
        assert house.told() == ["propagation.done", "conflict", "delivery.dead"]


def test_an_archive_that_cannot_be_asked_is_asked_again(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        house.finish(results=results)
        house.run_due()
        house.deliveries.destinations["pacs"] = web("pacs", NOBODY)
        house.clock.turn(CONFIRM_AFTER_S)
        house.run_due()
        assert house.one("pacs").looks == 1
        house.deliveries.confirm(house.one("pacs").id, 1, 0)
        assert house.one("pacs").looks == 1, "what a slow worker asks is past"
        house.deliveries.destinations["pacs"] = web("pacs", url)
        house.clock.turn(LONGEST_WAIT_S)
        house.run_due()
        assert house.one("pacs").confirm_at is None
        assert keeps.stored == 1


def test_without_confirmation_nobody_is_asked(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    with outgoing(tmp_path, [web("pacs", keeper[0], confirm=False)]) as house:
        house.finish(results=results)
        house.run_due()
        assert house.one("pacs").confirm_at is None


def test_of_two_workers_at_one_attempt_the_first_is_believed(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        house.finish(results=results)
        slow = house.one("pacs")
        house.run_due()
        sent = house.one("pacs")
        house.deliveries.attempt(slow.id, slow.attempts)
        assert keeps.stored == 1, "an attempt that is past is not made again"
        house.deliveries.failed(slow, NotFoundError("the slow one failed"))
        assert house.one("pacs") == sent


def test_a_damaged_result_never_leaves(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        job, files = house.begin(results=results)
        house.end(job, files | {"RS.dcm": "0" * 64})
        house.run_due()
        one = house.one("pacs")
        assert (one.state, one.problem["type"]) == (DeliveryState.DEAD, "/problems/damaged")
        assert keeps.stored == 0
        assert house.state() is State.AWAITING_REVIEW


def test_what_a_profile_does_not_allow_is_given_up_at_once(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("tps", url, profile=Profile(points_at_most=3))]) as house:
        house.finish(results=results)
        house.run_due()
        assert house.one("tps").state is DeliveryState.DEAD
        assert "points_at_most" in house.one("tps").problem["remedy"]
        assert keeps.stored == 0


def test_a_destination_that_left_the_settings_is_told(tmp_path: Path, results: Path) -> None:
    with outgoing(tmp_path, [web("old", NOBODY)]) as house:
        house.finish(results=results)
        del house.deliveries.destinations["old"]
        house.run_due()
        assert house.one("old").problem["type"] == "/problems/settings"
        assert house.state() is State.AWAITING_REVIEW


# -------------------------------------------------------------------------------- on Postgres


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with postgres() as running:
        yield running


@pytest.mark.peer
def test_on_postgres_deliveries_that_end_at_once_leave_no_propagation_behind(
    tmp_path: Path, results: Path, cluster: Cluster
) -> None:
    """Each transaction sees the others' rows as they were: the last must still be the last."""
    at_once = 6
    barrier = threading.Barrier(at_once)
    archives = [KeepsWhatItGets() for _ in range(at_once)]

    def meeting(archive: KeepsWhatItGets) -> Callable[[Asked], Says]:
        def answer(asked: Asked) -> Says:
            says = archive(asked)
            barrier.wait(60)
            return says

        return answer

    with ExitStack() as stack:
        urls = [stack.enter_context(stub(meeting(one))).url for one in archives]
        to = [web(f"pacs-{n}", url) for n, url in enumerate(urls)]
        house = stack.enter_context(
            outgoing(tmp_path, to, database_url=cluster.database("deliveries"))
        )
        for name in ("p1", "p2", "p3"):
            house.finish(name, results=results)
            assert house.state(name) is State.DELIVERING
            due = house.deliveries.list(propagation=name)
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda one: house.deliveries.attempt(one.id, one.attempts), due))
            assert house.state(name) is State.AWAITING_REVIEW
        assert house.told() == ["propagation.done"] * 3
        assert {one.state for one in house.deliveries.list()} == {DeliveryState.DELIVERED}
        assert all(archive.stored == 3 for archive in archives)


@pytest.mark.peer
def test_on_postgres_notices_become_visible_in_their_order(
    tmp_path: Path, results: Path, cluster: Cluster
) -> None:
    with outgoing(tmp_path, [], database_url=cluster.database("notices")) as house:
        telling, told = threading.Event(), []

        def second() -> None:
            with house.records.index.write() as at:
                telling.set()
                told.append(house.records.notices.tell(at, Kind.REVISION, "2.25.2"))

        thread = threading.Thread(target=second)
        with house.records.index.write() as at:
            first = house.records.notices.tell(at, Kind.REVISION, "2.25.1")
            thread.start()
            assert telling.wait(60)
            thread.join(0.5)
            assert told == [], "whoever comes later waits for the earlier"
            assert house.records.notices.list() == []
        thread.join(60)
        assert [one.number for one in house.records.notices.list()] == [first, *told]
        assert first < told[0]


# ----------------------------------------------------------------- a picture and a page of paper


@pytest.mark.peer
def test_a_picture_a_page_and_masks_are_made_once_for_whoever_wants_them(
    tmp_path: Path, archive: RealOrthanc, of_orthanc: dict[str, Destination]
) -> None:
    course = make_course(tmp_path / "course")
    case = read_case(
        planning_ct=course.planning_ct.folder,
        structures=course.structures,
        cbct=course.cbct.folder,
        roi="GTV",
    )
    settings = Settings(methods=("translation", "rigid"))
    done = propagate(case, settings=settings, network=None, clock=lambda: 0.0)
    write_results(done, tmp_path / "results", made_at=START)
    roles = ("secondary_capture", "pdf", "segmentation")
    wants = of_orthanc["orthanc"].model_copy(update=dict.fromkeys(roles, True))
    with outgoing(tmp_path / "data", [wants]) as house:
        house.finish(
            results=tmp_path / "results", verdict=done.verdict.value, cbct=course.cbct.paths
        )
        house.run_due()
        one = house.one("orthanc")
        assert one.state is DeliveryState.DELIVERED, one.problem
        there = held(archive)
        sent = {o["role"]: o for o in one.objects}
        assert set(roles) <= sent.keys()
        for role in roles:
            path = house.records.archive.blobs.get(sent[role]["key"])
            assert dciodvfy(path) == []
            assert len(there[sent[role]["sop_uid"]]) == 1
            assert dcmread(path).StudyInstanceUID == dcmread(course.cbct.paths[0]).StudyInstanceUID
        picture = dcmread(house.records.archive.blobs.get(sent["secondary_capture"]["key"]))
        assert picture.pixel_array.shape[2] == 3
        masks = dcmread(house.records.archive.blobs.get(sent["segmentation"]["key"]))
        for drawn in done.drawn:
            (number,) = [
                each.SegmentNumber
                for each in masks.SegmentSequence
                if each.SegmentAlgorithmName == drawn.method
            ]
            frames = [
                each.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
                for each in masks.PerFrameFunctionalGroupsSequence
            ]
            voxel_cc = float(np.prod(case.cbct.grid.spacing_xyz_mm)) / 1000
            assert masks.pixel_array[frames].sum() * voxel_cc == pytest.approx(
                drawn.volume_cc, rel=0.05
            )
        made = set(house.records.derived.results("p1"))
        house.clock.turn(CONFIRM_AFTER_S)
        house.run_due()
        assert house.one("orthanc").confirm_at is None
        assert set(house.records.derived.results("p1")) == made


# ------------------------------------------------------------------ what is no longer current


def test_what_is_superseded_before_it_went_out_does_not_go_out(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        job, files = house.begin(results=results)
        house.end(job, files)
        with house.records.index.write() as at:
            house.records.propagations.supersede(at, ["p1"], "p2", "more slices came")
        house.run_due()
        assert house.one("pacs").state is DeliveryState.DROPPED
        assert keeps.stored == 0
        assert house.state() is State.SUPERSEDED

        house.records.propagations.open("p1", ORDER, Origin())  # current again
        job, files = house.begin(results=results)
        house.end(job, files)
        house.run_due()
        assert house.one("pacs").state is DeliveryState.DELIVERED
        assert house.state() is State.AWAITING_REVIEW


def test_what_a_person_signed_goes_out_whatever_came_after(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    archives = [web("pacs", url), web("unsigned-only", url, signed=False)]
    with outgoing(tmp_path, archives) as house:
        job, files = house.begin(results=results)
        house.end(job, files)
        house.run_due()
        with house.records.index.write() as at:
            ids = house.deliveries.plan_signed(at, "p1", "RS.dcm", files["RS.dcm"])
            house.records.propagations.supersede(at, ["p1"], "p2", "more slices came")
        assert len(ids) == 1
        stored = keeps.stored
        house.run_due()
        assert keeps.stored == stored + 1
        assert house.deliveries.outbox.get(ids[0]).state is DeliveryState.DELIVERED


# ------------------------------------------------------------------------------- for a person


def test_what_waits_can_be_held_and_sent_when_it_is_time(
    tmp_path: Path, results: Path, keeper: tuple[str, KeepsWhatItGets]
) -> None:
    url, keeps = keeper
    with outgoing(tmp_path, [web("pacs", url)]) as house:
        house.finish(results=results)
        held = house.deliveries.hold(house.one("pacs").id)
        assert held.state is DeliveryState.HELD
        assert house.state() is State.AWAITING_REVIEW
        house.clock.turn(LONGEST_WAIT_S)
        assert house.run_due() == 0
        house.deliveries.resend(held.id)
        assert house.run_due() == 1
        assert keeps.stored == 1
        with pytest.raises(ForbiddenTransitionError, match="delivered cannot be held"):
            house.deliveries.hold(held.id)


def test_unknown_ids_are_not_found(tmp_path: Path) -> None:
    with outgoing(tmp_path, []) as house:
        for verb in (house.deliveries.hold, house.deliveries.resend):
            with pytest.raises(NotFoundError):
                verb("nothing")


def test_deliveries_are_listed_newest_first_by_what_is_asked(tmp_path: Path, results: Path) -> None:
    with outgoing(tmp_path, [web("a", NOBODY), web("b", NOBODY)]) as house:
        house.finish("p1", results=results)
        house.finish("p2", results=results)
        listed = house.deliveries.list()
        assert [one.number for one in listed] == [4, 3, 2, 1]
        assert {one.propagation for one in house.deliveries.list(propagation="p2")} == {"p2"}
        assert len(house.deliveries.list(destination="a", state="waiting")) == 2
        assert [one.number for one in house.deliveries.list(before=3, limit=1)] == [2]
        assert house.deliveries.outbox.counts() == {("a", "waiting"): 2, ("b", "waiting"): 2}
