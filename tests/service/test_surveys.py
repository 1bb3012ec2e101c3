"""What lies in an archive that tells nobody is found by asking, counted, and taken in once."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from pydicom import dcmread
from sqlalchemy import delete, select
from structlog.testing import capture_logs

from contourcast.imaging.dicom.instance import Header, read_header
from contourcast.service.archive import Sent
from contourcast.service.doors import NodeDoor
from contourcast.service.index.database import now
from contourcast.service.index.tables import arrival, audit, cursor, instance, series
from contourcast.service.ingest import take_files
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.rules import SiteRules
from contourcast.service.pacs import sources, surveys
from contourcast.service.pacs.destinations import (
    DicomWebDestination,
    DimseDestination,
    OrthancDestination,
    Surveyed,
)
from contourcast.service.pacs.fetching import Fetcher, fetched_from
from contourcast.service.pacs.node import Caller, Node, NodeSettings
from contourcast.service.pacs.scu import SeriesFound, StudyFound
from contourcast.service.pacs.sources import STUDIES_AT_ONCE, Listed, Studies, listing_of
from contourcast.service.pacs.surveys import (
    NOTHING,
    SERIES_AT_ONCE,
    Here,
    PutOff,
    Survey,
    in_turn,
    is_due,
    is_lacking,
    older_in_turn,
    put_off,
)
from contourcast.service.pacs.watching import hint, watched, watching
from contourcast.service.problems import DiskFullError, PeerError, PeerUnreachableError
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.dcmqrscp import dcmqrscp
from support.dicom_factory import CtFiles, make_ct_series
from support.dimse import AET, LOOPBACK, dcmtk
from support.orthanc import PASSWORD, USER, RealOrthanc, orthanc
from support.outgoing import make_results
from support.records import looking_into
from support.server import serving
from support.stub import Asked, Says, Stub, stub
from support.treatment import Treatment, make_treatment

# In the evening of the second fraction's day.
TODAY = datetime(2026, 1, 6, 20, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
PASSWORD_ENV = "CONTOURCAST_TEST_PACS_PASSWORD"
Kind = Literal["dicomweb", "dimse"]
KINDS: tuple[Kind, ...] = ("dicomweb", "dimse")


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_ENV, PASSWORD)


@pytest.fixture(scope="module")
def treatment(tmp_path_factory: pytest.TempPathFactory) -> Treatment:
    """CBCTs of the 5th and 6th of January; the planning CT is three weeks older."""
    folder = tmp_path_factory.mktemp("treatment")
    return make_treatment(folder, patient="SURVEYED", fractions=2, seed=3)


@contextmanager
def pacs_of(folder: Path) -> Iterator[RealOrthanc]:
    known = {"contourcast": {"AET": AET, "Host": LOOPBACK, "Port": 104}}
    with orthanc(folder / "orthanc", stable_age_s=60, modalities=known) as running:
        yield running


def to(pacs: RealOrthanc, kind: Kind) -> Surveyed:
    """That Orthanc by a door at which it has no diary to read."""
    if kind == "dicomweb":
        return DicomWebDestination(
            name="pacs",
            url=f"{pacs.url}/dicom-web",
            user=USER,
            password_env=PASSWORD_ENV,
            watch=True,
        )
    return DimseDestination(
        name="pacs", host=LOOPBACK, port=pacs.dicom_port, aet="ORTHANC", our_aet=AET, watch=True
    )


class Department:
    """The intake of a service that watches archives, the surveys' clock in our hands."""

    def __init__(self, records: Records, folder: Path) -> None:
        self.records = records
        self.settings = ServiceSettings(data_folder=folder, disk_reserve_mib=0, worker_slot="test")
        self.arriving = Arriving(records.index, records.notices)
        self.fractions = Fractions(
            Evidence(records.archive),
            records.propagations,
            records.notices,
            SiteRules(),
            served_network=lambda: ("", ""),
            methods=["translation"],
        )

    def send(self, paths: Sequence[Path]) -> None:
        files = ((p.name, p.open("rb")) for p in paths)
        take_files(files, self.records.archive, self.settings, sent=Sent(door="rest"))

    def wait(self, how_long: timedelta = timedelta(seconds=20)) -> None:
        """Long enough for what arrived to be whole, or to be told incomplete."""
        self.arriving.look(now() + how_long)
        self.fractions.look()

    def survey(self, archive: Surveyed) -> Survey:
        return Survey(archive, self.settings, self.records)

    def fetch(self, archive: Surveyed) -> None:
        """What belongs to the CBCTs that are here, asked of an archive."""
        self.wait()
        Fetcher(archive, self.settings, self.records, SiteRules()).look()
        self.wait()

    def here(self) -> dict[str, int]:
        """Instances of each series."""
        return {one.series_uid: one.instances for one in self.records.archive.series()}

    def row(self, series_uid: str) -> Any:
        (row,) = [one for one in self.rows(series) if one.uid == series_uid]
        return row

    def counted(self, series_uid: str) -> list[int]:
        """What archives said of a series, one look after the other."""
        return [number for _, number in self.row(series_uid).counted_json]

    def pulled(self) -> Counter[str]:
        """How many files came in from archives, of each series."""
        pulls = [one for one in self.rows(arrival) if one.door == "pull"]
        return Counter(one.series_uid for one in pulls if one.outcome == "stored")

    def arrivals(self) -> int:
        """How often a file came, known or not."""
        return len(self.rows(arrival))

    def planned(self) -> dict[str, str]:
        """By the series of its CBCT, of what is to be drawn: the structure set."""
        jobs = self.records.propagations.jobs()
        return {j.order["cbct"]["series"]: j.order["structures"]["sop_uid"] for j in jobs}

    def rows(self, table: Any) -> list[Any]:
        with self.records.index.read() as at:
            return list(at.execute(select(table)))

    def remembered(self) -> dict[str, Any]:
        return {row.name: row.value_json for row in self.rows(cursor)}

    def on_their_way(self) -> list[Path]:
        return list((self.settings.data_folder / "incoming" / "test").iterdir())


@pytest.fixture
def department(tmp_path: Path) -> Iterator[Department]:
    with looking_into(tmp_path / "data") as records:
        yield Department(records, tmp_path / "data")


# ------------------------------------------------------------------------------ with a real one


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_a_cbct_of_which_nobody_told_is_found_and_matched(
    department: Department, treatment: Treatment, tmp_path: Path, kind: Kind
) -> None:
    first, second = treatment.fractions
    ours = make_results(tmp_path / "ours")
    with pacs_of(tmp_path) as pacs, capture_logs() as logs:
        pacs.upload([*treatment.paths, *sorted(ours.iterdir())])
        archive = to(pacs, kind)
        survey = department.survey(archive)
        assert survey.look(TODAY) == len(first.paths) + len(second.paths)
        assert department.here().keys() == {first.series_uid, second.series_uid}, (
            "neither what is weeks old nor what we wrote"
        )
        department.wait()
        assert {row.state for row in department.rows(series)} == {"whole"}
        Fetcher(archive, department.settings, department.records, SiteRules()).look()
        department.wait()
        before = department.arrivals()
        assert survey.look(TODAY + MINUTE) == 0
        assert department.arrivals() == before, "what is here is not pulled again"
    assert department.planned() == {
        one.series_uid: treatment.structures_uid for one in treatment.fractions
    }
    rows = [row.row_json for row in department.rows(audit)]
    told = [row for row in rows if row["action"] == "pull" and row["who"] == "archive:pacs"]
    assert {one for row in told for one in row["objects"]} >= {first.series_uid, second.series_uid}
    who = read_header(first.paths[0]).patient
    assert not [one for one in logs if who.patient_id in str(one) or who.name in str(one)]
    assert not department.on_their_way()


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_a_cbct_that_is_filed_under_the_study_of_its_planning_ct_is_found(
    department: Department, treatment: Treatment, tmp_path: Path, kind: Kind
) -> None:
    first, second = treatment.fractions
    planned = dcmread(treatment.planning_ct.paths[0], stop_before_pixels=True)
    filed = [tmp_path / path.name for path in second.paths]
    for path, copy in zip(second.paths, filed, strict=True):
        dataset = dcmread(path)
        dataset.StudyInstanceUID, dataset.StudyDate = planned.StudyInstanceUID, planned.StudyDate
        dataset.SeriesDate = "20260106"
        dataset.save_as(copy)
    with pacs_of(tmp_path) as pacs:
        pacs.upload([*treatment.plan_paths, *first.paths, *filed])
        archive = to(pacs, kind)
        survey = department.survey(archive)
        assert survey.look(TODAY) == len(first.paths), "nobody is known to be treated yet"
        department.fetch(archive)
        planning = department.here()[treatment.planning_ct.series_uid]
        assert survey.look(TODAY + MINUTE) == len(filed)
        department.wait()
        assert survey.look(TODAY + 2 * MINUTE) == 0
    assert department.here()[treatment.planning_ct.series_uid] == planning
    assert department.planned().keys() == {first.series_uid, second.series_uid}


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_running_service_finds_what_came_to_a_pacs_today(
    treatment: Treatment, tmp_path: Path, folder: Path, kind: Kind
) -> None:
    cbct, day = treatment.fractions[0], f"{datetime.now():%Y%m%d}"
    todays = [tmp_path / path.name for path in cbct.paths]
    for path, copy in zip(cbct.paths, todays, strict=True):
        dataset = dcmread(path)
        dataset.StudyDate = dataset.SeriesDate = day
        dataset.save_as(copy)
    with pacs_of(tmp_path) as pacs:
        pacs.upload([*treatment.plan_paths, *todays])
        archive = to(pacs, kind).model_copy(update={"watch_every_s": 10.0})
        destinations = json.dumps([archive.model_dump(mode="json", exclude_none=True)])
        settings = {
            "intake": "automatic",
            "methods": '["translation"]',
            "destinations": destinations,
        }
        with serving(folder, **settings), looking_into(folder) as records:
            deadline = time.monotonic() + 240
            while not (jobs := records.propagations.jobs()) and time.monotonic() < deadline:
                threading.Event().wait(0.2)
            (job,) = jobs
    assert job.order["cbct"]["series"] == cbct.series_uid
    assert job.order["structures"]["sop_uid"] == treatment.structures_uid


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_a_series_that_grows_there_is_counted_and_grows_here(
    department: Department, treatment: Treatment, tmp_path: Path, kind: Kind
) -> None:
    cbct = treatment.fractions[1]
    few, more = cbct.paths[:10], cbct.paths[10:]
    with pacs_of(tmp_path) as pacs:
        pacs.upload(few)
        survey = department.survey(to(pacs, kind))
        assert survey.look(TODAY) == len(few)
        assert department.counted(cbct.series_uid) == [len(few)]
        assert survey.look(TODAY + MINUTE) == 0
        assert department.counted(cbct.series_uid) == [len(few)] * 2, "two looks, rule 4"
        department.wait()
        assert department.row(cbct.series_uid).state == "whole"
        pacs.upload(more)
        assert survey.look(TODAY + 2 * MINUTE) == len(more)
        assert department.counted(cbct.series_uid)[-1] == len(cbct.paths)
    assert department.pulled() == {cbct.series_uid: len(cbct.paths)}
    department.wait()
    assert department.here() == {cbct.series_uid: len(cbct.paths)}


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_what_came_by_another_way_or_was_thrown_away_is_not_pulled(
    department: Department, treatment: Treatment, tmp_path: Path, kind: Kind
) -> None:
    kept, gone = treatment.fractions
    department.send([*kept.paths, *gone.paths])
    department.wait()
    with department.records.index.write() as at:  # as retention does
        at.execute(delete(instance).where(instance.c.series_uid == gone.series_uid))
    with pacs_of(tmp_path) as pacs:
        pacs.upload([*kept.paths, *gone.paths])
        assert department.survey(to(pacs, kind)).look(TODAY) == 0
    assert department.arrivals() == len(kept.paths) + len(gone.paths)
    assert department.here()[gone.series_uid] == 0


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_was_away_is_asked_again_and_loses_nothing(
    department: Department, treatment: Treatment, tmp_path: Path, kind: Kind
) -> None:
    cbct = treatment.fractions[1]
    with pacs_of(tmp_path) as pacs:
        survey = department.survey(to(pacs, kind))
        pacs.upload(cbct.paths)
        pacs.stop()
        with pytest.raises(PeerUnreachableError):
            survey.look(TODAY)
        assert survey.look(TODAY + MINUTE) == 0, "it is left alone for a while"
        with pytest.raises(PeerUnreachableError):
            survey.look(TODAY + 2 * MINUTE)
        pacs.start()
        assert survey.look(TODAY + 4 * MINUTE) == 0, "for longer each time"
        assert survey.look(TODAY + 6 * MINUTE) == len(cbct.paths)


@pytest.mark.peer
@pytest.mark.parametrize("by", ["get", "move"])
def test_dcmtk_s_archive_which_counts_nothing_gives_by_get_or_moves_to_our_node(
    department: Department, treatment: Treatment, tmp_path: Path, by: str
) -> None:
    cbct = treatment.fractions[1]
    settings = NodeSettings(
        aet=AET,
        host=LOOPBACK,
        port=0,
        callers=(Caller(aet="DCMQRSCP", networks=(LOOPBACK,)),),
        drain_s=5.0,
    )
    options = ["--disable-get"] if by == "move" else []
    with (
        Node(
            settings,
            NodeDoor(department.records.archive),
            arrived=lambda uids, _: department.arriving.released(sorted(uids)),
        ) as ours,
        dcmqrscp(tmp_path / "qr", ours.port, *options) as running,
    ):
        archive = DimseDestination(
            name="qr",
            host=LOOPBACK,
            port=running.port,
            aet="DCMQRSCP",
            our_aet=AET,
            watch=True,
        )
        survey = department.survey(archive)
        send = ["storescu", "-aec", "DCMQRSCP", LOOPBACK, str(archive.port)]
        assert dcmtk(*send, *cbct.paths[:10], *treatment.plan_paths).returncode == 0
        assert survey.look(TODAY) == 10
        assert department.here() == {cbct.series_uid: 10}
        assert department.counted(cbct.series_uid) == [10]
        assert dcmtk(*send, *cbct.paths[10:]).returncode == 0
        assert survey.look(TODAY + 5 * MINUTE) > 0
    department.wait()
    row = department.row(cbct.series_uid)
    assert (row.state, row.door) == ("whole", "pull" if by == "get" else "dimse")
    assert department.here() == {cbct.series_uid: len(cbct.paths)}


# ----------------------------------------------------------------------- with ones that misbehave


class Catalogue:
    """QIDO-RS and WADO-RS of a stub over some files.

    Attributes:
        claims: Number of instances by series, in place of the truth; None: it does not say.
        lists: Of what series it speaks beside those of its files, with their counts.
        broken: Series whose instances it does not give.
        told: How often it listed its series.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self.files: dict[str, tuple[Header, Path]] = {}
        self.add(paths)
        self.claims: dict[str, int | None] = {}
        self.lists: dict[str, int] = {}
        self.broken: set[str] = set()
        self.told = 0

    def add(self, paths: Sequence[Path]) -> None:
        for path in paths:
            header = read_header(path)
            self.files[header.sop_instance_uid] = header, path

    def __call__(self, asked: Asked) -> Says:
        address = urlsplit(asked.path)
        query, parts = parse_qs(address.query), address.path.strip("/").split("/")
        start = int(query.get("offset", ["0"])[0])
        if parts == ["series"]:
            assert query["00080060"] == ["CT"]
            self.told += start == 0
            return _page(self._series(), start)
        if parts[-1] == "instances":
            found = [
                {"00080018": _value("UI", name)}
                for name, (header, _) in self.files.items()
                if header.series_instance_uid == parts[3]
            ]
            return _page(found, start)
        if parts[3] in self.broken:
            return Says(status=500)
        body = self.files[parts[5]][1].read_bytes()
        return Says(body=body, headers={"Content-Type": "application/dicom"})

    def _series(self) -> list[dict[str, Any]]:
        held = [header for header, _ in self.files.values()]
        number = Counter(header.series_instance_uid for header in held)
        days = {header.series_instance_uid: header.study.date for header in held}
        studies = {header.series_instance_uid: header.study_instance_uid for header in held}
        counts: dict[str, int | None] = {**number, **self.lists, **self.claims}
        return [
            _series_of(name, studies.get(name, "1.2"), days.get(name, "20260106"), count)
            for name, count in counts.items()
        ]


def _series_of(name: str, study: str, day: str, count: int | None) -> dict[str, Any]:
    return {
        "0020000E": _value("UI", name),
        "0020000D": _value("UI", study),
        "00080060": _value("CS", "CT"),
        "00080020": _value("DA", day),
        **({} if count is None else {"00201209": _value("IS", count)}),
    }


def _value(vr: str, value: object) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _page(found: Sequence[dict[str, Any]], start: int) -> Says:
    return Says(body=json.dumps(found[start : start + 500]).encode())


@contextmanager
def answering(
    answer: Callable[[Asked], Says], **more: Any
) -> Iterator[tuple[Stub, DicomWebDestination]]:
    with stub(answer) as served:
        yield served, DicomWebDestination(name="vna", url=served.url, watch=True, **more)


def ct(folder: Path, name: str, *, slices: int = 3) -> CtFiles:
    def change(dataset: Any, _: int) -> None:
        dataset.StudyDate = dataset.SeriesDate = "20260106"

    values = np.zeros((slices, 8, 8), dtype=np.int16)
    return make_ct_series(folder / name, values, name=name, change=change)


def asked_of(served: Stub) -> Counter[str]:
    """How often the instances of each series were asked for."""
    firsts = [asked.path.partition("?")[0] for asked in served.seen() if "offset=0" in asked.path]
    paths = [path.strip("/").split("/") for path in firsts]
    return Counter(parts[3] for parts in paths if parts[-1] == "instances")


def test_an_archive_of_a_hundred_thousand_series_is_given_up_and_left_alone(
    department: Department,
) -> None:
    def endless(asked: Asked) -> Says:
        start = int(asked.path.rpartition("offset=")[2])
        numbers = range(start, min(start + 500, 100_000))
        return _page([_series_of(f"1.2.{number}", "1.2", "20260106", 3) for number in numbers], 0)

    with answering(endless) as (served, archive):
        survey = department.survey(archive)
        with pytest.raises(PeerError, match="without end"):
            survey.look(TODAY)
        assert len(served.seen()) < 50, "it is not listened to for ever"
        assert survey.look(TODAY + MINUTE) == 0
        assert not served.seen()
    assert not department.here()


def test_of_many_series_a_look_takes_some_and_each_gets_its_turn(
    department: Department, tmp_path: Path
) -> None:
    good = ct(tmp_path, "good")
    crowd = Catalogue()
    crowd.lists = {f"1.2.{number}": 3 for number in range(5 * SERIES_AT_ONCE)}
    crowd.add(good.paths)
    with answering(crowd) as (served, archive):
        survey = department.survey(archive)
        tried: Counter[str] = Counter()
        for second in range(6):
            survey.look(TODAY + second * timedelta(seconds=1))
            at_this = asked_of(served)
            assert len(at_this) <= SERIES_AT_ONCE
            tried += at_this
        assert len(tried) == 5 * SERIES_AT_ONCE + 1
        assert set(tried.values()) == {1}, "those of which there is nothing are put off"
        assert survey.look(TODAY + timedelta(seconds=30)) == 0
        assert not served.seen(), "it was through, and the next look is in a minute"
    assert department.here() == {good.series_uid: len(good.paths)}


def test_what_is_put_off_does_not_fill_the_database(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "PUT_OFF_AT_MOST", 20)
    crowd = Catalogue()
    crowd.lists = {f"1.2.{number}": 3 for number in range(3 * SERIES_AT_ONCE)}
    with answering(crowd) as (_, archive):
        survey = department.survey(archive)
        for second in range(3):
            survey.look(TODAY + second * timedelta(seconds=1))
    assert len(department.remembered()["put-off:vna"]) == 20


def test_a_series_that_keeps_failing_is_put_off_and_holds_up_nobody(
    department: Department, tmp_path: Path
) -> None:
    bad, good = ct(tmp_path, "bad"), ct(tmp_path, "good")
    catalogue = Catalogue([*bad.paths, *good.paths])
    catalogue.broken = {bad.series_uid}
    with answering(catalogue) as (served, archive):
        survey = department.survey(archive)
        assert survey.look(TODAY) == len(good.paths)
        assert department.here() == {good.series_uid: len(good.paths)}
        served.seen()
        for minute in range(2, 62, 2):
            survey.look(TODAY + minute * MINUTE)
        assert asked_of(served) == {bad.series_uid: 4}, "after 2, 4, 8 and 16 minutes"
        catalogue.broken = set()
        assert survey.look(TODAY + 2 * HOUR) == len(bad.paths)
    assert department.remembered()["put-off:vna"] == {}


def test_what_is_refused_is_not_asked_for_again_until_there_is_more(
    department: Department, tmp_path: Path
) -> None:
    def no_patient(dataset: Any, number: int) -> None:
        dataset.StudyDate = "20260106"
        if number == 1:
            dataset.PatientID = "SOMEBODY ELSE"

    odd = make_ct_series(tmp_path / "odd", name="odd", change=no_patient)
    catalogue = Catalogue(odd.paths[:4])
    with answering(catalogue) as (served, archive):
        survey = department.survey(archive)
        assert survey.look(TODAY) == 3
        served.seen()
        for minutes in range(60, 600, 60):
            survey.look(TODAY + minutes * MINUTE)
        assert not asked_of(served)
        catalogue.add(odd.paths)
        assert survey.look(TODAY + 601 * MINUTE) == 1


def test_an_archive_that_says_no_number_is_asked_for_the_list(
    department: Department, tmp_path: Path
) -> None:
    grows = ct(tmp_path, "grows", slices=6)
    catalogue = Catalogue(grows.paths[:3])
    catalogue.claims = {grows.series_uid: None}
    with answering(catalogue) as (_, archive):
        survey = department.survey(archive)
        assert survey.look(TODAY) == 3
        assert department.counted(grows.series_uid) == [3]
        catalogue.add(grows.paths)
        assert survey.look(TODAY + HOUR) == 3
        assert department.counted(grows.series_uid) == [3, 6]


def test_files_of_another_series_do_not_come_in(department: Department, tmp_path: Path) -> None:
    other = ct(tmp_path, "other")
    honest = Catalogue(other.paths)

    def lying(asked: Asked) -> Says:
        path = asked.path.replace("/series/1.2.3/", f"/series/{other.series_uid}/")
        says = honest(replace(asked, path=path))
        if asked.path.startswith("/series"):
            return Says(body=says.body.replace(other.series_uid.encode(), b"1.2.3"))
        return says

    with answering(lying) as (_, archive):
        assert department.survey(archive).look(TODAY) == 0
    assert not department.here()
    assert not department.on_their_way()


def test_that_a_series_is_pulled_is_written_down_before(
    department: Department, tmp_path: Path
) -> None:
    one = ct(tmp_path, "deadly")
    catalogue = Catalogue(one.paths)
    then: list[dict[str, Any]] = []

    def watched_one(asked: Asked) -> Says:
        if asked.path.partition("?")[0].endswith("/instances"):
            then.append(department.remembered())
        return catalogue(asked)

    with answering(watched_one) as (_, archive):
        department.survey(archive).look(TODAY)
    memory = then[0]
    assert list(memory["put-off:vna"]) == [one.series_uid], "should a worker die by it"
    assert memory["survey:vna"]["next_at"] == (TODAY + MINUTE).isoformat()


def test_of_many_workers_one_asks(department: Department, tmp_path: Path) -> None:
    catalogue = Catalogue(ct(tmp_path, "one").paths)
    with answering(catalogue, watch_every_s=30.0) as (_, archive):
        first, second = department.survey(archive), department.survey(archive)
        first.look(TODAY)
        second.look(TODAY + timedelta(seconds=20))
        assert catalogue.told == 1
        second.look(TODAY + timedelta(seconds=30))
        first.look(TODAY + timedelta(seconds=31))
        assert catalogue.told == 2


def test_a_hint_is_followed_at_once_but_not_to_one_that_is_away(
    department: Department, tmp_path: Path
) -> None:
    catalogue = Catalogue(ct(tmp_path, "one").paths)
    with answering(catalogue) as (_, archive):
        survey = department.survey(archive)
        survey.look(TODAY)
        hint(department.records.index, "vna")
        survey.look(TODAY + timedelta(seconds=1))
        survey.look(TODAY + timedelta(seconds=2))
        assert catalogue.told == 2
    with pytest.raises(PeerUnreachableError):
        survey.look(TODAY + HOUR)
    hint(department.records.index, "vna")
    assert survey.look(TODAY + HOUR + MINUTE) == 0


def test_a_full_disk_puts_it_off_and_loses_nothing(department: Department, tmp_path: Path) -> None:
    one = ct(tmp_path, "one")
    reserve = {"disk_reserve_mib": 10**9}
    full = open_records(department.settings.model_copy(update=reserve), role="test")
    try:
        with answering(Catalogue(one.paths)) as (_, archive):
            survey = Survey(archive, department.settings, full)
            with pytest.raises(DiskFullError):
                survey.look(TODAY)
            assert department.survey(archive).look(TODAY + 5 * MINUTE) == len(one.paths)
    finally:
        full.close()
    assert not department.on_their_way()


def test_the_days_are_the_site_s_own_and_one_more_at_each_end(department: Department) -> None:
    asked: list[str] = []

    def nothing(one: Asked) -> Says:
        asked.append(parse_qs(urlsplit(one.path).query)["StudyDate"][0])
        return Says(status=204)

    late = datetime(2026, 1, 6, 23, 30, tzinfo=UTC)
    department.settings = department.settings.model_copy(update={"time_zone": "Europe/Zurich"})
    with answering(nothing, watch_days=3) as (_, archive):
        department.survey(archive).look(late)
    assert asked == ["20260103-"], "three days before the 7th, and one more"


# ------------------------------------------------------------------------- C-FIND, study by study


class Peered:
    """A peer of DIMSE that only answers C-FIND."""

    def __init__(self, studies: int) -> None:
        self.studies = {
            f"1.{number}": StudyFound(
                study_uid=f"1.{number}", series=1, instances=2, date="20260106", time="08"
            )
            for number in range(studies)
        }
        self.series = dict.fromkeys(self.studies, 1)
        self.broken: set[str] = set()
        self.dates: list[str] = []
        self.asked: list[str] = []

    def find_studies(self, *, dates: str) -> tuple[StudyFound, ...]:
        self.dates.append(dates)
        return tuple(self.studies.values())

    def find_series(self, *, study_uid: str, modality: str) -> tuple[SeriesFound, ...]:
        assert modality == "CT"
        self.asked.append(study_uid)
        if study_uid in self.broken:
            raise PeerError("it answered our C-FIND with a failure")
        return tuple(
            SeriesFound(
                study_uid=study_uid, series_uid=f"{study_uid}.{n}", modality="CT", instances=2
            )
            for n in range(self.series[study_uid])
        )

    def took(self) -> list[str]:
        """Whose series were asked for since the last time."""
        asked, self.asked = self.asked, []
        return asked


def listing(peered: Peered, studies: Studies, folder: Path) -> list[Listed]:
    archive = DimseDestination(name="pacs", host=LOOPBACK, port=104, aet="PACS")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "dimse_peer", lambda _: peered)
        with listing_of(archive, folder) as source:
            return source.recent(date(2026, 1, 3), date(2026, 1, 7), studies)


def test_only_studies_that_are_new_or_changed_are_asked_for_their_series(tmp_path: Path) -> None:
    peered, studies = Peered(STUDIES_AT_ONCE + 5), Studies()
    assert len(listing(peered, studies, tmp_path)) == STUDIES_AT_ONCE
    assert peered.dates == ["20260103-20260107"]
    assert not studies.done
    assert len(listing(peered, studies, tmp_path)) == STUDIES_AT_ONCE + 5
    assert studies.done
    assert len(set(peered.took())) == STUDIES_AT_ONCE + 5
    listing(peered, studies, tmp_path)
    assert peered.took() == []
    changed = StudyFound(study_uid="1.7", series=2, instances=4)
    peered.studies["1.7"], peered.series["1.7"] = changed, 2
    del peered.studies["1.8"]
    listed = listing(peered, studies, tmp_path)
    assert peered.took() == ["1.7"]
    uids = {one.series_uid for one in listed}
    assert "1.7.1" in uids
    assert "1.8.0" not in uids


def test_studies_whose_series_still_arrive_are_asked_again_and_those_without_numbers_in_turn(
    tmp_path: Path,
) -> None:
    peered, studies = Peered(3), Studies()
    listing(peered, studies, tmp_path)
    peered.took()
    listing(peered, studies, tmp_path)
    assert peered.took() == []
    studies.ask_again(["1.2"])
    listing(peered, studies, tmp_path)
    assert peered.took() == ["1.2"]
    listing(peered, studies, tmp_path)
    assert peered.took() == [], "until it is said again"
    silent = Peered(2 * STUDIES_AT_ONCE)
    silent.studies = {
        name: StudyFound(study_uid=name, series=None, instances=None) for name in silent.studies
    }
    studies = Studies()
    for _ in range(4):
        listing(silent, studies, tmp_path)
    assert studies.done, "or it would be asked without a pause"
    assert set(Counter(silent.took()).values()) == {2}


def test_a_study_that_cannot_be_listed_holds_up_no_other(tmp_path: Path) -> None:
    peered, studies = Peered(3), Studies()
    peered.broken = {"1.1"}
    assert {one.study_uid for one in listing(peered, studies, tmp_path)} == {"1.0", "1.2"}
    assert studies.done
    peered.broken = set()
    assert len(listing(peered, studies, tmp_path)) == 3


def test_a_peer_that_lists_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MATCHES_AT_MOST", 100)
    peered, studies = Peered(3), Studies()
    peered.series = dict.fromkeys(peered.series, 60)
    with pytest.raises(PeerError, match="more series"):
        listing(peered, studies, tmp_path)
    peered.series = dict.fromkeys(peered.series, 1)
    assert len(listing(peered, studies, tmp_path)) == 3


def test_of_a_study_of_the_past_only_what_has_todays_date_is_listed(tmp_path: Path) -> None:
    peered = Peered(1)
    archive = DimseDestination(name="pacs", host=LOOPBACK, port=104, aet="PACS")
    found = {
        day: SeriesFound(
            study_uid="1.0", series_uid=f"1.0.{n}", modality="CT", instances=2, date=day
        )
        for n, day in enumerate(("20260106", "20251215", ""))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "dimse_peer", lambda _: peered)
        patch.setattr(peered, "find_series", lambda **_: tuple(found.values()))
        with listing_of(archive, tmp_path) as source:
            listed = source.in_study("1.0", date(2026, 1, 3))
    assert [one.series_uid for one in listed] == ["1.0.0"]


def test_uids_that_are_none_are_not_listed(tmp_path: Path) -> None:
    peered = Peered(1)
    peered.studies |= {
        name: StudyFound(study_uid=name, series=1, instances=1) for name in ("*", "", "1.2\\1.3")
    }
    assert {one.study_uid for one in listing(peered, Studies(), tmp_path)} == {"1.0"}
    assert peered.took() == ["1.0"]


# -------------------------------------------------------------------------------------- decisions


def listed(name: str = "1.1", instances: int | None = 5, day: int = 6) -> Listed:
    at = datetime(2026, 1, day)
    return Listed(series_uid=name, study_uid="1", instances=instances, taken_at=at)


@pytest.mark.parametrize(
    ("instances", "here", "lacking"),
    [
        (5, NOTHING, True),
        (5, Here(instances=4, state="arriving"), True),
        (5, Here(instances=5, state="arriving"), False),
        (4, Here(instances=5, state="whole"), False),
        (6, Here(instances=5, state="whole", revised=True), True),
        (6, Here(instances=0, state="whole", revised=True), False),
        (None, Here(instances=5, state="whole", revised=True), True),
        (None, Here(instances=0, state="whole", revised=True), False),
        (0, NOTHING, False),
    ],
)
def test_a_series_is_looked_at_where_there_is_more_and_it_was_not_thrown_away(
    instances: int | None, here: Here, lacking: bool
) -> None:
    assert is_lacking(listed(instances=instances), here) is lacking


def test_what_was_put_off_waits_longer_each_time_unless_it_grows() -> None:
    every = timedelta(minutes=1)
    off: PutOff | None = None
    waits = []
    for _ in range(9):
        off = put_off(off, listed(), TODAY, every)
        waits.append((off.until - TODAY) / MINUTE)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert off is not None
    assert is_due(listed(), None, TODAY)
    assert not is_due(listed(), off, TODAY)
    assert is_due(listed(), off, TODAY + HOUR)
    assert is_due(listed(instances=6), off, TODAY)


def test_the_newest_come_first_and_those_that_failed_last() -> None:
    offs = {"failed": PutOff(instances=5, times=3, until=TODAY)}
    due = [listed("old", day=1), listed("failed", day=6), listed("new", day=5)]
    assert [one.series_uid for one in in_turn(due, offs)] == ["new", "old", "failed"]


def test_older_studies_have_their_turn_and_where_something_came_at_once() -> None:
    studies, asked = [f"1.{number}" for number in range(40)], dict[str, int]()
    for look in (1, 2, 3):
        for uid in older_in_turn(studies, asked, again={"1.7"}):
            asked[uid] = look
    assert asked.keys() == set(studies), "forty within three looks of sixteen"
    assert asked["1.7"] == 3


@pytest.mark.parametrize("error", [PeerError, PeerUnreachableError])
def test_an_older_study_that_cannot_be_listed_holds_up_no_other(
    department: Department, treatment: Treatment, error: type[PeerError]
) -> None:
    department.send(treatment.paths)
    department.wait()
    asked: list[str] = []

    class Broken:
        def in_study(self, study_uid: str, since: date) -> list[Listed]:
            asked.append(study_uid)
            raise error("it answered our C-FIND with a failure")

    survey = department.survey(DimseDestination(name="tps", host=LOOPBACK, port=104, aet="TPS"))
    since = date(2026, 1, 3)
    broken: Any = Broken()
    if error is PeerUnreachableError:
        with pytest.raises(PeerUnreachableError):
            survey._filed_elsewhere(broken, since, set(), TODAY)
        assert len(asked) == 1
    else:
        assert survey._filed_elsewhere(broken, since, set(), TODAY) == []
        studies = {read_header(one.paths[0]).study_instance_uid for one in treatment.fractions[1:]}
        studies.add(read_header(treatment.planning_ct.paths[0]).study_instance_uid)
        assert set(asked) == studies, "of the planning CT and of the last CBCT"


def test_whoever_is_no_longer_treated_is_not_asked_for(
    department: Department, treatment: Treatment
) -> None:
    department.send(treatment.paths)
    department.wait()
    notes = surveys._Notes(department.records, "pacs")
    assert notes.studies(now() - DAY)
    assert notes.studies(now() + DAY) == []


def test_the_archives_of_the_settings_that_say_so_are_watched(department: Department) -> None:
    url = "http://127.0.0.1:1"
    web = DicomWebDestination(name="vna", url=url, watch=True)
    node = DimseDestination(name="tps", host=LOOPBACK, port=104, aet="TPS", watch=True)
    one = OrthancDestination(name="pacs", url=url, watch=True)
    quiet = DicomWebDestination(name="quiet", url=url)
    destinations = (web, node, one, quiet)
    assert watched(destinations) == (web, node, one)
    assert fetched_from(destinations) == (web, node), "what belongs to a CBCT comes with it"
    settings = department.settings.model_copy(update={"destinations": destinations})
    duties = watching(settings, department.records)
    assert [duty.name for duty in duties] == ["watch-vna", "watch-tps", "watch-pacs"]
    assert all(duty.alone for duty in duties)


@pytest.mark.parametrize("wrong", [{"watch_every_s": 1}, {"watch_days": 0}, {"watch_days": 60}])
def test_an_archive_is_not_asked_without_a_pause_nor_for_everything(wrong: dict[str, Any]) -> None:
    sound = DicomWebDestination(name="vna", url="http://127.0.0.1:1", watch=True)
    assert (sound.watch_every_s, sound.watch_days) == (60.0, 2)
    with pytest.raises(ValueError, match="watch_"):
        DicomWebDestination(name="vna", url="http://127.0.0.1:1", **wrong)
