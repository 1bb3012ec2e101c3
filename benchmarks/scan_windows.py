"""A model of nnU-Net's in propagate against nnU-Net's prediction of the whole volume.

    python -m benchmarks.scan_windows [--network diff-umamba]

A stock PlainConv of two channels, or a Diff-UMamba of as many levels, is fitted for some minutes on
three virtual patients, on windows that lie anywhere, as nnU-Net fits; then it draws today's tumour
of others. Ours draws those of nnU-Net's windows that tell near the carried prior (`windows: scan`
on the card); nnU-Net's own predictor (2.8: half a patch, Gaussian) draws all of them. The goal is a
fifth of the time, and the same contour to DSC 0.995. How well either draws is not the question
here.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from benchmarks.measure import compared
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.volume import Mask, Probability
from contourcast.models.config import NetworkConfig
from contourcast.models.diff_umamba import DiffUMambaConfig
from contourcast.models.networks import build
from contourcast.models.plain_conv import PlainConvConfig
from contourcast.models.predictor import Predictor, plausible
from contourcast.models.region import filled_up, sample_on, scaling, scan_on, whole_grid
from contourcast.models.weights import Card, Normalisation
from contourcast.models.windows import LOGIT_LIMIT
from contourcast.propagate import Case, Settings, carry_prior, register
from support.nnunet_peer import nnunets
from support.virtual_patients import phantom_course

FITTED, UNSEEN = (600_001, 600_002, 600_003), (600_004, 600_007, 600_009)
STEPS, BATCH = 240, 2
FEATURES = (16, 32, 64, 128)
KERNELS = ((3, 3, 3),) * 4
STRIDES = ((1, 1, 1), *((2, 2, 2),) * 3)
CONFIGS: dict[str, NetworkConfig] = {
    "nnunet-plainconv": PlainConvConfig(
        features=FEATURES,
        kernels=KERNELS,
        strides=STRIDES,
        blocks=(2,) * 4,
        decoder_blocks_asked=(2,) * 3,
    ),
    "diff-umamba": DiffUMambaConfig(
        channels_in=2,
        features=FEATURES,
        kernels=KERNELS,
        strides=STRIDES,
        blocks=(1,) * 4,
        decoder_blocks_asked=(1,) * 3,
    ),
}
CARD = Card(
    network="nnunet-plainconv",
    config=CONFIGS["nnunet-plainconv"],
    spacing_zyx_mm=(2.5, 2.5, 2.5),
    patch_zyx=(40, 48, 48),
    margin_mm=25.0,
    normalisation=Normalisation(kind="ct", lower_hu=-1000, upper_hu=300, mean_hu=-300, sd_hu=400),
    windows="scan",
)


def main() -> None:
    """Fits, then prints ratios and how far the contours agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=CONFIGS, default=CARD.network)
    name = parser.parse_args().network
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(name, CONFIGS[name])
    _fit(network, [_seen(*phantom_course(seed)) for seed in FITTED])
    network.eval()
    card = replace(CARD, network=name, config=CONFIGS[name])
    ours = Predictor(network=network, card=card, digest="of this run")
    for seed in UNSEEN:
        case, truth = phantom_course(seed)
        r_ct = carry_prior(case, register(case, Settings()))
        channels, grid = _shown(case, r_ct)
        theirs = partial(nnunets(network, CARD.patch_zyx), channels)
        title = f"phantom {seed}, {grid.shape_zyx} voxels"
        print(compared(title, partial(ours.predict, case.cbct, r_ct), theirs, times=1))
        drawn = ours.predict(case.cbct, r_ct).mask()
        # as ours before they go onto the scan: a spline through steep logits lies elsewhere
        logits = theirs().clip(-LOGIT_LIMIT, LOGIT_LIMIT)
        prior = sample_on(r_ct.values, r_ct.grid, onto=grid, outside=0.0)
        # what no tumour is, such as a piece far from the prior, propagate takes away (plausible)
        logits[~plausible(logits > 0, prior, grid)] = -LOGIT_LIMIT
        shown = sample_on(logits, grid, onto=case.cbct.grid, outside=-8.0, blur=False, order=3)
        peer = drawn.with_values(shown > 0)
        print(
            f"DSC of the two contours {dice(drawn, peer):.4f}; "
            f"to the truth: ours {dice(drawn, truth):.3f}, theirs {dice(peer, truth):.3f}"
        )


def _shown(case: Case, r_ct: Probability) -> tuple[Float[np.ndarray, "2 z y x"], Grid]:
    """The whole scan as nnU-Net is shown it."""
    grid = filled_up(
        whole_grid(case.cbct.grid, CARD.spacing_zyx_mm), CARD.spacing_zyx_mm, CARD.patch_zyx
    )
    values, observed = scan_on(case.cbct, grid)
    scan = scaling(values, observed, CARD.normalisation, scan=case.cbct).apply(values)
    prior = sample_on(r_ct.values, r_ct.grid, onto=grid, outside=0.0)
    return np.stack([scan, prior]).astype(np.float32), grid


def _seen(case: Case, truth: Mask) -> tuple[Float[np.ndarray, "2 z y x"], np.ndarray]:
    r_ct = carry_prior(case, register(case, Settings()))
    channels, grid = _shown(case, r_ct)
    label = sample_on(truth.values.astype(float), truth.grid, onto=grid, outside=0.0) > 0.5
    return channels, label


def _fit(network: nn.Module, seen: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Cross-entropy and Dice on windows of which half hold the tumour."""
    draw = np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(STEPS):
        windows = [_window(draw, *seen[draw.integers(len(seen))]) for _ in range(BATCH)]
        x = torch.from_numpy(np.stack([w[0] for w in windows]))
        y = torch.from_numpy(np.stack([w[1] for w in windows])).long()
        found = network(x)
        logits = found if isinstance(found, torch.Tensor) else found[0]
        inside = logits.softmax(1)[:, 1]
        overlap = (2 * (inside * y).sum() + 1) / (inside.sum() + y.sum() + 1)
        loss = functional.cross_entropy(logits, y) + 1 - overlap
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 40 == 39:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)


def _window(
    draw: np.random.Generator, channels: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    shape, patch = np.array(label.shape), np.array(CARD.patch_zyx)
    corner = draw.integers(0, shape - patch + 1)
    if draw.random() < 0.5:
        voxel = draw.choice(np.argwhere(label))
        corner = np.clip(voxel - draw.integers(0, patch), 0, shape - patch)
    box = tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
    return channels[(slice(None), *box)], label[box]


if __name__ == "__main__":
    main()
