"""The promises that every method keeps."""

from dataclasses import replace

import numpy as np
import pytest

from contourcast.imaging.errors import MethodError
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Volume
from contourcast.registration.methods import METHODS, Task
from contourcast.registration.result import Registration, Registrations
from contourcast.registration.settings import (
    BSplineSettings,
    DeformableSettings,
    RegistrationSettings,
)
from support.analytic_phantom import CBCT, PLANNING, motion
from support.thorax_phantom import TUMOUR_MM, Thorax, tumour_mask

QUICK_SPLINE = BSplineSettings(grid_mm=20.0, levels=2, iterations=60, samples=1000)
SETTINGS = RegistrationSettings(
    deformable=DeformableSettings(spacing_mm=4.0, dir_t=QUICK_SPLINE, dir_l=QUICK_SPLINE)
)
THORAX = Thorax()
CT = THORAX.planning_ct()
IDENTITY = RigidTransform.identity(source_frame=CBCT, target_frame=PLANNING)
SHIFT = motion(shift_xyz_mm=(3, -4, 0), rotation_xyz_deg=(0, 0, 0))
TURNED = motion(shift_xyz_mm=(3, -4, 0), rotation_xyz_deg=(0, 0, 5))


def registration(transform: RigidTransform, *, overlap: float = 0.9) -> Registration:
    return Registration(
        planning_from_cbct=transform,
        quality=Quality(figures=(Figure(name="overlap", value=overlap),)),
        center_xyz_mm=np.zeros(3),
    )


def task(
    fixed: Volume, *, rigid: RigidTransform, translation: RigidTransform | None = None
) -> Task:
    return Task(
        fixed=fixed,
        moving=CT,
        prior=tumour_mask(CT),
        registrations=Registrations(
            body=registration(rigid),
            target=registration(SHIFT, overlap=0.8),
            translation=registration(translation or rigid, overlap=0.7),
            focus="body",
            apart_mm=None,
            quality=Quality(),
        ),
        settings=SETTINGS,
    )


def error_mm(name: str, given: Task, truth: RigidTransform) -> float:
    side = np.linspace(-8, 8, 3)
    cube = np.array([[a, b, c] for a in side for b in side for c in side]) + TUMOUR_MM
    points = truth.inverse().apply(cube)
    carried = METHODS[name](given).planning_from_cbct
    assert (carried.source_frame, carried.target_frame) == (CBCT, PLANNING)
    found = carried.apply(points)
    return float(np.linalg.norm(found - cube, axis=1).mean())


def test_the_table_is_the_four_that_the_product_names() -> None:
    assert list(METHODS) == ["translation", "rigid", "dir-t", "dir-l"]


@pytest.mark.parametrize("name", METHODS)
def test_identical_images_stay_where_they_are(name: str) -> None:
    given = task(replace(CT, frame_of_reference=CBCT), rigid=IDENTITY)
    assert error_mm(name, given, IDENTITY) < 0.5


@pytest.mark.parametrize("name", METHODS)
def test_a_known_shift_of_5_mm_is_kept_from_the_cbct_to_the_planning_ct(name: str) -> None:
    given = task(THORAX.cbct(SHIFT), rigid=SHIFT)
    assert error_mm(name, given, SHIFT) < 0.5


@pytest.mark.parametrize("name", ["dir-t", "dir-l"])
def test_a_shift_that_rigid_missed_is_found(name: str) -> None:
    given = task(THORAX.cbct(SHIFT), rigid=IDENTITY)
    assert error_mm("rigid", given, SHIFT) == pytest.approx(5.0)
    assert error_mm(name, given, SHIFT) < 1.0


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_field_of_view_gives_finite_numbers_or_a_refusal(name: str) -> None:
    empty = THORAX.cbct(SHIFT)
    given = task(empty.with_values(np.full(empty.grid.shape_zyx, -1000.0)), rigid=SHIFT)
    if name.startswith("dir"):
        with pytest.raises(MethodError, match=f"{name} failed: .* outside the field of view"):
            METHODS[name](given)
    else:
        assert np.isfinite(METHODS[name](given).planning_from_cbct.apply(TUMOUR_MM[None])).all()


def test_translation_and_rigid_bring_their_own_answer_and_figures() -> None:
    given = task(THORAX.cbct(SHIFT), rigid=TURNED, translation=SHIFT)
    translation, rigid = METHODS["translation"](given), METHODS["rigid"](given)
    assert translation.planning_from_cbct is SHIFT
    assert translation.quality.figure("overlap") == 0.7
    assert rigid.planning_from_cbct is TURNED
    assert rigid.quality.figure("overlap") == 0.9
    assert rigid.quality.verdict is Verdict.ACCEPT


def test_rigid_is_the_registration_that_was_chosen() -> None:
    given = task(THORAX.cbct(SHIFT), rigid=TURNED)
    chosen = replace(given, registrations=replace(given.registrations, focus="target"))
    assert METHODS["rigid"](chosen).planning_from_cbct is SHIFT
    assert METHODS["rigid"](chosen).quality.figure("overlap") == 0.8
