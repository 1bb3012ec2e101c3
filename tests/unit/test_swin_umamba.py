"""Swin-UMamba, its VSS-decoder form, and the one with gated fusion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.networks import build, config_from_plain, config_to_plain, entry
from contourcast.models.slicewise import on_volume
from contourcast.models.swin_umamba_cffm import GatedFusion, WindowAttention
from contourcast.training.loop import deep_loss
from support.data import peer_module

SMALL: dict[str, dict[str, Any]] = {
    "swin-umamba": {"stem": 4, "dims": (6, 8, 12), "depths": (1, 1, 1)},
    "swin-umamba-d": {"dims": (6, 8, 12), "depths": (1, 2, 1)},
    "swin-umamba-cffm": {"dims": (6, 8, 12), "blocks": 2, "window": 3, "fusion": 8},
}
LEVELS = {
    "swin-umamba": [(16, 32), (8, 16), (4, 8)],
    "swin-umamba-d": [(16, 32), (4, 8), (2, 4)],
    "swin-umamba-cffm": [(16, 32)],
}
every = pytest.mark.parametrize("name", list(SMALL))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(name: str, **changes: Any) -> Any:
    return build(name, entry(name).config_kind(**SMALL[name] | changes))


@every
def test_an_image_comes_back_in_its_own_size(name: str) -> None:
    assert small(name)(torch.randn(2, 2, 16, 48)).shape == (2, 2, 16, 48)


@every
def test_sizes_that_do_not_fit_are_refused_and_those_that_do_are_named(name: str) -> None:
    with pytest.raises(InputError, match=r"use \(32, 16\)"):
        small(name)(torch.randn(1, 2, 20, 16))
    config = entry(name).config_kind()
    config.require_patch((64, 96))
    with pytest.raises(InputError, match=r"use \(64, 64\)"):
        config.require_patch((48, 64))
    with pytest.raises(InputError, match="axes"):
        config.require_patch((32, 64, 64))


@every
def test_deep_supervision_answers_at_every_level_finest_first(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(1, 2, 16, 32)
    alone = network(x)
    network.decoder.deep_supervision = True
    levels = network(x)
    assert [tuple(v.shape[2:]) for v in levels] == LEVELS[name]
    assert torch.equal(levels[0], alone)


@every
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    network = small(name, drop_path=0.0) if name != "swin-umamba-cffm" else small(name)
    network.decoder.deep_supervision = True
    x = torch.randn(1, 2, 32, 64)  # the deepest windows, too, hold more than one token
    torch.autograd.backward(sum(v.square().mean() for v in network(x)))
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a constant before an InstanceNorm changes nothing
    assert [n for n in still if n != "stem.0.bias"] == []


@every
def test_what_is_kept_and_filled_in_again_answers_alike(name: str) -> None:
    first, second = small(name).eval(), small(name).eval()
    x = torch.randn(1, 2, 16, 16)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    places = [v.data_ptr() for v in first.state_dict().values()]
    assert len(set(places)) == len(places)


@every
def test_its_configuration_survives_json(name: str) -> None:
    config = entry(name).config_kind(**SMALL[name])
    assert config_from_plain(name, config_to_plain(config)) == config


@pytest.mark.parametrize(
    "wrong", [{"dims": (8,)}, {"dims": (8, 0)}, {"dims": (8,) * 7}, {"dims": (8, 9000)}]
)
@every
def test_sizes_of_no_network_are_refused(name: str, wrong: dict[str, Any]) -> None:
    depths = {} if name == "swin-umamba-cffm" else {"depths": (1,) * len(wrong["dims"])}
    with pytest.raises(InputError, match="dims"):
        entry(name).config_kind(**wrong | depths)


def test_windows_of_no_size_and_odd_stems_are_refused() -> None:
    for wrong in ({"window": 0}, {"fusion": 0}, {"dims": (7, 8)}):
        with pytest.raises(InputError):
            entry("swin-umamba-cffm").config_kind(**wrong)


@every
def test_at_inference_nothing_is_left_out_and_no_image_minds_its_company(name: str) -> None:
    network = small(name, **({} if name == "swin-umamba-cffm" else {"drop_path": 0.9}))
    network.double()  # where rounding is nothing
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    if name != "swin-umamba-cffm":
        assert not torch.equal(network(x), network(x)), "stochastic depth in training"
    network.eval()
    with torch.no_grad():
        both, again, alone = network(x), network(x), network(x[:1])
    assert torch.equal(both, again)
    assert torch.allclose(both[:1], alone, atol=1e-10)


@every
def test_bfloat16_is_finite_and_close_to_float32(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(1, 2, 16, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = network(x.bfloat16()).float()
    with torch.no_grad():
        full = network(x)
        loud = network(1e3 * x)
    assert torch.isfinite(low).all()
    assert torch.isfinite(loud).all()
    assert float((low - full).norm() / full.norm()) < 0.06


def trained(name: str) -> tuple[Any, list[float]]:
    """Three steps on slices of a small volume, as the training loop takes them."""
    torch.manual_seed(5)
    network = small(name)
    network.decoder.deep_supervision = True
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    label = torch.zeros(1, 4, 16, 16)
    label[:, 1:3, 4:12, 4:12] = 1
    x = torch.stack((label + 0.1 * torch.randn_like(label), label), 1)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = deep_loss(on_volume(network, x), label)  # type: ignore[arg-type]
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    return network, losses


@every
def test_three_steps_teach_it_something_and_are_repeated_to_the_bit(name: str) -> None:
    (one, losses), (other, again) = trained(name), trained(name)
    assert losses[-1] < losses[0]
    assert losses == again
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@every
def test_the_decoder_sees_every_level_of_the_encoder(name: str) -> None:
    network = small(name).eval()
    x = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        if name == "swin-umamba":
            stem = network.stem(x)
            features = [x, stem, *network.vssm_encoder(stem)]
        elif name == "swin-umamba-d":
            features = network.vssm_encoder(x)
        else:
            features = [x, *network.encoder(x)]
        base = network.decoder(list(features))
        for level in range(len(features)):
            changed = list(features)
            changed[level] = changed[level] + torch.randn_like(changed[level])
            assert not torch.allclose(network.decoder(changed), base), f"level {level}"


class TestWindows:
    """Gated fusion's attention."""

    def attention(self, *, shifted: bool) -> WindowAttention:
        return WindowAttention(8, window=3, shifted=shifted).double()

    def reach(self, layer: WindowAttention, place: tuple[int, int]) -> set[tuple[int, int]]:
        """Which tokens of a 6 x 7 image see the one at a place."""
        x = torch.randn(1, 6, 7, 8, dtype=torch.float64)
        changed = x.clone()
        changed[0, place[0], place[1]] += 1
        seen = (layer(x) != layer(changed)).any(-1)[0]
        return {(int(y), int(x)) for y, x in seen.nonzero()}

    def test_tokens_see_their_window_and_nothing_else(self) -> None:
        assert self.reach(self.attention(shifted=False), (1, 4)) == {
            (y, x) for y in (0, 1, 2) for x in (3, 4, 5)
        }

    def test_an_incomplete_window_is_what_is_there(self) -> None:
        assert self.reach(self.attention(shifted=False), (4, 6)) == {(3, 6), (4, 6), (5, 6)}

    def test_shifted_windows_do_not_join_the_image_s_ends(self) -> None:
        assert self.reach(self.attention(shifted=True), (0, 0)) == {(0, 0)}
        assert self.reach(self.attention(shifted=True), (1, 1)) == {
            (y, x) for y in (1, 2, 3) for x in (1, 2, 3)
        }

    def test_what_is_filled_in_changes_nothing(self) -> None:
        layer = self.attention(shifted=False)
        x = torch.randn(1, 3, 5, 8, dtype=torch.float64)
        q, k, v = layer.qkv(x[:, :, 3:]).reshape(6, 3, 1, 8).permute(1, 2, 0, 3)
        places = [(y, x) for y in range(3) for x in range(2)]
        bias = torch.stack([
            torch.stack([layer.bias[(a[0] - b[0] + 2) * 5 + a[1] - b[1] + 2] for b in places])
            for a in places
        ])[..., 0]  # fmt: skip
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        wanted = layer.proj(plain[0]).reshape(3, 2, 8)
        assert torch.allclose(layer(x)[0, :, 3:], wanted, atol=1e-12)

    def test_an_open_gate_lets_the_scans_speak_and_a_closed_one_the_attention(self) -> None:
        fusion = GatedFusion(4, 8)
        dynamic, window = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
        for bias, wanted in (
            (1e4, fusion.dynamic(dynamic)),
            (-1e4, fusion.window(window)),
        ):
            with torch.no_grad():
                fusion.gate.bias.fill_(bias)
            assert torch.allclose(fusion(dynamic, window), fusion.back(wanted), atol=1e-5)


@pytest.mark.peer
def test_the_decoder_s_blocks_are_monai_s() -> None:
    blocks = peer_module("monai.networks.blocks.unetr_block")
    from contourcast.models.blocks import UnetrBlock, UnetrUp

    for widths in torch.tensor(((4, 6), (6, 6))).tolist():
        theirs = blocks.UnetrBasicBlock(2, *widths, 3, 1, "instance", res_block=True).layer
        block = UnetrBlock(*widths, axes=2)
        names = ["conv1", "conv2"] + (["conv3"] if widths[0] != widths[1] else [])
        for name in names:
            getattr(block, name).weight = getattr(theirs, name).conv.weight
        x = torch.randn(2, widths[0], 8, 10)
        assert torch.allclose(block(x), theirs(x), atol=1e-5)
    their_up = blocks.UnetrUpBlock(2, 8, 6, 3, 4, "instance", res_block=True)
    up = UnetrUp(8, 6, axes=2, times=4)
    up.up.weight = their_up.transp_conv.conv.weight
    for name in ("conv1", "conv2", "conv3"):
        getattr(up.block, name).weight = getattr(their_up.conv_block, name).conv.weight
    x, skip = torch.randn(2, 8, 4, 5), torch.randn(2, 6, 16, 20)
    assert torch.allclose(up(x, skip), their_up(x, skip), atol=1e-5)
