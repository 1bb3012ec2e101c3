"""Three ways to ask an archive what it has, of a patient or of some days, and to have that brought.

What an archive says is believed as far as choosing goes; what it brings passes a `Gate`, which
reads each file's own header first.
"""

from __future__ import annotations

import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from contourcast.imaging.dicom.instance import Header, read_header
from contourcast.imaging.errors import ContourcastError
from contourcast.service.intake.facts import moment
from contourcast.service.pacs import node
from contourcast.service.pacs.connection import in_parallel
from contourcast.service.pacs.destinations import (
    Archive,
    DimseDestination,
    OrthancDestination,
    Surveyed,
)
from contourcast.service.pacs.dicomweb import MATCHES_AT_MOST, UID_FORM, DicomWeb, FoundSeries
from contourcast.service.pacs.door import Door, Taken
from contourcast.service.pacs.orthanc import Orthanc
from contourcast.service.pacs.scu import Peer, SeriesFound, StudyFound
from contourcast.service.pacs.ways import dimse_peer, http_peer
from contourcast.service.problems import PeerError, PeerUnreachableError

# Files that are fetched and then taken together.
BATCH: Final = 64
# A slice of 512 x 512 voxels of 16 bit, by which what has not come yet is reckoned.
SLICE_BYTES: Final = 512 * 512 * 2
# Studies that one look asks for their series: each is an association of its own.
STUDIES_AT_ONCE: Final = 64

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A series that an archive says it has of a patient; texts are empty where it does not say.

    Attributes:
        issuer: Of the patient ID.
        taken_at: When the series was made; None: it does not say.
    """

    series_uid: str
    study_uid: str = ""
    modality: str = "CT"
    issuer: str = field(default="", repr=False)
    taken_at: datetime | None = None
    manufacturer: str = ""
    model: str = ""
    description: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A CT series of some days that an archive says it has.

    Attributes:
        instances: How many it counts; None: it does not say.
        taken_at: When the series, or its study, was made; None: idem.
    """

    series_uid: str
    study_uid: str
    instances: int | None
    taken_at: datetime | None


@dataclass(kw_only=True)
class Budget:
    """What may still come.

    Attributes:
        series: How many.
        size_bytes: Of all of them.
    """

    series: int
    size_bytes: int

    def allows(self, instances: int) -> bool:
        """Whether so many instances may come, reckoned as slices."""
        return instances * SLICE_BYTES <= self.size_bytes


class Gate:
    """Lets in what may come of one series, by what each file says of itself.

    Attributes:
        outcomes: What became of the files that were brought.
        reasons: Why files were left out, and how many.
        closed: Whether nothing more of the series is wanted: it is another's, or too much.

    Args:
        door: Where files go.
        source: Who brings them.
        judge: Why a file may not come in; empty: it may.
        budget: What may still come; it is spent here.
    """

    def __init__(
        self, door: Door, source: str, judge: Callable[[Header], str], budget: Budget
    ) -> None:
        self._door = door
        self._source = source
        self._judge = judge
        self._budget = budget
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.closed = False

    @property
    def came(self) -> int:
        """How many instances are here that were not."""
        return self.outcomes["stored"]

    def take(self, paths: Sequence[Path]) -> int:
        """Judges files and brings the sound ones to the door; how many of them are here now.

        Raises:
            DiskFullError: Nothing was taken.
            BusyError: Idem.
        """
        sound = [path for path in paths if self._is_welcome(path)]
        taken = self._door.take(sound, source=self._source) if sound else []
        self.outcomes.update(one.outcome for one in taken)
        return sum(one.outcome in ("stored", "already") for one in taken)

    def spend(self, size_bytes: int) -> None:
        """Takes bytes off the budget; the gate closes when it is spent."""
        self._budget.size_bytes -= size_bytes
        self.closed = self.closed or self._budget.size_bytes < 0

    def _is_welcome(self, path: Path) -> bool:
        if self.closed:
            return False
        self.spend(path.stat().st_size)
        why = "too much" if self.closed else self._why_not(path)
        if why:
            self.reasons[why] += 1
            self.closed = True
        return not why

    def _why_not(self, path: Path) -> str:
        try:
            return self._judge(read_header(path))
        except ContourcastError:
            return "unreadable"


class Source(Protocol):
    """An archive as what is missing is asked of it.

    All raise `PeerError` when the archive does something else, or does not answer.
    """

    def offers(self, patient_id: str, modalities: Collection[str]) -> list[Offer]:
        """The series that it has under a patient ID, as far as it knows whose they are."""
        ...

    def instances(self, offer: Offer) -> list[str]:
        """The SOP Instance UIDs that it has of a series; none: it has nothing of it."""
        ...

    def bring(self, offer: Offer, sop_uids: Sequence[str], gate: Gate) -> None:
        """Brings instances of one series to the gate, until it is closed."""
        ...


class Listing(Source, Protocol):
    """An archive that is asked what it has of some days, because it keeps no diary."""

    def recent(self, since: date, until: date, studies: Studies) -> list[Listed]:
        """The CT series of studies of these days.

        Args:
            since: The first Study Date.
            until: The last one, as far as the archive can be told.
            studies: What was listed of them before.
        """
        ...

    def in_study(self, study_uid: str, since: date) -> list[Listed]:
        """The CT series of one study that were made since a day; what has no date was not."""
        ...


class Studies:
    """What a DICOM node listed of each study, so that it is asked again only for what changed.

    Attributes:
        done: Whether the last look asked for every study that was new or had changed.
    """

    def __init__(self) -> None:
        self.done = True
        self._kept: dict[str, _Kept] = {}
        self._again: frozenset[str] = frozenset()
        self._looks = 0

    def ask_again(self, study_uids: Iterable[str]) -> None:
        """At the next look these are asked for their series, changed or not."""
        self._again = frozenset(study_uids)

    def to_ask(self, there: Iterable[StudyFound]) -> list[StudyFound]:
        """Of the studies that are there, those to ask for their series now.

        First what is new or changed, the newest before; then what is to be asked again; then, one
        after the other, those of which the node does not say how much they hold.
        """
        sound = {one.study_uid: one for one in there if UID_FORM.fullmatch(one.study_uid)}
        self._kept = {
            uid: kept
            for uid, kept in self._kept.items()
            if uid in sound and kept.numbers == _numbers(sound[uid])
        }
        newest = sorted(sound.values(), key=lambda one: (one.date, one.time), reverse=True)
        fresh = [one for one in newest if one.study_uid not in self._kept]
        known = [one for one in newest if one.study_uid in self._kept]
        again = [one for one in known if one.study_uid in self._again]
        unsure = [one for one in known if self._kept[one.study_uid].unsure]
        unsure.sort(key=lambda one: self._kept[one.study_uid].look)
        self.done = len(fresh) <= STUDIES_AT_ONCE
        self._again = frozenset()
        self._looks += 1
        return list(dict.fromkeys([*fresh, *again, *unsure]))[:STUDIES_AT_ONCE]

    def keep(self, study: StudyFound, listed: Sequence[Listed] | None) -> None:
        """Keeps what was listed of a study; None: it could not be listed, and is asked again.

        Raises:
            PeerError: That is more in all than we keep; everything is forgotten.
        """
        before = self._kept.get(study.study_uid)
        self._kept[study.study_uid] = _Kept(
            numbers=_numbers(study),
            unsure=listed is None or None in _numbers(study),
            look=self._looks,
            series=tuple(listed if listed is not None else before.series if before else ()),
        )
        if sum(len(kept.series) for kept in self._kept.values()) > MATCHES_AT_MOST:
            self._kept.clear()
            raise PeerError(
                f"the archive lists more series than {MATCHES_AT_MOST}",
                remedy="watch fewer days of it",
            )

    def listed(self) -> list[Listed]:
        """All series of the studies that are there and have not changed since they were asked."""
        return [one for kept in self._kept.values() for one in kept.series]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What is known of one study.

    Attributes:
        numbers: Of its series and instances, when it was asked.
        unsure: Whether it may have changed though the numbers have not.
        look: At which it was asked.
    """

    numbers: tuple[int | None, int | None]
    unsure: bool
    look: int
    series: tuple[Listed, ...]


def _numbers(study: StudyFound) -> tuple[int | None, int | None]:
    return study.series, study.instances


@contextmanager
def source_of(archive: Archive, folder: Path) -> Iterator[Source]:
    """An open way to ask an archive of the settings.

    Args:
        archive: Whom to ask.
        folder: Where files lie on their way.

    Raises:
        SettingsError: Its address or its credentials are none.
    """
    if isinstance(archive, OrthancDestination):
        with Orthanc(http_peer(archive)) as orthanc:
            yield _Orthanc(orthanc, folder)
    else:
        with listing_of(archive, folder) as source:
            yield source


@contextmanager
def listing_of(archive: Surveyed, folder: Path) -> Iterator[Listing]:
    """`source_of` an archive that can be asked what it has of some days, too."""
    if isinstance(archive, DimseDestination):
        yield _Dimse(dimse_peer(archive), folder)
    else:
        with DicomWeb(http_peer(archive)) as web:
            yield _Web(web, folder)


class _Orthanc:
    def __init__(self, orthanc: Orthanc, folder: Path) -> None:
        self._orthanc = orthanc
        self._folder = folder

    def offers(self, patient_id: str, modalities: Collection[str]) -> list[Offer]:
        return [
            Offer(
                series_uid=one.series_instance_uid,
                modality=one.modality,
                taken_at=moment(one.date, one.time),
                manufacturer=one.manufacturer,
                description=one.description,
            )
            for one in self._orthanc.series_of_patient(patient_id, modalities)
        ]

    def instances(self, offer: Offer) -> list[str]:
        return [one.sop_instance_uid for one in self._orthanc.instances_of(offer.series_uid)]

    def bring(self, offer: Offer, sop_uids: Sequence[str], gate: Gate) -> None:
        held = {o.sop_instance_uid: o.id for o in self._orthanc.instances_of(offer.series_uid)}
        there = [uid for uid in sop_uids if uid in held]
        _bring(lambda uid, into: self._orthanc.fetch(held[uid], into), there, gate, self._folder)


class _Web:
    def __init__(self, web: DicomWeb, folder: Path) -> None:
        self._web = web
        self._folder = folder

    def offers(self, patient_id: str, modalities: Collection[str]) -> list[Offer]:
        return [
            Offer(
                series_uid=one.series_instance_uid,
                study_uid=one.study_instance_uid,
                modality=one.modality,
                issuer=one.issuer,
                taken_at=moment(one.date, one.time),
                manufacturer=one.manufacturer,
                model=one.model,
                description=one.description,
            )
            for modality in modalities
            for one in self._web.series(patient_id=patient_id, modality=modality)
        ]

    def recent(self, since: date, until: date, studies: Studies) -> list[Listed]:
        """By one question for all studies, which has no end: `DicomWeb.series` takes none."""
        del until, studies
        return self._listed(self._web.series(modality="CT", since=since))

    def in_study(self, study_uid: str, since: date) -> list[Listed]:
        found = self._listed(self._web.series(study_instance_uid=study_uid, modality="CT"))
        return _made_since(since, found)

    @staticmethod
    def _listed(found: Iterable[FoundSeries]) -> list[Listed]:
        return [
            Listed(
                series_uid=one.series_instance_uid,
                study_uid=one.study_instance_uid,
                instances=one.count,
                taken_at=moment(one.date, one.time),
            )
            for one in found
            if one.study_instance_uid and one.modality in ("", "CT")
        ]

    def instances(self, offer: Offer) -> list[str]:
        found = self._web.instances(offer.study_uid, offer.series_uid)
        return [one.sop_instance_uid for one in found]

    def bring(self, offer: Offer, sop_uids: Sequence[str], gate: Gate) -> None:
        def fetch(uid: str, into: Path) -> Path:
            return self._web.fetch(offer.study_uid, offer.series_uid, uid, into)

        _bring(fetch, sop_uids, gate, self._folder)


class _Dimse:
    """By C-FIND, then C-GET; C-MOVE to our node where GET brings nothing.

    What comes by C-MOVE does not pass the gate: the archive's word whose it is has to do, and
    matching leaves out what is another's.
    """

    def __init__(self, peer: Peer, folder: Path) -> None:
        self._peer = peer
        self._folder = folder

    def offers(self, patient_id: str, modalities: Collection[str]) -> list[Offer]:
        studies = [
            one
            for one in self._peer.find_studies(patient_id=patient_id)
            if one.patient_id == patient_id
        ]
        return [
            _offered(study, one)
            for study in studies
            for one in self._peer.find_series(study_uid=study.study_uid)
            if one.modality in modalities
        ]

    def recent(self, since: date, until: date, studies: Studies) -> list[Listed]:
        """Study by study, as strict peers want it; a fault of one study holds up no other."""
        there = self._peer.find_studies(dates=f"{since:%Y%m%d}-{until:%Y%m%d}")
        for study in studies.to_ask(there):
            try:
                found = self._peer.find_series(study_uid=study.study_uid, modality="CT")
            except PeerUnreachableError:
                raise
            except PeerError as error:
                log.warning("study_not_listed", study=study.study_uid, cause=error.cause)
                studies.keep(study, None)
            else:
                studies.keep(study, [_listed(study, one) for one in found if _is_ct(one)])
        return studies.listed()

    def in_study(self, study_uid: str, since: date) -> list[Listed]:
        study = StudyFound(study_uid=study_uid, series=None, instances=None)
        found = self._peer.find_series(study_uid=study_uid, modality="CT")
        return _made_since(since, [_listed(study, one) for one in found if _is_ct(one)])

    def instances(self, offer: Offer) -> list[str]:
        found = self._peer.find_images(study_uid=offer.study_uid, series_uid=offer.series_uid)
        return [one.sop_uid for one in found]

    def bring(self, offer: Offer, sop_uids: Sequence[str], gate: Gate) -> None:
        where = {"study_uid": offer.study_uid, "series_uid": offer.series_uid}
        try:
            self._peer.get(**where, door=_NodeGate(gate, self._folder))
        except PeerUnreachableError:
            raise
        except PeerError as error:
            if gate.outcomes or gate.reasons:
                raise
            log.info("moved_instead", series=offer.series_uid, cause=error.cause)
            moved = self._peer.move(**where)
            gate.outcomes["stored"] += moved.completed
            gate.spend(moved.completed * SLICE_BYTES)


def _made_since(since: date, found: Iterable[Listed]) -> list[Listed]:
    return [one for one in found if one.taken_at is not None and one.taken_at.date() >= since]


def _is_ct(one: SeriesFound) -> bool:
    return one.modality in ("", "CT") and UID_FORM.fullmatch(one.series_uid) is not None


def _taken_at(study: StudyFound, one: SeriesFound) -> datetime | None:
    """By the series, else by its study."""
    dated = one if one.date else study
    return moment(dated.date, dated.time)


def _listed(study: StudyFound, one: SeriesFound) -> Listed:
    return Listed(
        series_uid=one.series_uid,
        study_uid=study.study_uid,
        instances=one.instances,
        taken_at=_taken_at(study, one),
    )


def _offered(study: StudyFound, one: SeriesFound) -> Offer:
    return Offer(
        series_uid=one.series_uid,
        study_uid=one.study_uid,
        modality=one.modality,
        issuer=study.issuer,
        taken_at=_taken_at(study, one),
        manufacturer=one.manufacturer,
        model=one.model,
        description=one.description,
    )


class _NodeGate:
    """The gate as the door of an association that we opened (see `node.Landing`)."""

    def __init__(self, gate: Gate, folder: Path) -> None:
        self._gate = gate
        self._folder = folder

    def incoming(self) -> Path:
        return self._folder / f"{uuid.uuid4().hex}.part"

    def take(self, landed: node.Landed, *, sender: node.Sender) -> Taken:
        del sender  # the settings say who it is
        if self._gate.take([landed.path]) == 1:
            return Taken(outcome="stored")
        return Taken(outcome="refused", cause="it is not what was asked for")


def _bring(
    fetch: Callable[[str, Path], Path], sop_uids: Sequence[str], gate: Gate, folder: Path
) -> None:
    """Fetches instances over HTTP: one first, which tells whose the series is, then the rest.

    Raises:
        PeerError: Some could not be fetched; the others are here.
    """
    faults: list[PeerError] = []
    for batch in _batches(sop_uids):
        with tempfile.TemporaryDirectory(dir=folder) as here:
            place = Path(here)

            def fetched(numbered: tuple[int, str], place: Path = place) -> Path | PeerError:
                number, uid = numbered
                try:
                    return fetch(uid, place / f"{number}.dcm")
                except PeerUnreachableError:
                    raise
                except PeerError as error:
                    return error

            came = in_parallel(fetched, list(enumerate(batch)))
            gate.take([one for one in came if isinstance(one, Path)])
        faults += [one for one in came if isinstance(one, PeerError)]
        if gate.closed:
            break
    if faults:
        raise faults[0]


def _batches(sop_uids: Sequence[str]) -> Iterator[Sequence[str]]:
    yield sop_uids[:1]
    for start in range(1, len(sop_uids), BATCH):
        yield sop_uids[start : start + BATCH]
