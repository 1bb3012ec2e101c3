"""What a radiotherapy plan says of where it aims, and of what it was planned on."""

from __future__ import annotations

from dataclasses import dataclass, field

from contourcast.imaging.source import Patient, Study

XYZ = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An RT Plan, as far as place and references go; doses and beams stay in the file.

    Attributes:
        frame_of_reference: Of the isocentres; empty when the file states none.
        structure_set_uid: The structure set that it was planned on; empty for a plan that is
            made on a machine alone.
        isocentres_xyz_mm: LPS mm, each once, in the order of the file.
        date: DA text, (300A,0006), as it stands.
        time: TM text, (300A,0007), as it stands.
        intent: (300A,000A), such as CURATIVE or VERIFICATION; empty when the file does not say.
        fractions: How many are planned: (300A,0078) of its one fraction group; None when the file
            does not say, or has several groups.
        approval_status: (300E,0002), such as APPROVED; empty when the file does not say.
        digest: SHA-256 (hex) of the file.
        notes: What the reader found odd, a sentence each.
    """

    sop_instance_uid: str
    series_instance_uid: str
    frame_of_reference: str
    patient: Patient = field(repr=False)
    study: Study
    structure_set_uid: str
    isocentres_xyz_mm: tuple[XYZ, ...] = ()
    label: str = field(default="", repr=False)
    date: str = ""
    time: str = ""
    intent: str = ""
    fractions: int | None = None
    approval_status: str = ""
    digest: str = ""
    notes: tuple[str, ...] = ()
