"""What a step hands to the next comes back exactly, and as nothing else."""

from __future__ import annotations

import io
import pickle
import threading

import numpy as np
import pytest

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.structures import Contour
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.verdict import Figure, Quality, Verdict
from contourcast.imaging.volume import Probability
from contourcast.propagate import Drawn
from contourcast.registration.result import LevelLog, Registration, Registrations
from contourcast.service.jobs.results import dump, load


def grid() -> Grid:
    return Grid(
        shape_zyx=(4, 5, 6),
        spacing_xy_mm=(1.1, 0.9),
        origin_xyz_mm=np.array([0.1, -2 / 3, 1e-9]),
        offsets_z_mm=np.array([0.0, 2.0, 4.1, 6.0]),
    )


def region(values: np.ndarray) -> Probability:
    return Probability(values=values, grid=grid(), frame_of_reference="1.2.3", name="GTV")


def registration(shift: float) -> Registration:
    matrix = np.eye(4)
    matrix[0, 3] = shift
    quality = Quality(
        figures=(
            Figure(name="near_bone_lncc", value=1 / 3, limit="accept ≥ 0.45", verdict=Verdict.LOOK),
            Figure(name="spread_mm", value=None),
        )
    )
    return Registration(
        planning_from_cbct=RigidTransform(matrix=matrix, source_frame="b", target_frame="a"),
        quality=quality,
        center_xyz_mm=np.array([1.0, 2.0, np.pi]),
        log=(LevelLog(spacing_mm=8.0, metric_per_step=(0.1, 0.2), stopped_because="even"),),
    )


def test_a_region_comes_back_exactly_whatever_part_of_the_grid_it_fills() -> None:
    for start, stop in (((1, 2, 3), (3, 4, 4)), ((0, 0, 0), (4, 5, 6)), ((0, 0, 0), (0, 0, 0))):
        values = np.zeros((4, 5, 6), np.float32)
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        values[box] = np.random.default_rng(1).random(values[box].shape, np.float32)
        again = load(dump(region(values)))
        assert isinstance(again, Probability)
        assert np.array_equal(again.values, values)
        assert again.values.dtype == np.float32
        assert again.grid.same_as(grid())
        assert np.array_equal(again.grid.origin_xyz_mm, grid().origin_xyz_mm)
        assert (again.frame_of_reference, again.name) == ("1.2.3", "GTV")


def test_a_drawn_contour_comes_back_exactly() -> None:
    loop = np.random.default_rng(2).random((7, 3)) / 3
    drawn = Drawn(
        method="rigid",
        region=region(np.ones((4, 5, 6), np.float32)),
        loops=(Contour(points_xyz_mm=loop, sop_instance_uid="1.2.9"),),
        quality=Quality(figures=(Figure(name="a", value=0.1),)),
        notes=("one", "two"),
        seconds=0.123456789,
    )
    again = load(dump(drawn))
    assert isinstance(again, Drawn)
    assert np.array_equal(again.loops[0].points_xyz_mm, loop)
    assert again.loops[0].points_xyz_mm.dtype == np.float64
    assert (again.quality, again.notes, again.seconds) == (drawn.quality, drawn.notes, 0.123456789)
    failed = load(dump(Drawn(method="dir-t", region=None, failed="elastix stopped")))
    assert (failed.region, failed.failed) == (None, "elastix stopped")


def test_registrations_come_back_exactly_verdicts_being_verdicts() -> None:
    both = Registrations(
        body=registration(1 / 7),
        target=None,
        translation=registration(-2.5),
        focus="body",
        apart_mm=None,
        quality=Quality(figures=(Figure(name="x", value=1.0, verdict=Verdict.REJECT),)),
    )
    again, seconds = load(dump((both, 1.5)))
    assert seconds == 1.5
    assert again.rejected
    assert again.quality.figures[0].verdict is Verdict.REJECT
    assert again.body.quality == both.body.quality
    assert again.body.log == both.body.log
    assert np.array_equal(again.body.planning_from_cbct.matrix, both.body.planning_from_cbct.matrix)
    assert np.array_equal(again.body.center_xyz_mm, both.body.center_xyz_mm)


def test_the_same_thing_gives_the_same_bytes() -> None:
    values = np.random.default_rng(3).random((4, 5, 6)).astype(np.float32)
    assert dump({("a", "b"): region(values)}) == dump({("a", "b"): region(values)})


def test_pairs_of_names_survive_as_keys() -> None:
    assert load(dump({("rigid", "diff-umamba"): 0.5})) == {("rigid", "diff-umamba"): 0.5}


def test_only_results_of_steps_can_be_kept() -> None:
    with pytest.raises(TypeError, match="Event is not among the results"):
        dump(threading.Event())


class Trap:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_never_loaded() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, document=np.array([Trap()], object), allow_pickle=True)
    for content in (pickle.dumps(Trap()), buffer.getvalue()):
        with pytest.raises(InputError, match="stored result cannot be read"):
            load(content)


@pytest.mark.parametrize("cut", [0, 1, 40, -40])
def test_damaged_bytes_are_refused(cut: int) -> None:
    content = dump(region(np.ones((4, 5, 6), np.float32)))
    with pytest.raises(InputError, match="stored result cannot be read"):
        load(content[:cut])


def test_a_class_that_is_no_result_is_not_made() -> None:
    buffer = io.BytesIO()
    document = b'{"kind": "Popen", "parts": {"args": "true"}}'
    np.savez(buffer, document=np.frombuffer(document, np.uint8))
    with pytest.raises(InputError, match="stored result cannot be read"):
        load(buffer.getvalue())
