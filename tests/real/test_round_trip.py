"""What our writers write, our readers and plastimatch read: on the geometry of real series."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.check import check_registration, check_structure_set
from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.ct_series_out import write_ct_series
from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.dicom.registration_out import write_registration
from contourcast.imaging.dicom.rtstruct_in import read_structure_set, require_drawn_on
from contourcast.imaging.dicom.rtstruct_out import write_structure_set
from contourcast.imaging.metrics import dice
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.structures import Roi
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Mask, Volume
from support.data import data_item
from support.scans import DRAWN_AT, GRIDS, make_scan, ring
from support.validators import dcentvfy, dciodvfy, plastimatch_masks

HARD = [
    "geom_nonsquare_pixels",
    "geom_oblique_0017",
    "geom_prone",
    "geom_feet_first",
    "geom_decubitus_right",
    "geom_float_noise",
    "geom_z_descending_names",
]
# We write UTF-8; dcentvfy compares names byte by byte, whatever their character set.
OTHER_CHARACTER_SETS = ["attr_name_gb18030", "attr_name_cyrillic", "attr_name_iso2022_jp"]


@cache
def hard(case: str) -> Volume:
    return read_ct_series(data_item("hard_dicom") / case)


def drawn(scan: Volume, radii_voxels: Sequence[float]) -> Mask:
    """Rings about the middle of the scan, in voxels, so that they fit any."""
    slices, rows, columns = scan.grid.shape_zyx
    z, y, x = np.ogrid[:slices, :rows, :columns]
    away = np.hypot(x - columns / 2.1, y - rows / 2.1) + 0 * z
    inside = sum((away < radius).astype(int) for radius in radii_voxels)
    values = (np.asarray(inside) % 2 == 1) & (z > 0) & (z < slices - 1)
    return Mask(values=values, grid=scan.grid, frame_of_reference=scan.frame_of_reference)


def write(path: Path, scan: Volume, mask: Mask) -> None:
    roi = Roi(
        number=1,
        name="GTV",
        contours=trace(mask),
        frame_of_reference=scan.frame_of_reference,
        interpreted_type="GTV",
        generation_algorithm="AUTOMATIC",
    )
    write_structure_set(
        path,
        rois=[roi],
        reference=scan,
        label="CC",
        series_description="Contourcast proposals",
        digest="inputs",
        drawn_at=DRAWN_AT,
    )


@pytest.mark.parametrize("case", GRIDS)
def test_our_readers_read_what_our_writers_write(tmp_path: Path, case: str) -> None:
    scan = make_scan(GRIDS[case])
    observed = scan.values > -700
    written = write_ct_series(tmp_path / "ct", replace(scan, observed=observed))
    read = read_ct_series(tmp_path / "ct")
    assert read.source is not None
    assert read.grid.same_as(scan.grid)
    assert np.abs(read.values - scan.values)[observed].max() <= 0.5
    assert read.observed is not None
    assert (read.observed == observed).all()
    same = set(vars(written)) - {"slices", "notes"}
    assert {k: vars(read.source)[k] for k in same} == {k: vars(written)[k] for k in same}
    for theirs, ours in zip(read.source.slices, written.slices, strict=True):
        assert theirs.sop_instance_uid == ours.sop_instance_uid
        assert (theirs.position_xyz_mm == ours.position_xyz_mm).all()

    mask = rasterise(ring(scan, 30.0, 20.0, 10.0), read.grid)
    write(tmp_path / "RS.dcm", read, mask)
    structures = read_structure_set(tmp_path / "RS.dcm")
    require_drawn_on(structures, read)
    assert structures.notes == ()
    assert dice(rasterise(structures.roi("GTV"), read.grid), mask) >= 0.999
    assert check_structure_set(tmp_path / "RS.dcm", read) == ()


def test_our_reader_reads_a_registration_that_we_wrote(tmp_path: Path) -> None:
    cbct, planning = make_scan(), make_scan(name="planning CT", study="plan")
    given = RigidTransform.about(
        np.array([10.0, -300, 480]),
        rotation=Rotation.from_euler("xyz", [3, -2, 4], degrees=True).as_matrix(),
        translation_xyz_mm=np.array([12.3, -4.5, 30.1]),
        source_frame=planning.frame_of_reference,
        target_frame=cbct.frame_of_reference,
    )
    path = tmp_path / "REG.dcm"
    write_registration(
        path,
        cbct_from_planning=given,
        cbct=cbct,
        planning_ct=planning,
        digest="inputs",
        made_at=DRAWN_AT,
    )
    registration = read_registration(path)
    assert registration.notes == ()
    back = registration.between(target_frame=given.target_frame, source_frame=given.source_frame)
    corners = planning.grid.corners_xyz_mm
    assert np.abs(back.apply(corners) - given.apply(corners)).max() < 1e-6
    assert check_registration(path, cbct, planning) == ()


@pytest.mark.real
@pytest.mark.parametrize("case", HARD + OTHER_CHARACTER_SETS)
def test_contours_on_real_series_come_back(tmp_path: Path, case: str) -> None:
    scan = hard(case)
    mask = drawn(scan, (26.0, 12.0))
    write(tmp_path / "RS.dcm", scan, mask)
    structures = read_structure_set(tmp_path / "RS.dcm")
    require_drawn_on(structures, scan)
    assert scan.source is not None
    assert structures.patient == scan.source.patient
    assert dice(rasterise(structures.roi("GTV"), scan.grid), mask) >= 0.999
    assert check_structure_set(tmp_path / "RS.dcm", scan) == ()


@pytest.mark.real
@pytest.mark.peer
@pytest.mark.parametrize("case", HARD)
def test_validators_find_nothing_on_real_series(tmp_path: Path, case: str) -> None:
    folder, scan = data_item("hard_dicom") / case, hard(case)
    write(tmp_path / "RS.dcm", scan, drawn(scan, (26.0, 12.0)))
    assert dciodvfy(tmp_path / "RS.dcm") == []
    assert dcentvfy([tmp_path / "RS.dcm", *sorted(folder.glob("*.dcm"))]) == []


@pytest.mark.real
@pytest.mark.peer
def test_plastimatch_reads_a_ring_on_a_planning_ct(tmp_path: Path) -> None:
    """4D-Lung patient 113: 512 x 512 pixels, fine enough that its rule of borders weighs little."""
    sitk = pytest.importorskip("SimpleITK")
    folder = data_item("lung_planning_ct") / "ct"
    scan = read_ct_series(folder)
    mask = drawn(scan, (60.0, 30.0))
    write(tmp_path / "RS.dcm", scan, mask)
    found = plastimatch_masks(tmp_path / "RS.dcm", folder, tmp_path / "masks")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(found["GTV"]))) > 0
    assert dice(mask.with_values(theirs), mask) >= 0.99


@pytest.mark.real
def test_rt_utils_reads_a_contour_on_a_planning_ct(tmp_path: Path) -> None:
    rt_utils = pytest.importorskip("rt_utils")
    folder = data_item("lung_planning_ct") / "ct"
    scan = read_ct_series(folder)
    mask = drawn(scan, (60.0,))
    write(tmp_path / "RS.dcm", scan, mask)
    read = rt_utils.RTStructBuilder.create_from(str(folder), str(tmp_path / "RS.dcm"))
    (name,) = read.get_roi_names()
    found = read.get_roi_mask_by_name(name)  # rows, columns, slices from the lowest
    assert dice(mask.with_values(np.moveaxis(found, 2, 0)), mask) >= 0.99


@pytest.mark.real
def test_real_contours_of_another_maker_are_written_again_unchanged(tmp_path: Path) -> None:
    """4D-Lung patient 113, drawn in Pinnacle: contours lie up to 0.002 mm off their slices."""
    item = data_item("lung_planning_ct")
    scan = read_ct_series(item / "ct")
    (path,) = (item / "rs").iterdir()
    tumour = read_structure_set(path).roi("Tumor_c40")
    write_structure_set(
        tmp_path / "RS.dcm",
        rois=[tumour],
        reference=scan,
        label="again",
        series_description="again",
        digest="again",
        drawn_at=DRAWN_AT,
    )
    again = read_structure_set(tmp_path / "RS.dcm").roi("Tumor_c40")
    before, after = rasterise(tumour, scan.grid), rasterise(again, scan.grid)
    assert dice(before, after) >= 0.999
    assert check_structure_set(tmp_path / "RS.dcm", scan) == ()


@pytest.mark.real
@pytest.mark.peer
def test_a_pair_that_shares_one_frame_of_reference_is_registered_in_valid_dicom(
    tmp_path: Path,
) -> None:
    """Pancreas-CT-CBCT-SEG patient 001: the CBCT was resampled into the planning CT's frame."""
    item = data_item("pancreas_ct_cbct")
    cbct, planning = read_ct_series(item / "cbct_02"), read_ct_series(item / "plan_ct")
    assert cbct.frame_of_reference == planning.frame_of_reference
    frame = cbct.frame_of_reference
    moved = RigidTransform.about(
        cbct.grid.center_xyz_mm,
        rotation=Rotation.from_euler("z", 1.7, degrees=True).as_matrix(),
        translation_xyz_mm=np.array([0.0, -2, 15]),
        source_frame=frame,
        target_frame=frame,
    )
    structures, registration = tmp_path / "RS.dcm", tmp_path / "REG.dcm"
    write(structures, cbct, drawn(cbct, (60.0, 30.0)))
    write_registration(
        registration,
        cbct_from_planning=moved,
        cbct=cbct,
        planning_ct=planning,
        digest="inputs",
        made_at=DRAWN_AT,
    )
    assert dciodvfy(structures) == dciodvfy(registration) == []
    images = sorted(p for p in (item / "cbct_02").rglob("*") if p.is_file())
    assert dcentvfy([structures, registration, *images]) == []
    assert check_structure_set(structures, cbct) == ()
    assert check_registration(registration, cbct, planning) == ()
