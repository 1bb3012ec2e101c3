"""From results to receipts: what goes where, sending it, and making sure that it is there.

The rows are written in the transaction that ends a job. Every attempt is a workflow of its own on
the queue of its destination, so one that is down holds up nobody else. Sending twice is harmless,
whatever died in between: an archive that has an instance already says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, select

from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import ContourcastError
from contourcast.service.access.audit import Happening, append
from contourcast.service.access.roles import What
from contourcast.service.index.tables import instance, propagation, review
from contourcast.service.intake.states import State
from contourcast.service.intake.withdrawn import WITHDRAWN
from contourcast.service.jobs.propagations import Job
from contourcast.service.pacs import ways, webhooks
from contourcast.service.pacs.destinations import (
    Archive,
    Destination,
    DimseDestination,
    WebhookDestination,
    by_name,
)
from contourcast.service.pacs.door import Receipt
from contourcast.service.pacs.node import Commitment
from contourcast.service.pacs.notices import Kind
from contourcast.service.pacs.objects import Objects, structure_set, wanted
from contourcast.service.pacs.outbox import (
    TRIES_AT_MOST,
    Clock,
    Delivery,
    DeliveryState,
    Outbox,
    moment_text,
    wait_s,
)
from contourcast.service.problems import (
    BusyError,
    ConflictError,
    DamagedError,
    DiskFullError,
    PeerError,
    SettingsError,
    StoreError,
    problem_of,
)
from contourcast.service.records import Records

# After which an archive is asked whether it kept what it took (CLINICAL_SERVICE §6.1).
CONFIRM_AFTER_S: Final = 60.0
GONE: Final = frozenset({State.CANCELLED, State.SUPERSEDED})

log = structlog.get_logger()


class Deliveries:
    """Everything that goes out.

    Args:
        records: Index and store.
        destinations: Of the settings.
        clock: The time; left out: the database's.

    Raises:
        SettingsError: Two destinations have one name.
    """

    def __init__(
        self,
        records: Records,
        destinations: Sequence[Destination],
        *,
        clock: Clock | None = None,
    ) -> None:
        self.records = records
        self.destinations = by_name(destinations)
        self.outbox = Outbox(records.index, clock=clock)
        self._objects = Objects(records)

    # What goes where

    def plan(self, at: Connection, job: Job, files: Mapping[str, str]) -> bool:
        """Notes what goes where, in the transaction that ends a job.

        Args:
            at: The transaction.
            job: With its verdict.
            files: Name to SHA-256 of its results.

        Returns:
            Whether there is something that was not once tried.
        """
        for archive in self._archives(job.origin.cohort):
            if objects := wanted(archive, job.verdict, files):
                self.outbox.put(at, destination=archive.name, propagation=job.id, objects=objects)
        return self.outbox.untried(at, job.id) > 0

    def plan_signed(self, at: Connection, propagation_id: str, name: str, digest: str) -> list[str]:
        """Notes where a signed structure set goes, in the transaction of the signature.

        Args:
            at: The transaction.
            propagation_id: Whose result it is.
            name: Of the file among the results.
            digest: SHA-256 of it.

        Returns:
            The ids of the deliveries.
        """
        cohort = at.execute(
            select(propagation.c.cohort_id).where(propagation.c.id == propagation_id)
        ).scalar_one()
        return [
            self.outbox.put(
                at,
                destination=archive.name,
                propagation=propagation_id,
                objects=[structure_set(archive, "signed", name, digest)],
            )
            for archive in self._archives(cohort)
            if archive.signed
        ]

    def _archives(self, cohort: str | None) -> list[Archive]:
        """Those that want what is drawn of a cohort, or of a patient of today."""
        archives = [d for d in self.destinations.values() if not isinstance(d, WebhookDestination)]
        return [d for d in archives if d.cohorts or not cohort]

    # Sending

    def attempt(self, delivery_id: str, attempts: int) -> None:
        """One attempt at a delivery, if it still is at that one.

        Raises:
            BusyError, DiskFullError, StoreError: Ours, not the destination's: it counts as none.
        """
        seen = self.outbox.get(delivery_id)
        if seen.state is not DeliveryState.WAITING or seen.attempts != attempts:
            return
        if self._is_gone(seen):
            self._end(seen, DeliveryState.DROPPED)
            return
        try:
            destination = self._destination(seen)
            if isinstance(destination, WebhookDestination):
                receipts = [self._post(seen, destination)]
            else:
                receipts = self._send(seen, destination)
        except (PeerError, SettingsError) as error:
            self.failed(seen, error)
            return
        except ContourcastError as error:
            if _is_ours(error):
                raise
            self.failed(seen, error, for_good=True)
            return
        self._judge(seen, destination, receipts)

    def _destination(self, seen: Delivery) -> Destination:
        if seen.destination not in self.destinations:
            raise SettingsError(
                f"no destination is called '{seen.destination}' any more",
                remedy="put it back into the settings, or let the delivery be given up",
            )
        return self.destinations[seen.destination]

    def _is_gone(self, seen: Delivery) -> bool:
        """Whether what it carries is no longer current; what is signed is, until it is rejected."""
        if not seen.propagation:
            return False
        if seen.is_signed:
            with self.records.index.read() as at:
                return _carries_withdrawn(at, seen)
        return self.records.propagations.job(seen.propagation).state in GONE

    def _post(self, seen: Delivery, hook: WebhookDestination) -> Receipt:
        notice = self.records.notices.get(int(seen.objects[0]["notice"]))
        at_s = self.outbox.now().timestamp()
        status = webhooks.post(hook, notice, event=seen.id, at_s=at_s)
        return Receipt(sop_instance_uid="", outcome="stored", reason=f"status {status}")

    def _send(self, seen: Delivery, archive: Archive) -> list[Receipt]:
        paths = self._objects.files(seen)
        with ways.way_to(archive) as way:
            return way.send(paths)

    def _judge(self, seen: Delivery, to: Destination, receipts: Sequence[Receipt]) -> None:
        """What the destination said decides how it goes on."""
        told = [asdict(receipt) for receipt in receipts]
        if any(receipt.outcome == "conflict" for receipt in receipts):
            self.failed(seen, _conflict(to.name, receipts), for_good=True, receipts=told)
        elif any(receipt.outcome == "refused" for receipt in receipts):
            self.failed(seen, _refused(to.name, receipts), receipts=told)
        else:
            to_confirm = not isinstance(to, WebhookDestination) and to.confirm
            now = self.outbox.now()
            self._end(
                seen,
                DeliveryState.DELIVERED,
                receipt={"sent_at": moment_text(now), "instances": told},
                confirm_at=moment_text(now, later_s=CONFIRM_AFTER_S) if to_confirm else None,
                objects=None if isinstance(to, WebhookDestination) else self._objects.named(seen),
            )

    def failed(
        self,
        seen: Delivery,
        error: ContourcastError,
        *,
        for_good: bool = False,
        receipts: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """An attempt came to nothing: there is another one later, or none any more.

        Args:
            seen: As it was before.
            error: Why.
            for_good: Whether another attempt would end in the same way.
            receipts: What the destination said of each instance.
        """
        if for_good or seen.tries + 1 >= TRIES_AT_MOST:
            self._end(seen, DeliveryState.DEAD, error, receipt={"instances": list(receipts)})
        else:
            self._end(seen, DeliveryState.WAITING, error, receipt={"instances": list(receipts)})

    def _end(
        self,
        seen: Delivery,
        state: DeliveryState,
        error: ContourcastError | None = None,
        *,
        receipt: Mapping[str, Any] | None = None,
        confirm_at: str | None = None,
        objects: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Writes down what became of an attempt, and all that follows from it, as one."""
        later_s = wait_s(seen.id, seen.tries + 1) if state is DeliveryState.WAITING else 0.0
        next_at = moment_text(self.outbox.now(), later_s=later_s)
        whole = state is DeliveryState.DELIVERED
        there = _there(receipt or {})
        told_before = seen.receipt.get("left", [])
        # what stays there while the rest is tried again has its row at the first of the tries
        left = there if whole else [uid for uid in there if uid not in told_before]
        with self.records.index.write() as at:
            self._lock(at, seen.propagation)
            if not self.outbox.change(
                at,
                seen,
                state=state,
                attempts=seen.attempts + 1,
                next_at=next_at,
                confirm_at=confirm_at,
                receipt_json=_kept(seen)
                | dict(receipt or {})
                | ({"left": [*told_before, *left]} if left and not whole else {}),
                problem_json=problem_of(error).model_dump() if error else {},
                **({"objects_json": list(objects)} if objects is not None else {}),
            ):
                return
            if state is DeliveryState.DEAD:
                self._tell_dead(at, seen, error)
            if whole and _carries_withdrawn(at, seen):  # it was rejected while it was on its way
                self.records.notices.tell_withdrawn(
                    at, seen.propagation, destination=seen.destination, delivery=seen.id
                )
            self._settle(at, seen.propagation)
            if left:
                append(self.records.index, at, _left(at, seen, left, whole=whole))
        log.info(
            "delivery",
            delivery=seen.id,
            destination=seen.destination,
            job_id=seen.propagation,
            state=state.value,
            attempts=seen.attempts + 1,
            cause=error.cause if error else "",
        )

    def _tell_dead(self, at: Connection, seen: Delivery, error: ContourcastError | None) -> None:
        if isinstance(error, ConflictError):
            self.records.notices.tell(
                at, Kind.CONFLICT, seen.propagation, destination=seen.destination, delivery=seen.id
            )
        self.records.notices.tell(
            at,
            Kind.DELIVERY_DEAD,
            seen.id,
            not_to=seen.destination,
            destination=seen.destination,
            propagation=seen.propagation,
            problem=f"/problems/{error.code}" if error else "",
        )

    def _lock(self, at: Connection, propagation_id: str) -> None:
        """Two deliveries of one propagation that end at once end one after the other."""
        query = select(propagation.c.id).where(propagation.c.id == propagation_id)
        at.execute(query.with_for_update())

    def _settle(self, at: Connection, propagation_id: str) -> None:
        """The results wait for a person once every destination had its first chance."""
        row = at.execute(select(propagation).where(propagation.c.id == propagation_id)).first()
        if row is None or State(row.state) is not State.DELIVERING:
            return
        if self.outbox.untried(at, propagation_id) == 0:
            self.records.propagations.move(
                at, propagation_id, State.AWAITING_REVIEW, "sent where it could be sent"
            )

    # Is it really there?

    def confirm(self, delivery_id: str, attempts: int, looks: int) -> None:
        """Asks whether what was taken was kept; what was not is sent again.

        Raises:
            BusyError, DiskFullError, StoreError: Ours, not the destination's.
        """
        seen = self.outbox.get(delivery_id)
        asked = (seen.attempts, seen.looks) == (attempts, looks)
        if seen.state is not DeliveryState.DELIVERED or seen.confirm_at is None or not asked:
            return
        try:
            archive = self._destination(seen)
            assert not isinstance(archive, WebhookDestination), "nobody confirms a notice"
            receipts = self._look(seen, archive)
        except (PeerError, SettingsError) as error:
            self.not_answered(seen, error)
            return
        if receipts is None:
            self._look_later(seen, receipt={"commitment": _transaction_uid(seen)})
            return
        self._vouched(seen, receipts)

    def _look(self, seen: Delivery, archive: Archive) -> list[Receipt] | None:
        """What the archive says of each instance; None: it will say so to our node."""
        paths = self._objects.files(seen)
        if (
            isinstance(archive, DimseDestination)
            and archive.commitment
            and "commitment" not in seen.receipt
        ):
            answer = ways.ask_commitment(archive, paths, transaction_uid=_transaction_uid(seen))
            return None if answer is None else _vouched_for(paths, answer)
        with ways.way_to(archive) as way:
            return way.confirm(paths)

    def committed(self, commitment: Commitment) -> bool:
        """An archive vouches for what it was sent, or does not; whether that was asked by us."""
        for seen in self.outbox.unconfirmed():
            if seen.receipt.get("commitment") == commitment.transaction_uid:
                self._vouched(seen, _vouched_for(self._objects.files(seen), commitment))
                return True
        return False

    def _vouched(self, seen: Delivery, receipts: Sequence[Receipt]) -> None:
        told: dict[str, Any] = {"confirmations": [asdict(receipt) for receipt in receipts]}
        outcomes = {receipt.outcome for receipt in receipts}
        if "conflict" in outcomes:
            self.failed(seen, _conflict(seen.destination, receipts), for_good=True)
        elif "refused" in outcomes:
            lost = PeerError(
                f"'{seen.destination}' took what it was sent and does not have it",
                remedy="it is sent again; if it stays so, look at the disk and log there",
            )
            self.failed(seen, lost)
        else:
            told |= {"confirmed_at": moment_text(self.outbox.now())}
            with self.records.index.write() as at:
                self.outbox.change(
                    at, seen, confirm_at=None, receipt_json=dict(seen.receipt) | told
                )

    def not_answered(self, seen: Delivery, error: ContourcastError) -> None:
        """Nobody could say whether it is there: it is asked again later, or no more."""
        if seen.looks + 1 < TRIES_AT_MOST:
            self._look_later(seen)
            return
        with self.records.index.write() as at:
            if self.outbox.change(
                at, seen, confirm_at=None, problem_json=problem_of(error).model_dump()
            ):
                self.records.notices.tell(
                    at,
                    Kind.DELIVERY_UNCONFIRMED,
                    seen.id,
                    destination=seen.destination,
                    propagation=seen.propagation,
                )

    def _look_later(self, seen: Delivery, *, receipt: Mapping[str, Any] | None = None) -> None:
        looks = seen.looks + 1
        later_s = CONFIRM_AFTER_S if receipt else wait_s(seen.id, looks)
        with self.records.index.write() as at:
            self.outbox.change(
                at,
                seen,
                confirm_at=moment_text(self.outbox.now(), later_s=later_s),
                receipt_json=dict(seen.receipt) | {"looks": looks} | dict(receipt or {}),
            )

    # For people

    def list(
        self, *, before: int | None = None, limit: int = 100, **equal: str | None
    ) -> Sequence[Delivery]:
        """Deliveries, newest first; see `Outbox.list`."""
        return self.outbox.list(before=before, limit=limit, **equal)

    def resend(self, delivery_id: str) -> Delivery:
        """Sends one again; see `Outbox.resend`."""
        return self.outbox.resend(delivery_id)

    def hold(self, delivery_id: str) -> Delivery:
        """Keeps one back; see `Outbox.hold`."""
        seen = self.outbox.hold(delivery_id)
        with self.records.index.write() as at:
            self._lock(at, seen.propagation)
            self._settle(at, seen.propagation)
        return seen


def _kept(seen: Delivery) -> dict[str, Any]:
    """What a receipt still says after another attempt."""
    return {name: seen.receipt[name] for name in ("tries_from", "left") if name in seen.receipt}


def _there(receipt: Mapping[str, Any]) -> list[str]:
    """The UIDs of what an archive has, as it said; a webhook's answer names none."""
    return [
        one["sop_instance_uid"]
        for one in receipt.get("instances", ())
        if one["outcome"] in ("stored", "already") and one["sop_instance_uid"]
    ]


def _carries_withdrawn(at: Connection, seen: Delivery) -> bool:
    """Whether it is of a signed set that was rejected later."""
    if not seen.is_signed:
        return False
    digests = {digest for one in seen.objects for digest in one["files"].values()}
    query = WITHDRAWN.join(instance, instance.c.sop_uid == review.c.structures_uid).where(
        review.c.propagation == seen.propagation, instance.c.file_digest.in_(digests)
    )
    return at.execute(query).first() is not None


def _left(at: Connection, seen: Delivery, sop_uids: Sequence[str], *, whole: bool) -> Happening:
    """What went to an archive, for the audit log: all of a delivery, or what it took of it."""
    patient = select(propagation.c.patient_key).where(propagation.c.id == seen.propagation)
    return Happening(
        what=What.EXPORT,
        who=f"archive:{seen.destination}",
        action="deliver",
        patient=at.execute(patient).scalar() or "",
        objects=(seen.propagation, *sop_uids),
        outcome="success" if whole else "failed",
    )


def _conflict(name: str, receipts: Sequence[Receipt]) -> ConflictError:
    uids = [one.sop_instance_uid for one in receipts if one.outcome == "conflict"]
    return ConflictError(
        f"'{name}' holds something else under the UID of what it was sent",
        uid=" ".join(uids),
        remedy="look there who wrote it; if ours shall replace it, delete it there and send again",
    )


def _refused(name: str, receipts: Sequence[Receipt]) -> PeerError:
    refused = [one for one in receipts if one.outcome == "refused"]
    return PeerError(
        f"'{name}' did not take what it was sent: {refused[0].reason}",
        uid=" ".join(one.sop_instance_uid for one in refused),
        remedy="it is tried again; look into its log, and at how we are configured there",
    )


def _transaction_uid(seen: Delivery) -> str:
    return derived_uid(seen.id, f"commitment {seen.attempts}")


def _vouched_for(paths: Sequence[Path], commitment: Commitment) -> list[Receipt]:
    there = frozenset(commitment.committed)
    return [ways.there_or_not(read_header(path).sop_instance_uid, there) for path in paths]


def _is_ours(error: ContourcastError) -> bool:
    """Whether it may pass without anybody doing anything to the destination."""
    return isinstance(error, BusyError | DiskFullError | StoreError) and not isinstance(
        error, DamagedError
    )
