"""What holds for all tests of one process."""

from __future__ import annotations

import os
import sys

# Workers share the cores: with as many threads as cores in each of them, all take twice as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis

from contourcast.models.libraries import untouched_path

# MONAI tries OpenCV, which only tests of ours bring along. Where graphics libraries are missing its
# import fails half-way, each time anew, and leaves a path that no child process starts with.
try:
    with untouched_path():
        import cv2  # noqa: F401
except ImportError:
    sys.modules["cv2"] = None  # type: ignore[assignment]

# A property holds however busy the machine is: how long things take is what benchmarks/ tell.
hypothesis.settings.register_profile("contourcast", deadline=None)
hypothesis.settings.load_profile("contourcast")
