"""What we write holds everything that the standard's own tables ask for (PS3.3, types 1 and 2)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from scipy.spatial.transform import Rotation

from contourcast.imaging.dicom.ct_series_out import Acquisition, write_ct_series
from contourcast.imaging.dicom.registration_out import write_registration
from contourcast.imaging.dicom.rtstruct_out import Approval, Generation, write_structure_set
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from support.data import data_item
from support.scans import DRAWN_AT, GRIDS, make_scan, ring
from support.standard import missing

pytestmark = pytest.mark.peer


def bare(scan: Volume) -> Volume:
    """A scan of which its makers told as little as they could."""
    assert scan.source is not None
    source = replace(
        scan.source,
        series_number="",
        body_part="",
        series_date="",
        series_time="",
        model="",
        manufacturer="",
    )
    return replace(scan, source=source, observed=scan.values > 0)


def structure_set(folder: Path, scan: Volume, *, signed: bool = False) -> Path:
    network = Generation(method="diff-umamba", weights_digest="1a2b3c4d" * 8, is_network=True)
    approval = Approval(status="APPROVED", reviewer="Contourcast^Physician", at=DRAWN_AT)
    write_structure_set(
        folder / "RS.dcm",
        rois=[ring(scan, 30.0, 20.0), ring(scan, name="nothing", number=2)],
        reference=scan,
        label="CC 20260103 F07",
        series_description="Contourcast proposals",
        digest="inputs",
        drawn_at=DRAWN_AT,
        generations=[network, None],
        predecessor_uid="2.25.77" if signed else "",
        approval=approval if signed else None,
    )
    return folder / "RS.dcm"


def registration(folder: Path, *, one_frame: bool = False, one_study: bool = False) -> Path:
    cbct = make_scan()
    planning = make_scan(name="planning CT", study="study" if one_study else "plan")
    if one_frame:
        planning = replace(planning, frame_of_reference=cbct.frame_of_reference)
    write_registration(
        folder / "REG.dcm",
        cbct_from_planning=RigidTransform.about(
            cbct.grid.center_xyz_mm,
            rotation=Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix(),
            translation_xyz_mm=cbct.grid.origin_xyz_mm / 100,
            source_frame=planning.frame_of_reference,
            target_frame=cbct.frame_of_reference,
        ),
        cbct=cbct,
        planning_ct=planning,
        digest="inputs",
        made_at=DRAWN_AT,
    )
    return folder / "REG.dcm"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", ["plain", "oblique 20 degrees"])
def test_a_structure_set_lacks_nothing(tmp_path: Path, case: str, signed: bool) -> None:
    scan = make_scan(GRIDS[case])
    assert missing(structure_set(tmp_path, scan, signed=signed)) == []
    assert missing(structure_set(tmp_path / "bare", bare(scan), signed=signed)) == []


@pytest.mark.parametrize("one_frame", [False, True])
@pytest.mark.parametrize("one_study", [False, True])
def test_a_registration_lacks_nothing(tmp_path: Path, one_frame: bool, one_study: bool) -> None:
    assert missing(registration(tmp_path, one_frame=one_frame, one_study=one_study)) == []


def test_the_images_of_a_series_lack_nothing(tmp_path: Path) -> None:
    told = Acquisition(kvp=125, kernel="RAM-LAK", diameter_mm=465, derivation="simulated")
    write_ct_series(tmp_path / "told", make_scan(), acquisition=told)
    write_ct_series(tmp_path / "bare", bare(make_scan()))
    files = sorted(tmp_path.rglob("*.dcm"))
    assert [missing(file) for file in files] == [[]] * 10


def without_study_identifier(dataset: FileDataset) -> None:
    del dataset.StudyID


def without_label(dataset: FileDataset) -> None:
    dataset.StructureSetLabel = ""


def without_generation(dataset: FileDataset) -> None:
    del dataset.StructureSetROISequence[1].ROIGenerationAlgorithm


def without_image_of_a_contour(dataset: FileDataset) -> None:
    dataset.ROIContourSequence[0].ContourSequence[2].ContourImageSequence[
        0
    ].ReferencedSOPInstanceUID = ""


def without_position_reference(dataset: FileDataset) -> None:
    """Of a module that is optional in a structure set: half of it is not enough."""
    del dataset.PositionReferenceIndicator


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (without_study_identifier, "type 2: general-study: StudyID"),
        (without_label, "type 1: structure-set: StructureSetLabel"),
        (
            without_generation,
            "type 2: structure-set: StructureSetROISequence > ROIGenerationAlgorithm",
        ),
        (
            without_image_of_a_contour,
            "type 1: roi-contour: ROIContourSequence > ContourSequence > ContourImageSequence > "
            "ReferencedSOPInstanceUID",
        ),
        (without_position_reference, "type 2: frame-of-reference: PositionReferenceIndicator"),
    ],
)
def test_what_is_taken_away_is_missed(
    tmp_path: Path, spoil: Callable[[FileDataset], None], finding: str
) -> None:
    path = structure_set(tmp_path, make_scan())
    dataset = dcmread(path)
    spoil(dataset)
    dataset.save_as(path)
    assert missing(path) == [finding]


@pytest.mark.real
def test_what_another_writer_leaves_out_is_missed() -> None:
    written = next((data_item("structure_sets") / "rt_utils_written").glob("rt.dcm"))
    assert missing(written) == [
        "type 2: general-study: AccessionNumber",
        "type 2: general-study: ReferringPhysicianName",
        "type 2: rt-series: OperatorsName",
    ]
