from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models.blocks import ResidualBlock
from contourcast.models.lkm_unet import (
    BiM,
    LkmUnet,
    LkmUnetConfig,
    PaM,
    PiM,
    PooledBlock,
    whole,
    windows,
)
from contourcast.models.mamba import MambaConfig
from contourcast.models.networks import build, config_from_plain, config_to_plain
from support import golden
from support.golden import fill
from support.golden_settings import LKM_FLAT, LKM_SOLID, shown

SMALL = LkmUnetConfig(
    features=(4, 8, 8),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(2, 1, 1),
    decoder_blocks_asked=(1, 1),
)
FLAT = replace(SMALL, kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 2)))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def woken(config: LkmUnetConfig) -> LkmUnet:
    """Not at birth, when every residual branch is switched off."""
    network = LkmUnet(config).eval()
    for module in network.modules():
        if isinstance(module, PooledBlock | ResidualBlock):
            nn.init.normal_(module.norm2.weight)
    return network


class TestWhole:
    @pytest.mark.parametrize("shape", [(8, 12, 16), (9, 11, 13), (5, 20, 7)])
    def test_any_size_comes_back_in_its_own_size(self, shape: tuple[int, ...]) -> None:
        assert LkmUnet(SMALL)(torch.randn(1, 2, *shape)).shape == (1, 2, *shape)

    def test_two_axes_work_as_well(self) -> None:
        assert LkmUnet(FLAT)(torch.randn(2, 2, 17, 20)).shape == (2, 2, 17, 20)

    def test_anisotropic_strides_and_kernels(self) -> None:
        config = replace(
            SMALL,
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        )
        assert LkmUnet(config)(torch.randn(1, 2, 7, 16, 18)).shape == (1, 2, 7, 16, 18)

    def test_deep_supervision_answers_at_every_level_finest_first(self) -> None:
        network = LkmUnet(SMALL)
        network.decoder.deep_supervision = True
        shapes = [tuple(v.shape[2:]) for v in network(torch.randn(1, 2, 8, 12, 16))]
        assert shapes == [(8, 12, 16), (4, 6, 8)]

    def test_a_gradient_reaches_every_parameter(self) -> None:
        network = woken(replace(SMALL, pam_pool="code")).train()
        network.decoder.deep_supervision = True
        torch.autograd.backward(sum(v.square().mean() for v in network(torch.randn(1, 2, 8, 8, 8))))
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # a constant added before an InstanceNorm changes nothing: those biases rest in theory
        assert [n for n in still if not n.endswith("bias")] == []

    def test_one_window_has_no_past_so_the_deepest_decay_of_pam_rests(self) -> None:
        """Automatic windows leave one token there; a state that begins at zero cannot decay."""
        network = woken(SMALL).train()
        torch.autograd.backward(network(torch.randn(1, 2, 8, 8, 8)).square().mean())
        grads = {n: p.grad for n, p in network.named_parameters() if n.endswith("A_log")}
        resting = [n for n, grad in grads.items() if grad is not None and not grad.any()]
        assert resting == [f"encoder.patch_layers.2.bim.{d}.A_log" for d in ("forth", "back")]

    def test_at_birth_every_block_passes_its_shortcut_on(self) -> None:
        block = LkmUnet(SMALL).encoder.stages[0][1]
        x = torch.randn(1, 4, 6, 6, 6)
        assert torch.equal(block(x), nn.functional.leaky_relu(x, 0.01))

    def test_saved_and_loaded_it_answers_the_same(self) -> None:
        network, other = woken(SMALL), LkmUnet(SMALL).eval()
        other.load_state_dict(copy.deepcopy(network.state_dict()))
        x = torch.randn(1, 2, 8, 8, 8)
        assert torch.equal(network(x), other(x))

    def test_it_answers_alike_alone_and_in_company(self) -> None:
        """No dropout, no statistics of a batch; in float64, where rounding is nothing."""
        network = woken(SMALL).double()
        x = torch.randn(2, 2, 8, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-10)
            assert torch.equal(network(x), network(x))

    def test_bfloat16_in_and_close_to_float32_out(self) -> None:
        network = woken(SMALL)
        x = torch.randn(1, 2, 8, 12, 16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = network(x.bfloat16()).float()
        with torch.no_grad():
            full = network(x)
        assert torch.isfinite(low).all()
        assert float((low - full).norm() / full.norm()) < 0.05

    def test_no_tensor_is_stored_twice(self) -> None:
        places = [v.data_ptr() for v in LkmUnet(SMALL).state_dict().values()]
        assert len(set(places)) == len(places)

    def test_a_patch_that_shrinks_to_one_voxel_is_refused(self) -> None:
        with pytest.raises(InputError, match="single voxel"):
            LkmUnet(SMALL)(torch.randn(1, 2, 4, 4, 4))
        with pytest.raises(InputError, match="axes"):
            LkmUnet(SMALL)(torch.randn(1, 2, 16, 16))


class TestSwitches:
    def test_the_article_s_window_sizes_in_three_axes(self) -> None:
        assert LkmUnetConfig().pixel_windows((160, 224, 192)) == [
            (20, 28, 24),
            (20, 28, 24),
            (10, 14, 12),
            (10, 14, 12),
            (5, 7, 6),
            (5, 7, 6),
        ]

    def test_the_article_s_window_sizes_in_two_axes(self) -> None:
        seven = LkmUnetConfig(
            features=(32,) * 7,
            kernels=((3, 3),) * 7,
            strides=((1, 1),) + ((2, 2),) * 6,
            blocks=(2,) * 7,
            decoder_blocks_asked=(2,) * 6,
        )
        edges = [w[0] for w in seven.pixel_windows((320, 320))]
        assert edges == [40, 20, 20, 10, 10, 5, 5]

    def test_the_code_pools_cubes(self) -> None:
        config = LkmUnetConfig(pam_pool="code")
        edges = [set(w) for w in config.patch_windows((128, 128, 128))]
        assert edges == [{4}, {4}, {2}, {2}, {1}, {1}]
        assert LkmUnetConfig().patch_windows((128,) * 3) == LkmUnetConfig().pixel_windows(
            (128,) * 3
        )

    def test_windows_that_are_named_are_used_and_never_larger_than_the_stage(self) -> None:
        config = replace(SMALL, windows=((4, 4, 4), (3, 3, 3), (8, 8, 8)))
        assert config.pixel_windows((8, 8, 12)) == [(4, 4, 4), (3, 3, 3), (2, 2, 3)]

    def test_the_article_s_stem_halves_the_image_and_reads_each_channel_by_itself(self) -> None:
        config = replace(SMALL, stem="paper")
        network = woken(config)
        assert config.reduction == (8, 8, 8)
        assert network.encoder.stem[0].weight.shape == (48, 1, 3, 3, 3)
        network.decoder.deep_supervision = True
        shapes = [tuple(v.shape[2:]) for v in network(torch.randn(1, 2, 18, 16, 17))]
        assert shapes == [(18, 16, 17), (5, 4, 5)]

    @pytest.mark.parametrize("axes", [SMALL, FLAT])
    def test_every_switch_changes_the_answer(self, axes: LkmUnetConfig) -> None:
        x = torch.randn(1, 2, *(24,) * axes.axes)
        base = woken(axes)
        changes: list[dict[str, Any]] = [
            {"pim_partition": "grid"},
            {"pam_pool": "code"},
            {"windows": ((24,) * axes.axes,) * 3},
        ]
        for change in changes:
            other = LkmUnet(replace(axes, **change)).eval()
            other.load_state_dict(base.state_dict())
            with torch.no_grad():
                assert not torch.allclose(other(x), base(x), atol=1e-4), change

    @pytest.mark.parametrize(
        "change",
        [
            {"features": (4, 8)},
            {"windows": ((4, 4, 4),) * 2},
            {"windows": ((4, 4),) * 3},
            {"windows": ((4, 4, 0),) * 3},
            {"stem": "paper", "channels_in": 5},
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            replace(SMALL, **change)

    @pytest.mark.parametrize("config", [SMALL, replace(SMALL, windows=((4, 4, 4),) * 3)])
    def test_a_card_holds_every_switch(self, config: LkmUnetConfig) -> None:
        assert config_from_plain("lkm-unet", config_to_plain(config)) == config
        assert isinstance(build("lkm-unet", config), LkmUnet)


class TestRoute:
    def test_a_sequence_is_a_window(self) -> None:
        route = windows((8, 8), (4, 4), partition="window", device=CPU)
        assert route.visits[0].tolist() == [
            0,
            1,
            2,
            3,
            8,
            9,
            10,
            11,
            16,
            17,
            18,
            19,
            24,
            25,
            26,
            27,
        ]
        assert route.visits[1, :5].tolist() == [4, 5, 6, 7, 12]
        assert route.visits[2, 0] == 32

    def test_in_the_code_a_sequence_is_a_voxel_of_every_window(self) -> None:
        route = windows((8, 8), (4, 4), partition="grid", device=CPU)
        assert route.visits.shape == (16, 4)
        assert route.visits[0].tolist() == [0, 4, 32, 36]
        assert route.visits[1].tolist() == [1, 5, 33, 37]

    def test_windows_of_three_axes_have_x_fastest(self) -> None:
        route = windows((2, 4, 6), (2, 2, 3), partition="window", device=CPU)
        assert route.visits[0].tolist() == [0, 1, 2, 6, 7, 8, 24, 25, 26, 30, 31, 32]
        assert route.visits[:, 0].tolist() == [0, 3, 12, 15]

    def test_windows_at_the_border_are_shorter_and_end_in_nothing(self) -> None:
        route = windows((3, 5), (2, 4), partition="window", device=CPU)
        assert route.visits.tolist() == [
            [0, 1, 2, 3, 5, 6, 7, 8],
            [4, 9, 15, 15, 15, 15, 15, 15],
            [10, 11, 12, 13, 15, 15, 15, 15],
            [14, 15, 15, 15, 15, 15, 15, 15],
        ]
        assert route.reverse().visits.tolist()[:2] == [
            [8, 7, 6, 5, 3, 2, 1, 0],
            [9, 4, 15, 15, 15, 15, 15, 15],
        ]

    @pytest.mark.parametrize("partition", ["window", "grid"])
    @pytest.mark.parametrize(
        ("shape", "window"),
        [((8, 8), (4, 4)), ((7, 5), (4, 3)), ((4, 6, 8), (2, 3, 4)), ((5, 7, 6), (2, 3, 4))],
    )
    def test_there_and_back_is_the_identity(
        self, shape: tuple[int, ...], window: tuple[int, ...], partition: Any
    ) -> None:
        route = windows(shape, window, partition=partition, device=CPU)
        tokens = torch.randn(2, route.voxels, 3)
        for each in (route, route.reverse(), route.reverse().reverse()):
            assert torch.equal(each.back(each.there(tokens)), tokens)


class TestBiM:
    @pytest.mark.parametrize(
        ("width", "wanted"),
        [(32, 17_856), (64, 57_216), (128, 200_448), (256, 744_960), (320, 1_146_240)],
    )
    def test_parameters(self, width: int, wanted: int) -> None:
        assert sum(p.numel() for p in BiM(width, MambaConfig()).parameters()) == wanted

    def test_with_its_directions_exchanged_it_reads_from_the_end(self) -> None:
        layer = BiM(8, MambaConfig())
        other = copy.deepcopy(layer)
        other.forth, other.back = other.back, other.forth
        tokens = torch.randn(2, 11, 8)
        route = whole((11,), CPU)
        assert torch.allclose(other(tokens.flip(1), route), layer(tokens, route).flip(1), atol=1e-5)

    def test_a_token_hears_of_those_before_and_those_after_it(self) -> None:
        layer = BiM(8, MambaConfig())
        tokens = torch.randn(1, 11, 8)
        changed = tokens.clone()
        changed[:, 5] += torch.randn(8)
        route = whole((11,), CPU)
        assert (layer(changed, route) - layer(tokens, route)).abs().sum(2).gt(0).all()


def by_hand(layer: BiM, pieces: Tensor) -> Tensor:
    """Forwards and from the end over (pieces, length, channels), with two plain calls."""
    u = layer.norm(pieces)
    together = layer.forth(u) + layer.back(u.flip(1)).flip(1)
    out: Tensor = layer.out_proj(together)
    return out


class TestPiM:
    @pytest.mark.parametrize("shape", [(4, 6, 6), (5, 7, 8)])
    def test_every_window_is_read_by_itself_also_the_smaller_ones_at_the_border(
        self, shape: tuple[int, ...]
    ) -> None:
        """Nothing of a border's filling can be felt inside: each piece is as if cut out."""
        layer = PiM(4, SMALL)
        x = torch.randn(1, 4, *shape)
        found = layer(x, (4, 3, 3))
        for z in range(0, shape[0], 4):
            for y in range(0, shape[1], 3):
                for x0 in range(0, shape[2], 3):
                    piece = x[0, :, z : z + 4, y : y + 3, x0 : x0 + 3]
                    wanted = piece + by_hand(layer.bim, piece.flatten(1).T[None])[0].T.reshape(
                        piece.shape
                    )
                    cut = found[0, :, z : z + 4, y : y + 3, x0 : x0 + 3]
                    assert torch.allclose(cut, wanted, atol=1e-5)

    def test_the_grid_reads_one_voxel_of_every_window(self) -> None:
        layer = PiM(4, replace(FLAT, pim_partition="grid"))
        x = torch.randn(1, 4, 6, 8)
        found = layer(x, (3, 4))
        strided = x[0, :, 1::3, 2::4]
        wanted = strided + by_hand(layer.bim, strided.flatten(1).T[None])[0].T.reshape(4, 2, 2)
        assert torch.allclose(found[0, :, 1::3, 2::4], wanted, atol=1e-5)

    def test_images_of_a_batch_do_not_mix(self) -> None:
        layer = PiM(4, SMALL)
        x = torch.randn(3, 4, 5, 5, 5)
        both = layer(x, (2, 3, 2))
        assert torch.allclose(both[1:2], layer(x[1:2], (2, 3, 2)), atol=1e-6)


class TestPaM:
    def test_the_means_of_windows_are_one_sequence_and_every_voxel_hears_of_its_own(self) -> None:
        """Windows at the border are means of the voxels that are there."""
        layer = PaM(4, FLAT)
        x = torch.randn(1, 4, 5, 7)
        found = layer(x, (4, 4)) - x
        rows, columns = (slice(0, 4), slice(4, 5)), (slice(0, 4), slice(4, 7))
        means = torch.stack([x[0, :, r, c].mean((1, 2)) for r in rows for c in columns])
        heard = by_hand(layer.bim, means[None])[0]
        for i, (r, c) in enumerate((r, c) for r in rows for c in columns):
            assert torch.allclose(
                found[0, :, r, c], heard[i, :, None, None].expand_as(found[0, :, r, c]), atol=1e-5
            )

    def test_windows_of_one_voxel_are_the_voxels(self) -> None:
        layer = PaM(4, SMALL)
        x = torch.randn(1, 4, 3, 4, 2)
        tokens = x.flatten(2).transpose(1, 2)
        wanted = x + by_hand(layer.bim, tokens).transpose(1, 2).reshape(x.shape)
        assert torch.allclose(layer(x, (1, 1, 1)), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [PiM, PaM])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_comes_in_and_float32_goes_out(
    kind: type[PiM | PaM], dtype: torch.dtype
) -> None:
    layer = kind(4, SMALL)
    x = (torch.randn(1, 4, 5, 4, 6) * 1e3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, (2, 2, 3))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert torch.equal(found, layer(x.float(), (2, 2, 3)))


class TestAuthors:
    """The code's reading, weight by weight: tests/golden/lkm_unet_segmamba.py."""

    @pytest.mark.parametrize(
        ("name", "config", "shape"),
        [("solid", LKM_SOLID, (20, 28, 24)), ("flat", LKM_FLAT, (20, 20))],
    )
    def test_their_own_modules_give_the_same_logits(
        self, name: str, config: LkmUnetConfig, shape: tuple[int, ...]
    ) -> None:
        network = LkmUnet(config).eval()
        fill(network)
        network.decoder.deep_supervision = True
        wanted = golden.read("lkm_unet")
        with torch.no_grad():
            for level, logits in enumerate(network(golden.image(2, *shape))):
                expected = wanted[f"{name}_{level}"]
                found = shown(logits)
                assert found.shape == expected.shape
                assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
