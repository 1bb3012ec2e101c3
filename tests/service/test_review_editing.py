"""Editing and deciding: drafts that nobody overwrites, what a signature writes and what it refuses.

And what stands around it: history, statistics, who looks, registration begun again by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pydicom
import pytest
from sqlalchemy import Connection, select, update

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.instance import read_header
from contourcast.imaging.dicom.modules import VERSION
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.metrics import agreement
from contourcast.imaging.rasterise import rasterise
from contourcast.imaging.transform import RigidTransform
from contourcast.service.access.roles import Role
from contourcast.service.index.database import Index, now
from contourcast.service.index.tables import audit, instance, presence, propagation, series
from contourcast.service.intake.rematching import turn_of
from contourcast.service.intake.states import State
from contourcast.service.jobs.orders import case_of, order_id, started_from
from contourcast.service.outputs.recommended import recommended
from contourcast.service.outputs.report import RESEARCH
from contourcast.service.outputs.site import Site
from contourcast.service.pacs import ways
from contourcast.service.pacs.deliveries import Deliveries
from contourcast.service.pacs.destinations import DimseDestination
from contourcast.service.pacs.door import Receipt
from contourcast.service.pacs.notices import Kind
from contourcast.service.pacs.outbox import DeliveryState
from contourcast.service.problems import ChangedError, ConflictError
from contourcast.service.review.again import begin_again
from contourcast.service.review.decisions import Reviews
from contourcast.service.review.drafts import Drafts
from contourcast.service.review.figures import change_percent, mean_or_none
from contourcast.service.review.presence import KEPT, look_at, open_by
from contourcast.service.review.stale import stale_of
from support.review import Desk, Drawn, at_desk, circle, draw, matching, run
from support.validators import dciodvfy, plastimatch_masks

PACS = DimseDestination(name="pacs", host="127.0.0.1", port=104, aet="PACS")
NO_MOTION: dict[str, list[float]] = {"translation_xyz_mm": [0, 0, 0], "rotation_xyz_deg": [0, 0, 0]}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("editing")
    return draw(folder / "data", folder / "treatment")


@pytest.fixture
def desk(drawn: Drawn, folder: Path) -> Iterator[Desk]:
    with at_desk(drawn.copy(folder), destinations=(PACS,)) as desk:
        yield desk


def middle_of(loops: dict[int, list[Any]]) -> int:
    return sorted(loops)[len(loops) // 2]


def center_of(loops: list[Any]) -> tuple[float, float]:
    u, v = np.concatenate([np.array(loop) for loop in loops]).mean(axis=0)
    return float(u), float(v)


def signed_file(desk: Desk, number: int = 1) -> Path:
    derived = desk.records.derived
    (name,) = (n for n in derived.results(desk.drawn.first) if n.startswith(f"RS-signed-{number}-"))
    return derived.result(desk.drawn.first, name)


def numbered(dataset: pydicom.Dataset, number: int) -> pydicom.Dataset:
    """The contours of a ROI by its number, wherever it stands in the set."""
    items: list[pydicom.Dataset] = list(dataset.ROIContourSequence)
    (found,) = (item for item in items if item.ReferencedROINumber == number)
    return found


def texts(file: Path, number: int) -> dict[str, list[str]]:
    """The written text of each contour of a ROI, by the slice that it lies on."""
    found: dict[str, list[str]] = {}
    for contour in numbered(pydicom.dcmread(file), number).ContourSequence:
        on = str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
        raw = "\\".join(str(value.original_string) for value in contour.ContourData)
        found.setdefault(on, []).append(raw)
    return found


# Drafts


def test_a_draft_comes_back_as_it_was_saved(desk: Desk) -> None:
    assert desk.people["ann"].get(desk.url("/draft")).status_code == 404
    loops = {7: [circle((1 / 3, 0.1), 12.0)], 9: []}
    saved = desk.save(loops)
    assert saved.status_code == 200, saved.text
    answer = desk.people["bob"].get(desk.url("/draft"))
    draft = answer.json()
    assert answer.headers["etag"].strip('"').startswith(saved.headers["etag"].strip('"'))
    assert draft["slices"] == {"7": loops[7], "9": []}  # to the last bit of every number
    assert (draft["method"], draft["edited_slices"], draft["seconds"]) == ("rigid", [7, 9], 42.5)
    assert draft["by"] == "ann"
    assert draft["saved_at"] <= now().isoformat()


def test_a_draft_goes_on_from_the_one_before(desk: Desk) -> None:
    first = desk.save({7: [circle((50, 50), 12)]})
    second = desk.save({7: [circle((50, 50), 13)]}, If_Match=first.headers["etag"])
    assert second.status_code == 200, second.text
    assert second.headers["etag"] != first.headers["etag"]
    late = desk.save({7: []}, who="bob", If_Match=first.headers["etag"])
    assert late.status_code == 412
    assert re.fullmatch(r"ann saved an edit at [0-9:]{8} UTC", late.json()["cause"])
    anew = desk.save({7: []}, who="bob")
    assert anew.status_code == 412
    assert anew.json()["cause"].startswith("ann saved an edit at ")
    other: dict[str, Any] = {"decision": "edited", "method": "rigid", "draft_etag": '"of before"'}
    stale = desk.decide(**other)
    assert stale.status_code == 412
    assert re.search(r" ann saved it at [0-9:]{8} UTC$", stale.json()["cause"])


def test_a_draft_is_discarded_by_whoever_saw_it(desk: Desk) -> None:
    tag = desk.save({7: []}).headers["etag"]
    ann = desk.people["ann"]
    assert ann.delete(desk.url("/draft"), headers={"If-Match": '"other"'}).status_code == 412
    assert ann.delete(desk.url("/draft"), headers={"If-Match": tag}).status_code == 204
    assert ann.delete(desk.url("/draft")).status_code == 404
    gone = desk.save({7: []}, If_Match=tag)
    assert gone.status_code == 412
    assert "gone" in gone.json()["cause"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"method": "by-hand"}, 422),
        ({"slices": {"24": []}}, 422),
        ({"slices": {"-1": []}}, 422),
        ({"slices": {"7": [[[0, 0], [1, 1]]]}}, 422),
        ({"slices": {"7": [[[0, 0], [1, 1], [1, None]]]}}, 422),
        ({"slices": {"7": []}, "edited_slices": [8]}, 422),
        ({"seconds": -1}, 422),
        ({"more": 1}, 422),
    ],
)
def test_what_is_no_draft_is_not_kept(desk: Desk, change: dict[str, Any], status: int) -> None:
    body = {"method": "rigid", "slices": {}, "seconds": 0} | change
    answer = desk.people["ann"].put(desk.url("/draft"), json=body, headers={"If-None-Match": "*"})
    assert answer.status_code == status, answer.text
    assert desk.people["ann"].get(desk.url("/draft")).status_code == 404


@pytest.mark.parametrize(
    "headers", [{"X": "1"}, {"If-Match": '"a"', "If-None-Match": "*"}, {"If-None-Match": '"a"'}]
)
def test_it_has_to_be_said_what_a_draft_goes_on_from(desk: Desk, headers: dict[str, str]) -> None:
    answer = desk.people["ann"].put(
        desk.url("/draft"), json={"method": "rigid", "slices": {"7": []}}, headers=headers
    )
    assert answer.status_code == 422
    assert "goes on from" in answer.json()["cause"]


def test_a_number_that_is_none_is_no_coordinate(desk: Desk) -> None:
    body = '{"method": "rigid", "slices": {"7": [[[0, 0], [1, 1], [NaN, 2]]]}}'
    answer = desk.people["ann"].put(
        desk.url("/draft"),
        content=body,
        headers={"If-None-Match": "*", "Content-Type": "application/json"},
    )
    assert answer.status_code == 422


def test_what_is_not_drawn_or_was_overtaken_is_not_edited(desk: Desk) -> None:
    waiting = desk.people["ann"].put(
        desk.url("/draft", propagation=desk.drawn.second),
        json={"method": "rigid", "slices": {}},
        headers={"If-None-Match": "*"},
    )
    assert waiting.status_code == 409
    assert "matched" in waiting.json()["cause"]


def test_a_large_draft_fits_and_a_larger_one_does_not(desk: Desk) -> None:
    loop = circle((50, 50), 12, points=4000)
    assert desk.save({k: [loop] * 2 for k in range(8)}).status_code == 200
    assert desk.save({k: [loop] * 20 for k in range(12)}).status_code == 413


def test_viewers_and_uploaders_save_nothing(desk: Desk) -> None:
    assert desk.save({7: []}, who="vic").status_code == 403
    for method in ("GET", "PUT", "DELETE"):
        answer = desk.http.request(
            method, desk.url("/draft"), headers=desk.keys[Role.UPLOADER], json={}
        )
        assert answer.status_code == 403


# What a signature writes


def test_an_edited_slice_is_signed_and_all_others_stay_as_the_machine_wrote_them(
    desk: Desk,
) -> None:
    loops = desk.loops("rigid")
    k = middle_of(loops)
    center = center_of(loops[k])
    ring = [circle(center, 15.0), circle(center, 6.0)]
    desk.save({k: ring})
    before = now().replace(microsecond=0)
    answer = desk.sign_edited(text="the middle was too small")
    assert answer.status_code == 201, answer.text
    decision = answer.json()
    assert (decision["decision"], decision["method"]) == ("edited", "rigid")
    assert (decision["reviewer"], decision["deliveries"]) == ("ann", ["pacs"])

    machine_file = desk.records.derived.result(desk.drawn.first, "RS.dcm")
    machine, signed = texts(machine_file, 2), texts(signed_file(desk), 1)
    scan = read_ct_series(desk.drawn.treatment.fractions[0].paths, role="CBCT")
    assert scan.source is not None
    edited_on = scan.source.slices[k].sop_instance_uid
    assert machine.keys() == signed.keys()
    for on in machine.keys() - {edited_on}:
        assert signed[on] == machine[on]  # the very text
    assert signed[edited_on] != machine[edited_on]

    dataset = pydicom.dcmread(signed_file(desk))
    assert dataset.SOPInstanceUID == decision["structures_uid"]
    assert (dataset.ApprovalStatus, dataset.ReviewerName) == ("APPROVED", "ann")
    assert dataset.ReviewDate >= before.strftime("%Y%m%d")
    predecessor = dataset.PredecessorStructureSetSequence[0].ReferencedSOPInstanceUID
    assert predecessor == pydicom.dcmread(machine_file).SOPInstanceUID
    (roi,) = dataset.StructureSetROISequence
    assert (roi.ROIName, roi.ROIGenerationAlgorithm) == ("GTV", "SEMIAUTOMATIC")
    assert "1 slice by hand" in dataset.StructureSetDescription

    # the ring has its hole, for our own reader
    read = read_structure_set(signed_file(desk)).rois[0]
    there = rasterise(read, scan.grid).values[k]
    _, rows, columns = scan.grid.shape_zyx
    x, y = scan.grid.spacing_xy_mm
    u, v = np.meshgrid(np.arange(columns) * x, np.arange(rows) * y)
    away = np.hypot(u - center[0], v - center[1])
    clear = np.abs(away - 15.0) > 0.1
    clear &= np.abs(away - 6.0) > 0.1
    np.testing.assert_array_equal(there[clear], ((away < 15.0) & (away > 6.0))[clear])


def test_the_distance_from_the_machines_contour_is_kept_beside_it(desk: Desk) -> None:
    loops = desk.loops("rigid")
    k = middle_of(loops)
    desk.save({k: [circle(center_of(loops[k]), 26.0)], min(loops): []}, seconds=61.0)
    figures = desk.sign_edited().json()["figures"]
    assert (figures["edited_slices"], figures["seconds"]) == (2, 61.0)

    scan = read_ct_series(desk.drawn.treatment.fractions[0].paths, role="CBCT")
    machine = read_structure_set(desk.records.derived.result(desk.drawn.first, "RS.dcm")).roi("#2")
    signed = read_structure_set(signed_file(desk)).rois[0]
    measured = agreement(rasterise(signed, scan.grid), rasterise(machine, scan.grid))
    assert figures["surface_dice_1mm"] == pytest.approx(measured.surface_dice_1mm, abs=1e-4)
    assert figures["mean_surface_mm"] == pytest.approx(measured.msd_mm, abs=1e-4)
    assert 0 < figures["mean_surface_mm"] < 5
    of_slices = {k: 26.0**2 * math.pi, min(loops): 0.0}
    areas = sum(
        of_slices.get(n, sum(shoelace(loop) for loop in found)) for n, found in loops.items()
    )
    assert figures["volume_cc"] == pytest.approx(areas * 5.0 / 1000, rel=0.01)
    as_drawn = sum(shoelace(loop) for found in loops.values() for loop in found)
    assert figures["machine_volume_cc"] == pytest.approx(as_drawn * 5.0 / 1000, rel=0.001)
    # the machine's contour is there as before, and the draft is not
    assert desk.loops("rigid") == loops
    assert desk.people["ann"].get(desk.url("/draft")).status_code == 404


def shoelace(loop: Any) -> float:
    x, y = np.array(loop).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_an_unchanged_contour_is_signed_as_the_machine_drew_it(desk: Desk) -> None:
    answer = desk.decide(decision="approved", method="rigid").json()
    assert answer["figures"]["surface_dice_1mm"] == 1.0
    assert answer["figures"]["mean_surface_mm"] == 0.0
    assert answer["figures"]["volume_cc"] == answer["figures"]["machine_volume_cc"]
    machine = texts(desk.records.derived.result(desk.drawn.first, "RS.dcm"), 2)
    assert texts(signed_file(desk), 1) == machine
    roi = pydicom.dcmread(signed_file(desk)).StructureSetROISequence[0]
    assert roi.ROIGenerationAlgorithm == "AUTOMATIC"


def test_a_set_of_before_in_which_the_methods_stand_in_their_own_order_is_signed_as_any(
    desk: Desk,
) -> None:
    file = desk.records.derived.result(desk.drawn.first, "RS.dcm")
    machine = texts(file, 2)
    order = [roi.ROINumber for roi in pydicom.dcmread(file).StructureSetROISequence]
    assert order == [2, 1], "rigid, which is recommended, comes first"

    def as_before(dataset: pydicom.Dataset) -> None:
        for name in (
            "StructureSetROISequence",
            "ROIContourSequence",
            "RTROIObservationsSequence",
        ):
            setattr(dataset, name, dataset[name].value[::-1])

    rewritten(desk, as_before)
    assert [m["method"] for m in desk.get("/view")["methods"]] == ["translation", "rigid"]
    assert desk.decide(decision="approved", method="rigid").status_code == 201
    assert texts(signed_file(desk), 1) == machine


def test_a_signed_set_says_its_fraction_its_makers_and_that_this_is_no_medical_device(
    desk: Desk,
) -> None:
    assert desk.decide(decision="approved", method="rigid").status_code == 201
    (day, *_) = desk.job().origin.acquired_at.partition("T")
    dataset = pydicom.dcmread(signed_file(desk))
    assert dataset.StructureSetLabel == f"CC {day.replace('-', '')} F01S"
    assert dataset.StructureSetName == "GTV"
    said = dataset.StructureSetDescription
    assert said == f"rigid, signed unchanged; Contourcast {VERSION} rigid; {RESEARCH}"
    assert dataset.TimezoneOffsetFromUTC == "+0000"


@pytest.mark.peer
def test_a_site_s_objects_go_by_its_own_clock_and_under_its_own_numbers(desk: Desk) -> None:
    """In Auckland the evening in UTC is the next day's morning, and so it is written."""
    site = Site(zone=ZoneInfo("Pacific/Auckland"), series_number=4711)
    records = replace(desk.records, site=site)
    job = run(records, desk.drawn.second)
    before = now().replace(microsecond=0)
    Reviews(records).approve(job, method="rigid", reviewer="Keller^Ann", seen=0)
    derived = records.derived
    (signed,) = (n for n in derived.results(job.id) if n.startswith("RS-signed-"))
    machine = pydicom.dcmread(derived.result(job.id, "RS.dcm"))
    assert clock_of(machine, "StructureSet") == job.made_at
    assert clock_of(pydicom.dcmread(derived.result(job.id, "REG.dcm")), "Content") == job.made_at
    dataset = pydicom.dcmread(derived.result(job.id, signed))
    assert before <= clock_of(dataset, "StructureSet") <= now()
    assert clock_of(dataset, "Review") == clock_of(dataset, "StructureSet")
    assert (machine.SeriesNumber, dataset.SeriesNumber) == (4711, 4711)
    assert pydicom.dcmread(derived.result(job.id, "REG.dcm")).SeriesNumber == 4712
    assert dataset.StructureSetLabel.endswith(" F02S")
    assert dciodvfy(derived.result(job.id, signed)) == []
    made_at = json.loads(derived.result(job.id, "report.json").read_text())["provenance"]["made_at"]
    assert datetime.fromisoformat(made_at).utcoffset() == timedelta()


def clock_of(dataset: pydicom.Dataset, what: str) -> datetime:
    """A moment that an object states, by the zone that it states."""
    assert dataset.TimezoneOffsetFromUTC in ("+1200", "+1300")
    said = dataset[f"{what}Date"].value + dataset[f"{what}Time"].value
    return datetime.strptime(said + dataset.TimezoneOffsetFromUTC, "%Y%m%d%H%M%S%z")


def test_where_a_method_drew_nothing_a_person_draws_and_that_is_signed_as_by_hand(
    desk: Desk,
) -> None:
    emptied(desk, number=2)
    assert [m["empty"] for m in desk.get("/view")["methods"]] == [False, True]
    refused = desk.decide(decision="approved", method="rigid")
    assert refused.status_code == 422
    assert refused.json()["cause"] == "rigid drew nothing"
    desk.save({7: [circle((50, 50), 12.0)], 8: [circle((50, 50), 12.0)]})
    answer = desk.sign_edited()
    assert answer.status_code == 201, answer.text
    figures = answer.json()["figures"]
    assert figures["volume_cc"] == pytest.approx(2 * math.pi * 144 * 5.0 / 1000, rel=0.01)
    assert (figures["machine_volume_cc"], figures["mean_surface_mm"]) == (0, None)
    (roi,) = pydicom.dcmread(signed_file(desk)).StructureSetROISequence
    assert roi.ROIGenerationAlgorithm == "MANUAL"


def emptied(desk: Desk, *, number: int) -> None:
    """As if a method had drawn nothing."""

    def empty(dataset: pydicom.Dataset) -> None:
        del numbered(dataset, number).ContourSequence

    rewritten(desk, empty)


def rewritten(desk: Desk, change: Callable[[pydicom.Dataset], None]) -> None:
    """As if the machine had written another set."""
    file = desk.records.derived.result(desk.drawn.first, "RS.dcm")
    dataset = pydicom.dcmread(file)
    change(dataset)
    dataset.save_as(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with desk.records.index.write() as at:
        at.execute(
            update(propagation)
            .where(propagation.c.id == desk.drawn.first)
            .values(files_json=desk.job().files | {"RS.dcm": digest})
        )


def test_what_was_signed_is_shown_beside_the_machines_contours(desk: Desk) -> None:
    loops = desk.loops("rigid")
    k = middle_of(loops)
    desk.save({k: [circle(center_of(loops[k]), 12.0), circle(center_of(loops[k]), 5.0)]})
    signed = desk.sign_edited().json()
    view = desk.get("/view")
    assert view["state"] == "edited"
    assert view["approved"] == {
        "number": signed["number"],
        "method": "rigid",
        "reviewer": "ann",
        "at": signed["at"],
        "structures_uid": signed["structures_uid"],
    }
    assert [ghost["ghost"] for ghost in view["ghosts"]] == ["prior", "approved"]
    assert view["ghosts"][1]["volume_cc"] == pytest.approx(signed["figures"]["volume_cc"])
    shown = desk.loops("approved")
    for n in loops.keys() - {k}:
        assert shown[n] == loops[n]
    outer, hole = sorted(shown[k], key=shoelace, reverse=True)
    assert shoelace(hole) == pytest.approx(math.pi * 25, rel=0.01)
    assert shoelace(outer) == pytest.approx(math.pi * 144, rel=0.01)
    # a rejection afterwards takes it back
    assert desk.decide(decision="rejected", reason="target wrong").status_code == 201
    assert desk.get("/view")["approved"] is None
    assert "approved" not in desk.get("/contours")["contours"]


def test_a_signed_edit_is_the_prior_of_the_next_fraction(desk: Desk) -> None:
    loops = desk.loops("rigid")
    k = middle_of(loops)
    desk.save({k: [circle(center_of(loops[k]), 27.0)]})
    signed = desk.sign_edited().json()
    matching(desk.records).look()
    later = [
        job
        for job in desk.records.propagations.jobs()
        if job.state is State.MATCHED and job.id != desk.drawn.second
    ]
    (again,) = later
    assert again.order["prior"]["sop_uid"] == signed["structures_uid"]
    case = case_of(again.order, desk.records.archive)
    assert case.prior_source_uid == signed["structures_uid"]
    stale = desk.people["ann"].get(desk.url("/view", propagation=desk.drawn.second)).json()["stale"]
    assert stale["propagation"] == again.id
    refused = desk.people["ann"].put(
        desk.url("/draft", propagation=desk.drawn.second),
        json={"method": "rigid", "slices": {}},
        headers={"If-None-Match": "*"},
    )
    assert refused.status_code == 409


@pytest.mark.peer
def test_other_programs_read_what_was_edited(desk: Desk, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    loops = desk.loops("rigid")
    k = middle_of(loops)
    center = center_of(loops[k])
    desk.save({k: [circle(center, 30.0), circle(center, 12.0)]})
    assert desk.sign_edited().status_code == 201
    file = tmp_path / "RS.dcm"
    shutil.copyfile(signed_file(desk), file)
    # an account's name has no family name and given name
    assert [line for line in dciodvfy(file) if "Retired Person Name form" not in line] == []
    cbct = desk.drawn.treatment.fractions[0].paths[0].parent
    masks = plastimatch_masks(file, cbct, tmp_path / "masks")
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(masks["GTV"]))) > 0
    scan = read_ct_series(cbct, role="CBCT")
    ours = rasterise(read_structure_set(file).rois[0], scan.grid).values
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) >= 0.97  # of 5 mm voxels


# What a signature refuses


def signable(desk: Desk) -> dict[int, list[Any]]:
    loops = desk.loops("rigid")
    k = middle_of(loops)
    return {k: [circle(center_of(loops[k]), 12.0)]}


def test_only_a_person_with_the_role_signs(desk: Desk) -> None:
    tag = desk.save(signable(desk)).headers["etag"]
    body: dict[str, Any] = {"decision": "edited", "method": "rigid", "draft_etag": tag}
    assert desk.decide("vic", **body).status_code == 403
    for role in (Role.REVIEWER, Role.VIEWER):
        answer = desk.http.post(
            desk.url("/reviews"), json=body, headers=desk.keys[role] | {"If-Match": desk.tag()}
        )
        assert answer.status_code == 403
    assert desk.job().state is State.AWAITING_REVIEW
    assert desk.get("/reviews")["reviews"] == []


def test_each_signature_asks_for_the_credential_again(desk: Desk) -> None:
    once: dict[str, Any] = {"decision": "approved", "method": "rigid"}
    refused = desk.decide(proven=False, **once)
    assert (refused.status_code, "session/proof" in refused.json()["remedy"]) == (403, True)
    assert desk.decide(**once).status_code == 201
    assert desk.decide(proven=False, **once).status_code == 403, "one proof, one signature"
    assert len(desk.get("/reviews")["reviews"]) == 1
    desk.prove()
    late = desk.decide(proven=False, tag='"of before"', **once)
    assert late.status_code == 412
    assert desk.decide(proven=False, **once).status_code == 201, "a refusal spends nothing"


def test_nobody_signs_what_changed_since_it_was_seen(desk: Desk) -> None:
    tag = desk.tag()
    seen = desk.save(signable(desk)).headers["etag"]
    # two look at the same; one is quicker
    assert desk.decide("bob", decision="approved", method="rigid").status_code == 201
    late = desk.decide(tag=tag, decision="edited", method="rigid", draft_etag=seen)
    assert late.status_code == 412
    # and who looks again may decide otherwise, beside what was decided
    again = desk.decide(decision="edited", method="rigid", draft_etag=seen)
    assert again.status_code == 201, again.text
    assert [r["decision"] for r in desk.get("/reviews")["reviews"]] == ["approved", "edited"]


def test_nobody_signs_another_draft_than_the_one_that_was_seen(desk: Desk) -> None:
    seen = desk.save(signable(desk)).headers["etag"]
    tag = desk.tag()
    desk.save({7: []}, who="bob", If_Match=seen)
    late = desk.decide(tag=tag, decision="edited", method="rigid", draft_etag=seen)
    assert late.status_code == 412
    assert "bob saved it" in late.json()["cause"]


def test_a_draft_that_changes_while_it_is_signed_is_not_lost(desk: Desk) -> None:
    desk.save(signable(desk))
    drafts = Drafts(desk.records.index)
    seen = drafts.of(desk.drawn.first)
    reviews = desk.records.propagations
    desk.save({7: []}, who="bob", If_Match=f'"{seen.digest}"')
    with pytest.raises(ChangedError, match="bob saved"):
        Reviews(desk.records).approve_edited(
            desk.job(), draft=seen, method="rigid", reviewer="ann", seen=0
        )
    assert approved(desk) == []
    assert reviews.job(desk.drawn.first).state is State.AWAITING_REVIEW
    assert drafts.of(desk.drawn.first).reviewer == "bob"


def test_what_was_begun_and_not_signed_is_in_no_ones_way(desk: Desk) -> None:
    told: list[tuple[str, str]] = []

    def tell(at: Connection, propagation: str, name: str, digest: str) -> None:
        told.append((name, digest))

    def stop(at: Connection) -> None:
        raise ConflictError("stopped on the way")

    reviews = Reviews(desk.records, tell)
    with pytest.raises(ConflictError, match="stopped"):
        reviews.spending(stop).approve(desk.job(), method="translation", reviewer="bob", seen=0)
    assert (approved(desk), reviews.of(desk.drawn.first), told) == ([], [], [])
    signed = reviews.approve(desk.job(), method="rigid", reviewer="ann", seen=0)
    ((name, digest),) = told
    file = desk.records.derived.result(desk.drawn.first, name)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert read_structure_set(file).sop_instance_uid == signed.structures_uid
    assert "rigid" in read_structure_set(file).rois[0].description
    assert approved(desk) == [signed.structures_uid]


def test_of_two_who_sign_at_one_moment_one_does(desk: Desk) -> None:
    reviews, job = Reviews(desk.records), desk.job()
    both = threading.Barrier(2)

    def sign(method: str) -> str:
        at_once = reviews.spending(lambda _: None)
        both.wait()
        try:
            return at_once.approve(job, method=method, reviewer=method, seen=0).structures_uid
        except ConflictError as error:
            return error.cause

    with ThreadPoolExecutor(2) as pool:
        told = set(pool.map(sign, ["translation", "rigid"]))
    (signed,) = (each.structures_uid for each in reviews.of(job.id))
    assert told == {signed, "somebody else decided on this propagation meanwhile"}
    assert approved(desk) == [signed]


def test_nobody_rejects_what_was_signed_unseen(desk: Desk) -> None:
    reviews, job = Reviews(desk.records), desk.job()
    reviews.approve(job, method="rigid", reviewer="ann", seen=0)
    with pytest.raises(ConflictError, match="somebody else decided"):
        reviews.reject(job, reviewer="bob", seen=0, why="target wrong")
    assert reviews.reject(job, reviewer="bob", seen=1, why="target wrong").number


def test_matching_waits_for_a_decision_on_its_patient(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(Index, "in_turn", lambda self, at, name: names.append(name))
    Reviews(desk.records).reject(desk.job(), reviewer="ann", seen=0, why="target wrong")
    assert names[0] == turn_of(desk.job().origin.patient_key)


def test_what_was_signed_and_rejected_is_not_sent_and_what_was_signed_then_is(desk: Desk) -> None:
    out, job = Deliveries(desk.records, [PACS]), desk.job()
    reviews = Reviews(desk.records, out.plan_signed)
    reviews.approve(job, method="translation", reviewer="ann", seen=0)
    reviews.reject(job, reviewer="bob", seen=1, why="wrong patient or plan")
    reviews.approve(job, method="rigid", reviewer="ann", seen=2)
    for one in out.outbox.due("pacs", limit=8):
        out.attempt(one.id, one.attempts)
    newest_first = [one.state for one in out.list()]
    assert newest_first == [DeliveryState.WAITING, DeliveryState.DROPPED], "of a PACS that is down"
    assert desk.records.notices.list()[-1].kind is not Kind.SIGNED_OVERTAKEN


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_signed_set_that_an_archive_has_when_it_is_rejected_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    out, job = Deliveries(desk.records, [PACS]), desk.job()
    reviews = Reviews(desk.records, out.plan_signed)

    def reject() -> None:
        reviews.reject(job, reviewer="bob", seen=1, why="wrong patient or plan")

    class Takes:
        def send(self, paths: Sequence[Path]) -> list[Receipt]:
            if meanwhile:
                reject()
            found = [read_header(path).sop_instance_uid for path in paths]
            return [Receipt(sop_instance_uid=uid, outcome="stored") for uid in found]

    monkeypatch.setattr(ways, "way_to", lambda _: contextlib.nullcontext(Takes()))
    reviews.approve(job, method="rigid", reviewer="ann", seen=0)
    (due,) = out.outbox.due("pacs", limit=8)
    out.attempt(due.id, due.attempts)
    if not meanwhile:
        reject()
    assert out.outbox.get(due.id).state is DeliveryState.DELIVERED
    (told,) = (n for n in desk.records.notices.list() if n.kind is Kind.SIGNED_OVERTAKEN)
    assert (told.subject, told.body) == (job.id, {"destination": "pacs", "delivery": due.id})


def test_what_was_asked_for_by_hand_on_a_contour_that_was_rejected_is_stale(desk: Desk) -> None:
    records, reviews = desk.records, Reviews(desk.records)
    reviews.approve(desk.job(), method="rigid", reviewer="ann", seen=0)
    matching(records).look()
    (matched,) = (j for j in records.propagations.jobs() if j.order["prior"])
    order = matched.order | {"vouched": "by ann"}
    by_hand = order_id(order)
    records.propagations.open(by_hand, order, replace(matched.origin, asked_by="user:ann"))
    job = records.propagations.job(by_hand)
    with records.index.read() as at:
        assert stale_of(at, job) is None
    reviews.reject(desk.job(), reviewer="bob", seen=1, why="wrong patient or plan")
    with pytest.raises(ChangedError, match="carried from was rejected"):
        reviews.approve(job, method="rigid", reviewer="ann", seen=0)
    shown = desk.people["ann"].get(desk.url(propagation=by_hand)).json()
    assert "was rejected later" in shown["stale"]


def test_a_second_signature_changes_what_the_first_reader_has_in_hand(desk: Desk) -> None:
    desk.decide(decision="approved", method="translation")
    before = desk.tag()
    bob = desk.decide(who="bob", decision="approved", method="rigid")
    assert bob.status_code == 201, bob.text
    assert desk.tag() != before
    late = desk.decide(tag=before, decision="rejected", reason="target wrong")
    assert late.status_code == 412, "of a signature that was not seen"


def test_somebody_else_who_has_signed_in_meanwhile_signs_nothing(desk: Desk) -> None:
    name = desk.people["ann"].get("/v1/session").json()["name"]
    wrong = desk.decide(who="bob", decision="approved", method="rigid", reviewer=name)
    assert (wrong.status_code, approved(desk)) == (409, [])
    assert "somebody else has signed in" in wrong.json()["cause"]
    right = desk.decide(decision="approved", method="rigid", reviewer=name)
    assert right.status_code == 201, right.text


def test_the_view_tells_of_a_draft_that_is_no_part_of_it(desk: Desk) -> None:
    assert desk.get("/view")["draft"] is None
    desk.save({7: [circle((50, 50), 12)], 9: []})
    told = desk.get("/view", who="bob")["draft"]
    assert (told["by"], told["method"], told["edited_slices"]) == ("ann", "rigid", 2)


def approved(desk: Desk) -> list[str]:
    """The signed sets that the archive holds."""
    query = select(instance.c.sop_uid).join(series, series.c.uid == instance.c.series_uid)
    query = query.where(series.c.door == "ours", instance.c.modality == "RTSTRUCT")
    with desk.records.index.read() as at:
        return list(at.execute(query).scalars())


def test_an_edit_needs_its_draft_and_its_method(desk: Desk) -> None:
    none = desk.decide(decision="edited", method="rigid", draft_etag='"x"')
    assert none.status_code == 404
    desk.save(signable(desk))
    other = desk.sign_edited(method="translation")
    assert other.status_code == 422
    assert "began from rigid" in other.json()["cause"]
    assert desk.decide(decision="edited", draft_etag="x").status_code == 422


FAR = [[-40.0, 10.0], [10.0, 10.0], [10.0, 40.0]]
BOW_TIE = [[100.0, 100.0], [140.0, 140.0], [140.0, 100.0], [100.0, 140.0]]
LINE = [[100.0, 100.0], [120.0, 100.0], [140.0, 100.0]]


@pytest.mark.parametrize(
    ("loops", "why"),
    [
        ([FAR], "reaches out of the image"),
        ([BOW_TIE], "crosses itself"),
        ([LINE], "encloses nothing"),
        ([circle((100, 100), 20), circle((115, 100), 20)], "cross each other"),
    ],
)
def test_what_cannot_be_a_contour_is_not_signed_and_the_slice_is_named(
    desk: Desk, loops: list[Any], why: str
) -> None:
    desk.save({7: loops})
    answer = desk.sign_edited()
    assert answer.status_code == 422
    assert answer.json()["cause"].startswith("slice 8: ")
    assert why in answer.json()["cause"]
    assert desk.people["ann"].get(desk.url("/draft")).status_code == 200  # nothing is lost
    assert desk.job().state is State.AWAITING_REVIEW


def test_nothing_edited_and_nothing_left_are_not_signed(desk: Desk) -> None:
    tag = desk.save({}).headers["etag"]
    assert "nothing was edited" in desk.sign_edited().json()["cause"]
    desk.save({k: [] for k in desk.loops("rigid")}, If_Match=tag)
    assert "no contour is left" in desk.sign_edited().json()["cause"]


def test_edits_and_signatures_are_in_the_audit_log_under_the_patients_key(desk: Desk) -> None:
    desk.save(signable(desk))
    desk.sign_edited()
    with desk.records.index.read() as at:
        rows = [row.row_json for row in at.execute(select(audit).order_by(audit.c.number))]
    patient = desk.job().origin.patient_key
    told = {row["action"].split("{")[0] + row["action"].rpartition("/")[2]: row for row in rows}
    saved = next(
        row for action, row in told.items() if action.endswith("draft") and "PUT" in action
    )
    signed = next(row for row in rows if row["what"] == "sign")
    assert (saved["what"], saved["patient"]) == ("update", patient)
    assert (signed["who"], signed["patient"], signed["outcome"]) == (
        "local:ann",
        patient,
        "success",
    )
    assert desk.drawn.first in signed["objects"]


# History, statistics, the worklist, who looks


def test_the_history_of_a_course_is_told_fraction_by_fraction(desk: Desk) -> None:
    course = desk.job().origin.course_id
    desk.save(signable(desk), seconds=30.0)
    signed = desk.sign_edited().json()
    history = desk.people["vic"].get(f"/v1/courses/{course}/history").json()
    assert (history["course"], history["roi"]) == (course, "GTV")
    first, second = history["fractions"]
    assert (first["fraction"], first["propagation"]) == (1, desk.drawn.first)
    assert (first["state"], second["state"], second["review"]) == ("edited", "matched", None)
    assert first["signed_volume_cc"] == signed["figures"]["volume_cc"]
    report = desk.get("/report")
    assert first["prior_volume_cc"] == pytest.approx(report["prior"]["volume_cc"], abs=1e-3)
    view = desk.get("/view")["methods"][1]
    assert first["shift_xyz_mm"] == pytest.approx(view["shift_xyz_mm"], abs=1.0)  # two centres
    assert set(first["volumes_cc"]) == {"translation", "rigid"}
    told = first["review"]
    assert (told["decision"], told["method"], told["reviewer"]) == ("edited", "rigid", "ann")
    assert told["seconds"] == 30.0
    assert desk.people["vic"].get(f"/v1/courses/{'0' * 32}/history").status_code == 404


def test_statistics_say_what_each_method_cost(desk: Desk) -> None:
    assert desk.people["ann"].get("/v1/statistics/editing").json() == {"methods": [], "since": None}
    desk.save(signable(desk), seconds=30.0)
    signed = desk.sign_edited().json()
    told = desk.people["ann"].get("/v1/statistics/editing").json()
    (rigid,) = told["methods"]
    assert told["since"] == signed["at"]
    assert (rigid["signed"], rigid["unchanged"], rigid["edited"]) == (1, 0, 1)
    assert rigid["median_seconds"] == 30.0
    assert rigid["median_surface_dice_1mm"] == signed["figures"]["surface_dice_1mm"]
    assert rigid["months"] == [
        {
            "month": signed["at"][:7],
            "signed": 1,
            "edited": 1,
            "median_surface_dice_1mm": rigid["median_surface_dice_1mm"],
        }
    ]
    # the last decision on a propagation stands
    desk.decide(decision="rejected", reason="target wrong")
    told = desk.people["ann"].get("/v1/statistics/editing").json()
    assert {m["method"]: (m["signed"], m["rejected"]) for m in told["methods"]} == {
        "rigid": (0, 1),
        "translation": (0, 1),
    }


def test_the_worklist_says_who_looks_how_methods_agree_and_what_changed(desk: Desk) -> None:
    assert desk.people["ann"].post(desk.url("/presence"), json={}).json() == {"others": []}
    assert desk.people["bob"].post(desk.url("/presence")).json() == {"others": ["ann"]}
    assert desk.people["ann"].post(desk.url("/presence")).json() == {"others": ["bob"]}
    items = desk.people["vic"].get("/v1/worklist").json()["items"]
    first = next(item for item in items if item["id"] == desk.drawn.first)
    other = next(item for item in items if item["id"] == desk.drawn.second)
    assert (first["open_by"], other["open_by"]) == (["ann", "bob"], [])
    with desk.records.index.read() as at:
        query = select(propagation.c.figures_json).where(propagation.c.id == desk.drawn.first)
        assert at.execute(query).scalar_one()["roi_name"] == desk.get("/view")["roi"]
    view = desk.get("/view")
    rigid = next(m for m in view["methods"] if m["recommended"])
    assert first["volume_change_percent"] == rigid["change_percent"]
    assert first["agreement"] == pytest.approx(rigid["agreement"]["translation"]["dice"], abs=1e-4)
    assert (other["agreement"], other["volume_change_percent"]) == (None, None)
    missing = desk.people["ann"].post(desk.url("/presence", propagation="0" * 32))
    assert missing.status_code == 404


def test_who_went_away_is_forgotten_after_a_minute(desk: Desk) -> None:
    index, first = desk.records.index, desk.drawn.first
    moment = now()
    assert look_at(index, first, "ann", at=moment) == []
    assert look_at(index, first, "bob", at=moment + KEPT) == ["ann"]
    assert look_at(index, first, "bob", at=moment + 1.5 * KEPT) == []
    with index.read() as at:
        assert open_by(at, [first], at=moment + 1.5 * KEPT) == {first: ["bob"]}
        assert at.execute(select(presence.c.who)).scalars().all() == ["bob"]


def test_the_recommended_method_is_the_networks_else_rigid() -> None:
    assert recommended({"dir-t": 1.0, "rigid": 1.0, "segmamba": 2.0}) == "segmamba"
    assert recommended({"dir-t": 1.0, "translation": 1.0, "segmamba": 0.0}) == "translation"
    assert recommended({"translation": None}) == ""
    assert change_percent(30.0, 40.0) == -25.0
    assert change_percent(None, 40.0) is None
    assert change_percent(30.0, 0.0) is None
    assert mean_or_none([]) is None
    assert mean_or_none([1.0, 2.0]) == 1.5


# Registration, adjusted by hand


def test_no_motion_shows_what_is_shown_already(desk: Desk) -> None:
    view, contours = desk.get("/view"), desk.get("/contours")["contours"]
    made = desk.people["ann"].post(desk.url("/adjusted"), json=NO_MOTION).json()
    assert made["image"]["volume"] == view["images"]["planning"]["volume"]
    assert made["contours"]["rigid"] == contours["prior"]
    # it stays the view's image
    assert desk.get("/view")["images"] == view["images"]


def test_what_is_pushed_goes_where_it_is_pushed_and_turns_about_the_prior(desk: Desk) -> None:
    pushed = (
        desk.people["ann"]
        .post(desk.url("/adjusted"), json={"translation_xyz_mm": [10.0, 0.0, 0.0]})
        .json()
    )
    turned = (
        desk.people["ann"]
        .post(desk.url("/adjusted"), json={"rotation_xyz_deg": [0.0, 0.0, 30.0]})
        .json()
    )
    before = desk.loops("prior")
    k = middle_of(before)
    u, v = center_of(before[k])
    there = {loop["slice"]: loop["points_xy_mm"] for loop in pushed["contours"]["rigid"]}
    moved = center_of([there[k]])
    assert moved == pytest.approx((u + 10.0, v), abs=0.3)
    view = desk.get("/view")
    at = np.array([*view["registration"]["at_xyz_mm"], 1.0])
    own = np.array(view["registration"]["planning_from_cbct"])
    np.testing.assert_allclose(np.array(turned["planning_from_cbct"]) @ at, own @ at, atol=1e-4)
    step = np.array([10.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(
        np.array(pushed["planning_from_cbct"]) @ (at + step), own @ at, atol=1e-4
    )
    # a positive angle about z turns x towards y
    arm = np.array([20.0, 0.0, 0.0, 0.0])
    swung = 20.0 * np.array([np.cos(np.pi / 6), np.sin(np.pi / 6), 0.0, 0.0])
    np.testing.assert_allclose(
        np.array(turned["planning_from_cbct"]) @ (at + swung), own @ (at + arm), atol=1e-4
    )


def test_there_has_to_be_a_registration_to_adjust(desk: Desk) -> None:
    url = desk.url("/adjusted", propagation=desk.drawn.second)
    assert desk.people["ann"].post(url, json=NO_MOTION).status_code == 409
    too_far = {"translation_xyz_mm": [501, 0, 0]}
    assert desk.people["ann"].post(desk.url("/adjusted"), json=too_far).status_code == 422
    for part in ("/adjusted", "/again"):
        assert desk.people["vic"].post(desk.url(part), json=NO_MOTION).status_code == 403


def test_registration_begins_again_where_a_person_put_it(desk: Desk) -> None:
    motion = {"translation_xyz_mm": [4.0, -3.0, 2.0], "rotation_xyz_deg": [1.0, 0.0, 2.0]}
    start = desk.people["ann"].post(desk.url("/adjusted"), json=motion).json()
    answer = desk.people["ann"].post(desk.url("/again"), json=motion)
    assert answer.status_code == 202, answer.text
    newer = answer.json()["propagation"]
    assert answer.headers["location"] == f"/v1/propagations/{newer}"
    job = desk.records.propagations.job(newer)
    old = desk.job()
    assert (old.state, old.superseded_by) == (State.SUPERSEDED, newer)
    assert job.origin == old.origin
    assert job.id == order_id(job.order)
    case = case_of(job.order, desk.records.archive)
    assert case.start is not None
    np.testing.assert_allclose(case.start.matrix, start["planning_from_cbct"], atol=1e-8)
    view = desk.get("/view")
    assert view["stale"]["propagation"] == newer
    assert not view["may"]["sign"]
    # the same start again is the same propagation
    twice = desk.people["bob"].post(desk.url("/again"), json=motion)
    assert (twice.status_code, twice.json()["propagation"]) == (202, newer)
    other = desk.people["bob"].post(desk.url("/again"), json=NO_MOTION)
    assert other.status_code == 409
    # and from there it finds the same place
    run(desk.records, newer)
    report = desk.people["ann"].get(desk.url("/report", propagation=newer)).json()
    found = np.array(report["registration"]["planning_from_cbct"]["rows"])
    own = np.array(view["registration"]["planning_from_cbct"])
    at = np.array([*view["registration"]["at_xyz_mm"], 1.0])
    assert np.linalg.norm((found - own) @ at) < 0.5  # mm


def test_what_was_begun_at_that_very_place_is_not_begun_there_again(desk: Desk) -> None:
    case = case_of(desk.job().order, desk.records.archive)
    here = RigidTransform.identity(
        source_frame=case.cbct.frame_of_reference, target_frame=case.planning_ct.frame_of_reference
    )
    order = started_from(desk.job().order, here)
    job, _ = desk.records.propagations.open(order_id(order), order, desk.job().origin)
    with pytest.raises(ConflictError, match="very place"):
        begin_again(desk.records, job, here)


def test_what_is_signed_stays_when_registration_begins_again(desk: Desk) -> None:
    desk.decide(decision="approved", method="rigid")
    newer = desk.people["ann"].post(desk.url("/again"), json=NO_MOTION).json()["propagation"]
    assert desk.job().state is State.APPROVED
    assert desk.records.propagations.job(newer).state is State.MATCHED


def test_a_cancelled_propagation_is_not_begun_again(desk: Desk) -> None:
    with desk.records.index.write() as at:
        at.execute(
            update(propagation)
            .where(propagation.c.id == desk.drawn.first)
            .values(state=State.CANCELLED)
        )
    answer = desk.people["ann"].post(desk.url("/again"), json=NO_MOTION)
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["cause"]
