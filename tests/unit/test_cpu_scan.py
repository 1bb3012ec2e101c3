from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from contourcast.imaging.errors import InputError
from contourcast.models import selective_scan
from contourcast.models.kernels import build, cpu_scan
from contourcast.models.kernels.cpu_scan import Kernel, Missing, load_kernel, scan_cpu_kernel
from contourcast.models.selective_scan import choose_scan, explain_scan, scan_reference

# float32 rounds at 6e-8; up to a thousand terms of either sign add up in a gradient, and what is
# compared is the largest difference over the largest value (NETWORKS §15.1, row 17).
RELATIVE: Final = 1e-5
CPU: Final = torch.device("cpu")
NAMES: Final = ("x", "dt", "A", "B", "C", "D")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of this very source, whatever the installation has."""
    if shutil.which("cc") is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        pytest.skip("no C compiler: install gcc or clang")
    made = tmp_path_factory.mktemp("kernel")
    build.build(made)
    return made


@pytest.fixture(params=list(cpu_scan.BITS))
def kernel(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Each instruction set of this processor in turn, forced."""
    found = load_kernel(folder, request.param)
    if isinstance(found, Missing):
        pytest.skip(found.why)
    monkeypatch.setattr(cpu_scan, "cpu_kernel", lambda: found)
    return found


@pytest.fixture
def any_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = load_kernel(folder)
    assert isinstance(found, Kernel)
    monkeypatch.setattr(cpu_scan, "cpu_kernel", lambda: found)
    monkeypatch.setattr(selective_scan, "cpu_kernel", lambda: found)
    return found


def coefficients(*, b: int, d: int, n: int, length: int, seed: int = 0) -> list[Tensor]:
    """x, Δ > 0, A < 0, B, C, D in float32: leaves that want gradients."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    values = [
        normal(b, d, length),
        torch.nn.functional.softplus(normal(b, d, length)),
        -torch.exp(normal(d, n)),
        normal(b, n, length),
        normal(b, n, length),
        normal(d),
    ]
    return [v.requires_grad_() for v in values]


def assert_is_the_reference(inputs: list[Tensor]) -> None:
    """Values and six gradients against the plain loop in float64."""
    wide = [v.detach().double().requires_grad_() for v in inputs]
    wanted, found = scan_reference(*wide), scan_cpu_kernel(*inputs)
    y_bar = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(wanted, wide, y_bar.double())
    ours = torch.autograd.grad(found, inputs, y_bar)
    pairs = zip(("y", *NAMES), (wanted, *gradients), (found, *ours), strict=True)
    for name, right, made in pairs:
        assert made.shape == right.shape, name
        error = float((made.detach().double() - right.detach()).abs().max())
        assert error <= RELATIVE * float(right.detach().abs().max()) + 1e-30, f"{name}: {error:.1e}"


# The same examples every time: in rare ones a sum over steps nearly cancels (the gradient of D, one
# channel), and then no float32 has 1e-5 of what remains.
@settings(max_examples=25, database=None, derandomize=True)
@given(
    b=st.integers(1, 3),
    d=st.sampled_from([1, 5, 16, 17, 40]),
    length=st.sampled_from([1, 2, 63, 64, 65, 200]),
    n=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 2**16),
)
@example(b=1, d=33, length=1000, n=16, seed=0)
@example(b=2, d=3, length=1000, n=3, seed=1)
@example(b=1, d=1, length=1000, n=1, seed=2)
@example(b=2, d=cpu_scan.PART + 3, length=65, n=3, seed=3)  # two parts share B's gradient
def test_the_kernel_is_the_reference_in_values_and_every_gradient(
    folder: Path, b: int, d: int, length: int, n: int, seed: int
) -> None:
    inputs = coefficients(b=b, d=d, n=n, length=length, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        found = load_kernel(folder)
        patch.setattr(cpu_scan, "cpu_kernel", lambda: found)
        assert_is_the_reference(inputs)


@pytest.mark.parametrize("length", [1, 64, 65, 130])
def test_every_instruction_set_is_the_reference(kernel: Kernel, length: int) -> None:
    assert_is_the_reference(coefficients(b=2, d=21, n=5, length=length))


def test_its_power_of_two_is_exact_to_float32(kernel: Kernel) -> None:
    z = torch.cat([torch.linspace(-125.99, 127.49, 2**16), torch.linspace(-1, 0, 2**16)])
    out = exp2(kernel, z)
    error = (out.double() * torch.exp2(-z.double()) - 1).abs()
    assert float(error.max()) < 2e-7  # the polynomial 2e-9, its last two roundings 6e-8 each


def test_its_power_of_two_at_the_edges(kernel: Kernel) -> None:
    infinite = float("inf")
    z = torch.tensor(
        [0.0, -0.0, 1, -1, -126.5, -1e30, -infinite, 128, 1e30, infinite, float("nan")]
    )
    out = exp2(kernel, torch.cat([z, torch.zeros(5)]))
    assert out[:10].tolist() == [1, 1, 2, 0.5, 0, 0, 0, infinite, infinite, infinite]
    assert out[10].isnan()
    assert out[11:].tolist() == [1.0] * 5


def exp2(kernel: Kernel, z: Tensor) -> Tensor:
    out = torch.empty_like(z)
    kernel.exp2(z.data_ptr(), out.data_ptr(), z.numel())
    return out


def test_strong_decay_over_a_long_sequence_stays_finite(kernel: Kernel) -> None:
    """Δ = 20, A = -16: 1/exp(ΣΔA) leaves float32 at the first step."""
    inputs = coefficients(b=1, d=2, n=2, length=4096)
    with torch.no_grad():
        inputs[1].fill_(20.0)
        inputs[2].fill_(-16.0)
    y = scan_cpu_kernel(*inputs)
    torch.autograd.backward(y.sum())
    assert torch.isfinite(y).all()
    assert all(v.grad is not None and torch.isfinite(v.grad).all() for v in inputs)


def test_what_is_not_a_number_is_not_hidden(kernel: Kernel) -> None:
    inputs = [v.detach() for v in coefficients(b=1, d=1, n=2, length=70)]
    inputs[1][0, 0, 5] = float("nan")
    y = scan_cpu_kernel(*inputs)[0, 0]
    assert torch.isfinite(y[:5]).all()
    assert y[5:].isnan().all()


def test_the_past_does_not_see_the_future(kernel: Kernel) -> None:
    inputs = [v.detach() for v in coefficients(b=1, d=4, n=3, length=80)]
    before = scan_cpu_kernel(*inputs)
    for v in (inputs[0], inputs[1], inputs[3], inputs[4]):
        v[..., 70] += 1
    after = scan_cpu_kernel(*inputs)
    assert torch.equal(before[..., :70], after[..., :70])
    assert not torch.equal(before[..., 70], after[..., 70])


def test_views_give_what_their_copies_give_values_and_gradients(any_kernel: Kernel) -> None:
    """Flipped, channels last in memory, broadcast, and cut from a wider array."""
    b, d, n, length = 2, 20, 3, 70
    x, dt, A, B, C, D = (v.detach() for v in coefficients(b=b, d=d, n=n, length=length))
    wide = torch.cat((B, C), 1).transpose(1, 2).contiguous()  # (b l 2n), as x_proj gives it
    views = [
        x.flip(-1),
        dt.transpose(1, 2).contiguous().transpose(1, 2),
        A.T.contiguous().T,
        wide[..., :n].transpose(1, 2),
        wide[..., n:].transpose(1, 2),
        D[:1].expand(d),
    ]
    y_bar = torch.ones(()).expand(b, d, length)
    answers = []
    for inputs in (views, [v.contiguous() for v in views]):
        leaves = [v.detach().requires_grad_() for v in inputs]
        y = scan_cpu_kernel(*leaves)
        answers.append([y, *torch.autograd.grad(y, leaves, y_bar)])
    assert not views[1].is_contiguous()
    for name, a, c in zip(("y", *NAMES), *answers, strict=True):
        assert torch.equal(a, c), name


def test_the_number_of_threads_does_not_change_a_bit(
    any_kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_scan, "SHARED_ELEMENTS", 0)
    inputs = coefficients(b=2, d=300, n=3, length=70)
    answers = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        y = scan_cpu_kernel(*inputs)
        answers.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert all(torch.equal(a, c) for a, c in zip(*answers, strict=True))


def test_two_threads_may_scan_at_once(any_kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_scan, "SHARED_ELEMENTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cases = [coefficients(b=1, d=200, n=4, length=130, seed=seed) for seed in (1, 2)]

    def answer(inputs: list[Tensor]) -> list[Tensor]:
        y = scan_cpu_kernel(*inputs)
        return [y, *torch.autograd.grad(y.sum(), inputs)]

    wanted = [answer(inputs) for inputs in cases]
    wrong: list[int] = []

    def repeat(which: int) -> None:
        for _ in range(10):
            found = answer(cases[which])
            if not all(torch.equal(a, c) for a, c in zip(found, wanted[which], strict=True)):
                wrong.append(which)

    threads = [threading.Thread(target=repeat, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_states_are_kept_only_for_a_gradient(
    any_kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    walk = cpu_scan._forward

    def spy(kernel: Kernel, starts: Tensor | None, *inputs: Tensor) -> Tensor:
        kept.append(None if starts is None else tuple(starts.shape))
        return walk(kernel, starts, *inputs)

    monkeypatch.setattr(cpu_scan, "_forward", spy)
    inputs = coefficients(b=1, d=5, n=3, length=65)
    with torch.inference_mode():
        quiet = scan_cpu_kernel(*inputs)
    with torch.no_grad():
        scan_cpu_kernel(*inputs)
    scan_cpu_kernel(*(v.detach() for v in inputs))
    watched = scan_cpu_kernel(*inputs)
    assert kept == [None, None, None, (1, 2, 3, 16)]
    assert torch.equal(quiet, watched.detach())


def test_a_second_derivative_is_refused_rather_than_wrong(any_kernel: Kernel) -> None:
    inputs = coefficients(b=1, d=2, n=2, length=5)
    energy = scan_cpu_kernel(*inputs).square().sum()
    (grad,) = torch.autograd.grad(energy, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(grad.sum())


@pytest.mark.parametrize("which", range(6))
def test_sizes_that_do_not_fit_are_refused_by_name(any_kernel: Kernel, which: int) -> None:
    inputs = [v.detach() for v in coefficients(b=2, d=4, n=3, length=6)]
    inputs[which] = torch.cat((inputs[which], inputs[which]), -1)
    wrong = "dt" if which == 0 else NAMES[which]  # x sets the measure for the others
    if which == 2:
        wrong = "B"  # A does so for the states
    with pytest.raises(InputError, match=f"^{wrong} of the scan has shape"):
        scan_cpu_kernel(*inputs)


def test_float64_is_refused_by_the_kernel_and_chosen_past_it(any_kernel: Kernel) -> None:
    inputs = [v.detach().double() for v in coefficients(b=1, d=2, n=2, length=5)]
    with pytest.raises(InputError, match="float32"):
        scan_cpu_kernel(*inputs)
    with pytest.raises(InputError, match="float32"):
        choose_scan("cpu_kernel", CPU, torch.float64)
    assert choose_scan("auto", CPU, torch.float64) == "chunked"
    assert choose_scan("auto", CPU, torch.float32) == "cpu_kernel"
    assert any_kernel.instruction_set in explain_scan(CPU).why


class TestLibrary:
    """What lies where the library should be decides, in a sentence; nothing of it may crash."""

    @pytest.fixture
    def copy(self, folder: Path, tmp_path: Path) -> Path:
        for name in (build.LIBRARY, build.RECORD):
            shutil.copy(folder / name, tmp_path)
        return tmp_path

    @staticmethod
    def why(folder: Path) -> str:
        found = load_kernel(folder)
        assert isinstance(found, Missing)
        return found.why

    @staticmethod
    def record(folder: Path, **changes: object) -> None:
        file = folder / build.RECORD
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def test_a_whole_one_opens(self, copy: Path) -> None:
        assert isinstance(load_kernel(copy), Kernel)

    def test_none_means_the_chunked_scan_and_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missing = load_kernel(tmp_path)
        for module in (cpu_scan, selective_scan):
            monkeypatch.setattr(module, "cpu_kernel", lambda: missing)
        choice = explain_scan(CPU)
        assert choice.name == choose_scan("auto", CPU) == "chunked"
        assert "not compiled at installation" in choice.why
        assert "contourcast.models.kernels.build" in choice.why
        with pytest.raises(InputError, match="not compiled"):
            choose_scan("cpu_kernel", CPU)
        with pytest.raises(InputError, match="not compiled"):
            scan_cpu_kernel(*coefficients(b=1, d=1, n=1, length=1))

    def test_a_cut_off_one_is_not_opened(self, copy: Path) -> None:
        library = copy / build.LIBRARY
        library.write_bytes(library.read_bytes()[:5000])
        assert "is not the file that was built" in self.why(copy)

    def test_one_of_another_source_is_not_opened(self, copy: Path) -> None:
        self.record(copy, source_sha256="0" * 64)
        assert "another source" in self.why(copy)

    @pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(60)])
    def test_a_foreign_file_with_its_own_record_does_not_open(
        self, copy: Path, content: bytes
    ) -> None:
        (copy / build.LIBRARY).write_bytes(content)
        self.record(copy, library_sha256=build.digest(copy / build.LIBRARY))
        assert "cannot be used" in self.why(copy)

    def test_a_library_of_something_else_is_found_out(self, copy: Path, tmp_path: Path) -> None:
        source = tmp_path / "other.c"
        source.write_text("int something_else(void) { return 1; }\n")
        compiler = build._compiler()
        library = copy / build.LIBRARY
        library.unlink()
        subprocess.run([*compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        self.record(copy, library_sha256=build.digest(library))
        assert "contourcast_scan_runs" in self.why(copy)

    @pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
    def test_a_spoilt_record_is_a_sentence(self, copy: Path, text: str) -> None:
        (copy / build.RECORD).write_text(text)
        assert "cannot be used" in self.why(copy)

    def test_a_processor_without_an_instruction_set_takes_the_next(self, copy: Path) -> None:
        self.record(copy, instruction_sets=["baseline"])
        found = load_kernel(copy)
        assert isinstance(found, Kernel)
        assert found.instruction_set == "baseline"
        assert isinstance(load_kernel(copy, "avx512"), Missing)


class TestBuild:
    def test_without_a_compiler_there_is_a_reason_and_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "/nonexistent/cc")
        with pytest.raises(build.BuildError, match="no C compiler"):
            build.build(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_compiler_that_fails_is_quoted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "false")
        with pytest.raises(build.BuildError, match="false cannot compile"):
            build.build(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_reorders_and_nothing_is_for_this_machine_alone(self) -> None:
        flags = " ".join((*build.FLAGS, *sum(build.INSTRUCTION_SETS.values(), ())))
        assert not any(word in flags for word in ("fast-math", "associative", "native", "openmp"))

    def test_the_library_asks_for_the_c_library_alone(self, folder: Path) -> None:
        tool = shutil.which("objdump")
        if tool is None or sys.platform != "linux":
            pytest.skip("objdump is not installed: install binutils")
        headers = subprocess.run(
            [tool, "-p", str(folder / build.LIBRARY)], capture_output=True, text=True, check=True
        ).stdout
        needed = {line.split()[1] for line in headers.splitlines() if "NEEDED" in line}
        assert needed <= {"libc.so.6"}

    def test_source_and_python_agree_on_their_sizes(self) -> None:
        source = build.SOURCE.read_text()
        assert f"#define CHUNK {cpu_scan.CHUNK} " in source
        assert f"#define PART {cpu_scan.PART} " in source
