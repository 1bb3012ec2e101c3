"""Taking over from the dead, and giving up what no worker survives.

The engine takes a job up again only under the name that it ran under. So each worker says every few
seconds, by the database's clock, that it is alive; what belongs to one that was silent for too long
is queued again, unless it took too many down already. A worker that was merely slow may still be at
it: steps are harmless twice. While the database is away nobody can say anything; so whoever could
not do so itself lets the others speak first. What a worker of an older version left is begun again,
for its steps were others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import structlog
from dbos import DBOS, WorkflowStatus

from contourcast.service.jobs.engine import WORKFLOW_VERSION
from contourcast.service.jobs.propagations import Job, Propagations
from contourcast.service.jobs.queues import CPU, GPU
from contourcast.service.jobs.workers import Workers
from contourcast.service.jobs.workflow import (
    PROPAGATE,
    RECOVERIES,
    RETRY,
    part_ids,
    set_aside,
    workflow_id,
)
from contourcast.service.problems import problem_of

HEARTBEAT_S: Final = 5.0
SILENCE_S: Final = 60.0
EVERY_S: Final = 10.0
# Whoever could not speak for so long was cut off, and others perhaps a little longer.
INTERRUPTED_S: Final = SILENCE_S / 2
# Under this name a workflow carries how often it was begun before it was last queued again.
RUNS: Final = "runs"
GIVEN_UP: Final = ("MAX_RECOVERY_ATTEMPTS_EXCEEDED", "ERROR", "CANCELLED", "SUCCESS")

log = structlog.get_logger()


class Heartbeat:
    """What a worker says of itself; and, once the others could speak too, who of them does not.

    Args:
        workers: Who was seen when.
        slot: Our own name.
        queues: Ours, joined by commas.
    """

    def __init__(self, workers: Workers, slot: str, queues: str) -> None:
        self.workers, self.slot, self._queues = workers, slot, queues
        self._beat_s = time.monotonic()
        self._judging_from_s = self._beat_s

    def beat(self) -> None:
        """We are alive."""
        self.workers.seen(self.slot, self._queues)
        at_s = time.monotonic()
        if at_s - self._beat_s > INTERRUPTED_S:
            self._judging_from_s = at_s + SILENCE_S
        self._beat_s = at_s

    def may_judge(self) -> bool:
        """Whether silence is the others' own: they had as long as they may take to say something.

        Raises:
            BusyError: The database cannot be reached.
        """
        self.beat()
        return time.monotonic() >= self._judging_from_s

    def silent(self) -> set[str]:
        """Others that were silent for too long."""
        seen = self.workers.silent_s().items()
        return {name for name, silent_s in seen if silent_s > SILENCE_S} - {self.slot}


def take_over(heart: Heartbeat) -> None:
    """Queues again what silent workers had begun, and what waits for a GPU that is gone."""
    if not heart.may_judge():
        return
    silent = heart.silent()
    if silent:
        left = DBOS.list_workflows(
            status="PENDING",
            executor_id=sorted(silent),
            app_version=WORKFLOW_VERSION,
            load_input=False,
            load_output=False,
        )
        for workflow in left:
            if _queued_again(workflow, workflow.queue_name):
                log.warning("taken_over", workflow=workflow.workflow_id, of=workflow.executor_id)
    if not heart.workers.listening(GPU, within_s=SILENCE_S):
        waiting = DBOS.list_workflows(
            status="ENQUEUED", queue_name=GPU, load_input=False, load_output=False
        )
        for workflow in waiting:
            if _queued_again(workflow, CPU):
                log.warning("gpu_gone", workflow=workflow.workflow_id)


def start_anew(heart: Heartbeat, propagations: Propagations) -> None:
    """What an older version left is begun again under ours, from what was promised.

    The engine gives work of another version to nobody, and the steps have changed. Workers of the
    older version that still live end what they run; their successors, of the same names, do not.

    Args:
        heart: Who lives; whatever an older version ran under our own name runs no more.
        propagations: What was promised.
    """
    if not heart.may_judge():
        return
    older = [str(version) for version in range(1, int(WORKFLOW_VERSION))]
    left = DBOS.list_workflows(
        status=["PENDING", "ENQUEUED"], app_version=older, load_input=False, load_output=False
    )
    gone = heart.silent() | {heart.slot}
    ids = {w.workflow_id for w in left if w.status == "ENQUEUED" or w.executor_id in gone}
    if not ids:
        return
    for job in propagations.unfinished():
        if ids & {workflow_id(job), *part_ids(job)}:
            propagations.begin_again(job)
            cancel([job])
            log.warning("begun_again", job_id=job.id, attempt=job.attempt + 1)
    DBOS.cancel_workflows(sorted(ids))


def end_given_up(propagations: Propagations) -> None:
    """A job that the engine is through with and that did not end fails: somebody waits for it."""
    waiting = {workflow_id(job): job for job in propagations.unfinished()}
    for status, workflow in _ended(list(waiting)):
        job = waiting[workflow]
        problem = problem_of(set_aside(RETRY)).model_dump()
        propagations.end(job.id, attempt=job.attempt, problem=problem)
        log.error("job_parked", job_id=job.id, status=status)


def cancel(jobs: Sequence[Job]) -> None:
    """Takes jobs off their queues, with all their parts."""
    for job in jobs:
        DBOS.cancel_workflows([workflow_id(job), *_known(part_ids(job))])
        log.info("job_cancelled", job_id=job.id)


def _queued_again(workflow: WorkflowStatus, queue: str | None) -> bool:
    """Queues it again; one that has been begun as often as may be is set aside instead.

    The engine counts from nothing after this, so we keep what it had counted. What only waits for
    its parts is queued again in any case: it brings nobody down, and would pay for its neighbours.
    """
    runs = int((workflow.attributes or {}).get(RUNS, 0)) + int(workflow.recovery_attempts or 0)
    if runs > RECOVERIES and workflow.name != PROPAGATE:
        DBOS.cancel_workflow(workflow.workflow_id)
        log.error("set_aside", workflow=workflow.workflow_id, runs=runs)
        return False
    DBOS.update_workflow_attributes(workflow.workflow_id, {RUNS: runs}, merge=True)
    DBOS.resume_workflow(workflow.workflow_id, queue_name=queue)
    return True


def _known(ids: Sequence[str]) -> list[str]:
    found = DBOS.list_workflows(workflow_ids=list(ids), load_input=False, load_output=False)
    return [workflow.workflow_id for workflow in found]


def _ended(ids: list[str]) -> list[tuple[str, str]]:
    if not ids:
        return []
    found = DBOS.list_workflows(
        workflow_ids=ids, status=list(GIVEN_UP), load_input=False, load_output=False
    )
    return [(workflow.status, workflow.workflow_id) for workflow in found]
