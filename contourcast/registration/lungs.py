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
    spacing_zyx_mm = planning_ct.spacing_xyz_mm[::-1]
    hu = planning_ct.values.cpu().numpy()
    air = ~(hu >= settings.air_hu)  # what was not observed is no tissue
    air &= _body(~air, spacing_zyx_mm, settings)
    air &= ~_gas(air, hu, settings)
    found = []
    for part in _side_by_side(air, planning_ct, settings):
        closed = closed_by(part, spacing_zyx_mm, settings.closing_mm)
        volume_cc = float(closed.sum() * np.prod(spacing_zyx_mm) / 1000)
        if volume_cc >= settings.least_lung_cc:
            found.append((closed, volume_cc))
    middle_x_mm = _body_middle_x_mm(hu >= settings.air_hu, planning_ct)
    return tuple(
        Lung(
            side="left" if _center_x_mm(closed, planning_ct) > middle_x_mm else "right",
            inside=closed,
            volume_cc=volume_cc,
        )
        for closed, volume_cc in found
    )


def closed_by(region: Region, spacing_zyx_mm: Float[np.ndarray, " 3"], radius_mm: float) -> Region:
    """Closed by a ball, and filled."""
    reach = [int(np.ceil(radius_mm / s)) + 1 for s in spacing_zyx_mm]
    padded = np.pad(region, [(r, r) for r in reach])
    grown = grown_by(padded, spacing_zyx_mm, radius_mm)
    closed = ndimage.distance_transform_edt(grown, sampling=spacing_zyx_mm) > radius_mm
    filled: Region = ndimage.binary_fill_holes(closed | padded)
    return filled[tuple(slice(r, -r) for r in reach)]


def grown_by(region: Region, spacing_zyx_mm: Float[np.ndarray, " 3"], radius_mm: float) -> Region:
    """With all that lies within a distance of it."""
    if not region.any():
        return region
    grown: Region = ndimage.distance_transform_edt(~region, sampling=spacing_zyx_mm) <= radius_mm
    return grown


def _body(
    tissue: Region, spacing_zyx_mm: Float[np.ndarray, " 3"], settings: LungSettings
) -> Region:
    """The largest piece of tissue without thin shells, slice by slice with what it encloses."""
    half = settings.thinnest_body_mm / 2
    core = ndimage.distance_transform_edt(tissue, sampling=spacing_zyx_mm) > half
    trunk = grown_by(_largest(core), spacing_zyx_mm, half + float(spacing_zyx_mm.max()))
    trunk &= tissue
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
    spacing_zyx_mm = image.spacing_xyz_mm[::-1]
    depth = ndimage.distance_transform_edt(air, sampling=spacing_zyx_mm)
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
            return _grown_back(air, seeds, spacing_zyx_mm)
    one = _largest(air)
    return (one,) if one.any() else ()


def _grown_back(
    air: Region, seeds: tuple[Region, Region], spacing_zyx_mm: Float[np.ndarray, " 3"]
) -> tuple[Region, ...]:
    """Each voxel of the air that holds a seed goes to the nearer seed."""
    labels, _ = ndimage.label(air)
    held = np.isin(labels, np.unique(labels[seeds[0] | seeds[1]]))
    nearer_first = ndimage.distance_transform_edt(
        ~seeds[0], sampling=spacing_zyx_mm
    ) <= ndimage.distance_transform_edt(~seeds[1], sampling=spacing_zyx_mm)
    return held & nearer_first, held & ~nearer_first


def _center_x_mm(region: Region, image: Image) -> float:
    """Mean LPS x of a region: larger is further left."""
    index_ijk = np.array(ndimage.center_of_mass(region))[::-1]
    return float(image.world(index_ijk[None])[0, 0])


def _body_middle_x_mm(tissue: Region, image: Image) -> float:
    return _center_x_mm(_largest(tissue), image) if tissue.any() else 0.0


def as_image(region: Region, image: Image) -> Image:
    """A region as numbers, 1 inside and 0 outside, on the voxels it was found on."""
    return image.with_values(torch.as_tensor(region.astype(np.float32)))
