"""What is missing here is asked of the archives, before a person is asked.

A CBCT may come from the machine while its planning CT, structure set, plan and registration lie in
the PACS; and a series may come with a gap that the PACS does not have. Each archive of the settings
with ``fetch = true`` is asked for that by itself, once an hour for each fraction or series. What
came is looked at by matching as if somebody had sent it.

What to ask for and what may come in is decided by functions of values (`is_due`, `can_be_asked`,
`objects`, `scans`, `why_not_of_fraction`, `why_not_of_series`); `Fetcher` asks, and writes down
beforehand that it did, so that nothing is asked twice because something died.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import select

from contourcast.imaging.dicom.instance import CT_IMAGE, Header
from contourcast.imaging.errors import ContourcastError
from contourcast.service.index import cursors
from contourcast.service.index.database import now
from contourcast.service.index.tables import fraction, series
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.facts import OURS, PatientKey, SeriesFacts, series_facts
from contourcast.service.intake.matching import relation
from contourcast.service.intake.outcomes import NONE_OF_THESE
from contourcast.service.intake.rules import SiteRules, judge_series, read_rules
from contourcast.service.jobs.duties import Duty
from contourcast.service.pacs.destinations import (
    Archive,
    Destination,
    Surveyed,
    WebhookDestination,
    require_ready,
)
from contourcast.service.pacs.pulling import Puller
from contourcast.service.pacs.sources import Budget, Gate, Offer, Source, source_of
from contourcast.service.problems import PeerError, PeerUnreachableError
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

# In the order in which they are asked for: a plan names the set that was treated from.
OBJECTS: Final = ("RTPLAN", "RTSTRUCT", "REG")
# What more of the patient could settle, where there is nothing to choose from.
TO_BE_FETCHED: Final = ("planning_ct", "structure_set")
LOOK_S: Final = 5.0
# Fractions and series that one look asks for, so that a look stays short.
AT_A_LOOK: Final = 8
WILDCARDS: Final = frozenset("*?\\")
PATIENT_ID_CHARACTERS: Final = 64  # (0010,0020) is an LO, PS3.5 table 6.2-1

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """How often an archive is asked, and how much it may bring.

    Attributes:
        every: For one fraction or series, until it is asked again.
        away: Until an archive that did not answer is asked for anything.
        for_so_long: After which a question that is still open is a person's alone.
        objects_at_most: Series of plans, structure sets and registrations, of one fraction.
        scans_at_most: CT series of one fraction.
        bytes_at_most: Of one fraction; a planning CT of 300 slices has 150 MiB, one of ten phases
            ten times as much.
    """

    every: timedelta = timedelta(hours=1)
    away: timedelta = timedelta(minutes=5)
    for_so_long: timedelta = timedelta(days=7)
    objects_at_most: int = 24
    scans_at_most: int = 8
    bytes_at_most: int = 2 * 1024**3


DEFAULTS: Final = FetchSettings()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A fraction, or a series, of which something is missing here.

    Attributes:
        id: Of the fraction's revision; of the series its UID.
        series_uid: Of the CBCT; of the series with a gap.
        study_uid: In which that is.
        patient: Whose it is.
        patient_key: By which the index knows the patient.
        acquired_at: When the CBCT was taken; None: nobody knows.
        missing: UIDs that objects here refer to.
    """

    id: str
    series_uid: str
    study_uid: str
    patient: PatientKey
    patient_key: str
    acquired_at: datetime | None = None
    missing: frozenset[str] = field(default=frozenset())


# Decisions


def is_due(memory: dict[str, Any] | None, at: datetime) -> bool:
    """Whether an archive may be asked, by what is remembered of the last time."""
    return memory is None or datetime.fromisoformat(memory["next_at"]) <= at


def can_be_asked(patient: PatientKey) -> bool:
    """Whether a patient ID means itself alone in a query, and in every encoding."""
    number = patient.patient_id
    return (
        0 < len(number) <= PATIENT_ID_CHARACTERS
        and number.isascii()
        and number.isprintable()
        and not WILDCARDS & set(number)
    )


def wants_more(question: dict[str, Any]) -> bool:
    """Whether more of the patient could settle a fraction's question."""
    choices = {choice["value"] for choice in question.get("choices", ())} - {NONE_OF_THESE}
    return bool(question.get("missing")) or (
        question.get("question") in TO_BE_FETCHED and not choices
    )


def objects(wanted: Wanted, offers: Iterable[Offer]) -> list[Offer]:
    """The plans, structure sets and registrations to ask for; of each the newest first.

    What was made after the day of the CBCT comes last; what the archive itself says is another
    issuer's patient, or made by us, not at all.
    """
    chosen = [
        offer
        for offer in offers
        if offer.modality in OBJECTS
        and _may_be_of(offer, wanted.patient)
        and offer.manufacturer.strip().casefold() != OURS
    ]

    def rank(offer: Offer) -> tuple[int, bool]:
        return OBJECTS.index(offer.modality), _is_later(offer.taken_at, wanted.acquired_at)

    return sorted(_newest_first(chosen), key=rank)


def scans(
    wanted: Wanted, offers: Iterable[Offer], referred: Collection[str], rules: SiteRules
) -> list[Offer]:
    """The CT series to ask for: those that structure sets name; where none does, earlier ones.

    What the site's rules take for a CBCT, or what was taken after the day of this one, is no
    planning CT. Both are judged by what the archive says, and again by what its files say.
    """
    usable = [
        offer
        for offer in offers
        if offer.modality == "CT"
        and offer.series_uid != wanted.series_uid
        and _may_be_of(offer, wanted.patient)
        and not _why_no_planning_ct(wanted, _facts_of(offer), rules)
    ]
    named = [offer for offer in usable if offer.series_uid in referred]
    first = named or [
        offer
        for offer in usable
        if not referred and judge_series(_facts_of(offer), rules).verdict == "planning_ct"
    ]
    return _newest_first(first)


def why_not_of_fraction(header: Header, *, wanted: Wanted, offer: Offer, rules: SiteRules) -> str:
    """Why a file may not come in for a fraction; empty: it may."""
    why = why_not_of_series(header, wanted=wanted, series_uid=offer.series_uid)
    if why or header.sop_class_uid != CT_IMAGE:
        return why
    return _why_no_planning_ct(wanted, series_facts([header]), rules)


def why_not_of_series(header: Header, *, wanted: Wanted, series_uid: str) -> str:
    """Why a file may not come in as one of a series; empty: it may."""
    if header.series_instance_uid != series_uid:
        return "another series"
    if relation(wanted.patient, PatientKey.of(header.patient))[0] != "same":
        return "another patient"
    return ""


def _why_no_planning_ct(wanted: Wanted, facts: SeriesFacts, rules: SiteRules) -> str:
    if judge_series(facts, rules).verdict == "cbct":
        return "a CBCT"
    return "taken later" if _is_later(facts.acquired_at, wanted.acquired_at) else ""


def _may_be_of(offer: Offer, patient: PatientKey) -> bool:
    return not (offer.issuer and patient.issuer) or offer.issuer == patient.issuer


def _facts_of(offer: Offer) -> SeriesFacts:
    """An offered CT series as a site's rules ask of it."""
    return SeriesFacts(
        series_uid=offer.series_uid,
        study_uid=offer.study_uid,
        patient=PatientKey(patient_id=""),
        modality="CT",
        sop_class_uid=CT_IMAGE,
        frame_of_reference="",
        acquired_at=offer.taken_at,
        manufacturer=offer.manufacturer,
        model=offer.model,
        description=offer.description,
    )


def _is_later(one: datetime | None, other: datetime | None) -> bool:
    """Whether it is known to be of a later day; some files state the day alone."""
    return one is not None and other is not None and one.date() > other.date()


def _newest_first(offers: Iterable[Offer]) -> list[Offer]:
    return sorted(offers, key=lambda o: (o.taken_at or datetime.min, o.series_uid), reverse=True)


# Effects


def fetched_from(destinations: Sequence[Destination]) -> tuple[Archive, ...]:
    """Those that are asked for what is missing.

    An Orthanc that is watched gives plans and structure sets as they arrive; of the others CT
    series alone are found, so what belongs to those is asked for.
    """
    return tuple(
        one
        for one in destinations
        if not isinstance(one, WebhookDestination)
        and (one.fetch or (isinstance(one, Surveyed) and one.watch))
    )


def fetching(settings: ServiceSettings, records: Records) -> list[Duty]:
    """A duty for each archive that is asked.

    Raises:
        SettingsError: A credential that one of them needs is not there, or the rules are none.
    """
    archives = fetched_from(settings.destinations)
    require_ready(archives)
    rules = read_rules(settings.rules) if settings.rules else SiteRules()
    return [
        Duty(
            name=f"fetch-{archive.name}",
            every_s=LOOK_S,
            run=Fetcher(archive, settings, records, rules).look,
        )
        for archive in archives
    ]


class Fetcher:
    """Asks one archive; one thread of one process at a time.

    Args:
        archive: Whom to ask.
        settings: Where files lie on their way, and what is taken.
        records: What is here.
        rules: Of the site.
        bounds: How often, and how much.
    """

    def __init__(
        self,
        archive: Archive,
        settings: ServiceSettings,
        records: Records,
        rules: SiteRules,
        bounds: FetchSettings = DEFAULTS,
    ) -> None:
        self._to = archive
        self._records = records
        self._index = records.index
        self._rules = rules
        self._bounds = bounds
        self._folder = settings.data_folder / "incoming" / settings.worker_slot
        self._puller = Puller(archive.name, settings, records)
        self._arriving = Arriving(records.index, records.notices)
        self._evidence = Evidence(records.archive)
        self._away_until: datetime | None = None

    def look(self, at_time: datetime | None = None) -> int:
        """Asks for what is missing and may be asked for now; how many instances came.

        Raises:
            PeerUnreachableError: The archive does not answer; it is left alone for a while.
            ContourcastError: Nothing can be taken in at present; idem.
        """
        moment = at_time or now()
        if self._away_until is not None and moment < self._away_until:
            return 0
        waiting: list[tuple[Wanted, Callable[[Source, Wanted], list[Gate]]]] = [
            *((one, self._for_fraction) for one in self._fractions(moment)),
            *((one, self._for_series) for one in self._incomplete(moment)),
        ]
        due = [each for each in waiting if is_due(self._memory(each[0].id), moment)][:AT_A_LOOK]
        if not due:
            return 0
        with source_of(self._to, self._folder) as source:
            return sum(self._ask(source, one, how, moment) for one, how in due)

    def _ask(
        self,
        source: Source,
        wanted: Wanted,
        how: Callable[[Source, Wanted], list[Gate]],
        moment: datetime,
    ) -> int:
        """Asks for one fraction or series, and remembers it before and after."""
        self._remember(wanted.id, moment, self._bounds.every)
        try:
            gates = how(source, wanted)
        except PeerError as error:
            if isinstance(error, PeerUnreachableError):
                self._put_off(wanted.id, moment)
                raise
            log.warning("archive_not_asked", archive=self._to.name, cause=error.cause)
            gates = []
        except ContourcastError:  # of our disk, store or index: nothing is wrong with the archive
            self._put_off(wanted.id, moment)
            raise
        came = sum(gate.came for gate in gates)
        left_out = {why for gate in gates for why in gate.reasons}
        self._remember(
            wanted.id, moment, self._bounds.every, instances=came, left_out=sorted(left_out)
        )
        log.info(
            "fetched",
            archive=self._to.name,
            series=wanted.series_uid,
            instances=came,
            left_out=sorted(left_out),
        )
        return came

    # What is missing

    def _fractions(self, moment: datetime) -> list[Wanted]:
        """Fractions whose open question more of the patient could settle, the newest first."""
        query = (
            select(fraction, series.c.facts_json, series.c.study_uid)
            .join(series, series.c.uid == fraction.c.series_uid)
            .where(
                fraction.c.state == "needs_person",
                fraction.c.made_at >= (moment - self._bounds.for_so_long).isoformat(),
            )
            .order_by(fraction.c.made_at.desc())
        )
        with self._index.read() as at:
            rows = at.execute(query).all()
        found = [
            Wanted(
                id=row.revision_id,
                series_uid=row.series_uid,
                study_uid=row.study_uid,
                patient=_patient(row.facts_json),
                patient_key=row.patient_key,
                acquired_at=datetime.fromisoformat(row.acquired_at) if row.acquired_at else None,
                missing=frozenset(row.question_json.get("missing", ())),
            )
            for row in rows
            if wants_more(row.question_json)
        ]
        return [one for one in found if can_be_asked(one.patient)]

    def _incomplete(self, moment: datetime) -> list[Wanted]:
        """Series with a gap that were not pulled again, from whatever archive."""
        query = select(series).where(
            series.c.state == "incomplete",
            series.c.pulled_again_at.is_(None),
            series.c.last_arrival_at >= (moment - self._bounds.for_so_long).isoformat(),
        )
        with self._index.read() as at:
            rows = at.execute(query.order_by(series.c.last_arrival_at.desc())).all()
        return [
            Wanted(
                id=row.uid,
                series_uid=row.uid,
                study_uid=row.study_uid,
                patient=_patient(row.facts_json),
                patient_key=row.patient_key,
            )
            for row in rows
        ]

    # Asking

    def _for_fraction(self, source: Source, wanted: Wanted) -> list[Gate]:
        """The patient's plans and sets first, since those name the planning CT."""
        budget = Budget(series=self._bounds.objects_at_most, size_bytes=self._bounds.bytes_at_most)
        offers = source.offers(wanted.patient.patient_id, ("CT", *OBJECTS))
        gates: list[Gate] = []
        for offer in objects(wanted, offers):
            gates += self._bring(source, wanted, offer, budget)
        budget.series = self._bounds.scans_at_most
        referred = wanted.missing | self._referred(wanted)
        for offer in scans(wanted, offers, referred, self._rules):
            gates += self._bring(source, wanted, offer, budget)
        return gates

    def _for_series(self, source: Source, wanted: Wanted) -> list[Gate]:
        """A series once more; one that has nothing more to give is left to other archives."""
        budget = Budget(series=1, size_bytes=self._bounds.bytes_at_most)
        judge = partial(why_not_of_series, wanted=wanted, series_uid=wanted.series_uid)
        offer = Offer(series_uid=wanted.series_uid, study_uid=wanted.study_uid)
        gates = self._pull(source, offer, judge, budget)
        if gates:
            self._arriving.pulled_again(wanted.series_uid)
        return gates

    def _bring(self, source: Source, wanted: Wanted, offer: Offer, budget: Budget) -> list[Gate]:
        """One series for a fraction; a fault of one series holds up no other."""
        judge = partial(why_not_of_fraction, wanted=wanted, offer=offer, rules=self._rules)
        try:
            return self._pull(source, offer, judge, budget)
        except PeerUnreachableError:
            raise
        except PeerError as error:
            log.warning("series_not_fetched", series=offer.series_uid, cause=error.cause)
            return []

    def _pull(
        self, source: Source, offer: Offer, judge: Callable[[Header], str], budget: Budget
    ) -> list[Gate]:
        """What the archive has of a series and we have not; nothing, where that is nothing."""
        gate = self._puller.pull(source, offer, judge, budget).gate
        return [] if gate is None else [gate]

    def _referred(self, wanted: Wanted) -> frozenset[str]:
        """The series on which the patient's structure sets, as far as they are here, were drawn."""
        known = self._evidence.of_patient(wanted.patient_key)
        return frozenset(
            uid
            for drawn in known.structure_sets
            if drawn.usable and relation(wanted.patient, drawn.patient)[0] == "same"
            for uid in drawn.referenced_series_uids
        )

    # What is remembered

    def _memory(self, what: str) -> dict[str, Any] | None:
        with self._index.read() as at:
            return cursors.note(at, self._name(what))

    def _remember(self, what: str, moment: datetime, wait: timedelta, **more: Any) -> None:
        value = {"asked_at": moment.isoformat(), "next_at": (moment + wait).isoformat(), **more}
        with self._index.write() as at:
            cursors.write(self._index, at, self._name(what), value)

    def _put_off(self, what: str, moment: datetime) -> None:
        self._away_until = moment + self._bounds.away
        self._remember(what, moment, self._bounds.away)

    def _name(self, what: str) -> str:
        return f"fetched:{self._to.name}:{what}"


def _patient(facts: dict[str, Any]) -> PatientKey:
    identity = facts["patient"]
    return PatientKey(
        patient_id=identity["patient_id"].strip(" \0"),
        issuer=identity["issuer"].strip(" \0"),
        name=identity["name"].strip(" \0"),
        birth_date=identity["birth_date"].strip(" \0"),
    )
