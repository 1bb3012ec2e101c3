"""Our DICOM node: what it takes, whom it lets in, and what it survives."""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, build_role
from pynetdicom.dsutils import encode
from pynetdicom.dul import DULServiceProvider

from contourcast.imaging.dicom.pixels import pixel_digest
from contourcast.imaging.errors import DicomError
from contourcast.service.ingest import TAKEN
from contourcast.service.pacs.door import Taken
from contourcast.service.pacs.node import (
    CLASSES,
    Caller,
    Landed,
    Node,
    NodeSettings,
    Sender,
    read_commitment,
    run_node,
)
from contourcast.service.pacs.scu import Peer
from contourcast.service.pacs.statuses import OF_SERVICE, status_of
from contourcast.service.pacs.wire import LOSSLESS, PDU_BYTES, Bounds, Tls
from contourcast.service.problems import PeerError, SettingsError
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
    EXPLICIT,
    IMPLICIT,
    LINAC,
    LOOPBACK,
    VERIFICATION,
    FolderDoor,
    Heard,
    Wire,
    associate_request,
    command,
    dcmtk,
    fragment,
    make_authority,
    node,
    pdu,
    store_command,
    storescu,
)

COMMITMENT = "1.2.840.10008.1.20.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
ABORT, ACCEPT, REJECT, CLOSED = 7, 2, 3, 0
SOON = Bounds(pdu_s=0.5, idle_s=0.5, answer_s=0.5, connect_s=0.5)
# What a thread of a connection and its buffers may cost beside the data set.
OTHER_MEMORY_BYTES = 48 << 20


@pytest.fixture
def door(tmp_path: Path) -> Iterator[FolderDoor]:
    door = FolderDoor(tmp_path / "door")
    yield door
    door.close()


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> CtFiles:
    values = np.random.default_rng(7).integers(-1000, 1000, (5, 64, 64))
    return make_ct_series(tmp_path_factory.mktemp("ct"), values, name="node-ct")


def linac(ours: Node, *, our_aet: str = LINAC, tls: Tls | None = None) -> Peer:
    """The node as a linac sees it."""
    return Peer(aet=AET, host=LOOPBACK, port=ours.port, our_aet=our_aet, tls=tls)


def data_set(path: Path) -> bytes:
    """The bytes after the file meta information."""
    content, at = path.read_bytes(), 132
    while struct.unpack_from("<H", content, at)[0] == 2:
        vr, length = struct.unpack_from("<2sH", content, at + 4)
        at += 8 + length
        if vr == b"OB":
            at += 4 + int(struct.unpack_from("<L", content, at)[0])
    return content[at:]


def small(sop_uid: str, *, sop_class: str = CT, size: int = 4) -> bytes:
    """A CT image of so many pixels a side, explicit VR little endian, as a data set."""
    elements = [
        (0x00080016, b"UI", sop_class.encode()),
        (0x00080018, b"UI", sop_uid.encode()),
        (0x0020000D, b"UI", uid("small study").encode()),
        (0x0020000E, b"UI", uid("small series").encode()),
        (0x00280002, b"US", struct.pack("<H", 1)),
        (0x00280010, b"US", struct.pack("<H", size)),
        (0x00280011, b"US", struct.pack("<H", size)),
        (0x00280100, b"US", struct.pack("<H", 16)),
        (0x00280101, b"US", struct.pack("<H", 16)),
        (0x00280102, b"US", struct.pack("<H", 15)),
        (0x00280103, b"US", struct.pack("<H", 0)),
    ]
    data = b""
    for tag, vr, value in elements:
        value += b"\0" * (len(value) % 2)
        data += struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
    pixels = bytes(2 * size * size)
    return data + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, len(pixels)) + pixels


def send_store(wire: Wire, sop_uid: str, data: bytes, *, sop_class: str = CT) -> int:
    """One C-STORE over an association; its status."""
    wire.send(fragment(store_command(sop_uid, sop_class=sop_class), last=True, is_command=True))
    step = 16_000
    for at in range(0, max(len(data), 1), step):
        last = at + step >= len(data)
        wire.send(fragment(data[at : at + step], last=last, is_command=False))
    return wire.status()


# What it takes


def test_a_data_set_lies_on_disk_as_the_bytes_that_came(door: FolderDoor, ct: CtFiles) -> None:
    heard = Heard()
    with node(door, heard=heard) as ours:
        receipts = linac(ours).store(ct.paths)
        arrivals = heard.wait_for_arrivals(1)
    assert [str(receipt.status) for receipt in receipts] == ["status 0000, done"] * 5
    assert door.kept() == set(ct.sop_uids)
    assert door.on_their_way() == []
    for path, sop in zip(ct.paths, ct.sop_uids, strict=True):
        kept = door.path_of(sop)
        assert data_set(kept) == data_set(path)
        meta = dcmread(kept).file_meta
        assert meta.MediaStorageSOPInstanceUID == sop
        assert meta.MediaStorageSOPClassUID == CT
        assert meta.TransferSyntaxUID == EXPLICIT
    assert arrivals == [(frozenset({ct.series_uid}), door.senders[0])]
    assert (door.senders[0].aet, door.senders[0].address) == (LINAC, LOOPBACK)


@pytest.mark.peer
def test_the_same_instance_is_the_same_file_whoever_sends_it(
    door: FolderDoor, ct: CtFiles, tmp_path: Path
) -> None:
    other = FolderDoor(tmp_path / "other")
    with node(door) as ours, node(other, callers=("LINAC2",)) as second:
        linac(ours).store(ct.paths)
        assert storescu(second.port, ct.paths, "-xe", calling="LINAC2").returncode == 0
    assert door.digests() == other.digests()
    other.close()


@pytest.mark.peer
def test_forty_slices_are_each_taken_in_the_thread_that_reads_them(tmp_path: Path) -> None:
    """None waits for threads that look every so often; seconds are benchmarks/dicom_node.py's."""
    values = np.random.default_rng(3).integers(-1000, 1000, (40, 128, 128))
    slices = make_ct_series(tmp_path / "ct", values, name="forty")
    with closing(WatchedDoor(tmp_path / "door")) as door:
        with node(door) as ours:
            assert storescu(ours.port, slices.paths).returncode == 0
        assert door.kept() == set(slices.sop_uids)
        (taken_in,) = door.threads
    assert isinstance(taken_in, DULServiceProvider)


class WatchedDoor(FolderDoor):
    """Knows in which threads it took instances in."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.threads: set[threading.Thread] = set()

    def take(self, landed: Landed, *, sender: Sender) -> Taken:
        self.threads.add(threading.current_thread())
        return super().take(landed, sender=sender)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_every_transfer_syntax_is_kept_as_it_is(
    door: FolderDoor, tmp_path: Path, syntax: UID
) -> None:
    values = np.random.default_rng(1).integers(-1000, 1000, (1, 64, 64))
    one = make_ct_series(tmp_path / "ct", values, transfer_syntax=syntax)
    with node(door) as ours:
        (receipt,) = linac(ours).store(one.paths)
    assert (receipt.stored, receipt.sent_as, receipt.recoded) == (True, syntax, False)
    kept = door.path_of(one.sop_uids[0])
    assert data_set(kept) == data_set(one.paths[0])
    assert pixel_digest(kept) == pixel_digest(one.paths[0])


@pytest.mark.peer
@pytest.mark.parametrize(
    ("option", "encode", "syntax"),
    [
        ("-xs", ("dcmcjpeg", "+e1"), "1.2.840.10008.1.2.4.70"),
        ("-xl", ("dcmcjpls",), "1.2.840.10008.1.2.4.80"),
        ("-xr", ("dcmcrle",), "1.2.840.10008.1.2.5"),
        ("-xi", (), IMPLICIT),
    ],
)
def test_dcmtk_sends_what_it_compresses(
    door: FolderDoor,
    ct: CtFiles,
    tmp_path: Path,
    option: str,
    encode: tuple[str, ...],
    syntax: str,
) -> None:
    path = ct.paths[0]
    if encode:
        path = tmp_path / "compressed.dcm"
        said = dcmtk(encode[0], *encode[1:], "+un", ct.paths[0], path)
        assert said.returncode == 0, said.stderr
    with node(door) as ours:
        said = storescu(ours.port, [path], "-xt" if option == "-xl" else option)
        assert said.returncode == 0, said.stderr
    kept = door.path_of(ct.sop_uids[0])
    assert dcmread(kept).file_meta.TransferSyntaxUID == syntax
    assert pixel_digest(kept) == pixel_digest(ct.paths[0])


def test_all_lossless_transfer_syntaxes_are_accepted(door: FolderDoor) -> None:
    wanted = [*LOSSLESS, DeflatedExplicitVRLittleEndian, UID("1.2.840.10008.1.2.4.50")]
    with node(door) as ours, Wire(ours.port) as wire:
        wire.send(associate_request(contexts=[(CT, (syntax,)) for syntax in wanted]))
        kind, body = wire.receive()
    assert kind == ACCEPT
    results = []
    at = 68
    while at < len(body):
        item, _, length = struct.unpack_from(">BBH", body, at)
        if item == 0x21:
            results.append(body[at + 6])
        at += 4 + length
    accepted, syntax_refused = 0, 4  # PS3.8 Table 9-18
    assert results == [accepted] * len(LOSSLESS) + [syntax_refused, syntax_refused]


def test_a_deflated_bomb_stays_packed(door: FolderDoor) -> None:
    engine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(engine.compress(bytes(1 << 20)) for _ in range(200)) + engine.flush()
    with little_memory(), node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        assert send_store(wire, uid("bomb"), bomb) == 0xC000
    assert door.on_their_way() == []


def test_all_kinds_of_objects_are_taken(door: FolderDoor, ct: CtFiles, tmp_path: Path) -> None:
    structures = make_structure_set(
        tmp_path / "rs.dcm", {"GTV": [disc((0, 0, -30), 5)]}, reference=ct
    )
    registration = make_registration(
        tmp_path / "reg.dcm", registered=uid("a"), moved={uid("b"): np.eye(4)}
    )
    with node(door) as ours:
        receipts = linac(ours).store([ct.paths[0], structures, registration])
    assert all(receipt.stored for receipt in receipts)
    assert len(door.kept()) == 3


def test_it_takes_what_the_other_doors_take() -> None:
    assert frozenset(TAKEN) == CLASSES


@pytest.mark.peer
def test_echoscu_is_answered(door: FolderDoor) -> None:
    with node(door) as ours:
        said = dcmtk("echoscu", "-aet", LINAC, "-aec", AET, LOOPBACK, str(ours.port))
    assert said.returncode == 0, said.stderr


def test_an_instance_that_comes_again_is_answered_with_success(
    door: FolderDoor, ct: CtFiles
) -> None:
    with node(door) as ours:
        linac(ours).store(ct.paths)
        again = linac(ours).store(ct.paths)
    assert all(receipt.stored for receipt in again)
    assert door.on_their_way() == []


@pytest.mark.peer
def test_an_association_that_breaks_off_keeps_what_came_and_tells_no_one(
    door: FolderDoor, ct: CtFiles
) -> None:
    heard = Heard()
    with node(door, heard=heard) as ours:
        storescu(ours.port, ct.paths, "--abort")
    assert door.kept() == set(ct.sop_uids)
    assert heard.arrivals == []


def test_who_had_it_sent_is_known(door: FolderDoor) -> None:
    sop = uid("moved")
    elements = {
        0x0002: CT.encode() + b"\0",
        0x0100: struct.pack("<H", 1),
        0x0110: struct.pack("<H", 1),
        0x0700: struct.pack("<H", 0),
        0x0800: struct.pack("<H", 1),
        0x1000: sop.encode() + b"\0" * (len(sop) % 2),
        0x1030: b"STATION7",
        0x1031: struct.pack("<H", 3),
    }
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        wire.send(fragment(command(elements), last=True, is_command=True))
        wire.send(fragment(small(sop), last=True, is_command=False))
        assert wire.status() == 0
    assert door.senders[0].on_behalf_of == "STATION7"


# What it does not take


def test_a_full_disk_asks_the_sender_to_keep_it(door: FolderDoor, ct: CtFiles) -> None:
    with node(door) as ours:
        door.full = True
        refused = linac(ours).store(ct.paths)
        door.full = False
        stored = linac(ours).store(ct.paths)
    assert {receipt.status.value for receipt in refused} == {0xA700}
    assert all(receipt.status.may_pass for receipt in refused)
    assert all(receipt.stored for receipt in stored)


def test_a_lost_database_asks_the_sender_to_keep_it(door: FolderDoor, ct: CtFiles) -> None:
    with node(door) as ours:
        door.busy = True
        refused = linac(ours).store(ct.paths)
        assert door.on_their_way() == []
        door.busy = False
        stored = linac(ours).store(ct.paths)
    assert {receipt.status.value for receipt in refused} == {0xA700}
    assert all(receipt.stored for receipt in stored)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(OSError(28, "no space left"), 0xA700), (OSError(5, "I/O"), 0xA700), (KeyError(), 0x0110)],
    ids=["full", "broken disk", "fault of ours"],
)
def test_a_door_that_fails_loses_nothing(
    tmp_path: Path, ct: CtFiles, fault: Exception, status: int
) -> None:
    class Failing(FolderDoor):
        def take(self, landed, *, sender):  # type: ignore[no-untyped-def]
            raise fault

    failing = Failing(tmp_path / "door")
    with node(failing) as ours:
        (receipt,) = linac(ours).store(ct.paths[:1])
        linac(ours).echo()
    assert receipt.status.value == status
    assert failing.on_their_way() == []
    failing.close()


@pytest.mark.parametrize(
    ("fault", "status"), [(OSError(28, "no space left"), 0xA700), (KeyError(), 0x0110)]
)
def test_a_door_that_has_no_place_for_a_file_loses_nothing(
    tmp_path: Path, ct: CtFiles, fault: Exception, status: int
) -> None:
    class Closed(FolderDoor):
        def incoming(self) -> Path:
            raise fault

    closed = Closed(tmp_path / "door")
    with node(closed) as ours:
        receipts = linac(ours).store(ct.paths[:2])
        linac(ours).echo()
    assert {receipt.status.value for receipt in receipts} == {status}
    closed.close()


def test_a_conflict_is_told_with_a_comment(door: FolderDoor, ct: CtFiles, tmp_path: Path) -> None:
    def other_pixels(dataset: FileDataset, k: int) -> None:
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset["PixelData"].VR = "OW"

    values = np.zeros((5, 64, 64), int)
    other = make_ct_series(tmp_path / "other", values, name="node-ct", change=other_pixels)
    with node(door) as ours:
        linac(ours).store(ct.paths[:1])
        first = door.path_of(ct.sop_uids[0]).read_bytes()
        with Wire(ours.port) as wire:
            wire.associate()
            data = data_set(other.paths[0])
            wire.send(fragment(store_command(ct.sop_uids[0]), last=True, is_command=True))
            wire.send(fragment(data, last=True, is_command=False))
            kind, answer = wire.receive()
    assert kind == 4
    assert struct.pack("<HHLH", 0, 0x0900, 2, 0xC000) in answer
    assert b"an instance of this UID says something else" in answer
    assert door.path_of(ct.sop_uids[0]).read_bytes() == first
    assert door.on_their_way() == []


def test_a_kind_that_is_not_taken_is_not_agreed_on(
    door: FolderDoor, tmp_path: Path, ct: CtFiles
) -> None:
    def as_mr(dataset: FileDataset, k: int) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(MR)

    mr = make_ct_series(tmp_path / "mr", name="mr", change=as_mr)
    with node(door) as ours:
        receipts = linac(ours).store([ct.paths[0], mr.paths[0]])
        with pytest.raises(PeerError, match="does not offer C-STORE"):
            linac(ours).store(mr.paths)
    assert [receipt.status.value for receipt in receipts] == [0, 0x0122]


@pytest.mark.parametrize(
    ("named", "sop_class", "data"),
    [
        (MR, MR, small(uid("x"), sop_class=MR)),
        (CT, MR, small(uid("x"), sop_class=MR)),
        (CT, CT, small(uid("y"))),
    ],
    ids=["class of the request", "class of the data set", "instance of the data set"],
)
def test_a_data_set_that_does_not_match_is_refused(
    door: FolderDoor, named: str, sop_class: str, data: bytes
) -> None:
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        assert send_store(wire, uid("x"), data, sop_class=named) == 0xA900
        assert send_store(wire, uid("z"), small(uid("z"))) == 0
    assert door.kept() == {uid("z")}
    assert door.on_their_way() == []


def test_a_private_class_under_an_agreed_context_is_refused(door: FolderDoor) -> None:
    private = "1.2.3.4.5.6"
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        data = small(uid("p"), sop_class=private)
        assert send_store(wire, uid("p"), data, sop_class=private) == 0xA900
        linac(ours).echo()
    assert door.kept() == set()


def test_instances_under_the_context_of_the_echo_are_refused(door: FolderDoor) -> None:
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate(contexts=[(VERIFICATION, (EXPLICIT,))])
        assert send_store(wire, uid("e"), small(uid("e"))) == 0xA900
    assert door.kept() == set()


def garbage(kind: str) -> bytes:
    sound = small(uid("g"))
    pixel_length = len(sound) - 32 - 4
    return {
        "noise": os.urandom(5000),
        "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 40,
        "cut in the header": sound[:60],
        "cut in the pixels": sound[:-10],
        "an element of 4 GiB": sound[:pixel_length] + b"\xff\xff\xff\x7f" + sound[-32:],
        "no pixels": sound[:-44],
        "one byte": b"\0",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "noise",
        "text",
        "cut in the header",
        "cut in the pixels",
        "an element of 4 GiB",
        "no pixels",
        "one byte",
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(door: FolderDoor, kind: str) -> None:
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        assert send_store(wire, uid("g"), garbage(kind)) == 0xC000
        assert send_store(wire, uid("g"), small(uid("g"))) == 0
    assert door.kept() == {uid("g")}
    assert door.on_their_way() == []


def test_an_empty_data_set_is_refused(door: FolderDoor) -> None:
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        elements = {
            0x0002: CT.encode() + b"\0",
            0x0100: struct.pack("<H", 1),
            0x0110: struct.pack("<H", 1),
            0x0700: struct.pack("<H", 0),
            0x0800: struct.pack("<H", 0x0101),  # no data set
            0x1000: b"1.2.3.45",
        }
        wire.send(fragment(command(elements), last=True, is_command=True))
        assert wire.status() == 0xC000
        linac(ours).echo()


def test_nested_a_thousand_times_is_refused(door: FolderDoor) -> None:
    sound = small(uid("n"))
    deep = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    deep += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        assert send_store(wire, uid("n"), sound[:-44] + deep * 1000) == 0xC000
        linac(ours).echo()
    assert door.on_their_way() == []


# Sizes


def test_a_file_above_the_limit_is_refused_with_an_answer(door: FolderDoor) -> None:
    bounds = Bounds(file_bytes=1 << 20, pdu_s=5, idle_s=10, answer_s=5)
    big = small(uid("big"), size=800)  # 1.28 MB
    with node(door, bounds=bounds) as ours, Wire(ours.port) as wire:
        wire.associate()
        assert send_store(wire, uid("big"), big) == 0xC000
        assert send_store(wire, uid("fits"), small(uid("fits"), size=600)) == 0
    assert door.kept() == {uid("fits")}
    assert door.on_their_way() == []


def test_a_data_set_without_end_ends_the_association(door: FolderDoor) -> None:
    bounds = Bounds(file_bytes=1 << 20, pdu_s=5, idle_s=10, answer_s=5)
    piece = fragment(bytes(100_000), last=False, is_command=False)
    with little_memory(), node(door, bounds=bounds) as ours:
        with Wire(ours.port) as wire:
            wire.associate()
            wire.send(fragment(store_command(uid("endless")), last=True, is_command=True))
            sent = 0
            try:
                while sent < 1 << 30:
                    wire.send(piece)
                    sent += len(piece)
            except OSError:
                pass
            assert sent < 64 << 20, "nobody read it any more"
        linac(ours).echo()
    assert door.on_their_way() == []


def test_a_large_file_does_not_lie_in_memory(door: FolderDoor) -> None:
    size = 8192  # 128 MiB, refused at its header for more than 2048 pixels a side
    head = small(uid("large"), size=1)
    for tag in (0x0010, 0x0011):
        at = head.index(struct.pack("<HH2sH", 0x0028, tag, b"US", 2))
        head = head[: at + 8] + struct.pack("<H", size) + head[at + 10 :]
    at = head.index(struct.pack("<HH", 0x7FE0, 0x0010))
    length = 2 * size * size
    head = head[: at + 8] + struct.pack("<L", length)
    piece = fragment(bytes(PDU_BYTES - 6), last=False, is_command=False)
    with little_memory(), node(door) as ours, Wire(ours.port) as wire:
        wire.associate()
        wire.send(fragment(store_command(uid("large")), last=True, is_command=True))
        wire.send(fragment(head, last=False, is_command=False))
        count, rest = divmod(length, PDU_BYTES - 6)
        for _ in range(count):
            wire.send(piece)
        wire.send(fragment(bytes(rest), last=True, is_command=False))
        assert wire.status() == 0xC000
    assert door.on_their_way() == []


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails when the process held much more within the block than before it."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted anew
    before = memory_bytes("VmRSS")
    yield
    more_bytes = memory_bytes("VmHWM") - before
    assert more_bytes < OTHER_MEMORY_BYTES


def memory_bytes(kind: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) << 10


def test_a_query_of_many_megabytes_ends_the_association(door: FolderDoor) -> None:
    with node(door) as ours:
        with Wire(ours.port) as wire:
            wire.associate(contexts=[(VERIFICATION, (EXPLICIT,))])
            find = command(
                {
                    0x0002: VERIFICATION.encode() + b"\0",
                    0x0100: struct.pack("<H", 0x20),
                    0x0110: struct.pack("<H", 1),
                    0x0700: struct.pack("<H", 0),
                    0x0800: struct.pack("<H", 1),
                }
            )
            wire.send(fragment(find, last=True, is_command=True))
            piece = fragment(bytes(100_000), last=False, is_command=False)
            await_end(wire, piece * 60)
        linac(ours).echo()


def await_end(wire: Wire, data: bytes) -> None:
    """Sends this and waits for the association to end; the rest may not even be sent."""
    try:
        wire.send(data)
    except OSError:
        return
    while wire.receive()[0] not in (ABORT, CLOSED):
        pass


# What no decent peer sends


@pytest.mark.parametrize(
    "data",
    [
        pdu(4, b"", claims=0xFFFFFFFF),
        pdu(1, b"", claims=0x7FFFFFFF),
        pdu(9, b"x" * 10),
        os.urandom(4096),
        b"GET / HTTP/1.1\r\n\r\n",
        pdu(1, b"short"),
        pdu(1, os.urandom(3000)),
        pdu(4, os.urandom(100)),
        pdu(2, os.urandom(100)),
        pdu(5, bytes(4)),
        pdu(7, bytes(4)),
        associate_request()[:-3],
    ],
    ids=[
        "4 GiB of data", "2 GiB of request", "unknown kind", "noise", "HTTP", "short request",
        "noise as request", "data first", "an answer first", "release first", "abort first",
        "cut short",
    ],
)  # fmt: skip
def test_garbage_before_an_association_ends_the_connection(door: FolderDoor, data: bytes) -> None:
    with little_memory(), node(door, bounds=SOON) as ours:
        with Wire(ours.port) as wire:
            wire.send(data)
            assert wire.receive()[0] in (ABORT, REJECT, CLOSED)
        linac(ours).echo()


@pytest.mark.parametrize(
    "data",
    [
        pdu(4, b"", claims=0xFFFFFFFF),
        pdu(4, os.urandom(300)),
        pdu(4, struct.pack(">L", 0)),
        pdu(4, struct.pack(">L", 0xFFFFFFFF) + b"\1\3"),
        pdu(1, b""),
        fragment(b"data first", last=True, is_command=False),
        fragment(os.urandom(400), last=True, is_command=True),
        fragment(command({0x0100: struct.pack("<H", 0x7777)}), last=True, is_command=True),
        fragment(bytes(60_000), last=False, is_command=True) * 3,
        fragment(store_command(uid("c")), last=True, is_command=True, context=77)
        + fragment(small(uid("c")), last=True, is_command=False, context=77),
        fragment(store_command(uid("c"), without=0x1000), last=True, is_command=True)
        + fragment(small(uid("c")), last=True, is_command=False),
        fragment(store_command(uid("c"), without=0x0100), last=True, is_command=True),
        fragment(store_command("../../etc/passwd"), last=True, is_command=True)
        + fragment(small(uid("c")), last=True, is_command=False),
        fragment(store_command(""), last=True, is_command=True)
        + fragment(small(uid("c")), last=True, is_command=False),
    ],
    ids=[
        "4 GiB", "noise", "empty fragment", "fragment of 4 GiB", "a second request", "data first",
        "noise as command", "unknown command", "endless command", "unknown context",
        "no instance named", "no command field", "a path for a UID", "an empty UID",
    ],
)  # fmt: skip
def test_garbage_within_an_association_ends_it(door: FolderDoor, data: bytes) -> None:
    with node(door) as ours:
        with Wire(ours.port) as wire:
            wire.associate()
            await_end(wire, data)
        linac(ours).echo()
    assert door.kept() == set()
    assert door.on_their_way() == []


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_in_a_session_it_ends(door: FolderDoor, seed: int) -> None:
    chance = random.Random(seed)
    sound = [
        associate_request(),
        fragment(store_command(uid("changed")), last=True, is_command=True),
        fragment(small(uid("changed")), last=True, is_command=False),
        pdu(5, bytes(4)),
    ]
    with node(door, bounds=SOON) as ours:
        for _ in range(15):
            parts = list(sound)
            which = chance.randrange(len(parts))
            parts[which] = changed(parts[which], chance)
            with Wire(ours.port) as wire:
                wire.send(parts[0])
                kind = wire.receive()[0] if which else ACCEPT
                assert kind == ACCEPT
                await_end(wire, b"".join(parts[1:]))
        linac(ours).echo()
    assert door.on_their_way() == []


def changed(data: bytes, chance: random.Random) -> bytes:
    """The data with up to three places overwritten, cut out, or filled in."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made))
        piece = chance.randbytes(chance.randrange(1, 6))
        cut = chance.choice([0, len(piece), 1])
        made[at : at + cut] = chance.choice([piece, b"", b"\xff" * 4, bytes(4)])
        if not made:
            break
    return bytes(made)


def test_requests_that_do_not_wait_for_their_answers_end_the_association(
    door: FolderDoor,
) -> None:
    echo = command(
        {
            0x0002: VERIFICATION.encode() + b"\0",
            0x0100: struct.pack("<H", 0x30),
            0x0110: struct.pack("<H", 1),
            0x0800: struct.pack("<H", 0x0101),
        }
    )
    with node(door) as ours:
        with Wire(ours.port) as wire:
            wire.associate(contexts=[(VERIFICATION, (EXPLICIT,))])
            await_end(wire, fragment(echo, last=True, is_command=True) * 2000)
        linac(ours).echo()


def test_a_file_that_stops_half_way_is_deleted(door: FolderDoor) -> None:
    with node(door) as ours:
        with Wire(ours.port) as wire:
            wire.associate()
            wire.send(fragment(store_command(uid("half")), last=True, is_command=True))
            data = small(uid("half"), size=300)
            wire.send(fragment(data[:100_000], last=False, is_command=False))
        linac(ours).echo()
    assert door.on_their_way() == []
    assert door.kept() == set()


# Slow and half-open


def test_connections_that_are_closed_at_once_do_not_add_up(door: FolderDoor) -> None:
    """As a monitor's do that looks whether the port is open."""
    with node(door, associations=2, bounds=Bounds(answer_s=60)) as ours:
        for _ in range(100):
            with Wire(ours.port) as wire:
                wire.send(pdu(4, b"x"))
                assert wire.receive()[0] in (ABORT, CLOSED)
        linac(ours).echo()


def test_a_connection_that_says_nothing_is_closed(door: FolderDoor) -> None:
    with node(door, bounds=SOON) as ours, Wire(ours.port) as wire:
        assert wire.receive()[0] in (ABORT, CLOSED)


def test_an_association_that_says_nothing_is_ended(door: FolderDoor) -> None:
    with node(door, bounds=SOON) as ours, Wire(ours.port) as wire:
        wire.associate()
        assert wire.receive()[0] in (ABORT, CLOSED)


def test_a_request_that_comes_just_too_late_is_not_left_waiting(
    door: FolderDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers it any more; the connection must not stay open, and its place taken."""
    come = DULServiceProvider.receive_pdu

    def too_late(reader: DULServiceProvider, wait: bool = False, timeout: float | None = None):  # type: ignore[no-untyped-def]
        if not wait:
            return come(reader, wait, timeout)
        while reader.state_machine.current_state != "Sta3":
            time.sleep(0.01)
        return None

    monkeypatch.setattr(DULServiceProvider, "receive_pdu", too_late)
    with node(door) as ours, Wire(ours.port) as wire:
        wire.send(associate_request())
        assert wire.receive()[0] in (ABORT, CLOSED)


def test_a_message_that_drips_is_given_up(door: FolderDoor) -> None:
    """A byte now and then resets a plain time-out; the whole message has one, too."""
    with node(door, bounds=SOON) as ours, Wire(ours.port) as wire:
        wire.associate()
        wire.send(fragment(store_command(uid("drip")), last=True, is_command=True))
        begun = time.monotonic()
        wire.socket.settimeout(0.05)
        wire.send(fragment(bytes(1000), last=True, is_command=False)[:10])
        closed = False
        while not closed and time.monotonic() - begun < 20:
            try:
                wire.send(b"\0")
                closed = wire.socket.recv(10) == b"" or True
            except TimeoutError:
                continue
            except OSError:
                closed = True
        took_s = time.monotonic() - begun
    assert closed
    assert took_s < 5
    assert door.on_their_way() == []


# Who may


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [(LINAC, "OTHER", 7), ("STRANGER", AET, 3), ("linac1", AET, 3), ("A", AET, 3)],
)
def test_wrong_titles_are_rejected(
    door: FolderDoor, calling: str, called: str, reason: int
) -> None:
    with node(door) as ours:
        with Wire(ours.port) as wire:
            wire.send(associate_request(calling=calling, called=called))
            kind, body = wire.receive()
        linac(ours).echo()
    assert kind == REJECT
    assert tuple(body) == (0, 1, 1, reason)


@pytest.mark.peer
def test_storescu_is_told_that_it_is_not_known(door: FolderDoor, ct: CtFiles) -> None:
    with node(door) as ours:
        said = storescu(ours.port, ct.paths, calling="STRANGER")
        assert said.returncode != 0
        assert "Calling AE Title Not Recognized" in said.stderr
        said = storescu(ours.port, ct.paths, called="OTHER")
        assert "Called AE Title Not Recognized" in said.stderr
    assert door.kept() == set()


def test_a_known_title_from_elsewhere_is_rejected(door: FolderDoor) -> None:
    callers = (
        Caller(aet="NEAR", networks=(LOOPBACK,)),
        Caller(aet="FAR", networks=("10.1.2.0/24", "fd00::/8")),
    )
    settings = NodeSettings(port=0, callers=callers, drain_s=5)
    with Node(settings, door) as ours:
        linac(ours, our_aet="NEAR").echo()
        with pytest.raises(PeerError, match="it does not know our AE title"):
            linac(ours, our_aet="FAR").echo()


def test_an_unknown_address_is_not_listened_to(door: FolderDoor) -> None:
    settings = NodeSettings(port=0, callers=(Caller(aet=LINAC, networks=("10.1.2.3",)),))
    with Node(settings, door) as ours, Wire(ours.port) as wire:
        assert wire.receive() == (CLOSED, b"")


def test_an_address_of_ipv4_is_known_through_ipv6() -> None:
    caller = Caller(aet=LINAC, networks=("10.0.0.0/24",))
    assert caller.is_at("10.0.0.7")
    assert caller.is_at("::ffff:10.0.0.7")
    assert not caller.is_at("10.0.1.7")


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="neither an IP address nor a network"):
        Caller(aet=LINAC, networks=("linac1.hospital",))


# Many


def test_one_association_too_many_is_told_to_come_back(door: FolderDoor) -> None:
    with node(door, associations=3) as ours, ExitStack() as stack:
        held = [stack.enter_context(Wire(ours.port)).associate() for _ in range(3)]
        with Wire(ours.port) as wire:
            wire.send(associate_request())
            kind, body = wire.receive()
        assert (kind, tuple(body)) == (REJECT, (0, 2, 3, 2))
        assert send_store(held[0], uid("m"), small(uid("m"))) == 0
        held[1].send(pdu(5, bytes(4)))
        assert held[1].receive()[0] == 6
        assert held[1].receive()[0] == CLOSED
        eventually(lambda: linac(ours).echo())


def eventually(call: object, *, within_s: float = 10) -> None:
    """Calls until no PeerError comes of it: the node counts an association as ended when it is
    closed on both sides."""
    assert callable(call)
    ends = time.monotonic() + within_s
    while True:
        try:
            call()
            return
        except PeerError:
            assert time.monotonic() < ends


def test_a_thousand_connections_leave_it_alive(door: FolderDoor) -> None:
    bounds = Bounds(pdu_s=1, idle_s=1, answer_s=1)
    with node(door, bounds=bounds) as ours:
        threads_before = threading.active_count()
        with ExitStack() as stack:
            wires = []
            for _ in range(1000):
                wire = stack.enter_context(Wire(ours.port))
                wires.append(wire)
            threads_most = threading.active_count()
            for wire in wires:
                try:
                    wire.send(associate_request())
                except OSError:
                    continue
            kinds = [wire.receive()[0] for wire in wires]
        assert kinds.count(ACCEPT) <= 8
        assert set(kinds) <= {ACCEPT, REJECT, ABORT, CLOSED}
        assert threads_most - threads_before < 150
        eventually(lambda: linac(ours).echo())


def test_eight_send_at_once(door: FolderDoor, tmp_path: Path) -> None:
    series = [make_ct_series(tmp_path / f"{k}", name=f"many {k}") for k in range(8)]
    heard = Heard()
    with node(door, heard=heard) as ours:
        senders = [threading.Thread(target=linac(ours).store, args=(one.paths,)) for one in series]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        heard.wait_for_arrivals(8)
    assert door.kept() == {sop for one in series for sop in one.sop_uids}


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return make_authority(tmp_path_factory.mktemp("tls"), "node", "linac")


def tls_of(certificates: dict[str, tuple[Path, Path]], who: str | None) -> Tls:
    certificate, key = certificates[who] if who is not None else (None, None)
    return Tls(certificate=certificate, key=key, authority=certificates["authority"][0])


@pytest.mark.peer
def test_files_come_over_tls(
    door: FolderDoor, ct: CtFiles, certificates: dict[str, tuple[Path, Path]]
) -> None:
    certificate, key = certificates["linac"]
    with node(door, tls=tls_of(certificates, "node")) as ours:
        said = storescu(
            ours.port, ct.paths, "+tls", key, certificate, "+cf", certificates["authority"][0]
        )
        assert said.returncode == 0, said.stderr
        assert door.kept() == set(ct.sop_uids)
        linac(ours, tls=tls_of(certificates, "linac")).echo()


@pytest.mark.peer
def test_without_a_certificate_nobody_comes_in_over_tls(
    door: FolderDoor, ct: CtFiles, certificates: dict[str, tuple[Path, Path]]
) -> None:
    with node(door, tls=tls_of(certificates, "node")) as ours:
        with pytest.raises(PeerError):
            linac(ours).echo()
        with pytest.raises(PeerError):
            linac(ours, tls=tls_of(certificates, None)).echo()
        assert storescu(ours.port, ct.paths).returncode != 0
        linac(ours, tls=tls_of(certificates, "linac")).echo()
    assert door.kept() == set()


@pytest.mark.peer
def test_a_handshake_that_never_comes_holds_nobody_up(
    door: FolderDoor, certificates: dict[str, tuple[Path, Path]]
) -> None:
    bounds = Bounds(connect_s=1, pdu_s=5, idle_s=10, answer_s=5)
    with (
        node(door, tls=tls_of(certificates, "node"), bounds=bounds) as ours,
        Wire(ours.port) as silent,
        Wire(ours.port) as babbling,
    ):
        babbling.send(os.urandom(100))
        linac(ours, tls=tls_of(certificates, "linac")).echo()
        assert silent.receive() == (CLOSED, b"")


@pytest.mark.peer
def test_old_versions_of_tls_are_not_spoken(certificates: dict[str, tuple[Path, Path]]) -> None:
    context = tls_of(certificates, "node").of_node()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_certificates_that_are_not_there_are_named(tmp_path: Path, door: FolderDoor) -> None:
    with pytest.raises(SettingsError, match="needs a certificate"):
        Tls().of_node()
    missing = tmp_path / "missing.pem"
    with pytest.raises(SettingsError, match="cannot be read"):
        Tls(certificate=missing, key=missing).of_node()
    (tmp_path / "no.pem").write_text("nothing")
    with pytest.raises(SettingsError, match="cannot be read"):
        Tls(authority=tmp_path / "no.pem").of_caller()


# Storage commitment


def report(ours: Node, information: Dataset, *, event: int = 1) -> int:
    """An archive's N-EVENT-REPORT; the status of the answer."""
    ae = AE("ARCHIVE")
    ae.add_requested_context(COMMITMENT)
    assoc = ae.associate(
        LOOPBACK, ours.port, ae_title=AET, ext_neg=[build_role(UID(COMMITMENT), scp_role=True)]
    )
    assert assoc.is_established
    status, _ = assoc.send_n_event_report(
        information, event, UID(COMMITMENT), UID(COMMITMENT + ".1")
    )
    assoc.release()
    return int(status.Status)


def answer_of(*failed: str) -> Dataset:
    information = Dataset()
    information.TransactionUID = uid("transaction")
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid("kept")
    information.ReferencedSOPSequence = [item]
    information.FailedSOPSequence = []
    for one in failed:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, one
        item.FailureReason = 0x0112
        information.FailedSOPSequence.append(item)
    return information


def test_a_commitment_is_handed_on(door: FolderDoor) -> None:
    heard = Heard()
    with node(door, heard=heard, callers=("ARCHIVE",)) as ours:
        assert report(ours, answer_of(uid("lost")), event=2) == 0
        ((commitment, sender),) = heard.wait_for_commitments(1)
    assert commitment.transaction_uid == uid("transaction")
    assert commitment.committed == (uid("kept"),)
    assert [(one.sop_uid, str(one.reason)) for one in commitment.failed] == [
        (uid("lost"), "status 0112, no such instance")
    ]
    assert sender.aet == "ARCHIVE"


def test_an_archive_that_names_no_role_may_report(door: FolderDoor) -> None:
    """Role selection is asked for (PS3.4 J.3.3.1), and left out by some."""
    heard = Heard()
    elements = {
        0x0002: COMMITMENT.encode(),
        0x0100: struct.pack("<H", 0x0100),
        0x0110: struct.pack("<H", 1),
        0x0800: struct.pack("<H", 1),
        0x1000: COMMITMENT.encode() + b".1",
        0x1002: struct.pack("<H", 1),
    }
    information = encode(answer_of(), False, True)
    assert information is not None
    with node(door, heard=heard, callers=("ARCHIVE",)) as ours, Wire(ours.port) as wire:
        wire.associate(calling="ARCHIVE", contexts=[(COMMITMENT, (EXPLICIT,))])
        wire.send(fragment(command(elements), last=True, is_command=True))
        wire.send(fragment(information, last=True, is_command=False))
        assert wire.status() == 0
    assert [one.transaction_uid for one, _ in heard.commitments] == [uid("transaction")]


def test_a_commitment_that_says_nothing_is_refused(door: FolderDoor) -> None:
    with node(door, callers=("ARCHIVE",)) as ours:
        empty = Dataset()
        empty.ReferencedSOPSequence = []
        assert report(ours, empty) == 0x0115
    with pytest.raises(DicomError, match="names no transaction"):
        read_commitment(empty)


def test_a_commitment_that_is_lost_may_be_reported_again(door: FolderDoor) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("the database went away")

    settings = NodeSettings(
        aet=AET, port=0, callers=(Caller(aet="ARCHIVE", networks=(LOOPBACK,)),), drain_s=5
    )
    with Node(settings, door, committed=failing) as ours:
        assert report(ours, answer_of()) == 0x0110
    with Node(settings, door) as ours:
        assert report(ours, answer_of()) == 0x0110


# From start to stop


def test_a_port_that_is_taken_is_named(door: FolderDoor) -> None:
    with node(door) as ours:
        settings = NodeSettings(port=ours.port, callers=())
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{ours.port}"):
            Node(settings, door).start()


def test_stopping_waits_for_those_who_send_and_breaks_off_those_who_do_not(
    door: FolderDoor,
) -> None:
    with Wire_to(door, drain_s=0.2) as (wire, ours):
        assert send_store(wire, uid("s"), small(uid("s"))) == 0
        ours.stop()
        assert wire.receive()[0] in (ABORT, CLOSED)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((LOOPBACK, wire.socket.getpeername()[1]), timeout=5)
        ours.stop()  # once more does no harm
    assert door.kept() == {uid("s")}


class Wire_to:  # noqa: N801
    """A node with an open association."""

    def __init__(self, door: FolderDoor, *, drain_s: float) -> None:
        self._stack = ExitStack()
        self._door = door
        self._drain_s = drain_s

    def __enter__(self) -> tuple[Wire, Node]:
        ours = self._stack.enter_context(node(self._door, drain_s=self._drain_s))
        wire = self._stack.enter_context(Wire(ours.port))
        return wire.associate(), ours

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def test_it_runs_until_it_is_told_to_stop(door: FolderDoor) -> None:
    stop = threading.Event()
    stop.set()
    run_node(NodeSettings(port=0, callers=()), door, stop=stop)


# Statuses


@pytest.mark.parametrize("service", sorted(OF_SERVICE))
def test_every_value_has_a_category_and_a_meaning(service: str) -> None:
    for value in (0x0000, 0x0110, 0xA700, 0xA9FF, 0xB000, 0xC123, 0xFE00, 0xFF00, 0x4242):
        status = status_of(service, value)  # type: ignore[arg-type]
        assert status.value == value
        assert status.meaning
        assert status.done == (status.category in ("success", "warning"))


def test_the_rows_of_a_service_stand_before_those_of_all() -> None:
    assert str(status_of("store", 0xA700)) == "status A700, out of resources"
    assert status_of("store", 0xA700).may_pass
    assert status_of("move", 0xA801).meaning == "it does not know the AE that it shall send to"
    assert not status_of("store", 0xC001).may_pass
    assert status_of("store", 0x4242).category == "failure"
