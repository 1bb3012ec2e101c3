"""nnU-Net's own two networks, and the noise reduction module in them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.networks import build, config_to_plain
from contourcast.models.noise_reduction import NrmConfig
from support import promises

pytest.importorskip("dynamic_network_architectures", reason="pip install contourcast[networks]")

from contourcast.models.plain_conv import PlainConv, PlainConvConfig, library_arguments
from contourcast.models.residual_encoder import ResidualEncoderConfig

PLAIN = PlainConvConfig(
    features=(4, 8, 16),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    blocks=(2,) * 3,
    decoder_blocks_asked=(2, 1),
)
RESIDUAL = ResidualEncoderConfig(
    features=PLAIN.features,
    kernels=PLAIN.kernels,
    strides=PLAIN.strides,
    blocks=(1, 2, 1),
    decoder_blocks_asked=(1, 1),
)
NRM = NrmConfig(detach=False)
CASES = [
    ("nnunet-plainconv", PLAIN),
    ("nnunet-plainconv", replace(PLAIN, nrm=NRM)),
    ("nnunet-resenc", RESIDUAL),
    ("nnunet-resenc", replace(RESIDUAL, nrm=NRM)),
]
PATCH = (4, 8, 12)


@pytest.mark.parametrize(("name", "config"), CASES)
class TestPromises:
    def test_an_answer_in_the_size_of_the_image(self, name: str, config: PlainConvConfig) -> None:
        promises.answers_in_its_size(name, config, PATCH)

    def test_a_gradient_reaches_every_parameter(self, name: str, config: PlainConvConfig) -> None:
        assert promises.without_gradient(promises.at_birth(name, config), PATCH) == []

    def test_saved_and_loaded_it_answers_the_same(
        self, name: str, config: PlainConvConfig, tmp_path: Path
    ) -> None:
        promises.survives_saving(name, config, PATCH, tmp_path)

    def test_bfloat16_stays_close(self, name: str, config: PlainConvConfig) -> None:
        promises.stays_close_in_bfloat16(name, config, PATCH)

    def test_all_heads_answer_finest_first(self, name: str, config: PlainConvConfig) -> None:
        network = promises.at_birth(name, config)
        network.decoder.deep_supervision = True
        sizes = [tuple(v.shape[2:]) for v in network(promises.image(config, PATCH))]
        assert sizes == [(4, 8, 12), (4, 4, 6)]

    def test_sizes_that_do_not_meet_again_are_refused_with_ones_that_do(
        self, name: str, config: PlainConvConfig
    ) -> None:
        with pytest.raises(InputError, match=r"multiple of \(2, 4, 4\)") as error:
            promises.at_birth(name, config)(torch.randn(1, 2, 5, 8, 13))
        assert "(6, 8, 16)" in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "kind", "blocks"),
    [
        ("nnunet-plainconv", PLAIN, "PlainConvUNet", "n_conv_per_stage"),
        ("nnunet-resenc", RESIDUAL, "ResidualEncoderUNet", "n_blocks_per_stage"),
    ],
)
def test_the_librarys_own_weights_fit_and_answer_the_same(
    name: str, config: PlainConvConfig, kind: str, blocks: str
) -> None:
    """As nnU-Net stores them, each tensor under several names; ours are the first of each."""
    from dynamic_network_architectures.architectures import unet

    stock = getattr(unet, kind)(**{blocks: list(config.blocks)}, **library_arguments(config))
    theirs = stock.state_dict()
    ours: Any = build(name, config)
    assert set(ours.state_dict()) == {
        k for k in theirs if ".all_modules." not in k and not k.startswith("decoder.encoder.")
    }
    ours.load_state_dict({k: theirs[k] for k in ours.state_dict()})
    x = promises.image(config, PATCH)
    assert torch.equal(ours(x), stock(x))


def test_building_leaves_the_configuration_as_it_was() -> None:
    before = config_to_plain(RESIDUAL)
    build("nnunet-resenc", RESIDUAL)
    assert config_to_plain(RESIDUAL) == before


def test_the_residual_blocks_begin_as_identities() -> None:
    network = promises.at_birth("nnunet-resenc", RESIDUAL)
    lasts = [v for k, v in network.state_dict().items() if k.endswith("conv2.norm.weight")]
    assert len(lasts) == sum(RESIDUAL.blocks)
    assert not any(v.any() for v in lasts)


def test_the_module_subtracts_before_the_decoder() -> None:
    network: Any = PlainConv(replace(PLAIN, nrm=NRM))
    features = network.encoder(promises.image(PLAIN, PATCH))
    m2 = network.nrm.mamba(network.nrm.summary(features[:-1], features[-1].shape[2:]))
    assert torch.equal(network.bottleneck(list(features)), features[-1] - m2)
    assert m2.abs().max() > 0


def test_two_axes() -> None:
    config = replace(
        PLAIN, kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 2)), nrm=NrmConfig()
    )
    promises.answers_in_its_size("nnunet-plainconv", config, (8, 12))


def test_neither_timm_nor_torchvision_is_imported() -> None:
    code = (
        "import sys, contourcast.models.plain_conv, contourcast.models.residual_encoder\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('timm', 'torchvision')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
