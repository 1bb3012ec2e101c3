"""MONAI's three networks, and the noise reduction module in two of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.config import NetworkConfig
from contourcast.models.noise_reduction import NrmConfig
from support import promises
from support.data import peer_module

pytestmark = pytest.mark.peer
peer_module("monai")

from contourcast.models.segresnet import SegResNetConfig  # noqa: E402
from contourcast.models.swin_unetr import SwinUnetrConfig  # noqa: E402
from contourcast.models.unetr import UnetrConfig  # noqa: E402

NRM = NrmConfig(detach=False)
SEGRESNET = SegResNetConfig(filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
UNETR = UnetrConfig(patch_zyx=(16, 32, 16), feature=4, hidden=24, mlp=24, heads=3)
SWIN = SwinUnetrConfig(feature=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 2))
Case = tuple[str, NetworkConfig, tuple[int, ...]]
CASES: list[Case] = [
    ("segresnet", SEGRESNET, (8, 8, 12)),
    ("segresnet", replace(SEGRESNET, nrm=NRM), (8, 8, 12)),
    ("unetr", UNETR, (16, 32, 16)),
    ("unetr", replace(UNETR, nrm=NRM), (16, 32, 16)),
    ("unetr", replace(UNETR, nrm=NRM, taps="vit_states"), (16, 32, 16)),
    ("swin-unetr", SWIN, (64, 32, 32)),
]


@pytest.mark.parametrize(("name", "config", "shape"), CASES)
class TestPromises:
    def test_an_answer_in_the_size_of_the_image(
        self, name: str, config: NetworkConfig, shape: tuple[int, ...]
    ) -> None:
        promises.answers_in_its_size(name, config, shape)

    def test_a_gradient_reaches_every_parameter(
        self, name: str, config: NetworkConfig, shape: tuple[int, ...]
    ) -> None:
        still = promises.without_gradient(promises.at_birth(name, config), shape)
        # MONAI's transformer holds a norm for cross attention, and has no cross attention
        assert [n for n in still if "norm_cross_attn" not in n] == []

    def test_saved_and_loaded_it_answers_the_same(
        self, name: str, config: NetworkConfig, shape: tuple[int, ...], tmp_path: Path
    ) -> None:
        promises.survives_saving(name, config, shape, tmp_path)

    def test_bfloat16_stays_close(
        self, name: str, config: NetworkConfig, shape: tuple[int, ...]
    ) -> None:
        promises.stays_close_in_bfloat16(name, config, shape, within=0.1)

    def test_its_one_head_answers_as_a_list_when_supervised(
        self, name: str, config: NetworkConfig, shape: tuple[int, ...]
    ) -> None:
        promises.one_head_answers_as_a_list_when_supervised(name, config, shape)


@pytest.mark.parametrize(
    ("name", "config", "shape", "theirs"),
    [
        (
            "segresnet",
            SEGRESNET,
            (8, 8, 12),
            {
                "init_filters": 8,
                "in_channels": 2,
                "out_channels": 2,
                "blocks_down": (1, 1, 1),
                "blocks_up": (1, 1),
            },
        ),
        (
            "unetr",
            UNETR,
            (16, 32, 16),
            {
                "in_channels": 2,
                "out_channels": 2,
                "img_size": (16, 32, 16),
                "feature_size": 4,
                "hidden_size": 24,
                "mlp_dim": 24,
                "num_heads": 3,
            },
        ),
    ],
)
def test_without_the_module_it_is_monais_network_bit_for_bit(
    name: str, config: NetworkConfig, shape: tuple[int, ...], theirs: dict[str, Any]
) -> None:
    stock = promises.at_birth(name, config).__class__.__base__(**theirs)
    ours = promises.at_birth(name, config)
    ours.load_state_dict(stock.state_dict())
    x = promises.image(config, shape)
    assert torch.equal(ours(x), stock(x))


def test_in_segresnet_three_levels_of_the_encoder_feed_the_module() -> None:
    config = SegResNetConfig(filters=8, nrm=NRM)
    network = promises.at_birth("segresnet", config)
    assert [p.weight.shape[:2] for p in network.nrm.proj] == [(64, 8), (64, 16), (64, 32)]


@pytest.mark.parametrize(("taps", "widths"), [("skips", [4, 8, 16, 32]), ("vit_states", [24] * 3)])
def test_in_unetr_skips_or_states_feed_the_module(taps: Any, widths: list[int]) -> None:
    network = promises.at_birth("unetr", replace(UNETR, nrm=NRM, taps=taps))
    assert [p.weight.shape[1] for p in network.nrm.proj] == widths


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("segresnet", replace(SEGRESNET, nrm=NRM), (8, 8, 12)),
        ("unetr", replace(UNETR, nrm=NRM), (16, 32, 16)),
    ],
)
def test_the_decoder_gets_the_bottleneck_less_what_the_module_makes(
    name: str, config: NetworkConfig, shape: tuple[int, ...]
) -> None:
    """With a second Mamba layer that answers zero, the network is its host."""
    network = promises.at_birth(name, config)
    bare = promises.at_birth(name, replace(config, nrm=None))  # type: ignore[call-arg]
    network.load_state_dict(bare.state_dict(), strict=False)
    x = promises.image(config, shape)
    assert not torch.allclose(network(x), bare(x), atol=1e-4)
    with torch.no_grad():
        network.nrm.mamba.mamba.out_proj.weight.zero_()
    assert torch.equal(network(x), bare(x))


@pytest.mark.parametrize(
    ("name", "config", "shape", "says"),
    [
        ("segresnet", SEGRESNET, (8, 9, 12), r"\(8, 12, 12\)"),
        ("unetr", UNETR, (32, 32, 16), r"\(16, 32, 16\), and this one is \(32, 32, 16\)"),
        ("swin-unetr", SWIN, (64, 32, 33), r"\(64, 32, 64\)"),
        ("swin-unetr", SWIN, (32, 32, 32), "single voxel"),
    ],
)
def test_patches_that_do_not_fit_are_refused_with_ones_that_do(
    name: str, config: NetworkConfig, shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        promises.at_birth(name, config)(torch.randn(1, 2, *shape))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SegResNetConfig(filters=12),
        lambda: SegResNetConfig(blocks_up=(1, 1)),
        lambda: SegResNetConfig(blocks_down=(0, 2, 2, 4)),
        lambda: UnetrConfig(patch_zyx=(96, 90, 96)),
        lambda: UnetrConfig(heads=7),
        lambda: UnetrConfig(hidden=10**6),
        lambda: SwinUnetrConfig(feature=20),
        lambda: SwinUnetrConfig(depths=(0, 2, 2, 2)),
        lambda: SwinUnetrConfig(heads=(5, 6, 12, 24)),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: Any) -> None:
    with pytest.raises(InputError):
        make()


def test_on_the_meta_device_only_weights_are_without_numbers() -> None:
    """What the window positions are looked up by is no weight: it is there at once."""
    with torch.device("meta"):
        network = promises.at_birth("swin-unetr", SWIN)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert {b.device.type for b in network.buffers()} == {"cpu"}
    assert not any("index" in key for key in network.state_dict())


def test_monai_is_imported_and_its_networks_are_built_in_silence() -> None:
    code = (
        "import warnings; filters = list(warnings.filters)\n"
        "from contourcast.models.networks import build, entry\n"
        "for name in ('segresnet', 'swin-unetr'): build(name, entry(name).config_kind())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
