"""Whatever comes in and goes out by another way than a request has its row in the audit log."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest

from contourcast.imaging.dicom.instance import read_header
from contourcast.service import doors
from contourcast.service.access import seldom
from contourcast.service.access.audit import rows, verify
from contourcast.service.dicom_node import turning_away
from contourcast.service.doors import ArchiveDoor, NodeDoor
from contourcast.service.index.database import Index
from contourcast.service.pacs.destinations import DicomWebDestination
from contourcast.service.pacs.node import Node, Sender
from contourcast.service.pacs.outbox import LONGEST_WAIT_S, DeliveryState
from contourcast.service.pacs.scu import Peer
from contourcast.service.problems import BusyError, PeerError
from contourcast.service.settings import ServiceSettings
from support.dicom_factory import make_ct_series
from support.dimse import AET, LINAC, LOOPBACK, node
from support.outgoing import KeepsWhatItGets, make_results, outgoing, stowed
from support.records import looking_into
from support.stub import Asked, Says, stub

KEPT = ("what", "who", "address", "action", "objects", "outcome", "detail")


def told(index: Index, *actions: str) -> list[tuple[Any, ...]]:
    """What the log says of some actions."""
    assert verify(index) is None
    found = [row.happening for row in rows(index)]
    return [tuple(row[name] for name in KEPT) for row in found if row["action"] in actions]


def linac(ours: Node, our_aet: str = LINAC) -> Peer:
    return Peer(aet=AET, host=LOOPBACK, port=ours.port, our_aet=our_aet)


def test_a_series_that_is_sent_is_one_row_for_its_sender_and_a_while(
    tmp_path: Path,
) -> None:
    ct = make_ct_series(tmp_path / "ct")
    with looking_into(tmp_path / "data") as records, node(NodeDoor(records.archive)) as ours:
        linac(ours).store(ct.paths)
        row = ("import", f"ae:{LINAC}", LOOPBACK, "C-STORE", [ct.series_uid], "success", "stored")
        assert told(records.index, "C-STORE") == [row]
        (found,) = (r.happening for r in rows(records.index))
        assert found["patient"] == records.archive.patient_of(ct.series_uid)
        for _ in range(2):
            linac(ours).store(ct.paths[:1])
        assert told(records.index, "C-STORE") == [row, (*row[:-1], "already")]


def test_a_row_that_could_not_be_written_is_written_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct = make_ct_series(tmp_path / "ct")
    with looking_into(tmp_path / "data") as records, node(NodeDoor(records.archive)) as ours:

        def away(*_: object) -> int:
            raise BusyError("the index cannot be reached")

        with monkeypatch.context() as patch:
            patch.setattr(doors, "record", away)
            (refused,) = linac(ours).store(ct.paths[:1])
            assert refused.status.may_pass, "whoever sends keeps it"
        linac(ours).store(ct.paths[:1])
        assert [row[-1] for row in told(records.index, "C-STORE")] == ["already"]


def test_a_while_later_it_is_a_row_again() -> None:
    clock = [0.0]
    rows_of = seldom.Seldom(600.0, lambda: clock[0])
    assert [rows_of.came("a"), rows_of.came("a"), rows_of.came("b")] == [1, None, 1]
    clock[0] = 600.0
    assert rows_of.came("a") == 2, "with the one that went without"


def test_who_may_not_call_is_a_row_and_a_flood_of_them_is_not(tmp_path: Path) -> None:
    clock = [0.0]
    with looking_into(tmp_path / "data") as records:
        index = records.index
        door = NodeDoor(records.archive)
        away, written = turning_away(index, lambda: clock[0]), Semaphore(0)

        def turned_away(sender: Sender, why: str) -> None:
            away(sender, why)
            written.release()

        with node(door, turned_away=turned_away) as ours:
            for seconds in (0, 0, 0, 0, 0, seldom.STRANGERS_EVERY_S):
                clock[0] += seconds
                with pytest.raises(PeerError):
                    linac(ours, "STRANGER").echo()
                assert written.acquire(timeout=10), "after the caller was told"
        row: tuple[Any, ...] = ("refusal", "", LOOPBACK, "A-ASSOCIATE", [], "refused")
        assert told(index, "A-ASSOCIATE") == [
            (*row, "rejected"),
            (*row, "rejected, the last of 5"),
        ]


def test_what_is_pulled_from_an_archive_is_a_row(tmp_path: Path) -> None:
    ct = make_ct_series(tmp_path / "ct")
    with looking_into(tmp_path / "data") as records:
        door = ArchiveDoor(records.archive, ServiceSettings(disk_reserve_mib=0))
        for _ in range(2):
            door.take(ct.paths, source="pacs")
        row = ("import", "archive:pacs", "", "pull", [ct.series_uid], "success")
        assert told(records.index, "pull") == [(*row, "stored"), (*row, "already")]


class TakesTheFirst(KeepsWhatItGets):
    """Keeps and names one of the files that it gets, until it is well."""

    well = False

    def __call__(self, asked: Asked) -> Says:
        if asked.method != "POST" or self.well:
            return super().__call__(asked)
        uid, content = next(iter(stowed(asked).items()))
        self.kept[uid] = content
        told = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}}]}}
        return Says(body=json.dumps(told).encode())


def test_what_is_delivered_in_part_is_a_row_once_and_another_when_all_is_there(
    tmp_path: Path,
) -> None:
    results, keeps = make_results(tmp_path / "results"), TakesTheFirst()
    sent = [read_header(results / n).sop_instance_uid for n in ("RS.dcm", "REG.dcm")]
    row = ("export", "archive:pacs", "", "deliver")
    with stub(keeps) as pacs:
        to = DicomWebDestination(name="pacs", url=pacs.url, timeout_s=5)
        with outgoing(tmp_path / "house", [to]) as house:
            house.finish(results=results)
            for tries in (1, 2, 3):
                house.run_due()
                house.clock.turn(LONGEST_WAIT_S)
                assert house.one("pacs").attempts == tries
                partly = (*row, ["p1", sent[0]], "failed", "")
                assert told(house.records.index, "deliver") == [partly]
            keeps.well = True
            house.run_due()
            assert house.one("pacs").state is DeliveryState.DELIVERED
            whole = (*row, ["p1", *sent], "success", "")
            assert told(house.records.index, "deliver") == [partly, whole]


def test_what_is_delivered_is_a_row_and_what_is_not_is_none(tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    with stub(KeepsWhatItGets()) as pacs:
        away = DicomWebDestination(name="away", url="http://127.0.0.1:1", timeout_s=5)
        here = DicomWebDestination(name="pacs", url=pacs.url, timeout_s=5)
        with outgoing(tmp_path / "house", [away, here]) as house:
            house.finish(results=results)
            house.run_due()
            states = {one.destination: one.state for one in house.deliveries.list()}
            assert states["pacs"] is DeliveryState.DELIVERED
            sent = [read_header(results / n).sop_instance_uid for n in ("RS.dcm", "REG.dcm")]
            assert told(house.records.index, "deliver") == [
                ("export", "archive:pacs", "", "deliver", ["p1", *sent], "success", "")
            ]
