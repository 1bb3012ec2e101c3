"""The pipeline on one page, on a course so small that it runs in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contourcast.imaging.errors import FrameMismatchError, InputError
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.resample import Moved
from contourcast.imaging.verdict import Verdict
from contourcast.imaging.volume import Probability, Volume
from contourcast.propagate import (
    LEAST_OF_PRIOR,
    NETWORK,
    Case,
    DeviceError,
    Drawn,
    Propagation,
    Settings,
    compare,
    draw,
    inputs_digest,
    prior_mask,
    propagate,
    register,
)
from contourcast.service.jobs.inputs import read_case
from support.course import CourseFiles, make_course


class Halver:
    """A network of which the answer is known: the carried prior, its lower half."""

    name, digest = NETWORK, "ab" * 32
    unseen = 0.0

    def predict(
        self,
        cbct: Volume,
        r_ct: Probability,
        planning_ct: Moved | None = None,
        *,
        on_note: Callable[[str], None] = lambda note: None,
        on_unseen: Callable[[float], None] = lambda share: None,
    ) -> Probability:
        on_note("drawn by halves")
        on_unseen(self.unseen)
        assert planning_ct is not None
        assert planning_ct.moving_from_fixed.source_frame == cbct.frame_of_reference
        values = r_ct.values.copy()
        k = int(np.argmax(values.sum(axis=(1, 2))))
        values[k:] = 0
        return r_ct.with_values(values)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> CourseFiles:
    return make_course(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="module")
def case(course: CourseFiles) -> Case:
    return read_case(
        planning_ct=course.planning_ct.folder,
        structures=course.structures,
        cbct=course.cbct.folder,
        roi="GTV",
    )


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(methods=("translation", "rigid", NETWORK))


@pytest.fixture(scope="module")
def result(case: Case, settings: Settings) -> Propagation:
    return propagate(case, settings=settings, network=Halver(), clock=lambda: 0.0)


def test_the_prior_arrives_where_the_patient_moved(
    result: Propagation, course: CourseFiles
) -> None:
    for method in ("translation", "rigid"):
        drawn = next(d for d in result.drawn if d.method == method)
        assert drawn.centroid_xyz_mm is not None
        before = np.array([-70.0, 10.0, 0.0])
        error_mm = np.linalg.norm(drawn.centroid_xyz_mm - before - course.shift_xyz_mm)
        assert error_mm < 1.5, method


def test_the_network_gets_the_carried_prior(result: Propagation) -> None:
    drawn = next(d for d in result.drawn if d.method == NETWORK)
    carried_cc = result.r_ct.mask().volume_cc
    assert drawn.volume_cc is not None
    assert 0.2 * carried_cc < drawn.volume_cc < 0.6 * carried_cc
    assert drawn.notes == ("drawn by halves",)  # what it said of itself stands in the report


def test_every_method_is_compared_with_rigid_and_with_the_network(result: Propagation) -> None:
    assert set(result.agreement) == {
        ("translation", "rigid"),
        (NETWORK, "rigid"),
        ("translation", NETWORK),
        ("rigid", NETWORK),
    }
    assert result.agreement["translation", "rigid"].dice > 0.9


def test_the_same_input_gives_the_same_contours(
    case: Case, settings: Settings, result: Propagation
) -> None:
    again = propagate(case, settings=settings, network=Halver(), clock=lambda: 0.0)
    assert again.digest == result.digest
    for first, second in zip(result.drawn, again.drawn, strict=True):
        for a, b in zip(first.loops, second.loops, strict=True):
            np.testing.assert_array_equal(a.points_xyz_mm, b.points_xyz_mm)


def test_the_digest_follows_everything_that_matters(case: Case, settings: Settings) -> None:
    one = inputs_digest(case, settings, "w")
    others = [
        inputs_digest(replace(case, vouched="I know"), settings, "w"),
        inputs_digest(replace(case, prior_digest="other"), settings, "w"),
        inputs_digest(case, replace(settings, methods=("rigid",)), "w"),
        inputs_digest(case, settings, "other weights"),
        inputs_digest(case, replace(settings, device="cuda"), "w"),
    ]
    home = replace(
        case.prior,
        contours=tuple(
            replace(c, points_xyz_mm=c.points_xyz_mm + np.array([0.0, 0.5, 0.0]))
            for c in case.prior.contours
        ),
    )
    others.append(inputs_digest(replace(case, prior=home), settings, "w"))
    assert len({one, *others}) == 7
    assert one == inputs_digest(case, settings, "w")


def test_a_prior_of_another_frame_is_refused(case: Case, settings: Settings) -> None:
    foreign = replace(case, prior=replace(case.prior, frame_of_reference="1.2.3.4"))
    with pytest.raises(FrameMismatchError, match=r"1\.2\.3\.4"):
        register(foreign, settings)


def test_a_rejected_registration_draws_nothing_and_says_so(case: Case, settings: Settings) -> None:
    noise = np.random.default_rng(0).normal(0, 200, case.cbct.grid.shape_zyx)
    lost = replace(case, cbct=case.cbct.with_values(noise.astype(np.float32)))
    result = propagate(lost, settings=settings, network=Halver(), clock=lambda: 0.0)
    assert result.verdict is Verdict.REJECT
    assert result.quality.reasons
    assert not result.r_ct.values.any()
    for drawn in result.drawn:
        assert drawn.region is None
        assert drawn.loops == ()
        assert "rejected" in drawn.notes[0]


def test_a_method_that_fails_costs_its_row_alone(
    case: Case, settings: Settings, result: Propagation
) -> None:
    registrations = result.registrations
    failed = draw(
        case, settings, registrations, result.r_ct, NETWORK, network=None, clock=lambda: 0.0
    )
    assert failed.region is None
    assert "no network is loaded" in failed.failed
    whole = compare(
        case,
        settings,
        registrations,
        result.r_ct,
        [result.drawn[0], failed],
        network=None,
        registration_seconds=0.0,
    )
    assert whole.verdict in (Verdict.LOOK, Verdict.REJECT)
    assert any("no network is loaded" in reason for reason in whole.quality.reasons)


class Failing(Halver):
    """A network whose computation goes wrong."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def predict(self, *_: object, **__: object) -> Probability:
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("not enough memory: 9 GB"), MemoryError("263 TiB"), ZeroDivisionError()]
)
def test_a_computation_that_goes_wrong_costs_its_row_alone(
    case: Case, settings: Settings, result: Propagation, error: Exception
) -> None:
    failed = draw(
        case,
        settings,
        result.registrations,
        result.r_ct,
        NETWORK,
        network=Failing(error),
        clock=lambda: 0.0,
    )
    assert failed.region is None
    assert failed.failed == f"{type(error).__name__}: {error}"


class AcceleratorError(RuntimeError):
    """Named as torch's, which only a GPU raises."""


LOST = [
    AcceleratorError("unspecified launch failure"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
STILL_THERE = [
    AcceleratorError("CUDA error: out of memory"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("shapes differ"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_gpu_that_is_lost_is_no_fault_of_one_method(
    case: Case, settings: Settings, result: Propagation, error: Exception
) -> None:
    with pytest.raises(DeviceError, match="GPU") as lost:
        draw(
            case, replace(settings, device="cuda"), result.registrations, result.r_ct, NETWORK,
            network=Failing(error), clock=lambda: 0.0,
        )  # fmt: skip
    assert lost.value.__cause__ is error


@pytest.mark.parametrize(
    ("device", "error"),
    [*(("cuda", error) for error in STILL_THERE), *(("cpu", error) for error in LOST)],
    ids=str,
)
def test_what_does_not_take_the_gpu_away_costs_its_row_alone(
    case: Case, settings: Settings, result: Propagation, device: str, error: Exception
) -> None:
    failed = draw(
        case, replace(settings, device=device), result.registrations, result.r_ct, NETWORK,
        network=Failing(error), clock=lambda: 0.0,
    )  # fmt: skip
    assert str(error)[:20] in failed.failed


def test_a_gpu_that_is_lost_in_registration_is_told_as_such(
    case: Case, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(**_: object) -> None:
        raise LOST[1]

    monkeypatch.setattr("contourcast.registration.rigid.register_all", lost)
    with pytest.raises(DeviceError):
        register(case, replace(settings, device="cuda"))


def test_a_prior_that_the_network_copied_where_nothing_is_shown_deserves_a_look(
    case: Case, settings: Settings
) -> None:
    network = Halver()
    figures = {}
    for network.unseen in (0.005, 0.17):
        result = propagate(case, settings=settings, network=network, clock=lambda: 0.0)
        own = next(d for d in result.drawn if d.method == NETWORK)
        (figures[network.unseen],) = (f for f in own.quality.figures if f.name == "prior_shown")
    assert [f.verdict for f in figures.values()] == [Verdict.ACCEPT, Verdict.LOOK]
    assert result.verdict is not Verdict.ACCEPT
    told = f"{NETWORK}: the scan shows nothing at 17 % of the carried prior"
    assert any(reason.startswith(told) for reason in result.quality.reasons)


def test_a_contour_that_vanished_deserves_a_look(
    case: Case, settings: Settings, result: Propagation
) -> None:
    empty = result.r_ct.with_values(np.zeros(case.cbct.grid.shape_zyx))
    whole = compare(
        case,
        settings,
        result.registrations,
        result.r_ct,
        [Drawn(method="rigid", region=empty)],
        network=None,
        registration_seconds=0.0,
    )
    assert any(f.name == "rigid_volume_over_prior" and f.value == 0 for f in whole.quality.figures)
    assert whole.verdict is not Verdict.ACCEPT
    (rigid,) = whole.drawn
    assert rigid.quality.verdict is Verdict.LOOK, "it stands in its own row, too"


def test_a_prior_drawn_on_every_second_slice_has_its_whole_volume(case: Case) -> None:
    loops = sorted(case.prior.contours, key=lambda c: c.points_xyz_mm[0, 2])
    sparse = replace(case, prior=replace(case.prior, contours=tuple(loops[::2])))
    assert prior_mask(sparse).volume_cc == pytest.approx(prior_mask(case).volume_cc, rel=0.06)
    assert (
        rasterise(sparse.prior, case.planning_ct.grid).volume_cc < 0.6 * prior_mask(case).volume_cc
    )


def test_a_network_that_draws_elsewhere_deserves_a_look(
    case: Case, settings: Settings, result: Propagation
) -> None:
    elsewhere = result.r_ct.with_values(np.roll(result.r_ct.values, 12, axis=2))
    whole = compare(
        case,
        settings,
        result.registrations,
        result.r_ct,
        [Drawn(method=NETWORK, region=elsewhere), Drawn(method="rigid", region=elsewhere)],
        network=None,
        registration_seconds=0.0,
    )
    (figure,) = (f for f in whole.quality.figures if f.name.endswith("_overlap_with_prior"))
    assert (figure.name, figure.verdict) == (f"{NETWORK}_overlap_with_prior", Verdict.LOOK)
    assert figure.value is not None
    assert figure.value < LEAST_OF_PRIOR
    kept = next(f for f in result.quality.figures if f.name == figure.name)
    assert (kept.verdict, kept.reason) == (Verdict.ACCEPT, "")


def test_a_wrong_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="the nearest is 'dir-t'"):
        Settings(methods=("dirt",))


def test_different_patients_are_refused_unless_vouched_for(
    course: CourseFiles, tmp_path: Path
) -> None:
    from pydicom import dcmread

    for path in course.cbct.paths:
        dataset = dcmread(path)
        dataset.PatientID = "ZZQQ-LEAK-OTHER"
        dataset.save_as(tmp_path / path.name)
    arguments = {
        "planning_ct": course.planning_ct.folder,
        "structures": course.structures,
        "cbct": tmp_path,
        "roi": "GTV",
    }
    with pytest.raises(InputError, match="different patients") as refused:
        read_case(**arguments)  # type: ignore[arg-type]
    assert "ZZQQ" not in str(refused.value)
    case = read_case(**arguments, vouched="renamed by our archive")  # type: ignore[arg-type]
    assert case.vouched.startswith("renamed by our archive")
    assert "different patients" in case.vouched
