"""What may be said of a cohort."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from contourcast.imaging.errors import InputError
from contourcast.training.statistics import (
    Estimate,
    compared,
    estimate,
    estimate_over_patients,
    holm,
    paired_t,
    wilcoxon,
)


class TestEstimate:
    def test_mean_and_sd_are_over_cases(self) -> None:
        found = estimate([1.0, 2.0, 3.0, 6.0], ["a", "a", "b", "b"])
        assert found.mean == 3.0
        assert found.sd == pytest.approx(math.sqrt(14 / 3))
        assert (found.cases, found.patients) == (4, 2)

    def test_the_interval_draws_patients_and_not_cases(self) -> None:
        found = estimate([0.9] * 10 + [0.1] * 10, ["a"] * 10 + ["b"] * 10)
        assert found.low == pytest.approx(0.1)
        assert found.high == pytest.approx(0.9)

    def test_a_patient_with_more_cases_weighs_more(self) -> None:
        found = estimate([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])
        assert found.mean == 0.25

    def test_the_interval_of_many_patients_is_that_of_the_mean(self) -> None:
        values = np.random.default_rng(3).normal(5.0, 2.0, 400)
        found = estimate(values, range(400))
        error = 2.0 / math.sqrt(400)
        assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
        assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)

    def test_the_drawing_is_the_plain_one(self) -> None:
        """Sums and counts of drawn patients give what joining their cases gives."""
        rng = np.random.default_rng(5)
        groups = [rng.random(size) for size in (1, 7, 2, 5, 1, 9, 3, 4)]
        draws = np.random.default_rng(0).integers(8, size=(2000, 8))
        means = [np.concatenate([groups[g] for g in draw]).mean() for draw in draws]
        low, high = np.quantile(means, [0.025, 0.975])
        patients = np.repeat(np.arange(8), [len(group) for group in groups])
        found = estimate(np.concatenate(groups), patients.tolist())
        assert (found.low, found.high) == pytest.approx((low, high))

    def test_median_and_quartiles_by_hand(self) -> None:
        found = estimate([4.0, 1.0, 3.0, 2.0, 10.0], "abcde")
        assert (found.lower_quartile, found.median, found.upper_quartile) == (2.0, 3.0, 4.0)

    def test_over_patients_each_weighs_the_same(self) -> None:
        found = estimate_over_patients([1.0, 0.0, 0.0, 0.2, 0.4], ["a", "b", "b", "b", "c"])
        thirds = (1.0, 0.2 / 3, 0.4)
        assert found.mean == pytest.approx(np.mean(thirds))
        assert found.sd == pytest.approx(np.std(thirds, ddof=1))
        assert found.median == 0.4
        assert (found.cases, found.patients) == (3, 3)
        assert (found.low, found.high) == pytest.approx((0.2 / 3, 1.0))

    @pytest.mark.parametrize("over", [estimate, estimate_over_patients])
    def test_nothing_is_not_a_number(self, over: Callable[..., Estimate]) -> None:
        found = over([], [])
        assert math.isnan(found.mean)
        assert math.isnan(found.median)
        assert found.cases == 0

    def test_one_case_has_no_spread(self) -> None:
        found = estimate([0.5], ["a"])
        assert math.isnan(found.sd)
        assert (found.low, found.high) == (0.5, 0.5)


class TestPaired:
    LEADS = np.array([0.3, 0.1, -0.05, 0.22, 0.4, 0.17, -0.02, 0.31])

    def test_t_is_the_formula(self) -> None:
        n = self.LEADS.size
        t = self.LEADS.mean() / (self.LEADS.std(ddof=1) / math.sqrt(n))
        assert paired_t(self.LEADS) == pytest.approx(2 * stats.t.sf(abs(t), n - 1))

    def test_wilcoxon_is_counted_by_hand(self) -> None:
        """Ranks of -0.02 and -0.05 are 1 and 2: W = 3; 5 of 2⁸ sign patterns have W <= 3."""
        assert wilcoxon(self.LEADS) == pytest.approx(2 * 5 / 2**8)

    def test_equal_methods_are_not_told_apart(self) -> None:
        assert paired_t(np.zeros(5)) == wilcoxon(np.zeros(5)) == 1.0

    @pytest.mark.parametrize("leads", [np.full(5, 0.1), np.array([0.61, 0.71]) - [0.6, 0.7]])
    def test_the_same_lead_everywhere_has_no_t_and_no_warning(self, leads: np.ndarray) -> None:
        assert math.isnan(paired_t(leads))

    def test_one_pair_has_no_test(self) -> None:
        assert math.isnan(paired_t(np.array([0.1])))
        assert math.isnan(wilcoxon(np.array([0.1])))

    def test_many_fractions_of_one_patient_do_not_convince(self) -> None:
        """Two patients, twenty fractions: certain by case, open by patient."""
        leads = np.random.default_rng(1).normal([0.2] * 10 + [0.02] * 10, 0.02)
        found = compared(leads.tolist(), [0.0] * 20, ["a"] * 10 + ["b"] * 10)
        assert found.p_t < 0.001
        assert found.p_t_patients > 0.2
        assert found.lead.patients == 2

    def test_unequal_lengths_are_refused(self) -> None:
        with pytest.raises(InputError, match="one value of each method"):
            compared([1.0, 2.0], [1.0], ["a", "a"])


class TestHolm:
    def test_the_textbook_example(self) -> None:
        """p = .01 .04 .03 .005: × 3, × 1 raised to .06, × 2, × 4."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))

    def test_none_exceeds_one_or_stands_below_a_smaller(self) -> None:
        corrected = holm([0.6, 0.5, 0.9])
        assert corrected == (1.0, 1.0, 1.0)

    def test_a_test_that_was_not_made_does_not_count(self) -> None:
        one, none, other = holm([0.01, float("nan"), 0.02])
        assert (one, other) == pytest.approx((0.02, 0.02))
        assert math.isnan(none)

    def test_no_tests(self) -> None:
        assert holm([]) == ()
