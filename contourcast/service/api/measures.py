"""What Prometheus is told, counted in the database when it asks: so that all processes agree.

No scrape costs more the longer a service runs: arrivals are counted from where they were counted
before, and what needs whole tables is counted once in `WHOLE_EVERY_S`.

Labels are words of ours, of the settings, or makers' names from a short list; whatever stands in a
header may be a patient's name, and is no label.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from sqlalchemy import ColumnElement, Connection, case, func, literal_column, select

from contourcast.propagate import KNOWN_METHODS
from contourcast.service.access.audit import START, digest_of, rows
from contourcast.service.index.database import Index
from contourcast.service.index.tables import (
    arrival,
    cursor,
    delivery,
    event,
    fraction,
    instance,
    propagation,
    series,
)
from contourcast.service.intake.states import WORKING, State
from contourcast.service.jobs.propagations import EVALUATION
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

MIB: Final = 2**20
# Upper ends in seconds: of a step on a GPU, on a processor, and of a step that waited.
BUCKETS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3600.0)
MAKERS: Final = (
    "varian",
    "elekta",
    "accuray",
    "siemens",
    "philips",
    "ge medical",
    "canon",
    "vision rt",
)
OTHER: Final = "other"
# Rows of the audit log that one scrape goes through; the rest waits for the next.
AUDIT_AT_ONCE: Final = 20_000
# Bytes, steps and verdicts are of whole tables; they change slowly.
WHOLE_EVERY_S: Final = 60.0
# What a worker that was silent for longer once said of its GPU is not told.
GPU_TOLD_S: Final = 60.0
# Behind an arrival of this age none of a smaller number appears: transactions are shorter.
SETTLED_AFTER: Final = timedelta(seconds=60)
_STEPS: Final = (
    State.MATCHED,
    State.REGISTERING,
    State.DRAWING,
    State.COMPARING,
    State.WRITING,
    State.DELIVERING,
)
# Seconds from one moment to another, both ISO 8601 in UTC.
_BETWEEN: Final = {
    "sqlite": "(julianday(left_at) - julianday(at)) * 86400.0",
    "postgresql": "EXTRACT(EPOCH FROM left_at::timestamptz - at::timestamptz)",
}


class Measures:
    """Everything that is measured, over one index.

    Args:
        records: Index and store.
        settings: With the reserve, and the callers whose names may be labels.
        clock: The time; left out: now.
    """

    def __init__(
        self,
        records: Records,
        settings: ServiceSettings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records, self._settings, self._clock = records, settings, clock
        self._audit = AuditChain(records.index)
        self._arrived = Arrived()
        self._whole: tuple[Metric, ...] = ()
        self._whole_at: datetime | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of the database when the measures are registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every measure."""
        with self._records.index.read() as at:
            yield self._arrivals(at)
            yield self._series(at)
            yield from self._waiting(at)
            yield from self._whole_tables(at)
            yield self._deliveries(at)
            yield self._lag(at)
        yield from self._disk()
        yield self._workers()
        yield from self._gpus()
        ok, known = self._audit.look()
        yield _gauge("audit_chain_ok", "1: every row that was looked at is as it was written.", ok)
        yield _gauge(
            "audit_rows_looked_at", "Rows of the log that this process went through.", known
        )

    def _whole_tables(self, at: Connection) -> Sequence[Metric]:
        moment = self._clock()
        if self._whole_at is None or (moment - self._whole_at).total_seconds() >= WHOLE_EVERY_S:
            self._whole = (self._kept(at), self._steps(at), *self._verdicts(at))
            self._whole_at = moment
        return self._whole

    def _arrivals(self, at: Connection) -> Metric:
        came = CounterMetricFamily(
            "contourcast_arrivals", "Instances that came.", labels=["door", "outcome"]
        )
        for (door, outcome), number in sorted(self._arrived.count(at, self._records.index).items()):
            came.add_metric([door, outcome], number)
        return came

    def _kept(self, at: Connection) -> Metric:
        kept = CounterMetricFamily(
            "contourcast_kept_bytes", "Bytes of instances in the store.", labels=["modality"]
        )
        sizes = select(instance.c.modality, func.sum(instance.c.bytes)).group_by(
            instance.c.modality
        )
        for modality, size in at.execute(sizes):
            kept.add_metric([modality], int(size))
        return kept

    def _series(self, at: Connection) -> Metric:
        states = GaugeMetricFamily(
            "contourcast_series", "Series of images by what is known of them.", labels=["state"]
        )
        by_state = (
            select(series.c.state, func.count())
            .where(series.c.modality == "CT")
            .group_by(series.c.state)
        )
        for state, number in at.execute(by_state):
            states.add_metric([state], number)
        return states

    def _waiting(self, at: Connection) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "contourcast_queue_depth", "Propagations that are not done.", labels=["kind", "state"]
        )
        age = GaugeMetricFamily(
            "contourcast_queue_age_seconds", "Since the oldest was asked for.", labels=["kind"]
        )
        kind = case((propagation.c.priority >= EVALUATION, "evaluation"), else_="today")
        waiting = (
            select(kind.label("kind"), propagation.c.state, propagation.c.made_at)
            .where(propagation.c.ended == 0, propagation.c.state.in_(WORKING))
            .subquery()
        )
        query = select(
            waiting.c.kind, waiting.c.state, func.count(), func.min(waiting.c.made_at)
        ).group_by(waiting.c.kind, waiting.c.state)
        oldest: dict[str, str] = {}
        for name, state, number, made_at in at.execute(query):
            depth.add_metric([name, state], number)
            oldest[name] = min(oldest.get(name, made_at), made_at)
        for name in ("today", "evaluation"):
            age.add_metric([name], self._since_s(oldest.get(name)))
        yield depth
        yield age
        questions = at.execute(
            select(func.count()).where(fraction.c.state == "needs_person")
        ).scalar_one()
        yield _gauge("open_questions", "Scans of which a person has to say something.", questions)

    def _steps(self, at: Connection) -> Metric:
        """How long each step took: from its first event to the first of the next."""
        entered = (
            select(
                event.c.propagation,
                event.c.state,
                func.min(event.c.number).label("number"),
                func.min(event.c.at).label("at"),
            )
            .group_by(event.c.propagation, event.c.state)
            .subquery()
        )
        left = (
            select(
                entered.c.state,
                entered.c.at,
                func.lead(entered.c.at)
                .over(partition_by=entered.c.propagation, order_by=entered.c.number)
                .label("left_at"),
            )
        ).subquery()
        seconds: ColumnElement[float] = literal_column(_BETWEEN[at.dialect.name])
        bucket = case(
            *((seconds <= end_s, number) for number, end_s in enumerate(BUCKETS_S)),
            else_=len(BUCKETS_S),
        )
        took = (
            select(left.c.state, bucket.label("place"), seconds.label("seconds"))
            .where(left.c.left_at.is_not(None), left.c.state.in_(_STEPS))
            .subquery()
        )
        query = select(took.c.state, took.c.place, func.count(), func.sum(took.c.seconds)).group_by(
            took.c.state, took.c.place
        )
        counts: dict[str, list[int]] = {}
        sums: dict[str, float] = {}
        for state, place, number, total in at.execute(query):
            counts.setdefault(state, [0] * (len(BUCKETS_S) + 1))[place] = number
            sums[state] = sums.get(state, 0.0) + float(total)
        measured = HistogramMetricFamily(
            "contourcast_step_seconds", "How long a step took, waiting included.", labels=["step"]
        )
        ends = [*map(str, BUCKETS_S), "+Inf"]
        for state, found in sorted(counts.items()):
            cumulated = [sum(found[: n + 1]) for n in range(len(found))]
            measured.add_metric([state], list(zip(ends, cumulated, strict=True)), sums[state])
        return measured

    def _verdicts(self, at: Connection) -> Iterator[Metric]:
        maker = series.c.facts_json["manufacturer"].as_string()
        of_methods = [
            propagation.c.figures_json[("methods", name, "verdict")].as_string().label(f"m{n}")
            for n, name in enumerate(KNOWN_METHODS)
        ]
        said_of = (
            select(maker.label("maker"), series.c.sender, propagation.c.verdict, *of_methods)
            .join(series, series.c.uid == propagation.c.cbct_series_uid, isouter=True)
            .where(propagation.c.verdict != "")
            .subquery()
        )
        query = select(*said_of.c, func.count()).group_by(*said_of.c)
        overall: dict[tuple[str, str], int] = {}
        each: dict[tuple[str, str, str], int] = {}
        for made_by, sender, verdict, *methods, number in at.execute(query):
            machine = self._machine(made_by or "", sender or "")
            overall[machine, verdict] = overall.get((machine, verdict), 0) + number
            for name, said in zip(KNOWN_METHODS, methods, strict=True):
                if said:
                    key = (name, machine, said)
                    each[key] = each.get(key, 0) + number
        whole = GaugeMetricFamily(
            "contourcast_verdicts", "Propagations by verdict.", labels=["machine", "verdict"]
        )
        for (machine, verdict), number in sorted(overall.items()):
            whole.add_metric([machine, verdict], number)
        by_method = GaugeMetricFamily(
            "contourcast_method_verdicts",
            "Contours by verdict.",
            labels=["method", "machine", "verdict"],
        )
        for (name, machine, said), number in sorted(each.items()):
            by_method.add_metric([name, machine, said], number)
        yield whole
        yield by_method

    def _machine(self, maker: str, sender: str) -> str:
        """The site's own name for who sent it; else its maker, where that is a known one."""
        if sender in self._settings.dicom_callers:
            return sender
        return next((known for known in MAKERS if known in maker.lower()), OTHER)

    def _deliveries(self, at: Connection) -> Metric:
        sent = GaugeMetricFamily(
            "contourcast_deliveries", "Deliveries by result.", labels=["destination", "state"]
        )
        query = select(delivery.c.destination, delivery.c.state, func.count()).group_by(
            delivery.c.destination, delivery.c.state
        )
        for destination, state, number in at.execute(query):
            sent.add_metric([destination, state], number)
        return sent

    def _lag(self, at: Connection) -> Metric:
        lag = GaugeMetricFamily(
            "contourcast_reconciler_lag_seconds",
            "Since an archive's diary was read to its end.",
            labels=["archive"],
        )
        for name, value in at.execute(select(cursor).where(cursor.c.name.startswith("diary:"))):
            lag.add_metric([name.partition(":")[2]], self._since_s(value.get("looked_at")))
        return lag

    def _disk(self) -> Iterator[Metric]:
        free = min(map(_free_bytes, self._records.archive.disks))
        reserve = self._settings.disk_reserve_mib * MIB
        yield _gauge(
            "disk_free_bytes",
            "Free on the fuller of the disks of data folder and store; 0 when one is away.",
            free,
        )
        yield _gauge("disk_reserve_bytes", "Below it nothing is taken in.", reserve)

    def _workers(self) -> Metric:
        silent = GaugeMetricFamily(
            "contourcast_worker_silent_seconds", "Since a worker was seen.", labels=["worker"]
        )
        for worker, seconds in self._records.workers.silent_s().items():
            silent.add_metric([worker], seconds)
        return silent

    def _gpus(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "contourcast_gpu_memory_used_bytes",
            "Of a worker's GPU, by whatever runs on it.",
            labels=["worker"],
        )
        whole = GaugeMetricFamily(
            "contourcast_gpu_memory_bytes", "What a worker's GPU has.", labels=["worker"]
        )
        for worker, memory in self._records.workers.gpus(within_s=GPU_TOLD_S).items():
            used.add_metric([worker], memory.used_bytes)
            whole.add_metric([worker], memory.total_bytes)
        yield used
        yield whole

    def _since_s(self, moment: str | None) -> float:
        if moment is None:
            return 0.0
        return max(0.0, (self._clock() - datetime.fromisoformat(moment)).total_seconds())


class Arrived:
    """Counts arrivals by door and outcome, each row for good but once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number, self._settled = 0, Counter[tuple[str, str]]()

    def count(self, at: Connection, index: Index) -> Counter[tuple[str, str]]:
        """All that there are by now."""
        settled = (index.now(at) - SETTLED_AFTER).isoformat()
        with self._lock:
            newest = select(func.max(arrival.c.number)).where(
                arrival.c.number > self._number, arrival.c.at <= settled
            )
            number = int(at.execute(newest).scalar() or self._number)
            self._settled += _arrivals(
                at, arrival.c.number > self._number, arrival.c.number <= number
            )
            self._number = number
            return self._settled + _arrivals(at, arrival.c.number > number)


def _arrivals(at: Connection, *which: ColumnElement[bool]) -> Counter[tuple[str, str]]:
    query = select(arrival.c.door, arrival.c.outcome, func.count()).where(*which)
    rows = at.execute(query.group_by(arrival.c.door, arrival.c.outcome))
    return Counter({(door, outcome): number for door, outcome, number in rows})


class AuditChain:
    """Goes through the log from where it was, and remembers whether all was as written."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._number, self._digest, self._ok = 0, START, True

    def look(self) -> tuple[Literal[0, 1], int]:
        """Whether the chain held so far, and how many rows that were."""
        with self._lock:
            for row in rows(self._index, after=self._number):
                digest = digest_of(
                    number=row.number, at=row.at, happening=row.happening, previous=row.previous
                )
                follows = row.number == self._number + 1 and row.previous == self._digest
                self._ok = self._ok and follows and digest == row.digest
                self._number, self._digest = row.number, row.digest
                if self._number % AUDIT_AT_ONCE == 0:
                    break
            return (1 if self._ok else 0), self._number


def _free_bytes(folder: Path) -> int:
    """A disk that is away has room for nothing; all else is measured all the same."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"contourcast_{name}", what, value=value)
