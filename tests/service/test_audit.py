"""The log only grows, and whoever touches it is found."""

# ruff: noqa: F811  what a fixture is called, its user's argument is called
from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr import codedict
from pydicom.sr.coding import Code
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from contourcast.imaging.errors import InputError
from contourcast.service.access.atna import EVENTS, collector, forward, message, syslog
from contourcast.service.access.audit import (
    HEAD,
    MOST_OBJECTS,
    Broken,
    Happening,
    Row,
    adding_role,
    append,
    digest_of,
    guard,
    read_export,
    record,
    rows,
    verify,
)
from contourcast.service.access.roles import Role, What
from contourcast.service.index.database import Index
from contourcast.service.index.tables import audit, cursor
from contourcast.service.problems import PeerUnreachableError, StoreError
from support.access import caller, cluster, index, url  # noqa: F401  fixtures
from support.postgres import Cluster
from support.tls import Collector, collecting

PATIENT = "9f86d081884c7d65"


def happening(number: int = 0, what: What = What.READ) -> Happening:
    return Happening.by(
        caller(Role.VIEWER),
        what,
        action="GET /v1/series/{uid}",
        patient=PATIENT,
        objects=(f"1.2.{number}",),
        detail="200",
    )


@pytest.fixture
def log(index: Index) -> Index:
    guard(index)
    for number in range(5):
        record(index, happening(number))
    return index


def unguarded(log: Index, deed: Callable[[Connection], object]) -> None:
    """What somebody does who owns the database and takes its guards away."""
    with log.write() as connection:
        if log.is_sqlite:
            for verb in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER audit_no_{verb}"))
        else:
            connection.execute(text("DROP TRIGGER audit_only_grows ON audit"))
        deed(connection)


def chained(number: int, previous: str) -> dict[str, object]:
    """A row with a digest as it should be, of somebody who knows how."""
    at, fields = "2026-03-02T12:00:00+00:00", happening(99).fields()
    digest = digest_of(number=number, at=at, happening=fields, previous=previous)
    return {
        "number": number,
        "at": at,
        "row_json": fields,
        "previous_digest": previous,
        "digest": digest,
    }


def test_what_was_written_is_there_in_order_and_holds(log: Index) -> None:
    found = list(rows(log))
    assert [row.number for row in found] == [1, 2, 3, 4, 5]
    assert [row.happening["objects"] for row in found] == [[f"1.2.{n}"] for n in range(5)]
    assert found[0].happening["who"] == "local:ann"
    assert found[0].happening["roles"] == ["viewer"]
    assert datetime.fromisoformat(found[0].at).utcoffset() == timedelta(0)
    assert verify(log) is None


def test_an_empty_log_holds(index: Index) -> None:
    assert verify(index) is None


def test_a_deed_that_is_rolled_back_leaves_no_row(log: Index) -> None:
    def deed() -> None:
        with log.write() as connection:
            append(log, connection, happening(7))
            raise KeyError("the deed failed")

    with pytest.raises(KeyError):
        deed()
    assert len(list(rows(log))) == 5
    assert record(log, happening(8)) == 6
    assert verify(log) is None


def test_the_database_itself_refuses_to_change_or_delete(log: Index) -> None:
    for deed in (audit.update().values(at="never"), audit.delete()):
        with pytest.raises(DBAPIError, match="only grows"), log.write() as connection:
            connection.execute(deed)
    guard(log)  # as at the next start
    assert verify(log) is None


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize(
    "change",
    [
        {"at": "2020-01-01T00:00:00+00:00"},
        {"row_json": happening(99).fields()},
        {"digest": "0" * 64},
        {"previous_digest": "1" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_row_is_found(log: Index, number: int, change: dict[str, object]) -> None:
    changed = audit.update().where(audit.c.number == number).values(**change)
    unguarded(log, lambda connection: connection.execute(changed))
    broken = verify(log)
    assert broken is not None
    assert broken.number == number


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_changed_row_whose_digest_was_made_anew_is_found(log: Index, number: int) -> None:
    former = {row.number: row.digest for row in rows(log)}
    new = chained(number, former.get(number - 1, "0" * 64))
    changed = audit.update().where(audit.c.number == number).values(**new)
    unguarded(log, lambda connection: connection.execute(changed))
    broken = verify(log)
    assert broken is not None
    assert broken.number == min(number + 1, 5)  # where the chain breaks, or what is no more last


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_deleted_row_is_found(log: Index, number: int) -> None:
    deleted = audit.delete().where(audit.c.number == number)
    unguarded(log, lambda connection: connection.execute(deleted))
    found = verify(log)
    assert found is not None
    assert found.number == number
    record(log, happening(6))  # and it stays found when the log goes on
    assert verify(log) == Broken(number=number, why=f"row {number} is missing")


def test_a_row_that_is_put_in_between_is_found(log: Index) -> None:
    def put_in(connection: Connection) -> None:
        for number in (5, 4, 3):
            connection.execute(
                audit.update().where(audit.c.number == number).values(number=number + 1)
            )
        second = connection.execute(text("SELECT digest FROM audit WHERE number = 2")).scalar_one()
        connection.execute(audit.insert().values(**chained(3, second)))

    unguarded(log, put_in)
    broken = verify(log)
    assert broken is not None
    assert broken.number == 4


def test_a_row_that_is_put_in_at_the_end_is_found_and_nothing_is_added_to_it(log: Index) -> None:
    last = list(rows(log))[-1]
    with log.write() as connection:  # no guard forbids to add
        connection.execute(audit.insert().values(**chained(6, last.digest)))
    assert verify(log) == Broken(number=6, why="it was put in from outside")
    with pytest.raises(StoreError):
        record(log, happening(7))


def test_rows_that_changed_places_are_found(log: Index) -> None:
    def swap(connection: Connection) -> None:
        for old, new in ((2, 90), (4, 2), (90, 4)):
            connection.execute(audit.update().where(audit.c.number == old).values(number=new))

    unguarded(log, swap)
    broken = verify(log)
    assert broken is not None
    assert broken.number == 2


def test_a_whole_new_chain_is_found_by_what_was_exported(log: Index) -> None:
    exported = read_export(row.line() for row in rows(log))

    def anew(connection: Connection) -> None:
        connection.execute(audit.delete())
        previous = "0" * 64
        for number in range(1, 6):
            row = chained(number, previous)
            connection.execute(audit.insert().values(**row))
            previous = str(row["digest"])
        head = {"number": 5, "digest": previous}
        connection.execute(cursor.update().where(cursor.c.name == HEAD).values(value_json=head))

    unguarded(log, anew)
    assert verify(log) is None  # that is what a chain alone cannot tell
    assert verify(log, against=exported) == Broken(
        number=1, why="it is not the row that was exported"
    )


def test_an_end_cut_off_together_with_the_head_is_found_by_what_was_exported(log: Index) -> None:
    exported = read_export(row.line() for row in rows(log))
    third = list(rows(log))[2]

    def cut(connection: Connection) -> None:
        connection.execute(audit.delete().where(audit.c.number > 3))
        head = {"number": 3, "digest": third.digest}
        connection.execute(cursor.update().where(cursor.c.name == HEAD).values(value_json=head))

    unguarded(log, cut)
    assert verify(log, against=exported) == Broken(number=4, why="rows are missing at the end")


WRITER = """
import sys
from contourcast.service.access.audit import Happening, record
from contourcast.service.access.roles import What
from contourcast.service.index.database import Index

index = Index(sys.argv[1])
for number in range(25):
    record(index, Happening(what=What.READ, who=sys.argv[2], objects=(str(number),)))
index.close()
"""


def test_four_threads_and_two_processes_make_one_chain(index: Index) -> None:
    guard(index)

    def write(name: str) -> None:
        for number in range(25):
            record(index, Happening(what=What.READ, who=name, objects=(str(number),)))

    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, index.url, f"process {n}"])
        for n in range(2)
    ]
    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert verify(index) is None
    by_writer: dict[str, list[str]] = {}
    for row in rows(index):
        by_writer.setdefault(row.happening["who"], []).append(row.happening["objects"][0])
    assert len(by_writer) == 6
    assert all(order == [str(n) for n in range(25)] for order in by_writer.values())


@pytest.mark.peer
def test_a_role_that_may_only_add(cluster: Cluster) -> None:
    owner = Index(cluster.database("roles"))
    guard(owner)
    record(owner, happening(1))
    with owner.write() as connection:
        for statement in [*adding_role("service", database="roles")] * 2:
            connection.execute(text(statement))
    service = Index(owner.url.replace("contourcast@", "service@"))
    guard(service)
    assert record(service, happening(2)) == 2
    for deed in (audit.update().values(at="never"), audit.delete(), text("TRUNCATE audit")):
        with pytest.raises(DBAPIError, match="permission denied"), service.write() as connection:
            connection.execute(deed)
    assert verify(service) is None
    service.close()
    owner.close()


@pytest.mark.parametrize(("name", "database"), [("a b", "index"), ("a", "i;--"), ("", "index")])
def test_a_role_s_name_is_a_plain_word(name: str, database: str) -> None:
    with pytest.raises(InputError):
        adding_role(name, database=database)


def test_an_export_is_read_back_line_by_line(log: Index) -> None:
    lines = [row.line() for row in rows(log, after=2)]
    assert [json.loads(line)["number"] for line in lines] == [3, 4, 5]
    assert verify(log, against=read_export(lines)) is None
    for wrong in ("", "[]", '{"number": "x", "digest": ""}', "[" * 100_000):
        with pytest.raises(InputError, match="line 2"):
            read_export([lines[0], wrong])


def test_whatever_was_touched_is_in_the_log_in_as_many_rows_as_it_needs(log: Index) -> None:
    """A page of the worklist holds up to 500 patients, and each of them was looked at."""
    touched = tuple(f"1.2.{n}" for n in range(2 * MOST_OBJECTS + 50))
    seen = Happening.by(caller(Role.VIEWER), What.READ, action="GET /v1/worklist", objects=touched)
    assert record(log, seen) == 5 + 3
    added = [row.happening for row in rows(log, after=5)]
    assert [len(one["objects"]) for one in added] == [MOST_OBJECTS, MOST_OBJECTS, 50]
    assert tuple(uid for one in added for uid in one["objects"]) == touched
    assert {(one["who"], one["action"]) for one in added} == {(seen.who, seen.action)}
    assert verify(log) is None
    assert record(log, happening()) == 9
    assert verify(log) is None


@given(said=st.text(max_size=300), objects=st.lists(st.text(max_size=20), max_size=120))
def test_whatever_is_said_becomes_one_printable_line_and_one_xml(
    said: str, objects: list[str]
) -> None:
    said_so = Happening(
        what=What.QUERY, who=said, action=said, patient=said, objects=tuple(objects), detail=said
    )
    fields = said_so.in_rows()[0].fields()
    digest = digest_of(number=1, at="2026-03-02T12:00:00+00:00", happening=fields, previous="")
    row = Row(
        number=1,
        at="2026-03-02T12:00:00+00:00",
        happening=fields,
        previous="",
        digest=digest,
    )
    assert row.line().isprintable()
    assert len(fields["objects"]) <= MOST_OBJECTS
    again = json.loads(row.line())
    assert again["happening"] == fields
    ElementTree.fromstring(message(row, source="contourcast"))


@pytest.mark.parametrize("what", list(What))
def test_each_happening_is_a_message_of_the_standard(what: What) -> None:
    """Codes and their meanings are compared with pydicom's copy of PS3.16."""
    fields = happening(what=what).fields()
    row = Row(number=1, at="2026-03-02T12:00:00+00:00", happening=fields, previous="", digest="")
    root = ElementTree.fromstring(message(row, source="unit 3"))
    assert [part.tag for part in root] == [
        "EventIdentification",
        "ActiveParticipant",
        "ActiveParticipant",
        "AuditSourceIdentification",
        *["ParticipantObjectIdentification"] * 3,
    ]
    known = {code.value: code.meaning for code in _dcm()}
    for tag in ("EventID", "EventTypeCode"):
        found = root.find(f"EventIdentification/{tag}")
        if found is None:
            assert tag == "EventTypeCode"
            assert not EVENTS[what].type_code
            continue
        assert known[found.attrib["csd-code"]] == found.attrib["originalText"]
    event = root.find("EventIdentification")
    assert event is not None
    assert event.attrib["EventOutcomeIndicator"] == "0"
    assert event.attrib["EventActionCode"] in "CRUDE"
    asked = root.find("ActiveParticipant")
    assert asked is not None
    assert (asked.attrib["UserID"], asked.attrib["NetworkAccessPointID"]) == (
        "local:ann",
        "10.0.0.9",
    )
    patient = root.find("ParticipantObjectIdentification[@ParticipantObjectTypeCode='1']")
    assert patient is not None
    assert patient.attrib["ParticipantObjectID"] == PATIENT


def _dcm() -> list[Code]:
    return [getattr(codedict.codes.DCM, name) for name in codedict.codes.DCM.dir()]


def test_a_syslog_message_says_its_length_and_its_priority() -> None:
    fields = happening().fields()
    row = Row(number=1, at="2026-03-02T12:00:00+00:00", happening=fields, previous="", digest="")
    sent = syslog(row, source="contourcast", host="unit-3")
    length, _, body = sent.partition(b" ")
    assert int(length) == len(body)
    header, _, xml = body.partition(b"\xef\xbb\xbf")
    assert header.startswith(b"<85>1 2026-03-02T12:00:00+00:00 unit-3 contourcast ")
    assert header.endswith(b" DICOM+RFC3881 - ")
    ElementTree.fromstring(xml.decode())


@pytest.fixture
def syslog_server(tmp_path: Path) -> Collector:
    return Collector(tmp_path)


def test_the_log_goes_to_a_syslog_server_over_tls_each_row_once(
    log: Index, syslog_server: Collector
) -> None:
    with collecting(syslog_server) as port:
        with collector("localhost", port=port, authority=syslog_server.certificate) as to:
            assert forward(log, to, source="contourcast") == 5
        record(log, happening(6))
        with collector("localhost", port=port, authority=syslog_server.certificate) as to:
            assert forward(log, to, source="contourcast") == 1
    xml = [body.partition(b"\xef\xbb\xbf")[2] for body in syslog_server.messages()]
    objects = [
        ElementTree.fromstring(one).findall("ParticipantObjectIdentification")[1].attrib
        for one in xml
    ]
    named = [attributes["ParticipantObjectID"] for attributes in objects]
    assert named == ["1.2.0", "1.2.1", "1.2.2", "1.2.3", "1.2.4", "1.2.6"]


def test_a_syslog_server_that_nobody_vouches_for_gets_nothing(
    log: Index, syslog_server: Collector
) -> None:
    with (
        collecting(syslog_server) as port,
        pytest.raises(PeerUnreachableError),
        collector("localhost", port=port),
    ):
        pass
    assert syslog_server.messages() == []
