"""Our DICOM node: takes in what is sent, and answers only when it is safe.

One C-STORE goes through here like this: its data set is written to disk as the raw bytes that
arrive, its header is read once, a `Landing` makes it durable, and then the sender gets 0x0000. What
cannot be taken gets a status that tells the sender whether to keep it and try again:

| status | when |
|---|---|
| 0x0000 | it is stored, or was already |
| 0xA700 | the disk is below its reserve, or the database cannot be reached: send again later |
| 0xA900 | an object of another kind than taken, or than the request says |
| 0xC000 | unreadable, too large, or another content under a UID that is here already |

Who may call is a list: AE title and address together, the called title checked. Everybody else is
turned away before anything is read of what they send.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import AddressInformation, RequestHandler, ThreadedAssociationServer

from contourcast.imaging.dicom.instance import (
    CT_IMAGE,
    DEFORMABLE_REGISTRATION,
    SPATIAL_REGISTRATION,
    STRUCTURE_SET,
    Header,
    read_header,
)
from contourcast.imaging.errors import ContourcastError, DicomError
from contourcast.service.pacs.door import Taken
from contourcast.service.pacs.statuses import (
    CANNOT_UNDERSTAND,
    INVALID_ARGUMENT,
    MISMATCH,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SUCCESS,
    Status,
    status_of,
)
from contourcast.service.pacs.wire import (
    PDU_BYTES,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    Answer,
    Bounds,
    Received,
    Tls,
    bound,
    hang_up,
    quiet,
)
from contourcast.service.problems import SettingsError, log_fault
from contourcast.service.problems import status_of as http_status_of

RT_PLAN: Final = "1.2.840.10008.5.1.4.1.1.481.5"
CLASSES: Final = frozenset(
    {CT_IMAGE, STRUCTURE_SET, RT_PLAN, SPATIAL_REGISTRATION, DEFORMABLE_REGISTRATION}
)
# Connections beyond the associations: those not yet agreed on, and those being turned away.
FURTHER_CONNECTIONS: Final = 24
COMMENT_CHARACTERS: Final = 64  # (0000,0902) Error Comment is an LO
# PS3.8 Table 9-21: result, source, reason.
CALLED_UNKNOWN: Final = (1, 1, 7)
CALLING_UNKNOWN: Final = (1, 1, 3)
LIMIT_REACHED: Final = (2, 3, 2)
POLL_S: Final = 0.1

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who sends.

    Attributes:
        aet: Its AE title, as it says.
        address: Its IP address.
        on_behalf_of: AE title of whoever asked it to send, by C-MOVE; empty when nobody did.
    """

    aet: str
    address: str
    on_behalf_of: str = ""


@dataclass(frozen=True, kw_only=True)
class Landed:
    """One instance on our disk: whole, read, not yet flushed.

    Attributes:
        path: Where it lies; whoever takes it moves it away, what is left there is deleted.
        file_digest: SHA-256 (hex) of the file.
    """

    path: Path
    file_digest: str
    size_bytes: int
    header: Header


class Landing(Protocol):
    """Where instances go; called from several threads at once."""

    def incoming(self) -> Path:
        """A path for a new file, on the disk that it will stay on.

        Raises:
            DiskFullError: The disk is below its reserve.
            BusyError: Nothing can be taken now.
        """

    def take(self, landed: Landed, *, sender: Sender) -> Taken:
        """Takes one instance; when this returns, file and index row outlive a power cut.

        Raises:
            DiskFullError: The disk is below its reserve.
            BusyError: The index cannot be reached.
            ContourcastError: It is refused.
        """


@dataclass(frozen=True, kw_only=True)
class FailedInstance:
    """An instance that an archive does not vouch for."""

    sop_uid: str
    reason: Status


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """An archive's answer to `Peer.commit`."""

    transaction_uid: str
    committed: tuple[str, ...]
    failed: tuple[FailedInstance, ...]


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody who may call: an AE title, and the networks from where it does.

    Attributes:
        networks: Addresses (``10.0.0.21``) or networks (``10.0.0.0/24``).
    """

    aet: str
    networks: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses what is no network.

        Raises:
            SettingsError: It is none.
        """
        for network in self.networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise SettingsError(
                    f"'{network}' of the caller {self.aet} is neither an IP address nor a network",
                    remedy="write it like 10.0.0.21 or 10.0.0.0/24",
                ) from error

    def is_at(self, address: str) -> bool:
        """Whether it may call from there."""
        here = ipaddress.ip_address(address)
        if isinstance(here, ipaddress.IPv6Address) and here.ipv4_mapped is not None:
            here = here.ipv4_mapped
        return any(here in ipaddress.ip_network(network) for network in self.networks)


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a node is.

    Attributes:
        port: 0 takes a free one.
        callers: Who may call; nobody else.
        associations: At the same time; one more is told to come back later.
        drain_s: How long those that run may go on when the node is stopped.
    """

    aet: str = "CONTOURCAST"
    host: str = "127.0.0.1"
    port: int = 11112
    callers: tuple[Caller, ...]
    classes: frozenset[str] = CLASSES
    tls: Tls | None = None
    bounds: Bounds = field(default_factory=Bounds)
    associations: int = 8
    drain_s: float = 60.0


Arrived = Callable[[frozenset[str], Sender], None]
Committed = Callable[[Commitment, Sender], None]
# Who it was, as it says, and why.
TurnedAway = Callable[[Sender, str], None]


class Node:
    """The node, from `start` to `stop`.

    Args:
        settings: What it is.
        door: Where instances go.
        arrived: Called when an association was released by its sender, with the series that it
            brought instances of; never when it broke off. It must not raise.
        committed: Called with each answer to a storage commitment; when it raises, the archive is
            told so and may report again.
        turned_away: Called with each who may not call.
    """

    def __init__(
        self,
        settings: NodeSettings,
        door: Landing,
        *,
        arrived: Arrived = lambda series, sender: None,
        committed: Committed | None = None,
        turned_away: TurnedAway = lambda sender, why: None,
    ) -> None:
        quiet()
        self.settings = settings
        self.door = door
        self.arrived = arrived
        self.committed = committed
        self.turned_away = turned_away
        self._ae = AE(settings.aet)
        self._ae.maximum_pdu_size = PDU_BYTES
        self._ae.acse_timeout = settings.bounds.answer_s
        self._ae.dimse_timeout = settings.bounds.answer_s
        self._ae.network_timeout = settings.bounds.idle_s
        # Counted by us: pynetdicom's count includes those who only knock.
        self._ae.maximum_associations = settings.associations + FURTHER_CONNECTIONS + 1
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None, "the node is not started"
        return self._server.server_address[1]

    def start(self) -> Self:
        """Listens from here on.

        Raises:
            SettingsError: The port is taken or not ours, or the certificates cannot be read.
        """
        context = self.settings.tls.of_node() if self.settings.tls is not None else None
        try:
            self._server = _Server(self, self._ae, context)
        except OSError as error:
            raise SettingsError(
                f"the DICOM node cannot listen on {self.settings.host}:{self.settings.port}",
                remedy="choose an address of this machine and a port that is free",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": POLL_S}, name="dicom-node"
        )
        self._thread.start()
        log.info("dicom_node_started", aet=self.settings.aet, port=self.port)
        return self

    def stop(self) -> None:
        """Takes no new association, lets those that run end, breaks off what then remains."""
        if self._server is None or self._thread is None:
            return
        self._server.stop(within_s=self.settings.drain_s)
        self._thread.join()
        log.info("dicom_node_stopped", aet=self.settings.aet)
        self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def run_node(
    settings: NodeSettings,
    door: Landing,
    *,
    stop: threading.Event,
    arrived: Arrived = lambda series, sender: None,
    committed: Committed | None = None,
    turned_away: TurnedAway = lambda sender, why: None,
) -> None:
    """Runs a node until `stop` is set.

    Raises:
        SettingsError: It cannot run as it is told to.
    """
    with Node(settings, door, arrived=arrived, committed=committed, turned_away=turned_away):
        stop.wait()


class DoorIntake:
    """Takes the instances of one association through a door.

    Attributes:
        series: Those that are here now.
    """

    def __init__(self, door: Landing, sender: Sender, classes: Collection[str]) -> None:
        self._door = door
        self._sender = sender
        self._classes = classes
        self.series: set[str] = set()

    def incoming(self) -> Path:
        """A path for a new file."""
        return self._door.incoming()

    def store(self, received: Received) -> Answer:
        """Takes an instance in; the answer to it."""
        try:
            status, cause = self._take(received)
        except ContourcastError as error:
            later = http_status_of(error) in (503, 507)  # of the store, the index or the disk
            status, cause = (OUT_OF_RESOURCES if later else CANNOT_UNDERSTAND), error.cause
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                log_fault("store_failed", error, trace=received.sop_uid)
            status, cause = OUT_OF_RESOURCES, "the file cannot be written now"
        except Exception as error:
            log_fault("store_failed", error, trace=received.sop_uid)
            status, cause = PROCESSING_FAILURE, "a fault of the receiver"
        if status != SUCCESS:
            log.info(
                "store_refused",
                status=f"{status:04X}",
                cause=cause,
                aet=self._sender.aet,
                uid=received.sop_uid,
            )
        return Answer(status=status, comment=cause[:COMMENT_CHARACTERS].strip())

    def _take(self, received: Received) -> tuple[int, str]:
        if received.sop_class_uid != received.agreed_class_uid:
            return MISMATCH, "the object is of another class than was agreed on"
        if received.sop_class_uid not in self._classes:
            return MISMATCH, "objects of this kind are not taken"
        body = received.body
        if body.refusal is not None:
            raise body.refusal
        if body.path is None:
            return CANNOT_UNDERSTAND, "the data set is empty"
        with _READING:
            header = read_header(body.path, file=body.path.name)
        if header.sop_class_uid != received.sop_class_uid:
            return MISMATCH, "the data set is of another class than the request says"
        if header.sop_instance_uid != received.sop_uid:
            return MISMATCH, "the data set is another instance than the request says"
        landed = Landed(
            path=body.path, file_digest=body.digest, size_bytes=body.size_bytes, header=header
        )
        sender = replace(self._sender, on_behalf_of=received.on_behalf_of)
        taken = self._door.take(landed, sender=sender)
        if taken.outcome in ("conflict", "refused"):
            return CANNOT_UNDERSTAND, taken.cause or "refused"
        self.series.add(header.series_instance_uid)
        return SUCCESS, ""


# A header may take 128 MiB to read: of all associations together, once.
_READING: Final = threading.Lock()


def read_commitment(information: Dataset) -> Commitment:
    """The Event Information of a storage commitment (PS3.4 Table J.3-2).

    Raises:
        DicomError: It names no transaction.
    """
    transaction = str(information.get("TransactionUID", ""))
    if not transaction:
        raise DicomError(
            "a storage commitment names no transaction",
            tag="(0008,1195) Transaction UID",
            remedy="ask again, or ask by C-FIND what arrived",
        )
    return Commitment(
        transaction_uid=transaction,
        committed=tuple(
            str(item.ReferencedSOPInstanceUID)
            for item in information.get("ReferencedSOPSequence") or ()
        ),
        failed=tuple(
            FailedInstance(
                sop_uid=str(item.ReferencedSOPInstanceUID),
                reason=status_of("commit", int(item.get("FailureReason", PROCESSING_FAILURE))),
            )
            for item in information.get("FailedSOPSequence") or ()
        ),
    )


def answer_report(event: evt.Event, committed: Committed | None, sender: Sender) -> int:
    """Hands a storage commitment on; the status of the answer to it."""
    if event.request.AffectedSOPClassUID != StorageCommitmentPushModel or committed is None:
        return PROCESSING_FAILURE
    try:
        commitment = read_commitment(event.event_information)
    except Exception as error:
        log_fault("commitment_unreadable", error, trace=sender.aet)
        return INVALID_ARGUMENT
    try:
        committed(commitment, sender)
    except Exception as error:
        log_fault("commitment_lost", error, trace=commitment.transaction_uid)
        return PROCESSING_FAILURE
    return SUCCESS


class _Session:
    """One connection, from the first byte to the last."""

    def __init__(self, server: _Server, assoc: Association) -> None:
        self._server = server
        self._node = server.node
        self._assoc = assoc
        self._messages = bound(assoc, self._node.settings.bounds, self)
        self._sender: Sender | None = None
        self._intake: DoorIntake | None = None
        assoc.bind(evt.EVT_REQUESTED, self._admit)
        assoc.bind(evt.EVT_N_EVENT_REPORT, self._report)

    def run(self) -> None:
        """Serves the connection until it ends."""
        assoc = self._assoc
        try:
            assoc.start()
            assoc.join()
        finally:
            hang_up(assoc)
            assoc.kill()
            self._messages.end()
            if self._sender is not None:
                self._server.slots.release()
        if self._sender is None or self._intake is None:
            return
        series = frozenset(self._intake.series)
        log.info(
            "association_ended",
            aet=self._sender.aet,
            released=assoc.is_released,
            series=len(series),
        )
        if assoc.is_released and series:
            self._node.arrived(series, self._sender)

    def incoming(self) -> Path:
        """A path for a new file."""
        return self._node.door.incoming()

    def store(self, received: Received) -> Answer:
        """Takes an instance in."""
        assert self._intake is not None
        return self._intake.store(received)

    def _admit(self, event: evt.Event) -> None:
        """Turns away whoever may not call; whatever fails here turns away, too."""
        if not isinstance(self._assoc.requestor.primitive, A_ASSOCIATE):
            self._assoc.is_aborted = True  # the connection was closed before a request came
            return
        refusal: tuple[int, int, int] | None = CALLING_UNKNOWN
        try:
            refusal = self._judge()
        finally:
            if refusal is not None:
                log.info(
                    "association_rejected",
                    reason=_REASONS[refusal],
                    address=self._address,
                    calling=self._assoc.requestor.primitive.calling_ae_title,
                    called=self._assoc.requestor.primitive.called_ae_title,
                )
                self._assoc.acse.send_reject(*refusal)
                self._assoc.kill()
                if refusal != LIMIT_REACHED:
                    calling = str(self._assoc.requestor.primitive.calling_ae_title).strip()
                    sender = Sender(aet=calling, address=self._address)
                    self._node.turned_away(sender, _REASONS[refusal])

    def _judge(self) -> tuple[int, int, int] | None:
        settings = self._node.settings
        request = self._assoc.requestor.primitive
        assert request is not None
        aet = str(request.calling_ae_title).strip()
        if str(request.called_ae_title).strip() != settings.aet:
            return CALLED_UNKNOWN
        if not any(c.aet == aet and c.is_at(self._address) for c in settings.callers):
            return CALLING_UNKNOWN
        if not self._server.slots.acquire(blocking=False):
            return LIMIT_REACHED
        self._sender = Sender(aet=aet, address=self._address)
        self._intake = DoorIntake(self._node.door, self._sender, settings.classes)
        return None

    @property
    def _address(self) -> str:
        here = self._assoc.requestor.address_info
        assert here is not None
        return here.address

    def _report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        assert self._sender is not None
        return answer_report(event, self._node.committed, self._sender), None


_REASONS: Final = {
    CALLED_UNKNOWN: "it called another AE title than ours",
    CALLING_UNKNOWN: "its AE title may not call from its address",
    LIMIT_REACHED: "as many associations are open as may be",
}


class _Handler(RequestHandler):
    """Shakes hands, if need be, and runs the session, in a thread of its own."""

    server: _Server

    def setup(self) -> None:
        """The handshake, here and not where connections are accepted: there it would block all."""
        assert isinstance(self.request, socket.socket)
        self.request.settimeout(self.server.node.settings.bounds.connect_s)
        if self.server.context is not None:
            self.request = self.server.context.wrap_socket(self.request, server_side=True)

    def handle(self) -> None:
        """Serves the connection."""
        assoc = self._create_association()
        self.server.add(assoc)
        try:
            _Session(self.server, assoc).run()
        finally:
            self.server.remove(assoc)

    def finish(self) -> None:
        """Closes the connection, whatever state it is in."""
        assert isinstance(self.request, socket.socket)
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)
        self.request.close()

    @property
    def remote(self) -> AddressInformation:
        """Who called."""
        return AddressInformation.from_tuple(self.client_address)


class _Server(ThreadedAssociationServer):
    """Listens, and keeps count."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, node: Node, ae: AE, context: ssl.SSLContext | None) -> None:
        self.node = node
        self.context = context
        self.slots = threading.BoundedSemaphore(node.settings.associations)
        self._connections = threading.BoundedSemaphore(
            node.settings.associations + FURTHER_CONNECTIONS
        )
        self._associations: set[Association] = set()
        self._changed = threading.Condition()
        self._stopping = False
        super().__init__(
            ae,
            (node.settings.host, node.settings.port),
            node.settings.aet,
            _contexts(node.settings.classes),
            request_handler=_Handler,
        )
        ae._servers.append(self)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the address may connect at all, and there is room for it."""
        address = str(client_address[0])
        if not any(caller.is_at(address) for caller in self.node.settings.callers):
            log.info("connection_refused", address=address)
            return False
        if not self._connections.acquire(blocking=False):
            log.warning("connections_exhausted", address=address)
            return False
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread of a connection."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says what a connection failed of; socketserver would print it."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # a handshake that failed, a connection that was reset
            log.info("connection_failed", address=str(client_address[0]), kind=type(error).__name__)
        elif error is not None:
            log_fault("connection_failed", error, trace=str(client_address[0]))

    def add(self, assoc: Association) -> None:
        """Counts a connection."""
        with self._changed:
            self._associations.add(assoc)

    def remove(self, assoc: Association) -> None:
        """Counts it no more."""
        with self._changed:
            self._associations.discard(assoc)
            self._changed.notify_all()

    def stop(self, *, within_s: float) -> None:
        """Stops listening, waits, then breaks off what remains."""
        self.shutdown()
        with self._changed:
            if self._changed.wait_for(lambda: not self._associations, within_s):
                return
            left = list(self._associations)
        for assoc in left:  # each waits for what its reader does at the moment
            threading.Thread(target=assoc.abort, daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: not self._associations, self.node.settings.bounds.pdu_s)


def _contexts(classes: Collection[str]) -> list[PresentationContext]:
    contexts = [build_context(Verification, [*UNCOMPRESSED])]
    contexts += [build_context(UID(one), [*TRANSFER_SYNTAXES]) for one in sorted(classes)]
    # Whoever reports a commitment takes the part of the SCP, though it calls us (PS3.4 J.3.3.1).
    commitment = build_context(StorageCommitmentPushModel, [*UNCOMPRESSED])
    commitment.scu_role, commitment.scp_role = False, True
    return [*contexts, commitment]
