"""A worker: the engine on some queues, a heartbeat, and the duties that everybody shares."""

from __future__ import annotations

import threading
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
from contourcast.service.jobs.workflow import Work, define, workflow_id
from contourcast.service.keeping.records import Recorder
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.destinations import require_ready
from contourcast.service.pacs.fetching import fetching
from contourcast.service.pacs.watching import watching
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings

END_S: Final = 5.0
# Between two looks at what arrives.
LOOK_S: Final = 0.5
# Rows are copied into the store so often, for a database that is lost (keeping/rebuild.py).
RECORD_S: Final = 60.0
# Jobs that the duty of handing over looks at: those that are waited for come first.
AT_A_LOOK: Final = 500

log = structlog.get_logger()


def work(settings: ServiceSettings, stop: threading.Event) -> None:
    """Runs jobs until told to stop. The caller holds the lock of the worker slot.

    Raises:
        SettingsError: The settings cannot be followed.
        BusyError: The database cannot be reached.
    """
    records = open_records(settings, role=settings.worker_slot)
    discarded = records.archive.discard_incoming()
    queues: dict[str, Queue] = {}
    listen = chosen(settings.queues)
    if DELIVER in listen:
        require_ready(settings.destinations)
    deliveries = Deliveries(records, settings.destinations)
    steps = Steps(
        records,
        device=resolve_device(settings.device),
        weights=settings.weights,
        send=deliveries.plan,
    )
    defined = define(steps, lambda: queues)
    delivering = delivering_defined(deliveries, lambda: queues)
    try:
        with running(settings, listen) as registered:
            queues.update(registered)
            log.info(
                "worker_started",
                slot=settings.worker_slot,
                queues=list(listen),
                drafts_discarded=discarded,
            )
            threads = on_duty(
                records.index,
                [
                    Duty(
                        name="heartbeat",
                        every_s=take_over.HEARTBEAT_S,
                        run=lambda: records.workers.seen(settings.worker_slot, ",".join(listen)),
                        alone=False,
                    ),
                    Duty(
                        name="take-over",
                        every_s=take_over.EVERY_S,
                        run=lambda: take_over.take_over(records.workers),
                    ),
                    Duty(
                        name="start-anew",
                        every_s=take_over.EVERY_S,
                        run=lambda: take_over.start_anew(
                            records.workers, records.propagations, settings.worker_slot
                        ),
                    ),
                    Duty(
                        name="given-up",
                        every_s=take_over.HEARTBEAT_S,
                        run=lambda: take_over.end_given_up(records.propagations),
                    ),
                    _handing_over(records.propagations, defined),
                    handing_over(deliveries, delivering),
                    *_intake(settings, records),
                    *watching(settings, records),
                    *fetching(settings, records),
                    Duty(
                        name="records",
                        every_s=RECORD_S,
                        run=Recorder(
                            records.index, records.archive.blobs, records.archive.incoming
                        ).keep,
                    ),
                ],
                stop,
            )
            stop.wait()
            for thread in threads:
                thread.join(END_S)
    finally:
        records.close()


def resolve_device(wanted: str) -> str:
    """``auto`` is CUDA where there is some."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _intake(settings: ServiceSettings, records: Records) -> list[Duty]:
    """What watches series arrive, and what finds to what they belong."""
    notices = records.notices
    arriving = Arriving(records.index, notices)
    duties = [Duty(name="arriving", every_s=LOOK_S, run=arriving.look)]
    if settings.intake == "automatic":
        fractions = Fractions(
            Evidence(records.archive),
            records.propagations,
            notices,
            read_rules(settings.rules) if settings.rules else SiteRules(),
            served_network=served_network(settings),
            methods=settings.methods or None,
            waiting_limit=settings.waiting_limit,
        )
        duties.append(Duty(name="matching", every_s=LOOK_S, run=fractions.look))
    return duties


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
