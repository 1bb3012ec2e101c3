"""Windows as nnU-Net lays and weighs them, and what those that tell near the prior say alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.volume import Mask, Probability, Volume
from contourcast.models.predictor import Predictor
from contourcast.models.weights import Normalisation
from contourcast.models.windows import LOGIT_LIMIT, Box, Windows, in_windows
from support.models import FRAME, TINY, ball, tiny_card
from support.nnunet_peer import nnunets

PATCH = (16, 20, 20)
SHAPE = (40, 64, 70)


class Tilting(nn.Module):
    """Calls target what is brighter than the mean of its window: other windows, another contour."""

    config = TINY

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        smooth = nn.functional.avg_pool3d(x[:, :1], 3, 1, 1)
        bright = smooth - 1.0 - x[:, :1].mean()
        return torch.cat((-bright, bright), 1)


def lumps(shape: tuple[int, int, int], center_zyx: tuple[int, int, int]) -> np.ndarray:
    """A bright lump in noise, and a second one far from it."""
    found = np.random.default_rng(0).normal(0.0, 0.3, (2, *shape)).astype(np.float32)
    z, y, x = np.indices(shape)
    for a, b, c in (center_zyx, (6, 8, 60)):
        found[0] += 6 * np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 40)
    return found


@given(st.integers(1, 40).flatmap(lambda p: st.tuples(st.just(p), st.integers(p, 200))))
def test_they_lie_where_nnunet_lays_them(sides: tuple[int, int]) -> None:
    inference: Any = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    patch, length = sides
    theirs = inference.compute_steps_for_sliding_window((length,), (patch,), 0.5)[0]
    assert list(Windows.over((length,), (patch,)).corners[0]) == theirs


@pytest.mark.parametrize("patch", [PATCH, (15, 20, 17)])
def test_all_of_them_say_what_nnunet_says(patch: tuple[int, int, int]) -> None:
    channels = lumps(SHAPE, (20, 30, 30))
    windows = Windows.over(SHAPE, patch, as_nnunet=True)
    ours = in_windows(Tilting(), channels, windows, device="cpu")
    theirs = nnunets(Tilting(), patch)(channels).clip(-LOGIT_LIMIT, LOGIT_LIMIT)
    apart = np.abs(ours - theirs)
    # it adds up in half precision, in which the weights of the volume's corners are nearly nothing
    assert np.quantile(apart, 0.99) < 0.01
    assert ((ours > 0) == (theirs > 0)).mean() > 0.9999


def test_they_weigh_as_nnunet_does() -> None:
    sliding: Any = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    for patch in (PATCH, (15, 20, 17), (40, 48, 48)):
        half = sliding.compute_gaussian(patch, 1 / 8, 10, device=torch.device("cpu"))
        ours, theirs = Windows.over(patch, patch, as_nnunet=True).weight, half.float().numpy() / 10
        assert np.abs(ours - theirs).max() < 1e-3
        assert ours.min() == pytest.approx(theirs.min())


class Contrary(nn.Module):
    """A network that draws a lump nearer to the middle of its window than it lies."""

    def forward(self, x: Tensor) -> Tensor:
        z, y, x_ = (torch.linspace(-1, 1, n) for n in x.shape[2:])
        near = 1 - (z[:, None, None] ** 2 + y[None, :, None] ** 2 + x_[None, None] ** 2)
        bright = x[:, :1] - 2.0 + 3.0 * near
        return torch.cat((-bright, bright), 1)


def test_where_windows_contradict_each_other_the_contour_is_nnunets() -> None:
    channels = lumps(SHAPE, (20, 30, 30))
    theirs = nnunets(Contrary(), PATCH)(channels) > 0
    drawn = {
        as_nnunet: in_windows(
            Contrary(), channels, Windows.over(SHAPE, PATCH, as_nnunet=as_nnunet), device="cpu"
        )
        > 0
        for as_nnunet in (True, False)
    }
    assert (drawn[True] == theirs).mean() > 0.9999
    assert (drawn[False] != theirs).sum() > 10 * (drawn[True] != theirs).sum()


@pytest.mark.parametrize("center", [(20, 30, 30), (25, 41, 17), (14, 36, 52)])
def test_those_that_tell_there_draw_the_same_contour_there(center: tuple[int, int, int]) -> None:
    channels = lumps(SHAPE, center)
    network, everywhere = Tilting(), Tilting()
    windows = Windows.over(SHAPE, PATCH)
    z, y, x = (slice(c - 2, c + 3) for c in center)
    near = in_windows(network, channels, windows, device="cpu", first=(z, y, x))
    whole = in_windows(everywhere, channels, windows, device="cpu")
    apart = np.abs(np.indices(SHAPE) - np.array(center)[:, None, None, None]).max(0) < 12
    assert (near > 0)[~apart].sum() == 0, "the other lump is nobody's business"
    assert ((near > 0) & apart).sum() > 100
    assert np.array_equal(near[apart] > 0, whole[apart] > 0)
    assert network.seen < 0.4 * everywhere.seen


def test_the_box_grows_with_what_is_drawn_in_it() -> None:
    """A bar that begins in the box is drawn to its end, through windows that tell nothing there."""
    channels = np.zeros((2, 16, 20, 200), np.float32)
    channels[0, 6:10, 8:12, 5:180] = 1.0

    def draw(x: Tensor) -> Tensor:
        return torch.stack((0.5 - x[:, 0], x[:, 0] - 0.5), 1)

    windows = Windows.over(channels.shape[1:], PATCH)
    first: Box = (slice(6, 10), slice(8, 12), slice(4, 8))
    found = in_windows(draw, channels, windows, device="cpu", first=first)
    assert np.array_equal(found > 0, channels[0] > 0.5)


def case(shape: tuple[int, int, int]) -> tuple[Volume, Probability]:
    """A dense ball in noisy lung on a grid of 3 mm, and a prior beside it."""
    grid = Grid.even(shape_zyx=shape, spacing_xyz_mm=(3.0, 3.0, 3.0), origin_xyz_mm=(-60, -70, 5))
    middle = grid.world([[shape[2] // 2, shape[1] // 2, shape[0] // 2]])[0]
    x, y, z = middle.tolist()
    _, inside = ball(grid, center_xyz_mm=(x, y, z), radius_mm=12.0)
    noise = np.random.default_rng(1).normal(0, 40, shape)
    scan = Volume(values=-800 + 800 * inside + noise, grid=grid, frame_of_reference=FRAME)
    _, carried = ball(grid, center_xyz_mm=(x + 4, y - 3, z), radius_mm=11.0)
    prior = Probability(values=carried, grid=grid, frame_of_reference=FRAME, name="GTV")
    return scan, prior


WINDOW = Normalisation(kind="ct", lower_hu=-1000, upper_hu=200, mean_hu=-700, sd_hu=200)


@pytest.mark.parametrize("shape", [(40, 64, 70), (12, 30, 17)])  # and one smaller than a window
def test_a_model_of_whole_scans_draws_what_nnunet_draws(shape: tuple[int, int, int]) -> None:
    scan, prior = case(shape)
    card = tiny_card(patch_zyx=PATCH, normalisation=WINDOW, windows="scan")
    ours = Predictor(network=Tilting(), card=card, digest="").predict(scan, prior).mask()
    shown = (scan.values.clip(-1000, 200) + 700) / 200
    channels = np.stack([shown, prior.values]).astype(np.float32)
    theirs = Mask(
        values=nnunets(Tilting(), PATCH)(channels) > 0, grid=scan.grid, frame_of_reference=FRAME
    )
    assert ours.values.sum() > 100
    assert dice(ours, theirs) >= 0.995
    region = replace(card, windows="region")
    other = Predictor(network=Tilting(), card=region, digest="").predict(scan, prior).mask()
    assert dice(other, theirs) < dice(ours, theirs), "windows do tell"
