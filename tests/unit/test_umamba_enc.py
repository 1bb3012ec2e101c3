from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.mamba import MambaLayer
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig
from contourcast.models.umamba_enc import ChannelMambaLayer, UMambaEnc, UMambaEncConfig
from support import promises

# Voxels of the stages: 768, 96, 12; the last has no more than its 16 channels.
SMALL = UMambaEncConfig(
    features=(4, 8, 16),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(2,) * 3,
    decoder_blocks_asked=(1,) * 2,
    patch_zyx=(8, 8, 12),
)
SPATIAL = replace(SMALL, tokens="spatial")
PATCH = (8, 8, 12)
NAME = "umamba-enc"


@pytest.mark.parametrize(
    ("config", "shape"), [(SMALL, PATCH), (SPATIAL, PATCH), (SPATIAL, (9, 11, 7))]
)
def test_an_answer_in_the_size_of_the_image(
    config: UMambaEncConfig, shape: tuple[int, ...]
) -> None:
    promises.answers_in_its_size(NAME, config, shape)


@pytest.mark.parametrize("config", [SMALL, SPATIAL])
def test_a_gradient_reaches_every_parameter(config: UMambaEncConfig) -> None:
    assert promises.without_gradient(UMambaEnc(config), PATCH) == []


@pytest.mark.parametrize("config", [SMALL, SPATIAL])
def test_saved_and_loaded_it_answers_the_same(config: UMambaEncConfig, tmp_path: Path) -> None:
    promises.survives_saving(NAME, config, PATCH, tmp_path)


@pytest.mark.parametrize("config", [SMALL, SPATIAL])
def test_bfloat16_stays_finite_and_near(config: UMambaEncConfig) -> None:
    """Stages round to bfloat16, and a LayerNorm over four channels makes that tenfold."""
    promises.stays_close_in_bfloat16(NAME, config, PATCH, within=0.3)
    without = replace(config, bottleneck="identity")
    promises.stays_close_in_bfloat16(NAME, without, PATCH, within=0.03)


def test_all_heads_answer_finest_first() -> None:
    network: Any = UMambaEnc(SMALL)
    network.decoder.deep_supervision = True
    answers = network(promises.image(SMALL, PATCH))
    assert [tuple(v.shape[2:]) for v in answers] == [(8, 8, 12), (4, 4, 6)]


def test_channels_are_tokens_where_voxels_are_no_more_than_channels() -> None:
    assert SMALL.channel_widths == (None, None, 12)
    widths = [
        (type(layer), layer.norm.normalized_shape)
        for layer in UMambaEnc(SMALL).encoder.mamba_layers
    ]
    assert widths == [(MambaLayer, (4,)), (MambaLayer, (8,)), (ChannelMambaLayer, (12,))]
    assert UMambaEncConfig(patch_zyx=(96, 96, 96)).channel_widths == (*(None,) * 4, 216, 27)
    assert UMambaEncConfig(patch_zyx=(128, 128, 128)).channel_widths == (*(None,) * 5, 64)


def test_a_channel_changed_leaves_the_channels_before_it_as_they_were() -> None:
    torch.manual_seed(0)
    layer = ChannelMambaLayer(12)
    x = torch.randn(1, 5, 2, 2, 3)
    changed = x.clone()
    changed[0, 2] += torch.randn(2, 2, 3)
    difference = (layer(changed) - layer(x)).abs().amax((0, 2, 3, 4))
    assert not difference[:2].any()
    assert difference[2:].all()


def test_the_norm_of_channel_tokens_is_over_voxels() -> None:
    torch.manual_seed(0)
    layer = ChannelMambaLayer(12)
    x = torch.randn(1, 5, 2, 2, 3)
    one_channel, one_voxel = x.clone(), x.clone()
    one_channel[0, 3] += 3
    one_voxel[0, :, 0, 1, 2] += 3
    assert torch.allclose(layer(one_channel), layer(x), atol=1e-5)
    assert not torch.allclose(layer(one_voxel), layer(x), atol=1e-2)


def test_another_patch_is_refused_and_both_are_named() -> None:
    network = UMambaEnc(SMALL)
    with pytest.raises(InputError, match=r"\(8, 8, 12\), and this one is \(16, 8, 12\)"):
        network(torch.randn(1, 2, 16, 8, 12))


def test_what_a_stage_gives_to_the_skip_has_been_through_mamba() -> None:
    network: Any = UMambaEnc(SMALL)
    with torch.no_grad():
        for layer in network.encoder.mamba_layers:
            layer.mamba.out_proj.weight.zero_()
        features = network.encoder(promises.image(SMALL, PATCH))
    assert not any(f.any() for f in features)


def test_without_mamba_it_is_umamba_bot_without_mamba() -> None:
    plain = UMambaConfig(
        features=SMALL.features,
        kernels=SMALL.kernels,
        strides=SMALL.strides,
        blocks=SMALL.blocks,
        decoder_blocks_asked=SMALL.decoder_blocks_asked,
        bottleneck="identity",
    )
    bot, enc = UMambaBot(plain), UMambaEnc(replace(SMALL, bottleneck="identity"))
    enc.load_state_dict(bot.state_dict())
    x = torch.randn(1, 2, 9, 8, 10)  # bound to no patch either
    assert torch.equal(bot(x), enc(x))
