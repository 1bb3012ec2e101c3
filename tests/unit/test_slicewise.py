from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.networks import build, entry
from contourcast.models.predictor import load_network
from contourcast.models.slicewise import on_volume
from contourcast.models.umamba_bot import UMambaBot
from contourcast.models.weights import save_model
from support.models import TINY, ball_case, tiny_card

FLAT = replace(TINY, kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 2)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_each_slice_is_answered_as_if_it_were_alone() -> None:
    network = UMambaBot(FLAT).double().eval()
    x = torch.randn(2, 2, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        whole = on_volume(network, x)
        assert isinstance(whole, torch.Tensor)
        assert whole.shape == (2, 2, 3, 8, 12)
        for b in range(2):
            for z in range(3):
                alone = network(x[b : b + 1, :, z])
                assert torch.allclose(whole[b, :, z], alone[0], atol=1e-10), (b, z)


def test_a_network_of_three_axes_is_left_alone() -> None:
    network = UMambaBot(TINY).eval()
    x = torch.randn(1, 2, 4, 8, 12)
    assert torch.equal(on_volume(network, x), network(x))  # type: ignore[arg-type]


def test_with_deep_supervision_every_level_keeps_every_slice() -> None:
    network = UMambaBot(FLAT)
    network.decoder.deep_supervision = True
    levels = on_volume(network, torch.randn(2, 2, 3, 8, 12))
    assert [tuple(v.shape) for v in levels] == [(2, 2, 3, 8, 12), (2, 2, 3, 4, 6)]


def test_a_slice_of_a_size_that_does_not_fit_is_refused() -> None:
    config = entry("swin-umamba-d").config_kind(dims=(4, 8), depths=(1, 1))  # type: ignore[call-arg]
    with pytest.raises(InputError, match="multiple of 8"):
        on_volume(build("swin-umamba-d", config), torch.randn(1, 2, 3, 8, 12))


def test_a_model_of_two_axes_predicts_a_volume(tmp_path: Path) -> None:
    kind = entry("swin-umamba-d").config_kind
    config = kind(dims=(4, 8), depths=(1, 1))  # type: ignore[call-arg]
    card = tiny_card(network="swin-umamba-d", config=config, patch_zyx=(8, 16, 24))
    save_model(tmp_path, build("swin-umamba-d", config), card, dtype=torch.float32)
    cbct, r_ct, _ = ball_case()
    drawn = load_network(tmp_path).predict(cbct, r_ct)
    assert drawn.values.shape == cbct.values.shape
    assert 0 < float(drawn.values.max()) <= 1
