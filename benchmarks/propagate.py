"""One CBCT, end to end, per method and by all five: seconds and peak memory of the whole program.

    python benchmarks/propagate.py

The planning CT of 4D-Lung patient 113 (512 x 512 x 99) and the CBCT simulated from it, as a person
would run them: reading, registering, drawing, checking, writing. The goal for all five is 90 s and
4 GiB on two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from contourcast.propagate import ALL_METHODS
from support.data import data_item


def main() -> None:
    """Prints a table."""
    print("| methods | wall s | CPU s | peak MiB of the largest process |")
    print("| --- | --- | --- | --- |")
    for methods in (*((name,) for name in ALL_METHODS), ALL_METHODS):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {', '.join(methods)} | {measured(methods, Path(folder))} |", flush=True)


def measured(methods: tuple[str, ...], folder: Path) -> str:
    """Runs the command line once."""
    planning = data_item("lung_planning_ct")
    command = [
        *(sys.executable, "-m", "contourcast", "propagate"),
        f"--planning-ct={planning / 'ct'}",
        f"--structures={next((planning / 'rs').iterdir())}",
        f"--cbct={data_item('lung_cbct_simulated') / 'cbct'}",
        "--roi=Tumor_c40",
        f"--out={folder / 'run'}",
        *(f"--method={name}" for name in methods),
    ]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"propagate ended with {os.waitstatus_to_exitcode(status)}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return f"{wall_s:.1f} | {cpu_s:.1f} | {usage.ru_maxrss / 1024:.0f}"


if __name__ == "__main__":
    main()
