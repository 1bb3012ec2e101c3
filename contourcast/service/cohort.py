"""A cohort: many CBCTs at once, by the same way as today's, after everything that is waited for.

A folder of DICOM is taken in as if it had been sent, each of its series announced as whole; from
there on it is the intake's and the workers'. So a cohort that was stopped goes on by being asked
for again: what is here is not taken in twice, what is drawn is not drawn twice, and the report is
read from the index at any time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from sqlalchemy import ColumnElement, Connection, Row, func, literal, or_, select, tuple_

from contourcast.imaging.errors import InputError
from contourcast.imaging.files import write_atomically
from contourcast.propagate import is_network
from contourcast.service.archive import Sent
from contourcast.service.index.database import as_json, now
from contourcast.service.index.tables import cohort, fraction, propagation, series
from contourcast.service.ingest import take_files
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import order_id, settings_of
from contourcast.service.jobs.propagations import EVALUATION, Job
from contourcast.service.problems import NotFoundError
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

# Files that are brought in one go; between two, progress is told.
AT_ONCE: Final = 256
COLUMNS: Final = (
    "propagation",
    "cbct",
    "course",
    "roi",
    "acquired_at",
    "state",
    "verdict",
    "method",
    "volume_cc",
    "method_verdict",
    "seconds",
    "problem",
)

Told = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a cohort is.

    Attributes:
        series: Series of images that were taken in.
        propagations: By state.
        verdicts: Propagations by verdict, of those that have one.
        open_questions: CBCTs that nobody can place without a person.
        waiting: Series that were not looked at yet.
    """

    series: int
    propagations: dict[str, int]
    verdicts: dict[str, int]
    open_questions: int
    waiting: int

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return not self.waiting and not any(
            number for state, number in self.propagations.items() if State(state) in UNDERWAY
        )


UNDERWAY: Final = frozenset(
    {State.MATCHED, State.REGISTERING, State.DRAWING, State.COMPARING, State.WRITING}
)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A cohort as it was asked for.

    Attributes:
        kind: A folder that was taken in, whose name is not told since it may be a patient's; or
            what was here already.
        since, until, methods: See `Query`; empty of a folder.
    """

    id: str
    made_at: str
    kind: Literal["folder", "query"]
    since: str
    until: str
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Query:
    """CBCTs that are here already.

    Attributes:
        since, until: Days of acquisition, ISO 8601, the latter not included; empty: any.
        methods: What to draw by; none: everything.
    """

    since: str = ""
    until: str = ""
    methods: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Query:
        """``since=2026-01-01,until=2026-02-01,methods=rigid+dir-l``, each part once at most.

        Raises:
            InputError: It is not written so.
        """
        parts = [part.partition("=") for part in text.split(",")]
        known = {name: value for name, _, value in parts}
        if len(known) < len(parts) or not known.keys() <= {"since", "until", "methods"}:
            raise InputError(
                "this is neither a folder nor a query",
                remedy="name a folder, or write since=2026-01-01,until=2026-02-01,methods=rigid",
            )
        for day in (known.get("since", ""), known.get("until", "")):
            if day and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
                raise InputError(f"'{day}' is no day", remedy="write it like 2026-01-31")
        methods = tuple(m for m in known.get("methods", "").split("+") if m)
        return cls(since=known.get("since", ""), until=known.get("until", ""), methods=methods)


class Cohorts:
    """Cohorts over one index and store."""

    def __init__(self, records: Records, settings: ServiceSettings) -> None:
        self.records = records
        self._settings = settings

    def take(self, folder: Path, *, told: Told = lambda done, of: None) -> str:
        """Takes a folder in; the cohort's id, the same for the same folder.

        Args:
            folder: Searched to the bottom; files that are no DICOM are passed over.
            told: Hears how many files of how many are in.

        Raises:
            InputError: It is no folder, or holds nothing that is taken.
        """
        if not folder.is_dir():
            raise InputError("this is not a folder", file=folder.name, remedy="name a folder")
        cohort_id = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        self._open(cohort_id, {"folder": folder.name})
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        counts: Counter[str] = Counter()
        for start in range(0, len(paths), AT_ONCE):
            batch = paths[start : start + AT_ONCE]
            answers = take_files(
                _opened(batch),
                self.records.archive,
                self._settings,
                sent=Sent(door="cohort", ae_title=cohort_id),
            )
            counts.update(a.series_instance_uid for a in answers if a.outcome != "refused")
            told(min(start + AT_ONCE, len(paths)), len(paths))
        if not counts:
            raise InputError(
                "the folder holds no DICOM that is taken",
                file=folder.name,
                remedy="name a folder with CT images and structure sets",
            )
        self._announce(counts)
        return cohort_id

    def again(self, query: Query, *, network: tuple[str, str]) -> str:
        """Draws what is here already, by other methods or another network; the cohort's id.

        Args:
            query: Which CBCTs, and by what.
            network: Name and digest of the network that is served.

        Raises:
            InputError: No CBCT that was matched is of those days, or a method has no such name.
        """
        settings = settings_of(query.methods, "body")
        plan = {"since": query.since, "until": query.until, "methods": list(settings.methods)}
        cohort_id = hashlib.sha256(as_json(plan | {"network": network[1]}).encode()).hexdigest()
        found = self.records.propagations.select(
            select(propagation)
            .join(fraction, fraction.c.revision_id == propagation.c.revision_id)
            .where(
                fraction.c.state == "matched",
                propagation.c.state != State.SUPERSEDED,
                propagation.c.cohort_id.is_(None),
                fraction.c.acquired_at >= query.since,
                fraction.c.acquired_at < (query.until or "9999"),
            )
            .order_by(fraction.c.acquired_at)
        )
        if not found:
            raise InputError(
                "no CBCT of those days was matched", remedy="widen since and until, or send more"
            )
        ids = []
        for job in found:
            drawn = any(is_network(method) for method in settings.methods)
            order = job.order | {
                "methods": list(settings.methods),
                "network": network[1] if drawn else "",
            }
            origin = replace(
                job.origin, cohort=cohort_id[:32], priority=EVALUATION, asked_by="cohort"
            )
            ids.append(order_id(order))
            self.records.propagations.open(ids[-1], order, origin)
        self._open(cohort_id[:32], plan | {"propagations": ids})
        return cohort_id[:32]

    def _mine(self, at: Connection, cohort_id: str) -> ColumnElement[bool]:
        plan = at.execute(select(cohort.c.plan_json).where(cohort.c.id == cohort_id)).scalar()
        asked = (plan or {}).get("propagations", [])
        return or_(propagation.c.cohort_id == cohort_id, propagation.c.id.in_(asked))

    def known(self, *, before: tuple[str, str] | None = None, limit: int) -> list[Known]:
        """Cohorts, newest first.

        Args:
            before: Time and id of the one after which they begin.
            limit: At most so many.
        """
        query = select(cohort).order_by(cohort.c.made_at.desc(), cohort.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(
                tuple_(cohort.c.made_at, cohort.c.id) < tuple_(*map(literal, before))
            )
        with self.records.index.read() as at:
            return [_known(row) for row in at.execute(query)]

    def one(self, cohort_id: str) -> Known:
        """What was asked for under an id.

        Raises:
            NotFoundError: There is no such cohort.
        """
        with self.records.index.read() as at:
            row = at.execute(select(cohort).where(cohort.c.id == cohort_id)).first()
        if row is None:
            raise NotFoundError("no cohort has that id", remedy="take a folder in first")
        return _known(row)

    def lines(self, cohort_id: str) -> Iterator[str]:
        """``cohort.csv``, a row for each method of each propagation, in the order of asking."""
        text = StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        for job in self._jobs(cohort_id):
            writer.writerows(_rows(job))
            yield text.getvalue()
            text.seek(0)
            text.truncate()
        yield text.getvalue()  # the header, where there is nothing else

    def _jobs(self, cohort_id: str) -> Iterator[Job]:
        """A few at a time: a cohort may be a hundred thousand."""
        with self.records.index.read() as at:
            mine = select(propagation).where(self._mine(at, cohort_id))
        query, last = mine.order_by(propagation.c.number).limit(AT_ONCE), 0
        while jobs := self.records.propagations.select(query.where(propagation.c.number > last)):
            yield from jobs
            last = jobs[-1].number

    def _open(self, cohort_id: str, plan: dict[str, Any]) -> None:
        row = {"id": cohort_id, "made_at": now().isoformat(), "plan_json": plan}
        with self.records.index.write() as at:
            at.execute(self.records.index.insert_new(cohort, row))

    def _announce(self, counts: Counter[str]) -> None:
        """A folder holds all there is of each series."""
        arriving = Arriving(self.records.index, self.records.notices)
        with self.records.index.read() as at:
            mine = set(
                at.execute(
                    select(series.c.uid).where(
                        series.c.modality == "CT", series.c.uid.in_(list(counts))
                    )
                ).scalars()
            )
        for uid in mine:
            kept = len(self.records.archive.instances_of(uid))
            arriving.expect(uid, kept)

    def progress(self, cohort_id: str) -> Progress:
        """How far it is.

        Raises:
            NotFoundError: There is no such cohort.
        """
        self.one(cohort_id)
        with self.records.index.read() as at:
            mine = (
                select(series.c.uid)
                .where(series.c.door == "cohort", series.c.sender == cohort_id)
                .where(series.c.modality == "CT")
            )
            uids = list(at.execute(mine).scalars())
            states = Counter(
                at.execute(select(propagation.c.state).where(self._mine(at, cohort_id))).scalars()
            )
            verdicts = Counter(
                at.execute(
                    select(propagation.c.verdict).where(
                        self._mine(at, cohort_id), propagation.c.verdict != ""
                    )
                ).scalars()
            )
            questions = at.execute(
                select(func.count())
                .select_from(fraction)
                .where(fraction.c.series_uid.in_(mine), fraction.c.state == "needs_person")
            ).scalar_one()
            looked_at = at.execute(
                select(func.count(func.distinct(fraction.c.series_uid))).where(
                    fraction.c.series_uid.in_(mine)
                )
            ).scalar_one()
        return Progress(
            series=len(uids),
            propagations=dict(states),
            verdicts=dict(verdicts),
            open_questions=int(questions),
            waiting=len(uids) - int(looked_at),
        )

    def report(self, cohort_id: str, out: Path) -> dict[str, Any]:
        """Writes ``cohort.csv``, a row for each method, and ``cohort.json``; the latter's content.

        Raises:
            NotFoundError: There is no such cohort.
        """
        progress = self.progress(cohort_id)
        out.mkdir(parents=True, exist_ok=True)
        draft = out / ".cohort.csv"
        with draft.open("w", newline="", encoding="utf-8") as file:
            file.writelines(self.lines(cohort_id))
        draft.replace(out / "cohort.csv")
        summary = {
            "cohort": cohort_id,
            "series": progress.series,
            "propagations": progress.propagations,
            "verdicts": progress.verdicts,
            "open_questions": progress.open_questions,
            "waiting": progress.waiting,
            "ended": progress.ended,
        }
        write_atomically(out / "cohort.json", (json.dumps(summary, indent=1) + "\n").encode())
        return summary


def _known(row: Row[Any]) -> Known:
    plan = row.plan_json
    return Known(
        id=row.id,
        made_at=row.made_at,
        kind="folder" if "folder" in plan else "query",
        since=plan.get("since", ""),
        until=plan.get("until", ""),
        methods=tuple(plan.get("methods", ())),
    )


def _opened(paths: list[Path]) -> Iterator[tuple[str, BinaryIO]]:
    for path in paths:
        yield path.name, path.open("rb")


def _rows(job: Job) -> list[dict[str, Any]]:
    """One for each method that drew; one without, where none did."""
    shared = {
        "propagation": job.id,
        "cbct": job.order["cbct"]["series"],
        "course": job.origin.course_id or "",
        "roi": job.order["roi"],
        "acquired_at": job.origin.acquired_at,
        "state": job.state.value,
        "verdict": job.verdict,
        "problem": job.problem.get("cause", ""),
    }
    methods = job.figures.get("methods", {})
    if not methods:
        return [shared]
    return [
        shared
        | {
            "method": name,
            "volume_cc": figures["volume_cc"],
            "method_verdict": figures["verdict"],
            "seconds": figures["seconds"],
            "problem": figures["failed"] or shared["problem"],
        }
        for name, figures in sorted(methods.items())
    ]
