"""Another DICOM node, as we call it: asking what is there, fetching it, sending, having it vouched.

Each call is one association. Whatever goes wrong comes out as a `PeerError` that names the peer,
what was asked, and what its status means; nothing that a peer says in free text goes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar, cast

import structlog
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from contourcast.imaging.dicom.instance import Header, read_header
from contourcast.imaging.dicom.modules import reference
from contourcast.imaging.dicom.pixels import read_stored
from contourcast.service.pacs.dicomweb import MATCHES_AT_MOST, TEXT_CHARACTERS
from contourcast.service.pacs.node import (
    CLASSES,
    Committed,
    DoorIntake,
    Landing,
    Sender,
    answer_report,
)
from contourcast.service.pacs.statuses import (
    CLASS_NOT_SUPPORTED,
    Service,
    Status,
    status_of,
)
from contourcast.service.pacs.wire import (
    PDU_BYTES,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    Bounds,
    CallingAE,
    Intake,
    Messages,
    Tls,
    bound,
    hang_up,
    quiet,
)
from contourcast.service.problems import PeerError, PeerUnreachableError, SettingsError

# The instance that stands for storage commitment itself (PS3.4 J.3.5).
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
REQUEST_COMMITMENT: Final = 1  # PS3.4 Table J.3-1, action type
AET_CHARACTERS: Final = 16  # PS3.5 Table 6.2-1
# PS3.8 Table 9-21 by source and reason.
REJECTIONS: Final = {
    (1, 2): "it does not know DICOM's application context",
    (1, 3): "it does not know our AE title",
    (1, 7): "it does not bear the AE title that we call",
    (2, 2): "it speaks another version of the protocol",
    (3, 1): "it is congested",
    (3, 2): "as many associations are open there as may be",
}

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One instance by its UIDs, with those above it."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    study_uid: str


@dataclass(frozen=True, kw_only=True)
class StudyFound:
    """A study that a peer has; numbers are None, texts empty, where it does not say."""

    study_uid: str
    series: int | None
    instances: int | None
    patient_id: str = field(default="", repr=False)
    issuer: str = field(default="", repr=False)
    date: str = ""
    time: str = ""


@dataclass(frozen=True, kw_only=True)
class SeriesFound:
    """A series that a peer has; a number is None, a text empty, where it does not say."""

    study_uid: str
    series_uid: str
    modality: str
    instances: int | None
    date: str = ""
    time: str = ""
    manufacturer: str = ""
    model: str = ""
    description: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class ImageFound:
    """An instance that a peer has; its class is empty where it does not say."""

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """How a peer says that a retrieval went.

    Attributes:
        series: What came in by C-GET; empty after C-MOVE, whose instances reach our node.
    """

    completed: int
    failed: int
    with_warning: int
    series: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a peer answered to one file.

    Attributes:
        sent_as: UID of the transfer syntax.
        recoded: Whether that is another than the file's, so that other bytes went out.
    """

    path: Path
    reference: Reference
    status: Status
    sent_as: str
    recoded: bool

    @property
    def stored(self) -> bool:
        """Whether the peer has it."""
        return self.status.done


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another DICOM node, and who we are to it.

    Attributes:
        host: Name or address.
        our_aet: As which we call it; C-MOVE sends to the node of this title.
        bounds: Of each association; `Bounds.answer_s` is what it may take to answer.
    """

    aet: str
    host: str
    port: int
    our_aet: str
    tls: Tls | None = None
    bounds: Bounds = field(default_factory=lambda: Bounds(answer_s=60.0))

    def __post_init__(self) -> None:
        """Refuses what cannot be a peer.

        Raises:
            SettingsError: An AE title is empty, too long, or has other characters than ASCII's.
        """
        for aet in (self.aet, self.our_aet):
            fits = 0 < len(aet) <= AET_CHARACTERS and aet.isascii() and aet.isprintable()
            if not fits or aet != aet.strip() or "\\" in aet:
                raise SettingsError(
                    f"'{aet}' cannot be an AE title",
                    remedy=f"use 1 to {AET_CHARACTERS} ASCII characters without backslash",
                )

    def __str__(self) -> str:
        return f"{self.aet} at {self.host}:{self.port}"

    def echo(self) -> None:
        """Asks whether it is there.

        Raises:
            PeerError: It is not, or does not let us in.
        """
        with self._associated([build_context(Verification, [*UNCOMPRESSED])], "C-ECHO") as assoc:
            self._require("echo", "C-ECHO", assoc.send_c_echo())

    # Asking

    def find_studies(
        self, *, study_uid: str = "", patient_id: str = "", dates: str = ""
    ) -> tuple[StudyFound, ...]:
        """The studies that it has.

        Args:
            study_uid: This one alone.
            patient_id: Of this patient; goes to the peer and nowhere else.
            dates: A date (``20260131``) or a range of dates (``20260101-20260131``).

        Raises:
            PeerError: It cannot be asked, or there are more than `MATCHES_AT_MOST`.
        """
        query = _query(
            "STUDY",
            StudyInstanceUID=study_uid,
            PatientID=patient_id,
            IssuerOfPatientID="",
            StudyDate=dates,
            StudyTime="",
            NumberOfStudyRelatedSeries="",
            NumberOfStudyRelatedInstances="",
        )
        return self._find(
            query,
            lambda found: StudyFound(
                study_uid=_text(found, 0x0020000D),
                series=_number(found, 0x00201206),
                instances=_number(found, 0x00201208),
                patient_id=_text(found, 0x00100020),
                issuer=_text(found, 0x00100021),
                date=_text(found, 0x00080020),
                time=_text(found, 0x00080030),
            ),
        )

    def find_series(
        self, *, study_uid: str = "", series_uid: str = "", modality: str = ""
    ) -> tuple[SeriesFound, ...]:
        """The series that it has; strict peers want the study named (PS3.4 C.4.1.3.1.1).

        Raises:
            PeerError: It cannot be asked, or there are more than `MATCHES_AT_MOST`.
        """
        query = _query(
            "SERIES",
            StudyInstanceUID=study_uid,
            SeriesInstanceUID=series_uid,
            Modality=modality,
            NumberOfSeriesRelatedInstances="",
            SeriesDate="",
            SeriesTime="",
            Manufacturer="",
            ManufacturerModelName="",
            SeriesDescription="",
        )
        return self._find(
            query,
            lambda found: SeriesFound(
                study_uid=_text(found, 0x0020000D) or study_uid,
                series_uid=_text(found, 0x0020000E),
                modality=_text(found, 0x00080060),
                instances=_number(found, 0x00201209),
                date=_text(found, 0x00080021),
                time=_text(found, 0x00080031),
                manufacturer=_text(found, 0x00080070),
                model=_text(found, 0x00081090),
                description=_text(found, 0x0008103E),
            ),
        )

    def find_images(self, *, study_uid: str, series_uid: str) -> tuple[ImageFound, ...]:
        """The instances of a series that it has.

        Raises:
            PeerError: It cannot be asked, or there are more than `MATCHES_AT_MOST`.
        """
        query = _query(
            "IMAGE",
            StudyInstanceUID=study_uid,
            SeriesInstanceUID=series_uid,
            SOPInstanceUID="",
            SOPClassUID="",
        )
        return self._find(
            query,
            lambda found: ImageFound(
                study_uid=_text(found, 0x0020000D) or study_uid,
                series_uid=_text(found, 0x0020000E) or series_uid,
                sop_uid=_text(found, 0x00080018),
                sop_class_uid=_text(found, 0x00080016),
            ),
        )

    def is_there(self, instances: Collection[Reference]) -> frozenset[str]:
        """Which of these it has, by C-FIND: for archives without storage commitment.

        Raises:
            PeerError: It cannot be asked.
        """

        def series_of(instance: Reference) -> tuple[str, str]:
            return instance.study_uid, instance.series_uid

        there: set[str] = set()
        for (study, series), wanted in groupby(sorted(instances, key=series_of), key=series_of):
            has = {image.sop_uid for image in self.find_images(study_uid=study, series_uid=series)}
            there |= has & {instance.sop_uid for instance in wanted}
        return frozenset(there)

    # Fetching

    def move(self, *, study_uid: str, series_uid: str = "", to: str = "") -> Retrieved:
        """Has a study or a series sent to a node; ours, unless another is named.

        Raises:
            PeerError: It cannot, or does not know that node; what failed singly is counted.
        """
        model = StudyRootQueryRetrieveInformationModelMove
        with self._associated([build_context(model, [*UNCOMPRESSED])], "C-MOVE") as assoc:
            answers = assoc.send_c_move(
                _retrieval(study_uid, series_uid), to or self.our_aet, model
            )
            return self._retrieved("move", "C-MOVE", answers)

    def get(
        self,
        *,
        study_uid: str,
        series_uid: str = "",
        door: Landing,
        classes: Collection[str] = CLASSES,
    ) -> Retrieved:
        """Fetches a study or a series over the same association, where MOVE cannot be configured.

        Args:
            study_uid: Of the study.
            series_uid: This series of it alone.
            door: Where the instances go.
            classes: What is asked for of it.

        Raises:
            PeerError: It cannot; what failed singly is counted.
        """
        model = StudyRootQueryRetrieveInformationModelGet
        contexts = [build_context(model, [*UNCOMPRESSED])]
        contexts += [build_context(UID(one), [*TRANSFER_SYNTAXES]) for one in sorted(classes)]
        roles = [build_role(UID(one), scp_role=True) for one in sorted(classes)]
        intake = DoorIntake(door, Sender(aet=self.aet, address=self.host), classes)
        with self._associated(contexts, "C-GET", roles=roles, intake=intake) as assoc:
            answers = assoc.send_c_get(_retrieval(study_uid, series_uid), model)
            return self._retrieved("get", "C-GET", answers, intake.series)

    # Sending

    def store(self, paths: Sequence[Path]) -> tuple[Answered, ...]:
        """Sends files over one association: the bytes of each data set as they lie on disk.

        Only where the peer does not take a file's transfer syntax is it written anew, uncompressed,
        and its receipt says so.

        Raises:
            PeerError: The peer is not there, does not let us in, or breaks off. What it refuses
                singly is in the receipts.
            DicomError: A file cannot be read, or cannot be decompressed.
        """
        headers = [read_header(path) for path in paths]
        with self._associated(_contexts_for(headers), "C-STORE", any_context=True) as assoc:
            return tuple(
                self._store(assoc, path, header, number)
                for number, (path, header) in enumerate(zip(paths, headers, strict=True), 1)
            )

    def _store(self, assoc: Association, path: Path, header: Header, number: int) -> Answered:
        offered = [
            context.transfer_syntax[0]
            for context in assoc.accepted_contexts
            if context.abstract_syntax == header.sop_class_uid
        ]
        syntax = UID(header.transfer_syntax)
        sent_as = syntax if syntax in offered else next(iter(offered), None)
        if sent_as is None:
            status = status_of("store", CLASS_NOT_SUPPORTED)
        elif sent_as == syntax:
            status = self._send(assoc, path, number)
        else:
            with TemporaryDirectory() as folder:
                anew = _recoded(path, header, sent_as, Path(folder) / path.name)
                status = self._send(assoc, anew, number)
        if not status.done:
            log.info("store_declined", peer=self.aet, uid=header.sop_instance_uid, why=str(status))
        return Answered(
            path=path,
            reference=reference_to(header),
            status=status,
            sent_as=str(sent_as or ""),
            recoded=sent_as is not None and sent_as != syntax,
        )

    def _send(self, assoc: Association, path: Path, number: int) -> Status:
        answer = assoc.send_c_store(path, msg_id=(number - 1) % 0xFFFF + 1)
        return self._status("store", "C-STORE", answer)

    def commit(
        self,
        instances: Sequence[Reference],
        *,
        transaction_uid: str,
        committed: Committed | None = None,
    ) -> None:
        """Asks it to vouch for instances; the answer comes later, to our node.

        Args:
            instances: What was sent.
            transaction_uid: By which the answer is recognised; a new one for each request.
            committed: Called when it answers at once, over this association.

        Raises:
            PeerError: It does not offer storage commitment, or refuses; see `is_there`.
        """
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = [
            reference(instance.sop_class_uid, instance.sop_uid) for instance in instances
        ]
        sender = Sender(aet=self.aet, address=self.host)

        def report(event: evt.Event) -> tuple[int, Dataset | None]:
            return answer_report(event, committed, sender), None

        contexts = [build_context(StorageCommitmentPushModel, [*UNCOMPRESSED])]
        handlers = [(evt.EVT_N_EVENT_REPORT, report)]
        with self._associated(contexts, "storage commitment", handlers=handlers) as assoc:
            status, _ = assoc.send_n_action(
                request, REQUEST_COMMITMENT, StorageCommitmentPushModel, UID(COMMITMENT_INSTANCE)
            )
            self._require("commit", "storage commitment", status)

    # Associations

    @contextmanager
    def _associated(
        self,
        contexts: list[PresentationContext],
        what: str,
        *,
        roles: Sequence[Any] = (),
        intake: Intake | None = None,
        handlers: Sequence[tuple[Any, Callable[..., Any]]] = (),
        any_context: bool = False,
    ) -> Iterator[Association]:
        """One association, for a block.

        Raises:
            PeerError: There is none to be had, or it breaks off.
        """
        quiet()
        ae = CallingAE(self.our_aet)
        ae.connection_timeout = self.bounds.connect_s
        ae.acse_timeout = ae.dimse_timeout = self.bounds.answer_s
        ae.network_timeout = max(self.bounds.idle_s, self.bounds.answer_s)
        opened: list[Messages] = []

        def opening(event: evt.Event) -> None:
            opened.append(bound(event.assoc, self.bounds, intake))

        def storing(event: evt.Event) -> Dataset:
            answer = opened[0].store(cast(C_STORE, event.request))
            said = Dataset()
            said.Status = answer.status
            if answer.comment:
                said.ErrorComment = answer.comment
            return said

        try:
            assoc = ae.associate(
                self.host,
                self.port,
                contexts,
                self.aet,
                max_pdu=PDU_BYTES,
                ext_neg=list(roles),
                tls_args=(self.tls.of_caller(), self.host) if self.tls is not None else None,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, opening),
                    (evt.EVT_C_STORE, storing),
                    *handlers,
                ],
            )
        except OSError as error:
            raise self._unreachable(what) from error
        try:
            if not assoc.is_established:
                raise self._not_let_in(assoc, what, opened=bool(opened))
            if not any_context:
                self._require_context(assoc, contexts[0], what)
            yield assoc
            assoc.release()
        except (PeerUnreachableError, RuntimeError) as error:
            if any(messages.overfed for messages in opened):
                raise self._endless(what) from error
            if isinstance(error, PeerUnreachableError):
                raise
            # pynetdicom's word for an association that is gone
            raise self._broken_off(what) from error
        finally:
            if assoc.is_established:
                assoc.abort()
            hang_up(assoc)
            for messages in opened:
                messages.end()

    def _require_context(self, assoc: Association, context: PresentationContext, what: str) -> None:
        if all(one.abstract_syntax != context.abstract_syntax for one in assoc.accepted_contexts):
            raise self._not_offered(what)

    def _not_let_in(self, assoc: Association, what: str, *, opened: bool) -> PeerError:
        if not opened:
            return self._unreachable(what)
        answer = assoc.acceptor.primitive
        if assoc.is_rejected and answer is not None:
            reason = REJECTIONS.get(
                (answer.result_source or 0, answer.diagnostic or 0), "it gives no reason"
            )
            return PeerError(
                f"{self} rejects our association for {what}: {reason}",
                remedy=f"check the AE titles there: ours is {self.our_aet}, its own {self.aet}",
            )
        if answer is not None:
            return self._not_offered(what)
        return self._broken_off(what)

    def _unreachable(self, what: str) -> PeerError:
        over = " over TLS" if self.tls is not None else ""
        return PeerUnreachableError(
            f"{self} cannot be reached{over} for {what}",
            remedy="check that it runs, its host and port"
            + (", and the certificates of both sides" if over else ""),
        )

    def _not_offered(self, what: str) -> PeerError:
        return PeerError(
            f"{self} does not offer {what} for what we ask",
            remedy="have it configured there, or choose another way in the settings",
        )

    def _broken_off(self, what: str) -> PeerError:
        return PeerUnreachableError(
            f"{self} did not answer our {what} in time, or broke off",
            remedy="try again; if it stays so, look at its log",
        )

    def _endless(self, what: str) -> PeerError:
        return PeerError(
            f"{self} answers our {what} with more than we take",
            remedy="ask for fewer days, or for one study",
        )

    # Answers

    def _status(self, service: Service, what: str, answer: Dataset) -> Status:
        if "Status" not in answer:
            raise self._broken_off(what)
        return status_of(service, int(answer.Status))

    def _require(self, service: Service, what: str, answer: Dataset) -> None:
        status = self._status(service, what, answer)
        if not status.done:
            raise self._failed(what, status)

    def _failed(self, what: str, status: Status) -> PeerError:
        return PeerError(
            f"{self} answered our {what} with {status}",
            remedy="try again later"
            if status.may_pass
            else "look at its log and at how we are configured there",
        )

    def _find(self, query: Dataset, read: Callable[[Dataset], T]) -> tuple[T, ...]:
        model = StudyRootQueryRetrieveInformationModelFind
        found: list[T] = []
        with self._associated([build_context(model, [*UNCOMPRESSED])], "C-FIND") as assoc:
            for answer, match in assoc.send_c_find(query, model):
                status = self._status("find", "C-FIND", answer)
                if status.category != "pending":
                    self._require("find", "C-FIND", answer)
                elif match is None:
                    raise PeerError(
                        f"{self} answered our C-FIND with something unreadable",
                        remedy="look at its log",
                    )
                elif len(found) >= MATCHES_AT_MOST:
                    raise PeerError(
                        f"{self} finds more than {MATCHES_AT_MOST} matches",
                        remedy="ask for fewer days, or for one study",
                    )
                else:
                    found.append(read(match))
        return tuple(found)

    def _retrieved(
        self,
        service: Service,
        what: str,
        answers: Iterable[tuple[Dataset, Dataset | None]],
        series: Collection[str] = (),
    ) -> Retrieved:
        answer = Dataset()
        for answer, _ in answers:
            if self._status(service, what, answer).category != "pending":
                break
        status = self._status(service, what, answer)
        failed = int(answer.get("NumberOfFailedSuboperations") or 0)
        if not status.done and not failed:
            raise self._failed(what, status)
        return Retrieved(
            completed=int(answer.get("NumberOfCompletedSuboperations") or 0),
            failed=failed,
            with_warning=int(answer.get("NumberOfWarningSuboperations") or 0),
            series=frozenset(series),
        )


def reference_to(header: Header) -> Reference:
    """How an instance is named to a peer."""
    return Reference(
        sop_class_uid=header.sop_class_uid,
        sop_uid=header.sop_instance_uid,
        series_uid=header.series_instance_uid,
        study_uid=header.study_instance_uid,
    )


def _contexts_for(headers: Iterable[Header]) -> list[PresentationContext]:
    """For each class a context of its own for each transfer syntax, and one uncompressed."""
    wanted = sorted({(h.sop_class_uid, h.transfer_syntax) for h in headers})
    contexts = [build_context(UID(one), [UID(syntax)]) for one, syntax in wanted]
    return contexts + [
        build_context(UID(one), [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        for one in sorted({one for one, _ in wanted})
    ]


def _recoded(path: Path, header: Header, syntax: UID, anew: Path) -> Path:
    """A file written anew, uncompressed, for a peer that does not take it as it is.

    Raises:
        DicomError: Its pixels have to be decoded, and it is not one grey image.
    """
    dataset = dcmread(path)
    plain = header.transfer_syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    if header.pixels is not None and not plain:
        stored = read_stored(path, header)
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        dataset["PixelData"].VR = "OW" if stored.itemsize > 1 else "OB"
        dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = syntax
    dcmwrite(
        anew, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=True, force_encoding=True
    )
    return anew


def _retrieval(study_uid: str, series_uid: str) -> Dataset:
    if not series_uid:
        return _query("STUDY", StudyInstanceUID=study_uid)
    return _query("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)


def _query(level: str, **keys: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value or None)
    return query


def _text(found: Dataset, tag: int) -> str:
    """A value as it came: where it is wrong, pydicom would quote it in a warning."""
    element = found.get_item(tag)
    if element is None or element.value is None:
        return ""
    value = element.value
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")[:TEXT_CHARACTERS]


def _number(found: Dataset, tag: int) -> int | None:
    text = _text(found, tag)
    return int(text) if text.isdecimal() else None
