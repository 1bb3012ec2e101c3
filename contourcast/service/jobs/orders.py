"""From a request to an order: which files, exactly, and everything else that the result depends on.

An order names files by their digests, so it means the same tomorrow, whatever has arrived since.
Its own digest is the id of the propagation: the same order is the same job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from pydantic import BaseModel, ConfigDict, Field

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.imaging.structures import StructureSet
from contourcast.imaging.transform import RigidTransform
from contourcast.propagate import ALL_METHODS, KNOWN_METHODS, Case, Settings, is_network
from contourcast.registration.methods import METHODS
from contourcast.registration.result import Focus
from contourcast.registration.settings import RegistrationSettings
from contourcast.service.archive import Archive, Kept
from contourcast.service.jobs.inputs import read_case
from contourcast.service.problems import NotFoundError

# Part of every order: raised when the same inputs no longer give the same result.
ORDER_VERSION: Final = 2
# Of a start that a person gave: far below what anybody sees, and the same on every machine.
START_DECIMALS: Final = 9
# The number of the one ROI of a set that was signed here.
SIGNED_ROI: Final = 1
Uid = str

log = structlog.get_logger()


class PropagationRequest(BaseModel):
    """What to draw, on which scan, from which contour."""

    model_config = ConfigDict(extra="forbid")

    cbct: Uid = Field(description="Series Instance UID of today's CBCT.", max_length=64)
    roi: str | None = Field(
        default=None,
        description="Name of the ROI to carry, or its number as `#7`; left out, with `structures` "
        "and `planning_ct`: the only one that matching finds.",
        max_length=256,
    )
    planning_ct: Uid | None = Field(
        default=None,
        description="Series Instance UID; left out: the one that the structure set was drawn on; "
        "left out with `structures`: the one that matching finds.",
        max_length=64,
    )
    structures: Uid | None = Field(
        default=None,
        description="SOP Instance UID of the structure set of the planning CT; left out: the only "
        "one here that was drawn on the planning CT, or the one that matching finds.",
        max_length=64,
    )
    methods: list[str] | None = Field(
        default=None, description="Left out: all of /v1/methods.", min_length=1, max_length=16
    )
    prior: Uid | None = Field(
        default=None,
        description="SOP Instance UID of another structure set that holds the ROI to carry.",
        max_length=64,
    )
    registration: Uid | None = Field(
        default=None,
        description="SOP Instance UID of a Spatial Registration to start from.",
        max_length=64,
    )
    prior_registration: Uid | None = Field(
        default=None,
        description="SOP Instance UID of a Spatial Registration that ties the prior's frame to the "
        "planning CT's.",
        max_length=64,
    )
    focus: Focus = Field(
        default="body", description="Which registration carries the prior: body or target."
    )
    vouch: str = Field(
        default="",
        description="Why references that do not prove that all belongs together may be trusted; "
        "stands in the report.",
        max_length=1024,
    )


def make_order(
    request: PropagationRequest, archive: Archive, *, network: tuple[str, str]
) -> dict[str, Any]:
    """Finds the files that a request speaks of and checks what is cheap to check.

    Args:
        request: What was asked.
        archive: Where the files are.
        network: Name and digest of the network that is served; empty when none is asked for.

    Raises:
        NotFoundError: A series or an instance is not here.
        InputError: What was left out cannot be concluded, or the ROI is not in the set.
    """
    if request.roi is None:
        raise InputError("the ROI to carry is not named", remedy="name it: roi")
    structures = _structures(request, archive)
    drawn = read_structure_set(archive.path(structures))
    prior = _instance(archive, request.prior, "RTSTRUCT") if request.prior else None
    source = drawn if prior is None else read_structure_set(archive.path(prior))
    roi = source.roi(request.roi)
    named = [request.registration, request.prior_registration]
    wanted = request.methods or (*METHODS, network[0])
    settings = settings_of([m for m in KNOWN_METHODS if m in wanted], request.focus)
    return {
        "version": ORDER_VERSION,
        "cbct": _series(archive, request.cbct, "CBCT"),
        "planning_ct": _series(
            archive, request.planning_ct or _drawn_on(drawn, archive), "planning CT"
        ),
        "structures": _file(structures),
        "prior": None if prior is None else _file(prior),
        "registrations": [_file(_instance(archive, uid, "REG")) for uid in named if uid],
        "start_shift_xyz_mm": None,
        "roi": request.roi,
        "roi_number": roi.number,
        "vouched": request.vouch,
        "doubts": [],
        "methods": list(settings.methods),
        "settings": asdict(settings.registration),
        "focus": request.focus,
        "network": network[1],
    }


@dataclass(frozen=True, kw_only=True)
class MatchedOrder:
    """What matching found, by UIDs.

    Attributes:
        cbct_files: SHA-256 of the files of the CBCT's revision.
        roi_number: Of the ROI in the planning structure set.
        prior: The signed set to carry from; empty: the planning contour.
        prior_registration: The one that brings the prior home; empty: none is needed.
        registration: A Spatial Registration to start from; empty: none.
        start_shift_xyz_mm: Where registration may start, where no object says.
        doubts: What is so and need not be.
        vouched: What a person answered against the references.
        methods: None: all.
    """

    cbct: Uid
    cbct_files: tuple[str, ...]
    planning_ct: Uid
    structures: Uid
    roi_number: int
    prior: Uid
    prior_registration: Uid
    registration: Uid
    start_shift_xyz_mm: tuple[float, float, float] | None
    doubts: tuple[str, ...]
    vouched: str
    methods: Sequence[str] | None


def order_of_match(
    found: MatchedOrder, archive: Archive, *, network: tuple[str, str]
) -> dict[str, Any]:
    """The order of one ROI of a match.

    Raises:
        ContourcastError: Something of it is not here any more, or cannot be read.
    """
    order = make_order(
        PropagationRequest(
            cbct=found.cbct,
            roi=f"#{SIGNED_ROI if found.prior else found.roi_number}",
            planning_ct=found.planning_ct,
            structures=found.structures,
            methods=None if found.methods is None else list(found.methods),
            prior=found.prior or None,
            registration=found.registration or None,
            prior_registration=found.prior_registration or None,
            vouch=found.vouched,
        ),
        archive,
        network=network,
    )
    shift = found.start_shift_xyz_mm
    return order | {
        "cbct": {"series": found.cbct, "files": sorted(found.cbct_files)},
        "roi_number": found.roi_number,
        "start_shift_xyz_mm": None if shift is None else list(shift),
        "doubts": list(found.doubts),
    }


def started_from(order: dict[str, Any], planning_from_cbct: RigidTransform) -> dict[str, Any]:
    """The same order, its registration begun where a person put the planning CT."""
    matrix = planning_from_cbct.matrix.round(START_DECIMALS).tolist()
    return order | {"start_planning_from_cbct": matrix}


def order_id(order: dict[str, Any]) -> str:
    """The digest of an order, the id of its propagation."""
    text = json.dumps(order, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def settings_of(methods: Sequence[str] | None, focus: Focus, *, device: str = "cpu") -> Settings:
    """The pipeline's settings.

    Raises:
        InputError: A method has no such name.
    """
    return Settings(
        methods=tuple(methods or ALL_METHODS),
        registration=RegistrationSettings(focus=focus),
        device=device,
    )


def wants_network(request: PropagationRequest) -> bool:
    """Whether the network is among the methods asked for."""
    return request.methods is None or any(is_network(m) for m in request.methods)


def case_of(order: dict[str, Any], archive: Archive) -> Case:
    """Reads the files of an order.

    Raises:
        ContourcastError: They cannot be read, or do not belong together.
    """
    prior = order["prior"]
    case = read_case(
        planning_ct=_paths(order["planning_ct"], archive),
        structures=_paths(order["structures"], archive)[0],
        cbct=_paths(order["cbct"], archive),
        roi=order["roi"],
        prior_structures=None if prior is None else _paths(prior, archive)[0],
        registrations=[_paths(each, archive)[0] for each in order["registrations"]],
        vouched=order["vouched"],
    )
    by_hand = _put_by_hand(order, case)
    return replace(
        case,
        start=by_hand or case.start or _shifted(order, case),
        start_is_settled=by_hand is not None,
        doubts=(*case.doubts, *order["doubts"]),
    )


def _put_by_hand(order: dict[str, Any], case: Case) -> RigidTransform | None:
    """The start that a person gave; it counts more than what objects say."""
    matrix = order.get("start_planning_from_cbct")
    if matrix is None:
        return None
    return RigidTransform(
        matrix=np.array(matrix),
        source_frame=case.cbct.frame_of_reference,
        target_frame=case.planning_ct.frame_of_reference,
    )


def _shifted(order: dict[str, Any], case: Case) -> RigidTransform | None:
    """The start that a match found without an object that says so."""
    shift = order["start_shift_xyz_mm"]
    if shift is None or case.planning_ct.frame_of_reference == case.cbct.frame_of_reference:
        return None
    matrix = np.eye(4)
    matrix[:3, 3] = -np.array(shift)
    return RigidTransform(
        matrix=matrix,
        source_frame=case.cbct.frame_of_reference,
        target_frame=case.planning_ct.frame_of_reference,
    )


def _structures(request: PropagationRequest, archive: Archive) -> Kept:
    if request.structures:
        return _instance(archive, request.structures, "RTSTRUCT")
    if not request.planning_ct:
        raise InputError(
            "neither a structure set nor a planning CT is named",
            remedy="name at least one: structures, planning_ct",
        )
    _series(archive, request.planning_ct, "planning CT")
    its = archive.of_patient(archive.patient_of(request.planning_ct), "RTSTRUCT")
    fitting = [kept for kept in its if request.planning_ct in _named_by(kept, archive)]
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"{len(fitting) or 'no'} structure sets here were drawn on the planning CT",
        uid=" ".join(kept.sop_uid for kept in fitting[:8]),
        remedy="name one: structures",
    )


def _named_by(kept: Kept, archive: Archive) -> tuple[Uid, ...]:
    """The series that a structure set was drawn on; none, where it cannot be read."""
    try:
        return read_structure_set(archive.path(kept)).referenced_series_uids
    except InputError as error:
        log.warning("structure_set_unreadable", kind=error.code, uid=kept.sop_uid)
        return ()


def _drawn_on(drawn: StructureSet, archive: Archive) -> Uid:
    here = [uid for uid in drawn.referenced_series_uids if archive.instances_of(uid)]
    if len(here) == 1:
        return here[0]
    raise InputError(
        f"{len(here) or 'none'} of the series that the structure set was drawn on are here",
        uid=" ".join(drawn.referenced_series_uids[:8]),
        remedy="send the planning CT, or name it: planning_ct",
    )


def _instance(archive: Archive, sop_uid: Uid, modality: str) -> Kept:
    kept = archive.instance(sop_uid)
    if kept is None:
        raise NotFoundError(
            f"no {modality} of that SOP Instance UID is here",
            uid=sop_uid,
            remedy="send it to /v1/instances first",
        )
    if kept.modality != modality:
        raise InputError(
            f"this instance is a {kept.modality}, not a {modality}",
            uid=sop_uid,
            remedy=f"name the SOP Instance UID of a {modality}",
        )
    return kept


def _series(archive: Archive, series_uid: Uid, role: str) -> dict[str, Any]:
    instances = archive.instances_of(series_uid)
    if not instances:
        raise NotFoundError(
            f"no series of that UID is here ({role})",
            uid=series_uid,
            remedy="send it to /v1/instances first",
        )
    return {"series": series_uid, "files": sorted(kept.file_digest for kept in instances)}


def _file(kept: Kept) -> dict[str, Any]:
    return {"series": kept.series_uid, "files": [kept.file_digest], "sop_uid": kept.sop_uid}


def _paths(part: dict[str, Any], archive: Archive) -> list[Path]:
    return archive.files_of(part["series"], part["files"])
