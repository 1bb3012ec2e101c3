"""The truth about what an Orthanc has: its diary, and a look back over the last days.

An event from a PACS is a hint: Orthanc forgets that a series became stable when it is killed before
it says so. What is read here is what its database holds, and each look takes what we lack.

What to do is decided by functions of values (`read_page`, `is_due`, `missing`, `counted`);
`Reconciler` asks Orthanc, brings files to the door, and writes down what became of it through
`Cursor`, whose `set` is one transaction. Whatever dies in between: the next look finds the same
again, and what is here already comes in no second time.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol

import structlog

from contourcast.imaging.errors import ContourcastError
from contourcast.service.pacs.connection import in_parallel
from contourcast.service.pacs.door import Door, Outcome
from contourcast.service.pacs.orthanc import (
    PAGE,
    Change,
    Changes,
    HeldInstance,
    HeldSeries,
    Orthanc,
)
from contourcast.service.problems import PeerError, PeerUnreachableError

# Files that are pulled and then taken together.
BATCH: Final = 64
# Series of a look back that one look handles, so that today's fractions never wait for it.
SERIES_AT_ONCE: Final = 16
# The two looks of rule 4 of completeness are at least so far apart.
SETTLED_AFTER: Final = timedelta(seconds=15)
BACK_EVERY: Final = timedelta(hours=1)
BACK: Final = timedelta(days=7)
# Instances whose files were found to differ and judged by the door are not pulled for that again.
COMPARED_AT_MOST: Final = 100_000
MODALITIES: Final = ("CT", "RTSTRUCT", "RTPLAN", "REG")

Diary = Literal["goes on", "has a gap", "is another"]
Reason = Literal["start", "hour", "has a gap", "is another"]

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far the diary is read.

    Attributes:
        seq: The number of the last line that was read, or that ever was; 0: there was none.
        mark: That line; empty when it was not there. When the line of this number is another one by
            now, the database is not the one that we read, but one that was restored.
    """

    seq: int
    mark: str

    @property
    def since(self) -> int:
        """What to ask for, so that the line at which we stopped comes first."""
        return self.seq - 1 if self.mark else self.seq


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one page of the diary says that we have to look at.

    Attributes:
        series: Ids of series that are new or became stable.
        instances: Ids of new instances, whose series are still to be asked for.
        position: Where to read on; of no use when the diary is another.
        done: Whether nothing follows at present.
    """

    diary: Diary
    series: tuple[str, ...]
    instances: tuple[str, ...]
    position: Position
    done: bool


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many instances the archive reports of a series (completeness, rule 4).

    Attributes:
        orthanc_id: What the archive calls the series.
        first_at: Since when it has reported this number.
        last_at: When it last did.
    """

    series_instance_uid: str
    orthanc_id: str
    instances: int
    first_at: datetime
    last_at: datetime

    @property
    def settled(self) -> bool:
        """Whether two looks far enough apart saw the same number."""
        return self.last_at - self.first_at >= SETTLED_AFTER


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What outlives a look.

    Attributes:
        position: None before the first look.
        waiting: The last counts of series that are not whole yet; they are counted again.
        failed: Ids of series that could not be pulled; they are tried again.
    """

    position: Position | None
    waiting: tuple[Count, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found and did.

    Attributes:
        position: How far the diary is read now.
        done: Whether all was looked at that there is at present; if not, look again at once.
        back: Why the last days are looked through, too; None when that did not begin now.
        counts: Of each series that was looked at.
        outcomes: How many files were stored, already here, in conflict, or refused.
        refused: SOP Instance UIDs that were not taken, for `Holdings.known` to remember.
        failed: Ids of series that could not be pulled; what `Memory` said before is replaced.
    """

    position: Position
    done: bool
    back: Reason | None = None
    counts: tuple[Count, ...] = ()
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


class Holdings(Protocol):
    """What we have."""

    def known(self, series_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs that need not be pulled: held, refused for good, or made by us."""
        ...

    def md5(self, sop_instance_uid: str) -> str:
        """The digest of the file that we hold under a UID; empty: it is not to be compared."""
        ...


class Cursor(Protocol):
    """Keeps what outlives a look in the database in which the effects of looks are."""

    def get(self) -> Memory:
        """What the last look left."""
        ...

    def set(self, look: Look) -> None:
        """Writes down position, counts, refusals and failures, in one transaction."""
        ...


# ------------------------------------------------------------------------------------- decisions


def position_at(end: Changes) -> Position:
    """The position that has read everything up to the last line of a page."""
    if not end.lines:
        return Position(seq=end.last, mark="")
    return Position(seq=end.lines[-1].seq, mark=mark_of(end.lines[-1]))


def mark_of(line: Change) -> str:
    """What tells a line from the line of the same number in another database."""
    return f"{line.kind} {line.resource} {line.at}"


def read_page(position: Position, page: Changes) -> Reading:
    """Reads what follows ``position.since``.

    A line at which we stopped may be gone, with the series that it spoke of or with all lines: then
    others may be gone, too. That does not hold up those that are there.
    """
    first = page.lines[0] if page.lines else None
    diary: Diary = "goes on"
    if page.last < position.seq:
        diary = "is another"
    elif position.mark:
        if first is None or first.seq > position.seq:
            diary = "has a gap"
        elif mark_of(first) != position.mark:
            diary = "is another"
    elif first is None and page.last > position.seq:
        diary = "has a gap"
    fresh = [line for line in page.lines if line.seq > position.seq]
    return Reading(
        diary=diary,
        series=_each(line for line in fresh if line.kind in ("NewSeries", "StableSeries")),
        instances=_each(line for line in fresh if line.kind == "NewInstance"),
        position=position_at(page) if fresh or diary != "goes on" else position,
        done=page.done,
    )


def is_due(last_back: datetime | None, at: datetime) -> Reason | None:
    """Whether to look through the last days again, and why."""
    if last_back is None:
        return "start"
    return "hour" if at - last_back >= BACK_EVERY else None


def missing(held: HeldSeries, known: Collection[str]) -> tuple[HeldInstance, ...]:
    """The instances of a series that the archive has and we have not."""
    have = frozenset(known)
    return tuple(one for one in held.instances if one.sop_instance_uid not in have)


def counted(before: Count | None, held: HeldSeries, at: datetime) -> Count:
    """The count after a look, from the count before it."""
    if before is not None and before.instances == held.count and before.last_at <= at:
        return replace(before, orthanc_id=held.id, last_at=at)
    return Count(
        series_instance_uid=held.series_instance_uid,
        orthanc_id=held.id,
        instances=held.count,
        first_at=at,
        last_at=at,
    )


def _each(lines: Iterable[Change]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.resource for line in lines))


# --------------------------------------------------------------------------------------- effects


class Reconciler:
    """Takes from one Orthanc what we lack; one thread of one process at a time.

    Args:
        archive: Whom to ask.
        door: Where files are brought to.
        holdings: What we have.
        cursor: What outlives a look.
        folder: Where files lie until the door has taken them; on the disk of the store.
        modalities: What we take at all.
    """

    def __init__(
        self,
        archive: Orthanc,
        door: Door,
        holdings: Holdings,
        cursor: Cursor,
        *,
        folder: Path,
        modalities: Collection[str] = MODALITIES,
    ) -> None:
        self._archive = archive
        self._door = door
        self._holdings = holdings
        self._cursor = cursor
        self._folder = folder
        self._modalities = tuple(modalities)
        self._last_back: datetime | None = None
        self._behind: list[str] = []
        self._compared: set[tuple[str, str]] = set()

    def look(self, at: datetime) -> Look:
        """Reads one page of the diary, takes what is new, and counts what waits.

        Args:
            at: The time, which only decides when to look back and how far apart counts are.

        Raises:
            PeerUnreachableError: Orthanc is down; nothing is forgotten, look again later.
            PeerError: Its diary cannot be read.
            DiskFullError: The door takes nothing at present; idem.
            BusyError: Idem.
        """
        memory = self._cursor.get()
        reading = self._read(memory.position)
        back = is_due(self._last_back, at) if reading.diary == "goes on" else reading.diary
        if back is not None:
            found = self._archive.find_series(since=(at - BACK).date(), modalities=self._modalities)
            self._behind = list(dict.fromkeys([*self._behind, *found]))
        pull = _Pull(at=at, before={count.orthanc_id: count for count in memory.waiting})
        fresh = self._fresh(reading, pull)
        behind = self._behind[:SERIES_AT_ONCE]
        for series in dict.fromkeys([*fresh, *memory.failed, *pull.before, *behind]):
            self._take(series, pull, compare=series in fresh)
        look = Look(
            position=reading.position,
            done=reading.done and len(behind) == len(self._behind),
            back=back,
            counts=tuple(pull.counts),
            outcomes=dict(pull.outcomes),
            refused=tuple(pull.refused),
            failed=tuple(pull.failed),
        )
        self._cursor.set(look)
        self._behind = self._behind[len(behind) :]
        if back is not None:
            self._last_back = at
        if pull.lost:
            self._last_back = None
        return look

    def _read(self, position: Position | None) -> Reading:
        """A page of the diary; at first, and when it is another one, only where it ends."""
        if position is not None:
            page = self._archive.changes(since=position.since, limit=PAGE)
            reading = read_page(position, page)
            if reading.diary != "is another":
                return reading
        return Reading(
            diary="goes on" if position is None else "is another",
            series=(),
            instances=(),
            position=position_at(self._archive.last_change()),
            done=True,
        )

    def _fresh(self, reading: Reading, pull: _Pull) -> dict[str, None]:
        """The series that a page speaks of; the list of a series settles all its instances."""
        fresh: dict[str, None] = {}
        left = dict.fromkeys(reading.instances)
        for series in reading.series:
            self._settle(series, fresh, left, pull)
        while left:
            instance = next(iter(left))
            del left[instance]
            try:
                series_of_it = self._archive.series_of(instance)
            except PeerUnreachableError:
                raise
            except PeerError as error:
                log.warning("instance_not_placed", orthanc_id=instance, code=error.code)
                pull.lost = True
                continue
            if series_of_it is not None and series_of_it not in fresh:
                self._settle(series_of_it, fresh, left, pull)
        return fresh

    def _settle(
        self, series: str, fresh: dict[str, None], left: dict[str, None], pull: _Pull
    ) -> None:
        fresh[series] = None
        held = self._held(series, pull)
        for one in held.instances if held else ():
            left.pop(one.id, None)

    def _held(self, series: str, pull: _Pull) -> HeldSeries | None:
        """What the archive holds of a series, asked once in a look; None: gone, or failed."""
        if series not in pull.held:
            try:
                pull.held[series] = self._archive.series(series)
            except PeerUnreachableError:
                raise
            except PeerError as error:
                pull.fail(series, error)
                pull.held[series] = None
        return pull.held[series]

    def _take(self, series: str, pull: _Pull, *, compare: bool) -> None:
        """Takes what we lack of one series; a fault of one series holds up no other."""
        held = self._held(series, pull)
        if held is None or held.modality not in self._modalities:
            return
        pull.counts.append(counted(pull.before.get(series), held, pull.at))
        known = self._holdings.known(held.series_instance_uid)
        differing = self._differing(held, known) if compare else {}
        wanted = [*missing(held, known), *differing]
        for start in range(0, len(wanted), BATCH):
            self._bring(series, wanted[start : start + BATCH], pull)
        if series not in pull.failed:
            if len(self._compared) > COMPARED_AT_MOST:
                self._compared.clear()
            self._compared.update((one.id, md5) for one, md5 in differing.items())

    def _differing(self, held: HeldSeries, known: Collection[str]) -> dict[HeldInstance, str]:
        """Instances that both have, in files that differ, with the archive's digest.

        Orthanc tells nobody that two senders gave it two images of one UID; the door does.
        """
        have = frozenset(known)
        ours = [
            (one, md5)
            for one in held.instances
            if one.sop_instance_uid in have and (md5 := self._holdings.md5(one.sop_instance_uid))
        ]
        theirs = in_parallel(lambda pair: self._archive.md5(pair[0].id), ours)
        return {
            one: other
            for (one, md5), other in zip(ours, theirs, strict=True)
            if other not in ("", md5) and (one.id, other) not in self._compared
        }

    def _bring(self, series: str, instances: Sequence[HeldInstance], pull: _Pull) -> None:
        """Pulls some instances and brings to the door those that came."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:

            def fetched(one: HeldInstance) -> Path | PeerError:
                try:
                    return self._archive.fetch(one.id, Path(folder) / f"{one.id}.dcm")
                except PeerUnreachableError:
                    raise
                except PeerError as error:
                    return error

            came = list(zip(instances, in_parallel(fetched, instances), strict=True))
            here = [(one, path) for one, path in came if isinstance(path, Path)]
            taken = self._door.take([path for _, path in here], source=self._archive.name)
        for error in (error for _, error in came if isinstance(error, PeerError)):
            pull.fail(series, error)
        for (one, _), answer in zip(here, taken, strict=True):
            pull.outcomes[answer.outcome] += 1
            if answer.outcome == "refused":
                pull.refused.append(one.sop_instance_uid)


@dataclass(kw_only=True)
class _Pull:
    """What gathers in the course of one look.

    Attributes:
        lost: Whether an instance could not be placed: only looking back finds its series.
    """

    at: datetime
    before: dict[str, Count]
    held: dict[str, HeldSeries | None] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    failed: dict[str, None] = field(default_factory=dict)
    lost: bool = False

    def fail(self, series: str, error: PeerError) -> None:
        if series not in self.failed:
            log.warning("series_not_pulled", orthanc_id=series, code=error.code, cause=error.cause)
        self.failed[series] = None


def watch(
    reconciler: Reconciler, *, stop: threading.Event, hint: threading.Event, every_s: float
) -> None:
    """Looks again and again until told to stop; an archive that is down is asked again.

    Args:
        reconciler: Looks.
        stop: Ends it; whoever sets it sets ``hint``, too.
        hint: An event of the archive came: the next look is now.
        every_s: Between looks without a hint.
    """
    while not stop.is_set():
        hint.clear()
        done = True
        try:
            done = reconciler.look(datetime.now(UTC)).done
        except ContourcastError as error:
            log.warning("archive_not_looked_at", code=error.code, cause=error.cause)
        if done and not stop.is_set():
            hint.wait(every_s)
