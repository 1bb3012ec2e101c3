"""Compiles the scan's C kernel with whatever compiler there is; knows the standard library alone.

The build hook runs this at installation. By hand, after a change of the source:

    python -m contourcast.models.kernels.build

The library asks for nothing but the C library, so it fits every Python and every torch. Beside it
lies a record, by which the loader knows that the file is whole and made from this very source.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
SOURCE: Final = FOLDER / "selective_scan.c"
LIBRARY: Final = "selective_scan.dll" if sys.platform == "win32" else "selective_scan.so"
RECORD: Final = "selective_scan.build.json"
COMPILERS: Final = ("cc", "gcc", "clang")

# Multiplications and additions may fuse; nothing may be reordered (see the source).
FLAGS: Final = ("-std=c11", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wall", "-Wextra")
# What is compiled in beside the baseline; the processor decides at run time. Each set names the
# very features that `contourcast_scan_runs` asks for, never the machine that compiles.
INSTRUCTION_SETS: Final = {"avx2": ("-mavx2", "-mfma"), "avx512": ("-mavx512f", "-mfma")}
X86: Final = ("x86_64", "amd64")
SECONDS: Final = 120.0  # of one call of the compiler, before it counts as hung


class BuildError(Exception):
    """No library came about; the message is a sentence that says why."""


def build(folder: Path = FOLDER) -> Path:
    """Puts the library and its record into the folder, whole or not at all.

    Raises:
        BuildError: There is no compiler, or it cannot compile the kernel.
    """
    compiler = _compiler()
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch)
        built = _compile(compiler, draft)
        library = draft / LIBRARY
        _run([*compiler, "-shared", *(str(draft / f"{name}.o") for name in built)], library)
        record = {
            "library_sha256": digest(library),
            "source_sha256": digest(SOURCE),
            "compiler": _version(compiler),
            "instruction_sets": built,
        }
        (draft / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        for name in (LIBRARY, RECORD):  # beside the target first, so that each move is atomic
            beside = folder / f"{name}.{os.getpid()}"
            shutil.copyfile(draft / name, beside)
            beside.replace(folder / name)
    return folder / LIBRARY


def digest(file: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _compiler() -> list[str]:
    """``$CC`` if it is set, else the first of the usual names."""
    named = os.environ.get("CC")
    for candidate in [named] if named else COMPILERS:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler: {named or ', '.join(COMPILERS)} not found")


def _compile(compiler: list[str], draft: Path) -> list[str]:
    """One object for each instruction set that this compiler knows; the baseline must succeed."""
    position = () if sys.platform == "win32" else ("-fPIC",)
    plain = [*compiler, *FLAGS, *position, "-c", str(SOURCE)]
    _run(plain, draft / "baseline.o")
    built = ["baseline"]
    for name, flags in INSTRUCTION_SETS.items() if platform.machine().lower() in X86 else ():
        try:
            _run([*plain, f"-DVARIANT={name}", *flags], draft / f"{name}.o")
        except BuildError:
            continue
        built.append(name)
    return built


def _run(command: list[str], out: Path) -> None:
    try:
        done = subprocess.run(
            [*command, "-o", str(out)], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run: {error}") from error
    if done.returncode != 0 or not out.is_file():
        first = (done.stderr or done.stdout).strip().splitlines()[:1]
        raise BuildError(f"{command[0]} cannot compile the scan: {' '.join(first)}")


def _version(compiler: list[str]) -> str:
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [compiler[0]])[0]


if __name__ == "__main__":
    try:
        sys.stdout.write(f"built {build()}\n")
    except BuildError as error:
        sys.exit(str(error))
