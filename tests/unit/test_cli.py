"""The command line as a script sees it: exit codes, one line on stderr, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from contourcast.cli import app
from support.course import CourseFiles, make_course


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


def test_a_propagation_prints_its_report_as_json(course: CourseFiles, tmp_path: Path) -> None:
    done = propagate(course, tmp_path / "out", "--method=rigid", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/report.json").read_text())


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


def test_errors_name_no_patient(course: CourseFiles, tmp_path: Path) -> None:
    refused = propagate(course, tmp_path / "out", roi="nobody")
    assert "ZZQQ" not in refused.stderr + refused.stdout
