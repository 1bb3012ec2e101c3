import functools
from dataclasses import replace

import numpy as np
import pytest

from contourcast.imaging.errors import FrameMismatchError, InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Verdict
from contourcast.imaging.volume import Mask, Volume
from contourcast.registration.result import Registrations
from contourcast.registration.rigid import register_all
from contourcast.registration.settings import (
    DescentSettings,
    LevelSettings,
    RegistrationSettings,
    RigidSettings,
)
from support.analytic_phantom import CBCT, PLANNING, Phantom, even_grid, motion
from support.virtual_cbct import ball, target_errors_mm

PHANTOM = Phantom()
CT = PHANTOM.planning_ct()
PRIOR = ball(CT, np.array([10.0, 5.0, 0.0]), radius_mm=15)
QUICK = RegistrationSettings(
    rigid=RigidSettings(
        levels=(
            LevelSettings(spacing_mm=6.0, samples=8000),
            LevelSettings(spacing_mm=3.0, samples=12_000),
        )
    )
)
MOVED = motion(shift_xyz_mm=(12, -9, 7), rotation_xyz_deg=(3, -2, 4))
TODAY = PHANTOM.cbct(MOVED)


def answer(
    truth: RigidTransform = MOVED,
    *,
    settings: RegistrationSettings = QUICK,
    grid: Grid | None = None,
    planning: Volume = CT,
    start: RigidTransform | None = None,
) -> Registrations:
    return register_all(
        fixed=TODAY if (truth, grid) == (MOVED, None) else PHANTOM.cbct(truth, grid=grid),
        moving=planning,
        prior=ball(planning, np.array([10.0, 5.0, 0.0]), radius_mm=15),
        settings=settings,
        start=start,
    )


@functools.cache
def plain() -> Registrations:
    return answer()


def error_mm(found: RigidTransform, truth: RigidTransform) -> float:
    return float(target_errors_mm(found, truth, center_xyz_mm=np.zeros(3)).mean())


def test_a_known_motion_is_found_and_accepted() -> None:
    found = plain()
    assert error_mm(found.body.planning_from_cbct, MOVED) < 0.3
    assert found.quality.verdict is Verdict.ACCEPT, found.quality.reasons
    assert found.body.planning_from_cbct.source_frame == CBCT
    assert found.body.planning_from_cbct.target_frame == PLANNING


def test_body_and_target_agree_where_nothing_but_the_patient_moved() -> None:
    found = plain()
    assert found.target is not None
    assert error_mm(found.target.planning_from_cbct, MOVED) < 0.8
    assert found.apart_mm is not None
    assert found.apart_mm < 1.0


def test_a_translation_never_turns() -> None:
    shift = motion(shift_xyz_mm=(12, -9, 7), rotation_xyz_deg=(0, 0, 0))
    found = answer(shift).translation.planning_from_cbct
    np.testing.assert_array_equal(found.matrix[:3, :3], np.eye(3))
    assert error_mm(found, shift) < 0.3


def test_a_translation_does_not_turn_because_a_start_does() -> None:
    found = answer(start=MOVED).translation.planning_from_cbct
    np.testing.assert_array_equal(found.matrix[:3, :3], np.eye(3))
    assert error_mm(answer(start=MOVED).body.planning_from_cbct, MOVED) < 0.3


def test_a_start_that_makes_the_scans_less_alike_is_told_and_not_begun_from() -> None:
    far = motion(shift_xyz_mm=(30, -20, 25), rotation_xyz_deg=(0, 0, 0))
    right, wrong = (
        answer(far, start=far),
        answer(far, start=replace(far, matrix=far.inverse().matrix)),
    )
    assert error_mm(wrong.body.planning_from_cbct, far) < 0.3
    (told,) = [f for f in wrong.quality.figures if f.name == "given_start_behind"]
    assert told.verdict is Verdict.LOOK
    assert "the other way round" in told.reason
    assert "given_start_behind" not in {f.name for f in right.quality.figures}
    assert right.quality.verdict is Verdict.ACCEPT, "the shift is counted from what is known"


def test_a_start_that_a_person_gave_is_begun_from_however_it_fits() -> None:
    nowhere = motion(shift_xyz_mm=(-30, 20, -25), rotation_xyz_deg=(0, 0, 0))
    kept = register_all(
        fixed=TODAY, moving=CT, prior=PRIOR, settings=QUICK, start=nowhere, start_is_settled=True
    )
    assert "given_start_behind" not in {f.name for f in kept.quality.figures}


def test_plain_descent_ends_where_gauss_newton_does() -> None:
    scalar = replace(
        QUICK,
        rigid=replace(
            QUICK.rigid, descent=DescentSettings(preconditioner="scalar", iterations=150)
        ),
    )
    assert error_mm(answer(settings=scalar).body.planning_from_cbct, MOVED) < 0.5


def test_the_same_input_gives_the_same_matrix_to_the_last_bit() -> None:
    first, second = plain(), answer()
    for one, other in (
        (first.body, second.body),
        (first.translation, second.translation),
    ):
        np.testing.assert_array_equal(
            one.planning_from_cbct.matrix, other.planning_from_cbct.matrix
        )
    assert first.quality == second.quality


def test_oblique_cone_beams_and_uneven_planning_slices_change_nothing() -> None:
    turned = motion(shift_xyz_mm=(0, 0, 0), rotation_xyz_deg=(20, -35, 15)).matrix[:3, :3]
    grid = even_grid(extent_xyz_mm=(190, 190, 110), spacing_mm=3.0, direction=turned)
    offsets = np.cumsum([0.0, *np.tile([2.0, 4.0, 3.0], 20)])
    uneven = Grid(
        shape_zyx=(len(offsets), 67, 80),
        spacing_xy_mm=(3.0, 3.0),
        origin_xyz_mm=np.array([-118.5, -99.0, -90.0]),
        offsets_z_mm=offsets,
    )
    found = answer(grid=grid, planning=PHANTOM.planning_ct(uneven))
    assert error_mm(found.body.planning_from_cbct, MOVED) < 0.5


def test_coordinates_that_do_not_meet_are_overcome_but_never_accepted() -> None:
    far = RigidTransform.about(
        np.zeros(3),
        rotation=np.eye(3),
        translation_xyz_mm=np.array([900.0, -700.0, 1200.0]),
        source_frame=CBCT,
        target_frame=PLANNING,
    )
    grid = even_grid(
        extent_xyz_mm=(190, 190, 110), spacing_mm=3.0, center_xyz_mm=(-900.0, 700.0, -1200.0)
    )
    blind = answer(far, grid=grid)
    place = np.array([-900.0, 700.0, -1200.0])
    errors = target_errors_mm(blind.body.planning_from_cbct, far, center_xyz_mm=place)
    assert errors.mean() < 0.3
    assert blind.quality.verdict is Verdict.LOOK
    assert any("coordinates do not meet" in reason for reason in blind.quality.reasons)
    told = answer(far, grid=grid, start=far)
    assert told.quality.verdict is Verdict.ACCEPT, told.quality.reasons


def test_a_target_that_moved_against_the_bones_is_told_and_may_carry_the_prior() -> None:
    still = Phantom(seed=3)
    ct = still.planning_ct()
    moved = Phantom(seed=3)
    near = np.linalg.norm(moved.centers - [10, 5, 0], axis=1) < 48
    moved.centers[near] += [0.0, 0.0, -9.0]
    cbct = moved.cbct(motion(shift_xyz_mm=(0, 0, 0), rotation_xyz_deg=(0, 0, 0)))
    prior = ball(ct, np.array([10.0, 5.0, 0.0]), radius_mm=15)
    settings = replace(QUICK, focus="target")
    found = register_all(fixed=cbct, moving=ct, prior=prior, settings=settings)
    assert found.target is not None
    assert found.chosen is found.target
    (told,) = (f.value for f in found.quality.figures if f.name == "prior_in_view")
    assert told == found.target.quality.figure("prior_in_view"), "of the answer that carries it"
    assert found.apart_mm is not None
    assert found.apart_mm > 5
    shift = found.target.cbct_from_planning.translation_at(np.array([10.0, 5.0, 0.0]))
    assert shift[2] < -5
    assert found.quality.verdict is not Verdict.ACCEPT
    assert any("mm apart" in reason for reason in found.quality.reasons)


def test_a_prior_out_of_view_has_no_target_answer_and_is_rejected() -> None:
    tall = PHANTOM.planning_ct(even_grid(extent_xyz_mm=(240, 200, 400), spacing_mm=4.0))
    found = register_all(
        fixed=TODAY,
        moving=tall,
        prior=ball(tall, np.array([0.0, 0.0, 180.0]), radius_mm=12),
        settings=QUICK,
    )
    assert found.target is None
    assert found.rejected
    assert any("outside the CBCT's view" in reason for reason in found.quality.reasons)


def test_a_region_is_where_the_scans_are_compared() -> None:
    cbct = TODAY
    values = np.array(cbct.values)
    values[:, :32] = Phantom(seed=9).cbct(MOVED).values[:, :32]  # half of it shows someone else
    half = np.zeros(cbct.grid.shape_zyx, bool)
    half[:, 32:, :] = True
    found = register_all(
        fixed=cbct.with_values(values),
        moving=CT,
        prior=PRIOR,
        settings=QUICK,
        region=Mask(values=half, grid=cbct.grid, frame_of_reference=CBCT),
    )
    center = found.body.center_xyz_mm
    assert center[1] > 20
    there = found.body.planning_from_cbct.apply(center[None]) - MOVED.apply(center[None])
    assert np.linalg.norm(there) < 0.5
    assert error_mm(found.body.planning_from_cbct, MOVED) < 1.5


def test_scans_that_nowhere_meet_enough_are_rejected() -> None:
    """The planning CT shows too small a share of the field, wherever it is put."""
    tiny = PHANTOM.planning_ct(even_grid(extent_xyz_mm=(60, 60, 60), spacing_mm=3.0))
    found = register_all(
        fixed=TODAY, moving=tiny, prior=ball(tiny, np.zeros(3), radius_mm=12), settings=QUICK
    )
    assert found.rejected
    assert any("of the CBCT's field lies in" in reason for reason in found.quality.reasons)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["CBCT", "planning CT"])
def test_values_that_are_not_numbers_are_refused(value: float, which: str) -> None:
    scans = {"CBCT": TODAY, "planning CT": CT}
    values = np.array(scans[which].values)
    values[3, 3, 3] = value
    scans[which] = scans[which].with_values(values)
    with pytest.raises(InputError, match=f"{which} holds values that are not numbers"):
        register_all(fixed=scans["CBCT"], moving=scans["planning CT"], prior=PRIOR, settings=QUICK)


@pytest.mark.parametrize("which", ["CBCT", "planning CT"])
def test_a_constant_scan_is_refused(which: str) -> None:
    scans = {"CBCT": TODAY, "planning CT": CT}
    scans[which] = scans[which].with_values(np.zeros(scans[which].grid.shape_zyx))
    with pytest.raises(InputError, match=f"every voxel of the {which} has the same value"):
        register_all(fixed=scans["CBCT"], moving=scans["planning CT"], prior=PRIOR, settings=QUICK)


def test_too_small_a_field_of_view_is_refused() -> None:
    with pytest.raises(InputError, match=r"only .* places of the CBCT can be compared"):
        register_all(
            fixed=PHANTOM.cbct(MOVED, radius_mm=17), moving=CT, prior=PRIOR, settings=QUICK
        )


def test_what_belongs_to_other_scans_is_refused() -> None:
    cbct = TODAY
    with pytest.raises(FrameMismatchError):
        register_all(
            fixed=cbct,
            moving=CT,
            prior=replace(PRIOR, frame_of_reference="1.2.3.99"),
            settings=QUICK,
        )
    with pytest.raises(FrameMismatchError, match="does not lead from the CBCT"):
        register_all(fixed=cbct, moving=CT, prior=PRIOR, settings=QUICK, start=MOVED.inverse())
    with pytest.raises(FrameMismatchError, match="no frame of reference"):
        register_all(
            fixed=replace(cbct, frame_of_reference=""), moving=CT, prior=PRIOR, settings=QUICK
        )
