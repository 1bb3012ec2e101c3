"""Where the planning CT is today: translation and rigid registration (REGISTRATION §5).

Every shift is tried at once on coarse volumes; from the best of them, and from what is known,
gradient descent climbs the local NCC through the levels of a pyramid. The last of the rigid answer
is decided by that half of the field that one motion explains best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Mask, Volume, require_same_frame
from contourcast.registration.consensus import agreed, blocks_at
from contourcast.registration.descent import RIGID, TRANSLATION, descend, descend_level
from contourcast.registration.fft_start import start_poses
from contourcast.registration.local_ncc import Pose
from contourcast.registration.mirror import Mirror
from contourcast.registration.pair import Near, Pair, make_pair
from contourcast.registration.prior_region import PriorRegion
from contourcast.registration.quality import (
    Evidence,
    apart_mm,
    compare,
    judge,
    prior_in_view,
)
from contourcast.registration.result import LevelLog, Registration, Registrations
from contourcast.registration.settings import RegistrationSettings

# Ways to lay one scan upon the other, in words.
_GIVEN: Final = "as it says"
_NONE: Final = "equal coordinates"
_BACK: Final = "the same the other way round"


def register_all(
    *,
    fixed: Volume,
    moving: Volume,
    prior: Mask,
    settings: RegistrationSettings,
    start: RigidTransform | None = None,
    start_is_settled: bool = False,
    device: str = "cpu",
    region: Mask | None = None,
) -> Registrations:
    """All answers to where the planning CT is in today's CBCT, with what speaks for them.

    Args:
        fixed: Today's CBCT.
        moving: The planning CT.
        prior: The contour to carry, on the planning CT.
        settings: All numbers.
        start: ``planning_from_cbct`` as it is known so far, such as the treatment machine's. One
            that fits much worse than equal coordinates, or than its own inverse, is not begun from.
        start_is_settled: It is, however it fits: a person put the planning CT there.
        device: ``cpu`` or ``cuda``.
        region: On the CBCT's grid: compare here alone. None: the whole field of view.

    Raises:
        InputError: A scan cannot be registered at all (`make_pair`).
        FrameMismatchError: Prior or start do not belong to these scans.
    """
    require_same_frame(moving.frame_of_reference, prior.frame_of_reference)
    place = PriorRegion.of(prior)
    pair = make_pair(fixed=fixed, moving=moving, settings=settings, device=device, region=region)
    given, doubt = _given(pair, start, settled=start_is_settled)
    base, blind = _base(pair, given)
    starts = _starts(pair, base, blind=blind)
    body, quality = _body(pair, place, base, starts, blind=blind)
    upright, shifts = _unturned(pair, base, starts, blind=blind)
    shifted = _finest(pair, _coarse(pair, shifts.poses, free=TRANSLATION), free=TRANSLATION)
    target = _target(pair, place, body)
    return _gathered(
        pair,
        place,
        body=_registration(pair, body, quality),
        target=target,
        translation=_registration(pair, shifted, judge(pair, shifted.pose, place, base=upright)),
        doubts=doubt,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """Where a descent ended."""

    pose: Pose
    value: float
    log: tuple[LevelLog, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Starts:
    """Poses to descend from, and by how much the best shift stands out."""

    poses: tuple[Pose, ...]
    ratio: float | None


def _given(
    pair: Pair, start: RigidTransform | None, *, settled: bool
) -> tuple[RigidTransform | None, tuple[Figure, ...]]:
    """The start, if it may be begun from; and what is to be said of one that may not.

    Makers differ in which image a registration moves; what tells is whether the images look more
    alike by it (CLINICAL_SERVICE §2.3).
    """
    if start is None or settled:
        return start, ()
    settings = pair.settings.rigid.start
    same = RigidTransform.identity(source_frame=pair.cbct_frame, target_frame=pair.planning_frame)
    turned = replace(same, matrix=start.inverse().matrix)
    ways = {_GIVEN: start, _NONE: same, _BACK: turned}
    poses = {words: pair.pose_of(way) for words, way in ways.items()}
    level = pair.settings.rigid.levels[0]
    places = pair.places(level.spacing_mm, most=level.samples)
    fits = {w: pair.metric(level.spacing_mm, pose, places).value(pose) for w, pose in poses.items()}
    best = max(fits, key=lambda words: fits[words])
    behind = fits[best] - fits[_GIVEN]
    if behind <= settings.worse_lncc:
        return start, ()
    return None, (
        Figure(
            name="given_start_behind",
            value=behind,
            limit=f"accept ≤ {settings.worse_lncc:g}",
            verdict=Verdict.LOOK,
            reason="the registration that is known of these scans makes them look less alike than "
            f"{best}: it was not begun from",
        ),
    )


def _base(pair: Pair, start: RigidTransform | None) -> tuple[Pose, bool]:
    """What shifts are counted from, and whether that is a blind guess: centre upon centre."""
    if start is not None:
        return pair.pose_of(start), False
    same = RigidTransform.identity(source_frame=pair.cbct_frame, target_frame=pair.planning_frame)
    pose = pair.pose_of(same)
    if pair.overlap(pose) >= pair.settings.rigid.start.least_overlap:
        return pose, False
    whole = pair.moving[pair.coarse_mm]
    middle = whole.world((whole.size_xyz - 1)[None] / 2)[0]
    return replace(pose, translation_xyz_mm=middle - pair.center_xyz_mm), True


def _starts(pair: Pair, base: Pose, *, blind: bool) -> _Starts:
    """The best shifts of the base, and the base itself when none of them is near it."""
    settings = pair.settings.rigid.start
    found = start_poses(
        pair.fixed[pair.coarse_mm],
        pair.core,
        pair.moving[pair.coarse_mm],
        base,
        range_mm=settings.blind_range_mm if blind else settings.range_mm,
        settings=settings,
        local_ncc=pair.settings.rigid.local_ncc,
    )
    ratio = None
    if found:
        second = found[1].peak if len(found) > 1 else 0.0
        ratio = max(found[0].peak, 0.0) / max(second, 0.1 * abs(found[0].peak), 1e-6)
    high = [s.pose for s in found if s.peak >= settings.least_peak_share * found[0].peak]
    apart = [np.linalg.norm(p.translation_xyz_mm - base.translation_xyz_mm) for p in high]
    alone = min(apart, default=np.inf) >= settings.peak_distance_mm
    return _Starts(poses=(*high, base) if alone else tuple(high), ratio=ratio)


def _body(
    pair: Pair, prior: PriorRegion, base: Pose, starts: _Starts, *, blind: bool
) -> tuple[_Answer, Quality]:
    """The rigid answer of the whole field; turned starts only when the first is not accepted."""
    coarse = _coarse(pair, starts.poses, free=RIGID)
    answer = _agreed(pair, _finest(pair, coarse, free=RIGID))
    mirror = Mirror.of(pair, base)

    def judged() -> Quality:
        evidence = Evidence(
            start_ratio=starts.ratio,
            spread_mm=_spread(pair, coarse),
            blind=blind,
            mirror_margin=mirror.margin(answer.pose, coarse=max(a.value for a in coarse)),
        )
        return judge(pair, answer.pose, prior, base=base, evidence=evidence)

    quality = judged()
    if quality.verdict is Verdict.ACCEPT:
        return answer, quality
    turned = [
        pose
        for rotated in _turned(base, pair.settings.rigid.start.rotation_deg)
        for pose in _starts(pair, rotated, blind=blind).poses[:1]
    ]
    best = max(a.value for a in coarse)
    coarse = [*coarse, *_coarse(pair, turned, free=RIGID)]
    if max(a.value for a in coarse) > best:
        answer = _agreed(pair, _finest(pair, coarse, free=RIGID))
    return answer, judged()


def _turned(base: Pose, angle_deg: float) -> list[Pose]:
    vectors = [sign * np.radians(angle_deg) * axis for axis in np.eye(3) for sign in (1, -1)]
    return [
        replace(base, rotation=Rotation.from_rotvec(v).as_matrix() @ base.rotation) for v in vectors
    ]


def _coarse(pair: Pair, poses: Sequence[Pose], *, free: int) -> list[_Answer]:
    """A descent at the coarsest level from each pose."""
    return [_descended(pair, pose, free=free, levels=slice(0, 1)) for pose in poses]


def _finest(pair: Pair, coarse: Sequence[_Answer], *, free: int) -> _Answer:
    """The best of them, on through the finer levels."""
    best = max(coarse, key=lambda answer: answer.value)
    fine = _descended(pair, best.pose, free=free, levels=slice(1, None))
    return replace(fine, log=(*best.log, *fine.log))


def _descended(pair: Pair, pose: Pose, *, free: int, levels: slice) -> _Answer:
    value, logs = -1.0, []
    for level in pair.settings.rigid.levels[levels]:
        pose, value, log = descend_level(pair, pose, level=level, free=free)
        logs.append(log)
    return _Answer(pose=pose, value=value, log=tuple(logs))


def _agreed(pair: Pair, answer: _Answer) -> _Answer:
    """On from there by the blocks of the field that agree with one another, and then by them alone.

    Fewer blocks than are needed to tell, no two kinds of them, or nearly the same place: the answer
    as it is.
    """
    settings = pair.settings.rigid
    consensus, radius = settings.consensus, settings.descent.rotation_radius_mm
    level = settings.levels[-1]
    places = pair.places(level.spacing_mm, most=level.samples)
    pose = answer.pose
    chosen = np.ones(len(places.points_xyz_mm), bool)
    for _ in range(consensus.rounds):
        blocks = blocks_at(
            pair.metric(level.spacing_mm, pose, places),
            pose,
            settings=consensus,
            descent=settings.descent,
            longest_mm=settings.descent.longest_step_voxels * level.spacing_mm,
        )
        if len(blocks) < consensus.least_blocks:
            return answer
        found = agreed(blocks, pose, share=consensus.share, rotation_radius_mm=radius)
        pose = pose.moved(found.step, rotation_radius_mm=radius)
        chosen = blocks.samples_of(found.agreeing)
        if np.abs(found.step).max() < settings.descent.shortest_step_voxels * level.spacing_mm:
            break
    if found.contrast < consensus.least_contrast:
        return answer
    pose, value, log = descend(
        pair.metric(level.spacing_mm, pose, places.where(chosen)),
        pose,
        free=RIGID,
        settings=settings.descent,
        spacing_mm=level.spacing_mm,
    )
    least_mm = consensus.least_move_voxels * pair.longest_voxel_mm
    if apart_mm(pair, pose, answer.pose) < least_mm:
        return answer
    return _Answer(pose=pose, value=value, log=(*answer.log, log))


def _spread(pair: Pair, answers: Sequence[_Answer]) -> float:
    """Largest distance to the best answer of those within 5 % of its metric, mm at 60 mm."""
    best = max(answers, key=lambda answer: answer.value)
    near = [a for a in answers if a.value >= best.value - 0.05 * abs(best.value)]
    return max(apart_mm(pair, a.pose, best.pose) for a in near)


def _target(pair: Pair, prior: PriorRegion, body: _Answer) -> Registration | None:
    """The answer of the prior's surroundings, begun at the body's and never far from it."""
    settings = pair.settings.rigid
    centroid = prior.centroid_xyz_mm
    if centroid is None:
        return None
    home = body.pose
    near = Near(prior=prior, pose=home, margin_mm=settings.target.margin_mm)
    found = [
        pair.places(level.spacing_mm, most=level.samples, near=near) for level in settings.levels
    ]
    if len(found[-1].points_xyz_mm) < settings.least_samples:
        return None

    def allowed(pose: Pose) -> bool:
        return _distance(pose, home, centroid) <= settings.target.farthest_mm and (
            _angle_deg(pose, home) <= settings.target.farthest_deg
        )

    pose, value, logs = home, -1.0, []
    for level, places in zip(settings.levels, found, strict=True):
        pose, value, log = descend(
            pair.metric(level.spacing_mm, pose, places),
            pose,
            free=RIGID,
            settings=settings.descent,
            spacing_mm=level.spacing_mm,
            allowed=allowed,
        )
        logs.append(log)
    answer = _Answer(pose=pose, value=value, log=tuple(logs))
    return _registration(pair, answer, _target_quality(pair, near, centroid, answer))


def _target_quality(
    pair: Pair, near: Near, centroid_xyz_mm: Float[np.ndarray, " 3"], answer: _Answer
) -> Quality:
    """Likeness round the prior, whether it is in view, and whether the answer hit its bounds."""
    limits, bounds = pair.settings.limits, pair.settings.rigid.target
    lncc = compare(pair, answer.pose, near=near).lncc
    before = compare(pair, near.pose, near=near).lncc
    moved = _distance(answer.pose, near.pose, centroid_xyz_mm)
    turned = _angle_deg(answer.pose, near.pose)
    bounded = moved > 0.95 * bounds.farthest_mm or turned > 0.95 * bounds.farthest_deg
    weak = lncc is None or lncc < limits.accept_lncc
    return Quality(
        figures=(
            Figure(
                name="target_lncc",
                value=lncc,
                limit=f"accept ≥ {limits.accept_lncc:g}",
                verdict=Verdict.LOOK if weak else Verdict.ACCEPT,
                reason=(
                    "round the prior CBCT and planning CT look too little alike: "
                    f"local correlation is {lncc or 0.0:.2f}"
                    if weak
                    else ""
                ),
            ),
            Figure(name="target_lncc_by_body", value=before),
            Figure(
                name="target_from_body_deg",
                value=turned,
                limit=f"at most {bounds.farthest_mm:g} mm and {bounds.farthest_deg:g}°",
                verdict=Verdict.LOOK if bounded else Verdict.ACCEPT,
                reason=(
                    "round the prior the best fit lies farther from the body's than is allowed"
                    if bounded
                    else ""
                ),
            ),
            prior_in_view(pair, answer.pose, near.prior),
        )
    )


def _registration(pair: Pair, answer: _Answer, quality: Quality) -> Registration:
    return Registration(
        planning_from_cbct=answer.pose.transform(
            cbct_frame=pair.cbct_frame, planning_frame=pair.planning_frame
        ),
        quality=quality,
        center_xyz_mm=pair.center_xyz_mm,
        log=answer.log,
    )


def _gathered(
    pair: Pair,
    prior: PriorRegion,
    *,
    body: Registration,
    target: Registration | None,
    translation: Registration,
    doubts: Sequence[Figure],
) -> Registrations:
    """All of them, and what body and target together say."""
    focus = pair.settings.focus
    figures = [*body.quality.figures, *doubts]
    apart = None
    if target is not None:
        centroid = prior.centroid_xyz_mm
        assert centroid is not None
        places = [r.cbct_from_planning.apply(centroid[None])[0] for r in (body, target)]
        apart = float(np.linalg.norm(places[0] - places[1]))
        limit = pair.settings.limits.accept_apart_mm
        figures.append(
            Figure(
                name="body_target_apart_mm",
                value=apart,
                limit=f"accept ≤ {limit:g}",
                verdict=Verdict.LOOK if apart > limit else Verdict.ACCEPT,
                reason=(
                    f"bones and the prior's surroundings want answers {apart:.0f} mm apart"
                    if apart > limit
                    else ""
                ),
            )
        )
        if focus == "target":
            # the prior is carried by the target's answer, so what that one says of it counts
            told = {figure.name for figure in target.quality.figures}
            figures = [f for f in figures if f.name not in told] + [*target.quality.figures]
    elif focus == "target":
        figures.append(
            Figure(
                name="target_lncc",
                value=None,
                verdict=Verdict.LOOK,
                reason="too little of the prior's surroundings is in view: the body's answer "
                "carries the prior",
            )
        )
    return Registrations(
        body=body,
        target=target,
        translation=translation,
        focus=focus,
        apart_mm=apart,
        quality=Quality(figures=tuple(figures)),
    )


def _unturned(pair: Pair, base: Pose, starts: _Starts, *, blind: bool) -> tuple[Pose, _Starts]:
    """The same where nothing is turned, whatever a start says: a translation is one alone."""
    if np.allclose(base.rotation, np.eye(3), atol=1e-12, rtol=0):
        return base, starts
    upright = replace(base, rotation=np.eye(3))
    return upright, _starts(pair, upright, blind=blind)


def _distance(first: Pose, second: Pose, planning_xyz_mm: Float[np.ndarray, " 3"]) -> float:
    """How far apart two poses put a point of the planning CT into the CBCT."""
    places = [pose.back(planning_xyz_mm[None])[0] for pose in (first, second)]
    return float(np.linalg.norm(places[0] - places[1]))


def _angle_deg(first: Pose, second: Pose) -> float:
    between = Rotation.from_matrix(first.rotation @ second.rotation.T)
    return float(np.degrees(between.magnitude()))
