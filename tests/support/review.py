"""A department with one patient drawn by two methods, and the page's API over it with people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from contourcast.service.access.accounts import make_account
from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.access.settings import AccessSettings
from contourcast.service.api.app import create_app
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
from support.access import PASSWORD
from support.department import LATER
from support.http import served
from support.records import looking_into
from support.treatment import Treatment, make_treatment

METHODS: Final = ("translation", "rigid")
PEOPLE: Final = {
    "ann": (Role.REVIEWER,),
    "bob": (Role.REVIEWER,),
    "vic": (Role.VIEWER,),
}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A service's folder in which the first of two fractions is drawn.

    Attributes:
        first: The id of the propagation that is drawn.
        second: Of the one that waits.
    """

    folder: Path
    treatment: Treatment
    first: str
    second: str

    def copy(self, folder: Path) -> Drawn:
        """One of its own, to be changed."""
        shutil.copytree(self.folder, folder)
        return Drawn(folder=folder, treatment=self.treatment, first=self.first, second=self.second)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The API, and people who have signed in."""

    records: Records
    drawn: Drawn
    people: dict[str, httpx.Client]
    keys: dict[Role, dict[str, str]]
    http: httpx.Client

    def url(self, part: str = "", *, propagation: str = "") -> str:
        return f"/v1/propagations/{propagation or self.drawn.first}{part}"

    def get(self, part: str, *, who: str = "ann") -> Any:
        answer = self.people[who].get(self.url(part))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tag(self, part: str = "/view", *, who: str = "ann") -> str:
        """The ETag of what somebody sees."""
        answer = self.people[who].get(self.url(part))
        assert answer.status_code == 200, answer.text
        return str(answer.headers["etag"])

    def loops(self, method: str) -> dict[int, list[Any]]:
        """A method's loops by slice."""
        found: dict[int, list[Any]] = {}
        for loop in self.get("/contours")["contours"][method]:
            found.setdefault(loop["slice"], []).append(loop["points_xy_mm"])
        return found

    def save(
        self,
        slices: dict[int, Any],
        *,
        method: str = "rigid",
        seconds: float = 42.5,
        who: str = "ann",
        **headers: str,
    ) -> httpx.Response:
        """Saves a draft; a first one, if no header says otherwise."""
        return self.people[who].put(
            self.url("/draft"),
            json={
                "method": method,
                "slices": {str(k): loops for k, loops in slices.items()},
                "edited_slices": sorted(slices),
                "seconds": seconds,
            },
            headers={k.replace("_", "-"): v for k, v in headers.items()} or {"If-None-Match": "*"},
        )

    def prove(self, who: str = "ann") -> None:
        """Shows the password again, for one signature."""
        answer = self.people[who].post("/v1/session/proof", json={"password": PASSWORD})
        assert answer.status_code == 204, answer.text

    def decide(
        self, who: str = "ann", *, tag: str = "", proven: bool = True, **body: Any
    ) -> httpx.Response:
        """A decision on what is seen now, or on what was."""
        if proven:
            self.prove(who)
        headers = {"If-Match": tag or self.tag(who=who)}
        return self.people[who].post(self.url("/reviews"), json=body, headers=headers)

    def sign_edited(
        self, who: str = "ann", *, method: str = "rigid", **body: Any
    ) -> httpx.Response:
        """Signs the draft that is there."""
        tag = self.people[who].get(self.url("/draft")).headers["etag"]
        return self.decide(who, decision="edited", method=method, draft_etag=tag, **body)

    def job(self) -> Job:
        return self.records.propagations.job(self.drawn.first)


def draw(folder: Path, treatment_folder: Path) -> Drawn:
    """Takes a course in, and draws its first fraction by two methods."""
    treatment = make_treatment(treatment_folder, fractions=2, seed=3)
    with looking_into(folder) as records:
        take(records, treatment.paths)
        Arriving(records.index, records.notices).look(now() + LATER)
        matching(records).look()
        jobs = sorted(records.propagations.jobs(), key=lambda job: job.origin.acquired_at)
        first, second = (job.id for job in jobs)
        run(records, first)
        for name, roles in PEOPLE.items():
            make_account(records.index, name=name, password=PASSWORD, roles=roles)
    return Drawn(folder=folder, treatment=treatment, first=first, second=second)


def take(records: Records, paths: Sequence[Path]) -> None:
    """Takes files as a request brings them."""
    take_files(
        ((p.name, p.open("rb")) for p in paths),
        records.archive,
        ServiceSettings(disk_reserve_mib=0),
        sent=Sent(door="rest"),
    )


def matching(records: Records) -> Fractions:
    """What finds plan and prior of each CBCT."""
    return Fractions(
        Evidence(records.archive),
        records.propagations,
        records.notices,
        SiteRules(),
        served_network=served_network(ServiceSettings(disk_reserve_mib=0)),
        methods=METHODS,
    )


def run(records: Records, propagation: str) -> Job:
    """Draws a propagation here and now."""
    steps = Steps(records, device="cpu", weights=None)
    registered = steps.register(propagation)
    drawn = [
        steps.draw(propagation, method, registered["registrations"], registered["r_ct"])["drawn"]
        for method in records.propagations.job(propagation).order["methods"]
    ]
    steps.end(propagation, steps.finish(propagation, registered, drawn))
    job = records.propagations.job(propagation)
    assert job.state is State.AWAITING_REVIEW
    return job


@contextmanager
def at_desk(drawn: Drawn, **settings: Any) -> Iterator[Desk]:
    """The API over a folder, with everybody signed in."""
    made = ServiceSettings(
        data_folder=drawn.folder,
        disk_reserve_mib=0,
        access=AccessSettings(
            local_accounts=True,
            secure_cookies=False,
            names_shown_to=frozenset({Role.REVIEWER}),
        ),
        **settings,
    )
    with looking_into(drawn.folder) as records, served(create_app(made)) as http:
        keys = {
            role: {"Authorization": f"Bearer {_key(records, role)}"}
            for role in (Role.REVIEWER, Role.VIEWER, Role.UPLOADER)
        }
        people = {name: _signed_in(http, name) for name in PEOPLE}
        try:
            yield Desk(records=records, drawn=drawn, people=people, keys=keys, http=http)
        finally:
            for person in people.values():
                person.close()


def circle(center_uv: tuple[float, float], radius_mm: float, *, points: int = 40) -> list[Any]:
    """A loop on a slice."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    loop = np.column_stack((np.cos(turn), np.sin(turn))) * radius_mm + center_uv
    return json.loads(json.dumps(loop.tolist()))  # type: ignore[no-any-return]


def _key(records: Records, role: Role) -> str:
    return make_key(records.index, label=role, roles=[role], days=1)[1]


def _signed_in(http: httpx.Client, name: str) -> httpx.Client:
    client = httpx.Client(base_url=http.base_url, timeout=60.0)
    answer = client.post("/v1/session", json={"name": name, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    client.headers["X-CSRF-Token"] = answer.json()["csrf"]
    return client
