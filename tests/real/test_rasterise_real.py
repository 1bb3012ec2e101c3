"""Rasterising, carrying and tracing of contours that people drew, against masks others made."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.distance import carry, distance_map
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import coverage, raster_notes, rasterise
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import loops_volume_cc, trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask
from support.data import data_item

pytestmark = pytest.mark.real


# --- ibsi_sts: 60 masks of 20 patients, three modalities


@pytest.mark.parametrize("modality", ["CT", "MR_T1", "PET"])
@pytest.mark.parametrize("patient", range(1, 21))
def test_the_mask_is_ibsi_s_voxel_for_voxel(patient: int, modality: str) -> None:
    folder = data_item("ibsi_sts") / "sets" / f"STS_{patient:03d}" / modality
    grid, expected = nifti(folder / "mask.nii.gz")
    (roi,) = read_structure_set(folder / "rs.dcm").rois
    found = rasterise(roi, grid).values
    assert expected.any()
    assert np.count_nonzero(found != expected) == 0


def nifti(path: Path) -> tuple[Grid, np.ndarray]:
    """A mask and its grid; NIfTI's axes point right, anterior, superior."""
    raw = gzip.decompress(path.read_bytes())
    nx, ny, nz = np.frombuffer(raw, "<i2", 3, offset=42)
    kind = {2: "<u1", 4: "<i2", 8: "<i4", 16: "<f4", 64: "<f8", 512: "<u2"}[
        int(np.frombuffer(raw, "<i2", 1, offset=70)[0])
    ]
    start = int(np.frombuffer(raw, "<f4", 1, offset=108)[0])
    spacing = np.frombuffer(raw, "<f4", 3, offset=80).astype(float)
    b, c, d, *corner_ras = np.frombuffer(raw, "<f4", 6, offset=256).astype(float)
    turn = Rotation.from_quat([b, c, d, np.sqrt(max(0.0, 1 - b * b - c * c - d * d))])
    lps_from_ras = np.diag([-1.0, -1.0, 1.0])
    grid = Grid.even(
        shape_zyx=(int(nz), int(ny), int(nx)),
        spacing_xyz_mm=spacing.tolist(),
        origin_xyz_mm=lps_from_ras @ corner_ras,
        direction=lps_from_ras @ turn.as_matrix(),
    )
    values = np.frombuffer(raw, kind, int(nx) * int(ny) * int(nz), offset=start)
    return grid, values.reshape(grid.shape_zyx) > 0


# --- structure_sets/synthetic: shapes that are hard

HARD_SHAPES = {
    "circle": "",
    "circle_reversed": "",
    "hole_two_contours": "",
    "nested_three": "",
    "hole_keyhole": "",
    "two_islands": "",
    "bowtie": "cross themselves",
    "tiny": "smaller than a voxel",
    "off_plane_2um": "",
    "between_planes": "0.40 slices off",
    "gap_in_stack": "left empty: slices 5-6",
    "outside_image": "wholly outside",
    "partly_outside": "partly outside",
    "edge_on_centres": "",
}
WITHOUT_VOLUME = {
    "point": "points and open lines",
    "open_line": "points and open lines",
    "two_points_closed": "fewer than three points",
    "empty_seq": "no contour",
    "no_contour_seq": "no contour",
    "no_contour_item": "no contour",
}


@cache
def synthetic() -> tuple[Grid, dict[str, Roi]]:
    grid = read_ct_series(data_item("hard_dicom") / "geom_z_descending_names").grid
    rois = read_structure_set(data_item("structure_sets") / "synthetic" / "shapes.dcm").rois
    return grid, {roi.name: roi for roi in reversed(rois)}  # the first of a name stays


@pytest.mark.parametrize(("name", "note"), HARD_SHAPES.items())
def test_the_mask_of_a_hard_shape(name: str, note: str) -> None:
    grid, rois = synthetic()
    truth = np.load(data_item("structure_sets") / "synthetic" / "truth_masks.npz")[name]
    assert np.count_nonzero(rasterise(rois[name], grid).values != truth) == 0
    notes = raster_notes(rois[name], grid)
    assert len(notes) == bool(note)
    assert note in "".join(each.text for each in notes)


@pytest.mark.parametrize(("name", "note"), WITHOUT_VOLUME.items())
def test_what_has_no_volume_says_so(name: str, note: str) -> None:
    grid, rois = synthetic()
    assert rasterise(rois[name], grid).is_empty
    assert not coverage(rois[name], grid).values.any()
    assert note in "".join(each.text for each in raster_notes(rois[name], grid))


# --- 4D-Lung patient 113: a tumour and a node as a physician drew them

LUNG_CC = {"Tumor_c40": 67.6, "LN_c40": 6.4}


@cache
def lung() -> tuple[Grid, dict[str, Roi]]:
    (path,) = (data_item("lung_planning_ct") / "rs").iterdir()
    grid = read_ct_series(data_item("lung_planning_ct") / "ct").grid
    return grid, {roi.name: roi for roi in read_structure_set(path).rois}


@pytest.mark.parametrize(("name", "volume_cc"), LUNG_CC.items())
def test_drawn_volumes(name: str, volume_cc: float) -> None:
    grid, rois = lung()
    assert raster_notes(rois[name], grid) == ()
    assert rasterise(rois[name], grid).volume_cc == pytest.approx(volume_cc, abs=0.06)
    by_area = float((coverage(rois[name], grid).values * grid.voxel_cc).sum())
    assert loops_volume_cc(rois[name].loops, grid) == pytest.approx(by_area, rel=1e-4)


@pytest.mark.parametrize("name", LUNG_CC)
def test_a_drawn_region_is_carried_rigidly_with_its_volume_and_place(name: str) -> None:
    grid, rois = lung()
    distance = distance_map(rois[name], grid=grid)
    weights = coverage(rois[name], grid).values * grid.voxel_cc
    k, j, i = np.nonzero(weights)
    drawn_at = np.average(grid.world(np.column_stack((i, j, k))), axis=0, weights=weights[k, j, i])
    drawn_cc = loops_volume_cc(rois[name].loops, grid)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        planning_from_cbct = RigidTransform.about(
            drawn_at,
            rotation=Rotation.from_rotvec(np.radians(rng.uniform(-5, 5, 3))).as_matrix(),
            translation_xyz_mm=rng.uniform(-15, 15, 3),
            source_frame="cbct",
            target_frame=rois[name].frame_of_reference,
        )
        expected_at = planning_from_cbct.inverse().apply(drawn_at[None])[0]
        # Slices of 1 mm, so that not the new grid's sampling but the carried shape is measured.
        onto = Grid.even(
            shape_zyx=(110, 90, 90),
            spacing_xyz_mm=(1.0, 1.0, 1.0),
            origin_xyz_mm=expected_at - [45, 45, 55] + rng.uniform(-1, 1, 3),
        )
        carried = carry(distance, planning_from_cbct, onto=onto).mask()
        at = carried.centroid_xyz_mm()
        assert at is not None
        assert carried.volume_cc == pytest.approx(drawn_cc, rel=0.01), seed
        assert np.linalg.norm(at - expected_at) < 0.2, seed


@pytest.mark.parametrize("name", LUNG_CC)
def test_a_drawn_region_survives_tracing(name: str) -> None:
    grid, rois = lung()
    mask = rasterise(rois[name], grid)
    again = Roi(
        number=1, name=name, contours=trace(mask), frame_of_reference=mask.frame_of_reference
    )
    assert dice(rasterise(again, grid), mask) >= 0.999


def test_the_true_rigid_part_carries_to_the_known_overlap() -> None:
    """The archive's figure was made by interpolating a mask, hence the tolerance."""
    grid, rois = lung()
    folder = data_item("lung_cbct_simulated")
    truth = json.loads((folder / "truth.json").read_text())
    cbct = read_ct_series(folder / "cbct")
    tumor = rois["Tumor_c40"]
    planning_from_cbct = RigidTransform(
        matrix=np.array(truth["rigid_ct_from_cbct"]),
        source_frame=cbct.frame_of_reference,
        target_frame=tumor.frame_of_reference,
    )
    carried = carry(distance_map(tumor, grid=grid), planning_from_cbct, onto=cbct.grid)
    expected = Mask(
        values=np.load(folder / "truth.npz")["mask_Tumor_c40"],
        grid=cbct.grid,
        frame_of_reference=cbct.frame_of_reference,
    )
    overlap = dice(carried.mask(), expected)
    assert overlap == pytest.approx(truth["dsc_true_rigid_only"]["Tumor_c40"], abs=0.01)
