"""Structure sets of seven makers: read, or refused for the reason that is known of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_in import (
    read_structure_set,
    reference_notes,
    require_drawn_on,
)
from contourcast.imaging.errors import DicomError, FrameMismatchError
from support.data import data_item

pytestmark = pytest.mark.real


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the README of the data says of a file, counted with pydicom where it does not."""

    rois: int
    contours: int
    note: str = ""


FILES = {
    "structure_sets/eclipse_prostate_phantom/rs.dcm": Expected(rois=16, contours=210),
    "structure_sets/eclipse_anonymised_breast/rtss.dcm": Expected(rois=10, contours=441),
    "structure_sets/raystation_phantom/rs.dcm": Expected(rois=5, contours=125),
    "structure_sets/mim_rt_utils/invalid_reference_rt.dcm": Expected(rois=4, contours=12),
    "structure_sets/mim_rt_utils/non_existent_reference_rt.dcm": Expected(rois=4, contours=12),
    "structure_sets/rt_utils_written/rt.dcm": Expected(rois=1, contours=2),
    "structure_sets/pydicom_minimal/rtstruct.dcm": Expected(rois=3, contours=5, note="no preamble"),
    "structure_sets/synthetic/shapes.dcm": Expected(rois=22, contours=91),
    "structure_sets/synthetic/no_image_refs.dcm": Expected(
        rois=1, contours=6, note="by frame of reference alone"
    ),
    "structure_sets/synthetic/wrong_for.dcm": Expected(rois=1, contours=1),
    "structure_sets/synthetic/dangling_refs.dcm": Expected(rois=1, contours=1),
    "structure_sets/synthetic/observation_missing.dcm": Expected(rois=1, contours=1),
    "pancreas_ct_cbct/rs_plan/rs_plan.dcm": Expected(rois=5, contours=296),
    "pancreas_ct_cbct/rs_cbct_02/rs_cbct_02.dcm": Expected(rois=4, contours=176),
    "lung_planning_ct/rs/1-1.dcm": Expected(
        rois=4, contours=55, note="1 references to images are empty"
    ),
}


def at(name: str) -> Path:
    item, rest = name.split("/", 1)
    return data_item(item) / rest


@pytest.mark.parametrize("name", FILES)
def test_every_maker_is_read(name: str) -> None:
    found, expected = read_structure_set(at(name)), FILES[name]
    assert len(found.rois) == expected.rois
    assert sum(len(r.contours) for r in found.rois) == expected.contours
    assert expected.note in " ".join(found.notes)
    assert bool(found.notes) == bool(expected.note)


@pytest.mark.parametrize("name", FILES)
def test_every_contour_is_the_one_that_pydicom_reads(name: str) -> None:
    ours = {r.number: r for r in read_structure_set(at(name)).rois}
    dataset = dcmread(at(name), force=True)
    names = {int(r.ROINumber): r.ROIName for r in dataset.StructureSetROISequence}
    assert {n: r.name for n, r in ours.items()} == names
    for drawn in dataset.ROIContourSequence:
        contours = ours[int(drawn.ReferencedROINumber)].contours
        for contour, item in zip(contours, drawn.get("ContourSequence", None) or (), strict=True):
            text = item.get_item("ContourData").value.decode()
            theirs = np.array(text.split("\\"), float).reshape(-1, 3)
            assert (contour.points_xyz_mm == theirs[: len(contour.points_xyz_mm)]).all()
            assert len(theirs) - len(contour.points_xyz_mm) in (0, 1)
            assert contour.geometric_type == item.ContourGeometricType


def test_all_reference_contours_of_sixty_mask_pairs_are_read() -> None:
    files = sorted((data_item("ibsi_sts") / "sets").glob("*/*/rs.dcm"))
    assert len(files) == 60
    for path in files:
        found = read_structure_set(path)
        assert len(found.rois) == 1
        assert found.rois[0].loops
        assert found.notes == ()


def test_a_file_damaged_by_newline_conversion_is_refused_and_not_taken_as_empty() -> None:
    path = at("structure_sets/eclipse_prostate_phantom/rs_newline_corrupted.dcm")
    assert "StructureSetROISequence" not in dcmread(path)  # what a lenient reader makes of it
    with pytest.raises(DicomError, match="cut short or broken"):
        read_structure_set(path)


def test_hard_shapes_keep_their_kinds_and_names() -> None:
    found = read_structure_set(at("structure_sets/synthetic/shapes.dcm"))
    kinds = {r.name: {c.geometric_type for c in r.contours} for r in found.rois}
    assert kinds["point"] == {"POINT"}
    assert kinds["open_line"] == {"OPEN_PLANAR"}
    assert [len(c.points_xyz_mm) for c in found.roi("two_points_closed").contours] == [2]
    assert not found.roi("two_points_closed").loops
    for name in ("empty_seq", "no_contour_seq", "no_contour_item"):
        assert found.roi(name).contours == ()
    assert "Tumeur_résiduelle_腫瘍" in kinds
    assert sum(r.name == "circle" for r in found.rois) == 2
    ring = found.roi("hole_two_contours")
    assert len({c.sop_instance_uid for c in ring.contours}) * 2 == len(ring.contours)


def test_quirks_of_the_lung_plan() -> None:
    found = read_structure_set(at("lung_planning_ct/rs/1-1.dcm"))
    assert min(r.number for r in found.rois) == 17
    assert {r.generation_algorithm for r in found.rois} == {"SEMIAUTOMATIC"}
    assert len(found.referenced_sop_uids) == 99
    assert len(found.roi("Tumor_c40").contours) == 28


PAIRS = {
    "4D-Lung 113": ("lung_planning_ct/rs/1-1.dcm", "lung_planning_ct/ct"),
    "Pancreatic-CT-CBCT-SEG 001 plan": (
        "pancreas_ct_cbct/rs_plan/rs_plan.dcm",
        "pancreas_ct_cbct/plan_ct",
    ),
    "Pancreatic-CT-CBCT-SEG 001 CBCT": (
        "pancreas_ct_cbct/rs_cbct_02/rs_cbct_02.dcm",
        "pancreas_ct_cbct/cbct_02",
    ),
    "shapes": ("structure_sets/synthetic/shapes.dcm", "hard_dicom/geom_z_descending_names"),
    "another series named": (
        "structure_sets/synthetic/dangling_refs.dcm",
        "hard_dicom/geom_z_descending_names",
    ),
    "no references": (
        "structure_sets/synthetic/no_image_refs.dcm",
        "hard_dicom/geom_z_descending_names",
    ),
}

ODD_REFERENCES = {
    "another series named": ("it names another series than that of its slices",),
    "Pancreatic-CT-CBCT-SEG 001 plan": ("55 of the 134 slices that it names are not in the scan",),
    "Pancreatic-CT-CBCT-SEG 001 CBCT": ("29 of the 134 slices that it names are not in the scan",),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_structure_set_belongs_to_the_scan_that_it_was_drawn_on(name: str) -> None:
    structures, folder = PAIRS[name]
    found, scan = read_structure_set(at(structures)), read_ct_series(at(folder))
    require_drawn_on(found, scan)
    assert reference_notes(found, scan) == ODD_REFERENCES.get(name, ())


STRANGERS = {
    "wrong frame": (
        "structure_sets/synthetic/wrong_for.dcm",
        "hard_dicom/geom_z_descending_names",
        "not drawn in",
    ),
    "the plan's contours on the CBCT that was resampled to its frame": (
        "pancreas_ct_cbct/rs_plan/rs_plan.dcm",
        "pancreas_ct_cbct/cbct_02",
        "other images",
    ),
    "another patient": (
        "lung_planning_ct/rs/1-1.dcm",
        "pancreas_ct_cbct/plan_ct",
        "not drawn in",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_structure_set_of_another_scan_is_refused_with_both_uids(name: str) -> None:
    structures, folder, because = STRANGERS[name]
    with pytest.raises(FrameMismatchError, match=because) as refused:
        require_drawn_on(read_structure_set(at(structures)), read_ct_series(at(folder)))
    assert "structure set" in refused.value.uid
    assert "planning CT" in refused.value.uid
