"""What happens to a propagation, in its order; each step outlives any process.

A propagation waits on the queue of its course; what computes waits on the queues of the
processors, so that a network can be drawn on another machine than the rest.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID, WorkflowHandle
from dbos import error as engine_error

from contourcast.imaging.errors import ContourcastError
from contourcast.propagate import DeviceError, is_network
from contourcast.service.jobs import leaving
from contourcast.service.jobs.engine import POLL_S
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.queues import COHORT, COURSE, CPU
from contourcast.service.jobs.steps import Steps
from contourcast.service.problems import (
    BusyError,
    DamagedError,
    DiskFullError,
    StoreError,
    log_fault,
    problem_of,
    unexpected,
)
from contourcast.service.store.disk import writing
from contourcast.service.traces import Trail

# Times that a job may take its worker down before it is set aside.
RECOVERIES: Final = 3
# What only waits for its parts brings nobody down, and pays for its neighbours.
RECOVERIES_OF_WAITING: Final = 10 * RECOVERIES
# What is no fault of the job: a full disk, an index or a store that cannot be reached. A damaged
# file is none of these: it does not mend while a place on a queue is held for it.
MAY_PASS: Final = (BusyError, DiskFullError, StoreError)
# Of one attempt at a delivery, which the outbox repeats: 2 + 4 + 8 … s, over eight minutes in all.
ATTEMPTS: Final = 9
RETRY_S: Final = 2.0
# Of a propagation, which nobody asks for again: each wait is twice the last one, up to the longest.
LONGEST_WAIT_S: Final = 60.0
PATIENCE_S: Final = 24 * 3600.0
PROPAGATE: Final = "propagate"
RETRY: Final = "POST /v1/propagations/{id}/retry"

log = structlog.get_logger()
Outcome = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker runs, and the way to hand work over.

    Attributes:
        hand_over: Puts a job on its queue; a second time is the same workflow.
    """

    hand_over: Callable[[Job], None]


def define(
    steps: Steps,
    queues: Callable[[], Mapping[str, Queue]],
    *,
    trail: Trail,
    gpu_draws: int = 0,
) -> Work:
    """Defines the workflows over these steps, before the engine is launched.

    Args:
        steps: What is done.
        queues: By name, once the engine runs.
        trail: Where each step is told.
        gpu_draws: Networks that are drawn on a GPU before this process ends itself; 0: it does not.
    """
    drawn_here: set[tuple[str, str]] = set()  # on this process's GPU, perhaps not yet written down
    drawn = 0  # written down

    def step(name: str, function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        """A step by itself on a queue.

        A refusal is its outcome, and so is what did not pass; nothing is raised into the engine.
        A GPU that is lost is none: the process ends, and the step is begun again in a new one.
        """

        def told(propagation: str, *args: Any) -> Outcome:
            with trail.span(propagation, name, **({"method": args[0]} if name == "draw" else {})):
                return tried(propagation, *args)

        def tried(propagation: str, *args: Any) -> Outcome:
            try:
                return waited_out(lambda: function(propagation, *args), job_id=propagation)
            except DeviceError as error:
                log_fault("gpu_lost", error.__cause__ or error, trace="", job_id=propagation)
                leaving.at_once()
            except ContourcastError as error:
                return {"problem": problem_of(error).model_dump()}
            except Exception as error:  # the engine would log and keep its message
                trace = uuid.uuid4().hex
                log_fault("step_failed", error, trace=trace, job_id=propagation, step=name)
                return {"problem": unexpected(trace).model_dump()}

        return DBOS.step(name=name)(told)

    def job(
        name: str, function: Callable[..., Outcome], then: Callable[..., None] = lambda *_: None
    ) -> Callable[..., Outcome]:
        one = step(name, function)

        @DBOS.workflow(name=f"{name}_job", max_recovery_attempts=RECOVERIES)
        def run(propagation: str, *args: Any) -> Outcome:
            outcome = one(propagation, *args)
            then(propagation, *args)  # what came of the step is written down by now
            return outcome

        return run

    def noted(propagation: str, method: str, *args: Any) -> Outcome:
        outcome = steps.draw(propagation, method, *args)
        if steps.device.startswith("cuda") and is_network(method):
            drawn_here.add((propagation, method))
        return outcome

    def renewed(propagation: str, method: str, *_: Any) -> None:
        """Ends this process in good order, once it has drawn as much on its GPU as it was to.

        Each network counts when its own contour is written down: any sooner, and that of another
        thread would be drawn again.
        """
        nonlocal drawn
        if (propagation, method) in drawn_here:
            drawn_here.remove((propagation, method))
            drawn += 1
            if drawn == gpu_draws:
                log.info("worker_renewed", draws=drawn)
                leaving.in_good_order()

    register = job("register", steps.register)
    draw = job("draw", noted, renewed)
    finish = job("finish", steps.finish)
    place = step("place", steps.place)

    def ended(propagation: str, *args: Any) -> Outcome:
        outcome = steps.end(propagation, *args)
        trail.whole(propagation, steps.began)
        return outcome

    end = step("end", ended)

    @DBOS.workflow(name=PROPAGATE, max_recovery_attempts=RECOVERIES_OF_WAITING)
    def propagate(propagation: str, attempt: int, methods: str, priority: int) -> str:
        def start(
            queue: str, part: str, run: Callable[..., Outcome], *args: Any
        ) -> WorkflowHandle[Outcome]:
            with (
                SetWorkflowID(part_id(propagation, attempt, part)),
                SetEnqueueOptions(priority=priority),
            ):
                return _registered(queues, queue).enqueue(run, propagation, *args)

        try:
            registered = _done(start(CPU, "register", register))
            drawing = [
                start(
                    place(propagation)["queue"] if is_network(method) else CPU,
                    f"draw-{method}",
                    draw,
                    method,
                    registered["registrations"],
                    registered["r_ct"],
                )
                for method in methods.split(",")
            ]
            contours = [_done(handle)["drawn"] for handle in drawing]
            outcome = _done(start(CPU, "finish", finish, registered, contours))
        except _EndedError as ended:
            outcome = ended.outcome
        end(propagation, outcome, attempt)
        return "failed" if "problem" in outcome else "done"

    def hand_over(asked: Job) -> None:
        queue = COHORT if asked.origin.cohort else COURSE
        partition = None if queue == COHORT else asked.origin.course_id or asked.id
        with (
            SetWorkflowID(workflow_id(asked)),
            SetEnqueueOptions(queue_partition_key=partition),
        ):
            queues()[queue].enqueue(
                propagate,
                asked.id,
                asked.attempt,
                ",".join(asked.order["methods"]),
                asked.origin.priority,
            )

    return Work(hand_over=hand_over)


def waited_out(work: Callable[[], Outcome], **told: str) -> Outcome:
    """Does some work, and again after a while as long as what hinders it may pass.

    The engine's own retries keep every error, with all that its frames hold, and wait for ever
    longer: after an outage of hours another one would go by.

    Args:
        work: Harmless twice.
        told: For the log.

    Raises:
        BusyError, DiskFullError, StoreError: It did not pass within our patience.
        DamagedError: One file is not what was put there.
    """
    wait_s, waited_s = RETRY_S, 0.0
    while True:
        try:
            with writing():
                return work()
        except DamagedError:
            raise
        except MAY_PASS as error:
            if waited_s >= PATIENCE_S:
                raise
            log.warning("waits", cause=error.cause, wait_s=wait_s, **told)
        time.sleep(wait_s)
        waited_s += wait_s
        wait_s = min(2.0 * wait_s, LONGEST_WAIT_S)


def workflow_id(job: Job) -> str:
    """The engine's name for an attempt at a propagation."""
    return f"{job.id}-{job.attempt}"


def part_id(propagation: str, attempt: int, part: str) -> str:
    """The engine's name for a part of it."""
    return f"{propagation}-{attempt}-{part}"


def part_ids(job: Job) -> Sequence[str]:
    """Every part that an attempt may have, whether it was begun or not."""
    parts = ("register", *(f"draw-{method}" for method in job.order["methods"]), "finish")
    return [part_id(job.id, job.attempt, part) for part in parts]


class _EndedError(Exception):
    """A step could not do its work; carries what it said."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__("a step ended the job")


def _registered(queues: Callable[[], Mapping[str, Queue]], name: str) -> Queue:
    """A queue, waited for: the engine takes up what was left before queues are registered."""
    while name not in (known := queues()):
        time.sleep(POLL_S)
    return known[name]


def _done(handle: WorkflowHandle[Outcome]) -> Outcome:
    """What a part said, once it is through."""
    try:
        outcome = handle.get_result(polling_interval_sec=POLL_S)
    except engine_error.DBOSException as error:
        log.error("part_given_up", part=handle.get_workflow_id(), reason=type(error).__name__)
        raise _EndedError({"problem": problem_of(set_aside(RETRY)).model_dump()}) from error
    if "problem" in outcome:
        raise _EndedError(outcome)
    return outcome


def set_aside(again: str) -> ContourcastError:
    """What is said of a job that the engine gave up on.

    Args:
        again: The route by which it is done after all.
    """
    return ContourcastError(
        "the job was set aside: time and again its worker stopped, or could not write, in it",
        remedy="look into the worker's log, memory, disk and GPU, then have it tried again: "
        f"{again}",
    )
