"""What lies between pynetdicom and a network that nobody has checked.

pynetdicom believes the length that a PDU claims, waits for its end for ever, collects a data set in
memory however large it grows, and shakes hands over TLS in the thread that accepts. Here each
connection, ours or theirs, is given bounds: of a PDU's bytes and seconds, of a message's bytes, of
the messages that wait. The data set of a C-STORE never lies in memory: it goes to disk PDU by PDU,
as the bytes that came.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_FIND_RSP, C_STORE_RQ, N_EVENT_REPORT_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_STORE, DimseServiceType
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA
from pynetdicom.transport import AddressInformation, AssociationSocket

from contourcast.imaging.dicom.modules import IMPLEMENTATION_CLASS_UID
from contourcast.imaging.errors import DicomError
from contourcast.service.problems import SettingsError

UNCOMPRESSED: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSLESS: Final = (JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless)
# Deflated data sets are left out: 409 kB of them became 400 MiB (CLINICAL_SERVICE §5.2).
TRANSFER_SYNTAXES: Final = (*UNCOMPRESSED, *LOSSLESS)
PDU_BYTES: Final = 128 << 10
AFFECTED_CLASS: Final = 0x00000002
AFFECTED_INSTANCE: Final = 0x00001000
UIDS_OF_A_COMMAND: Final = (AFFECTED_CLASS, 0x00000003, AFFECTED_INSTANCE, 0x00001001)
UID_FORM: Final = re.compile(r"[0-9][0-9.]{0,63}")
PDU_HEADER_BYTES: Final = 6  # PS3.8 §9.3.1
# A command is below 1 kB; a commitment of 2000 instances takes 300 kB.
COMMAND_BYTES: Final = 64 << 10
MESSAGE_BYTES: Final = 4 << 20
# A match of a query is a dozen short values; all of them, read or waiting, come in one association.
MATCH_BYTES: Final = 64 << 10
ANSWERS_BYTES: Final = 64 << 20
# Nobody may send the next request before the last is answered (PS3.7 D.3.3.3: one operation at a
# time, unless negotiated otherwise, which pynetdicom does not); C-CANCEL apart. Answers to a query
# of ours may come faster than they are read.
REQUESTS_WAITING: Final = 4
ANSWERS_WAITING: Final = 25_000
CLOSING: Final = "Sta13"  # PS3.8 Table 9-5: nothing but the end of the connection is awaited
# How long what we send may wait while nothing comes.
TURN_S: Final = 0.001


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one connection may cost.

    Attributes:
        file_bytes: Of a data set over C-STORE.
        pdu_s: From the first byte of a PDU to its last.
        idle_s: Between two PDUs.
        answer_s: Until a request is answered; also until an association is agreed on.
        connect_s: Until a connection stands, with TLS.
    """

    file_bytes: int = 256 << 20
    pdu_s: float = 30.0
    idle_s: float = 60.0
    answer_s: float = 30.0
    connect_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Certificates of one side, as PEM files.

    Attributes:
        certificate: Ours, with its chain; None: we show none (of a node it is needed).
        authority: Who must have signed theirs. A node without one asks for no certificate; towards
            a peer the system's authorities count instead.
        checks_name: Whether a peer's certificate must bear the name or address that we call.
    """

    certificate: Path | None = None
    key: Path | None = field(default=None, repr=False)
    authority: Path | None = None
    checks_name: bool = True

    def of_node(self) -> ssl.SSLContext:
        """For those who call us.

        Raises:
            SettingsError: A file is missing or not what it has to be.
        """
        if self.certificate is None:
            raise SettingsError(
                "a DICOM node over TLS needs a certificate",
                remedy="name a certificate and its key, both as PEM files",
            )
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        if self.authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def of_caller(self) -> ssl.SSLContext:
        """For those whom we call.

        Raises:
            SettingsError: A file is missing or not what it has to be.
        """
        context = self._context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = self.checks_name
        return context

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                "the certificates of DICOM over TLS cannot be read",
                remedy="check the PEM files of certificate, key and authority",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # PS3.15 B.9, BCP 195
        return context


log = structlog.get_logger()


class BreachError(Exception):
    """What came breaks the protocol or its bounds; the association ends."""


class TooMuchError(BreachError):
    """More came than is taken; that it is answered more sparingly is for somebody to ask for."""


class Body(io.BytesIO):
    """The data set of one message: in memory and bounded, or of a C-STORE on its way to disk.

    What cannot be taken is not kept, but read to its end, so that the sender gets an answer; only
    twice the limit ends the association.

    Attributes:
        path: Of the file; None when nothing of it is on disk.
        size_bytes: Of the file.
        refusal: Why the data set was not kept; None when it was.
    """

    def __init__(
        self,
        message: DIMSEMessage,
        transfer_syntax: Callable[[int], UID],
        incoming: Callable[[], Path] | None,
        file_bytes: int,
    ) -> None:
        super().__init__()
        self._message = message
        self._transfer_syntax = transfer_syntax
        self._incoming = incoming
        self._most = file_bytes
        self._came = 0
        self._file: io.FileIO | None = None
        self._digest = hashlib.sha256()
        self._begun = False
        self.path: Path | None = None
        self.size_bytes = 0
        self.refusal: Exception | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the file."""
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        """Takes a fragment.

        Raises:
            BreachError: It is beyond what may come.
        """
        self._came += len(piece)
        if not self._is_stored():
            is_match = isinstance(self._message, C_FIND_RSP)
            if self._came > (MATCH_BYTES if is_match else MESSAGE_BYTES):
                raise TooMuchError
            return super().write(piece)
        if self._came > 2 * self._most:
            raise BreachError
        if self.refusal is None and self._came > self._most:
            self.refusal = DicomError(
                f"the file has more than {self._most >> 20} MiB",
                remedy="send single-frame CT images, structure sets and registrations",
            )
            self.discard()
        if self.refusal is None:
            try:
                self._store(piece)
            except BreachError:
                raise
            except Exception as error:  # whoever answers says what it means for the sender
                self.refusal = error
                self.discard()
        return len(piece)

    def land(self) -> None:
        """Closes the file; no more will come."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Deletes what is still there (what was taken lies elsewhere by now)."""
        self.land()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def _is_stored(self) -> bool:
        return isinstance(self._message, C_STORE_RQ) and self._incoming is not None

    def _store(self, piece: bytes) -> None:
        if not self._begun:
            self._begin()
        self._put(piece)

    def _begin(self) -> None:
        assert self._incoming is not None
        head = self._head()
        path = self._incoming()
        self._file = path.open("xb", buffering=0)
        self.path = path
        self._begun = True
        self._put(head)

    def _put(self, piece: bytes) -> None:
        assert self._file is not None
        left = memoryview(piece)
        while left:  # a raw file may take less than it is given
            left = left[self._file.write(left) :]
        self._digest.update(piece)
        self.size_bytes += len(piece)

    def _head(self) -> bytes:
        """Preamble and file meta information; the same for the same instance, whoever sends it."""
        command = self._message.command_set
        sop_class = _uid_of(command, AFFECTED_CLASS)
        sop_uid = _uid_of(command, AFFECTED_INSTANCE)
        if not sop_class or not sop_uid:
            raise BreachError
        syntax = str(self._transfer_syntax(cast(int, self._message.context_id)))
        return file_head(sop_class, sop_uid, syntax)


def _uid_of(command: Dataset, tag: int) -> str:
    """A UID of a command, as it came; empty when it is absent.

    Raises:
        BreachError: It is none.
    """
    element = command.get_item(tag)
    value = element.value if element is not None else None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    text = text.rstrip("\0 ")
    if text and not UID_FORM.fullmatch(text):
        raise BreachError
    return text


def file_head(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble and file meta information (PS3.10 §7.1), ahead of a data set as it came."""
    elements = _element(1, b"OB", b"\0\1")
    for element, uid in (
        (0x02, sop_class_uid),
        (0x03, sop_uid),
        (0x10, transfer_syntax_uid),
        (0x12, IMPLEMENTATION_CLASS_UID),
    ):
        elements += _element(element, b"UI", uid.encode())
    length = _element(0, b"UL", struct.pack("<L", len(elements)))
    return bytes(128) + b"DICM" + length + elements


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 0002, explicit VR little endian (PS3.5 §7.1.2)."""
    value += b"\0" * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sHL", 2, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


@dataclass(frozen=True, kw_only=True)
class Received:
    """One C-STORE: what the request says, and what came.

    Attributes:
        agreed_class_uid: Class of the presentation context that it came under.
        on_behalf_of: AE title of whoever asked for it by C-MOVE; empty when nobody did.
    """

    sop_class_uid: str
    sop_uid: str
    agreed_class_uid: str
    on_behalf_of: str
    body: Body


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the sender is told."""

    status: int
    comment: str = ""


class Intake(Protocol):
    """What takes the instances of one connection."""

    def incoming(self) -> Path:
        """A path for a new file.

        Raises:
            ContourcastError: There is none now.
        """

    def store(self, received: Received) -> Answer:
        """Takes an instance in."""


class _Command(io.BytesIO):
    """The command of one message, bounded."""

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(piece) > COMMAND_BYTES:
            raise BreachError
        return super().write(piece)


class Messages(DIMSEServiceProvider):
    """Puts messages together from their fragments, within bounds.

    Whatever is wrong with a fragment ends the association as an invalid PDU does (PS3.8 §9.2.3,
    event 19); pynetdicom's own would end the thread that reads, and leave the peer waiting.

    Attributes:
        overfed: Whether it ended since more came than is taken.
    """

    def __init__(self, assoc: Association, intake: Intake | None, file_bytes: int) -> None:
        super().__init__(assoc)
        self._intake = intake
        self._file_bytes = file_bytes
        self._bodies: list[Body] = []
        self._closing = threading.Lock()
        self._closed = False
        self._answered_bytes = 0
        self.overfed = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Takes the fragments of one PDU."""
        try:
            # One by one: pynetdicom drops what follows a message's last fragment in one PDU.
            for value in primitive.presentation_data_value_list:
                one = P_DATA()
                one.presentation_data_value_list.append(value)
                self._receive(one)
        except Exception as error:  # of whatever kind, it came of what the peer sent
            self.overfed |= isinstance(error, TooMuchError)
            log.info("association_garbled", kind=type(error).__name__)
            self.dul.event_queue.put("Evt19")
            self.msg_queue.put((None, None))  # whoever waits for an answer gets none any more

    def get_msg(self, block: bool = False) -> tuple[None, None] | tuple[int, DimseServiceType]:
        """The next message; where we call, only for whoever waits for an answer.

        pynetdicom's thread that looks for requests is paused while a call waits, but on a busy
        machine it goes on late, into the next call, and would take and drop that one's answer. What
        a peer may ask of a caller meanwhile does not come this way (`_deliver`).
        """
        if self.assoc.is_requestor and not block:
            return None, None
        return super().get_msg(block)

    def end(self) -> None:
        """Closes the socket, and deletes the files that nobody will take any more."""
        wire = self.dul.socket
        if wire is not None and wire.socket is not None:
            wire.socket.close()
        with self._closing:
            self._closed = True
            for body in self._bodies:
                body.discard()

    def store(self, request: C_STORE) -> Answer:
        """Hands an instance to the intake; what is then left of its file is deleted."""
        assert self._intake is not None
        body = cast(Body, request.DataSet)
        agreed = self.assoc._accepted_cx[cast(int, request._context_id)]
        try:
            return self._intake.store(
                Received(
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_uid=str(request.AffectedSOPInstanceUID),
                    agreed_class_uid=str(agreed.abstract_syntax),
                    on_behalf_of=str(request.MoveOriginatorApplicationEntityTitle or "").strip(),
                    body=body,
                )
            )
        finally:
            body.discard()
            self._bodies.remove(body)

    def _receive(self, one: P_DATA) -> None:
        if self.message is None:
            self.message = self._new_message()
        message = self.message
        with self._closing:
            if self._closed:
                return
            whole = message.decode_msg(one, self.assoc)
        if not whole:
            return
        self.message = None
        self._deliver(message)

    def _new_message(self) -> DIMSEMessage:
        waiting = REQUESTS_WAITING if self.assoc.is_acceptor else ANSWERS_WAITING
        if self.msg_queue.qsize() >= waiting:
            raise BreachError
        message = DIMSEMessage()
        message.encoded_command_set = _Command()
        incoming = self._intake.incoming if self._intake is not None else None
        body = Body(message, self._syntax_of, incoming, self._file_bytes)
        message.data_set = body
        self._bodies.append(body)
        return message

    def _syntax_of(self, context_id: int) -> UID:
        return self.assoc._accepted_cx[context_id].transfer_syntax[0]

    def _deliver(self, message: DIMSEMessage) -> None:
        for tag in UIDS_OF_A_COMMAND:
            _uid_of(message.command_set, tag)
        body = cast(Body, message.data_set)
        body.land()
        if self.assoc.is_requestor:
            self._count(message.encoded_command_set, body)
        request = message.message_to_primitive()
        context_id = cast(int, message.context_id)
        if isinstance(message, C_STORE_RQ):
            self._instance(cast(C_STORE, request), context_id)
            return
        self._bodies.remove(body)
        if isinstance(request, C_CANCEL):
            if len(self.cancel_req) < REQUESTS_WAITING:
                self.cancel_req[cast(int, request.MessageIDBeingRespondedTo)] = request
        elif isinstance(message, N_EVENT_REPORT_RQ) and self.assoc.is_requestor:
            # It may come before the answer that a thread of ours waits for.
            threading.Thread(
                target=self.assoc._serve_request, args=(request, context_id), daemon=True
            ).start()
        else:
            self.msg_queue.put((context_id, request))

    def _count(self, *parts: io.BytesIO) -> None:
        """Answers wait in memory for whoever asked; of a C-STORE nothing does but its command."""
        self._answered_bytes += sum(part.getbuffer().nbytes for part in parts)
        if self._answered_bytes > ANSWERS_BYTES:
            raise TooMuchError

    def _instance(self, request: C_STORE, context_id: int) -> None:
        if not request.is_valid_request:
            raise BreachError  # pynetdicom would not answer it, and the peer would wait
        if self._intake is not None and self.assoc.is_acceptor:
            # Here, and not in the thread that looks for messages every so often: nothing more is
            # read of a sender that does not wait for its answer.
            self._answer(request, context_id)
        else:
            self.msg_queue.put((context_id, request))

    def _answer(self, request: C_STORE, context_id: int) -> None:
        answer = self.store(request)
        response = C_STORE()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPClassUID = request.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
        response.Status = answer.status
        if answer.comment:
            response.ErrorComment = answer.comment  # type: ignore[assignment]
        self.send_msg(response, context_id)


def bound(
    assoc: Association,
    bounds: Bounds,
    intake: Intake | None = None,
) -> Messages:
    """Gives a connection its bounds, before the first byte is read.

    Args:
        assoc: With its socket, and nothing yet received.
        bounds: What it may cost.
        intake: Of C-STORE; None: none are expected.
    """
    wire = assoc.dul.socket
    assert wire is not None
    assert wire.socket is not None
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.socket.settimeout(bounds.pdu_s)
    wire.__class__ = _Socket
    wire.select_timeout = bounds.pdu_s
    assoc.dul.__class__ = _Reader
    assoc.dul._run_loop_delay = 0.0  # `_Socket.ready` waits instead
    assoc.dul.state_machine.__class__ = _States
    messages = Messages(assoc, intake, bounds.file_bytes)
    assoc.dimse = messages
    return messages


def hang_up(assoc: Association) -> None:
    """Closes a connection, so that whoever reads from it ends."""
    wire = assoc.dul.socket
    if wire is not None and wire.socket is not None:
        with suppress(OSError):
            wire.socket.shutdown(socket.SHUT_RDWR)


class _Reader(DULServiceProvider):
    """Ends with a connection whose request came just when its time was over.

    Nobody will answer it any more, and pynetdicom would wait for the peer to close.
    """

    def stop_dul(self) -> bool:
        """Whether it has ended; asked again and again by whoever gives the connection up."""
        if self.assoc.is_acceptor and self.assoc.requestor.primitive is None:
            hang_up(self.assoc)
        return super().stop_dul()


class _States(StateMachine):
    """Ends a connection whose peer leaves the protocol, and tells those who wait for more of it.

    pynetdicom's own would end the thread that reads, with the connection open, and let the thread
    that waits for a request wait on when the connection is closed before one came.
    """

    def do_action(self, event: str) -> None:
        """Goes from one state to the next."""
        assoc = self.dul.assoc
        try:
            super().do_action(event)
        except Exception:  # of whatever kind: there is no way on from here
            hang_up(assoc)
            self.dul.kill_dul()
            assoc.dimse.msg_queue.put((None, None))
        over = self.dul._kill_thread or self.current_state == "Sta1"
        if over and assoc.is_acceptor and assoc.requestor.primitive is None:
            self.dul.to_user_queue.put(A_P_ABORT())


class _Socket(AssociationSocket):
    """Reads within bounds, and waits for what comes instead of looking for it every so often.

    pynetdicom makes the socket of those who call us itself, so this is made of one of them: it has
    no state of its own.
    """

    @property
    def ready(self) -> bool:
        """Whether there is something to be read; waits for it for a little."""
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if self.assoc.dul.state_machine.current_state == CLOSING:
            return False  # pynetdicom would read on for as long as something comes
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        try:
            return bool(select.select([connection], [], [], TURN_S)[0])
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Reads so many bytes; fewer when the peer closes.

        Raises:
            OSError: A length beyond bounds is claimed, or they take too long: the connection is
                given up.
        """
        if nr_bytes > PDU_BYTES + PDU_HEADER_BYTES:
            raise OSError("a PDU claims to be longer than was agreed on")
        connection = self.socket
        assert connection is not None
        data = bytearray(nr_bytes)
        came, ends = 0, time.monotonic() + self.select_timeout
        with memoryview(data) as view:
            while came < nr_bytes:
                connection.settimeout(max(ends - time.monotonic(), 0.001))
                here = connection.recv_into(view[came:])
                if not here:
                    break
                came += here
        connection.settimeout(self.select_timeout)
        return data if came == nr_bytes else data[:came]

    def _shutdown_socket(self) -> None:
        """Closes it, also where no connection came about."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class CallingAE(AE):
    """An AE that calls others through sockets of ours."""

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> AssociationSocket:
        made = _Socket(assoc, address=address)
        made.tls_args = tls_args
        return made


def quiet() -> None:
    """Keeps pynetdicom from printing data sets, and from decoding what it would print.

    Its messages quote what it choked on, which may be a patient's name; what happens on the wire is
    logged by us. It also sends files as they lie on disk from here on.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.STORE_SEND_CHUNKED_DATASET = True
    logging.getLogger("pynetdicom").propagate = False
