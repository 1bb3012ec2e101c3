"""DIR-T and DIR-L: a B-spline on top of the rigid registration, within a region of today's scan.

DIR-T looks at a box round the tumour, DIR-L at the lung that holds it. A deformation that folds
is never returned: it is tried again with a coarser grid, then with more bending, then DIR-T
stands in for DIR-L, and the rigid answer for both; the result says where it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from contourcast.imaging.errors import MethodError
from contourcast.imaging.grid import Grid, Points
from contourcast.imaging.transform import DeformableTransform, Displacement, RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Mask, Volume
from contourcast.registration.elastix import Pair, run_elastix
from contourcast.registration.field_of_view import depth_in_view
from contourcast.registration.folding import folding, folding_figures
from contourcast.registration.lungs import Lung, as_image, closed_by, grown_by, lungs
from contourcast.registration.pyramid import average, full_resolution
from contourcast.registration.result import Carriage
from contourcast.registration.sampling import Image, affine, sample
from contourcast.registration.settings import (
    BSplineSettings,
    DeformableSettings,
    RegistrationSettings,
)

DIR_T: Final = "dir-t"
DIR_L: Final = "dir-l"
RIGID: Final = "rigid"


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """Where a deformation is looked for.

    Attributes:
        mask: On the working grid, in the CBCT's frame of reference.
        notes: What is to be said of it, a sentence each.
    """

    mask: Mask
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What both methods look at: today's scan, the planning CT, the prior and the rigid answer."""

    fixed: Volume
    moving: Volume
    prior: Mask
    planning_from_cbct: RigidTransform
    settings: RegistrationSettings

    @property
    def deformable(self) -> DeformableSettings:
        """The settings of this file."""
        return self.settings.deformable

    @cached_property
    def fixed_image(self) -> Image:
        """Today's scan as a tensor."""
        return full_resolution(self.fixed, device="cpu")

    @cached_property
    def depth(self) -> Image:
        """How deep in the field of view each place of today's scan lies, mm."""
        return depth_in_view(self.fixed_image, self.settings.rigid.field_of_view)

    @cached_property
    def moving_image(self) -> Image:
        """The planning CT as a tensor."""
        return full_resolution(self.moving, device="cpu")

    @cached_property
    def prior_image(self) -> Image:
        """The prior as a tensor, 1 inside and 0 outside."""
        mask = self.prior
        return full_resolution(
            Volume(
                values=mask.values.astype(np.float32),
                grid=mask.grid,
                frame_of_reference=mask.frame_of_reference,
            ),
            device="cpu",
        )


def dir_t(scene: Scene) -> Carriage:
    """A deformation of the box round the tumour.

    Raises:
        MethodError: elastix failed or is missing, or the box is out of view.
    """
    bspline = scene.deformable.dir_t
    attempts = _stiffened(DIR_T, partial(box_round_prior, scene), bspline, scene.deformable)
    return _first_without_folds(DIR_T, scene, tuple(attempts))


def dir_l(scene: Scene) -> Carriage:
    """A deformation of the lung that holds the tumour.

    Raises:
        MethodError: elastix failed or is missing, no lung is found, or it is out of view.
    """
    bspline = scene.deformable.dir_l
    region = lung_with_prior(scene)
    attempts = (
        *_stiffened(DIR_L, lambda: region, bspline, scene.deformable),
        Attempt(step=DIR_T, region=partial(box_round_prior, scene), bspline=scene.deformable.dir_t),
    )
    return _first_without_folds(DIR_L, scene, attempts)


# The ladder ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One rung: where to look and how stiff to be."""

    step: str
    region: Callable[[], Region]
    bspline: BSplineSettings


def _stiffened(
    method: str,
    region: Callable[[], Region],
    bspline: BSplineSettings,
    settings: DeformableSettings,
) -> Iterator[Attempt]:
    """As set, on a coarser grid, and on that grid with more bending."""
    coarser = replace(bspline, grid_mm=bspline.grid_mm * settings.coarser_grid)
    stiffer = replace(coarser, bending_weight=bspline.bending_weight * settings.stiffer_bending)
    yield Attempt(step=method, region=region, bspline=bspline)
    yield Attempt(step=f"{method}, grid {coarser.grid_mm:g} mm", region=region, bspline=coarser)
    yield Attempt(
        step=f"{method}, grid {stiffer.grid_mm:g} mm, bending {stiffer.bending_weight:g}",
        region=region,
        bspline=stiffer,
    )


def _first_without_folds(method: str, scene: Scene, attempts: Sequence[Attempt]) -> Carriage:
    """The first attempt that does not fold; the rigid answer when all do."""
    folded: list[str] = []
    limits = scene.deformable.folding
    for attempt in attempts:
        region = attempt.region()
        displacement, program = deform(scene, region.mask, attempt.bspline, method=method)
        measured = folding(displacement, region.mask)
        if not measured.jacobian_min > 0:  # so that what is no number is a fold
            folded.append(
                f"{attempt.step} folded: Jacobian determinant down to {measured.jacobian_min:.2f}, "
                f"{100 * measured.folded_fraction:.2g} % of the region"
            )
            continue
        carried = DeformableTransform(rigid=scene.planning_from_cbct, displacement=displacement)
        return Carriage(
            planning_from_cbct=carried,
            quality=Quality(
                figures=(
                    *folding_figures(measured, limits),
                    Figure(
                        name="prior_volume_after_over_before", value=_volume_ratio(scene, carried)
                    ),
                    _fallback(method, attempt.step, len(folded)),
                )
            ),
            ended_as=attempt.step if folded else "",
            notes=(*folded, *region.notes, f"found by {program}"),
        )
    return Carriage(
        planning_from_cbct=scene.planning_from_cbct,
        quality=Quality(figures=(_fallback(method, RIGID, len(folded)),)),
        ended_as=RIGID,
        notes=tuple(folded),
    )


def _fallback(method: str, step: str, folded: int) -> Figure:
    """Another method's answer under this one's name deserves a look."""
    same = step.startswith(method)
    return Figure(
        name="folded_attempts",
        value=float(folded),
        limit=f"accept what {method} itself ends on",
        verdict=Verdict.ACCEPT if same else Verdict.LOOK,
        reason="" if same else f"every deformation of {method} folded: this is the {step} answer",
    )


def _volume_ratio(scene: Scene, carried: DeformableTransform) -> float | None:
    """Volume of the prior where it is carried to, over its volume on the planning CT."""
    grid = carried.displacement.grid
    before = scene.prior.volume_cc
    if not before:
        return None
    points = torch.as_tensor(carried.apply(grid.centers()), dtype=torch.float32)
    share = sample(scene.prior_image, points, np.eye(4)).nan_to_num()
    return float(share.sum()) * float(grid.voxel_cc[0, 0, 0]) / before


# One deformation ----------------------------------------------------------------------------------


def deform(
    scene: Scene, region: Mask, bspline: BSplineSettings, *, method: str
) -> tuple[Displacement, str]:
    """The displacement of a region of today's scan, blended to nothing outside it.

    Returns:
        The displacement on the region's grid, and the program that found it.

    Raises:
        MethodError: elastix failed or is missing, or next to nothing of the region is in view.
    """
    settings = scene.deformable
    grid = region.grid
    pair = working_pair(scene, region)
    observed_cc = float(pair.region.sum()) * float(grid.voxel_cc[0, 0, 0])
    if observed_cc < settings.least_region_cc:
        raise MethodError(
            f"{method} failed: {observed_cc:.1f} cc of its region are seen by both scans, "
            f"{settings.least_region_cc:g} cc are needed",
            remedy="check that the tumour lies within the field of view of the CBCT",
        )
    found = run_elastix(pair, bspline, settings, method=method)
    vectors = found.displacement(grid.shape_zyx, pair.spacing_mm) @ grid.direction.T
    outside_mm = ndimage.distance_transform_edt(~region.values, sampling=grid.spacing_zyx_mm)
    weight = np.clip(1 - outside_mm / settings.blend_mm, 0, 1)[..., None]
    return (
        Displacement(
            values_xyz_mm=vectors * weight, grid=grid, frame_of_reference=region.frame_of_reference
        ),
        found.version,
    )


def working_pair(scene: Scene, region: Mask) -> Pair:
    """Both scans on the working grid, the planning CT where the rigid registration puts it."""
    settings = scene.deformable
    grid = region.grid
    world_from_index = affine(grid)
    fixed = _on(grid, scene.fixed_image, world_from_index, settings.spacing_mm)
    moving = _on(
        grid,
        scene.moving_image,
        scene.planning_from_cbct.matrix @ world_from_index,
        settings.spacing_mm,
    )

    def clipped(values: Float[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y x"]:
        shown: np.ndarray = np.nan_to_num(values, nan=settings.lowest_hu)
        return shown.clip(settings.lowest_hu, settings.highest_hu)

    return Pair(
        fixed=clipped(fixed),
        moving=clipped(moving),
        region=region.values & np.isfinite(fixed) & np.isfinite(moving),
        moving_observed=np.isfinite(moving),
        spacing_mm=settings.spacing_mm,
    )


def _on(
    grid: Grid, image: Image, world_from_index: Float[np.ndarray, "4 4"], spacing_mm: float
) -> Float[np.ndarray, "z y x"]:
    """An image at the voxels of a grid, averaged first where it is much finer; NaN outside.

    Args:
        grid: Whose voxels.
        image: Of any resolution.
        world_from_index: Takes an index (column, row, slice) of the grid into the image's frame.
        spacing_mm: Of the grid.
    """
    nz, ny, nx = grid.shape_zyx
    corners = np.array([[i, j, k] for k in (0, nz) for j in (0, ny) for i in (0, nx)], float)
    world = corners @ world_from_index[:3, :3].T + world_from_index[:3, 3]
    part = average(image.crop(world, margin_mm=2 * spacing_mm), spacing_mm=spacing_mm / 2)
    return sample(part, _index_points(grid), world_from_index).numpy().reshape(grid.shape_zyx)


def _index_points(grid: Grid) -> torch.Tensor:
    """Column, row and slice of every voxel, in array order, shape (n, 3)."""
    k, j, i = torch.meshgrid(*(torch.arange(n) for n in grid.shape_zyx), indexing="ij")
    return torch.stack((i, j, k), dim=-1).reshape(-1, 3).float()


# Regions ------------------------------------------------------------------------------------------


def box_round_prior(scene: Scene) -> Region:
    """The box round the rigidly carried prior and a margin, cut by the field of view.

    Raises:
        MethodError: The prior is empty, or the box lies outside the field of view.
    """
    prior = _prior_in_cbct(scene, DIR_T)
    margin_mm = scene.deformable.box_margin_mm
    grid = working_grid(scene, prior, margin_mm=margin_mm, method=DIR_T)
    around, places = _in_cbct_axes(scene, prior), _in_cbct_axes(scene, grid.centers())
    low, high = around.min(axis=0) - margin_mm, around.max(axis=0) + margin_mm
    inside = ((places >= low) & (places <= high)).all(axis=1).reshape(grid.shape_zyx)
    return Region(mask=_in_view(scene, grid, inside))


def lung_with_prior(scene: Scene) -> Region:
    """The lung that holds the prior, or the nearer one and the prior beside it, cut by the field.

    Raises:
        MethodError: The prior is empty, no lung is found, or it lies outside the field of view.
    """
    if scene.prior.is_empty:
        raise _no_prior(DIR_L)
    settings = scene.deformable
    planning = average(scene.moving_image, spacing_mm=settings.lungs.spacing_mm)
    prior = _holds_half(average(scene.prior_image, spacing_mm=settings.lungs.spacing_mm))
    found = lungs(planning, settings.lungs)
    if not found:
        raise MethodError(
            f"{DIR_L} failed: the planning CT shows no lung of "
            f"{settings.lungs.least_lung_cc:g} cc or more",
            remedy="use dir-t, which needs no lung",
        )
    lung, share = _holding(prior, found, planning)
    if share >= settings.lungs.least_prior_share:
        united = closed_by(lung.inside | prior, planning, settings.lungs.closing_mm)
        notes = (f"the {lung.side} lung ({lung.volume_cc:.0f} cc) holds the prior",)
    else:
        united = lung.inside | grown_by(prior, planning, settings.beside_lung_margin_mm)
        notes = (
            f"{100 * share:.0f} % of the prior lie in the {lung.side} lung, the nearer one: it is "
            f"united with the prior and {settings.beside_lung_margin_mm:g} mm round it",
        )
    region = as_image(grown_by(united, planning, settings.lung_margin_mm), planning)
    k, j, i = np.nonzero(region.values.numpy())
    cbct_from_planning = scene.planning_from_cbct.inverse()
    places = cbct_from_planning.apply(planning.world(np.column_stack((i, j, k)).astype(float)))
    grid = working_grid(scene, places, method=DIR_L)
    world_from_index = scene.planning_from_cbct.matrix @ affine(grid)
    share_at = sample(region, _index_points(grid), world_from_index).nan_to_num().numpy()
    return Region(mask=_in_view(scene, grid, share_at.reshape(grid.shape_zyx) >= 0.5), notes=notes)


def _holds_half(share: Image) -> Bool[np.ndarray, "z y x"]:
    """Voxels of which half is prior; those that hold any of it where it is too small for that."""
    values: np.ndarray = share.values.numpy()
    return values >= 0.5 if (values >= 0.5).any() else values > 0


def _holding(
    prior: Bool[np.ndarray, "z y x"], found: Sequence[Lung], image: Image
) -> tuple[Lung, float]:
    """The lung with most of the prior, or else the nearer one; and the prior's share in it."""
    shares = [float(lung.inside[prior].mean()) for lung in found]
    if max(shares) > 0:
        most = int(np.argmax(shares))
        return found[most], shares[most]
    away = [
        ndimage.distance_transform_edt(~lung.inside, sampling=image.spacing_xyz_mm[::-1])
        for lung in found
    ]
    nearest = int(np.argmin([float(distance[prior].min()) for distance in away]))
    return found[nearest], 0.0


def _prior_in_cbct(scene: Scene, method: str) -> Points:
    """The voxels of the rigidly carried prior, in the CBCT's frame."""
    if scene.prior.is_empty:
        raise _no_prior(method)
    k, j, i = np.nonzero(scene.prior.values)
    planning = scene.prior.grid.world(np.column_stack((i, j, k)))
    return scene.planning_from_cbct.inverse().apply(planning)


def _no_prior(method: str) -> MethodError:
    return MethodError(
        f"{method} failed: no voxel centre of the planning CT lies in the prior",
        remedy="check that the prior is drawn on this planning CT",
    )


def _in_cbct_axes(scene: Scene, points_xyz_mm: Points) -> Points:
    """Mm along the axes of today's scan, from its first voxel."""
    grid = scene.fixed.grid
    local: Points = (points_xyz_mm - grid.origin_xyz_mm) @ grid.direction
    return local


def working_grid(
    scene: Scene, places_xyz_mm: Points, *, margin_mm: float = 0.0, method: str
) -> Grid:
    """Even voxels along the axes of today's scan: round places of it, in view, with some room.

    Raises:
        MethodError: Nothing lies within the field of view.
    """
    around = _in_cbct_axes(scene, places_xyz_mm)
    low_mm, high_mm = around.min(axis=0) - margin_mm, around.max(axis=0) + margin_mm
    settings = scene.deformable
    nz, ny, nx = scene.depth.values.shape
    ends = np.array([[-0.5, -0.5, -0.5], [nx - 0.5, ny - 0.5, nz - 0.5]])
    field = _in_cbct_axes(scene, scene.depth.world(ends))
    low = np.maximum(low_mm, field.min(axis=0))
    high = np.minimum(high_mm, field.max(axis=0))
    if (low >= high).any() or not bool((scene.depth.values > 0).any()):
        raise MethodError(
            f"{method} failed: its region lies outside the field of view of the CBCT",
            remedy="check that the tumour lies within the field of view of the CBCT",
        )
    low, high = low - settings.room_mm, high + settings.room_mm
    shape = np.ceil((high - low) / settings.spacing_mm).astype(int) + 1
    cbct = scene.fixed.grid
    return Grid.even(
        shape_zyx=(int(shape[2]), int(shape[1]), int(shape[0])),
        spacing_xyz_mm=[settings.spacing_mm] * 3,
        origin_xyz_mm=cbct.origin_xyz_mm + cbct.direction @ low,
        direction=cbct.direction,
    )


def _in_view(scene: Scene, grid: Grid, inside: Bool[np.ndarray, "z y x"]) -> Mask:
    """The part of it that lies deep enough in the field of view."""
    depth = sample(scene.depth, _index_points(grid), affine(grid)).nan_to_num().numpy()
    eroded = depth.reshape(grid.shape_zyx) >= scene.settings.rigid.field_of_view.erosion_mm
    return Mask(
        values=inside & eroded, grid=grid, frame_of_reference=scene.fixed.frame_of_reference
    )
