from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from contourcast.models.diff_umamba import DiffUMamba, DiffUMambaConfig
from contourcast.models.noise_reduction import NrmConfig
from contourcast.models.umamba_bot import UMambaBot, UMambaConfig

SMALL = DiffUMambaConfig(
    features=(4, 8, 16),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(1,) * 3,
    decoder_blocks_asked=(1,) * 2,
)
BOT = UMambaConfig(**{f.name: getattr(SMALL, f.name) for f in fields(UMambaConfig)})


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("nrm", [None, NrmConfig(second_mamba="none")])
def test_without_the_module_it_is_umamba_bot_bit_for_bit(nrm: NrmConfig | None) -> None:
    bot, diff = UMambaBot(BOT), DiffUMamba(replace(SMALL, nrm=nrm))
    diff.load_state_dict(bot.state_dict())
    x = torch.randn(1, 2, 9, 11, 8)
    assert torch.equal(bot(x), diff(x))


def test_weights_of_umamba_bot_fit() -> None:
    missing, unknown = DiffUMamba(SMALL).load_state_dict(UMambaBot(BOT).state_dict(), strict=False)
    assert unknown == []
    assert all(key.startswith("nrm.") for key in missing)


def test_the_decoder_gets_m1_minus_m2() -> None:
    network = DiffUMamba(SMALL).eval()
    assert network.nrm is not None
    features = network.encoder(torch.randn(1, 2, 8, 8, 8))
    m1 = network.mamba_layer(features[-1])
    m2 = network.nrm.mamba(network.nrm.summary(features[:-1], m1.shape[2:]))
    assert torch.allclose(network.bottleneck(features), m1 - m2)


def test_all_but_the_deepest_features_feed_the_module() -> None:
    network: Any = DiffUMamba(SMALL)
    assert [p.weight.shape[:2] for p in network.nrm.proj] == [(16, 4), (16, 8)]


class Subtract(torch.nn.Module):
    """m₁ - a constant."""

    def __init__(self, constant: torch.Tensor) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, features: list[torch.Tensor], m1: torch.Tensor) -> torch.Tensor:
        return m1 - self.constant


def test_detached_the_encoder_learns_as_if_m2_were_constant() -> None:
    x = torch.randn(1, 2, 8, 8, 8)

    def encoder_gradient(detach: bool, constant: torch.Tensor | None = None) -> torch.Tensor:
        torch.manual_seed(1)
        network: Any = DiffUMamba(replace(SMALL, nrm=NrmConfig(detach=detach)))
        if constant is not None:
            network.nrm = Subtract(constant)
        torch.autograd.backward(network(x).square().sum())
        return torch.cat([p.grad.flatten() for p in network.encoder.parameters()])

    torch.manual_seed(1)
    network: Any = DiffUMamba(SMALL)
    with torch.no_grad():
        f = network.encoder(x)
        m2 = network.nrm.mamba(network.nrm.summary(f[:-1], f[-1].shape[2:]))
    assert torch.equal(encoder_gradient(True), encoder_gradient(True, m2))
    assert not torch.allclose(encoder_gradient(False), encoder_gradient(True, m2))


def test_a_gradient_reaches_every_parameter_that_can_learn() -> None:
    network = DiffUMamba(replace(SMALL, nrm=NrmConfig(gate="channel")))
    network.decoder.deep_supervision = True
    torch.autograd.backward(sum(v.square().mean() for v in network(torch.randn(1, 2, 8, 8, 8))))
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in still if not n.endswith("bias")] == []


def test_odd_sizes_and_another_patch_than_before() -> None:
    network = DiffUMamba(SMALL)
    for shape in [(8, 8, 8), (9, 13, 10), (5, 20, 24)]:
        assert network(torch.randn(1, 2, *shape)).shape[2:] == shape


def test_the_same_seed_gives_the_same_weights_after_three_steps() -> None:
    def after() -> list[torch.Tensor]:
        torch.manual_seed(5)
        network = DiffUMamba(SMALL)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
        for _ in range(3):
            optimiser.zero_grad()
            torch.autograd.backward(network(torch.randn(1, 2, 8, 8, 8)).square().mean())
            optimiser.step()
        return [p.detach() for p in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(after(), after(), strict=True))


def test_it_learns_one_phantom_by_heart() -> None:
    z, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (12, 12, 12)), indexing="ij"
    )
    ball = ((z - 5) ** 2 + (y - 6) ** 2 + (x - 7) ** 2 < 14).long()
    scan = torch.randn(1, 1, 12, 12, 12) * 0.1 + ball
    image = torch.cat((scan, torch.zeros_like(scan)), 1)
    network = DiffUMamba(SMALL)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(network(image), ball[None]))
        optimiser.step()
    drawn = network(image).argmax(1)[0]
    dice = 2 * float((drawn * ball).sum()) / float(drawn.sum() + ball.sum())
    assert dice > 0.99
