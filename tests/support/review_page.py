"""A department whose review page is open: a service on a small course, and a browser before it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from pydicom.dataset import FileDataset

from contourcast.service.access.accounts import make_account
from contourcast.service.access.keys import make_key
from contourcast.service.access.roles import Role
from contourcast.service.records import open_records
from contourcast.service.settings import ServiceSettings
from support.course import (
    PATIENT_NAME,
    SHAPE_ZYX,
    SPACING_XYZ_MM,
    TUMOUR_RADIUS_MM,
    TUMOUR_XYZ_MM,
    origin_xyz_mm,
    thorax_hu,
)
from support.data import REPOSITORY, data_item, peer, peer_module, require
from support.dicom_factory import CtFiles, disc, make_ct_series, make_structure_set
from support.issuer import issuing
from support.orthanc import free_ports
from support.server import Server, form_files

PASSWORD: Final = "seven small green apples"
# Name and ID.
PATIENT: Final = (PATIENT_NAME, "ZZQQ-LEAK-ID")
PEOPLE: Final = {
    "ann": (Role.REVIEWER, Role.VIEWER),
    "bob": (Role.REVIEWER, Role.VIEWER),
    "eve": (Role.VIEWER,),
}
BUILT: Final = REPOSITORY / "contourcast" / "service" / "static" / "index.html"
AXE: Final = REPOSITORY / "review" / "node_modules" / "axe-core" / "axe.min.js"
# The patient's shift at each fraction.
SHIFTS_XYZ_MM: Final = (
    *((7, -4, 6), (-5, 3, 2), (2, 6, -4)),
    *((4, 1, 3), (-3, -2, 1), (1, 4, -2)),
)
# How the patient lies at each fraction, and along which axes the machine then writes.
LYING: Final = ("HFS", "HFS", "HFP", "FFS", "HFS", "HFS")
DIRECTIONS: Final = {"HFS": (1, 1, 1), "HFP": (-1, -1, 1), "FFS": (-1, 1, -1)}
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Centre and radii in mm, HU: what one side has and the other has not.
ORGANS: Final = (
    ((25, -20, -10), (45, 40, 40), 45),
    ((-60, 10, -72), (60, 60, 46), 60),
    ((100, 50, 30), (12, 6, 32), 500),
)
REAL_PARTS: Final = ("cbct_02", "plan_ct", "rs_plan")
REAL_ROI: Final = "Stomach_duo_planCT"
LONGEST_S: Final = 300.0
SERIOUS: Final = ("serious", "critical")
DARK, LIGHT = "dark", "light"
ORDINARY, LARGE = (1440, 900), (1920, 1080)


@dataclass(kw_only=True)
class Department:
    """A service that has drawn every fraction.

    Attributes:
        worst: The propagation of the second scan, whose registration was rejected.
        drawn: The others, in the order of being taken.
        lying: Of those one head first supine, one head first prone, and one feet first supine.
        planning_ct: As it was sent.
        scans: By Series Instance UID, as they were sent.
    """

    server: Server
    worst: str
    drawn: list[str]
    lying: tuple[str, ...] = ()
    planning_ct: CtFiles | None = None
    scans: dict[str, CtFiles] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.server.http.base_url).rstrip("/")

    @property
    def looked_at(self) -> str:
        """The earliest: a contour that is signed is the prior of later fractions alone."""
        return self.drawn[0]

    def undecided(self) -> str:
        """A propagation that no other test has touched, the latest first."""
        found = next(each for each in reversed(self.drawn[1:]) if each not in self.taken)
        self.taken.add(found)
        return found

    def kill(self) -> None:
        """``kill -9``, in the middle of whatever it does."""
        self.server.kill()

    def start_again(self) -> None:
        """At the same address, over the same folder."""
        key = self.server.http.headers["Authorization"]
        self.server.start()
        self.server.http.headers["Authorization"] = key

    def get(self, path: str) -> Any:
        """What the service says to a program."""
        answer = self.server.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def department(folder: Path, **more: str) -> Iterator[Department]:
    """A service with three people, a plan, six fractions and among them a scan that fits none.

    Args:
        folder: Of everything.
        more: Settings of the service, as its environment has them.
    """
    planning_ct, structures = _plan(folder)
    scans = [
        _scan(folder, day, body(shift), lying=lying)
        for day, (shift, lying) in enumerate(zip(SHIFTS_XYZ_MM, LYING, strict=True), start=4)
    ]
    # Lying on its side, as no hospital scans: no registration of it may be accepted.
    scans.insert(1, _scan(folder, 20, body((0, 0, 0)).transpose(0, 2, 1)[::-1].copy(), taken=4))
    methods = json.dumps(["translation", "rigid"])
    with _staffed(folder / "data", intake="automatic", methods=methods, **more) as server:
        planned = [*planning_ct.paths, structures]
        for paths in (planned, *(scan.paths for scan in scans)):
            _send(server, paths)
        for scan in scans:
            _complete(server, scan)
        found = [_drawn(server, scan) for scan in scans]
        drawn = [found[0], *found[2:]]
        yield Department(
            server=server,
            worst=found[1],
            drawn=drawn,
            lying=tuple(drawn[LYING.index(each)] for each in ("HFS", "HFP", "FFS")),
            planning_ct=planning_ct,
            scans={scan.series_uid: scan for scan in scans},
        )


@contextmanager
def real_patient(folder: Path, **more: str) -> Iterator[Department]:
    """The same people before a real cone beam, the one of Pancreatic-CT-CBCT-SEG."""
    patient = data_item("pancreas_ct_cbct")
    files = {name: sorted((patient / name).rglob("*.dcm")) for name in REAL_PARTS}
    cbct, planning_ct, structures = (pydicom.dcmread(paths[0]) for paths in files.values())
    with _staffed(folder / "data", **more) as server:
        for paths in files.values():
            _send(server, paths)
        asked = {
            "cbct": cbct.SeriesInstanceUID,
            "planning_ct": planning_ct.SeriesInstanceUID,
            "structures": structures.SOPInstanceUID,
            "roi": REAL_ROI,
            "methods": ["translation", "rigid", "diff-umamba"],
        }
        answer = server.http.post("/v1/propagations", json=asked)
        assert answer.status_code == 202, answer.text
        drawn = str(server.done(answer.json()["id"])["id"])
        yield Department(server=server, worst=drawn, drawn=[drawn])


@contextmanager
def _staffed(data_folder: Path, **more: str) -> Iterator[Server]:
    """A service that three people can sign in to, and a fourth who comes from an issuer."""
    require("peer", BUILT.is_file(), "the review page is not built: make page")
    records = open_records(ServiceSettings(data_folder=data_folder), role="test")
    try:
        for name, roles in PEOPLE.items():
            make_account(records.index, name=name, password=PASSWORD, roles=roles)
        _, key = make_key(
            records.index, label="test", roles=[Role.UPLOADER, Role.VIEWER], days=None
        )
    finally:
        records.close()
    (port,) = free_ports(1)
    back = f"http://127.0.0.1:{port}/v1/session/oidc/callback"
    with issuing(redirect_url=back) as (_, issuer):
        access = {
            "local_accounts": True,
            "secure_cookies": False,
            "oidc": issuer.settings.model_dump(mode="json"),
        }
        server = Server(data_folder, "--port", str(port), access=json.dumps(access), **more).start()
        server.http.headers["Authorization"] = f"Bearer {key}"
        try:
            yield server
        finally:
            server.stop()


def _send(server: Server, paths: Sequence[Path]) -> None:
    answer = server.http.post("/v1/instances", files=form_files(paths))
    assert answer.status_code == 200, answer.text


def send_stranger(server: Server, folder: Path, patient: tuple[str, str]) -> str:
    """Sends a scan of somebody else; its Series Instance UID.

    Args:
        server: That takes it.
        folder: Where it is written.
        patient: Name and ID.
    """
    scan = _scan(folder, 25, body((0, 0, 0)), patient=patient)
    _send(server, scan.paths)
    _complete(server, scan)
    return scan.series_uid


def _complete(server: Server, scan: CtFiles) -> None:
    path = f"/v1/series/{scan.series_uid}/completion"
    server.http.put(path, json={"instances": len(scan.paths)})


def body(shift_xyz_mm: Sequence[float], *, seed: int = 1) -> np.ndarray:
    """A thorax that its mirror image does not fit: heart, liver and one shoulder blade; HU."""
    shift = np.asarray(shift_xyz_mm, float)
    hu = thorax_hu(shift, noise_hu=15.0, seed=seed)
    z, y, x = (
        np.arange(size)[(slice(None), *(None,) * (2 - axis))] * spacing + start - moved
        for axis, (size, spacing, start, moved) in enumerate(
            zip(SHAPE_ZYX, SPACING_XYZ_MM[::-1], origin_xyz_mm()[::-1], shift[::-1], strict=True)
        )
    )
    for center, radii, value in ORGANS:
        away = sum(
            ((along - c) / r) ** 2 for along, c, r in zip((x, y, z), center, radii, strict=True)
        )
        hu[away < 1] = value
    return hu


def _plan(folder: Path) -> tuple[CtFiles, Path]:
    planning = make_ct_series(
        folder / "ct",
        body((0, 0, 0), seed=0),
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=origin_xyz_mm(),
        name="page-ct",
        change=_named,
    )
    z_mm = planning.positions_xyz_mm[:, 2] - TUMOUR_XYZ_MM[2]
    loops = [
        disc((*TUMOUR_XYZ_MM[:2], TUMOUR_XYZ_MM[2] + z), float(np.sqrt(TUMOUR_RADIUS_MM**2 - z**2)))
        for z in z_mm[np.abs(z_mm) < TUMOUR_RADIUS_MM]
    ]
    return planning, make_structure_set(
        folder / "structures.dcm",
        {"GTV": loops},
        reference=planning,
        name="page-rs",
        change=lambda dataset: _named(dataset, 0),
    )


def _named(dataset: FileDataset, _: int) -> None:
    dataset.PatientName, dataset.PatientID = PATIENT


def _scan(
    folder: Path,
    day: int,
    hu_zyx: np.ndarray,
    *,
    taken: int | None = None,
    lying: str = "HFS",
    patient: tuple[str, str] = PATIENT,
) -> CtFiles:
    """The same anatomy in the same place, however the patient lies: its axes are the machine's."""
    senses_xyz = np.array(DIRECTIONS[lying])
    first = [
        0 if sense > 0 else size - 1
        for sense, size in zip(senses_xyz, SHAPE_ZYX[::-1], strict=True)
    ]
    origin = np.array(origin_xyz_mm()) + np.array(first) * np.array(SPACING_XYZ_MM)
    turned = hu_zyx[tuple(slice(None, None, sense) for sense in senses_xyz[::-1])]

    def change(dataset: FileDataset, _: int) -> None:
        dataset.PatientName, dataset.PatientID = patient
        dataset.SeriesDescription = "CBCT"
        dataset.Manufacturer = "Varian Medical Systems / MIM Software"  # as long as they are
        dataset.ManufacturerModelName = "On-Board Imager, Patient Verification"
        date = f"202601{taken or day:02d}"
        dataset.AcquisitionDate = dataset.SeriesDate = dataset.StudyDate = date
        dataset.PatientPosition = lying

    return make_ct_series(
        folder / f"cbct-{day}",
        turned,
        spacing_xyz_mm=SPACING_XYZ_MM,
        origin_xyz_mm=origin,
        direction=np.diag(senses_xyz.astype(float)),
        name=f"page-cbct-{day}",
        change=change,
    )


def _drawn(server: Server, scan: CtFiles) -> str:
    """Waits until a scan that came by itself is drawn; the id of its propagation."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        answer = server.http.get("/v1/propagations", params={"cbct": scan.series_uid})
        if found := answer.json()["propagations"]:
            return str(server.done(found[0]["id"])["id"])
        time.sleep(0.1)
    raise AssertionError("nothing was matched\n" + "".join(server.lines))


# Browsers


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; each context of it is another person's browser."""
    program, playwright = peer("chromium"), peer_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(kw_only=True)
class Person:
    """Somebody before the page.

    Attributes:
        said: What the browser's console had to complain of.
    """

    page: Any
    address: str
    said: list[str] = field(default_factory=list)

    def sign_in(self, name: str) -> None:
        """By the keyboard alone."""
        self.page.goto(f"{self.address}/review/")
        self.page.get_by_label("Name", exact=True).wait_for()
        self.page.keyboard.type(name)
        self.page.keyboard.press("Tab")
        self.page.keyboard.type(PASSWORD)
        self.page.keyboard.press("Enter")
        self.page.locator(".worklist-table .window .row").first.wait_for()

    def sign_in_at_the_issuer(self) -> None:
        """As dr.ann, by the issuer's own page."""
        self.page.goto(f"{self.address}/review/")
        self.page.get_by_role("link", name="Sign in at the hospital's issuer").click()
        self.page.get_by_role("link", name="In", exact=True).click()
        self.page.locator(".worklist-table .window .row").first.wait_for()

    def open(self, propagation: str) -> None:
        """A fraction, by its address; waits for the first picture."""
        self.page.goto(f"{self.address}/review/#/propagations/{propagation}")
        self.page.locator(f'.review[data-shown="{propagation}"]').wait_for()

    def open_the_worst(self, propagation: str, verdict: str) -> None:
        """The first of the worklist, by one key; it says the same verdict there and here."""
        first = self.page.locator(".worklist-table .window .row").first
        _expect(first).to_contain_text(verdict)
        self.page.keyboard.press("Enter")
        self.page.locator(f'.review[data-shown="{propagation}"]').wait_for()
        _expect(self.page.locator(".verdict-line")).to_contain_text(verdict)

    def edit(self, propagation: str) -> None:
        """Opens a fraction and begins to edit the selected contour."""
        self.open(propagation)
        self.page.keyboard.press("e")
        self.page.locator(".tools-edit").wait_for()

    def discard(self) -> None:
        """Throws the draft away, and stops editing."""
        self.page.get_by_role("button", name="Discard draft …").click()
        self.page.locator("dialog").get_by_role("button", name="Discard", exact=True).click()
        self.page.locator(".tools-edit").wait_for(state="detached")

    def stroke(self, *points: tuple[float, float]) -> None:
        """Draws on the axial pane; points are shares of its width and height."""
        box = self.page.locator(".cv-axial").bounding_box()
        places = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=6)
        self.page.mouse.up()

    def flick_and_jump(self) -> None:
        """Through slices, to the worst one, and the planning CT for as long as a key is held."""
        corner = self.page.locator(".cv-axial .cv-corner-slice")
        begun = corner.inner_text()
        self.page.keyboard.press("ArrowDown")
        _expect(corner).not_to_have_text(begun)
        self.page.keyboard.press("c")
        _expect(corner).to_have_text(begun)
        self.page.keyboard.press("]")
        image = self.page.locator(".cv-axial .cv-corner-image")
        self.page.keyboard.down("f")
        _expect(image).to_contain_text("planning CT")
        self.page.keyboard.up("f")
        _expect(image).not_to_contain_text("planning CT")
        self.page.keyboard.press("c")

    def mend(self) -> None:
        """A stroke of the brush, which stays, and a loop by hand, which is undone."""
        self.page.keyboard.press("e")
        self.page.locator(".tools-edit").wait_for()
        facts = self.page.locator(".edit-facts")
        before = facts.inner_text()
        self.stroke((0.30, 0.45), (0.36, 0.50))
        _expect(facts).to_contain_text("1 slice edited")
        brushed = facts.inner_text()
        assert brushed != before
        self.page.keyboard.press("a")  # freehand
        self.stroke((0.30, 0.55), (0.34, 0.60), (0.26, 0.62), (0.30, 0.55))
        _expect(facts).not_to_have_text(brushed)
        self.page.keyboard.press("Control+z")
        _expect(facts).to_have_text(brushed)

    def picture(self, name: str) -> None:
        """Kept where CONTOURCAST_PICTURES says; nowhere else."""
        if folder := os.environ.get("CONTOURCAST_PICTURES"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def forge(self, what: str, change: Callable[[dict[str, Any]], None]) -> None:
        """From now on the browser gets an answer of the service with something changed."""

        def answer(route: Any) -> None:
            true = route.fetch()
            body = true.json()
            change(body)
            route.fulfill(response=true, body=json.dumps(body))

        self.page.route(what, answer)

    def fetch(self, path: str) -> Any:
        """What the service says to this person's browser."""
        answer = self.page.context.request.get(f"{self.address}{path}")
        assert answer.ok, answer.text()
        return answer.json()

    def prove_and(self, button: str) -> None:
        """Shows the credential in an open dialog, and goes on."""
        self.page.locator("dialog input[type=password]").fill(PASSWORD)
        self.page.locator("dialog").get_by_role("button", name=button, exact=True).click()


@contextmanager
def person(
    browser: Any,
    department: Department,
    name: str,
    *,
    size: tuple[int, int] = ORDINARY,
    theme: str = DARK,
    language: str = "en",
) -> Iterator[Person]:
    """Somebody who has signed in, in a browser of their own."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height})
    likes = json.dumps({"theme": theme, "language": language})
    context.add_init_script(
        "if (!localStorage.getItem('contourcast.preferences'))"
        f" localStorage.setItem('contourcast.preferences', {json.dumps(likes)})"
    )
    page = context.new_page()
    made = Person(page=page, address=department.address)
    page.on("console", lambda message: made.said.append(message.text))
    page.on("pageerror", lambda error: made.said.append(f"page error: {error}"))
    try:
        if name:
            made.sign_in(name) if language == "en" else _sign_in_by_order(made, name)
        yield made
    finally:
        page.unroute_all(behavior="ignoreErrors")  # an answer may be under way
        context.close()


def violations(someone: Person) -> list[str]:
    """What axe-core finds that is serious; put in by the driver, which stands above the policy."""
    require("peer", AXE.is_file(), "axe-core is not installed: cd review && npm ci")
    someone.page.evaluate(AXE.read_text("utf-8") + "; null")
    found = someone.page.evaluate("async () => (await axe.run(document)).violations")
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary']}"
        for each in found
        if each["impact"] in SERIOUS
    ]


def _expect(locator: Any) -> Any:
    """Playwright's, which waits for what it asserts."""
    return peer_module("playwright.sync_api").expect(locator)


def _sign_in_by_order(made: Person, name: str) -> None:
    """Where the labels are in another language: the first field, the second, Enter."""
    made.page.goto(f"{made.address}/review/")
    made.page.locator("input[name=name]").fill(name)
    made.page.locator("input[name=password]").fill(PASSWORD)
    made.page.keyboard.press("Enter")
    made.page.locator(".worklist-table .window .row").first.wait_for()
