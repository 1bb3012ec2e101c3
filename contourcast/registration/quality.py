"""Whether a registration may carry a contour: figures, limits, and reasons in words.

The limits are `QualityLimits`; how they were chosen is in docs/decisions/0012-verdict-limits.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float

from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Mask, Volume, require_same_frame
from contourcast.registration.descent import descend_level
from contourcast.registration.local_ncc import Pose, correlation
from contourcast.registration.mirror import Mirror
from contourcast.registration.pair import Near, Pair, make_pair
from contourcast.registration.prior_region import PriorRegion
from contourcast.registration.sampling import sample
from contourcast.registration.settings import QualityLimits, RegistrationSettings

# What a right pair of one patient rarely spoils, and never two at once: decision 0012.
OF_IDENTITY: Final = ("lncc", "near_bone_lncc", "mirror_margin", "spread_mm")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What only the search knows; None where there was no search.

    Attributes:
        start_ratio: Height of the best coarse peak over the second.
        spread_mm: How far apart starts ended that did about as well as the best.
        blind: The positions of the two scans said nothing, so the shift cannot be judged.
        better_fit_mm: How far away from the answer a descent that begins there ends.
        mirror_margin: By how much the planning CT fits better than its left-right mirror image.
    """

    start_ratio: float | None = None
    spread_mm: float | None = None
    blind: bool = False
    better_fit_mm: float | None = None
    mirror_margin: float | None = None


def assess(
    *,
    fixed: Volume,
    moving: Volume,
    planning_from_cbct: RigidTransform,
    prior: Mask,
    settings: RegistrationSettings,
    reference: RigidTransform | None = None,
    device: str = "cpu",
) -> Quality:
    """Judges any rigid answer, wherever it came from.

    Args:
        fixed: The CBCT.
        moving: The planning CT.
        planning_from_cbct: The answer.
        prior: The contour to carry, on the planning CT.
        settings: All of registration.
        reference: What shift and angles are measured from; None: equal coordinates.
        device: ``cpu`` or ``cuda``.

    Raises:
        InputError: As `make_pair`.
        FrameMismatchError: Transform or prior do not belong to these scans.
    """
    require_same_frame(moving.frame_of_reference, prior.frame_of_reference)
    pair = make_pair(fixed=fixed, moving=moving, settings=settings, device=device)
    base = reference or RigidTransform.identity(
        source_frame=pair.cbct_frame, target_frame=pair.planning_frame
    )
    pose, start = pair.pose_of(planning_from_cbct), pair.pose_of(base)
    settled, value, _ = descend_level(pair, pose, level=settings.rigid.coarsest)
    evidence = Evidence(
        better_fit_mm=apart_mm(pair, pose, settled),
        mirror_margin=Mirror.of(pair, start).margin(pose, coarse=value),
    )
    return judge(pair, pose, PriorRegion.of(prior), base=start, evidence=evidence)


def judge(
    pair: Pair, pose: Pose, prior: PriorRegion, *, base: Pose, evidence: Evidence | None = None
) -> Quality:
    """All figures of a pose over the whole field of view."""
    evidence = evidence or Evidence()
    limits = pair.settings.limits
    likeness = compare(pair, pose)
    figures = (
        *_likeness_figures(likeness, limits),
        *_motion_figures(pose, base, limits, blind=evidence.blind),
        *_search_figures(evidence, limits),
        prior_in_view(pair, pose, prior),
    )
    return Quality(figures=(*figures, _identity_doubts(figures)))


def apart_mm(pair: Pair, first: Pose, second: Pose) -> float:
    """Mean distance of two answers, at six points on a sphere round the middle of the field."""
    radius = pair.settings.rigid.descent.rotation_radius_mm
    points = pair.center_xyz_mm + radius * np.concatenate((np.eye(3), -np.eye(3)))
    distances = np.linalg.norm(first.apply(points) - second.apply(points), axis=1)
    return float(distances.mean())


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How much CBCT and planning CT look alike at a pose; None: too few voxels to say."""

    overlap: float
    lncc: float | None
    near_bone_lncc: float | None
    near_bone_ncc: float | None
    near_bone_voxels: int


def compare(pair: Pair, pose: Pose, *, near: Near | None = None) -> Likeness:
    """Likeness at the spacing of the limits: over the core, or near the prior alone."""
    limits = pair.settings.limits
    places = pair.places(limits.spacing_mm, most=limits.samples, near=near)
    offsets, matrix = pair.offsets(places.points_xyz_mm), pose.world_from_offsets
    fixed, moving = places.normalised, pair.moving_level(limits.spacing_mm, pose)
    moving_values = sample(moving, offsets, matrix)
    moving_raw = sample(pair.moving[limits.spacing_mm], offsets, matrix)
    seen = torch.isfinite(moving_values) & torch.isfinite(moving_raw)
    bony = seen & (sample(pair.near_bone, offsets, matrix) > 0.5)
    enough = int(seen.sum()) >= limits.least_near_bone_voxels
    judged = int(bony.sum()) >= limits.least_near_bone_voxels
    return Likeness(
        overlap=float(torch.isfinite(moving_raw).double().mean()),
        lncc=correlation(fixed[seen], moving_values[seen]) if enough else None,
        near_bone_lncc=correlation(fixed[bony], moving_values[bony]) if judged else None,
        near_bone_ncc=correlation(places.raw[bony], moving_raw[bony]) if judged else None,
        near_bone_voxels=int(bony.sum()),
    )


def prior_in_view(pair: Pair, pose: Pose, prior: PriorRegion) -> Figure:
    """How much of the prior lies in the CBCT's field of view."""
    limit = pair.settings.limits.accept_prior_in_view
    words = f"accept ≥ {limit:g}, reject 0"
    if not len(prior.points_xyz_mm):
        return Figure(
            name="prior_in_view",
            value=None,
            limit=words,
            verdict=Verdict.LOOK,
            reason="the prior has no voxel on the planning CT",
        )
    depth = sample(pair.depth, pair.offsets(pose.back(prior.points_xyz_mm)), _from_offsets(pair))
    share = float((torch.nan_to_num(depth, nan=0.0) > 0).double().mean())
    verdict = Verdict.ACCEPT if share >= limit else Verdict.LOOK if share > 0 else Verdict.REJECT
    reason = "" if share >= limit else f"{1 - share:.0%} of the prior lies outside the CBCT's view"
    return Figure(name="prior_in_view", value=share, limit=words, verdict=verdict, reason=reason)


def _from_offsets(pair: Pair) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    matrix[:3, 3] = pair.center_xyz_mm
    return matrix


def _likeness_figures(likeness: Likeness, limits: QualityLimits) -> Sequence[Figure]:
    bone = _least(
        "near_bone_lncc",
        likeness.near_bone_lncc,
        limits.accept_near_bone_lncc,
        limits.reject_near_bone_lncc,
        "bones of CBCT and planning CT agree too little: local correlation near bone is {:.2f}",
    )
    if likeness.near_bone_lncc is None:
        bone = Figure(
            name="near_bone_lncc",
            value=None,
            limit=bone.limit,
            verdict=Verdict.LOOK,
            reason=f"only {likeness.near_bone_voxels} voxels lie near bone, too few to judge by",
        )
    return (
        _least(
            "overlap",
            likeness.overlap,
            limits.accept_overlap,
            limits.reject_overlap,
            "only a share of {:.2f} of the CBCT's field lies in the planning CT",
        ),
        _least(
            "lncc",
            likeness.lncc,
            limits.accept_lncc,
            limits.reject_lncc,
            "CBCT and planning CT look too little alike: local correlation is {:.2f}",
        ),
        bone,
        Figure(name="near_bone_ncc", value=likeness.near_bone_ncc),
    )


def _motion_figures(
    pose: Pose, base: Pose, limits: QualityLimits, *, blind: bool
) -> Sequence[Figure]:
    turned = RigidTransform.about(  # of cbct_from_planning, as the report states all rotations
        np.zeros(3),
        rotation=pose.rotation.T @ base.rotation,
        translation_xyz_mm=np.zeros(3),
        source_frame="from",
        target_frame="to",
    )
    angle = max(abs(a) for a in turned.euler_xyz_deg)
    shift = float(np.linalg.norm(pose.translation_xyz_mm - base.translation_xyz_mm))
    shifted = _most(
        "shift_mm",
        shift,
        limits.accept_shift_mm,
        limits.reject_shift_mm,
        "the patient is shifted by {:.0f} mm, more than set-up explains",
    )
    if blind:
        shifted = Figure(
            name="shift_mm",
            value=None,
            limit=shifted.limit,
            verdict=Verdict.LOOK,
            reason="the two scans' coordinates do not meet, so the shift cannot be judged; "
            "a registration object of the treatment machine would tell where to start",
        )
    return (
        shifted,
        _most(
            "angle_deg",
            angle,
            limits.accept_angle_deg,
            limits.reject_angle_deg,
            "the patient is turned by {:.1f}°, more than set-up explains",
        ),
        Figure(name="angle_x_deg", value=turned.euler_xyz_deg[0]),
        Figure(name="angle_y_deg", value=turned.euler_xyz_deg[1]),
        Figure(name="angle_z_deg", value=turned.euler_xyz_deg[2]),
    )


def _search_figures(evidence: Evidence, limits: QualityLimits) -> Sequence[Figure]:
    figures = []
    if evidence.mirror_margin is not None:
        figures.append(
            _least(
                "mirror_margin",
                evidence.mirror_margin,
                limits.accept_mirror_margin,
                0.0,
                "the planning CT's mirror image fits the CBCT as well or better "
                "(local correlation differs by {:+.2f}): left and right may be swapped, or it "
                "is another patient",
            )
        )
    if evidence.better_fit_mm is not None:
        figures.append(
            _most(
                "better_fit_mm",
                evidence.better_fit_mm,
                limits.accept_better_fit_mm,
                limits.reject_better_fit_mm,
                "the scans fit better {:.1f} mm away from this answer",
            )
        )
    if evidence.start_ratio is not None:
        figures.append(
            _least(
                "start_ratio",
                evidence.start_ratio,
                limits.accept_start_ratio,
                None,
                "another place fits nearly as well: the best start is {:.2f} times the second",
            )
        )
    if evidence.spread_mm is not None:
        figures.append(
            _most(
                "spread_mm",
                evidence.spread_mm,
                limits.accept_spread_mm,
                None,
                "several starts ended {:.1f} mm apart with nearly the same fit",
            )
        )
    return figures


def _identity_doubts(figures: Sequence[Figure]) -> Figure:
    """How many of the figures that another patient spoils are doubtful: one may be bad luck."""
    doubts = [f for f in figures if f.name in OF_IDENTITY and f.verdict is not Verdict.ACCEPT]
    return _most(
        "identity_doubts",
        len(doubts),
        1,
        1,
        "{:.0f} figures at once doubt that these scans are of one patient",
    )


def _least(
    name: str, value: float | None, accept: float, reject: float | None, sentence: str
) -> Figure:
    return _limited(name, value, accept, reject, sentence, sign=1)


def _most(
    name: str, value: float | None, accept: float, reject: float | None, sentence: str
) -> Figure:
    return _limited(name, value, accept, reject, sentence, sign=-1)


def _limited(
    name: str,
    value: float | None,
    accept: float,
    reject: float | None,
    sentence: str,
    *,
    sign: Literal[1, -1],
) -> Figure:
    """``sign`` +1: at least these limits; -1: at most. What cannot be computed is rejected."""
    at_least, less = ("≥", "<") if sign == 1 else ("≤", ">")
    words = f"accept {at_least} {accept:g}"
    if reject is not None:
        words += f", reject {less} {reject:g}"
    if value is None or not np.isfinite(value):
        return Figure(
            name=name,
            value=None,
            limit=words,
            verdict=Verdict.REJECT,
            reason=f"{name} cannot be computed: the two scans hardly meet",
        )
    if sign * value >= sign * accept:
        return Figure(name=name, value=value, limit=words)
    rejected = reject is not None and sign * value < sign * reject
    return Figure(
        name=name,
        value=value,
        limit=words,
        verdict=Verdict.REJECT if rejected else Verdict.LOOK,
        reason=sentence.format(value),
    )
