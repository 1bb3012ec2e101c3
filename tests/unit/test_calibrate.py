from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from contourcast.imaging.errors import InputError, MethodError
from contourcast.simulation.recipe import CLINIC_1, SMOOTH, Recipe
from contourcast.training import calibrate as calibration
from contourcast.training.calibrate import (
    CalibrationSettings,
    Case,
    Score,
    ScoreBook,
    bisected,
    calibrate,
    cases_of,
    mean_dice,
    write_summary,
)
from support.virtual import TINY, tiny_thorax

SETTINGS = CalibrationSettings(most_evaluations=6)


def _score(case: Case, *, recipe=CLINIC_1, method="rigid", dice=0.5):  # type: ignore[no-untyped-def]
    return Score(
        ct=case.anatomy.name,
        patient=case.patient,
        week=case.week,
        difficulty=recipe.difficulty,
        regression=recipe.regression,
        method=method,
        dice=dice,
        dice_anatomical=dice,
        label_cc=20.0,
        visible_share=0.8,
        place="wall",
        ended_as="",
    )


@pytest.mark.parametrize("answer", [0.5, 0.8, 1.0, 1.7])
def test_bisection_finds_the_multiplier(answer: float) -> None:
    def falls(multiplier: float) -> float:
        return 0.57 - 0.2 * math.log(multiplier / answer)

    found = bisected(falls, 0.57, between=(0.3, 3.0), settings=SETTINGS)
    assert abs(falls(found) - 0.57) <= SETTINGS.tolerance


def test_bisection_out_of_patience_gives_the_closest_it_tried() -> None:
    tried: list[float] = []

    def too_hard(multiplier: float) -> float:
        tried.append(multiplier)
        return 0.1 + 0.01 / multiplier

    found = bisected(too_hard, 0.57, between=(0.4, 2.0), settings=SETTINGS)
    assert found == min(tried)
    assert len(tried) == SETTINGS.most_evaluations


def test_neighbouring_cases_come_from_different_cts() -> None:
    cases = cases_of([tiny_thorax(3), tiny_thorax(4)], CalibrationSettings())
    assert len(cases) == 8
    assert all(a.anatomy is not b.anatomy for a, b in itertools.pairwise(cases))
    assert len({(c.seed, c.number) for c in cases}) == 8


def test_scores_are_found_again_by_a_run_that_goes_on(tmp_path: Path) -> None:
    case = cases_of([tiny_thorax()], CalibrationSettings())[0]
    ScoreBook(tmp_path / "scores.csv").add([_score(case, dice=0.625)])
    back = ScoreBook(tmp_path / "scores.csv").find(case, CLINIC_1, "rigid")
    assert back == _score(case, dice=0.625)
    harder = replace(CLINIC_1, difficulty=1.5)
    assert ScoreBook(tmp_path / "scores.csv").find(case, harder, "rigid") is None


@pytest.mark.parametrize(
    ("recipe", "seed", "named"),
    [
        (replace(SMOOTH, difficulty=CLINIC_1.difficulty), 11, "of another recipe"),
        (CLINIC_1, 12, r"of another patient \(.*, 0, week 3\)"),
    ],
)
def test_scores_of_others_are_not_gone_on_with(
    tmp_path: Path, recipe: Recipe, seed: int, named: str
) -> None:
    path = tmp_path / "scores.csv"
    cases = cases_of([tiny_thorax()], CalibrationSettings(seed=11))
    book = ScoreBook(path)
    book.require_same(cases[:1], CLINIC_1, TINY)
    book.add([_score(cases[0])])
    others = cases_of([tiny_thorax()], CalibrationSettings(seed=seed))
    with pytest.raises(InputError, match=named):
        calibration.score(ScoreBook(path), others, recipe, TINY, ("rigid",), lambda *_: None)
    harder = replace(CLINIC_1, difficulty=1.5)  # what is searched for, so more of them come
    ScoreBook(path).require_same(cases, harder, TINY)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(InputError, match="do not tell of which recipe"):
        ScoreBook(path).require_same(cases, CLINIC_1, TINY)


def test_a_method_that_fails_too_often_is_not_calibrated_on(tmp_path: Path) -> None:
    cases = cases_of([tiny_thorax()], CalibrationSettings())
    book = ScoreBook(tmp_path / "scores.csv")
    book.add(replace(_score(case), ended_as="failed: elastix is not installed") for case in cases)
    with pytest.raises(MethodError, match="4 of 4"):
        mean_dice(book, cases, CLINIC_1, "rigid")
    assert ScoreBook(tmp_path / "scores.csv").find(cases[0], CLINIC_1, "rigid") is None


def test_the_summary_says_how_far_off_the_published_means_it_is(tmp_path: Path) -> None:
    cases = cases_of([tiny_thorax()], CalibrationSettings())
    book = ScoreBook(tmp_path / "scores.csv")
    book.add(_score(case, dice=d) for case, d in zip(cases, (0.5, 0.6, 0.7, 0.8), strict=True))
    write_summary(tmp_path / "calibration.json", book, cases, CLINIC_1, SETTINGS)
    document = json.loads((tmp_path / "calibration.json").read_text())
    rigid = document["methods"]["rigid"]
    assert rigid["dice_mean"] == pytest.approx(0.65)
    assert rigid["off_by"] == pytest.approx(0.65 - 0.569)
    assert rigid["fractions"] == 4
    assert rigid["interval_95"][0] <= 0.65 <= rigid["interval_95"][1]
    assert set(document["methods"]) == {"rigid"}


def test_difficulty_is_set_by_rigid_and_regression_by_dir_l(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(book, cases, recipe, sampling, methods, on_step):  # type: ignore[no-untyped-def]
        rigid = 0.57 - 0.2 * math.log(recipe.difficulty / 0.7)
        dir_l = 0.67 - 0.2 * math.log(recipe.regression / 1.4)
        values = {"translation": rigid, "rigid": rigid, "dir-t": dir_l, "dir-l": dir_l}
        book.add(_score(c, recipe=recipe, method=m, dice=values[m]) for c in cases for m in methods)

    monkeypatch.setattr(calibration, "score", known)
    final = calibrate(
        tmp_path,
        anatomies=[tiny_thorax()],
        recipe=CLINIC_1,
        sampling=TINY,
        settings=SETTINGS,
    )
    assert final.difficulty == pytest.approx(0.7, rel=0.2)
    assert final.regression == pytest.approx(1.4, rel=0.25)
    document = json.loads((tmp_path / "calibration.json").read_text())
    assert set(document["methods"]) == {"translation", "rigid", "dir-t", "dir-l"}


def test_a_case_is_scored_by_the_methods_of_the_product(tmp_path: Path) -> None:
    case = cases_of([tiny_thorax()], CalibrationSettings())[0]
    book = ScoreBook(tmp_path / "scores.csv")
    heard: list[float] = []

    def hear(sentence: str, done: float) -> None:
        heard.append(done)

    calibration.score(book, [case], CLINIC_1, TINY, ("translation", "rigid"), hear)
    found = book.find(case, CLINIC_1, "rigid")
    assert found is not None
    assert 0.05 < found.dice < 1.0
    assert heard == [1.0]
    calibration.score(book, [case], CLINIC_1, TINY, ("translation", "rigid"), hear)
    assert heard == [1.0]  # known scores are not computed again
