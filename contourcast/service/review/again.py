"""Registration begun again from where a person put the planning CT."""

from __future__ import annotations

from contourcast.imaging.transform import RigidTransform
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import order_id, started_from
from contourcast.service.jobs.propagations import Job
from contourcast.service.pacs.notices import Kind
from contourcast.service.problems import ConflictError
from contourcast.service.records import Records


def begin_again(records: Records, job: Job, planning_from_cbct: RigidTransform) -> str:
    """A new propagation that starts there, and takes the place of the one that was looked at.

    Where it starts is part of its order, so the same start again is the same propagation. What was
    signed stays as it is; a notice says that something came after it.

    Returns:
        The id of the new propagation.

    Raises:
        ConflictError: Something came after this one already, or it was begun at that very place.
    """
    order = started_from(job.order, planning_from_cbct)
    newer = order_id(order)
    if newer == job.id:
        raise ConflictError(
            "this propagation was begun at that very place", remedy="move the planning CT first"
        )
    if job.superseded_by == newer:
        return newer
    if job.state in (State.SUPERSEDED, State.CANCELLED):
        raise ConflictError(
            f"a propagation that is {job.state.value} is not begun again",
            remedy="look at the one that came after it",
        )
    why = "superseded: a person began the registration again from another place"
    with records.index.write() as at:
        records.propagations.open_within(at, newer, order, job.origin)
        for signed in records.propagations.supersede(at, [job.id], newer, why):
            records.notices.tell(at, Kind.SIGNED_OVERTAKEN, signed, newer=newer)
    return newer
