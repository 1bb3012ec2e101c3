from __future__ import annotations

import inspect
import sys
import types

import pytest
import torch
from torch import Tensor

from contourcast.imaging.errors import InputError
from contourcast.models import selective_scan
from contourcast.models.selective_scan import (
    CHUNK,
    choose_scan,
    mamba_ssm_works,
    scan_chunked,
    scan_many,
    scan_reference,
)

LONG = 1000


def coefficients(
    *,
    b: int = 2,
    d: int = 5,
    n: int = 3,
    length: int,
    dtype: torch.dtype = torch.float64,
    seed: int | None = None,
) -> list[Tensor]:
    """x, Δ > 0, A < 0, B, C, D: leaves that want gradients."""
    g = torch.Generator().manual_seed(length if seed is None else seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    values = [
        normal(b, d, length),
        torch.nn.functional.softplus(normal(b, d, length)),
        -torch.exp(normal(d, n)),
        normal(b, n, length),
        normal(b, n, length),
        normal(d),
    ]
    return [v.requires_grad_() for v in values]


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 63, 64, 65, 256, 257, LONG])
def test_the_chunked_scan_is_the_reference_in_values_and_every_gradient(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # blocks of four chunks, so that long sequences cross blocks too
    monkeypatch.setattr(selective_scan, "BLOCK_ELEMENTS", 4 * CHUNK * 2 * 5 * 3)
    inputs = coefficients(length=length)
    wanted = scan_reference(*inputs)
    found = scan_chunked(*inputs)
    y_bar = torch.randn(
        wanted.shape, dtype=wanted.dtype, generator=torch.Generator().manual_seed(1)
    )
    assert torch.allclose(found, wanted, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(wanted, inputs, y_bar)
    ours = torch.autograd.grad(found, inputs, y_bar)
    for name, a, b in zip(("x", "dt", "A", "B", "C", "D"), gradients, ours, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), f"gradient of {name}"


def test_the_reference_is_the_equation_on_three_steps_by_hand() -> None:
    x, dt = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.5, 1.0, 2.0]]])
    A, D = torch.tensor([[-1.0]]), torch.tensor([10.0])
    B, C = torch.tensor([[[1.0, 2.0, 1.0]]]), torch.tensor([[[1.0, 1.0, 0.5]]])
    e = torch.tensor(-1.0).exp()
    h1 = torch.tensor(0.5)
    h2 = e * h1 + 4.0
    h3 = e**2 * h2 + 6.0
    assert torch.allclose(
        scan_reference(x, dt, A, B, C, D), torch.stack([h1 + 10, h2 + 20, h3 / 2 + 30])[None, None]
    )


@pytest.mark.parametrize("length", [3, 40])
def test_gradcheck_passes(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "BLOCK_ELEMENTS", CHUNK * 2 * 2)
    assert torch.autograd.gradcheck(scan_chunked, coefficients(b=1, d=2, n=2, length=length))


@pytest.mark.parametrize("scan", [scan_reference, scan_chunked])
def test_strong_decay_over_a_long_sequence_stays_finite(scan: selective_scan.Scan) -> None:
    """Δ = 20, A = -16: 1/exp(ΣΔA) leaves float32 at the first step."""
    inputs = coefficients(
        b=1, d=2, n=2, length=4096 if scan is scan_chunked else 512, dtype=torch.float32
    )
    with torch.no_grad():
        inputs[1].fill_(20.0)
        inputs[2].fill_(-16.0)
    y = scan(*inputs)
    torch.autograd.backward(y.sum())
    assert torch.isfinite(y).all()
    assert all(v.grad is not None and torch.isfinite(v.grad).all() for v in inputs)


def test_slow_decay_does_not_saturate() -> None:
    inputs = coefficients(b=1, d=1, n=1, length=4096, dtype=torch.float32)
    with torch.no_grad():
        for value, fill in zip(inputs, (8.0, 1.0, -1e-4, 1.0, 1.0, 0.0), strict=True):
            value.fill_(fill)
        last = float(scan_chunked(*inputs)[0, 0, -1])
    wanted = (
        8
        * (1 - torch.tensor(-1e-4, dtype=torch.float64).exp() ** 4096)
        / (1 - torch.tensor(-1e-4, dtype=torch.float64).exp())
    )
    assert last == pytest.approx(float(wanted), rel=1e-4)


def test_flipped_and_strided_views_give_what_their_copies_give() -> None:
    inputs = [v.detach() for v in coefficients(length=40)]
    x, dt, A, B, C, D = inputs
    views = [x.flip(-1), dt.transpose(1, 2).contiguous().transpose(1, 2), A, B[..., ::1], C, D]
    assert torch.equal(scan_chunked(*views), scan_chunked(*(v.clone() for v in views)))
    assert torch.allclose(scan_chunked(*views), scan_reference(*views), atol=1e-12)


def test_no_form_divides() -> None:
    source = inspect.getsource(selective_scan)
    code = source.replace("//", "").split('"""')[::2]  # without docstrings
    assert not any("/" in line.split("#")[0] for part in code for line in part.splitlines())


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    inputs = coefficients(length=5)
    energy = scan_chunked(*inputs).square().sum()
    (grad,) = torch.autograd.grad(energy, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(grad.sum())


class TestChoice:
    def test_auto_is_chunked_where_no_kernel_computes(self) -> None:
        assert choose_scan("auto", torch.device("cpu"), torch.float64) == "chunked"
        assert choose_scan("auto", torch.device("meta")) == "chunked"

    def test_a_package_without_its_kernel_does_not_count(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
        monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
        mamba_ssm_works.cache_clear()
        monkeypatch.setattr(selective_scan, "triton_works", lambda: True)
        choice = selective_scan.explain_scan(torch.device("cuda"))
        assert choice.name == "triton"
        assert "selective_scan_cuda" in choice.why  # why not mamba-ssm's
        assert choose_scan("auto", torch.device("cuda"), torch.float64) == "chunked"

    def test_without_triton_a_gpu_has_the_chunked_scan(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(selective_scan, "mamba_ssm_works", lambda: False)
        monkeypatch.setitem(sys.modules, "contourcast.models.kernels.triton_scan", None)
        selective_scan.triton_works.cache_clear()
        choice = selective_scan.explain_scan(torch.device("cuda"))
        selective_scan.triton_works.cache_clear()
        assert choice.name == "chunked"
        assert "triton is not installed" in choice.why
        with pytest.raises(InputError, match="GPU"):
            choose_scan("triton", torch.device("cpu"))

    def test_the_kernel_is_taken_where_it_imports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (
            "selective_scan_cuda",
            "mamba_ssm",
            "mamba_ssm.ops",
            "mamba_ssm.ops.selective_scan_interface",
        ):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        mamba_ssm_works.cache_clear()
        assert choose_scan("auto", torch.device("cuda")) == "mamba_ssm"
        mamba_ssm_works.cache_clear()

    def test_asking_for_a_kernel_that_is_not_there_says_so(self) -> None:
        with pytest.raises(InputError, match="selective_scan_cuda"):
            choose_scan("mamba_ssm", torch.device("cpu"))

    def test_an_unknown_scan_is_answered_with_the_list(self) -> None:
        with pytest.raises(InputError, match="chunked"):
            choose_scan("fast", torch.device("cpu"))


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Tensor]:
    """A reference that takes groups stands in for a kernel; the x of each launch is noted."""
    launches = []

    def grouped(x: Tensor, dt: Tensor, *rest: Tensor) -> Tensor:
        launches.append(x)
        A, B, C, D = rest
        B, C = (v if v.dim() == 4 else v[:, None] for v in (B, C))
        parts = [v.chunk(B.shape[1], axis) for v, axis in ((x, 1), (dt, 1), (A, 0), (D, 0))]
        return torch.cat(
            [
                scan_reference(x_g, dt_g, A_g, B[:, g], C[:, g], D_g)
                for g, (x_g, dt_g, A_g, D_g) in enumerate(zip(*parts, strict=True))
            ],
            1,
        )

    monkeypatch.setitem(selective_scan.SCANS, name, grouped)
    return launches


class TestMany:
    """Two directions of a layer, with one set of parameters or with two."""

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("name", ["reference", "chunked", "triton", "mamba_ssm"])
    def test_together_they_are_what_they_are_alone(
        self, name: str, shared: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launches = spied(monkeypatch, name) if name in selective_scan.GROUPED else None
        first, second = coefficients(length=30), coefficients(length=30, seed=7)
        calls = [first, [*second[:2], first[2], *second[3:5], first[5]] if shared else second]
        leaves = [*first, *second]
        wanted = [scan_reference(*call) for call in calls]
        found = scan_many(name, calls)
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-10)
        pairs = [
            torch.autograd.grad(torch.cat(ys).square().sum(), leaves, allow_unused=shared)
            for ys in (found, wanted)
        ]
        for a, b in zip(*pairs, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        if launches is not None:
            assert [tuple(x.shape) for x in launches] == [(4, 5, 30) if shared else (2, 10, 30)]

    def test_unequal_lengths_go_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launches = spied(monkeypatch, "triton")
        calls = [coefficients(length=4), coefficients(length=6)]
        found = scan_many("triton", calls)
        assert [y.shape[-1] for y in found] == [4, 6]
        assert len(launches) == 2


@pytest.mark.gpu
def test_on_a_gpu_every_scan_agrees_with_the_reference() -> None:
    from support.data import require

    require("gpu", torch.cuda.is_available(), "no CUDA device")
    cpu = coefficients(b=2, d=64, n=16, length=300, dtype=torch.float32)
    wanted = scan_reference(*(v.double() for v in cpu))
    here = {"mamba_ssm": mamba_ssm_works(), "triton": selective_scan.triton_works()}
    names = ["chunked", *(name for name, works in here.items() if works)]
    for name in names:
        found = selective_scan.SCANS[name](*(v.cuda() for v in cpu))
        assert torch.allclose(found.cpu().double(), wanted, rtol=1e-4, atol=1e-4), name
