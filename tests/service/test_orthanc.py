"""Orthanc over REST: what it has, its files and ours, and every way in which it may misbehave."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from pydicom.dataset import FileDataset

from contourcast.imaging.errors import NotDicomError
from contourcast.service.pacs.connection import MIB, Connection, Peer, in_parallel
from contourcast.service.pacs.door import same_data_set
from contourcast.service.pacs.orthanc import HeldSeries, Orthanc
from contourcast.service.problems import PeerError, PeerUnreachableError, SettingsError
from support.certificates import self_signed
from support.dicom_factory import CtFiles, make_ct_series
from support.orthanc import USER, RealOrthanc, free_ports, orthanc
from support.stub import Says, Stub, stub

SECRET = "ZZQQ-LEAK"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOrthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), stable_age_s=60) as running:
        yield running


@pytest.fixture
def client(archive: RealOrthanc) -> Iterator[Orthanc]:
    with Orthanc(archive.peer) as client:
        yield client


def held(client: Orthanc, series: CtFiles) -> HeldSeries:
    found = {
        one.series_instance_uid: one
        for one in map(client.series, client.find_series(since=date(2026, 1, 1)))
        if one is not None
    }
    return found[series.series_uid]


# ------------------------------------------------------------------------------ with a real one


@pytest.mark.peer
def test_what_was_sent_is_held_and_comes_back_byte_for_byte(
    client: Orthanc, tmp_path: Path
) -> None:
    series = make_ct_series(tmp_path / "ct", name="back")
    assert client.has(series.sop_uids) == frozenset()
    receipts = client.send(series.paths)
    assert [receipt.sop_instance_uid for receipt in receipts] == list(series.sop_uids)
    assert {receipt.outcome for receipt in receipts} == {"stored"}
    assert {receipt.outcome for receipt in client.send(series.paths)} == {"already"}
    assert client.has([*series.sop_uids, "1.2.3"]) == set(series.sop_uids)

    there = held(client, series)
    assert there.study_instance_uid == series.study_uid
    assert there.modality == "CT"
    assert there.count == 5
    assert not there.is_stable
    (tmp_path / "pulled").mkdir()
    pulled = client.fetch_all(there.instances, tmp_path / "pulled")
    sent = dict(zip(series.sop_uids, series.paths, strict=True))
    for instance, path in zip(there.instances, pulled, strict=True):
        assert path.read_bytes() == sent[instance.sop_instance_uid].read_bytes()


@pytest.mark.peer
def test_a_conflict_that_orthanc_hides_is_told(client: Orthanc, tmp_path: Path) -> None:
    first = make_ct_series(tmp_path / "first", name="conflict")
    second = make_ct_series(tmp_path / "second", first.hu_zyx.astype(int) + 1, name="conflict")
    assert first.sop_uids == second.sop_uids
    client.send(first.paths)
    receipts = client.send(second.paths)
    assert {receipt.outcome for receipt in receipts} == {"conflict"}
    assert {receipt.outcome for receipt in client.confirm(second.paths)} == {"conflict"}
    assert {receipt.outcome for receipt in client.confirm(first.paths)} == {"stored"}


@pytest.mark.peer
def test_another_encoding_of_the_same_is_no_conflict(client: Orthanc, tmp_path: Path) -> None:
    first = make_ct_series(tmp_path / "explicit", name="encoding")
    second = make_ct_series(
        tmp_path / "implicit", name="encoding", transfer_syntax="1.2.840.10008.1.2"
    )
    assert first.paths[0].read_bytes() != second.paths[0].read_bytes()
    client.send(first.paths)
    assert {receipt.outcome for receipt in client.send(second.paths)} == {"already"}
    never = client.send(second.paths, same=lambda ours, theirs: False)
    assert {receipt.outcome for receipt in never} == {"conflict"}
    assert same_data_set(first.paths[0], second.paths[0])
    assert not same_data_set(first.paths[0], second.paths[1])


@pytest.mark.peer
def test_confirming_what_never_came_says_so(client: Orthanc, tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct", name="never came")
    assert {receipt.outcome for receipt in client.confirm(series.paths)} == {"refused"}


@pytest.mark.peer
def test_a_file_that_rotted_in_the_archive_is_told_and_not_kept(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct", name="rot")
    with orthanc(tmp_path / "orthanc") as archive, Orthanc(archive.peer) as client:
        client.send(series.paths[:1])
        instance = held(client, series).instances[0]
        stored = next(
            p for p in archive.folder.glob("db/*/*/*") if p.read_bytes()[128:132] == b"DICM"
        )
        stored.write_bytes(stored.read_bytes()[:-1] + b"!")
        archive.stop()
        archive.start()  # it had the file in memory, too
        with pytest.raises(PeerError, match="differs from what it once received"):
            client.fetch(instance.id, tmp_path / "rotten.dcm")
    assert not (tmp_path / "rotten.dcm").exists()


@pytest.mark.peer
def test_series_are_found_by_the_day_of_study_or_series(client: Orthanc, tmp_path: Path) -> None:
    def new_series_in_old_study(dataset: FileDataset, k: int) -> None:
        dataset.StudyDate, dataset.SeriesDate = "20250101", "20260401"

    def old_series(dataset: FileDataset, k: int) -> None:
        dataset.StudyDate, dataset.SeriesDate = "20250101", "20250101"

    new = make_ct_series(tmp_path / "new", name="dated", change=new_series_in_old_study)
    old = make_ct_series(tmp_path / "old", name="old", change=old_series)
    client.send([new.paths[0], old.paths[0]])
    found = [client.series(one) for one in client.find_series(since=date(2026, 3, 1))]
    assert [one and one.series_instance_uid for one in found] == [new.series_uid]
    assert client.find_series(since=date(2026, 3, 1), modalities=("RTSTRUCT", "REG")) == []
    assert found[0] in [
        client.series(one)
        for one in client.find_series(since=date(2026, 3, 1), modalities=("RTPLAN", "CT"))
    ]


@pytest.mark.peer
def test_the_diary_is_read_in_pages_and_its_end_is_known(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct")
    with (
        orthanc(tmp_path / "orthanc", stable_age_s=60) as archive,
        Orthanc(archive.peer) as client,
    ):
        assert client.last_change().lines == ()
        client.send(series.paths[:1])
        client.send(series.paths[1:])
        first = client.changes(since=0, limit=3)
        rest = client.changes(since=first.last)
        assert not first.done
        assert rest.done
        kinds = [line.kind for line in (*first.lines, *rest.lines)]
        assert kinds.count("NewInstance") == 5
        assert kinds.count("NewSeries") == 1
        assert [line.seq for line in (*first.lines, *rest.lines)] == list(range(1, 9))
        assert client.last_change().lines == rest.lines[-1:]
        beyond = client.changes(since=1000)
        assert (beyond.lines, beyond.last) == ((), 8)


@pytest.mark.peer
def test_what_is_gone_is_none(client: Orthanc) -> None:
    nothing = "-".join(["0" * 8] * 5)
    assert client.series(nothing) is None
    assert client.series_of(nothing) is None
    assert client.md5(nothing) == ""


@pytest.mark.peer
def test_an_instance_knows_its_series(client: Orthanc, tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct", name="knows")
    client.send(series.paths)
    there = held(client, series)
    assert {client.series_of(one.id) for one in there.instances} == {there.id}


@pytest.mark.peer
def test_a_wrong_password_is_told(archive: RealOrthanc) -> None:
    peer = Peer(name="the-pacs", url=archive.url, user=USER, password="wrong")
    with Orthanc(peer) as client, pytest.raises(PeerError, match=r"401.*user and password"):
        client.last_change()


def test_an_archive_that_is_down_is_told(tmp_path: Path) -> None:
    peer = Peer(name="the-pacs", url=f"http://127.0.0.1:{free_ports(1)[0]}")
    with Orthanc(peer) as client, pytest.raises(PeerUnreachableError, match="'the-pacs'"):
        client.last_change()


def test_what_is_no_dicom_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no DICOM")
    with stub(lambda asked: Says()) as server, client_of(server) as client:
        with pytest.raises(NotDicomError):
            client.send([tmp_path / "note.txt"])
        assert server.seen() == []


# ----------------------------------------------------------------------- with one that misbehaves


def client_of(server: Stub, **more: Any) -> Orthanc:
    return Orthanc(Peer(name="the-pacs", url=server.url, **more))


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>a portal</html>",
        b"{}",
        b'{"Changes": [{"Seq": "' + SECRET.encode() + b'"}], "Last": 1, "Done": true}',
        b'{"Changes": [{"Seq": 1, "ChangeType": "NewSeries", "Date": "20260101T000000",'
        b' "ID": "../../etc/passwd"}], "Last": 1, "Done": true}',
    ],
)
def test_what_no_orthanc_answers_is_told_without_quoting_it(answer: bytes) -> None:
    with (
        stub(lambda asked: Says(body=answer)) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="answered what no Orthanc answers") as refusal,
    ):
        client.last_change()
    assert SECRET not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_refusals_of_orthanc_are_receipts(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct")
    answers = Queue[Says]()
    answers.put(
        Says(status=400, body=b'{"OrthancStatus": 15, "Details": "' + SECRET.encode() + b'"}')
    )
    answers.put(Says(body=json.dumps({"Status": "FilteredOut"}).encode()))
    with stub(lambda asked: answers.get()) as server, client_of(server) as client:
        receipts = [client.send([path])[0] for path in series.paths[:2]]
    assert [(r.outcome, r.reason) for r in receipts] == [
        ("refused", "Orthanc status 15"),
        ("refused", "FilteredOut"),
    ]


def test_redirects_are_not_followed() -> None:
    with stub(lambda asked: Says()) as other:
        elsewhere = Says(status=302, headers={"Location": f"{other.url}/changes"})
        with (
            stub(lambda asked: elsewhere) as server,
            client_of(server) as client,
            pytest.raises(PeerError, match=r"302.*redirects are not followed"),
        ):
            client.last_change()
        assert other.seen() == []


def test_answers_and_files_have_bounds(tmp_path: Path) -> None:
    with stub(lambda asked: Says(body=bytes(2 * MIB))) as server:
        with (
            client_of(server, answer_limit_bytes=MIB) as client,
            pytest.raises(PeerError, match="more than 1 MiB"),
        ):
            client.last_change()
        with (
            client_of(server, file_limit_bytes=MIB) as client,
            pytest.raises(PeerError, match="a file of more than 1 MiB"),
        ):
            client.fetch("instance", tmp_path / "large.dcm")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_stops_in_the_middle_is_not_kept(tmp_path: Path) -> None:
    with (
        stub(lambda asked: Says(body=b"half", length=8)) as server,
        client_of(server) as client,
        pytest.raises(PeerUnreachableError),
    ):
        client.fetch("instance", tmp_path / "half.dcm")
    assert list(tmp_path.iterdir()) == []


def test_a_packed_answer_is_refused() -> None:
    packed = Says(body=b"rubbish", headers={"Content-Encoding": "gzip"})
    with stub(lambda asked: packed) as server, client_of(server) as client:
        with pytest.raises(PeerError, match="packs its answers"):
            client.last_change()
        assert {asked.headers["accept-encoding"] for asked in server.seen()} == {"identity"}


def test_proxies_and_credentials_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with stub(lambda asked: Says()) as proxy, stub(lambda asked: Says(body=b"[]")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with client_of(server) as client:
            assert client.find_series(since=date(2026, 1, 1)) == []
        assert proxy.seen() == []
        assert all("authorization" not in asked.headers for asked in server.seen())


def test_what_was_asked_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        stub(lambda asked: Says()) as server,
        Connection(Peer(name="the-pacs", url=server.url)) as connection,
    ):
        connection.request("GET", "series", params={"PatientID": SECRET})
    assert SECRET not in caplog.text


def test_a_token_is_sent_as_bearer() -> None:
    with stub(lambda asked: Says(body=b"[]")) as server:
        with Orthanc(Peer(name="the-pacs", url=server.url, token="abc")) as client:
            client.find_series(since=date(2026, 1, 1))
        assert {asked.headers["authorization"] for asked in server.seen()} == {"Bearer abc"}


@pytest.mark.peer
def test_only_a_certificate_that_is_trusted_will_do(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    with stub(lambda asked: Says(body=b"[]"), certificate=certificate) as server:
        with client_of(server) as client, pytest.raises(PeerUnreachableError, match="certificate"):
            client.find_series(since=date(2026, 1, 1))
        with Orthanc(Peer(name="pacs", url=server.url, ca_file=certificate[0])) as client:
            assert client.find_series(since=date(2026, 1, 1)) == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_told(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"'the-pacs' cannot be read; ca\.pem"):
        Orthanc(Peer(name="the-pacs", url="https://pacs", ca_file=file))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("file:///etc/passwd", "no plain http"),
        ("http://", "no plain http"),
        ("http://pacs/?study=1", "no plain http"),
        ("http://pacs:port", "no plain http"),
        ("https://user:secret@pacs/", "holds a password"),
    ],
)
def test_an_address_that_we_would_not_send_to_is_refused(url: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault) as refusal:
        Peer(name="the-pacs", url=url)
    assert "secret" not in str(refusal.value)


def test_credentials_are_not_shown_and_must_be_sendable() -> None:
    peer = Peer(name="the-pacs", url="http://pacs", user="u", password="hidden", token="")
    assert "hidden" not in repr(peer)
    with pytest.raises(SettingsError, match="cannot be sent"):
        Peer(name="the-pacs", url="http://pacs", token="a\nb")


def test_the_first_error_of_many_is_raised_and_no_more_begin() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        return item

    with pytest.raises(ValueError, match="the first"):
        in_parallel(work, range(1000))
    assert len(begun) < 1000
    assert in_parallel(str, range(9)) == [str(item) for item in range(9)]
