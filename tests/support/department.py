"""The intake and the steps of a service over a folder, here and now, the clock in our hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from contourcast.service.archive import Sent
from contourcast.service.index.database import now
from contourcast.service.ingest import take_files
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.rules import SiteRules
from contourcast.service.intake.states import State
from contourcast.service.jobs.network import served_network
from contourcast.service.jobs.propagations import Job
from contourcast.service.jobs.steps import Steps
from contourcast.service.records import Records
from contourcast.service.settings import ServiceSettings

LATER: Final = timedelta(seconds=20)
METHOD: Final = "translation"
SETTINGS: Final = ServiceSettings(disk_reserve_mib=0)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the steps before the last one handed on."""

    registered: dict[str, Any]
    drawn: str


class Department:
    """Takes files, matches, draws with one method."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.arriving = Arriving(records.index, records.notices)
        self.fractions = Fractions(
            Evidence(records.archive),
            records.propagations,
            records.notices,
            SiteRules(),
            served_network=served_network(SETTINGS),
            methods=[METHOD],
        )
        self.steps = Steps(records, device="cpu", weights=None)

    def send(self, paths: Sequence[Path]) -> None:
        """Takes files as a request brings them."""
        take_files(
            ((p.name, p.open("rb")) for p in paths),
            self.records.archive,
            SETTINGS,
            sent=Sent(door="rest"),
        )

    def wait(self) -> None:
        """Long enough for what arrived to be whole, and matched."""
        self.arriving.look(now() + LATER)
        self.fractions.look()

    def jobs(self) -> dict[str, Job]:
        """By the series of its CBCT: the propagation that counts."""
        found = self.records.propagations.jobs()
        return {j.order["cbct"]["series"]: j for j in found if j.state is not State.SUPERSEDED}

    def drawn(self, job: Job) -> Parts:
        """Everything but the files."""
        registered = self.steps.register(job.id)
        drawn = self.steps.draw(job.id, METHOD, registered["registrations"], registered["r_ct"])
        return Parts(registered=registered, drawn=drawn["drawn"])

    def finish(self, propagation: str, parts: Parts) -> dict[str, Any]:
        """Writes the files; what the last step hands on."""
        return self.steps.finish(propagation, parts.registered, [parts.drawn])
