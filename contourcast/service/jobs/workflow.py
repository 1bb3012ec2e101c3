"""The job engine, and the one module that knows it: a workflow whose steps outlive any process.

The rules that DBOS needs (each tried, see docs/decisions): JSON instead of pickle in its tables; an
executor id that stays the same, with one live process for it; a version of ours, so that an
upgrade does not orphan running work; steps that are harmless twice.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any, Final

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, Queue, SetWorkflowID

from contourcast.imaging.errors import ContourcastError
from contourcast.service.jobs.steps import Steps
from contourcast.service.problems import BusyError, DiskFullError, log_fault, problem_of, unexpected
from contourcast.service.settings import ServiceSettings
from contourcast.service.store import Store, writing

# Raised when the steps change, and only then: a worker takes up jobs of its own version alone.
WORKFLOW_VERSION: Final = "1"
QUEUE: Final = "propagations"
# Times that a job may take its worker down before it is set aside.
RECOVERIES: Final = 3
# What is no fault of the job: a full disk, an index that is held by others.
MAY_PASS: Final = (BusyError, DiskFullError)
# 2 + 4 + 8 + 16 + 32 s: about a minute to free space.
ATTEMPTS: Final = 6
RETRY_S: Final = 2.0
POLL_S: Final = 0.2
HEARTBEAT_S: Final = 5.0

log = structlog.get_logger()


def work(settings: ServiceSettings, stop: threading.Event) -> None:
    """Runs jobs until told to stop. The caller holds the lock of the worker slot."""
    store = Store(settings.data_folder)
    steps = Steps(store, device=resolve_device(settings.device), weights=settings.weights)
    discarded = steps.discard_drafts()
    run = _define(store, steps)
    DBOS(config=_config(settings))
    DBOS.launch()
    try:
        queue = DBOS.register_queue(
            QUEUE, worker_concurrency=settings.jobs_at_once, polling_interval_sec=POLL_S
        )
        log.info("worker_started", slot=settings.worker_slot, drafts_discarded=discarded)
        _hand_over(store, queue, run, settings.worker_slot, stop)
    finally:
        DBOS.destroy()


def resolve_device(wanted: str) -> str:
    """``auto`` is CUDA where there is some."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _config(settings: ServiceSettings) -> DBOSConfig:
    return {
        "name": "contourcast",
        "system_database_url": f"sqlite:///{settings.data_folder / 'jobs.sqlite3'}",
        "application_version": WORKFLOW_VERSION,
        "executor_id": settings.worker_slot,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
    }


def _define(store: Store, steps: Steps) -> Callable[[str, str], str]:
    """The workflow over these steps.

    A refusal ends the job; raised into the engine is only what may pass, for another attempt.
    """

    def step(name: str, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def told(*args: Any) -> dict[str, Any]:
            try:
                with writing():
                    return function(*args)
            except MAY_PASS:
                raise
            except ContourcastError as error:
                return {"problem": problem_of(error).model_dump()}
            except Exception as error:  # the engine would log and keep its message
                trace = uuid.uuid4().hex
                log_fault("step_failed", error, trace=trace, job_id=args[0], step=name)
                return {"problem": unexpected(trace).model_dump()}

        return DBOS.step(
            name=name,
            retries_allowed=True,
            max_attempts=ATTEMPTS,
            interval_seconds=RETRY_S,
            should_retry=lambda error: isinstance(error, MAY_PASS),
        )(told)

    register = step("register", steps.register)
    carry = step("carry", steps.carry)
    draw = step("draw", steps.draw)
    compare = step("compare", steps.compare)
    write = step("write", steps.write)

    def end(propagation: str, outcome: dict[str, Any]) -> dict[str, Any]:
        store.end_job(propagation, files=outcome.get("files"), problem=outcome.get("problem"))
        steps.forget()
        return {}

    end_job = step("end", end)

    @DBOS.workflow(name="propagate", max_recovery_attempts=RECOVERIES)
    def run(propagation: str, methods: str) -> str:
        try:
            registrations = _name(register(propagation))
            r_ct = _name(carry(propagation, registrations))
            drawn = [
                _name(draw(propagation, method, registrations, r_ct))
                for method in methods.split(",")
            ]
            compared = _name(compare(propagation, registrations, r_ct, drawn))
            outcome = write(propagation, registrations, r_ct, drawn, compared)
        except _EndedError as ended:
            outcome = ended.outcome
        end_job(propagation, outcome)
        return "failed" if "problem" in outcome else "done"

    return run


class _EndedError(Exception):
    """A step could not do its work; carries what it said."""

    def __init__(self, outcome: dict[str, Any]) -> None:
        self.outcome = outcome
        super().__init__("a step ended the job")


def _name(outcome: dict[str, Any]) -> str:
    """The digest of a step's result."""
    if "problem" in outcome:
        raise _EndedError(outcome)
    return str(next(iter(outcome.values())))


def _hand_over(
    store: Store,
    queue: Queue,
    run: Callable[[str, str], str],
    slot: str,
    stop: threading.Event,
) -> None:
    """Gives the engine what was asked for, and ends what the engine gave up on.

    The table of propagations is what was promised to the caller; the engine's tables follow it.
    Handing a job over twice is harmless: its id is the workflow's.
    """
    handed: set[str] = set()
    beats_left = 0
    while not stop.is_set():
        if beats_left <= 0:
            store.seen(slot)
            _end_parked(store)
            beats_left = round(HEARTBEAT_S / POLL_S)
        beats_left -= 1
        for job in store.unfinished():
            workflow_id = f"{job.id}-{job.attempt}"
            if workflow_id not in handed:
                with SetWorkflowID(workflow_id):
                    queue.enqueue(run, job.id, ",".join(job.order["methods"]))
                handed.add(workflow_id)
        stop.wait(POLL_S)


def _end_parked(store: Store) -> None:
    """A job that the engine is through with and that did not end fails: somebody waits for it."""
    waiting = {f"{job.id}-{job.attempt}": job for job in store.unfinished()}
    if not waiting:
        return
    given_up = DBOS.list_workflows(
        workflow_ids=list(waiting),
        status=["MAX_RECOVERY_ATTEMPTS_EXCEEDED", "ERROR", "CANCELLED", "SUCCESS"],
        load_input=False,
        load_output=False,
    )
    for workflow in given_up:
        error = ContourcastError(
            "the job was set aside: time and again its worker stopped, or could not write, in it",
            remedy="look into the worker's log, memory and disk, then send the request again",
        )
        store.end_job(waiting[workflow.workflow_id].id, problem=problem_of(error).model_dump())
        log.error("job_parked", job_id=waiting[workflow.workflow_id].id, status=workflow.status)
