"""What is missing here comes from the archives by itself; what is another's does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydicom import dcmread
from sqlalchemy import select

from contourcast.imaging.dicom.instance import read_header
from contourcast.service.archive import Sent
from contourcast.service.doors import ArchiveDoor, NodeDoor
from contourcast.service.index.database import now
from contourcast.service.index.tables import cursor, fraction, series
from contourcast.service.ingest import take_files
from contourcast.service.intake.arriving import Arriving
from contourcast.service.intake.evidence import Evidence
from contourcast.service.intake.facts import PatientKey
from contourcast.service.intake.fractions import Fractions
from contourcast.service.intake.rules import SiteRules
from contourcast.service.pacs import fetching
from contourcast.service.pacs.destinations import (
    Archive,
    DicomWebDestination,
    DimseDestination,
    OrthancDestination,
    WebhookDestination,
)
from contourcast.service.pacs.fetching import (
    Fetcher,
    FetchSettings,
    Wanted,
    can_be_asked,
    is_due,
    objects,
    scans,
    wants_more,
    why_not_of_fraction,
    why_not_of_series,
)
from contourcast.service.pacs.node import Caller, Node, NodeSettings
from contourcast.service.pacs.sources import SLICE_BYTES, Budget, Gate, Offer, source_of
from contourcast.service.problems import DiskFullError, PeerUnreachableError, SettingsError
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.dcmqrscp import dcmqrscp
from support.dicom_factory import CtFiles, make_ct_series, make_registration, uid
from support.dimse import AET, LOOPBACK, dcmtk
from support.orthanc import PASSWORD, USER, RealOrthanc, free_ports, orthanc
from support.records import looking_into
from support.server import form_files, serving
from support.stub import Asked, Says, stub
from support.treatment import Treatment, make_treatment

LATER = timedelta(seconds=20)
GAP = timedelta(minutes=11)
HOUR = timedelta(hours=1)
HOUSE, ELSEWHERE = "HOUSE", "ELSEWHERE"
PASSWORD_ENV = "CONTOURCAST_TEST_PACS_PASSWORD"
Kind = Literal["orthanc", "dicomweb", "dimse"]
KINDS: tuple[Kind, ...] = ("orthanc", "dicomweb", "dimse")


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_ENV, PASSWORD)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What lies in the PACS.

    Attributes:
        ours: A course, its CBCTs among it.
        registration: Of the same patient.
        foreign: A course of somebody with the same number, of another issuer.
    """

    ours: Treatment
    registration: Path
    foreign: Treatment

    @property
    def paths(self) -> list[Path]:
        return [*self.ours.paths, self.registration, *self.foreign.paths]

    @property
    def planning(self) -> set[str]:
        """The series that a fraction of ours is to have beside its own."""
        return {series_of(path) for path in (*self.ours.plan_paths, self.registration)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    ours = make_treatment(folder / "ours", patient="F", fractions=2, seed=2)
    foreign = make_treatment(folder / "foreign", patient="G", fractions=1, seed=5)
    frames = [read_header(one.paths[0]).frame_of_reference for one in _scans(ours)[:2]]
    registration = make_registration(
        folder / "reg.dcm", registered=frames[1], moved={frames[0]: np.eye(4)}, name="fetch reg"
    )
    for path in ours.paths:
        rewrite(path, IssuerOfPatientID=HOUSE)
    who = read_header(ours.structures).patient
    rewrite(
        registration,
        PatientID=who.patient_id,
        PatientName=who.name,
        PatientBirthDate=who.birth_date,
        IssuerOfPatientID=HOUSE,
    )
    for path in foreign.paths:
        rewrite(path, PatientID=who.patient_id, IssuerOfPatientID=ELSEWHERE)
    return Scene(ours=ours, registration=registration, foreign=foreign)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> Iterator[RealOrthanc]:
    known = {"contourcast": {"AET": AET, "Host": LOOPBACK, "Port": 104}}
    folder = tmp_path_factory.mktemp("pacs")
    with orthanc(folder, stable_age_s=60, modalities=known) as running:
        assert set(running.upload(scene.paths)) == {"Success"}
        yield running


def to(pacs: RealOrthanc, kind: Kind) -> Archive:
    """That Orthanc by one of its three doors, as settings name it."""
    if kind == "orthanc":
        return OrthancDestination(
            name="pacs", url=pacs.url, user=USER, password_env=PASSWORD_ENV, fetch=True
        )
    if kind == "dicomweb":
        return DicomWebDestination(
            name="pacs",
            url=f"{pacs.url}/dicom-web",
            user=USER,
            password_env=PASSWORD_ENV,
            fetch=True,
        )
    return DimseDestination(
        name="pacs", host=LOOPBACK, port=pacs.dicom_port, aet="ORTHANC", our_aet=AET, fetch=True
    )


class Department:
    """The intake of a service that asks archives, its clock in our hands."""

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

    def send(self, paths: Sequence[Path], *, door: Literal["rest", "dimse"] = "rest") -> None:
        files = ((p.name, p.open("rb")) for p in paths)
        take_files(files, self.records.archive, self.settings, sent=Sent(door=door))

    def wait(self, how_long: timedelta = LATER) -> None:
        """Long enough for what arrived to be whole, or to be told incomplete."""
        self.arriving.look(now() + how_long)
        self.fractions.look()

    def asking(self, archive: Archive, bounds: FetchSettings = fetching.DEFAULTS) -> Fetcher:
        return Fetcher(archive, self.settings, self.records, SiteRules(), bounds)

    def planned(self) -> dict[str, str]:
        """By the series of its CBCT, of what is to be drawn: the structure set."""
        jobs = self.records.propagations.jobs()
        return {j.order["cbct"]["series"]: j.order["structures"]["sop_uid"] for j in jobs}

    def here(self) -> dict[str, int]:
        """Instances of each series."""
        return {one.series_uid: one.instances for one in self.records.archive.series()}

    def question(self) -> dict[str, Any]:
        """The one that is open."""
        (row,) = [r for r in self.rows(fraction) if r.state == "needs_person"]
        return dict(row.question_json)

    def rows(self, table: Any) -> list[Any]:
        with self.records.index.read() as at:
            return list(at.execute(select(table)))

    def remembered(self) -> dict[str, dict[str, Any]]:
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
def test_a_cbct_whose_plan_lies_in_the_pacs_is_matched_by_itself(
    department: Department, pacs: RealOrthanc, scene: Scene, kind: Kind
) -> None:
    cbct = scene.ours.fractions[1]
    department.send(cbct.paths)
    department.wait()
    assert department.question()["question"] == "planning_ct"
    came = department.asking(to(pacs, kind)).look()
    assert came == len(scene.ours.plan_paths) + 1
    department.wait()
    assert department.planned() == {cbct.series_uid: scene.ours.structures_uid}
    assert department.here().keys() == {cbct.series_uid} | scene.planning, (
        "neither the CBCT of another day nor the patient of the same number elsewhere"
    )
    assert not department.on_their_way()


@pytest.mark.peer
@pytest.mark.slow
def test_a_running_service_fetches_the_plan_of_a_cbct_that_it_was_sent(
    pacs: RealOrthanc, scene: Scene, folder: Path
) -> None:
    cbct = scene.ours.fractions[0]
    destinations = json.dumps([to(pacs, "orthanc").model_dump(mode="json", exclude_none=True)])
    settings = {"intake": "automatic", "methods": '["translation"]', "destinations": destinations}
    with serving(folder, **settings) as server, looking_into(folder) as records:
        sent = server.http.post("/v1/instances", files=form_files(list(cbct.paths)))
        assert sent.status_code == 200, sent.text
        deadline = time.monotonic() + 240
        while not (jobs := records.propagations.jobs()) and time.monotonic() < deadline:
            threading.Event().wait(0.2)
        (job,) = jobs
        assert job.order["cbct"]["series"] == cbct.series_uid
        assert job.order["structures"]["sop_uid"] == scene.ours.structures_uid


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_missing_is_fetched(
    department: Department, pacs: RealOrthanc, scene: Scene, kind: Kind
) -> None:
    cbct = scene.ours.fractions[0]
    department.send([*cbct.paths, scene.ours.structures, scene.registration])
    department.wait()
    assert department.question()["missing"] == [scene.ours.planning_ct.series_uid]
    assert department.asking(to(pacs, kind)).look() == len(scene.ours.planning_ct.paths)
    department.wait()
    assert department.planned().keys() == {cbct.series_uid}


@pytest.mark.peer
@pytest.mark.parametrize("door", ["rest", "dimse"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_is_healed_from_an_archive_that_has_the_series_whole(
    department: Department,
    pacs: RealOrthanc,
    scene: Scene,
    kind: Kind,
    door: Literal["rest", "dimse"],
) -> None:
    cbct = scene.ours.fractions[0]
    department.send([*cbct.paths[:9], *cbct.paths[12:]], door=door)
    department.arriving.released([cbct.series_uid])
    department.wait(GAP)
    (row,) = department.rows(series)
    assert row.state == "incomplete"
    assert department.asking(to(pacs, kind)).look() == 3
    department.wait()
    (row,) = department.rows(series)
    assert (row.state, row.pulled_again_at is None) == ("whole", False), row.reason
    assert department.here() == {cbct.series_uid: len(cbct.paths)}


@pytest.mark.peer
def test_a_series_that_the_archive_has_no_more_of_is_left_to_others(
    department: Department, tmp_path: Path
) -> None:
    cut = make_ct_series(tmp_path / "cut", name="cut")
    department.send([*cut.paths[:2], *cut.paths[3:]])
    department.wait(GAP)
    with orthanc(tmp_path / "orthanc") as poor:
        poor.upload([*cut.paths[:2], *cut.paths[3:]])
        fetcher = department.asking(to(poor, "orthanc"))
        assert fetcher.look() == 0
        (row,) = department.rows(series)
        assert (row.state, row.pulled_again_at) == ("incomplete", None)
        poor.upload(cut.paths)
        assert fetcher.look() == 0, "it was asked within the hour"
        assert fetcher.look(now() + HOUR) == 1
    department.wait()
    (row,) = department.rows(series)
    assert row.state == "whole"


@pytest.mark.peer
def test_the_three_doors_of_one_archive_offer_the_same(
    department: Department, pacs: RealOrthanc, scene: Scene
) -> None:
    number = read_header(scene.ours.structures).patient.patient_id
    told: dict[Kind, set[tuple[str, str, datetime | None, str, str]]] = {}
    for kind in KINDS:
        with source_of(to(pacs, kind), department.settings.data_folder) as source:
            offers = source.offers(number, ("CT", "RTSTRUCT", "REG"))
            assert source.offers(number.lower(), ("CT",)) == [], "letter for letter"
            assert source.offers("NOBODY", ("CT",)) == []
            (cut,) = [o for o in offers if o.series_uid == scene.ours.planning_ct.series_uid]
            assert set(source.instances(cut)) == set(scene.ours.planning_ct.sop_uids)
            nothing = replace(cut, series_uid=uid("nothing"), study_uid=uid("nowhere"))
            assert source.instances(nothing) == []
        told[kind] = {
            (o.series_uid, o.modality, o.taken_at, o.manufacturer, o.description) for o in offers
        }
    assert {uid for uid, *_ in told["orthanc"]} == {series_of(path) for path in scene.paths}
    assert told["orthanc"] == told["dicomweb"] == told["dimse"]


@pytest.mark.peer
@pytest.mark.parametrize("by", ["get", "move"])
def test_dcmtk_s_archive_gives_by_get_or_moves_to_our_node(
    department: Department, tmp_path: Path, scene: Scene, by: str
) -> None:
    cbct = scene.ours.fractions[0]
    department.send(cbct.paths)
    department.wait()
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
            fetch=True,
        )
        sent = dcmtk(
            "storescu", "-aec", "DCMQRSCP", LOOPBACK, str(archive.port), *scene.paths
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        came = department.asking(archive).look()
    department.wait()
    assert department.planned() == {cbct.series_uid: scene.ours.structures_uid}
    doors = {r.uid: r.door for r in department.rows(series) if r.uid != cbct.series_uid}
    if by == "get":
        assert came == len(scene.ours.plan_paths) + 1
        assert doors == dict.fromkeys(scene.planning, "pull")
    else:
        assert doors.keys() >= scene.planning
        assert set(doors.values()) == {"dimse"}
        assert scene.ours.fractions[1].series_uid not in doors


# ----------------------------------------------------------------------- with ones that misbehave


def test_an_archive_that_is_down_holds_up_nothing(
    department: Department, tmp_path: Path, scene: Scene
) -> None:
    (port,) = free_ports(1)
    down = OrthancDestination(name="down", url=f"http://127.0.0.1:{port}", fetch=True)
    first, second = scene.ours.fractions
    department.send([*first.paths, *second.paths])
    department.wait()
    fetcher = department.asking(down)
    at = now()
    with pytest.raises(PeerUnreachableError, match="down"):
        fetcher.look(at)
    assert fetcher.look(at + timedelta(minutes=4)) == 0, "it is left alone for a while"
    with pytest.raises(PeerUnreachableError):
        fetcher.look(at + timedelta(minutes=6))
    with answering(Hostile(scene.ours.plan_paths)) as up:
        assert department.asking(up).look() > 0, "another archive has it"
    department.wait()
    assert department.planned().keys() == {first.series_uid, second.series_uid}


class Hostile:
    """Answers as an Orthanc does, whatever it was asked for, from files.

    Attributes:
        broken: SOP Instance UIDs of which it does not find the files.
        claims: What it says of a series instead of what the files say.
        copies: How many instances it says there are of each.
    """

    def __init__(self, paths: Sequence[Path], **claims: str) -> None:
        self.files = {
            f"{number:08x}-00000000-00000000-00000000-00000000": path
            for number, path in enumerate(paths)
        }
        self.headers = {name: read_header(path) for name, path in self.files.items()}
        self.claims = claims
        self.broken: set[str] = set()
        self.copies = 1

    def __call__(self, asked: Asked) -> Says:
        _, *parts = asked.path.split("/")
        if parts[0] == "tools":
            return Says(body=json.dumps(self._found(json.loads(asked.body))).encode())
        header = self.headers[parts[1]]
        if parts[2] == "file" and header.sop_instance_uid not in self.broken:
            return Says(body=self.files[parts[1]].read_bytes())
        return Says(status=404)

    def _found(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        if query["Level"] == "Series":
            found = {h.series_instance_uid: self._tags(h) for h in self.headers.values()}
            return [{"MainDicomTags": tags} for tags in found.values()]
        wanted = self.claims.get("SeriesInstanceUID") or query["Query"]["SeriesInstanceUID"]
        return [
            {
                "ID": name,
                "ParentSeries": name,
                "FileSize": 1,
                "MainDicomTags": {"SOPInstanceUID": header.sop_instance_uid + ".1" * copy},
            }
            for name, header in self.headers.items()
            if self.claims or header.series_instance_uid == wanted
            for copy in range(self.copies)
        ]

    def _tags(self, header: Any) -> dict[str, str]:
        return {
            "SeriesInstanceUID": header.series_instance_uid,
            "Modality": header.modality,
            "SeriesDate": header.series_date,
        } | self.claims


@contextmanager
def answering(hostile: Hostile, name: str = "other") -> Iterator[OrthancDestination]:
    with stub(hostile) as served:
        yield OrthancDestination(name=name, url=served.url, fetch=True)


def test_what_is_another_patient_s_is_not_used_whatever_the_archive_says(
    department: Department, scene: Scene
) -> None:
    cbct = scene.ours.fractions[0]
    department.send(cbct.paths)
    department.wait()
    with answering(Hostile(scene.foreign.plan_paths)) as archive:
        assert department.asking(archive).look() == 0
    assert department.here().keys() == {cbct.series_uid}
    (memory,) = department.remembered().values()
    assert memory["left_out"] == ["another patient"]
    assert not department.on_their_way()


def test_what_is_another_series_or_another_day_s_is_not_used(
    department: Department, scene: Scene
) -> None:
    first, second = scene.ours.fractions
    department.send([*first.paths[:9], *first.paths[12:]])
    department.wait(GAP)
    lying = Hostile(second.paths[:2], SeriesInstanceUID=first.series_uid)
    with answering(lying) as archive:
        assert department.asking(archive).look() == 0
    assert department.here() == {first.series_uid: len(first.paths) - 3}
    (memory,) = department.remembered().values()
    assert memory["left_out"] == ["another series"]


def test_a_cbct_that_the_archive_calls_a_planning_ct_is_left_there(
    department: Department, scene: Scene
) -> None:
    first, second = scene.ours.fractions
    department.send(second.paths)
    department.wait()
    with answering(Hostile(first.paths)) as archive:
        assert department.asking(archive).look() == 0
    assert department.here().keys() == {second.series_uid}
    (memory,) = department.remembered().values()
    assert memory["left_out"] == ["a CBCT"]


def test_one_file_that_cannot_be_fetched_holds_up_no_other(
    department: Department, scene: Scene
) -> None:
    cbct, planning = scene.ours.fractions[0], scene.ours.planning_ct
    department.send(cbct.paths)
    department.wait()
    hostile = Hostile([scene.registration, *scene.ours.plan_paths])
    hostile.broken = {planning.sop_uids[7], read_header(scene.registration).sop_instance_uid}
    with answering(hostile) as archive:
        department.asking(archive).look()
    here = department.here()
    assert here[planning.series_uid] == len(planning.paths) - 1
    assert series_of(scene.registration) not in here
    assert series_of(scene.ours.structures) in here


def test_more_than_is_allowed_does_not_come(department: Department, scene: Scene) -> None:
    cbct, planning = scene.ours.fractions[0], scene.ours.planning_ct
    department.send([*cbct.paths, scene.ours.structures])
    department.wait()
    few = FetchSettings(bytes_at_most=SLICE_BYTES * (len(planning.paths) - 1))
    none = FetchSettings(scans_at_most=0, objects_at_most=0)
    endless = Hostile(planning.paths)
    endless.copies = 1000
    with (
        answering(Hostile(planning.paths), "few") as archive,
        answering(endless, "endless") as much,
    ):
        assert department.asking(archive, few).look() == 0
        assert department.asking(archive, none).look(now() + HOUR) == 0
        assert department.asking(much).look() == 0
        assert planning.series_uid not in department.here()
        assert department.asking(archive).look(now() + 2 * HOUR) == len(planning.paths)


def test_an_archive_that_answers_nonsense_is_asked_again_in_an_hour(
    department: Department, scene: Scene
) -> None:
    department.send(scene.ours.fractions[0].paths)
    department.wait()
    with stub(lambda asked: Says(body=b"<html>")) as served:
        archive = OrthancDestination(name="odd", url=served.url, fetch=True)
        assert department.asking(archive).look() == 0
        assert len(served.seen()) == 1
        assert department.asking(archive).look(now() + timedelta(minutes=59)) == 0
        assert not served.seen(), "a restart does not ask again at once"
        assert department.asking(archive).look(now() + HOUR) == 0
        assert len(served.seen()) == 1
        assert department.asking(archive).look(now() + timedelta(days=8)) == 0
        assert not served.seen(), "after a week it is a person's alone"
    (name,) = department.remembered()
    (row,) = department.rows(fraction)
    assert name == f"fetched:odd:{row.revision_id}"


def test_that_an_archive_is_asked_is_written_down_before_it_is_asked(
    department: Department, scene: Scene
) -> None:
    department.send(scene.ours.fractions[0].paths)
    department.wait()
    at = now()
    then: list[dict[str, Any]] = []

    def looks(_: Asked) -> Says:
        then.extend(department.remembered().values())
        return Says(body=b"[]")

    with stub(looks) as served:
        archive = OrthancDestination(name="pacs", url=served.url, fetch=True)
        department.asking(archive).look(at)
    expected = {"asked_at": at.isoformat(), "next_at": (at + HOUR).isoformat()}
    assert then == [expected], "whatever dies now, the next hour is quiet"


def test_a_full_disk_puts_it_off_and_blames_no_archive(
    department: Department, scene: Scene
) -> None:
    department.send(scene.ours.fractions[0].paths)
    department.wait()
    full = open_records(
        department.settings.model_copy(update={"disk_reserve_mib": 10**9}), role="test"
    )
    at = now()
    try:
        with answering(Hostile(scene.ours.plan_paths)) as archive:
            fetcher = Fetcher(archive, department.settings, full, SiteRules())
            with pytest.raises(DiskFullError):
                fetcher.look(at)
            assert fetcher.look(at) == 0
            assert department.asking(archive).look(at + timedelta(minutes=6)) > 0
    finally:
        full.close()
    assert not department.on_their_way()


# -------------------------------------------------------------------------------------- decisions


def wanted(**changes: Any) -> Wanted:
    given: dict[str, Any] = {
        "id": "revision",
        "series_uid": "1.1",
        "study_uid": "1",
        "patient": PatientKey(patient_id="P", issuer=HOUSE),
        "patient_key": "key",
        "acquired_at": datetime(2026, 1, 5, 8),
    }
    return Wanted(**given | changes)


def offer(series_uid: str, modality: str = "CT", day: int = 1, **more: Any) -> Offer:
    at = datetime(2026, 1, day, 12)
    return Offer(series_uid=series_uid, modality=modality, taken_at=at, **more)


def uids(offers: Sequence[Offer]) -> list[str]:
    return [one.series_uid for one in offers]


def test_an_archive_is_asked_when_its_time_has_come() -> None:
    at = datetime(2026, 1, 5, 8)
    assert is_due(None, at)
    assert is_due({"next_at": at.isoformat()}, at)
    assert not is_due({"next_at": (at + HOUR).isoformat()}, at)


@pytest.mark.parametrize(
    ("number", "may"),
    [("P-1", True), ("", False), ("P*", False), ("P?", False), ("A\\B", False), ("Ö", False),
     ("x" * 65, False), ("a\nb", False)],
)  # fmt: skip
def test_a_patient_id_that_could_mean_others_is_not_asked_for(number: str, may: bool) -> None:
    assert can_be_asked(PatientKey(patient_id=number)) is may


def test_a_patient_id_with_wildcards_reaches_no_archive(
    department: Department, tmp_path: Path
) -> None:
    def everybody(dataset: Any, _: int) -> None:
        dataset.PatientID, dataset.SeriesDescription = "*", "CBCT"

    cbct = make_ct_series(tmp_path / "star", name="star", change=everybody)
    department.send(cbct.paths)
    department.wait()
    assert department.question()["question"] == "planning_ct"
    with stub(lambda asked: Says(body=b"[]")) as served:
        archive = OrthancDestination(name="pacs", url=served.url, fetch=True)
        assert department.asking(archive).look() == 0
        assert not served.seen()


@pytest.mark.parametrize(
    ("question", "wants"),
    [
        ({"question": "planning_ct", "choices": [{"value": "none"}], "missing": []}, True),
        ({"question": "planning_ct", "choices": [{"value": "1.2"}], "missing": []}, False),
        ({"question": "planning_ct", "choices": [{"value": "1.2"}], "missing": ["1.3"]}, True),
        ({"question": "structure_set", "choices": [], "missing": []}, True),
        ({"question": "roi", "choices": [], "missing": []}, False),
        ({"question": "patient", "choices": [{"value": "none"}], "missing": []}, False),
    ],
)
def test_more_is_asked_for_where_it_could_settle_the_question(
    question: dict[str, Any], wants: bool
) -> None:
    assert wants_more(question) is wants


def test_plans_come_first_and_what_was_made_later_last() -> None:
    offers = [
        offer("reg", "REG"),
        offer("later", "RTSTRUCT", day=9),
        offer("old", "RTSTRUCT", day=1),
        offer("new", "RTSTRUCT", day=3),
        offer("ours", "RTSTRUCT", day=3, manufacturer="Contourcast"),
        offer("plan", "RTPLAN"),
        offer("foreign", "RTPLAN", issuer=ELSEWHERE),
        offer("scan", "CT"),
    ]
    assert uids(objects(wanted(), offers)) == ["plan", "new", "old", "later", "reg"]
    assert "foreign" in uids(objects(wanted(patient=PatientKey(patient_id="P")), offers)), (
        "an issuer that one of them does not state is asked of the files"
    )


def test_the_scans_that_sets_name_are_fetched_and_else_the_earlier_ones() -> None:
    offers = [
        offer("1.1"),
        offer("a", day=1),
        offer("b", day=3),
        offer("later", day=6),
        offer("cbct", description="CBCT"),
        offer("synthetic", description="sCT"),
        offer("foreign", issuer=ELSEWHERE),
        offer("set", "RTSTRUCT"),
    ]
    rules = SiteRules()
    assert uids(scans(wanted(), offers, (), rules)) == ["b", "a"]
    assert uids(scans(wanted(), offers, ("a", "cbct", "later"), rules)) == ["a"]
    assert uids(scans(wanted(), offers, ("synthetic",), rules)) == ["synthetic"]
    assert uids(scans(wanted(), offers, ("elsewhere",), rules)) == [], "what is named is not there"
    unknown = wanted(acquired_at=None)
    assert "later" in uids(scans(unknown, offers, (), rules)), "nobody knows what is later"


def test_each_file_says_itself_whose_it_is(scene: Scene) -> None:
    ours, foreign = scene.ours, scene.foreign
    planning = read_header(ours.planning_ct.paths[0])
    whose = wanted(patient=PatientKey.of(planning.patient))

    def why(path: Path, of: str = "", **changes: Any) -> str:
        header = read_header(path)
        return why_not_of_fraction(
            header,
            wanted=replace(whose, **changes),
            offer=offer(of or header.series_instance_uid),
            rules=SiteRules(),
        )

    assert why(ours.planning_ct.paths[0]) == why(ours.structures) == ""
    assert why(ours.planning_ct.paths[0], "1.2.3") == "another series"
    assert why(foreign.planning_ct.paths[0]) == why(foreign.structures) == "another patient"
    assert why(ours.fractions[0].paths[0]) == "a CBCT"
    assert why(ours.planning_ct.paths[0], acquired_at=datetime(2025, 12, 1)) == "taken later"
    cbct = read_header(ours.fractions[0].paths[0])
    assert why_not_of_series(cbct, wanted=whose, series_uid=cbct.series_instance_uid) == ""


def test_a_gate_closes_at_the_first_file_that_may_not_come_in(
    department: Department, scene: Scene, tmp_path: Path
) -> None:
    door = ArchiveDoor(department.records.archive, department.settings)
    paths = scene.ours.planning_ct.paths
    size = sum(path.stat().st_size for path in paths[:2])

    def gate(**budget: int) -> Gate:
        return Gate(
            door, "pacs", lambda _: "", Budget(**{"series": 1, "size_bytes": 10**9} | budget)
        )

    narrow = gate(size_bytes=size)
    assert narrow.take(paths[:4]) == 2
    assert (narrow.closed, narrow.reasons) == (True, {"too much": 1})
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    other = gate()
    assert other.take([broken, *paths]) == 0
    assert other.reasons == {"unreadable": 1}
    assert gate().take(paths[:3]) == 3
    assert narrow.came == 2


def test_the_archives_of_the_settings_that_say_so_are_asked(department: Department) -> None:
    settings = department.settings.model_copy(
        update={
            "destinations": (
                OrthancDestination(name="pacs", url="http://127.0.0.1:1", fetch=True),
                OrthancDestination(name="other", url="http://127.0.0.1:1"),
                DicomWebDestination(name="vna", url="http://127.0.0.1:1", fetch=True),
                DimseDestination(name="tps", host=LOOPBACK, port=104, aet="TPS", fetch=True),
                WebhookDestination(name="hook", url="http://127.0.0.1:1", secret_env="SECRET"),
            )
        }
    )
    duties = fetching.fetching(settings, department.records)
    assert [duty.name for duty in duties] == ["fetch-pacs", "fetch-vna", "fetch-tps"]
    assert all(duty.alone for duty in duties)
    for duty in duties:
        duty.run()  # nothing is missing: nobody is asked


def test_no_worker_starts_without_a_credential_that_an_archive_needs(
    department: Department, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD_ENV)
    archive = OrthancDestination(
        name="pacs", url="http://127.0.0.1:1", user=USER, password_env=PASSWORD_ENV, fetch=True
    )
    settings = department.settings.model_copy(update={"destinations": (archive,)})
    with pytest.raises(SettingsError, match=PASSWORD_ENV):
        fetching.fetching(settings, department.records)


def series_of(path: Path) -> str:
    return read_header(path).series_instance_uid


def rewrite(path: Path, **elements: str) -> None:
    dataset = dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def _scans(treatment: Treatment) -> list[CtFiles]:
    return [treatment.planning_ct, *treatment.fractions]
