"""The way to each kind of archive: send files, and ask whether they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.pacs import scu
from contourcast.service.pacs.connection import Peer
from contourcast.service.pacs.destinations import (
    Archive,
    DicomWebDestination,
    DimseDestination,
    OrthancDestination,
    secret,
)
from contourcast.service.pacs.dicomweb import DicomWeb
from contourcast.service.pacs.door import Outcome, Receipt
from contourcast.service.pacs.node import Commitment, Sender
from contourcast.service.pacs.orthanc import Orthanc
from contourcast.service.pacs.wire import Bounds, Tls
from contourcast.service.problems import PeerError, PeerUnreachableError

DUPLICATE = 0x0111  # PS3.7 C.5.6: it has an instance of this UID


class Way(Protocol):
    """What every archive is asked for.

    Both raise `PeerError` when the archive does something else, or does not answer.
    """

    def send(self, paths: Sequence[Path]) -> list[Receipt]:
        """Stores files; what became of each, in the order given."""
        ...

    def confirm(self, paths: Sequence[Path]) -> list[Receipt]:
        """Whether each is there: ``stored``, ``conflict``, or ``refused`` when absent."""
        ...


@contextmanager
def way_to(archive: Archive) -> Iterator[Way]:
    """An open way to an archive of the settings.

    Raises:
        SettingsError: Its address or its credentials are none.
    """
    if isinstance(archive, DimseDestination):
        yield _Dimse(archive)
    elif isinstance(archive, OrthancDestination):
        with Orthanc(http_peer(archive)) as orthanc:
            yield orthanc
    else:
        with DicomWeb(http_peer(archive)) as web:
            yield _Web(web)


def http_peer(archive: OrthancDestination | DicomWebDestination) -> Peer:
    """An archive of the settings with its credentials, which lie in the environment.

    Raises:
        SettingsError: Its address or its credentials are none.
    """
    return Peer(
        name=archive.name,
        url=archive.url,
        user=archive.user,
        password=secret(archive, archive.password_env),
        token=secret(archive, archive.token_env),
        ca_file=archive.ca_file,
        timeout_s=archive.timeout_s,
    )


class _Web:
    def __init__(self, web: DicomWeb) -> None:
        self._web = web

    def send(self, paths: Sequence[Path]) -> list[Receipt]:
        return self._web.store(paths)

    def confirm(self, paths: Sequence[Path]) -> list[Receipt]:
        return self._web.confirm(paths)


class _Dimse:
    def __init__(self, archive: DimseDestination) -> None:
        self._peer = dimse_peer(archive)

    def send(self, paths: Sequence[Path]) -> list[Receipt]:
        return [_receipt(one) for one in self._peer.store(paths)]

    def confirm(self, paths: Sequence[Path]) -> list[Receipt]:
        """By C-FIND: that they are there; what is in them nobody can ask."""
        wanted = [scu.reference_to(read_header(path)) for path in paths]
        there = self._peer.is_there(wanted)
        return [there_or_not(one.sop_uid, there) for one in wanted]


def dimse_peer(archive: DimseDestination) -> scu.Peer:
    """A DICOM node of the settings.

    Raises:
        SettingsError: An AE title cannot be one.
    """
    tls = Tls(certificate=archive.certificate, key=archive.key, authority=archive.authority)
    return scu.Peer(
        aet=archive.aet,
        host=archive.host,
        port=archive.port,
        our_aet=archive.our_aet,
        tls=tls if archive.tls else None,
        bounds=Bounds(answer_s=archive.timeout_s),
    )


def ask_commitment(
    archive: DimseDestination, paths: Sequence[Path], *, transaction_uid: str
) -> Commitment | None:
    """Asks a node to vouch for files; its answer where it comes at once, else None.

    The answer may come later, to our own node.

    Raises:
        PeerUnreachableError: It does not answer.
    """
    answers: list[Commitment] = []

    def answered(commitment: Commitment, sender: Sender) -> None:
        del sender
        answers.append(commitment)

    try:
        dimse_peer(archive).commit(
            [scu.reference_to(read_header(path)) for path in paths],
            transaction_uid=transaction_uid,
            committed=answered,
        )
    except PeerUnreachableError:
        raise
    except PeerError:
        return None  # it does not offer it: then it is searched for what was sent
    return answers[0] if answers else None


def there_or_not(sop_uid: str, there: frozenset[str]) -> Receipt:
    """What is said of an instance by those that are there."""
    if sop_uid in there:
        return Receipt(sop_instance_uid=sop_uid, outcome="stored")
    return Receipt(sop_instance_uid=sop_uid, outcome="refused", reason="it is not there")


def _receipt(sent: scu.Answered) -> Receipt:
    status = sent.status
    outcome: Outcome = "refused"
    if status.done or status.value == DUPLICATE:
        outcome = "stored" if status.done else "already"
    return Receipt(
        sop_instance_uid=sent.reference.sop_uid,
        outcome=outcome,
        reason="" if status.category == "success" else str(status),
    )
