from __future__ import annotations

import numpy as np
import pytest
import torch

from contourcast.models.follow import follow, followed

SPACING = (2.5, 2.5, 2.5)
SHAPE = (32, 36, 40)


def places() -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, SPACING, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def scene(at_zyx_mm: tuple[float, float, float], *, radius_mm: float = 12.0) -> np.ndarray:
    """A dense ball somewhere, and structures round it that stay."""
    z, y, x = places()
    away = [axis - at for axis, at in zip((z, y, x), at_zyx_mm, strict=True)]
    ball = 1 / (1 + np.exp((np.sqrt(sum(a**2 for a in away)) - radius_mm) / 1.5))
    wall = 1 / (1 + np.exp((38 - y) / 1.5))
    rods = ((z % 24 < 4) & (x % 30 < 5)).astype(float)
    image: np.ndarray = (1.5 * ball + 2 * wall + 0.5 * rods - 1).clip(-1.5, 1.5).astype(np.float32)
    return image


def depth_mm(at_zyx_mm: tuple[float, float, float], *, radius_mm: float = 12.0) -> np.ndarray:
    away = places() - np.array(at_zyx_mm)[:, None, None, None]
    depth: np.ndarray = radius_mm - np.sqrt((away**2).sum(0))
    return depth


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("moved", [(7.0, 0.0, 0.0), (0.0, -6.0, 3.0), (-4.0, 4.0, -7.0)])
def test_a_tumour_that_moved_is_followed(moved: tuple[float, float, float]) -> None:
    today, planned = scene(moved), scene((0.0, 0.0, 0.0))
    field = follow(today, planned, spacing_zyx_mm=SPACING)
    prior, truth = depth_mm((0.0, 0.0, 0.0)), depth_mm(moved) > 0
    carried = followed(prior, field, spacing_zyx_mm=SPACING) > 0
    assert dice(prior > 0, truth) < 0.75
    assert dice(carried, truth) > 0.93
    middle = depth_mm(moved) > 9
    # a place of today shows what lay, at planning, where it came from
    assert np.allclose(field[:, middle].mean(1), [-mm for mm in moved], atol=1.5)


def test_a_tumour_that_shrank_is_followed() -> None:
    today, planned = scene((0.0, 0.0, 0.0), radius_mm=13.0), scene((0.0, 0.0, 0.0), radius_mm=15.0)
    field = follow(today, planned, spacing_zyx_mm=SPACING)
    prior = depth_mm((0.0, 0.0, 0.0), radius_mm=15.0)
    carried = followed(prior, field, spacing_zyx_mm=SPACING) > 0
    assert dice(carried, depth_mm((0.0, 0.0, 0.0), radius_mm=13.0) > 0) > 0.93


def test_where_nothing_moved_nothing_is_moved() -> None:
    planned = scene((0.0, 0.0, 0.0))
    noise = np.random.default_rng(0).normal(0, 0.2, SHAPE)
    field = follow(
        (0.6 * planned + 0.3 + noise).astype(np.float32), planned, spacing_zyx_mm=SPACING
    )
    inside = depth_mm((0.0, 0.0, 0.0)) > -5
    assert float(np.linalg.norm(field[:, inside], axis=0).max()) < 1.0


def test_the_same_input_gives_the_same_bytes_also_where_gradients_are_off() -> None:
    pair = scene((3.0, 0.0, 2.0)), scene((0.0, 0.0, 0.0))
    once = follow(*pair, spacing_zyx_mm=SPACING)
    with torch.inference_mode():
        again = follow(*pair, spacing_zyx_mm=SPACING)
    assert once.any()
    assert np.array_equal(once, again)


def test_spacing_is_of_each_axis_its_own() -> None:
    """Every second slice: the same field in millimetres."""
    moved = (6.0, 0.0, 4.0)
    today, planned = scene(moved)[::2], scene((0.0, 0.0, 0.0))[::2]
    field = follow(today, planned, spacing_zyx_mm=(5.0, 2.5, 2.5))
    assert field.shape == (3, *today.shape)
    middle = depth_mm(moved)[::2] > 9
    assert np.allclose(field[:, middle].mean(1), [-mm for mm in moved], atol=2.0)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 8, 8), (12, 12, 12)])
def test_flat_and_thin_images_stay_where_they_are(shape: tuple[int, int, int]) -> None:
    flat = np.full(shape, 0.25, np.float32)
    field = follow(flat, flat, spacing_zyx_mm=SPACING)
    assert field.shape == (3, *shape)
    assert not field.any()


def test_values_come_from_where_the_field_says() -> None:
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    field = np.zeros((3, 4, 5, 6), np.float32)
    field[2] = 2.5  # one voxel along x
    moved = followed(values, field, spacing_zyx_mm=SPACING)
    assert np.array_equal(moved[:, :, :-1], values[:, :, 1:])
    assert np.array_equal(moved[:, :, -1], values[:, :, -1])
