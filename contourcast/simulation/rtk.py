"""A cone-beam scan by projections: itk-rtk forward projects a breathing chest and reconstructs it.

Half-fan orbit, scatter that is subtracted in part, photon noise, FDK. What makes a CBCT's numbers
wrong then follows from the scan, it is not painted on (REGISTRATION §11.1). RTK's axes (x, y, z)
are our (x, z, -y).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.ndimage import gaussian_filter

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.simulation.lesion import Layer
from contourcast.simulation.recipe import Recipe

MU_WATER_PER_MM: Final = 0.0192  # REGISTRATION §11.1, about 60 keV


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """How the machine turns and what it counts with (a C-arm linac, rounded).

    Attributes:
        offset_mm: The detector's sideways shift: half fan, so that the field is wide.
        scatter_mm: Scatter spreads by so much (sd) on the detector.
    """

    projections: int = 120
    source_to_axis_mm: float = 1000.0
    source_to_detector_mm: float = 1536.0
    offset_mm: float = 148.0
    detector_uv: tuple[int, int] = (160, 120)
    pixel_mm: float = 2.5
    seconds: float = 60.0
    breath_s: float = 4.0
    breath_spread: float = 0.1
    scatter_mm: float = 60.0
    hann: float = 0.8
    truncation: float = 0.1


def is_installed() -> bool:
    """Whether itk-rtk is there."""
    return importlib.util.find_spec("itk") is not None and (
        importlib.util.find_spec("itk.RTKPython") is not None
    )


def require_installed() -> None:
    """Refuses to go on without itk-rtk.

    Raises:
        InputError: It is not installed.
    """
    if not is_installed():
        raise InputError(
            "scans by projection need itk-rtk",
            remedy="install contourcast[simulation], or ask for physics 'image'",
        )


def scanned(
    phases_hu: Sequence[Layer],
    body: Grid,
    *,
    onto: Grid,
    recipe: Recipe,
    rng: np.random.Generator,
    orbit: Orbit | None = None,
) -> Layer:
    """Reconstructed HU on ``onto``.

    Args:
        phases_hu: The chest in each breathing phase, on ``body``.
        body: All that rays pass through; axes along the patient's.
        onto: The reconstruction's grid; its middle is the isocentre.
        recipe: Scatter and photons.
        rng: Draws them, and the breathing.
        orbit: The machine; None: the usual.

    Raises:
        InputError: itk-rtk is not installed.
    """
    require_installed()
    itk = _itk()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    orbit = orbit or Orbit()
    angles = np.arange(orbit.projections) * 360.0 / orbit.projections
    in_phase = _phase_of_each(orbit, len(phases_hu), rng)
    isocentre = onto.center_xyz_mm
    lines = np.zeros((orbit.projections, *orbit.detector_uv[::-1]), np.float32)
    for phase, hu in enumerate(phases_hu):
        chosen = np.flatnonzero(in_phase == phase)
        if not len(chosen):
            continue
        mu = np.maximum(0, (hu + 1000) / 1000 * MU_WATER_PER_MM)
        projector = itk.RTK.JosephForwardProjectionImageFilter[_image(itk), _image(itk)].New()
        projector.SetInput(0, _stack(itk, np.zeros((len(chosen), *lines.shape[1:])), orbit))
        projector.SetInput(1, _to_rtk(itk, mu, body, isocentre))
        projector.SetGeometry(_geometry(itk, angles[chosen], orbit))
        projector.Update()
        lines[chosen] = itk.array_from_image(projector.GetOutput())
    counted = _counted(lines, recipe, rng, orbit)
    mu = _reconstructed(itk, counted, angles, onto, orbit)
    hu = mu / MU_WATER_PER_MM * 1000 - 1000
    return hu.astype(np.float32)


def _phase_of_each(orbit: Orbit, phases: int, rng: np.random.Generator) -> np.ndarray:
    """Which still anatomy each projection sees."""
    times = np.arange(orbit.projections) * orbit.seconds / orbit.projections
    breaths = rng.normal(orbit.breath_s, orbit.breath_spread * orbit.breath_s, 200)
    ends = np.cumsum(np.maximum(breaths, 1.0))
    breath = np.searchsorted(ends, times)
    begin = np.concatenate(([0.0], ends))[breath]
    share = (times - begin) / (ends[breath] - begin)
    found: np.ndarray = np.minimum((share * phases).astype(int), phases - 1)
    return found


def _counted(
    lines: np.ndarray, recipe: Recipe, rng: np.random.Generator, orbit: Orbit
) -> np.ndarray:
    """Line integrals as a detector tells them: scatter, its imperfect subtraction, photon noise."""
    primary = np.exp(-lines)
    sigma = orbit.scatter_mm / orbit.pixel_mm
    # Born where rays are weakened and get through: p ln(1/p) (Ohnesorge et al., Eur Radiol 1999).
    blurred = gaussian_filter(primary * lines, (1.0, sigma, sigma), mode="nearest")
    behind = lines > 0.5  # of the air beside the patient no scatter ratio is told
    ratio = rng.uniform(*recipe.scatter_to_primary_range)
    share = ratio * primary[behind].mean() / blurred[behind].mean() if behind.any() else 0.0
    scatter = share * blurred
    photons = 10 ** rng.uniform(*recipe.photons_log10_range)
    counts = rng.poisson(photons * (primary + scatter)) / photons
    corrected = counts - rng.uniform(*recipe.scatter_subtracted_range) * scatter
    result: np.ndarray = -np.log(np.maximum(corrected, 1 / photons))
    return result.astype(np.float32)


def _reconstructed(
    itk: Any, lines: np.ndarray, angles: np.ndarray, onto: Grid, orbit: Orbit
) -> np.ndarray:
    """FDK with half-fan weights, back in our axes."""
    geometry = _geometry(itk, angles, orbit)
    displaced = itk.RTK.DisplacedDetectorForOffsetFieldOfViewImageFilter[_image(itk)].New()
    displaced.SetInput(_stack(itk, lines, orbit))
    displaced.SetGeometry(geometry)
    fdk = itk.RTK.FDKConeBeamReconstructionFilter[_image(itk)].New()
    fdk.SetInput(0, _to_rtk(itk, np.zeros(onto.shape_zyx, np.float32), onto, onto.center_xyz_mm))
    fdk.SetInput(1, displaced.GetOutput())
    fdk.SetGeometry(geometry)
    fdk.GetRampFilter().SetHannCutFrequency(orbit.hann)
    fdk.GetRampFilter().SetTruncationCorrection(orbit.truncation)
    fdk.Update()
    return _from_rtk(itk.array_from_image(fdk.GetOutput()))


def _itk() -> Any:
    """The library, with RTK in it.

    Its wrapped types warn of a missing attribute when they are first made; where warnings are
    errors, that ends the process inside C.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        import itk

        _ = itk.RTK.FDKConeBeamReconstructionFilter  # loads all of it
    return itk


def _image(itk: Any) -> Any:
    return itk.Image[itk.F, 3]


def _geometry(itk: Any, angles_deg: np.ndarray, orbit: Orbit) -> Any:
    geometry = itk.RTK.ThreeDCircularProjectionGeometry.New()
    for angle in angles_deg:
        geometry.AddProjection(
            orbit.source_to_axis_mm, orbit.source_to_detector_mm, float(angle), orbit.offset_mm, 0.0
        )
    return geometry


def _stack(itk: Any, values: np.ndarray, orbit: Orbit) -> Any:
    """Projections as RTK wants them: detector centred on its own axes."""
    image = itk.image_from_array(np.ascontiguousarray(values, np.float32))
    u, v = orbit.detector_uv
    image.SetOrigin([-(u - 1) / 2 * orbit.pixel_mm, -(v - 1) / 2 * orbit.pixel_mm, 0.0])
    image.SetSpacing([orbit.pixel_mm, orbit.pixel_mm, 1.0])
    return image


def _to_rtk(itk: Any, values: np.ndarray, grid: Grid, isocentre_xyz_mm: np.ndarray) -> Any:
    """Our ``[z, y, x]`` as RTK's image: its y is our z, its z our -y, the isocentre its origin."""
    image = itk.image_from_array(np.ascontiguousarray(values.transpose(1, 0, 2)[::-1], np.float32))
    x, y, z = grid.spacing_xyz_mm
    first = grid.origin_xyz_mm - isocentre_xyz_mm
    last_y = first[1] + (grid.shape_zyx[1] - 1) * y
    image.SetSpacing([x, z, y])
    image.SetOrigin([float(first[0]), float(first[2]), float(-last_y)])
    return image


def _from_rtk(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = values[::-1].transpose(1, 0, 2)
    return result
