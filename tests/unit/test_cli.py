"""The command line as a script sees it: exit codes, one line on stderr, nothing left behind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from pydicom import dcmread
from typer.testing import CliRunner, Result

from contourcast import client
from contourcast.cli import app
from support.course import CourseFiles, make_course
from support.models import tiny_model


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> CourseFiles:
    return make_course(tmp_path_factory.mktemp("course"))


def propagate(course: CourseFiles, out: Path, *more: str, roi: str = "GTV") -> Result:
    return CliRunner().invoke(
        app,
        [
            "propagate",
            f"--planning-ct={course.planning_ct.folder}",
            f"--structures={course.structures}",
            f"--cbct={course.cbct.folder}",
            f"--roi={roi}",
            f"--out={out}",
            *more,
        ],
    )


@pytest.fixture
def in_kolkata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as there:
        there.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_kolkata")
def test_a_propagation_prints_its_report_as_json_and_writes_by_the_machine_s_clock(
    course: CourseFiles, tmp_path: Path
) -> None:
    done = propagate(course, tmp_path / "out", "--method=rigid", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/report.json").read_text())
    assert dcmread(tmp_path / "out/RS.dcm").TimezoneOffsetFromUTC == "+0530"


def test_a_wrong_roi_is_answered_with_the_nearest(course: CourseFiles, tmp_path: Path) -> None:
    refused = propagate(course, tmp_path / "out", "--method=rigid", roi="gtv_1")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "the nearest is 'GTV'" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_method_is_answered_with_the_list(course: CourseFiles, tmp_path: Path) -> None:
    refused = propagate(course, tmp_path / "out", "--method=rigit")
    assert refused.exit_code == 2
    assert "translation, rigid, dir-t, dir-l, diff-umamba" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_structure_set_is_refused_naming_both_frames(
    course: CourseFiles, tmp_path: Path
) -> None:
    other = make_course(tmp_path / "other", name="other")
    refused = CliRunner().invoke(
        app,
        [
            "propagate",
            f"--planning-ct={course.planning_ct.folder}",
            f"--structures={other.structures}",
            f"--cbct={course.cbct.folder}",
            "--roi=GTV",
            f"--out={tmp_path / 'out'}",
        ],
    )
    assert refused.exit_code == 3, refused.stderr
    assert course.planning_ct.frame_of_reference in refused.stderr
    assert other.planning_ct.frame_of_reference in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_other_files_is_refused(course: CourseFiles, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refused = propagate(course, tmp_path, "--method=rigid")
    assert refused.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "command",
    [
        "propagate --planning-ct=none --structures=none --cbct=none --roi=GTV --method=rigid",
        "simulate",
        "accept",
        "calibrate --curriculum=none --data=none",
        "compare none",
        "evaluate --reference=rigid --scores=none",
        "train prepare courses none --id=7 --name=N",
        "fit samples --curriculum=none --data=none",
        "fit arbiter --samples=none --start=none",
        "fit network --samples=none --validation=a",
        "analyse field --cases=none",
        "analyse ablate --cases=none --validation=a --test=b",
        "analyse subset --cases=none --validation=a --test=b",
        "models import none",
    ],
    ids=lambda command: " ".join(w for w in command.split()[:2] if not w.startswith("-")),
)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = CliRunner().invoke(
        app, [*command.split(), f"--out={tmp_path / 'file' / 'a' / 'out'}"]
    )
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "nothing can be written into the output folder" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_refusal_leaves_no_folder_of_the_output(course: CourseFiles, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", tmp_path / "a" / "b" / "out"):
        assert propagate(course, out, "--method=rigid", roi="nobody").exit_code == 2
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]


def test_an_arbiter_is_never_taught_over_the_model_it_begins_with(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    same = [f"--start={tmp_path / 'model'}", f"--out={tmp_path / 'model'}"]
    refused = CliRunner().invoke(app, ["fit", "arbiter", f"--samples={tmp_path}", *same])
    assert refused.exit_code == 2
    assert "the output folder is not empty" in refused.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before


def test_errors_name_no_patient(course: CourseFiles, tmp_path: Path) -> None:
    refused = propagate(course, tmp_path / "out", roi="nobody")
    assert "ZZQQ" not in refused.stderr + refused.stdout


class TestDemo:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each step leaves but a file."""

        def leaves(folder: Path) -> None:
            folder.mkdir()
            (folder / "made").touch()

        commands = import_module("contourcast.cli.propagate")  # the package has a command so named
        monkeypatch.setattr(commands, "simulate", lambda *, out, **_: leaves(out))
        monkeypatch.setattr(commands, "propagate", lambda *, out, **_: leaves(out))
        monkeypatch.setattr(commands, "compare", lambda runs, *, truth, out: leaves(out))

    def test_what_others_put_there_is_never_deleted(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("years of work")
        refused = CliRunner().invoke(app, ["demo", f"--out={tmp_path}"])
        assert refused.exit_code == 2
        assert "not empty" in refused.stderr
        assert [p.name for p in tmp_path.rglob("*")] == ["run", "thesis.txt"]

    def test_it_may_be_shown_again(self, tmp_path: Path) -> None:
        for _ in range(2):
            done = CliRunner().invoke(app, ["demo", f"--out={tmp_path / 'demo'}"])
            assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "asked",
    [["--structures=rs.dcm", "--roi=GTV"], ["--roi=GTV"], ["--graft"]],
)
def test_a_tumour_of_no_ct_is_refused(tmp_path: Path, asked: list[str]) -> None:
    refused = CliRunner().invoke(app, ["simulate", f"--out={tmp_path / 'out'}", *asked])
    assert refused.exit_code == 2
    assert "--from-ct" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", [["--structures=1.2"], ["--method=rigid"]])
def test_what_is_asked_of_no_roi_is_not_sent(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "a.dcm").touch()
    refused = CliRunner().invoke(app, ["send", str(tmp_path), *asked])
    assert refused.exit_code == 2
    assert "--roi and --cbct" in refused.stderr


def test_who_waits_for_a_service_is_told_for_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TRIES", 2)
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    (tmp_path / "a.dcm").touch()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    away = CliRunner().invoke(app, ["send", str(tmp_path), f"--server=http://127.0.0.1:{port}"])
    assert away.exit_code == 1
    assert f"127.0.0.1:{port} does not answer; trying again in 0.01 s" in away.stderr


def test_fewer_threads_than_none_are_refused(course: CourseFiles, tmp_path: Path) -> None:
    refused = propagate(course, tmp_path / "out", "--threads=-3")
    assert refused.exit_code == 2
    assert "--threads" in refused.stderr


@pytest.mark.parametrize("part", ["x/y", "0/0", "2/2", "-1/2", "1"])
def test_a_part_that_is_none_is_refused(tmp_path: Path, part: str) -> None:
    asked = [f"--curriculum={tmp_path}", f"--data={tmp_path}", f"--out={tmp_path}"]
    refused = CliRunner().invoke(app, ["fit", "samples", *asked, f"--part={part}"])
    assert refused.exit_code == 2
    assert f"'{part}' is no part" in refused.stderr
    assert refused.stderr.count("\n") == 1
