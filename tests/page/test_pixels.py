"""What stands on the screen of a real browser, pixel by pixel, against what numpy makes of files.

Everything that is expected comes from the DICOM files and from conventions of the field: axial and
coronal pictures show the patient's right on the left, sagittal ones the front, the head on top.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from playwright.sync_api import expect
from scipy.ndimage import map_coordinates

from support.review_page import Department, Person, person

pytestmark = pytest.mark.peer
# World axis (left, posterior, head) and sense of what lies right and down on the screen.
LAID = {
    "axial": ((0, 1), (1, 1)),
    "coronal": ((0, 1), (2, -1)),
    "sagittal": ((1, 1), (2, -1)),
}
DEPTH = {"axial": 2, "coronal": 1, "sagittal": 0}
AIR_HU = -1024.0  # there is nothing thinner
SOFT_HU = (40, 400)  # centre and width
HEAD_FIRST_SUPINE, HEAD_FIRST_PRONE, FEET_FIRST_SUPINE = range(3)
PIXELS = """canvas => {
    const {width, height} = canvas;
    const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    let bytes = "";
    for (let at = 0; at < data.length; at += 8192) {
        bytes += String.fromCharCode(...data.subarray(at, at + 8192));
    }
    return [width, height, btoa(bytes)];
}"""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A CT series as its files say.

    Attributes:
        values: HU, ``[k, j, i]``.
        world_from_index: 4 × 4, of ``(i, j, k, 1)``; mm.
    """

    values: np.ndarray
    world_from_index: np.ndarray

    @property
    def box_xyz_mm(self) -> np.ndarray:
        """Lower and upper corner, at the outer faces of voxels: of axes along the patient's."""
        shape = np.array(self.values.shape[::-1])
        ends = self.world_from_index @ np.column_stack(([-0.5] * 3 + [1], [*(shape - 0.5), 1]))
        return np.sort(ends[:3], axis=1).T

    def at(self, world_xyz_mm: np.ndarray) -> np.ndarray:
        """HU between voxels, ``(..., 3)`` to ``(...)``; NaN outside."""
        from_world = np.linalg.inv(self.world_from_index)
        index = world_xyz_mm @ from_world[:3, :3].T + from_world[:3, 3]
        shape = np.array(self.values.shape[::-1])
        outside = ((index < -0.5) | (index >= shape - 0.5)).any(axis=-1)
        found = map_coordinates(
            self.values, np.moveaxis(index[..., ::-1], -1, 0), order=1, mode="nearest"
        )
        return np.where(outside, np.nan, found)


def read(paths: Any) -> Scan:
    """A series, by the rules of DICOM PS3.3 C.7.6.2."""
    slices = [pydicom.dcmread(path) for path in paths]
    across, down = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(across, down)
    slices.sort(key=lambda d: float(normal @ np.array(d.ImagePositionPatient, float)))
    first, last = (np.array(d.ImagePositionPatient, float) for d in (slices[0], slices[-1]))
    row_mm, column_mm = map(float, slices[0].PixelSpacing)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = across * column_mm, down * row_mm
    matrix[:3, 2] = (last - first) / (len(slices) - 1)
    matrix[:3, 3] = first
    hu = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices]
    return Scan(values=np.maximum(hu, AIR_HU), world_from_index=matrix)


@dataclass(frozen=True, kw_only=True)
class Screen:
    """One pane of the page, and where the patient lies on it when all of the plane is shown."""

    name: str
    scan: Scan
    depth_mm: float
    width_px: int
    height_px: int

    @property
    def _fit(self) -> tuple[float, np.ndarray]:
        low, high = self.scan.box_xyz_mm
        (right, _), (down, _) = LAID[self.name]
        across, along = (high - low)[[right, down]]
        return min(self.width_px / across, self.height_px / along), (low + high) / 2

    def world(self) -> np.ndarray:
        """Of the centre of each pixel, ``[y, x, xyz]``; mm."""
        scale, middle = self._fit
        (right, to_right), (down, to_down) = LAID[self.name]
        found = np.empty((self.height_px, self.width_px, 3))
        found[..., DEPTH[self.name]] = self.depth_mm
        x = (np.arange(self.width_px) + 0.5 - self.width_px / 2) / scale
        y = (np.arange(self.height_px) + 0.5 - self.height_px / 2) / scale
        found[..., right] = middle[right] + to_right * x
        found[..., down] = middle[down] + to_down * y[:, None]
        return found

    def pixel(self, world_xyz_mm: np.ndarray) -> np.ndarray:
        """``(n, 3)`` mm to ``(n, 2)`` pixels, x and y, from the upper left corner."""
        scale, middle = self._fit
        (right, to_right), (down, to_down) = LAID[self.name]
        away = world_xyz_mm - middle
        size = np.array([self.width_px, self.height_px])
        return (
            np.column_stack((away[:, right] * to_right, away[:, down] * to_down)) * (scale)
            + size / 2
        )


def grey(hu: np.ndarray, center_hu: float, width_hu: float) -> np.ndarray:
    """0 to 255 with fractions; black where there is nothing."""
    level = (hu - (center_hu - width_hu / 2)) / width_hu * 255
    return np.where(np.isnan(hu), 0, np.clip(level, 0, 255))


def pixels(someone: Person, plane: str, canvas: str) -> np.ndarray:
    """``[y, x, rgba]`` of a canvas of a pane."""
    found = someone.page.locator(f".cv-{plane} .cv-{canvas}").evaluate(PIXELS)
    width, height, text = found
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)


def screen(someone: Person, plane: str, scan: Scan, canvas: np.ndarray) -> Screen:
    """The pane of which this is a canvas; how deep it cuts is what it says itself.

    A bar may come above the panes at any time, and make them smaller.
    """
    corner = someone.page.locator(f".cv-{plane} .cv-corner-slice").inner_text()
    depth = float(re.findall(r"(-?\d+\.\d+) mm", corner.replace("−", "-"))[-1])
    height, width, _ = canvas.shape
    return Screen(name=plane, scan=scan, depth_mm=depth, width_px=width, height_px=height)


@pytest.fixture(
    params=[HEAD_FIRST_SUPINE, HEAD_FIRST_PRONE, FEET_FIRST_SUPINE],
    ids=["supine", "prone", "feet first"],
)
def looking(
    request: pytest.FixtureRequest, browser: Any, clinic: Department
) -> Iterator[tuple[Person, str, Scan]]:
    """Somebody before a fraction of one patient position, in a window for soft tissue."""
    propagation = clinic.lying[request.param]
    series = clinic.get(f"/v1/propagations/{propagation}")["cbct"]
    scan = read(clinic.scans[series].paths)
    with person(browser, clinic, "ann") as ann:
        ann.open(propagation)
        ann.page.keyboard.press("2")
        expect(ann.page.locator(".window-values")).to_have_text("W 400 L 40")
        yield ann, propagation, scan


def test_every_pixel_of_the_three_planes_is_what_numpy_computes(
    looking: tuple[Person, str, Scan],
) -> None:
    ann, _, scan = looking
    for plane in LAID:
        found = pixels(ann, plane, "picture")
        expected = grey(scan.at(screen(ann, plane, scan, found).world()), *SOFT_HU)
        assert (np.ptp(found[..., :3], axis=-1) == 0).all(), "grey"
        assert np.abs(found[..., 0] - expected).max() <= 0.51, plane
        mirrored = np.abs(found[:, ::-1, 0] - expected)
        assert (mirrored > 10).mean() > 0.05, f"{plane}: left and right can be told apart"


def test_the_planning_ct_lies_where_the_registration_puts_it(
    looking: tuple[Person, str, Scan], clinic: Department
) -> None:
    ann, propagation, scan = looking
    assert clinic.planning_ct is not None
    planning = read(clinic.planning_ct.paths)
    matrix = cbct_from_planning(clinic, propagation, clinic.planning_ct.frame_of_reference)
    grid = np.stack(np.meshgrid(*map(np.arange, scan.values.shape), indexing="ij")[::-1], axis=-1)
    points = grid @ scan.world_from_index[:3, :3].T + scan.world_from_index[:3, 3]
    home = np.linalg.inv(matrix)
    moved = planning.at(points @ home[:3, :3].T + home[:3, 3])
    resampled = Scan(values=moved, world_from_index=scan.world_from_index)
    ann.page.keyboard.down("f")
    expect(ann.page.locator(".cv-axial .cv-corner-image")).to_contain_text("planning CT")
    for plane in LAID:
        found = pixels(ann, plane, "picture")
        hu = resampled.at(screen(ann, plane, scan, found).world())
        seen = ~np.isnan(hu)
        assert seen.mean() > 0.2
        away = np.abs(found[..., 0] - grey(hu, *SOFT_HU))[seen]
        # values are sent as whole HU, of which a level has 1.6
        assert away.max() <= 1.0, plane
    ann.page.keyboard.up("f")


def test_a_contour_is_drawn_where_its_file_has_it(
    looking: tuple[Person, str, Scan], clinic: Department
) -> None:
    ann, propagation, scan = looking
    view = clinic.get(f"/v1/propagations/{propagation}/view")
    names = [each["method"] for each in view["methods"]]
    ann.page.keyboard.press("t")  # where distances are measured, no crosshair is drawn
    for number, name in enumerate(names):
        ann.page.keyboard.press(str(5 + number))
        ann.page.keyboard.press("Shift+O")
        ann.page.wait_for_timeout(200)
        ink = pixels(ann, "axial", "overlay")
        there = screen(ann, "axial", scan, ink)
        drawn = of_colour(ink, view["methods"][number]["colour"])
        lines = [
            there.pixel(loop)
            for loop in loops(clinic, propagation, number)
            if abs(loop[0, 2] - there.depth_mm) < 0.06
        ]
        assert lines, f"{name} has a contour on the slice that is shown first"
        points = np.concatenate([dense(line) for line in lines])
        y, x = np.nonzero(drawn)
        apart = np.linalg.norm(np.column_stack((x, y))[:, None] + 0.5 - points, axis=-1)
        assert apart.min(axis=1).max() < 2.0, f"{name}: ink away from its line"
        inked = apart.min(axis=0) < 1.5
        assert inked.mean() > 0.3, f"{name}: a dashed line is a third ink at least"
        turn = np.arctan2(*(points - points.mean(axis=0)).T)
        for part in np.array_split(inked[np.argsort(turn)], 8):
            assert part.any(), f"{name}: all around"


def cbct_from_planning(clinic: Department, propagation: str, planning_frame: str) -> np.ndarray:
    """The matrix of the Spatial Registration, which brings the planning CT to the CBCT."""
    answer = clinic.server.http.get(f"/v1/propagations/{propagation}/registration")
    dataset = pydicom.dcmread(BytesIO(answer.content))
    (moving,) = (
        item for item in dataset.RegistrationSequence if item.FrameOfReferenceUID == planning_frame
    )
    (matrix,) = moving.MatrixRegistrationSequence[0].MatrixSequence
    return np.array(matrix.FrameOfReferenceTransformationMatrix, float).reshape(4, 4)


def loops(clinic: Department, propagation: str, number: int) -> list[np.ndarray]:
    """Of the method of that place in the order, whatever stands first, as ``(n, 3)`` mm."""
    answer = clinic.server.http.get(f"/v1/propagations/{propagation}/structure-set")
    dataset = pydicom.dcmread(BytesIO(answer.content))
    (item,) = (i for i in dataset.ROIContourSequence if i.ReferencedROINumber == number + 1)
    return [np.array(each.ContourData, float).reshape(-1, 3) for each in item.ContourSequence]


def dense(line: np.ndarray) -> np.ndarray:
    """Points along a closed line, less than half a pixel apart."""
    ends = np.roll(line, -1, axis=0)
    parts = max(2, int(np.linalg.norm(ends - line, axis=1).max() / 0.4))
    share = np.linspace(0, 1, parts, endpoint=False)[:, None, None]
    found: np.ndarray = (line + (ends - line) * share).reshape(-1, 2)
    return found


def of_colour(rgba: np.ndarray, colour: str) -> np.ndarray:
    """Where an overlay has at least half of a colour."""
    wanted = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)])
    found: np.ndarray = np.abs(rgba[..., :3].astype(int) - wanted).max(axis=-1) < 24
    return found & (rgba[..., 3] > 127)
