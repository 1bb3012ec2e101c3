import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contourcast.imaging import polygon
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
    assert not polygon.crosses_itself(loop, deeper_than=1e-9)
    shape = (70, 70)
    shifted = [each + 34.737 for each in (ring.outer, *ring.holes)]
    expected = polygon.inside(shifted, shape)
    assert (polygon.inside([loop + 34.737], shape) == expected).all()


def test_the_cuts_of_a_keyhole_are_no_border() -> None:
    outer = square(30) + 34.7
    holes = [square(4, x, y)[::-1] + 34.7 for x, y in ((-15, -11.3), (9, -12), (2, 13))]
    loop = keyhole(Ring(outer=outer, holes=tuple(holes)))
    depth = polygon.signed_distance([loop], (70, 70), limit=9.0)
    assert depth == pytest.approx(polygon.signed_distance([outer, *holes], (70, 70), limit=9.0))


def test_an_edge_that_two_loops_share_is_no_border() -> None:
    halves = [
        np.array([[0.0, 0], [4, 0], [4, 8], [0, 8]]),
        np.array([[4.0, 0], [8, 0], [8, 8], [4, 8]]),
    ]
    for second in (halves[1], halves[1][::-1], halves[1] + 1e-9):
        depth = polygon.signed_distance([halves[0], second], (9, 9), limit=9.0)
        assert depth[4] == pytest.approx([0, 1, 2, 3, 4, 3, 2, 1, 0], abs=1e-5)


def test_loops_of_coinciding_edges_alone_keep_them() -> None:
    assert polygon.distance(np.zeros((1, 2)), [square(3), square(3)], limit=9.0) == 3.0


def test_a_hole_that_reaches_out_is_refused() -> None:
    with pytest.raises(GeometryError, match="reaches out"):
        keyhole(Ring(outer=square(3), holes=(square(1, -20),)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=8))
def test_edges_compared_by_height_cross_as_all_edges_do(corners: list[tuple[int, int]]) -> None:
    loop = np.array(corners, float)

    def side(a: int, b: int) -> float:
        """Of corner b, beside the edge that starts at corner a."""
        (x0, y0), (x1, y1), (x, y) = loop[a], loop[(a + 1) % len(loop)], loop[b % len(loop)]
        return float((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0))

    n = range(len(loop))
    crossing = [
        side(a, b) * side(a, b + 1) < 0 and side(b, a) * side(b, a + 1) < 0 for a in n for b in n
    ]
    assert polygon.crosses_itself(loop) == any(crossing)


def test_what_crosses_by_rounding_may_pass() -> None:
    crossed = np.array([[0.0, 0], [4, 0], [4, 1], [2, -0.0001], [0, 1]])
    assert polygon.crosses_itself(crossed)
    assert not polygon.crosses_itself(crossed, deeper_than=0.001)
