"""Registrations of other makers, against the matrix that each encodes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from contourcast.imaging.dicom.registration_in import read_registration
from contourcast.imaging.errors import DicomError
from support.data import data_item

pytestmark = pytest.mark.real

XVI = "registrations_xvi_layout"
RIGID = (
    ("registrations", "rigid_identity_first.dcm"),
    ("registrations", "rigid_identity_second.dcm"),
    ("registrations", "rigid_no_identity_both_moved.dcm"),
    ("registrations", "rigid_one_item.dcm"),
    ("registrations", "rigid_two_matrices_in_item.dcm"),
    (XVI, "xvi_layout_sro_lite.dcm"),
)
REFUSED = (
    ("registrations", "rigid_scale_3pct.dcm", "stated as RIGID_SCALE"),
    ("registrations", "rigid_declared_but_not_orthonormal.dcm", "stated as RIGID"),
    ("registrations", "deformable_grid_with_post_matrix.dcm", "Deformable"),
    (XVI, "xvi_layout_rps_raw_data.dcm", "RPS"),
)
SEVERAL = (
    "xvi_layout_sro_standard_many_registrations.dcm",
    "xvi_layout_sro_standard_many_matrix_registrations.dcm",
)


@pytest.mark.parametrize(("item", "file"), RIGID)
def test_every_layout_gives_the_matrix_that_it_encodes(item: str, file: str) -> None:
    truth = json.loads((data_item(item) / "truth.json").read_text())
    a_from_b = read_registration(data_item(item) / file).between(
        target_frame=truth["frame_A"], source_frame=truth["frame_B"]
    )
    assert np.abs(a_from_b.matrix - truth["A_from_B"]).max() < 1e-9


@pytest.mark.parametrize(("item", "file", "because"), REFUSED)
def test_what_is_not_a_rigid_registration_is_refused(item: str, file: str, because: str) -> None:
    with pytest.raises(DicomError) as refused:
        read_registration(data_item(item) / file)
    assert because in refused.value.cause


@pytest.mark.parametrize("file", SEVERAL)
def test_one_of_several_results_is_chosen_by_its_comment(file: str) -> None:
    truth = json.loads((data_item(XVI) / "truth.json").read_text())
    found = read_registration(data_item(XVI) / file)
    frames = {"target_frame": truth["frame_A"], "source_frame": truth["frame_B"]}
    with pytest.raises(DicomError, match="3 results") as refused:
        found.between(**frames)
    assert "'Correction'" in refused.value.remedy
    for comment, key in (
        ("Correction", "A_from_B"),
        ("Clipbox", "align_clip1"),
        ("Mask", "align_mask1"),
    ):
        matrix = found.between(**frames, result=comment).matrix
        assert np.abs(matrix - truth[key]).max() < 1e-9, comment


def test_every_file_of_both_items_is_tested_here() -> None:
    tested = {file for _, file, *_ in (*RIGID, *REFUSED)} | set(SEVERAL)
    there = {p.name for item in ("registrations", XVI) for p in data_item(item).glob("*.dcm")}
    assert tested == there
