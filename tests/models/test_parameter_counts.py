"""The published sizes. A changed count is a changed architecture."""

from __future__ import annotations

import pytest
import torch

from contourcast.models.networks import NETWORKS, build

FEATURES = (32, 64, 128, 256, 320, 320, 320)


def sized(name: str, *, stages: int, channels_in: int) -> torch.nn.Module:
    config = NETWORKS[name].config(
        channels_in=channels_in,
        features=FEATURES[:stages],
        kernels=((3, 3, 3),) * stages,
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        blocks=(2,) * stages,
        decoder_blocks_asked=(2,) * (stages - 1),
    )
    with torch.device("meta"):
        return build(name, config)


@pytest.mark.parametrize(
    ("name", "stages", "channels_in", "parameters"),
    [
        ("umamba-bot", 6, 1, 42_120_394),
        ("umamba-bot", 6, 2, 42_121_290),
        ("diff-umamba", 6, 1, 43_053_839),
        ("diff-umamba", 6, 2, 43_054_735),
        ("umamba-bot", 5, 1, 22_571_400),
        ("diff-umamba", 5, 1, 23_402_124),
        ("umamba-bot", 7, 1, 65_431_436),
        ("diff-umamba", 7, 1, 66_467_602),
    ],
)
def test_published_count(name: str, stages: int, channels_in: int, parameters: int) -> None:
    network = sized(name, stages=stages, channels_in=channels_in)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_what_the_noise_reduction_module_adds() -> None:
    network = sized("diff-umamba", stages=6, channels_in=1)
    parts = {
        part: sum(p.numel() for n, p in network.named_parameters() if n.startswith(f"nrm.{part}"))
        for part in ("proj", "lambdas", "mamba")
    }
    assert parts == {"proj": 257_600, "lambdas": 5, "mamba": 675_840}


def test_no_tensor_is_stored_twice() -> None:
    network = build("diff-umamba", NETWORKS["diff-umamba"].config(features=(4,) * 6))
    places = [v.data_ptr() for v in network.state_dict().values()]
    assert len(set(places)) == len(places)
