"""Makes courses as hard as published ones: two multipliers of a recipe, found by bisection.

`difficulty` moves translation and rigid, `regression` moves the deformable methods, and hardly the
other way round (REGISTRATION §11.3). So difficulty is bisected until Rigid scores what the paper's
did, then regression until DIR-L does; the other methods are checks and never tuned on. Nothing of
registration is touched. Every score is written down when it is known, so that a calibration that
was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from contourcast.imaging.distance import carry, distance_map
from contourcast.imaging.errors import InputError, MethodError
from contourcast.imaging.metrics import dice
from contourcast.imaging.resample import Moved
from contourcast.propagate import Network
from contourcast.registration.methods import METHODS, Task
from contourcast.registration.rigid import register_all
from contourcast.registration.settings import RegistrationSettings
from contourcast.simulation.anatomy import Anatomy
from contourcast.simulation.fraction import Fraction, fraction
from contourcast.simulation.patient import VirtualPatient, virtual_patient
from contourcast.simulation.recipe import Recipe, Sampling
from contourcast.training.statistics import estimate

PUBLISHED_DICE: Final = {"translation": 0.552, "rigid": 0.569, "dir-t": 0.632, "dir-l": 0.666}
SETTINGS_FILE: Final = "settings.json"
FAILED: Final = "failed: "
MOST_FAILED: Final = 0.2  # of the fractions; with more, nothing is calibrated on them

OnStep = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What is asked for, and how long to look for it.

    Attributes:
        patients_each: Virtual patients grown from each CT.
        weeks: Of each patient's fractions.
        rigid_every: The search for `difficulty` looks at every so-many-th case,
        dir_every: that for `regression`, which is dearer, at these; the final table has them all.
    """

    seed: int = 11
    patients_each: int = 2
    weeks: tuple[float, ...] = (3.0, 6.0)
    tolerance: float = 0.03  # REGISTRATION §11.6
    difficulty_range: tuple[float, float] = (0.4, 2.0)
    regression_range: tuple[float, float] = (0.4, 2.0)
    most_evaluations: int = 4
    rigid_every: int = 2
    dir_every: int = 4


@dataclass(frozen=True, kw_only=True)
class Score:
    """One method on one fraction of one virtual patient."""

    ct: str
    patient: int
    week: float
    difficulty: float
    regression: float
    method: str
    dice: float
    dice_anatomical: float
    label_cc: float
    visible_share: float
    place: str
    ended_as: str

    @property
    def failed(self) -> bool:
        """Whether the method gave no answer, and the rigid contour stands in for it."""
        return self.ended_as.startswith(FAILED)

    @property
    def key(self) -> tuple[str, int, float, float, float, str]:
        """What it is a score of."""
        return (self.ct, self.patient, self.week, self.difficulty, self.regression, self.method)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One fraction to be scored, before the recipe's multipliers are known."""

    anatomy: Anatomy
    patient: int
    week: float
    seed: tuple[int, ...]
    number: int


class ScoreBook:
    """All scores so far, kept in a CSV file as they come; beside it, what else they depend on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = read_scores(path) if path.is_file() else []
        # a run that goes on tries again what failed
        self._scores: dict[tuple[object, ...], Score] = {s.key: s for s in known if not s.failed}

    def find(self, case: Case, recipe: Recipe, method: str) -> Score | None:
        """The score if it is known."""
        return self._scores.get(
            (
                case.anatomy.name,
                case.patient,
                case.week,
                recipe.difficulty,
                recipe.regression,
                method,
            )
        )

    def require_same(self, cases: Sequence[Case], recipe: Recipe, sampling: Sampling) -> None:
        """Refuses to go on with other patients or another recipe than the book began with.

        A score is found again by CT, patient, week, method and the recipe's two multipliers; all
        the rest that it depends on stands in ``settings.json``.

        Raises:
            InputError: They differ, or nobody wrote them down.
        """
        stated = {
            "recipe": asdict(replace(recipe, difficulty=1.0, regression=1.0)),
            "sampling": asdict(sampling),
        }
        for case in cases:
            name = f"patient ({case.anatomy.name}, {case.patient}, week {case.week:g})"
            stated[name] = {
                "ct": case.anatomy.digest,
                "seed": case.seed,
                "number": case.number,
            }
        now = json.loads(json.dumps(stated))  # lists for tuples, as they come back from the file
        path = self.path.with_name(SETTINGS_FILE)
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        other = [key for key, value in now.items() if before.get(key, value) != value]
        if other or (self._scores and not before):
            raise InputError(
                f"the scores in this folder are of another {other[0]}"
                if other
                else "the scores in this folder do not tell of which recipe and patients they are",
                file=path.name,
                remedy="choose another folder: --out",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(before | now, indent=1) + "\n", "utf-8")

    def add(self, scores: Iterable[Score]) -> None:
        """Remembers and writes down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(Score.__dataclass_fields__))
            if is_new:
                writer.writeheader()
            for score in scores:
                self._scores[score.key] = score
                writer.writerow(asdict(score))


def calibrate(
    out: Path,
    *,
    anatomies: Sequence[Anatomy],
    recipe: Recipe,
    sampling: Sampling,
    settings: CalibrationSettings | None = None,
    on_step: OnStep = lambda sentence, done: None,
) -> Recipe:
    """Finds difficulty and regression; writes ``scores.csv`` and ``calibration.json``.

    Args:
        out: Folder of the two files; a calibration that is there is gone on with.
        anatomies: CTs and phantoms to grow patients from.
        recipe: Whose multipliers are set.
        sampling: Coarse cone beams are enough.
        settings: Targets and patience; None: the usual.
        on_step: Told of progress.

    Returns:
        The recipe with both multipliers.

    Raises:
        InputError: The folder holds scores of other patients, or of another recipe.
        MethodError: DIR-L failed on too many fractions.
    """
    settings = settings or CalibrationSettings()
    book = ScoreBook(out / "scores.csv")
    cases = cases_of(anatomies, settings)
    many, some = cases[:: settings.rigid_every], cases[:: settings.dir_every]

    def rigid_at(difficulty: float) -> float:
        tried = replace(recipe, difficulty=difficulty)
        score(book, many, tried, sampling, ("translation", "rigid"), on_step)
        return mean_dice(book, many, tried, "rigid")

    difficulty = bisected(
        rigid_at,
        PUBLISHED_DICE["rigid"],
        between=settings.difficulty_range,
        settings=settings,
        first=recipe.difficulty,
    )
    harder = replace(recipe, difficulty=difficulty)

    def dir_l_at(regression: float) -> float:
        tried = replace(harder, regression=regression)
        score(book, some, tried, sampling, ("dir-l",), on_step)
        return mean_dice(book, some, tried, "dir-l")

    regression = bisected(
        dir_l_at,
        PUBLISHED_DICE["dir-l"],
        between=settings.regression_range,
        settings=replace(settings, most_evaluations=min(3, settings.most_evaluations)),
        first=recipe.regression,
    )
    final = replace(harder, regression=regression)
    for methods in (("translation", "rigid"), ("dir-l",), ("dir-t",)):  # the cheap ones first
        score(book, cases, final, sampling, methods, on_step)
        write_summary(out / "calibration.json", book, cases, final, settings)
    return final


def cases_of(anatomies: Sequence[Anatomy], settings: CalibrationSettings) -> list[Case]:
    """Every fraction of every patient; neighbours in the list come from different CTs."""
    return [
        Case(
            anatomy=anatomy,
            patient=patient,
            week=week,
            seed=(settings.seed, n, patient),
            number=number,
        )
        for patient in range(settings.patients_each)
        for number, week in enumerate(settings.weeks, 1)
        for n, anatomy in enumerate(anatomies)
    ]


def bisected(
    dice_at: Callable[[float], float],
    target: float,
    *,
    between: tuple[float, float],
    settings: CalibrationSettings,
    first: float = 1.0,
) -> float:
    """A multiplier at which the Dice is within tolerance; the closest one tried otherwise.

    The Dice falls as the multiplier grows. The bracket's ends are taken on trust, not evaluated.
    """
    low, high = between
    at, tried = first, {}
    for _ in range(settings.most_evaluations):
        tried[at] = dice_at(at)
        if abs(tried[at] - target) <= settings.tolerance:
            break
        low, high = (at, high) if tried[at] > target else (low, at)
        at = round((low * high) ** 0.5, 3)
    return min(tried, key=lambda multiplier: abs(tried[multiplier] - target))


def score(
    book: ScoreBook,
    cases: Sequence[Case],
    recipe: Recipe,
    sampling: Sampling,
    methods: Sequence[str],
    on_step: OnStep,
    networks: Mapping[str, Network] | None = None,
) -> None:
    """Fills the book with the scores that it lacks.

    Methods that ``networks`` names are drawn by those; the others are the product's own.

    Raises:
        InputError: The book holds scores of other patients, or of another recipe.
    """
    book.require_same(cases, recipe, sampling)
    for n, case in enumerate(cases, 1):
        missing = [m for m in methods if book.find(case, recipe, m) is None]
        if not missing:
            continue
        patient = virtual_patient(case.anatomy, recipe=recipe, sampling=sampling, seed=case.seed)
        day = fraction(patient, week=case.week, number=case.number)
        book.add(_scores(case, patient, day, missing, networks or {}))
        on_step(
            f"difficulty {recipe.difficulty:g}, regression {recipe.regression:g}: "
            f"{n} of {len(cases)}, {', '.join(missing)}",
            n / len(cases),
        )


def _scores(
    case: Case,
    patient: VirtualPatient,
    day: Fraction,
    methods: Sequence[str],
    networks: Mapping[str, Network],
) -> list[Score]:
    settings = RegistrationSettings()
    registrations = register_all(
        fixed=day.cbct, moving=patient.planning_ct, prior=patient.prior_mask, settings=settings
    )
    task = Task(
        fixed=day.cbct,
        moving=patient.planning_ct,
        prior=patient.prior_mask,
        registrations=registrations,
        settings=settings,
    )
    distance = distance_map(patient.prior, grid=patient.grid)
    scores = []
    for method in methods:
        ended_as = ""
        try:
            carriage = METHODS["rigid" if method in networks else method](task)
            ended_as = carriage.ended_as
        except MethodError as error:  # counted as what the product would show: the rigid contour
            carriage, ended_as = METHODS["rigid"](task), f"{FAILED}{error.cause}"
        region = carry(distance, carriage.planning_from_cbct, onto=day.cbct.grid)
        if method in networks:
            moved = Moved(
                volume=patient.planning_ct,
                moving_from_fixed=registrations.chosen.planning_from_cbct,
            )
            region = networks[method].predict(day.cbct, region, moved)
        drawn = region.mask()
        scores.append(
            Score(
                ct=case.anatomy.name,
                patient=case.patient,
                week=case.week,
                difficulty=patient.recipe.difficulty,
                regression=patient.recipe.regression,
                method=method,
                dice=dice(drawn, day.truth.label),
                dice_anatomical=dice(drawn, day.truth.anatomical),
                label_cc=day.truth.label.volume_cc,
                visible_share=day.truth.visible_share,
                place=patient.lesion.place,
                ended_as=ended_as,
            )
        )
    return scores


def found(book: ScoreBook, cases: Sequence[Case], recipe: Recipe, method: str) -> list[Score]:
    """The scores of a method that are known."""
    scores = (book.find(case, recipe, method) for case in cases)
    return [s for s in scores if s is not None]


def mean_dice(book: ScoreBook, cases: Sequence[Case], recipe: Recipe, method: str) -> float:
    """Mean over fractions.

    Raises:
        MethodError: The method failed on too many of them to be calibrated on.
    """
    scores = found(book, cases, recipe, method)
    failures = [s for s in scores if s.failed]
    if len(failures) > MOST_FAILED * len(scores):
        raise MethodError(
            f"{method} failed on {len(failures)} of {len(scores)} fractions: "
            f"{failures[0].ended_as.removeprefix(FAILED)}",
            remedy="mend the method first, then start the calibration again: it goes on",
        )
    return float(np.mean([s.dice for s in scores]))


def write_summary(
    path: Path,
    book: ScoreBook,
    cases: Sequence[Case],
    recipe: Recipe,
    settings: CalibrationSettings,
) -> None:
    """The table: mean, spread and bootstrap interval by patient, beside what was published."""
    methods: dict[str, dict[str, object]] = {}
    for method, published in PUBLISHED_DICE.items():
        scores = found(book, cases, recipe, method)
        if not scores:
            continue
        dice_of = estimate([s.dice for s in scores], [(s.ct, s.patient) for s in scores])
        methods[method] = {
            "fractions": len(scores),
            "patients": dice_of.patients,
            "cts": len({s.ct for s in scores}),
            "dice_mean": dice_of.mean,
            "dice_sd": float(np.std([s.dice for s in scores])),
            "dice_median": float(np.median([s.dice for s in scores])),
            "interval_95": [dice_of.low, dice_of.high],
            "dice_anatomical_mean": float(np.mean([s.dice_anatomical for s in scores])),
            "published": published,
            "off_by": dice_of.mean - published,
            "hidden_share": float(np.mean([s.visible_share < 0.3 for s in scores])),
            "ended_otherwise": sum(bool(s.ended_as) for s in scores),
        }
    document = {
        "recipe": recipe.name,
        "difficulty": recipe.difficulty,
        "regression": recipe.regression,
        "settings": asdict(settings),
        "methods": methods,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def read_scores(path: Path) -> list[Score]:
    """What a book holds, failures too; of one case and method the last entry.

    Raises:
        InputError: It is no book of scores.
    """
    with path.open(newline="") as file:
        try:
            scores = [_score_of(row) for row in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(
                "this is no book of scores",
                file=path.name,
                remedy=f"its columns must be {', '.join(Score.__dataclass_fields__)}",
            ) from error
    return list({score.key: score for score in scores}.values())


def _score_of(row: dict[str, str]) -> Score:
    return Score(
        ct=row["ct"],
        patient=int(row["patient"]),
        week=float(row["week"]),
        difficulty=float(row["difficulty"]),
        regression=float(row["regression"]),
        method=row["method"],
        dice=float(row["dice"]),
        dice_anatomical=float(row["dice_anatomical"]),
        label_cc=float(row["label_cc"]),
        visible_share=float(row["visible_share"]),
        place=row["place"],
        ended_as=row["ended_as"],
    )
