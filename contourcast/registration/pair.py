"""The two scans of a registration, made ready to be compared at any pose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from contourcast.imaging.errors import FrameMismatchError, InputError
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume
from contourcast.registration.field_of_view import depth_at, depth_in_view
from contourcast.registration.local_ncc import LocalNcc, Pose, box_sum, normalise
from contourcast.registration.prior_region import PriorRegion
from contourcast.registration.pyramid import full_resolution, pyramid
from contourcast.registration.sampling import Image, sample
from contourcast.registration.settings import QualityLimits, RegistrationSettings

# Coarse levels have settled within this of where finer ones end (pancreas and thorax pairs,
# benchmarks/rigid.py); farther parts of the planning CT are not normalised.
FINE_REACH_MM = 40.0
OVERLAP_PLACES = 20_000  # a share is known to 0.4 % then


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Voxels of the CBCT that are compared.

    Attributes:
        points_xyz_mm: Their centres, LPS mm in the CBCT's frame.
        normalised: Their locally normalised values.
        raw: Their clipped values, HU.
    """

    points_xyz_mm: Float[np.ndarray, "n 3"]
    normalised: Float[Tensor, " n"]
    raw: Float[Tensor, " n"]

    def where(self, chosen: Bool[np.ndarray, " n"]) -> Places:
        """Some of them."""
        flat = torch.as_tensor(np.flatnonzero(chosen), device=self.raw.device)
        return Places(
            points_xyz_mm=self.points_xyz_mm[chosen],
            normalised=self.normalised[flat],
            raw=self.raw[flat],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Near:
    """The prior's surroundings, where a pose puts them."""

    prior: PriorRegion
    pose: Pose
    margin_mm: float

    def holds(self, cbct_xyz_mm: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Which points of the CBCT are in them."""
        return self.prior.near(self.pose.apply(cbct_xyz_mm), margin_mm=self.margin_mm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """CBCT and planning CT as pyramids, and where the CBCT may be compared.

    Attributes:
        fixed: The CBCT at each spacing (mm), clipped, cut to its field of view and NaN outside
            it; not normalised.
        moving: The planning CT at each spacing, clipped, whole; not normalised.
        depth: How deep places lie in the CBCT's field of view, mm.
        core: 1 where samples may lie: deep enough, and in the region asked for; on depth's grid.
        center_xyz_mm: Mean of the core: the point that rotations turn about.
    """

    fixed: dict[float, Image]
    moving: dict[float, Image]
    depth: Image
    core: Image
    center_xyz_mm: Float[np.ndarray, " 3"]
    settings: RegistrationSettings
    cbct_frame: str
    planning_frame: str

    @property
    def longest_voxel_mm(self) -> float:
        """The longest side of the CBCT's own voxels."""
        return float(np.linalg.norm(self.depth.world_from_index[:3, :3], axis=0).max())

    @cached_property
    def coarse_mm(self) -> float:
        """Spacing of the coarsest level."""
        return max(self.fixed)

    @cached_property
    def near_bone(self) -> Image:
        """1 at bone of the planning CT and close to it, at the spacing of the limits."""
        limits = self.settings.limits
        return near_bone(self.moving[limits.spacing_mm], limits)

    @cached_property
    def _normalised_fixed(self) -> dict[float, Image]:
        return {}

    @cached_property
    def _places(self) -> dict[tuple[float, int], Places]:
        return {}

    @cached_property
    def _normalised_moving(self) -> dict[float, tuple[Image, Float[np.ndarray, "8 3"]]]:
        return {}

    def fixed_level(self, spacing_mm: float) -> Image:
        """The CBCT, locally normalised."""
        if spacing_mm not in self._normalised_fixed:
            self._normalised_fixed[spacing_mm] = normalise(
                self.fixed[spacing_mm], self.settings.rigid.local_ncc
            )
        return self._normalised_fixed[spacing_mm]

    def moving_level(self, spacing_mm: float, pose: Pose) -> Image:
        """The planning CT, locally normalised; of fine levels only what is near this pose."""
        corners = pose.apply(_corners(self.depth))
        kept = self._normalised_moving.get(spacing_mm)
        near = kept is not None and np.abs(kept[1] - corners).max() <= FINE_REACH_MM
        if kept is not None and (spacing_mm == self.coarse_mm or near):
            return kept[0]
        image = self.moving[spacing_mm]
        if spacing_mm != self.coarse_mm:
            margin = FINE_REACH_MM + self.settings.rigid.local_ncc.radius_mm
            image = image.crop(corners, margin_mm=margin)
        level = normalise(image, self.settings.rigid.local_ncc)
        self._normalised_moving[spacing_mm] = level, corners
        return level

    def places(self, spacing_mm: float, *, most: int, near: Near | None = None) -> Places:
        """Voxels of a level that lie in the core, at most so many; the same at every call."""
        key = (spacing_mm, most)
        if near is None and key in self._places:
            return self._places[key]
        image, raw = self.fixed_level(spacing_mm), self.fixed[spacing_mm]
        if near is not None:
            box = near.pose.back(near.prior.points_xyz_mm)
            image, raw = (i.crop(box, margin_mm=near.margin_mm) for i in (image, raw))
        inside = (depth_at(self.core, image) > 0) & torch.isfinite(image.values)
        chosen = inside.flatten().nonzero()[:, 0].cpu().numpy()
        if near is not None:
            chosen = chosen[near.holds(image.centers(chosen))]
        if len(chosen) > most:
            draw = np.random.default_rng(self.settings.rigid.seed)
            chosen = np.sort(draw.choice(chosen, most, replace=False))
        flat = torch.as_tensor(chosen, device=image.values.device)
        places = Places(
            points_xyz_mm=image.centers(chosen),
            normalised=image.values.flatten()[flat],
            raw=raw.values.flatten()[flat],
        )
        if near is None:
            self._places[key] = places
        return places

    def metric(self, spacing_mm: float, pose: Pose, places: Places) -> LocalNcc:
        """Local NCC over these places, for poses near this one."""
        return LocalNcc(
            offsets_xyz_mm=self.offsets(places.points_xyz_mm),
            fixed=places.normalised,
            moving=self.moving_level(spacing_mm, pose),
            least_overlap=self.settings.rigid.start.least_overlap,
            rotation_radius_mm=self.settings.rigid.descent.rotation_radius_mm,
        )

    def offsets(self, points_xyz_mm: Float[np.ndarray, "n 3"]) -> Float[Tensor, "n 3"]:
        """Relative to the centre: small numbers, on the device."""
        return torch.as_tensor(
            points_xyz_mm - self.center_xyz_mm,
            dtype=torch.float32,
            device=self.depth.values.device,
        )

    def mirrored(self, *, spacings_mm: Iterable[float]) -> Pair:
        """The same CBCT with the left-right mirror image of the planning CT, at these alone."""
        images = {mm: _mirrored(self.moving[mm]) for mm in spacings_mm}
        twin = replace(self, moving=images)
        twin._places.update(self._places)
        twin._normalised_fixed.update(self._normalised_fixed)
        return twin

    def overlap(self, pose: Pose) -> float:
        """Share of the core that lies in the planning CT."""
        points = self.places(self.coarse_mm, most=OVERLAP_PLACES).points_xyz_mm
        moving = sample(self.moving[self.coarse_mm], self.offsets(points), pose.world_from_offsets)
        return float(torch.isfinite(moving).double().mean())

    def pose_of(self, planning_from_cbct: RigidTransform) -> Pose:
        """That transform, about this pair's centre.

        Raises:
            FrameMismatchError: It does not lead from this CBCT to this planning CT.
        """
        if (planning_from_cbct.source_frame, planning_from_cbct.target_frame) != (
            self.cbct_frame,
            self.planning_frame,
        ):
            raise FrameMismatchError(
                "the transform does not lead from the CBCT to the planning CT",
                tag="(0020,0052) Frame of Reference UID",
                uid=f"{planning_from_cbct.source_frame} to {planning_from_cbct.target_frame}",
                remedy="use the registration object of these two series",
            )
        return Pose.of(planning_from_cbct, center_xyz_mm=self.center_xyz_mm)


def near_bone(image: Image, limits: QualityLimits) -> Image:
    """1 at bone and within a box of ``near_bone_mm`` round it, else 0."""
    bone = (torch.nan_to_num(image.values, nan=-1000.0) > limits.bone_hu).to(image.values.dtype)
    reach = np.round(limits.near_bone_mm / image.spacing_xyz_mm).astype(int)[::-1]
    return image.with_values((box_sum(bone, reach) > 0.5).to(bone.dtype))


def make_pair(
    *,
    fixed: Volume,
    moving: Volume,
    settings: RegistrationSettings,
    device: str,
    region: Mask | None = None,
) -> Pair:
    """Reads both scans once: field of view, pyramids, the places to compare.

    Args:
        fixed: The CBCT.
        moving: The planning CT.
        settings: All of registration.
        device: ``cpu`` or ``cuda``.
        region: On the CBCT's grid: compare here alone. None: the whole field of view.

    Raises:
        InputError: A scan holds NaN or one value, or too little of the CBCT can be compared.
        FrameMismatchError: A scan states no frame of reference.
    """
    for volume, name in ((fixed, "CBCT"), (moving, "planning CT")):
        _require_usable(volume, name)
    rigid = settings.rigid
    spacings = tuple({*(level.spacing_mm for level in rigid.levels), settings.limits.spacing_mm})
    full = full_resolution(fixed, device=device)
    depth = depth_in_view(full, rigid.field_of_view)
    core = (depth.values >= rigid.field_of_view.erosion_mm).float()
    if region is not None:
        region.require_same_place(fixed)
        core = core * _region_on(depth, region)
    zyx = core.nonzero().cpu().numpy()
    voxels = len(zyx)
    if voxels < rigid.least_samples:
        raise InputError(
            f"only {voxels} places of the CBCT can be compared, at least "
            f"{rigid.least_samples} are needed",
            remedy="send a CBCT whose reconstructed field is larger",
        )
    return Pair(
        fixed={
            spacing: _within_view(image, depth)
            for spacing, image in _clipped_pyramid(full, settings, spacings).items()
        },
        moving=_clipped_pyramid(full_resolution(moving, device=device), settings, spacings),
        depth=depth,
        core=depth.with_values(core),
        center_xyz_mm=depth.world(zyx[:, ::-1].astype(float)).mean(axis=0),
        settings=settings,
        cbct_frame=fixed.frame_of_reference,
        planning_frame=moving.frame_of_reference,
    )


def _clipped_pyramid(
    full: Image, settings: RegistrationSettings, spacings: tuple[float, ...]
) -> dict[float, Image]:
    clip = settings.rigid.local_ncc
    clipped = full.with_values(full.values.clamp_(clip.lowest_hu, clip.highest_hu))
    return pyramid(clipped, spacings_mm=spacings)


def _within_view(image: Image, depth: Image) -> Image:
    """Cut to the field of view; NaN outside it."""
    cut = image.crop(_corners(depth), margin_mm=0.0)
    return cut.with_values(cut.values.where(depth_at(depth, cut) > 0, torch.nan))


def _corners(depth: Image) -> Float[np.ndarray, "8 3"]:
    """Outer corners of the field of view's box."""
    ends = [(-0.5, size - 0.5) for size in depth.size_xyz]
    return depth.world(np.array([[i, j, k] for k in ends[2] for j in ends[1] for i in ends[0]]))


def _mirrored(image: Image) -> Image:
    left_right = int(np.abs(image.world_from_index[0, :3]).argmax())
    return image.with_values(image.values.flip(2 - left_right))


def _region_on(depth: Image, region: Mask) -> Float[Tensor, "z y x"]:
    """1 where the region holds the centre of a voxel of ``depth``."""
    nz, ny, nx = depth.values.shape
    k, j, i = np.meshgrid(np.arange(nz), np.arange(ny), np.arange(nx), indexing="ij")
    world = depth.world(np.column_stack((i.ravel(), j.ravel(), k.ravel())).astype(float))
    index = np.round(region.grid.index(world)).astype(int)[:, ::-1]
    inside = ((index >= 0) & (index < region.grid.shape_zyx)).all(axis=1)
    values = np.zeros(len(index), np.float32)
    values[inside] = region.values[tuple(index[inside].T)]
    return torch.as_tensor(values.reshape(nz, ny, nx), device=depth.values.device)


def _require_usable(volume: Volume, name: str) -> None:
    uid = volume.source.series_instance_uid if volume.source else ""
    lowest, highest = float(volume.values.min()), float(volume.values.max())
    if not np.isfinite([lowest, highest]).all():
        raise InputError(
            f"the {name} holds values that are not numbers",
            tag="(7FE0,0010) Pixel Data",
            uid=uid,
            remedy="export the series again",
        )
    if lowest == highest:
        raise InputError(
            f"every voxel of the {name} has the same value",
            tag="(7FE0,0010) Pixel Data",
            uid=uid,
            remedy="export the series again",
        )
    if not volume.frame_of_reference:
        raise FrameMismatchError(
            f"the {name} states no frame of reference",
            tag="(0020,0052) Frame of Reference UID",
            uid=uid,
            remedy="export the series with its frame of reference",
        )
