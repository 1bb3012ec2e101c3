from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contourcast.imaging.errors import InputError
from contourcast.models.mamba import MambaConfig
from contourcast.models.networks import build, config_from_plain, config_to_plain, entry
from contourcast.models.nn_mamba import (
    MambaInConvolution,
    NnMamba,
    NnMambaClassifier,
    NnMambaClassifierConfig,
    NnMambaConfig,
    NnMambaLandmarks,
    SiameseMamba,
    Stage,
)
from contourcast.training.loop import TrainSettings, train
from contourcast.training.samples import SampleSettings, make_sample
from support.models import ball_case, ball_planned

MAMBA = MambaConfig(d_state=4, backend="reference")
SMALL = NnMambaConfig(width=4, blocks=2, mamba=MAMBA)
CLASSIFIER = NnMambaClassifierConfig(width=4, blocks=2, mamba=MAMBA)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class TestSiameseMamba:
    def test_it_is_the_mean_of_the_four_terms_written_out(self) -> None:
        layer = SiameseMamba(6, MAMBA).double()
        x = torch.randn(2, 6, 2, 3, 4, dtype=torch.float64)
        tokens = x.flatten(2).transpose(1, 2)  # (b l c)
        mamba = layer.mamba
        mean = (
            mamba(tokens)
            + mamba(tokens.flip(1)).flip(1)
            + mamba(tokens.flip(2)).flip(2)
            + mamba(tokens.flip(1).flip(2)).flip(1).flip(2)
        ) / 4
        wanted = mean.transpose(1, 2).reshape(x.shape)
        assert torch.allclose(layer(x), wanted, rtol=1e-12, atol=1e-14)

    def test_flipped_channels_or_a_flipped_image_give_the_flipped_answer(self) -> None:
        """What reading in four ways is for; Mamba alone does not have it."""
        layer = SiameseMamba(6, MAMBA).double()
        x = torch.randn(1, 6, 2, 3, 4, dtype=torch.float64)
        for axes in ((1,), (2, 3, 4), (1, 2, 3, 4)):
            assert torch.allclose(layer(x.flip(axes)), layer(x).flip(axes), atol=1e-12), axes
        tokens = x.flatten(2).transpose(1, 2)
        alone = layer.mamba
        assert not torch.allclose(alone(tokens.flip(2)), alone(tokens).flip(2), atol=1e-4)

    def test_it_computes_in_float32_whatever_comes_in(self) -> None:
        layer = SiameseMamba(6, MAMBA)
        x = 1e3 * torch.randn(1, 6, 2, 3, 4)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = layer(x.bfloat16())
        assert low.dtype == torch.float32
        assert torch.allclose(low, layer(x.bfloat16().float()), rtol=1e-5)


class TestStage:
    def test_one_mamba_runs_beside_all_blocks_but_the_first(self) -> None:
        stage = Stage(4, blocks=3, norm="instance", mamba=MAMBA)
        calls: list[torch.Tensor] = []
        assert isinstance(stage.miccss, MambaInConvolution)
        stage.miccss.register_forward_hook(lambda module, given, answer: calls.append(given[0]))
        x = torch.randn(1, 4, 8, 8, 8)
        stage(x)
        assert [tuple(v.shape) for v in calls] == [(1, 8, 4, 4, 4)] * 2
        assert torch.equal(calls[0], stage.first(x))
        assert sum(isinstance(m, SiameseMamba) for m in stage.modules()) == 1

    def test_it_is_added_to_the_convolutions_before_the_last_relu(self) -> None:
        stage = Stage(4, blocks=2, norm="instance", mamba=MAMBA)
        x = torch.randn(1, 4, 8, 8, 8)
        first = stage.first(x)
        (block,) = stage.others
        assert stage.miccss is not None
        wanted = (block.convolutions(first) + stage.miccss(first) + first).relu()  # type: ignore[operator]
        assert torch.allclose(stage(x), wanted)


class TestSegmentation:
    def test_an_image_comes_back_in_its_own_size(self) -> None:
        assert NnMamba(SMALL)(torch.randn(2, 2, 16, 32, 48)).shape == (2, 2, 16, 32, 48)

    def test_sizes_that_do_not_fit_are_refused_and_those_that_do_are_named(self) -> None:
        with pytest.raises(InputError, match=r"multiple of 16.*use \(48, 48, 32\)"):
            NnMamba(SMALL)(torch.randn(1, 2, 40, 40, 32))
        with pytest.raises(InputError, match=r"single voxel.*use \(16, 16, 32\)"):
            NnMamba(SMALL)(torch.randn(1, 2, 16, 16, 16))

    def test_logits_have_both_signs_and_those_of_the_published_head_have_not(self) -> None:
        x = torch.randn(1, 2, 16, 16, 32)
        with torch.no_grad():
            linear = NnMamba(SMALL)(x)
            code = NnMamba(replace(SMALL, head="code"))(x)
        assert float(linear.min()) < 0 < float(linear.max())
        assert float(code.min()) >= 0

    def test_deep_supervision_answers_at_every_level_finest_first(self) -> None:
        for head, count in (("linear", 4), ("code", 1)):
            network = NnMamba(replace(SMALL, head=head)).eval()  # type: ignore[arg-type]
            x = torch.randn(1, 2, 16, 32, 32)
            with torch.no_grad():
                alone = network(x)
                network.decoder.deep_supervision = True
                levels = network(x)
            sizes = [(16, 32, 32), (8, 16, 16), (4, 8, 8), (2, 4, 4)]
            assert [tuple(v.shape[2:]) for v in levels] == sizes[:count]
            assert torch.equal(levels[0], alone)

    @pytest.mark.parametrize("norm", ["instance", "batch"])
    def test_a_gradient_reaches_every_parameter(self, norm: str) -> None:
        network = NnMamba(replace(SMALL, norm=norm))  # type: ignore[arg-type]
        network.decoder.deep_supervision = True
        x = torch.randn(2, 2, 16, 16, 32)
        torch.autograd.backward(sum(v.square().mean() for v in network(x)))
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # a constant before a norm changes nothing
        assert [n for n in still if not n.endswith("bias")] == []

    def test_what_is_kept_and_filled_in_again_answers_alike(self) -> None:
        first, second = NnMamba(SMALL).eval(), NnMamba(SMALL).eval()
        x = torch.randn(1, 2, 16, 16, 32)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))
        places = [v.data_ptr() for v in first.state_dict().values()]
        assert len(set(places)) == len(places)

    def test_its_configuration_survives_json(self) -> None:
        for name, config in (("nnmamba", SMALL), ("nnmamba-classifier", CLASSIFIER)):
            assert config_from_plain(name, config_to_plain(config)) == config

    @pytest.mark.parametrize("wrong", [{"width": 0}, {"width": 10_000}, {"blocks": 0}])
    def test_sizes_of_no_network_are_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(InputError, match="width and blocks"):
            replace(SMALL, **wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="width and blocks"):
            replace(CLASSIFIER, **wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("norm", ["instance", "batch"])
    def test_at_inference_no_image_minds_its_company(self, norm: str) -> None:
        network = NnMamba(replace(SMALL, norm=norm)).eval().double()  # type: ignore[arg-type]
        x = torch.randn(2, 2, 16, 16, 32, dtype=torch.float64)
        with torch.no_grad():
            both, alone = network(x), network(x[:1])
        assert torch.allclose(both[:1], alone, atol=1e-10)

    def test_bfloat16_is_finite_and_close_to_float32(self) -> None:
        network = NnMamba(SMALL).eval()
        x = torch.randn(1, 2, 16, 32, 32)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = network(x.bfloat16()).float()
        with torch.no_grad():
            full = network(x)
        assert torch.isfinite(low).all()
        assert float((low - full).norm() / full.norm()) < 0.06

    def test_the_decoder_sees_every_level_and_scales_its_channels(self) -> None:
        network = NnMamba(SMALL).eval()
        with torch.no_grad():
            features = network.encoder(torch.randn(1, 2, 16, 16, 32))
            base = network.decoder(list(features))
            for level in range(4):
                changed = list(features)
                changed[level] = changed[level] + torch.randn_like(changed[level])
                assert not torch.allclose(network.decoder(changed), base), f"level {level}"
            scale = network.decoder.scales[0]
            share = scale(features[2]) / features[2].clamp(min=1e-6)
            there = features[2] > 1e-3
            for channel in range(share.shape[1]):
                found = share[0, channel][there[0, channel]]
                assert float(found.max() - found.min()) < 1e-4, "one share for a whole channel"
                assert 0 < float(found.mean()) < 1


FLAT = {"dims": (4, 6), "depths": (1, 1)}


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("nnmamba", {"width": 4, "blocks": 2}),
        ("nnmamba", {"width": 4, "blocks": 2, "norm": "batch", "head": "code"}),
        ("swin-umamba", {"stem": 4, **FLAT}),
        ("swin-umamba-d", FLAT),
        ("swin-umamba-cffm", {"dims": (4, 6), "fusion": 8}),
    ],
)
def test_the_training_loop_trains_it_and_repeats_itself_to_the_bit(
    name: str, switches: dict[str, Any], tmp_path: Path
) -> None:
    """The networks of two axes slice by slice."""
    sampled = SampleSettings(
        spacing_zyx_mm=(4.0, 4.0, 4.0), patch_zyx=(16, 16, 32), margin_mm=8.0, slack_zyx=(2, 2, 2)
    )
    samples = [
        make_sample(
            *ball_case(seed=seed),
            planning_ct=ball_planned(offset_xyz_mm=(0.0, 0.0, 0.0)),
            name=f"p{seed}",
            patient=f"p{seed}",
            ct="a",
            settings=sampled,
        )
        for seed in range(2)
    ]
    config = entry(name).config_kind(**switches)
    settings = TrainSettings(
        network=name, config=config, channels=("cbct", "r_ct"), samples=sampled, epochs=1,
        steps_per_epoch=3, threads=0, precision="fp32",
    )  # fmt: skip
    one, two = (
        train(samples[:1], samples[1:], settings, tmp_path / folder).network for folder in "ab"
    )
    state, again, born = (n.state_dict() for n in (one, two, build(name, config)))
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert any(not torch.equal(state[key], born[key]) for key in state)
    if switches.get("norm") == "batch":
        assert all(v.any() for key, v in state.items() if key.endswith("running_mean"))


class TestClassifier:
    @pytest.mark.parametrize("cls", ["sequence", "code"])
    def test_it_answers_once_for_each_image_and_every_parameter_learns(self, cls: str) -> None:
        changes: Any = {"cls": cls, "channels_out": 3, "width": 16, "dropout": 0.0}
        network = NnMambaClassifier(replace(CLASSIFIER, **changes))
        answer = network(torch.randn(4, 2, 16, 16, 32))
        assert answer.shape == (4, 3)
        torch.autograd.backward(answer.square().mean())
        still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert [n for n in still if not n.endswith("bias")] == []

    def test_sizes_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(InputError, match="multiple of 16"):
            NnMambaClassifier(CLASSIFIER)(torch.randn(1, 2, 16, 16, 40))
        with pytest.raises(InputError, match="single voxel"):
            NnMambaClassifier(CLASSIFIER)(torch.randn(1, 2, 16, 16, 16))

    def test_dropout_works_in_training_alone(self) -> None:
        network = NnMambaClassifier(replace(CLASSIFIER, cls="code", width=16))
        x = torch.randn(1, 2, 16, 16, 32)
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))

    def test_the_sequence_s_order_matters_and_all_three_stages_are_read(self) -> None:
        network = NnMambaClassifier(CLASSIFIER).eval()
        with torch.no_grad():
            stages = network.encoder(torch.randn(1, 2, 16, 16, 32))[1:]
            base = network.reader(stages)
            for level in range(3):
                changed = list(stages)
                changed[level] = changed[level] + 1
                assert not torch.allclose(network.reader(changed), base), f"stage {level}"

    def test_the_published_one_has_a_single_mamba_which_is_in_the_stem(self) -> None:
        network = NnMambaClassifier(replace(CLASSIFIER, cls="code"))
        names = [n for n in network.state_dict() if n.endswith("A_log")]
        assert names == ["encoder.after_stem.mic.scan.mamba.A_log"]
        assert network.state_dict()[names[0]].shape[1] == 8


def test_the_network_for_landmarks_is_the_same_with_a_map_for_each() -> None:
    network = build("nnmamba-landmarks", replace(SMALL, channels_out=3))
    assert isinstance(network, NnMambaLandmarks)
    assert network(torch.randn(1, 2, 16, 16, 32)).shape == (1, 3, 16, 16, 32)
