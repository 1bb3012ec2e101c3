"""Watches series arrive, and writes down when one is whole: another revision, never a change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import structlog
from sqlalchemy import Connection, Row, Select, func, select, tuple_, update

from contourcast.imaging.dicom.instance import CT_IMAGE
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import instance, revision, series
from contourcast.service.intake.completeness import (
    PATIENCE,
    Arrivals,
    Association,
    Incomplete,
    InstanceFacts,
    Look,
    Patience,
    Revision,
    Waiting,
    Whole,
    judge,
)
from contourcast.service.pacs.notices import Kind, Notices
from contourcast.service.problems import ConflictError, NotFoundError

# Series that one look judges, so that a look stays short however much arrives.
AT_A_LOOK: Final = 200
# Of an archive's counts: enough for two that lie apart, at a look each 20 s.
LOOKS_KEPT: Final = 8

log = structlog.get_logger()


class Arriving:
    """The state of every series: arriving, whole, incomplete, or dismissed by a person.

    Args:
        index: Where it is written down.
        notices: Who is told.
        patience: How long silence has to last.
    """

    def __init__(self, index: Index, notices: Notices, patience: Patience = PATIENCE) -> None:
        self.index = index
        self._notices = notices
        self.patience = patience
        self._looked_until: tuple[str, str] | None = None

    def look(self, at_time: datetime | None = None) -> int:
        """Judges what still arrives; how many series became whole.

        A series that is incomplete is judged again once more is known of it: then it arrives again.
        """
        moment = at_time or self.index.now()
        with self.index.read() as at:
            waiting = at.execute(self._next()).all()
        last = waiting[-1] if len(waiting) == AT_A_LOOK else None
        self._looked_until = None if last is None else (last.last_arrival_at, last.uid)
        return sum(self._judge(row.uid, moment) for row in waiting)

    def _next(self) -> Select[Any]:
        """Those that come after the last look's, so that many that wait hold up no other."""
        place = tuple_(series.c.last_arrival_at, series.c.uid)
        query = select(series.c.uid, series.c.last_arrival_at).where(
            series.c.state == "arriving", series.c.modality == "CT"
        )
        if self._looked_until is not None:
            query = query.where(place > self._looked_until)
        return query.order_by(series.c.last_arrival_at, series.c.uid).limit(AT_A_LOOK)

    def _judge(self, series_uid: str, moment: datetime) -> bool:
        with self.index.write() as at:
            # what arrives meanwhile waits for this row, and is judged at the next look
            row = at.execute(
                select(series).where(series.c.uid == series_uid).with_for_update()
            ).first()
            if row is None or row.state == "whole":
                return False
            instances = _instances(at, row)
            if not instances:
                return False
            judged = judge(_arrivals(row, instances), moment, self.patience)
            if isinstance(judged, Whole):
                self._whole(at, row, judged)
                return True
            state = "incomplete" if isinstance(judged, Incomplete) else "arriving"
            if (state, judged.reason) != (row.state, row.reason):
                _note(at, series_uid, state=state, reason=judged.reason)
                # judged again for something that told nothing new: it was said already
                if isinstance(judged, Incomplete) and judged.reason != row.reason:
                    self._notices.tell(at, Kind.INCOMPLETE, series_uid, reason=judged.reason)
                    log.warning("series_incomplete", series=series_uid, reason=judged.reason)
            assert isinstance(judged, Waiting | Incomplete)
        return False

    def _whole(self, at: Connection, row: Row[Any], judged: Whole) -> None:
        kept = judged.revision
        known = at.execute(select(revision.c.id).where(revision.c.id == kept.id)).first()
        if known is None:
            last = at.execute(
                select(func.max(revision.c.number)).where(revision.c.series_uid == row.uid)
            ).scalar()
            at.execute(revision.insert().values(_row_of(kept, judged.reason, int(last or 0) + 1)))
            if last:
                self._notices.tell(
                    at, Kind.REVISION, row.uid, revision=kept.id, number=int(last) + 1
                )
        _note(at, row.uid, state="whole", reason=judged.reason, revision=kept.id)
        log.info("series_whole", series=row.uid, revision=kept.id, reason=judged.reason)

    # What others know of a series

    def expect(self, series_uid: str, instances: int) -> None:
        """The sender says how many instances are all.

        Raises:
            NotFoundError: Nothing of the series is here.
        """
        self._set(series_uid, {"expected_instances": instances, "state": "arriving"})

    def released(self, series_uids: Iterable[str]) -> None:
        """The association in which they came has ended."""
        with self.index.write() as at:
            for uid in series_uids:
                _note(at, uid, released_at=self.index.now(at).isoformat())

    def counted(self, series_uid: str, instances: int) -> None:
        """An archive says how many instances it has of a series."""
        with self.index.write() as at:
            self.counted_within(at, series_uid, instances)

    def counted_within(self, at: Connection, series_uid: str, instances: int) -> None:
        """`counted`, in a transaction of the caller's."""
        mine = select(series).where(series.c.uid == series_uid).with_for_update()
        row = at.execute(mine).first()
        if row is None or row.state == "whole":
            return
        looks = [*row.counted_json, [self.index.now(at).isoformat(), instances]]
        last = row.counted_json[-1][1] if row.counted_json else None
        # the same count again says nothing of a series that is incomplete
        state = row.state if instances == last else "arriving"
        _note(at, series_uid, counted_json=looks[-LOOKS_KEPT:], state=state)

    def pulled_again(self, series_uid: str) -> None:
        """It was fetched once more from its archive, because of a gap.

        Raises:
            NotFoundError: Nothing of the series is here.
        """
        self._set(series_uid, {"pulled_again_at": self.index.now().isoformat()})

    def dismiss(self, series_uid: str) -> None:
        """A person knows of the gap: nobody waits for the rest any more, until more comes.

        Raises:
            NotFoundError: Nothing of the series is here.
            ConflictError: It is not incomplete.
        """
        with self.index.write() as at:
            done = at.execute(
                update(series)
                .where(series.c.uid == series_uid, series.c.state == "incomplete")
                .values(state="dismissed")
            )
            known = at.execute(select(series.c.uid).where(series.c.uid == series_uid)).first()
        if known is None:
            raise NotFoundError("no series of that UID is here", uid=series_uid)
        if done.rowcount == 0:
            raise ConflictError(
                "the series is not incomplete", remedy="read it again: more of it may have come"
            )

    def _set(self, series_uid: str, values: dict[str, Any]) -> None:
        with self.index.write() as at:
            done = at.execute(update(series).where(series.c.uid == series_uid).values(**values))
        if done.rowcount == 0:
            raise NotFoundError(
                "no series of that UID is here",
                uid=series_uid,
                remedy="send it to /v1/instances first",
            )


def _row_of(kept: Revision, reason: str, number: int) -> dict[str, Any]:
    return {
        "id": kept.id,
        "series_uid": kept.series_uid,
        "number": number,
        "members_json": [list(member) for member in kept.instances],
        "reason": reason,
        "made_at": now().isoformat(),
        "matched": 0,
    }


def _instances(at: Connection, row: Row[Any]) -> tuple[InstanceFacts, ...]:
    """The images of a series; all stamped with the last arrival, which alone decides."""
    last = datetime.fromisoformat(row.last_arrival_at)
    query = select(instance).where(
        instance.c.series_uid == row.uid, instance.c.sop_class_uid == CT_IMAGE
    )
    return tuple(
        InstanceFacts(
            sop_uid=found.sop_uid,
            digest=found.file_digest,
            position_mm=_along_normal_mm(found.plane_json),
            at=last,
            scout=bool(found.plane_json.get("scout")),
        )
        for found in at.execute(query)
    )


def _along_normal_mm(plane: dict[str, Any]) -> float | None:
    if "position_xyz_mm" not in plane:
        return None
    row, column = np.reshape(plane["orientation"], (2, 3))
    with np.errstate(all="ignore"):  # a hostile file's numbers may be too large to multiply
        along = float(np.cross(row, column) @ np.array(plane["position_xyz_mm"]))
    return along if np.isfinite(along) else None


def _arrivals(row: Row[Any], instances: Sequence[InstanceFacts]) -> Arrivals:
    association: Association = "none"
    if row.door == "dimse":
        association = "released" if row.released_at else "open"
    return Arrivals(
        series_uid=row.uid,
        instances=tuple(instances),
        association=association,
        announced=row.expected_instances,
        looks=tuple(
            Look(at=datetime.fromisoformat(when), instances=number)
            for when, number in row.counted_json
        ),
        pulled_again=row.pulled_again_at is not None,
    )


def _note(at: Connection, series_uid: str, **values: Any) -> None:
    at.execute(update(series).where(series.c.uid == series_uid).values(**values))
