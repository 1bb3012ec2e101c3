from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Quality, Verdict
from contourcast.imaging.volume import Mask, Volume
from contourcast.propagate import prior_mask
from contourcast.registration.quality import _limited, assess
from contourcast.registration.rigid import register_all
from contourcast.registration.settings import LevelSettings, RegistrationSettings, RigidSettings
from support.analytic_phantom import CBCT, PLANNING, Phantom, motion
from support.virtual_cbct import ball
from support.virtual_patients import phantom_course

SETTINGS = RegistrationSettings(
    rigid=RigidSettings(levels=(LevelSettings(spacing_mm=6.0, samples=8000),))
)
PHANTOM = Phantom()
CT = PHANTOM.planning_ct()
TRUTH = motion(shift_xyz_mm=(5, -4, 3), rotation_xyz_deg=(1, -2, 2))
TODAY = PHANTOM.cbct(TRUTH)
PRIOR = ball(CT, np.array([10.0, 5.0, 0.0]), radius_mm=15)


def judged(
    *,
    shift_xyz_mm: tuple[float, float, float] = (0, 0, 0),
    turn_deg: tuple[float, float, float] = (0, 0, 0),
    moving: Volume = CT,
    prior: Mask = PRIOR,
    settings: RegistrationSettings = SETTINGS,
) -> Quality:
    """The verdict on an answer that is off by this much; nothing is optimised."""
    off = RigidTransform.about(
        np.zeros(3),
        rotation=Rotation.from_rotvec(np.radians(turn_deg)).as_matrix(),
        translation_xyz_mm=np.array(shift_xyz_mm),
        source_frame=CBCT,
        target_frame=CBCT,
    )
    return assess(
        fixed=TODAY,
        moving=moving,
        planning_from_cbct=TRUTH @ off,
        prior=prior,
        settings=settings,
    )


def test_the_truth_is_accepted() -> None:
    quality = judged()
    assert quality.verdict is Verdict.ACCEPT, quality.reasons
    assert quality.reasons == ()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_ten_millimetres_off_is_never_accepted(axis: int, sign: int) -> None:
    shift = [0.0, 0.0, 0.0]
    shift[axis] = 10.0 * sign
    assert judged(shift_xyz_mm=tuple(shift)).verdict is not Verdict.ACCEPT  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", range(3))
def test_a_mirrored_patient_is_never_accepted(axis: int) -> None:
    mirrored = CT.with_values(np.flip(CT.values, axis))
    assert judged(moving=mirrored).verdict is Verdict.REJECT


def test_a_nearly_symmetric_patient_who_is_mirrored_is_told_by_comparison() -> None:
    symmetric = Phantom()
    half = len(symmetric.centers) // 2
    symmetric.centers[half:] = symmetric.centers[:half] * [-1, 1, 1] + [0, 3, 3]
    symmetric.radii[half:], symmetric.hu[half:] = symmetric.radii[:half], symmetric.hu[:half]
    ct = symmetric.planning_ct()
    cbct = symmetric.cbct(TRUTH)
    margins = []
    for moving in (ct, ct.with_values(np.flip(ct.values, 2))):
        quality = assess(
            fixed=cbct, moving=moving, planning_from_cbct=TRUTH, prior=PRIOR, settings=SETTINGS
        )
        margins.append(quality.figure("mirror_margin") or 0.0)
    assert margins[0] > 0.1
    assert margins[1] < -0.1
    assert any("left and right may be swapped" in reason for reason in quality.reasons)
    assert quality.verdict is Verdict.REJECT


def test_a_stranger_of_the_same_build_fits_little_better_than_a_mirror_image() -> None:
    """Likeness of bones, starts and motion were all accepted: only what nobody shares tells."""
    (own, _), (stranger, _) = phantom_course(600_001), phantom_course(600_004)
    judged = {
        who: register_all(
            fixed=scanned.cbct,
            moving=own.planning_ct,
            prior=prior_mask(own),
            settings=RegistrationSettings(),
        ).quality
        for who, scanned in (("own", own), ("stranger", stranger))
    }
    margins = {who: quality.figure("mirror_margin") or 0.0 for who, quality in judged.items()}
    assert judged["own"].verdict is Verdict.ACCEPT, judged["own"].reasons
    assert judged["stranger"].verdict is Verdict.LOOK
    assert "it is another patient" in " ".join(judged["stranger"].reasons)
    assert margins["own"] > 2 * margins["stranger"]


def test_an_answer_tells_how_far_away_the_scans_fit_better() -> None:
    assert (judged().figure("better_fit_mm") or 0) < 0.5
    assert judged(shift_xyz_mm=(0, 0, 6)).figure("better_fit_mm") == pytest.approx(6, abs=0.5)


def test_little_overlap_is_named() -> None:
    nz = CT.grid.shape_zyx[0]
    cut = nz * 2 // 3
    part = Volume(
        values=CT.values[cut:],
        grid=CT.grid.crop((cut, 0, 0), CT.grid.shape_zyx),
        frame_of_reference=PLANNING,
    )
    quality = judged(moving=part)
    assert (quality.figure("overlap") or 0) < 0.30
    assert quality.verdict is Verdict.REJECT
    assert any("of the CBCT's field lies in the planning CT" in r for r in quality.reasons)


def test_shift_and_angle_are_measured_at_the_middle_of_the_field() -> None:
    quality = judged()
    assert quality.figure("shift_mm") == pytest.approx(np.linalg.norm([5, -4, 3]), abs=0.3)
    turned = TRUTH.inverse().euler_xyz_deg  # as the report states it, of cbct_from_planning
    assert quality.figure("angle_x_deg") == pytest.approx(turned[0], abs=1e-6)
    assert quality.figure("angle_z_deg") == pytest.approx(turned[2], abs=1e-6)


def test_what_is_no_number_is_not_accepted() -> None:
    quality = judged()
    lncc = next(f for f in quality.figures if f.name == "lncc")
    assert lncc.verdict is Verdict.ACCEPT
    for sign in (1, -1):
        found = _limited("lncc", float("nan"), 0.4, 0.2, "{}", sign=sign)
        assert (found.value, found.verdict) == (None, Verdict.REJECT)


@pytest.mark.parametrize(
    ("limit", "value", "figure"),
    [
        ("accept_shift_mm", 5.0, "shift_mm"),
        ("accept_angle_deg", 1.0, "angle_deg"),
        ("accept_lncc", 0.99, "lncc"),
        ("accept_near_bone_lncc", 0.99, "near_bone_lncc"),
        ("accept_overlap", 1.01, "overlap"),
        ("accept_prior_in_view", 1.01, "prior_in_view"),
    ],
)
def test_every_limit_is_obeyed_and_gives_a_reason(limit: str, value: float, figure: str) -> None:
    stricter = replace(SETTINGS, limits=replace(SETTINGS.limits, **{limit: value}))  # type: ignore[arg-type]
    quality = judged(settings=stricter)
    assert quality.verdict is Verdict.LOOK
    (told,) = [f for f in quality.figures if f.reason]
    assert told.name == figure
    assert "accept" in told.limit


def test_two_figures_that_another_patient_spoils_are_a_rejection_together() -> None:
    one = replace(SETTINGS.limits, accept_lncc=0.99)
    assert judged(settings=replace(SETTINGS, limits=one)).verdict is Verdict.LOOK
    two = replace(one, accept_near_bone_lncc=0.99)
    quality = judged(settings=replace(SETTINGS, limits=two))
    assert quality.figure("identity_doubts") == 2
    assert quality.verdict is Verdict.REJECT
    assert "doubt that these scans are of one patient" in quality.reasons[0]


def test_a_share_of_the_prior_outside_the_view_is_told() -> None:
    quality = judged(prior=ball(CT, np.array([75.0, 0.0, 0.0]), radius_mm=15))
    assert 0 < (quality.figure("prior_in_view") or 0) < 0.99
    assert any("of the prior lies outside the CBCT's view" in r for r in quality.reasons)


def test_a_prior_without_voxels_is_told() -> None:
    nothing = PRIOR.with_values(np.zeros(CT.grid.shape_zyx, bool))
    quality = judged(prior=nothing)
    assert quality.verdict is Verdict.LOOK
    assert "the prior has no voxel on the planning CT" in quality.reasons


def test_too_little_bone_is_at_best_worth_a_look() -> None:
    settings = replace(SETTINGS, limits=replace(SETTINGS.limits, bone_hu=5000.0))
    quality = judged(settings=settings)
    assert quality.figure("near_bone_lncc") is None
    assert quality.verdict is Verdict.LOOK
    assert any("near bone, too few" in reason for reason in quality.reasons)


def test_the_scale_of_a_cone_beam_does_not_matter() -> None:
    plain = judged().figure("lncc")
    other = assess(
        fixed=TODAY.with_values(np.where(TODAY.values == -1000, -1000, 0.7 * TODAY.values - 100)),
        moving=CT,
        planning_from_cbct=TRUTH,
        prior=PRIOR,
        settings=SETTINGS,
    ).figure("lncc")
    assert other == pytest.approx(plain, abs=0.03)
