"""By how much the planning CT fits better than its own left-right mirror image.

A body is nearly symmetric: bones of a mirrored patient fit well (near-bone local NCC up to 0.46 in
benchmarks/never_silently_wrong.py), and so do the bones of a stranger of the same build (up to
0.65). Only the comparison tells: what makes somebody nobody else is what is not symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from contourcast.registration.descent import descend_level
from contourcast.registration.fft_start import start_poses
from contourcast.registration.local_ncc import NOTHING, Pose, correlation
from contourcast.registration.pair import Pair
from contourcast.registration.sampling import sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Mirror:
    """The mirror image, where it fits best.

    Attributes:
        pair: The CBCT and the planning CT as it is.
        pose: Where the mirror image fits best on the coarsest level; None: nowhere.
        coarse: Local NCC there.
    """

    pair: Pair
    pose: Pose | None
    coarse: float

    @classmethod
    def of(cls, pair: Pair, base: Pose) -> Mirror:
        """Sought among the shifts of ``base``, as the planning CT itself is."""
        twin = pair.mirrored(spacings_mm=[pair.coarse_mm])
        rigid = pair.settings.rigid
        starts = start_poses(
            twin.fixed[twin.coarse_mm],
            twin.core,
            twin.moving[twin.coarse_mm],
            base,
            range_mm=rigid.start.range_mm,
            settings=rigid.start,
            local_ncc=rigid.local_ncc,
        )
        if not starts:
            return cls(pair=pair, pose=None, coarse=NOTHING)
        pose, value, _ = descend_level(twin, starts[0].pose, level=rigid.coarsest)
        return cls(pair=pair, pose=pose, coarse=value)

    def margin(self, pose: Pose, *, coarse: float) -> float:
        """How much more the planning CT looks like the CBCT: difference of local NCC.

        On the coarsest level, which is enough for most pairs; where it is not, at the spacing of
        the limits, where what two people do not share is seen.

        Args:
            pose: Of the planning CT, the answer that is judged.
            coarse: Its local NCC on the coarsest level.
        """
        margin = coarse - self.coarse
        told = not 0 <= margin < self.pair.settings.limits.closer_mirror_margin
        return margin if told or self.pose is None else _lncc(self.pair, pose) - self._closely

    @cached_property
    def _closely(self) -> float:
        """Local NCC at the spacing of the limits, after a descent through the levels to it."""
        pose, settings = self.pose, self.pair.settings
        assert pose is not None
        finest_mm = settings.limits.spacing_mm
        levels = [
            level
            for level in settings.rigid.levels
            if finest_mm <= level.spacing_mm < self.pair.coarse_mm
        ]
        twin = self.pair.mirrored(spacings_mm={finest_mm, *(each.spacing_mm for each in levels)})
        for level in levels:
            pose, _, _ = descend_level(twin, pose, level=level)
        return _lncc(twin, pose)


def _lncc(pair: Pair, pose: Pose) -> float:
    limits = pair.settings.limits
    places = pair.places(limits.spacing_mm, most=limits.samples)
    offsets = pair.offsets(places.points_xyz_mm)
    level = pair.moving_level(limits.spacing_mm, pose)
    moving = sample(level, offsets, pose.world_from_offsets)
    seen = torch.isfinite(moving)
    return correlation(places.normalised[seen], moving[seen])
