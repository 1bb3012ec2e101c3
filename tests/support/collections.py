"""Public collections in miniature: the layouts of their archives, with arrays of few voxels.

NIfTI files are written with SimpleITK and DICOM with pydicom, so none of our own writers says
what our readers are to find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from support.course import (
    SHAPE_ZYX,
    SPACING_XYZ_MM,
    TUMOUR_RADIUS_MM,
    TUMOUR_XYZ_MM,
    thorax_hu,
)
from support.data import peer_module
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set

SHAPE = (4, 5, 6)
SPACING_MM = (0.75, 1.25, 2.5)
ORIGIN_MM = (-20.0, 30.0, -100.0)


def scan(seed: int = 0, shape_zyx: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Whole numbers without any symmetry."""
    return np.random.default_rng(seed).integers(-1000, 1000, shape_zyx).astype(np.int16)


def drawn(*values: int, shape_zyx: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A label with each value in one slice's corner, the rest 0."""
    label = np.zeros(shape_zyx, np.uint8)
    for n, value in enumerate(values):
        label[1, : 2 + n, n] = value
    return label


def write_nifti(
    path: Path,
    values: np.ndarray,
    *,
    spacing_xyz_mm: Sequence[float] = SPACING_MM,
    origin_xyz_mm: Sequence[float] = ORIGIN_MM,
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> Path:
    """A NIfTI file by SimpleITK; the origin and the direction are LPS."""
    sitk = peer_module("SimpleITK")
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing(list(spacing_xyz_mm))
    image.SetOrigin(list(origin_xyz_mm))
    image.SetDirection(list(direction))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def make_msd(folder: Path, *, task: str, labels: Sequence[str], cases: int = 2) -> Path:
    """``Task06_Lung`` and its like, with the junk that a Macintosh left in the archives."""
    root = folder / task
    organ = task.partition("_")[2].lower()
    listed = []
    for number in range(1, cases + 1):
        name = f"{organ}_{number:03d}.nii.gz"
        write_nifti(root / "imagesTr" / name, scan(number))
        write_nifti(root / "labelsTr" / name, drawn(*range(1, len(labels))))
        for part in ("imagesTr", "labelsTr"):
            (root / part / f"._{name}").write_bytes(b"\0\5\x16\7Mac OS X")
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    write_nifti(root / "imagesTs" / f"{organ}_900.nii.gz", scan(900))
    document = {
        "name": organ,
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(n): label for n, label in enumerate(labels)},
        "numTraining": cases,
        "numTest": 1,
        "training": listed,
        "test": [f"./imagesTs/{organ}_900.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(document))
    (root / "._dataset.json").write_bytes(b"\0\5\x16\7Mac OS X")
    return root


def make_brats21(folder: Path, *, cases: int = 2) -> Path:
    """A folder for each patient in a folder that is named like one in some copies."""
    root = folder / "BraTS2021_Training_Data"
    for number in range(cases):
        name = f"BraTS2021_{number:05d}"
        for n, kind in enumerate(("flair", "t1", "t1ce", "t2")):
            write_nifti(root / name / f"{name}_{kind}.nii.gz", scan(10 * number + n))
        write_nifti(root / name / f"{name}_seg.nii.gz", drawn(1, 2, 4))
    (root / ".DS_Store").write_bytes(b"\0")
    (root / "BraTS2021_00495.tar").write_bytes(b"\0")
    return root


def make_aiib23(folder: Path, *, images: str = "img", labels: str = "gt") -> Path:
    """``AIIB23_Train_T1``: scans and labels of the same names in two folders."""
    root = folder / "AIIB23_Train_T1"
    for number in (30, 107):
        name = f"AIIB23_{number}.nii.gz"
        write_nifti(root / images / name, scan(number))
        write_nifti(root / labels / name, drawn(1))
    (root / images / "._AIIB23_30.nii.gz").write_bytes(b"\0\5\x16\7Mac OS X")
    return root


def make_ct(
    folder: Path,
    *,
    name: str,
    patient_id: str,
    date: str = "20260103",
    description: str = "",
    study: str = "",
    frame: str | None = None,
    shift_xyz_mm: Sequence[float] = (0.0, 0.0, 0.0),
    hu_zyx: np.ndarray | None = None,
) -> CtFiles:
    """A thorax of few voxels that has moved by so much, taken on that day."""

    def change(dataset: FileDataset, _: int) -> None:
        dataset.PatientID = patient_id
        dataset.SeriesDate = dataset.StudyDate = date

    half = [(n - 1) / 2 * s for n, s in zip(SHAPE_ZYX[::-1], SPACING_XYZ_MM, strict=True)]
    hu = (
        thorax_hu(np.array(shift_xyz_mm), noise_hu=15.0, seed=len(name))
        if hu_zyx is None
        else hu_zyx
    )
    return make_ct_series(
        folder,
        hu,
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=[-h for h in half],
        name=name,
        study_uid=study or None,
        frame_of_reference=frame,
        description=description,
        change=change,
    )


def draw(
    path: Path,
    rois: dict[str, Sequence[float]],
    *,
    on: CtFiles,
    patient_id: str,
    radius_mm: float = TUMOUR_RADIUS_MM,
) -> Path:
    """A structure set with a ball for each ROI, at the tumour's place moved by so much."""

    def ball(shift_xyz_mm: Sequence[float]) -> list[np.ndarray]:
        x, y, z = TUMOUR_XYZ_MM + np.array(shift_xyz_mm)
        heights = on.positions_xyz_mm[:, 2]
        return [
            disc((x, y, height), float(np.sqrt(radius_mm**2 - (height - z) ** 2)))
            for height in heights
            if abs(height - z) < radius_mm
        ]

    def change(dataset: FileDataset) -> None:
        dataset.PatientID = patient_id

    return make_structure_set(
        path,
        {name: ball(shift) for name, shift in rois.items()},
        reference=on,
        name=f"{path.parent.name}-{path.stem}-{on.series_uid[-6:]}",
        change=change,
    )


def make_dicom_course(
    folder: Path,
    *,
    patient: str,
    patient_id: str,
    shifts_xyz_mm: Sequence[Sequence[float]] = ((7.0, -4.0, 6.0),),
    roi: str = "GTV",
) -> Path:
    """A patient's folder as a department exports it; the last CBCT has no contours."""
    root = folder / patient
    ct = make_ct(root / "a", name=f"{patient}-ct", patient_id=patient_id)
    draw(root / "a" / "rs.dcm", {roi: (0.0, 0.0, 0.0)}, on=ct, patient_id=patient_id)
    for number, shift in enumerate(shifts_xyz_mm, 1):
        cbct = make_ct(
            root / f"b{number}",
            name=f"{patient}-cbct-{number}",
            patient_id=patient_id,
            date=f"2026020{number}",
            shift_xyz_mm=shift,
        )
        draw(root / "sets" / f"{number}.dcm", {roi: shift}, on=cbct, patient_id=patient_id)
    make_ct(
        root / "c", name=f"{patient}-bare", patient_id=patient_id, date="20260301", hu_zyx=_small()
    )
    return root


def make_pancreatic_ct_cbct(folder: Path) -> Path:
    """One patient as TCIA's downloader lays them out; planning CT and CBCT share a frame."""
    patient = "Pancreas-CT-CB_001"
    study = folder / "Pancreatic-CT-CBCT-SEG" / patient / "07-06-2012-NA-PANCREAS-59677"
    shift = (4.0, 3.0, -5.0)
    ct = make_ct(study / "201.000000-PANCREAS DI iDose 3-97846", name="panc", patient_id=patient)
    cbct = make_ct(
        study / "1.000000-Aligned resampled CB02-11111",
        name="panc-cb",
        patient_id=patient,
        date="20120719",
        frame=ct.frame_of_reference,
        shift_xyz_mm=shift,
    )
    still = (0.0, 0.0, 0.0)
    draw(
        study / "1.000000-BSPCLLLRROISDPC-1" / "1-1.dcm",
        {"Bowel_sm_planCT": (60.0, 0.0, 0.0), "LUNG_L": still, "Stomach_duo_planCT": still},
        on=ct,
        patient_id=patient,
    )
    draw(
        study / "1.000000-BSCBLLLRSDCB-27748" / "1-1.dcm",
        {"Bowel_sm_CBCT": (60.0, 0.0, 0.0), "LUNG_L": still, "Stomach_duo_CBCT": shift},
        on=cbct,
        patient_id=patient,
    )
    return folder / "Pancreatic-CT-CBCT-SEG"


def make_4d_lung(folder: Path) -> Path:
    """One patient, two days, two phases each, and a CBCT without contours."""
    patient = "100_HM10395"
    root = folder / "4D-Lung" / patient
    for day, (date, shift) in enumerate(
        (("20030702", (0.0, 0.0, 0.0)), ("20030723", (5.0, 2.0, -4.0))), 1
    ):
        for n, (percent, letter) in enumerate(((0, "A"), (50, "A"))):
            moved = (shift[0], shift[1], shift[2] + 2.0 * n)
            ct = make_ct(
                root / f"day{day}-NA-p4-14571" / f"1.000000-P4P100S300I0000{n}-{day}{n}",
                name=f"fb-{day}-{percent}",
                patient_id=patient,
                date=date,
                study=f"2.25.9{day}",
                description=f"P4^P100^S30{day}^I0000{n}, Gated, {percent}.0%{letter}",
                shift_xyz_mm=moved,
            )
            draw(
                root / f"day{day}-NA-p4-14571" / f"1.000000-RTS-{day}{n}" / "1-1.dcm",
                {
                    f"LN_c{percent:02d}": (80.0, 0.0, 0.0),
                    f"Tumor_{' ' if day == 2 else ''}c{percent:02d}": moved,
                },
                on=ct,
                patient_id=patient,
            )
    make_ct(
        root / "09-14-2003-NA-p4-1" / "1.000000-P4P100S100I0 Gated 0.0-1",
        name="cb",
        patient_id=patient,
        date="20030914",
        study="2.25.77",
        description="P4^P100^S100^I0, Gated, 0.0%",
        hu_zyx=_small(),
    )
    return folder / "4D-Lung"


def _small() -> np.ndarray:
    """A scan that nothing is learned from."""
    return np.zeros((3, 4, 5), np.int16)
