"""What may be said of a cohort: means with intervals by patient, paired tests, Holm's correction.

Fractions of one patient are not independent: intervals are drawn over patients, and tests are
given twice, over cases (as papers do) and over patients' means (as one should).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from contourcast.imaging.errors import InputError

RESAMPLES: Final = 2000  # of the bootstrap: the ends of an interval repeat to a tenth of its width
CONFIDENCE: Final = 0.95
# A spread below this share of the mean is rounding, not spread.
ROUNDING: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over cases, NaN where there is none.

    Attributes:
        sd: Over cases (n - 1 in the denominator); NaN for a single one.
        low: Lower end of the 95 % bootstrap interval of the mean by patient,
        high: … and its upper end.
        median: Over cases.
        lower_quartile: A quarter of the cases lie below it,
        upper_quartile: … and a quarter above this one (linear between cases).
    """

    mean: float
    sd: float
    low: float
    high: float
    median: float
    lower_quartile: float
    upper_quartile: float
    cases: int
    patients: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method against another on the same cases.

    Attributes:
        lead: Of the method over the reference.
        p_t: Two-sided paired t test over cases; NaN where `paired_t` has none.
        p_wilcoxon: Two-sided Wilcoxon signed-rank test over cases, zero differences left out.
        p_t_patients: The t test over patients' mean differences.
        p_wilcoxon_patients: Wilcoxon's test over patients' mean differences.
    """

    lead: Estimate
    p_t: float
    p_wilcoxon: float
    p_t_patients: float
    p_wilcoxon_patients: float


def estimate(
    values: Iterable[float], patients: Iterable[Hashable], *, resamples: int = RESAMPLES
) -> Estimate:
    """Mean, sd and percentile bootstrap interval, whole patients drawn with replacement (seeded).

    Args:
        values: One a case.
        patients: Whose case it is.
        resamples: Of the bootstrap.
    """
    groups = list(_by_patient(values, patients).values())
    if not groups:
        nan = float("nan")
        return Estimate(
            mean=nan,
            sd=nan,
            low=nan,
            high=nan,
            median=nan,
            lower_quartile=nan,
            upper_quartile=nan,
            cases=0,
            patients=0,
        )
    sums = np.array([group.sum() for group in groups])
    counts = np.array([group.size for group in groups])
    draws = np.random.default_rng(0).integers(len(groups), size=(resamples, len(groups)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    every = np.concatenate(groups)
    lower_quartile, median, upper_quartile = np.quantile(every, [0.25, 0.5, 0.75])
    return Estimate(
        mean=float(every.mean()),
        sd=float(every.std(ddof=1)) if every.size > 1 else float("nan"),
        low=float(low),
        high=float(high),
        median=float(median),
        lower_quartile=float(lower_quartile),
        upper_quartile=float(upper_quartile),
        cases=int(every.size),
        patients=len(groups),
    )


def estimate_over_patients(
    values: Iterable[float], patients: Iterable[Hashable], *, resamples: int = RESAMPLES
) -> Estimate:
    """As `estimate`, of patients' means: one who was scanned more often weighs no more.

    Args:
        values: One a case.
        patients: Whose case it is.
        resamples: Of the bootstrap.
    """
    groups = _by_patient(values, patients)
    return estimate([group.mean() for group in groups.values()], groups, resamples=resamples)


def compared(
    values: Sequence[float], reference: Sequence[float], patients: Sequence[Hashable]
) -> Comparison:
    """Paired lead of one method over another; entry n of all three is the same case.

    Raises:
        InputError: They are not of one length.
    """
    if not len(values) == len(reference) == len(patients):
        raise InputError("paired tests need one value of each method and a patient for each case")
    leads = np.asarray(values, float) - np.asarray(reference, float)
    of_patients = np.array([group.mean() for group in _by_patient(leads, patients).values()])
    return Comparison(
        lead=estimate(leads, patients),
        p_t=paired_t(leads),
        p_wilcoxon=wilcoxon(leads),
        p_t_patients=paired_t(of_patients),
        p_wilcoxon_patients=wilcoxon(of_patients),
    )


def paired_t(leads: np.ndarray) -> float:
    """Two-sided p of a paired t test on differences.

    NaN for fewer than two, and where all are the same: t would be infinite, and two patients with
    one lead would be certainty. Where all are zero nothing is told apart.
    """
    if leads.size < 2:
        return float("nan")
    if leads.std() <= ROUNDING * np.abs(leads).max():
        return float("nan") if leads.any() else 1.0
    return float(stats.ttest_1samp(leads, 0.0).pvalue)


def wilcoxon(leads: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on differences; NaN for fewer than two."""
    if leads.size < 2:
        return float("nan")
    if not leads.any():
        return 1.0
    return float(stats.wilcoxon(leads).pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction of a family of tests, each in its place; NaN stays apart.

    Holm 1979, Scand J Stat 6:65: the k-th smallest of m is multiplied by m - k + 1, and none may
    come out below a smaller one.
    """
    p = np.asarray(p_values, float)
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(p[order] * factors).clip(max=1.0)
    return tuple(float(v) for v in corrected)


def _by_patient(
    values: Iterable[float], patients: Iterable[Hashable]
) -> dict[Hashable, np.ndarray]:
    """Each patient's values, patients in order of appearance."""
    groups: dict[Hashable, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        groups.setdefault(patient, []).append(float(value))
    return {patient: np.array(group) for patient, group in groups.items()}
