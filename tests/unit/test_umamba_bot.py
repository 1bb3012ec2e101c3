from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.networks import config_from_plain, config_to_plain
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig

SMALL = UMambaConfig(
    features=(4, 8, 16),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(2,) * 3,
    decoder_blocks_asked=(2,) * 2,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(10, 14, 12), (9, 11, 13), (5, 24, 24)])
def test_any_size_comes_back_in_its_own_size(shape: tuple[int, ...]) -> None:
    logits = UMambaBot(SMALL)(torch.randn(2, 2, *shape))
    assert logits.shape == (2, 2, *shape)


def test_anisotropic_strides_and_kernels() -> None:
    config = replace(
        SMALL, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3))
    )
    assert UMambaBot(config)(torch.randn(1, 2, 7, 16, 18)).shape == (1, 2, 7, 16, 18)


def test_two_axes_work_as_well() -> None:
    config = replace(SMALL, kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 2)))
    assert UMambaBot(config)(torch.randn(1, 2, 17, 20)).shape == (1, 2, 17, 20)


def test_deep_supervision_answers_at_every_level_finest_first() -> None:
    network = UMambaBot(SMALL)
    network.decoder.deep_supervision = True
    shapes = [tuple(v.shape[2:]) for v in network(torch.randn(1, 2, 8, 12, 16))]
    assert shapes == [(8, 12, 16), (4, 6, 8)]


def test_a_gradient_reaches_every_parameter() -> None:
    network = UMambaBot(SMALL)
    network.decoder.deep_supervision = True
    torch.autograd.backward(sum(v.square().mean() for v in network(torch.randn(1, 2, 8, 8, 8))))
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a constant added before an InstanceNorm changes nothing: those biases rest in theory
    assert [n for n in still if not n.endswith("bias")] == []


def test_block_numbers_follow_the_published_rule_and_are_not_written_into_the_config() -> None:
    config = UMambaConfig()
    before = copy.deepcopy(config_to_plain(config))
    assert config.encoder_blocks == (2, 2, 2, 1, 1, 1)
    assert config.decoder_blocks == (2, 2, 2, 1, 1)
    UMambaBot(SMALL)
    assert config_to_plain(UMambaConfig()) == before
    assert before["blocks"] == [2] * 6


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [(5, (2, 2, 2, 1, 1), (2, 2, 2, 1)), (7, (2, 2, 2, 2, 1, 1, 1), (2, 2, 2, 2, 1, 1))],
)
def test_block_numbers_of_other_depths(
    stages: int, encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> None:
    config = UMambaConfig(
        features=(8,) * stages,
        kernels=((3, 3, 3),) * stages,
        strides=((2, 2, 2),) * stages,
        blocks=(2,) * stages,
        decoder_blocks_asked=(2,) * (stages - 1),
    )
    assert (config.encoder_blocks, config.decoder_blocks) == (encoder, decoder)


def test_a_patch_that_shrinks_to_one_voxel_is_refused() -> None:
    with pytest.raises(InputError, match="single voxel"):
        UMambaBot(SMALL)(torch.randn(1, 2, 4, 4, 4))
    assert SMALL.bottleneck_shape((5, 4, 4)) == (2, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"features": (4, 8)},
        {"blocks": (1, 1)},
        {"decoder_blocks_asked": (1,)},
        {"kernels": ((3, 3, 3), (3, 3), (3, 3, 3))},
        {"strides": ((1,), (2,), (2,)), "kernels": ((3,), (3,), (3,))},
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_identity_at_the_bottleneck_is_the_network_without_mamba() -> None:
    with_mamba = UMambaBot(SMALL)
    without = UMambaBot(replace(SMALL, bottleneck="identity"))
    kept = {k: v for k, v in with_mamba.state_dict().items() if not k.startswith("mamba_layer")}
    without.load_state_dict(kept)
    x = torch.randn(1, 2, 8, 8, 8)
    with_mamba.mamba_layer = torch.nn.Identity()
    assert torch.equal(with_mamba(x), without(x))


def test_the_decoder_sees_the_bottleneck_and_every_skip() -> None:
    network = UMambaBot(SMALL).eval()
    x = torch.randn(1, 2, 8, 8, 8)
    features = [f.detach() for f in network.encoder(x)]
    base = network.decoder(list(features))
    for level in range(3):
        changed = list(features)
        changed[level] = changed[level] + torch.randn_like(changed[level])
        assert not torch.allclose(network.decoder(changed), base), f"level {level}"


def test_configuration_survives_json_and_unknown_switches_do_not() -> None:
    plain = config_to_plain(SMALL)
    assert config_from_plain("umamba-bot", plain) == SMALL


def test_a_constant_image_is_answered_alike_inside() -> None:
    """No dropout, no statistics of a batch: twice the same, alone or in company."""
    network = UMambaBot(SMALL).eval().double()  # where rounding is nothing
    x = torch.randn(2, 2, 8, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        both, alone = network(x), network(x[:1])
    assert torch.allclose(both[:1], alone, atol=1e-10)
    assert torch.equal(network(x), network(x))


def test_bfloat16_in_and_close_to_float32_out() -> None:
    network = UMambaBot(SMALL).eval()
    x = torch.randn(1, 2, 8, 12, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = network(x.bfloat16()).float()
    with torch.no_grad():
        full = network(x)
    assert torch.isfinite(low).all()
    assert float((low - full).norm() / full.norm()) < 0.05
