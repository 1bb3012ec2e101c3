import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.errors import FrameMismatchError
from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import Displacement
from contourcast.imaging.verdict import Quality, Verdict
from contourcast.imaging.volume import Mask
from contourcast.registration.folding import folding, folding_figures, jacobian
from contourcast.registration.settings import FoldingLimits

FRAME = "1.2.3"
OBLIQUE = Rotation.from_euler("xyz", (20, -35, 60), degrees=True).as_matrix()


def grid(*, direction: np.ndarray | None = None, uneven: bool = False) -> Grid:
    offsets = np.array([0.0, 3, 5, 9.5, 12, 16, 18]) if uneven else np.arange(7) * 3.0
    return Grid(
        shape_zyx=(7, 8, 9),
        spacing_xy_mm=(2.0, 2.5),
        origin_xyz_mm=np.array([-8.0, 4.0, 30.0]),
        direction=np.eye(3) if direction is None else direction,
        offsets_z_mm=offsets,
    )


def linear(slope: np.ndarray, on: Grid) -> Displacement:
    """d(p) = slope p, whose Jacobian determinant is det(I + slope) everywhere."""
    vectors = (on.centers() @ slope.T).reshape(*on.shape_zyx, 3)
    return Displacement(values_xyz_mm=vectors, grid=on, frame_of_reference=FRAME)


def everywhere(on: Grid) -> Mask:
    return Mask(values=np.ones(on.shape_zyx, bool), grid=on, frame_of_reference=FRAME)


def verdict_of(slope: float) -> tuple[Verdict, tuple[str, ...]]:
    on = grid()
    measured = folding(linear(np.diag([slope, 0, 0]), on), everywhere(on))
    quality = Quality(figures=folding_figures(measured, FoldingLimits()))
    return quality.verdict, quality.reasons


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, -1, 1]), OBLIQUE])
def test_the_determinant_is_that_of_the_slope(direction: np.ndarray, uneven: bool) -> None:
    slope = np.array([[0.1, -0.2, 0.05], [0.3, -0.4, 0.1], [0.0, 0.25, 0.2]])
    on = grid(direction=direction, uneven=uneven)
    expected = np.linalg.det(np.eye(3) + slope)
    np.testing.assert_allclose(jacobian(linear(slope, on)), expected, atol=1e-5)


def test_no_displacement_keeps_every_volume() -> None:
    on = grid()
    measured = folding(linear(np.zeros((3, 3)), on), everywhere(on))
    assert measured.jacobian_min == measured.jacobian_max == 1.0
    assert measured.log_jacobian_sd == 0.0
    assert measured.folded_fraction == measured.largest_mm == 0.0
    assert verdict_of(0.0) == (Verdict.ACCEPT, ())


def test_what_folds_is_counted_and_rejected() -> None:
    on = grid()
    vectors = np.zeros((*on.shape_zyx, 3))
    x_mm = np.arange(9) * 2.0
    vectors[..., 0] = np.where(x_mm < 8, 0, -1.5 * (x_mm - 8))  # slope -1.5 from the fifth column
    displacement = Displacement(values_xyz_mm=vectors, grid=on, frame_of_reference=FRAME)
    measured = folding(displacement, everywhere(on))
    assert measured.jacobian_min == pytest.approx(-0.5)
    assert measured.folded_fraction == pytest.approx(4 / 9)  # columns 5 to 8; 4 has the mean slope
    assert measured.log_jacobian_sd is None
    quality = Quality(figures=folding_figures(measured, FoldingLimits()))
    assert quality.verdict is Verdict.REJECT
    assert "folds" in quality.reasons[0]


def test_only_the_region_counts() -> None:
    on = grid()
    vectors = np.zeros((*on.shape_zyx, 3))
    vectors[:, :, 6:, 1] = 40.0
    displacement = Displacement(values_xyz_mm=vectors, grid=on, frame_of_reference=FRAME)
    values = np.zeros(on.shape_zyx, bool)
    values[:, :, :4] = True
    measured = folding(displacement, Mask(values=values, grid=on, frame_of_reference=FRAME))
    assert measured.largest_mm == 0.0
    assert measured.jacobian_max == 1.0


@pytest.mark.parametrize(
    ("slope", "verdict", "word"),
    [
        (-0.75, Verdict.ACCEPT, None),
        (-0.85, Verdict.LOOK, "shrinks"),
        (2.9, Verdict.ACCEPT, None),
        (3.1, Verdict.LOOK, "swells"),
        (-1.1, Verdict.REJECT, "folds"),
    ],
)
def test_each_limit_has_a_verdict_and_a_reason(
    slope: float, verdict: Verdict, word: str | None
) -> None:
    found, reasons = verdict_of(slope)
    assert found is verdict
    assert any(word in reason for reason in reasons) if word else not reasons


@pytest.mark.parametrize(("far_mm", "verdict"), [(24.9, Verdict.ACCEPT), (25.1, Verdict.LOOK)])
def test_a_long_way_deserves_a_look(far_mm: float, verdict: Verdict) -> None:
    on = grid()
    vectors = np.broadcast_to([0.0, 0.6 * far_mm, -0.8 * far_mm], (*on.shape_zyx, 3))
    displacement = Displacement(values_xyz_mm=vectors, grid=on, frame_of_reference=FRAME)
    measured = folding(displacement, everywhere(on))
    quality = Quality(figures=folding_figures(measured, FoldingLimits()))
    assert measured.largest_mm == pytest.approx(far_mm, abs=1e-4)
    assert quality.verdict is verdict


def test_the_spread_is_that_of_the_logarithm() -> None:
    on = grid()
    slope = np.where(np.arange(7) < 3, 0.0, 1.0)[:, None, None]  # z doubles from the third slice
    vectors = np.zeros((*on.shape_zyx, 3))
    vectors[..., 2] = np.cumsum(np.broadcast_to(slope, on.shape_zyx), axis=0) * 3.0
    displacement = Displacement(values_xyz_mm=vectors, grid=on, frame_of_reference=FRAME)
    along_z = np.gradient(vectors[:, 0, 0, 2], 3.0) + 1
    measured = folding(displacement, everywhere(on))
    assert measured.log_jacobian_sd == pytest.approx(np.log(along_z).std(), abs=1e-6)
    assert measured.jacobian_p99 == pytest.approx(2.0, abs=1e-6)


def test_a_region_of_another_frame_is_refused() -> None:
    on = grid()
    region = Mask(values=np.ones(on.shape_zyx, bool), grid=on, frame_of_reference="9.9")
    with pytest.raises(FrameMismatchError, match=r"9\.9"):
        folding(linear(np.zeros((3, 3)), on), region)
