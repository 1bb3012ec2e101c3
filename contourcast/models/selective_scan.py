"""The selective scan: a linear recurrence whose coefficients depend on the input.

For each channel d and state n (Gu & Dao 2023, arXiv 2312.00752, algorithm 2; A by zero-order hold,
B by Euler, as their kernel computes it):

    h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t x_t) B_t,   h_0 = 0
    y_t = Σ_n C_{t,n} h_{t,·,n} + D ⊙ x_t

`scan_reference` reads like the equation. `scan_chunked` gives the same numbers in fewer, larger
steps and with its own backward, in any dtype and on any device. The compiled forms, in `kernels`,
are faster where they fit; `choose_scan` knows. All only ever multiply by exp(Δ A) ≤ 1: a form that
divides by a running product of them leaves float32 after a dozen steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from contourcast.imaging.errors import InputError
from contourcast.models.kernels.cpu_scan import Kernel, cpu_kernel, scan_cpu_kernel

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

# Steps that are walked one by one; the chunks of a block walk side by side. Between 16 and 128
# the time is the same within its scatter (benchmarks/scan.py); short ones need the least memory.
CHUNK: Final = 16
# Elements (batch x steps x channels x states) of one block, the unit that is held in memory.
BLOCK_ELEMENTS: Final = 2**21


def scan_reference(
    x: Float[Tensor, "b d l"],
    dt: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b n l"],
    C: Float[Tensor, "b n l"],
    D: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """The equation, step by step; any device, any dtype, differentiable by autograd."""
    h = x.new_zeros(*x.shape[:2], A.shape[1])  # (b d n)
    ys = []
    # unbind, not indices: the backward of x[:, :, t] writes a whole zero tensor at every step
    steps = zip(*(v.unbind(-1) for v in (x, dt, B, C)), strict=True)
    for x_t, dt_t, B_t, C_t in steps:
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * B_t[:, None]
        ys.append((h * C_t[:, None]).sum(-1))  # (b d)
    return torch.stack(ys, -1) + D[:, None] * x


def scan_chunked(
    x: Float[Tensor, "b d l"],
    dt: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b n l"],
    C: Float[Tensor, "b n l"],
    D: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """The same, exactly, in blocks of chunks.

    Within a block all chunks first advance side by side from zero; the chunks' last states are
    carried from one to the next with exp(A ΣΔ); then all chunks advance from their true starts.
    Backward keeps one state per block and recomputes the rest.
    """
    y: Tensor = _ChunkedScan.apply(x, dt, A, B, C, D)  # type: ignore[no-untyped-call]
    return y


class _ChunkedScan(torch.autograd.Function):
    """Letters as in the module's docstring; ``g_t`` is the adjoint of ``h_t``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
    ) -> Tensor:
        steps = _steps_per_block(x, A)
        h = x.new_zeros(*x.shape[:2], A.shape[1])
        starts, ys = [], []
        for block in _blocks(steps, x, dt, B, C):
            x_b, dt_b, B_b, C_b = (_chunks(v) for v in block)
            starts.append(h)
            _, states = _states(x_b, dt_b, A, B_b, h)
            y = torch.einsum("tbkdn,tbkn->tbkd", states[1:], C_b)
            ys.append(_unchunk(y, block[0].shape[-1]))
            h = states[-1, :, -1].clone()  # a view would keep the whole block alive
        ctx.save_for_backward(x, dt, A, B, C, D, torch.stack(starts))
        return torch.cat(ys, -1) + D[:, None] * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, D, starts = ctx.saved_tensors
        steps = _steps_per_block(x, A)
        A_bar = torch.zeros_like(A)
        g_end = torch.zeros_like(starts[0])  # adjoint of the block's last state, (b d n)
        bars = []
        blocks = _blocks(steps, x, dt, B, C, y_bar)
        for block, h in zip(reversed(blocks), starts.flip(0), strict=True):
            x_b, dt_b, B_b, C_b, yb_b = (_chunks(v) for v in block)
            a, states = _states(x_b, dt_b, A, B_b, h)
            g, g_end = _adjoints(a, dt_b, A, C_b, yb_b, g_end)
            w = g * a * states[:-1]
            gB = torch.einsum("tbkdn,tbkn->tbkd", g, B_b)
            A_bar += torch.einsum("tbkdn,tbkd->dn", w, dt_b)
            bar = (
                dt_b * gB,
                torch.einsum("tbkdn,dn->tbkd", w, A) + x_b * gB,
                torch.einsum("tbkdn,tbkd->tbkn", g, dt_b * x_b),
                torch.einsum("tbkdn,tbkd->tbkn", states[1:], yb_b),
            )
            bars.append([_unchunk(v, block[0].shape[-1]) for v in bar])
        x_bar, dt_bar, B_bar, C_bar = (torch.cat(v[::-1], -1) for v in zip(*bars, strict=True))
        return x_bar + D[:, None] * y_bar, dt_bar, A_bar, B_bar, C_bar, (y_bar * x).sum((0, 2))


def _steps_per_block(x: Tensor, A: Tensor) -> int:
    per_step = x.shape[0] * A.numel()
    return max(1, BLOCK_ELEMENTS // (per_step * CHUNK)) * CHUNK


def _blocks(steps: int, *sequences: Tensor) -> list[tuple[Tensor, ...]]:
    """All sequences (b c l) cut at the same places."""
    return list(zip(*(torch.split(v, steps, -1) for v in sequences), strict=True))


def _chunks(v: Float[Tensor, "b c l"]) -> Float[Tensor, "t b k c"]:
    """Cut into chunks, time first. The tail is filled with zeros: Δ = 0 leaves the state alone."""
    v = torch.nn.functional.pad(v, (0, -v.shape[-1] % CHUNK))
    return rearrange(v, "b c (k t) -> t b k c", t=CHUNK).contiguous()


def _unchunk(v: Float[Tensor, "t b k c"], length: int) -> Float[Tensor, "b c l"]:
    return rearrange(v, "t b k c -> b c (k t)")[..., :length]


def _states(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, start: Float[Tensor, "b d n"]
) -> tuple[Float[Tensor, "t b k d n"], Float[Tensor, "t1 b k d n"]]:
    """The factors exp(Δ A), and the states: before the first step, then after each."""
    a = (dt[..., None] * A).exp_()
    u = (dt * x)[..., None] * B[..., None, :]
    states = a.new_empty(CHUNK + 1, *a.shape[1:])
    states[0] = 0
    if a.shape[2] > 1:  # several chunks: where does each of them start?
        end = states[0]
        for a_t, u_t in zip(a, u, strict=True):
            end = torch.addcmul(u_t, a_t, end)
        through = (dt.sum(0)[..., None] * A).exp_()  # (b k d n)
        for k in range(1, a.shape[2]):
            before = start if k == 1 else states[0, :, k - 1]
            states[0, :, k] = end[:, k - 1] + through[:, k - 1] * before
    states[0, :, 0] = start
    for t in range(CHUNK):
        torch.addcmul(u[t], a[t], states[t], out=states[t + 1])
    return a, states


def _adjoints(
    a: Tensor, dt: Tensor, A: Tensor, C: Tensor, y_bar: Tensor, end: Float[Tensor, "b d n"]
) -> tuple[Float[Tensor, "t b k d n"], Float[Tensor, "b d n"]]:
    """g_t of every step (ȳ_t C_t included), and the adjoint of the block's start."""
    g = y_bar[..., None] * C[..., None, :]
    after = a.new_zeros(a.shape[1:])  # adjoint of each chunk's last state, from later chunks
    after[:, -1] = end
    if a.shape[2] > 1:
        begin = torch.zeros_like(after)
        for t in reversed(range(CHUNK)):
            begin = a[t] * (begin + g[t])
        through = (dt.sum(0)[..., None] * A).exp_()
        for k in reversed(range(a.shape[2] - 1)):
            after[:, k] = begin[:, k + 1] + through[:, k + 1] * after[:, k + 1]
    g[-1] += after
    for t in reversed(range(CHUNK - 1)):
        g[t].addcmul_(a[t + 1], g[t + 1])
    return g, a[0, :, 0] * g[0, :, 0]


def scan_mamba_ssm(
    x: Float[Tensor, "b d l"],
    dt: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b *g n l"],
    C: Float[Tensor, "b *g n l"],
    D: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """mamba-ssm's CUDA kernel; Δ comes in ready, so neither bias nor softplus is asked of it."""
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    y: Tensor = interface.selective_scan_fn(x, dt, A, B, C, D)
    return y


def scan_triton(
    x: Float[Tensor, "b d l"],
    dt: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b *g n l"],
    C: Float[Tensor, "b *g n l"],
    D: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """Our kernel for GPUs, which needs triton and nothing compiled."""
    kernels = importlib.import_module("contourcast.models.kernels.triton_scan")
    y: Tensor = kernels.scan_triton(x, dt, A, B, C, D)
    return y


SCANS: Final[dict[str, Scan]] = {
    "reference": scan_reference,
    "chunked": scan_chunked,
    "cpu_kernel": scan_cpu_kernel,
    "triton": scan_triton,
    "mamba_ssm": scan_mamba_ssm,
}
# What takes B and C in groups of channels, (b g n l), too: there a launch is dear.
GROUPED: Final = ("triton", "mamba_ssm")
GPU_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def scan_many(name: str, calls: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Several scans (the directions of a layer) of `SCANS`, folded into one launch where that pays.

    Calls that share A and D lie side by side in the batch; with parameters of their own they are
    groups of channels. On a CPU nothing is launched and a fold would only copy, so there, and
    where sizes differ, one call follows the other.

    Args:
        name: A key of `SCANS`.
        calls: x, Δ, A, B, C, D each.
    """
    scan = SCANS[name]
    x, dt, A, B, C, D = zip(*calls, strict=True)
    sizes = {(v.shape, w.shape) for v, w in zip(x, A, strict=True)}
    if len(calls) == 1 or name not in GROUPED or len(sizes) > 1:
        return [scan(*call) for call in calls]
    if all(v is A[0] for v in A) and all(v is D[0] for v in D):
        beside = (torch.cat(v) for v in (x, dt, B, C))
        x_all, dt_all, B_all, C_all = beside
        return list(scan(x_all, dt_all, A[0], B_all, C_all, D[0]).chunk(len(calls)))
    y = scan(
        torch.cat(x, 1), torch.cat(dt, 1), torch.cat(A), torch.stack(B, 1), torch.stack(C, 1),
        torch.cat(D),
    )  # fmt: skip
    return list(y.chunk(len(calls), 1))


@cache
def triton_works() -> bool:
    """Whether triton imports; a GPU it finds only when a kernel is called."""
    try:
        importlib.import_module("contourcast.models.kernels.triton_scan")
    except (ImportError, OSError, RuntimeError):  # absent, or built for another platform
        return False
    return True


@cache
def mamba_ssm_works() -> bool:
    """Whether mamba-ssm's kernel is really there.

    ``import mamba_ssm`` succeeds without it (its default build leaves it out) and fails only at
    the first call, so the compiled module itself is imported.
    """
    try:
        importlib.import_module("selective_scan_cuda")
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError, RuntimeError):  # absent, built for another torch, no driver
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The name in `SCANS` of the scan that runs, and why this one, in a sentence for people."""

    name: str
    why: str


def choose_scan(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The name in `SCANS` that ``backend`` (a name or ``auto``) means for such tensors.

    Raises:
        InputError: No scan has that name, or the kernel asked for cannot run here.
    """
    if backend == "auto":
        return explain_scan(device, dtype).name
    if backend not in SCANS:
        raise InputError(
            f"no selective scan is named '{backend}'",
            remedy=f"choose from auto, {', '.join(SCANS)}",
        )
    missing = _missing(backend, device, dtype)
    if missing:
        raise InputError(
            f"the selective scan '{backend}' cannot be used here", remedy=f"{missing}; or use auto"
        )
    return backend


def explain_scan(device: torch.device, dtype: torch.dtype = torch.float32) -> Choice:
    """What ``auto`` means for such tensors: the first of the compiled scans that can run."""
    reasons: list[str] = []
    for name in ("mamba_ssm", "triton") if device.type == "cuda" else ("cpu_kernel",):
        missing = _missing(name, device, dtype)
        if not missing:
            return Choice(name=name, why="; ".join([*reasons, _present(name)]))
        reasons.append(missing)
    return Choice(name="chunked", why="; ".join(reasons))


def _present(name: str) -> str:
    """What a compiled scan is, in words."""
    kernel = cpu_kernel()
    if name == "cpu_kernel" and isinstance(kernel, Kernel):
        return f"C, {kernel.instruction_set}, by {kernel.compiler}"
    return "compiled at first use" if name == "triton" else "its compiled kernel is here"


def _missing(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a scan cannot run on such tensors; nothing if it can."""
    if name == "mamba_ssm" and not (
        device.type == "cuda" and dtype in GPU_DTYPES and mamba_ssm_works()
    ):
        return "mamba-ssm needs a GPU, its compiled kernel selective_scan_cuda, and at most float32"
    if name == "triton":
        if device.type != "cuda" or dtype not in GPU_DTYPES:
            return (
                f"the Triton kernel computes on a GPU, up to float32, not {dtype} on {device.type}"
            )
        return "" if triton_works() else "triton is not installed"
    if name == "cpu_kernel":
        if device.type != "cpu" or dtype != torch.float32:
            return f"the C kernel computes in float32 on the CPU, not {dtype} on {device.type}"
        kernel = cpu_kernel()
        return "" if isinstance(kernel, Kernel) else kernel.why
    return ""
