"""From files to a case: everything is read, and proven to belong together, before work begins."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.registration_in import (
    SpatialRegistration,
    instances,
    read_registration,
)
from contourcast.imaging.dicom.rtstruct_in import (
    read_structure_set,
    reference_notes,
    require_drawn_on,
)
from contourcast.imaging.distance import carry, distance_map, own_grid
from contourcast.imaging.errors import ContourcastError, FrameMismatchError, InputError
from contourcast.imaging.rasterise import Note, raster_notes, rasterise
from contourcast.imaging.source import Patient
from contourcast.imaging.structures import Roi, StructureSet
from contourcast.imaging.trace import trace
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume
from contourcast.propagate import Case

# Registrations of one tie that lie closer than this everywhere say the same.
SAME_PLACE_MM: Final = 0.1
# The share of a prior that may have no place on the planning CT before a person has to look.
LOST_ON_THE_WAY: Final = 0.02


def read_case(
    *,
    planning_ct: Path | Sequence[Path],
    structures: Path,
    cbct: Path | Sequence[Path],
    roi: str,
    prior_structures: Path | None = None,
    registrations: Sequence[Path] = (),
    vouched: str = "",
) -> Case:
    """Reads what a propagation needs.

    Args:
        planning_ct: A folder, or the files of one series.
        structures: The structure set of the planning CT.
        cbct: A folder, or the files of one series.
        roi: Name or ``#number`` of the ROI to carry.
        prior_structures: Where the ROI is taken from instead; in the planning CT's frame, or in
            one that a registration ties to it.
        registrations: Spatial Registrations: one that ties the planning CT's frame to the CBCT's
            is a start; one that ties the prior's frame brings the prior home.
        vouched: The user's reason to accept what the references do not prove.

    Raises:
        ContourcastError: Something cannot be read, or does not belong together.
    """
    planning = read_ct_series(planning_ct, role="planning CT")
    today = read_ct_series(cbct, role="CBCT")
    drawn = read_structure_set(structures)
    known = [read_registration(path) for path in registrations]
    source = drawn if prior_structures is None else read_structure_set(prior_structures)

    _require_another_scan(planning, today)
    claims: list[Callable[[], None]] = [partial(require_drawn_on, drawn, planning)]
    home = None if source is drawn else _home_by_images(source, planning, known)
    if (
        source is not drawn
        and source.frame_of_reference == planning.frame_of_reference
        and not home
    ):
        claims.append(partial(require_drawn_on, source, planning))
    objects = [("structure set", drawn.patient), ("prior", source.patient)]
    objects += [("registration", each.patient) for each in known]
    objects += [("planning CT", planning.source.patient)] if planning.source else []
    for what, patient in objects:
        claims += [
            partial(_require_patient, patient, planning, f"{what} and planning CT"),
            partial(_require_patient, patient, today, f"{what} and CBCT"),
        ]
    doubts = []
    for claim in claims:
        try:
            claim()
        except ContourcastError as doubt:
            if not vouched:
                raise
            doubts.append(doubt.cause)
    prior = source.roi(roi)
    if vouched and source is drawn and instances(planning) >= source.referenced_sop_uids > set():
        # its frame of reference was rewritten on the way: it is these images that it was drawn on
        prior = replace(prior, frame_of_reference=planning.frame_of_reference)
    odd: list[Note] = []
    if home or prior.frame_of_reference != planning.frame_of_reference:
        tie = home or _tie_of_prior(prior, planning, known)
        odd = [*raster_notes(prior, own_grid(prior)), *_cut_on_the_way(prior, planning, tie)]
        prior = _brought_home(prior, planning, tie)
    if not prior.loops:
        raise InputError(
            f"ROI '{prior.name}' encloses nothing on the planning CT",
            uid=source.sop_instance_uid,
            remedy="choose a ROI with closed contours, drawn where the planning CT is",
        )
    _require_useful(known, planning, today, source, source.roi(roi).frame_of_reference)
    odd += raster_notes(prior, planning.grid)
    return Case(
        planning_ct=planning,
        cbct=today,
        prior=prior,
        prior_source_uid=source.sop_instance_uid,
        prior_digest=source.digest,
        start=_start(planning, today, known),
        vouched=f"{vouched} (against: {'; '.join(doubts)})" if doubts else vouched,
        doubts=(
            *(f"a person vouched against this: {doubt}" for doubt in dict.fromkeys(doubts)),
            *(f"of the prior: {note.text}" for note in odd if note.lost),
        ),
        notes=(
            *(note.text for note in odd),
            *(reference_notes(drawn, planning) if source is drawn else ()),
            *source.notes,
        ),
    )


def _require_another_scan(planning_ct: Volume, cbct: Volume) -> None:
    """Today's scan is another one than the one that was planned on.

    Raises:
        InputError: They share images.
    """
    if shared := instances(planning_ct) & instances(cbct):
        raise InputError(
            f"the CBCT given is the planning CT: they share {len(shared)} images",
            uid=min(shared),
            remedy="give today's scan: --cbct",
        )


def _require_patient(patient: Patient, scan: Volume, what: str) -> None:
    """Different patient IDs are two patients until somebody vouches; an empty one says nothing.

    Raises:
        InputError: Both are stated and differ. The IDs themselves are not told.
    """
    if scan.source is None:
        return
    first, second = patient.patient_id.strip(), scan.source.patient.patient_id.strip()
    if first and second and first != second:
        raise InputError(
            f"{what} state different patients",
            tag="(0010,0020) Patient ID",
            uid=scan.source.series_instance_uid,
            remedy="check the export; if it is one patient after all, vouch for it",
        )


def _home_by_images(
    source: StructureSet, planning_ct: Volume, known: Sequence[SpatialRegistration]
) -> RigidTransform | None:
    """What brings a prior home that was drawn on another scan which states the planning CT's frame.

    Some machines give their CBCTs the plan's frame of reference: it is the images that tell.
    """
    frame, here = planning_ct.frame_of_reference, instances(planning_ct)
    drawn_on = source.referenced_sop_uids
    if source.frame_of_reference != frame or not drawn_on or drawn_on & here:
        return None
    found = {}
    for registration in known:
        with contextlib.suppress(InputError, FrameMismatchError):
            uid = registration.sop_instance_uid
            found[uid] = registration.between_images(target=here, source=drawn_on, frame=frame)
    return _agreed(found, planning_ct)


def _tie_of_prior(
    prior: Roi, planning_ct: Volume, known: Sequence[SpatialRegistration]
) -> RigidTransform:
    """What brings a prior home that was drawn in another frame of reference.

    Raises:
        FrameMismatchError: No registration ties the two frames; nobody can vouch for a place.
    """
    frame = planning_ct.frame_of_reference
    tie = _tie(known, planning_ct, source_frame=prior.frame_of_reference)
    if tie is None:
        raise FrameMismatchError(
            "the prior is drawn in another frame of reference than the planning CT's",
            tag="(3006,0024) Referenced Frame of Reference UID",
            uid=f"{prior.frame_of_reference} and {frame}",
            remedy="give the Spatial Registration that ties the two: --registration",
        )
    return tie


def _brought_home(prior: Roi, planning_ct: Volume, tie: RigidTransform) -> Roi:
    """The prior where the planning CT has it."""
    frame = planning_ct.frame_of_reference
    shape = distance_map(prior, grid=own_grid(prior))
    at_home = carry(shape, tie.inverse(), onto=planning_ct.grid)
    return replace(prior, frame_of_reference=frame, contours=trace(at_home))


def _cut_on_the_way(prior: Roi, planning_ct: Volume, tie: RigidTransform) -> list[Note]:
    """What of a prior has no place on the planning CT, where that is more than next to nothing.

    Asked of the prior's own voxels: a small one's volume changes by more with another grid.
    """
    own, there = own_grid(prior), planning_ct.grid
    k, j, i = np.nonzero(rasterise(prior, own).values)
    if not len(k):
        return []
    index = there.index(tie.apply(own.world(np.column_stack((i, j, k)))))
    beyond = ((index < -0.5) | (index > np.array(there.shape_zyx[::-1]) - 0.5)).any(axis=1)
    share = float(np.average(beyond, weights=own.thickness_z_mm[k]))
    if share <= LOST_ON_THE_WAY:
        return []
    sentence = f"{100 * share:.0f} % of it lies beyond the edge of the planning CT, and is cut off"
    return [Note(sentence, lost=True)]


def _start(
    planning_ct: Volume, cbct: Volume, known: Sequence[SpatialRegistration]
) -> RigidTransform | None:
    if planning_ct.frame_of_reference == cbct.frame_of_reference:
        return _between_images(known, planning_ct, cbct)
    return _tie(known, planning_ct, source_frame=cbct.frame_of_reference)


def _between_images(
    known: Sequence[SpatialRegistration], planning_ct: Volume, cbct: Volume
) -> RigidTransform | None:
    """Where both scans state one frame: what a registration says of their images, if one does."""
    found = {}
    for registration in known:
        with contextlib.suppress(InputError, FrameMismatchError):
            uid = registration.sop_instance_uid
            found[uid] = registration.between_scans(target=planning_ct, source=cbct)
    return _agreed(found, planning_ct)


def _require_useful(
    known: Sequence[SpatialRegistration],
    planning_ct: Volume,
    cbct: Volume,
    prior: StructureSet,
    frame: str,
) -> None:
    """A registration that was given and says nothing here was given by mistake.

    Raises:
        FrameMismatchError: One ties neither the CBCT's nor the prior's frame to the planning CT's.
    """
    planning = planning_ct.frame_of_reference
    wanted = {cbct.frame_of_reference, frame} - {planning}
    for each in known:
        if planning == cbct.frame_of_reference and _between_images([each], planning_ct, cbct):
            continue
        if _home_by_images(prior, planning_ct, [each]):
            continue
        if planning not in each.frames or not wanted & set(each.frames):
            raise FrameMismatchError(
                "a registration ties nothing that is used here",
                uid=" and ".join(each.frames),
                remedy=f"give one between {planning} and {' or '.join(wanted) or 'another frame'}",
            )


def _tie(
    known: Sequence[SpatialRegistration], planning_ct: Volume, *, source_frame: str
) -> RigidTransform | None:
    """What brings points of another frame to the planning CT's."""
    frame = planning_ct.frame_of_reference
    if frame == source_frame:  # one UID for both scans is a claim, and no registration
        return None
    found = {
        each.sop_instance_uid: each.between(target_frame=frame, source_frame=source_frame)
        for each in known
        if {frame, source_frame} <= set(each.frames)
    }
    return _agreed(found, planning_ct)


def _agreed(found: Mapping[str, RigidTransform], planning_ct: Volume) -> RigidTransform | None:
    """What registrations say of one tie to the planning CT, by UID; their order does not matter.

    Raises:
        InputError: Two bring one point to places apart, anywhere in the planning CT.
    """
    said = sorted(found.items())
    corners = product(*((0, size - 1) for size in planning_ct.grid.shape_zyx[::-1]))
    corners_xyz_mm = planning_ct.grid.world(np.array(list(corners)))
    for uid, other in said[1:]:
        first_uid, first = said[0]
        apart_xyz_mm = first.inverse().apply(corners_xyz_mm) - other.inverse().apply(corners_xyz_mm)
        if (apart_mm := np.linalg.norm(apart_xyz_mm, axis=1).max()) > SAME_PLACE_MM:
            raise InputError(
                f"two registrations contradict each other by up to {apart_mm:.1f} mm",
                uid=f"{first_uid} and {uid}",
                remedy="give the one that is right",
            )
    return said[0][1] if said else None
