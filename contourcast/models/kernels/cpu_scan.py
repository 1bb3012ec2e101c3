"""The selective scan on a CPU by the C kernel: how it is found, called, and differentiated.

The kernel knows pointers and sizes alone. Calls through ctypes release Python's lock, so a few
Python threads share the work: one task is the channels of one part of one batch item. What a task
sums is its own, so the answer does not depend on the number of threads, bit for bit.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from contourcast.imaging.errors import InputError
from contourcast.models.kernels.build import FOLDER, LIBRARY, RECORD, SOURCE, digest

CHUNK: Final = 64  # steps between kept states; as in the source
PART: Final = 128  # channels of one task; as in the source
PADDING: Final = 16  # channels are padded to the widest vector
# Below this many elements (batch x channels x steps x states) a second thread costs more than it
# saves: about half a millisecond of work (benchmarks/scan.py --lengths 64: D = 1024, N = 16).
SHARED_ELEMENTS: Final = 2**20
# From the best to the plainest, with the bit by which the kernel says that the processor has it.
BITS: Final = {"avx512": 2, "avx2": 1, "baseline": 0}
REBUILD: Final = "python -m contourcast.models.kernels.build"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The compiled functions, for one instruction set."""

    instruction_set: str
    compiler: str
    forward: Callable[..., int]
    backward: Callable[..., int]
    exp2: Callable[..., int]


@dataclass(frozen=True, kw_only=True)
class Missing:
    """There is no kernel; a sentence says why, and what helps."""

    why: str


@cache
def cpu_kernel() -> Kernel | Missing:
    """The kernel that was compiled at installation, for this processor."""
    return load_kernel(FOLDER)


def load_kernel(folder: Path, instruction_set: str | None = None) -> Kernel | Missing:
    """Opens a library only if it is the one that its record describes.

    Args:
        folder: Where `contourcast.models.kernels.build.build` put it.
        instruction_set: One of `BITS`, to force it; None: the best of this processor.
    """
    library = folder / LIBRARY
    if not library.is_file():
        return Missing(why=f"the C kernel was not compiled at installation; run {REBUILD}")
    try:
        record = json.loads((folder / RECORD).read_text())
        if record["library_sha256"] != digest(library):
            return Missing(why=f"{LIBRARY} is not the file that was built; run {REBUILD}")
        if record["source_sha256"] != digest(SOURCE):
            return Missing(why=f"{LIBRARY} was built from another source; run {REBUILD}")
        names = [instruction_set] if instruction_set else BITS
        return _open(library, record, names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Missing(why=f"{LIBRARY} cannot be used ({error}); run {REBUILD}")


def _open(library: Path, record: dict[str, Any], names: Any) -> Kernel | Missing:
    functions = ctypes.CDLL(str(library))
    runs = functions.contourcast_scan_runs()
    for name in names:
        if name in record["instruction_sets"] and runs & BITS[name] == BITS[name]:
            break
    else:
        return Missing(why=f"this processor or {LIBRARY} lacks {', '.join(names)}")
    forward = functions[f"contourcast_scan_forward_{name}"]
    backward = functions[f"contourcast_scan_backward_{name}"]
    exp2 = functions[f"contourcast_exp2_{name}"]
    for walk in (forward, backward):
        walk.argtypes = [ctypes.POINTER(_Scan), *[ctypes.c_int64] * 3]
    forward.restype = exp2.restype = None
    exp2.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return Kernel(
        instruction_set=name,
        compiler=str(record["compiler"]),
        forward=forward,
        backward=backward,
        exp2=exp2,
    )


class _Sequence(ctypes.Structure):
    """``struct sequence`` of the source."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("step", ctypes.c_int64),
    )


class _Scan(ctypes.Structure):
    """``struct scan`` of the source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("channels", "padded", "states", "length")),
        *((name, _Sequence) for name in ("x", "dt", "B", "C", "y")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "state", "starts")),
        *((name, _Sequence) for name in ("x_bar", "dt_bar")),
        *((name, ctypes.c_void_p) for name in ("A_bar", "D_bar", "B_bar", "C_bar")),
    )


def scan_cpu_kernel(
    x: Float[Tensor, "b d l"],
    dt: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b n l"],
    C: Float[Tensor, "b n l"],
    D: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """The scan in float32 on the CPU; views of any strides are read where they lie.

    y lies in memory as Δ does. States are kept, every `CHUNK` steps, only if a gradient is wanted.

    Raises:
        InputError: There is no kernel, or the tensors do not suit it or each other.
    """
    inputs = (x, dt, A, B, C, D)
    kernel = cpu_kernel()
    if isinstance(kernel, Missing):
        raise InputError("the C kernel of the scan is not here", remedy=kernel.why)
    _check(*inputs)
    if torch.is_grad_enabled() and any(v.requires_grad for v in inputs):
        y: Tensor = _CpuScan.apply(kernel, *inputs)  # type: ignore[no-untyped-call]
        return y
    return _forward(kernel, None, *inputs)


class _CpuScan(torch.autograd.Function):
    """What is kept: the inputs, and the state at the start of each chunk."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
    ) -> Tensor:
        chunks = -(-x.shape[-1] // CHUNK)
        starts = x.new_empty(x.shape[0], chunks, A.shape[1], _padded(x))
        y = _forward(kernel, starts, x, dt, A, B, C, D)
        ctx.kernel = kernel
        ctx.save_for_backward(x, dt, A, B, C, D, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, starts = ctx.saved_tensors
        b, d, length = x.shape
        n, parts = A.shape[1], -(-d // PART)
        x_bar, dt_bar = torch.empty_like(x), torch.empty_like(dt)
        A_bar, D_bar = x.new_zeros(b, n, _padded(x)), x.new_zeros(b, _padded(x))
        B_bar, C_bar = (x.new_empty(b, parts, n, length) for _ in range(2))
        call = _Call(x, dt, A, B, C, D, y=y_bar, starts=starts)
        call.give(x_bar=x_bar, dt_bar=dt_bar, A_bar=A_bar, D_bar=D_bar, B_bar=B_bar, C_bar=C_bar)
        call.run(ctx.kernel.backward)
        return (
            None,
            x_bar,
            dt_bar,
            A_bar.sum(0)[:, :d].T,
            B_bar.sum(1),
            C_bar.sum(1),
            D_bar.sum(0)[:d],
        )


def _forward(kernel: Kernel, starts: Tensor | None, *inputs: Tensor) -> Tensor:
    y = torch.empty_like(inputs[1])
    _Call(*inputs, y=y, starts=starts).run(kernel.forward)
    return y


class _Call:
    """One ``struct scan`` with the tensors that it points to."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        *,
        y: Tensor,
        starts: Tensor | None,
    ) -> None:
        self.batch, self.channels, self.length = x.shape
        padded, states = _padded(x), A.shape[1]
        self.elements = x.numel() * states
        self.struct = _Scan(
            channels=self.channels, padded=padded, states=states, length=self.length
        )
        self.kept: list[Tensor] = []
        A_rows = A.new_zeros(states, padded)
        A_rows[:, : self.channels] = A.T
        D_row = D.new_zeros(padded)
        D_row[: self.channels] = D
        self.give(x=x, dt=dt, B=B, C=C, y=y, A=A_rows, D=D_row)
        self.give(state=x.new_zeros(self.batch, states, padded))
        if starts is not None:
            self.give(starts=starts)

    def give(self, **tensors: Tensor) -> None:
        """Points a field of the struct at a tensor; with strides where the field has them."""
        for name, tensor in tensors.items():
            self.kept.append(tensor)
            strided = isinstance(getattr(self.struct, name), _Sequence)
            here = tensor.data_ptr()
            setattr(self.struct, name, _Sequence(here, *tensor.stride()) if strided else here)

    def run(self, walk: Callable[..., int]) -> None:
        """All parts of all batch items, shared among as many threads as torch would use."""
        tasks = list(itertools.product(range(self.batch), range(0, self.channels, PART)))
        threads = min(torch.get_num_threads(), len(tasks))
        if self.elements < SHARED_ELEMENTS:
            threads = 1
        # next() on an iterator of a list is one step under Python's lock: each task is taken once
        work = partial(self._take, walk, iter(tasks))
        helpers = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
        work()
        for helper in helpers:
            if not helper.cancel():  # one that has not begun would find nothing left
                helper.result()

    def _take(self, walk: Callable[..., int], tasks: Any) -> None:
        for batch, first in tasks:
            last = min(first + PART, self.channels)
            if walk(ctypes.byref(self.struct), batch, first, last):
                raise MemoryError("the scan's backward found no memory for its sums")


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Helpers for one process: a forked child inherits the object, not its threads."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix=f"scan-{process}")


def _padded(x: Tensor) -> int:
    return -(-x.shape[1] // PADDING) * PADDING


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> None:
    """The kernel believes what it is told, so sizes are made sure of here."""
    b, d, length = x.shape
    n = A.shape[-1]
    wanted = ((b, d, length), (b, d, length), (d, n), (b, n, length), (b, n, length), (d,))
    named = zip(("x", "dt", "A", "B", "C", "D"), (x, dt, A, B, C, D), wanted, strict=True)
    for name, tensor, shape in named:
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} of the scan has shape {tuple(tensor.shape)}, not {shape}")
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise InputError(
                f"{name} of the scan is {tensor.dtype} on {tensor.device.type}; "
                "the C kernel computes in float32 on the CPU",
                remedy="use the scan 'chunked', or 'auto'",
            )
