from __future__ import annotations

import numpy as np
import pytest

from contourcast.imaging.errors import FrameMismatchError, GridMismatchError, UnknownRoiError
from contourcast.imaging.grid import Grid
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.structures import Contour, Roi, StructureSet, nearest_name
from contourcast.imaging.volume import Mask, Probability, Volume

GRID = Grid(
    shape_zyx=(3, 2, 2),
    spacing_xy_mm=(2.0, 5.0),
    origin_xyz_mm=np.zeros(3),
    offsets_z_mm=np.array([0.0, 1.0, 3.0]),
)


def mask(*voxels_zyx: tuple[int, int, int], frame: str = "a") -> Mask:
    values = np.zeros(GRID.shape_zyx, bool)
    for voxel in voxels_zyx:
        values[voxel] = True
    return Mask(values=values, grid=GRID, frame_of_reference=frame)


def test_a_mask_weighs_its_voxels_by_the_slice_they_are_on() -> None:
    assert mask((0, 0, 0)).volume_cc == pytest.approx(0.010)
    assert mask((2, 0, 0)).volume_cc == pytest.approx(0.020)
    centroid = mask((0, 0, 0), (2, 0, 0)).centroid_xyz_mm()
    assert centroid is not None
    assert centroid.tolist() == pytest.approx([0, 0, 2.0])


def test_an_empty_mask_has_no_centroid() -> None:
    assert mask().is_empty
    assert mask().centroid_xyz_mm() is None


def test_the_half_level_is_inside() -> None:
    values = np.zeros(GRID.shape_zyx)
    values[0, 0, 0], values[0, 0, 1] = 0.5, 0.499
    region = Probability(values=values, grid=GRID, frame_of_reference="a", name="GTV")
    assert region.mask().values.sum() == 1
    assert region.mask().name == "GTV"


@pytest.mark.parametrize("frame", ["b", ""])
def test_regions_of_other_frames_are_not_combined(frame: str) -> None:
    with pytest.raises(FrameMismatchError):
        mask(frame=frame).require_same_place(mask())


def test_two_unknown_frames_are_not_one() -> None:
    with pytest.raises(FrameMismatchError):
        mask(frame="").require_same_place(mask(frame=""))


def test_regions_on_other_grids_are_not_combined() -> None:
    other = Mask(
        values=np.zeros((2, 2, 2), bool),
        grid=GRID.crop((0, 0, 0), (2, 2, 2)),
        frame_of_reference="a",
    )
    with pytest.raises(GridMismatchError):
        mask().require_same_place(other)


def test_values_have_to_fit_the_grid() -> None:
    with pytest.raises(GridMismatchError):
        Volume(values=np.zeros((2, 2, 2)), grid=GRID, frame_of_reference="a")
    with pytest.raises(GridMismatchError):
        Volume(
            values=np.zeros((3, 2, 2)),
            grid=GRID,
            frame_of_reference="a",
            observed=np.ones((2, 2, 2), bool),
        )


def test_a_volume_does_not_change_when_its_maker_s_array_does() -> None:
    values = np.zeros(GRID.shape_zyx, np.float32)
    volume = Volume(values=values, grid=GRID, frame_of_reference="a")
    values[0, 0, 0] = 7
    assert volume.values[0, 0, 0] == 0
    assert volume.with_values(values).values[0, 0, 0] == 7


def structure_set(*names: str) -> StructureSet:
    return StructureSet(
        sop_instance_uid="1.2",
        series_instance_uid="1.3",
        frame_of_reference="1.4",
        patient=Patient(),
        study=Study(instance_uid="1.5"),
        rois=tuple(
            Roi(number=n + 1, name=name, contours=(), frame_of_reference="1.4")
            for n, name in enumerate(names)
        ),
    )


def test_a_roi_is_found_by_name_or_number() -> None:
    rois = structure_set("GTV", " Lung L ", "Heart", "Heart")
    assert rois.roi("GTV").number == 1
    assert rois.roi("Lung L").number == 2
    assert rois.roi("#4").number == 4


def test_an_unknown_roi_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(UnknownRoiError) as caught:
        structure_set("GTV", "Heart").roi("hart")
    assert "the nearest is 'Heart'" in caught.value.cause
    assert "'GTV' (#1)" in caught.value.remedy
    with pytest.raises(UnknownRoiError, match="none at all"):
        structure_set().roi("GTV")


def test_a_name_that_repeats_asks_for_a_number() -> None:
    with pytest.raises(UnknownRoiError, match="#1, #2"):
        structure_set("Heart", "Heart").roi("Heart")


def test_nearest_name_ignores_case_and_may_find_none() -> None:
    assert nearest_name("gtv", ["GTV", "PTV"]) == "GTV"
    assert nearest_name("zzz", ["GTV"]) == ""


@pytest.mark.parametrize(
    ("kind", "points", "encloses"),
    [
        ("CLOSED_PLANAR", 3, True),
        ("CLOSEDPLANAR_XOR", 3, True),
        ("CLOSED_PLANAR", 2, False),
        ("OPEN_PLANAR", 5, False),
        ("POINT", 1, False),
    ],
)
def test_only_closed_contours_of_three_points_enclose(
    kind: str, points: int, encloses: bool
) -> None:
    contour = Contour(points_xyz_mm=np.zeros((points, 3)), geometric_type=kind)  # type: ignore[arg-type]
    assert contour.encloses is encloses
