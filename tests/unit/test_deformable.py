import functools
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from contourcast.imaging.errors import MethodError
from contourcast.imaging.grid import Grid, Points
from contourcast.imaging.transform import DeformableTransform, PointMap, RigidTransform
from contourcast.imaging.verdict import Verdict
from contourcast.imaging.volume import Volume
from contourcast.registration.deformable import (
    Scene,
    box_round_prior,
    deform,
    dir_l,
    dir_t,
    lung_with_prior,
)
from contourcast.registration.elastix import BSpline, Pair, run_elastix
from contourcast.registration.pyramid import average
from contourcast.registration.result import Carriage
from contourcast.registration.settings import (
    BSplineSettings,
    DeformableSettings,
    RegistrationSettings,
)
from support.analytic_phantom import CBCT, PLANNING, even_grid, motion
from support.thorax_phantom import (
    LEFT_LUNG_MM,
    LUNG_HALF_AXES_MM,
    TUMOUR_MM,
    Thorax,
    tumour_mask,
)

QUICK_SPLINE = BSplineSettings(grid_mm=20.0, levels=2, iterations=60, samples=1000)
QUICK = DeformableSettings(spacing_mm=4.0, dir_t=QUICK_SPLINE, dir_l=QUICK_SPLINE)
RIGID = motion(shift_xyz_mm=(6, -4, 5), rotation_xyz_deg=(2, -1, 3))
PLAIN = Thorax()


@dataclass(frozen=True)
class Bump:
    """A smooth push of some tissue, in the CBCT, before the rigid step."""

    push_xyz_mm: tuple[float, float, float]
    width_mm: float
    rigid: RigidTransform = RIGID

    source_frame = CBCT
    target_frame = PLANNING

    @property
    def center_xyz_mm(self) -> np.ndarray:
        center: np.ndarray = self.rigid.inverse().apply(TUMOUR_MM[None])[0]
        return center

    def apply(self, points_xyz_mm: Points) -> Points:
        away = np.linalg.norm(points_xyz_mm - self.center_xyz_mm, axis=1) / self.width_mm
        push = np.exp(-(away**2) / 2)[:, None] * self.push_xyz_mm
        return self.rigid.apply(points_xyz_mm + push)


PUSHED = Bump((4.0, -3.0, 5.0), 30.0)


@functools.cache
def planning_ct(thorax: Thorax = PLAIN) -> Volume:
    return thorax.planning_ct()


def scene(
    truth: PointMap,
    *,
    settings: DeformableSettings = QUICK,
    thorax: Thorax = PLAIN,
    grid: Grid | None = None,
    noise_hu: float = 30.0,
) -> Scene:
    ct = planning_ct(thorax)
    return Scene(
        fixed=thorax.cbct(truth, grid=grid, noise_hu=noise_hu),
        moving=ct,
        prior=tumour_mask(ct),
        planning_from_cbct=RIGID,
        settings=RegistrationSettings(deformable=settings),
    )


def round_tumour(truth: PointMap) -> Points:
    """Places in the CBCT within 12 mm of where the tumour roughly is."""
    middle = RIGID.inverse().apply(TUMOUR_MM[None])[0] - [4.0, -3.0, 5.0]
    side = np.linspace(-7, 7, 4)
    places: Points = np.array([[a, b, c] for a in side for b in side for c in side]) + middle
    return places


def error_mm(found: PointMap, truth: PointMap) -> float:
    points = round_tumour(truth)
    return float(np.linalg.norm(found.apply(points) - truth.apply(points), axis=1).mean())


def notes_of(carriage: Carriage) -> str:
    return " ".join(carriage.notes)


# The child process --------------------------------------------------------------------------------


def tiny_pair() -> Pair:
    values = np.random.default_rng(3).normal(size=(24, 24, 24)).cumsum(0) * 50
    return Pair(
        fixed=values,
        moving=values,
        region=np.ones(values.shape, bool),
        moving_observed=np.ones(values.shape, bool),
        spacing_mm=3.0,
    )


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


DYING = {
    "SIGSEGV": "import os; print('last words', flush=True); os.kill(os.getpid(), 11)",
    "SIGKILL": "import os; print('last words', flush=True); os.kill(os.getpid(), 9)",
    "code 3": "print('last words'); raise SystemExit(3)",
}


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("how", DYING)
def test_a_dead_child_is_an_error_of_the_method_with_its_log(how: str, private: Path) -> None:
    with pytest.raises(MethodError, match=rf"^dir-l failed: elastix .*{how}") as caught:
        run_elastix(tiny_pair(), QUICK_SPLINE, QUICK, method="dir-l", program=python(DYING[how]))
    assert caught.value.__notes__[-1].endswith("last words")
    assert not list(private.iterdir()), "the job's folder is left behind"


def test_the_log_stays_with_the_error_across_processes() -> None:
    with pytest.raises(MethodError) as caught:
        run_elastix(
            tiny_pair(), QUICK_SPLINE, QUICK, method="dir-l", program=python(DYING["code 3"])
        )
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.__notes__ == caught.value.__notes__


def test_no_room_for_temporary_files_is_an_error_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    with pytest.raises(MethodError, match="dir-l failed: elastix could not be given its job"):
        run_elastix(tiny_pair(), QUICK_SPLINE, QUICK, method="dir-l")


def test_a_child_that_hangs_is_ended(private: Path) -> None:
    hanging = python("import time; print('thinking', flush=True); time.sleep(600)")
    settings = replace(QUICK, wall_limit_s=2.0)
    with pytest.raises(
        MethodError, match=r"dir-t failed: elastix did not end within 2 s"
    ) as caught:
        run_elastix(tiny_pair(), QUICK_SPLINE, settings, method="dir-t", program=hanging)
    assert "thinking" in caught.value.__notes__[-1]
    assert not list(private.iterdir())


def test_the_log_is_cut_to_its_last_200_lines() -> None:
    chatty = python("print('\\n'.join(map(str, range(1000)))); raise SystemExit(1)")
    with pytest.raises(MethodError) as caught:
        run_elastix(tiny_pair(), QUICK_SPLINE, QUICK, method="dir-t", program=chatty)
    assert caught.value.__notes__[-1].splitlines()[1:] == [str(n) for n in range(800, 1000)]


def test_a_child_short_of_memory_is_an_error_not_a_crash() -> None:
    settings = replace(QUICK, memory_limit_gib=0.05)
    with pytest.raises(MethodError, match="dir-l failed: elastix"):
        run_elastix(tiny_pair(), QUICK_SPLINE, settings, method="dir-l")


def test_an_orphan_ends_itself() -> None:
    orphan = python(
        "import time\n"
        "from contourcast.registration import elastix_child as child\n"
        "child.ORPHAN_GRACE_S = 1 - 300\n"
        "child.Elastix.register = lambda *a: time.sleep(600)\n"
        "child.main()"
    )
    with pytest.raises(MethodError, match="SIGALRM"):
        run_elastix(tiny_pair(), QUICK_SPLINE, QUICK, method="dir-t", program=orphan)


def test_missing_elastix_names_what_to_install() -> None:
    without = python(
        "import sys; sys.modules['itk'] = None\n"
        "from contourcast.registration import elastix_child\n"
        "sys.exit(elastix_child.main())"
    )
    with pytest.raises(MethodError, match="elastix is not installed") as caught:
        run_elastix(tiny_pair(), QUICK_SPLINE, QUICK, method="dir-t", program=without)
    assert caught.value.remedy == "pip install contourcast[baselines]"


def test_the_child_loads_no_torch_and_little_of_itk() -> None:
    loaded = subprocess.run(
        python(
            "import sys\n"
            "from contourcast.registration.elastix_child import Elastix\n"
            "Elastix(threads=1)\n"
            # ru_maxrss would also remember the process that started it
            "status = open('/proc/self/status').read().split()\n"
            "print('torch' in sys.modules, status[status.index('VmHWM:') + 1])"
        ),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert loaded[0] == "False"
    assert int(loaded[1]) < 500_000, "KiB; all of itk is 1.1 GiB"


def test_a_spline_means_what_itk_means_by_it() -> None:
    generator = np.random.default_rng(1)
    size, spacing, origin = (7, 6, 5), np.array([20.0, 18.0, 25.0]), np.array([-21.0, -20.0, -27.0])
    coefficients = generator.normal(size=(3, *size[::-1])) * 5
    ours = BSpline(
        coefficients_xyz_mm=coefficients,
        spacing_xyz_mm=spacing,
        origin_xyz_mm=origin,
        version="",
    ).displacement((12, 14, 16), 4.0)
    theirs = SimpleITK.BSplineTransform(3, 3)
    theirs.SetTransformDomainOrigin(origin + spacing)
    theirs.SetTransformDomainPhysicalDimensions((np.array(size) - 3) * spacing)
    theirs.SetTransformDomainMeshSize([n - 3 for n in size])
    theirs.SetParameters(coefficients.ravel())
    for k, j, i in ((0, 0, 0), (5, 7, 9), (11, 13, 15), (2, 9, 4)):
        point = np.array([i, j, k]) * 4.0
        np.testing.assert_allclose(ours[k, j, i], theirs.TransformPoint(point) - point, atol=1e-9)


# What a deformation finds -------------------------------------------------------------------------


METHODS = {"dir-t": dir_t, "dir-l": dir_l}


@functools.cache
def pushed(name: str) -> Carriage:
    return METHODS[name](scene(PUSHED))


@pytest.mark.parametrize("name", METHODS)
def test_a_pushed_tumour_is_followed(name: str) -> None:
    found = pushed(name)
    assert error_mm(RIGID, PUSHED) > 5.0
    assert error_mm(found.planning_from_cbct, PUSHED) < 1.0
    assert found.quality.verdict is Verdict.ACCEPT, found.quality.reasons
    assert found.ended_as == ""
    assert (found.quality.figure("jacobian_min") or 0) > 0.2
    assert found.quality.figure("folded_fraction") == 0
    assert found.quality.figure("prior_volume_after_over_before") == pytest.approx(1.0, abs=0.1)
    assert "found by itk-elastix" in notes_of(found)


def test_without_deformation_next_to_none_is_found() -> None:
    found = dir_t(scene(RIGID))
    assert error_mm(found.planning_from_cbct, RIGID) < 0.5


def test_an_oblique_scan_gives_the_same_answer() -> None:
    turned = Rotation.from_euler("xyz", (25, -10, 40), degrees=True).as_matrix()
    oblique = even_grid(extent_xyz_mm=(240, 240, 136), spacing_mm=4.0, direction=turned)
    found = dir_t(scene(PUSHED, grid=oblique))
    assert error_mm(found.planning_from_cbct, PUSHED) < 1.0


def test_the_same_input_gives_the_same_field() -> None:
    first, second = pushed("dir-t").planning_from_cbct, dir_t(scene(PUSHED)).planning_from_cbct
    points = round_tumour(PUSHED)
    assert np.abs(first.apply(points) - second.apply(points)).max() < 0.01


def test_outside_its_region_the_field_fades_to_the_rigid_answer() -> None:
    at = scene(PUSHED)
    region = box_round_prior(at).mask
    displacement, _ = deform(at, region, QUICK_SPLINE, method="dir-t")
    carried = DeformableTransform(rigid=RIGID, displacement=displacement)
    places = region.grid.world(np.argwhere(region.values)[:, ::-1].astype(float))
    low, high = places.min(axis=0), places.max(axis=0)
    axis = np.array([1.0, 0.0, 0.0])
    middle = (low + high) / 2
    edge = middle + axis * (high - middle)[0]
    steps = np.arange(0.0, 31.0, 3.0)
    moved = np.linalg.norm(displacement.at(edge + steps[:, None] * axis), axis=1)
    assert moved[0] > 0.2
    assert (moved[steps >= 15 + QUICK.spacing_mm] == 0).all()
    far = middle + np.array([[0.0, 0.0, 200.0], [150.0, 0.0, 0.0]])
    np.testing.assert_allclose(carried.apply(far), RIGID.apply(far), atol=1e-9)


@pytest.mark.slow
def test_where_the_planning_ct_ends_nothing_is_compared() -> None:
    thorax = Thorax()
    whole = planning_ct(thorax)
    nz, ny, nx = whole.grid.shape_zyx
    cut = nz // 2 + 6  # 24 mm above the middle: through the box round the tumour
    short = Volume(
        values=whole.values[:cut],
        grid=whole.grid.crop((0, 0, 0), (cut, ny, nx)),
        frame_of_reference=whole.frame_of_reference,
    )
    at = replace(scene(PUSHED), moving=short, prior=tumour_mask(short))
    found = dir_t(at)
    assert error_mm(found.planning_from_cbct, PUSHED) < 1.5


# What is refused, and what stands in --------------------------------------------------------------


def test_an_empty_prior_is_refused() -> None:
    at = scene(RIGID)
    empty = replace(at, prior=replace(at.prior, values=np.zeros_like(at.prior.values)))
    for method, name in ((dir_t, "dir-t"), (dir_l, "dir-l")):
        with pytest.raises(MethodError, match=f"{name} failed: no voxel centre"):
            method(empty)


def test_a_prior_outside_the_field_of_view_is_refused() -> None:
    elsewhere = even_grid(
        extent_xyz_mm=(120, 120, 120), spacing_mm=4.0, center_xyz_mm=(-60.0, 0.0, 500.0)
    )
    at = scene(RIGID, grid=elsewhere)
    with pytest.raises(
        MethodError, match="dir-t failed: its region lies outside the field of view"
    ):
        dir_t(at)


def test_a_sliver_in_view_is_refused() -> None:
    sliver = even_grid(extent_xyz_mm=(240, 240, 60), spacing_mm=4.0, center_xyz_mm=(0.0, 0.0, 60.0))
    with pytest.raises(MethodError, match=r"cc of its region are seen by both scans, 8 cc"):
        dir_t(scene(RIGID, grid=sliver))


def test_without_a_lung_dir_l_names_the_other_method() -> None:
    with pytest.raises(MethodError, match="no lung") as caught:
        dir_l(scene(RIGID, thorax=Thorax(lungs=())))
    assert "dir-t" in caught.value.remedy


def test_a_prior_beside_the_lungs_takes_the_nearer_lung_and_says_so() -> None:
    at = scene(RIGID)
    ct = at.moving
    middle = np.array([8.0, 0.0, 0.0])  # in the mediastinum, nearer to the left lung
    inside = np.linalg.norm(ct.grid.centers() - middle, axis=1) <= 8
    prior = replace(at.prior, values=inside.reshape(ct.grid.shape_zyx))
    region = lung_with_prior(replace(at, prior=prior))
    assert "0 % of the prior lie in the left lung, the nearer one" in region.notes[0]
    assert "united with the prior and 15 mm round it" in region.notes[0]
    places = RIGID.apply(region.mask.grid.centers()[region.mask.values.ravel()])
    assert np.linalg.norm(places - middle, axis=1).min() < QUICK.spacing_mm
    assert places[:, 0].min() > middle[0] - 8 - 15 - 5 - 2 * QUICK.spacing_mm, "the right lung"


def test_a_prior_smaller_than_the_blocks_that_lungs_are_found_in_has_its_lung() -> None:
    coarse = replace(QUICK, lungs=replace(QUICK.lungs, spacing_mm=8.0))
    at = scene(RIGID, settings=coarse)
    values = np.zeros_like(at.prior.values)
    values[tuple(np.argwhere(at.prior.values)[0])] = True
    one = replace(at, prior=replace(at.prior, values=values))
    assert not (average(one.prior_image, spacing_mm=8.0).values >= 0.5).any()
    assert "the left lung" in lung_with_prior(one).notes[0]


def test_the_lung_that_holds_the_prior_is_the_region() -> None:
    region = lung_with_prior(scene(RIGID))
    assert region.notes[0].startswith("the left lung (")
    places = RIGID.apply(region.mask.grid.centers()[region.mask.values.ravel()])
    local = np.linalg.norm((places - LEFT_LUNG_MM) / LUNG_HALF_AXES_MM, axis=1)
    assert local.max() < 1 + (5 + 2 * QUICK.spacing_mm) / min(LUNG_HALF_AXES_MM)
    assert (np.linalg.norm(places - TUMOUR_MM, axis=1) < 10).sum() > 30, "the tumour is left out"


WILD = BSplineSettings(grid_mm=8.0, bending_weight=1e-9, levels=1, iterations=80, samples=600)
FOLDING = replace(QUICK, dir_t=WILD, dir_l=WILD, coarser_grid=1.01, stiffer_bending=1.0)


def noisy(settings: DeformableSettings) -> Scene:
    """Scans drowned in noise, on which a fine grid folds at once."""
    return scene(RIGID, settings=settings, noise_hu=600.0)


def test_a_fold_is_mended_by_a_coarser_grid() -> None:
    found = dir_t(noisy(replace(FOLDING, coarser_grid=20.0)))
    assert found.ended_as == "dir-t, grid 160 mm"
    assert "dir-t folded: Jacobian determinant down to -" in notes_of(found)
    assert found.quality.figure("folded_attempts") == 1
    assert found.quality.figure("folded_fraction") == 0


def test_a_fold_that_stays_is_mended_by_bending() -> None:
    found = dir_t(noisy(replace(FOLDING, stiffer_bending=1e12)))
    assert found.ended_as == "dir-t, grid 8.08 mm, bending 1000"
    assert found.quality.figure("folded_attempts") == 2


def test_when_every_deformation_folds_the_rigid_answer_stands_in() -> None:
    found = dir_t(noisy(FOLDING))
    assert found.ended_as == "rigid"
    assert found.planning_from_cbct is RIGID
    assert found.quality.verdict is Verdict.LOOK
    assert "this is the rigid answer" in found.quality.reasons[0]
    assert len(found.notes) == 3


def test_dir_t_stands_in_for_a_folding_dir_l() -> None:
    found = dir_l(noisy(replace(FOLDING, dir_t=replace(WILD, grid_mm=300.0))))
    assert found.ended_as == "dir-t"
    assert found.quality.verdict is Verdict.LOOK
    assert any("this is the dir-t answer" in reason for reason in found.quality.reasons)
