"""Reading a CT series of 200 slices, beside SimpleITK's series reader.

    python -m benchmarks.read_series [--times N]

Both give the same values. Ours also takes the SHA-256 of all pixels, keeps each slice's own
rescale and position, converts to float32 and refuses gaps, doubles and mixed series; SimpleITK's
gives int16 and checks none of it. CPU seconds are shown because wall time depends on free cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import compared
from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.ct_series_out import series_source, write_ct_series
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.grid import Grid
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.volume import Volume

sitk: Any = import_module("SimpleITK")


def write(folder: Path) -> None:
    """200 slices of 512 x 512, all values different from their neighbours'."""
    grid = Grid.even(
        shape_zyx=(200, 512, 512), spacing_xyz_mm=(1, 1, 2), origin_xyz_mm=(-255, -255, 0)
    )
    values = np.random.default_rng(0).integers(-1000, 2000, grid.shape_zyx)
    volume = Volume(values=values, grid=grid, frame_of_reference=derived_uid("bench", "frame"))
    source = series_source(
        volume,
        digest="bench",
        patient=Patient(name="Contourcast^Benchmark", patient_id="BENCHMARK"),
        study=Study(instance_uid=derived_uid("bench", "study")),
    )
    write_ct_series(
        folder,
        Volume(
            values=values, grid=grid, frame_of_reference=volume.frame_of_reference, source=source
        ),
    )


def theirs(folder: Path) -> Any:
    """SimpleITK's reader, as its own documentation uses it."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def cpu_seconds(call: Callable[[], object], times: int) -> float:
    """The least CPU time of several repetitions, all threads together."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Prints one line of wall times and one of CPU times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder)
        image, volume = theirs(folder), read_ct_series(folder)
        if not (sitk.GetArrayViewFromImage(image) == volume.values).all():
            raise SystemExit("the two readers differ")
        print(
            compared(
                "read 200 slices, wall",
                lambda: read_ct_series(folder),
                lambda: theirs(folder),
                times=times,
            )
        )
        ours, peer = (
            cpu_seconds(lambda: read_ct_series(folder), times),
            cpu_seconds(lambda: theirs(folder), times),
        )
        print(f"read 200 slices, CPU: ours {ours:.3f} s, peer {peer:.3f} s, {ours / peer:.2f}")


if __name__ == "__main__":
    main()
