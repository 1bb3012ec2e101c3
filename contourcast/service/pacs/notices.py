"""What somebody outside should know: a table that only grows, and webhooks that follow it.

A notice is written in the transaction of what it tells. It names things by UID and id, never a
patient. Programs read the table from the number that they know (``GET /v1/notices?after=N``);
webhooks save them the asking, and are retried as deliveries are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select

from contourcast.service.index.database import Index
from contourcast.service.index.tables import notice, propagation
from contourcast.service.intake.states import State
from contourcast.service.pacs.destinations import WebhookDestination
from contourcast.service.pacs.outbox import IN_TURN, Clock, Outbox, moment_text
from contourcast.service.problems import NotFoundError


class Kind(StrEnum):
    """What happened."""

    DONE = "propagation.done"  # waits for a person; the verdict is accept or look
    REJECTED = "propagation.rejected"  # waits for a person; the machine's verdict is reject
    FAILED = "propagation.failed"
    NEEDS_PERSON = "needs_person"  # a question with choices
    INCOMPLETE = "series.incomplete"  # slices are missing, and nobody sends them
    CONFLICT = "conflict"  # two contents under one UID, here or at a destination
    REVISION = "revision"  # slices came after a series was whole
    # A later arrival would supersede what is signed; or it was rejected, and an archive has it.
    SIGNED_OVERTAKEN = "signed.overtaken"
    DELIVERY_DEAD = "delivery.dead"
    DELIVERY_UNCONFIRMED = "delivery.unconfirmed"  # sent, and nobody vouches for it


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One line.

    Attributes:
        number: Grows in the order in which notices became visible.
        subject: A UID or an id.
        body: More of the same; never a name.
    """

    number: int
    at: str
    kind: Kind
    subject: str
    body: dict[str, Any]


class Notices:
    """The table of notices.

    Args:
        index: Where it is.
        hooks: Who is told.
        clock: The time; left out: the database's.
    """

    def __init__(
        self, index: Index, hooks: Sequence[WebhookDestination] = (), *, clock: Clock | None = None
    ) -> None:
        self.index = index
        self._hooks = hooks
        self._outbox = Outbox(index, clock=clock)

    def tell(
        self, at: Connection, kind: Kind, subject: str, *, not_to: str = "", **body: Any
    ) -> int:
        """Writes a notice, and a delivery of it for each webhook that wants its kind; its number.

        Args:
            at: The transaction of what it tells.
            kind: What happened.
            subject: To what: a UID or an id.
            not_to: A webhook that is not told, since it is what this is about.
            body: More, by name; plain values.
        """
        self.index.in_turn(at, IN_TURN)  # else a reader would see 11 before 10, and skip 10
        written = at.execute(
            notice.insert().values(
                at=moment_text(self._outbox.now()),
                kind=kind,
                subject=subject,
                body_json=body,
            )
        ).inserted_primary_key
        assert written is not None, "every row has a number"
        number = int(written[0])
        for hook in self._hooks:
            if hook.name != not_to and (hook.kinds is None or kind in hook.kinds):
                self._outbox.put(at, destination=hook.name, objects=[{"notice": number}])
        return number

    def tell_withdrawn(
        self, at: Connection, propagation_id: str, *, destination: str, delivery: str
    ) -> None:
        """What was signed is in an archive and was rejected after all: only a person can remove it.

        Args:
            at: The transaction in which that came about.
            propagation_id: On which it was signed.
            destination: The archive's name.
            delivery: By which it went there.
        """
        self.tell(
            at,
            Kind.SIGNED_OVERTAKEN,
            propagation_id,
            destination=destination,
            delivery=delivery,
        )

    def of_state(self, at: Connection, propagation_id: str, state: State) -> None:
        """Tells what is worth telling of a propagation that came into a state."""
        row = at.execute(select(propagation).where(propagation.c.id == propagation_id)).one()
        if state is State.AWAITING_REVIEW:
            kind = Kind.REJECTED if row.verdict == "reject" else Kind.DONE
        elif state in (State.FAILED, State.NEEDS_PERSON):
            kind = Kind.FAILED if state is State.FAILED else Kind.NEEDS_PERSON
        else:
            return
        self.tell(
            at,
            kind,
            propagation_id,
            state=state,
            verdict=row.verdict,
            cbct=row.cbct_series_uid,
            problem=row.problem_json.get("type", ""),
        )

    def list(self, *, after: int = 0, limit: int = 100) -> list[Notice]:
        """Notices in their order, from the one after a number on."""
        query = select(notice).where(notice.c.number > after).order_by(notice.c.number)
        with self.index.read() as at:
            return [
                Notice(
                    number=row.number,
                    at=row.at,
                    kind=Kind(row.kind),
                    subject=row.subject,
                    body=row.body_json,
                )
                for row in at.execute(query.limit(limit))
            ]

    def get(self, number: int) -> Notice:
        """One notice.

        Raises:
            NotFoundError: There is none of that number.
        """
        found = self.list(after=number - 1, limit=1)
        if not found or found[0].number != number:
            raise NotFoundError("no notice has that number", remedy="see /v1/notices")
        return found[0]
