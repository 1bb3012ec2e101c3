"""Deliveries as workflows: one for each attempt, one after another to each destination.

The table of deliveries is what was promised; the engine's tables follow it. Handing an attempt over
twice is harmless, for its number is in the workflow's id.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID

from contourcast.imaging.errors import ContourcastError
from contourcast.service.jobs.duties import Duty
from contourcast.service.jobs.queues import DELIVER
from contourcast.service.jobs.take_over import GIVEN_UP
from contourcast.service.jobs.workflow import ATTEMPTS, MAY_PASS, RECOVERIES, RETRY_S, set_aside
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.outbox import Delivery, DeliveryState
from contourcast.service.problems import log_fault
from contourcast.service.store.disk import writing

LOOK_S: Final = 0.5
# Of each destination, so that what waits for one that is down does not hide the others.
AT_A_LOOK: Final = 8
RESEND: Final = "POST /v1/deliveries/{id}/resend"


@dataclass(frozen=True, kw_only=True)
class Delivering:
    """What a worker runs.

    Attributes:
        hand_over: Puts what a delivery has to do next on the queue; once more is nothing new.
    """

    hand_over: Callable[[Delivery], None]


def define(deliveries: Deliveries, queues: Callable[[], Mapping[str, Queue]]) -> Delivering:
    """Defines the workflows, before the engine is launched."""

    @DBOS.step(
        name="deliver_step",
        retries_allowed=True,
        max_attempts=ATTEMPTS,
        interval_seconds=RETRY_S,
        should_retry=lambda error: isinstance(error, MAY_PASS),
    )
    def step(delivery_id: str, attempts: int, looks: int | None) -> str:
        try:
            with writing():
                if looks is None:
                    deliveries.attempt(delivery_id, attempts)
                else:
                    deliveries.confirm(delivery_id, attempts, looks)
        except MAY_PASS:
            raise
        except Exception as error:  # the engine would log and keep its message
            trace = uuid.uuid4().hex
            log_fault("delivery_failed", error, trace=trace, delivery=delivery_id)
            _pass_over(deliveries, delivery_id, attempts, looks, _fault(trace))
        return "done"

    @DBOS.workflow(name="deliver", max_recovery_attempts=RECOVERIES)
    def deliver(delivery_id: str, attempts: int, looks: int | None) -> str:
        return step(delivery_id, attempts, looks)

    def hand_over(due: Delivery) -> None:
        looks = due.looks if due.state is DeliveryState.DELIVERED else None
        with (
            SetWorkflowID(workflow_id(due)),
            SetEnqueueOptions(queue_partition_key=due.destination),
        ):
            queues()[DELIVER].enqueue(deliver, due.id, due.attempts, looks)

    return Delivering(hand_over=hand_over)


def workflow_id(due: Delivery) -> str:
    """The engine's name for what a delivery has to do next."""
    if due.state is DeliveryState.DELIVERED:
        return f"confirm-{due.id}-{due.attempts}-{due.looks}"
    return f"deliver-{due.id}-{due.attempts}"


def handing_over(deliveries: Deliveries, defined: Delivering) -> Duty:
    """Gives the engine what is due; what the engine gave up counts as an attempt that failed."""
    handed: dict[str, Delivery] = {}

    def hand_over() -> None:
        due = {
            workflow_id(one): one
            for destination in deliveries.outbox.busy()
            for one in deliveries.outbox.due(destination, limit=AT_A_LOOK)
        }
        for name in due.keys() - handed.keys():
            defined.hand_over(due[name])
        left = [name for name in due if name in handed]
        handed.clear()
        handed.update(due)
        for name in _ended(left):
            one = handed.pop(name)
            looks = one.looks if one.state is DeliveryState.DELIVERED else None
            _pass_over(deliveries, one.id, one.attempts, looks, set_aside(RESEND))

    return Duty(name="deliver", every_s=LOOK_S, run=hand_over)


def _pass_over(
    deliveries: Deliveries,
    delivery_id: str,
    attempts: int,
    looks: int | None,
    error: ContourcastError,
) -> None:
    """Goes on after an attempt, or a look, of which nobody wrote down what came of it."""
    seen = deliveries.outbox.get(delivery_id)
    if seen.attempts != attempts:
        return
    if looks is None and seen.state is DeliveryState.WAITING:
        deliveries.failed(seen, error)
    elif seen.state is DeliveryState.DELIVERED and seen.looks == looks:
        deliveries.not_answered(seen, error)


def _ended(ids: list[str]) -> list[str]:
    if not ids:
        return []
    found = DBOS.list_workflows(
        workflow_ids=ids, status=list(GIVEN_UP), load_input=False, load_output=False
    )
    return [workflow.workflow_id for workflow in found]


def _fault(trace: str) -> ContourcastError:
    return ContourcastError(
        "the service failed in a way that it did not foresee",
        remedy=f"tell whoever runs the service to look for {trace} in its log",
    )
