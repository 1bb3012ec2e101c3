"""The lungs of a planning CT: air within the body, in two parts that lie side by side.

For the planning CT alone, whose Hounsfield units hold; a cone beam's do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from contourcast.registration.sampling import Image
from contourcast.registration.settings import LungSettings

Side = Literal["left", "right"]
Region = Bool[np.ndarray, "z y x"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lung:
    """One lung, closed over its vessels.

    Attributes:
        inside: On the voxels of the image it was found in, ``[z, y, x]``.
    """

    side: Side
    inside: Region
    volume_cc: float


def lungs(planning_ct: Image, settings: LungSettings) -> tuple[Lung, ...]:
    """The lungs in view, none to two, the larger first.

    Args:
        planning_ct: HU on blocks of about ``settings.spacing_mm``, slices axial, NaN where
            nothing was observed.
        settings: What counts as air, as body and as a lung.
    """
    hu = planning_ct.values.cpu().numpy()
    tissue = hu >= settings.air_hu  # what was not observed is none
    air = ~tissue & _body(tissue, planning_ct, settings)
    air &= ~_gas(air, hu, settings)
    middle_x_mm = _center_x_mm(tissue, planning_ct)
    found = []
    parts = _side_by_side(air, planning_ct, settings)
    wholes = [closed_by(part, planning_ct, settings.closing_mm) for part in parts]
    between = np.logical_and.reduce(wholes) if len(wholes) == 2 else np.zeros_like(air)
    for part, whole in zip(parts, wholes, strict=True):
        closed = whole & ~(between & ~part)  # what lies between both belongs to neither
        found.append(
            Lung(
                side="left" if _center_x_mm(closed, planning_ct) > middle_x_mm else "right",
                inside=closed,
                volume_cc=float(closed.sum() * np.prod(planning_ct.spacing_xyz_mm) / 1000),
            )
        )
    large = [lung for lung in found if lung.volume_cc >= settings.least_lung_cc]
    return tuple(sorted(large, key=lambda lung: -lung.volume_cc))


def closed_by(region: Region, image: Image, radius_mm: float) -> Region:
    """Closed by a ball, and filled."""
    box = _box(region, image, 0.0)
    reach = _voxels(image, radius_mm)
    padded = np.pad(region[box], [(r, r) for r in reach])
    grown = _distance(~padded, image) <= radius_mm
    closed = (_distance(grown, image) > radius_mm) | padded
    whole = np.zeros_like(region)
    whole[box] = ndimage.binary_fill_holes(closed)[tuple(slice(r, -r) for r in reach)]
    return whole


def grown_by(region: Region, image: Image, radius_mm: float) -> Region:
    """With all that lies within a distance of it."""
    if not region.any():
        return region
    box = _box(region, image, radius_mm)
    grown = np.zeros_like(region)
    grown[box] = _distance(~region[box], image) <= radius_mm
    return grown


def _distance(region: Region, image: Image) -> Float[np.ndarray, "z y x"]:
    """How far each voxel lies from the nearest one outside, mm."""
    distance: np.ndarray = ndimage.distance_transform_edt(
        region, sampling=image.spacing_xyz_mm[::-1]
    )
    return distance


def _voxels(image: Image, length_mm: float) -> list[int]:
    """So many voxels reach at least this far, along z, y and x."""
    return [int(np.ceil(length_mm / s)) + 1 for s in image.spacing_xyz_mm[::-1]]


def _box(region: Region, image: Image, margin_mm: float) -> tuple[slice, ...]:
    """The voxels round a region, cut to the image."""
    (found,) = ndimage.find_objects(region.view(np.uint8)) or (None,)
    if found is None:
        return tuple(slice(0, n) for n in region.shape)
    return tuple(
        slice(max(side.start - reach, 0), side.stop + reach)
        for side, reach in zip(found, _voxels(image, margin_mm), strict=True)
    )


def _body(tissue: Region, image: Image, settings: LungSettings) -> Region:
    """The largest piece of tissue without thin shells, slice by slice with what it encloses."""
    half_mm = settings.thinnest_body_mm / 2
    core = _largest(_distance(tissue, image) > half_mm)
    trunk = tissue & grown_by(core, image, half_mm + float(image.spacing_xyz_mm.max()))
    around, _ = ndimage.label(~trunk, structure=_IN_PLANE)
    rim = np.concatenate([around[:, [0, -1], :].ravel(), around[:, :, [0, -1]].ravel()])
    outside: Region = np.isin(around, np.unique(rim[rim > 0]))
    return ~outside


_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def _largest(region: Region) -> Region:
    labels, n = ndimage.label(region)
    if n == 0:
        return region
    largest: Region = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return largest


def _gas(air: Region, hu: Float[np.ndarray, "z y x"], settings: LungSettings) -> Region:
    """Connected parts that are darker than any lung as a whole."""
    labels, n = ndimage.label(air)
    if n == 0:
        return air
    numbers = np.arange(1, n + 1)
    dark = ndimage.median(hu, labels, numbers) < settings.gas_hu
    gas: Region = np.isin(labels, numbers[dark])
    return gas


def _side_by_side(air: Region, image: Image, settings: LungSettings) -> tuple[Region, ...]:
    """Two parts apart along x, eroded until they part; one when they never do."""
    depth = _distance(air, image)
    for erosion_mm in settings.erosions_mm:
        labels, n = ndimage.label(depth > erosion_mm)
        if n < 2:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        first, second = 1 + np.argsort(sizes)[::-1][:2]
        seeds = (labels == first, labels == second)
        apart_mm = abs(_center_x_mm(seeds[0], image) - _center_x_mm(seeds[1], image))
        if (
            sizes[second - 1] >= settings.least_share_of_larger * sizes[first - 1]
            and apart_mm >= settings.least_apart_mm
        ):
            return _grown_back(air, seeds, image)
    one = _largest(air)
    return (one,) if one.any() else ()


def _grown_back(air: Region, seeds: tuple[Region, Region], image: Image) -> tuple[Region, ...]:
    """Each voxel of the air that holds a seed goes to the nearer seed."""
    labels, _ = ndimage.label(air)
    held = np.isin(labels, np.unique(labels[seeds[0] | seeds[1]]))
    box = _box(held, image, 0.0)
    nearer_first = np.zeros_like(air)
    nearer_first[box] = _distance(~seeds[0][box], image) <= _distance(~seeds[1][box], image)
    return held & nearer_first, held & ~nearer_first


def _center_x_mm(region: Region, image: Image) -> float:
    """Mean LPS x of a region, larger further left; of nothing, the middle of the image."""
    if not region.any():
        return float(image.world((image.size_xyz[None] - 1) / 2)[0, 0])
    index_ijk = np.array([np.nonzero(region)[axis].mean() for axis in (2, 1, 0)])
    return float(image.world(index_ijk[None])[0, 0])


def as_image(region: Region, image: Image) -> Image:
    """A region as numbers, 1 inside and 0 outside, on the voxels it was found on."""
    return image.with_values(torch.as_tensor(region.astype(np.float32)))
