from __future__ import annotations

import copy
import json
import pydoc
from typing import Any

import pytest
import torch

import contourcast
from contourcast.imaging.errors import InputError
from contourcast.models.diff_umamba import DiffUMamba, DiffUMambaConfig
from contourcast.models.networks import NETWORKS, entry
from contourcast.models.plans import (
    arguments_of,
    class_name,
    config_of,
    feature_map_size,
    name_of_class,
    planned_class,
)
from support.models import TINY

ARGUMENTS: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 16],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def built(**changes: object) -> Any:
    return pydoc.locate("contourcast.DiffUMamba")(  # type: ignore[operator]
        input_channels=2, num_classes=2, deep_supervision=True, **(ARGUMENTS | changes)
    )


class TestByName:
    def test_nnunets_way_to_a_class_finds_ours(self) -> None:
        kind = pydoc.locate("contourcast.DiffUMamba")
        assert isinstance(kind, type)
        assert issubclass(kind, DiffUMamba)
        assert kind is contourcast.DiffUMamba

    def test_every_network_that_segments_has_a_name_for_plans(self) -> None:
        for name, line in NETWORKS.items():
            segments = line.task == "segmentation"
            assert name_of_class(class_name(name)) == (name if segments else None)
        assert len({class_name(name) for name in NETWORKS}) == len(NETWORKS)

    def test_a_name_that_is_not_in_the_table_is_no_network(self) -> None:
        assert name_of_class("os.system") is None
        with pytest.raises(AttributeError, match="Nothing"):
            contourcast.Nothing  # noqa: B018


class TestBuilding:
    def test_it_is_the_same_network_with_the_same_tensors(self) -> None:
        torch.manual_seed(0)
        planned = built()
        torch.manual_seed(0)
        plain = DiffUMamba(TINY)
        assert planned.config == TINY
        x = torch.randn(1, 2, 8, 12, 8)
        planned.decoder.deep_supervision = False
        assert list(planned.state_dict()) == list(plain.state_dict())
        assert torch.equal(planned(x), plain(x))

    def test_deep_supervision_gives_a_list_finest_first(self) -> None:
        outputs = built()(torch.randn(1, 2, 8, 12, 8))
        assert [tuple(each.shape[2:]) for each in outputs] == [(8, 12, 8), (4, 6, 4)]

    def test_switches_left_out_keep_their_defaults(self) -> None:
        config = built(nrm={"gate": "scalar"}, bottleneck="mamba", mamba={"d_state": 4}).config
        assert config.nrm.gate == "scalar"
        assert config.nrm.detach == DiffUMambaConfig().nrm.detach  # type: ignore[union-attr]
        assert (config.mamba.d_state, config.mamba.d_conv) == (4, 4)
        assert built(nrm=None).config.nrm is None

    def test_the_plans_are_the_same_before_and_after(self) -> None:
        arguments = ARGUMENTS | {"nrm": {"gate": "scalar"}, "mamba": {"d_state": 4}}
        before = json.dumps(arguments, sort_keys=True)
        kept = copy.deepcopy(arguments)
        network = planned_class("diff-umamba")(input_channels=2, num_classes=2, **arguments)
        network.compute_conv_feature_map_size((8, 8, 8))  # type: ignore[operator]
        config_of("diff-umamba", arguments, input_channels=2, num_classes=2)
        assert json.dumps(arguments, sort_keys=True) == before
        assert arguments == kept

    @pytest.mark.parametrize("name", sorted(NETWORKS))
    def test_a_configuration_survives_being_written_as_plans(self, name: str) -> None:
        config = entry(name).config_kind()
        arguments = json.loads(json.dumps(arguments_of(config)))
        again = config_of(
            name, arguments, input_channels=config.channels_in, num_classes=config.channels_out
        )
        assert again == config


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"droput": 0.1}, "no argument 'droput'"),
            ({"nrm": {"soft": 1}}, "nrm.soft"),
            ({"nrm": {"gate": "vector"}}, "nrm.gate"),
            ({"dropout_op": "torch.nn.Dropout3d"}, "dropout_op"),
            ({"norm_op": "torch.nn.BatchNorm3d"}, "norm_op is BatchNorm3d"),
            ({"conv_op": torch.nn.Conv2d}, "conv_op is Conv2d"),
            ({"conv_bias": False}, "conv_bias"),
            ({"nonlin": "torch.nn.ReLU"}, "nonlin"),
            ({"n_stages": 4}, "4 stages and 3 widths"),
            ({"strides": [[1, 1, 1]]}, "one entry for each stage"),
        ],
    )
    def test_what_the_network_cannot_be_is_named(
        self, change: dict[str, object], said: str
    ) -> None:
        with pytest.raises(InputError, match=said):
            built(**change)


def test_the_feature_map_size_counts_every_convolution_once() -> None:
    config = DiffUMambaConfig(
        features=(2, 4),
        kernels=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        blocks=(1, 1),
        decoder_blocks_asked=(1,),
        nrm=None,
    )
    fine, coarse = 8**3, 4**3
    encoder = 2 * 3 * 2 * fine + 3 * 4 * coarse  # stem and first stage, second stage
    decoder = 2 * coarse + 3 * 2 * fine + 2 * fine  # up on the coarse grid, block, head
    assert feature_map_size("diff-umamba", config, (8, 8, 8)) == encoder + decoder
