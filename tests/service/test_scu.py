"""Other DICOM nodes, as we call them: a real Orthanc, DCMTK's archive, and peers that misbehave."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from contourcast.imaging.dicom.pixels import pixel_digest
from contourcast.imaging.errors import DicomError
from contourcast.service.pacs import wire
from contourcast.service.pacs.node import Commitment, Node, Sender
from contourcast.service.pacs.scu import Peer, Reference
from contourcast.service.pacs.wire import Bounds, Messages, Tls, bound
from contourcast.service.problems import PeerError, PeerUnreachableError, SettingsError
from support.data import peer
from support.dcmqrscp import dcmqrscp, until_it_answers
from support.dicom_factory import (
    CtFiles,
    disc,
    make_ct_series,
    make_registration,
    make_structure_set,
    uid,
)
from support.dimse import (
    AET,
    CT,
    LOOPBACK,
    FolderDoor,
    Heard,
    dcmtk,
    make_authority,
    node,
)
from support.orthanc import RealOrthanc, free_ports, orthanc

ARCHIVE = "ORTHANC"


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> CtFiles:
    values = np.random.default_rng(9).integers(-1000, 1000, (6, 64, 64))
    return make_ct_series(tmp_path_factory.mktemp("ct"), values, name="scu-ct")


@dataclass(frozen=True, kw_only=True)
class Site:
    """Our node and an Orthanc that know each other."""

    door: FolderDoor
    heard: Heard
    node: Node
    archive: RealOrthanc
    peer: Peer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, ct: CtFiles) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    door, heard = FolderDoor(folder / "door"), Heard()
    with closing(door), node(door, heard=heard, callers=(ARCHIVE,)) as ours:
        known = {"contourcast": {"AET": AET, "Host": LOOPBACK, "Port": ours.port}}
        with orthanc(folder / "orthanc", modalities=known) as archive:
            there = Peer(aet=ARCHIVE, host=LOOPBACK, port=archive.dicom_port, our_aet=AET)
            assert all(receipt.stored for receipt in there.store(ct.paths))
            yield Site(door=door, heard=heard, node=ours, archive=archive, peer=there)


# A real archive


@pytest.mark.peer
def test_orthanc_answers_an_echo(site: Site) -> None:
    site.peer.echo()


@pytest.mark.peer
def test_orthanc_gets_the_bytes_that_lie_on_disk(site: Site, ct: CtFiles) -> None:
    (first, *_) = site.archive.http.post(
        "/tools/find", json={"Level": "Instance", "Query": {"SOPInstanceUID": ct.sop_uids[0]}}
    ).json()
    content = site.archive.http.get(f"/instances/{first}/file").content
    raw = ct.paths[0].read_bytes()
    data_set = raw[raw.index(b"\x08\x00\x05\x00CS") :]
    assert content.endswith(data_set)


@pytest.mark.peer
def test_what_orthanc_has_is_found(site: Site, ct: CtFiles) -> None:
    (study,) = site.peer.find_studies(study_uid=ct.study_uid)
    assert (study.study_uid, study.series, study.instances) == (ct.study_uid, 1, 6)
    (series,) = site.peer.find_series(study_uid=ct.study_uid, modality="CT")
    assert (series.series_uid, series.modality, series.instances) == (ct.series_uid, "CT", 6)
    images = site.peer.find_images(study_uid=ct.study_uid, series_uid=ct.series_uid)
    assert {image.sop_uid for image in images} == set(ct.sop_uids)
    assert {image.study_uid for image in images} == {ct.study_uid}


@pytest.mark.peer
def test_studies_are_found_by_date_and_patient(site: Site, ct: CtFiles) -> None:
    assert len(site.peer.find_studies(dates="20260101-20260131")) == 1
    assert site.peer.find_studies(dates="20250101-20250131") == ()
    assert len(site.peer.find_studies(patient_id="P-1")) == 1
    assert site.peer.find_studies(patient_id="P-2") == ()


@pytest.mark.peer
def test_orthanc_sends_a_series_to_our_node(site: Site, ct: CtFiles) -> None:
    moved = site.peer.move(study_uid=ct.study_uid, series_uid=ct.series_uid)
    assert (moved.completed, moved.failed) == (6, 0)
    arrivals = site.heard.wait_for_arrivals(1)
    assert set(ct.sop_uids) <= site.door.kept()
    assert arrivals[-1][0] == {ct.series_uid}
    assert arrivals[-1][1].aet == ARCHIVE


@pytest.mark.peer
def test_a_study_is_fetched_without_a_node(site: Site, ct: CtFiles, tmp_path: Path) -> None:
    door = FolderDoor(tmp_path / "door")
    fetched = site.peer.get(study_uid=ct.study_uid, door=door)
    assert (fetched.completed, fetched.failed) == (6, 0)
    assert fetched.series == {ct.series_uid}
    assert door.kept() == set(ct.sop_uids)
    assert door.on_their_way() == []
    assert {sender.aet for sender in door.senders} == {ARCHIVE}
    for path, sop in zip(ct.paths, ct.sop_uids, strict=True):
        assert pixel_digest(door.path_of(sop)) == pixel_digest(path)
    door.close()


@pytest.mark.peer
def test_what_the_door_refuses_of_a_fetch_is_counted(
    site: Site, ct: CtFiles, tmp_path: Path
) -> None:
    door = FolderDoor(tmp_path / "door")
    door.full = True
    fetched = site.peer.get(study_uid=ct.study_uid, door=door)
    assert (fetched.completed, fetched.failed) == (0, 6)
    assert fetched.series == frozenset()
    door.close()


@pytest.mark.peer
def test_results_reach_orthanc_and_it_vouches_for_them(
    site: Site, ct: CtFiles, tmp_path: Path
) -> None:
    structures = make_structure_set(
        tmp_path / "rs.dcm", {"GTV": [disc((0, 0, -30), 5)]}, reference=ct, name="result rs"
    )
    registration = make_registration(
        tmp_path / "reg.dcm",
        registered=uid("result a"),
        moved={uid("result b"): np.eye(4)},
        name="result reg",
    )
    receipts = site.peer.store([structures, registration])
    assert [(receipt.stored, receipt.recoded) for receipt in receipts] == [(True, False)] * 2
    sent = [receipt.reference for receipt in receipts]
    lost = replace(sent[0], sop_uid=uid("never sent"))
    site.peer.commit([*sent, lost], transaction_uid=uid("transaction 1"))
    ((commitment, sender),) = site.heard.wait_for_commitments(1)
    assert commitment.transaction_uid == uid("transaction 1")
    assert set(commitment.committed) == {one.sop_uid for one in sent}
    assert [one.sop_uid for one in commitment.failed] == [lost.sop_uid]
    assert commitment.failed[0].reason.meaning == "no such instance"
    assert sender.aet == ARCHIVE
    assert site.peer.is_there([*sent, lost]) == {one.sop_uid for one in sent}


@pytest.mark.slow
@pytest.mark.peer
def test_orthanc_s_refusals_are_told_in_words(site: Site, ct: CtFiles) -> None:
    where = f"{ARCHIVE} at {LOOPBACK}:{site.archive.dicom_port}"
    with pytest.raises(PeerError) as caught:
        site.peer.move(study_uid=ct.study_uid, to="NOBODY")
    assert caught.value.cause == f"{where} answered our C-MOVE with status C000, not able to send"
    with pytest.raises(PeerError) as caught:
        replace(site.peer, aet="OTHER").echo()
    assert "rejects our association for C-ECHO: it does not bear the AE title" in str(caught.value)
    with pytest.raises(PeerError, match="did not answer our C-FIND in time, or broke off"):
        replace(site.peer, our_aet="STRANGER").find_studies(study_uid=ct.study_uid)
    with pytest.raises(PeerError, match="did not answer our C-STORE in time, or broke off"):
        replace(site.peer, our_aet="STRANGER").store(ct.paths)


# DCMTK's archive


@pytest.mark.peer
def test_dcmtk_s_archive_takes_finds_and_sends_back(tmp_path: Path, ct: CtFiles) -> None:
    door, heard = FolderDoor(tmp_path / "door"), Heard()
    with (
        closing(door),
        node(door, heard=heard, callers=("DCMQRSCP",)) as ours,
        dcmqrscp(tmp_path / "qr", ours.port) as archive,
    ):
        assert all(receipt.stored for receipt in archive.peer.store(ct.paths))
        (series,) = archive.peer.find_series(study_uid=ct.study_uid)
        assert series.series_uid == ct.series_uid
        moved = archive.peer.move(study_uid=ct.study_uid, series_uid=ct.series_uid)
        assert (moved.completed, moved.failed) == (6, 0)
        arrivals = heard.wait_for_arrivals(1)
        other = FolderDoor(tmp_path / "other")
        fetched = archive.peer.get(study_uid=ct.study_uid, series_uid=ct.series_uid, door=other)
        assert fetched.completed == 6
        with pytest.raises(PeerError, match="A801, it does not know the AE that it shall send to"):
            archive.peer.move(study_uid=ct.study_uid, to="NOBODY")
        with pytest.raises(PeerError, match="does not offer storage commitment"):
            archive.peer.commit([], transaction_uid=uid("t"))
    assert door.kept() == other.kept() == set(ct.sop_uids)
    assert arrivals[0][0] == {ct.series_uid}
    assert {sender.on_behalf_of for sender in door.senders} == {AET}
    other.close()


# Transfer syntaxes


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[Peer]:
    """DCMTK's receiver for a block."""
    (port,) = free_ports(1)
    folder.mkdir()
    process = subprocess.Popen(
        [peer("storescp"), "-aet", "STORESCP", "-od", str(folder), *options, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"TCP_NODELAY": "1", "PATH": "/usr/bin"},
    )
    there = Peer(aet="STORESCP", host=LOOPBACK, port=port, our_aet=AET)
    try:
        until_it_answers(there)
        yield there
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize(
    ("syntax", "option", "sent_as"),
    [
        (ExplicitVRLittleEndian, "+xe", ExplicitVRLittleEndian),
        (ExplicitVRLittleEndian, "+xi", ImplicitVRLittleEndian),
        (ImplicitVRLittleEndian, "+xi", ImplicitVRLittleEndian),
        (ExplicitVRBigEndian, "+xi", ImplicitVRLittleEndian),
        (RLELossless, "+xr", RLELossless),
        (RLELossless, "+xi", ImplicitVRLittleEndian),
        (JPEGLSLossless, "+xe", ExplicitVRLittleEndian),
    ],
    ids=lambda value: value if value.startswith("+") else UID(value).name,
)
def test_a_transfer_syntax_that_is_not_taken_is_written_anew_and_said(
    tmp_path: Path, syntax: UID, option: str, sent_as: UID
) -> None:
    values = np.random.default_rng(2).integers(-1000, 1000, (2, 64, 64))
    series = make_ct_series(tmp_path / "ct", values, transfer_syntax=syntax)
    with storescp(tmp_path / "in", option) as there:
        receipts = there.store(series.paths)
    assert [receipt.sent_as for receipt in receipts] == [sent_as] * 2
    assert [receipt.recoded for receipt in receipts] == [syntax != sent_as] * 2
    assert all(receipt.stored for receipt in receipts)
    arrived = {dcmread(path).SOPInstanceUID: path for path in (tmp_path / "in").iterdir()}
    for path, sop in zip(series.paths, series.sop_uids, strict=True):
        assert dcmread(arrived[sop]).file_meta.TransferSyntaxUID == sent_as
        assert pixel_digest(arrived[sop]) == pixel_digest(path)
        said = dcmtk("dcmdump", arrived[sop])
        assert said.returncode == 0, said.stderr


@pytest.mark.peer
def test_a_colour_image_is_not_decompressed(tmp_path: Path) -> None:
    def colour(dataset: Dataset, k: int) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
        dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = bytes(3 * 64 * 64)
        dataset["PixelData"].VR = "OB"

    values = np.zeros((1, 64, 64), int)
    series = make_ct_series(tmp_path / "ct", values, transfer_syntax=RLELossless, change=colour)
    with storescp(tmp_path / "in", "+xi") as there, pytest.raises(DicomError, match="grey image"):
        there.store(series.paths)


# TLS


@pytest.mark.peer
def test_a_peer_is_called_over_tls_and_must_be_who_it_is(tmp_path: Path, ct: CtFiles) -> None:
    made = make_authority(tmp_path / "tls", "archive", "ours")
    stranger = make_authority(tmp_path / "other", "ours")
    certificate, key = made["archive"]
    authority = made["authority"][0]
    options = ("+tls", str(key), str(certificate), "+cf", str(authority))
    (port,) = free_ports(1)
    (tmp_path / "in").mkdir()
    process = subprocess.Popen(
        [peer("storescp"), "-od", str(tmp_path / "in"), *options, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ours = Tls(certificate=made["ours"][0], key=made["ours"][1], authority=authority)
    there = Peer(aet="ANY-SCP", host=LOOPBACK, port=port, our_aet=AET, tls=ours)
    try:
        until_it_answers(there)
        assert all(receipt.stored for receipt in there.store(ct.paths))
        with pytest.raises(PeerUnreachableError, match="cannot be reached over TLS"):
            replace(there, tls=replace(ours, authority=stranger["authority"][0])).echo()
        with pytest.raises(PeerUnreachableError, match="cannot be reached over TLS"):
            replace(there, host="localhost").echo()  # the certificate bears the address alone
        replace(there, host="localhost", tls=replace(ours, checks_name=False)).echo()
    finally:
        process.terminate()
        process.wait(timeout=20)


# Peers that are not there or misbehave

IMPATIENT = Bounds(answer_s=0.5, idle_s=0.5, pdu_s=0.5, connect_s=0.5)


@contextmanager
def talking(answer: Callable[[socket.socket], None]) -> Iterator[Peer]:
    """A peer that does with a connection what it is told to."""
    with socket.create_server((LOOPBACK, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Peer(
            aet="ODD",
            host=LOOPBACK,
            port=server.getsockname()[1],
            our_aet=AET,
            bounds=IMPATIENT,
        )
        thread.join()


def hear_out(connection: socket.socket) -> None:
    connection.settimeout(20)
    while connection.recv(4096):
        pass


def hang_up(connection: socket.socket) -> None:
    connection.recv(10)


def babble(connection: socket.socket) -> None:
    connection.recv(10)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    hear_out(connection)


def boast(connection: socket.socket) -> None:
    connection.recv(10)
    connection.sendall(b"\2\0\xff\xff\xff\xff" + bytes(100))
    hear_out(connection)


@pytest.mark.parametrize("answer", [hear_out, hang_up, babble, boast])
def test_a_peer_that_does_not_speak_dicom_is_given_up(
    answer: Callable[[socket.socket], None],
) -> None:
    with (
        talking(answer) as there,
        pytest.raises(PeerUnreachableError, match="did not answer our C-ECHO in time"),
    ):
        there.echo()


def test_a_peer_that_is_not_there_is_named() -> None:
    (port,) = free_ports(1)
    there = Peer(aet="GONE", host=LOOPBACK, port=port, our_aet=AET)
    with pytest.raises(PeerUnreachableError) as caught:
        there.echo()
    assert str(caught.value) == (
        f"GONE at {LOOPBACK}:{port} cannot be reached for C-ECHO;"
        " check that it runs, its host and port"
    )
    with pytest.raises(PeerUnreachableError, match=r"nowhere\.invalid"):
        replace(there, host="nowhere.invalid").echo()


@pytest.mark.parametrize("aet", ["", " ", "SEVENTEEN_LETTERS", "TWO\\NAMES", "ÄRZTE", "A\n", " A"])
def test_titles_that_are_none_are_refused(aet: str) -> None:
    with pytest.raises(SettingsError, match="cannot be an AE title"):
        Peer(aet=aet, host=LOOPBACK, port=1, our_aet=AET)
    with pytest.raises(SettingsError, match="cannot be an AE title"):
        Peer(aet="PEER", host=LOOPBACK, port=1, our_aet=aet)


@contextmanager
def archive_of(
    *classes: str, bounds: Bounds | None = None, **handlers: Callable[..., object]
) -> Iterator[Peer]:
    """A peer of pynetdicom, with handlers by the names of its events."""
    bounds = bounds or Bounds()
    ae = AE("ARCHIVE")
    for one in (*classes, Verification):
        ae.add_supported_context(one)
    bindings: list[Any] = [
        (getattr(evt, f"EVT_{name.upper()}"), handler) for name, handler in handlers.items()
    ]
    # Its sockets are ours, which are closed also when the other side was first to do so.
    bindings.append((evt.EVT_CONN_OPEN, lambda event: bound(event.assoc, bounds)))
    server = ae.start_server((LOOPBACK, 0), block=False, evt_handlers=bindings)
    assert server is not None
    try:
        port = server.server_address[1]
        yield Peer(aet="ARCHIVE", host=LOOPBACK, port=port, our_aet=AET, bounds=bounds)
    finally:
        server.shutdown()


FIND = StudyRootQueryRetrieveInformationModelFind
MOVE = StudyRootQueryRetrieveInformationModelMove


def test_a_query_that_fails_is_told_in_words() -> None:
    with (
        archive_of(FIND, c_find=lambda event: iter([(0xA700, None)])) as there,
        pytest.raises(PeerError, match="our C-FIND with status A700, out of resources; try again"),
    ):
        there.find_series(study_uid=uid("s"))


def test_what_a_peer_adds_to_its_answers_is_passed_over() -> None:
    def found(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = Dataset()
        match.StudyInstanceUID = uid("found")
        match.PatientName = "ZZQQ-LEAK"
        match.NumberOfStudyRelatedInstances = "12"
        yield 0xFF01, match
        yield 0x0000, None

    with archive_of(FIND, c_find=found) as there:
        (study,) = there.find_studies()
    assert (study.study_uid, study.series, study.instances) == (uid("found"), None, 12)
    assert "ZZQQ" not in repr(study)


def test_a_match_that_cannot_be_read_is_told() -> None:
    def found(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        answer = C_FIND()
        answer.MessageIDBeingRespondedTo = event.message_id
        answer.AffectedSOPClassUID = UID(FIND)
        answer.Status = 0xFF00
        sequence_without_end = b"\x08\0\x40\x11\xff\xff\xff\xff" + b"z" * 20
        answer.Identifier = BytesIO(sequence_without_end)
        event.assoc.dimse.send_msg(answer, event.context.context_id)
        yield 0x0000, None

    with (
        archive_of(FIND, c_find=found) as there,
        pytest.raises(PeerError, match="answered our C-FIND with something unreadable"),
    ):
        there.find_studies()


def test_matches_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contourcast.service.pacs.scu.MATCHES_AT_MOST", 20)

    def found(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = Dataset()
        match.StudyInstanceUID = uid("found")
        for _ in range(1000):
            if not event.assoc.is_established:
                return
            yield 0xFF00, match

    with (
        archive_of(FIND, c_find=found) as there,
        pytest.raises(PeerError, match="finds more than 20 matches"),
    ):
        there.find_studies()


def saying(description: str, times: int) -> Callable[[evt.Event], Iterator[Any]]:
    def found(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = Dataset()
        match.SeriesInstanceUID = uid("found")
        match.SeriesDescription = description
        for _ in range(times):
            if not event.assoc.is_established:
                return
            yield 0xFF00, match
        yield 0x0000, None

    return found


@pytest.mark.filterwarnings("ignore:.*exceeds the maximum length:UserWarning")
@pytest.mark.parametrize(("size", "times"), [(1 << 20, 1), (60_000, 1200)])
def test_matches_too_large_one_by_one_or_together_are_cut_off(size: int, times: int) -> None:
    with (
        archive_of(FIND, c_find=saying("d" * size, times)) as there,
        pytest.raises(PeerError, match="answers our C-FIND with more than we take; ask for fewer"),
    ):
        there.find_series(study_uid=uid("s"))


@pytest.mark.filterwarnings("ignore:.*exceeds the maximum length:UserWarning")
def test_of_a_match_no_more_is_kept_than_its_beginning() -> None:
    with archive_of(FIND, c_find=saying("d" * 60_000, 3)) as there:
        found = there.find_series(study_uid=uid("s"))
    assert [one.description for one in found] == ["d" * 1024] * 3


def test_a_retrieval_to_a_node_that_is_not_known_is_told_in_words() -> None:
    with (
        archive_of(MOVE, c_move=lambda event: iter([(None, None)])) as there,
        pytest.raises(PeerError, match="A801, it does not know the AE that it shall send to"),
    ):
        there.move(study_uid=uid("s"))


def test_a_peer_that_falls_silent_is_given_up() -> None:
    over = threading.Event()

    def wait(event: evt.Event) -> int:
        over.wait(20)
        return 0

    with archive_of(CTImageStorage, bounds=IMPATIENT, c_echo=wait) as there:
        with pytest.raises(PeerUnreachableError, match="did not answer our C-ECHO in time"):
            there.echo()
        over.set()


def test_an_answer_is_left_to_whoever_waits_for_it(
    ct: CtFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine pynetdicom's other thread looks just when one comes."""

    class LookedThrough(Messages):
        def _deliver(self, message: DIMSEMessage) -> None:
            super()._deliver(message)
            if self.assoc.is_requestor:
                self.get_msg()

    monkeypatch.setattr(wire, "Messages", LookedThrough)
    with archive_of(CTImageStorage, bounds=Bounds(answer_s=5.0), c_store=lambda event: 0) as there:
        assert [receipt.stored for receipt in there.store(ct.paths)] == [True] * 6


def test_a_refused_instance_is_in_its_receipt(ct: CtFiles) -> None:
    answers = iter([0x0000, 0xA700, 0xB000, 0xC123, 0x0124, 0x0000])
    with archive_of(CTImageStorage, c_store=lambda event: next(answers)) as there:
        receipts = there.store(ct.paths)
    assert [receipt.stored for receipt in receipts] == [True, False, True, False, False, True]
    assert [receipt.status.may_pass for receipt in receipts][1] is True
    assert str(receipts[3].status) == "status C123, not understood"
    assert receipts[0].reference == Reference(
        sop_class_uid=CT,
        sop_uid=ct.sop_uids[0],
        series_uid=ct.series_uid,
        study_uid=ct.study_uid,
    )


def test_an_archive_that_vouches_at_once_is_heard() -> None:
    said: list[tuple[Commitment, Sender]] = []
    came = threading.Event()

    def committed(commitment: Commitment, sender: Sender) -> None:
        said.append((commitment, sender))
        came.set()

    def vouch(event: evt.Event) -> tuple[int, Dataset | None]:
        asked = event.action_information
        answer = Dataset()
        answer.TransactionUID = asked.TransactionUID
        answer.ReferencedSOPSequence = asked.ReferencedSOPSequence
        event.assoc.send_n_event_report(
            answer, 1, StorageCommitmentPushModel, UID("1.2.840.10008.1.20.1.1")
        )
        return 0x0000, None

    reference = Reference(sop_class_uid=CT, sop_uid=uid("i"), series_uid="1.2", study_uid="1.3")
    with archive_of(StorageCommitmentPushModel, n_action=vouch) as there:
        there.commit([reference], transaction_uid=uid("at once"), committed=committed)
    assert came.is_set()
    assert said[0][0].committed == (uid("i"),)
    assert said[0][0].transaction_uid == uid("at once")


def test_an_archive_that_refuses_to_vouch_is_told_in_words() -> None:
    with (
        archive_of(StorageCommitmentPushModel, n_action=lambda event: (0x0213, None)) as there,
        pytest.raises(PeerError, match="storage commitment with status 0213, out of resources"),
    ):
        there.commit([], transaction_uid=uid("refused"))


def test_a_peer_without_the_service_is_told(ct: CtFiles) -> None:
    with archive_of() as there:
        with pytest.raises(PeerError, match="does not offer C-FIND"):
            there.find_studies()
        with pytest.raises(PeerError, match="does not offer C-STORE"):
            there.store(ct.paths)


def test_a_peer_that_is_full_is_told() -> None:
    def full(event: evt.Event) -> None:
        event.assoc.acse.send_reject(2, 3, 2)
        event.assoc.kill()

    with (
        archive_of(requested=full) as there,
        pytest.raises(PeerError, match="as many associations are open there as may be"),
    ):
        there.echo()
