"""What a network costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contourcast.models.diff_umamba import DiffUMambaConfig
from contourcast.models.networks import build
from contourcast.models.noise_reduction import NoiseReduction
from contourcast.models.profile import gigaflops, measured, parameters
from contourcast.models.selective_scan import SCANS
from contourcast.models.umamba_bot import UMambaConfig
from support.models import TINY


class Plain(nn.Module):
    """A convolution, a transposed one, and a linear layer, to be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 4, 3, 2, 1)
        self.up = nn.ConvTranspose3d(4, 3, 2, 2)
        self.mix = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(self.up(self.down(x)).movedim(1, -1))
        return mixed


def test_arithmetic_is_two_for_each_multiply_add() -> None:
    down = 4 * 2 * 27 * 4**3
    up = 4 * 3 * 8 * 4**3  # each input voxel meets the kernel once
    mix = 3 * 5 * 8**3
    assert gigaflops(Plain(), (1, 2, 8, 8, 8)) == pytest.approx(2 * (down + up + mix) / 1e9)


def test_nothing_is_allocated_for_a_count() -> None:
    with torch.device("meta"):
        network = Plain()
    assert gigaflops(network, (1, 2, 4096, 4096, 4096)) > 7e3  # 550 GB of input, were it real


@pytest.mark.parametrize(("name", "published"), [("umamba-bot", 243), ("diff-umamba", 250)])
def test_the_published_arithmetic(name: str, published: int) -> None:
    """NETWORKS §1 at 64³, two channels.

    The published networks widen a step up before its 1 x 1 x 1, ours after it: the same numbers
    from an eighth of the products. With theirs the table's figures come out.
    """
    config = DiffUMambaConfig() if name == "diff-umamba" else UMambaConfig()
    with torch.device("meta"):
        network = build(name, config)
    saved = sum(
        2 * wide * narrow * ((64 >> level) ** 3 - (32 >> level) ** 3)
        for level, (narrow, wide) in enumerate(
            zip(config.features, config.features[1:], strict=False)
        )
    )
    found = gigaflops(network, (1, 2, 64, 64, 64)) + saved / 1e9
    assert round(found) == published


def test_scans_and_slabs_work_again_after_a_count_even_after_a_failure() -> None:
    network = build("diff-umamba", TINY)
    before = dict(SCANS)
    gigaflops(network, (1, 2, 16, 16, 16))
    with pytest.raises(RuntimeError, match="channels"):
        gigaflops(network, (1, 7, 16, 16, 16))
    assert before == SCANS
    assert [m.config.slabs for m in network.modules() if isinstance(m, NoiseReduction)] == [True]


def test_parameters_are_counted_once_and_only_trainable_ones() -> None:
    network = Plain()
    network.mix.bias.requires_grad_(False)
    total = (4 * 2 * 27 + 4) + (4 * 3 * 8 + 3) + 3 * 5
    assert parameters(network) == total
    network.register_module("again", network.down)
    assert parameters(network) == total


def test_time_and_memory_of_a_process_of_its_own() -> None:
    small = measured(build("diff-umamba", TINY), (1, 2, 16, 16, 16), repeats=1)
    assert small.seconds > 0
    large = measured(nn.Conv3d(2, 8, 1), (1, 2, 128, 128, 128), repeats=1)
    assert large.peak_mb > 0.99 * 8 * 128**3 * 4 / 2**20  # its answer alone
