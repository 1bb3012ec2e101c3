"""Site acceptance: every check can fail, one bad case costs its row, and the exit code says it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from contourcast import propagate as pipeline
from contourcast.cli import app
from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.errors import ContourcastError, InputError
from contourcast.imaging.structures import Contour, Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Verdict
from contourcast.imaging.volume import Probability
from contourcast.models.predictor import load_network
from contourcast.service.acceptance import accept as acceptance
from contourcast.service.acceptance import carried as carrying
from contourcast.service.acceptance import fixed, geometry, own
from contourcast.service.acceptance.accidents import ACCIDENTS, Accident, of_accident
from contourcast.service.acceptance.carried import Carried, Files, Machine
from contourcast.service.acceptance.checks import Check, rewritten
from contourcast.service.acceptance.fixed import FixedSet, Made, Patient
from contourcast.service.acceptance.report import Acceptance
from contourcast.service.acceptance.truth import of_truth
from contourcast.simulation.recipe import Sampling
from support.data import REPOSITORY

METHODS = ("translation", "rigid", "diff-umamba")
# Coarse, so that all of it takes a minute; found by running it (two cores, 2026-11).
TINY = FixedSet(
    patients=(
        Patient(
            side="left",
            recipe="clinic-2",
            phantom=600_007,
            week=3.0,
            dsc={"translation": 0.646, "rigid": 0.568, "diff-umamba": 0.85},
        ),
        Patient(
            side="left",
            recipe="smooth",
            phantom=600_009,
            week=3.0,
            dsc={"translation": 0.696, "rigid": 0.839, "diff-umamba": 0.901},
        ),
    ),
    sampling=Sampling(
        planning_spacing_xyz_mm=(4.0, 4.0, 6.0),
        cbct_spacing_xyz_mm=(4.0, 4.0, 4.0),
        breathing_phases=2,
    ),
    source="this file",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The set on disk, what draws, and its answer to the first patient."""

    made: tuple[Made, Made]
    machine: Machine
    answer: Carried


@pytest.fixture(scope="module", autouse=True)
def without_elastix() -> Iterator[None]:
    """Half a minute a run, and tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carrying, "_has_elastix", lambda: False)
        yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    machine = Machine(network=load_network(None), device="cpu")
    made = fixed.make(TINY, tmp_path_factory.mktemp("set"), lambda sentence, done: None)
    return Asked(made=made, machine=machine, answer=machine.carry(made[0].files))


def truths(asked: Asked, **changes: Any) -> list[Check]:
    """The checks of a patient whose answer was changed."""
    changed = replace(asked.answer, **changes)
    return of_truth(asked.made[0], changed, TINY, network_digest=asked.machine.network.digest)


def failing(checks: list[Check]) -> set[str]:
    """What did not pass, without the patient's name."""
    return {check.what.partition(": ")[2] for check in checks if not check.passed}


def moved(roi: Roi, matrix: np.ndarray) -> Roi:
    """A contour carried elsewhere by a 4 x 4 matrix."""

    def carried(contour: Contour) -> Contour:
        points = contour.points_xyz_mm @ matrix[:3, :3].T + matrix[:3, 3]
        return replace(contour, points_xyz_mm=points)

    return replace(roi, contours=tuple(map(carried, roi.contours)))


class TestTruth:
    def test_what_is_right_passes(self, asked: Asked) -> None:
        assert failing(truths(asked)) == set()

    def test_a_broken_carry_that_shifts_the_contour_by_5_mm_is_found(
        self, asked: Asked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def shifted(region: Probability) -> tuple[Contour, ...]:
            return tuple(
                replace(loop, points_xyz_mm=loop.points_xyz_mm + np.array((5.0, 0.0, 0.0)))
                for loop in trace(region)
            )

        monkeypatch.setattr(pipeline, "trace", shifted)
        made = asked.made[0]
        found = asked.machine.carry(made.files, methods=["rigid"])
        checks = of_truth(made, found, TINY, network_digest=asked.machine.network.digest)
        assert any("from where the registration" in what for what in failing(checks))

    def test_a_registration_that_is_off_is_found(self, asked: Asked) -> None:
        right = asked.answer.cbct_from_planning
        assert right is not None
        matrix = right.matrix.copy()
        matrix[0, 3] += 2.5
        off = RigidTransform(
            matrix=matrix, source_frame=right.source_frame, target_frame=right.target_frame
        )
        assert any(
            "error of the rigid" in w for w in failing(truths(asked, cbct_from_planning=off))
        )

    def test_a_contour_of_another_size_is_found(self, asked: Asked) -> None:
        contour = asked.answer.contours["rigid"]
        middle = np.concatenate([c.points_xyz_mm for c in contour.loops]).mean(axis=0)
        grown = np.diag((1.1, 1.1, 1.0, 1.0))
        grown[:2, 3] = -0.1 * middle[:2]
        contours = {**asked.answer.contours, "rigid": moved(contour, grown)}
        found = failing(truths(asked, contours=contours))
        assert "volume by rigid over the planned one" in found

    def test_a_contour_on_the_wrong_side_is_found(self, asked: Asked) -> None:
        mirror = np.diag((-1.0, 1.0, 1.0, 1.0))
        contours = {name: moved(roi, mirror) for name, roi in asked.answer.contours.items()}
        found = failing(truths(asked, contours=contours))
        assert {f"side of the contour by {method}" for method in METHODS} <= found
        assert {f"DSC of {method}" for method in METHODS} <= found

    def test_where_nothing_is_drawn_nothing_passes(self, asked: Asked) -> None:
        checks = truths(asked, contours={}, cbct_from_planning=None)
        assert {check.what for check in checks if check.passed} == {
            f"{asked.made[0].name}: verdict of the registration"
        }

    def test_a_registration_that_is_not_accepted_is_found(self, asked: Asked) -> None:
        report = asked.answer.report
        doubted = report.registration.model_copy(update={"verdict": Verdict.LOOK})
        found = failing(truths(asked, report=report.model_copy(update={"registration": doubted})))
        assert found == {"verdict of the registration"}

    def test_other_weights_are_held_against_the_prior_that_they_are_shown(
        self, asked: Asked
    ) -> None:
        made, answer = asked.made[0], asked.answer
        checks = of_truth(made, answer, TINY, network_digest="0" * 64)
        (network,) = [check for check in checks if check.what.endswith("DSC of diff-umamba")]
        assert network.passed
        assert network.expected.startswith("≥")
        far = np.eye(4)
        far[2, 3] = 30.0
        contours = {**answer.contours, "diff-umamba": moved(answer.contours["diff-umamba"], far)}
        checks = of_truth(made, replace(answer, contours=contours), TINY, network_digest="0" * 64)
        assert "DSC of diff-umamba" in failing(checks)


class TestGeometry:
    @pytest.mark.parametrize("axes", geometry.AXES.values())
    def test_every_voxel_stays_where_it_is(self, asked: Asked, axes: tuple[int, ...]) -> None:
        scan = read_ct_series(asked.made[0].files.cbct)
        turned = geometry.laid(scan, axes)
        points = scan.grid.world([[3, 5, 2], [40, 60, 30]])
        there = np.rint(turned.grid.index(points)).astype(int)
        here = np.rint(scan.grid.index(points)).astype(int)
        assert np.abs(turned.grid.world(there) - points).max() < 1e-6  # mm
        for (i, j, k), (x, y, z) in zip(here, there, strict=True):
            assert scan.values[k, j, i] == turned.values[z, y, x]

    @pytest.mark.slow
    def test_an_order_of_voxels_that_the_header_does_not_tell_is_found(
        self, asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        right = geometry.laid
        monkeypatch.setattr(
            geometry, "laid", lambda scan, axes: replace(scan, grid=right(scan, axes).grid)
        )
        made, answer = asked.made[0], asked.answer
        checks = geometry.of_geometry(made, answer, asked.machine, "HFP", tmp_path / "HFP")
        assert len(failing(checks)) == 3

    def test_a_scan_that_is_refused_is_a_check_that_failed(
        self, asked: Asked, tmp_path: Path
    ) -> None:
        (check,) = geometry.of_geometry(
            asked.made[0], asked.answer, Refusing(asked.machine), "FFS", tmp_path / "FFS"
        )
        assert not check.passed
        assert check.found == "refused: nothing works"


class Refusing(Machine):
    """A machine that can carry nothing."""

    def __init__(self, like: Machine) -> None:
        super().__init__(network=like.network, device=like.device)

    def carry(self, files: Files, *, methods: Any = ()) -> Carried:
        raise ContourcastError("nothing works")


@pytest.mark.parametrize("accident", ACCIDENTS, ids=lambda a: a.what)
class TestAccidents:
    def test_one_that_passes_unseen_is_found(
        self, asked: Asked, accident: Accident, tmp_path: Path
    ) -> None:
        harmless = replace(accident, make=lambda made, stranger, folder: made.files)
        check = of_accident(harmless, *asked.made, AsBefore(asked), tmp_path)
        assert not check.passed
        assert check.found == "verdict accept: no doubt"

    @pytest.mark.slow
    def test_each_is_refused_or_rejected(
        self, asked: Asked, accident: Accident, tmp_path: Path
    ) -> None:
        check = of_accident(accident, *asked.made, asked.machine, tmp_path)
        assert check.passed, check.found

    def test_one_that_is_refused_for_another_reason_is_found(
        self, asked: Asked, accident: Accident, tmp_path: Path
    ) -> None:
        check = of_accident(accident, *asked.made, Refusing(asked.machine), tmp_path)
        assert not check.passed


class AsBefore(Machine):
    """A machine that finds nothing wrong."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(network=asked.machine.network, device="cpu")
        object.__setattr__(self, "answer", asked.answer)

    def carry(self, files: Files, *, methods: Any = ()) -> Carried:
        answer: Carried = self.__dict__["answer"]
        return answer


@pytest.fixture(scope="module")
def courses(asked: Asked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data: a CBCT with what was drawn on it, a broken one, and a patient without contours."""
    folder = tmp_path_factory.mktemp("own")
    made = asked.made[0]
    patient = folder / "one"
    patient.mkdir()
    for name in ("planning-ct", "structures.dcm", "fraction-01"):
        whole = (made.folder / name).is_dir()
        (shutil.copytree if whole else shutil.copy)(made.folder / name, patient / name)
    scan = read_ct_series(made.files.cbct, role="CBCT")
    label = made.truth.label
    region = Probability(
        values=label.values.astype(np.float32),
        grid=label.grid,
        frame_of_reference=label.frame_of_reference,
        name="GTV",
    )
    write_structure_set(
        patient / "today.dcm",
        rois=[
            Roi(
                number=1,
                name="GTV",
                contours=trace(region),
                frame_of_reference=label.frame_of_reference,
            )
        ],
        reference=scan,
        label="TODAY",
        series_description="Drawn today",
        digest="today",
        drawn_at=datetime(2025, 2, 1, tzinfo=UTC),
    )
    assert scan.source is not None
    later = replace(scan, source=replace(scan.source, series_date="20250301"))
    rewritten(scan, patient / "fraction-02", like=later, role="broken")
    for path in sorted((patient / "fraction-02").iterdir())[10:13]:
        path.unlink()
    shutil.copytree(asked.made[1].folder / "fraction-01", folder / "two" / "fraction-01")
    return folder


def command(*more: str) -> Result:
    return CliRunner().invoke(app, ["accept", *more])


@pytest.fixture(scope="module")
def written(courses: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The command on the whole of it, but for what takes longest (see the slow tests)."""
    out = tmp_path_factory.mktemp("accepted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed, "FIXED", TINY)
        patch.setattr(acceptance, "AXES", {"FFS": geometry.AXES["FFS"]})
        patch.setattr(acceptance, "ACCIDENTS", [a for a in ACCIDENTS if a.refusal is not None])
        done = command(f"--out={out}", f"--patients={courses}", "--device=cpu")
    return done, out


class TestCommand:
    def test_all_passed_is_exit_code_0(self, written: tuple[Result, Path]) -> None:
        done, out = written
        assert done.exit_code == 0, done.stderr
        assert re.search(r"^(\d+) of \1 checks passed", done.stdout)
        assert sorted(p.name for p in out.iterdir()) == ["acceptance.html", "acceptance.json"]

    def test_the_report_follows_the_committed_schema(self, written: tuple[Result, Path]) -> None:
        schema = json.loads((REPOSITORY / "docs" / "acceptance.schema.json").read_text())
        assert schema == Acceptance.model_json_schema()
        told = json.loads((written[1] / "acceptance.json").read_text())
        jsonschema.validate(told, schema)
        assert told["passed"]
        assert told["shipped_weights"]
        assert {check["group"] for check in told["checks"]} == {"truth", "geometry", "accident"}
        assert told["machine"]["contourcast"] == told["versions"]["contourcast"]
        assert "itk-elastix is not installed" in told["left_out"][0]

    def test_the_page_stands_alone_and_is_to_be_signed(self, written: tuple[Result, Path]) -> None:
        page = (written[1] / "acceptance.html").read_text()
        assert "not a medical device" in page
        assert page.count("data:image/png;base64,") == 3  # two of the set, one of the own
        assert not re.search(r'(src|href)="(?!data:)', page)
        for words in ("@media print", "prefers-color-scheme", "Signature", "Expected because"):
            assert words in page
        assert "Virtual^Patient" not in page
        assert "VP-1" not in page

    def test_own_data_are_measured_where_somebody_drew(self, written: tuple[Result, Path]) -> None:
        first, broken, _ = json.loads((written[1] / "acceptance.json").read_text())["own"]["cbcts"]
        assert first["verdict"] == "accept"
        assert first["drawn_by_hand"]
        expected = TINY.patients[0].dsc
        for method in first["methods"]:
            assert method["dice"] == pytest.approx(expected[method["method"]], abs=0.05)
            assert 0 < method["mean_surface_distance_mm"] < method["hd95_mm"] < 20
            assert 0.5 < method["volume_over_prior"] < 1.5
        assert broken["patient"] == first["patient"] == 1

    def test_a_bad_case_is_a_row_with_its_reason(self, written: tuple[Result, Path]) -> None:
        _, broken, nobody = json.loads((written[1] / "acceptance.json").read_text())["own"]["cbcts"]
        assert "16.0 mm apart" in broken["problem"]
        assert (broken["verdict"], broken["methods"]) == (None, [])
        assert "holds a ROI 'GTV'" in nobody["problem"]
        assert nobody["patient"] == 2

    def test_a_check_that_failed_is_exit_code_1_and_one_line(
        self, written: tuple[Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = Acceptance.model_validate_json((written[1] / "acceptance.json").read_text())
        told.checks[3].passed = False
        monkeypatch.setattr(acceptance, "accept", lambda out, **more: told)
        refused = command(f"--out={tmp_path / 'out'}", "--device=cpu")
        assert refused.exit_code == 1
        assert refused.stderr.count("\n") == 1
        assert f"not accepted, {len(told.checks) - 1} of {len(told.checks)}" in refused.stderr
        assert told.checks[3].what in refused.stderr

    def test_a_run_that_fails_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(acceptance, "make", full)
        refused = command(f"--out={tmp_path / 'out'}", "--device=cpu")
        assert refused.exit_code == 1
        assert refused.stderr == "contourcast: No space left on device\n"
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_without_scans_is_refused_before_any_work(self, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        refused = command(f"--out={tmp_path / 'out'}", f"--patients={tmp_path / 'own'}")
        assert refused.exit_code == 2
        assert "holds no CT series" in refused.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["own"]

    def test_results_are_never_mixed(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        assert command(f"--out={tmp_path}").exit_code == 2


class TestOwn:
    def test_each_cbct_finds_its_plan_and_what_was_drawn_on_it(self, courses: Path) -> None:
        first, second, nobody = own.find(courses, "GTV")
        assert first.drawn is not None
        assert second.drawn is None
        assert first.planning is second.planning
        assert nobody.scan is None

    def test_a_wrong_roi_is_answered_with_those_that_are_there(self, courses: Path) -> None:
        problems = [today.problem for today in own.find(courses, "gtv")]
        assert "Lung_L" in problems[0]

    def test_a_fault_of_our_own_costs_a_row(self, courses: Path, asked: Asked) -> None:
        class Broken(Refusing):
            def carry(self, files: Files, *, methods: Any = ()) -> Carried:
                raise RuntimeError("not enough memory\nfor this")

        outcome = own.run(own.find(courses, "GTV")[0], Broken(asked.machine), "GTV")
        assert outcome.problem == "RuntimeError: not enough memory"

    def test_a_gpu_that_is_lost_ends_it(self, courses: Path, asked: Asked) -> None:
        class Lost(Refusing):
            def carry(self, files: Files, *, methods: Any = ()) -> Carried:
                raise pipeline.DeviceError("the GPU failed")

        with pytest.raises(pipeline.DeviceError):
            own.run(own.find(courses, "GTV")[0], Lost(asked.machine), "GTV")

    def test_a_folder_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such folder"):
            own.find(tmp_path / "none", "GTV")
