import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contourcast.imaging import polygon
from contourcast.imaging.dicom.check import crosses_itself
from contourcast.imaging.errors import GeometryError
from contourcast.imaging.keyhole import Ring, keyhole, rings


def square(half: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    corners = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    placed: np.ndarray = corners * half + np.array([x, y])
    return placed


def test_loops_are_sorted_into_rings_by_depth_whatever_their_order_and_sense() -> None:
    loops = [square(2)[::-1], square(10), square(6), square(3, 30), square(1, 4.5, 4.5)[::-1]]
    found = sorted(rings(loops), key=lambda ring: -ring.area)
    assert [ring.area for ring in found] == [400 - 144, 36, 16, 4]
    assert [len(ring.holes) for ring in found] == [1, 0, 0, 0]
    assert all(polygon.signed_area(ring.outer) > 0 for ring in found)
    assert all(polygon.signed_area(hole) < 0 for ring in found for hole in ring.holes)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.5, 4.0)),
        max_size=12,
        unique_by=lambda hole: hole[:2],
    )
)
def test_a_keyhole_encloses_what_its_ring_does(holes: list[tuple[int, int, float]]) -> None:
    cut_out = [square(half, 10 * x - 20, 10 * y - 20 + 0.1 * x) for x, y, half in holes]
    ring = Ring(outer=square(30), holes=tuple(loop[::-1] for loop in cut_out))
    loop = keyhole(ring)
    assert np.isclose(polygon.signed_area(loop), ring.area)
    assert not crosses_itself(loop)
    shape = (70, 70)
    shifted = [each + 34.737 for each in (ring.outer, *ring.holes)]
    expected = polygon.inside(shifted, shape)
    assert (polygon.inside([loop + 34.737], shape) == expected).all()


def test_a_hole_that_reaches_out_is_refused() -> None:
    with pytest.raises(GeometryError, match="reaches out"):
        keyhole(Ring(outer=square(3), holes=(square(1, -20),)))


def test_a_bow_tie_crosses_itself_and_a_touching_loop_does_not() -> None:
    assert crosses_itself(np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]]))
    assert not crosses_itself(np.array([[0.0, 0], [4, 0], [2, 2], [4, 4], [0, 4], [2, 2]]))
    assert not crosses_itself(square(3))
