"""From a request to an order: which files, exactly, and everything else that the result depends on.

An order names files by their digests, so it means the same tomorrow, whatever has arrived since.
Its own digest is the id of the propagation: the same order is the same job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import InputError
from contourcast.imaging.structures import StructureSet
from contourcast.propagate import ALL_METHODS, KNOWN_METHODS, Case, Settings, is_network
from contourcast.registration.methods import METHODS
from contourcast.registration.result import Focus
from contourcast.registration.settings import RegistrationSettings
from contourcast.service.archive import Archive, Kept
from contourcast.service.jobs.inputs import read_case
from contourcast.service.problems import NotFoundError

# Part of every order: raised when the same inputs no longer give the same result.
ORDER_VERSION: Final = 1
Uid = str


class PropagationRequest(BaseModel):
    """What to draw, on which scan, from which contour."""

    model_config = ConfigDict(extra="forbid")

    cbct: Uid = Field(description="Series Instance UID of today's CBCT.", max_length=64)
    roi: str = Field(description="Name of the ROI to carry, or its number as `#7`.", max_length=256)
    planning_ct: Uid | None = Field(
        default=None,
        description="Series Instance UID; left out: the one that the structure set was drawn on.",
        max_length=64,
    )
    structures: Uid | None = Field(
        default=None,
        description="SOP Instance UID of the structure set of the planning CT; left out: the only "
        "one here that was drawn on the planning CT.",
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
    structures = _structures(request, archive)
    drawn = read_structure_set(archive.path(structures))
    prior = _instance(archive, request.prior, "RTSTRUCT") if request.prior else None
    (drawn if prior is None else read_structure_set(archive.path(prior))).roi(request.roi)
    registration = _instance(archive, request.registration, "REG") if request.registration else None
    wanted = request.methods or (*METHODS, network[0])
    settings = settings_of([m for m in KNOWN_METHODS if m in wanted], request.focus)
    return {
        "version": ORDER_VERSION,
        "cbct": _series(archive, request.cbct, "CBCT"),
        "planning_ct": _series(
            archive, request.planning_ct or _drawn_on(drawn, archive), "planning CT"
        ),
        "structures": _file(structures),
        "prior": _file(prior),
        "registration": _file(registration),
        "roi": request.roi,
        "vouched": request.vouch,
        "methods": list(settings.methods),
        "settings": asdict(settings.registration),
        "focus": request.focus,
        "network": network[1],
    }


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
    registration = _path(order["registration"], archive)
    structures = _path(order["structures"], archive)
    assert structures is not None, "an order always has a structure set"
    return read_case(
        planning_ct=_paths(order["planning_ct"], archive),
        structures=structures,
        cbct=_paths(order["cbct"], archive),
        roi=order["roi"],
        prior_structures=_path(order["prior"], archive),
        registrations=[registration] if registration else [],
        vouched=order["vouched"],
    )


def _structures(request: PropagationRequest, archive: Archive) -> Kept:
    if request.structures:
        return _instance(archive, request.structures, "RTSTRUCT")
    if not request.planning_ct:
        raise InputError(
            "neither a structure set nor a planning CT is named",
            remedy="name at least one: structures, planning_ct",
        )
    fitting = [
        kept
        for kept in archive.of_modality("RTSTRUCT")
        if request.planning_ct in read_structure_set(archive.path(kept)).referenced_series_uids
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"{len(fitting) or 'no'} structure sets here were drawn on the planning CT",
        uid=" ".join(kept.sop_uid for kept in fitting[:8]),
        remedy="name one: structures",
    )


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


def _file(kept: Kept | None) -> dict[str, Any] | None:
    return None if kept is None else {"series": kept.series_uid, "files": [kept.file_digest]}


def _paths(part: dict[str, Any], archive: Archive) -> list[Path]:
    return [archive.file_of(part["series"], digest) for digest in part["files"]]


def _path(part: dict[str, Any] | None, archive: Archive) -> Path | None:
    return None if part is None else _paths(part, archive)[0]
