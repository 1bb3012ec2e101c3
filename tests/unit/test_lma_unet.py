from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.lma_unet import (
    LargeKernelMamba,
    LmaUnet,
    LmaUnetConfig,
    PyramidPooling,
)
from contourcast.models.networks import NETWORKS, build, config_from_plain, config_to_plain

SMALL = LmaUnetConfig(features=(4, 6, 8, 8, 8), pool_width=3)
FLAT = replace(SMALL, dimensions=2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 17, 22), (5, 33), (32, 48)])
def test_any_size_of_two_and_three_axes_comes_back_in_its_own_size(shape: tuple[int, ...]) -> None:
    network = LmaUnet(FLAT if len(shape) == 2 else SMALL)
    assert network(torch.randn(2, 2, *shape)).shape == (2, 2, *shape)


def test_deep_supervision_is_a_list_of_one() -> None:
    network = LmaUnet(SMALL)
    network.decoder.deep_supervision = True
    assert [tuple(v.shape) for v in network(torch.randn(1, 2, 8, 9, 8))] == [(1, 2, 8, 9, 8)]


@pytest.mark.parametrize("config", [SMALL, FLAT])
def test_a_gradient_reaches_every_parameter(config: LmaUnetConfig) -> None:
    network = LmaUnet(config)
    torch.autograd.backward(network(torch.randn(1, 2, *(24,) * config.axes)).square().mean())
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a constant added before an InstanceNorm changes nothing: those biases rest in theory
    assert [n for n in still if not n.endswith("bias")] == []


def test_saved_and_loaded_it_answers_the_same() -> None:
    network, other = LmaUnet(SMALL).eval(), LmaUnet(SMALL).eval()
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    x = torch.randn(1, 2, 16, 16, 16)
    assert torch.equal(network(x), other(x))


def test_it_answers_alike_alone_and_in_company() -> None:
    """No dropout, no statistics of a batch; in float64, where rounding is nothing."""
    network = LmaUnet(SMALL).eval().double()
    x = torch.randn(2, 2, 16, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-10)
        assert torch.equal(network(x), network(x))


def test_bfloat16_in_and_close_to_float32_out() -> None:
    network = LmaUnet(SMALL).eval()
    x = torch.randn(1, 2, 16, 24, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = network(x.bfloat16()).float()
    with torch.no_grad():
        full = network(x)
    assert torch.isfinite(low).all()
    assert float((low - full).norm() / full.norm()) < 0.05


def test_no_tensor_is_stored_twice() -> None:
    places = [v.data_ptr() for v in LmaUnet(SMALL).state_dict().values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("config", [SMALL, FLAT])
def test_the_residual_starts_after_the_depthwise_convolution(config: LmaUnetConfig) -> None:
    layer = LargeKernelMamba(6, config)
    x = torch.randn(1, 6, *(9,) * config.axes)
    t = layer.depthwise(x)
    assert torch.allclose(layer(x) - t, layer.mamba(t), atol=1e-6)
    for p in layer.mamba.parameters():
        torch.nn.init.zeros_(p)
    assert torch.equal(layer(x), t)


@pytest.mark.parametrize("kernel", [5, 7, 9])
def test_the_depthwise_kernel_reads_each_channel_by_itself(kernel: Any) -> None:
    layer = LargeKernelMamba(3, replace(FLAT, kernel=kernel))
    assert layer.depthwise.weight.shape == (3, 1, kernel, kernel)
    point = torch.zeros(1, 3, 15, 15)
    with_point = point.clone()
    with_point[0, 1, 7, 7] = 1
    reach = (layer.depthwise(with_point) - layer.depthwise(point)).abs() > 0
    assert int(reach.sum()) == int(reach[0, 1].sum()) == kernel**2


def test_the_pyramid_hears_of_means_over_cells_of_every_size() -> None:
    pyramid = PyramidPooling(4, replace(FLAT, bins=(1, 2)))
    x = torch.randn(1, 4, 8, 8)
    one = pyramid.levels[0](x.mean((2, 3), keepdim=True)).expand(-1, -1, 8, 8)
    quarters = torch.nn.functional.interpolate(
        pyramid.levels[1](x.reshape(1, 4, 2, 4, 2, 4).mean((3, 5))),
        size=(8, 8),
        mode="bilinear",
        align_corners=False,
    )
    assert torch.allclose(pyramid(x), pyramid.join(torch.cat((x, one, quarters), 1)), atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"features": (4,)}, {"bins": ()}, {"bins": (0,)}, {"pool_width": 0}]
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(SMALL, **change)


def test_a_patch_of_another_number_of_axes_or_of_one_voxel_is_refused() -> None:
    with pytest.raises(InputError, match="axes"):
        LmaUnet(SMALL)(torch.randn(1, 2, 16, 16))
    with pytest.raises(InputError, match="one voxel"):
        LmaUnet(SMALL)(torch.randn(1, 2, 1, 1, 1))


@pytest.mark.parametrize("config", [SMALL, FLAT])
def test_a_card_holds_every_switch(config: LmaUnetConfig) -> None:
    assert config_from_plain("lma-unet", config_to_plain(config)) == config
    assert isinstance(build("lma-unet", config), LmaUnet)


def test_it_is_marked_as_an_experiment() -> None:
    assert NETWORKS["lma-unet"].status == "experimental"
