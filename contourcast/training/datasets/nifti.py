"""NIfTI files: the one place where their axes meet ours.

A NIfTI array is ``[x, y, z]`` and its affine leads to RAS; ours are ``[z, y, x]`` and LPS.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from contourcast.imaging.errors import GeometryError, InputError
from contourcast.imaging.grid import Grid
from contourcast.training.datasets.source import Converted

LPS_FROM_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
CONVERT_AGAIN: Final = "convert the scan to NIfTI again"
# Affines are float32, some written from headers of few digits; a sheared or tilted grid is off
# by the sine of its angle, half a degree being 0.009.
SHEAR: Final = 1e-3
# Of spacing stated twice, in pixdim and in the affine.
SAME_SPACING: Final = 1e-3
# Twice the largest scan of the collections that are read (AIIB23: 768 x 768 x 947).
MOST_VOXELS: Final = 2**30
# A label lies on its image's grid, and slices on an even one, when nothing is further off than this
# share of a voxel (a contour counts as drawn on a slice up to there: CLINICAL_SERVICE §2.4).
SAME_GRID_VOXELS: Final = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A NIfTI image of three dimensions.

    Attributes:
        values: ``[z, y, x]``, in the file's own type where it is not scaled.
        file: The file's name, for errors.
        sha256: Of the file as it lies on the disk.
    """

    values: np.ndarray
    grid: Grid
    file: str
    sha256: str


def read_nifti(path: Path, *, role: str) -> Image:
    """Reads an image and checks that its place in space is told without doubt.

    Args:
        path: ``.nii.gz`` or ``.nii``.
        role: What errors call it, such as ``label``.

    Raises:
        InputError: The file is missing, cut short or no NIfTI; its values are not one number each,
            or not finite.
        GeometryError: Spacing of zero, sheared axes, no orientation.
    """
    nibabel = load_nibabel()
    if not path.is_file():
        raise InputError(f"the {role} is missing", file=path.name, remedy="download it again")
    damaged = (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    )
    try:
        header = _header_as_it_stands(path)
        image = nibabel.load(path, mmap=False)
        shape = _shape_xyz(image, path.name, role)
        values = np.asanyarray(image.dataobj)
    except damaged as error:
        raise InputError(
            f"the {role} is cut short, damaged or no NIfTI file",
            file=path.name,
            remedy="download or unpack it again",
        ) from error
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"the voxels of the {role} are not one number each ({values.dtype})", file=path.name
        )
    if values.dtype.itemsize > 4 and values.dtype.kind == "f":
        values = values.astype(np.float32)
    return Image(
        values=finite(np.ascontiguousarray(values.reshape(shape).T), path.name, role),
        grid=_grid(image.affine, header, shape, path.name),
        file=path.name,
        sha256=_sha256(path),
    )


def read_case(images: Sequence[Path], label: Path, *, values: Mapping[int, int]) -> Converted:
    """Channels and label of one case, proven to lie on one grid.

    Args:
        images: A file for each channel.
        label: The file of the label.
        values: Number in the label's file to number in the data set; no other may occur.

    Raises:
        InputError: A file cannot be read, or the label holds another number.
        GeometryError: A file does not tell its place, or they lie on different grids.
    """
    channels = [read_nifti(path, role="scan") for path in images]
    drawn = read_nifti(label, role="label")
    for other in (*channels[1:], drawn):
        require_same_grid(other, channels[0])
    return Converted(
        channels=tuple(channel.values for channel in channels),
        label=_relabelled(drawn, values),
        grid=channels[0].grid,
        facts={"sha256": {image.file: image.sha256 for image in (*channels, drawn)}},
    )


def require_same_grid(label: Image, image: Image) -> None:
    """Refuses a label, or a further channel, that lies elsewhere than the image.

    Raises:
        GeometryError: Other sizes, or places more than a tenth of a voxel apart.
    """
    same = label.grid.shape_zyx == image.grid.shape_zyx
    if same:
        away = np.abs(label.grid.corners_xyz_mm - image.grid.corners_xyz_mm).max()
        same = bool(away <= SAME_GRID_VOXELS * min(image.grid.spacing_xyz_mm))
    if not same:
        raise GeometryError(
            f"it lies on another grid than {image.file}: {_told(label.grid)} and "
            f"{_told(image.grid)}",
            file=label.file,
            remedy="resample it onto the image's grid, or take the file that belongs to it",
        )


def write_nifti(path: Path, values: np.ndarray, grid: Grid) -> None:
    """Writes an image; whole numbers of 16 bits as such, anything else as float32.

    Args:
        path: ``.nii.gz``.
        values: ``[z, y, x]``.
        grid: Where they lie.

    Raises:
        GeometryError: Slices that are not evenly spaced, which a NIfTI file cannot tell.
    """
    nibabel = load_nibabel()
    affine = affine_ras(grid)
    image = nibabel.Nifti1Image(_compact(values).T, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.to_filename(path)


def affine_ras(grid: Grid) -> np.ndarray:
    """Takes an index (i, j, k) to RAS millimetres, (4, 4).

    Raises:
        GeometryError: Slices that are not evenly spaced, or one alone.
    """
    offsets = grid.offsets_z_mm
    step_mm = float(offsets[-1]) / max(len(offsets) - 1, 1)
    away_mm = np.abs(offsets - step_mm * np.arange(len(offsets))).max()
    if len(offsets) < 2 or away_mm > SAME_GRID_VOXELS * step_mm:
        raise GeometryError(
            "the slices are not evenly spaced, and a NIfTI file cannot say so",
            remedy="name a spacing, so that the scan is brought onto an even grid",
        )
    lps = np.eye(4)
    lps[:3, :3] = grid.direction * (*grid.spacing_xy_mm, step_mm)
    lps[:3, 3] = grid.origin_xyz_mm
    affine: np.ndarray = LPS_FROM_RAS @ lps
    return affine


def finite(values: np.ndarray, file: str, role: str) -> np.ndarray:
    """The values, all of which are numbers.

    Raises:
        InputError: Some are not.
    """
    if values.dtype.kind == "f":
        odd = values.size - int(np.isfinite(values).sum())
        if odd:
            raise InputError(
                f"{odd} voxels of the {role} are not finite numbers (NaN or infinite)",
                file=file,
                remedy="download it again, or leave the case out",
            )
    return values


def load_nibabel() -> ModuleType:
    """The library, where the extra that brings it is installed.

    Raises:
        InputError: It is not.
    """
    try:
        import nibabel
    except ImportError as error:
        raise InputError(
            "NIfTI files need nibabel, which is not installed",
            remedy="pip install 'contourcast[train]'",
        ) from error
    return nibabel


def _relabelled(label: Image, values: Mapping[int, int]) -> np.ndarray:
    """The numbers of the data set, ``[z, y, x]``, uint8."""
    strange = [value for value in np.unique(label.values).tolist() if value not in values]
    if strange:
        raise InputError(
            f"the label holds {strange[0]:g}, which stands for nothing",
            file=label.file,
            remedy=f"known are {', '.join(map(str, sorted(values)))}",
        )
    numbers = np.zeros(label.values.shape, np.uint8)
    for old, new in values.items():
        numbers[label.values == old] = new
    return numbers


def _header_as_it_stands(path: Path) -> Any:
    """The header before nibabel repairs it: a spacing of zero would become one millimetre.

    Raises:
        GeometryError: A spacing is zero, negative or no number.
    """
    nibabel = load_nibabel()
    with nibabel.openers.ImageOpener(path) as file:
        block = file.read(nibabel.Nifti2Header.template_dtype.itemsize)
    for kind in (nibabel.Nifti2Header, nibabel.Nifti1Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.template_dtype.itemsize], check=False)
            _require_spacing(np.asarray(header["pixdim"][1:4], float), path.name)
            return header
    raise nibabel.filebasedimages.ImageFileError(path.name)


def _require_spacing(spacing_xyz_mm: np.ndarray, file: str) -> None:
    if not (np.isfinite(spacing_xyz_mm).all() and spacing_xyz_mm.min() > 0):
        raise GeometryError(
            f"the spacing is {' x '.join(f'{s:g}' for s in spacing_xyz_mm)} mm",
            file=file,
            remedy=CONVERT_AGAIN,
        )


def _shape_xyz(image: Any, file: str, role: str) -> tuple[int, ...]:
    """Three sizes; further dimensions of one sample are no dimensions."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise InputError(
            f"the {role} has {' x '.join(map(str, shape)) or 'no'} voxels; needed is one volume, "
            "two voxels or more each way",
            file=file,
            remedy="one file for each channel",
        )
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise InputError(f"the {role} claims {' x '.join(map(str, shape))} voxels", file=file)
    return shape


def _grid(affine: np.ndarray, header: Any, shape_xyz: tuple[int, ...], file: str) -> Grid:
    stated = np.asarray(header["pixdim"][1:4], float)
    lps = LPS_FROM_RAS @ np.asarray(affine, float)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    _require_spacing(spacing, file)
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise GeometryError(
            "the file does not say where the patient's left is (sform and qform codes are 0)",
            file=file,
            remedy=CONVERT_AGAIN,
        )
    if np.abs(stated / spacing - 1).max() > SAME_SPACING:
        raise GeometryError(
            f"the file states two spacings, {stated.round(4).tolist()} and "
            f"{spacing.round(4).tolist()} mm",
            file=file,
            remedy=CONVERT_AGAIN,
        )
    tilted = lps[:3, :3] / spacing
    u, _, vt = np.linalg.svd(tilted)
    if np.abs(u @ vt - tilted).max() > SHEAR:
        raise GeometryError("the axes are not at right angles", file=file, remedy=CONVERT_AGAIN)
    x, y, z = shape_xyz
    return Grid.even(
        shape_zyx=(z, y, x), spacing_xyz_mm=spacing, origin_xyz_mm=lps[:3, 3], direction=u @ vt
    )


def _told(grid: Grid) -> str:
    z, y, x = grid.shape_zyx
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing_xyz_mm)
    first = ", ".join(f"{o:.1f}" for o in grid.origin_xyz_mm)
    return f"{x} x {y} x {z} voxels of {spacing} mm from ({first})"


def _compact(values: np.ndarray) -> np.ndarray:
    if values.dtype in (np.bool_, np.uint8):
        return values.astype(np.uint8, copy=False)
    limits = np.iinfo(np.int16)
    if values.min() >= limits.min and values.max() <= limits.max:
        whole = values.astype(np.int16)
        if (whole == values).all():
            return whole
    return values.astype(np.float32)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
