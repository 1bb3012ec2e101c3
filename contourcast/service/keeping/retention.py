"""What is thrown away in time, and never silently (CLINICAL_SERVICE §5.3).

Images of a course go a while after its last fraction, if the archive of the department was asked
and holds the same pixels; results of steps go sooner, for they can be made again. Structure sets,
plans, registrations, results, reports, what was set aside, and the record of who did what are no
part of this: nothing here deletes them.

First a plan is made, which can be shown; then it is carried out, and each deletion is told before
it is done. What a killed run left is found by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from sqlalchemy import delete, select

from contourcast.service.archive import instance_key
from contourcast.service.index.database import Index
from contourcast.service.index.tables import course, fraction, instance, propagation, series
from contourcast.service.ingest import say_the_same
from contourcast.service.intake.states import DECIDED, STOPPED, State
from contourcast.service.pacs.door import Receipt
from contourcast.service.problems import NotFoundError, PeerError, StoreError
from contourcast.service.store.blobs import Dated, digest_in
from contourcast.service.store.wado import PacsStore

DERIVED: Final = "derived/"
# Files that an archive is asked for at once: their copies lie on our disk meanwhile.
BATCH: Final = 50
ROWS: Final = 500


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long things stay."""

    images: timedelta = timedelta(days=30)
    derived: timedelta = timedelta(days=7)


class Holder(Protocol):
    """An archive that can be asked; `Orthanc` and `DicomWeb` of `service.pacs` are two."""

    def confirm(
        self, paths: Sequence[Path], *, same: Callable[[Path, Path], bool]
    ) -> list[Receipt]:
        """For each file ``stored`` when the archive holds what is the same."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that the plan speaks of.

    Attributes:
        kind: ``images`` of one series, or ``derived`` results of steps.
        subject: A Series Instance UID; empty for derived results.
        due: Whether its time has come.
        why: It is due, or it stays.
        keys: Of the store.
    """

    kind: Literal["images", "derived"]
    subject: str
    due: bool
    why: str
    keys: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be done at a time."""

    at: datetime
    items: tuple[Item, ...]

    @property
    def due_bytes(self) -> int:
        """Of all that is due."""
        return sum(item.size_bytes for item in self.items if item.due)


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """What is about to be deleted, for the record of who did what."""

    kind: str
    subject: str
    files: int
    size_bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run did.

    Attributes:
        deleted: As they were told.
        kept: Items that were due and stay, each with the reason.
    """

    deleted: tuple[Deletion, ...]
    kept: tuple[tuple[Item, str], ...]


def make_plan(index: Index, blobs: Dated, *, at: datetime, retention: Retention) -> Plan:
    """What is due at a time, and why the rest stays.

    Args:
        index: Says which series belongs to which course.
        blobs: Says how old results of steps are.
        at: The time, with zone.
        retention: How long things stay.

    Raises:
        BusyError, StoreError: Index or store cannot be reached.
    """
    return Plan(
        at=at,
        items=(*_images(index, at, retention), *_derived(index, blobs, at, retention)),
    )


def carry_out(
    plan: Plan,
    index: Index,
    blobs: Dated,
    *,
    holder: Holder | None,
    told: Callable[[Deletion], object],
) -> Done:
    """Deletes what is due; images only once the archive was asked and holds them.

    Args:
        plan: Of just before.
        index: Its rows of deleted images go, so that they may come again.
        blobs: Where the files are.
        holder: The archive of the department; None, unless the store itself lies before one:
            images stay.
        told: Is called before each deletion; what it raises stops the run.

    Raises:
        BusyError, StoreError: Index or store cannot be reached; what was done stays done.
    """
    deleted: list[Deletion] = []
    kept: list[tuple[Item, str]] = []
    for item in plan.items:
        if not item.due:
            continue
        deletion = Deletion(
            kind=item.kind,
            subject=item.subject,
            files=len(item.keys),
            size_bytes=item.size_bytes,
            why=item.why,
        )
        if item.kind == "images" and isinstance(blobs, PacsStore):
            stays = _release(item, blobs)  # nothing is lost: it is fetched when it is wanted
        elif item.kind == "images":
            stays = _why_not(item, blobs, holder)
        else:
            stays = ""
        if stays:
            kept.append((item, stays))
            continue
        told(deletion)
        if item.kind == "derived" or not isinstance(blobs, PacsStore):
            for key in item.keys:
                blobs.delete(key)
        if item.kind == "images" and not isinstance(blobs, PacsStore):
            _forget(item, index)
        deleted.append(deletion)
    return Done(deleted=tuple(deleted), kept=tuple(kept))


@dataclass(frozen=True, kw_only=True)
class _Course:
    series: frozenset[str]
    last_at: datetime
    waiting: bool


def _images(index: Index, at: datetime, retention: Retention) -> Iterator[Item]:
    courses = _courses(index)
    with index.read() as rows:
        query = (
            select(instance.c.series_uid, instance.c.file_digest, instance.c.bytes)
            .join(series, series.c.uid == instance.c.series_uid)
            .where(series.c.modality == "CT")
            .order_by(instance.c.series_uid, instance.c.sop_uid)
        )
        files: dict[str, list[tuple[str, int]]] = {}
        for row in rows.execute(query):
            files.setdefault(row.series_uid, []).append((row.file_digest, row.bytes))
    for uid, members in files.items():
        due, why = _judge([c for c in courses if uid in c.series], at, retention)
        yield Item(
            kind="images",
            subject=uid,
            due=due,
            why=why,
            keys=tuple(instance_key(uid, digest) for digest, _ in members),
            size_bytes=sum(size for _, size in members),
        )


def _judge(courses: Sequence[_Course], at: datetime, retention: Retention) -> tuple[bool, str]:
    if not courses:
        return False, "it belongs to no course"
    if any(one.waiting for one in courses):
        return False, "a propagation of its course is not decided"
    last = max(one.last_at for one in courses)
    if at - last < retention.images:
        return False, f"the last fraction of its course was on {last:%Y-%m-%d}"
    return True, (
        f"the last fraction of its course was on {last:%Y-%m-%d}, "
        f"{(at - last).days} days ago; images stay {retention.images.days}"
    )


def _courses(index: Index) -> list[_Course]:
    with index.read() as rows:
        planned = {row.id: row for row in rows.execute(select(course))}
        fractions: dict[str, list[Any]] = {}
        for row in rows.execute(select(fraction).where(fraction.c.course_id.is_not(None))):
            fractions.setdefault(row.course_id, []).append(row)
        through = [str(state) for state in DECIDED | (STOPPED - {State.NEEDS_PERSON})]
        waiting = set(
            rows.execute(
                select(propagation.c.course_id).where(propagation.c.state.not_in(through))
            ).scalars()
        )
    return [
        _Course(
            series=frozenset({row.planning_series_uid, *(f.series_uid for f in drawn)}),
            last_at=max([_time(row.made_at), *map(_acquired, drawn)]),
            waiting=row.id in waiting or any(f.state == "needs_person" for f in drawn),
        )
        for row in planned.values()
        for drawn in [fractions.get(row.id, [])]
    ]


def _acquired(row: Any) -> datetime:
    """When a fraction was treated: as its machine wrote it, else when it was matched."""
    return _time(row.acquired_at) if row.acquired_at else _time(row.made_at)


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _derived(index: Index, blobs: Dated, at: datetime, retention: Retention) -> Iterator[Item]:
    """All of them that are older than any work that still goes on, and old enough."""
    with index.read() as rows:
        begun = rows.execute(
            select(propagation.c.made_at).where(propagation.c.ended == 0)
        ).scalars()
        before = min([at - retention.derived, *map(_time, begun)])
    old = [one for one in blobs.details(DERIVED) if one.put_at < before]
    if old:
        yield Item(
            kind="derived",
            subject="",
            due=True,
            why=f"made before {before:%Y-%m-%d %H:%M}, and can be made again",
            keys=tuple(one.key for one in old),
            size_bytes=sum(one.size_bytes for one in old),
        )


def _release(item: Item, blobs: PacsStore) -> str:
    """Leaves images to the PACS; why some stay, empty when none does."""
    try:
        stay = [key for key in item.keys if not blobs.release(key)]
    except StoreError as error:
        return error.cause
    return f"the PACS does not hold the same of {len(stay)} of them" if stay else ""


def _why_not(item: Item, blobs: Dated, holder: Holder | None) -> str:
    """Why images that are due must stay; empty when the archive holds all of them."""
    if holder is None:
        return "no archive is named that could hold them"
    for start in range(0, len(item.keys), BATCH):
        paths = _present(item.keys[start : start + BATCH], blobs)
        try:
            receipts = holder.confirm(paths, same=say_the_same)
        except PeerError as error:
            return error.cause
        absent = [r for r in receipts if r.outcome != "stored"]
        if len(receipts) != len(paths) or absent:
            number = len(absent) or len(paths) - len(receipts)
            return f"the archive does not hold the same of {number} or more of them"
    return ""


def _present(keys: Collection[str], blobs: Dated) -> list[Path]:
    """Those that an earlier run, killed half way, did not delete."""
    paths = []
    for key in keys:
        try:
            paths.append(blobs.get(key))
        except NotFoundError:
            continue
    return paths


def _forget(item: Item, index: Index) -> None:
    """Takes the rows out, last: a run that was killed before finds them again.

    Only of what the plan spoke of: another slice may have come meanwhile.
    """
    digests = [digest_in(key) for key in item.keys]
    with index.write() as rows:
        for start in range(0, len(digests), ROWS):
            rows.execute(
                delete(instance).where(
                    instance.c.series_uid == item.subject,
                    instance.c.file_digest.in_(digests[start : start + ROWS]),
                )
            )
