"""When is a series whole? DICOM has no last slice, so the question is judged from what is known.

A series is whole when its sender says how many there are and they are here; or when its slices
make one run without a gap and nothing more comes; or when the archive that it comes from has no
more (CLINICAL_SERVICE §1.3). A slice that comes later makes another revision, never a change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

import numpy as np

from contourcast.imaging.dicom.ct_series import TOLERANCES
from contourcast.service.problems import ConflictError

Association = Literal["none", "open", "released"]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long silence has to last (CLINICAL_SERVICE §1.3).

    Attributes:
        released: After the association in which the slices came was released.
        request: Where nobody knows of an association: REST, STOW, pull.
        looks: Between two looks into the archive.
        gap: With slices missing, until somebody does something about it.
    """

    released: timedelta = timedelta(seconds=5)
    request: timedelta = timedelta(seconds=15)
    looks: timedelta = timedelta(seconds=15)
    gap: timedelta = timedelta(minutes=10)


PATIENCE: Final = Patience()


@dataclass(frozen=True, kw_only=True)
class InstanceFacts:
    """One instance that was taken in.

    Attributes:
        digest: Of its pixels.
        position_mm: Along its normal; None for a scout, or where the file does not say.
        at: When it came, or came again.
        scout: A localizer lies beside the run and is never missing from it.
    """

    sop_uid: str
    digest: str
    position_mm: float | None
    at: datetime
    scout: bool = False


@dataclass(frozen=True, kw_only=True)
class Look:
    """How many instances the archive has of the series, and when it said so."""

    at: datetime
    instances: int


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """All that is known of how one series came.

    Attributes:
        instances: In any order, any number of times.
        association: How the last of them came: by no association, by one that is still open, or
            by one that ended, in whatever way.
        announced: How many there are, as the sender said.
        looks: Into the archive, in any order.
        pulled_again: Whether the series was fetched from the archive for a gap already.
    """

    series_uid: str
    instances: tuple[InstanceFacts, ...]
    association: Association = "none"
    announced: int | None = None
    looks: tuple[Look, ...] = ()
    pulled_again: bool = False


@dataclass(frozen=True, kw_only=True)
class Revision:
    """What a series was at one moment: an ordered list that never changes.

    Attributes:
        id: SHA-256 (hex) over the list.
        instances: SOP Instance UID and pixel digest, along the normal; what has no place is last.
    """

    id: str
    series_uid: str
    instances: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, series_uid: str, instances: Iterable[InstanceFacts]) -> Revision:
        """The revision of these instances, whatever their order and repetitions.

        Raises:
            ConflictError: One instance comes with two digests; the first alone may be taken in.
        """
        ordered = sorted(_distinct(instances), key=_place)
        listed = tuple((i.sop_uid, i.digest) for i in ordered)
        text = "".join(f"{sop_uid} {digest}\n" for sop_uid, digest in listed)
        digest = hashlib.sha256(f"{series_uid}\n{text}".encode()).hexdigest()
        return cls(id=digest, series_uid=series_uid, instances=listed)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Two neighbours that lie too far apart."""

    below_sop_uid: str
    above_sop_uid: str
    distance_mm: float
    median_mm: float

    @property
    def missing(self) -> int:
        """How many slices would fill it."""
        return max(1, round(self.distance_mm / self.median_mm) - 1)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The series may be used."""

    revision: Revision
    reason: str


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Not yet.

    Attributes:
        until: When to judge again if nothing comes.
    """

    until: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class Incomplete:
    """Something is missing and nobody sends it.

    Attributes:
        gaps: Where, as far as the places of the slices tell.
        pull_again: Whether the archive may be asked once; else a person is.
    """

    reason: str
    gaps: tuple[Gap, ...]
    pull_again: bool


def judge(
    arrivals: Arrivals, now: datetime, patience: Patience = PATIENCE
) -> Whole | Waiting | Incomplete:
    """Whether a CT series is whole; the same arrivals in any order give the same answer.

    Args:
        arrivals: Of one series, at least one instance.
        now: By the clock that stamped the arrivals.
        patience: How long silence has to last.

    Raises:
        ConflictError: One instance comes with two digests.
    """
    revision = Revision.of(arrivals.series_uid, arrivals.instances)
    here = len(revision.instances)
    last = max(i.at for i in arrivals.instances)
    if arrivals.announced is not None and here >= arrivals.announced:
        return Whole(
            revision=revision,
            reason=f"the sender said {arrivals.announced} instances and {here} are here",
        )
    lacking, gaps = _lacking(arrivals, here)
    if not lacking:
        ready, reason = _when_quiet(arrivals, here, last, patience)
        if now >= ready:
            return Whole(revision=revision, reason=reason)
        return Waiting(until=ready, reason=f"no gap among {here} instances; more may come")
    if now < last + patience.gap:
        return Waiting(until=last + patience.gap, reason=lacking)
    # how long it has been by now would be another reason every minute, and told as one
    minutes = math.floor(patience.gap / timedelta(minutes=1))
    return Incomplete(
        reason=f"{lacking}, and nothing came for {minutes} minutes",
        gaps=gaps,
        pull_again=not arrivals.pulled_again,
    )


def find_gaps(instances: Iterable[InstanceFacts]) -> tuple[Gap, ...]:
    """Where slices are missing from the run, in the reader's own sense of a gap."""
    run = _run(_distinct(instances))
    distances = np.diff([i.position_mm or 0.0 for i in run])
    if not len(distances):
        return ()
    median = float(np.median(distances))
    return tuple(
        Gap(
            below_sop_uid=run[k].sop_uid,
            above_sop_uid=run[k + 1].sop_uid,
            distance_mm=float(distances[k]),
            median_mm=median,
        )
        for k in np.flatnonzero(distances > TOLERANCES.missing_gap * median).tolist()
    )


def _lacking(arrivals: Arrivals, here: int) -> tuple[str, tuple[Gap, ...]]:
    """Why it cannot be whole yet, empty if it can; and where the gaps are."""
    slices = _distinct(i for i in arrivals.instances if not i.scout)
    gaps = find_gaps(slices)
    nowhere = sum(i.position_mm is None for i in slices)
    there = max(arrivals.looks, key=lambda look: look.at).instances if arrivals.looks else 0
    if arrivals.announced is not None:
        return f"the sender said {arrivals.announced} instances and {here} are here", gaps
    if there > here:
        return f"the archive has {there} instances and {here} are here", gaps
    if gaps:
        widest = max(gaps, key=lambda g: g.distance_mm)
        return (
            f"{len(gaps)} gap{'s' if len(gaps) > 1 else ''}, the widest of "
            f"{widest.distance_mm:.1f} mm where most are {widest.median_mm:.1f} mm, between SOP "
            f"{widest.below_sop_uid} and SOP {widest.above_sop_uid}",
            gaps,
        )
    if nowhere:
        return f"{nowhere} of {here} instances do not say where they lie", ()
    if len(_run(slices)) < 2:
        return "fewer than two slices make no run", ()
    return "", ()


def _when_quiet(
    arrivals: Arrivals, here: int, last: datetime, patience: Patience
) -> tuple[datetime, str]:
    """When silence, or the archive, has said enough of a run without gap, and what it says.

    An association that is open and silent for longer than a gap may stay is one that nobody
    remembers to have ended: it counts as unknown.
    """
    waits = {
        "none": (patience.request, "no gap, and nothing came for {quiet:.0f} s"),
        "open": (patience.gap, "no gap, and the open association is silent for {quiet:.0f} s"),
        "released": (patience.released, "association ended, no gap, quiet for {quiet:.0f} s"),
    }
    wait, said = waits[arrivals.association]
    by_silence = last + wait
    seen = _same_looks(arrivals.looks, here)
    confirming = [look.at for look in seen if look.at - seen[0].at >= patience.looks]
    if confirming and max(last, confirming[0]) <= by_silence:
        return (
            max(last, confirming[0]),
            f"no gap, and two looks into the archive found {here} instances",
        )
    return by_silence, said.format(quiet=wait.total_seconds())


def _same_looks(looks: Sequence[Look], instances: int) -> list[Look]:
    """The newest looks, oldest first, that all found as many as are here."""
    found: list[Look] = []
    for look in sorted(looks, key=lambda look: look.at, reverse=True):
        if look.instances != instances:
            break
        found.insert(0, look)
    return found


def _distinct(instances: Iterable[InstanceFacts]) -> list[InstanceFacts]:
    """Each instance once."""
    found: dict[str, InstanceFacts] = {}
    for instance in instances:
        first = found.setdefault(instance.sop_uid, instance)
        if first.digest != instance.digest:
            raise ConflictError(
                "one instance came with two pictures",
                tag="(0008,0018) SOP Instance UID",
                uid=instance.sop_uid,
                remedy="ask the sender which of them is right",
            )
    return list(found.values())


def _run(instances: Iterable[InstanceFacts]) -> list[InstanceFacts]:
    """The slices along their normal, one for each place."""
    run: list[InstanceFacts] = []
    for instance in sorted(instances, key=_place):
        if instance.scout or instance.position_mm is None:
            continue
        before = run[-1].position_mm if run else None
        if before is None or instance.position_mm - before > TOLERANCES.same_place_mm:
            run.append(instance)
    return run


def _place(instance: InstanceFacts) -> tuple[float, str]:
    here = instance.position_mm
    return (math.inf if here is None or instance.scout else here), instance.sop_uid
