"""Spatial Registrations, of any maker, as rigid transforms between frames (PS3.3 C.20.2).

An object establishes a registered frame R, which its header names. Each item holds a matrix that
takes points of the item's frame *to* R, whichever of the images the maker calls fixed; R itself
may have an item (the identity) or none. An item may name its images instead of a frame (table
C.20.2-1: either identifies it), as where two scans that moved apart state one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from contourcast.imaging.dicom.elements import (
    LIMITS,
    Attributes,
    Limits,
    read_elements,
    tag_name,
)
from contourcast.imaging.dicom.instance import (
    DEFORMABLE_REGISTRATION,
    RAW_DATA,
    SPATIAL_REGISTRATION,
    read_patient,
    read_study,
)
from contourcast.imaging.errors import DicomError, FrameMismatchError
from contourcast.imaging.source import Patient, Study
from contourcast.imaging.transform import RigidTransform
from contourcast.imaging.volume import Volume

FRAME: Final = 0x00200052
REFERENCED_IMAGES: Final = 0x00081140
MATRIX: Final = 0x300600C6
COMMENT: Final = 0x300600C8
# CLINICAL_SERVICE §2.3: a determinant off 1 by more is a scale.
DETERMINANT: Final = 1e-4
# Matrices written with four decimals are off orthonormal by 2 x 5e-5 in each of three products.
ORTHONORMAL: Final = 3e-4
# Ten digits, as most systems write them; what is coarser is set right and noted.
NOTED: Final = 1e-8
# No two scans of one patient are ten metres apart.
FARTHEST_MM: Final = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Registered:
    """One result of a registration object.

    Attributes:
        number: From 1, in the order of the file.
        comment: What its maker calls it, such as ``Correction``.
        transform: Takes points of its frame to the registered frame; ``source_frame`` is empty
            where the item names images alone.
        images: SOP Instance UIDs that the item names instead of a frame.
    """

    number: int
    comment: str
    transform: RigidTransform
    images: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SpatialRegistration:
    """A Spatial Registration object.

    Attributes:
        frame_of_reference: The registered frame R.
        results: One for each frame or set of images, or several that their comments tell apart.
        notes: What the reader found odd, a sentence each.
    """

    sop_instance_uid: str
    series_instance_uid: str
    frame_of_reference: str
    patient: Patient = field(repr=False)
    study: Study
    results: tuple[Registered, ...]
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> tuple[str, ...]:
        """Every frame of reference that it speaks of, the registered one first."""
        others = (r.transform.source_frame for r in self.results if r.transform.source_frame)
        return tuple(dict.fromkeys((self.frame_of_reference, *others)))

    def between(self, *, target_frame: str, source_frame: str, result: str = "") -> RigidTransform:
        """The transform that takes points of one frame to the other: ``M_target^-1 M_source``.

        Args:
            target_frame: Frame of Reference UID of the points it gives.
            source_frame: Frame of Reference UID of the points it takes.
            result: Which one, where a frame has several: its comment, or its number as ``#2``.

        Raises:
            FrameMismatchError: The object says nothing of one of the frames.
            DicomError: A frame has several results and none is chosen; lists them.
        """
        to_target, to_source = (
            self._to_registered(frame, result) for frame in (target_frame, source_frame)
        )
        return to_target.inverse() @ to_source

    def between_scans(self, *, target: Volume, source: Volume, result: str = "") -> RigidTransform:
        """The transform that takes points of one scan to the other.

        As `between`, and items that name a scan's images instead of its frame speak of it too.
        Of two scans that state one frame they alone can: the frame does not tell which is which.

        Args:
            target: The scan whose points it gives.
            source: The scan whose points it takes.
            result: Which one, where a scan has several: its comment, or its number as ``#2``.

        Raises:
            FrameMismatchError: The object says nothing of one of the scans.
            DicomError: A scan has several results and none is chosen; lists them.
        """
        if target.frame_of_reference == source.frame_of_reference:
            return self.between_images(
                target=instances(target),
                source=instances(source),
                frame=source.frame_of_reference,
                result=result,
            )
        frames = (target.frame_of_reference, source.frame_of_reference)
        to_target, to_source = (
            self._to_registered(frame, result, images=instances(scan))
            for frame, scan in zip(frames, (target, source), strict=True)
        )
        return replace(
            to_target.inverse() @ to_source,
            source_frame=source.frame_of_reference,
            target_frame=target.frame_of_reference,
        )

    def between_images(
        self,
        *,
        target: frozenset[str],
        source: frozenset[str],
        frame: str,
        result: str = "",
    ) -> RigidTransform:
        """The transform between two sets of images that state one frame of reference.

        Args:
            target: SOP Instance UIDs of the images whose points it gives.
            source: Of those whose points it takes.
            frame: What both state.
            result: Which one, where a set has several: its comment, or its number as ``#2``.

        Raises:
            FrameMismatchError: The object says nothing of one of them.
            DicomError: One has several results and none is chosen; lists them.
        """
        to_target, to_source = (
            self._to_registered("", result, images=images) for images in (target, source)
        )
        between = to_target.inverse() @ to_source
        return replace(between, source_frame=frame, target_frame=frame)

    def _to_registered(
        self, frame: str, result: str, *, images: frozenset[str] | None = None
    ) -> RigidTransform:
        """What takes points of a frame, or of images named instead of one, to the registered."""
        found = [r for r in self.results if _speaks_of(r, frame, images or frozenset())]
        chosen = [r for r in found if result and result in (r.comment, f"#{r.number}")]
        if len(chosen) == 1 or len(found) == 1:
            return (chosen or found)[0].transform
        if found:
            listed = ", ".join(f"#{r.number} '{r.comment}'" for r in found)
            raise DicomError(
                f"the registration holds {len(found)} results for one "
                f"{'frame of reference' if frame else 'scan'}",
                tag=tag_name(COMMENT),
                uid=frame,
                remedy=f"choose one: {listed}",
            )
        if frame and frame == self.frame_of_reference:
            return RigidTransform.identity(source_frame=frame, target_frame=frame)
        if images is not None and not frame:
            raise FrameMismatchError(
                "both scans state one frame of reference, and the registration does not name the "
                "images of each",
                tag=tag_name(REFERENCED_IMAGES),
                uid=self.sop_instance_uid,
                remedy="give one whose items name their images",
            )
        raise FrameMismatchError(
            "the registration says nothing of this frame of reference",
            tag=tag_name(FRAME),
            uid=frame or "none",
            remedy=f"it relates {' and '.join(self.frames)}",
        )


def instances(scan: Volume) -> frozenset[str]:
    """SOP Instance UIDs of a scan's slices."""
    return frozenset(s.sop_instance_uid for s in scan.source.slices) if scan.source else frozenset()


def _speaks_of(result: Registered, frame: str, images: frozenset[str]) -> bool:
    named = result.transform.source_frame
    return named == frame if named else not images.isdisjoint(result.images)


def read_registration(path: Path, *, limits: Limits = LIMITS) -> SpatialRegistration:
    """Reads a rigid Spatial Registration.

    Args:
        path: The file.
        limits: What it may cost.

    Raises:
        DicomError: Another kind of object, damaged, or with a matrix that is not rigid.
    """
    parsed = read_elements(path, limits=limits)
    a = parsed.attributes
    _require_spatial_registration(a)
    notes = list(parsed.notes)
    registered = a.uid(FRAME, required=True)
    results: list[Registered] = []
    for item in a.items(0x00700308):
        frame = item.uid(FRAME)
        images = () if frame else _named_images(item)
        if not frame and not images:
            notes.append("an item that names neither a frame of reference nor images was left out")
            continue
        for matrix_registration in item.items(0x00700309):
            results.append(
                Registered(
                    number=len(results) + 1,
                    comment=matrix_registration.text(COMMENT),
                    transform=RigidTransform(
                        matrix=_rigid(matrix_registration, frame or images[0], notes),
                        source_frame=frame,
                        target_frame=registered,
                    ),
                    images=images,
                )
            )
    if not results:
        raise DicomError(
            "the registration holds no matrix",
            tag=tag_name(0x00700308),
            uid=a.uid(0x00080018),
            file=a.file,
            remedy="export the registration again",
        )
    return SpatialRegistration(
        sop_instance_uid=a.uid(0x00080018, required=True),
        series_instance_uid=a.uid(0x0020000E, required=True),
        frame_of_reference=registered,
        patient=read_patient(a),
        study=read_study(a),
        results=tuple(results),
        notes=tuple(notes),
    )


def _named_images(item: Attributes) -> tuple[str, ...]:
    uids = (image.uid(0x00081155) for image in item.items(REFERENCED_IMAGES))
    return tuple(uid for uid in uids if uid)


def _require_spatial_registration(a: Attributes) -> None:
    sop_class = a.uid(0x00080016, required=True)
    reasons = {
        RAW_DATA: "this is raw data of the linac (an RPS file), not a Spatial Registration",
        DEFORMABLE_REGISTRATION: "this is a Deformable Spatial Registration, which is not read",
    }
    if sop_class != SPATIAL_REGISTRATION:
        raise DicomError(
            reasons.get(sop_class, "this is not a Spatial Registration"),
            tag=tag_name(0x00080016),
            uid=sop_class,
            file=a.file,
            remedy="export the registration as DICOM Spatial Registration, rigid",
        )


def _rigid(item: Attributes, uid: str, notes: list[str]) -> Float[np.ndarray, "4 4"]:
    """All matrices of a registration as one motion, the first item applied first (C.20.2.1.1)."""
    matrices = item.items(0x0070030A)
    if not matrices:
        raise item.error("is missing or empty", 0x0070030A, uid=uid)
    if len(matrices) > 1:
        notes.append(f"{len(matrices)} matrices make one motion, the first item applied first")
    product = np.eye(4)
    for each in matrices:
        product = _matrix(each, uid, notes) @ product
    product[3] = [0, 0, 0, 1]
    return product


def _matrix(item: Attributes, uid: str, notes: list[str]) -> Float[np.ndarray, "4 4"]:
    numbers = item.numbers(MATRIX, count=16)
    if numbers is None:
        raise item.error("is missing", MATRIX, uid=uid)
    matrix = np.reshape(numbers, (4, 4))
    linear = matrix[:3, :3]
    error = float(np.abs(linear.T @ linear - np.eye(3)).max())
    scale = float(np.linalg.det(linear))
    if (
        not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-9)
        or not abs(scale - 1) <= DETERMINANT
        or not error <= ORTHONORMAL
    ):
        stated = item.word(0x0070030C) or "no type"
        raise DicomError(
            f"the matrix (stated as {stated}) is not a rigid motion: determinant {scale:.4g}, "
            f"axes off by {error:.2g}",
            tag=tag_name(MATRIX),
            uid=uid,
            file=item.file,
            remedy="export a registration without scaling, shear or mirroring",
        )
    if np.abs(matrix[:3, 3]).max() > FARTHEST_MM:
        raise DicomError(
            "the matrix moves beyond any patient", tag=tag_name(MATRIX), uid=uid, file=item.file
        )
    if error > NOTED:
        notes.append(f"a rotation written with few digits (off by {error:.1g}) was set right")
    left, _, right = np.linalg.svd(linear)  # the nearest rotation
    rigid = matrix.copy()
    rigid[:3, :3] = left @ right
    return rigid
