from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contourcast.imaging.errors import InputError
from contourcast.models import noise_reduction
from contourcast.models.noise_reduction import NoiseReduction, NrmConfig

WIDTHS = (4, 8, 16)
SHAPES = ((8, 12, 10), (4, 6, 5), (2, 3, 3))
CHANNELS = 16
SIZE = (2, 3, 2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def features(*, requires_grad: bool = False) -> list[Tensor]:
    return [
        torch.randn(1, c, *s, requires_grad=requires_grad)
        for c, s in zip(WIDTHS, SHAPES, strict=True)
    ]


def module(**switches: Any) -> Any:
    torch.manual_seed(7)
    return NoiseReduction(WIDTHS, CHANNELS, config=NrmConfig(**switches))


def bottleneck() -> Tensor:
    return torch.randn(1, CHANNELS, *SIZE)


def test_it_subtracts_and_in_that_order() -> None:
    nrm, f, m1 = module(), features(), bottleneck()
    m2 = nrm.mamba(nrm.summary(f, SIZE))
    assert torch.equal(nrm(f, m1), m1 - m2)
    assert m2.abs().max() > 0


def test_the_summary_is_the_equation_written_out() -> None:
    nrm, f = module(slabs=False), features()
    with torch.no_grad():
        nrm.lambdas.copy_(torch.tensor([0.1, 0.7, -0.4]))
    terms = [
        weight
        * nn.functional.adaptive_avg_pool3d(
            torch.einsum("oi...,bi...->bo...", p.weight, x).add(p.bias[:, None, None, None]).relu(),
            SIZE,
        )
        for weight, p, x in zip(nrm.lambdas, nrm.proj, f, strict=True)
    ]
    assert torch.allclose(nrm.summary(f, SIZE), torch.stack(terms).sum(0), atol=1e-5)


def test_relu_comes_before_pooling() -> None:
    nrm = module()
    x = torch.randn(1, 4, 8, 12, 10)  # both signs in every cell
    pooled = nrm.project(nrm.proj[0], x, SIZE)
    assert (pooled > 0).all()  # the mean of many ReLUs; a ReLU of the mean would hold zeros


@pytest.mark.parametrize("shape", [(8, 12, 10), (33, 7, 5), (9, 4, 6), (2, 3, 2)])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("values", [1, 200, 2**19])  # a voxel at a time, some, a cell at once
def test_slabs_are_the_plain_form_to_rounding(
    shape: tuple[int, ...], detach: bool, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_reduction, "BLOCK_VALUES", values)
    size = (2, 3, 2)
    x = torch.randn(2, 4, *shape)
    results = []
    for slabs in (False, True):
        nrm: Any = NoiseReduction((4,), 16, config=NrmConfig(slabs=slabs, detach=detach))
        torch.manual_seed(3)
        for p in nrm.parameters():
            nn.init.normal_(p)
        leaf = x.clone().requires_grad_()
        e = nrm.project(nrm.proj[0], leaf, size)
        torch.autograd.backward(e.square().sum())
        results.append((e.detach(), nrm.proj[0].weight.grad, leaf.grad))
    (plain, plain_w, plain_x), (slab, slab_w, slab_x) = results
    assert torch.allclose(plain, slab, rtol=1e-5, atol=1e-6)
    assert torch.allclose(plain_w, slab_w, rtol=1e-4, atol=1e-4)
    if detach:
        assert plain_x is None
        assert slab_x is None
    else:
        assert plain_x is not None
        assert slab_x is not None
        assert torch.allclose(plain_x, slab_x, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_slabs_need_a_fraction_of_the_memory() -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from contourcast.models.noise_reduction import NoiseReduction, NrmConfig\n"
        "nrm = NoiseReduction((16,), 160, config=NrmConfig(slabs=sys.argv[1] == 'True'))\n"
        "x, m1 = torch.randn(1, 16, 64, 64, 64), torch.randn(1, 160, 8, 8, 8)\n"
        # ru_maxrss would also remember the process that started it
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(status.partition('VmHWM:')[2].split()[0])\n"
        "before = peak()\n"
        "nrm([x], m1).square().sum().backward()\n"
        "print(peak() - before)\n"
    )
    plain, slabs = (
        int(subprocess.check_output([sys.executable, "-c", code, str(flag)]))
        for flag in (False, True)
    )
    assert slabs < 0.2 * plain, f"{slabs} kB against {plain} kB"


def test_detach_stops_the_gradient_before_the_encoder() -> None:
    for detach in (True, False):
        f, m1 = features(requires_grad=True), bottleneck()
        torch.autograd.backward(module(detach=detach)(f, m1).square().sum())
        assert all((x.grad is None) == detach for x in f)


class TestLambda:
    def test_a_common_factor_changes_nothing_and_a_ratio_does(self) -> None:
        nrm, f, m1 = module(lambda_init=0.5), features(), bottleneck()
        f = [100 * x for x in f]  # so that LayerNorm's eps is nothing beside its variance
        with torch.no_grad():
            base = nrm(f, m1) - m1
            nrm.lambdas.mul_(0.1)
            scaled = nrm(f, m1) - m1
            nrm.lambdas.copy_(torch.tensor([1.0, 0.1, 0.1]))
            ratio = nrm(f, m1) - m1
        assert float((scaled - base).norm() / base.norm()) < 1e-4
        assert float((ratio - base).norm() / base.norm()) > 0.05

    def test_its_gradient_has_no_part_along_itself(self) -> None:
        nrm = module().double()
        torch.autograd.backward(
            nrm([x.double() for x in features()], bottleneck().double()).square().sum()
        )
        g, v = nrm.lambdas.grad, nrm.lambdas.detach()
        assert g is not None
        assert abs(float((g * v).sum())) < 1e-3 * float(g.norm() * v.norm())

    def test_one_step_moves_all_of_them_apart(self) -> None:
        nrm = module()
        optimiser = torch.optim.SGD(nrm.parameters(), lr=1.0)
        torch.autograd.backward(nrm(features(), bottleneck()).square().sum())
        optimiser.step()
        moved = sorted(nrm.lambdas.tolist())
        assert 0.5 not in moved
        assert all(a != b for a, b in pairwise(moved))
        assert "lambdas" in nrm.state_dict()

    def test_it_can_be_held(self) -> None:
        nrm = module(lambda_trainable=False, lambda_init=0.25)
        assert not nrm.lambdas.requires_grad
        assert nrm.lambdas.tolist() == [0.25] * 3


class TestLevels:
    def test_only_those_named_are_projected_and_used(self) -> None:
        nrm, f, m1 = module(levels=(1, 3)), features(), bottleneck()
        assert [p.weight.shape[1] for p in nrm.proj] == [4, 16]
        base = nrm(f, m1)
        f[1] = torch.randn_like(f[1])
        assert torch.equal(nrm(f, m1), base)
        f[2] = torch.randn_like(f[2])
        assert not torch.equal(nrm(f, m1), base)

    @pytest.mark.parametrize("levels", [(0,), (4,), (1, 1)])
    def test_levels_that_there_are_not_are_refused(self, levels: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"nrm\.levels"):
            module(levels=levels)


class TestSecondMamba:
    def test_identity_subtracts_the_summary(self) -> None:
        nrm, f, m1 = module(second_mamba="identity"), features(), bottleneck()
        assert torch.equal(nrm(f, m1), m1 - nrm.summary(f, SIZE))

    def test_none_subtracts_nothing_and_builds_nothing(self) -> None:
        nrm, m1 = module(second_mamba="none"), bottleneck()
        assert nrm(features(), m1) is m1
        assert list(nrm.parameters()) == []


class TestGate:
    @pytest.mark.parametrize(("gate", "size"), [("scalar", 1), ("channel", CHANNELS)])
    def test_at_birth_it_changes_nothing_and_at_zero_nothing_is_subtracted(
        self, gate: str, size: int
    ) -> None:
        gated, plain, f, m1 = module(gate=gate), module(), features(), bottleneck()
        gated.load_state_dict(plain.state_dict(), strict=False)
        assert gated.gate.numel() == size
        assert torch.equal(gated(f, m1), plain(f, m1))
        with torch.no_grad():
            gated.gate.zero_()
        assert torch.equal(gated(f, m1), m1)

    def test_it_learns(self) -> None:
        nrm = module(gate="scalar")
        torch.autograd.backward(nrm(features(), bottleneck()).square().sum())
        assert nrm.gate.grad is not None
        assert nrm.gate.grad.any()

    def test_without_it_there_is_no_parameter(self) -> None:
        assert "gate" not in module().state_dict()


def test_two_axes() -> None:
    nrm = NoiseReduction((4, 8), 16, axes=2, config=NrmConfig())
    f = [torch.randn(1, 4, 12, 10), torch.randn(1, 8, 6, 5)]
    m1 = torch.randn(1, 16, 3, 3)
    assert nrm(f, m1).shape == m1.shape


def test_any_host_can_use_it() -> None:
    """Its bottleneck may have a width that no feature has, and a size that divides none."""
    nrm = NoiseReduction((3, 5), 24, config=replace(NrmConfig(), gate="scalar"))
    f = [torch.randn(2, 3, 11, 9, 10), torch.randn(2, 5, 6, 5, 5)]
    assert nrm(f, torch.randn(2, 24, 4, 2, 3)).shape == (2, 24, 4, 2, 3)
