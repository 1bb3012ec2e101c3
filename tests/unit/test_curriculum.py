from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contourcast.imaging.errors import InputError
from contourcast.training.curriculum import Curriculum, _recipe, read_curriculum

REPOSITORY = Path(__file__).resolve().parents[2]


def drawn(shares: dict[str, float], *, patients: int = 2000) -> dict[str, float]:
    names = [_recipe(shares, np.random.default_rng((5, n))).name for n in range(patients)]
    return {name: names.count(name) / patients for name in sorted(set(names))}


def test_recipes_are_dealt_by_their_shares_and_the_rest_is_the_usual_one() -> None:
    found = drawn({"smooth": 0.3, "clinic-2": 0.25})
    assert found == pytest.approx({"clinic-1": 0.45, "clinic-2": 0.25, "smooth": 0.3}, abs=0.04)
    assert drawn({}, patients=20) == {"clinic-1": 1.0}
    assert drawn({"clinic-2": 1.0}, patients=20) == {"clinic-2": 1.0}


@pytest.mark.parametrize("shares", [{"smooth": -0.1}, {"smooth": 0.6, "clinic-2": 0.6}])
def test_shares_that_are_no_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="shares"):
        Curriculum(seed=1, fractions=1, shares=shares)


def test_a_recipe_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match="smooth"):
        Curriculum(seed=1, fractions=1, shares={"smoth": 0.1})


@pytest.mark.parametrize("name", ["curriculum.toml", "arbiter.toml"])
def test_the_lists_in_the_documentation_are_read_and_keep_the_test_cts_out(name: str) -> None:
    curriculum = read_curriculum(REPOSITORY / "docs" / name, Path("data"))
    unseen = read_curriculum(REPOSITORY / "docs" / "unseen.toml", Path("data"))
    assert not {c.name for c in curriculum.cts} & {c.name for c in unseen.cts}
    phantoms = range(1000 * curriculum.seed, 1000 * curriculum.seed + curriculum.phantoms)
    assert not {c.phantom for c in unseen.cts} & set(phantoms)
    assert curriculum.size >= 200
