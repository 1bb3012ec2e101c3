"""A volume as CT Image Storage, one file a slice (PS3.3 A.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from contourcast.imaging.dicom.modules import (
    add_body_part,
    add_patient,
    add_study,
    as_it_came,
    ds_text,
    new_object,
    required_source,
    save,
)
from contourcast.imaging.dicom.pixels import Stored, digest_of
from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import DicomError, FrameMismatchError, GeometryError
from contourcast.imaging.grid import SAME_PLACE_MM, Grid
from contourcast.imaging.source import Patient, SeriesSource, SliceSource, Study
from contourcast.imaging.volume import Volume

PADDING_STORED: Final = -(2**15)  # the lowest int16; no measured value is ever stored as it
STORED_LEVELS: Final = 2**16 - 2  # the others, either side of zero


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """What the CT Image module wants told of how the images came to be.

    Attributes:
        image_type: (0008,0008); what was not measured on a patient is DERIVED.
        kvp: Tube voltage in kV; None: not known, written empty.
        kernel: (0018,1210), the reconstruction filter's name.
        diameter_mm: (0018,1100) Reconstruction Diameter; None: not stated.
        slice_thickness_mm: None: the median distance of the slices.
        step_hu: The finest step of values that is kept; coarser when the range asks for it.
    """

    image_type: tuple[str, ...] = ("DERIVED", "PRIMARY", "AXIAL")
    kvp: float | None = None
    kernel: str = ""
    diameter_mm: float | None = None
    slice_thickness_mm: float | None = None
    software_versions: str = ""
    derivation: str = ""
    step_hu: float = 1.0


def series_source(
    volume: Volume,
    *,
    digest: str,
    patient: Patient,
    study: Study,
    role: str = "series",
    series_number: str = "1",
    series_description: str = "",
    series_date: str = "",
    series_time: str = "",
    manufacturer: str = "",
    model: str = "",
    patient_position: str = "HFS",
    body_part: str = "",
) -> SeriesSource:
    """The DICOM identity of a volume made in memory; its UIDs follow from digest and role.

    Args:
        volume: Where its slices lie.
        digest: Of all that the volume was made of.
        patient: Whose it is.
        study: Which study it belongs to.
        role: Tells series of one digest apart, such as ``planning CT`` and ``fraction 3``.
        series_number: (0020,0011).
        series_description: (0008,103E).
        series_date: DA text, (0008,0021); also the images' own date.
        series_time: TM text, (0008,0031).
        manufacturer: (0008,0070).
        model: (0008,1090).
        patient_position: (0018,5100), such as HFS or FFP.
        body_part: (0018,0015), such as CHEST.
    """
    slices = tuple(
        SliceSource(
            sop_instance_uid=derived_uid(digest, f"{role}, slice {k}"),
            position_xyz_mm=np.array([float(ds_text(v)) for v in position]),
        )
        for k, position in enumerate(_positions_xyz_mm(volume.grid))
    )
    return SeriesSource(
        patient=patient,
        study=study,
        series_instance_uid=derived_uid(digest, role),
        sop_class_uid=CTImageStorage,
        slices=slices,
        digest=digest,
        series_number=series_number,
        series_description=series_description,
        series_date=series_date,
        series_time=series_time,
        manufacturer=manufacturer,
        model=model,
        patient_position=patient_position,
        body_part=body_part,
    )


def write_ct_series(
    folder: Path, volume: Volume, *, acquisition: Acquisition | None = None
) -> SeriesSource:
    """Writes a volume as valid CT images, ``0001.dcm`` and on in the order of its slices.

    Positions and UIDs are those of ``volume.source``; values are stored as 16 bit with one slope
    and intercept for the series, unobserved voxels as the declared padding. The same input gives
    the same bytes.

    Returns:
        The identity that a reader finds in the files.

    Raises:
        DicomError: The volume has no source (see `series_source`), or holds what is no number.
        FrameMismatchError: It has no frame of reference.
        GeometryError: Its grid and the positions of its source are not one place.
    """
    source = required_source(volume.source, "volume")
    _require_writable(volume, source)
    acquisition = acquisition or Acquisition()
    encoding = _Encoding.of(volume, acquisition.step_hu)
    lines = []
    for k, (dataset, stored) in enumerate(_images(volume, source, acquisition, encoding)):
        lines.append(f"{dataset.SOPInstanceUID} {digest_of(stored)}\n")
        save(folder / f"{k + 1:04d}.dcm", dataset)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return replace(source, sop_class_uid=CTImageStorage, digest=digest, notes=())


def _require_writable(volume: Volume, source: SeriesSource) -> None:
    if not volume.frame_of_reference:
        raise FrameMismatchError(
            "a series without frame of reference is no use to anybody",
            tag="(0020,0052) Frame of Reference UID",
            uid=source.series_instance_uid,
        )
    if not np.isfinite(volume.values).all():
        raise DicomError(
            "the volume holds values that are no numbers", tag="(7FE0,0010) Pixel Data"
        )
    stated = np.array([s.position_xyz_mm for s in source.slices])
    expected = _positions_xyz_mm(volume.grid)
    if stated.shape != expected.shape or np.abs(stated - expected).max() > SAME_PLACE_MM:
        raise GeometryError(
            "the slices of the volume do not lie where its source says",
            tag="(0020,0032) Image Position (Patient)",
            uid=source.series_instance_uid,
            remedy="give a resampled volume an identity of its own with series_source",
        )


def _positions_xyz_mm(grid: Grid) -> np.ndarray:
    """Centre of the first voxel of each slice, shape (slices, 3)."""
    return grid.world([[0, 0, k] for k in range(grid.shape_zyx[0])])


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    """``value = stored * slope + intercept``, exactly as the written text parses."""

    slope: float
    intercept: float

    @classmethod
    def of(cls, volume: Volume, step_hu: float) -> _Encoding:
        """Steps as asked for about zero, else the finest that the range of values allows."""
        lowest, highest = float(volume.values.min()), float(volume.values.max())
        if max(-lowest, highest) <= step_hu * (STORED_LEVELS // 2 - 1):
            return cls(slope=float(ds_text(step_hu)), intercept=0.0)
        slope = float(ds_text(max(step_hu, 1.001 * (highest - lowest) / STORED_LEVELS)))
        return cls(slope=slope, intercept=float(ds_text(round((lowest + highest) / 2))))

    def stored(
        self, values: Float[np.ndarray, "y x"], observed: Bool[np.ndarray, "y x"] | None
    ) -> Stored:
        """One slice as it is stored, little endian."""
        levels = np.rint((values - self.intercept) / self.slope).astype("<i2")
        if observed is not None:
            levels[~observed] = PADDING_STORED
        return levels


def _images(
    volume: Volume, source: SeriesSource, acquisition: Acquisition, encoding: _Encoding
) -> Iterator[tuple[Dataset, Stored]]:
    """Each slice with what is stored of it."""
    observed = volume.observed if volume.observed is not None else [None] * len(volume.values)
    for k, (values, seen) in enumerate(zip(volume.values, observed, strict=True)):
        dataset = new_object(
            CTImageStorage, source.slices[k].sop_instance_uid, ExplicitVRLittleEndian
        )
        add_patient(dataset, source.patient)
        add_study(dataset, source.study)
        _add_series(dataset, source, acquisition)
        dataset.FrameOfReferenceUID = volume.frame_of_reference
        dataset.PositionReferenceIndicator = ""
        _add_image(dataset, source, acquisition, number=k + 1)
        _add_plane(dataset, volume.grid, source.slices[k], acquisition)
        stored = encoding.stored(values, seen)
        _add_pixels(dataset, volume, encoding, stored)
        yield dataset, stored


def _add_series(dataset: Dataset, source: SeriesSource, acquisition: Acquisition) -> None:
    """General Series and General Equipment modules (PS3.3 C.7.3.1, C.7.5.1)."""
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = source.series_instance_uid
    as_it_came(dataset, "SeriesNumber", source.series_number)
    for keyword, value in (
        ("SeriesDate", source.series_date),
        ("SeriesTime", source.series_time),
        ("SeriesDescription", source.series_description),
        ("ManufacturerModelName", source.model),
        ("SoftwareVersions", acquisition.software_versions),
    ):
        if value:
            as_it_came(dataset, keyword, value)
    add_body_part(dataset, source)
    dataset.PatientPosition = source.patient_position or "HFS"
    as_it_came(dataset, "Manufacturer", source.manufacturer)


def _add_image(
    dataset: Dataset, source: SeriesSource, acquisition: Acquisition, *, number: int
) -> None:
    """General Image and CT Image modules (PS3.3 C.7.6.1, C.8.2.1), pixels aside."""
    dataset.ImageType = list(acquisition.image_type)
    dataset.InstanceNumber = number
    dataset.AcquisitionNumber = 1
    for kind in ("Content", "Acquisition"):
        as_it_came(dataset, f"{kind}Date", source.series_date)
        as_it_came(dataset, f"{kind}Time", source.series_time)
    dataset.KVP = "" if acquisition.kvp is None else ds_text(acquisition.kvp)
    if acquisition.kernel:
        dataset.ConvolutionKernel = acquisition.kernel
    if acquisition.diameter_mm is not None:
        dataset.ReconstructionDiameter = ds_text(acquisition.diameter_mm)
    if acquisition.derivation:
        dataset.DerivationDescription = acquisition.derivation


def _add_plane(
    dataset: Dataset, grid: Grid, slice_source: SliceSource, acquisition: Acquisition
) -> None:
    """Image Plane module (PS3.3 C.7.6.2)."""
    x_mm, y_mm, z_mm = grid.spacing_xyz_mm
    thickness_mm = acquisition.slice_thickness_mm or z_mm
    dataset.PixelSpacing = [ds_text(y_mm), ds_text(x_mm)]  # between rows, then between columns
    dataset.ImageOrientationPatient = [ds_text(v) for v in grid.direction[:, :2].T.ravel()]
    dataset.ImagePositionPatient = [ds_text(v) for v in slice_source.position_xyz_mm]
    dataset.SliceThickness = ds_text(thickness_mm) if thickness_mm else ""


def _add_pixels(dataset: Dataset, volume: Volume, encoding: _Encoding, stored: Stored) -> None:
    """Image Pixel module (PS3.3 C.7.6.3) and the rescale of the CT Image module."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = volume.grid.shape_zyx[1:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept = ds_text(encoding.intercept)
    dataset.RescaleSlope = ds_text(encoding.slope)
    dataset.RescaleType = "HU"
    if volume.observed is not None:
        dataset.PixelPaddingValue = PADDING_STORED
    dataset.PixelData = stored.tobytes()
