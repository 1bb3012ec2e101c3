"""RT Plans, of any maker, as isocentres in millimetres and references (PS3.3 A.20, C.8.8.9).

A plan serves as evidence: it ties a structure set, and so a CT, to a treatment, and says where
the treatment aims. What is there is taken as it stands or refused with its attribute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contourcast.imaging.dicom.elements import (
    LIMITS,
    Attributes,
    Limits,
    opened,
    read_elements,
    tag_name,
)
from contourcast.imaging.dicom.instance import read_patient, read_study
from contourcast.imaging.errors import DicomError
from contourcast.imaging.plan import XYZ, Plan

RT_PLAN: Final = "1.2.840.10008.5.1.4.1.1.481.5"
GEOMETRY: Final = 0x300A000C
BEAMS: Final = 0x300A00B0
CONTROL_POINTS: Final = 0x300A0111
FRACTION_GROUPS: Final = 0x300A0070
FRACTIONS_PLANNED: Final = 0x300A0078
ISOCENTRE: Final = 0x300A012C
STRUCTURE_SETS: Final = 0x300C0060
REFERENCED_INSTANCE: Final = 0x00081155
# Isocentres are stated with two decimals or more; closer ones are one place.
SAME_PLACE_MM: Final = 0.05
# No patient lies ten metres from the origin.
FARTHEST_MM: Final = 10_000.0


def read_plan(path: Path, *, limits: Limits = LIMITS) -> Plan:
    """Reads a plan's isocentres and what it refers to.

    Args:
        path: The file.
        limits: What it may cost.

    Raises:
        DicomError: Not a plan, damaged, cut short, or with an isocentre that is no place.
    """
    parsed = read_elements(path, limits=limits)
    a = parsed.attributes
    if a.uid(0x00080016, required=True) != RT_PLAN:
        raise DicomError(
            "this is not an RT Plan",
            tag=tag_name(0x00080016),
            uid=a.uid(0x00080016),
            file=a.file,
            remedy="give the plan of the photon or electron treatment",
        )
    notes = list(parsed.notes)
    structure_set = _structure_set(a, notes)
    return Plan(
        sop_instance_uid=a.uid(0x00080018, required=True),
        series_instance_uid=a.uid(0x0020000E, required=True),
        frame_of_reference=a.uid(0x00200052),
        patient=read_patient(a),
        study=read_study(a),
        structure_set_uid=structure_set,
        isocentres_xyz_mm=_isocentres(a, notes),
        label=a.text(0x300A0002),
        date=a.word(0x300A0006),
        time=a.word(0x300A0007),
        intent=a.word(0x300A000A),
        fractions=_fractions(a, notes),
        approval_status=a.word(0x300E0002),
        digest=_digest(path),
        notes=tuple(notes),
    )


def _structure_set(a: Attributes, notes: list[str]) -> str:
    """The one structure set that the plan was made on (PS3.3 C.8.8.9, condition of 300C,0060)."""
    named = [item.uid(REFERENCED_INSTANCE) for item in a.items(STRUCTURE_SETS)]
    found = tuple(dict.fromkeys(uid for uid in named if uid))
    if len(found) > 1:
        raise DicomError(
            f"the plan names {len(found)} structure sets",
            tag=tag_name(STRUCTURE_SETS),
            uid=", ".join(found),
            file=a.file,
            remedy="export the plan again with the one that it was planned on",
        )
    if found:
        return found[0]
    if a.word(GEOMETRY) != "TREATMENT_DEVICE":
        raise DicomError(
            "the plan of a patient names no structure set: it is cut short",
            tag=tag_name(STRUCTURE_SETS),
            uid=a.uid(0x00080018),
            file=a.file,
            remedy="export the plan again",
        )
    notes.append("it was made on a machine alone and names no structure set")
    return ""


def _fractions(a: Attributes, notes: list[str]) -> int | None:
    """How many are planned; a plan that says nonsense of that is a plan all the same."""
    groups = list(a.items(FRACTION_GROUPS))
    try:
        planned = [group.integer(FRACTIONS_PLANNED) for group in groups]
    except DicomError as error:
        notes.append(f"how many fractions are planned {error.cause}")
        return None
    return planned[0] if len(planned) == 1 and (planned[0] or 0) > 0 else None


def _isocentres(a: Attributes, notes: list[str]) -> tuple[XYZ, ...]:
    """Each place that a beam aims at, once."""
    found: list[XYZ] = []
    for point in _control_points(a):
        place = point.numbers(ISOCENTRE, count=3)
        if place is None:
            continue  # stated where it changes, so as a rule at the first point alone
        if max(map(abs, place)) > FARTHEST_MM:
            raise DicomError(
                "an isocentre lies beyond any patient",
                tag=tag_name(ISOCENTRE),
                uid=a.uid(0x00080018),
                file=a.file,
                remedy="export the plan again",
            )
        if not any(_same_place(place, known) for known in found):
            found.append((place[0], place[1], place[2]))
    if not found:
        notes.append("it names no isocentre")
    elif len(found) > 1:
        notes.append(f"its beams aim at {len(found)} isocentres")
    return tuple(found)


def _control_points(a: Attributes) -> Iterator[Attributes]:
    for beam in a.items(BEAMS):
        yield from beam.items(CONTROL_POINTS)


def _same_place(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return max(abs(x - y) for x, y in zip(one, other, strict=True)) <= SAME_PLACE_MM


def _digest(path: Path) -> str:
    """SHA-256 (hex) of the file, in pieces."""
    digest = hashlib.sha256()
    with opened(path) as (stream, _):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
