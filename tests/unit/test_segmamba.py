from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from contourcast.imaging.errors import InputError
from contourcast.models.mamba import MambaConfig
from contourcast.models.networks import build, config_from_plain, config_to_plain
from contourcast.models.segmamba import (
    GatedConvolution,
    SegMamba,
    SegMambaConfig,
    TomLayer,
    TriMamba,
    along_slices,
    between_slices,
)
from support import golden
from support.data import peer_module
from support.golden import fill
from support.golden_settings import SEG_CODE, SEG_TENSOR, shown

SMALL = SegMambaConfig(features=(4, 6, 8, 8), hidden=10, depths=(1, 2, 1, 1))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class TestWhole:
    def test_the_answer_has_the_input_s_size(self) -> None:
        assert SegMamba(SMALL)(torch.randn(1, 2, 16, 32, 48)).shape == (1, 2, 16, 32, 48)

    @pytest.mark.parametrize("shape", [(33, 32, 32), (16, 16, 24), (32, 32)])
    def test_sizes_that_it_cannot_halve_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError):
            SegMamba(SMALL)(torch.randn(1, 2, *shape))

    def test_the_refusal_names_a_size_that_fits(self) -> None:
        with pytest.raises(InputError) as refusal:
            SMALL.require_patch((33, 32, 20))
        assert refusal.value.remedy == "use (48, 32, 32)"
        with pytest.raises(InputError, match="single voxel"):
            SMALL.require_patch((16, 16, 16))

    def test_deep_supervision_is_a_list_of_one(self) -> None:
        network = SegMamba(SMALL)
        network.decoder.deep_supervision = True
        assert [tuple(v.shape) for v in network(torch.randn(1, 2, 16, 16, 32))] == [
            (1, 2, 16, 16, 32)
        ]

    @pytest.mark.parametrize("config", [SMALL, replace(SMALL, mlp="paper", gsc="product")])
    def test_a_gradient_reaches_every_parameter(self, config: SegMambaConfig) -> None:
        network = SegMamba(config)
        torch.autograd.backward(network(torch.randn(1, 2, 16, 32, 32)).square().mean())
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # a constant added before an InstanceNorm changes nothing: those biases rest in theory
        assert [n for n in still if not n.endswith("bias")] == []

    def test_saved_and_loaded_it_answers_the_same(self) -> None:
        network, other = SegMamba(SMALL).eval(), SegMamba(SMALL).eval()
        other.load_state_dict(copy.deepcopy(network.state_dict()))
        x = torch.randn(1, 2, 16, 16, 32)
        assert torch.equal(network(x), other(x))

    def test_it_answers_alike_alone_and_in_company(self) -> None:
        """No dropout, no statistics of a batch; in float64, where rounding is nothing."""
        network = SegMamba(SMALL).eval().double()
        x = torch.randn(2, 2, 16, 16, 32, dtype=torch.float64)
        with torch.no_grad():
            assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-10)
            assert torch.equal(network(x), network(x))

    def test_bfloat16_in_and_close_to_float32_out(self) -> None:
        network = SegMamba(SMALL).eval()
        x = torch.randn(1, 2, 32, 32, 32)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = network(x.bfloat16()).float()
        with torch.no_grad():
            full = network(x)
        assert torch.isfinite(low).all()
        assert float((low - full).norm() / full.norm()) < 0.1

    def test_no_tensor_is_stored_twice(self) -> None:
        places = [v.data_ptr() for v in SegMamba(SMALL).state_dict().values()]
        assert len(set(places)) == len(places)

    def test_the_decoder_hears_of_the_image_and_of_every_scale(self) -> None:
        network = SegMamba(SMALL).eval()
        x = torch.randn(1, 2, 32, 32, 32)
        base = network(x)
        for i, skip in enumerate(network.skips):
            hook = skip.register_forward_hook(lambda _m, _i, out: out + torch.randn_like(out))
            assert not torch.allclose(network(x), base, atol=1e-3), f"scale {i}"
            hook.remove()


class TestSwitches:
    @pytest.mark.parametrize(
        "change",
        [
            {"features": (4, 4, 4)},
            {"depths": (1, 1, 1, 0)},
            {"slices": (4, 4)},
            {"hidden": 0},
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            replace(SMALL, **change)

    def test_numbers_of_slices_belong_to_a_patch(self) -> None:
        """The code's 64, 32, 16, 8 are planes of 128 voxels; elsewhere they cut planes apart."""
        code = replace(SMALL, slices=(64, 32, 16, 8))
        code.require_patch((128, 128, 128))
        with pytest.raises(InputError, match=r"12 tokens of a patch of \(16, 48, 64\).* 8 slices"):
            SegMamba(code)(torch.randn(1, 2, 16, 48, 64))

    def test_slices_of_the_tensor_are_those_named(self) -> None:
        network = SegMamba(SMALL).eval()
        named = SegMamba(replace(SMALL, slices=(16, 8, 4, 2))).eval()
        other = SegMamba(replace(SMALL, slices=(8, 8, 4, 2))).eval()
        for each in (named, other):
            each.load_state_dict(network.state_dict())
        x = torch.randn(1, 2, 32, 16, 16)
        with torch.no_grad():
            assert torch.equal(named(x), network(x))
            assert not torch.allclose(other(x), network(x), atol=1e-5)

    def test_the_article_s_mlp_is_in_every_layer_and_not_on_the_skips(self) -> None:
        network = SegMamba(replace(SMALL, mlp="paper"))
        assert sum(isinstance(m, nn.GELU) for m in network.modules()) == sum(SMALL.depths)
        assert not [n for n, _ in network.named_parameters() if "mlps" in n]

    @pytest.mark.parametrize("config", [SMALL, replace(SMALL, slices=(4, 4, 2, 2))])
    def test_a_card_holds_every_switch(self, config: SegMambaConfig) -> None:
        assert config_from_plain("segmamba", config_to_plain(config)) == config
        assert isinstance(build("segmamba", config), SegMamba)


class TestInterSlice:
    def test_position_p_of_slice_s_moves_to_p_times_slices_plus_s(self) -> None:
        slices, positions = 3, 4
        tokens = torch.arange(slices * positions).reshape(1, -1, 1)
        moved = between_slices(tokens, slices)
        for s in range(slices):
            for p in range(positions):
                assert moved[0, p * slices + s, 0] == tokens[0, s * positions + p, 0]

    def test_the_inverse_restores(self) -> None:
        tokens = torch.randn(2, 30, 5)
        assert torch.equal(along_slices(between_slices(tokens, 6), 6), tokens)

    def test_a_slice_is_a_plane_of_one_z(self) -> None:
        """Voxel (z, y, x) is followed by (z + 1, y, x): the third direction runs along z."""
        z, y, x = 3, 2, 4
        voxels = torch.arange(z * y * x).reshape(1, z, y, x)
        order = between_slices(voxels.flatten()[None, :, None], z)[0, :, 0]
        assert order[:4].tolist() == [0, 8, 16, 1]


class TestTriMamba:
    def test_it_is_the_sum_of_three_directions_written_out(self) -> None:
        layer = TriMamba(8, MambaConfig())
        h = torch.randn(2, 12, 8)
        xz = layer.in_proj(h)
        order = [s * 4 + p for p in range(4) for s in range(3)]
        across = torch.empty(2, 12, 16)
        across[:, order] = layer.across(xz[:, order])
        wanted = layer.out_proj(layer.forth(xz) + layer.back(xz.flip(1)).flip(1) + across)
        assert torch.allclose(layer(h, 3), wanted, atol=1e-6)

    @pytest.mark.parametrize(
        ("core", "hearing"),
        [
            ("forth", [5, 6, 7, 8, 9, 10, 11]),
            ("back", [0, 1, 2, 3, 4, 5]),
            ("across", [2, 3, 5, 6, 7, 9, 10, 11]),
        ],
    )
    def test_each_direction_has_its_own_past(self, core: str, hearing: list[int]) -> None:
        """Token 5 of 12 (slice 1, position 1 of 3 x 4) is heard from there on, in that order."""
        layer = TriMamba(8, MambaConfig())
        for name in {"forth", "back", "across"} - {core}:
            for p in getattr(layer, name).parameters():
                nn.init.zeros_(p)
        h = torch.randn(1, 12, 8)
        changed = h.clone()
        changed[:, 5] += torch.randn(8)
        difference = (layer(changed, 3) - layer(h, 3)).abs().sum(2)[0]
        assert difference.gt(1e-7).nonzero()[:, 0].tolist() == hearing

    def test_the_layer_adds_its_input(self) -> None:
        layer = TomLayer(8, SMALL)
        nn.init.zeros_(layer.mamba.out_proj.weight)
        x = torch.randn(1, 8, 3, 4, 5)
        assert torch.equal(layer(x, None), x)

    def test_lower_precision_comes_in_and_float32_goes_out(self) -> None:
        layer = TomLayer(8, SMALL)
        x = torch.randn(1, 8, 3, 4, 5) * 1e3
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x.half(), None)
        assert found.dtype == torch.float32
        assert torch.equal(found, layer(x.half().float(), None))


class TestGatedConvolution:
    @pytest.mark.parametrize(("join", "kernel"), [("sum", 1), ("product", 3)])
    def test_how_the_branches_are_joined(self, join: Any, kernel: int) -> None:
        layer = GatedConvolution(4, join)
        assert layer.out.kernel_size == (kernel,) * 3
        x = torch.randn(1, 4, 5, 6, 7)

        def norm_relu(v: torch.Tensor) -> torch.Tensor:
            mean, sd = v.mean((2, 3, 4), keepdim=True), v.std((2, 3, 4), False, keepdim=True)
            return ((v - mean) / (sd.square() + 1e-5).sqrt()).clamp(min=0)

        wide = norm_relu(layer.wide2(norm_relu(layer.wide1(x))))
        gate = norm_relu(layer.gate(x))
        wanted = x + norm_relu(layer.out(wide + gate if join == "sum" else wide * gate))
        assert torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.peer
def test_blocks_are_those_of_monai() -> None:
    blocks = peer_module("monai.networks.blocks.unetr_block")
    network = SegMamba(SMALL)
    theirs = blocks.UnetrBasicBlock(3, 4, 6, 3, 1, "instance", res_block=True)
    ours = network.skips[1]
    theirs.layer.load_state_dict(
        {k.replace(".weight", ".conv.weight"): v for k, v in ours.state_dict().items()}
    )
    x = torch.randn(1, 4, 6, 8, 10)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    up_theirs = blocks.UnetrUpBlock(3, 10, 8, 3, 2, "instance", res_block=True)
    up_ours = network.ups[0]
    up_theirs.load_state_dict(
        {
            k.replace("up.", "transp_conv.conv.")
            .replace("block.", "conv_block.")
            .replace(".weight", ".conv.weight" if "block" in k else ".weight"): v
            for k, v in up_ours.state_dict().items()
        }
    )
    deep, skip = torch.randn(1, 10, 3, 4, 5), torch.randn(1, 8, 6, 8, 10)
    assert torch.allclose(up_ours(deep, skip), up_theirs(deep, skip), atol=1e-5)


class TestAuthors:
    """The code's reading, weight by weight: tests/golden/lkm_unet_segmamba.py."""

    @pytest.mark.parametrize(("name", "config"), [("tensor", SEG_TENSOR), ("code", SEG_CODE)])
    def test_their_own_modules_give_the_same_logits(
        self, name: str, config: SegMambaConfig
    ) -> None:
        network = SegMamba(config).eval()
        fill(network)
        expected = golden.read("segmamba")[f"{name}_0"]
        with torch.no_grad():
            found = shown(network(golden.image(2, 32, 16, 64)))
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
