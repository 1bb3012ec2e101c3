"""Archives that keep no diary are asked, again and again, what they have of the last days.

Over DICOMweb and DIMSE an archive tells which CT series it has and how many instances it counts in
each. Some machines file a CBCT under the study of its planning CT, or all fractions under one: the
studies of those who are under treatment are asked too, in turn. What is new or has grown is pulled,
and what it counts is told to whoever decides that a series is whole (completeness, rule 4). What
belongs to a CBCT is asked for by `fetching`.

What to do is decided by functions of values (`is_lacking`, `is_due`, `put_off`, `in_turn`);
`Survey` asks, and writes down beforehand what it is about to pull, so that a series by which a
worker dies waits like one that fails, and holds up nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import func, select, union_all

from contourcast.imaging.dicom.instance import Header
from contourcast.imaging.errors import ContourcastError
from contourcast.service.index import cursors
from contourcast.service.index.tables import course, fraction, instance, series
from contourcast.service.intake.arriving import Arriving
from contourcast.service.pacs import hints
from contourcast.service.pacs.destinations import Surveyed
from contourcast.service.pacs.pulling import Pulled, Puller
from contourcast.service.pacs.sources import Budget, Listed, Listing, Offer, Studies, listing_of
from contourcast.service.problems import PeerError, PeerUnreachableError
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

# Series that one look pulls, so that today's fractions never wait long for a crowd.
SERIES_AT_ONCE: Final = 16
# Counts that one look writes down, the newest; each is two small statements of one transaction.
COUNTS_AT_ONCE: Final = 200
# Older studies that one look asks for: of 200 patients, each comes up within half an hour.
STUDIES_IN_TURN: Final = 16
# Since when there was a CBCT, or a course began.
UNDER_TREATMENT: Final = timedelta(days=60)
# Of one series; a CBCT of 200 slices has 100 MiB.
BYTES_AT_MOST: Final = 2 * 1024**3
# A study may be dated by the clock of another zone.
ONE_MORE: Final = timedelta(days=1)
LONGEST: Final = timedelta(hours=1)
AWAY_LONGEST: Final = timedelta(minutes=15)
# What was brought and may not come in is not asked for again meanwhile, unless it grows.
JUDGED_FOR: Final = timedelta(days=1)
# What has long been due is no longer listed.
FORGOTTEN_AFTER: Final = timedelta(days=1)
PUT_OFF_AT_MOST: Final = 2000
ROWS: Final = 500
OPEN: Final = frozenset({"arriving", "incomplete"})

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Here:
    """What we have of a series.

    Attributes:
        state: Of the series; empty: nothing of it ever came.
        revised: Whether it was whole once.
    """

    instances: int = 0
    state: str = ""
    revised: bool = False

    @property
    def thrown_away(self) -> bool:
        """Whether it was drawn on, and its images went in time (keeping/retention.py)."""
        return self.revised and self.instances == 0


NOTHING: Final = Here()


@dataclass(frozen=True, kw_only=True)
class PutOff:
    """A series that waits.

    Attributes:
        instances: How many the archive counted then.
        times: How often it was tried in vain.
    """

    instances: int | None
    times: int
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Turn:
    """When an archive is looked at next, by whichever worker.

    Attributes:
        next_at: None: at once.
        failures: Looks in a row that came to nothing.
        hints: How many of the archive's hints were followed.
    """

    next_at: datetime | None = None
    failures: int = 0
    hints: int = 0


# Decisions


def is_lacking(listed: Listed, here: Here) -> bool:
    """Whether an archive has, or may have, more of a series than we are to have."""
    if here.thrown_away:
        return False
    return listed.instances is None or listed.instances > here.instances


def is_due(listed: Listed, off: PutOff | None, at: datetime) -> bool:
    """Whether a series need not wait: it did, or it is another than the one that failed."""
    return off is None or off.until <= at or off.instances != listed.instances


def put_off(before: PutOff | None, listed: Listed, at: datetime, every: timedelta) -> PutOff:
    """A series that failed once more waits twice as long."""
    times = 1 if before is None else before.times + 1
    wait = min(every * 2 ** min(times, 10), LONGEST)
    return PutOff(instances=listed.instances, times=times, until=at + wait)


def in_turn(due: Iterable[Listed], offs: Mapping[str, PutOff]) -> list[Listed]:
    """The newest first, and after all of them those that failed before."""
    newest = sorted(due, key=lambda one: one.taken_at or datetime.min, reverse=True)
    return sorted(
        newest, key=lambda one: offs[one.series_uid].times if one.series_uid in offs else 0
    )


def older_in_turn(
    studies: Iterable[str], asked: Mapping[str, int], again: Collection[str]
) -> list[str]:
    """Those to ask now: what grew when it was last asked, then what was not asked for longest.

    Args:
        studies: Of those under treatment, the newest first.
        asked: At which look each was asked last.
        again: Where something came at the last look.
    """
    turn = sorted(studies, key=lambda uid: (uid not in again, asked.get(uid, 0)))
    return turn[:STUDIES_IN_TURN]


def why_not(header: Header, *, series_uid: str) -> str:
    """Why a file may not come in as one of a series; empty: it may."""
    return "" if header.series_instance_uid == series_uid else "another series"


# Effects


class Survey:
    """Asks one archive what it has; one thread of one process at a time.

    Args:
        archive: Whom to ask.
        settings: Where files lie on their way, what is taken, and the site's clocks.
        records: What is here.
    """

    def __init__(self, archive: Surveyed, settings: ServiceSettings, records: Records) -> None:
        self._to = archive
        self._every = timedelta(seconds=archive.watch_every_s)
        self._zone = settings.zone
        self._folder = settings.data_folder / "incoming" / settings.worker_slot
        self._puller = Puller(archive.name, settings, records)
        self._notes = _Notes(records, archive.name)
        self._archive = records.archive
        self._now = records.index.now
        self._studies = Studies()
        self._looks = 0
        self._asked: dict[str, int] = {}
        self._again: frozenset[str] = frozenset()

    def look(self, at_time: datetime | None = None) -> int:
        """Asks, where it is time to; how many instances came.

        Raises:
            PeerUnreachableError: The archive does not answer; it is left alone for a while.
            PeerError: It cannot be asked; idem.
            ContourcastError: Nothing can be taken in at present; idem.
        """
        at = at_time or self._now()
        turn, told = self._notes.turn()
        hinted = told != turn.hints and turn.failures == 0
        if turn.next_at is not None and at < turn.next_at and not hinted:
            return 0
        turn = replace(turn, next_at=at + self._every, hints=told)
        self._notes.set_turn(turn)
        try:
            came, done = self._take(at)
        except ContourcastError:
            wait = min(self._every * 2 ** min(turn.failures + 1, 10), AWAY_LONGEST)
            failed = replace(turn, next_at=at + wait, failures=turn.failures + 1)
            self._notes.set_turn(failed)
            raise
        ended = at_time or self._now()
        self._notes.set_turn(
            replace(turn, next_at=ended + self._every if done else ended, failures=0)
        )
        return came

    def _take(self, at: datetime) -> tuple[int, bool]:
        """How many instances came, and whether all was looked at that could be."""
        today = at.astimezone(self._zone).date()
        since = today - timedelta(days=self._to.watch_days) - ONE_MORE
        with listing_of(self._to, self._folder) as source:
            found = source.recent(since, today + ONE_MORE, self._studies)
            found += self._filed_elsewhere(source, since, {one.study_uid for one in found}, at)
            listed = {one.series_uid: one for one in found}
            here = self._notes.here(listed)
            lacking = {
                uid: one for uid, one in listed.items() if is_lacking(one, here.get(uid, NOTHING))
            }
            offs = {
                uid: off
                for uid, off in self._notes.put_offs(at).items()
                if uid in lacking or uid not in listed
            }
            due = [one for uid, one in lacking.items() if is_due(one, offs.get(uid), at)]
            chosen = in_turn(due, offs)[:SERIES_AT_ONCE]
            for one in chosen:
                before = offs.get(one.series_uid)
                offs[one.series_uid] = put_off(before, one, at, self._every)
            arriving = [one for uid, one in listed.items() if here.get(uid, NOTHING).state in OPEN]
            self._notes.set(offs, arriving)
            pulled = [(one, self._pull(source, one, offs, at)) for one in chosen]
        told = {one.series_uid for one in arriving if one.instances is not None}
        counts = [
            replace(one, instances=one.instances or len(some.there))
            for one, some in pulled
            if one.series_uid not in told and some.there
        ]
        self._notes.set(offs, counts)
        self._again = frozenset(one.study_uid for one in (*arriving, *chosen))
        self._studies.ask_again(self._again)
        done = len(due) == len(chosen) and self._studies.done
        return sum(some.gate.came for _, some in pulled if some.gate is not None), done

    def _filed_elsewhere(
        self, source: Listing, since: date, told: Collection[str], at: datetime
    ) -> list[Listed]:
        """What was made in these days, and lies in an older study of somebody under treatment."""
        older = [uid for uid in self._notes.studies(at - UNDER_TREATMENT) if uid not in told]
        self._looks += 1
        self._asked = {uid: self._asked[uid] for uid in older if uid in self._asked}
        found: list[Listed] = []
        for study in older_in_turn(older, self._asked, self._again):
            self._asked[study] = self._looks
            try:
                found += source.in_study(study, since)
            except PeerUnreachableError:
                raise
            except PeerError as error:
                log.warning("study_not_listed", study=study, code=error.code, cause=error.cause)
        return found

    def _pull(self, source: Listing, one: Listed, offs: dict[str, PutOff], at: datetime) -> Pulled:
        """Pulls a series, and decides how long it waits; a fault of one holds up no other."""
        offer = Offer(series_uid=one.series_uid, study_uid=one.study_uid)
        budget = Budget(series=1, size_bytes=BYTES_AT_MOST)
        judge = partial(why_not, series_uid=one.series_uid)
        try:
            pulled = self._puller.pull(source, offer, judge, budget)
        except PeerUnreachableError:
            raise
        except PeerError as error:
            log.warning(
                "series_not_pulled",
                archive=self._to.name,
                series=one.series_uid,
                code=error.code,
                cause=error.cause,
            )
            return Pulled()
        if pulled.gate is not None:
            log.info(
                "series_pulled",
                archive=self._to.name,
                series=one.series_uid,
                instances=pulled.gate.came,
            )
        off = self._after(one, pulled, offs.pop(one.series_uid), at)
        if off is not None:
            offs[one.series_uid] = off
        return pulled

    def _after(self, one: Listed, pulled: Pulled, off: PutOff, at: datetime) -> PutOff | None:
        """How long a series waits that was pulled; None: it does not, for all of it is here."""
        here = len(self._archive.known(pulled.there))
        lacking = len(pulled.there) - here
        if one.instances is not None and here >= one.instances:
            return None
        if pulled.gate is None:
            return off
        turned_away = pulled.gate.outcomes["refused"] + pulled.gate.outcomes["conflict"]
        if lacking and (pulled.gate.closed or turned_away >= lacking):
            return replace(off, until=at + JUDGED_FOR)
        if pulled.gate.came:
            return replace(off, times=1, until=at + self._every)
        return off


class _Notes:
    """What outlives a look, and what is here."""

    def __init__(self, records: Records, archive: str) -> None:
        self._index = records.index
        self._arriving = Arriving(records.index, records.notices)
        self._archive = archive

    def turn(self) -> tuple[Turn, int]:
        """When it is looked at next, and how many hints it gave."""
        with self._index.read() as at:
            kept = cursors.note(at, self._turn_of)
            told = hints.count(at, self._archive)
        if kept is None:
            return Turn(hints=told), told
        return Turn(**kept | {"next_at": datetime.fromisoformat(kept["next_at"])}), told

    def set_turn(self, turn: Turn) -> None:
        """Writes down when it is looked at next."""
        assert turn.next_at is not None
        value = {
            "next_at": turn.next_at.isoformat(),
            "failures": turn.failures,
            "hints": turn.hints,
        }
        with self._index.write() as at:
            cursors.write(self._index, at, self._turn_of, value)

    def put_offs(self, at_time: datetime) -> dict[str, PutOff]:
        """The series that wait, or waited, by their UIDs."""
        with self._index.read() as at:
            kept = cursors.note(at, self._put_off_of) or {}
        offs = {
            uid: PutOff(instances=number, times=times, until=datetime.fromisoformat(until))
            for uid, (number, times, until) in kept.items()
        }
        return {uid: off for uid, off in offs.items() if off.until > at_time - FORGOTTEN_AFTER}

    def set(self, offs: Mapping[str, PutOff], counts: Sequence[Listed]) -> None:
        """Writes down in one transaction what waits, and what the archive counts."""
        last = sorted(offs.items(), key=lambda named: named[1].until)[-PUT_OFF_AT_MOST:]
        value: dict[str, Any] = {
            uid: [off.instances, off.times, off.until.isoformat()] for uid, off in last
        }
        newest = in_turn((one for one in counts if one.instances is not None), {})
        with self._index.write() as at:
            cursors.write(self._index, at, self._put_off_of, value)
            for one in newest[:COUNTS_AT_ONCE]:
                assert one.instances is not None
                self._arriving.counted_within(at, one.series_uid, one.instances)

    def studies(self, since: datetime) -> list[str]:
        """Of the planning CT and the last CBCT of each course that goes on, the newest first."""
        last = (
            select(fraction.c.course_id, func.max(fraction.c.made_at).label("made_at"))
            .where(fraction.c.course_id.is_not(None))
            .group_by(fraction.c.course_id)
            .subquery()
        )
        planned = select(
            course.c.planning_series_uid.label("series_uid"),
            func.coalesce(last.c.made_at, course.c.made_at).label("at"),
        ).select_from(course.outerjoin(last, last.c.course_id == course.c.id))
        scanned = select(fraction.c.series_uid, fraction.c.made_at).join(
            last,
            (fraction.c.course_id == last.c.course_id) & (fraction.c.made_at == last.c.made_at),
        )
        used = union_all(planned, scanned).subquery()
        query = (
            select(series.c.study_uid)
            .join(used, series.c.uid == used.c.series_uid)
            .where(used.c.at >= since.isoformat(), series.c.study_uid != "")
            .group_by(series.c.study_uid)
            .order_by(func.max(used.c.at).desc(), series.c.study_uid)
        )
        with self._index.read() as at:
            return [row.study_uid for row in at.execute(query)]

    def here(self, series_uids: Collection[str]) -> dict[str, Here]:
        """What is here of series, by their UIDs; nothing of those of which nothing ever came."""
        wanted, found = sorted(set(series_uids)), dict[str, Here]()
        with self._index.read() as at:
            for start in range(0, len(wanted), ROWS):
                batch = wanted[start : start + ROWS]
                held = {
                    row.series_uid: int(row.instances)
                    for row in at.execute(
                        select(instance.c.series_uid, func.count().label("instances"))
                        .where(instance.c.series_uid.in_(batch))
                        .group_by(instance.c.series_uid)
                    )
                }
                rows = at.execute(
                    select(series.c.uid, series.c.state, series.c.revision).where(
                        series.c.uid.in_(batch)
                    )
                )
                found |= {
                    row.uid: Here(
                        instances=held.get(row.uid, 0),
                        state=row.state,
                        revised=row.revision is not None,
                    )
                    for row in rows
                }
        return found

    @property
    def _turn_of(self) -> str:
        return f"survey:{self._archive}"

    @property
    def _put_off_of(self) -> str:
        return f"put-off:{self._archive}"
