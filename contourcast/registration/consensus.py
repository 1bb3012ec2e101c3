"""Which half of the anatomy one rigid motion explains best, and what that motion is.

Breathing and filling move tissue against bone. A correlation over the whole field settles between
the two, up to 1.7 mm from either (benchmarks/rigid.py). So the field is cut into blocks, each says
where it would rather be, and those that agree decide: block matching with least trimmed squares
(Ourselin et al., Image and Vision Computing 19, 2001; concentration as in Rousseeuw and Van
Driessen, Data Mining and Knowledge Discovery 12, 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from contourcast.registration.local_ncc import LocalNcc, Pose
from contourcast.registration.sampling import sample_with_gradient
from contourcast.registration.settings import ConsensusSettings, DescentSettings

MOST_CONCENTRATIONS = 30  # each makes the sum smaller; five to ten are usual
TINY = 1e-9
CORNERS = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Overlapping cubes of the CBCT, eight cells each, and where each would rather be.

    Attributes:
        cell_of_sample: Which cell each sample of the metric lies in; -1: it shows nothing.
        blocks_of_cell: The blocks that a cell is part of; -1: one that is not asked.
        places_xyz_mm: The middle of a block's samples, relative to the centre of rotation.
        shifts_xyz_mm: From what it shows of the planning CT at a pose to what it should show.
        telling: How well it can tell each direction (mean outer product of the planning CT's
            gradient), its trace 1: an edge says nothing of shifts along it.
    """

    cell_of_sample: Int[np.ndarray, " samples"]
    blocks_of_cell: Int[np.ndarray, "8 cells"]
    places_xyz_mm: Float[np.ndarray, "n 3"]
    shifts_xyz_mm: Float[np.ndarray, "n 3"]
    telling: Float[np.ndarray, "n 3 3"]

    def __len__(self) -> int:
        return len(self.places_xyz_mm)

    def samples_of(self, chosen: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " samples"]:
        """Samples in cells of which at least half of the blocks that were asked are chosen."""
        asked = self.blocks_of_cell >= 0
        votes = (asked & chosen[self.blocks_of_cell]).sum(axis=0)
        cells = (votes > 0) & (2 * votes >= asked.sum(axis=0))
        result: np.ndarray = (self.cell_of_sample >= 0) & cells[self.cell_of_sample]
        return result


def blocks_at(
    metric: LocalNcc,
    pose: Pose,
    *,
    settings: ConsensusSettings,
    descent: DescentSettings,
    longest_mm: float,
) -> Blocks:
    """One Gauss-Newton step of each block's own correlation, none longer than ``longest_mm``.

    Blocks at the rim of the field with few samples, and those that show nothing, are not asked.
    """
    moving, gradient = sample_with_gradient(
        metric.moving, metric.offsets_xyz_mm, pose.world_from_offsets
    )
    m, g = moving.double().cpu().numpy(), gradient.double().cpu().numpy()
    seen = np.isfinite(m)
    offsets = metric.offsets_xyz_mm.double().cpu().numpy()[seen]
    columns = np.column_stack((metric.fixed.double().cpu().numpy()[seen], m[seen], g[seen]))
    place = np.floor(2 * offsets / settings.block_mm).astype(int)
    place -= place.min(axis=0, initial=0)
    strides = np.cumprod([1, *(place.max(axis=0, initial=0)[:2] + 2)])
    cells, cell = np.unique(place @ strides, return_inverse=True)
    names, block = np.unique(np.add.outer(CORNERS @ strides, cells), return_inverse=True)
    in_cell = csr_array(
        (np.ones(len(cell)), (cell, np.arange(len(cell)))), shape=(len(cells), len(cell))
    )
    of_cell = np.tile(np.arange(len(cells)), len(CORNERS))
    in_block = csr_array(
        (np.ones(block.size), (block.ravel(), of_cell)), shape=(len(names), len(cells))
    )

    def summed(values: np.ndarray) -> np.ndarray:
        """Over the cells, then over the eight cells of each block."""
        rest = values.shape[1:]
        flat = values.reshape(len(values), math.prod(rest))
        total: np.ndarray = in_block @ (in_cell @ flat)
        return total.reshape(len(names), *rest)

    count = summed(np.ones(len(offsets)))
    mean = summed(columns) / count[:, None]
    scatter = summed(columns[:, :, None] * columns[:, None, :])
    scatter -= count[:, None, None] * mean[:, :, None] * mean[:, None, :]
    gain = np.sqrt(scatter[:, 1, 1].clip(0) / np.maximum(scatter[:, 0, 0], TINY))
    upward = gain[:, None] * scatter[:, 2:, 0] - scatter[:, 2:, 1]
    curvature = scatter[:, 2:, 2:]
    trace = np.einsum("nii->n", curvature)
    asked = (count >= settings.least_fill * count.max(initial=0)) & (trace > TINY * count)
    curvature, trace = curvature[asked], trace[asked, None, None]
    damped = curvature + descent.damping * trace / 3 * np.eye(3)
    shifts = np.linalg.solve(damped, upward[asked, :, None])[:, :, 0]
    length = np.linalg.norm(shifts, axis=1, keepdims=True)
    cell_of_sample = np.full(len(seen), -1)
    cell_of_sample[seen] = cell
    return Blocks(
        cell_of_sample=cell_of_sample,
        blocks_of_cell=np.where(asked, np.cumsum(asked) - 1, -1)[block],
        places_xyz_mm=summed(offsets)[asked] / count[asked, None],
        shifts_xyz_mm=shifts * np.minimum(1.0, longest_mm / np.maximum(length, TINY)),
        telling=curvature / trace,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Consensus:
    """What the blocks that agree best say.

    Attributes:
        step: The motion that brings them where they would rather be, see `Pose.moved`.
        agreeing: Which they are.
        contrast: Root mean square of what the step leaves of the other blocks' shifts, by that of
            theirs. Shifts of one normal law in space, split in the middle, give about 2.
    """

    step: Float[np.ndarray, " 6"]
    agreeing: Bool[np.ndarray, " n"]
    contrast: float


def agreed(blocks: Blocks, pose: Pose, *, share: float, rotation_radius_mm: float) -> Consensus:
    """What the given share of blocks, those that agree best, say.

    Concentration finds a local answer only, so it begins at several: at all blocks, and at each
    half of the field, since tissue that moves together lies together.

    Args:
        blocks: Where each would rather be.
        pose: Where they were looked at.
        share: Of the blocks; the others do not count.
        rotation_radius_mm: The step's unit of rotation, see `Pose.moved`.
    """
    arms = blocks.places_xyz_mm @ pose.rotation.T / rotation_radius_mm
    jacobian = np.zeros((len(blocks), 3, 6))
    jacobian[:, :, :3] = np.eye(3)
    for axis, unit in enumerate(np.eye(3)):
        jacobian[:, :, 3 + axis] = np.cross(unit, arms)
    beyond = blocks.places_xyz_mm >= np.median(blocks.places_xyz_mm, axis=0)
    starts = [np.ones(len(blocks), bool), *beyond.T, *~beyond.T]
    enough = [start for start in starts if start.sum() >= share * len(blocks) / 2]
    step, agreeing, misfit = min(
        (_concentrated(blocks, jacobian, start, share) for start in enough),
        key=lambda found: found[2][found[1]].sum(),
    )
    others = misfit[~agreeing].mean() if not agreeing.all() else math.inf
    contrast = math.sqrt(others / max(misfit[agreeing].mean(), TINY))
    return Consensus(step=step, agreeing=agreeing, contrast=contrast)


def _concentrated(
    blocks: Blocks,
    jacobian: Float[np.ndarray, "n 3 6"],
    chosen: Bool[np.ndarray, " n"],
    share: float,
) -> tuple[Float[np.ndarray, " 6"], Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Fit, choose the blocks that the fit explains best, fit again, until the choice stays.

    Returns the step, the choice, and how far off each block is after it, mm².
    """
    most = max(1, round(share * len(blocks)))
    weighed = np.einsum("nai,nab->nib", jacobian, blocks.telling)
    normal = np.einsum("nib,nbj->nij", weighed, jacobian)
    upward = np.einsum("nib,nb->ni", weighed, blocks.shifts_xyz_mm)
    for _ in range(MOST_CONCENTRATIONS):
        curvature = normal[chosen].sum(axis=0)
        damped = curvature + TINY * np.trace(curvature) * np.eye(6)
        step: np.ndarray = np.linalg.solve(damped, upward[chosen].sum(axis=0))
        left = blocks.shifts_xyz_mm - jacobian @ step
        misfit = np.einsum("na,nab,nb->n", left, blocks.telling, left)
        before, chosen = chosen, np.zeros(len(blocks), bool)
        chosen[np.argsort(misfit, kind="stable")[:most]] = True
        if (chosen == before).all():
            break
    return step, chosen, misfit
