"""Writing a structure set, beside rt-utils: time, size, and what two readers make of it.

    python -m benchmarks.structure_set [--times N]

Three ROIs (two ellipsoids, one hollow) on 100 slices of 512 x 512 pixels. Both start from masks
and from images already read, so tracing is counted on both sides. The error is that of the
enclosed volume against the analytic one, by exact areas times slice distance.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np
from pydicom import Dataset
from rt_utils import RTStruct
from rt_utils.ds_helper import create_rtstruct_dataset
from rt_utils.image_helper import load_sorted_image_series

from benchmarks.measure import compared
from contourcast.imaging.dicom.ct_series_out import series_source, write_ct_series
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.grid import Grid
from contourcast.imaging.rasterise import coverage
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.volume import Mask, Volume

GRID = Grid.even(
    shape_zyx=(100, 512, 512), spacing_xyz_mm=(1.0, 1.0, 3.0), origin_xyz_mm=(-255.5, -255.5, 0)
)
# Semi-axes (x, y, z) in mm and centre; the last is hollow by half of them.
SHAPES = {
    "body": ((180.0, 120.0, 140.0), (0.0, 0.0, 150.0)),
    "tumour": ((25.0, 32.0, 30.0), (60.0, -20.0, 160.0)),
    "shell": ((60.0, 40.0, 60.0), (-70.0, 10.0, 140.0)),
}
DRAWN_AT = datetime(2026, 1, 3, tzinfo=UTC)


def scan() -> Volume:
    """An empty scan with a DICOM identity."""
    volume = Volume(
        values=np.zeros(GRID.shape_zyx, np.float32),
        grid=GRID,
        frame_of_reference=derived_uid("benchmark", "frame"),
    )
    return replace(
        volume,
        source=series_source(
            volume,
            digest="benchmark",
            patient=Patient(name="Contourcast^Benchmark", patient_id="CONTOURCAST-BENCHMARK"),
            study=Study(instance_uid=derived_uid("benchmark", "study")),
        ),
    )


def masks(frame_of_reference: str) -> dict[str, Mask]:
    """The shapes by voxel centres."""
    z, y, x = (
        GRID.origin_xyz_mm[axis] + np.arange(n) * GRID.spacing_xyz_mm[axis]
        for axis, n in zip((2, 1, 0), GRID.shape_zyx, strict=True)
    )
    found = {}
    for name, ((a, b, c), (x0, y0, z0)) in SHAPES.items():
        radius = np.sqrt(
            ((x - x0) / a)[None, None] ** 2
            + ((y - y0) / b)[None, :, None] ** 2
            + ((z - z0) / c)[:, None, None] ** 2
        )
        inside = (radius <= 1) & ((radius > 0.5) | (name != "shell"))
        found[name] = Mask(
            values=inside, grid=GRID, frame_of_reference=frame_of_reference, name=name
        )
    return found


def write_ours(path: Path, reference: Volume, regions: dict[str, Mask]) -> None:
    """From masks to a file, as a caller of ours does it."""
    write_structure_set(
        path,
        rois=[
            Roi(
                number=number,
                name=name,
                contours=trace(mask),
                frame_of_reference=reference.frame_of_reference,
            )
            for number, (name, mask) in enumerate(regions.items(), start=1)
        ],
        reference=reference,
        label="benchmark",
        series_description="benchmark",
        digest="benchmark",
        drawn_at=DRAWN_AT,
    )


def write_theirs(path: Path, headers: list[Dataset], regions: dict[str, np.ndarray]) -> None:
    """From masks to a file, as rt-utils does it once it has read the images."""
    structures = RTStruct(headers, create_rtstruct_dataset(headers))
    for name, mask in regions.items():
        structures.add_roi(mask=mask, name=name)
    with redirect_stdout(StringIO()):
        structures.save(str(path))


def volume_errors(path: Path) -> dict[str, float]:
    """Enclosed volume against the analytic one, as a fraction, by ROI."""
    errors = {}
    for roi in read_structure_set(path).rois:
        a, b, c = SHAPES[roi.name][0]
        true_cc = 4 / 3 * np.pi * a * b * c / 1000 * (7 / 8 if roi.name == "shell" else 1)
        drawn_cc = float((coverage(roi, GRID).values * GRID.voxel_cc).sum())
        errors[roi.name] = drawn_cc / true_cc - 1
    return errors


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        series, ours, theirs = (Path(folder) / name for name in ("ct", "ours.dcm", "theirs.dcm"))
        reference = scan()
        write_ct_series(series, reference)
        headers = load_sorted_image_series(str(series))
        regions = masks(reference.frame_of_reference)
        # rt-utils wants (row, column, slice) and draws through OpenCV, which wants them writable.
        arrays = {name: np.moveaxis(mask.values, 0, -1).copy() for name, mask in regions.items()}
        print(
            compared(
                "write 3 ROIs of 100 slices of 512 x 512",
                lambda: write_ours(ours, reference, regions),
                lambda: write_theirs(theirs, headers, arrays),
                times=times,
            )
        )
        for name, path in (("ours", ours), ("rt-utils", theirs)):
            errors = ", ".join(f"{r} {100 * e:+.2f} %" for r, e in volume_errors(path).items())
            print(f"{name}: {path.stat().st_size / 1e6:.3f} MB; volume against truth: {errors}")


if __name__ == "__main__":
    main()
