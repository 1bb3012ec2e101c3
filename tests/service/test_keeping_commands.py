"""`contourcast rebuild`, `retention` and `export`, as somebody types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from contourcast.cli import keeping
from contourcast.cli.terminal import OneLineErrors
from contourcast.service.access.audit import rows as audit_rows
from contourcast.service.archive import Sent
from contourcast.service.index.tables import course, fraction, propagation, review
from contourcast.service.ingest import take_files
from contourcast.service.intake.states import State
from contourcast.service.keeping.records import Recorder
from contourcast.service.records import Records, open_records
from contourcast.service.settings import ServiceSettings
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set, uid
from support.orthanc import PASSWORD, USER, orthanc
from support.rows import add

app = typer.Typer(cls=OneLineErrors)
for command in (keeping.rebuild, keeping.retention, keeping.export):
    app.command()(command)
LEAK = "ZZQQ-LEAK"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def planning(tmp_path: Path) -> CtFiles:
    return make_ct_series(
        tmp_path / "ct", change=lambda dataset, _: setattr(dataset, "PatientName", LEAK)
    )


@contextmanager
def kept_in(data: Path) -> Iterator[Records]:
    records = open_records(ServiceSettings(data_folder=data), role="test")
    with closing(records):
        yield records


@pytest.fixture
def lived(data: Path, planning: CtFiles, tmp_path: Path) -> CtFiles:
    """A course of one fraction, long ago, and signed."""
    cbct = make_ct_series(tmp_path / "cbct", name="cbct")
    structures = make_structure_set(
        tmp_path / "rs.dcm", {"GTV": [disc((0, -10, -24), 4)]}, reference=planning
    )
    paths = [*planning.paths, *cbct.paths, structures]
    with kept_in(data) as records:
        take_files(
            ((path.name, path.open("rb")) for path in paths), records.archive,
            ServiceSettings(data_folder=data), sent=Sent(door="rest"),
        )  # fmt: skip
        index = records.index
        add(
            index, course, id="c1", planning_series_uid=planning.series_uid,
            structures_uid=uid("rs instance"), made_at="2026-01-05T08:00:00+00:00",
        )  # fmt: skip
        add(
            index, fraction, revision_id="r1", series_uid=cbct.series_uid, course_id="c1",
            acquired_at="2026-01-06T08:00:00", state="matched",
        )  # fmt: skip
        add(
            index, propagation, id="p1", number=1, course_id="c1", state="approved", ended=1,
            made_at="2026-01-06T08:00:00+00:00",
        )  # fmt: skip
        add(index, review, number=1, propagation="p1", course_id="c1")
        result = tmp_path / "result"
        result.write_bytes(structures.read_bytes())
        records.archive.blobs.put({"results/p1/RS.dcm": result})
        Recorder(index, records.archive.blobs, records.archive.incoming).keep()
    return planning


def run(*words: object, data: Path) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--data", str(data)])


def audited(data: Path) -> list[str]:
    with kept_in(data) as records:
        return [row.happening["what"] for row in audit_rows(records.index)]


def test_a_lost_database_is_rebuilt(lived: CtFiles, data: Path) -> None:
    for lost in data.glob("index.sqlite3*"):
        lost.unlink()
    result = run("rebuild", data=data)
    assert result.exit_code == 0, result.output
    assert "11 instances, 0 set aside" in result.output
    assert "propagation 1, review 1" in result.output
    assert LEAK not in result.output
    again = run("rebuild", data=data)
    assert again.exit_code == 1
    assert "the index is not empty" in again.output
    assert audited(data) == ["update"]


def test_what_was_on_its_way_out_when_the_database_was_lost_does_not_stay_there(
    lived: CtFiles, data: Path
) -> None:
    with kept_in(data) as records:
        order = {"cbct": {"series": "1.2"}}
        with records.index.write() as at:
            at.execute(propagation.update().values(state="delivering", order_json=order))
        Recorder(records.index, records.archive.blobs, records.archive.incoming).keep()
    for lost in data.glob("index.sqlite3*"):
        lost.unlink()
    assert run("rebuild", data=data).exit_code == 0
    with kept_in(data) as records:
        assert records.propagations.job("p1").state is State.AWAITING_REVIEW


def test_a_dry_run_says_what_would_go(lived: CtFiles, data: Path) -> None:
    result = run("retention", "--dry-run", data=data)
    assert result.exit_code == 0, result.output
    assert result.output.count("would go  images") == 2
    listed = json.loads(run("retention", "--dry-run", "--json", data=data).output)
    assert {item["subject"] for item in listed} == {lived.series_uid, uid("cbct series")}
    assert all(item["due"] for item in listed)
    later = run("retention", "--dry-run", "--images-days", 100000, data=data)
    assert later.output.count("stays     images") == 2
    assert audited(data) == []


def test_without_an_archive_images_stay(lived: CtFiles, data: Path) -> None:
    result = run("retention", data=data)
    assert result.exit_code == 0, result.output
    assert result.output.count("no archive is named") == 2
    said = json.loads(run("retention", "--json", data=data).output)
    assert said["deleted"] == []
    assert len(said["kept"]) == 2
    unknown = run("retention", "--archive", "nobody", data=data)
    assert unknown.exit_code == 1
    assert "gives images back" in unknown.output


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["orthanc", "dicomweb"])
def test_what_a_real_archive_holds_goes(
    lived: CtFiles, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        archive.upload(lived.paths)
        url = archive.url if kind == "orthanc" else f"{archive.url}/dicom-web"
        known = {"name": "pacs", "kind": kind, "url": url, "user": USER, "password_env": "WORD"}
        monkeypatch.setenv("CONTOURCAST_DESTINATIONS", json.dumps([known]))
        monkeypatch.setenv("WORD", PASSWORD)
        result = run("retention", "--archive", "pacs", data=data)
    assert result.exit_code == 0, result.output
    assert f"deleted  images  {lived.series_uid}  5 files" in result.output
    assert f"kept     images  {uid('cbct series')}  the archive does not hold" in result.output
    assert audited(data) == ["delete"]


def test_a_course_is_given_out_without_names(lived: CtFiles, data: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    words = ("export", "--out", tmp_path / "out", "--key", key)
    result = run(*words, "--deidentified", "--course", "c1", data=data)
    assert result.exit_code == 0, result.output
    assert "12 files of 1 patients" in result.output
    written = list((tmp_path / "out").rglob("*.dcm"))
    assert len(written) == 11  # the result is a copy of the structure set here
    assert all(LEAK.encode() not in path.read_bytes() for path in written)
    assert audited(data) == ["export"]
    one = run(*words, "--deidentified", "--series", uid("cbct series"), data=data)
    assert "5 files of 1 patients" in one.output
    for wrong, fault in (
        (("--course", "c1"), "with names nothing is exported"),
        (("--deidentified",), "nothing is named"),
        (("--deidentified", "--course", "c9"), "no course has that id"),
        (("--deidentified", "--series", "1.2.3"), "no series of that UID"),
        (("--deidentified", "--course", "c1", "--key", tmp_path / "no key"), "cannot be read"),
    ):
        refused = run(*words, *wrong, data=data)
        assert refused.exit_code in (1, 2)
        assert fault in refused.output
