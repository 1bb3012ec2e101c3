"""Where a scan came from: what DICOM says of patient, study, series and slices.

Carried unchanged from what was read to what is written, so that a structure set lands at the
right patient. Nothing here may reach a log, an error or a figure but UIDs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from contourcast.imaging.grid import frozen_array


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Patient module, as text in Unicode; empty where the file is empty.

    Attributes:
        further: What else is said of the patient, keyword and text, for an archive compares it.
        deidentified_by: Codes of how the identity was removed: value, scheme, meaning.
    """

    name: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    issuer: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)
    further: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    deidentified_by: tuple[tuple[str, str, str], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Study:
    """General Study module.

    Attributes:
        further: What else is said at the time of the study, such as the patient's age.
    """

    instance_uid: str
    date: str = ""
    time: str = ""
    study_id: str = ""
    accession_number: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    referring_physician: str = field(default="", repr=False)
    further: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceSource:
    """One slice: its instance and the position that its file states (LPS mm, shape (3,))."""

    sop_instance_uid: str
    position_xyz_mm: Float[np.ndarray, " 3"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "position_xyz_mm", frozen_array(self.position_xyz_mm))


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesSource:
    """A CT series as it lies in an archive.

    Attributes:
        slices: In the order of the volume's slices, one for each.
        digest: SHA-256 (hex) over instance UIDs and decoded pixels, in that order.
        notes: What the reader left out, repaired or found odd, a sentence each.
    """

    patient: Patient
    study: Study
    series_instance_uid: str
    sop_class_uid: str
    slices: tuple[SliceSource, ...]
    digest: str
    series_number: str = ""
    series_description: str = field(default="", repr=False)
    series_date: str = ""
    series_time: str = ""
    manufacturer: str = ""
    model: str = ""
    patient_position: str = ""
    body_part: str = ""
    notes: tuple[str, ...] = ()
