"""What a result must say of how it came about, and JSON that any reader takes."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from contourcast.training.samples import ARRAYS, Sample

PACKAGES: Final = ("contourcast", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cohort_facts(samples: Sequence[Sample]) -> dict[str, object]:
    """How many samples of whom, and a SHA-256 (hex) of their names and numbers."""
    sha = hashlib.sha256()
    for each in samples:
        sha.update(each.name.encode())
        for array in ARRAYS:
            sha.update(np.ascontiguousarray(getattr(each, array)).tobytes())
    return {
        "samples": len(samples),
        "patients": len({each.patient for each in samples}),
        "cts": sorted({each.ct for each in samples}),
        "digest": sha.hexdigest(),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Indented; what is not a number is null, for JSON has no NaN."""
    path.write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, Sequence | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
