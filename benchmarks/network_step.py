"""The network step of propagate against nnU-Net's prediction of the whole volume.

    python -m benchmarks.network_step

The shipped network on the CBCT simulated from 4D-Lung patient 113. Ours looks round the carried
prior alone; nnU-Net's predictor (2.8, its own tiling: half a patch, Gaussian) covers the whole
scan, on the same grid, with channels made by the same functions, so that only the way of
predicting differs. The goal is a fifth of the time, and the same contour to DSC 0.995. A network
that normalises each instance sees other statistics in other tiles; which of the two contours is
the better one, the truth of that simulated scan says.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.measure import compared
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.resample import Moved
from contourcast.imaging.volume import Probability, Volume
from contourcast.models.follow import follow, followed
from contourcast.models.predictor import Predictor, load_network
from contourcast.models.region import (
    as_carried,
    planning_on,
    region_grid,
    sample_on,
    scaling,
    scan_on,
    signed_distance,
)
from contourcast.models.weights import FOLLOWED
from contourcast.propagate import Case, Settings, carry_prior, register
from contourcast.service.jobs.inputs import read_case
from support.data import data_item
from support.nnunet_peer import nnunets

ROI = "Tumor_c40"


def main() -> None:
    """Prints the ratio and how far the contours agree."""
    torch.set_num_threads(1)
    case = _case()
    registrations = register(case, Settings())
    r_ct = carry_prior(case, registrations)
    moved = Moved(
        volume=case.planning_ct, moving_from_fixed=registrations.chosen.planning_from_cbct
    )
    network = load_network(None)
    channels, whole, region = _whole_volume(network, case.cbct, r_ct, moved)
    peer = nnunets(network.network, network.card.patch_zyx)

    def theirs() -> Float[np.ndarray, "z y x"]:
        return peer(channels)

    print(
        compared("network step", lambda: network.predict(case.cbct, r_ct, moved), theirs, times=3)
    )
    ours = network.predict(case.cbct, r_ct, moved).mask()
    print(f"volume predicted whole: {whole.shape_zyx} voxels; region: {region.shape_zyx}")
    on_scan = sample_on(theirs(), whole, onto=case.cbct.grid, outside=-8.0, blur=False, order=3)
    near = sample_on(np.ones(region.shape_zyx), region, onto=case.cbct.grid, outside=0.0) > 0.5
    drawn = ours.with_values((on_scan > 0) & near)
    print(f"DSC of the two contours, within the region: {dice(ours, drawn):.4f}")
    with np.load(data_item("lung_cbct_simulated") / "truth.npz") as truth:
        target = ours.with_values(truth[f"mask_{ROI}"].astype(bool))
    print(f"DSC to the truth: ours {dice(ours, target):.4f}, theirs {dice(drawn, target):.4f}")


def _case() -> Case:
    planning = data_item("lung_planning_ct")
    return read_case(
        planning_ct=planning / "ct",
        structures=next((planning / "rs").iterdir()),
        cbct=data_item("lung_cbct_simulated") / "cbct",
        roi=ROI,
    )


def _whole_volume(
    network: Predictor, cbct: Volume, r_ct: Probability, moved: Moved
) -> tuple[Float[np.ndarray, "c z y x"], Grid, Grid]:
    """All of the scan as channels, on a grid of which the region's is a part.

    What follows the tissue is found in the region, as in the product, and stands still beyond it.
    """
    card = network.card
    region = region_grid(
        r_ct,
        spacing_zyx_mm=card.spacing_zyx_mm,
        patch_zyx=card.patch_zyx,
        margin_mm=card.margin_mm,
    )
    corners = region.index(cbct.grid.corners_xyz_mm)
    first = np.floor(corners.min(0))
    shape_xyz = (np.ceil(corners.max(0)) - first + 1).astype(int)
    whole = Grid.even(
        shape_zyx=(int(shape_xyz[2]), int(shape_xyz[1]), int(shape_xyz[0])),
        spacing_xyz_mm=region.spacing_xyz_mm,
        origin_xyz_mm=region.world([first])[0],
        direction=region.direction,
    )
    normalise = scaling(*scan_on(cbct, region), card.normalisation)
    shown = {
        "cbct": normalise.apply(scan_on(cbct, whole)[0]),
        "r_ct": sample_on(r_ct.values, r_ct.grid, onto=whole, outside=0.0),
        "planning_ct": planning_on(moved, whole),
    }
    if set(FOLLOWED) & set(card.channels):
        spacing = whole.spacing_zyx_mm
        scan = normalise.apply(scan_on(cbct, region)[0])
        moved_mm = follow(scan, planning_on(moved, region), spacing_zyx_mm=spacing)
        # the region may reach beyond the scan, and the scan beyond the region
        first = whole.index(region.origin_xyz_mm[None])[0].round().astype(int)[::-1]
        shapes = list(zip(first, region.shape_zyx, whole.shape_zyx, strict=True))
        within = tuple(slice(max(0, -a), min(m, n - a)) for a, m, n in shapes)
        beyond = [(max(0, a), max(0, n - a - m)) for a, m, n in shapes]
        field = np.pad(moved_mm[(slice(None), *within)], ((0, 0), *beyond), mode="edge")
        prior_mm = signed_distance(shown["r_ct"], whole)
        prior, planning = FOLLOWED
        shown[prior] = as_carried(followed(prior_mm, field, spacing_zyx_mm=spacing))
        shown[planning] = followed(shown["planning_ct"], field, spacing_zyx_mm=spacing)
    return np.stack([shown[name] for name in card.channels]), whole, region


if __name__ == "__main__":
    main()
