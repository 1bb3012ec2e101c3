"""What the page is shown: figures, voxels on one grid, loops on slices; no foreign frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from scipy.ndimage import map_coordinates
from sqlalchemy import update

from contourcast.imaging.dicom.ct_series import read_ct_series
from contourcast.imaging.dicom.rtstruct_in import read_structure_set
from contourcast.imaging.errors import FrameMismatchError, GeometryError
from contourcast.imaging.grid import Grid
from contourcast.imaging.keyhole import Ring, keyhole
from contourcast.imaging.structures import Contour, Roi
from contourcast.service import problems
from contourcast.service.access.roles import Role
from contourcast.service.api.routes import page_files
from contourcast.service.index.tables import page, propagation, revision, volume
from contourcast.service.jobs.propagations import Origin
from contourcast.service.keeping.rebuild import rebuild
from contourcast.service.keeping.records import Recorder
from contourcast.service.problems import NotFoundError
from contourcast.service.review.disagreement import disagreement, mean_distance_mm
from contourcast.service.review.grids import grid_as_json, grid_of
from contourcast.service.review.loops import as_json, from_json, on_slices, opened, raised
from contourcast.service.review.pages import OUTSIDE, Pages
from support.dicom_factory import CtFiles, make_ct_series, make_plan, make_structure_set, uid
from support.records import looking_into
from support.review import Desk, Drawn, at_desk, draw, take

HEAD_FIRST = np.eye(3)
# Rows, columns and slices of a scan lie along these patient axes, as columns.
POSITIONS = {
    "head first, supine": HEAD_FIRST,
    "head first, prone": np.diag([-1.0, -1.0, 1.0]),
    "feet first, supine": np.diag([-1.0, 1.0, -1.0]),
    "feet first, prone": np.diag([1.0, -1.0, -1.0]),
    "decubitus": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("page")
    return draw(folder / "data", folder / "treatment")


@pytest.fixture(scope="module")
def desk(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with at_desk(drawn.copy(tmp_path_factory.mktemp("desk") / "data")) as desk:
        yield desk


@pytest.fixture
def own(drawn: Drawn, folder: Path) -> Drawn:
    return drawn.copy(folder)


def hu_of(files: CtFiles) -> np.ndarray:
    """The scan as its files say, slice by slice in the factory's order.

    Below the lowest value of the Hounsfield scale that scanners write, the reader takes it as that.
    """
    hu: np.ndarray = np.stack([pydicom.dcmread(path).pixel_array for path in files.paths])
    return hu.clip(min=-1024)


def slices(desk: Desk, image: dict[str, Any], first: int, last: int) -> np.ndarray:
    answer = desk.people["vic"].get(
        f"/v1/volumes/{image['volume']}/slices", params={"from": first, "to": last}
    )
    assert answer.status_code == 200, answer.text
    _, rows, columns = image["shape_zyx"]
    return np.frombuffer(answer.content, "<i2").reshape(last - first + 1, rows, columns)


# The view


def test_the_view_says_what_the_propagation_and_its_report_say(desk: Desk) -> None:
    answer = desk.people["ann"].get(desk.url("/view"))
    propagation = desk.people["ann"].get(desk.url())
    report = desk.get("/report")
    view = answer.json()
    assert answer.headers["etag"] == propagation.headers["etag"]
    assert view["propagation"] == desk.drawn.first
    assert (view["state"], view["roi"]) == ("awaiting_review", "GTV")
    assert (view["fraction"], view["fractions"], view["stale"]) == (1, None, None)
    assert view["patient"]["id"] == "ID-A"
    assert view["verdict"]["verdict"] == report["verdict"]
    assert [m["method"] for m in view["methods"]] == ["translation", "rigid"]
    assert [m["recommended"] for m in view["methods"]] == [False, True]
    for shown, told in zip(view["methods"], report["methods"], strict=True):
        assert shown["volume_cc"] == told["volume_cc"]
        ratio = told["volume_cc"] / report["prior"]["volume_cc"]
        assert shown["change_percent"] == pytest.approx(100 * (ratio - 1), abs=0.06)
        assert not shown["empty"]
    one, other = view["methods"]
    assert one["agreement"]["rigid"] == other["agreement"]["translation"]
    assert one["agreement"]["rigid"]["dice"] == report["methods"][0]["agreement_with_rigid"]["dice"]
    assert {m["colour"] for m in view["methods"]} == {"#e69f00", "#56b4e9"}
    assert [(g["ghost"], g["carried_from"]) for g in view["ghosts"]] == [("prior", "planning")]
    assert view["approved"] is None
    # from what, and why
    basis, order = view["basis"], desk.job().order
    assert basis["planning_ct"]["series"] == order["planning_ct"]["series"]
    assert basis["structures"]["series"] == order["structures"]["series"]
    assert basis["signed_on"] is None
    course = desk.people["ann"].get(f"/v1/courses/{view['course']}").json()
    assert basis["reasons"] == course["fractions"][0]["reasons"] != []


def test_how_many_fractions_are_planned_is_what_the_plans_agree_on(own: Drawn) -> None:
    def plan(name: str, fractions: int, approval: str) -> Path:
        def change(dataset: pydicom.FileDataset) -> None:
            dataset.PatientName, dataset.PatientID = "Phantom^A", "ID-A"
            dataset.PatientBirthDate = "19500102"
            dataset.ApprovalStatus = approval
            dataset.FractionGroupSequence[0].NumberOfFractionsPlanned = fractions

        structures_uid = own.treatment.structures_uid
        path = own.folder / f"{name}.dcm"
        return make_plan(path, name=name, structures_uid=structures_uid, change=change)

    with at_desk(own) as desk:
        told = []
        for each in (
            plan("draft", 33, "UNAPPROVED"),
            plan("treated", 30, "APPROVED"),
            plan("rejected", 20, "REJECTED"),
            plan("boost", 5, "APPROVED"),
        ):
            take(desk.records, [each])
            told.append(desk.get("/view")["fractions"])
    assert told == [33, 30, 30, None]


def test_names_are_for_the_roles_that_the_site_says(desk: Desk) -> None:
    ann, vic = (desk.get("/view", who=who)["patient"] for who in ("ann", "vic"))
    assert ann["name"]
    assert vic == {"key": ann["key"], "id": "ID-A", "name": "", "birth_date": ""}


def test_the_worklist_gives_the_first_reason_and_the_figure_that_it_is_about(desk: Desk) -> None:
    items = desk.people["ann"].get("/v1/worklist").json()["items"]
    (row,) = [item for item in items if item["id"] == desk.drawn.first]
    report = desk.get("/report")
    assert row["reason"] == report["reasons"][0]
    assert row["doubt"] in report["figures"]
    assert row["doubt"]["reason"] == row["reason"]


def test_the_registration_is_said_as_six_numbers_at_the_prior(desk: Desk) -> None:
    registration = desk.get("/view")["registration"]
    matrix = np.array(registration["planning_from_cbct"])
    at = np.array([*registration["at_xyz_mm"], 1.0])
    assert registration["at"] == "centre of the prior"
    np.testing.assert_allclose(
        (at - matrix @ at)[:3], registration["translation_xyz_mm"], atol=1e-3
    )
    assert registration["figures"]
    assert all({"limit", "verdict"} <= figure.keys() for figure in registration["figures"])


def test_who_may_decide_is_said_with_the_reason(desk: Desk) -> None:
    assert desk.get("/view")["may"] == {
        "sign": True,
        "edit": True,
        "retry": False,
        "reject": True,
        "why_not": "",
    }
    looking = desk.get("/view", who="vic")["may"]
    assert (looking["sign"], looking["edit"], looking["reject"]) == (False, False, False)
    assert "to look" in looking["why_not"]
    key = desk.http.get(desk.url("/view"), headers=desk.keys[Role.REVIEWER]).json()["may"]
    assert (key["sign"], key["edit"]) == (False, True)
    assert "person" in key["why_not"]


def test_the_target_is_where_the_contours_are(desk: Desk) -> None:
    view, contours = desk.get("/view"), desk.get("/contours")["contours"]
    on = {loop["slice"] for method in ("translation", "rigid") for loop in contours[method]}
    assert view["target"]["first_slice"] == min(on)
    assert view["target"]["last_slice"] == max(on)
    assert [each["slice"] for each in view["disagreement"]] == sorted(on)
    worst = max(view["disagreement"], key=lambda each: each["mm"])
    assert view["worst_slice"] == worst["slice"]


def test_a_propagation_that_is_not_drawn_yet_shows_its_cbct_alone(desk: Desk) -> None:
    answer = desk.people["ann"].get(desk.url("/view", propagation=desk.drawn.second))
    view = answer.json()
    assert view["images"]["planning"] is None
    assert "not placed" in view["images"]["planning_why_not"]
    assert (view["registration"], view["target"], view["methods"]) == (None, None, [])
    assert not view["may"]["sign"]
    assert view["may"]["why_not"] == "it is matched"
    assert slices(desk, view["images"]["cbct"], 0, 0).shape == (1, 64, 64)


def test_a_planning_ct_that_is_gone_is_said_and_the_cbct_is_shown(own: Drawn) -> None:
    with looking_into(own.folder) as records:
        with records.index.write() as at:
            at.execute(page.delete())
            at.execute(volume.delete())
        job = records.propagations.job(own.first)
        for path in records.archive.files_of(
            job.order["planning_ct"]["series"], job.order["planning_ct"]["files"]
        ):
            path.unlink()
        shown = Pages(records).of(job)
    assert shown.planning is None
    assert "no such file" in shown.planning_why_not
    assert shown.contours["rigid"]


@pytest.mark.parametrize("by_whom", ["matching", "a program that named no revision"])
def test_a_newer_revision_makes_it_stale_and_nobody_signs_it(own: Drawn, by_whom: str) -> None:
    with at_desk(own) as desk:
        tag = desk.tag()
        drawn_on = desk.job().order["cbct"]["files"]
        with desk.records.index.write() as at:
            if by_whom != "matching":
                at.execute(update(propagation).values(revision_id=None))
        with desk.records.index.write() as at:
            at.execute(
                revision.insert().values(
                    id="newer",
                    series_uid=desk.job().order["cbct"]["series"],
                    number=2,
                    members_json=[[f"2.25.{n}", d] for n, d in enumerate([*drawn_on, "00" * 32])],
                    reason="a slice came late",
                    made_at="2026-01-05T00:00:00+00:00",
                    matched=0,
                )
            )
        assert desk.tag() != tag, "an open page learns of it"
        view = desk.get("/view")
        assert "more slices" in view["stale"]["why"]
        assert not view["may"]["sign"]
        assert view["may"]["reject"], "what nothing newer replaces can be put away"
        late = desk.decide(tag=tag, decision="approved", method="rigid")
        assert late.status_code == 412
        refused = desk.decide(decision="approved", method="rigid")
        assert refused.status_code == 412
        assert "more slices" in refused.json()["cause"]
        assert desk.decide(decision="rejected", reason="image artefact").status_code == 201


def test_the_banner_says_what_the_scan_says_whoever_has_the_same_number(own: Drawn) -> None:
    with at_desk(own) as desk:
        before = desk.get("/view")["patient"]
        stranger = own.folder / "stranger.dcm"
        dataset = pydicom.dcmread(
            next(
                iter(
                    desk.records.archive.files_of(
                        desk.job().order["cbct"]["series"], desk.job().order["cbct"]["files"]
                    )
                )
            )
        )
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uid("stranger series"), uid("stranger")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.IssuerOfPatientID = "another hospital"
        dataset.PatientName, dataset.PatientBirthDate = "Stranger^Otto", "19010101"
        dataset.save_as(stranger)
        take(desk.records, [stranger])
        assert desk.get("/view")["patient"] == before
        rows = desk.people["ann"].get("/v1/worklist").json()["items"]
        assert {row["patient"]["name"] for row in rows} == {before["name"]}


# Voxels


def test_slices_are_the_voxels_of_the_files(desk: Desk) -> None:
    image = desk.get("/view")["images"]["cbct"]
    expected = hu_of(desk.drawn.treatment.fractions[0])
    np.testing.assert_array_equal(slices(desk, image, 0, 23), expected)
    np.testing.assert_array_equal(slices(desk, image, 7, 9), expected[7:10])
    grid = read_ct_series(desk.drawn.treatment.fractions[0].paths, role="CBCT").grid
    assert image["shape_zyx"] == list(grid.shape_zyx)
    assert image["origin_xyz_mm"] == grid.origin_xyz_mm.tolist()
    assert image["slice_z_mm"] == grid.offsets_z_mm.tolist()
    assert image["even"]


def test_the_planning_ct_lies_on_the_cbcts_grid_through_its_own_transform(desk: Desk) -> None:
    view = desk.get("/view")
    cbct, planning = view["images"]["cbct"], view["images"]["planning"]
    for same in ("shape_zyx", "origin_xyz_mm", "spacing_xyz_mm", "frame_of_reference"):
        assert planning[same] == cbct[same]
    assert planning["label"].startswith("planning CT through")
    files = desk.drawn.treatment.planning_ct
    k, j, i = np.meshgrid(*(np.arange(n) for n in cbct["shape_zyx"]), indexing="ij")
    index = np.stack((i, j, k), axis=-1).reshape(-1, 3)
    world = index * np.array(cbct["spacing_xyz_mm"]) + cbct["origin_xyz_mm"]
    matrix = np.array(view["registration"]["planning_from_cbct"])
    there = world @ matrix[:3, :3].T + matrix[:3, 3]
    at = (there - files.positions_xyz_mm[0]) / 5.0
    expected = map_coordinates(hu_of(files).astype(float), at[:, ::-1].T, order=1, mode="nearest")
    shown = slices(desk, planning, 0, 23).reshape(-1)
    inside = ((at > -0.49) & (at < np.array([64, 64, 24]) - 0.51)).all(axis=1)
    outside = ((at < -0.51) | (at > np.array([64, 64, 24]) - 0.49)).any(axis=1)
    assert inside.mean() > 0.5
    assert np.abs(shown[inside] - expected[inside]).max() <= 0.51  # HU: rounded to whole ones
    assert (shown[outside] == OUTSIDE).all()


def test_slices_are_compressed_for_who_takes_it_and_kept_for_ever(desk: Desk) -> None:
    image = desk.get("/view")["images"]["cbct"]
    url = f"/v1/volumes/{image['volume']}/slices?from=3&to=3"
    plain = desk.people["ann"].get(url, headers={"Accept-Encoding": "identity"})
    small = desk.people["ann"].get(url, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert small.content == plain.content  # the client unpacks it
    assert int(small.headers["content-length"]) < len(plain.content)
    assert plain.headers["etag"] != small.headers["etag"]
    for answer in (plain, small):
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        known = desk.people["ann"].get(
            url,
            headers={
                "If-None-Match": answer.headers["etag"],
                "Accept-Encoding": "gzip" if answer is small else "identity",
            },
        )
        assert known.status_code == 304


@pytest.mark.parametrize(
    ("digest", "asked", "status"),
    [
        ("", "from=0&to=64", 422),
        ("", "from=5&to=4", 422),
        ("", "from=20&to=24", 422),
        ("", "from=-1&to=4", 422),
        ("", "from=0", 422),
        ("0" * 64, "from=0&to=1", 404),
        ("nothing", "from=0&to=1", 422),
    ],
)
def test_what_was_not_handed_out_or_is_not_there_is_refused(
    desk: Desk, digest: str, asked: str, status: int
) -> None:
    known = desk.get("/view")["images"]["cbct"]["volume"]
    answer = desk.people["ann"].get(f"/v1/volumes/{digest or known}/slices?{asked}")
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_uploader_sees_no_page(desk: Desk) -> None:
    volume_digest = desk.get("/view")["images"]["cbct"]["volume"]
    for url in (
        desk.url("/view"),
        desk.url("/contours"),
        f"/v1/volumes/{volume_digest}/slices?from=0&to=1",
    ):
        assert desk.http.get(url, headers=desk.keys[Role.UPLOADER]).status_code == 403


def test_what_was_thrown_away_is_made_again_and_is_the_same(own: Drawn) -> None:
    with at_desk(own) as desk:
        view, contours = desk.get("/view"), desk.get("/contours")
    derived = own.folder / "store" / "derived"
    for path in derived.iterdir():
        path.unlink()
    with at_desk(replace(own)) as desk:
        for image in view["images"]["cbct"], view["images"]["planning"]:
            assert slices(desk, image, 0, 3).shape == (4, 64, 64)
        assert desk.get("/view") == view
        assert desk.get("/contours") == contours


def test_a_page_is_the_same_after_the_database_was_lost(own: Drawn) -> None:
    with looking_into(own.folder) as records:
        shown = Pages(records).of(records.propagations.job(own.first))
        archive = records.archive
        Recorder(records.index, archive.blobs, archive.incoming).keep()
    for file in own.folder.glob("index.sqlite3*"):
        file.unlink()
    with looking_into(own.folder) as records:
        rebuild(records.archive)
        assert Pages(records).of(records.propagations.job(own.first)) == shown


def test_voxels_that_are_damaged_are_made_again(own: Drawn) -> None:
    with at_desk(own) as desk:
        image = desk.get("/view")["images"]["cbct"]
    path = own.folder / "store" / "derived" / f"{image['volume']}.i16"
    path.write_bytes(b"\0" * path.stat().st_size)
    with at_desk(own) as desk:
        assert slices(desk, image, 0, 23).min() < -900


# Contours


def test_loops_are_those_of_the_structure_set_in_the_plane_of_their_slice(desk: Desk) -> None:
    answer = desk.get("/contours")
    image = desk.get("/view")["images"]["cbct"]
    direction, origin = np.array(image["direction"]), np.array(image["origin_xyz_mm"])
    path = desk.records.derived.result(desk.drawn.first, "RS.dcm")
    made = pydicom.dcmread(path)
    assert answer["frame_of_reference"] == made.FrameOfReferenceUID
    by_number = sorted(made.ROIContourSequence, key=lambda item: int(item.ReferencedROINumber))
    for name, item in zip(("translation", "rigid"), by_number, strict=True):
        written = [
            np.array(contour.ContourData, float).reshape(-1, 3) for contour in item.ContourSequence
        ]
        shown = [
            origin
            + np.array(loop["points_xy_mm"]) @ direction[:, :2].T
            + image["slice_z_mm"][loop["slice"]] * direction[:, 2]
            for loop in answer["contours"][name]
        ]
        assert len(shown) == len(written)
        for a, b in zip(shown, written, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_the_prior_is_a_ghost_where_rigid_carried_it(desk: Desk) -> None:
    contours = desk.get("/contours")["contours"]
    assert [loop["slice"] for loop in contours["prior"]] == [
        loop["slice"] for loop in contours["rigid"]
    ]
    for prior, rigid in zip(contours["prior"], contours["rigid"], strict=True):
        # to four decimals, as they are written
        np.testing.assert_allclose(prior["points_xy_mm"], rigid["points_xy_mm"], atol=1e-4)


def test_contours_are_sent_again_only_when_they_changed(desk: Desk) -> None:
    first = desk.people["ann"].get(desk.url("/contours"))
    assert first.headers["cache-control"] == "private, no-cache"
    known = {"If-None-Match": first.headers["etag"]}
    assert desk.people["ann"].get(desk.url("/contours"), headers=known).status_code == 304


def test_a_contour_of_another_frame_is_never_shown(own: Drawn) -> None:
    """Somebody forges the machine's set: the same places, another frame of reference."""
    with looking_into(own.folder) as records:
        path = records.derived.result(own.first, "RS.dcm")
        forged = pydicom.dcmread(path)
        for item in forged.StructureSetROISequence:
            item.ReferencedFrameOfReferenceUID = "1.2.3.4"
        forged.save_as(path)
        with records.index.write() as at:
            at.execute(page.delete())
    with at_desk(own) as desk:
        for part in ("/view", "/contours"):
            answer = desk.people["ann"].get(desk.url(part))
            assert answer.status_code == 422
            assert answer.json()["where"].startswith("(0020,0052)")
        refused = desk.decide(
            tag=desk.people["ann"].get(desk.url()).headers["etag"],
            decision="approved",
            method="rigid",
        )
        assert (refused.status_code, refused.json()["type"]) == (422, "/problems/frame-mismatch")
        assert desk.job().state == "awaiting_review"


def test_a_contour_between_slices_is_not_shown_on_either() -> None:
    grid = Grid.even(shape_zyx=(5, 8, 8), spacing_xyz_mm=(1, 1, 3), origin_xyz_mm=(0, 0, 0))
    with pytest.raises(GeometryError, match=r"1\.50 mm off"):
        on_slices(square(grid, 1.5), grid, "frame")
    with pytest.raises(FrameMismatchError):
        on_slices(square(grid, 1), grid, "another frame")
    assert list(on_slices(square(grid, 1), grid, "frame")) == [1]


def square(grid: Grid, k: float) -> Roi:
    corners = grid.world([[1, 1, k], [4, 1, k], [4, 4, k], [1, 4, k]])
    return Roi(
        number=1,
        name="GTV",
        contours=(Contour(points_xyz_mm=corners),),
        frame_of_reference="frame",
    )


@pytest.mark.parametrize("holes", [1, 2, 3])
def test_holes_come_out_of_their_cuts_as_they_went_in(holes: int) -> None:
    outer = polygon((0, 0), 20)
    inner = [polygon((x, 0.3 * x), 3.1)[::-1] for x in (-9, 0, 9)[:holes]]
    written = np.round(keyhole(Ring(outer=outer, holes=tuple(inner))), 4)
    found = opened(written)
    assert len(found) == 1 + holes
    np.testing.assert_array_equal(found[0], np.round(outer, 4))
    expected = {np.round(hole, 4).tobytes() for hole in inner}
    for hole in found[1:]:  # one begins at its leftmost point
        assert expected & set(_turns(hole))
    assert [loop.tobytes() for loop in opened(outer)] == [outer.tobytes()]


def _turns(loop: np.ndarray) -> list[bytes]:
    return [np.roll(loop, n, axis=0).tobytes() for n in range(len(loop))]


def polygon(center: tuple[float, float], radius: float, points: int = 24) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False) + 0.1
    return np.column_stack((np.cos(turn), np.sin(turn))) * radius + center


def test_loops_come_back_from_json_bit_by_bit() -> None:
    slices = {3: [polygon((0.1, 1 / 3), np.pi)], 5: [polygon((7, 7), 2), polygon((7, 7), 1)]}
    back = from_json(json.loads(json.dumps(as_json(slices))))
    assert back.keys() == slices.keys()
    for k, loops in slices.items():
        for a, b in zip(back[k], loops, strict=True):
            assert a.tobytes() == b.tobytes()


# Which side is which


@pytest.mark.parametrize("position", POSITIONS)
def test_a_mark_at_the_patients_left_is_at_the_patients_left(position: str, folder: Path) -> None:
    """However the patient lies: from the JSON alone, the bright voxel is where it was put."""
    direction = POSITIONS[position]
    middle = np.array([3.0, -7.0, 11.0])
    size = np.array([20, 24, 10]) - 1
    spacing = np.array([2.0, 1.5, 3.0])
    origin = middle - direction @ (size * spacing / 2)
    mark = middle + np.array([12.0, -6.0, 6.0])  # left, in front, towards the head
    i, j, k = np.rint(direction.T @ (mark - origin) / spacing).astype(int)
    hu = np.full((10, 24, 20), -500)
    hu[k, j, i] = 1000
    scan = make_ct_series(
        folder / "scan",
        hu,
        spacing_xyz_mm=spacing.tolist(),
        origin_xyz_mm=origin,
        direction=direction,
    )
    loop = origin + direction @ (np.array([i, j, k]) * spacing)
    corners = loop + (direction[:, :2] @ (spacing[:2, None] * [[-1, 1, 1, -1], [-1, -1, 1, 1]])).T
    drawn_on_it = make_structure_set(folder / "rs.dcm", {"GTV": [corners]}, reference=scan)
    image, voxels, roi = shown_of(folder / "data", scan, drawn_on_it)
    assert voxels[tuple(np.argwhere(voxels == 1000)[0])] == 1000
    nz, ny, nx = np.argwhere(voxels == 1000)[0]
    there = np.array(image["origin_xyz_mm"]) + np.array(image["direction"]) @ (
        nx * image["spacing_xyz_mm"][0],
        ny * image["spacing_xyz_mm"][1],
        image["slice_z_mm"][nz],
    )
    assert np.abs(there - mark).max() <= max(spacing) / 2
    assert there[0] > middle[0]  # left
    ((slice_number, loops),) = on_slices(roi, grid_of(image), image["frame_of_reference"]).items()
    assert slice_number == nz
    u, v = np.array(loops[0]).mean(axis=0)
    assert (u, v) == pytest.approx((nx * spacing[0], ny * spacing[1]), abs=0.01)
    back = raised(loops, slice_number, grid_of(image))[0]
    np.testing.assert_allclose(back.points_xyz_mm, corners, atol=1e-3)


def test_an_oblique_scan_keeps_its_plane(folder: Path) -> None:
    turn = np.radians(20)
    direction = np.array(
        [
            [np.cos(turn), 0, np.sin(turn)],
            [0, 1, 0],
            [-np.sin(turn), 0, np.cos(turn)],
        ]
    )
    scan = make_ct_series(folder / "scan", direction=direction)
    volume_read = read_ct_series(scan.paths, role="CBCT")
    grid = grid_of(json.loads(json.dumps(grid_as_json(volume_read.grid))))
    assert grid.same_as(volume_read.grid)
    loops = {2: [polygon((8, 6), 3)]}
    roi = Roi(
        number=1,
        name="GTV",
        contours=raised(loops[2], 2, grid),
        frame_of_reference=volume_read.frame_of_reference,
    )
    back = on_slices(roi, grid, volume_read.frame_of_reference)
    np.testing.assert_allclose(back[2][0], loops[2][0], atol=1e-9)
    assert np.ptp(roi.contours[0].points_xyz_mm[:, 2]) > 1  # mm: all three coordinates vary


def shown_of(
    folder: Path, scan: CtFiles, structures: Path
) -> tuple[dict[str, Any], np.ndarray, Roi]:
    """A scan as the page has it, without anything drawn on it."""
    with looking_into(folder) as records:
        take(records, scan.paths)
        files = [kept.file_digest for kept in records.archive.instances_of(scan.series_uid)]
        order = {"cbct": {"series": scan.series_uid, "files": files}, "methods": []}
        job, _ = records.propagations.open("0" * 32, order, Origin())
        pages = Pages(records)
        shown = pages.of(job)
        assert pages.of(job) == shown  # as it was kept
        content, image = pages.voxels(
            shown.cbct["volume"], first=0, last=shown.cbct["shape_zyx"][0] - 1
        )
        with pytest.raises(NotFoundError):
            pages.voxels("1" * 64, first=0, last=0)
    voxels = np.frombuffer(content, "<i2").reshape(image["shape_zyx"])
    return image, voxels, read_structure_set(structures).rois[0]


def test_uneven_slices_stay_where_they_are(folder: Path) -> None:
    scan = make_ct_series(folder / "scan", positions_z_mm=[0, 3, 6, 10, 14])
    rs = make_structure_set(folder / "rs.dcm", {"GTV": [np.eye(3) * 9]}, reference=scan)
    image, voxels, _ = shown_of(folder / "data", scan, rs)
    assert image["slice_z_mm"] == [0, 3, 6, 10, 14]
    assert not image["even"]
    np.testing.assert_array_equal(voxels, hu_of(scan))


# Where methods differ


def test_disagreement_is_the_mean_distance_in_the_plane() -> None:
    small, large = polygon((0, 0), 10, 360), polygon((0, 0), 12, 360)
    found = disagreement({"a": {4: [small]}, "b": {4: [large], 5: [large]}, "empty": {}})
    assert found[4] == pytest.approx(2.0, abs=0.01)  # mm
    # alone on its slice: as far as it would have to shrink
    assert found[5] == pytest.approx(12.0, abs=0.05)
    assert disagreement({"a": {4: [small]}}) == {4: 0.0}
    assert mean_distance_mm([small], [small]) == 0


# The page's own files


@pytest.fixture
def page_client(tmp_path: Path) -> Iterator[tuple[Path, TestClient]]:
    app = FastAPI()
    problems.install(app)
    built = tmp_path / "static"
    app.include_router(page_files.routes(None, built=built))  # type: ignore[arg-type]
    with TestClient(app, follow_redirects=False) as client:
        yield built, client


def build(built: Path) -> None:
    (built / "assets").mkdir(parents=True)
    (built / "index.html").write_text("<!doctype html><title>x</title>", "utf-8")
    (built / "assets" / "index-abc.js").write_text("export {};" * 200, "utf-8")
    (built / "assets" / "secret.py").write_text("", "utf-8")


def test_without_the_built_page_the_service_says_so(
    page_client: tuple[Path, TestClient],
) -> None:
    _, client = page_client
    for path in ("/", "/review", "/review/", "/review/assets/x.js"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["detail"] == "the review page is not built; run `make page`"


def test_the_page_is_served_under_a_strict_policy(page_client: tuple[Path, TestClient]) -> None:
    built, client = page_client
    build(built)
    for path in ("/", "/review"):
        assert client.get(path).headers["location"] == "/review/"
    shown = client.get("/review/")
    assert shown.text.startswith("<!doctype html>")
    policy = shown.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert shown.headers["cache-control"] == "no-cache"
    script = client.get("/review/assets/index-abc.js", headers={"Accept-Encoding": "gzip"})
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["content-encoding"] == "gzip"
    assert script.headers["cache-control"].endswith("immutable")
    plain = client.get("/review/assets/index-abc.js", headers={"Accept-Encoding": "identity"})
    assert plain.text == script.text
    assert plain.headers["etag"] != script.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/review/assets/secret.py",
        "/review/assets/nothing.js",
        "/review/assets/.hidden.js",
        "/review/assets/..%2Findex.html",
        "/review/index.html",
    ],
)
def test_only_built_files_are_given(page_client: tuple[Path, TestClient], path: str) -> None:
    built, client = page_client
    build(built)
    assert client.get(path).status_code == 404


def test_the_page_is_public_and_the_rest_is_not(desk: Desk) -> None:
    answer = desk.http.get("/review/")
    assert answer.status_code in (200, 404)  # 404 where it is not built
    assert desk.http.get(desk.url("/view")).status_code == 401
