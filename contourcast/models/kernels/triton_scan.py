"""The selective scan as Triton kernels, forward and backward, for GPUs without mamba-ssm.

One program walks the time of one block of channels of one batch item with the states in registers,
in float32 whatever comes in. Arrays lie time-major, (b l d), so that a step reads neighbours; what
already lies so (Δ of a Mamba layer does) is not copied. Backward starts each chunk from its kept
state, walks it once into a scratch that stays in the cache, and back again.

Directions fold into one launch: with parameters of their own they are *groups* of channels, each
group with its B and C (b g n l).

Importing this module needs triton. With ``TRITON_INTERPRET=1`` in the environment before triton is
first imported, the same kernels run on the CPU, step by step.
"""

# Triton's language has no types, and triton itself is an extra.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK: Final = 64  # steps between kept states (NETWORKS §2.2)
ROWS: Final = 32  # channels of a program: 32 x 16 states are 4 numbers a thread in 4 warps
# Fusing is the same choice as in the C kernel's FLAGS.
OPTIONS: Final = {"num_warps": 4, "enable_fp_fusion": True}
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _walk_forward(
    x, dt, A, B, C, D, y, starts,
    channels, states, length, chunks,
    KEEP: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Grid: (batch, groups, blocks of a group's channels)."""
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    groups = tl.num_programs(1)
    width = groups * channels
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, STATES)
    column = group * channels + row
    lives, counts = row < channels, n < states
    cells = lives[:, None] & counts[None, :]
    cell = column[:, None] * states + n[None, :]
    A2 = tl.load(A + cell, cells, 0.0) * LOG2_E
    D_row = tl.load(D + column, lives, 0.0)
    h = tl.zeros([ROWS, STATES], tl.float32)
    for t in range(length):
        if KEEP:  # noqa: SIM102 (decided when the kernel is compiled)
            if t % CHUNK == 0:
                tl.store(starts + (batch * chunks + t // CHUNK) * width * states + cell, h, cells)
        at = (batch * length + t) * width + column
        of = ((batch * groups + group) * length + t) * states + n
        x_t = tl.load(x + at, lives, 0.0).to(tl.float32)
        dt_t = tl.load(dt + at, lives, 0.0).to(tl.float32)
        B_t = tl.load(B + of, counts, 0.0).to(tl.float32)
        C_t = tl.load(C + of, counts, 0.0).to(tl.float32)
        h = tl.exp2(dt_t[:, None] * A2) * h + (dt_t * x_t)[:, None] * B_t[None, :]
        y_t = tl.sum(h * C_t[None, :], 1) + D_row * x_t
        tl.store(y + at, y_t.to(y.dtype.element_ty), lives)


@triton.jit
def _walk_backward(
    x, dt, A, B, C, D, y_bar, starts, scratch,
    x_bar, dt_bar, A_bar, B_bar, C_bar, D_bar,
    channels, states, length, chunks,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """The same grid; ``g`` is the adjoint of ``h``; B_bar, C_bar are this block's share."""
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    groups, blocks = tl.num_programs(1), tl.num_programs(2)
    width = groups * channels
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    n = tl.arange(0, STATES)
    column = group * channels + row
    lives, counts = row < channels, n < states
    cells = lives[:, None] & counts[None, :]
    cell = column[:, None] * states + n[None, :]
    A_cell = tl.load(A + cell, cells, 0.0)
    A2 = A_cell * LOG2_E
    D_row = tl.load(D + column, lives, 0.0)
    program = (batch * groups + group) * blocks + tl.program_id(2)
    place = tl.arange(0, ROWS)[:, None] * STATES + n[None, :]
    mine = scratch + program * CHUNK * ROWS * STATES + place
    g = tl.zeros([ROWS, STATES], tl.float32)
    A_sum = tl.zeros([ROWS, STATES], tl.float32)
    D_sum = tl.zeros([ROWS], tl.float32)
    for k in range(chunks):
        chunk = chunks - 1 - k
        first = chunk * CHUNK
        steps = tl.minimum(CHUNK, length - first)
        h = tl.load(starts + (batch * chunks + chunk) * width * states + cell, cells, 0.0)
        for s in range(steps):
            tl.store(mine + s * ROWS * STATES, h)
            at = (batch * length + first + s) * width + column
            of = ((batch * groups + group) * length + first + s) * states + n
            x_t = tl.load(x + at, lives, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at, lives, 0.0).to(tl.float32)
            B_t = tl.load(B + of, counts, 0.0).to(tl.float32)
            h = tl.exp2(dt_t[:, None] * A2) * h + (dt_t * x_t)[:, None] * B_t[None, :]
        tl.debug_barrier()  # what one thread put into the scratch another may read
        for r in range(steps):
            s = steps - 1 - r
            at = (batch * length + first + s) * width + column
            of = ((batch * groups + group) * length + first + s) * states + n
            x_t = tl.load(x + at, lives, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at, lives, 0.0).to(tl.float32)
            y_bar_t = tl.load(y_bar + at, lives, 0.0).to(tl.float32)
            B_t = tl.load(B + of, counts, 0.0).to(tl.float32)
            C_t = tl.load(C + of, counts, 0.0).to(tl.float32)
            before = tl.load(mine + s * ROWS * STATES)
            a = tl.exp2(dt_t[:, None] * A2)
            u = dt_t * x_t
            after = a * before + u[:, None] * B_t[None, :]
            g += y_bar_t[:, None] * C_t[None, :]
            share = (program * length + first + s) * states + n
            tl.store(C_bar + share, tl.sum(y_bar_t[:, None] * after, 0), counts)
            tl.store(B_bar + share, tl.sum(g * u[:, None], 0), counts)
            gB = tl.sum(g * B_t[None, :], 1)
            g *= a
            w = g * before
            dt_bar_t = tl.sum(w * A_cell, 1) + x_t * gB
            x_bar_t = dt_t * gB + D_row * y_bar_t
            tl.store(dt_bar + at, dt_bar_t.to(dt_bar.dtype.element_ty), lives)
            tl.store(x_bar + at, x_bar_t.to(x_bar.dtype.element_ty), lives)
            A_sum += w * dt_t[:, None]
            D_sum += y_bar_t * x_t
        tl.debug_barrier()
    tl.store(A_bar + batch * width * states + cell, A_sum, cells)
    tl.store(D_bar + batch * width + column, D_sum, lives)


def scan_triton(
    x: Float[Tensor, "b d l"],
    dt: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b *g n l"],
    C: Float[Tensor, "b *g n l"],
    D: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """The scan for float32, bfloat16 and float16; y has the dtype of x.

    With B and C as (b g n l), the first d/g channels belong to the first group, and so on.
    """
    B, C = (v if v.dim() == 4 else v[:, None] for v in (B, C))
    inputs = (x, dt, A, B, C, D)
    keep = torch.is_grad_enabled() and any(v.requires_grad for v in inputs)
    y: Tensor = _TritonScan.apply(keep, *inputs)  # type: ignore[no-untyped-call]
    return y


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, keep: bool, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
    ) -> Tensor:
        operands = (*_time_major(x, dt), A.float().contiguous(), *_time_major(B, C), D.float())
        b, length, width = operands[0].shape
        groups, states = B.shape[1:3]
        chunks = triton.cdiv(length, CHUNK)
        y = torch.empty_like(operands[0])
        starts = A.new_empty((b, chunks, width, states) if keep else (0,), dtype=torch.float32)
        sizes = (width // groups, states, length, chunks)
        if y.numel():
            # triton launches on the current device
            with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
                _walk_forward[_grid(b, groups, sizes[0])](
                    *operands, y, starts, *sizes,
                    KEEP=keep, CHUNK=CHUNK, ROWS=ROWS, STATES=_lanes(states), **OPTIONS,
                )  # fmt: skip
        if keep:
            ctx.save_for_backward(*operands, starts)
            ctx.sizes = sizes
            ctx.dtypes = [v.dtype for v in (A, B, C, D)]
        return y.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        *operands, starts = ctx.saved_tensors
        x, dt, B = operands[0], operands[1], operands[3]
        b, length, width = x.shape
        groups, (channels, states, _, _) = B.shape[1], ctx.sizes
        grid = _grid(b, groups, channels)
        wide = {"dtype": torch.float32, "device": x.device}
        x_bar, dt_bar = torch.empty_like(x), torch.empty_like(dt)
        A_bar = torch.zeros(b, width, states, **wide)
        D_bar = torch.zeros(b, width, **wide)
        B_bar, C_bar = (torch.zeros(*grid, length, states, **wide) for _ in range(2))
        scratch = torch.empty(*grid, CHUNK, ROWS, _lanes(states), **wide)
        if x.numel():
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                _walk_backward[grid](
                    *operands, y_bar.transpose(1, 2).contiguous(), starts, scratch,
                    x_bar, dt_bar, A_bar, B_bar, C_bar, D_bar, *ctx.sizes,
                    CHUNK=CHUNK, ROWS=ROWS, STATES=_lanes(states), **OPTIONS,
                )  # fmt: skip
        bars = (
            A_bar.sum(0),
            *(rearrange(v.sum(2), "b g l n -> b g n l") for v in (B_bar, C_bar)),
            D_bar.sum(0),
        )
        narrow = (v.to(dtype) for v, dtype in zip(bars, ctx.dtypes, strict=True))
        return None, x_bar.transpose(1, 2), dt_bar.transpose(1, 2), *narrow


def _time_major(*sequences: Tensor) -> list[Tensor]:
    """(… row l) as (… l row) in memory; a copy only where it does not lie so already."""
    return [v.transpose(-1, -2).contiguous() for v in sequences]


def _grid(batch: int, groups: int, channels: int) -> tuple[int, int, int]:
    return batch, groups, triton.cdiv(channels, ROWS)


def _lanes(states: int) -> int:
    """Triton's blocks are powers of two."""
    lanes: int = triton.next_power_of_2(states)
    return lanes
