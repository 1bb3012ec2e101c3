"""Public scans as the tests of registration use them: read, and thinned to 2 mm or so."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import SimpleITK

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.grid import Grid
from contourcast.imaging.volume import Mask, Volume
from support.data import data_item
from support.virtual_cbct import thinned

PLANNING_CTS = {
    "4D-Lung 113": ("lung_planning_ct", "ct", 2),
    "Pancreatic-CT-CBCT-SEG 001": ("pancreas_ct_cbct", "plan_ct", 2),
    "Lung-PET-CT-Dx A0001": ("lung_ct_dx", "A0001_soft", 2),
    "Lung-PET-CT-Dx A0002": ("lung_ct_dx", "A0002_soft", 3),
    "OpenTPS 4DCT phase 0": ("lung_4dct", "phase_00", 1),
    "NSCLC-Radiogenomics R01-001": ("lung_ct_r01", "ct.nii", 1),
}
CBCTS = {
    "Pancreatic-CT-CBCT-SEG 001 CBCT": ("pancreas_ct_cbct", "cbct_02", 2),
    "4D-Lung 113 simulated CBCT": ("lung_cbct_simulated", "cbct", 1),
}


@functools.cache
def scan(name: str) -> Volume:
    """One of `PLANNING_CTS` or `CBCTS`, thinned within its slices."""
    item, part, factor = (PLANNING_CTS | CBCTS)[name]
    path = data_item(item) / part
    volume = image_file(path, frame="1.2.3.1") if path.is_file() else read_ct_series(path)
    return thinned(volume, factor=factor) if factor > 1 else volume


def image_file(path: object, *, frame: str) -> Volume:
    """NIfTI or MetaImage as a scan in LPS."""
    image = SimpleITK.ReadImage(str(path))
    return Volume(
        values=SimpleITK.GetArrayFromImage(image).astype(np.float32),
        grid=_grid(image),
        frame_of_reference=frame,
    )


def mask_file(path: object, *, frame: str) -> Mask:
    """The same for a mask."""
    image = SimpleITK.ReadImage(str(path))
    return Mask(
        values=SimpleITK.GetArrayFromImage(image) > 0, grid=_grid(image), frame_of_reference=frame
    )


def _grid(image: SimpleITK.Image) -> Grid:
    nx, ny, nz = image.GetSize()
    return Grid.even(
        shape_zyx=(nz, ny, nx),
        spacing_xyz_mm=image.GetSpacing(),
        origin_xyz_mm=image.GetOrigin(),
        direction=np.array(image.GetDirection()).reshape(3, 3),
    )


def flipped(volume: Volume, axis_zyx: int) -> Volume:
    """The mirror image on the same grid: a patient who does not exist."""
    return replace(volume, values=np.flip(volume.values, axis_zyx), observed=None)


def slices(volume: Volume, start: int, stop: int) -> Volume:
    """Some of its slices."""
    _, ny, nx = volume.grid.shape_zyx
    return Volume(
        values=volume.values[start:stop],
        grid=volume.grid.crop((start, 0, 0), (stop, ny, nx)),
        frame_of_reference=volume.frame_of_reference,
    )
