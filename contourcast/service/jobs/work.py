"""A worker: the engine on some queues, a heartbeat, and the duties that everybody shares."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from dbos import Queue

from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.rules import SiteRules, read_rules
from contourcast.service.intake.states import STOPPED
from contourcast.service.jobs import take_over
from contourcast.service.jobs.delivering import define as delivering_defined
from contourcast.service.jobs.delivering import handing_over
from contourcast.service.jobs.duties import Duty, on_duty
from contourcast.service.jobs.engine import POLL_S, running
from contourcast.service.jobs.network import served_network
from contourcast.service.jobs.propagations import Job, Propagations
from contourcast.service.jobs.queues import DELIVER, chosen
from contourcast.service.jobs.steps import Steps
from contourcast.service.jobs.workers import GpuMemory, Workers
from contourcast.service.jobs.workflow import Work, define, workflow_id
from contourcast.service.keeping.records import Recorder
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.destinations import require_ready
from contourcast.service.pacs.fetching import fetching
from contourcast.service.pacs.watching import watching
from contourcast.service.problems import BusyError
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from contourcast.service.traces import Trail, tracer_provider

END_S: Final = 5.0
# Between two looks at what arrives.
LOOK_S: Final = 0.5
# Rows are copied into the store so often, for a database that is lost (keeping/rebuild.py).
RECORD_S: Final = 60.0
# Jobs that the duty of handing over looks at: those that are waited for come first.
AT_A_LOOK: Final = 500

log = structlog.get_logger()
Queues = Callable[[], Mapping[str, Queue]]


def work(settings: ServiceSettings, stop: threading.Event) -> None:
    """Runs jobs until told to stop. The caller holds the lock of the worker slot.

    Raises:
        SettingsError: The settings cannot be followed.
        BusyError: The database cannot be reached.
    """
    records = open_records(settings, role=settings.worker_slot)
    try:
        log.info("drafts_discarded", number=records.archive.discard_incoming())
        with_others = DELIVER in chosen(settings.queues)
        if with_others:
            require_ready(settings.destinations)
        deliveries = Deliveries(records, settings.destinations)
        steps = Steps(
            records,
            device=resolve_device(settings.device),
            weights=settings.weights,
            send=deliveries.plan,
        )

        def also(queues: Queues) -> list[Duty]:
            recorder = Recorder(records.index, records.archive.blobs, records.archive.incoming)
            return [
                handing_over(deliveries, delivering_defined(deliveries, queues)),
                *_intake(settings, records),
                *(_archives(settings, records) if with_others else []),
                Duty(name="records", every_s=RECORD_S, run=recorder.keep),
            ]

        at_work(settings, records, steps, stop, also=also)
    finally:
        records.close()


def at_work(
    settings: ServiceSettings,
    records: Records,
    steps: Steps,
    stop: threading.Event,
    *,
    also: Callable[[Queues], list[Duty]] = lambda queues: [],
) -> None:
    """The engine over these steps, and the duties that keep it going, until told to stop.

    What is under way when it ends goes to the others at once, or on under the same name.

    Args:
        settings: With the name of this worker and its queues.
        records: Index and store.
        steps: What is done.
        stop: Ends it.
        also: Defines further work before the engine is launched; its duties.
    """
    slot, listen = settings.worker_slot, chosen(settings.queues)
    known: dict[str, Queue] = {}
    trail = Trail(tracer_provider())
    defined = define(steps, lambda: known, trail=trail, gpu_draws=settings.gpu_draws)
    heart = take_over.Heartbeat(records.workers, slot, ",".join(listen))
    duties = [
        Duty(
            name="heartbeat",
            every_s=take_over.HEARTBEAT_S,
            run=heart.beat,
            alone=False,
        ),
        Duty(
            name="take-over",
            every_s=take_over.EVERY_S,
            run=lambda: take_over.take_over(heart),
        ),
        Duty(
            name="start-anew",
            every_s=take_over.EVERY_S,
            run=lambda: take_over.start_anew(heart, records.propagations),
        ),
        Duty(
            name="given-up",
            every_s=take_over.HEARTBEAT_S,
            run=lambda: take_over.end_given_up(records.propagations),
        ),
        _handing_over(records.propagations, defined),
        *([_gpu(records.workers, slot)] if steps.device.startswith("cuda") else []),
        *also(lambda: known),
    ]
    with running(settings, listen) as registered:
        known.update(registered)
        log.info("worker_started", slot=slot, queues=list(listen))
        threads = on_duty(records.index, duties, stop)
        stop.wait()
        until_s = time.monotonic() + END_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
    with contextlib.suppress(BusyError):  # then the others wait for a minute of silence
        records.workers.left(slot)
    trail.close()  # last: a collector that does not answer takes its time
    log.info("worker_ended", slot=slot)


def resolve_device(wanted: str) -> str:
    """``auto`` is CUDA where there is some."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _gpu(workers: Workers, slot: str) -> Duty:
    """Tells for the metrics how full the GPU is: whoever answers for them sees none."""
    import torch

    def tell() -> None:
        free, total = torch.cuda.mem_get_info()
        workers.has_gpu(slot, GpuMemory(used_bytes=total - free, total_bytes=total))

    return Duty(name="gpu-memory", every_s=take_over.HEARTBEAT_S, run=tell, alone=False)


def _intake(settings: ServiceSettings, records: Records) -> list[Duty]:
    """What watches series arrive, and what finds to what they belong."""
    notices = records.notices
    arriving = Arriving(records.index, notices)
    fractions = Fractions(
        Evidence(records.archive),
        records.propagations,
        notices,
        read_rules(settings.rules) if settings.rules else SiteRules(),
        served_network=served_network(settings),
        methods=settings.methods or None,
        waiting_limit=settings.waiting_limit,
        asked_alone=settings.intake == "on_request",
    )
    return [
        Duty(name="arriving", every_s=LOOK_S, run=arriving.look),
        Duty(name="matching", every_s=LOOK_S, run=fractions.look),
    ]


def _archives(settings: ServiceSettings, records: Records) -> list[Duty]:
    """What watches archives and asks them; only who sends to them knows their credentials."""
    return [*watching(settings, records), *fetching(settings, records)]


def _handing_over(propagations: Propagations, defined: Work) -> Duty:
    """Gives the engine what was asked for.

    The table of propagations is what was promised to the caller; the engine's tables follow it.
    Handing a job over twice is harmless: its id is the workflow's.
    """
    handed: dict[str, Job] = {}

    def hand_over() -> None:
        waiting = {workflow_id(job): job for job in propagations.unfinished(limit=AT_A_LOOK)}
        for name in waiting.keys() - handed.keys():
            defined.hand_over(waiting[name])
        gone = [handed[name] for name in handed.keys() - waiting.keys()]
        take_over.cancel([job for job in gone if propagations.job(job.id).state in STOPPED])
        handed.clear()
        handed.update(waiting)

    return Duty(name="hand-over", every_s=POLL_S, run=hand_over)
