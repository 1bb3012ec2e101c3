from dataclasses import replace

import numpy as np
import pytest
import torch

from contourcast.imaging.volume import Volume
from contourcast.registration.lungs import Lung, as_image, closed_by, grown_by, lungs
from contourcast.registration.pyramid import average, full_resolution
from contourcast.registration.sampling import Image
from contourcast.registration.settings import LungSettings
from support.analytic_phantom import even_grid
from support.thorax_phantom import LUNG_HALF_AXES_MM, Thorax

SETTINGS = LungSettings(spacing_mm=3.0)
LUNG_CC = 4 / 3 * np.pi * float(np.prod(LUNG_HALF_AXES_MM)) / 1000


def found_in(volume: Volume) -> tuple[Lung, ...]:
    return lungs(average(full_resolution(volume, device="cpu"), spacing_mm=3.0), SETTINGS)


def cube(side: int = 21, spacing_mm: float = 2.0) -> Image:
    return Image(
        values=torch.zeros(side, side, side),
        world_from_index=np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]),
    )


@pytest.mark.parametrize(
    "thorax",
    [
        Thorax(),
        Thorax(tumour=False, vessels=0),
        Thorax(bridge=True),
        Thorax(couch=True),
        Thorax(gas=True),
        Thorax(bridge=True, couch=True, gas=True),
    ],
    ids=["plain", "empty", "joined in front", "foam couch", "bowel gas", "all at once"],
)
def test_both_lungs_are_found_with_their_sides_and_volumes(thorax: Thorax) -> None:
    found = found_in(thorax.planning_ct())
    assert sorted(lung.side for lung in found) == ["left", "right"]
    for lung in found:
        assert lung.volume_cc == pytest.approx(LUNG_CC, rel=0.06), lung.side


def test_the_larger_lung_comes_first() -> None:
    volumes = [lung.volume_cc for lung in found_in(Thorax().planning_ct())]
    assert volumes == sorted(volumes, reverse=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_lung_is_one_lung(side: str) -> None:
    (lung,) = found_in(Thorax(lungs=(side,), tumour=False).planning_ct())
    assert lung.side == side
    assert lung.volume_cc == pytest.approx(LUNG_CC, rel=0.06)


def test_no_lung_is_none() -> None:
    assert found_in(Thorax(lungs=(), tumour=False, couch=True, gas=True).planning_ct()) == ()


def test_a_scan_of_air_alone_holds_no_lung() -> None:
    ct = Thorax().planning_ct()
    assert found_in(ct.with_values(np.full(ct.grid.shape_zyx, -1000.0))) == ()


def test_sides_are_the_patients_whatever_the_order_of_the_axes() -> None:
    turned = even_grid(
        extent_xyz_mm=(270, 280, 150), spacing_mm=3.0, direction=np.diag([-1.0, 1.0, -1.0])
    )
    thorax = Thorax(lungs=("left",), tumour=False)
    (lung,) = found_in(thorax.planning_ct(turned))
    assert lung.side == "left"


def test_padding_round_the_field_is_not_air_of_the_patient() -> None:
    ct = Thorax().planning_ct()
    grid = ct.grid
    corner = np.linalg.norm(grid.centers()[:, :2], axis=1).reshape(grid.shape_zyx) > 125
    found = found_in(replace(ct, values=np.where(corner, -3024.0, ct.values)))
    assert [round(lung.volume_cc) for lung in found] == [
        round(lung.volume_cc) for lung in found_in(ct)
    ]


def test_growing_reaches_exactly_as_far_as_it_says() -> None:
    image = cube()
    seed = np.zeros(image.values.shape, bool)
    seed[10, 10, 10] = True
    grown = grown_by(seed, image, 6.0)
    k, j, i = np.nonzero(grown)
    distance_mm = 2.0 * np.linalg.norm(np.column_stack((k, j, i)) - 10, axis=1)
    assert distance_mm.max() == pytest.approx(6.0)
    everywhere = 2.0 * np.linalg.norm(np.indices(seed.shape).reshape(3, -1).T - 10, axis=1)
    assert grown.sum() == (everywhere <= 6.0).sum()
    assert not grown_by(np.zeros_like(seed), image, 6.0).any()


def test_closing_fills_a_vessel_and_a_cavity_and_adds_nothing_else() -> None:
    image = cube()
    whole = np.zeros(image.values.shape, bool)
    whole[4:17, 4:17, 4:17] = True
    holed = whole.copy()
    holed[5:16, 10, 10] = False  # a vessel, 2 mm wide
    holed[8:12, 6:9, 12:15] = False  # a cavity
    np.testing.assert_array_equal(closed_by(holed, image, 4.0), whole)


def test_a_region_becomes_numbers_on_its_own_voxels() -> None:
    image = cube(5)
    region = np.zeros((5, 5, 5), bool)
    region[1, 2, 3] = True
    numbers = as_image(region, image)
    assert numbers.values[1, 2, 3] == 1
    assert numbers.values.sum() == 1
    np.testing.assert_array_equal(numbers.world_from_index, image.world_from_index)
