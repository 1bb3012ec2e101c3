from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from contourcast.imaging.errors import FrameMismatchError, GeometryError, GridMismatchError
from contourcast.imaging.grid import Grid
from contourcast.imaging.metrics import Agreement, _element_areas, agreement, dice, iou
from contourcast.imaging.volume import Mask
from support.data import peer_module

SPACINGS_XYZ = [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.9, 1.3, 2.5)]


def grid_of(
    shape_zyx: tuple[int, int, int], spacing_xyz_mm: tuple[float, float, float] = (1, 1, 1)
) -> Grid:
    return Grid.even(
        shape_zyx=shape_zyx, spacing_xyz_mm=spacing_xyz_mm, origin_xyz_mm=(-7.0, 3.0, 11.0)
    )


def mask_of(values: object, grid: Grid | None = None) -> Mask:
    array = np.asarray(values, bool)
    return Mask(values=array, grid=grid or grid_of(array.shape), frame_of_reference="a", name="GTV")


def in_a_box(
    shape_zyx: tuple[int, int, int],
    start_zyx: tuple[int, int, int],
    stop_zyx: tuple[int, int, int],
    spacing_xyz_mm: tuple[float, float, float] = (1, 1, 1),
) -> Mask:
    values = np.zeros(shape_zyx, bool)
    values[tuple(slice(a, b) for a, b in zip(start_zyx, stop_zyx, strict=True))] = True
    return mask_of(values, grid_of(shape_zyx, spacing_xyz_mm))


def blobs(spacing_xyz_mm: tuple[float, float, float], seed: int, kind: str) -> tuple[Mask, Mask]:
    """Two bumpy tumours that differ in one way."""
    grid = grid_of((26, 60, 64), spacing_xyz_mm)
    rng = np.random.default_rng(seed)
    points = np.moveaxis(np.indices(grid.shape_zyx), 0, -1) * grid.spacing_zyx_mm
    middle = points.reshape(-1, 3).mean(axis=0)

    def blob(center: np.ndarray, radius: float) -> np.ndarray:
        bumps = gaussian_filter(rng.normal(size=grid.shape_zyx), (2, 4, 4)) * 20
        inside: np.ndarray = np.linalg.norm(points - center, axis=-1) < radius + bumps
        return inside

    one = blob(middle, 11.0)
    if kind == "moved":
        other = blob(middle + np.array([2.0, 3.0, -2.0]), 12.0)
    elif kind == "half":
        other = one & (points[..., 1] > middle[1])
    elif kind == "blob added":
        other = one | blob(middle + np.array([0.0, 22.0, 0.0]), 4.0)
    else:
        other = blob(middle + np.array([0.0, 26.0, 10.0]), 9.0)
    return mask_of(one, grid), mask_of(other, grid)


KINDS = ["moved", "half", "blob added", "at the border"]
CASES = list(itertools.product(SPACINGS_XYZ, KINDS))


# --- against other programs


@contextmanager
def quiet() -> Iterator[None]:
    """MONAI announces its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.peer
@pytest.mark.parametrize(("spacing", "kind"), CASES)
def test_figures_are_monai_s(spacing: tuple[float, float, float], kind: str) -> None:
    monai, torch = peer_module("monai.metrics"), peer_module("torch")
    proposal, reference = blobs(spacing, 1, kind)
    ours = agreement(proposal, reference)
    a, b = (
        torch.from_numpy(m.values.astype(np.float64))[None, None] for m in (proposal, reference)
    )
    zyx = list(proposal.grid.spacing_zyx_mm)
    with quiet():
        hd95 = monai.compute_hausdorff_distance(a, b, percentile=95, spacing=zyx).item()
        _, directed, _ = peer_module("monai.metrics.utils").get_edge_surface_distance(
            a[0, 0] > 0, b[0, 0] > 0, spacing=zyx, symmetric=True
        )
        there = monai.compute_average_surface_distance(a, b, spacing=zyx).item()
        back = monai.compute_average_surface_distance(b, a, spacing=zyx).item()
        shares = [
            monai.compute_surface_dice(a, b, [mm], spacing=zyx, use_subvoxels=True).item()
            for mm in (1.0, 2.0, 3.0)
        ]
        overlap = monai.compute_dice(a, b).item(), monai.compute_iou(a, b).item()
    single = 1e-6  # MONAI answers in single precision
    assert (ours.dice, ours.iou) == pytest.approx(overlap, rel=single)
    # It interpolates the percentile in single precision too, so its distances say it better.
    assert ours.hd95_mm == pytest.approx(hd95, abs=1e-4)
    assert ours.hd95_mm == pytest.approx(
        max(np.percentile(d.numpy().astype(float), 95) for d in directed), abs=1e-6
    )
    assert ours.msd_mm == pytest.approx((there + back) / 2, rel=single)
    found = (ours.surface_dice_1mm, ours.surface_dice_2mm, ours.surface_dice_3mm)
    assert found == pytest.approx(shares, abs=1e-3)


@pytest.mark.peer
@pytest.mark.parametrize(("spacing", "kind"), CASES)
def test_surface_dice_is_deepmind_s(
    spacing: tuple[float, float, float], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # it was written for NumPy 1
    theirs = peer_module("surface_distance")
    proposal, reference = blobs(spacing, 2, kind)
    ours = agreement(proposal, reference)
    with quiet():
        distances = theirs.compute_surface_distances(
            reference.values, proposal.values, proposal.grid.spacing_zyx_mm
        )
    for mm, found in enumerate(
        (ours.surface_dice_1mm, ours.surface_dice_2mm, ours.surface_dice_3mm), start=1
    ):
        expected = theirs.compute_surface_dice_at_tolerance(distances, mm)
        assert found == pytest.approx(expected, abs=1e-3), f"at {mm} mm"


@pytest.mark.peer
def test_every_surface_element_has_deepmind_s_area(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    tables = peer_module("surface_distance.lookup_tables")
    for spacing in ((1.0, 1.0, 1.0), (3.0, 1.3, 0.9)):
        theirs = tables.create_table_neighbour_code_to_surface_area(spacing)
        reversed_bits = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
        assert np.abs(_element_areas(spacing)[reversed_bits] - theirs).max() < 1e-12


# --- by hand


def test_overlap_by_hand() -> None:
    a = mask_of([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]])
    b = mask_of([[[0, 1, 1], [0, 1, 1], [0, 0, 0]]])
    assert dice(a, b) == 0.5
    assert iou(a, b) == pytest.approx(1 / 3)


def test_a_shift_by_hand() -> None:
    shape = (12, 20, 20)
    a = in_a_box(shape, (2, 5, 5), (10, 13, 11))
    b = in_a_box(shape, (2, 5, 9), (10, 13, 15))
    found = agreement(a, b)
    assert found.hd95_mm == 4
    assert found.hd95_pooled_mm == 4
    assert found.dice == pytest.approx(2 * 2 / (6 + 6))
    assert (found.proposal_cc, found.reference_cc) == pytest.approx((0.384, 0.384))


def test_the_third_axis_counts_in_its_own_millimetres() -> None:
    spacing = (1.0, 1.0, 3.0)
    a = in_a_box((9, 9, 9), (2, 2, 2), (4, 7, 7), spacing)
    b = in_a_box((9, 9, 9), (4, 2, 2), (6, 7, 7), spacing)
    assert agreement(a, b).hd95_mm == 6
    assert agreement(a, b).reference_cc == pytest.approx(0.150)


def test_a_blob_far_away_shows_in_the_larger_direction_only() -> None:
    values = np.zeros((6, 30, 60), bool)
    values[2:4, 5:25, 5:25] = True
    blob = values.copy()
    blob[2:4, 10:13, 50:53] = True
    found = agreement(mask_of(blob), mask_of(values))
    assert found.hd95_pooled_mm == 0
    assert found.hd95_mm is not None
    assert found.hd95_mm == 0  # 18 of 800 voxels: below the percentile
    found = agreement(mask_of(values & (np.arange(60) < 12)), mask_of(values))
    assert found.hd95_mm is not None
    assert found.hd95_pooled_mm is not None
    assert found.hd95_mm > found.hd95_pooled_mm > 0


def test_one_voxel_has_the_surface_of_an_octahedron() -> None:
    one = in_a_box((3, 3, 3), (1, 1, 1), (2, 2, 2))
    areas = _element_areas((1.0, 1.0, 1.0))
    assert areas[[0, 255]].tolist() == [0, 0]
    assert 8 * areas[1] == pytest.approx(8 * np.sqrt(3) / 8)
    assert agreement(one, one).surface_dice_1mm == 1


def test_surface_dice_of_plates_by_hand() -> None:
    # Large plates 2 mm apart: rims aside nothing lies within 1 mm, everything within 2 mm.
    a = in_a_box((12, 40, 40), (3, 0, 0), (5, 40, 40))
    b = in_a_box((12, 40, 40), (5, 0, 0), (7, 40, 40))
    found = agreement(a, b)
    assert found.surface_dice_2mm == pytest.approx(1)
    assert found.surface_dice_1mm == pytest.approx(0.5, abs=0.05)  # the face they share


def test_added_path_by_hand() -> None:
    reference = in_a_box((3, 20, 20), (1, 5, 5), (2, 15, 15))
    short = in_a_box((3, 20, 20), (1, 5, 5), (2, 15, 11))
    found = agreement(short, reference)
    # Corners are cut at 45 degrees, half a pixel from either side.
    whole = 4 * 9 + 4 * np.sqrt(0.5)
    far = 9 + 2 * np.sqrt(0.5) + 2 * 2  # the right side, and what leads there beyond 1 mm
    assert found.added_path_length_mm == pytest.approx(far)
    assert found.added_path_length_fraction == pytest.approx(far / whole)


def test_added_path_stays_within_1_mm_and_within_its_slice() -> None:
    reference = in_a_box((4, 20, 20), (1, 5, 5), (3, 15, 15))
    for pixels, expected in ((1, 0.0), (2, 1.0)):
        low, high = 5 - pixels, 15 + pixels
        grown = in_a_box((4, 20, 20), (1, low, low), (3, high, high))
        assert agreement(grown, reference).added_path_length_fraction == expected
    one_slice = in_a_box((4, 20, 20), (1, 5, 5), (2, 15, 15))
    assert agreement(one_slice, reference).added_path_length_fraction == pytest.approx(0.5)


def test_pixels_that_are_not_square_have_their_own_lengths() -> None:
    reference = in_a_box((3, 9, 9), (1, 3, 3), (2, 4, 6), (0.5, 2.0, 3.0))
    nothing = in_a_box((3, 9, 9), (0, 0, 0), (0, 0, 0), (0.5, 2.0, 3.0))
    corner = np.hypot(0.25, 1.0)
    assert agreement(nothing, reference).added_path_length_mm == pytest.approx(
        2 * 2 * 0.5 + 4 * corner
    )


def test_what_lies_at_the_tolerance_counts_wherever_it_lies() -> None:
    """Five slices of 0.4 mm are 2 mm, though the difference of two places may round to more."""
    found = set()
    for first in range(40):
        near = in_a_box((60, 6, 6), (first, 2, 2), (first + 8, 4, 4), (1.0, 1.0, 0.4))
        far = in_a_box((60, 6, 6), (first + 5, 2, 2), (first + 13, 4, 4), (1.0, 1.0, 0.4))
        found.add(round(agreement(near, far).surface_dice_2mm or 0.0, 9))
    assert found == {1.0}


# --- nothing


def test_two_empty_masks_agree_and_say_that_they_are_empty() -> None:
    none = mask_of(np.zeros((3, 3, 3)))
    found = agreement(none, none)
    assert (found.dice, found.iou, found.hd95_mm, found.msd_mm) == (1, 1, 0, 0)
    assert found.surface_dice_2mm == 1
    assert found.added_path_length_fraction == 0
    assert found.empty == "both"


@pytest.mark.parametrize("which", ["proposal", "reference"])
def test_one_empty_mask_has_no_distance(which: str) -> None:
    none, some = mask_of(np.zeros((4, 4, 4))), in_a_box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    found = agreement(none, some) if which == "proposal" else agreement(some, none)
    assert (found.dice, found.iou, found.surface_dice_3mm) == (0, 0, 0)
    assert (found.hd95_mm, found.hd95_pooled_mm, found.msd_mm) == (None, None, None)
    assert found.empty == which
    if which == "proposal":
        assert found.added_path_length_fraction == 1
    else:
        assert found.added_path_length_fraction is None


def test_figures_go_into_json() -> None:
    none, some = mask_of(np.zeros((4, 4, 4))), in_a_box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    told = json.loads(json.dumps(agreement(none, some).as_dict(), allow_nan=False))
    assert told["hd95_mm"] is None
    assert Agreement(**told) == agreement(none, some)


# --- where masks live


def test_masks_of_different_frames_or_grids_are_not_compared() -> None:
    a = in_a_box((4, 4, 4), (1, 1, 1), (3, 3, 3))
    other_frame = Mask(values=a.values, grid=a.grid, frame_of_reference="b")
    other_grid = in_a_box((4, 4, 4), (1, 1, 1), (3, 3, 3), (1, 1, 2))
    for verb in (agreement, dice, iou):
        with pytest.raises(FrameMismatchError):
            verb(a, other_frame)
        with pytest.raises(GridMismatchError):
            verb(a, other_grid)


def test_one_slice_alone_is_refused() -> None:
    a = in_a_box((1, 4, 4), (0, 1, 1), (1, 3, 3))
    with pytest.raises(GeometryError, match="one slice alone"):
        agreement(a, a)


def uneven(offsets_z_mm: list[float]) -> Grid:
    return Grid(
        shape_zyx=(len(offsets_z_mm), 20, 20),
        spacing_xy_mm=(1.0, 1.0),
        origin_xyz_mm=np.zeros(3),
        offsets_z_mm=np.array(offsets_z_mm),
    )


def test_uneven_slices_weigh_what_they_stand_for() -> None:
    grid = uneven([0.0, 2.0, 4.0, 10.0, 16.0])
    values = np.zeros(grid.shape_zyx, bool)
    values[1:3, 5:10, 5:10] = True
    longer = values.copy()
    longer[3, 5:10, 5:10] = True
    a, b = mask_of(values, grid), mask_of(longer, grid)
    short, long = 2.0 + 4.0, 2.0 + 4.0 + 6.0
    assert dice(a, b) == pytest.approx(2 * short / (short + long))
    assert dice(a, b) == pytest.approx(2 * a.volume_cc / (a.volume_cc + b.volume_cc))


def test_uneven_slices_give_the_distances_of_the_even_scan_they_were_taken_from() -> None:
    # The same blocks on 2 mm slices everywhere, and on slices of 2 and 4 mm.
    even = uneven([2.0 * n for n in range(13)])
    mixed = uneven([0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 22.0, 24.0])

    def block(grid: Grid, low: float, high: float) -> Mask:
        values = np.zeros(grid.shape_zyx, bool)
        slices = (grid.offsets_z_mm >= low) & (grid.offsets_z_mm <= high)
        values[slices, 5:15, 5:15] = True
        return mask_of(values, grid)

    for figure in ("hd95_mm", "msd_mm", "surface_dice_2mm"):
        on_even = getattr(agreement(block(even, 4, 20), block(even, 8, 20)), figure)
        on_mixed = getattr(agreement(block(mixed, 4, 20), block(mixed, 8, 20)), figure)
        assert on_mixed == pytest.approx(on_even), figure


def test_nearly_equal_slices_do_not_explode() -> None:
    grid = uneven([0.0, 0.01, 5.0, 10.0])
    values = np.zeros(grid.shape_zyx, bool)
    values[1:3, 5:15, 5:15] = True
    found = agreement(mask_of(values, grid), mask_of(values, grid))
    assert (found.hd95_mm, found.surface_dice_1mm) == (0, 1)
