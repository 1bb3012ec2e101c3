"""What is true of one fraction, and how it is kept beside the DICOM, never in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool

from contourcast.imaging.errors import InputError
from contourcast.imaging.grid import Grid
from contourcast.imaging.transform import DeformableTransform, Displacement, RigidTransform
from contourcast.imaging.volume import Mask

TRUTH_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The answer to every question that a run on this CBCT asks.

    Attributes:
        label: What a physician of the recipe would draw: what scores are computed against.
        anatomical: The tumour itself at its time-mean place, before window and hand.
        motion: Takes a point of the CBCT to the planning CT: set-up (bones) and displacement.
        visible_share: Of the anatomical surface, with a step of 150 HU or more across it.
        facts: Every drawn parameter of the day, by name with unit.
    """

    cbct_series_uid: str
    roi_name: str
    label: Mask
    anatomical: Mask
    motion: DeformableTransform
    visible_share: float
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def hidden(self) -> bool:
        """Whether the tumour cannot be seen on this CBCT (REGISTRATION §11.5)."""
        return self.visible_share < 0.3


def save_truth(truth: Truth, folder: Path, name: str) -> None:
    """Writes ``name.json`` and ``name.npz``."""
    grid, moved = truth.label.grid, truth.motion.displacement
    rigid = truth.motion.rigid
    document = {
        "truth_version": TRUTH_VERSION,
        "cbct_series_uid": truth.cbct_series_uid,
        "roi_name": truth.roi_name,
        "cbct_frame_of_reference": rigid.source_frame,
        "planning_frame_of_reference": rigid.target_frame,
        "cbct_from_planning": rigid.inverse().matrix.tolist(),
        "label_cc": truth.label.volume_cc,
        "anatomical_cc": truth.anatomical.volume_cc,
        "visible_share": truth.visible_share,
        "hidden": truth.hidden,
        "grid": _grid_document(grid),
        "displacement_grid": _grid_document(moved.grid),
        "facts": truth.facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    with (folder / f"{name}.npz").open("wb") as file:
        np.savez_compressed(
            file,
            label_mask=truth.label.values,
            anatomical_mask=truth.anatomical.values,
            displacement_xyz_mm=moved.values_xyz_mm.astype(np.float16),
        )


def load_truth(path: Path) -> Truth:
    """Reads what `save_truth` wrote, by its JSON file.

    Raises:
        InputError: It is missing or was written by another version.
    """
    if not path.is_file() or not path.with_suffix(".npz").is_file():
        raise InputError(
            "the truth of a fraction is not there",
            file=path.name,
            remedy="keep the .json and the .npz beside each other",
        )
    document = json.loads(path.read_text())
    if document.get("truth_version") != TRUTH_VERSION:
        raise InputError(
            f"truth of version {document.get('truth_version')} cannot be read",
            file=path.name,
            remedy="simulate the course again with this version",
        )
    frame = document["cbct_frame_of_reference"]
    grid = _grid_of(document["grid"])
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        masks: dict[str, Bool[np.ndarray, "z y x"]] = {
            name: arrays[f"{name}_mask"] for name in ("label", "anatomical")
        }
        moved = arrays["displacement_xyz_mm"].astype(np.float32)
    planning_from_cbct = RigidTransform(
        matrix=np.array(document["cbct_from_planning"]),
        source_frame=document["planning_frame_of_reference"],
        target_frame=frame,
    ).inverse()
    displacement = Displacement(
        values_xyz_mm=moved,
        grid=_grid_of(document["displacement_grid"]),
        frame_of_reference=frame,
    )
    name = document["roi_name"]
    return Truth(
        cbct_series_uid=document["cbct_series_uid"],
        roi_name=name,
        label=Mask(values=masks["label"], grid=grid, frame_of_reference=frame, name=name),
        anatomical=Mask(values=masks["anatomical"], grid=grid, frame_of_reference=frame, name=name),
        motion=DeformableTransform(rigid=planning_from_cbct, displacement=displacement),
        visible_share=document["visible_share"],
        facts=document["facts"],
    )


def _grid_document(grid: Grid) -> dict[str, object]:
    return {
        "shape_zyx": list(grid.shape_zyx),
        "spacing_xy_mm": list(grid.spacing_xy_mm),
        "origin_xyz_mm": grid.origin_xyz_mm.tolist(),
        "direction": grid.direction.tolist(),
        "offsets_z_mm": grid.offsets_z_mm.tolist(),
    }


def _grid_of(document: dict[str, object]) -> Grid:
    shape = np.asarray(document["shape_zyx"], int)
    spacing = np.asarray(document["spacing_xy_mm"], float)
    return Grid(
        shape_zyx=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing_xy_mm=(float(spacing[0]), float(spacing[1])),
        origin_xyz_mm=np.asarray(document["origin_xyz_mm"]),
        direction=np.asarray(document["direction"]),
        offsets_z_mm=np.asarray(document["offsets_z_mm"]),
    )
