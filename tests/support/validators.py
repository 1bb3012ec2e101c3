"""Other people's programs that judge or read DICOM, as oracles."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.data import peer

# dciodvfy's remarks that are no fault of ours, each with the reason why it stays.
KNOWN_WARNINGS = Path(__file__).with_name("dciodvfy_known_warnings.txt")


def dciodvfy(file: Path) -> list[str]:
    """Errors, and warnings that are not known, that dciodvfy finds in a file."""
    said = _run("dciodvfy", str(file))
    known = [
        line.strip()
        for line in KNOWN_WARNINGS.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return [
        line
        for line in (said.stdout + said.stderr).splitlines()
        if line.startswith("Error")
        or (line.startswith("Warning") and not any(k in line for k in known))
    ]


def dcentvfy(files: Sequence[Path]) -> list[str]:
    """What dcentvfy finds to differ between files that should agree."""
    said = _run("dcentvfy", *map(str, files))
    lines = (said.stdout + said.stderr).splitlines()
    return lines or ([] if said.returncode == 0 else [f"exit {said.returncode}"])


def dcmdump(file: Path) -> str:
    """The dump of DCMTK; fails when its parser does not read the file to its end."""
    said = _run("dcmdump", "+E", str(file))
    assert said.returncode == 0, said.stderr
    return said.stdout


def plastimatch_masks(structure_set: Path, ct_folder: Path, into: Path) -> dict[str, Path]:
    """Every ROI as plastimatch rasterises it on the images' grid: NRRD files by ROI name."""
    said = _run(
        "plastimatch", "convert", "--input", str(structure_set), "--referenced-ct", str(ct_folder),
        "--output-prefix", str(into), "--prefix-format", "nrrd",
    )  # fmt: skip
    assert "Finished!" in said.stdout, said.stdout + said.stderr
    return {path.stem: path for path in into.glob("*.nrrd")}


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [peer(program), *arguments], capture_output=True, text=True, errors="replace", timeout=120
    )
