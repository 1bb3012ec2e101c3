"""The organs of a real planning CT, found by threshold and connection: enough to simulate on."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from scipy.ndimage import (
    binary_erosion,
    binary_fill_holes,
    binary_opening,
    distance_transform_edt,
    gaussian_filter,
    label,
)

from contourcast.imaging.distance import filled
from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Roi
from contourcast.imaging.volume import Volume, require_same_frame
from contourcast.simulation.anatomy import (
    LEFT,
    LUNG_CLOSING_MM,
    RIGHT,
    Anatomy,
    ball,
    closed_coarsely,
    dilated,
)
from contourcast.simulation.sampling import sample

AIR_HU: Final = -1000.0
BODY_HU: Final = -350.0  # above: body (skin, not couch padding)
COUCH_MM: Final = 3.0  # half the thickness of what is not body: couch shells, blankets
LUNG_HU: Final = -500.0  # below, inside the body: lung and airways
AIRWAY_HU: Final = -930.0  # below, connected from the top: trachea
BONE_HU: Final = 180.0  # above: bone (contrast in the heart may pass; it does no harm)
LEAST_LUNG_CC: Final = 400.0  # a smaller lung is not one that can be simulated on
AIRWAY_RADIUS_MM: Final = 4.5  # thinner parts of what was found are airways, not lung
BODY_MARGIN_MM: Final = 20.0  # air kept round the body
HOW_DRAWN: Final = b"filled"  # how contours become voxels; patients of another way are others
MAP_SLAB: Final = 16  # slices resampled at a time, to bound memory


def anatomy_of_ct(
    ct: Volume,
    *,
    name: str,
    spacing_xyz_mm: tuple[float, float, float],
    drawn: Roi | None = None,
    graft_sides: tuple[int, ...] = (RIGHT, LEFT),
) -> Anatomy:
    """Finds body, lungs and bones of a thorax CT, on an even grid of the spacing asked for.

    A lung that holds a drawn tumour is not grafted into, whatever `graft_sides` says.

    Slices finer than asked for are averaged; coarser ones are interpolated, and so is what was
    drawn on them.

    Raises:
        FrameMismatchError: The drawn ROI lives in another frame of reference.
        InputError: No two lungs are found, or the drawn ROI encloses nothing.
        GeometryError: The drawn ROI is not drawn on planes parallel to the CT's slices.
    """
    digest = _digest(ct, drawn, graft_sides)
    even = _resampled(ct, spacing_xyz_mm)
    body = _body(even)
    even, body = _cropped(even, body)
    lungs = _lungs(even, body)
    mask = None
    if drawn is not None:
        require_same_frame(ct.frame_of_reference, drawn.frame_of_reference)
        mask = filled(drawn, grid=ct.grid, onto=even.grid).values
        side = RIGHT if (lungs[mask] == RIGHT).sum() >= (lungs[mask] == LEFT).sum() else LEFT
        near = closed_coarsely((lungs == side) | mask, 15.0, even.grid) & dilated(
            mask, 3.0, even.grid
        )
        graft_sides = tuple(s for s in graft_sides if s != side) or (side,)
        lungs = np.where(near & (lungs == 0) & (even.values < BONE_HU), side, lungs)
    bone = binary_opening(even.values > BONE_HU) & body
    return Anatomy(
        name=name,
        ct=even,
        lungs=lungs,
        body=body,
        bone=bone,
        drawn=mask,
        graft_sides=graft_sides,
        digest=digest,
    )


def _digest(ct: Volume, drawn: Roi | None, graft_sides: tuple[int, ...]) -> str:
    """SHA-256 (hex) of what was read from files; computed values may differ between machines."""
    made_of = hashlib.sha256(ct.source.digest.encode() if ct.source else ct.values.tobytes())
    if drawn is not None:
        made_of.update(HOW_DRAWN)
        for contour in drawn.contours:
            made_of.update(contour.points_xyz_mm.tobytes())
    made_of.update(bytes(graft_sides))
    return made_of.hexdigest()


def _resampled(ct: Volume, spacing_xyz_mm: tuple[float, float, float]) -> Volume:
    """On even slices, axes turned to run along +left, +posterior, +superior."""
    old = ct.grid
    order, flips = _canonical_axes(old.direction)
    direction = old.direction[:, order] * flips
    corners = (old.corners_xyz_mm - old.corners_xyz_mm[0]) @ direction
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = np.asarray(spacing_xyz_mm)
    shape_xyz = np.floor((high - low) / spacing + 1e-6).astype(int) + 1
    new = Grid.even(
        shape_zyx=(int(shape_xyz[2]), int(shape_xyz[1]), int(shape_xyz[0])),
        spacing_xyz_mm=spacing_xyz_mm,
        origin_xyz_mm=old.corners_xyz_mm[0] + direction @ low,
        direction=direction,
    )
    # average what is finer than asked for, so that nothing aliases
    wanted_old_axes = spacing[np.argsort(order)]
    ratio = wanted_old_axes[::-1] / np.maximum(old.spacing_zyx_mm, 1e-6)
    sigma = [0.45 * np.sqrt(max(r**2 - 1, 0.0)) for r in ratio]
    values = gaussian_filter(np.clip(ct.values, AIR_HU, 3000), sigma)
    out = np.empty(new.shape_zyx, np.float32)
    for start in range(0, new.shape_zyx[0], MAP_SLAB):
        stop = min(start + MAP_SLAB, new.shape_zyx[0])
        part = new.crop((start, 0, 0), (stop, *new.shape_zyx[1:]))
        index = old.index(part.centers()).astype(np.float32).reshape(*part.shape_zyx, 3)
        out[start:stop] = sample(values, index, outside=AIR_HU)
    return Volume(values=out, grid=new, frame_of_reference=ct.frame_of_reference)


def _canonical_axes(direction: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Which axis runs most along x, y, z, and the signs that make them run upwards."""
    order: list[int] = []
    for world in range(3):
        order.append(
            max((a for a in range(3) if a not in order), key=lambda a: abs(direction[world, a]))
        )
    signs = np.sign([direction[world, axis] for world, axis in enumerate(order)])
    return order, signs


def _body(ct: Volume) -> np.ndarray:
    """The largest thing denser than air, its holes filled slice by slice, without the couch."""
    worn = max(1, round(COUCH_MM / max(ct.grid.spacing_xy_mm)))
    dense = binary_opening(ct.values > BODY_HU, np.ones((1, 3, 3)), iterations=worn)
    parts, count = label(dense)
    if count == 0:
        raise InputError("no body is found in the CT", remedy="check that it is a thorax CT in HU")
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return np.stack([binary_fill_holes(s) for s in largest])


def _cropped(ct: Volume, body: np.ndarray) -> tuple[Volume, np.ndarray]:
    """Without the air round the body."""
    start, stop = [0], [body.shape[0]]
    for axis, step in ((1, ct.grid.spacing_xy_mm[1]), (2, ct.grid.spacing_xy_mm[0])):
        along = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(BODY_MARGIN_MM / step)
        start.append(max(0, int(along[0]) - margin))
        stop.append(min(body.shape[axis], int(along[-1]) + 1 + margin))
    part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    outside_body = np.where(body[part], ct.values[part], np.minimum(ct.values[part], -300))
    return (
        Volume(
            values=outside_body,
            grid=ct.grid.crop(start, stop),
            frame_of_reference=ct.frame_of_reference,
        ),
        body[part],
    )


def _lungs(ct: Volume, body: np.ndarray) -> np.ndarray:
    """Two lungs, told apart by side; airways taken out, vessels closed over."""
    air = (ct.values < LUNG_HU) & body
    air &= ~dilated(_airways(ct, body), 2.5, ct.grid)
    for erosions in (0, 1, 2, 3):
        core = binary_erosion(air, iterations=erosions) if erosions else air
        parts, count = label(core)
        sizes = np.bincount(parts.ravel())[1:] if count else np.zeros(0)
        biggest = np.argsort(sizes)[::-1][:2] + 1
        cc = float(ct.grid.voxel_cc.mean())
        if len(biggest) == 2 and sizes[biggest[1] - 1] * cc > LEAST_LUNG_CC * 0.7:
            break
    else:
        raise InputError(
            "no two lungs are found in the CT",
            remedy="simulate on a thorax CT that holds both lungs and is calibrated in HU",
        )
    first_is_right = (
        np.nonzero(parts == biggest[0])[2].mean() < np.nonzero(parts == biggest[1])[2].mean()
    )
    right, left = biggest if first_is_right else biggest[::-1]
    if erosions:  # what was worn away, and what that cut off, goes to the nearer lung
        seeds = np.isin(parts, biggest)
        nearest = parts[
            tuple(distance_transform_edt(~seeds, return_distances=False, return_indices=True))
        ]
        joined, _ = label(air)
        nearest = np.where(np.isin(joined, np.unique(joined[seeds])) & air, nearest, 0)
    lungs = np.zeros(ct.values.shape, np.uint8)
    for side, part in ((RIGHT, right), (LEFT, left)):
        mask = parts == part if not erosions else nearest == part
        closed = closed_coarsely(mask, LUNG_CLOSING_MM, ct.grid) & body & (ct.values < BONE_HU)
        without_airways = binary_opening(closed, ball(AIRWAY_RADIUS_MM, ct.grid.spacing_zyx_mm))
        lungs[without_airways & (lungs == 0)] = side
    return lungs


def _airways(ct: Volume, body: np.ndarray) -> np.ndarray:
    """Very dark, and connected to the uppermost slices near the middle."""
    dark = (ct.values < AIRWAY_HU) & body
    dark[:, :, : int(dark.shape[2] * 0.35)] = False
    dark[:, :, int(dark.shape[2] * 0.65) :] = False
    dark = binary_opening(dark)
    parts, _ = label(dark)
    top = np.unique(parts[-max(3, parts.shape[0] // 10) :])
    found = np.isin(parts, top[top > 0])
    return found if found.sum() * float(ct.grid.voxel_cc.mean()) < 120 else np.zeros_like(found)
