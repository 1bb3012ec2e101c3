from __future__ import annotations

from dataclasses import asdict

import pytest

from contourcast.imaging.errors import InputError
from contourcast.simulation.recipe import CLINIC_1, CLINIC_2, RECIPES, Recipe, recipe_named


def test_the_three_recipes_are_there_by_name() -> None:
    assert set(RECIPES) == {"smooth", "clinic-1", "clinic-2"}
    assert all(RECIPES[name].name == name for name in RECIPES)


def test_an_unknown_recipe_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(InputError, match="clinic-1"):
        recipe_named("clinic1")


def test_negative_multipliers_are_refused() -> None:
    with pytest.raises(InputError, match="negative"):
        Recipe(name="x", difficulty=-0.1)
    with pytest.raises(InputError, match="negative"):
        recipe_named("clinic-1", regression=-1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_multipliers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="finite numbers"):
        recipe_named("clinic-1", difficulty=value)
    with pytest.raises(InputError, match="finite numbers"):
        recipe_named("clinic-1", regression=value)


def test_multipliers_multiply_those_of_the_recipe() -> None:
    found = recipe_named("clinic-1", difficulty=2.0, regression=0.5)
    assert found.difficulty == 2.0 * CLINIC_1.difficulty
    assert found.regression == 0.5 * CLINIC_1.regression


def test_clinic_2_differs_from_clinic_1_in_label_style_alone() -> None:
    one, two = asdict(CLINIC_1), asdict(CLINIC_2)
    assert {key for key in one if one[key] != two[key]} == {
        "name",
        "generosity_mm_normal",
        "observer_noise_mm",
        "label_window_hu",
    }
