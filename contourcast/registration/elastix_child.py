"""The program that runs elastix, alone in a process of its own.

``python -m contourcast.registration.elastix_child JOB``: the folder JOB holds ``job.json`` and the
images, and gets ``bspline.npz``. elastix can end a process (a crash, a hang, too much memory), so
nothing else lives in this one, and torch is not loaded.

The images lie on one grid, whose first voxel is the origin and whose axes are x, y and z: where
the grid really lies is the caller's affair.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

JOB, FIXED, MOVING, FIXED_MASK, MOVING_MASK, RESULT = (
    "job.json",
    "fixed.npy",
    "moving.npy",
    "fixed_mask.npy",
    "moving_mask.npy",
    "bspline.npz",
)
ELASTIX_IS_MISSING = 78  # EX_CONFIG of sysexits.h
ORPHAN_GRACE_S = 30


def main() -> int:
    """Runs the job whose folder is the one argument; 0 when its result was written."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / JOB).read_text())
    memory = int(job["memory_limit_gib"] * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The parent keeps the time; should it die, this process does not outlive the limit by much.
    signal.alarm(int(job["wall_limit_s"]) + ORPHAN_GRACE_S)
    try:
        elastix = Elastix(threads=job["threads"])
    except ImportError:
        return ELASTIX_IS_MISSING
    parameters = elastix.register(folder, job)
    size, spacing, origin = (
        np.array(parameters[name], float) for name in ("GridSize", "GridSpacing", "GridOrigin")
    )
    np.savez(
        folder / RESULT,
        # one field of numbers for each of x, y and z, in which x runs fastest
        coefficients_xyz_mm=np.array(parameters["TransformParameters"], float).reshape(
            3, *size[::-1].astype(int)
        ),
        spacing_xyz_mm=spacing,
        origin_xyz_mm=origin,
        version=version("itk-elastix"),
    )
    return 0


class Elastix:
    """The classes of itk that a registration needs, and no more.

    ``import itk`` finds classes by loading whole modules: 14 s of CPU and 1.1 GiB for these few,
    against 0.8 s and 0.2 GiB when they are named. It would also load torch, where it is installed.
    """

    def __init__(self, *, threads: int) -> None:
        from itk.support import helpers

        helpers._HAVE_TORCH = helpers._HAVE_XARRAY = False
        from itk.elxParameterObjectPython import elastixParameterObject
        from itk.ITKCommonBasePython import itkMultiThreaderBase
        from itk.itkElastixRegistrationMethodPython import itkElastixRegistrationMethodIF3IF3
        from itk.itkPyBufferPython import itkPyBufferIF3, itkPyBufferIUC3

        # Never SetNumberOfThreads on the method: with several metrics that is a crash.
        itkMultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
        self._method: Any = itkElastixRegistrationMethodIF3IF3
        self._parameters: Any = elastixParameterObject
        self._scan: Any = itkPyBufferIF3
        self._mask: Any = itkPyBufferIUC3

    def register(self, folder: Path, job: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        """The transform parameters, as elastix writes them."""

        def image(buffer: Any, name: str) -> Any:
            view = buffer.GetImageViewFromArray(np.load(folder / name))
            view.SetSpacing([float(job["spacing_mm"])] * 3)
            return view

        # A view frees its array when Python lets go of it, so all are held until the end.
        fixed, moving = image(self._scan, FIXED), image(self._scan, MOVING)
        fixed_mask = image(self._mask, FIXED_MASK)
        moving_mask = image(self._mask, MOVING_MASK)
        method = self._method.New()
        method.SetFixedImage(fixed)
        method.SetMovingImage(moving)
        method.SetFixedMask(fixed_mask)
        method.SetMovingMask(moving_mask)
        parameters = self._parameters.New()
        parameters.AddParameterMap(parameter_map(job))
        method.SetParameterObject(parameters)
        method.LogToConsoleOn()
        method.UpdateLargestPossibleRegion()
        result = method.GetTransformParameterObject().GetParameterMap(0)
        return {str(key): tuple(result[key]) for key in result}


def parameter_map(job: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """What elastix is told (REGISTRATION §6, after Par0011 of the elastix model zoo)."""
    levels = int(job["levels"])
    told: dict[str, object] = {
        "Registration": "MultiMetricMultiResolutionRegistration",
        "Metric": ("AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"),
        "Metric0Weight": 1.0,
        "Metric1Weight": job["bending_weight"],
        "Transform": "BSplineTransform",
        "FinalGridSpacingInPhysicalUnits": job["grid_mm"],
        "GridSpacingSchedule": tuple(2.0 ** (levels - 1 - level) for level in range(levels)),
        "HowToCombineTransforms": "Compose",
        "Optimizer": "AdaptiveStochasticGradientDescent",
        "AutomaticParameterEstimation": "true",
        "MaximumNumberOfIterations": job["iterations"],
        "ImageSampler": ("RandomCoordinate", "RandomCoordinate"),  # one for each metric
        "NumberOfSpatialSamples": job["samples"],
        "ImageSampler1NumberOfSpatialSamples": job["bending_samples"],
        "NewSamplesEveryIteration": "true",
        "CheckNumberOfSamples": "true",
        "NumberOfSamplesForExactGradient": 4096,
        "RequiredRatioOfValidSamples": 0.05,
        "MaximumNumberOfSamplingAttempts": 8,
        "RandomSeed": job["seed"],
        "ErodeMask": "false",
        "FixedImagePyramid": "FixedSmoothingImagePyramid",
        "MovingImagePyramid": "MovingSmoothingImagePyramid",
        "NumberOfResolutions": levels,
        "Interpolator": "LinearInterpolator",
        "ResampleInterpolator": "FinalBSplineInterpolator",
        "FinalBSplineInterpolationOrder": 1,
        "Resampler": "DefaultResampler",
        "WriteResultImage": "false",
        "WriteIterationInfo": "false",
        "FixedInternalImagePixelType": "float",
        "MovingInternalImagePixelType": "float",
    }
    return {
        name: tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)
        for name, value in told.items()
    }


if __name__ == "__main__":
    sys.exit(main())
