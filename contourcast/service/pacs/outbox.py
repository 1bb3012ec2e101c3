"""The table of deliveries: what shall go where, and how far that is.

A row is written in the transaction that makes it due; its id is the digest of what goes where, so
whoever writes it twice writes it once. What becomes of an attempt is written only as long as the
row still is at that attempt: of two workers on one delivery, one is believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, or_, select, update

from contourcast.service.index.database import Index, as_json
from contourcast.service.index.tables import delivery
from contourcast.service.problems import ForbiddenTransitionError, NotFoundError

# CLINICAL_SERVICE §6.1, "destination down".
FIRST_WAIT_S: Final = 10.0
LONGEST_WAIT_S: Final = 3600.0
GIVE_UP_AFTER_S: Final = 3 * 24 * 3600.0
JITTER: Final = 0.2  # so that what failed together does not come back together
# Names the lock under which rows of deliveries and notices get their numbers.
IN_TURN: Final = "outbox"

Clock = Callable[[], datetime]


class DeliveryState(StrEnum):
    """Where a delivery is."""

    WAITING = "waiting"
    HELD = "held"  # by a person
    DELIVERED = "delivered"
    DEAD = "dead"  # given up; a person may send it again
    DROPPED = "dropped"  # before it went out: cancelled or superseded, or its signature withdrawn


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Something for one destination.

    Attributes:
        number: Counts up.
        propagation: Whose results these are; empty of a notice.
        objects: What goes: role, name and digest of each file; once it was sent, its UIDs, too.
        attempts: How many have ended, whatever came of them.
        next_at: Before then nobody tries.
        confirm_at: When it is asked whether all is really there; None: not to be asked (again).
        receipt: What the destination said, and how often it was tried or asked.
        problem: Why the last attempt failed.
    """

    id: str
    number: int
    propagation: str
    destination: str
    objects: list[dict[str, Any]]
    state: DeliveryState
    attempts: int
    made_at: str
    next_at: str
    confirm_at: str | None
    receipt: dict[str, Any]
    problem: dict[str, Any]

    @property
    def tries(self) -> int:
        """Attempts since it was made, or since a person sent it again."""
        return self.attempts - int(self.receipt.get("tries_from", 0))

    @property
    def is_signed(self) -> bool:
        """Whether it carries what a person signed."""
        return any(one.get("role") == "signed" for one in self.objects)

    @property
    def looks(self) -> int:
        """How often it was asked in vain, since the last attempt, whether all is there."""
        return int(self.receipt.get("looks", 0))


class Outbox:
    """The rows.

    Args:
        index: Where they are.
        clock: The time; left out: the database's, which all machines share.
    """

    def __init__(self, index: Index, *, clock: Clock | None = None) -> None:
        self.index = index
        self._clock = clock or (lambda: datetime.fromtimestamp(index.clock_s(), UTC))

    def now(self) -> datetime:
        """The time by which everything here is due."""
        return self._clock()

    def put(
        self,
        at: Connection,
        *,
        destination: str,
        objects: Sequence[dict[str, Any]],
        propagation: str = "",
    ) -> str:
        """A delivery that is due at once; its id. Once it is there, nothing happens.

        What was dropped goes on: its propagation is current again.
        """
        content = as_json([destination, propagation, list(objects)])
        delivery_id = hashlib.sha256(content.encode()).hexdigest()[:32]
        self.index.in_turn(at, IN_TURN)
        last = at.execute(select(func.max(delivery.c.number))).scalar()
        moment = moment_text(self.now())
        row = {
            "id": delivery_id,
            "number": int(last or 0) + 1,
            "propagation": propagation,
            "destination": destination,
            "objects_json": list(objects),
            "state": DeliveryState.WAITING,
            "attempts": 0,
            "made_at": moment,
            "next_at": moment,
            "receipt_json": {},
            "problem_json": {},
        }
        if not at.execute(self.index.insert_new(delivery, row)).rowcount:
            at.execute(
                update(delivery)
                .where(delivery.c.id == delivery_id, delivery.c.state == DeliveryState.DROPPED)
                .values(state=DeliveryState.WAITING, next_at=moment, problem_json={})
            )
        return delivery_id

    def get(self, delivery_id: str) -> Delivery:
        """One delivery.

        Raises:
            NotFoundError: There is none of that id.
        """
        with self.index.read() as at:
            return _found(at.execute(select(delivery).where(delivery.c.id == delivery_id)).first())

    def list(
        self, *, before: int | None = None, limit: int = 100, **equal: str | None
    ) -> Sequence[Delivery]:
        """Deliveries, newest first.

        Args:
            before: Only those with a smaller number.
            limit: At most so many.
            equal: Columns (state, destination, propagation) and the values they must have.
        """
        query = select(delivery).order_by(delivery.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(delivery.c.number < before)
        for column, value in equal.items():
            if value is not None:
                query = query.where(delivery.c[column] == value)
        return self._select(query)

    def due(self, destination: str, *, limit: int) -> Sequence[Delivery]:
        """What is to be sent to a destination now, or asked of it, the longest due first."""
        moment = moment_text(self.now())
        to_send = (delivery.c.state == DeliveryState.WAITING) & (delivery.c.next_at <= moment)
        to_ask = (delivery.c.state == DeliveryState.DELIVERED) & (delivery.c.confirm_at <= moment)
        return self._select(
            select(delivery)
            .where(delivery.c.destination == destination, or_(to_send, to_ask))
            .order_by(delivery.c.next_at, delivery.c.number)
            .limit(limit)
        )

    def busy(self) -> Sequence[str]:
        """The destinations for which something waits, or that are to be asked something."""
        open_ = or_(delivery.c.state == DeliveryState.WAITING, delivery.c.confirm_at.is_not(None))
        query = select(delivery.c.destination).where(open_).distinct()
        with self.index.read() as at:
            return sorted(at.execute(query).scalars())

    def counts(self) -> dict[tuple[str, str], int]:
        """How many are in each state, by destination and state."""
        query = select(delivery.c.destination, delivery.c.state, func.count().label("count"))
        grouped = query.group_by(delivery.c.destination, delivery.c.state)
        with self.index.read() as at:
            return {(row.destination, row.state): int(row[2]) for row in at.execute(grouped)}

    def change(self, at: Connection, seen: Delivery, **values: Any) -> bool:
        """Writes to a row that still is as it was seen; whether it was."""
        changed = at.execute(
            update(delivery)
            .where(
                delivery.c.id == seen.id,
                delivery.c.state == seen.state,
                delivery.c.attempts == seen.attempts,
                delivery.c.next_at == seen.next_at,
            )
            .values(**values)
        )
        return changed.rowcount == 1

    def untried(self, at: Connection, propagation: str) -> int:
        """Deliveries of a propagation that were not once tried."""
        return int(
            at.execute(
                select(func.count()).where(
                    delivery.c.propagation == propagation,
                    delivery.c.state == DeliveryState.WAITING,
                    delivery.c.attempts == 0,
                )
            ).scalar_one()
        )

    def unconfirmed(self) -> Sequence[Delivery]:
        """Those that were sent and not yet vouched for."""
        return self._select(
            select(delivery).where(
                delivery.c.state == DeliveryState.DELIVERED, delivery.c.confirm_at.is_not(None)
            )
        )

    def resend(self, delivery_id: str) -> Delivery:
        """Sends it again, or for the first time what was held, and as often as if it were new.

        Raises:
            NotFoundError: There is none of that id.
        """
        with self.index.write() as at:
            seen = _locked(at, delivery_id)
            at.execute(
                update(delivery)
                .where(delivery.c.id == delivery_id)
                .values(
                    state=DeliveryState.WAITING,
                    next_at=moment_text(self.now()),
                    confirm_at=None,
                    receipt_json={"tries_from": seen.attempts},
                    problem_json={},
                )
            )
        return self.get(delivery_id)

    def hold(self, delivery_id: str) -> Delivery:
        """Keeps back what waits; a person sends it when it is time.

        Raises:
            NotFoundError: There is none of that id.
            ForbiddenTransitionError: It does not wait.
        """
        with self.index.write() as at:
            seen = _locked(at, delivery_id)
            if seen.state is not DeliveryState.WAITING:
                raise ForbiddenTransitionError(
                    f"a delivery that is {seen.state.value} cannot be held",
                    remedy="only what waits can be kept back",
                )
            self.change(at, seen, state=DeliveryState.HELD)
        return self.get(delivery_id)

    def _select(self, query: Select[Any]) -> Sequence[Delivery]:
        with self.index.read() as at:
            return [_delivery(row) for row in at.execute(query)]


def signed_and_taken(at: Connection, propagation: str) -> list[Delivery]:
    """Deliveries of what was signed on a propagation that archives have taken."""
    query = select(delivery).where(
        delivery.c.propagation == propagation, delivery.c.state == DeliveryState.DELIVERED
    )
    return [one for one in map(_delivery, at.execute(query)) if one.is_signed]


def wait_s(delivery_id: str, tries: int) -> float:
    """Seconds until the next try, after so many that failed: doubling, and a little apart."""
    plain = min(FIRST_WAIT_S * 2.0 ** min(tries - 1, 20), LONGEST_WAIT_S)
    digest = hashlib.sha256(f"{delivery_id} {tries}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return plain * (1 - JITTER + 2 * JITTER * share)


def _tries_at_most() -> int:
    tries, seconds = 1, 0.0
    while seconds < GIVE_UP_AFTER_S:
        seconds += min(FIRST_WAIT_S * 2.0 ** min(tries - 1, 20), LONGEST_WAIT_S)
        tries += 1
    return tries


# As many as fit into the time: while the service itself stands still, no try is lost.
TRIES_AT_MOST: Final = _tries_at_most()


def moment_text(moment: datetime, *, later_s: float = 0.0) -> str:
    """A time as text that sorts."""
    return (moment + timedelta(seconds=later_s)).isoformat(timespec="milliseconds")


def _locked(at: Connection, delivery_id: str) -> Delivery:
    """A delivery that nobody else changes until the transaction ends."""
    query = select(delivery).where(delivery.c.id == delivery_id)
    return _found(at.execute(query.with_for_update()).first())


def _found(row: Row[Any] | None) -> Delivery:
    if row is None:
        raise NotFoundError("no delivery has that id", remedy="see /v1/deliveries for the ids")
    return _delivery(row)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        number=row.number,
        propagation=row.propagation,
        destination=row.destination,
        objects=row.objects_json,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        made_at=row.made_at,
        next_at=row.next_at,
        confirm_at=row.confirm_at,
        receipt=row.receipt_json,
        problem=row.problem_json,
    )
