"""The audit log as DICOM Audit Messages (PS3.15 A.5), and on its way to a syslog server (A.6)."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from contourcast.service.access.audit import Row, rows
from contourcast.service.access.roles import What
from contourcast.service.index import cursors
from contourcast.service.index.database import Index
from contourcast.service.problems import PeerUnreachableError

SENT: Final = "audit-syslog"  # in the table of cursors
PRIORITY: Final = 85  # facility 10, severity 5: PS3.15 A.6
MESSAGE_ID: Final = "DICOM+RFC3881"  # PS3.15 A.6
TLS_PORT: Final = 6514  # RFC 5425 §4.1
TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Event:
    """How the standard calls something: code, meaning, action, and a type where it wants one."""

    code: str
    meaning: str
    action: str
    type_code: str = ""
    type_meaning: str = ""


_ACCESSED: Final = ("110103", "DICOM Instances Accessed")
_ALERT: Final = ("110113", "Security Alert")


def _event(kind: tuple[str, str], action: str, of: tuple[str, str] = ("", "")) -> Event:
    code, meaning = kind
    type_code, type_meaning = of
    return Event(
        code=code, meaning=meaning, action=action, type_code=type_code, type_meaning=type_meaning
    )


# PS3.15 A.5.3 and PS3.16 CID 400, 401, 403
EVENTS: Final[dict[What, Event]] = {
    What.START: _event(("110100", "Application Activity"), "E", of=("110120", "Application Start")),
    What.LOGIN: _event(("110114", "User Authentication"), "E", of=("110122", "Login")),
    What.LOGOUT: _event(("110114", "User Authentication"), "E", of=("110123", "Logout")),
    What.QUERY: _event(("110112", "Query"), "E"),
    What.READ: _event(_ACCESSED, "R"),
    What.CREATE: _event(_ACCESSED, "C"),
    What.UPDATE: _event(_ACCESSED, "U"),
    What.SIGN: _event(_ACCESSED, "U"),
    What.DELETE: _event(_ACCESSED, "D"),
    What.EXPORT: _event(("110106", "Export"), "R"),
    What.IMPORT: _event(("110107", "Import"), "C"),
    What.SETTING: _event(_ALERT, "E", of=("110131", "Software Configuration")),
    What.REFUSAL: _event(_ALERT, "E", of=("110126", "Node Authentication")),
    What.AUDIT: _event(("110101", "Audit Log Used"), "R"),
}
_OUTCOMES: Final = {"success": "0", "refused": "4", "failed": "8"}  # PS3.15 A.5.2
_APPLICATION_SERVER: Final = "4"  # PS3.15 A.5.2, AuditSourceTypeCode


def message(row: Row, *, source: str) -> str:
    """A row as one DICOM Audit Message.

    Args:
        row: Of the log.
        source: What this service is called among those that send to one collector.
    """
    what = What(row.happening["what"])
    event = EVENTS[what]
    root = Element("AuditMessage")
    identified = SubElement(
        root,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=row.at,
        EventOutcomeIndicator=_OUTCOMES[row.happening["outcome"]],
    )
    _code(identified, "EventID", event.code, event.meaning)
    if event.type_code:
        _code(identified, "EventTypeCode", event.type_code, event.type_meaning)
    _who(root, row)
    _service(root, source)
    SubElement(
        SubElement(root, "AuditSourceIdentification", AuditSourceID=source),
        "AuditSourceTypeCode",
        {"csd-code": _APPLICATION_SERVER},
    )
    _objects(root, row, what)
    return tostring(root, encoding="unicode")


def syslog(row: Row, *, source: str, host: str) -> bytes:
    """A row as one syslog message with its length before it (RFC 5424 §6, RFC 5425 §4.3)."""
    header = f"<{PRIORITY}>1 {row.at} {host or '-'} contourcast {os.getpid()} {MESSAGE_ID} - "
    body = (
        header.encode("ascii", "replace") + b"\xef\xbb\xbf" + message(row, source=source).encode()
    )
    return f"{len(body)} ".encode("ascii") + body


@contextmanager
def collector(
    host: str, *, port: int = TLS_PORT, authority: Path | None = None, identity: Path | None = None
) -> Iterator[ssl.SSLSocket]:
    """A connection to a syslog server over TLS.

    Args:
        host: Its name, as in its certificate.
        port: Its port.
        authority: Certificates that vouch for it; none: those of the system.
        identity: Our certificate and its key in one file, if it asks for one.

    Raises:
        PeerUnreachableError: It does not answer, or its certificate does not hold.
    """
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if identity is not None:
        context.load_cert_chain(identity)
    try:
        with (
            socket.create_connection((host, port), timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            yield connection
    except OSError as error:
        raise PeerUnreachableError(
            "the syslog server does not take the audit log",
            remedy="look at its address and its certificate; what was not sent is sent next time",
        ) from error


def forward(index: Index, connection: ssl.SSLSocket, *, source: str) -> int:
    """Sends what was not sent yet, and remembers how far it came.

    Syslog confirms nothing: what was under way when a connection broke is lost there, never here.

    Returns:
        How many rows were sent.
    """
    sent = 0
    for batch in _batches(rows(index, after=_sent(index)), size=100):
        host = socket.gethostname()
        connection.sendall(b"".join(syslog(row, source=source, host=host) for row in batch))
        sent += len(batch)
        _remember(index, batch[-1].number)
    return sent


def _batches(found: Iterable[Row], *, size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in found:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _sent(index: Index) -> int:
    with index.read() as connection:
        said = cursors.note(connection, SENT)
    return 0 if said is None else int(said["number"])


def _remember(index: Index, number: int) -> None:
    with index.write() as connection:
        cursors.write(index, connection, SENT, {"number": number})


def _code(parent: Element, tag: str, code: str, meaning: str, system: str = "DCM") -> None:
    SubElement(
        parent,
        tag,
        {"csd-code": code, "codeSystemName": system, "originalText": meaning},
    )


def _who(root: Element, row: Row) -> None:
    asked = SubElement(
        root,
        "ActiveParticipant",
        UserID=row.happening["who"] or "unknown",
        UserIsRequestor="true",
    )
    if row.happening["address"]:
        asked.set("NetworkAccessPointID", row.happening["address"])
        asked.set("NetworkAccessPointTypeCode", "2")  # an IP address
    for role in row.happening["roles"]:
        _code(asked, "RoleIDCode", role, role, system="contourcast")


def _service(root: Element, source: str) -> None:
    served = SubElement(root, "ActiveParticipant", UserID=source, UserIsRequestor="false")
    _code(served, "RoleIDCode", "110150", "Application")


def _objects(root: Element, row: Row, what: What) -> None:
    if row.happening["patient"]:
        _object(root, row.happening["patient"], kind="1", role="1", of=("2", "Patient Number"))
    for named in row.happening["objects"]:
        _object(root, named, kind="2", role="3", of=("9", "Report Number"))
    if what is What.AUDIT:
        log = _object(root, "/v1/audit", kind="2", role="13", of=("12", "URI"))
        SubElement(log, "ParticipantObjectName").text = "Security Audit Log"
    elif row.happening["action"]:
        _object(root, row.happening["action"], kind="2", role="3", of=("12", "URI"))


def _object(root: Element, named: str, *, kind: str, role: str, of: tuple[str, str]) -> Element:
    found = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=named,
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    code, meaning = of
    _code(found, "ParticipantObjectIDTypeCode", code, meaning, system="RFC-3881")
    return found
