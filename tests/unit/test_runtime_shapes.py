"""The shapes that annotations promise hold while code runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped

from runtime_shapes import checked

HERE = Path(__file__).parent
FILES = ["grid", "transform", "volume", "resample", "metrics", "trace", "ct_series_out"]


@jaxtyped(typechecker=checked)
def doubled(points: Float[np.ndarray, "n 3"], by: float = 2.0) -> Float[np.ndarray, "n 3"]:
    result: np.ndarray = by * points[: int(4 / by)]
    return result


def test_a_shape_that_is_not_as_annotated_is_an_error() -> None:
    assert doubled(np.ones((2, 3)), by=2).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="points"):
        doubled(np.ones((2, 4)))
    with pytest.raises(TypeCheckError, match="points"):
        doubled(np.ones((2, 3), int))
    with pytest.raises(TypeCheckError, match="return value"):
        doubled(np.ones((3, 3)))


def test_the_shapes_of_imaging_hold_in_its_own_tests() -> None:
    said = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not peer"),
            "--jaxtyping-packages=contourcast.imaging,runtime_shapes.checked",
            *(str(HERE / f"test_{name}.py") for name in FILES),
        ],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert said.returncode == 0, said.stdout[-3000:]
    assert " passed" in said.stdout
