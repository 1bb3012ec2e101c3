"""DICOMweb as a client: with a real archive, and with ones that misbehave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from contourcast.imaging.errors import DicomError, NotDicomError
from contourcast.service.pacs import dicomweb
from contourcast.service.pacs.connection import MIB, Peer
from contourcast.service.pacs.dicomweb import DicomWeb
from contourcast.service.problems import PeerError, PeerUnreachableError
from support.dicom_factory import CtFiles, make_ct_series, make_structure_set, uid
from support.orthanc import RealOrthanc, orthanc
from support.stub import Asked, Says, Stub, stub

SECRET = "ZZQQ-LEAK"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOrthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), stable_age_s=60) as running:
        yield running


@pytest.fixture
def client(archive: RealOrthanc) -> Iterator[DicomWeb]:
    with DicomWeb(archive.dicomweb_peer) as client:
        yield client


# ------------------------------------------------------------------------------ with a real one


@pytest.mark.peer
def test_what_was_stored_is_found_and_fetched_byte_for_byte(
    client: DicomWeb, tmp_path: Path
) -> None:
    series = make_ct_series(tmp_path / "ct", name="web")
    receipts = client.store(series.paths, study=series.study_uid)
    assert [receipt.sop_instance_uid for receipt in receipts] == list(series.sop_uids)
    assert {(receipt.outcome, receipt.reason) for receipt in receipts} == {("stored", "")}

    (found,) = client.series(study_instance_uid=series.study_uid)
    assert found.series_instance_uid == series.series_uid
    assert found.study_instance_uid == series.study_uid
    assert (found.modality, found.count) == ("CT", 5)
    instances = client.instances(series.study_uid, series.series_uid)
    assert {one.sop_instance_uid for one in instances} == set(series.sop_uids)
    assert {one.sop_class_uid for one in instances} == {"1.2.840.10008.5.1.4.1.1.2"}

    (tmp_path / "pulled").mkdir()
    pulled = client.fetch_all(
        series.study_uid, series.series_uid, series.sop_uids, tmp_path / "pulled"
    )
    for sent, came in zip(series.paths, pulled, strict=True):
        assert came.read_bytes() == sent.read_bytes()


@pytest.mark.peer
def test_a_series_is_found_by_all_that_is_given(client: DicomWeb, tmp_path: Path) -> None:
    def of(patient: str, day: str) -> Any:
        def change(dataset: FileDataset, k: int) -> None:
            dataset.PatientID, dataset.StudyDate = patient, day

        return change

    one = make_ct_series(tmp_path / "1", name="query 1", change=of("Q-1", "20260201"))
    two = make_ct_series(tmp_path / "2", name="query 2", change=of("Q-12", "20260301"))
    client.store([*one.paths, *two.paths])

    def uids(**asked: Any) -> set[str]:
        return {found.series_instance_uid for found in client.series(**asked)}

    both = {one.series_uid, two.series_uid}
    assert uids(patient_id="Q-1") == {one.series_uid}
    assert uids(patient_id="Q-12", modality="CT") == {two.series_uid}
    assert uids(patient_id="Q-12", modality="RTSTRUCT") == set()
    assert uids(since=date(2026, 2, 1)) & both == both
    assert uids(since=date(2026, 2, 2)) & both == {two.series_uid}
    assert uids(series_instance_uid=one.series_uid) == {one.series_uid}
    assert uids(study_instance_uid="1.2.3") == set()
    assert client.instances("1.2.3", "1.2.3.4") == []


@pytest.mark.peer
def test_all_pages_of_an_answer_are_read(
    client: DicomWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    series = make_ct_series(tmp_path / "ct", name="pages")
    client.store(series.paths)
    found = client.instances(series.study_uid, series.series_uid)
    assert sorted(one.sop_instance_uid for one in found) == sorted(series.sop_uids)


@pytest.mark.peer
def test_an_instance_that_is_not_there_is_told(client: DicomWeb, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="404"):
        client.fetch("1.2.3", "1.2.3.4", "1.2.3.4.5", tmp_path / "never.dcm")
    assert not (tmp_path / "never.dcm").exists()


@pytest.mark.peer
def test_success_that_hides_a_conflict_is_seen_through(client: DicomWeb, tmp_path: Path) -> None:
    first = make_ct_series(tmp_path / "first", name="hidden")
    second = make_ct_series(tmp_path / "second", first.hu_zyx.astype(int) + 1, name="hidden")
    client.store(first.paths)
    assert {one.outcome for one in client.store(second.paths)} == {"stored"}, "so Orthanc says"
    assert {one.outcome for one in client.confirm(second.paths)} == {"conflict"}
    assert {one.outcome for one in client.confirm(first.paths)} == {"stored"}
    agreeing = client.confirm(second.paths, same=lambda ours, theirs: True)
    assert {one.outcome for one in agreeing} == {"stored"}
    never = make_ct_series(tmp_path / "never", name="never stored")
    assert {one.outcome for one in client.confirm(never.paths)} == {"refused"}


@pytest.mark.peer
def test_structure_sets_go_out_and_come_back(client: DicomWeb, tmp_path: Path) -> None:
    series = make_ct_series(tmp_path / "ct", name="with structures")
    path = make_structure_set(tmp_path / "rs.dcm", {"GTV": []}, reference=series, name="rs web")
    assert client.store([path])[0].outcome == "stored"
    back = client.fetch(
        series.study_uid, uid("rs web series"), uid("rs web instance"), tmp_path / "back.dcm"
    )
    assert back.read_bytes() == path.read_bytes()


# ------------------------------------------------------------------------ STOW: what was answered


def answer_of(
    stored: dict[str, int | None], failed: dict[str, int | None], *, as_list: bool = False
) -> bytes:
    """Of an archive in JSON; UID to warning, UID to failure reason."""

    def items(reasons: dict[str, int | None], tag: str) -> dict[str, object]:
        return {
            "vr": "SQ",
            "Value": [
                {"00081155": {"vr": "UI", "Value": [sop]}}
                | ({tag: {"vr": "US", "Value": [reason]}} if reason is not None else {})
                for sop, reason in reasons.items()
            ],
        }

    told = {"00081199": items(stored, "00081196"), "00081198": items(failed, "00081197")}
    return json.dumps([told] if as_list else told).encode()


XML = """<?xml version="1.0" encoding="UTF-8"?>
<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
 <DicomAttribute tag="00081198" vr="SQ" keyword="FailedSOPSequence"><Item number="1">
  <DicomAttribute tag="00081155" vr="UI"><Value number="1">{failed}</Value></DicomAttribute>
  <DicomAttribute tag="00081197" vr="US"><Value number="1">42752</Value></DicomAttribute>
 </Item></DicomAttribute>
 <DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence"><Item number="1">
  <DicomAttribute tag="00081155" vr="UI"><Value number="1">{stored}</Value></DicomAttribute>
 </Item></DicomAttribute>
</NativeDicomModel>"""


@pytest.fixture
def series(tmp_path: Path) -> CtFiles:
    return make_ct_series(tmp_path / "ct")


@pytest.mark.parametrize("as_list", [False, True])
def test_each_instance_has_its_own_result(series: CtFiles, as_list: bool) -> None:
    a, b, c, d, e = series.sop_uids
    body = answer_of({a: None, b: 0xB000}, {c: 0xA700, d: 0xA9FF}, as_list=as_list)
    with stub(lambda asked: Says(status=202, body=body)) as server, client_of(server) as client:
        receipts = client.store(series.paths)
    assert [(one.sop_instance_uid, one.outcome, one.reason) for one in receipts] == [
        (a, "stored", ""),
        (b, "stored", "warning 0xB000"),
        (c, "refused", "0xA700 out of resources"),
        (d, "refused", "0xA9FF data set does not match SOP class"),
        (e, "refused", "not mentioned in the answer"),
    ]


def test_a_failure_may_come_without_a_reason_or_with_one_of_the_archives_own(
    series: CtFiles,
) -> None:
    body = answer_of({}, dict.fromkeys(series.sop_uids) | {series.sop_uids[0]: 0x1234})
    with stub(lambda asked: Says(status=409, body=body)) as server, client_of(server) as client:
        receipts = client.store(series.paths)
    assert {one.outcome for one in receipts} == {"refused"}
    assert [one.reason for one in receipts] == ["0x1234"] + ["without a reason"] * 4


def test_an_answer_in_xml_is_read(series: CtFiles) -> None:
    body = XML.format(stored=series.sop_uids[0], failed=series.sop_uids[1]).encode()
    with stub(lambda asked: Says(body=body)) as server, client_of(server) as client:
        receipts = client.store(series.paths[:2])
    assert [(one.outcome, one.reason) for one in receipts] == [
        ("stored", ""),
        ("refused", "0xA700 out of resources"),
    ]


def test_a_duplicate_is_compared_with_what_is_there(series: CtFiles, tmp_path: Path) -> None:
    other = make_ct_series(tmp_path / "other", series.hu_zyx.astype(int) + 1)
    refused = answer_of({}, dict.fromkeys(series.sop_uids, 0x0111))

    def holds(paths: tuple[Path, ...]) -> Any:
        def answer(asked: Asked) -> Says:
            if asked.method == "POST":
                return Says(status=409, body=refused)
            if asked.path.partition("?")[0].endswith("/instances"):
                fresh = [] if "offset=0" not in asked.path else list(series.sop_uids)
                tags = [{"00080018": {"vr": "UI", "Value": [sop]}} for sop in fresh]
                return Says(body=json.dumps(tags).encode())
            sop = asked.path.rpartition("/")[2]
            path = paths[series.sop_uids.index(sop)]
            return Says(body=path.read_bytes(), headers={"Content-Type": "application/dicom"})

        return answer

    with stub(holds(series.paths)) as server, client_of(server) as client:
        assert {one.outcome for one in client.store(series.paths)} == {"already"}
    with stub(holds(other.paths)) as server, client_of(server) as client:
        assert {one.outcome for one in client.store(series.paths)} == {"conflict"}


def test_the_body_is_what_its_length_says(series: CtFiles) -> None:
    body = answer_of(dict.fromkeys(series.sop_uids), {})
    with stub(lambda asked: Says(body=body)) as server, client_of(server) as client:
        client.store(series.paths, study=series.study_uid)
        (asked,) = server.seen()
    assert asked.path == f"/studies/{series.study_uid}"
    assert int(asked.headers["content-length"]) == len(asked.body)
    assert "transfer-encoding" not in asked.headers
    boundary = asked.headers["content-type"].rpartition("boundary=")[2].encode()
    parts = asked.body.split(b"--" + boundary)
    assert len(parts) == len(series.paths) + 2
    assert parts[-1] == b"--\r\n"
    for part, path in zip(parts[1:-1], series.paths, strict=True):
        head, _, rest = part.partition(b"\r\n\r\n")
        assert head == b"\r\nContent-Type: application/dicom"
        assert rest == path.read_bytes() + b"\r\n"


BOMB = b"""<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>
<NativeDicomModel><DicomAttribute tag="00081199">&c;</DicomAttribute></NativeDicomModel>"""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "neither JSON nor XML"),
        (b"<html>", "neither JSON nor XML"),
        (BOMB, "neither JSON nor XML"),
        (b"[" * 100_000, "neither JSON nor XML"),
        (b'"text"', "no data set"),
        (b"[1]", "no data set"),
        (b"[]", "did not say what became"),
        (
            b'{"00081199": {"Value": [{"00081155": {"Value": ["' + SECRET.encode() + b'"]}}]}}',
            "UID",
        ),
    ],
)
def test_an_answer_that_says_nothing_is_told_and_not_quoted(
    series: CtFiles, answer: bytes, said: str
) -> None:
    with (
        stub(lambda asked: Says(body=answer)) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match=said) as refusal,
    ):
        client.store(series.paths)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("body", [b"{}", b'{"00081199": 1}', b'{"00081199": {"Value": [1]}}'])
def test_an_answer_that_mentions_nothing_stored_nothing(series: CtFiles, body: bytes) -> None:
    with stub(lambda asked: Says(body=body)) as server, client_of(server) as client:
        assert {one.outcome for one in client.store(series.paths)} == {"refused"}


@pytest.mark.parametrize("status", [302, 401, 404, 413, 500, 503])
def test_an_archive_that_fails_as_a_whole_is_told(series: CtFiles, status: int) -> None:
    with (
        stub(lambda asked: Says(status=status)) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match=str(status)),
    ):
        client.store(series.paths)


def test_what_is_no_dicom_is_not_stored(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no DICOM")
    with stub(lambda asked: Says()) as server, client_of(server) as client:
        with pytest.raises(NotDicomError):
            client.store([tmp_path / "note.txt"])
        assert server.seen() == []


# --------------------------------------------------------------------------------- WADO: fetching


def client_of(server: Stub, **more: Any) -> DicomWeb:
    return DicomWeb(Peer(name="the-pacs", url=server.url, **more))


def related(*files: bytes, boundary: str = "B", end: bytes = b"--") -> Says:
    body = b"".join(
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + b"\r\n"
        for file in files
    )
    return Says(
        body=body + f"--{boundary}".encode() + end,
        headers={
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'
        },
    )


def fetch(client: DicomWeb, series: CtFiles, into: Path) -> Path:
    return client.fetch(series.study_uid, series.series_uid, series.sop_uids[0], into)


def test_a_file_that_holds_the_boundary_comes_whole(series: CtFiles, tmp_path: Path) -> None:
    with (
        stub(lambda asked: related(series.paths[0].read_bytes(), boundary="ISO_IR")) as server,
        client_of(server) as client,
    ):
        came = fetch(client, series, tmp_path / "came.dcm")
        (asked,) = server.seen()
    assert came.read_bytes() == series.paths[0].read_bytes()
    assert 'type="application/dicom"' in asked.headers["accept"]
    assert asked.headers["accept-encoding"] == "identity"


def test_a_file_alone_will_do(series: CtFiles, tmp_path: Path) -> None:
    alone = Says(
        body=series.paths[0].read_bytes(), headers={"Content-Type": "application/dicom; a=b"}
    )
    with stub(lambda asked: alone) as server, client_of(server) as client:
        came = fetch(client, series, tmp_path / "came.dcm")
    assert came.read_bytes() == series.paths[0].read_bytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda whole: related(whole, whole),
        lambda whole: related(),
        lambda whole: related(whole, end=b""),
        lambda whole: related(whole, boundary="x" * 300),
        lambda whole: Says(body=whole, headers={"Content-Type": "multipart/related"}),
        lambda whole: Says(body=whole, headers={"Content-Type": "text/html"}),
        lambda whole: Says(body=whole),
        lambda whole: Says(
            body=b"--B\r\nno header\r\n\r\n",
            headers={"Content-Type": "multipart/related; boundary=B"},
        ),
    ],
    ids=["two", "none", "no end", "long boundary", "no boundary", "a page", "no type", "no header"],
)
def test_what_is_no_whole_instance_is_not_kept(series: CtFiles, tmp_path: Path, make: Any) -> None:
    answer = make(series.paths[0].read_bytes())
    with (
        stub(lambda asked: answer) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="sent no whole instance"),
    ):
        fetch(client, series, tmp_path / "came.dcm")
    assert not (tmp_path / "came.dcm").exists()


@pytest.mark.parametrize("other", ["another instance", "no DICOM"])
def test_another_instance_is_not_kept(series: CtFiles, tmp_path: Path, other: str) -> None:
    body = series.paths[1].read_bytes() if other == "another instance" else b"no DICOM"
    with (
        stub(lambda asked: related(body)) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="something else than the instance"),
    ):
        fetch(client, series, tmp_path / "came.dcm")
    assert not (tmp_path / "came.dcm").exists()


def test_a_fetch_has_a_bound(series: CtFiles, tmp_path: Path) -> None:
    with (
        stub(lambda asked: related(bytes(2 * MIB))) as server,
        client_of(server, file_limit_bytes=MIB) as client,
        pytest.raises(PeerError, match="more than 1 MiB"),
    ):
        fetch(client, series, tmp_path / "came.dcm")
    assert not (tmp_path / "came.dcm").exists()


def test_a_fetch_that_stops_in_the_middle_is_not_kept(series: CtFiles, tmp_path: Path) -> None:
    whole = related(series.paths[0].read_bytes())
    half = Says(body=whole.body[:600], headers=whole.headers, length=len(whole.body))
    with (
        stub(lambda asked: half) as server,
        client_of(server) as client,
        pytest.raises(PeerUnreachableError),
    ):
        fetch(client, series, tmp_path / "came.dcm")
    assert not (tmp_path / "came.dcm").exists()


@given(cuts=st.lists(st.integers(0, 400)), body=st.binary(max_size=300))
def test_a_part_is_the_same_however_the_network_cuts_it(cuts: list[int], body: bytes) -> None:
    body = body.replace(b"\r\n--B", b"")
    whole = related(body).body
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    pieces = [whole[a:b] for a, b in pairwise(places)]
    written = bytearray()
    assert dicomweb.write_part(pieces, b"B", written.extend)
    assert written == body


# ---------------------------------------------------------------------------------- QIDO: finding


@pytest.mark.parametrize("wrong", ["../../studies", "1.2.3?limit=1", "", "1.2.3\n", "a" * 10])
def test_only_uids_come_into_an_address(tmp_path: Path, wrong: str) -> None:
    with stub(lambda asked: Says(body=b"[]")) as server, client_of(server) as client:
        for ask in (
            lambda: client.fetch("1.2", "1.2", wrong, tmp_path / "x"),
            lambda: client.instances(wrong, "1.2"),
            lambda: client.series(series_instance_uid=wrong or "?"),
        ):
            with pytest.raises(DicomError, match="is no UID"):
                ask()
        assert server.seen() == []


@pytest.mark.parametrize("wild", ["*", "P-?", "P-1\\P-2", " "])
def test_a_patient_id_that_matches_others_is_not_asked_for(wild: str) -> None:
    with stub(lambda asked: Says(body=b"[]")) as server, client_of(server) as client:
        with pytest.raises(DicomError, match="would match other values") as refusal:
            client.series(patient_id=wild)
        assert server.seen() == []
    assert wild not in str(refusal.value) or wild == " "


def found(series: str, **tags: object) -> dict[str, object]:
    told = {"0020000E": series} | tags
    return {tag: {"vr": "XX", "Value": [value]} for tag, value in told.items()}


def test_an_archive_that_ignores_what_was_asked_finds_no_other_patient() -> None:
    answers = [
        found("1.1", **{"00100020": "P-1 ", "00201209": "7"}),
        found("1.2", **{"00100020": "P-2"}),
        found("1.3"),
    ]
    body = json.dumps(answers).encode()
    with stub(lambda asked: Says(body=body)) as server, client_of(server) as client:
        (one,) = client.series(patient_id="P-1")
        assert client.series(patient_id="None") == []
    assert (one.series_instance_uid, one.count) == ("1.1", 7)


def test_a_count_that_is_not_given_is_none() -> None:
    body = json.dumps([found("1.1"), found("1.2", **{"00201209": "many"})]).encode()
    with stub(lambda asked: Says(body=body)) as server, client_of(server) as client:
        assert [one.count for one in client.series()] == [None, None]


def test_a_question_takes_so_many_bytes_and_no_more_over_all_pages() -> None:
    sent = 0

    def another_page(asked: Asked) -> Says:
        nonlocal sent
        at = asked.path.rpartition("offset=")[2]
        page = [found(f"1.{at}.{n}", **{"0008103E": "x" * 16_000}) for n in range(250)]
        body = json.dumps(page).encode()
        sent += len(body)
        return Says(body=body)

    with (
        stub(another_page) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="without end; ask for less"),
    ):
        client.series(modality="CT")
    assert 64 * MIB < sent < 72 * MIB


def test_a_question_takes_so_many_matches_and_no_more() -> None:
    asked_for = 0

    def another_page(asked: Asked) -> Says:
        nonlocal asked_for
        asked_for += 500
        at = asked.path.rpartition("offset=")[2]
        return Says(body=json.dumps([found(f"1.{at}.{n}") for n in range(500)]).encode())

    with (
        stub(another_page) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="without end; ask for less"),
    ):
        client.series()
    assert asked_for == 20_500


def test_of_an_answer_no_more_is_kept_than_is_read(tmp_path: Path) -> None:
    told = found("1.1", **{"0008103E": "d" * MIB, "00080060": "CT", "00104000": "c" * MIB})
    with (
        stub(lambda asked: Says(body=json.dumps([told]).encode())) as server,
        client_of(server) as client,
    ):
        (one,) = client.series(modality="CT")
    assert (one.modality, one.description) == ("CT", "d" * 1024)


def test_an_answer_without_content_finds_nothing() -> None:
    with stub(lambda asked: Says(status=204)) as server, client_of(server) as client:
        assert client.series() == []


def test_a_wrong_address_is_no_empty_answer() -> None:
    with (
        stub(lambda asked: Says(status=404)) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="404"),
    ):
        client.series()


def test_a_query_without_uids_or_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        stub(lambda asked: Says(body=b"[{}]")) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="without UIDs"),
    ):
        client.series()
    monkeypatch.setattr(dicomweb, "PAGES_AT_MOST", 3)
    numbers = iter(range(1000))

    def more(asked: Asked) -> Says:
        return Says(body=json.dumps([found(f"1.{next(numbers)}")]).encode())

    with (
        stub(more) as server,
        client_of(server) as client,
        pytest.raises(PeerError, match="without end"),
    ):
        client.series()
