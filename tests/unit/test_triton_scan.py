"""The Triton kernels: run by its interpreter on the CPU, and compiled for GPUs that are absent."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from support import triton_cases

# Largest difference over largest value, for each dtype of x, Δ, B, C (A, D and the state are
# float32). float32: about a thousand roundings of 6e-8 add up. The others round each output once
# more: float16 by half of its last place, 2^-10; bfloat16, whose last place is 2^-7, by all of it,
# since the interpreter cuts off what a GPU would round.
TOLERANCE: Final = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-11}

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install contourcast[triton]", allow_module_level=True)


def in_a_process_of_its_own(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", script],  # -P: what lies beside the script shadows nothing
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    answers: dict[str, Any] = json.loads(
        in_a_process_of_its_own(str(triton_cases.__file__), TRITON_INTERPRET="1")
    )
    return answers


@pytest.mark.parametrize("case", triton_cases.CASES)
def test_the_kernel_is_the_reference_in_values_and_every_gradient(
    found: dict[str, Any], case: str
) -> None:
    dtype = triton_cases.CASES[case][-1]
    assert set(found[case]) == set(triton_cases.NAMES)
    for name, error in found[case].items():
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


def test_directions_folded_into_one_launch_are_what_they_are_alone(found: dict[str, Any]) -> None:
    errors = found["four directions with parameters of their own"]
    assert max(errors.values()) <= TOLERANCE["float32"], errors


def test_strong_decay_stays_finite(found: dict[str, Any]) -> None:
    assert all(found["strong decay stays finite"].values())


def test_views_give_what_their_copies_give(found: dict[str, Any]) -> None:
    assert found["views"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_both_kernels_compile_for_a_gpu(tmp_path: Path, architecture: int) -> None:
    """To machine code, by the assembler that triton brings; no GPU is needed for that."""
    script = tmp_path / "compile_kernels.py"
    script.write_text(
        f"""
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from contourcast.models.kernels import triton_scan

constants = dict(CHUNK=64, ROWS=triton_scan.ROWS, STATES=16)
narrow = ("x", "dt", "B", "C", "y", "y_bar", "x_bar", "dt_bar")
walks = {{triton_scan._walk_forward: dict(KEEP=True), triton_scan._walk_backward: dict()}}
target = GPUTarget("cuda", {architecture}, 32)
for walk, extra in walks.items():
    fixed = constants | extra
    for half in ("fp32", "bf16", "fp16"):
        signature = {{
            name: "constexpr" if name in fixed
            else "i32" if name in ("channels", "states", "length", "chunks")
            else "*" + (half if name in narrow else "fp32")
            for name in walk.arg_names
        }}
        source = ASTSource(fn=walk, signature=signature, constexprs=fixed)
        made = compile(source, target=target, options=triton_scan.OPTIONS)
        print(len(made.asm["cubin"]), made.asm["ptx"].count(".local"))
"""
    )
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    lines = in_a_process_of_its_own(str(script), **environment).splitlines()
    assert len(lines) == 6
    for line in lines:
        size, spilled = map(int, line.split())
        assert size > 0
        assert spilled == 0  # the states are in registers
