"""RT Structure Sets, of any maker, as contours in millimetres (PS3.3 A.19, C.8.8.5, C.8.8.6).

What the file says is taken as it stands or refused with ROI number and attribute; nothing is
closed, filled, sorted or moved. Oddities that change no geometry are said in the notes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, get_args

import numpy as np
from jaxtyping import Float

from contourcast.imaging.dicom.elements import (
    LIMITS,
    Attributes,
    Limits,
    opened,
    read_elements,
    tag_name,
)
from contourcast.imaging.dicom.instance import STRUCTURE_SET, read_patient, read_study
from contourcast.imaging.errors import DicomError, FrameMismatchError
from contourcast.imaging.structures import Contour, GeometricType, Roi, StructureSet
from contourcast.imaging.volume import Volume

CONTOUR_DATA: Final = 0x30060050
CONTOUR_TYPE: Final = 0x30060042
NUMBER_OF_POINTS: Final = 0x30060046
ROI_NUMBER: Final = 0x30060022
REFERENCED_ROI: Final = 0x30060084
GEOMETRIC_TYPES: Final = frozenset(get_args(GeometricType))
# Contour Data is DS; these are met as well and hold the same text (PS3.5 §6.2).
TEXT_VRS: Final = frozenset({"", "DS", "UN", "LT", "ST", "UT", "LO", "SH", "OB"})
# No patient lies ten metres from the origin.
FARTHEST_MM: Final = 10_000.0


def read_structure_set(path: Path, *, limits: Limits = LIMITS) -> StructureSet:
    """Reads a structure set; ROIs without contours are legal and stay.

    Args:
        path: The file.
        limits: What it may cost.

    Raises:
        DicomError: Not a structure set, damaged, without ROIs, or with contours that are no
            contours; names the ROI by its number.
    """
    parsed = read_elements(path, limits=limits)
    a = parsed.attributes
    if a.uid(0x00080016, required=True) != STRUCTURE_SET:
        raise DicomError(
            "this is not an RT Structure Set",
            tag=tag_name(0x00080016),
            uid=a.uid(0x00080016),
            file=a.file,
            remedy="give the structure set of the planning CT",
        )
    for tag in (0x30060020, 0x30060039):  # one ROI may lack contours, not the whole file
        if tag not in a:
            raise DicomError(
                "the structure set has no list of ROIs or none of contours: it is cut short",
                tag=tag_name(tag),
                uid=a.uid(0x00080018),
                file=a.file,
                remedy="export the structure set again",
            )
    notes = list(parsed.notes)
    frame = _frame_of_reference(a, notes)
    series_uids, sop_uids = _references(a, notes)
    return StructureSet(
        sop_instance_uid=a.uid(0x00080018, required=True),
        series_instance_uid=a.uid(0x0020000E, required=True),
        frame_of_reference=frame,
        patient=read_patient(a),
        study=read_study(a),
        rois=_rois(a, frame, notes),
        label=a.text(0x30060002),
        name=a.text(0x30060004),
        date=a.word(0x30060008),
        time=a.word(0x30060009),
        approval_status=a.word(0x300E0002),
        referenced_series_uids=series_uids,
        referenced_sop_uids=sop_uids,
        digest=_digest(path),
        notes=tuple(notes),
    )


def require_drawn_on(structure_set: StructureSet, planning_ct: Volume) -> None:
    """Refuses contours that were not drawn on this scan.

    Both must state the same frame of reference. Where the structure set also names images, one
    of them at least must be of this series: phases of a 4DCT and a CBCT that was resampled to
    the plan share a frame, and are not the scan that was contoured. Never is the list of named
    images taken for complete.

    Raises:
        FrameMismatchError: They do not belong together; names the UIDs of both.
    """
    ours, theirs = planning_ct.frame_of_reference, structure_set.frame_of_reference
    if not ours or ours != theirs:
        raise FrameMismatchError(
            "the structure set was not drawn in the planning CT's frame of reference",
            tag=tag_name(0x00200052),
            uid=f"structure set {theirs or 'states none'}, planning CT {ours or 'states none'}",
            remedy="give the CT that it was drawn on, or register the two",
        )
    source = planning_ct.source
    named = structure_set.referenced_series_uids or structure_set.referenced_sop_uids
    if source is None or not named:
        return
    slices = {s.sop_instance_uid for s in source.slices}
    if source.series_instance_uid in structure_set.referenced_series_uids:
        return
    if slices & structure_set.referenced_sop_uids:
        return
    raise FrameMismatchError(
        "the structure set was drawn on other images of the same frame of reference",
        tag=f"{tag_name(0x30060010)}, {tag_name(0x30060016)}",
        uid=f"structure set on {', '.join(structure_set.referenced_series_uids) or 'no series'}, "
        f"planning CT {source.series_instance_uid}",
        remedy="give the series that it was drawn on",
    )


def reference_notes(structure_set: StructureSet, planning_ct: Volume) -> tuple[str, ...]:
    """What is odd about the references of a structure set that was drawn on this scan.

    A sentence each: another series is named for these slices, or slices are named that are not
    here (lost on the way, so that contours on them have no image).
    """
    source = planning_ct.source
    if source is None:
        return ()
    notes = []
    named = structure_set.referenced_series_uids
    if named and source.series_instance_uid not in named:
        notes.append("it names another series than that of its slices")
    missing = structure_set.referenced_sop_uids - {s.sop_instance_uid for s in source.slices}
    if missing:
        notes.append(
            f"{len(missing)} of the {len(structure_set.referenced_sop_uids)} slices that it names "
            "are not in the scan"
        )
    return tuple(notes)


def _digest(path: Path) -> str:
    with opened(path) as (stream, _):
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _frame_of_reference(a: Attributes, notes: list[str]) -> str:
    """The frame that the set was drawn in: where it stands first of three places."""
    referenced = [item.uid(0x00200052) for item in a.items(0x30060010)]
    of_rois = [item.uid(0x30060024) for item in a.items(0x30060020)]
    stated = [uid for uid in (*referenced, a.uid(0x00200052), *of_rois) if uid]
    if not stated:
        notes.append("no frame of reference is stated")
        return ""
    if len(set(stated)) > 1:
        notes.append(f"{len(set(stated))} frames of reference are named; the first is the set's")
    return stated[0]


def _references(a: Attributes, notes: list[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Series and slices that the set names, from anywhere in the file."""
    series: list[str] = []
    images: list[str] = []
    empty = 0
    for item in _descend(a, 0x30060010, 0x30060012, 0x30060014):
        series.append(item.uid(0x0020000E))
        for image in item.items(0x30060016):
            images.append(image.uid(0x00081155))
            empty += not images[-1]
    for image in _descend(a, 0x30060039, 0x30060040, 0x30060016):
        images.append(image.uid(0x00081155))
        empty += not images[-1]
    if empty:
        notes.append(f"{empty} references to images are empty")
    found = frozenset(uid for uid in images if uid)
    named = tuple(dict.fromkeys(uid for uid in series if uid))
    if not found and not named:
        notes.append("it names no images: it can be matched by frame of reference alone")
    return named, found


def _descend(a: Attributes, *tags: int) -> Iterator[Attributes]:
    """All items at the end of a path of nested sequences."""
    level: Iterable[Attributes] = (a,)
    for tag in tags:
        level = [inner for item in level for inner in item.items(tag)]
    yield from level


def _rois(a: Attributes, frame: str, notes: list[str]) -> tuple[Roi, ...]:
    """The ROIs of the list, each with what the two other lists say of its number."""
    contours = _by_number(a, 0x30060039, "contours", notes)
    observations = _by_number(a, 0x30060080, "observations", notes)
    rois: list[Roi] = []
    for item in a.items(0x30060020):
        number = item.integer(ROI_NUMBER)
        if number is None or any(r.number == number for r in rois):
            raise item.error(
                "is missing" if number is None else f"stands twice with the value {number}",
                ROI_NUMBER,
                uid=a.uid(0x00080018),
                remedy="export the structure set again",
            )
        drawn = contours.pop(number, None)
        observed = observations.pop(number, None)
        rois.append(
            Roi(
                number=number,
                name=item.text(0x30060026),
                contours=() if drawn is None else _contours(drawn, number, notes),
                frame_of_reference=item.uid(0x30060024) or frame,
                interpreted_type="" if observed is None else observed.word(0x300600A4),
                generation_algorithm=item.word(0x30060036),
                description=item.text(0x30060028),
                color_rgb=None if drawn is None else _color(drawn),
            )
        )
    if contours:
        notes.append(f"contours of ROIs that are not listed were left out: {sorted(contours)}")
    return tuple(rois)


def _by_number(a: Attributes, tag: int, what: str, notes: list[str]) -> dict[int, Attributes]:
    """Items of a list by the ROI number that they refer to."""
    found: dict[int, Attributes] = {}
    for item in a.items(tag):
        number = item.integer(REFERENCED_ROI)
        if number is None:
            notes.append(f"{what} that name no ROI were left out")
        elif number not in found:
            found[number] = item
        elif what == "contours":
            raise item.error(f"stands twice with the value {number}", REFERENCED_ROI)
    return found


def _contours(drawn: Attributes, number: int, notes: list[str]) -> tuple[Contour, ...]:
    """The contours of one ROI, in the file's order."""
    found = []
    for n, item in enumerate(drawn.items(0x30060040), start=1):
        kind = item.word(CONTOUR_TYPE)
        if kind not in GEOMETRIC_TYPES:
            raise _unreadable(item, CONTOUR_TYPE, number, n, "its geometric type is unknown")
        points = _points(item, number, n, notes)
        if kind.startswith("CLOSED") and len(points) > 1 and (points[0] == points[-1]).all():
            points = points[:-1]  # the first point repeated to close the loop
        images = item.items(0x30060016)
        found.append(
            Contour(
                points_xyz_mm=points,
                geometric_type=kind,  # type: ignore[arg-type]  # one of GEOMETRIC_TYPES
                sop_instance_uid=images[0].uid(0x00081155) if images else "",
            )
        )
    return tuple(found)


def _points(
    item: Attributes, number: int, n: int, notes: list[str]
) -> Float[np.ndarray, "points 3"]:
    """Contour Data as rows of x, y, z."""
    element = item.elements.get(CONTOUR_DATA)
    if element is None or not element.value:
        raise _unreadable(item, CONTOUR_DATA, number, n, "it has no points")
    if element.vr not in TEXT_VRS:
        raise _unreadable(item, CONTOUR_DATA, number, n, f"its points are written as {element.vr}")
    if element.vr not in ("", "DS"):
        note = f"Contour Data is written as {element.vr} instead of DS"
        if note not in notes:
            notes.append(note)
    try:
        values = item.numbers(CONTOUR_DATA) or ()
    except DicomError as error:
        raise _unreadable(
            item, CONTOUR_DATA, number, n, "it has something that is no number"
        ) from error
    if not values or len(values) % 3:
        raise _unreadable(
            item, CONTOUR_DATA, number, n, f"{len(values)} numbers are no points in space"
        )
    points = np.array(values).reshape(-1, 3)
    if np.abs(points).max() > FARTHEST_MM:
        raise _unreadable(item, CONTOUR_DATA, number, n, "it lies beyond any patient")
    stated = item.integer(NUMBER_OF_POINTS)
    if stated is not None and stated != len(points):
        raise _unreadable(
            item,
            NUMBER_OF_POINTS,
            number,
            n,
            f"{stated} points are stated, {len(points)} are there",
        )
    return points


def _unreadable(item: Attributes, tag: int, number: int, n: int, cause: str) -> DicomError:
    return DicomError(
        f"contour {n} of ROI number {number} cannot be read: {cause}",
        tag=tag_name(tag),
        file=item.file,
        remedy="export the structure set again",
    )


def _color(drawn: Attributes) -> tuple[int, int, int] | None:
    try:
        color = drawn.numbers(0x3006002A, count=3)
    except DicomError:  # a colour is worth no refusal
        return None
    return None if color is None else (int(color[0]), int(color[1]), int(color[2]))
