"""Each collection's layout in miniature: converted, and read back by other programs."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import typer
from typer.testing import CliRunner

from contourcast.cli.prepare import prepare as prepare_command
from contourcast.cli.terminal import OneLineErrors
from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.errors import (
    ContourcastError,
    FrameMismatchError,
    GeometryError,
    InputError,
    UnknownRoiError,
)
from contourcast.imaging.grid import Grid
from contourcast.simulation.courses import simulate_course
from contourcast.simulation.truth import load_truth
from contourcast.training.datasets import SOURCES, Options, prepare
from contourcast.training.datasets import nnunet_raw as raw
from contourcast.training.datasets.courses import keeping_the_last
from contourcast.training.datasets.source import Converted, Found, LeftOut, Pending
from contourcast.training.datasets.splits import read_patients, read_splits
from contourcast.training.samples import SampleSettings
from support import collections as made
from support.course import TUMOUR_RADIUS_MM, TUMOUR_XYZ_MM
from support.data import data_item, peer_module
from support.virtual import STILL, TINY, tiny_thorax

BALL_CC = 4 / 3 * np.pi * TUMOUR_RADIUS_MM**3 / 1000
SHIFT_XYZ_MM = (7.0, -4.0, 6.0)


@pytest.fixture(autouse=True, scope="module")
def programs() -> None:
    """What reads NIfTI; none of our own."""
    peer_module("nibabel")
    peer_module("SimpleITK")


def converted(source: str, folder: Path, out: Path, **options: Any) -> Path:
    return prepare(source, folder, out, dataset_id=7, name="Mini", options=Options(**options))


def document(dataset: Path, name: str = "dataset.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((dataset / name).read_text())
    return content


def image(dataset: Path, case: str, channel: int | None) -> Any:
    """As SimpleITK reads it, in LPS; None: the label."""
    part = "labelsTr" if channel is None else "imagesTr"
    ending = "" if channel is None else f"_{channel:04d}"
    sitk = peer_module("SimpleITK")
    return sitk.ReadImage(str(dataset / part / f"{case}{ending}.nii.gz"))


def voxels(dataset: Path, case: str, channel: int | None) -> np.ndarray:
    values: np.ndarray = peer_module("SimpleITK").GetArrayFromImage(image(dataset, case, channel))
    return values


def centre_xyz_mm(region: Any) -> np.ndarray:
    """Centre of mass by SimpleITK's own places, weights being the values."""
    values = peer_module("SimpleITK").GetArrayFromImage(region)
    zyx = [float((axis * values).sum() / values.sum()) for axis in np.indices(values.shape)]
    return np.array(region.TransformContinuousIndexToPhysicalPoint(zyx[::-1]))


def volume_cc(region: Any) -> float:
    values = peer_module("SimpleITK").GetArrayFromImage(region)
    return float(values.sum() * np.prod(region.GetSpacing()) / 1000)


def nothing_in(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


# ----------------------------------------------------------------------------- NIfTI collections


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("Task06_Lung", ["background", "cancer"]),
        ("Task07_Pancreas", ["background", "pancreas", "cancer"]),
    ],
)
def test_a_decathlon_task_converts(tmp_path: Path, task: str, labels: list[str]) -> None:
    folder = made.make_msd(tmp_path / "data", task=task, labels=labels)
    dataset = converted("msd", folder, tmp_path / "raw")
    organ = task.partition("_")[2].lower()
    cases = [f"{organ}_001", f"{organ}_002"]
    told = document(dataset)
    assert told["channel_names"] == {"0": "CT"}
    assert told["labels"] == {label: n for n, label in enumerate(labels)}
    assert (told["numTraining"], told["file_ending"]) == (2, ".nii.gz")
    assert read_patients(dataset) == {case: case for case in cases}
    assert sorted(p.name for p in dataset.rglob("*.gz")) == sorted(
        [f"{case}_0000.nii.gz" for case in cases] + [f"{case}.nii.gz" for case in cases]
    )
    for number, case in enumerate(cases, 1):
        assert (voxels(dataset, case, 0) == made.scan(number)).all()
        assert (voxels(dataset, case, None) == made.drawn(*range(1, len(labels)))).all()
        again = image(dataset, case, 0)
        assert np.allclose(again.GetOrigin(), made.ORIGIN_MM)
        assert np.allclose(again.GetSpacing(), made.SPACING_MM)


def test_brats_converts_to_nested_regions(tmp_path: Path) -> None:
    folder = made.make_brats21(tmp_path / "data")
    for place in (folder, folder.parent):  # the archive's folder, or the one it lies in
        dataset = converted("brats21", place, tmp_path / "raw")
        told = document(dataset)
        assert told["channel_names"] == dict.fromkeys("0123", "zscore")
        assert told["labels"] == {
            "background": 0,
            "whole tumor": [1, 2, 3],
            "tumor core": [2, 3],
            "enhancing tumor": [3],
        }
        assert told["regions_class_order"] == [1, 2, 3]
        for number in (0, 1):
            case = f"BraTS2021_{number:05d}"
            order = [1, 2, 3, 0]  # t1, t1ce, t2, flair; the factory counts from flair
            for channel, n in enumerate(order):
                assert (voxels(dataset, case, channel) == made.scan(10 * number + n)).all()
            assert (voxels(dataset, case, None) == made.drawn(2, 1, 3)).all()
        shutil.rmtree(dataset)


@pytest.mark.parametrize(("images", "labels"), [("img", "gt"), ("image", "label")])
def test_aiib_converts_under_both_names_of_its_folders(
    tmp_path: Path, images: str, labels: str
) -> None:
    folder = made.make_aiib23(tmp_path / "data", images=images, labels=labels)
    dataset = converted("aiib23", folder, tmp_path / "raw")
    assert document(dataset)["labels"] == {"background": 0, "airway": 1}
    assert document(dataset)["channel_names"] == {"0": "CT"}
    assert sorted(read_patients(dataset)) == ["AIIB23_107", "AIIB23_30"]
    for number in (30, 107):
        assert (voxels(dataset, f"AIIB23_{number}", 0) == made.scan(number)).all()
        assert (voxels(dataset, f"AIIB23_{number}", None) == made.drawn(1)).all()


def test_what_is_written_says_where_it_is_from(tmp_path: Path) -> None:
    folder = made.make_aiib23(tmp_path / "data")
    dataset = converted("aiib23", folder, tmp_path / "raw")
    told = document(dataset, "provenance.json")
    peer = peer_module("nibabel")
    assert told["settings"]["source"] == "aiib23"
    assert told["versions"]["nibabel"] == peer.__version__
    facts = told["cases"]["AIIB23_30"]["facts"]["sha256"]
    assert len(facts) == 1 or set(facts) == {"AIIB23_30.nii.gz"}
    assert told["cases"]["AIIB23_30"]["label_voxels"] == {"0": 118, "1": 2}
    assert read_splits(dataset / "splits_final.json", read_patients(dataset))
    assert str(tmp_path) not in (dataset / "provenance.json").read_text()


def test_nnunet_finds_nothing_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    handling = peer_module("nnunetv2.utilities.label_handling.label_handling")
    verify = peer_module("nnunetv2.experiment_planning.verify_dataset_integrity")
    normalisation = peer_module(
        "nnunetv2.preprocessing.normalization.map_channel_name_to_normalization"
    )
    reader = peer_module("nnunetv2.imageio.simpleitk_reader_writer").SimpleITKIO
    dataset = converted("brats21", made.make_brats21(tmp_path / "data"), tmp_path / "raw")
    told = document(dataset)
    manager = handling.LabelManager(told["labels"], told["regions_class_order"])
    assert manager.all_labels == [0, 1, 2, 3]
    assert manager.has_regions
    names = list(told["channel_names"].values())
    assert [normalisation.get_normalization_scheme(name).__name__ for name in names] == [
        "ZScoreNormalization"
    ] * 4
    case = "BraTS2021_00001"
    images = [str(dataset / "imagesTr" / f"{case}_{n:04d}.nii.gz") for n in range(4)]
    label = str(dataset / "labelsTr" / f"{case}.nii.gz")
    assert verify.check_cases(images, label, 4, reader)
    assert verify.verify_labels(label, reader, manager.all_labels)


# ------------------------------------------------------------------------------------- hostile


def _nan(folder: Path) -> None:
    values = made.scan(2).astype(np.float32)
    values[0, 0, 0] = np.nan
    made.write_nifti(folder / "imagesTr" / "lung_002.nii.gz", values)


def _truncated(folder: Path) -> None:
    path = folder / "imagesTr" / "lung_002.nii.gz"
    path.write_bytes(path.read_bytes()[:-50])


def _no_label(folder: Path) -> None:
    (folder / "labelsTr" / "lung_002.nii.gz").unlink()


def _other_grid(folder: Path) -> None:
    made.write_nifti(
        folder / "labelsTr" / "lung_002.nii.gz", made.drawn(1), spacing_xyz_mm=(1, 1.25, 2.5)
    )


def _unknown_value(folder: Path) -> None:
    made.write_nifti(folder / "labelsTr" / "lung_002.nii.gz", made.drawn(1, 2))


def _four_dimensions(folder: Path) -> None:
    made.write_nifti(
        folder / "imagesTr" / "lung_002.nii.gz",
        np.stack([made.scan()] * 2),
        spacing_xyz_mm=(1, 1, 1, 1),
        origin_xyz_mm=(0, 0, 0, 0),
        direction=np.eye(4).ravel().tolist(),
    )


def _rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        told = json.loads((folder / "dataset.json").read_text())
        change(told)
        (folder / "dataset.json").write_text(json.dumps(told))

    return damage


def _outside(told: dict[str, Any]) -> None:
    told["training"][0]["image"] = "../elsewhere.nii.gz"


def _two_channels(told: dict[str, Any]) -> None:
    told["modality"] = {"0": "FLAIR", "1": "T1"}


def _no_training(told: dict[str, Any]) -> None:
    del told["training"]


def _twice(told: dict[str, Any]) -> None:
    told["training"] *= 2


HOSTILE = {
    "NaN": (_nan, InputError, r"1 voxels of the scan are not finite.*; lung_002\.nii\.gz"),
    "truncated": (_truncated, InputError, r"cut short.*; lung_002\.nii\.gz"),
    "missing label": (_no_label, InputError, r"lists is missing; lung_002\.nii\.gz"),
    "another grid": (_other_grid, GeometryError, r"another grid.*; lung_002\.nii\.gz"),
    "unknown value": (_unknown_value, InputError, r"the label holds 2.*; lung_002\.nii\.gz"),
    "two volumes": (_four_dimensions, InputError, r"has 6 x 5 x 4 x 2 voxels.*lung_002"),
    "two channels": (_rewritten(_two_channels), InputError, "a task of 2 channels"),
    "a path outside": (_rewritten(_outside), InputError, "listed outside of the folder"),
    "no list": (_rewritten(_no_training), InputError, "not a task of the Medical Segm"),
    "a case twice": (_rewritten(_twice), InputError, "'lung_001'.*is the name of two"),
    "no JSON": (lambda f: (f / "dataset.json").write_text("{"), InputError, "is not JSON"),
    "no task": (lambda f: (f / "dataset.json").unlink(), InputError, "there is no dataset.json"),
}


@pytest.mark.parametrize(("damage", "kind", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_task_is_refused_once_and_leaves_nothing(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[ContourcastError], says: str
) -> None:
    folder = made.make_msd(tmp_path / "data", task="Task06_Lung", labels=["background", "cancer"])
    damage(folder)
    with pytest.raises(kind, match=says) as refused:
        converted("msd", folder, tmp_path / "raw")
    assert refused.value.remedy
    assert str(tmp_path) not in str(refused.value)
    assert nothing_in(tmp_path / "raw")


def test_a_patient_without_a_scan_is_refused(tmp_path: Path) -> None:
    folder = made.make_brats21(tmp_path / "data")
    (folder / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"BraTS2021_00001 lacks t2; needed are t1, t1ce, t2"):
        converted("brats21", folder, tmp_path / "raw")
    with pytest.raises(InputError, match="no folder named BraTS2021_"):
        converted("brats21", tmp_path / "empty", tmp_path / "raw")


def test_a_scan_of_another_grid_than_the_other_three_is_refused(tmp_path: Path) -> None:
    folder = made.make_brats21(tmp_path / "data")
    path = folder / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz"
    made.write_nifti(path, made.scan(), origin_xyz_mm=(0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match=r"another grid.*BraTS2021_00001_t2"):
        converted("brats21", folder, tmp_path / "raw")
    assert nothing_in(tmp_path / "raw")


@pytest.mark.parametrize(("part", "lacks"), [("gt", "label"), ("img", "scan")])
def test_a_scan_without_a_label_is_refused(tmp_path: Path, part: str, lacks: str) -> None:
    folder = made.make_aiib23(tmp_path / "data")
    (folder / part / "AIIB23_107.nii.gz").unlink()
    with pytest.raises(InputError, match=f"AIIB23_107 has no {lacks}"):
        converted("aiib23", folder, tmp_path / "raw")
    with pytest.raises(InputError, match="no folders img and gt"):
        converted("aiib23", folder / "img", tmp_path / "raw")


@pytest.mark.parametrize(
    ("dataset_id", "name"), [(0, "Lung"), (1000, "Lung"), (7, "../Lung"), (7, "")]
)
def test_a_number_or_name_that_nnunet_cannot_use_is_refused(
    tmp_path: Path, dataset_id: int, name: str
) -> None:
    with pytest.raises(InputError, match="a data set cannot be numbered"):
        prepare("aiib23", tmp_path, tmp_path / "raw", dataset_id=dataset_id, name=name)


def test_a_number_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset007_Other").mkdir(parents=True)
    with pytest.raises(InputError, match="number 7 is taken; Dataset007_Other"):
        converted("aiib23", made.make_aiib23(tmp_path / "data"), tmp_path / "raw")


def test_unknown_sources_and_foreign_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the nearest is '4d-lung'"):
        converted("4d-lungs", tmp_path, tmp_path / "raw")
    with pytest.raises(InputError, match="aiib23 takes no option roi; it takes none"):
        converted("aiib23", tmp_path, tmp_path / "raw", roi="GTV")
    with pytest.raises(InputError, match="no grid has a spacing"):
        converted("courses", tmp_path, tmp_path / "raw", spacing_zyx_mm=(2.0, 0.0, 2.0))
    with pytest.raises(InputError, match="needs a prior"):
        converted("4d-lung", tmp_path, tmp_path / "raw", extent="region")


def test_every_source_says_what_it_is_and_takes_what_there_is() -> None:
    options = set(Options.__dataclass_fields__)
    for name, source in SOURCES.items():
        assert source.about, name
        assert source.takes <= options, name


# --------------------------------------------------------------------- whole, or not at all


def _cases(read: dict[str, Callable[[], Converted | LeftOut]], files: tuple[Path, ...]) -> Found:
    cases = [Pending(name=n, patient=n, files=files, read=r) for n, r in read.items()]
    return Found(cases=tuple(cases), channels=("CT",), labels={"background": 0, "target": 1})


def _converted() -> Converted:
    grid = Grid.even(
        shape_zyx=made.SHAPE, spacing_xyz_mm=made.SPACING_MM, origin_xyz_mm=made.ORIGIN_MM
    )
    return Converted(channels=(made.scan(),), label=made.drawn(1), grid=grid)


class Killed(BaseException):
    """As a signal ends a run: no error of ours."""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("one")
    asked: list[str] = []

    def read(name: str, *, dies: bool = False) -> Callable[[], Converted]:
        def one() -> Converted:
            asked.append(name)
            if dies:
                raise Killed
            return _converted()

        return one

    folder = tmp_path / "raw" / "Dataset007_Mini"
    dying = _cases({"a": read("a"), "b": read("b", dies=True)}, (source,))
    with pytest.raises(Killed):
        raw.write_raw(folder, dying, settings={"roi": "GTV"})
    assert not folder.exists()
    whole = _cases({"a": read("a"), "b": read("b")}, (source,))
    steps: list[tuple[str, float]] = []
    raw.write_raw(
        folder, whole, settings={"roi": "GTV"}, on_step=lambda s, done: steps.append((s, done))
    )
    assert asked == ["a", "b", "b"], "a was not made twice"
    assert [sentence for sentence, _ in steps] == [
        "checking b",
        "converting b",
        "Dataset007_Mini: done",
    ]
    assert [done for _, done in steps] == sorted(done for _, done in steps)
    assert [p.name for p in folder.parent.iterdir()] == ["Dataset007_Mini"]
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [
        "a_0000.nii.gz",
        "b_0000.nii.gz",
    ]


@pytest.mark.parametrize("other", ["settings", "files", "cases"])
def test_what_a_killed_run_made_of_something_else_is_made_again(tmp_path: Path, other: str) -> None:
    source = tmp_path / "source.txt"
    source.write_text("one")
    asked: list[str] = []

    def read() -> Converted:
        asked.append("a")
        return _converted()

    def dies() -> Converted:
        half = folder.parent / f".{folder.name}.part" / "dataset" / "imagesTr" / "b_0000.nii.gz"
        half.write_bytes(b"half")
        raise Killed

    folder = tmp_path / "raw" / "Dataset007_Mini"
    with pytest.raises(Killed):
        raw.write_raw(folder, _cases({"a": read, "b": dies}, (source,)), settings={"roi": "GTV"})
    if other == "files":
        source.write_text("three")
    settings = {"roi": "other" if other == "settings" else "GTV"}
    names = ["c"] if other == "cases" else ["a"]
    raw.write_raw(folder, _cases(dict.fromkeys(names, read), (source,)), settings=settings)
    assert asked == ["a", "a"]
    assert [p.name for p in (folder / "labelsTr").iterdir()] == [f"{names[0]}.nii.gz"]
    assert [p.name for p in (folder / "imagesTr").iterdir()] == [f"{names[0]}_0000.nii.gz"]


def test_all_are_checked_before_the_first_is_converted(tmp_path: Path) -> None:
    def refuses() -> None:
        raise InputError("the scan is upside down", remedy="turn it")

    heard: list[str] = []
    cases = _cases({"a": _converted, "b": _converted}, ())
    found = replace(cases, cases=(cases.cases[0], replace(cases.cases[1], check=refuses)))
    with pytest.raises(InputError, match="upside down"):
        raw.write_raw(
            tmp_path / "raw" / "D", found, settings={}, on_step=lambda s, done: heard.append(s)
        )
    assert heard == ["checking a", "checking b"]
    assert nothing_in(tmp_path / "raw")


def test_a_refusal_half_way_leaves_nothing(tmp_path: Path) -> None:
    def refuses() -> Converted:
        raise InputError("the scan is upside down", remedy="turn it")

    folder = tmp_path / "raw" / "Dataset007_Mini"
    with pytest.raises(InputError, match="upside down"):
        raw.write_raw(folder, _cases({"a": _converted, "b": refuses}, ()), settings={})
    assert nothing_in(folder.parent)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: replace(c, channels=c.channels * 2), "a: 2 channels, and the data set has 1"),
        (lambda c: replace(c, label=c.label[1:]), r"an array of \(3, 5, 6\) does not fit"),
        (lambda c: replace(c, label=c.label * 2), "a: the label holds 2, which stands for nothing"),
        (lambda c: replace(c, channels=(c.channels[0] * np.nan,)), "120 voxels of the case"),
    ],
)
def test_no_source_gets_an_impossible_case_past_the_writer(
    tmp_path: Path, change: Callable[[Converted], Converted], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        raw.write_raw(
            tmp_path / "raw" / "Dataset007_Mini",
            _cases({"a": lambda: change(_converted())}, ()),
            settings={},
        )
    assert nothing_in(tmp_path / "raw")


def test_a_data_set_of_nothing_is_refused_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "Dataset007_Mini"
    with pytest.raises(InputError, match="all 1 cases were left out, such as a: too dark"):
        raw.write_raw(folder, _cases({"a": lambda: LeftOut(reason="too dark")}, ()), settings={})
    empty = replace(_cases({}, ()), left_out={"b": "no contours"})
    with pytest.raises(InputError, match="no scan with a label was found; b: no contours"):
        raw.write_raw(folder, empty, settings={})
    assert nothing_in(folder.parent)


def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a/b' cannot be the name of a case"):
        raw.write_raw(tmp_path / "raw" / "D", _cases({"a/b": _converted}, ()), settings={})


# ------------------------------------------------------------------------------------- courses


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Courses as a department exports them, and the data set made of them."""
    root = tmp_path_factory.mktemp("recorded")
    made.make_dicom_course(
        root / "data", patient="p1", patient_id="ZZQQ-LEAK-1", shifts_xyz_mm=[SHIFT_XYZ_MM]
    )
    return root / "data", converted("courses", root / "data", root / "raw")


def test_a_course_becomes_two_channels_round_the_prior(recorded: tuple[Path, Path]) -> None:
    _, dataset = recorded
    case = "p1_01"
    assert document(dataset)["channel_names"] == {"0": "zscore", "1": "noNorm"}
    assert document(dataset)["labels"] == {"background": 0, "target": 1}
    assert read_patients(dataset) == {case: "p1"}
    today = TUMOUR_XYZ_MM + SHIFT_XYZ_MM
    usual = SampleSettings()
    room_zyx = np.array(usual.patch_zyx) + 2 * np.array(usual.slack_zyx)
    for channel in (0, 1, None):
        written = image(dataset, case, channel)
        assert written.GetSpacing() == (2.5, 2.5, 2.5)
        assert (np.array(written.GetSize()[::-1]) >= room_zyx).all()
    label, prior = image(dataset, case, None), image(dataset, case, 1)
    assert np.abs(centre_xyz_mm(label) - today).max() < 0.5
    assert abs(volume_cc(label) / BALL_CC - 1) < 0.05
    assert np.abs(centre_xyz_mm(prior) - today).max() < 1.5, "carried by the registration"
    assert abs(volume_cc(prior) / BALL_CC - 1) < 0.1
    assert 0 <= voxels(dataset, case, 1).min() <= voxels(dataset, case, 1).max() <= 1


def test_the_scan_lies_where_the_label_does(recorded: tuple[Path, Path]) -> None:
    """The tumour is bright in dark lung: the scan's own centre is the label's."""
    _, dataset = recorded
    scan, label = image(dataset, "p1_01", 0), image(dataset, "p1_01", None)
    near = scan.TransformPhysicalPointToIndex((TUMOUR_XYZ_MM + SHIFT_XYZ_MM).tolist())
    beside = scan.TransformPhysicalPointToIndex(
        (TUMOUR_XYZ_MM + SHIFT_XYZ_MM + (0, 0, TUMOUR_RADIUS_MM + 8)).tolist()
    )
    assert scan[near] > -200 > -600 > scan[beside]
    assert (label[near], label[beside]) == (1, 0)


@pytest.mark.slow
def test_the_network_is_shown_in_training_what_the_service_shows_it(
    recorded: tuple[Path, Path],
) -> None:
    from contourcast.imaging.dicom.rtstruct_in import read_structure_set
    from contourcast.models.region import sample_on, scan_on
    from contourcast.propagate import Case, Settings, carry_prior, register

    folder, dataset = recorded
    structures = read_structure_set(folder / "p1/a/rs.dcm")
    case = Case(
        planning_ct=read_ct_series(sorted((folder / "p1/a").glob("p1-ct-*"))),
        cbct=read_ct_series(folder / "p1/b1"),
        prior=structures.roi("GTV"),
        prior_source_uid=structures.sop_instance_uid,
    )
    r_ct = carry_prior(case, register(case, Settings()))
    written = image(dataset, "p1_01", 1)
    grid = Grid.even(
        shape_zyx=written.GetSize()[::-1],
        spacing_xyz_mm=written.GetSpacing(),
        origin_xyz_mm=written.GetOrigin(),
    )
    expected = sample_on(r_ct.values, r_ct.grid, onto=grid, outside=0.0)
    assert np.abs(voxels(dataset, "p1_01", 1) - expected).max() < 1e-3
    assert np.abs(voxels(dataset, "p1_01", 0) - scan_on(case.cbct, grid)[0]).max() < 0.1


def test_the_provenance_says_how_the_region_was_cut(recorded: tuple[Path, Path]) -> None:
    settings = document(recorded[1], "provenance.json")["settings"]
    usual = SampleSettings()
    assert (settings["source"], settings["extent"]) == ("courses", "region")
    assert settings["margin_mm"] == usual.margin_mm
    assert settings["patch_zyx"] == list(usual.patch_zyx)
    assert settings["registration"]["focus"] == "body"


def test_one_planning_ct_is_kept_at_a_time() -> None:
    asked: list[str] = []

    def reader(name: str) -> Callable[[], Any]:
        def read() -> Any:
            asked.append(name)
            return name

        return read

    keep, first, second = keeping_the_last(), reader("first"), reader("second")
    answers: list[Any] = [keep(read) for read in (first, first, second, first)]
    assert answers == ["first", "first", "second", "first"]
    assert asked == ["first", "second", "first"]


def test_what_is_no_fraction_is_recorded_and_nobody_is_named(recorded: tuple[Path, Path]) -> None:
    _, dataset = recorded
    told = document(dataset, "provenance.json")
    assert told["left_out"] == {"p1_02": "no structure set is drawn on it"}
    facts = told["cases"]["p1_01"]["facts"]
    assert facts["verdict"] in ("accept", "look")
    assert abs(facts["label_cc"] / BALL_CC - 1) < 0.1
    least, most = facts["seen"]["slices"]
    assert least == most > 1
    assert not any("ZZQQ" in p.read_text() for p in dataset.glob("*.json"))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A course in which nothing moves, and the data set made of it."""
    root = tmp_path_factory.mktemp("simulated")
    simulate_course(
        root / "data",
        recipe=STILL,
        anatomy=tiny_thorax(),
        fractions=[3.0],
        seed=11,
        patient_number=1,
        sampling=TINY,
        physics="image",
    )
    return root / "data", converted("courses", root / "data", root / "raw")


def test_a_simulated_course_is_learned_from_its_truth(simulated: tuple[Path, Path]) -> None:
    folder, dataset = simulated
    case = "patient-001_fraction-01"
    assert read_patients(dataset) == {case: "phantom-3"}, "the CT is who may not be parted"
    assert not (dataset / "splits_final.json").exists(), "one patient cannot be parted"
    truth = load_truth(folder / "patient-001" / "truth" / "fraction-01.json").label
    label = image(dataset, case, None)
    centre = truth.centroid_xyz_mm()
    assert centre is not None
    assert np.abs(centre_xyz_mm(label) - centre).max() < 1.5
    assert abs(volume_cc(label) / truth.volume_cc - 1) < 0.15


def test_where_nothing_moves_the_prior_is_the_label(simulated: tuple[Path, Path]) -> None:
    _, dataset = simulated
    case = "patient-001_fraction-01"
    label, prior = voxels(dataset, case, None) > 0, voxels(dataset, case, 1) >= 0.5
    overlap = 2 * (label & prior).sum() / (label.sum() + prior.sum())
    assert overlap > 0.85


def test_a_simulated_course_without_its_truth_is_refused(
    tmp_path: Path, simulated: tuple[Path, Path]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(simulated[0], folder)
    with pytest.raises(InputError, match="one patient's course; patient-001"):
        converted("courses", folder / "patient-001", tmp_path / "raw")
    truth = folder / "patient-001" / "truth"
    told = json.loads((truth / "fraction-01.json").read_text())
    (truth / "fraction-01.json").write_text(json.dumps(told | {"cbct_series_uid": "2.25.1"}))
    with pytest.raises(InputError, match=r"truth is of another CBCT; fraction-01\.json"):
        converted("courses", folder, tmp_path / "raw")
    (truth / "fraction-01.npz").unlink()
    with pytest.raises(InputError, match=r"patient-001, fraction-01 has no label; fraction-01.npz"):
        converted("courses", folder, tmp_path / "raw")
    (truth / "patient.json").write_text("{}")
    with pytest.raises(InputError, match="not the truth of a simulated patient"):
        converted("courses", folder, tmp_path / "raw")
    assert nothing_in(tmp_path / "raw")


def _edited(path: Path, change: Callable[[pydicom.FileDataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def _other_patient(dataset: pydicom.FileDataset) -> None:
    dataset.PatientID = "ZZQQ-LEAK-2"


def _one_patient(dataset: pydicom.FileDataset) -> None:
    dataset.PatientID = "ZZQQ-LEAK-1"


def _nobody(dataset: pydicom.FileDataset) -> None:
    dataset.PatientID = ""


def _same_day(dataset: pydicom.FileDataset) -> None:
    dataset.SeriesDate = "20260103"


def test_courses_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, recorded: tuple[Path, Path]
) -> None:
    def refused(says: str, kind: type[ContourcastError] = InputError) -> None:
        with pytest.raises(kind, match=says) as error:
            converted("courses", folder, tmp_path / "raw")
        assert "ZZQQ" not in str(error.value)
        assert nothing_in(tmp_path / "raw")

    folder = tmp_path / "data"
    shutil.copytree(recorded[0], folder)
    shutil.copytree(folder / "p1", folder / "p2")
    refused("the folders p1 and p2 hold scans of one patient")
    for path in folder.rglob("*.dcm"):
        _edited(path, _nobody)
    refused("the folders p1 and p2 hold scans of one patient")
    shutil.rmtree(folder / "p2")

    for path in (folder / "p1/b1").iterdir():
        _edited(path, _same_day)
    refused("p1: which scan is the planning CT cannot be told from their dates")
    (folder / "p1/a").rename(folder / "p1/Planning CT")
    found = SOURCES["courses"].find(folder, Options(extent="region"))
    assert [case.name for case in found.cases] == ["p1_01"]
    assert found.cases[0].files[0].parent.name == "Planning CT"

    for number, path in enumerate(sorted((folder / "p1").rglob("*.dcm"))):
        _edited(path, _other_patient if number else _one_patient)
    refused("the folder p1 holds scans of 2 patients")

    shutil.rmtree(folder / "p1/sets")
    for path in (folder / "p1/b1").iterdir():
        path.unlink()
    for path in (folder / "p1").rglob("*.dcm"):
        _edited(path, _nobody)
    refused("p1 has 1 scans with a structure set")
    shutil.rmtree(folder)
    refused("there is no such folder")


def test_a_roi_that_is_not_there_is_answered_with_the_nearest(
    tmp_path: Path, recorded: tuple[Path, Path]
) -> None:
    with pytest.raises(UnknownRoiError, match="the nearest is 'GTV'"):
        converted("courses", recorded[0], tmp_path / "raw", roi="gtv1")
    with pytest.raises(UnknownRoiError, match="no ROI is named 'GTV_today'"):
        converted("courses", recorded[0], tmp_path / "raw", label_roi="GTV_today")
    assert nothing_in(tmp_path / "raw")


def test_a_broken_fraction_is_refused_before_any_is_registered(
    tmp_path: Path, recorded: tuple[Path, Path]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(recorded[0], folder)
    victim = min((folder / "p1/b1").iterdir())

    def cut_short(dataset: pydicom.FileDataset) -> None:
        dataset.PixelData = dataset.PixelData[:-100]

    heard: list[str] = []
    _edited(victim, cut_short)
    with pytest.raises(ContourcastError, match=victim.name):
        prepare(
            "courses",
            folder,
            tmp_path / "raw",
            dataset_id=7,
            name="Mini",
            on_step=lambda sentence, done: heard.append(sentence),
        )
    assert not any(sentence.startswith("converting") for sentence in heard)
    assert nothing_in(tmp_path / "raw")


# --------------------------------------------------------------------------- DICOM collections


def test_4d_lung_becomes_a_case_for_each_phase(tmp_path: Path) -> None:
    folder = made.make_4d_lung(tmp_path / "data")
    dataset = converted("4d-lung", folder, tmp_path / "raw")
    cases = [f"100_HM10395_day-{d:02d}_phase-{p:02d}A" for d in (1, 2) for p in (0, 50)]
    assert document(dataset)["channel_names"] == {"0": "CT"}
    assert read_patients(dataset) == dict.fromkeys(cases, "100_HM10395")
    for case, shift in zip(cases, ((0, 0, 0), (0, 0, 2), (5, 2, -4), (5, 2, -2)), strict=True):
        label = image(dataset, case, None)
        assert np.abs(centre_xyz_mm(label) - TUMOUR_XYZ_MM - shift).max() < 1.0
        assert label.GetSpacing() == (5.0, 5.0, 5.0)
    left_out = document(dataset, "provenance.json")["left_out"]
    assert left_out == {"100_HM10395, 1 scans": "no structure set is drawn on them"}


def _only(kept: slice) -> Callable[[pydicom.FileDataset], None]:
    """Of the tumour's contours, from the lowest to the highest."""

    def change(dataset: pydicom.FileDataset) -> None:
        (tumour,) = (r.ROINumber for r in dataset.StructureSetROISequence if "Tumor" in r.ROIName)
        for drawn in dataset.ROIContourSequence:
            if drawn.ReferencedROINumber == tumour:
                drawn.ContourSequence = drawn.ContourSequence[kept]

    return change


def test_a_tumour_drawn_on_every_second_slice_is_whole(tmp_path: Path) -> None:
    folder = made.make_4d_lung(tmp_path / "data")
    _edited(next(folder.rglob("1.000000-RTS-10/1-1.dcm")), _only(slice(None, None, 2)))
    dataset = converted("4d-lung", folder, tmp_path / "raw", phases=(0,))
    sparse, dense = (f"100_HM10395_day-0{day}_phase-00A" for day in (1, 2))
    slices = voxels(dataset, sparse, None).any(axis=(1, 2))
    assert not np.any(np.diff(np.flatnonzero(slices)) > 1), "a comb"
    cases = document(dataset, "provenance.json")["cases"]
    for case in (sparse, dense):
        facts = cases[case]["facts"]
        assert facts["label_cc"] == pytest.approx(facts["drawn_cc"], rel=0.05)
        assert facts["label_cc"] == pytest.approx(volume_cc(image(dataset, case, None)), rel=1e-3)
        assert facts["drawn_cc"] == pytest.approx(BALL_CC, rel=0.1)


def test_a_tumour_whose_contours_are_not_whole_is_left_out(tmp_path: Path) -> None:
    folder = made.make_4d_lung(tmp_path / "data")

    def forget_one(dataset: pydicom.FileDataset) -> None:
        for drawn in dataset.ROIContourSequence:
            del drawn.ContourSequence[len(drawn.ContourSequence) // 2]

    _edited(next(folder.rglob("1.000000-RTS-10/1-1.dcm")), forget_one)
    dataset = converted("4d-lung", folder, tmp_path / "raw", phases=(0,))
    assert read_patients(dataset) == {"100_HM10395_day-02_phase-00A": "100_HM10395"}
    left_out = document(dataset, "provenance.json")["left_out"]
    assert left_out["100_HM10395_day-01_phase-00A"].startswith(
        "the label is not what was drawn: no contour within the stack, left empty: slice "
    )


def test_a_fraction_whose_contours_overlap_is_left_out(tmp_path: Path) -> None:
    folder = made.make_pancreatic_ct_cbct(tmp_path / "data")

    def draw_beside(dataset: pydicom.FileDataset) -> None:
        for drawn in dataset.ROIContourSequence:
            for contour in list(drawn.ContourSequence):
                other = copy.deepcopy(contour)
                points = np.array(contour.ContourData, float).reshape(-1, 3) + np.array((6.0, 0, 0))
                other.ContourData = [f"{v:.3f}" for v in points.ravel()]
                drawn.ContourSequence.append(other)

    _edited(next(folder.rglob("1.000000-BSCBLLLRSDCB-27748/1-1.dcm")), draw_beside)
    with pytest.raises(InputError, match="contours of one slice overlap"):
        converted("pancreatic-ct-cbct", folder, tmp_path / "raw")


@pytest.mark.slow
def test_4d_lung_becomes_courses_with_the_first_day_as_prior(tmp_path: Path) -> None:
    folder = made.make_4d_lung(tmp_path / "data")
    dataset = converted("4d-lung", folder, tmp_path / "raw", prior=True, phases=(50,))
    case = "100_HM10395_day-02_phase-50A"
    assert read_patients(dataset) == {case: "100_HM10395"}
    assert document(dataset)["channel_names"] == {"0": "CT", "1": "noNorm"}
    today = TUMOUR_XYZ_MM + np.array((5, 2, -2))
    assert np.abs(centre_xyz_mm(image(dataset, case, None)) - today).max() < 1.0
    assert np.abs(centre_xyz_mm(image(dataset, case, 1)) - today).max() < 1.5


def test_4d_lung_says_which_rois_there_are_when_none_fits(tmp_path: Path) -> None:
    folder = made.make_4d_lung(tmp_path / "data")
    with pytest.raises(InputError, match="no 'Heart' is drawn on it, but LN_c00, Tumor_c00"):
        converted("4d-lung", folder, tmp_path / "raw", roi="Heart", phases=(0,))


def test_the_pancreas_collection_becomes_courses(tmp_path: Path) -> None:
    folder = made.make_pancreatic_ct_cbct(tmp_path / "data")
    dataset = converted("pancreatic-ct-cbct", folder, tmp_path / "raw")
    case = "Pancreas-CT-CB_001_cbct-01"
    cbct = read_ct_series(next(folder.rglob("1.000000-Aligned*")))
    assert (voxels(dataset, case, 0) == cbct.values).all(), "whole, on its own grid"
    assert np.allclose(image(dataset, case, 0).GetOrigin(), cbct.grid.origin_xyz_mm)
    assert document(dataset)["channel_names"] == {"0": "zscore", "1": "noNorm"}
    assert read_patients(dataset) == {case: "Pancreas-CT-CB_001"}
    today = TUMOUR_XYZ_MM + np.array((4, 3, -5))
    label = image(dataset, case, None)
    assert label.GetSpacing() == (5.0, 5.0, 5.0)
    assert np.abs(centre_xyz_mm(label) - today).max() < 1.0
    assert np.abs(centre_xyz_mm(image(dataset, case, 1)) - today).max() < 1.5
    with pytest.raises(InputError, match="'Liver' is drawn on 0 planning CTs and 0 CBCTs"):
        converted("pancreatic-ct-cbct", folder, tmp_path / "other", roi="Liver")


def test_a_set_that_was_drawn_on_another_scan_is_refused(tmp_path: Path) -> None:
    folder = made.make_4d_lung(tmp_path / "data")
    victim = next(folder.rglob("1.000000-RTS-10/1-1.dcm"))

    def lies(dataset: pydicom.FileDataset) -> None:
        study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        series = study.RTReferencedSeriesSequence[0]
        series.SeriesInstanceUID = "2.25.1"
        for item in series.ContourImageSequence:
            item.ReferencedSOPInstanceUID = "2.25.2"
        for roi in dataset.ROIContourSequence:
            for contour in roi.ContourSequence:
                contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "2.25.2"

    _edited(victim, lies)
    with pytest.raises(FrameMismatchError, match="drawn on other images"):
        converted("4d-lung", folder, tmp_path / "raw", phases=(0,))
    assert nothing_in(tmp_path / "raw")


@pytest.mark.real
def test_a_real_4d_lung_patient_keeps_the_tumours_volume(tmp_path: Path) -> None:
    dataset = converted("4d-lung", data_item("lung_planning_ct"), tmp_path / "raw")
    (case,) = read_patients(dataset)
    assert case == "113_HM10395_day-01_phase-40B"
    label = image(dataset, case, None)
    assert abs(volume_cc(label) - 67.6) < 0.1, "cc, by the public contours (28 of them)"
    assert np.allclose(label.GetSpacing(), (0.9766, 0.9766, 3.0), atol=1e-4)


# -------------------------------------------------------------------------------- command line

app = typer.Typer(cls=OneLineErrors)
app.command()(prepare_command)
app.callback()(lambda: None)


def test_the_command_converts_and_says_what_it_made(tmp_path: Path) -> None:
    folder = made.make_aiib23(tmp_path / "data")
    arguments = ["prepare", "aiib23", str(folder), f"--out={tmp_path / 'raw'}"]
    done = CliRunner().invoke(app, [*arguments, "--id=23", "--name=Airways"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 cases of 2 patients: ")
    assert (tmp_path / "raw" / "Dataset023_Airways" / "dataset.json").is_file()
    again = CliRunner().invoke(app, [*arguments, "--id=23", "--name=Other"])
    assert again.exit_code == 2
    assert again.stderr.count("\n") == 1
    assert "number 23 is taken" in again.stderr


def test_the_command_deals_nested_parts_of_the_patients(tmp_path: Path) -> None:
    folder = made.make_aiib23(tmp_path / "data")
    arguments = ["prepare", "aiib23", str(folder), f"--out={tmp_path / 'raw'}", "--nested"]
    done = CliRunner().invoke(app, [*arguments, "--id=23", "--name=Airways"])
    assert done.exit_code == 0, done.output
    dataset = tmp_path / "raw" / "Dataset023_Airways"
    parts = json.loads((dataset / "splits_final.json").read_text())
    assert len(parts) == 5
    for smaller, larger in pairwise(parts):
        assert set(smaller["train"]) <= set(larger["train"])
        assert smaller["val"] == larger["val"]
        assert not set(larger["train"]) & set(larger["val"])


def test_the_command_passes_its_options_on(tmp_path: Path) -> None:
    arguments = ["prepare", "msd", str(tmp_path), f"--out={tmp_path / 'raw'}", "--id=6", "--name=L"]
    for option, named in (
        (["--spacing", "2", "2.5", "3"], "spacing_zyx_mm"),
        (["--extent=whole"], "extent"),
        (["--roi=GTV"], "roi"),
        (["--label-roi=GTV"], "label_roi"),
        (["--phase=0", "--phase=50"], "phases"),
        (["--prior"], "prior"),
        (["--calibrated"], "calibrated"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *option])
        assert refused.exit_code == 2
        assert f"msd takes no option {named}" in refused.stderr
